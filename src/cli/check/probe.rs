//! The live part of `check`: name, TLS, key, and how long a poll is really held, tried on the upstream itself and on
//! the way that clients take.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, Uri, Version};

use crate::cli::api_key;
use crate::cli::job_client::{JobRequestError, fetch_job, message};
use crate::clock;
use crate::config::{self, AuthConfig, Config};
use crate::core::job::{JobId, JobSet};
use crate::core::job_body::{self, SplitBody};
use crate::core::route::{Form, Route, Rung};
use crate::upstream::client::{Client, SendError};

/// The id of no job: it asks who may ask, and costs nothing.
const NO_JOB: &str = "00000000-0000-0000-0000-000000000000";

/// How long a question that is answered at once may take.
const PATIENCE: Duration = Duration::from_secs(15);

/// What was found.
pub(super) struct Finding {
    pub(super) about: &'static str,
    pub(super) severity: Severity,
    pub(super) message: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Severity {
    Good,
    /// It works, though not as it is set.
    Warning,
    /// It does not.
    Error,
}

impl Finding {
    fn good(about: &'static str, says: impl fmt::Display) -> Self {
        Self { about, severity: Severity::Good, message: says.to_string() }
    }

    fn warning(about: &'static str, says: impl fmt::Display) -> Self {
        Self { about, severity: Severity::Warning, message: says.to_string() }
    }

    fn fault(about: &'static str, says: impl fmt::Display) -> Self {
        Self { about, severity: Severity::Error, message: says.to_string() }
    }
}

/// What is tried beside name, TLS and keys.
pub(super) struct ProbePlan {
    /// The key that a client sends.
    pub(super) client_key: Option<HeaderValue>,
    /// A job that is still being made, to hold a poll on.
    pub(super) job: Option<JobId>,
    /// Where clients connect.
    pub(super) through: Option<Uri>,
}

/// One side that is asked.
struct ProbeTarget<'a> {
    about: &'static str,
    client: Client,
    route: Arc<Route>,
    authorization: Option<HeaderValue>,
    /// How long it should hold, and the configuration's name for that.
    expected: (Duration, &'a str),
}

/// Tries all that there is to try, and tells what was found as it comes.
pub(super) async fn run(config: &Config, plan: ProbePlan, tell: &mut impl FnMut(Finding)) {
    let route = Arc::new(Route::suno());
    let upstream = &config.upstream;
    if !name(&upstream.base_url, tell).await {
        return;
    }
    let Ok(client) = Client::new(upstream) else {
        tell(Finding::fault("upstream", "upstream.base_url is no usable URL"));
        return;
    };
    let keys = keys(config, plan.client_key.as_ref());
    let first = keys.first().and_then(|(_, key)| key.clone());
    let mut side = ProbeTarget {
        about: "hold",
        client,
        route: Arc::clone(&route),
        authorization: None,
        expected: (upstream.poll_timeout, "upstream.poll_timeout"),
    };
    if !side.connect(tell).await {
        return;
    }
    let mut is_let_in = true;
    for (whose, key) in keys {
        side.authorization = key;
        is_let_in &= side.try_key(&whose, tell).await;
    }
    side.authorization = first;
    let Some(job) = plan.job else {
        tell(Finding::good("hold", "not tried: --job ID names a job that is still being made"));
        return;
    };
    if !is_let_in {
        return;
    }
    let front = plan.through.and_then(|url| {
        let front = config::UpstreamConfig { base_url: url, ..upstream.clone() };
        Some(ProbeTarget {
            about: "through",
            client: Client::new(&front).ok()?,
            route,
            authorization: plan.client_key,
            expected: (config.wait.timeout, "wait.timeout"),
        })
    });
    let through = async {
        match &front {
            Some(front) => Some(front.hold(&job).await),
            None => None,
        }
    };
    let (behind, through) = tokio::join!(side.hold(&job), through);
    tell(behind);
    through.into_iter().for_each(tell);
}

/// Whether the upstream's name leads somewhere.
async fn name(url: &Uri, tell: &mut impl FnMut(Finding)) -> bool {
    let host = url.host().unwrap_or_default().trim_matches(['[', ']']);
    let port = url.port_u16().unwrap_or(if url.scheme_str() == Some("https") { 443 } else { 80 });
    let since = clock::now();
    match tokio::time::timeout(PATIENCE, tokio::net::lookup_host((host, port))).await {
        Ok(Ok(found)) => {
            let mut addresses: Vec<String> = found.map(|address| address.ip().to_string()).collect();
            addresses.dedup();
            tell(Finding::good("name", format_args!("{host} is {} ({})", addresses.join(", "), took(since))));
            !addresses.is_empty()
        }
        Ok(Err(error)) => {
            tell(Finding::fault("name", format_args!("{host} is not known: {error}")));
            false
        }
        Err(_) => {
            tell(Finding::fault("name", format_args!("{host} was not found in {} s", PATIENCE.as_secs())));
            false
        }
    }
}

/// Each key that the upstream is asked with, and whose it is.
fn keys(config: &Config, client_key: Option<&HeaderValue>) -> Vec<(String, Option<HeaderValue>)> {
    match &config.auth {
        AuthConfig::Passthrough => vec![("the client's key".to_owned(), client_key.cloned())],
        AuthConfig::Sidecar => {
            vec![("upstream.api_key".to_owned(), config.upstream.api_key.as_ref().map(api_key::bearer))]
        }
        AuthConfig::Team(members) => {
            let key = |member: &config::TeamMember| {
                (format!("the key of {}", member.name), Some(api_key::bearer(&member.upstream_key)))
            };
            members.iter().map(key).collect()
        }
    }
}

impl ProbeTarget<'_> {
    async fn fetch_job(
        &self,
        id: &JobId,
        rung: Rung,
        patience: Duration,
    ) -> Option<Result<Response<Bytes>, JobRequestError>> {
        let asking = fetch_job(&self.client, &self.route, self.authorization.as_ref(), id, rung);
        tokio::time::timeout(patience, asking).await.ok()
    }

    async fn ask_at_once(&self) -> Option<Result<Response<Bytes>, JobRequestError>> {
        let id = JobId::new(NO_JOB).expect("it is a clip's id, if of none");
        self.fetch_job(&id, self.route.ladder.lowest(), PATIENCE).await
    }

    /// Whether there is a connection, with TLS where that is wanted.
    async fn connect(&self, tell: &mut impl FnMut(Finding)) -> bool {
        let since = clock::now();
        let fault = match self.ask_at_once().await {
            Some(Ok(response)) => {
                let speaks = if response.version() == Version::HTTP_2 { "HTTP/2" } else { "HTTP/1.1" };
                tell(Finding::good("connect", format_args!("it answers, in {speaks} ({})", took(since))));
                return true;
            }
            Some(Err(JobRequestError::Send(error @ SendError::Tls(_)))) => {
                format!("{error}: {}; is it the right host, and are its roots installed?", root_cause(&error))
            }
            Some(Err(error)) => format!("{error}: {}", root_cause(&error)),
            None => format!("no answer in {} s", PATIENCE.as_secs()),
        };
        tell(Finding::fault("connect", fault));
        false
    }

    /// Whether the upstream lets the key in.
    async fn try_key(&self, whose: &str, tell: &mut impl FnMut(Finding)) -> bool {
        if self.authorization.is_none() {
            tell(Finding::good("key", "not tried: there is none in AIMLAPI_KEY, and --key names none"));
            return true;
        }
        let finding = match self.ask_at_once().await {
            Some(Ok(response)) if is_refusal(response.status()) => {
                let why = message(response.status(), response.body());
                Finding::fault("key", format_args!("{whose} is refused: {why}"))
            }
            Some(Ok(response)) if response.status().is_server_error() => {
                Finding::warning("key", format_args!("{whose} could not be tried: {}", response.status()))
            }
            Some(Ok(_)) => Finding::good("key", format_args!("{whose} is let in")),
            Some(Err(error)) => Finding::warning("key", format_args!("{whose} could not be tried: {error}")),
            None => Finding::warning("key", format_args!("{whose}: no answer in {} s", PATIENCE.as_secs())),
        };
        let is_let_in = finding.severity != Severity::Error;
        tell(finding);
        is_let_in
    }

    /// Holds a poll for the last rung, and tells how long it was held.
    async fn hold(&self, id: &JobId) -> Finding {
        let ladder = &self.route.ladder;
        let goal = ladder.rungs().filter(|rung| ladder.is_askable(*rung)).last();
        let goal = goal.expect("some rung can be asked for");
        let since = clock::now();
        let answered = self.fetch_job(id, goal, self.expected.0.mul_f64(1.25) + PATIENCE).await;
        let held = clock::now().saturating_duration_since(since);
        let seconds = format!("{:.1} s", held.as_secs_f64());
        let key = self.expected.1;
        match answered {
            None => Finding::warning(
                self.about,
                format_args!("still held after {seconds}: {key} should say how long it really is"),
            ),
            Some(Err(error)) => self.cut_off(&seconds, &error.to_string()),
            Some(Ok(response)) if is_cut(response.status()) => {
                self.cut_off(&seconds, &response.status().to_string())
            }
            Some(Ok(response)) if !response.status().is_success() => {
                let why = message(response.status(), response.body());
                Finding::fault(self.about, format_args!("{why}; --job names a job that is still being made"))
            }
            Some(Ok(response)) => match self.rung(id, response.body()) {
                Some(rung) => self.held(held, rung >= goal),
                None => Finding::fault(self.about, "the answer is not the clip"),
            },
        }
    }

    fn cut_off(&self, seconds: &str, why: &str) -> Finding {
        let says = "something on the way ends long requests; give proxies and load balancers there a read time-out \
            of 150 s";
        Finding::fault(self.about, format_args!("cut off after {seconds} ({why}): {says}"))
    }

    fn held(&self, held: Duration, is_reached: bool) -> Finding {
        let (expected, key) = self.expected;
        let seconds = format!("{:.1} s", held.as_secs_f64());
        let expected_text = humantime::format_duration(expected);
        if is_reached {
            let says =
                format!("the job was made after {seconds}, so it holds that long at least; try a newer one");
            Finding::good(self.about, says)
        } else if held < expected.mul_f64(0.9) {
            let says = format!("held for {seconds} only, while {key} is {expected_text}: make that so");
            Finding::warning(self.about, says)
        } else {
            Finding::good(self.about, format_args!("held for {seconds}, as {key} says"))
        }
    }

    fn rung(&self, id: &JobId, body: &Bytes) -> Option<Rung> {
        match job_body::split(&self.route, Form::Single, &JobSet::new([id.clone()]), body) {
            SplitBody::Jobs { jobs, .. } => jobs.first().and_then(|cut| cut.rung),
            SplitBody::Unsplit | SplitBody::Invalid => None,
        }
    }
}

/// Whether a proxy says so when it gives up.
fn is_cut(status: StatusCode) -> bool {
    [StatusCode::BAD_GATEWAY, StatusCode::GATEWAY_TIMEOUT, StatusCode::REQUEST_TIMEOUT].contains(&status)
}

fn is_refusal(status: StatusCode) -> bool {
    [StatusCode::UNAUTHORIZED, StatusCode::FORBIDDEN].contains(&status)
}

fn took(since: Instant) -> String {
    format!("{} ms", clock::now().saturating_duration_since(since).as_millis())
}

/// The last of the chain, which says most.
fn root_cause(error: &(dyn std::error::Error + 'static)) -> String {
    let mut cause = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    cause.to_string()
}
