//! Handles one request: records it, chooses its fault and writes its response.
//!
//! The target is parsed here, without the gateway's parser, so that a mistake there cannot hide in both ends of a
//! test.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use http::header::AUTHORIZATION;
use http::{Method, Request, Response, StatusCode, Version};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use serde_json::json;

use super::connection::ConnectionControl;
use super::faults::{Fault, FaultContext};
use super::job::{Clip, all_reached};
use super::options::ListFormat;
use super::recorder::{HoldGuard, RecordedRequest, RequestEnd, RequestGuard};
use super::request::IncomingRequest;
use super::response::{
    ApiError, HTML_PAGE, InjectedFault, JSON, add_headers, api_error, error_response, not_found, track_body,
    truncate, with_content_type,
};
use super::state::{SimShared, SimState, uuid};
use super::vendors::{VendorAction, VendorRequest, parse_vendor_request};
use super::{body, debug_endpoints, vendor_api};
use crate::clock;
use crate::core::route::{Form, Goal, Rung, SunoEndpoints};
use crate::protocol::body::Body;

/// The most clips of one request (`upstream.max_jobs` has the same default).
const MAX_CLIPS: usize = 6;
/// The longest body of a generation request, in bytes. It is read and discarded.
const MAX_BODY: usize = 32 << 20;

/// Answers one request, or breaks its connection.
pub(super) async fn answer(
    sim: Arc<SimShared>,
    connection: Arc<ConnectionControl>,
    request: Request<Incoming>,
) -> Result<Response<Body>, InjectedFault> {
    let (mut parts, body) = request.into_parts();
    let upgrade = parts.extensions.remove();
    let key_field = parts.headers.remove(&sim.options.key_field);
    let target: Arc<str> =
        parts.uri.path_and_query().map_or_else(|| parts.uri.to_string(), ToString::to_string).into();
    let operation = parse_operation(&sim.route, &parts.method, &target);
    let (key, id) = {
        let scheme = if sim.options.key_field == AUTHORIZATION { operation.scheme() } else { "" };
        let SimState { keys, rng, .. } = &mut *sim.state.lock();
        (key_field.and_then(|field| keys.record(scheme, field.as_bytes())), uuid(rng))
    };
    let record = RecordedRequest {
        method: parts.method.clone(),
        target,
        version: parts.version,
        headers: Arc::new(parts.headers),
        key,
        at: clock::now(),
        end: RequestEnd::Open,
        ended_at: None,
    };
    let guard = RequestGuard::new(&sim.recorder, record.clone());
    let fault = {
        let SimState { faults, rng, .. } = &mut *sim.state.lock();
        faults.take(&FaultContext { target: &record.target, clips: operation.polled_ids(), key }, rng)
    };
    if let Some(fault) = &fault {
        guard.fault_injected(&record, fault);
    }

    let (at, version, number) = (record.at, parts.version, guard.number());
    let request = IncomingRequest {
        method: parts.method,
        record,
        id: id.clone(),
        body,
        upgrade,
        connection: Arc::clone(&connection),
    };
    let format = match fault {
        Some(Fault::Shape(format)) => format,
        _ => sim.options.list_format,
    };
    let answered = match fault {
        None | Some(Fault::Shape(_)) => Some(answer_without_fault(&sim, request, operation, format).await),
        Some(Fault::Slow { after }) => {
            let answered = answer_without_fault(&sim, request, operation, format).await;
            let held = HoldGuard::new(&sim.recorder);
            sleep_until(at + after).await;
            drop(held);
            Some(answered)
        }
        Some(Fault::Field(name, value)) => {
            let answered = answer_without_fault(&sim, request, operation, format).await;
            Some(answered.map(|mut response| {
                response.headers_mut().insert(name, value);
                response
            }))
        }
        Some(Fault::Cut) => Some(answer_without_fault(&sim, request, operation, format).await.map(truncate)),
        Some(Fault::Reset { after }) => tokio::select! {
            // Cancel safe: the request is dropped. With a delay of zero it is never started.
            biased;
            () = sleep_until(at + after) => {
                if version < Version::HTTP_2 {
                    connection.reset();
                }
                None
            }
            answered = answer_without_fault(&sim, request, operation, format) => Some(answered),
        },
        Some(Fault::Refuse) => None,
        Some(Fault::Hang) => {
            let _held = HoldGuard::new(&sim.recorder);
            std::future::pending().await
        }
        Some(Fault::Html) => Some(Ok(with_content_type(StatusCode::OK, "text/html", HTML_PAGE))),
        Some(Fault::Status { status, retry_after, body, after }) => {
            let held = (!after.is_zero()).then(|| HoldGuard::new(&sim.recorder));
            sleep_until(at + after).await;
            drop(held);
            Some(Ok(error_response(&id, request.record.path(), status, retry_after, body)))
        }
    };
    match answered {
        Some(Ok(mut response)) => {
            add_headers(&mut response, &id, number);
            Ok(track_body(response, guard))
        }
        Some(Err(InjectedFault)) | None => {
            guard.broken();
            Err(InjectedFault)
        }
    }
}

/// The operation that a request's method and target name.
enum Operation {
    /// Generates two clips.
    Generate,
    /// Returns the states of clips.
    States(StateQuery),
    /// Returns lyrics.
    Lyrics,
    /// An operation on a job of a vendor.
    Vendor(VendorRequest),
    /// A debug endpoint under `/sim/`.
    Debug,
    Unknown,
}

impl Operation {
    /// Returns the ids of a request for states.
    fn polled_ids(&self) -> Option<&[String]> {
        match self {
            Self::States(query) => Some(&query.ids),
            Self::Vendor(request) if request.action == VendorAction::Read => Some(&request.ids),
            Self::Vendor(_) | Self::Generate | Self::Lyrics | Self::Debug | Self::Unknown => None,
        }
    }

    /// Returns the scheme before the key in `Authorization`.
    fn scheme(&self) -> &'static str {
        match self {
            Self::Vendor(request) => request.api.scheme,
            _ => "Bearer ",
        }
    }
}

struct StateQuery {
    form: Form,
    ids: Vec<String>,
    status: Vec<String>,
}

fn parse_operation(route: &SunoEndpoints, method: &Method, target: &str) -> Operation {
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    if path.starts_with("/sim/") {
        return Operation::Debug;
    }
    match (method, route.form(path)) {
        (&Method::GET, Some(form)) => {
            let (mut ids, mut status) = (Vec::new(), Vec::new());
            for (name, value) in form_urlencoded::parse(query.as_bytes()) {
                if is_id_param(route, form, &name) {
                    ids.push(value.into_owned());
                } else if name == route.status_param {
                    status.push(value.into_owned());
                }
            }
            Operation::States(StateQuery { form, ids, status })
        }
        (&Method::POST, Some(Form::Single)) => Operation::Generate,
        (&Method::GET, None) if is_lyrics_path(route, path) => Operation::Lyrics,
        _ => parse_vendor_request(method, path).map_or(Operation::Unknown, Operation::Vendor),
    }
}

/// Returns whether a parameter holds an id. Of a list it is `clip_ids`, `clip_ids[]` or `clip_ids[0]`.
fn is_id_param(route: &SunoEndpoints, form: Form, name: &str) -> bool {
    match form {
        Form::Single => name == route.single_param,
        Form::Multi => name.strip_prefix(&route.multi_param).is_some_and(|index| {
            let digits = index.strip_prefix('[').and_then(|index| index.strip_suffix(']'));
            index.is_empty() || digits.is_some_and(|digits| digits.bytes().all(|byte| byte.is_ascii_digit()))
        }),
    }
}

/// Returns whether the path is `lyric` in the directory of the clips.
fn is_lyrics_path(route: &SunoEndpoints, path: &str) -> bool {
    let directory = route.single_path.rsplit_once('/').map(|(parent, _)| parent);
    directory
        .zip(path.rsplit_once('/'))
        .is_some_and(|(directory, (parent, name))| parent == directory && name == "lyric")
}

async fn answer_without_fault(
    sim: &SimShared,
    request: IncomingRequest,
    operation: Operation,
    format: ListFormat,
) -> Result<Response<Body>, InjectedFault> {
    let (id, record) = (request.id.clone(), request.record.clone());
    let is_accepted = || sim.state.lock().keys.accepts(record.key);
    let answered = match operation {
        Operation::Debug => debug_endpoints::answer(request).await,
        Operation::Unknown => Err(not_found(&request)),
        Operation::Generate | Operation::States(_) | Operation::Lyrics | Operation::Vendor(_)
            if !is_accepted() =>
        {
            Err(api_error(StatusCode::UNAUTHORIZED, "The API key is missing or not known"))
        }
        Operation::Generate => match drain(request.body).await? {
            Some(()) => Ok(generate(sim)),
            None => Err(body_too_large()),
        },
        Operation::States(query) => clip_states(sim, request.record.at, &query, format).await,
        Operation::Lyrics => lyrics(sim, &request),
        Operation::Vendor(job) => match drain(request.body).await? {
            Some(()) => vendor_api::answer(sim, &record, &job),
            None => Err(body_too_large()),
        },
    };
    Ok(answered.unwrap_or_else(|error| error.into_response(&id, record.path())))
}

/// Reads a body to its end. Returns `None` if it is longer than [`MAX_BODY`].
async fn drain(mut body: Incoming) -> Result<Option<()>, InjectedFault> {
    let mut left = MAX_BODY;
    while let Some(frame) = body.frame().await {
        let length = frame.map_err(|_| InjectedFault)?.data_ref().map_or(0, Bytes::len);
        match left.checked_sub(length) {
            Some(rest) => left = rest,
            None => return Ok(None),
        }
    }
    Ok(Some(()))
}

fn body_too_large() -> ApiError {
    api_error(StatusCode::PAYLOAD_TOO_LARGE, "The body is too large")
}

fn generate(sim: &SimShared) -> Response<Body> {
    let body = json!({ "clip_ids": [&*sim.generate_clip(), &*sim.generate_clip()] });
    with_content_type(StatusCode::CREATED, JSON, body.to_string())
}

/// Returns the lyrics of each target once; a second request gets 404.
fn lyrics(sim: &SimShared, request: &IncomingRequest) -> Result<Response<Body>, ApiError> {
    let name = blake3::hash(request.record.target.as_bytes()).to_hex();
    let read = &mut sim.state.lock().read_lyrics;
    if read.get(&name).is_some() {
        return Err(api_error(StatusCode::NOT_FOUND, "The lyrics have been read or never were"));
    }
    read.insert(&name, ());
    let body = json!({ "title": "Night drive", "text": "[Verse]\nHeadlights paint the empty road" });
    Ok(with_content_type(StatusCode::OK, JSON, body.to_string()))
}

/// Holds the request until every clip has reached the requested status, at most for the hold.
async fn clip_states(
    sim: &SimShared,
    requested_at: Instant,
    query: &StateQuery,
    format: ListFormat,
) -> Result<Response<Body>, ApiError> {
    let goal = query.goal(&sim.route)?;
    let clips = query.clips(sim)?;
    if let Goal::Rung(goal) = goal {
        hold(sim, requested_at + sim.hold(), &clips, goal).await;
    }
    let now = clock::now();
    let mut bodies: Vec<_> = clips
        .iter()
        .map(|clip| (&**clip.id(), body::clip(&sim.route.ladder, clip.id(), &clip.state(now))))
        .collect();
    if !sim.options.in_order {
        bodies.reverse();
    }
    let body = match query.form {
        Form::Single => bodies.swap_remove(0).1,
        Form::Multi => body::clips(format, &bodies),
    };
    Ok(with_content_type(StatusCode::OK, JSON, body))
}

async fn hold(sim: &SimShared, until: Instant, clips: &[Arc<Clip>], goal: Rung) {
    let now = clock::now();
    if clips.iter().all(|clip| clip.state(now).has_reached(goal)) {
        return;
    }
    let _held = HoldGuard::new(&sim.recorder);
    // The response is the current state, with and without a timeout.
    let _ = tokio::time::timeout_at(until.into(), all_reached(clips, goal)).await;
}

impl StateQuery {
    fn goal(&self, route: &SunoEndpoints) -> Result<Goal, ApiError> {
        let ladder = &route.ladder;
        match &self.status[..] {
            [] => Ok(Goal::Now),
            [word] => ladder
                .rung(word)
                .filter(|&rung| ladder.is_askable(rung) && ladder.name(rung) == word)
                .map(Goal::Rung)
                .ok_or_else(|| {
                    let words: Vec<_> = ladder.askable_words().collect();
                    let message = format!("{} must be one of {}", route.status_param, words.join(", "));
                    api_error(StatusCode::BAD_REQUEST, message)
                }),
            _ => Err(api_error(StatusCode::BAD_REQUEST, format!("{} must be one word", route.status_param))),
        }
    }

    /// Returns the clips without duplicates, in the order of their first mention.
    fn clips(&self, sim: &SimShared) -> Result<Vec<Arc<Clip>>, ApiError> {
        let route = &sim.route;
        let limit = match self.form {
            Form::Single => 1,
            Form::Multi => MAX_CLIPS,
        };
        if self.ids.is_empty() || self.ids.len() > limit || self.ids.iter().any(String::is_empty) {
            let message = match self.form {
                Form::Single => format!("{} must be one id", route.single_param),
                Form::Multi => format!("{} must be 1 to {MAX_CLIPS} ids", route.multi_param),
            };
            return Err(api_error(StatusCode::BAD_REQUEST, message));
        }
        let state = sim.state.lock();
        let mut clips: Vec<Arc<Clip>> = Vec::new();
        for id in &self.ids {
            let clip =
                state.clips.get(id).ok_or_else(|| api_error(StatusCode::NOT_FOUND, "Clip not found"))?;
            if !clips.iter().any(|known| known.id() == clip.id()) {
                clips.push(Arc::clone(clip));
            }
        }
        Ok(clips)
    }
}

/// Sleeps until `at`. Does not yield if that time has passed.
async fn sleep_until(at: Instant) {
    if at > clock::now() {
        tokio::time::sleep_until(at.into()).await;
    }
}
