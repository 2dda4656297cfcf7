//! One question for one job's state, as a client asks it; and how the command line says what to ask where.

use bytes::Bytes;
use http::header::{ACCEPT, AUTHORIZATION, USER_AGENT};
use http::uri::PathAndQuery;
use http::{HeaderValue, Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt as _, Limited};
use serde_json::Value;

use crate::config;
use crate::core::job::{JobId, JobSet};
use crate::core::query;
use crate::core::route::{Form, Goal, Route, Rung};
use crate::protocol::body::Body;
use crate::upstream::client::{Client, SendError};

/// The largest answer that is read, in bytes.
const MAX_ANSWER: usize = 8 << 20;

/// Letters of somebody else's message that are shown.
const MAX_MESSAGE: usize = 200;

/// Why there is no whole answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum JobRequestError {
    #[error("its id fits into no URL")]
    Target,
    #[error(transparent)]
    Send(#[from] SendError),
    #[error("the answer was cut off, or has more than {} MiB", MAX_ANSWER >> 20)]
    CutOff,
}

/// Asks until the job is on this rung or the other side's time is over. Cancel safe: dropping the future ends the
/// request.
pub(super) async fn fetch_job(
    client: &Client,
    route: &Route,
    authorization: Option<&HeaderValue>,
    id: &JobId,
    rung: Rung,
) -> Result<Response<Bytes>, JobRequestError> {
    let target = query::build_target(route, Form::Single, &JobSet::new([id.clone()]), Goal::Rung(rung));
    let target = PathAndQuery::try_from(target).map_err(|_| JobRequestError::Target)?;
    let mut request = Request::new(Body::empty());
    *request.uri_mut() = client.uri(&target).map_err(|_| JobRequestError::Target)?;
    let fields = request.headers_mut();
    fields.insert(ACCEPT, HeaderValue::from_static("application/json"));
    fields.insert(USER_AGENT, HeaderValue::from_static(concat!("clipgate/", env!("CARGO_PKG_VERSION"))));
    if let Some(authorization) = authorization {
        fields.insert(AUTHORIZATION, authorization.clone());
    }
    let (head, body) = client.send(request).await?.into_parts();
    let body = Limited::new(body, MAX_ANSWER).collect().await.map_err(|_| JobRequestError::CutOff)?;
    Ok(Response::from_parts(head, body.to_bytes()))
}

/// A job on the command line.
pub(super) fn job_id(text: &str) -> Result<JobId, String> {
    JobId::new(text).map_err(|bad| bad.to_string())
}

/// Where to ask, on the command line.
pub(super) fn url(text: &str) -> Result<Uri, String> {
    config::base_url(text).map_err(|wrong| wrong.to_string())
}

/// The status of an error, and what its body says in one of the usual places; safe to show.
pub(super) fn message(status: StatusCode, body: &[u8]) -> String {
    let body: Value = serde_json::from_slice(body).unwrap_or_default();
    let said = [&body["message"], &body["error"]["message"], &body["error"], &body["title"]];
    match said.into_iter().find_map(Value::as_str) {
        Some(text) => {
            let shown: String = text.chars().take(MAX_MESSAGE).flat_map(char::escape_debug).collect();
            format!("{status}: {shown}")
        }
        None => status.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_errors_message_is_found_in_each_shape_and_cannot_move_the_cursor() {
        let rows = [
            (r#"{"message":"no such clip","statusCode":404}"#, "404 Not Found: no such clip"),
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
