//! Jobs of vendors whose APIs never hold a request.

use http::header::RETRY_AFTER;
use http::{HeaderName, HeaderValue};

use super::*;

/// A vendor's endpoints for one job, and its status words.
struct Case {
    vendor: Vendor,
    authorization: &'static str,
    create: (&'static str, u16),
    /// Path of the reads, with `ID`.
    read: &'static str,
    cancel: (Method, &'static str, u16),
    /// Member of the body that has the id.
    id: &'static str,
    words: [&'static str; 4],
    pending_code: u16,
}

fn cases() -> [Case; 4] {
    let post = Method::POST;
    [
        Case {
            vendor: Vendor::Replicate,
            authorization: "Bearer key",
            create: ("/v1/predictions", 201),
            read: "/v1/predictions/ID",
            cancel: (post.clone(), "/v1/predictions/ID/cancel", 200),
            id: "id",
            words: ["starting", "processing", "succeeded", "canceled"],
            pending_code: 200,
        },
        Case {
            vendor: Vendor::OpenAi,
            authorization: "Bearer key",
            create: ("/v1/responses", 200),
            read: "/v1/responses/ID",
            cancel: (post.clone(), "/v1/responses/ID/cancel", 200),
            id: "id",
            words: ["queued", "in_progress", "completed", "cancelled"],
            pending_code: 200,
        },
        Case {
            vendor: Vendor::Fal,
            authorization: "Key key",
            create: ("/fal-ai/flux", 200),
            read: "/fal-ai/flux/requests/ID/status",
            cancel: (Method::PUT, "/fal-ai/flux/requests/ID/cancel", 202),
            id: "request_id",
            words: ["IN_QUEUE", "IN_PROGRESS", "COMPLETED", "COMPLETED"],
            pending_code: 202,
        },
        Case {
            vendor: Vendor::RunPod,
            authorization: "Bearer key",
            create: ("/v2/e1/run", 200),
            read: "/v2/e1/status/ID",
            cancel: (post, "/v2/e1/cancel/ID", 200),
            id: "id",
            words: ["IN_QUEUE", "IN_PROGRESS", "COMPLETED", "CANCELLED"],
            pending_code: 200,
        },
    ]
}

impl Rig {
    async fn send(&self, method: Method, target: &str, authorization: &'static str) -> Answer {
        let mut request = self.request(method, target);
        request.headers_mut().insert("authorization", HeaderValue::from_static(authorization));
        self.call(request).await.unwrap()
    }
}

#[tokio::test]
async fn every_vendor_creates_reads_and_cancels_a_job() {
    let rig = Rig::start(SimOptions::default()).await;
    for case in cases() {
        let Case { vendor, authorization, words, .. } = case;
        let create = async || {
            let made = rig.send(Method::POST, case.create.0, authorization).await;
            assert_eq!((made.status.as_u16(), &made.json()["status"]), (case.create.1, &words[0].into()));
            made.json()[case.id].as_str().unwrap().to_owned()
        };
        let read = async |id: &str| {
            let answer = rig.send(Method::GET, &case.read.replace("ID", id), authorization).await;
            assert_eq!(answer.json()[case.id], id, "{vendor:?}");
            (answer.status.as_u16(), answer.json()["status"].as_str().unwrap().to_owned())
        };
        let id = create().await;
        assert_eq!(read(&id).await, (case.pending_code, words[0].to_owned()), "{vendor:?}");
        for word in &words[1..3] {
            rig.sim.set_job(vendor, &id, word);
            let code = if *word == words[1] { case.pending_code } else { 200 };
            assert_eq!(read(&id).await, (code, (*word).to_owned()), "{vendor:?}");
        }
        let id = create().await;
        let (method, path, code) = case.cancel.clone();
        let canceled = rig.send(method, &path.replace("ID", &id), authorization).await;
        assert_eq!(canceled.status, code, "{vendor:?}");
        assert_eq!(read(&id).await, (200, words[3].to_owned()), "{vendor:?}");
    }
}

#[tokio::test]
async fn a_prediction_has_its_output_and_links_and_can_be_removed() {
    let rig = Rig::start(SimOptions::default()).await;
    rig.sim.set_job(Vendor::Replicate, "a", "processing");
    let body = rig.get("/v1/predictions/a").await.json();
    assert_eq!(
        (&body["output"], &body["error"], &body["completed_at"]),
        (&Value::Null, &Value::Null, &Value::Null)
    );
    let link = format!("http://{}/v1/predictions/a", rig.at);
    assert_eq!(
        (&body["urls"]["get"], &body["urls"]["cancel"]),
        (&link.clone().into(), &format!("{link}/cancel").into())
    );
    rig.sim.set_job(Vendor::Replicate, "a", "succeeded");
    let done = rig.get("/v1/predictions/a").await;
    assert!(done.json()["output"][0].as_str().unwrap().starts_with("https://"));
    assert_eq!(done.body, rig.get("/v1/predictions/a").await.body);
    rig.sim.fail_job(Vendor::Replicate, "a");
    let failed = rig.get("/v1/predictions/a").await.json();
    assert!(failed["status"] == "failed" && failed["error"].is_string() && failed["output"].is_null());
    let remove = async || rig.call(rig.request(Method::DELETE, "/v1/predictions/a")).await.unwrap().status;
    assert_eq!((remove().await.as_u16(), remove().await.as_u16()), (204, 404));
    assert_eq!(rig.get("/v1/predictions/a").await.status, 404);
}

#[tokio::test]
async fn a_job_of_fal_fails_with_the_word_of_success_and_an_error() {
    let rig = Rig::start(SimOptions::default()).await;
    let read = async |target| rig.send(Method::GET, target, "Key key").await;
    let (status, output) = ("/fal-ai/flux/requests/a/status", "/fal-ai/flux/requests/a");
    rig.sim.set_job(Vendor::Fal, "a", "IN_QUEUE");
    assert_eq!((read(status).await.status.as_u16(), read(output).await.status.as_u16()), (202, 400));
    rig.sim.fail_job(Vendor::Fal, "a");
    let failed = read(status).await;
    assert!(
        failed.status == 200 && failed.json()["status"] == "COMPLETED" && failed.json()["error"].is_string()
    );
    assert_eq!(read(output).await.status, 422);
    rig.sim.set_job(Vendor::Fal, "a", "COMPLETED");
    assert!(read(status).await.json().get("error").is_none());
    assert!(read(output).await.json()["images"][0]["url"].is_string());
    let link = format!("http://{}{status}", rig.at);
    assert_eq!(read(status).await.json()["status_url"], link);
}

#[tokio::test]
async fn a_retried_job_starts_anew() {
    let rig = Rig::start(SimOptions::default()).await;
    rig.sim.fail_job(Vendor::RunPod, "a");
    assert_eq!(rig.get("/v2/e1/status/a").await.json()["status"], "FAILED");
    let retried = rig.call(rig.request(Method::POST, "/v2/e1/retry/a")).await.unwrap();
    assert_eq!((retried.status, &retried.json()["status"]), (StatusCode::OK, &"IN_QUEUE".into()));
}

#[tokio::test]
async fn a_created_job_ends_at_the_configured_speed() {
    let rig = Rig::start(SimOptions { speed: 200.0, error_rate: 0.0, ..SimOptions::default() }).await;
    let made = rig.call(rig.request(Method::POST, "/v1/models/a/b/predictions")).await.unwrap().json();
    let (path, start) = (format!("/v1/predictions/{}", made["id"].as_str().unwrap()), clock::now());
    while rig.get(&path).await.json()["status"] != "succeeded" {
        assert!(start.elapsed() < TIMEOUT);
    }
    assert!(start.elapsed() > Duration::from_millis(80), "{:?}", start.elapsed());
}

#[tokio::test]
async fn an_option_sets_the_code_of_reads_before_the_end() {
    let pending_code = Some(StatusCode::ACCEPTED);
    let rig = Rig::start(SimOptions { pending_code, ..SimOptions::default() }).await;
    for (word, code) in [("starting", 202), ("warming", 202), ("succeeded", 200), ("failed", 200)] {
        rig.sim.set_job(Vendor::Replicate, "a", word);
        let read = rig.get("/v1/predictions/a").await;
        assert_eq!((read.status.as_u16(), &read.json()["status"]), (code, &word.into()));
    }
}

#[tokio::test]
async fn two_vendors_have_different_jobs_with_the_same_id() {
    let rig = Rig::start(SimOptions::default()).await;
    rig.sim.set_job(Vendor::Replicate, "a", "succeeded");
    rig.sim.schedule_job(Vendor::OpenAi, "a", &[("in_progress", Duration::ZERO), ("completed", LONG)]);
    assert_eq!(rig.get("/v1/predictions/a").await.json()["status"], "succeeded");
    assert_eq!(rig.get("/v1/responses/a").await.json()["status"], "in_progress");
    assert!(rig.sim.remove_job(Vendor::OpenAi, "a") && !rig.sim.remove_job(Vendor::OpenAi, "a"));
    assert_eq!(rig.get("/v1/predictions/a").await.status, 200);
    assert_eq!(rig.sim.observe().count("/v1/predictions/a"), 2);
}

#[tokio::test]
async fn a_key_without_the_scheme_of_its_vendor_is_rejected() {
    let rig = Rig::start(SimOptions::default()).await;
    rig.sim.set_job(Vendor::Fal, "a", "COMPLETED");
    rig.sim.set_job(Vendor::Replicate, "a", "succeeded");
    for (path, authorization, status) in [
        ("/fal-ai/flux/requests/a/status", "Bearer key", 401),
        ("/fal-ai/flux/requests/a/status", "Key key", 200),
        ("/v1/predictions/a", "Key key", 401),
    ] {
        assert_eq!(rig.send(Method::GET, path, authorization).await.status, status, "{path} {authorization}");
    }
    let key_field = HeaderName::from_static("x-key");
    let rig = Rig::start(SimOptions { key_field, ..SimOptions::default() }).await;
    rig.sim.set_job(Vendor::Replicate, "a", "succeeded");
    assert_eq!(rig.get("/v1/predictions/a").await.status, 401);
    let mut request = rig.request(Method::GET, "/v1/predictions/a");
    request.headers_mut().insert("x-key", HeaderValue::from_static("key"));
    assert_eq!(rig.call(request).await.unwrap().status, 200);
    assert!(rig.sim.requests()[1].key.unwrap().matches("key"));
}

#[tokio::test]
async fn faults_hit_reads_of_jobs() {
    let rig = Rig::start(SimOptions::default()).await;
    rig.sim.set_job(Vendor::Replicate, "a", "starting");
    rig.sim.fault(FaultTarget::Polls, Fault::status(429), 1);
    let limited = rig.get("/v1/predictions/a").await;
    assert!(limited.status == 429 && limited.headers.get(RETRY_AFTER).is_none());
    rig.sim.fault(FaultTarget::Clip("a".into()), Fault::Field(RETRY_AFTER, HeaderValue::from_static("7")), 1);
    let hinted = rig.get("/v1/predictions/a").await;
    assert_eq!(
        (hinted.status, &hinted.headers[RETRY_AFTER]),
        (StatusCode::OK, &HeaderValue::from_static("7"))
    );
    assert!(rig.get("/v1/predictions/a").await.headers.get(RETRY_AFTER).is_none());
}

#[tokio::test]
async fn a_slow_fault_delays_a_response_and_not_the_state_in_it() {
    let mut rig = Rig::start(SimOptions::default()).await;
    rig.sim.set_job(Vendor::Replicate, "a", "starting");
    let after = Duration::from_millis(300);
    rig.sim.fault(FaultTarget::Polls, Fault::Slow { after }, 1);
    let start = clock::now();
    let slow = rig.spawn_get("/v1/predictions/a");
    rig.wait_until(|seen| seen.requests.len() == 1 && seen.open == 1).await;
    rig.sim.set_job(Vendor::Replicate, "a", "succeeded");
    assert_eq!(slow.await.unwrap().unwrap().json()["status"], "starting");
    assert!(start.elapsed() >= after);
}
