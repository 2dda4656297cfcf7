//! Spoofed fields of proxies or of the gateway do not reach the upstream, in no spelling and in no trailers.

use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

use crate::harness::gateway::TestGateway;
use crate::harness::raw_http::{read_until, request};
use crate::harness::scripted_upstream::ScriptedUpstream;

const NO_CONTENT: &str = "HTTP/1.1 204 No Content\r\n\r\n";

#[tokio::test]
async fn a_spoofed_field_is_dropped_in_every_spelling() {
    let gateway = TestGateway::new().await;
    let spoofed = [
        "X_Forwarded_For",
        "x-forwarded_for",
        "X.Forwarded.For",
        "X_FORWARDED_HOST",
        "X_Forwarded_Proto",
        "x_forwarded_prefix",
        "X-Forwarded",
        "X_Real_IP",
        "True_Client_IP",
        "CF_Connecting_IP",
        "Client-IP",
        "Proxy",
        "X_Request_Id",
        "Proxy_Authorization",
        "Transfer_Encoding",
        "Content_Length",
        "Max_Forwards",
    ];
    let kept = ["forwarded_by", "proxy_color", "x-forward", "x_custom"];
    for method in ["GET", "POST"] {
        let fields: Vec<_> = spoofed.iter().chain(&kept).map(|name| (*name, "6.6.6.6")).collect();
        gateway.send(request(method, "/sim/echo", &fields, "")).await;
        let seen = gateway.sim.requests().pop().unwrap();
        let mut passed: Vec<_> = seen
            .headers
            .iter()
            .filter(|(_, value)| *value == "6.6.6.6")
            .map(|(name, _)| name.as_str())
            .collect();
        passed.sort_unstable();
        assert_eq!(passed, kept, "{method}");
        assert_eq!(seen.headers["x-forwarded-for"], "127.0.0.1");
    }
}

#[tokio::test]
async fn spoofed_fields_and_credentials_in_trailers_do_not_reach_the_upstream() {
    let mut upstream = ScriptedUpstream::answering_after("x-sum: 1\r\n\r\n", NO_CONTENT).await;
    let url = upstream.url.clone();
    let gateway = TestGateway::without_upstream(|config, _| config.upstream.base_url = url).await;
    let mut stream = TcpStream::connect(gateway.address).await.unwrap();
    let trailers = [
        "X-Forwarded-For",
        "X_Forwarded_Host",
        "Forwarded",
        "X-Real-IP",
        "Proxy",
        "Via",
        "X-Request-Id",
        "Cookie",
        "Proxy-Authorization",
        "Connection",
    ];
    let upload = format!(
        "POST /upload HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\ntrailer: {}, x-sum\r\n\r\n\
         3\r\nabc\r\n0\r\n{}x-sum: 1\r\n\r\n",
        trailers.join(", "),
        trailers.map(|name| format!("{name}: evil\r\n")).concat()
    );
    stream.write_all(upload.as_bytes()).await.unwrap();
    let seen = upstream.next_request().await;
    assert!(seen.ends_with("\r\n\r\n3\r\nabc\r\n0\r\nx-sum: 1\r\n\r\n"), "{seen}");
    assert!(!seen.contains("evil"), "{seen}");
    read_until(&mut stream, |back| back.ends_with(b"\r\n\r\n")).await;
}
