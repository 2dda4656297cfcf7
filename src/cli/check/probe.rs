//! The tests of `check --live`: name, connection, keys, and how long a poll is held, at the upstream and on the clients'
//! way.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::AUTHORIZATION;
use http::{HeaderName, Response, StatusCode, Uri, Version};

use super::job_report::describe;
use crate::cli::error::root_cause;
use crate::cli::job_client::{JobRequestError, KeyField, fetch_job, message};
use crate::clock;
use crate::config::{self, AuthConfig, AuthMode, Config, KeyTemplate};
use crate::core::job::{JobId, JobSet, RouteIndex};
use crate::core::job_body::{self, SplitBody};
use crate::core::route::{Form, ID, Route, Rung};
use crate::secret::Secret;
use crate::upstream::client::{Client, SendError};

/// Id of a job that does not exist. The upstream checks the key of a request for it at no cost.
const NO_JOB: &str = "00000000-0000-0000-0000-000000000000";

/// Longest time for a response that the upstream does not hold.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(15);

/// Result of one test.
pub(super) struct Finding {
    pub(super) subject: &'static str,
    pub(super) severity: Severity,
    pub(super) message: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Severity {
    Good,
    /// Works, but not as configured.
    Warning,
    Error,
}

impl Finding {
    pub(super) fn good(subject: &'static str, message: impl fmt::Display) -> Self {
        Self { subject, severity: Severity::Good, message: message.to_string() }
    }

    pub(super) fn warning(subject: &'static str, message: impl fmt::Display) -> Self {
        Self { subject, severity: Severity::Warning, message: message.to_string() }
    }

    pub(super) fn error(subject: &'static str, message: impl fmt::Display) -> Self {
        Self { subject, severity: Severity::Error, message: message.to_string() }
    }
}

/// Inputs of the tests beyond the configuration.
pub(super) struct ProbePlan {
    /// Key or token of a client.
    pub(super) client_key: Option<Secret>,
    /// Route of the job and of the tests.
    pub(super) route: RouteIndex,
    /// An unfinished job, to hold a poll for, or any job to read.
    pub(super) job: Option<JobId>,
    /// Whether the job is read through the configuration.
    pub(super) is_read: bool,
    /// Address that clients use.
    pub(super) through: Option<Uri>,
    /// Fields of all requests, such as those of `auth.with_key`.
    pub(super) fields: Vec<KeyField>,
}

/// Runs all tests and reports each finding as soon as it is known.
pub(super) async fn run(config: &Config, plan: ProbePlan, report: &mut impl FnMut(Finding)) {
    let route = Arc::new(config.routes().get(plan.route).clone());
    let hold_key = if config.routes.is_empty() { "upstream.poll_timeout" } else { "hold of the route" };
    let upstream = &config.upstream;
    if !resolve_name(&upstream.base_url, report).await {
        return;
    }
    let Ok(client) = Client::new(upstream) else {
        report(Finding::error("upstream", "upstream.base_url is not a usable URL"));
        return;
    };
    let keys = keys(config, plan.client_key.as_ref());
    let first_key = keys.first().and_then(|(_, key)| key.clone());
    let mut target = ProbeTarget {
        subject: "hold",
        client,
        route: Arc::clone(&route),
        key: None,
        fields: plan.fields.clone(),
        expected: (route.hold, hold_key),
    };
    if !target.connect(report).await {
        return;
    }
    for name in unset_fields(config, &plan.fields) {
        let text = format_args!(
            "auth.with_key has {name}, and no --header sets it: the upstream may reject requests"
        );
        report(Finding::warning("fields", text));
    }
    if keys.is_empty() {
        report(Finding::good("key", "not needed: auth.mode is \"open\""));
    }
    let mut all_accepted = true;
    for (name, key) in keys {
        target.key = key;
        all_accepted &= target.try_key(&name, report).await;
    }
    target.key = first_key;
    let Some(job) = plan.job else {
        let text = match route.never_holds() {
            false => "not tested: needs --job ID with an unfinished job",
            true => "not tested: the route never holds. --id ID reads a job",
        };
        report(Finding::good("hold", text));
        return;
    };
    if !all_accepted {
        return;
    }
    if plan.is_read || route.never_holds() {
        return target.read(&job, report).await;
    }
    let front = plan.through.and_then(|url| {
        let front = config::UpstreamConfig { base_url: url, ..upstream.clone() };
        Some(ProbeTarget {
            subject: "through",
            client: Client::new(&front).ok()?,
            route,
            key: plan.client_key.and_then(|key| client_field(&config.auth, &key)),
            fields: plan.fields,
            expected: (config.wait.timeout, "wait.timeout"),
        })
    });
    let through = async {
        match &front {
            Some(front) => Some(front.hold(&job).await),
            None => None,
        }
    };
    let (direct, through) = tokio::join!(target.hold(&job), through);
    report(direct);
    through.into_iter().for_each(report);
}

/// Resolves the name of the upstream. Returns whether it has an address.
async fn resolve_name(url: &Uri, report: &mut impl FnMut(Finding)) -> bool {
    let host = url.host().unwrap_or_default().trim_matches(['[', ']']);
    let port = url.port_u16().unwrap_or(if url.scheme_str() == Some("https") { 443 } else { 80 });
    let since = clock::now();
    match tokio::time::timeout(RESPONSE_TIMEOUT, tokio::net::lookup_host((host, port))).await {
        Ok(Ok(found)) => {
            let mut addresses: Vec<String> = found.map(|address| address.ip().to_string()).collect();
            addresses.dedup();
            let list = addresses.join(", ");
            report(Finding::good("name", format_args!("{host} resolves to {list} ({})", elapsed(since))));
            !addresses.is_empty()
        }
        Ok(Err(error)) => {
            report(Finding::error("name", format_args!("{host} does not resolve: {error}")));
            false
        }
        Err(_) => {
            let seconds = RESPONSE_TIMEOUT.as_secs();
            report(Finding::error("name", format_args!("{host} did not resolve within {seconds} s")));
            false
        }
    }
}

/// Returns the fields of `auth.with_key` that the tests do not send. Clients of the gateway do.
fn unset_fields<'c>(config: &'c Config, sent: &[KeyField]) -> Vec<&'c HeaderName> {
    let is_unset = |name: &&HeaderName| !sent.iter().any(|(other, _)| other == *name);
    config.auth.with_key.iter().filter(is_unset).collect()
}

/// Returns each key that the upstream receives once, with a name for reports.
fn keys(config: &Config, client_key: Option<&Secret>) -> Vec<(String, Option<KeyField>)> {
    let field = |key: &Secret| config.auth.send.field(key);
    match &config.auth.mode {
        AuthMode::Passthrough => {
            vec![("the client's key".to_owned(), client_key.and_then(|key| client_field(&config.auth, key)))]
        }
        AuthMode::Sidecar => {
            vec![("upstream.api_key".to_owned(), config.upstream.api_key.as_ref().and_then(field))]
        }
        AuthMode::Team(members) => {
            let mut keys: Vec<(&Secret, Vec<&str>)> = Vec::new();
            for member in members {
                match keys.iter_mut().find(|(key, _)| **key == member.upstream_key) {
                    Some((_, names)) => names.push(&member.name),
                    None => keys.push((&member.upstream_key, vec![&member.name])),
                }
            }
            keys.into_iter().map(|(key, names)| (key_of(&names), field(key))).collect()
        }
        AuthMode::Open => Vec::new(),
    }
}

/// Names the key of these members, with at most three of their names.
fn key_of(names: &[&str]) -> String {
    match names {
        [first, second, rest @ ..] if rest.len() > 1 => {
            format!("the key of {first}, {second} and {} others", rest.len())
        }
        _ => format!("the key of {}", names.join(" and ")),
    }
}

/// Returns the field in which a client sends its key or token: that of `auth.send` if it can be a client's, else the first
/// of `auth.headers`.
fn client_field(auth: &AuthConfig, key: &Secret) -> Option<KeyField> {
    let is_upstream_key = matches!(auth.mode, AuthMode::Passthrough);
    match auth.headers.first() {
        _ if is_upstream_key && auth.headers.contains(&auth.send.name) => auth.send.field(key),
        Some(name) if *name != AUTHORIZATION => {
            KeyTemplate { name: name.clone(), before: String::new(), after: String::new() }.field(key)
        }
        Some(_) | None => KeyTemplate::default().field(key),
    }
}

/// A server that is tested: the upstream, or the address of clients.
struct ProbeTarget<'a> {
    /// Subject of its findings.
    subject: &'static str,
    client: Client,
    route: Arc<Route>,
    key: Option<KeyField>,
    fields: Vec<KeyField>,
    /// Time for which it should hold a poll, and the key of the configuration with that time.
    expected: (Duration, &'a str),
}

impl ProbeTarget<'_> {
    async fn fetch_job(
        &self,
        id: &JobId,
        rung: Rung,
        timeout: Duration,
    ) -> Option<Result<Response<Bytes>, JobRequestError>> {
        let fields = self.fields.iter().chain(&self.key);
        let response = fetch_job(&self.client, &self.route, fields, id, rung);
        tokio::time::timeout(timeout, response).await.ok()
    }

    /// Sends a request that the server does not hold.
    async fn fetch_no_job(&self) -> Option<Result<Response<Bytes>, JobRequestError>> {
        let others =
            self.route.path.variables().filter(|name| *name != ID).map(|_| "none").collect::<Vec<_>>();
        let id = JobId::with_rest(RouteIndex::default(), NO_JOB, &others.join("/")).expect("the id is valid");
        self.fetch_job(&id, self.route.ladder.lowest(), RESPONSE_TIMEOUT).await
    }

    async fn connect(&self, report: &mut impl FnMut(Finding)) -> bool {
        let since = clock::now();
        let problem = match self.fetch_no_job().await {
            Some(Ok(response)) => {
                let version = if response.version() == Version::HTTP_2 { "HTTP/2" } else { "HTTP/1.1" };
                let message = format_args!("the upstream responds with {version} ({})", elapsed(since));
                report(Finding::good("connect", message));
                return true;
            }
            Some(Err(JobRequestError::Send(error @ SendError::Tls(_)))) => {
                format!(
                    "{error}: {}. Check the host name and the installed root certificates.",
                    root_cause(&error)
                )
            }
            Some(Err(error)) => format!("{error}: {}", root_cause(&error)),
            None => format!("no response within {} s", RESPONSE_TIMEOUT.as_secs()),
        };
        report(Finding::error("connect", problem));
        false
    }

    /// Returns `false` if the upstream rejects the key.
    async fn try_key(&self, name: &str, report: &mut impl FnMut(Finding)) -> bool {
        if self.key.is_none() {
            report(Finding::good("key", "not tested: neither --key nor AIMLAPI_KEY is set"));
            return true;
        }
        let finding = match self.fetch_no_job().await {
            Some(Ok(response)) if is_key_rejection(response.status()) => {
                let reason = message(response.status(), response.body());
                Finding::error("key", format_args!("{name} is rejected: {reason}"))
            }
            Some(Ok(response)) if response.status().is_server_error() => {
                Finding::warning("key", format_args!("{name} could not be tested: {}", response.status()))
            }
            Some(Ok(_)) => Finding::good("key", format_args!("{name} is accepted")),
            Some(Err(error)) => Finding::warning("key", format_args!("{name} could not be tested: {error}")),
            None => {
                let seconds = RESPONSE_TIMEOUT.as_secs();
                Finding::warning("key", format_args!("{name}: no response within {seconds} s"))
            }
        };
        let is_accepted = finding.severity != Severity::Error;
        report(finding);
        is_accepted
    }

    /// Reads a job through the configuration. At an upstream that holds, the request waits for the end of the job.
    async fn read(&self, id: &JobId, report: &mut impl FnMut(Finding)) {
        let (elapsed, response) = self.poll(id).await;
        let problem = match &response {
            Some(Ok(response)) => {
                report(describe(&self.route, id, response, elapsed));
                if !self.route.never_holds() && response.status().is_success() {
                    report(self.judge_hold(id, elapsed, Some(Ok(response))));
                }
                return;
            }
            Some(Err(error)) => format!("{error}: {}", root_cause(error)),
            None => format!("no response within {:.0} s", elapsed.as_secs_f64()),
        };
        report(Finding::error("job", problem));
    }

    /// Holds a poll for the last rung and measures for how long.
    async fn hold(&self, id: &JobId) -> Finding {
        let (held, response) = self.poll(id).await;
        self.judge_hold(id, held, response.as_ref().map(Result::as_ref))
    }

    /// Sends a poll for the last rung, and returns its response and the time to it.
    async fn poll(&self, id: &JobId) -> (Duration, Option<Result<Response<Bytes>, JobRequestError>>) {
        let since = clock::now();
        let longest = self.expected.0.mul_f64(1.25) + RESPONSE_TIMEOUT;
        let response = self.fetch_job(id, self.route.ladder.highest_askable(), longest).await;
        (clock::now().saturating_duration_since(since), response)
    }

    fn judge_hold(
        &self,
        id: &JobId,
        held: Duration,
        response: Option<Result<&Response<Bytes>, &JobRequestError>>,
    ) -> Finding {
        let seconds = format!("{:.1} s", held.as_secs_f64());
        let key = self.expected.1;
        match response {
            None => Finding::warning(
                self.subject,
                format_args!("still held after {seconds}: {key} is shorter than the real time"),
            ),
            Some(Err(error)) => self.cut_off(&seconds, &error.to_string()),
            Some(Ok(response)) if is_proxy_timeout(response.status()) => {
                self.cut_off(&seconds, &response.status().to_string())
            }
            Some(Ok(response)) if !response.status().is_success() => {
                let reason = message(response.status(), response.body());
                Finding::error(self.subject, format_args!("{reason}. --job needs an unfinished job."))
            }
            Some(Ok(response)) => match self.rung(id, response) {
                Some(rung) => self.compare(held, rung >= self.route.ladder.highest_askable()),
                None => Finding::error(self.subject, "the response is not the job"),
            },
        }
    }

    fn cut_off(&self, seconds: &str, reason: &str) -> Finding {
        let advice = "A proxy or load balancer on the way ends long requests: set its read timeout to 150 s.";
        Finding::error(self.subject, format_args!("cut off after {seconds} ({reason}). {advice}"))
    }

    fn compare(&self, held: Duration, is_goal_reached: bool) -> Finding {
        let (expected, key) = self.expected;
        let seconds = format!("{:.1} s", held.as_secs_f64());
        let expected_text = humantime::format_duration(expected);
        if is_goal_reached {
            let message = format!("held for {seconds} at least, until the job was done. Try a newer job.");
            Finding::good(self.subject, message)
        } else if held < expected.mul_f64(0.9) {
            let message =
                format!("held for {seconds} only, but {key} is {expected_text}: set it to the measured time");
            Finding::warning(self.subject, message)
        } else {
            Finding::good(self.subject, format_args!("held for {seconds}, as set by {key}"))
        }
    }

    fn rung(&self, id: &JobId, response: &Response<Bytes>) -> Option<Rung> {
        let (status, body) = (response.status().as_u16(), response.body());
        match job_body::split(&self.route, Form::Single, &JobSet::new([id.clone()]), status, body) {
            SplitBody::Jobs { jobs, .. } => jobs.first().and_then(|job| job.rung),
            SplitBody::Unsplit | SplitBody::Invalid => None,
        }
    }
}

/// Returns whether proxies send this status after their own timeout.
fn is_proxy_timeout(status: StatusCode) -> bool {
    [StatusCode::BAD_GATEWAY, StatusCode::GATEWAY_TIMEOUT, StatusCode::REQUEST_TIMEOUT].contains(&status)
}

fn is_key_rejection(status: StatusCode) -> bool {
    [StatusCode::UNAUTHORIZED, StatusCode::FORBIDDEN].contains(&status)
}

fn elapsed(since: Instant) -> String {
    format!("{} ms", clock::now().saturating_duration_since(since).as_millis())
}
