//! What one key, one refusal or one odd answer must not do to others (contract, sections 3 and 4: P8, P11, P12).

use std::sync::Arc;

use http::Uri;
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio_util::task::AbortOnDropHandle;

use crate::harness::gateway::{Answer, TestGateway, clip_target, clips_target};
use crate::harness::raw_http::{CLIP, assert_gateway_error, field, request};

/// An upstream that answers each request with what a function makes of its head, on a connection of its own.
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

    fn asked(&self) -> usize {
        self.heads.lock().len()
    }

    async fn stage(&self) -> TestGateway {
        let url = self.url.clone();
        TestGateway::without_upstream(|config, _| config.upstream.base_url = url).await
    }
}

/// An answer of JSON.
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

/// Lists of ann are wrapped in the name of her workspace, those of bob are arrays, those of cat maps.
fn shaped_by_key(head: &str) -> String {
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
async fn a_list_comes_in_the_outer_shape_that_the_upstream_uses_for_its_own_key() {
    let upstream = FunctionUpstream::start(shaped_by_key).await;
    let stage = upstream.stage().await;
    let both = clips_target(&["a", "b"], "completed");
    let (a, b) = (clip("a"), clip("b"));
    let rows = [
        (ANN, format!("{{\"workspace of ann\":[{a},{b}]}}")),
        (BOB, format!("[{a},{b}]")),
        (CAT, format!("{{\"a\":{a},\"b\":{b}}}")),
    ];
    for (key, expected) in &rows {
        assert_eq!(text(&stage.get(&both, &[*key]).await), expected, "asked");
    }
    let fresh = ("cache-control", "no-cache");
    for round in 0..2 {
        for (key, expected) in &rows {
            let hit = stage.get(&both, &[*key]).await;
            assert!(hit.is_hit(), "{hit:?}");
            assert_eq!(text(&hit), expected, "kept, round {round}");
        }
        for (key, expected) in rows.iter().rev() {
            assert_eq!(text(&stage.get(&both, &[*key, fresh]).await), expected, "asked again, round {round}");
        }
    }
}

#[tokio::test]
async fn a_key_that_was_answered_no_list_yet_gets_an_array_whatever_others_get() {
    let upstream = FunctionUpstream::start(shaped_by_key).await;
    let stage = upstream.stage().await;
    stage.get(&clips_target(&["a", "b"], "completed"), &[ANN]).await;
    for id in ["a", "b"] {
        stage.get(&clip_target(id, "completed"), &[CAT]).await;
    }
    let hit = stage.get(&clips_target(&["b", "a"], "completed"), &[CAT]).await;
    assert!(hit.is_hit(), "{hit:?}");
    assert_eq!(text(&hit), format!("[{},{}]", clip("b"), clip("a")));
}

#[tokio::test]
async fn a_403_removes_what_was_asked_for_and_makes_the_key_prove_itself_again() {
    // Requests that the upstream forbids, and whether they name the clip b.
    let asks =
        |method: &'static str, target: String, fields: &'static [(&str, &str)]| (method, target, fields);
    let fresh: &[_] = &[("cache-control", "no-cache")];
    let rows = [
        (asks("GET", clip_target("b", "completed"), fresh), true),
        (asks("GET", clips_target(&["b", "c"], "completed"), fresh), true),
        (
            asks(
                "GET",
                clip_target("b", "completed"),
                &[("cache-control", "no-cache"), ("accept", "text/event-stream")],
            ),
            true,
        ),
        (asks("GET", format!("{CLIP}?clip_id=b&unknown=1"), &[]), true),
        (asks("GET", format!("{CLIP}s?unknown=1&clip_ids%5B%5D=b"), &[]), true),
        (asks("GET", format!("{CLIP}s?clip_ids=c,b"), &[]), true),
        (asks("GET", clip_target("b", "completed"), &[("range", "bytes=0-1")]), true),
        (asks("HEAD", clip_target("b", "completed"), &[]), true),
        (asks("GET", "/v1/models".to_owned(), &[]), false),
        (asks("POST", CLIP.to_owned(), &[]), false),
        (asks("GET", format!("{CLIP}/lyric?clip_id=b"), &[]), false),
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
    let stage = upstream.stage().await;
    let mut count = 0;
    for ((method, target, fields), names_b) in rows {
        let shown = format!("{method} {target}");
        for id in ["a", "b"] {
            stage.get(&clip_target(id, "completed"), &[ANN]).await;
            stage.get(&clip_target(id, "completed"), &[BOB]).await;
            assert!(stage.get(&clip_target(id, "completed"), &[ANN, ONLY_CACHED]).await.is_hit(), "{shown}");
        }
        *is_forbidding.lock() = true;
        let fields: Vec<_> = fields.iter().copied().chain([ANN]).collect();
        let answer = stage.send(request(method, &target, &fields, "")).await;
        let is_stream = field(&answer, "content-type") == "text/event-stream";
        assert!(answer.status == 403 || is_stream, "{shown}: {answer:?}");
        *is_forbidding.lock() = false;

        let unproven = stage.get(&clip_target("a", "completed"), &[ANN, ONLY_CACHED]).await;
        assert_gateway_error(&unproven, 504, "not-cached");
        stage.get(&clip_target("d", "completed"), &[ANN, ("cache-control", "no-store")]).await;
        let a = stage.get(&clip_target("a", "completed"), &[ANN, ONLY_CACHED]).await;
        assert!(a.is_hit(), "{shown}: what was not asked for is kept: {a:?}");
        let b = stage.get(&clip_target("b", "completed"), &[ANN, ONLY_CACHED]).await;
        assert_eq!(b.is_hit(), !names_b, "{shown}: {b:?}");
        assert!(
            stage.get(&clip_target("b", "completed"), &[BOB, ONLY_CACHED]).await.is_hit(),
            "another key's"
        );
        count += 1;
    }
    assert_eq!(count, 11);
}

#[tokio::test]
async fn a_poll_that_began_before_a_403_neither_proves_its_key_nor_is_kept() {
    let stage = TestGateway::new().await;
    stage.sim.set_status("a", "streaming");
    let wait = stage.spawn_get(&clip_target("a", "completed"), &[]);
    stage.wait_until(|seen| seen.open == 1).await;
    stage.sim.fault(
        clipgate::sim::FaultTarget::Path("/v1/models".to_owned()),
        clipgate::sim::Fault::status(403),
        1,
    );
    assert_eq!(stage.get("/v1/models", &[]).await.status, 403);
    stage.sim.set_status("a", "completed");
    assert_eq!(wait.await.unwrap().status, 200);
    assert_gateway_error(&stage.get(&clip_target("a", "completed"), &[ONLY_CACHED]).await, 504, "not-cached");
    stage.sim.set_status("b", "completed");
    stage.get(&clip_target("b", "completed"), &[]).await;
    assert!(
        stage.get(&clip_target("b", "completed"), &[ONLY_CACHED]).await.is_hit(),
        "the key is proven again"
    );
    assert_gateway_error(&stage.get(&clip_target("a", "completed"), &[ONLY_CACHED]).await, 504, "not-cached");
}

#[tokio::test]
async fn only_a_200_with_the_whole_job_is_kept() {
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
    for (status, fields, code, is_kept) in rows {
        let upstream = FunctionUpstream::start(move |head| {
            let list = format!("[{},{}]", clip("a"), clip("b"));
            json(status, fields, &if head.contains("/clips?") { list } else { clip("a") })
        })
        .await;
        let stage = upstream.stage().await;
        let targets = [
            (clips_target(&["a", "b"], "completed"), format!("[{},{}]", clip("a"), clip("b"))),
            (clip_target("a", "completed"), clip("a")),
        ];
        let mut asked = 0;
        for (target, body) in &targets {
            let shown = format!("{status} {fields}{target}");
            let answer = stage.get(target, &[("cache-control", "max-age=0")]).await;
            asked += 1;
            assert_eq!(text(&answer), body, "{shown}");
            let stored = if is_kept { "; stored" } else { "" };
            let said = format!("clipgate; fwd=miss; fwd-status={code}{stored}");
            assert_eq!(field(&answer, "cache-status"), said, "{shown}");
            assert_eq!(!field(&answer, "etag").is_empty(), is_kept, "{shown}");
            assert_eq!(field(&answer, "cache-control") == "no-store", !is_kept, "{shown}");
            assert_eq!(field(&answer, "content-range"), "", "{shown}: it is no answer to a range");
            let again = stage.get(target, &[]).await;
            asked += usize::from(!is_kept);
            assert_eq!((again.is_hit(), text(&again)), (is_kept, body.as_str()), "{shown}");
            assert_eq!(upstream.asked(), asked, "{shown}");
        }
        count += 1;
    }
    assert_eq!(count, 9);
}
