//! One attempt of a poll: the request, and the meaning of its response.
//!
//! The poller does not know which waits need the poll, or whether another attempt follows. The hub owns the task that
//! runs it, and drops it to cancel.

mod hints;
mod unknown_words;

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use http::header::{ACCEPT, ACCEPT_ENCODING, CONTENT_ENCODING, USER_AGENT, VIA};
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Version};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use tracing::debug;

use self::hints::pause_after_success;
use self::unknown_words::UnknownWords;
use crate::clock;
use crate::config;
use crate::core::coalescer::{Failure, PollOutcome, PollSpec};
use crate::core::job::{JobState, UpstreamResponse};
use crate::core::job_body::{self, ListShape, SplitBody};
use crate::core::query;
use crate::core::route::{Goal, Route, Routes, StatusSource};
use crate::core::scheduler::RetryAdvice;
use crate::protocol::body::Body;
use crate::protocol::retry_after::retry_after;
use crate::protocol::stored_headers::split_head;
use crate::protocol::via::via_member;
use crate::telemetry::metrics::{CallCause, CallError, CallKind, Code, Metrics};
use crate::telemetry::trace::TraceContext;
use crate::upstream::client::{Client, ResponseBody, SendError};

/// Largest response to a poll. Real ones have a few kB for each job.
const MAX_RESPONSE: usize = 8 << 20;

/// Runs attempts of polls.
#[derive(Clone)]
pub struct Poller {
    client: Client,
    routes: Arc<Routes>,
    connect_timeout: Duration,
    /// Time for a response that the upstream does not hold.
    request_timeout: Duration,
    unknown_words: UnknownWords,
    metrics: Arc<Metrics>,
}

/// Result of a poll that got a final response.
#[derive(Debug)]
pub struct PollLanding {
    /// Result for the waits.
    pub outcome: PollOutcome,
    /// Form in which the upstream lists several jobs, if the response shows it.
    pub shape: Option<ListShape>,
    /// Verdict of the upstream on the key; `None` if the status implies none.
    pub key: Option<KeyVerdict>,
    pub status: StatusCode,
    /// Hint of a success: pause before its jobs are polled again.
    pub retry_after: Option<Duration>,
    /// When the response was complete.
    pub answered_at: Instant,
}

/// Verdict of the upstream on a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyVerdict {
    /// A success.
    Accepted,
    /// 401: the key is not valid.
    Refused,
    /// 403: the key may not access the requested jobs.
    Forbidden,
}

/// Returns the verdict that a response status implies.
pub(crate) fn key_verdict(status: StatusCode) -> Option<KeyVerdict> {
    match status {
        StatusCode::UNAUTHORIZED => Some(KeyVerdict::Refused),
        StatusCode::FORBIDDEN => Some(KeyVerdict::Forbidden),
        _ if status.is_success() => Some(KeyVerdict::Accepted),
        _ => None,
    }
}

/// Result of an attempt.
#[derive(Debug)]
pub enum AttemptOutcome {
    /// The response is final.
    Landed(PollLanding),
    /// The attempt failed. The advice says how another one should follow.
    Failed(Failure, RetryAdvice),
}

impl Poller {
    pub fn new(
        client: Client,
        routes: Arc<Routes>,
        config: &config::UpstreamConfig,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self {
            unknown_words: UnknownWords::new(&routes, Arc::clone(&metrics)),
            client,
            routes,
            connect_timeout: config.connect_timeout,
            request_timeout: config.request_timeout,
            metrics,
        }
    }

    /// Runs one attempt. `write_credential` adds the only fields that depend on the client. Awaits `on_held`, which must
    /// be quick, once the request is on a connection. Cancel safe: dropping the future cancels the request at the
    /// upstream.
    pub async fn run(
        &self,
        spec: &PollSpec,
        cause: CallCause,
        write_credential: impl FnOnce(&mut HeaderMap),
        trace: &TraceContext,
        on_held: impl Future<Output = ()>,
    ) -> AttemptOutcome {
        let Some(request) = self.request(spec, write_credential, trace) else {
            return AttemptOutcome::Failed(Failure::InvalidResponse(None), RetryAdvice::BackOff);
        };
        let mut call = self.metrics.upstream.call(self.kind(spec), cause);
        let sent_at = clock::now();
        let mut pending = self.client.start(request);
        let attempt = async {
            let response = tokio::select! {
                biased; // cancel safe: the response is polled by reference and goes on below
                response = &mut pending.response => response,
                () = &mut pending.on_connection => {
                    on_held.await;
                    pending.response.await
                }
            };
            match response {
                Ok(response) => read(response).await,
                Err(error) => {
                    debug!(reason = error.reason(), error = &error as &dyn std::error::Error, "poll failed");
                    call.note_error(&error);
                    let is_closed = matches!(error, SendError::Closed(_));
                    let advice = if is_closed { RetryAdvice::Reconnect } else { RetryAdvice::BackOff };
                    Err(AttemptFault::Call(error.fault(), advice))
                }
            }
        };
        let result = tokio::time::timeout(self.connect_timeout + self.response_timeout(spec), attempt).await;
        let timed_out = Err(AttemptFault::Call(CallError::Timeout, RetryAdvice::BackOff));
        let (code, outcome) = match result.unwrap_or(timed_out) {
            Err(AttemptFault::Call(fault, advice)) => {
                (Code::Fault(fault), AttemptOutcome::Failed(failure(fault), advice))
            }
            Err(AttemptFault::TooLarge) => (
                Code::Fault(CallError::Invalid),
                AttemptOutcome::Failed(Failure::TooLarge, RetryAdvice::GiveUp),
            ),
            Ok((status, headers, body)) => match self.classify(spec, status, &headers, body, sent_at) {
                invalid @ AttemptOutcome::Failed(Failure::InvalidResponse(_), _) => {
                    (Code::Fault(CallError::Invalid), invalid)
                }
                outcome => (Code::Status(status.as_u16()), outcome),
            },
        };
        call.finish(code);
        outcome
    }

    fn kind(&self, spec: &PollSpec) -> CallKind {
        let route = self.route(spec);
        match spec.goal {
            Goal::Now => CallKind::Snapshot,
            Goal::Rung(rung) if rung == route.ladder.lowest() => CallKind::Snapshot,
            Goal::Rung(_) | Goal::Not(_) => CallKind::Poll,
        }
    }

    /// Returns the route of a poll.
    pub fn route(&self, spec: &PollSpec) -> &Route {
        self.routes.get(spec.jobs.route())
    }

    /// Returns the time for a response, from the moment the request is on a connection.
    fn response_timeout(&self, spec: &PollSpec) -> Duration {
        let hold = self.route(spec).hold;
        if hold.is_zero() { self.request_timeout } else { hold + hold / 12 }
    }

    /// Returns the template of the path of a poll.
    pub fn path(&self, spec: &PollSpec) -> &str {
        self.route(spec).template(spec.form)
    }

    fn request(
        &self,
        spec: &PollSpec,
        write_credential: impl FnOnce(&mut HeaderMap),
        trace: &TraceContext,
    ) -> Option<Request<Body>> {
        let target = query::build_target(self.route(spec), spec.form, &spec.jobs, spec.goal);
        let uri = self.client.uri(&PathAndQuery::try_from(target).ok()?).ok()?;
        let mut request = Request::new(Body::empty());
        *request.method_mut() = Method::GET;
        *request.uri_mut() = uri;
        let fields = request.headers_mut();
        write_credential(fields);
        let accept = match self.route(spec).status {
            StatusSource::Body(_) => "application/json",
            StatusSource::HttpStatus => "*/*",
        };
        fields.insert(ACCEPT, HeaderValue::from_static(accept));
        // P8: the body is split and shared with clients that accept no encoding. Without this header the upstream may
        // use any (RFC 9110 section 12.5.3).
        fields.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
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
        sent_at: Instant,
    ) -> AttemptOutcome {
        let route = self.route(spec);
        let mut head = split_head(status, headers);
        // There the HTTP status is a part of the state, and 202 is the usual one before the end.
        head.is_complete |= route.never_holds() && status == StatusCode::ACCEPTED;
        let head = Arc::new(head);
        let reply =
            |body| Arc::new(UpstreamResponse { status: status.as_u16(), head: Arc::clone(&head), body });
        let key = key_verdict(status);
        let answered_at = clock::now();
        let requested_pause = retry_after(headers, SystemTime::now());
        let retry_after = match status.is_success() {
            true => pause_after_success(route, headers, SystemTime::now()),
            false => None,
        };
        let landed = |outcome, shape| {
            AttemptOutcome::Landed(PollLanding { outcome, shape, key, status, retry_after, answered_at })
        };
        let invalid =
            |body| AttemptOutcome::Failed(Failure::InvalidResponse(Some(reply(body))), RetryAdvice::BackOff);
        if status.is_informational() {
            debug!("upstream switched protocols without a request to upgrade");
            AttemptOutcome::Failed(Failure::InvalidResponse(None), RetryAdvice::BackOff)
        } else if status.is_success() && body.is_empty() && route.status != StatusSource::HttpStatus {
            // A 204, or an empty 202, answers only the waits on exactly these jobs.
            landed(PollOutcome::Unsplit(reply(body)), None)
        } else if status.is_success() && is_compressed(headers) {
            debug!("poll response has a content encoding that was not requested");
            invalid(body)
        } else if status.is_success() {
            match job_body::split(route, spec.form, &spec.jobs, status.as_u16(), &body) {
                SplitBody::Jobs { jobs, shape } => {
                    for slice in jobs.iter().filter(|slice| slice.rung.is_none()) {
                        let word = job_body::status_text(route, status.as_u16(), &slice.body);
                        self.unknown_words.record(slice.id.route(), route, &word.unwrap_or_default());
                    }
                    let states = jobs.into_iter().map(|slice| JobState {
                        id: slice.id,
                        rung: slice.rung,
                        body: slice.body,
                        head: Arc::clone(&head),
                        seen_at: answered_at,
                        as_of: if route.never_holds() { sent_at } else { answered_at },
                    });
                    landed(PollOutcome::Jobs(states.collect()), shape)
                }
                SplitBody::Unsplit => landed(PollOutcome::Unsplit(reply(body)), None),
                SplitBody::Invalid => invalid(body),
            }
        } else {
            let advice = match (status, requested_pause) {
                (StatusCode::TOO_MANY_REQUESTS, pause) if pause.is_some() || route.never_holds() => {
                    Some(RetryAdvice::PauseKey(pause))
                }
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

/// Returns whether the body is compressed. The gateway does not decompress.
fn is_compressed(headers: &HeaderMap) -> bool {
    let mut codings = headers.get_all(CONTENT_ENCODING).iter();
    codings.any(|coding| !coding.as_bytes().trim_ascii().eq_ignore_ascii_case(b"identity"))
}

const USER_AGENT_NAME: &str = concat!("clipgate/", env!("CARGO_PKG_VERSION"));

/// Maps an error of the call to the failure that the waits get.
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

/// Why an attempt has no complete response.
enum AttemptFault {
    Call(CallError, RetryAdvice),
    /// The body has more than [`MAX_RESPONSE`] bytes.
    TooLarge,
}

async fn read(response: Response<ResponseBody>) -> Result<(StatusCode, HeaderMap, Bytes), AttemptFault> {
    let (parts, body) = response.into_parts();
    match Limited::new(body, MAX_RESPONSE).collect().await {
        Ok(body) => Ok((parts.status, parts.headers, body.to_bytes())),
        Err(error) if error.is::<LengthLimitError>() => {
            debug!(limit = MAX_RESPONSE, "poll response is too large");
            Err(AttemptFault::TooLarge)
        }
        Err(error) => {
            debug!(%error, "poll response ended early");
            Err(AttemptFault::Call(CallError::Reset, RetryAdvice::BackOff))
        }
    }
}

#[cfg(test)]
mod tests;
