//! Routes of the admin listener: methods, access, contents, and answers while the data path is stuck.

use std::time::Duration;

use bytes::Bytes;
use clipgate::testing::config::AuthMode;
use clipgate::testing::secret::Secret;
use http::Response;
use http_body_util::{BodyExt as _, Empty};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::Value;

use crate::clients::team::member;
use crate::harness::admin_client::{AdminClient, field, json, text};
use crate::harness::gateway::{
    TestGateway, clip_target, clips_target, join_all, set_hold, set_status_of_all, within_secs,
};

const LONG: Duration = Duration::from_secs(60);

/// Asserts that an error has the JSON shape of the gateway's errors.
fn assert_error(response: &Response<Bytes>, status: u16, path: &str) {
    assert_eq!(response.status(), status, "{path}: {}", text(response));
    let body = json(response);
    assert_eq!((&body["statusCode"], &body["path"]), (&status.into(), &path.into()));
    assert_eq!(body["requestId"], field(response, "x-request-id"));
    assert!(body["message"].is_string() && body["timestamp"].is_string(), "{body}");
    assert_eq!(field(response, "cache-control"), "no-store");
}

#[tokio::test]
async fn each_route_accepts_only_its_methods() {
    let mut gateway = TestGateway::new().await;
    let admin = AdminClient::open(&mut gateway).await;
    let rows = [
        ("/healthz", "GET, HEAD", "text/plain; charset=utf-8"),
        ("/readyz", "GET, HEAD", "text/plain; charset=utf-8"),
        ("/metrics", "GET, HEAD", "text/plain; version=0.0.4; charset=utf-8"),
        ("/api/state", "GET, HEAD", "application/json"),
        ("/api/history", "GET, HEAD", "application/json"),
        ("/api/cache", "DELETE", "application/json"),
        ("/api/cache/a", "DELETE", "application/json"),
    ];
    for (path, allowed, kind) in rows {
        for method in ["GET", "HEAD", "DELETE", "POST", "PUT", "OPTIONS"] {
            let response = admin.send(method, path, &[]).await;
            if allowed.split(", ").any(|allowed| allowed == method) {
                assert_eq!(response.status(), 200, "{method} {path}");
                assert_eq!(field(&response, "content-type"), kind, "{method} {path}");
                assert_eq!(response.body().is_empty(), method == "HEAD", "{method} {path}");
                assert_eq!(field(&response, "x-content-type-options"), "nosniff");
            } else {
                assert_eq!(
                    (response.status().as_u16(), field(&response, "allow")),
                    (405, allowed),
                    "{method} {path}"
                );
                if method != "HEAD" {
                    assert_error(&response, 405, path);
                }
            }
        }
    }
    for path in ["/x", "/metrics/x", "/api", "/api/cache/a/../b/x?y"] {
        let response = admin.get(path).await;
        assert!([404, 405].contains(&response.status().as_u16()), "{path}");
    }
    assert_error(&admin.get("/nothing").await, 404, "/nothing");
    assert_error(&admin.send("DELETE", "/api/cache/", &[]).await, 400, "/api/cache/");
    let response = admin.send("GET", "/healthz", &[("x-request-id", "mine-1")]).await;
    assert_eq!(field(&response, "x-request-id"), "mine-1");
    assert_eq!(gateway.upstream_requests().len(), 0, "no request reaches the upstream");
}

#[tokio::test]
async fn readiness_follows_the_gateway_and_health_does_not() {
    let mut gateway = TestGateway::new().await;
    let admin = AdminClient::open(&mut gateway).await;
    let of = async |path: &str| {
        let response = admin.get(path).await;
        (response.status().as_u16(), text(&response).to_owned())
    };
    assert_eq!(of("/readyz").await, (200, "ready\n".to_owned()));
    assert_eq!(admin.state().await["phase"], "ready");
    admin.readiness.draining();
    assert_eq!(of("/readyz").await, (503, "draining\n".to_owned()));
    assert_eq!(of("/healthz").await, (200, "ok\n".to_owned()));
    assert_eq!(admin.state().await["phase"], "draining");
}

#[tokio::test]
async fn with_a_token_all_routes_but_health_require_it() {
    let token = "cg-admin-recognise-me";
    let mut gateway = TestGateway::with(|config, _| config.admin.token = Some(Secret::new(token))).await;
    let admin = AdminClient::open(&mut gateway).await;
    let bearer = format!("Bearer {token}");
    // ops:cg-admin-recognise-me
    let basic = "Basic b3BzOmNnLWFkbWluLXJlY29nbmlzZS1tZQ==";
    let paths = ["/metrics", "/api/state", "/api/history", "/api/events", "/api/cache", "/nothing"];
    for path in paths {
        for wrong in ["", "Bearer cg-admin-recognise-m", "Bearer x", "Basic b3BzOng=", token] {
            let response = admin.send("GET", path, &[("authorization", wrong)]).await;
            assert_error(&response, 401, path);
            let challenges: Vec<_> = response.headers().get_all("www-authenticate").iter().collect();
            assert_eq!(
                challenges,
                ["Bearer realm=\"clipgate\"", "Basic realm=\"clipgate\", charset=\"UTF-8\""]
            );
            assert!(!format!("{response:?}").contains("recognise"), "{response:?}");
        }
        if path == "/api/events" {
            continue; // does not end
        }
        for right in [bearer.as_str(), basic] {
            let fields = [("authorization", right), ("host", "gw.example")];
            let status = admin.send("GET", path, &fields).await.status().as_u16();
            assert!([200, 404, 405].contains(&status), "{path} {status}");
        }
    }
    for open in ["/healthz", "/readyz"] {
        assert_eq!(admin.send("GET", open, &[("host", "gw.example")]).await.status(), 200, "{open}");
    }
}

#[tokio::test]
async fn without_a_token_pages_of_other_sites_are_rejected() {
    let mut gateway = TestGateway::new().await;
    let admin = AdminClient::open(&mut gateway).await;
    gateway.sim.set_status("a", "completed");
    gateway.get(&clip_target("a", "completed"), &[]).await;
    let own = format!("http://{}", admin.address);
    let rebound = [("host", "evil.example")];
    for path in ["/metrics", "/api/state", "/api/history", "/api/events", "/api/cache/a"] {
        assert_error(&admin.send("GET", path, &rebound).await, 421, path);
    }
    for fields in [
        &[("origin", "http://evil.example")][..],
        &[("origin", "null")],
        &[("sec-fetch-site", "cross-site")],
        &[("sec-fetch-site", "same-site")],
    ] {
        assert_error(&admin.send("DELETE", "/api/cache", fields).await, 403, "/api/cache");
    }
    assert!(gateway.get(&clip_target("a", "completed"), &[]).await.is_hit(), "no entry was removed");
    let fields = [("origin", own.as_str()), ("sec-fetch-site", "same-origin")];
    assert_eq!(admin.send("DELETE", "/api/cache", &fields).await.status(), 200);
    assert!(!gateway.get(&clip_target("a", "completed"), &[]).await.is_hit());
}

#[tokio::test]
async fn removed_jobs_are_requested_again() {
    let mut gateway = TestGateway::new().await;
    let admin = AdminClient::open(&mut gateway).await;
    set_status_of_all(&gateway, &["a", "b", "c/d"], "completed");
    let keys = ["Bearer one", "Bearer two"];
    let ask = async |id: &str, key: &str| {
        let response = gateway.get(&clip_target(id, "completed"), &[("authorization", key)]).await;
        assert_eq!(response.status, 200);
        response.is_hit()
    };
    for key in keys {
        for id in ["a", "b", "c%2Fd"] {
            assert!(!ask(id, key).await);
            assert!(ask(id, key).await);
        }
    }
    let remove = async |path: &str| json(&admin.send("DELETE", path, &[]).await)["removed"].clone();
    assert_eq!(remove("/api/cache/a").await, 2);
    assert_eq!(remove("/api/cache/a").await, 0);
    assert_eq!(remove("/api/cache/c%2Fd").await, 2);
    for key in keys {
        assert!(!ask("a", key).await && ask("a", key).await, "{key}");
        assert!(ask("b", key).await, "{key}: another job stays");
        assert!(!ask("c%2Fd", key).await, "{key}");
    }
    assert_eq!(admin.state().await["cache"]["entries"], 6);
    assert_eq!(remove("/api/cache").await, 6);
    assert_eq!(admin.state().await["cache"]["entries"], 0);
    for key in keys {
        for id in ["a", "b", "c%2Fd"] {
            assert!(!ask(id, key).await, "{id} {key}");
        }
    }
}

#[tokio::test]
async fn the_state_lists_waits_polls_jobs_and_keys() {
    let mut gateway = TestGateway::with_hold(LONG).await;
    let admin = AdminClient::open(&mut gateway).await;
    let state = admin.state().await;
    assert_eq!(state["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(state["listen"], serde_json::json!([gateway.address.to_string()]));
    let ladder = ["submitted", "queued", "streaming", "completed"];
    assert_eq!(state["routes"], serde_json::json!([{ "name": "suno", "ladder": ladder }]));
    assert_eq!(state["jobs"], serde_json::json!({ "items": [], "total": 0 }));
    assert!(state["upstream"]["answered_at"].is_null() && state["upstream"]["failed"].is_null());

    set_status_of_all(&gateway, &["a", "b"], "queued");
    let key = [("authorization", "Bearer sk-recognise-me")];
    let mut waits = vec![gateway.spawn_get(&clip_target("a", "streaming"), &key)];
    gateway.wait_until(|seen| seen.open == 1).await;
    waits.extend((0..2).map(|_| gateway.spawn_get(&clip_target("a", "completed"), &key)));
    gateway.wait_until_parked(3).await;
    waits.push(gateway.spawn_get(&clips_target(&["a", "b"], "completed"), &key));
    gateway.wait_until_parked(4).await;
    gateway.wait_until(|seen| seen.open == 2).await;

    let state = admin.state().await;
    assert_eq!(state["complete"], true);
    assert_eq!(state["waits"]["parked"], 4);
    assert_eq!((&state["polls"]["open"], &state["polls"]["waiting"]), (&2.into(), &0.into()));
    assert_eq!(state["jobs"]["total"], 2);
    let jobs = state["jobs"]["items"].as_array().unwrap();
    let of = |id: &str| jobs.iter().find(|job| job["id"] == id).unwrap();
    assert_eq!(jobs[0]["id"], "a", "the oldest first");
    assert_eq!((&of("a")["waits"], &of("b")["waits"]), (&4.into(), &1.into()));
    assert_eq!(of("a")["asked"], serde_json::json!(["streaming", "completed"]));
    assert!(of("a")["polls"].as_u64().unwrap() >= 1 && of("a")["rung"].is_null());
    assert!(of("a")["age_seconds"].as_f64().unwrap() >= of("b")["age_seconds"].as_f64().unwrap());
    assert_eq!((&state["keys"]["total"], &state["keys"]["items"][0]["waits"]), (&1.into(), &4.into()));
    let name = state["keys"]["items"][0]["name"].as_str().unwrap();
    assert!(name.len() == 8 && name.bytes().all(|byte| byte.is_ascii_hexdigit()), "a short digest: {name}");
    assert!(!state.to_string().contains("recognise"), "{state}");

    set_status_of_all(&gateway, &["a", "b"], "completed");
    join_all(waits).await;
    let state = admin.state().await;
    assert_eq!((&state["waits"]["parked"], &state["jobs"]["total"]), (&0.into(), &0.into()));
    assert_eq!(state["keys"]["total"], 0);
    let requests = &state["totals"]["requests"];
    let opened = requests["opened"].as_u64().unwrap();
    assert_eq!(opened + requests["coalesced"].as_u64().unwrap(), 4, "{requests}");
    assert_eq!(state["totals"]["saved"], requests["coalesced"]);
    assert_eq!(
        state["totals"]["calls"]["poll"].as_u64().unwrap() as usize,
        gateway.upstream_requests().len()
    );
    assert!(state["upstream"]["answered_at"].is_string());
}

#[tokio::test]
async fn members_are_listed_by_name_with_their_quotas() {
    let mut gateway = TestGateway::with(|config, options| {
        set_hold(LONG, config, options);
        config.auth.mode = AuthMode::Team(vec![
            member(("alice", "cg_recognise-a", "sk-recognise")),
            member(("bob", "cg_recognise-b", "sk-recognise")),
            member(("carol", "cg_recognise-c", "sk-recognise-too")),
        ]);
        config.limits.requests_per_second = 1;
        config.limits.burst = 100;
    })
    .await;
    let admin = AdminClient::open(&mut gateway).await;
    gateway.sim.set_status("a", "queued");
    let ask = |token: &str| {
        let authorization = format!("Bearer {token}");
        gateway.spawn_get(&clip_target("a", "completed"), &[("authorization", authorization.as_str())])
    };
    let _waits = [ask("cg_recognise-b"), ask("cg_recognise-b"), ask("cg_recognise-a")];
    gateway.wait_until_parked(3).await;
    let state = admin.state().await;
    let keys = state["keys"]["items"].as_array().unwrap();
    let names: Vec<_> = keys.iter().map(|key| key["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["bob", "alice", "carol"], "those with the most waits first");
    let waits: Vec<_> = keys.iter().map(|key| key["waits"].as_u64().unwrap()).collect();
    assert_eq!(waits, [2, 1, 0]);
    assert_eq!(keys[0]["key"], keys[1]["key"]);
    assert_ne!(keys[0]["key"], keys[2]["key"]);
    let left = |key: &Value| key["requests"]["left"].as_u64().unwrap();
    assert_eq!(left(&keys[2]), 100);
    assert!((98..100).contains(&left(&keys[0])), "{}", keys[0]);
    assert_eq!((&keys[0]["requests"]["burst"], &keys[0]["requests"]["per_second"]), (&100.into(), &1.into()));
    assert!(keys[0]["calls"]["left"].is_number());
    assert!(!state.to_string().contains("recognise"), "{state}");
}

#[tokio::test]
async fn events_have_the_state_each_second_and_the_history_has_earlier_samples() {
    let mut gateway = TestGateway::with_hold(LONG).await;
    let admin = AdminClient::open(&mut gateway).await;
    let mut stream = EventReader::open(&admin, "/api/events").await;
    assert_eq!(stream.state().await["waits"]["parked"], 0);
    gateway.sim.set_status("a", "queued");
    let _wait = gateway.spawn_get(&clip_target("a", "completed"), &[]);
    gateway.wait_until_parked(1).await;
    within_secs(20, async { while stream.state().await["waits"]["parked"] != 1 {} }).await;
    assert!(stream.read.starts_with("retry: 2000\nevent: state\ndata: {"), "{:.80}", stream.read);

    let history = json(&admin.get("/api/history").await);
    let samples = history.as_array().unwrap();
    assert!(!samples.is_empty() && samples.len() <= 180);
    let first = &samples[0];
    assert!(first["at"].is_string() && first["totals"]["requests"]["hit"].is_number(), "{first}");
    assert_eq!((&first["waits"], &first["polls"]), (&0.into(), &0.into()));
}

#[tokio::test]
async fn event_streams_are_limited_and_free_their_slot_when_they_end() {
    let mut gateway = TestGateway::new().await;
    let admin = AdminClient::open(&mut gateway).await;
    let mut streams = Vec::new();
    for _ in 0..32 {
        streams.push(EventReader::open(&admin, "/api/events").await);
    }
    let rejected = admin.get("/api/events").await;
    assert_error(&rejected, 503, "/api/events");
    assert_eq!(field(&rejected, "retry-after"), "5");
    assert_eq!(admin.get("/healthz").await.status(), 200, "other routes are answered");
    drop(streams);
    within_secs(20, async { while !EventReader::may_open(&admin, "/api/events").await {} }).await;
}

#[test]
fn health_checks_are_answered_while_the_data_path_is_stuck() {
    let (send_address, address) = std::sync::mpsc::channel();
    let (release, blocked) = std::sync::mpsc::channel::<()>();
    let data_path = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async move {
            let mut gateway = TestGateway::new().await;
            let admin = AdminClient::open(&mut gateway).await;
            gateway.sim.set_status("a", "completed");
            gateway.get(&clip_target("a", "completed"), &[]).await;
            send_address.send(admin.address).unwrap();
            // Blocks the whole runtime of the gateway.
            let _ = blocked.recv();
            drop(admin);
        });
    });
    let address = address.recv().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(within_secs(20, async {
        let admin = AdminClient::at(address);
        for path in ["/healthz", "/readyz", "/metrics", "/api/history"] {
            assert_eq!(admin.get(path).await.status(), 200, "{path}");
        }
        // More than the requests that may wait for the hub at a time.
        for _ in 0..6 {
            let state = admin.state().await;
            assert_eq!(state["complete"], false);
            assert_eq!(state["totals"]["requests"]["opened"], 1, "counters need no hub");
        }
        let removed = admin.send("DELETE", "/api/cache", &[]).await;
        assert_eq!(json(&removed)["removed"], 1);
    }));
    drop(release);
    data_path.join().unwrap();
}

/// An open event stream.
struct EventReader {
    body: hyper::body::Incoming,
    read: String,
    taken: usize,
}

impl EventReader {
    async fn open(admin: &AdminClient, path: &str) -> Self {
        let response = Self::ask(admin, path).await;
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        Self { body: response.into_body(), read: String::new(), taken: 0 }
    }

    async fn may_open(admin: &AdminClient, path: &str) -> bool {
        Self::ask(admin, path).await.status() == 200
    }

    async fn ask(admin: &AdminClient, path: &str) -> Response<hyper::body::Incoming> {
        let client: Client<HttpConnector, Empty<Bytes>> = Client::builder(TokioExecutor::new()).build_http();
        let uri = format!("http://{}{path}", admin.address).parse().unwrap();
        within_secs(20, client.get(uri)).await.unwrap()
    }

    /// Returns the next state.
    async fn state(&mut self) -> Value {
        loop {
            let rest = &self.read[self.taken..];
            if let Some(end) = rest.find("}\n\n") {
                let event = &rest[..=end];
                let state = serde_json::from_str(event.split_once("data: ").unwrap().1).unwrap();
                self.taken += end + 3;
                return state;
            }
            let frame = within_secs(20, self.body.frame()).await.expect("the stream continues").unwrap();
            self.read.push_str(std::str::from_utf8(frame.data_ref().unwrap()).unwrap());
        }
    }
}
