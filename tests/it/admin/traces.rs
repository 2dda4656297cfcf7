//! Traces: the headers of requests to the upstream, and the spans at a collector.
//!
//! The collector is `collector.py`, which decodes spans with OpenTelemetry's Python package. The tests fail without the
//! package; `.ci/tools` installs it.

use std::process::Stdio;
use std::time::Duration;

use clipgate::testing::config::Config;
use http::{HeaderMap, StatusCode};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader, Lines};
use tokio::net::TcpListener;
use tokio::process::{Child, ChildStdout, Command};

use crate::clients::event_clients::tools;
use crate::harness::gateway::{TestGateway, clip_target, clips_target, join_all, set_status_of_all};
use crate::harness::process::{self, TestEnv, within_timeout};

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const PARENT: &str = "b7ad6b7169203331";
const KEY: &str = "Bearer HUSHHUSH";
/// Configuration without quotas and without access lines.
const UNLIMITED: &str = "[limits]\nrequests_per_second = 1000000\nburst = 1000000\n[log]\nlevel = \"warn\"\n";

fn traceparent() -> String {
    format!("00-{TRACE}-{PARENT}-01")
}

/// Returns trace, span and flags of the only `traceparent`, and asserts that it is valid.
fn parts(fields: &HeaderMap) -> [String; 3] {
    let mut lines = fields.get_all("traceparent").iter();
    let (line, None) = (lines.next().expect("there is one"), lines.next()) else { panic!("{fields:?}") };
    let parts: Vec<&str> = line.to_str().unwrap().split('-').collect();
    let [version, trace, span, flags] = parts[..] else { panic!("{line:?}") };
    assert_eq!((version, trace.len(), span.len(), flags.len()), ("00", 32, 16, 2), "{line:?}");
    let is_id =
        |id: &str| id.bytes().any(|b| b != b'0') && id.bytes().all(|b| b"0123456789abcdef".contains(&b));
    assert!(is_id(trace) && is_id(span), "{line:?}");
    [trace, span, flags].map(str::to_owned)
}

/// Returns the headers of the newest request at the upstream.
fn last_headers(gateway: &TestGateway) -> HeaderMap {
    HeaderMap::clone(&gateway.sim.requests().last().expect("there is a request").headers)
}

/// A running collector.
struct Collector {
    lines: Lines<BufReader<ChildStdout>>,
    port: u16,
    _child: Child,
}

impl Collector {
    async fn start() -> Self {
        let own = tools("python/bin/python3");
        let program = if std::path::Path::new(&own).exists() { own.as_str() } else { "python3" };
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/admin/collector.py");
        let mut command = Command::new(program);
        command.arg(script).stdin(Stdio::null()).stdout(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().expect("there is python3");
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let port = within_timeout("the collector", lines.next_line()).await.unwrap();
        let port = port.expect("python3 has the module opentelemetry-proto: see .ci/tools").parse().unwrap();
        Self { lines, port, _child: child }
    }

    fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    async fn batch(&mut self) -> Value {
        let line =
            within_timeout("spans", self.lines.next_line()).await.unwrap().expect("the collector runs");
        serde_json::from_str(&line).unwrap()
    }

    /// Reads batches until there are `count` spans. Returns both.
    async fn spans(&mut self, count: usize) -> (Vec<Value>, Vec<Value>) {
        let (mut batches, mut spans) = (Vec::new(), Vec::new());
        while spans.len() < count {
            let batch = self.batch().await;
            spans.extend(batch["spans"].as_array().unwrap().iter().cloned());
            batches.push(batch);
        }
        assert_eq!(spans.len(), count, "{spans:#?}");
        (batches, spans)
    }
}

fn traced(config: &mut Config, url: &str) {
    config.telemetry.otlp_endpoint = Some(url.parse().unwrap());
}

/// Returns an address without a listener.
async fn unused_address() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    format!("http://{}", listener.local_addr().unwrap())
}

#[tokio::test]
async fn without_a_collector_a_trace_is_forwarded_unchanged_and_a_missing_one_is_created() {
    let gateway = TestGateway::new().await;
    let known = [("traceparent", &*traceparent()), ("tracestate", "a=1,b=2")];
    gateway.get("/v1/models", &known).await;
    let seen = last_headers(&gateway);
    assert_eq!(seen["traceparent"], traceparent());
    assert_eq!(seen["tracestate"], "a=1,b=2");

    gateway.get("/v1/models", &[]).await;
    let [first, _, flags] = parts(&last_headers(&gateway));
    assert_eq!(flags, "00", "the trace is not recorded");
    gateway.get("/v1/models", &[]).await;
    assert_ne!(parts(&last_headers(&gateway))[0], first);

    set_status_of_all(&gateway, &["a"], "completed");
    gateway.get(&clip_target("a", "completed"), &known).await;
    let [trace, _, flags] = parts(&last_headers(&gateway));
    assert!(trace != TRACE && flags == "00", "a poll is not part of the client's trace");
    assert!(!last_headers(&gateway).contains_key("tracestate"));
}

#[tokio::test]
async fn with_a_collector_the_span_of_the_request_continues_the_trace() {
    let collector = unused_address().await;
    let gateway = TestGateway::with(|config, _| traced(config, &collector)).await;
    let mut spans = vec![PARENT.to_owned()];
    for flags in ["01", "00"] {
        let parent = format!("00-{TRACE}-{PARENT}-{flags}");
        gateway.get("/v1/models", &[("traceparent", &parent), ("tracestate", "a=1,b=2")]).await;
        let seen = last_headers(&gateway);
        let [trace, span, sent_flags] = parts(&seen);
        assert_eq!((&*trace, &*sent_flags, &seen["tracestate"]), (TRACE, flags, &"a=1,b=2".parse().unwrap()));
        assert!(!spans.contains(&span), "{span} is not new");
        spans.push(span);
    }
    gateway.get("/v1/models", &[]).await;
    let [trace, _, flags] = parts(&last_headers(&gateway));
    assert!(trace != TRACE && flags == "01");

    set_status_of_all(&gateway, &["a"], "completed");
    gateway.get(&clip_target("a", "completed"), &[("traceparent", &traceparent())]).await;
    let [trace, _, flags] = parts(&last_headers(&gateway));
    assert!(trace != TRACE && flags == "01", "a poll is the root of a trace of its own");
}

#[tokio::test]
async fn an_invalid_traceparent_is_replaced_together_with_tracestate() {
    let collector = unused_address().await;
    for gateway in [TestGateway::new().await, TestGateway::with(|config, _| traced(config, &collector)).await]
    {
        let invalid = [
            format!("00-{TRACE}-{PARENT}"),
            format!("ff-{TRACE}-{PARENT}-01"),
            format!("00-{}-{PARENT}-01", "0".repeat(32)),
            format!("00-{}-{PARENT}-01", TRACE.to_uppercase()),
        ];
        for parent in &invalid {
            gateway.get("/v1/models", &[("traceparent", parent), ("tracestate", "a=1")]).await;
            let seen = last_headers(&gateway);
            assert_ne!(parts(&seen)[0], TRACE, "{parent}");
            assert!(!seen.contains_key("tracestate"), "{parent}");
        }
        let twice = [("traceparent", &*traceparent()), ("traceparent", &*traceparent())];
        gateway.get("/v1/models", &twice).await;
        assert_ne!(parts(&last_headers(&gateway))[0], TRACE);
    }
}

#[tokio::test]
async fn the_collector_gets_a_span_for_each_request_and_poll_and_a_link_for_each_attachment() {
    let mut collector = Collector::start().await;
    let gateway = TestGateway::with(|config, _| traced(config, &collector.url())).await;
    set_status_of_all(&gateway, &["a", "b"], "streaming");
    let key = ("authorization", KEY);
    let parent = traceparent();
    let mut waits = vec![gateway.spawn_get(&clip_target("a", "completed"), &[key, ("traceparent", &parent)])];
    gateway.wait_until(|seen| seen.count("/v2/generate/audio/suno-ai/clip") == 1).await;
    waits.extend([0; 2].map(|_| gateway.spawn_get(&clip_target("a", "completed"), &[key])));
    waits.push(gateway.spawn_get(&clip_target("b", "completed"), &[key]));
    gateway.wait_until(|seen| seen.count("/v2/generate/audio/suno-ai/clip") == 2).await;
    gateway.wait_until_parked(4).await;
    waits.push(gateway.spawn_get(&clips_target(&["a", "b"], "completed"), &[key]));
    gateway.wait_until_parked(5).await;
    let polls: Vec<_> = gateway.sim.requests().iter().map(|seen| parts(&seen.headers)).collect();
    set_status_of_all(&gateway, &["a", "b"], "completed");
    let answers = join_all(waits).await;
    assert_eq!(answers.iter().filter(|answer| answer.is_opener()).count(), 2);
    assert_eq!(answers.iter().filter(|answer| answer.is_coalesced()).count(), 3);
    assert!(gateway.get(&clip_target("a", "completed"), &[key]).await.is_hit());
    gateway.get("/v1/models?token=HUSHHUSH", &[key]).await;
    let passed_through = parts(&last_headers(&gateway));
    assert_eq!(gateway.get(&clip_target("a", "error"), &[key]).await.status, StatusCode::BAD_REQUEST);

    let (batches, spans) = collector.spans(10).await;
    for batch in &batches {
        assert_eq!(
            (&batch["path"], &batch["type"]),
            (&"/v1/traces".into(), &"application/x-protobuf".into())
        );
        assert_eq!(batch["resource"]["service.name"], "clipgate");
        assert_eq!(batch["resource"]["service.version"], env!("CARGO_PKG_VERSION"));
        assert!(!batch["raw"].as_str().unwrap().contains("HUSHHUSH"), "the batch has a key or a query");
    }
    assert!(spans.iter().all(|span| span["is_ordered"] == true));
    let of = |key: &str, value: &str| -> Vec<&Value> {
        spans.iter().filter(|span| span[key] == value || span["attributes"][key] == value).collect()
    };
    let (servers, clients) = (of("kind", "SPAN_KIND_SERVER"), of("kind", "SPAN_KIND_CLIENT"));
    assert_eq!((servers.len(), clients.len()), (8, 2));

    let link = |poll: &[String; 3]| serde_json::json!([poll[0], poll[1]]);
    for (client, poll) in polls.iter().map(|poll| (of("id", &poll[1])[0], poll)) {
        assert_eq!((&client["trace"], &client["parent"]), (&poll[0].as_str().into(), &"".into()));
        assert_eq!(client["name"], "GET /v2/generate/audio/suno-ai/clip");
        let attributes = &client["attributes"];
        assert_eq!(attributes["clipgate.outcome"], "landed");
        assert_eq!(
            (&attributes["http.response.status_code"], &attributes["clipgate.jobs"]),
            (&200.into(), &1.into())
        );
        assert_eq!(
            (&attributes["server.address"], &attributes["http.request.method"]),
            (&"127.0.0.1".into(), &"GET".into())
        );
    }
    let links = |outcome: &str| {
        let mut links: Vec<_> =
            of("clipgate.outcome", outcome).iter().map(|span| span["links"].clone()).collect();
        links.sort_by_key(|links| links.as_array().unwrap().len());
        links
    };
    let opened = links("opened");
    assert!(opened.len() == 2 && polls.iter().all(|poll| opened.contains(&serde_json::json!([link(poll)]))));
    let [one, other, both] = &links("coalesced")[..] else { panic!("{spans:#?}") };
    assert_eq!((one, other), (&serde_json::json!([link(&polls[0])]), &serde_json::json!([link(&polls[0])])));
    assert!(
        both.as_array().unwrap().len() == 2
            && polls.iter().all(|p| both.as_array().unwrap().contains(&link(p)))
    );
    assert_eq!(links("hit"), [serde_json::json!([])]);

    let [continued] = of("trace", TRACE)[..] else { panic!("{spans:#?}") };
    assert_eq!(
        (&continued["parent"], &continued["attributes"]["clipgate.reason"]),
        (&PARENT.into(), &"reached".into())
    );
    assert_eq!(continued["attributes"]["http.route"], "/v2/generate/audio/suno-ai/clip");
    let [through] = of("url.path", "/v1/models")[..] else { panic!("{spans:#?}") };
    assert_eq!(
        (&through["trace"], &through["id"]),
        (&passed_through[0].as_str().into(), &passed_through[1].as_str().into())
    );
    let [rejected] = of("clipgate.outcome", "rejected")[..] else { panic!("{spans:#?}") };
    assert_eq!(
        (&rejected["attributes"]["http.response.status_code"], &rejected["is_error"]),
        (&400.into(), &false.into())
    );
}

#[tokio::test]
async fn a_failed_poll_has_its_error_and_a_disconnect_ends_the_span() {
    let mut collector = Collector::start().await;
    let gateway = TestGateway::without_upstream(|config, _| {
        traced(config, &collector.url());
        config.upstream.retries = 1;
        config.wait.linger = Duration::ZERO;
    })
    .await;
    assert_eq!(gateway.get(&clip_target("a", "completed"), &[]).await.status, StatusCode::BAD_GATEWAY);
    let (_, spans) = collector.spans(2).await;
    let [poll, wait] = ["SPAN_KIND_CLIENT", "SPAN_KIND_SERVER"]
        .map(|kind| spans.iter().find(|span| span["kind"] == kind).unwrap());
    assert_eq!((&poll["attributes"]["error.type"], &poll["is_error"]), (&"unreachable".into(), &true.into()));
    assert_eq!(poll["attributes"]["clipgate.failed_attempts"], 2);
    assert_eq!(poll["events"].as_array().unwrap().len(), 2);
    assert_eq!((&wait["attributes"]["error.type"], &wait["is_error"]), (&"502".into(), &true.into()));

    let mut gateway = gateway;
    gateway.start_upstream();
    set_status_of_all(&gateway, &["a"], "streaming");
    let wait = gateway.spawn_get(&clip_target("a", "completed"), &[]);
    gateway.wait_until(|seen| seen.count("/v2/generate/audio/suno-ai/clip") == 1).await;
    wait.abort();
    let (_, spans) = collector.spans(2).await;
    let outcomes = |kind: &str| {
        let span = spans.iter().find(|span| span["kind"] == kind).unwrap();
        span["attributes"]["clipgate.outcome"].clone()
    };
    assert_eq!(
        (outcomes("SPAN_KIND_SERVER"), outcomes("SPAN_KIND_CLIENT")),
        ("client_closed".into(), "cancelled".into())
    );
}

#[tokio::test]
async fn the_span_of_an_event_stream_lasts_as_long_as_the_stream() {
    let mut collector = Collector::start().await;
    let gateway = TestGateway::with(|config, _| traced(config, &collector.url())).await;
    set_status_of_all(&gateway, &["a"], "streaming");
    let events = [("accept", "text/event-stream")];
    let stream = gateway.spawn_get(&clip_target("a", "completed"), &events);
    gateway.wait_until(|seen| seen.count("/v2/generate/audio/suno-ai/clip") >= 1).await;
    let lasts = Duration::from_millis(700);
    tokio::time::sleep(lasts).await;
    set_status_of_all(&gateway, &["a"], "completed");
    assert_eq!(join_all(vec![stream]).await[0].status, StatusCode::OK);
    let span = loop {
        let batch = collector.batch().await;
        let spans = batch["spans"].as_array().unwrap().clone();
        if let Some(span) = spans.into_iter().find(|span| span["kind"] == "SPAN_KIND_SERVER") {
            break span;
        }
    };
    assert_eq!(span["attributes"]["clipgate.outcome"], "event_stream");
    assert!(span["seconds"].as_f64().is_some_and(|seconds| seconds >= lasts.as_secs_f64()), "{span}");
}

#[tokio::test]
async fn the_sampled_flag_and_the_percentage_decide_the_recording() {
    let mut collector = Collector::start().await;
    let gateway = TestGateway::with(|config, _| {
        traced(config, &collector.url());
        config.telemetry.sample_percent = 0;
    })
    .await;
    set_status_of_all(&gateway, &["a", "b"], "completed");
    let unrecorded = format!("00-{TRACE}-{PARENT}-00");
    gateway.get(&clip_target("a", "completed"), &[]).await;
    assert_eq!(parts(&last_headers(&gateway))[2], "00", "a poll is recorded only with its request");
    gateway.get("/v1/models", &[("traceparent", &unrecorded)]).await;
    gateway.get(&clip_target("b", "completed"), &[("traceparent", &traceparent())]).await;
    assert_eq!(parts(&last_headers(&gateway))[2], "01");
    let (_, spans) = collector.spans(2).await;
    assert_eq!(spans.iter().filter(|span| span["trace"] == TRACE).count(), 1);
    assert!(spans.iter().all(|span| span["attributes"]["clipgate.outcome"] != "passthrough"));
}

#[tokio::test]
async fn a_stop_exports_the_remaining_spans_with_the_configured_headers() {
    let mut collector = Collector::start().await;
    let test_env = TestEnv::new().await;
    test_env.configure(&format!("[telemetry]\notlp_endpoint = \"{}/\"", collector.url()));
    let mut command = test_env.command();
    command.env("OTEL_EXPORTER_OTLP_HEADERS", "x-token=for-the-collector");
    let mut gateway = process::GatewayProcess::spawn(command);
    let mut client = process::TestClient::connect(gateway.address().await).await;
    test_env.sim.set_status("a", "completed");
    assert_eq!(client.get(&process::completed_target("a"), &[]).await.status(), 200);
    drop(client);
    gateway.signal("TERM");
    assert!(gateway.wait_for_exit().await.success());
    let batch = collector.batch().await;
    assert_eq!((&batch["token"], &batch["path"]), (&"for-the-collector".into(), &"/v1/traces".into()));
    assert_eq!(batch["spans"].as_array().unwrap().len(), 2, "{batch:#}");
    let log = gateway.rest_of_log().await;
    assert!(!log.iter().any(|line| line.contains("spans") || line.contains("for-the-collector")), "{log:#?}");
}

#[tokio::test]
async fn an_unreachable_collector_is_one_warning_and_the_loss_is_logged_at_the_end() {
    let test_env = TestEnv::new().await;
    test_env.configure(&format!("{UNLIMITED}[telemetry]\notlp_endpoint = \"{}\"", unused_address().await));
    let mut gateway = test_env.start();
    let mut client = process::TestClient::connect(gateway.address().await).await;
    test_env.sim.set_status("a", "completed");
    assert_eq!(client.get(&process::completed_target("a"), &[]).await.status(), 200);
    gateway.wait_for_log("spans are lost").await;
    for _ in 0..1200 {
        assert_eq!(client.get(&process::completed_target("a"), &[]).await.status(), 200);
    }
    drop(client);
    gateway.signal("TERM");
    assert!(gateway.wait_for_exit().await.success());
    let log = gateway.rest_of_log().await;
    assert!(!log.iter().any(|line| line.contains("spans are lost")), "one warning: {log:#?}");
    let losses: Vec<_> = log.iter().filter(|line| line.contains("spans were lost")).collect();
    assert!(losses.len() == 1 && losses[0].contains("lost=1202"), "{losses:?}");
}

#[tokio::test]
async fn a_collector_without_a_response_does_not_delay_requests() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let test_env = TestEnv::new().await;
    test_env.configure(&format!("drain_timeout = \"1s\"\n{UNLIMITED}[telemetry]\notlp_endpoint = \"{url}\""));
    let mut gateway = test_env.start();
    let mut client = process::TestClient::connect(gateway.address().await).await;
    test_env.sim.set_status("a", "completed");
    assert_eq!(client.get(&process::completed_target("a"), &[]).await.status(), 200);
    let (mut held, _) = within_timeout("a batch", listener.accept()).await.unwrap();
    within_timeout("the first byte", held.read_u8()).await.unwrap();
    // The exporter waits, and more spans end than the queue holds.
    let hits = async {
        for _ in 0..5000 {
            assert_eq!(client.get(&process::completed_target("a"), &[]).await.status(), 200);
        }
    };
    within_timeout("5000 hits", hits).await;
    gateway.wait_for_log("spans are lost").await;
    drop(client);
    gateway.signal("TERM");
    assert!(gateway.wait_for_exit().await.success());
    // One span for each hit, for the wait before, and for its poll: none was exported.
    let log = gateway.rest_of_log().await;
    assert!(
        log.iter().any(|line| line.contains("spans were lost") && line.contains("lost=5002")),
        "{log:#?}"
    );
    drop(held);
}
