//! Debug endpoints under `/sim/`, which the real API does not have. They show how a request arrived at the upstream.
//!
//! | path | response |
//! | --- | --- |
//! | `/sim/echo` | JSON of the method, target, protocol, header fields, and the body's length and digest |
//! | `/sim/mirror` | the request body, frame by frame |
//! | `/sim/stream?n=10&every=100ms` | numbered lines; server-sent events if `Accept` names them first |
//! | `/sim/upgrade` | 101, then each byte back |
//! | `/sim/status/CODE` | that status with an error body |
//!
//! No body is buffered: each is counted, mirrored or generated frame by frame.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, CACHE_CONTROL, CONNECTION, CONTENT_TYPE, UPGRADE};
use http::{HeaderValue, Response, StatusCode};
use http_body::Frame;
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use serde_json::json;
use tokio::time::{Instant, Sleep};

use super::request::IncomingRequest;
use super::response::{ApiError, api_error, not_found, with_content_type};
use crate::clock;
use crate::protocol::body::{Body, BoxError};

/// The most lines of one stream.
const MAX_LINES: u64 = 1_000_000;

pub(super) async fn answer(request: IncomingRequest) -> Result<Response<Body>, ApiError> {
    let path = request.record.path().to_owned();
    match path.strip_prefix("/sim/") {
        Some("echo") => echo(request).await,
        Some("mirror") => Ok(mirror(request)),
        Some("stream") => stream(&request),
        Some("upgrade") => upgrade(request),
        Some(rest) => match rest.strip_prefix("status/").and_then(|code| code.parse().ok()) {
            Some(code @ 200..=599) => {
                let status = StatusCode::from_u16(code).map_err(|_| not_found(&request))?;
                Err(api_error(status, "As requested"))
            }
            _ => Err(not_found(&request)),
        },
        None => Err(not_found(&request)),
    }
}

async fn echo(request: IncomingRequest) -> Result<Response<Body>, ApiError> {
    let (length, digest) =
        measure(request.body).await.map_err(|_| api_error(StatusCode::BAD_REQUEST, "The body broke off"))?;
    let text = |value: &HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    let headers: Vec<_> =
        request.record.headers.iter().map(|(name, value)| json!([name.as_str(), text(value)])).collect();
    let body = json!({
        "method": request.method.as_str(),
        "target": &*request.record.target,
        "version": format!("{:?}", request.record.version),
        "has_key": request.record.key.is_some(),
        "headers": headers,
        "body_bytes": length,
        "body_blake3": digest.to_hex().as_str(),
    });
    Ok(with_content_type(StatusCode::OK, "application/json; charset=utf-8", body.to_string()))
}

async fn measure(mut body: Incoming) -> Result<(u64, blake3::Hash), hyper::Error> {
    let (mut length, mut hasher) = (0, blake3::Hasher::new());
    while let Some(frame) = body.frame().await {
        if let Some(data) = frame?.data_ref() {
            length += data.len() as u64;
            hasher.update(data);
        }
    }
    Ok((length, hasher.finalize()))
}

fn mirror(request: IncomingRequest) -> Response<Body> {
    let mut response = Response::new(Body::stream(request.body));
    if let Some(kind) = request.record.headers.get(CONTENT_TYPE) {
        response.headers_mut().insert(CONTENT_TYPE, kind.clone());
    }
    response
}

fn stream(request: &IncomingRequest) -> Result<Response<Body>, ApiError> {
    let (mut count, mut every) = (10, Duration::from_millis(100));
    let query = request.record.target.split_once('?').map_or("", |(_, query)| query);
    for (name, value) in form_urlencoded::parse(query.as_bytes()) {
        let bad = |hint: &str| api_error(StatusCode::BAD_REQUEST, format!("{name} must be {hint}"));
        match &*name {
            "n" => {
                let number = value.parse().ok().filter(|&number| number <= MAX_LINES);
                count = number.ok_or_else(|| bad("a number up to 1000000"))?;
            }
            "every" => every = humantime::parse_duration(&value).map_err(|_| bad("a time, as 100ms"))?,
            _ => {}
        }
    }
    let accepts = request.record.headers.get(ACCEPT).map_or(&b""[..], HeaderValue::as_bytes);
    let is_events = accepts.starts_with(b"text/event-stream");
    let lines = LineStream {
        next: 0,
        count,
        every,
        is_events,
        due: Box::pin(tokio::time::sleep_until(clock::now().into())),
    };
    let mut response = Response::new(Body::stream(lines));
    let kind = if is_events { "text/event-stream" } else { "text/plain; charset=utf-8" };
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(response)
}

/// A body of numbered lines: the first at once, the next ones after `every` each.
struct LineStream {
    next: u64,
    count: u64,
    every: Duration,
    is_events: bool,
    due: Pin<Box<Sleep>>,
}

impl http_body::Body for LineStream {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = self.get_mut();
        if this.next == this.count {
            return Poll::Ready(None);
        }
        ready!(this.due.as_mut().poll(cx));
        let n = this.next;
        this.next += 1;
        this.due.as_mut().reset(Instant::from_std(clock::now()) + this.every);
        let line = if this.is_events { format!("id: {n}\ndata: {n}\n\n") } else { format!("{n}\n") };
        Poll::Ready(Some(Ok(Frame::data(line.into()))))
    }
}

fn upgrade(request: IncomingRequest) -> Result<Response<Body>, ApiError> {
    let to = request.record.headers.get(UPGRADE).cloned();
    let (Some(to), Some(upgrade)) = (to, request.upgrade) else {
        return Err(api_error(StatusCode::UPGRADE_REQUIRED, "Send Connection: upgrade and Upgrade"));
    };
    request.connection.set_tunnel(upgrade);
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("upgrade"));
    response.headers_mut().insert(UPGRADE, to);
    Ok(response)
}

/// Sends each byte back until the client closes its sending side.
pub(super) async fn echo_tunnel(upgrade: OnUpgrade) -> Result<(), BoxError> {
    let (mut read, mut write) = tokio::io::split(TokioIo::new(upgrade.await?));
    tokio::io::copy(&mut read, &mut write).await?;
    tokio::io::AsyncWriteExt::shutdown(&mut write).await?;
    Ok(())
}
