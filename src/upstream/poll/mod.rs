//! One try of a poll: what is asked, and what the answer means (contract, section 8).
//!
//! It must never know who waits for it, nor whether there will be another try: the hub owns the task that runs
//! it, and drops it to cancel.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use http::header::{ACCEPT, ACCEPT_ENCODING, AUTHORIZATION, CONTENT_ENCODING, USER_AGENT, VIA};
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Version};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use tracing::debug;

use crate::clock;
use crate::config;
use crate::core::coalescer::{Failure, PollOutcome, PollSpec};
use crate::core::job::{JobState, Reply};
use crate::core::job_body::{self, ListShape, SplitBody};
use crate::core::query;
use crate::core::route::{Form, Goal, Route};
use crate::core::scheduler::RetryAdvice;
use crate::protocol::body::Body;
use crate::protocol::retry_after::retry_after;
use crate::protocol::stored_headers::split_head;
use crate::protocol::via::via_member;
use crate::telemetry::metrics::{CallError, CallKind, Code, Metrics};
use crate::telemetry::trace::TraceContext;
use crate::upstream::client::{Client, ResponseBody, SendError};

/// The largest answer to a poll that is read. Real ones have some kB a job.
const MAX_ANSWER: usize = 8 << 20;

/// Does polls.
#[derive(Clone)]
pub struct Poller {
    client: Client,
    route: Arc<Route>,
    /// How long an answer may take, from the moment the request stands on a connection.
    limit: Duration,
    connect: Duration,
    metrics: Arc<Metrics>,
}

/// What a poll came to, and what it says of the upstream and the key.
#[derive(Debug)]
pub struct PollLanding {
    /// What the waits are told.
    pub outcome: PollOutcome,
    /// How the upstream holds several jobs, if this showed it.
    pub shape: Option<ListShape>,
    /// Whether the upstream let the key in; `None` where it did not say.
    pub key: Option<KeyVerdict>,
    /// The answer's status.
    pub status: StatusCode,
    /// The pause that a success asks for before its jobs are asked about again.
    pub retry_after: Option<Duration>,
    /// When all of the answer was there.
    pub answered_at: Instant,
}

/// The upstream's word on a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyVerdict {
    /// A success.
    Accepted,
    /// 401: the key is not valid.
    Refused,
    /// 403: the key may not have what was asked for.
    Forbidden,
}

/// The upstream's word on the key of a request that it answered so.
pub(crate) fn key_word(status: StatusCode) -> Option<KeyVerdict> {
    match status {
        StatusCode::UNAUTHORIZED => Some(KeyVerdict::Refused),
        StatusCode::FORBIDDEN => Some(KeyVerdict::Forbidden),
        _ if status.is_success() => Some(KeyVerdict::Accepted),
        _ => None,
    }
}

/// How a try ended.
#[derive(Debug)]
pub enum AttemptOutcome {
    /// With the upstream's final word.
    Landed(PollLanding),
    /// With a fault, and what that says of another try.
    Failed(Failure, RetryAdvice),
}

impl Poller {
    /// A poller on this client.
    pub fn new(client: Client, route: Arc<Route>, config: &config::Upstream, metrics: Arc<Metrics>) -> Self {
        Self {
            client,
            route,
            limit: config.poll_timeout + config.poll_timeout / 12,
            connect: config.connect_timeout,
            metrics,
        }
    }

    /// Asks once. `standing` is awaited as soon as the request stands on a connection, and must be quick.
    /// Cancel safe: dropping the future ends the request at the upstream.
    pub async fn run(
        &self,
        spec: &PollSpec,
        authorization: &HeaderValue,
        trace: &TraceContext,
        standing: impl Future<Output = ()>,
    ) -> AttemptOutcome {
        let Some(request) = self.request(spec, authorization, trace) else {
            return AttemptOutcome::Failed(Failure::InvalidResponse(None), RetryAdvice::BackOff);
        };
        let call = self.metrics.upstream.call(self.kind(spec.goal));
        let mut started = self.client.start(request);
        let asking = async {
            let response = tokio::select! {
                biased; // cancel safe: the response is polled by reference and goes on below
                response = &mut started.response => response,
                () = &mut started.on_connection => {
                    standing.await;
                    started.response.await
                }
            };
            match response {
                Ok(response) => read(response).await.map_err(|fault| (fault, RetryAdvice::BackOff)),
                Err(error) => {
                    debug!(reason = error.reason(), error = &error as &dyn std::error::Error, "poll broke");
                    let is_closed = matches!(error, SendError::Closed(_));
                    let advice = if is_closed { RetryAdvice::Reconnect } else { RetryAdvice::BackOff };
                    Err((error.fault(), advice))
                }
            }
        };
        let in_time = tokio::time::timeout(self.connect + self.limit, asking).await;
        let (code, tried) = match in_time.unwrap_or(Err((CallError::Timeout, RetryAdvice::BackOff))) {
            Err((fault, advice)) => (Code::Fault(fault), AttemptOutcome::Failed(failure(fault), advice)),
            Ok((status, headers, body)) => match self.classify(spec, status, &headers, body) {
                unread @ AttemptOutcome::Failed(Failure::InvalidResponse(_), _) => {
                    (Code::Fault(CallError::Invalid), unread)
                }
                tried => (Code::Status(status.as_u16()), tried),
            },
        };
        call.finish(code);
        tried
    }

    fn kind(&self, goal: Goal) -> CallKind {
        match goal {
            Goal::Now => CallKind::Snapshot,
            Goal::Rung(rung) if rung == self.route.ladder.lowest() => CallKind::Snapshot,
            Goal::Rung(_) => CallKind::Poll,
        }
    }

    /// The path of this endpoint.
    pub fn path(&self, form: Form) -> &str {
        match form {
            Form::Single => &self.route.single_path,
            Form::Multi => &self.route.multi_path,
        }
    }

    fn request(
        &self,
        spec: &PollSpec,
        authorization: &HeaderValue,
        trace: &TraceContext,
    ) -> Option<Request<Body>> {
        let target = query::build_target(&self.route, spec.form, &spec.jobs, spec.goal);
        let uri = self.client.uri(&PathAndQuery::try_from(target).ok()?).ok()?;
        let mut request = Request::new(Body::empty());
        *request.method_mut() = Method::GET;
        *request.uri_mut() = uri;
        let fields = request.headers_mut();
        fields.insert(ACCEPT, HeaderValue::from_static("application/json"));
        // The bytes are cut up, and shared with clients that accept no coding. Without the field any would do
        // (RFC 9110 §12.5.3).
        fields.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        fields.insert(AUTHORIZATION, authorization.clone());
        fields.insert(USER_AGENT, HeaderValue::from_static(USER_AGENT_NAME));
        fields.insert(VIA, HeaderValue::from_static(via_member(Version::HTTP_11)));
        trace.write(fields);
        Some(request)
    }

    fn classify(
        &self,
        spec: &PollSpec,
        status: StatusCode,
        headers: &HeaderMap,
        body: Bytes,
    ) -> AttemptOutcome {
        let head = Arc::new(split_head(status, headers));
        let reply = |body| Arc::new(Reply { status: status.as_u16(), head: Arc::clone(&head), body });
        let key = key_word(status);
        let answered_at = clock::now();
        let asked_pause = retry_after(headers, SystemTime::now());
        let retry_after = asked_pause.filter(|_| status.is_success());
        let landed = |outcome, shape| {
            AttemptOutcome::Landed(PollLanding { outcome, shape, key, status, retry_after, answered_at })
        };
        let unreadable =
            |body| AttemptOutcome::Failed(Failure::InvalidResponse(Some(reply(body))), RetryAdvice::BackOff);
        if status.is_informational() {
            debug!("upstream switched protocols without being asked");
            AttemptOutcome::Failed(Failure::InvalidResponse(None), RetryAdvice::BackOff)
        } else if status.is_success() && body.is_empty() {
            // A 204, or a 202 that says nothing yet: an answer to whoever asked for just these jobs.
            landed(PollOutcome::Unsplit(reply(body)), None)
        } else if status.is_success() && is_compressed(headers) {
            debug!("answer is in a coding that was not asked for");
            unreadable(body)
        } else if status.is_success() {
            match job_body::split(&self.route, spec.form, &spec.jobs, &body) {
                SplitBody::Jobs { jobs, shape } => {
                    let states = jobs.into_iter().map(|cut| JobState {
                        id: cut.id,
                        rung: cut.rung,
                        body: cut.body,
                        head: Arc::clone(&head),
                        seen_at: answered_at,
                    });
                    landed(PollOutcome::Jobs(states.collect()), shape)
                }
                SplitBody::Unsplit => landed(PollOutcome::Unsplit(reply(body)), None),
                SplitBody::Invalid => unreadable(body),
            }
        } else {
            let advice = match (status, asked_pause) {
                (StatusCode::TOO_MANY_REQUESTS, Some(pause)) => Some(RetryAdvice::PauseKey(pause)),
                (StatusCode::SERVICE_UNAVAILABLE, Some(pause)) => Some(RetryAdvice::PausePoll(pause)),
                (
                    StatusCode::BAD_GATEWAY | StatusCode::SERVICE_UNAVAILABLE | StatusCode::GATEWAY_TIMEOUT,
                    _,
                ) => Some(RetryAdvice::BackOffHeld),
                (status, _) => status.is_server_error().then_some(RetryAdvice::BackOff),
            };
            match advice {
                Some(advice) => AttemptOutcome::Failed(Failure::UpstreamError(reply(body)), advice),
                None => landed(PollOutcome::Refused(reply(body)), None),
            }
        }
    }
}

/// Whether the body is compressed, so that nobody here can read it.
fn is_compressed(headers: &HeaderMap) -> bool {
    let mut codings = headers.get_all(CONTENT_ENCODING).iter();
    codings.any(|coding| !coding.as_bytes().trim_ascii().eq_ignore_ascii_case(b"identity"))
}

const USER_AGENT_NAME: &str = concat!("clipgate/", env!("CARGO_PKG_VERSION"));

/// What the waits are told of it.
fn failure(fault: CallError) -> Failure {
    match fault {
        CallError::Connect | CallError::ConnectTimeout | CallError::Tls | CallError::Reset => {
            Failure::Unreachable
        }
        CallError::LocalResources => Failure::LocalResources,
        CallError::Timeout => Failure::Timeout,
        CallError::Invalid => Failure::InvalidResponse(None),
    }
}

async fn read(response: Response<ResponseBody>) -> Result<(StatusCode, HeaderMap, Bytes), CallError> {
    let (parts, body) = response.into_parts();
    match Limited::new(body, MAX_ANSWER).collect().await {
        Ok(body) => Ok((parts.status, parts.headers, body.to_bytes())),
        Err(error) if error.is::<LengthLimitError>() => {
            debug!(limit = MAX_ANSWER, "poll's answer is too large");
            Err(CallError::Invalid)
        }
        Err(error) => {
            debug!(%error, "poll's answer was cut off");
            Err(CallError::Reset)
        }
    }
}

#[cfg(test)]
mod tests;
