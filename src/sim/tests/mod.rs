//! Tests of the simulated upstream over real sockets: the documented API, its debug endpoints and its faults.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method, Request, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::JoinSet;

use super::*;

mod debug_endpoints;
mod faults;
mod vendors;

/// Longer than any step of a test takes.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Long enough that a request is still held while another one is answered.
const LONG: Duration = Duration::from_secs(60);
const CLIP: &str = "/v2/generate/audio/suno-ai/clip";
const CLIPS: &str = "/v2/generate/audio/suno-ai/clips";

struct Rig {
    sim: Sim,
    at: SocketAddr,
    client: Client<HttpConnector, Full<Bytes>>,
    tasks: JoinSet<()>,
    stop: Option<oneshot::Sender<()>>,
}

#[derive(Debug)]
struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }
}

type Answered = Result<Answer, Box<dyn std::error::Error + Send + Sync>>;

impl Rig {
    async fn start(options: SimOptions) -> Self {
        Self::start_with(options, false).await
    }

    async fn start_with(options: SimOptions, http2: bool) -> Self {
        let sim = Sim::new(options);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        let mut tasks = JoinSet::new();
        tasks.spawn(sim.clone().serve(listener, async {
            let _ = stopped.await;
        }));
        let client = Client::builder(TokioExecutor::new())
            .retry_canceled_requests(false)
            .http2_only(http2)
            .build_http();
        Self { sim, at, client, tasks, stop: Some(stop) }
    }

    /// Holds polls longer than any test runs.
    async fn with_long_hold() -> Self {
        Self::start(SimOptions { hold: LONG, ..SimOptions::default() }).await
    }

    async fn with_hold_ms(hold: u64) -> Self {
        Self::start(SimOptions { hold: Duration::from_millis(hold), ..SimOptions::default() }).await
    }

    fn call(&self, request: Request<Full<Bytes>>) -> impl Future<Output = Answered> + Send + 'static {
        let client = self.client.clone();
        async move {
            tokio::time::timeout(TIMEOUT, async {
                let (head, body) = client.request(request).await?.into_parts();
                let body = body.collect().await?.to_bytes();
                Ok(Answer { status: head.status, headers: head.headers, body })
            })
            .await
            .expect("an answer within 10 s")
        }
    }

    fn request(&self, method: Method, target: &str) -> Request<Full<Bytes>> {
        let request = Request::builder().method(method).uri(format!("http://{}{target}", self.at));
        request.header("authorization", "Bearer key").body(Full::default()).unwrap()
    }

    fn try_get(&self, target: &str) -> impl Future<Output = Answered> + Send + 'static {
        self.call(self.request(Method::GET, target))
    }

    async fn get(&self, target: &str) -> Answer {
        self.try_get(target).await.unwrap()
    }

    /// Sends a request in a task of its own.
    fn spawn_get(&mut self, target: &str) -> oneshot::Receiver<Answered> {
        let (reply_to, reply) = oneshot::channel();
        let answered = self.try_get(target);
        self.tasks.spawn(async move {
            let _ = reply_to.send(answered.await);
        });
        reply
    }

    async fn wait_until(&self, condition: impl FnMut(&Observation) -> bool) {
        tokio::time::timeout(TIMEOUT, self.sim.wait_until(condition))
            .await
            .expect("the condition holds within 10 s");
    }

    async fn raw(&self, text: &str) -> TcpStream {
        let mut stream = TcpStream::connect(self.at).await.unwrap();
        stream.write_all(text.as_bytes()).await.unwrap();
        stream
    }

    async fn stop(mut self) {
        let _ = self.stop.take().unwrap().send(());
        tokio::time::timeout(TIMEOUT, async { while self.tasks.join_next().await.is_some() {} })
            .await
            .expect("the upstream stops within 10 s");
    }
}

fn one(id: &str, word: &str) -> String {
    format!("{CLIP}?clip_id={id}&status={word}")
}

fn many(ids: &[&str], word: &str) -> String {
    let ids: Vec<_> = ids.iter().map(|id| format!("clip_ids[]={id}")).collect();
    format!("{CLIPS}?{}&status={word}", ids.join("&"))
}

#[tokio::test]
async fn a_generation_request_creates_two_clips_on_the_lowest_rung() {
    let rig = Rig::with_long_hold().await;
    let made = rig.call(rig.request(Method::POST, CLIP)).await.unwrap();
    assert_eq!(made.status, StatusCode::CREATED);
    let ids: Vec<_> = made.json()["clip_ids"].as_array().unwrap().clone();
    assert_eq!(ids.len(), 2);
    assert_ne!(ids[0], ids[1]);
    for id in &ids {
        let id = id.as_str().unwrap();
        let lengths: Vec<_> = id.split('-').map(str::len).collect();
        assert_eq!(lengths, [8, 4, 4, 4, 12], "{id}");
        let clip = rig.get(&format!("{CLIP}?clip_id={id}")).await.json();
        assert_eq!((clip["id"].as_str(), clip["status"].as_str()), (Some(id), Some("submitted")));
    }
}

#[tokio::test]
async fn a_generated_clip_completes_at_the_configured_speed() {
    let rig =
        Rig::start(SimOptions { speed: 200.0, error_rate: 0.0, hold: LONG * 100, ..SimOptions::default() })
            .await;
    let made = rig.call(rig.request(Method::POST, CLIP)).await.unwrap().json();
    let start = clock::now();
    let done = rig.get(&one(made["clip_ids"][0].as_str().unwrap(), "completed")).await;
    assert_eq!(done.json()["status"], "complete");
    assert!((Duration::from_millis(250)..TIMEOUT).contains(&start.elapsed()), "{:?}", start.elapsed());
}

#[tokio::test]
async fn equal_seeds_generate_equal_clips() {
    let ids = async |seed| {
        let rig = Rig::start(SimOptions { seed, ..SimOptions::default() }).await;
        rig.call(rig.request(Method::POST, CLIP)).await.unwrap().json()["clip_ids"].clone()
    };
    assert_eq!(ids(5).await, ids(5).await);
    assert_ne!(ids(5).await, ids(6).await);
}

#[tokio::test]
async fn a_poll_is_held_until_its_clip_gets_there_and_has_the_clips_own_bytes() {
    let mut rig = Rig::with_long_hold().await;
    rig.sim.set_status("a", "queued");
    let mut poll = rig.spawn_get(&one("a", "streaming"));
    rig.wait_until(|seen| seen.open == 1).await;
    rig.sim.set_status("a", "queued");
    assert!(poll.try_recv().is_err());
    rig.sim.set_status("a", "streaming");
    let answer = poll.await.unwrap().unwrap();
    assert_eq!((answer.status, answer.body), (StatusCode::OK, rig.sim.body("a", "streaming")));
    assert_eq!(rig.sim.open(), 0);
}

#[tokio::test]
async fn a_poll_is_answered_at_once_by_a_higher_rung_an_error_or_an_unknown_word() {
    let rig = Rig::with_long_hold().await;
    for word in ["streaming", "completed", "error", "paused"] {
        rig.sim.set_status("a", word);
        let answer = rig.get(&one("a", "queued")).await;
        assert_eq!((answer.status, answer.body), (StatusCode::OK, rig.sim.body("a", word)), "{word}");
    }
    rig.sim.set_status("a", "error");
    assert_eq!(rig.get(&one("a", "completed")).await.json()["status"], "error");
}

#[tokio::test]
async fn a_request_without_a_status_gets_the_current_state_at_once() {
    let rig = Rig::with_long_hold().await;
    rig.sim.set_status("a", "queued");
    rig.sim.set_status("b", "submitted");
    assert_eq!(rig.get(&format!("{CLIP}?clip_id=a")).await.json()["status"], "queued");
    let both = rig.get(&format!("{CLIPS}?clip_ids[]=a&clip_ids[]=b")).await.json();
    assert_eq!((&both[0]["status"], &both[1]["status"]), (&"queued".into(), &"submitted".into()));
}

#[tokio::test]
async fn a_poll_gets_the_current_state_at_the_end_of_the_hold() {
    let rig = Rig::with_hold_ms(300).await;
    rig.sim.set_status("a", "queued");
    let start = clock::now();
    let answer = rig.get(&one("a", "completed")).await;
    assert_eq!((answer.status, answer.body), (StatusCode::OK, rig.sim.body("a", "queued")));
    assert!((Duration::from_millis(295)..TIMEOUT).contains(&start.elapsed()), "{:?}", start.elapsed());
}

#[tokio::test]
async fn speed_divides_the_hold() {
    let hold = Duration::from_secs(120);
    let rig = Rig::start(SimOptions { hold, speed: 600.0, ..SimOptions::default() }).await;
    rig.sim.set_status("a", "queued");
    assert_eq!(rig.get(&one("a", "completed")).await.json()["status"], "queued");
}

#[tokio::test]
async fn a_poll_for_several_clips_is_held_until_all_have_reached_the_status() {
    let mut rig = Rig::with_long_hold().await;
    rig.sim.set_status("a", "completed");
    rig.sim.set_status("b", "queued");
    rig.sim.set_status("c", "queued");
    let mut poll = rig.spawn_get(&many(&["c", "a", "b"], "streaming"));
    rig.wait_until(|seen| seen.open == 1).await;
    rig.sim.set_status("b", "error");
    let other = rig.get(&one("b", "streaming")).await;
    assert_eq!(other.json()["status"], "error");
    assert!(poll.try_recv().is_err());
    rig.sim.set_status("c", "streaming");
    let expected =
        [rig.sim.body("c", "streaming"), rig.sim.body("a", "complete"), rig.sim.body("b", "error")];
    let expected = [&b"["[..], &expected[0], b",", &expected[1], b",", &expected[2], b"]"].concat();
    assert_eq!(poll.await.unwrap().unwrap().body, expected);
}

#[tokio::test]
async fn a_clip_follows_its_schedule_which_may_skip_rungs() {
    let rig = Rig::with_long_hold().await;
    let start = clock::now();
    rig.sim
        .schedule("a", &[("streaming", Duration::from_millis(150)), ("error", Duration::from_millis(300))]);
    assert_eq!(rig.get(&one("a", "submitted")).await.json()["status"], "submitted");
    assert_eq!(rig.get(&one("a", "queued")).await.json()["status"], "streaming");
    assert_eq!(rig.get(&one("a", "completed")).await.json()["status"], "error");
    assert!((Duration::from_millis(300)..TIMEOUT).contains(&start.elapsed()), "{:?}", start.elapsed());
}

#[tokio::test]
async fn a_schedule_starts_at_the_current_status_and_set_status_ends_it() {
    let rig = Rig::with_hold_ms(300).await;
    rig.sim.set_status("a", "queued");
    rig.sim.schedule("a", &[("completed", Duration::from_millis(100))]);
    assert_eq!(rig.get(&format!("{CLIP}?clip_id=a")).await.json()["status"], "queued");
    rig.sim.set_status("a", "streaming");
    assert_eq!(rig.get(&one("a", "completed")).await.json()["status"], "streaming");
}

#[tokio::test]
async fn an_invalid_request_gets_an_error_in_the_documented_form() {
    let rig = Rig::with_long_hold().await;
    rig.sim.set_status("a", "queued");
    let seven = many(&["a", "b", "c", "d", "e", "f", "g"], "queued");
    let bad = [
        (one("a", "error"), 400),
        (one("a", "complete"), 400),
        (one("a", "done"), 400),
        (one("a", ""), 400),
        (one("a", "queued&status=queued"), 400),
        (one("", "queued"), 400),
        (one("a&clip_id=b", "queued"), 400),
        (format!("{CLIP}?status=queued"), 400),
        (CLIPS.to_owned(), 400),
        (seven, 400),
        (one("unknown", "queued"), 404),
        (many(&["a", "unknown"], "queued"), 404),
        (format!("{CLIP}/"), 404),
        ("/v1/models".to_owned(), 404),
        ("/sim/nothing".to_owned(), 404),
    ];
    for (target, status) in bad {
        let answer = rig.get(&target).await;
        assert_eq!(answer.status, status, "{target}");
        let error = answer.json();
        assert_eq!(error["statusCode"], status, "{target}");
        assert_eq!(error["path"], *target.split('?').next().unwrap());
        assert_eq!(error["requestId"], *answer.headers["x-request-id"].to_str().unwrap());
        assert!(error["message"].is_string() && error["timestamp"].as_str().unwrap().ends_with('Z'));
        assert_eq!(error.as_object().unwrap().len(), 5);
    }
    assert_eq!(rig.call(rig.request(Method::PUT, CLIP)).await.unwrap().status, 404);
}

#[tokio::test]
async fn the_upstream_parses_the_usual_spellings_of_id_lists() {
    let rig = Rig::with_long_hold().await;
    rig.sim.set_status("a b", "queued");
    rig.sim.set_status("c", "queued");
    for query in [
        "clip_ids[]=a+b&clip_ids[]=c",
        "clip_ids%5B%5D=a%20b&clip_ids[1]=c&x=1",
        "clip_ids=a+b&clip_ids=c&clip_ids=c",
    ] {
        let clips = rig.get(&format!("{CLIPS}?{query}")).await.json();
        let ids: Vec<_> = clips.as_array().unwrap().iter().map(|clip| &clip["id"]).collect();
        assert_eq!(ids, ["a b", "c"], "{query}");
    }
}

#[tokio::test]
async fn the_upstream_accepts_any_key_by_default_but_requires_one() {
    let rig = Rig::with_long_hold().await;
    rig.sim.set_status("a", "queued");
    for (field, status) in
        [(Some("Bearer x"), 200), (Some("Bearer "), 401), (Some("Basic x"), 401), (None, 401)]
    {
        let mut request = rig.request(Method::GET, &one("a", "queued"));
        request.headers_mut().remove("authorization");
        if let Some(field) = field {
            request.headers_mut().insert("authorization", field.parse().unwrap());
        }
        let answer = rig.call(request).await.unwrap();
        assert_eq!(answer.status, status, "{field:?}");
        assert_eq!(answer.headers.contains_key("www-authenticate"), status == 401);
    }
}

#[tokio::test]
async fn the_upstream_accepts_only_listed_keys_and_the_list_can_change() {
    let rig = Rig::start(SimOptions { keys: Some(vec!["other".into()]), ..SimOptions::default() }).await;
    rig.sim.set_status("a", "queued");
    assert_eq!(rig.get(&one("a", "queued")).await.status, 401);
    assert_eq!(rig.call(rig.request(Method::POST, CLIP)).await.unwrap().status, 401);
    rig.sim.accept_keys(Some(&["key".to_owned()]));
    assert_eq!(rig.get(&one("a", "queued")).await.status, 200);
    rig.sim.accept_keys(Some(&[]));
    assert_eq!(rig.get(&one("a", "queued")).await.status, 401);
}

#[tokio::test]
async fn a_client_can_read_lyrics_once() {
    let rig = Rig::with_long_hold().await;
    let lyric = "/v2/generate/audio/suno-ai/lyric?lyric_id=1";
    assert!(rig.get(lyric).await.json()["text"].is_string());
    assert_eq!(rig.get(lyric).await.status, 404);
    assert_eq!(rig.get("/v2/generate/audio/suno-ai/lyric?lyric_id=2").await.status, 200);
}

#[tokio::test]
async fn each_response_has_its_own_per_response_headers() {
    let rig = Rig::with_long_hold().await;
    rig.sim.set_status("a", "queued");
    let (first, second) = (rig.get(&one("a", "queued")).await, rig.get("/nothing").await);
    for name in ["x-request-id", "x-inference-id", "x-aimlapi-request", "set-cookie", "ratelimit-remaining"] {
        assert_ne!(first.headers[name], second.headers[name], "{name}");
    }
    assert!(first.headers.contains_key("date"));
    assert_eq!(first.headers["x-powered-by"], second.headers["x-powered-by"]);
}

#[tokio::test]
async fn every_list_format_has_the_same_clips() {
    let rig = Rig::start(SimOptions { in_order: false, ..SimOptions::default() }).await;
    rig.sim.set_status("a", "queued");
    rig.sim.set_status("b", "completed");
    let target = many(&["a", "b"], "queued");
    let array = rig.get(&target).await.json();
    assert_eq!((&array[0]["id"], &array[1]["id"]), (&"b".into(), &"a".into()));
    for (format, pointer) in [(ListFormat::Object, "/clips/1/id"), (ListFormat::Map, "/a/id")] {
        rig.sim.fault(FaultTarget::Any, Fault::Shape(format), 1);
        assert_eq!(rig.get(&target).await.json().pointer(pointer).unwrap(), "a", "{format:?}");
    }
    rig.sim.fault(FaultTarget::Any, Fault::Shape(ListFormat::Summary), 1);
    assert_eq!(rig.get(&target).await.json()["summary"]["count"], 2);
    assert!(rig.get(&target).await.json().is_array());
}

#[tokio::test]
async fn a_request_is_recorded_with_its_headers_and_a_digest_of_its_key() {
    let rig = Rig::with_long_hold().await;
    rig.sim.set_status("a", "queued");
    let mut request = rig.request(Method::GET, &one("a", "queued"));
    request.headers_mut().insert("x-mine", "1".parse().unwrap());
    rig.call(request).await.unwrap();
    let seen = rig.sim.requests().pop().unwrap();
    assert_eq!((&seen.method, &*seen.target, seen.path()), (&Method::GET, &*one("a", "queued"), CLIP));
    assert_eq!(seen.headers["x-mine"], "1");
    assert!(seen.key.unwrap().matches("key") && !seen.key.unwrap().matches("other"));
    assert!(!format!("{seen:?}").contains("Bearer"));
    assert_eq!(seen.end, RequestEnd::Answered(StatusCode::OK));
    assert!(seen.ended_at.unwrap() >= seen.at);
}

#[tokio::test]
async fn a_poll_is_recorded_as_abandoned_when_its_client_disconnects() {
    let rig = Rig::with_long_hold().await;
    rig.sim.set_status("a", "queued");
    let stream = rig
        .raw(&format!(
            "GET {} HTTP/1.1\r\nhost: sim\r\nauthorization: Bearer k\r\n\r\n",
            one("a", "completed")
        ))
        .await;
    rig.wait_until(|seen| seen.open == 1).await;
    assert_eq!(rig.sim.requests()[0].end, RequestEnd::Open);
    drop(stream);
    rig.wait_until(|seen| seen.open == 0 && seen.abandoned() == 1 && seen.connections == 0).await;
}

#[tokio::test]
async fn a_reset_http2_stream_is_recorded_as_abandoned_and_its_connection_stays_open() {
    let rig = Rig::start_with(SimOptions { hold: LONG, ..SimOptions::default() }, true).await;
    rig.sim.set_status("a", "queued");
    {
        let poll = rig.try_get(&one("a", "completed"));
        tokio::select! {
            _ = poll => panic!("the poll is held"),
            () = rig.wait_until(|seen| seen.open == 1) => {}
        }
    }
    rig.wait_until(|seen| seen.open == 0 && seen.abandoned() == 1).await;
    assert_eq!(rig.get(&one("a", "queued")).await.status, 200);
    assert_eq!(rig.sim.observe().accepted, 1);
    assert_eq!(rig.sim.requests()[1].version, http::Version::HTTP_2);
}

#[tokio::test]
async fn the_upstream_keeps_connections_alive() {
    let rig = Rig::with_long_hold().await;
    for _ in 0..3 {
        rig.get("/sim/echo").await;
    }
    assert_eq!((rig.sim.observe().accepted, rig.sim.observe().count("/sim/echo")), (1, 3));
}

#[tokio::test]
async fn a_shutdown_does_not_wait_for_held_polls_in_either_protocol() {
    for http2 in [false, true] {
        let mut rig = Rig::start_with(SimOptions { hold: LONG, ..SimOptions::default() }, http2).await;
        rig.sim.set_status("a", "queued");
        rig.sim.fault(FaultTarget::Path("/hang".into()), Fault::Hang, 1);
        let poll = rig.spawn_get(&one("a", "completed"));
        let _hung = rig.spawn_get("/hang");
        rig.wait_until(|seen| seen.open == 2).await;
        let sim = rig.sim.clone();
        rig.stop().await;
        assert!(poll.await.unwrap().is_err());
        assert_eq!((sim.open(), sim.observe().connections), (0, 0));
    }
}

#[tokio::test]
async fn the_upstream_can_be_served_again_after_a_shutdown() {
    let rig = Rig::with_long_hold().await;
    rig.sim.set_status("a", "queued");
    let sim = rig.sim.clone();
    rig.stop().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    let mut again = Rig::with_long_hold().await;
    again.tasks.spawn(sim.serve(listener, std::future::pending()));
    again.at = at;
    assert_eq!(again.get(&one("a", "queued")).await.status, 200);
}

#[tokio::test]
async fn the_upstream_answers_http_1_0_and_closes_the_connection() {
    let rig = Rig::with_long_hold().await;
    rig.sim.set_status("a", "queued");
    let mut stream =
        rig.raw(&format!("GET {} HTTP/1.0\r\nauthorization: Bearer k\r\n\r\n", one("a", "queued"))).await;
    let mut all = Vec::new();
    stream.read_to_end(&mut all).await.unwrap();
    assert!(all.starts_with(b"HTTP/1.0 200") && all.ends_with(&rig.sim.body("a", "queued")));
}

#[tokio::test]
async fn the_oldest_clips_and_requests_are_removed() {
    let rig = Rig::start(SimOptions { max_clips: 1, max_requests: 2, ..SimOptions::default() }).await;
    rig.sim.set_status("a", "queued");
    rig.sim.set_status("b", "queued");
    assert_eq!(rig.get(&one("a", "queued")).await.status, 404);
    assert_eq!(rig.get(&one("b", "queued")).await.status, 200);
    rig.get("/sim/echo").await;
    let paths: Vec<_> = rig.sim.requests().iter().map(|seen| seen.path().to_owned()).collect();
    assert_eq!(paths, [CLIP, "/sim/echo"]);
    assert!(rig.sim.requests().iter().all(|seen| seen.end == RequestEnd::Answered(StatusCode::OK)));
}

#[tokio::test]
async fn two_hundred_held_polls_are_answered_together() {
    let mut rig = Rig::start_with(SimOptions { hold: LONG, ..SimOptions::default() }, true).await;
    rig.sim.set_status("a", "queued");
    // The server allows 200 HTTP/2 streams on one connection, and this client opens one connection.
    let polls: Vec<_> = (0..200).map(|_| rig.spawn_get(&one("a", "completed"))).collect();
    rig.wait_until(|seen| seen.open == 200).await;
    rig.sim.set_status("a", "completed");
    for poll in polls {
        assert_eq!(poll.await.unwrap().unwrap().body, rig.sim.body("a", "completed"));
    }
}

#[tokio::test]
async fn three_thousand_connections_fit_into_the_accept_queue() {
    let listener = crate::socket::listen(([127, 0, 0, 1], 0).into()).unwrap();
    let at = listener.local_addr().unwrap();
    for number in 1..=3000 {
        // A connection stays in the queue after its client has left. A client retries a dropped one every second.
        let connected = tokio::time::timeout(TIMEOUT, TcpStream::connect(at)).await;
        drop(connected.unwrap_or_else(|_| panic!("connection {number} is not accepted")).unwrap());
    }
}
