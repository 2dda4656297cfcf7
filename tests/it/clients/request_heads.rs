//! Heads of requests at their limits, on raw sockets: many fields, characters that a target may not have, and HTTP/1.0.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::harness::admin_client::AdminClient;
use crate::harness::gateway::{TestGateway, clip_target, within_secs};
use crate::harness::process::TestClient;
use crate::harness::raw_http::{
    assert_bare_rejection, assert_gateway_error, field, parse_response, read_until, send_raw,
    upstream_request_count,
};

/// Returns a request for `/sim/echo` with this number of header fields.
fn with_fields(count: usize, connection: &str) -> String {
    let fields: String = (2..count).map(|n| format!("x-{n}: y\r\n")).collect();
    format!("GET /sim/echo HTTP/1.1\r\nhost: x\r\nconnection: {connection}\r\n{fields}\r\n")
}

#[tokio::test]
async fn a_request_has_up_to_max_headers_fields_and_one_more_is_431_with_the_name_of_the_limit() {
    let mut gateway = TestGateway::with(|config, _| config.server.max_headers = 256).await;
    let admin = AdminClient::open(&mut gateway).await;
    for count in [150, 256] {
        let back = send_raw(gateway.address, with_fields(count, "close").as_bytes()).await;
        let (answer, _) = parse_response(&back).unwrap();
        let echo: serde_json::Value = serde_json::from_slice(&answer.body).unwrap();
        assert_eq!(answer.status, 200);
        assert!(echo.to_string().contains(&format!("x-{}", count - 1)), "each field reaches the upstream");
    }
    let seen = upstream_request_count(&gateway);
    // The connection stays: its next request is answered.
    let both = with_fields(257, "keep-alive") + &with_fields(3, "close");
    let back = send_raw(gateway.address, both.as_bytes()).await;
    let (answer, rest) = parse_response(&back).unwrap();
    let message = assert_gateway_error(&answer, 431, "headers-too-large");
    assert!(message.contains("server.max_headers"), "{message}");
    assert_eq!(parse_response(rest).unwrap().0.status, 200);
    // hyper rejects a head with more than twice as many.
    assert_bare_rejection(&send_raw(gateway.address, with_fields(513, "close").as_bytes()).await, 431);
    assert_eq!(upstream_request_count(&gateway), seen + 1);
    admin.assert_rejected(2).await;
}

#[tokio::test]
async fn a_request_has_up_to_100_fields_by_default() {
    let gateway = TestGateway::new().await;
    let back = send_raw(gateway.address, with_fields(100, "close").as_bytes()).await;
    assert_eq!(parse_response(&back).unwrap().0.status, 200);
    assert_bare_rejection(&send_raw(gateway.address, with_fields(101, "close").as_bytes()).await, 431);
    assert_eq!(upstream_request_count(&gateway), 1);
}

#[tokio::test]
async fn max_headers_counts_the_fields_of_http2_too() {
    let gateway = TestGateway::with(|config, _| config.server.max_headers = 20).await;
    let names: Vec<String> = (0..20).map(|n| format!("x-{n}")).collect();
    let fields: Vec<(&str, &str)> = names.iter().map(|name| (name.as_str(), "y")).collect();
    let mut client = TestClient::h2(TcpStream::connect(gateway.address).await.unwrap()).await;
    let fits = client.get("/sim/echo", &fields[..15]).await;
    assert_eq!(fits.status(), 200, "{fits:?}");
    let more = [&fields[..], &[("x-more", "y")]].concat();
    let rejected = client.get("/sim/echo", &more).await;
    assert_eq!((rejected.status().as_u16(), upstream_request_count(&gateway)), (431, 1));
    assert_eq!(rejected.headers()["cache-status"], "clipgate; detail=headers-too-large");
    let body: serde_json::Value = serde_json::from_slice(rejected.body()).unwrap();
    assert_eq!(body["statusCode"], 431);
}

#[tokio::test]
async fn a_bare_character_that_no_uri_has_is_400_and_its_escape_passes() {
    let gateway = TestGateway::new().await;
    let request = |target: &str| format!("GET {target} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    let rows = [
        ("/sim/echo/<", "/sim/echo/%3C"),
        ("/sim/echo/>", "/sim/echo/%3E"),
        ("/sim/echo/`", "/sim/echo/%60"),
        ("/sim/echo?a=<", "/sim/echo?a=%3C"),
        ("/sim/echo?a=>", "/sim/echo?a=%3E"),
        ("/sim/echo?a=\"", "/sim/echo?a=%22"),
    ];
    for (nth, (bare, escaped)) in rows.iter().enumerate() {
        assert_bare_rejection(&send_raw(gateway.address, request(bare).as_bytes()).await, 400);
        assert_eq!(upstream_request_count(&gateway), nth, "{bare}");
        send_raw(gateway.address, request(escaped).as_bytes()).await;
        assert_eq!(upstream_request_count(&gateway), nth + 1, "{escaped}");
    }
    // Not in RFC 3986 either, but common: passed on as they came.
    for target in ["/sim/echo/\"{}|^", "/sim/echo?a={}|^`"] {
        send_raw(gateway.address, request(target).as_bytes()).await;
        assert_eq!(&*gateway.sim.requests().last().unwrap().target, target);
    }
}

/// Asserts that the bytes begin with a head of HTTP/1.0 with one `Connection` field of this value, and returns the rest.
fn assert_http10<'b>(bytes: &'b [u8], connection: &str) -> &'b [u8] {
    let end = bytes.windows(4).position(|four| four == b"\r\n\r\n").expect("a whole head");
    let head = std::str::from_utf8(&bytes[..end]).unwrap().to_ascii_lowercase();
    assert!(head.starts_with("http/1.0 200 ok\r\n") && !head.contains("transfer-encoding"), "{head}");
    let found: Vec<&str> = head.lines().filter_map(|line| line.strip_prefix("connection: ")).collect();
    assert_eq!(found, [connection], "{head}");
    &bytes[end + 4..]
}

#[tokio::test]
async fn a_body_of_unknown_length_closes_a_kept_alive_connection_of_http10_and_says_so() {
    let gateway = TestGateway::new().await;
    gateway.sim.set_status("a", "completed");
    let request = |target: &str, more: &str| {
        format!(
            "GET {target} HTTP/1.0\r\nhost: x\r\nauthorization: Bearer k\r\nconnection: keep-alive\r\n{more}\r\n"
        )
    };
    // The second request is never answered: the connection ends with the first body.
    let streamed = [
        (request("/sim/stream?n=3&every=10ms", ""), "2"),
        (request(&clip_target("a", "completed"), "accept: text/event-stream\r\n"), "event: done"),
    ];
    for (request, last) in streamed {
        let back = send_raw(gateway.address, (request.clone() + &request).as_bytes()).await;
        let body = String::from_utf8(assert_http10(&back, "close").to_vec()).unwrap();
        assert!(body.contains(last) && !body.contains("HTTP/1."), "{body}");
    }
    // A body of known length keeps the connection.
    let mut stream = TcpStream::connect(gateway.address).await.unwrap();
    for _ in 0..2 {
        stream.write_all(request(&clip_target("a", "completed"), "").as_bytes()).await.unwrap();
        let back = read_until(&mut stream, |back| parse_response(back).is_some()).await;
        assert_http10(&back, "keep-alive");
    }
    // Without keep-alive the connection closes after any response.
    let plain = request(&clip_target("a", "completed"), "").replace("connection: keep-alive\r\n", "");
    let back = send_raw(gateway.address, plain.as_bytes()).await;
    assert_eq!(field(&parse_response(&back).unwrap().0, "connection"), "");
}

#[tokio::test]
async fn a_stop_closes_kept_alive_connections_of_http10_and_says_so() {
    let gateway = TestGateway::new().await;
    gateway.sim.set_status("a", "queued");
    let mut stream = TcpStream::connect(gateway.address).await.unwrap();
    let target = clip_target("a", "completed");
    let request = format!(
        "GET {target} HTTP/1.0\r\nhost: x\r\nauthorization: Bearer k\r\nconnection: keep-alive\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    gateway.wait_until_parked(1).await;
    gateway.stop();
    let mut back = Vec::new();
    within_secs(10, stream.read_to_end(&mut back)).await.unwrap();
    assert_http10(&back, "close");
}
