//! Event streams in web pages, read with the browser's own `EventSource`.

use std::time::Duration;

use bytes::Bytes;
use clipgate::testing::config::AuthMode;
use clipgate::testing::secret::Secret;
use serde_json::json;

use crate::harness::browser::{Browser, DESKTOP};
use crate::harness::gateway::{TestGateway, clips_target, set_hold};
use crate::harness::raw_upstream::{AfterHead, RawUpstream};

/// Serves an empty web page. Each call has an origin of its own.
async fn app() -> (RawUpstream, String) {
    let head = "HTTP/1.1 200 OK\r\ncontent-type: text/html\r\nconnection: close\r\n\r\n";
    let page = "<!doctype html><title>app</title><link rel=icon href=data:,>";
    let app = RawUpstream::start(head, AfterHead::Bytes(Bytes::from_static(page.as_bytes()))).await;
    let origin = app.url.to_string().trim_end_matches('/').to_owned();
    (app, origin)
}

/// Returns a script that records each event and never closes the source.
fn follow(url: &str) -> String {
    format!(
        "window.received = []; window.source = new EventSource({});
         for (const name of ['status', 'done', 'error']) source.addEventListener(name, ({{ data }}) => {{
             if (data) received.push([name, JSON.parse(data).id ?? null, JSON.parse(data).status ?? null]);
         }}); null",
        json!(url)
    )
}

#[tokio::test]
async fn a_page_of_a_listed_origin_gets_each_rung_and_stops_after_the_last() {
    let (_app, origin) = app().await;
    let (_other, unlisted) = app().await;
    let gateway = TestGateway::with(|config, options| {
        set_hold(Duration::from_secs(60), config, options);
        config.server.cors_origins = vec![origin.clone()];
        config.auth.mode = AuthMode::Sidecar;
        config.upstream.api_key = Some(Secret::new("key-1"));
    })
    .await;
    for id in ["a", "b"] {
        gateway.sim.set_status(id, "queued");
    }
    let url = format!("http://{}{}", gateway.address, clips_target(&["a", "b"], "completed"));
    let mut browser = Browser::start();
    assert_eq!(browser.open(&origin, DESKTOP, None).await, 200);
    browser.eval(&follow(&url)).await;
    browser.wait_until("received.length === 2").await;
    gateway.sim.set_status("a", "streaming");
    browser.wait_until("received.length === 3").await;
    gateway.sim.set_status("a", "completed");
    browser.wait_until("received.length === 4").await;
    gateway.sim.set_status("b", "completed");
    // After the end of the stream the browser reconnects by itself and gets 204.
    browser.wait_until("source.readyState === EventSource.CLOSED").await;
    let received = browser.eval("received").await;
    let mut begin = vec![received[0].clone(), received[1].clone()];
    begin.sort_by_key(ToString::to_string);
    assert_eq!(begin, [json!(["status", "a", "queued"]), json!(["status", "b", "queued"])]);
    let rest = json!([
        ["status", "a", "streaming"],
        ["status", "a", "complete"],
        ["status", "b", "complete"],
        ["done", null, null]
    ]);
    assert_eq!(received.as_array().unwrap()[2..], rest.as_array().unwrap()[..]);

    assert_eq!(browser.open(&unlisted, DESKTOP, None).await, 200);
    browser.eval(&follow(&url)).await;
    browser.wait_until("source.readyState === EventSource.CLOSED").await;
    assert_eq!(browser.eval("received").await, json!([]), "a page of an unlisted origin gets no event");
    let faults = browser.errors().await;
    assert!(faults.iter().any(|fault| fault.contains("blocked by CORS policy")), "{faults:?}");
}
