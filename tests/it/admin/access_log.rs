//! The access line of each request, as JSON and as text.

use std::time::Duration;

use clipgate::sim::{Sim, SimOptions};
use serde_json::Value;
use tokio::net::TcpListener;

use crate::harness::command::ClipgateProcess;
use crate::harness::gateway::clip_target;
use crate::harness::raw_http::{CLIP, send_raw};

/// Sends request heads to a new gateway, one after the other, and returns the log.
async fn log_of(format: &str, heads: &[String]) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let upstream = format!("http://{}", listener.local_addr().unwrap());
    let sim = Sim::new(SimOptions::default());
    sim.set_status("a", "completed");
    sim.set_status("b", "completed");
    let _serving = tokio::spawn(sim.clone().serve(listener, std::future::pending()));
    let env = [("CLIPGATE__LOG__FORMAT", format)];
    let mut gateway =
        ClipgateProcess::start(&["serve", "--listen", "127.0.0.1:0", "--upstream", &upstream], &env);
    let address = gateway.address();
    for head in heads {
        send_raw(address, format!("{head}host: x\r\nconnection: close\r\n\r\n").as_bytes()).await;
        // The line of a malformed head comes when its connection has ended, which the client may see before.
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    gateway.stop().1
}

const KEY: &str = "authorization: Bearer k\r\n";

fn heads() -> Vec<String> {
    let get = |target: &str| format!("GET {target} HTTP/1.1\r\n");
    vec![
        format!("{}{KEY}user-agent: curl/8 \"x\"\\\r\n", get(&clip_target("a", "completed"))),
        format!("{}{KEY}x-request-id: mine-1\r\n", get(&clip_target("a", "completed"))),
        format!("{}{KEY}", get(&format!("{CLIP}s?clip_ids[]=b&clip_ids[]=a&status=completed"))),
        format!("{}{KEY}user-agent: {}\r\n", get("/sim/echo?api_key=secret"), "é".repeat(400)),
        format!("POST /v1/x%22y HTTP/1.0\r\n{KEY}"),
        format!("{}{KEY}", get(&clip_target("", "completed"))),
        format!("{}{KEY}", get(&clip_target("%22%0a%1b%2C", "completed"))),
        "GET /x HTTP/1.1\r\nx : y\r\n".to_owned(),
        get(&format!("/{}", "x".repeat(70_000))),
        format!("{}{}", get("/x"), "x: y\r\n".repeat(500)),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn json_lines_are_flat_objects_with_opentelemetry_names() {
    let log = log_of("json", &heads()).await;
    let lines: Vec<Value> = log.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    for line in &lines {
        let fields = line.as_object().unwrap();
        assert!(fields.values().all(|value| !value.is_object() && !value.is_array()), "{line}");
    }
    let requests: Vec<&Value> = lines.iter().filter(|line| line["message"] == "request").collect();
    assert_eq!(requests.len(), heads().len(), "{log}");
    let rows = [
        ("GET", CLIP, 200, "opened", "reached"),
        ("GET", CLIP, 200, "hit", ""),
        ("GET", &format!("{CLIP}s"), 200, "opened", "reached"),
        ("GET", "/sim/echo", 200, "passthrough", ""),
        ("POST", "/v1/x%22y", 404, "passthrough", ""),
        ("GET", CLIP, 400, "rejected", "empty-id"),
        ("GET", CLIP, 404, "opened", "upstream_rejected"),
    ];
    for (line, (method, path, status, outcome, reason)) in requests.iter().zip(rows) {
        assert_eq!(line["http.request.method"], method, "{line}");
        assert_eq!(line["url.path"], path, "{line}");
        assert_eq!(line["http.response.status_code"], status, "{line}");
        assert_eq!(line["clipgate.outcome"], outcome, "{line}");
        assert_eq!(line["clipgate.reason"].as_str().unwrap_or_default(), reason, "{line}");
        assert!(line["http.server.request.duration"].as_f64().is_some_and(|secs| secs < 20.0), "{line}");
        assert!(line["http.response.body.size"].as_u64().is_some_and(|size| size > 0), "{line}");
        assert_eq!(
            (&line["client.address"], &line["network.peer.address"]),
            (&"127.0.0.1".into(), &"127.0.0.1".into())
        );
        assert!(line["network.peer.port"].as_u64().is_some_and(|port| port > 0), "{line}");
        assert!(line["clipgate.request_id"].is_string() && line["timestamp"].is_string(), "{line}");
        assert_eq!(
            (&line["level"], &line["target"]),
            (&"INFO".into(), &"clipgate::gateway::access_log".into())
        );
    }
    assert_eq!(requests[0]["user_agent.original"], "curl/8 \"x\"\\");
    assert_eq!(requests[0]["clipgate.jobs"], "a");
    assert_eq!(requests[0]["clipgate.key"].as_str().unwrap().len(), 8);
    assert_eq!(requests[0]["network.protocol.version"], "1.1");
    assert_eq!(requests[1]["clipgate.request_id"], "mine-1");
    assert!(requests[1].get("user_agent.original").is_none() && requests[1].get("clipgate.reason").is_none());
    assert_eq!(requests[2]["clipgate.jobs"], "a,b");
    assert!(requests[3]["user_agent.original"].as_str().unwrap().len() <= 300, "only the first bytes");
    assert_eq!(requests[4]["network.protocol.version"], "1.0");
    assert!(requests[4]["clipgate.upstream_request_id"].is_string());
    assert_eq!(requests[6]["clipgate.jobs"], "\"\n\u{1b},", "unchanged");
    assert_eq!(requests[7]["http.response.status_code"], 400);
    assert_eq!(
        (&requests[7]["clipgate.outcome"], &requests[7]["clipgate.reason"]),
        (&"rejected".into(), &"bad-request".into())
    );
    assert!(!log.contains("secret") && !log.contains("Bearer"), "{log}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_text_line_has_what_a_reader_looks_at_first() {
    let log = log_of("text", &heads()).await;
    let is_request = |line: &&str| !line.contains(" INFO ") && !line.contains(" WARN ");
    let requests: Vec<&str> = log.lines().filter(is_request).collect();
    assert_eq!(requests.len(), heads().len(), "{log}");
    let rows = [
        ("200 GET \u{2026}/audio/suno-ai/clip ", "ms opened"),
        ("200 GET \u{2026}/audio/suno-ai/clip ", "ms hit"),
        ("200 GET \u{2026}/audio/suno-ai/clips ", "ms opened"),
        ("200 GET /sim/echo ", "ms passthrough"),
        ("404 POST /v1/x%22y ", "ms passthrough 127.0.0.1 id="),
        ("400 GET \u{2026}/audio/suno-ai/clip ", "ms rejected empty-id 127.0.0.1 id="),
        ("404 GET \u{2026}/audio/suno-ai/clip ", "ms opened upstream_rejected 127.0.0.1 id="),
        ("400 rejected ", "bad-request 127.0.0.1 id="),
    ];
    for (line, (start, end)) in requests.iter().zip(rows) {
        let (time, line) = line.split_once(' ').unwrap();
        assert!(humantime::parse_rfc3339(time).is_ok(), "{time}");
        assert!(line.starts_with(start), "{line:?} does not start with {start:?}");
        match end.strip_suffix("id=") {
            None => assert!(line.ends_with(end), "{line:?} does not end with {end:?}"),
            Some(_) => assert!(line.contains(end), "{line:?} lacks {end:?}"),
        }
        assert!(line.len() <= 130, "{line:?}");
    }
    assert!(!log.contains('\u{1b}') && !log.contains("secret"), "{log}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn control_characters_of_ids_paths_and_user_agents_are_escaped_in_both_formats() {
    // DEL, CSI and NEL of C1, direction marks and line separators: as an id, in the path, and in a header.
    let odd = "\u{7f}\u{9b}2J\u{85}\u{202e}\u{2066}\u{200f}\u{2028}";
    let id: String = odd.bytes().map(|byte| format!("%{byte:02x}")).collect();
    let heads = [
        format!("GET {} HTTP/1.1\r\n{KEY}", clip_target(&id, "completed")),
        format!("GET /{odd} HTTP/1.1\r\n{KEY}"),
        format!("GET /x HTTP/1.1\r\n{KEY}user-agent: {odd}\r\n"),
    ];
    for format in ["json", "text"] {
        let log = log_of(format, &heads).await;
        // The text format cuts long paths with an ellipsis.
        let is_plain = |character: char| matches!(character, '\n' | ' '..='~' | '\u{2026}');
        assert!(log.chars().all(is_plain), "{format}: {log:?}");
        assert_eq!(log.contains("u009b2J"), format == "json", "text has no ids: {log}");
    }
    let log = log_of("json", &heads[..1]).await;
    let lines = log.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    assert!(lines.into_iter().any(|line| line["clipgate.jobs"] == odd), "JSON keeps the value: {log}");
}
