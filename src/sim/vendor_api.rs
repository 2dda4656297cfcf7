//! Answers requests for the jobs of vendors. It holds none of them.

use std::time::Instant;

use bytes::Bytes;
use http::header::HOST;
use http::{HeaderMap, HeaderValue, Response, StatusCode};

use super::job::Timeline;
use super::recorder::RecordedRequest;
use super::response::{ApiError, JSON, api_error, with_content_type};
use super::state::SimShared;
use super::vendor_body::{self, JobView};
use super::vendor_job::{VendorJob, VendorState};
use super::vendors::{VendorAction, VendorRequest};
use crate::clock;
use crate::protocol::body::Body;

/// Carries out an operation. The caller has checked the key and read the body.
pub(super) fn answer(
    sim: &SimShared,
    record: &RecordedRequest,
    request: &VendorRequest,
) -> Result<Response<Body>, ApiError> {
    let VendorRequest { api, action, code, .. } = request;
    let created = (*action == VendorAction::Create).then(|| sim.create_vendor_job(api));
    let id = created.as_deref().or(request.ids.first().map(String::as_str)).unwrap_or_default();
    if *action == VendorAction::Remove {
        return match sim.remove_vendor_job(api.vendor, id) {
            true => {
                let mut response = Response::new(Body::empty());
                *response.status_mut() = *code;
                Ok(response)
            }
            false => Err(job_not_found()),
        };
    }
    let origin = origin(&record.headers);
    let response = sim.with_vendor_job(api.vendor, id, |job| {
        let now = clock::now();
        match action {
            VendorAction::Cancel if !job.state(now).is_end(&api.words) => {
                job.replace(Timeline::constant(VendorState::canceled(&api.words)), now);
            }
            VendorAction::Retry => job.replace(sim.lifetimes().vendor_lifetime(api, &job.id, now), now),
            _ => {}
        }
        let view = view(job, request, &origin, record.path(), now);
        let is_read = matches!(action, VendorAction::Read | VendorAction::ReadOutput);
        match action {
            VendorAction::ReadOutput if !view.is_end => {
                Err(api_error(StatusCode::BAD_REQUEST, "Request is still in progress"))
            }
            VendorAction::ReadOutput if !view.has_succeeded => {
                Err(api_error(StatusCode::UNPROCESSABLE_ENTITY, "The request has failed"))
            }
            VendorAction::ReadOutput => {
                Ok(with_content_type(*code, JSON, vendor_body::output(&view).to_string()))
            }
            _ => {
                let code = match is_read && !view.is_end {
                    true => sim.options.pending_code.unwrap_or(api.pending_code),
                    false => *code,
                };
                let body: Bytes = vendor_body::job(api.vendor, &view).to_string().into();
                Ok(with_content_type(code, JSON, body))
            }
        }
    });
    response.unwrap_or_else(|| Err(job_not_found()))
}

fn job_not_found() -> ApiError {
    api_error(StatusCode::NOT_FOUND, "The job does not exist")
}

fn view<'a>(
    job: &'a VendorJob,
    request: &VendorRequest,
    origin: &'a str,
    path: &'a str,
    now: Instant,
) -> JobView<'a> {
    let words = &request.api.words;
    let state = job.state(now);
    JobView {
        id: &job.id,
        word: &state.word,
        has_failed: state.has_failed,
        has_succeeded: state.has_succeeded(words),
        is_end: state.is_end(words),
        is_first: &*state.word == words.pending[0],
        created_at: job.created_at,
        changed_at: job.changed_at(now),
        origin,
        path,
    }
}

/// Returns the origin that the request names. HTTP/2 without `Host` gets a relative link.
fn origin(headers: &HeaderMap) -> String {
    let host = headers.get(HOST).map(HeaderValue::to_str).and_then(Result::ok);
    host.map_or_else(String::new, |host| format!("http://{host}"))
}
