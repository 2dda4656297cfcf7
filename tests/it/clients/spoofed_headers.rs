//! What a client says of itself, or in the gateway's name, does not reach the upstream in any spelling or place.

use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

use crate::harness::gateway::TestGateway;
use crate::harness::raw_http::{read_until, request};
use crate::harness::scripted_upstream::ScriptedUpstream;

const NO_CONTENT: &str = "HTTP/1.1 204 No Content\r\n\r\n";

#[tokio::test]
async fn a_claim_is_dropped_however_its_name_is_spelled() {
    let stage = TestGateway::new().await;
    let claims = [
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
        let fields: Vec<_> = claims.iter().chain(&kept).map(|name| (*name, "6.6.6.6")).collect();
        stage.send(request(method, "/sim/echo", &fields, "")).await;
        let seen = stage.sim.requests().pop().unwrap();
        let mut claimed: Vec<_> = seen
            .headers
            .iter()
            .filter(|(_, value)| *value == "6.6.6.6")
            .map(|(name, _)| name.as_str())
            .collect();
        claimed.sort_unstable();
        assert_eq!(claimed, kept, "{method}");
        assert_eq!(seen.headers["x-forwarded-for"], "127.0.0.1");
    }
}

#[tokio::test]
async fn the_trailers_of_an_upload_bring_no_claim_and_no_credential_to_the_upstream() {
    let mut upstream = ScriptedUpstream::answering_after("x-sum: 1\r\n\r\n", NO_CONTENT).await;
    let url = upstream.url.clone();
    let stage = TestGateway::without_upstream(|config, _| config.upstream.base_url = url).await;
    let mut stream = TcpStream::connect(stage.address).await.unwrap();
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
