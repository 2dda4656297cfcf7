//! What is no part of the real upstream: aids under `/sim/`, to see from outside how a request was passed on.
//!
//! | path | answers |
//! | --- | --- |
//! | `/sim/echo` | JSON of the method, target, protocol, header fields, and the body's length and digest |
//! | `/sim/mirror` | the body, as it comes |
//! | `/sim/stream?n=10&every=100ms` | lines one by one; as server-sent events where those are accepted |
//! | `/sim/upgrade` | 101, then each byte back |
//! | `/sim/status/CODE` | that status, with an error's body |
//!
//! No body is collected: they are counted, mirrored or made frame by frame.

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

use super::api::{IncomingRequest, not_found};
use super::response::{ApiError, api_error, with_content_type};
use crate::clock;
use crate::protocol::body::{Body, BoxError};

/// The most lines of one stream.
const MAX_LINES: u64 = 1_000_000;

pub(super) async fn answer(call: IncomingRequest) -> Result<Response<Body>, ApiError> {
    let path = call.seen.path().to_owned();
    match path.strip_prefix("/sim/") {
        Some("echo") => echo(call).await,
        Some("mirror") => Ok(mirror(call)),
        Some("stream") => stream(&call),
        Some("upgrade") => upgrade(call),
        Some(rest) => match rest.strip_prefix("status/").and_then(|code| code.parse().ok()) {
            Some(code @ 200..=599) => {
                let status = StatusCode::from_u16(code).map_err(|_| not_found(&call))?;
                Err(api_error(status, "As you asked"))
            }
            _ => Err(not_found(&call)),
        },
        None => Err(not_found(&call)),
    }
}

async fn echo(call: IncomingRequest) -> Result<Response<Body>, ApiError> {
    let (length, digest) =
        measure(call.body).await.map_err(|_| api_error(StatusCode::BAD_REQUEST, "The body broke off"))?;
    let text = |value: &HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    let headers: Vec<_> =
        call.seen.headers.iter().map(|(name, value)| json!([name.as_str(), text(value)])).collect();
    let body = json!({
        "method": call.method.as_str(),
        "target": &*call.seen.target,
        "version": format!("{:?}", call.seen.version),
        "has_key": call.seen.key.is_some(),
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

fn mirror(call: IncomingRequest) -> Response<Body> {
    let mut response = Response::new(Body::stream(call.body));
    if let Some(kind) = call.seen.headers.get(CONTENT_TYPE) {
        response.headers_mut().insert(CONTENT_TYPE, kind.clone());
    }
    response
}

fn stream(call: &IncomingRequest) -> Result<Response<Body>, ApiError> {
    let (mut count, mut every) = (10, Duration::from_millis(100));
    let query = call.seen.target.split_once('?').map_or("", |(_, query)| query);
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
    let accepts = call.seen.headers.get(ACCEPT).map_or(&b""[..], HeaderValue::as_bytes);
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

/// Numbered lines, the first at once, then one each `every`.
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

fn upgrade(call: IncomingRequest) -> Result<Response<Body>, ApiError> {
    let to = call.seen.headers.get(UPGRADE).cloned();
    let (Some(to), Some(upgrade)) = (to, call.upgrade) else {
        return Err(api_error(StatusCode::UPGRADE_REQUIRED, "Ask with Connection: upgrade and Upgrade"));
    };
    call.wire.tunnel(upgrade);
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("upgrade"));
    response.headers_mut().insert(UPGRADE, to);
    Ok(response)
}

/// Sends each byte back until the client is done.
pub(super) async fn echo_tunnel(upgrade: OnUpgrade) -> Result<(), BoxError> {
    let (mut read, mut write) = tokio::io::split(TokioIo::new(upgrade.await?));
    tokio::io::copy(&mut read, &mut write).await?;
    tokio::io::AsyncWriteExt::shutdown(&mut write).await?;
    Ok(())
}
