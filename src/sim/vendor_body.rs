//! The JSON of vendors' jobs, as their SDKs read it.
//!
//! Links in a body begin with the origin that the request named, as the links of the real APIs name the vendor's host.

use std::time::SystemTime;

use serde_json::{Value, json};

use super::vendors::Vendor;

/// Everything that a body depends on.
pub(super) struct JobView<'a> {
    pub(super) id: &'a str,
    pub(super) word: &'a str,
    pub(super) has_failed: bool,
    pub(super) has_succeeded: bool,
    pub(super) is_end: bool,
    /// Whether the job waits for its start.
    pub(super) is_first: bool,
    pub(super) created_at: SystemTime,
    pub(super) changed_at: SystemTime,
    /// Such as `http://127.0.0.1:8081`.
    pub(super) origin: &'a str,
    /// Path of the request.
    pub(super) path: &'a str,
}

const ERROR: &str = "The simulated job failed; try another input.";
const TEXT: &str = "Headlights paint the empty road";

pub(super) fn job(vendor: Vendor, view: &JobView<'_>) -> Value {
    match vendor {
        Vendor::Replicate => prediction(view),
        Vendor::OpenAi => response(view),
        Vendor::Fal => queue_request(view),
        Vendor::RunPod => serverless_job(view),
    }
}

/// Returns the body of [`ReadOutput`](super::vendors::VendorAction::ReadOutput).
pub(super) fn output(view: &JobView<'_>) -> Value {
    json!({ "images": [{ "url": format!("https://v3.fal.media/files/{}.png", view.id) }], "prompt": TEXT })
}

fn prediction(view: &JobView<'_>) -> Value {
    let JobView { id, origin, .. } = view;
    json!({
        "id": id,
        "model": "simulated/image",
        "version": "hidden",
        "input": {},
        "logs": if view.is_first { "" } else { "Using seed: 1\n" },
        "output": view.has_succeeded.then(|| json!([format!("https://replicate.delivery/sim/{id}/out-0.png")])),
        "data_removed": false,
        "error": view.has_failed.then_some(ERROR),
        "status": view.word,
        "created_at": time(view.created_at),
        "started_at": (!view.is_first).then(|| time(view.created_at)),
        "completed_at": view.is_end.then(|| time(view.changed_at)),
        "metrics": {},
        "urls": {
            "get": format!("{origin}/v1/predictions/{id}"),
            "cancel": format!("{origin}/v1/predictions/{id}/cancel"),
        },
    })
}

fn response(view: &JobView<'_>) -> Value {
    let message = json!({
        "id": format!("msg_{}", view.id.trim_start_matches("resp_")),
        "type": "message",
        "status": view.word,
        "role": "assistant",
        "content": [{ "type": "output_text", "text": TEXT, "annotations": [] }],
    });
    let since_1970 = view.created_at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    json!({
        "id": view.id,
        "object": "response",
        "created_at": since_1970.as_secs(),
        "status": view.word,
        "background": true,
        "error": view.has_failed.then(|| json!({ "code": "server_error", "message": ERROR })),
        "incomplete_details": null,
        "instructions": null,
        "metadata": {},
        "model": "simulated",
        "output": if view.has_succeeded { json!([message]) } else { json!([]) },
        "parallel_tool_calls": true,
        "temperature": 1.0,
        "tool_choice": "auto",
        "tools": [],
        "top_p": 1.0,
        "usage": null,
    })
}

fn queue_request(view: &JobView<'_>) -> Value {
    // The job's own path: that of a new one lies below the path of its creation.
    let job = match view.path.split_once("/requests/") {
        Some((app, _)) => format!("{}{app}/requests/{}", view.origin, view.id),
        None => format!("{}{}/requests/{}", view.origin, view.path, view.id),
    };
    let mut body = json!({
        "status": view.word,
        "request_id": view.id,
        "response_url": job,
        "status_url": format!("{job}/status"),
        "cancel_url": format!("{job}/cancel"),
        "logs": null,
    });
    if view.is_first {
        body["queue_position"] = 0.into();
    }
    if view.has_failed {
        body["error"] = ERROR.into();
    }
    body
}

fn serverless_job(view: &JobView<'_>) -> Value {
    let mut body = json!({ "id": view.id, "status": view.word });
    if view.is_end {
        let took = view.changed_at.duration_since(view.created_at).unwrap_or_default();
        body["executionTime"] = (took.as_secs_f64() * 1000.0).round().into();
    }
    if view.has_succeeded {
        body["output"] = json!({ "text": TEXT });
    }
    if view.has_failed {
        body["error"] = ERROR.into();
    }
    body
}

fn time(time: SystemTime) -> String {
    humantime::format_rfc3339_millis(time).to_string()
}
