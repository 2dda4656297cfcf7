//! Requests of `check` and `watch` for the state of one job, and parsers of their arguments.

use bytes::Bytes;
use http::header::{ACCEPT, CONNECTION, CONTENT_LENGTH, HOST, TRANSFER_ENCODING, USER_AGENT};
use http::uri::PathAndQuery;
use http::{HeaderName, HeaderValue, Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt as _, Limited};
use serde_json::Value;

use crate::config;
use crate::core::job::{JobId, JobSet};
use crate::core::query;
use crate::core::route::{Form, Goal, Route, Rung};
use crate::protocol::body::Body;
use crate::upstream::client::{Client, ResponseBody, SendError};

/// Largest response, in bytes.
pub(super) const MAX_RESPONSE: usize = 8 << 20;

/// Characters of an upstream's message that are shown.
const MAX_MESSAGE: usize = 200;

/// A field of requests: one with the key, or one of `--header`.
pub(super) type KeyField = (HeaderName, HeaderValue);

#[derive(Debug, thiserror::Error)]
pub(super) enum JobRequestError {
    #[error("the id does not fit into a URL")]
    Target,
    #[error(transparent)]
    Send(#[from] SendError),
    #[error("the response was cut off or is larger than {} MiB", MAX_RESPONSE >> 20)]
    CutOff,
}

/// Sends a long-poll until the job reaches this rung or the server's time is over. Cancel safe: dropping the future
/// ends the request.
pub(super) async fn fetch_job(
    client: &Client,
    route: &Route,
    fields: impl IntoIterator<Item = &KeyField>,
    id: &JobId,
    rung: Rung,
) -> Result<Response<Bytes>, JobRequestError> {
    let request = job_request(client, route, fields, id, Goal::Rung(rung))?;
    read_response(client.send(request).await?).await
}

/// Returns a request for the state of a job as JSON, with these fields.
pub(super) fn job_request<'f>(
    client: &Client,
    route: &Route,
    fields: impl IntoIterator<Item = &'f KeyField>,
    id: &JobId,
    goal: Goal,
) -> Result<Request<Body>, JobRequestError> {
    let target = query::build_target(route, Form::Single, &JobSet::new([id.clone()]), goal);
    let target = PathAndQuery::try_from(target).map_err(|_| JobRequestError::Target)?;
    let mut request = Request::new(Body::empty());
    *request.uri_mut() = client.uri(&target).map_err(|_| JobRequestError::Target)?;
    let headers = request.headers_mut();
    headers.insert(ACCEPT, HeaderValue::from_static("application/json"));
    headers.insert(USER_AGENT, HeaderValue::from_static(concat!("clipgate/", env!("CARGO_PKG_VERSION"))));
    for (name, value) in fields {
        headers.insert(name, value.clone());
    }
    Ok(request)
}

/// Reads a response to its end.
pub(super) async fn read_response(
    response: Response<ResponseBody>,
) -> Result<Response<Bytes>, JobRequestError> {
    let (head, body) = response.into_parts();
    let body = Limited::new(body, MAX_RESPONSE).collect().await.map_err(|_| JobRequestError::CutOff)?;
    Ok(Response::from_parts(head, body.to_bytes()))
}

/// Parses a `--header`.
pub(super) fn header(text: &str) -> Result<KeyField, String> {
    let usage = || "write it as 'NAME: VALUE'".to_owned();
    let (name, value) = text.split_once(':').ok_or_else(usage)?;
    let name: HeaderName = name.trim().parse().map_err(|_| usage())?;
    if [HOST, CONTENT_LENGTH, TRANSFER_ENCODING, CONNECTION].contains(&name) {
        return Err(format!("the command sets {name} itself"));
    }
    Ok((name, value.trim().parse().map_err(|_| usage())?))
}

pub(super) fn url(text: &str) -> Result<Uri, String> {
    config::base_url(text).map_err(|error| error.to_string())
}

/// Formats the status of an error and the message of its body, if it is in a usual place. Safe for a terminal.
pub(super) fn message(status: StatusCode, body: &[u8]) -> String {
    match error_text(body) {
        Some(text) => format!("{status}: {text}"),
        None => status.to_string(),
    }
}

/// Returns the message in the body of an error, if it is in a usual place. Safe for a terminal.
pub(super) fn error_text(body: &[u8]) -> Option<String> {
    let body: Value = serde_json::from_slice(body).unwrap_or_default();
    let messages =
        [&body["message"], &body["error"]["message"], &body["error"], &body["detail"], &body["title"]];
    let text = messages.into_iter().find_map(Value::as_str)?;
    Some(text.chars().take(MAX_MESSAGE).flat_map(char::escape_debug).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_is_a_name_and_a_value() {
        let (name, value) = header("Anthropic-Version:2023-06-01 ").unwrap();
        assert_eq!((name.as_str(), value.as_bytes()), ("anthropic-version", &b"2023-06-01"[..]));
        for wrong in ["x", "a b: c", ": c", "x: a\nb", "Host: a", "content-length: 1"] {
            assert!(header(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_message_of_an_error_is_found_in_each_shape_and_escaped() {
        let rows = [
            (r#"{"message":"no such job","statusCode":404}"#, "404 Not Found: no such job"),
            (r#"{"error":{"message":"no"}}"#, "404 Not Found: no"),
            (r#"{"error":"no"}"#, "404 Not Found: no"),
            (r#"{"title":"Nothing","status":404}"#, "404 Not Found: Nothing"),
            ("<html>", "404 Not Found"),
            ("", "404 Not Found"),
            ("{\"message\":\"\\u001b[2Jgone\"}", "404 Not Found: \\u{1b}[2Jgone"),
        ];
        for (body, expected) in rows {
            assert_eq!(message(StatusCode::NOT_FOUND, body.as_bytes()), expected);
        }
        assert_eq!(rows.len(), 7);
    }
}
