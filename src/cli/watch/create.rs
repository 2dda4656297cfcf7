//! `--new`: creates clips of the built-in route.

use http::header::CONTENT_TYPE;
use http::uri::PathAndQuery;
use http::{HeaderValue, Method, Request, Response};
use serde_json::{Value, json};

use super::follow::Follower;
use crate::cli::error::CommandError;
use crate::cli::job_client::{JobRequestError, message, read_response};
use crate::core::job::JobId;
use crate::core::route::Form;
use crate::protocol::body::Body;

/// Creates clips from a prompt, and returns their ids. The request costs money at a real API, so nothing repeats it.
pub(super) async fn create(follower: &Follower, prompt: &str) -> Result<Vec<JobId>, CommandError> {
    let response = post(follower, prompt)
        .await
        .map_err(|error| format!("cannot create a clip: {}", follower.describe(&error)))?;
    let (status, body) = (response.status(), response.body());
    if !status.is_success() {
        return Err(format!("cannot create a clip: {}", message(status, body)).into());
    }
    let body: Value = serde_json::from_slice(body).unwrap_or_default();
    let ids = body["clip_ids"].as_array().into_iter().flatten().filter_map(Value::as_str);
    let ids: Vec<JobId> = ids.filter_map(|id| JobId::new(id).ok()).collect();
    match ids.is_empty() {
        true => Err("the response to the creation has no `clip_ids`".into()),
        false => Ok(ids),
    }
}

async fn post(follower: &Follower, prompt: &str) -> Result<Response<bytes::Bytes>, JobRequestError> {
    let Follower { client, route, fields, .. } = follower;
    let target: PathAndQuery = route.template(Form::Single).parse().map_err(|_| JobRequestError::Target)?;
    let mut request = Request::new(Body::full(json!({ "prompt": prompt }).to_string()));
    *request.method_mut() = Method::POST;
    *request.uri_mut() = client.uri(&target).map_err(|_| JobRequestError::Target)?;
    request.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    for (name, value) in fields {
        request.headers_mut().insert(name, value.clone());
    }
    read_response(client.send(request).await?).await
}
