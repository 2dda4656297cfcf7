//! `--new`: creates clips of the built-in route.

use http::header::CONTENT_TYPE;
use http::uri::PathAndQuery;
use http::{HeaderValue, Method, Request, Response};
use serde_json::{Value, json};

use crate::cli::error::{CommandError, chain};
use crate::cli::job_client::{JobRequestError, KeyField, message, read_response};
use crate::core::job::JobId;
use crate::core::route::{Form, Route};
use crate::protocol::body::Body;
use crate::upstream::client::Client;

/// Creates clips from a prompt, and returns their ids. The request costs money at a real API, so nothing repeats it.
pub(super) async fn create(
    client: &Client,
    route: &Route,
    key: Option<&KeyField>,
    prompt: &str,
) -> Result<Vec<JobId>, CommandError> {
    let response = post(client, route, key, prompt).await.map_err(|error| {
        let text = chain(&error);
        format!("cannot create a clip: {text}\n    Is --url the address of a gateway or of the API?")
    })?;
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

async fn post(
    client: &Client,
    route: &Route,
    key: Option<&KeyField>,
    prompt: &str,
) -> Result<Response<bytes::Bytes>, JobRequestError> {
    let target: PathAndQuery = route.template(Form::Single).parse().map_err(|_| JobRequestError::Target)?;
    let mut request = Request::new(Body::full(json!({ "prompt": prompt }).to_string()));
    *request.method_mut() = Method::POST;
    *request.uri_mut() = client.uri(&target).map_err(|_| JobRequestError::Target)?;
    request.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    if let Some((name, value)) = key {
        request.headers_mut().insert(name, value.clone());
    }
    read_response(client.send(request).await?).await
}
