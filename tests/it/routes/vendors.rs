//! Presets from a configuration file, in front of the upstream that each is for.

use std::time::Duration;

use clipgate::sim::{Fault, FaultTarget, Vendor};
use clipgate::testing::config::preset;
use serde_json::Value;

use crate::harness::gateway::{Answer, TestGateway};
use crate::harness::raw_http::{assert_gateway_error, field, request};
use crate::routes::config_file::{config_from, preset_with};
use crate::routes::job_upstream::{JobUpstream, Reply};

const MILLIS: fn(u64) -> Duration = Duration::from_millis;
const FAST: &str = "pace = \"50ms\"\nmax_pace = \"50ms\"";
/// SHA-256 of the token `cg_token`.
const TOKEN_SHA256: &str = "a3dc991be6c4a5e20f0fcbb5a673b5e9bd39ca9264b0296897a7361bc9135deb";
const KEY: (&str, &str) = ("authorization", "Bearer demo");

fn word(answer: &Answer) -> String {
    let body: Value = serde_json::from_slice(&answer.body).unwrap();
    body["status"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_failed_job_of_runpod_that_is_retried_is_in_the_queue_again() {
    const JOB: &str = "/v2/endpoint/status/a";
    let routes = preset_with("runpod", FAST);
    let gateway = TestGateway::with(|config, options| {
        config.routes = routes;
        (options.speed, options.error_rate) = (40.0, 0.0);
    })
    .await;
    gateway.sim.set_job(Vendor::RunPod, "a", "FAILED");
    assert_eq!(word(&gateway.get(JOB, &[("prefer", "wait=20")]).await), "FAILED");
    let cached = gateway.get(JOB, &[]).await;
    assert!(cached.is_hit(), "a terminal state is kept: {cached:?}");
    let retried = gateway.send(request("POST", "/v2/endpoint/retry/a", &[KEY], "")).await;
    assert_eq!(retried.status, 200);
    let anew = gateway.get(JOB, &[]).await;
    assert!(!anew.is_hit() && word(&anew).starts_with("IN_"), "{anew:?}");
    let ended = gateway.get(JOB, &[("prefer", "wait=20")]).await;
    assert_eq!(word(&ended), "COMPLETED");
    assert!(gateway.get(JOB, &[]).await.is_hit());
}

#[tokio::test]
async fn a_wait_of_runpod_sees_a_failure_and_its_retry_as_two_states() {
    const JOB: &str = "/v2/endpoint/status/a";
    let routes = preset_with("runpod", FAST);
    let gateway = TestGateway::with(|config, _| config.routes = routes).await;
    gateway.sim.set_job(Vendor::RunPod, "a", "IN_PROGRESS");
    let waiting = gateway.spawn_get(JOB, &[("prefer", "wait=20")]);
    gateway.wait_until_parked(1).await;
    gateway.sim.set_job(Vendor::RunPod, "a", "IN_QUEUE");
    let before = gateway.sim.requests().len();
    gateway.wait_until(|seen| seen.requests.len() >= before + 3).await;
    assert!(!waiting.is_finished(), "a job that is requeued has not ended");
    gateway.sim.set_job(Vendor::RunPod, "a", "FAILED");
    assert_eq!(word(&waiting.await.unwrap()), "FAILED");
}

#[tokio::test]
async fn an_error_of_fal_beside_the_word_of_success_is_a_failure_with_its_code() {
    const JOB: &str = "/fal-ai/flux/requests/a/status";
    let upstream = JobUpstream::start().await;
    let gateway = upstream.gateway(preset_with("fal", FAST)).await;
    let reply = |code, body: &str| Reply::new(code, body).with_field("content-type", "application/json");
    let key = ("authorization", "Key demo");
    upstream.set("GET", JOB, reply(202, r#"{"status":"IN_PROGRESS","error":"the first attempt failed"}"#));
    let waiting = gateway.spawn_get(JOB, &[key, ("prefer", "wait=20")]);
    upstream.wait_until_requests(3).await;
    assert!(!waiting.is_finished(), "an error on the way is not the end");
    let failed = r#"{"status":"COMPLETED","error":"no such model"}"#;
    upstream.set("GET", JOB, reply(202, failed));
    let waited = waiting.await.unwrap();
    assert_eq!((waited.status.as_u16(), &*waited.body), (202, failed.as_bytes()));
    let count = upstream.requests().len();
    let cached = gateway.get(JOB, &[key]).await;
    assert_eq!((cached.status.as_u16(), &*cached.body, cached.is_hit()), (202, failed.as_bytes(), true));
    assert_eq!(upstream.requests().len(), count);
    let max_age: u64 = field(&cached, "cache-control")
        .split("max-age=")
        .nth(1)
        .and_then(|rest| rest.split(',').next()?.parse().ok())
        .unwrap_or_else(|| panic!("{cached:?}"));
    assert!(
        max_age <= gateway.config().cache.error_ttl.as_secs(),
        "error_ttl, not completed_ttl: {cached:?}"
    );
}

#[tokio::test]
async fn a_snapshot_in_flight_when_a_delete_is_answered_is_not_the_answer() {
    const JOB: &str = "/v1/predictions/a";
    let routes = preset_with("replicate", FAST);
    let gateway = TestGateway::with(|config, _| config.routes = routes).await;
    gateway.sim.set_job(Vendor::Replicate, "a", "succeeded");
    gateway.sim.fault(FaultTarget::Polls, Fault::Slow { after: MILLIS(600) }, 1);
    let before = gateway.spawn_get(JOB, &[("prefer", "wait=20")]);
    gateway.wait_until(|seen| seen.requests.len() == 1).await;
    let deleted = gateway.send(request("DELETE", JOB, &[KEY], "")).await;
    assert_eq!(deleted.status, 204);
    assert_eq!(gateway.get(JOB, &[("prefer", "wait=20")]).await.status, 404);
    assert_eq!(before.await.unwrap().status, 404);
    tokio::time::sleep(MILLIS(800)).await;
    assert_eq!(gateway.get(JOB, &[]).await.status, 404, "the late state is not kept");
}

#[tokio::test]
async fn segments_of_fal_that_servers_may_read_in_two_ways_are_passed_through() {
    let upstream = JobUpstream::start().await;
    let gateway = upstream.gateway(preset_with("fal", FAST)).await;
    let long = "x".repeat(513);
    for path in [
        "/fal-ai/flux/requests/a%2Fb/status".to_owned(),
        "/fal-ai/a%2fb/requests/a/status".to_owned(),
        "/fal-ai/../requests/a/status".to_owned(),
        "/fal-ai/%2e%2E/requests/a/status".to_owned(),
        "/./flux/requests/a/status".to_owned(),
        "/fal-ai//requests/a/status".to_owned(),
        "//flux/requests/a/status".to_owned(),
        "/fal-ai/flux/requests//status".to_owned(),
        format!("/fal-ai/flux/requests/{long}/status"),
    ] {
        for fields in [&[][..], &[("prefer", "wait=20")]] {
            let answer = gateway.get(&path, fields).await;
            let cache_status = field(&answer, "cache-status");
            assert_eq!((answer.status.as_u16(), cache_status), (404, "clipgate; fwd=bypass"), "{path}");
            assert_eq!(upstream.requests().last().unwrap(), &format!("GET {path}"));
        }
    }
}

#[tokio::test]
async fn a_team_token_in_x_key_is_replaced_by_the_key_that_bfl_expects() {
    let upstream = JobUpstream::start().await;
    let lines = preset("bfl").unwrap().lines().replace("[auth]", "[auth]\nmode = \"team\"");
    let member = format!(
        "[[team.members]]\nname = \"ann\"\ntoken_sha256 = \"{TOKEN_SHA256}\"\nupstream_key = \"sk-account\"\n"
    );
    let loaded = config_from(&format!("{lines}\n{member}"));
    let gateway =
        upstream.gateway_with(loaded.routes.clone(), |config| config.auth = loaded.auth.clone()).await;
    let target = "/v1/get_result?id=a";
    let ready = Reply::new(200, r#"{"id":"a","status":"Ready","result":{}}"#);
    upstream.set("GET", target, ready.with_field("content-type", "application/json"));
    for fields in [&[("x-key", "cg_token")][..], &[("x-key", "cg_token"), ("authorization", "Bearer own")]] {
        let answer = gateway.send(request("GET", target, fields, "")).await;
        assert_eq!((answer.status.as_u16(), word(&answer)), (200, "Ready".to_owned()), "{answer:?}");
    }
    assert_eq!(upstream.requests().len(), 1, "the second is a hit");
    let sent = upstream.last_fields();
    assert_eq!((&sent["x-key"], sent.get("authorization")), (&"sk-account".parse().unwrap(), None));
    let rejected = gateway.send(request("GET", target, &[("authorization", "Bearer cg_token")], "")).await;
    assert_gateway_error(&rejected, 401, "no-token");
}
