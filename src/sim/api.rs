//! One request: what it asks for, whether a fault is on order for it, and its answer (contract, section 1).
//!
//! It reads the target by itself, with nothing of the gateway's.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::AUTHORIZATION;
use http::{Method, Request, Response, StatusCode, Version};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use serde_json::json;

use super::faults::{Fault, FaultContext};
use super::job::{Clip, all_reach};
use super::recorder::{HoldGuard, RecordedRequest, RequestEnd, RequestGuard};
use super::response::{
    ApiError, HTML_PAGE, InjectedFault, add_headers, api_error, error_response, track_body, truncate,
    with_content_type,
};
use super::server::ConnectionControl;
use super::{ListFormat, Sim, SimState, body, debug_endpoints, uuid};
use crate::clock;
use crate::core::route::{Form, Goal, Route, Rung};
use crate::protocol::body::Body;

/// A request whose head has been read.
pub(super) struct IncomingRequest {
    pub(super) method: Method,
    pub(super) seen: RecordedRequest,
    /// The `x-request-id` of its answer.
    pub(super) id: String,
    pub(super) body: Incoming,
    pub(super) upgrade: Option<hyper::upgrade::OnUpgrade>,
    pub(super) wire: Arc<ConnectionControl>,
}

/// How many clips one request may ask for.
const MAX_CLIPS: usize = 6;
/// The longest body of a generation request, in bytes; it is read and thrown away.
const MAX_BODY: usize = 32 << 20;

/// Answers one request, or breaks its connection.
pub(super) async fn answer(
    sim: Sim,
    wire: Arc<ConnectionControl>,
    request: Request<Incoming>,
) -> Result<Response<Body>, InjectedFault> {
    let (mut parts, body) = request.into_parts();
    let upgrade = parts.extensions.remove();
    let authorization = parts.headers.remove(AUTHORIZATION);
    let target: Arc<str> =
        parts.uri.path_and_query().map_or_else(|| parts.uri.to_string(), ToString::to_string).into();
    let (key, id) = {
        let SimState { keys, rng, .. } = &mut *sim.0.state.lock();
        (authorization.and_then(|field| keys.record(field.as_bytes())), uuid(rng))
    };
    let seen = RecordedRequest {
        method: parts.method.clone(),
        target,
        version: parts.version,
        headers: Arc::new(parts.headers),
        key,
        at: clock::now(),
        end: RequestEnd::Open,
        ended_at: None,
    };
    let ticket = RequestGuard::new(&sim, seen.clone());
    let asks = parse_operation(&sim.0.route, &parts.method, &seen.target);
    let fault = {
        let SimState { faults, rng, .. } = &mut *sim.0.state.lock();
        let clips = match &asks {
            Operation::States(states) => Some(&states.ids[..]),
            Operation::Generate | Operation::Lyrics | Operation::Debug | Operation::Unknown => None,
        };
        faults.take(&FaultContext { target: &seen.target, clips, key }, rng)
    };
    if let Some(fault) = &fault {
        ticket.fault_injected(&seen, fault);
    }

    let (at, version, number) = (seen.at, parts.version, ticket.number());
    let call = IncomingRequest {
        method: parts.method,
        seen,
        id: id.clone(),
        body,
        upgrade,
        wire: Arc::clone(&wire),
    };
    let shape = match fault {
        Some(Fault::Shape(shape)) => shape,
        _ => sim.0.options.list_format,
    };
    let answered = match fault {
        None | Some(Fault::Shape(_)) => Some(answer_without_fault(&sim, call, asks, shape).await),
        Some(Fault::Cut) => Some(answer_without_fault(&sim, call, asks, shape).await.map(truncate)),
        Some(Fault::Reset { after }) => tokio::select! {
            // Cancel safe: the call is given up; at zero it is never begun.
            biased;
            () = pause(at, after) => {
                if version < Version::HTTP_2 {
                    wire.reset();
                }
                None
            }
            answered = answer_without_fault(&sim, call, asks, shape) => Some(answered),
        },
        Some(Fault::Refuse) => None,
        Some(Fault::Hang) => {
            let _held = HoldGuard::new(&sim);
            std::future::pending().await
        }
        Some(Fault::Html) => Some(Ok(with_content_type(StatusCode::OK, "text/html", HTML_PAGE))),
        Some(Fault::Status { status, retry_after, body, after }) => {
            let held = (!after.is_zero()).then(|| HoldGuard::new(&sim));
            pause(at, after).await;
            drop(held);
            Some(Ok(error_response(&id, call.seen.path(), status, retry_after, body)))
        }
    };
    match answered {
        Some(Ok(mut response)) => {
            add_headers(&mut response, &id, number);
            Ok(track_body(response, ticket))
        }
        Some(Err(InjectedFault)) | None => {
            ticket.broken();
            Err(InjectedFault)
        }
    }
}

/// What a request asks for.
enum Operation {
    /// Two new clips.
    Generate,
    /// Clips' states.
    States(StateQuery),
    /// Lyrics.
    Lyrics,
    /// One of the aids under `/sim/`.
    Debug,
    /// Nothing that there is.
    Unknown,
}

struct StateQuery {
    form: Form,
    ids: Vec<String>,
    status: Vec<String>,
}

fn parse_operation(route: &Route, method: &Method, target: &str) -> Operation {
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    if path.starts_with("/sim/") {
        return Operation::Debug;
    }
    match (method, route.form(path)) {
        (&Method::GET, Some(form)) => {
            let (mut ids, mut status) = (Vec::new(), Vec::new());
            for (name, value) in form_urlencoded::parse(query.as_bytes()) {
                if is_id(route, form, &name) {
                    ids.push(value.into_owned());
                } else if name == route.status_param {
                    status.push(value.into_owned());
                }
            }
            Operation::States(StateQuery { form, ids, status })
        }
        (&Method::POST, Some(Form::Single)) => Operation::Generate,
        (&Method::GET, None) if is_lyric(route, path) => Operation::Lyrics,
        _ => Operation::Unknown,
    }
}

/// Whether a parameter of this name has an id; of several ids it is `clip_ids`, `clip_ids[]` or `clip_ids[0]`.
fn is_id(route: &Route, form: Form, name: &str) -> bool {
    match form {
        Form::Single => name == route.single_param,
        Form::Multi => name.strip_prefix(&route.multi_param).is_some_and(|index| {
            let digits = index.strip_prefix('[').and_then(|index| index.strip_suffix(']'));
            index.is_empty() || digits.is_some_and(|digits| digits.bytes().all(|byte| byte.is_ascii_digit()))
        }),
    }
}

/// Lyrics stand beside the clips.
fn is_lyric(route: &Route, path: &str) -> bool {
    let beside = route.single_path.rsplit_once('/').map(|(parent, _)| parent);
    beside
        .zip(path.rsplit_once('/'))
        .is_some_and(|(beside, (parent, name))| parent == beside && name == "lyric")
}

/// The answer as it is when nothing goes wrong.
async fn answer_without_fault(
    sim: &Sim,
    call: IncomingRequest,
    asks: Operation,
    shape: ListFormat,
) -> Result<Response<Body>, InjectedFault> {
    let (id, seen) = (call.id.clone(), call.seen.clone());
    let lets_in = || sim.0.state.lock().keys.accepts(seen.key);
    let answered = match asks {
        Operation::Debug => debug_endpoints::answer(call).await,
        Operation::Unknown => Err(not_found(&call)),
        Operation::Generate | Operation::States(_) | Operation::Lyrics if !lets_in() => {
            Err(api_error(StatusCode::UNAUTHORIZED, "The API key is missing or not known"))
        }
        Operation::Generate => match drain(call.body).await? {
            Some(()) => Ok(make(sim)),
            None => Err(api_error(StatusCode::PAYLOAD_TOO_LARGE, "The body is too large")),
        },
        Operation::States(states) => states_of(sim, call.seen.at, &states, shape).await,
        Operation::Lyrics => lyric(sim, &call),
    };
    Ok(answered.unwrap_or_else(|refusal| refusal.into_response(&id, seen.path())))
}

/// Reads a body to its end; `None` if it is too long.
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

fn make(sim: &Sim) -> Response<Body> {
    let body = json!({ "clip_ids": [&*sim.make_clip(), &*sim.make_clip()] });
    with_content_type(StatusCode::CREATED, "application/json; charset=utf-8", body.to_string())
}

fn lyric(sim: &Sim, call: &IncomingRequest) -> Result<Response<Body>, ApiError> {
    let name = blake3::hash(call.seen.target.as_bytes()).to_hex();
    let read = &mut sim.0.state.lock().lyrics_read;
    if read.get(&name).is_some() {
        return Err(api_error(StatusCode::NOT_FOUND, "The lyrics have been read or never were"));
    }
    read.insert(&name, ());
    let body = json!({ "title": "Night drive", "text": "[Verse]\nHeadlights paint the empty road" });
    Ok(with_content_type(StatusCode::OK, "application/json; charset=utf-8", body.to_string()))
}

/// Holds the request until every clip is where it is asked for, but not longer than the hold.
async fn states_of(
    sim: &Sim,
    asked_at: Instant,
    states: &StateQuery,
    shape: ListFormat,
) -> Result<Response<Body>, ApiError> {
    let goal = states.goal(&sim.0.route)?;
    let clips = states.clips(sim)?;
    if let Goal::Rung(goal) = goal {
        hold(sim, asked_at + sim.hold(), &clips, goal).await;
    }
    let now = clock::now();
    let mut bodies: Vec<_> = clips
        .iter()
        .map(|clip| (&**clip.id(), body::clip(&sim.0.route.ladder, clip.id(), &clip.state(now))))
        .collect();
    if !sim.0.options.in_order {
        bodies.reverse();
    }
    let whole = match states.form {
        Form::Single => bodies.swap_remove(0).1,
        Form::Multi => body::clips(shape, &bodies),
    };
    Ok(with_content_type(StatusCode::OK, "application/json; charset=utf-8", whole))
}

async fn hold(sim: &Sim, until: Instant, clips: &[Arc<Clip>], goal: Rung) {
    let now = clock::now();
    if clips.iter().all(|clip| clip.state(now).has_reached(goal)) {
        return;
    }
    let _held = HoldGuard::new(sim);
    // Run out of time or not, the answer is the state as it is.
    let _ = tokio::time::timeout_at(until.into(), all_reach(clips, goal)).await;
}

impl StateQuery {
    fn goal(&self, route: &Route) -> Result<Goal, ApiError> {
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

    /// The clips, each once, in the order they are first named.
    fn clips(&self, sim: &Sim) -> Result<Vec<Arc<Clip>>, ApiError> {
        let route = &sim.0.route;
        let most = match self.form {
            Form::Single => 1,
            Form::Multi => MAX_CLIPS,
        };
        if self.ids.is_empty() || self.ids.len() > most || self.ids.iter().any(String::is_empty) {
            let message = match self.form {
                Form::Single => format!("{} must be one id", route.single_param),
                Form::Multi => format!("{} must be 1 to {MAX_CLIPS} ids", route.multi_param),
            };
            return Err(api_error(StatusCode::BAD_REQUEST, message));
        }
        let world = sim.0.state.lock();
        let mut clips: Vec<Arc<Clip>> = Vec::new();
        for id in &self.ids {
            let clip =
                world.clips.get(id).ok_or_else(|| api_error(StatusCode::NOT_FOUND, "Clip not found"))?;
            if !clips.iter().any(|known| known.id() == clip.id()) {
                clips.push(Arc::clone(clip));
            }
        }
        Ok(clips)
    }
}

/// Comes back at `at` + `after`, and without ever waiting if that has passed.
async fn pause(at: Instant, after: Duration) {
    if at + after > clock::now() {
        tokio::time::sleep_until((at + after).into()).await;
    }
}

pub(super) fn not_found(call: &IncomingRequest) -> ApiError {
    api_error(StatusCode::NOT_FOUND, format!("Cannot {} {}", call.method, call.seen.path()))
}
