//! One key, one rejection or one unusual response never affects other keys and jobs (P8, P11, P12).

use std::sync::Arc;

use http::Uri;
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio_util::task::AbortOnDropHandle;

use crate::harness::gateway::{Answer, TestGateway, clip_target, clips_target};
use crate::harness::raw_http::{CLIP, assert_gateway_error, field, request};

/// An upstream whose response is a function of the request head. Each connection carries one request.
struct FunctionUpstream {
    url: Uri,
    heads: Arc<Mutex<Vec<String>>>,
    _task: AbortOnDropHandle<()>,
}

impl FunctionUpstream {
    async fn start(answer: impl Fn(&str) -> String + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
        let (answer, heads) = (Arc::new(answer), Arc::new(Mutex::new(Vec::new())));
        let task = tokio::spawn({
            let heads = Arc::clone(&heads);
            async move {
                loop {
                    let (mut socket, _) = listener.accept().await.unwrap();
                    let (answer, heads) = (Arc::clone(&answer), Arc::clone(&heads));
                    tokio::spawn(async move {
                        let mut head = Vec::new();
                        while !head.ends_with(b"\r\n\r\n") {
                            if socket.read_buf(&mut head).await? == 0 {
                                return Ok(());
                            }
                        }
                        let head = String::from_utf8_lossy(&head).into_owned();
                        let answer = answer(&head);
                        heads.lock().push(head);
                        socket.write_all(answer.as_bytes()).await
                    });
                }
            }
        });
        Self { url, heads, _task: AbortOnDropHandle::new(task) }
    }

    fn request_count(&self) -> usize {
        self.heads.lock().len()
    }

    async fn gateway(&self) -> TestGateway {
        let url = self.url.clone();
        TestGateway::without_upstream(|config, _| config.upstream.base_url = url).await
    }
}

/// Returns a JSON response.
fn json(status: &str, fields: &str, body: &str) -> String {
    format!(
        "HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n{fields}connection: close\r\n\r\n{body}",
        body.len()
    )
}

fn clip(id: &str) -> String {
    format!("{{\"id\":\"{id}\",\"status\":\"complete\"}}")
}

const ANN: (&str, &str) = ("authorization", "Bearer ann");
const BOB: (&str, &str) = ("authorization", "Bearer bob");
const CAT: (&str, &str) = ("authorization", "Bearer cat");
const ONLY_CACHED: (&str, &str) = ("cache-control", "only-if-cached");

/// Returns lists for ann as an object with her workspace's name, for bob as arrays, for cat as maps.
fn format_by_key(head: &str) -> String {
    let list = || format!("[{},{}]", clip("a"), clip("b"));
    let body = if !head.contains("/clips?") {
        clip(if head.contains("clip_id=a") { "a" } else { "b" })
    } else if head.contains("Bearer ann") {
        format!("{{\"workspace of ann\":{}}}", list())
    } else if head.contains("Bearer bob") {
        list()
    } else {
        format!("{{\"a\":{},\"b\":{}}}", clip("a"), clip("b"))
    };
    json("200 OK", "", &body)
}

fn text(answer: &Answer) -> &str {
    assert_eq!(answer.status, 200, "{answer:?}");
    std::str::from_utf8(&answer.body).unwrap()
}

#[tokio::test]
async fn a_client_gets_lists_in_the_format_that_the_upstream_uses_for_its_key() {
    let upstream = FunctionUpstream::start(format_by_key).await;
    let gateway = upstream.gateway().await;
    let both = clips_target(&["a", "b"], "completed");
    let (a, b) = (clip("a"), clip("b"));
    let rows = [
        (ANN, format!("{{\"workspace of ann\":[{a},{b}]}}")),
        (BOB, format!("[{a},{b}]")),
        (CAT, format!("{{\"a\":{a},\"b\":{b}}}")),
    ];
    for (key, expected) in &rows {
        assert_eq!(text(&gateway.get(&both, &[*key]).await), expected, "first request");
    }
    let fresh = ("cache-control", "no-cache");
    for round in 0..2 {
        for (key, expected) in &rows {
            let hit = gateway.get(&both, &[*key]).await;
            assert!(hit.is_hit(), "{hit:?}");
            assert_eq!(text(&hit), expected, "hit, round {round}");
        }
        for (key, expected) in rows.iter().rev() {
            assert_eq!(text(&gateway.get(&both, &[*key, fresh]).await), expected, "fresh, round {round}");
        }
    }
}

#[tokio::test]
async fn a_key_without_a_list_so_far_gets_an_array() {
    let upstream = FunctionUpstream::start(format_by_key).await;
    let gateway = upstream.gateway().await;
    gateway.get(&clips_target(&["a", "b"], "completed"), &[ANN]).await;
    for id in ["a", "b"] {
        gateway.get(&clip_target(id, "completed"), &[CAT]).await;
    }
    let hit = gateway.get(&clips_target(&["b", "a"], "completed"), &[CAT]).await;
    assert!(hit.is_hit(), "{hit:?}");
    assert_eq!(text(&hit), format!("[{},{}]", clip("b"), clip("a")));
}

#[tokio::test]
async fn a_403_removes_the_named_jobs_and_suspends_hits_until_the_upstream_accepts_the_key() {
    // Requests that the upstream answers with 403, and whether they name the clip b.
    let request_to =
        |method: &'static str, target: String, fields: &'static [(&str, &str)]| (method, target, fields);
    let fresh: &[_] = &[("cache-control", "no-cache")];
    let rows = [
        (request_to("GET", clip_target("b", "completed"), fresh), true),
        (request_to("GET", clips_target(&["b", "c"], "completed"), fresh), true),
        (
            request_to(
                "GET",
                clip_target("b", "completed"),
                &[("cache-control", "no-cache"), ("accept", "text/event-stream")],
            ),
            true,
        ),
        (request_to("GET", format!("{CLIP}?clip_id=b&unknown=1"), &[]), true),
        (request_to("GET", format!("{CLIP}s?unknown=1&clip_ids%5B%5D=b"), &[]), true),
        (request_to("GET", format!("{CLIP}s?clip_ids=c,b"), &[]), true),
        (request_to("GET", clip_target("b", "completed"), &[("range", "bytes=0-1")]), true),
        (request_to("HEAD", clip_target("b", "completed"), &[]), true),
        (request_to("GET", "/v1/models".to_owned(), &[]), false),
        (request_to("POST", CLIP.to_owned(), &[]), false),
        (request_to("GET", format!("{CLIP}/lyric?clip_id=b"), &[]), false),
    ];
    let is_forbidding = Arc::new(Mutex::new(false));
    let upstream = FunctionUpstream::start({
        let is_forbidding = Arc::clone(&is_forbidding);
        move |head| {
            let id = ["a", "b", "c", "d"].into_iter().find(|id| head.contains(&format!("clip_id={id}&")));
            match *is_forbidding.lock() {
                true => json("403 Forbidden", "", "{\"message\":\"not yours\"}"),
                false => json("200 OK", "", &clip(id.unwrap_or("d"))),
            }
        }
    })
    .await;
    let gateway = upstream.gateway().await;
    let mut count = 0;
    for ((method, target, fields), names_b) in rows {
        let shown = format!("{method} {target}");
        for id in ["a", "b"] {
            gateway.get(&clip_target(id, "completed"), &[ANN]).await;
            gateway.get(&clip_target(id, "completed"), &[BOB]).await;
            assert!(
                gateway.get(&clip_target(id, "completed"), &[ANN, ONLY_CACHED]).await.is_hit(),
                "{shown}"
            );
        }
        *is_forbidding.lock() = true;
        let fields: Vec<_> = fields.iter().copied().chain([ANN]).collect();
        let answer = gateway.send(request(method, &target, &fields, "")).await;
        let is_stream = field(&answer, "content-type") == "text/event-stream";
        assert!(answer.status == 403 || is_stream, "{shown}: {answer:?}");
        *is_forbidding.lock() = false;

        let unproven = gateway.get(&clip_target("a", "completed"), &[ANN, ONLY_CACHED]).await;
        assert_gateway_error(&unproven, 504, "not-cached");
        gateway.get(&clip_target("d", "completed"), &[ANN, ("cache-control", "no-store")]).await;
        let a = gateway.get(&clip_target("a", "completed"), &[ANN, ONLY_CACHED]).await;
        assert!(a.is_hit(), "{shown}: a job that the request did not name stays: {a:?}");
        let b = gateway.get(&clip_target("b", "completed"), &[ANN, ONLY_CACHED]).await;
        assert_eq!(b.is_hit(), !names_b, "{shown}: {b:?}");
        assert!(
            gateway.get(&clip_target("b", "completed"), &[BOB, ONLY_CACHED]).await.is_hit(),
            "the entry of another key stays"
        );
        count += 1;
    }
    assert_eq!(count, 11);
}

#[tokio::test]
async fn a_poll_from_before_a_403_neither_proves_its_key_nor_is_stored() {
    let gateway = TestGateway::new().await;
    gateway.sim.set_status("a", "streaming");
    let wait = gateway.spawn_get(&clip_target("a", "completed"), &[]);
    gateway.wait_until(|seen| seen.open == 1).await;
    gateway.sim.fault(
        clipgate::sim::FaultTarget::Path("/v1/models".to_owned()),
        clipgate::sim::Fault::status(403),
        1,
    );
    assert_eq!(gateway.get("/v1/models", &[]).await.status, 403);
    gateway.sim.set_status("a", "completed");
    assert_eq!(wait.await.unwrap().status, 200);
    assert_gateway_error(
        &gateway.get(&clip_target("a", "completed"), &[ONLY_CACHED]).await,
        504,
        "not-cached",
    );
    gateway.sim.set_status("b", "completed");
    gateway.get(&clip_target("b", "completed"), &[]).await;
    assert!(
        gateway.get(&clip_target("b", "completed"), &[ONLY_CACHED]).await.is_hit(),
        "the upstream accepted the key again"
    );
    assert_gateway_error(
        &gateway.get(&clip_target("a", "completed"), &[ONLY_CACHED]).await,
        504,
        "not-cached",
    );
}

#[tokio::test]
async fn only_a_200_with_the_complete_job_is_stored() {
    let rows = [
        ("200 OK", "", 200, true),
        ("200 OK", "content-range: bytes 0-30/31\r\n", 200, false),
        ("201 Created", "", 201, false),
        ("202 Accepted", "", 202, false),
        ("203 Non-Authoritative Information", "", 203, false),
        ("206 Partial Content", "content-range: bytes 0-30/31\r\n", 206, false),
        ("206 Partial Content", "", 206, false),
        ("226 IM Used", "im: range\r\n", 226, false),
        ("299 Odd", "", 299, false),
    ];
    let mut count = 0;
    for (status, fields, code, is_stored) in rows {
        let upstream = FunctionUpstream::start(move |head| {
            let list = format!("[{},{}]", clip("a"), clip("b"));
            json(status, fields, &if head.contains("/clips?") { list } else { clip("a") })
        })
        .await;
        let gateway = upstream.gateway().await;
        let targets = [
            (clips_target(&["a", "b"], "completed"), format!("[{},{}]", clip("a"), clip("b"))),
            (clip_target("a", "completed"), clip("a")),
        ];
        let mut requests = 0;
        for (target, body) in &targets {
            let shown = format!("{status} {fields}{target}");
            let answer = gateway.get(target, &[("cache-control", "max-age=0")]).await;
            requests += 1;
            assert_eq!(text(&answer), body, "{shown}");
            let suffix = if is_stored { "; stored" } else { "" };
            let expected = format!("clipgate; fwd=miss; fwd-status={code}{suffix}");
            assert_eq!(field(&answer, "cache-status"), expected, "{shown}");
            assert_eq!(!field(&answer, "etag").is_empty(), is_stored, "{shown}");
            assert_eq!(field(&answer, "cache-control") == "no-store", !is_stored, "{shown}");
            assert_eq!(field(&answer, "content-range"), "", "{shown}: not a response to a range request");
            let again = gateway.get(target, &[]).await;
            requests += usize::from(!is_stored);
            assert_eq!((again.is_hit(), text(&again)), (is_stored, body.as_str()), "{shown}");
            assert_eq!(upstream.request_count(), requests, "{shown}");
        }
        count += 1;
    }
    assert_eq!(count, 9);
}
