use std::convert::Infallible;
use std::future::pending;
use std::net::SocketAddr;

use http_body_util::{BodyExt, Channel, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use hyper_util::server::conn::auto;
use prometheus_client::registry::Registry;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot};

use super::*;
use crate::clock;
use crate::config::{self, Config};
use crate::protocol::request::{ForwardedChain, Peer, RequestId};
use crate::upstream::client::tests::tls;

const MAX_BODY: u64 = 64 << 20;
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);

async fn listen() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    (listener, addr)
}

fn unused_metrics() -> Arc<Metrics> {
    Metrics::new(&mut Registry::default())
}

fn passthrough(base_url: &str, max_body: u64, head_timeout: Duration) -> Passthrough {
    let upstream =
        config::UpstreamConfig { base_url: base_url.parse().unwrap(), ..Config::default().upstream };
    Passthrough::new(Client::new(&upstream).unwrap(), max_body, head_timeout, unused_metrics())
}

async fn forward<B>(
    passthrough: &Passthrough,
    request: Request<B>,
    ctx: &RequestCtx,
    account: UpstreamAccount,
) -> Result<PassthroughResponse, PassthroughError>
where
    B: HttpBody<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Into<BoxError>,
{
    let found = FoundFields::of(request.headers());
    let prepared = passthrough.prepare(request, found, |body| body, ctx, account, &RequestSpan::default())?;
    passthrough.forward(prepared, pending()).await
}

/// Serves the passthrough alone, over HTTP/1 and HTTP/2. Errors become a 599 with the reason as body.
async fn gateway(passthrough: Passthrough, authorization: Option<&'static str>) -> SocketAddr {
    let (listener, addr) = listen().await;
    tokio::spawn(async move {
        while let Ok((socket, peer)) = listener.accept().await {
            let passthrough = passthrough.clone();
            tokio::spawn(async move {
                let service = service_fn(move |request: Request<Incoming>| {
                    let passthrough = passthrough.clone();
                    async move {
                        let ctx = RequestCtx {
                            id: RequestId::new(Some(&HeaderValue::from_static("req-1"))),
                            forwarded: ForwardedChain::from_peer(Peer::Tcp(peer)),
                            is_tls: false,
                            arrived: clock::now(),
                        };
                        let credential = authorization.map(|value| {
                            Credential::lent((header::AUTHORIZATION, HeaderValue::from_static(value)), &[])
                        });
                        let account = UpstreamAccount { credential, is_lent: false };
                        let response = match forward(&passthrough, request, &ctx, account).await {
                            Ok(passed) => {
                                passed.tunnel.map(tokio::spawn);
                                passed.response
                            }
                            Err(error) => {
                                Response::builder().status(599).body(Body::full(error.reason())).unwrap()
                            }
                        };
                        Ok::<_, Infallible>(response)
                    }
                });
                let mut builder = auto::Builder::new(TokioExecutor::new());
                builder.http1().timer(TokioTimer::new());
                let _ = builder.serve_connection_with_upgrades(TokioIo::new(socket), service).await;
            });
        }
    });
    addr
}

/// Starts an upstream whose connections the test serves, and a gateway in front of it.
async fn raw_upstream() -> (TcpListener, SocketAddr) {
    let (listener, addr) = listen().await;
    let gateway = gateway(passthrough(&format!("http://{addr}"), MAX_BODY, HEAD_TIMEOUT), None).await;
    (listener, gateway)
}

async fn accept(listener: &TcpListener) -> BufReader<TcpStream> {
    BufReader::new(listener.accept().await.unwrap().0)
}

async fn connect(addr: SocketAddr, text: &str) -> BufReader<TcpStream> {
    let mut socket = TcpStream::connect(addr).await.unwrap();
    socket.write_all(text.as_bytes()).await.unwrap();
    BufReader::new(socket)
}

/// Reads the head of a message.
async fn read_head(socket: &mut BufReader<TcpStream>) -> String {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        assert_ne!(socket.read_line(&mut head).await.unwrap(), 0, "ended in {head:?}");
    }
    head
}

async fn read_exact(socket: &mut BufReader<TcpStream>, expected: &str) {
    let mut bytes = vec![0; expected.len()];
    socket.read_exact(&mut bytes).await.unwrap();
    assert_eq!(String::from_utf8_lossy(&bytes), expected);
}

async fn write(socket: &mut BufReader<TcpStream>, text: &str) {
    socket.write_all(text.as_bytes()).await.unwrap();
}

/// Waits for the end of the connection or an error.
async fn closed(socket: &mut BufReader<TcpStream>) {
    let mut rest = Vec::new();
    let _ = socket.read_to_end(&mut rest).await;
}

/// Asserts that the gateway made no connection. One made before the response just read would be in the kernel's queue.
fn assert_no_connection(listener: TcpListener) {
    let accepted = listener.into_std().unwrap().accept();
    assert_eq!(accepted.map(|_| ()).unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
}

/// Returns the head of the request at the upstream, and the head of the response at the client.
async fn exchange(request: &str, response: &str) -> (String, String) {
    let (listener, gateway) = raw_upstream().await;
    let mut client = connect(gateway, request).await;
    let mut upstream = accept(&listener).await;
    let seen = read_head(&mut upstream).await;
    write(&mut upstream, response).await;
    (seen, read_head(&mut client).await)
}

const NO_CONTENT: &str = "HTTP/1.1 204 No Content\r\n\r\n";

async fn h2(addr: SocketAddr) -> hyper::client::conn::http2::SendRequest<Body> {
    let socket = TokioIo::new(TcpStream::connect(addr).await.unwrap());
    let (send, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), socket).await.unwrap();
    tokio::spawn(connection);
    send
}

#[tokio::test]
async fn a_request_gains_the_gateways_fields_and_loses_hop_by_hop_fields() {
    let (seen, response) = exchange(
        "GET /a//b/../%2e?q=%5B%5D HTTP/1.1\r\nHost: gw.example:80\r\nAuthorization: Bearer k\r\n\
         Connection: keep-alive, x-hop, x-request-id\r\nX-Hop: 1\r\nX-Request-Id: theirs\r\n\
         X-Forwarded-For: 1.1.1.1\r\nX-Real-IP: 1.1.1.1\r\nVia: 1.0 fred\r\nX-End: 1\r\n\r\n",
        "HTTP/1.1 404 Nothing Here\r\nServer: up\r\nDate: Tue, 24 Nov 2026 20:46:15 GMT\r\n\
         X-Request-Id: ups\r\nConnection: x-hop\r\nX-Hop: 1\r\nKeep-Alive: timeout=5\r\nVia: 1.1 cdn\r\n\
         Cache-Control: public\r\nContent-Length: 0\r\n\r\n",
    )
    .await;
    assert!(seen.starts_with("GET /a//b/../%2e?q=%5B%5D HTTP/1.1\r\n"), "{seen}");
    for line in [
        "authorization: Bearer k",
        "x-request-id: req-1",
        "x-forwarded-for: 127.0.0.1",
        "x-forwarded-proto: http",
        "x-forwarded-host: gw.example:80",
        "forwarded: for=127.0.0.1;proto=http;host=\"gw.example:80\"",
        "via: 1.0 fred",
        "via: 1.1 clipgate",
        "x-end: 1",
        "host: 127.0.0.1:",
    ] {
        assert!(seen.contains(&format!("\r\n{line}")), "{line} in {seen}");
    }
    for gone in ["x-hop", "theirs", "1.1.1.1", "x-real-ip", "connection:", "\r\nhost: gw", "content-length"] {
        assert!(!seen.contains(gone), "{gone} in {seen}");
    }
    assert!(response.starts_with("HTTP/1.1 404 Nothing Here\r\n"), "{response}");
    for line in [
        "server: up",
        "date: Tue, 24 Nov 2026 20:46:15 GMT",
        "x-request-id: ups",
        "via: 1.1 cdn",
        "via: 1.1 clipgate",
        "cache-control: public",
        "content-length: 0",
    ] {
        assert!(response.contains(&format!("\r\n{line}\r\n")), "{line} in {response}");
    }
    for gone in ["x-hop", "keep-alive"] {
        assert!(!response.contains(gone), "{gone} in {response}");
    }
}

#[tokio::test]
async fn the_gateways_key_replaces_the_clients_and_connection_cannot_remove_it() {
    let (listener, addr) = listen().await;
    let passthrough = passthrough(&format!("http://{addr}"), MAX_BODY, HEAD_TIMEOUT);
    let gateway = gateway(passthrough, Some("Bearer gateway")).await;
    let _client = connect(
        gateway,
        "GET / HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer client\r\nConnection: authorization, host\r\n\r\n",
    )
    .await;
    let seen = read_head(&mut accept(&listener).await).await;
    assert!(seen.contains("\r\nauthorization: Bearer gateway\r\n"), "{seen}");
    assert!(seen.contains(&format!("\r\nhost: {addr}\r\n")), "{seen}");
    assert!(!seen.contains("client"), "{seen}");
}

#[tokio::test]
async fn a_response_without_a_date_gets_one() {
    let (_, response) = exchange("GET / HTTP/1.1\r\nHost: a\r\n\r\n", NO_CONTENT).await;
    assert!(response.contains("\r\ndate: "), "{response}");
}

#[tokio::test]
async fn targets_that_resemble_urls_are_sent_to_the_upstream_unchanged() {
    for target in ["//evil/path", "/\\evil", "/@evil/", "/../x", "/http://evil/", "/a?u=http://evil/"] {
        let (seen, _) = exchange(&format!("GET {target} HTTP/1.1\r\nHost: evil\r\n\r\n"), NO_CONTENT).await;
        assert!(seen.starts_with(&format!("GET {target} HTTP/1.1\r\n")), "{seen}");
        assert!(seen.contains("\r\nhost: 127.0.0.1:"), "{seen}");
    }
}

#[tokio::test]
async fn an_absolute_form_never_chooses_the_host() {
    for (host, target) in [("evil:80", "http://EVIL/x?y"), ("gw:8080", "http://gw:8080/x?y")] {
        let (seen, _) = exchange(&format!("GET {target} HTTP/1.1\r\nHost: {host}\r\n\r\n"), NO_CONTENT).await;
        assert!(seen.starts_with("GET /x?y HTTP/1.1\r\n"), "{seen}");
        assert!(seen.contains("\r\nhost: 127.0.0.1:"), "{seen}");
    }
}

#[tokio::test]
async fn requests_to_other_servers_are_rejected_and_not_sent() {
    let (listener, gateway) = raw_upstream().await;
    for (request, reason) in [
        ("CONNECT evil:443 HTTP/1.1\r\nHost: evil:443", "connect-unsupported"),
        ("GET http://evil/ HTTP/1.1\r\nHost: gw", "misdirected"),
        ("GET http://evil:81/ HTTP/1.1\r\nHost: evil", "misdirected"),
        ("GET http://gw/ HTTP/1.1\r\nX-No: host", "misdirected"),
        ("GET http://user@gw/ HTTP/1.1\r\nHost: gw", "misdirected"),
        ("GET ftp://gw/ HTTP/1.1\r\nHost: gw", "misdirected"),
        ("OPTIONS * HTTP/1.1\r\nHost: gw", "bad-target"),
        ("GET evil:80 HTTP/1.1\r\nHost: gw", "bad-target"),
    ] {
        let mut client = connect(gateway, &format!("{request}\r\nConnection: close\r\n\r\n")).await;
        let mut response = String::new();
        client.read_to_string(&mut response).await.unwrap();
        assert!(response.starts_with("HTTP/1.1 599 ") && response.ends_with(reason), "{request}: {response}");
    }
    assert_no_connection(listener);
}

#[tokio::test]
async fn an_upload_is_streamed_while_the_client_sends_it() {
    let (listener, gateway) = raw_upstream().await;
    let mut client =
        connect(gateway, "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\none\r\n")
            .await;
    let mut upstream = accept(&listener).await;
    let head = read_head(&mut upstream).await;
    assert!(head.contains("\r\ntransfer-encoding: chunked\r\n"), "{head}");
    read_exact(&mut upstream, "3\r\none\r\n").await;
    write(&mut client, "3\r\ntwo\r\n0\r\n\r\n").await;
    read_exact(&mut upstream, "3\r\ntwo\r\n0\r\n\r\n").await;
}

#[tokio::test]
async fn a_known_content_length_is_kept() {
    let (seen, _) = exchange("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\none", NO_CONTENT).await;
    assert!(seen.contains("\r\ncontent-length: 3\r\n") && !seen.contains("transfer-encoding"), "{seen}");
    let (seen, _) = exchange("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n", NO_CONTENT).await;
    assert!(seen.contains("\r\ncontent-length: 0\r\n"), "{seen}");
}

#[tokio::test]
async fn a_get_with_a_chunked_body_keeps_it() {
    let (listener, gateway) = raw_upstream().await;
    let _client = connect(
        gateway,
        "GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\none\r\n0\r\n\r\n",
    )
    .await;
    let mut upstream = accept(&listener).await;
    read_head(&mut upstream).await;
    read_exact(&mut upstream, "3\r\none\r\n0\r\n\r\n").await;
}

#[tokio::test]
async fn an_upload_that_the_upstream_does_not_read_is_not_read_from_the_client() {
    const LENGTH: usize = 64 << 20;
    const HELD: usize = 24 << 20; // the sockets' buffers on both sides; hyper's own are under 1 MiB
    let (listener, gateway) = raw_upstream().await;
    let mut client =
        connect(gateway, &format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {LENGTH}\r\n\r\n")).await;
    let mut upstream = accept(&listener).await;
    read_head(&mut upstream).await;
    // The upstream reads nothing. The client writes until no byte was accepted for a while. A time-out that is too
    // short can only hide a failure, not cause one.
    let chunk = vec![b'x'; 64 << 10];
    let mut sent = 0;
    while let Ok(written) =
        tokio::time::timeout(Duration::from_millis(300), client.get_mut().write(&chunk)).await
    {
        sent += written.unwrap();
        assert!(sent < HELD, "{sent} bytes are buffered");
    }
    // Once the upstream reads, all of it arrives.
    let (mut reading, mut writing) = tokio::io::split(client.into_inner());
    let pushing = async {
        while sent < LENGTH {
            let more = chunk.len().min(LENGTH - sent);
            sent += writing.write(&chunk[..more]).await.unwrap();
        }
    };
    let draining = async {
        let mut buffer = vec![0; 64 << 10];
        let mut read = 0;
        while read < LENGTH {
            read += upstream.read(&mut buffer).await.unwrap();
        }
        write(&mut upstream, NO_CONTENT).await;
        read
    };
    let ((), read) = tokio::join!(pushing, draining);
    assert_eq!(read, LENGTH);
    let mut response = [0; 12];
    reading.read_exact(&mut response).await.unwrap();
    assert_eq!(&response, b"HTTP/1.1 204");
}

#[tokio::test]
async fn events_of_the_upstream_are_not_buffered() {
    let (listener, gateway) = raw_upstream().await;
    let mut client = connect(gateway, "GET /events HTTP/1.1\r\nHost: a\r\n\r\n").await;
    let mut upstream = accept(&listener).await;
    read_head(&mut upstream).await;
    let head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n";
    write(&mut upstream, head).await;
    read_head(&mut client).await;
    for event in ["data:1\n\n", "data:2\n\n"] {
        let chunk = format!("{:X}\r\n{event}\r\n", event.len());
        write(&mut upstream, &chunk).await;
        read_exact(&mut client, &chunk).await;
    }
}

#[tokio::test]
async fn announced_trailers_pass_in_both_directions() {
    let (listener, gateway) = raw_upstream().await;
    let mut client = connect(
        gateway,
        "POST / HTTP/1.1\r\nHost: a\r\nTE: trailers\r\nConnection: te\r\nTrailer: x-sum\r\n\
         Transfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\nx-sum: 1\r\n\r\n",
    )
    .await;
    let mut upstream = accept(&listener).await;
    let head = read_head(&mut upstream).await;
    assert!(head.contains("\r\nte: trailers\r\n") && head.contains("\r\ntrailer: x-sum\r\n"), "{head}");
    read_exact(&mut upstream, "1\r\na\r\n0\r\nx-sum: 1\r\n\r\n").await;
    let response = "HTTP/1.1 200 OK\r\nTrailer: x-sum\r\nTransfer-Encoding: chunked\r\n\r\n\
                  1\r\nb\r\n0\r\nx-sum: 2\r\n\r\n";
    write(&mut upstream, response).await;
    read_head(&mut client).await;
    read_exact(&mut client, "1\r\nb\r\n0\r\nx-sum: 2\r\n\r\n").await;
}

#[tokio::test]
async fn a_client_that_waits_for_100_continue_gets_it() {
    let (listener, gateway) = raw_upstream().await;
    let request = "POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n";
    let mut client = connect(gateway, request).await;
    let mut upstream = accept(&listener).await;
    assert_eq!(read_head(&mut client).await, "HTTP/1.1 100 Continue\r\n\r\n");
    write(&mut client, "one").await;
    read_head(&mut upstream).await;
    read_exact(&mut upstream, "one").await;
    write(&mut upstream, &format!("HTTP/1.1 100 Continue\r\n\r\n{NO_CONTENT}")).await;
    assert!(read_head(&mut client).await.starts_with("HTTP/1.1 204"));
}

#[tokio::test]
async fn a_disconnect_before_the_response_ends_the_upstream_request() {
    let (listener, gateway) = raw_upstream().await;
    let client = connect(gateway, "GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    let mut upstream = accept(&listener).await;
    read_head(&mut upstream).await;
    drop(client);
    closed(&mut upstream).await;
}

#[tokio::test]
async fn a_disconnect_during_the_upload_ends_the_upstream_request() {
    let (listener, gateway) = raw_upstream().await;
    let client = connect(gateway, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\none").await;
    let mut upstream = accept(&listener).await;
    read_head(&mut upstream).await;
    drop(client);
    closed(&mut upstream).await;
}

#[tokio::test]
async fn a_disconnect_during_the_response_ends_the_upstream_request() {
    let (listener, gateway) = raw_upstream().await;
    let mut client = connect(gateway, "GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    let mut upstream = accept(&listener).await;
    read_head(&mut upstream).await;
    write(&mut upstream, "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\none").await;
    read_head(&mut client).await;
    drop(client);
    closed(&mut upstream).await;
}

#[tokio::test]
async fn a_reset_of_an_http_2_stream_ends_the_upstream_request() {
    let (listener, gateway) = raw_upstream().await;
    let mut send = h2(gateway).await;
    let request = Request::get("http://gw/").body(Body::empty()).unwrap();
    let sending = tokio::spawn(send.send_request(request));
    let mut upstream = accept(&listener).await;
    read_head(&mut upstream).await;
    sending.abort();
    closed(&mut upstream).await;
}

#[tokio::test]
async fn a_content_length_over_the_limit_is_rejected_before_the_request_is_sent() {
    let (listener, addr) = listen().await;
    let gateway = gateway(passthrough(&format!("http://{addr}"), 3, HEAD_TIMEOUT), None).await;
    let mut client = connect(gateway, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\n").await;
    assert!(read_head(&mut client).await.starts_with("HTTP/1.1 599"));
    read_exact(&mut client, "body-too-large").await;
    assert_no_connection(listener);
}

#[tokio::test]
async fn a_chunked_body_over_the_limit_ends_incomplete_at_the_upstream() {
    let (listener, addr) = listen().await;
    let gateway = gateway(passthrough(&format!("http://{addr}"), 5, HEAD_TIMEOUT), None).await;
    let request = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\none\r\n";
    let mut client = connect(gateway, request).await;
    let mut upstream = accept(&listener).await;
    read_head(&mut upstream).await;
    read_exact(&mut upstream, "3\r\none\r\n").await;
    write(&mut client, "3\r\ntwo\r\n").await;
    assert!(read_head(&mut client).await.starts_with("HTTP/1.1 599"));
    read_exact(&mut client, "body-too-large").await;
    let mut rest = Vec::new();
    let _ = upstream.read_to_end(&mut rest).await;
    assert!(rest.is_empty(), "the body is incomplete for the upstream: {rest:?}");
}

#[tokio::test]
async fn a_response_that_does_not_begin_in_time_ends_the_upstream_request() {
    let (listener, addr) = listen().await;
    let passthrough = passthrough(&format!("http://{addr}"), MAX_BODY, Duration::from_millis(50));
    let gateway = gateway(passthrough, None).await;
    let mut client = connect(gateway, "GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    let mut upstream = accept(&listener).await;
    read_head(&mut upstream).await;
    read_head(&mut client).await;
    read_exact(&mut client, "upstream-timeout").await;
    closed(&mut upstream).await;
}

#[tokio::test]
async fn progress_of_the_upload_extends_the_head_timeout() {
    // A step may be late by two steps on a busy machine.
    const STEP: Duration = Duration::from_millis(500);
    let progress = UploadProgress::new();
    let (listener, addr) = listen().await;
    let passthrough = passthrough(&format!("http://{addr}"), MAX_BODY, STEP * 3);
    let (response, waiting) = oneshot::channel::<()>();
    let moving = async {
        let began = clock::now();
        let mut steps = tokio::time::interval(STEP);
        while clock::now() < began + STEP * 4 {
            steps.tick().await;
            progress.record(None);
        }
        response.send(()).unwrap();
    };
    let sending = async {
        waiting.await.unwrap();
        drop(listener);
        passthrough.client.send(Request::new(Body::empty())).await
    };
    let (sending, revoked) = (pin!(sending), pin!(pending()));
    let (outcome, ()) =
        tokio::join!(passthrough.response_head(clock::now(), Some(&progress), sending, revoked), moving);
    assert!(matches!(outcome, Err(PassthroughError::Send(_))), "the result is that of the client");
}

#[tokio::test]
async fn a_request_that_the_upstream_may_have_received_is_not_sent_again() {
    let (listener, gateway) = raw_upstream().await;
    let request = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\none";
    let mut client = connect(gateway, &request.repeat(2)).await;
    let mut upstream = accept(&listener).await;
    read_head(&mut upstream).await;
    read_exact(&mut upstream, "one").await;
    write(&mut upstream, NO_CONTENT).await;
    assert!(read_head(&mut client).await.starts_with("HTTP/1.1 204"));
    // The second request comes over the same connection, which then breaks.
    read_head(&mut upstream).await;
    drop(upstream);
    assert!(read_head(&mut client).await.starts_with("HTTP/1.1 599"));
    read_exact(&mut client, "upstream-reset").await;
    assert_no_connection(listener);
}

const UPGRADE: &str = "GET /ws HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, Upgrade\r\n";

#[tokio::test]
async fn an_upgraded_connection_is_a_tunnel_both_ways_until_it_ends() {
    let (listener, gateway) = raw_upstream().await;
    let mut client =
        connect(gateway, &format!("{UPGRADE}Upgrade: websocket, h2c\r\nSec-WebSocket-Key: k\r\n\r\n")).await;
    let mut upstream = accept(&listener).await;
    let seen = read_head(&mut upstream).await;
    for line in ["connection: upgrade", "upgrade: websocket", "sec-websocket-key: k", "x-request-id: req-1"] {
        assert!(seen.contains(&format!("\r\n{line}\r\n")), "{line} in {seen}");
    }
    let response = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                  Sec-WebSocket-Accept: k\r\n\r\nearly";
    write(&mut upstream, response).await;
    let head = read_head(&mut client).await;
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    for line in ["connection: upgrade", "upgrade: websocket", "sec-websocket-accept: k", "via: 1.1 clipgate"]
    {
        assert!(head.contains(&format!("\r\n{line}\r\n")), "{line} in {head}");
    }
    read_exact(&mut client, "early").await;
    write(&mut client, "\0ping").await;
    read_exact(&mut upstream, "\0ping").await;
    write(&mut upstream, "\0pong").await;
    read_exact(&mut client, "\0pong").await;
    client.get_mut().shutdown().await.unwrap();
    closed(&mut upstream).await;
    write(&mut upstream, "bye").await;
    drop(upstream);
    read_exact(&mut client, "bye").await;
    closed(&mut client).await;
}

#[tokio::test]
async fn a_rejected_upgrade_is_an_ordinary_response() {
    let (listener, gateway) = raw_upstream().await;
    let mut client = connect(gateway, &format!("{UPGRADE}Upgrade: websocket\r\n\r\n")).await;
    let mut upstream = accept(&listener).await;
    read_head(&mut upstream).await;
    write(&mut upstream, "HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno").await;
    assert!(read_head(&mut client).await.starts_with("HTTP/1.1 403 "));
    read_exact(&mut client, "no").await;
}

#[tokio::test]
async fn an_upgrade_to_http_2_is_ignored() {
    for protocol in ["h2c", "H2C, h2"] {
        let request = format!("{UPGRADE}Upgrade: {protocol}\r\nHTTP2-Settings: AAMAAABk\r\n\r\n");
        let (seen, response) = exchange(&request, NO_CONTENT).await;
        assert!(!seen.contains("upgrade") && !seen.contains("http2-settings"), "{seen}");
        assert!(response.starts_with("HTTP/1.1 204 "), "{response}");
    }
}

#[tokio::test]
async fn an_unrequested_protocol_switch_is_an_error() {
    let (_, response) = exchange(
        "GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n",
    )
    .await;
    assert!(response.starts_with("HTTP/1.1 599 "), "{response}");
}

#[tokio::test]
async fn an_http_1_0_client_gets_an_unchunked_body() {
    let (listener, gateway) = raw_upstream().await;
    let mut client = connect(gateway, "GET / HTTP/1.0\r\n\r\n").await;
    let mut upstream = accept(&listener).await;
    let seen = read_head(&mut upstream).await;
    assert!(seen.starts_with("GET / HTTP/1.1\r\n") && seen.contains("\r\nvia: 1.0 clipgate\r\n"), "{seen}");
    assert!(!seen.contains("x-forwarded-host"), "{seen}");
    write(&mut upstream, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\none\r\n0\r\n\r\n").await;
    let mut response = String::new();
    client.read_to_string(&mut response).await.unwrap();
    assert!(response.ends_with("\r\n\r\none") && !response.contains("chunked"), "{response}");
}

#[tokio::test]
async fn an_http_1_0_upstream_does_not_change_the_clients_version() {
    let response = "HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n";
    let (_, response) = exchange("GET / HTTP/1.1\r\nHost: a\r\n\r\n", response).await;
    assert!(
        response.starts_with("HTTP/1.1 200 ") && response.contains("\r\nvia: 1.0 clipgate\r\n"),
        "{response}"
    );
}

#[tokio::test]
async fn an_http_2_request_is_translated_to_http_1() {
    let (listener, gateway) = raw_upstream().await;
    let mut send = h2(gateway).await;
    let (mut body, receiver) = Channel::<Bytes, Infallible>::new(1);
    let request = Request::post("http://gw.example/x?y")
        .header("cookie", "a=1")
        .header("cookie", "b=2")
        .header("te", "trailers")
        .body(Body::stream(receiver))
        .unwrap();
    let sending = tokio::spawn(send.send_request(request));
    let mut upstream = accept(&listener).await;
    let seen = read_head(&mut upstream).await;
    assert!(seen.starts_with("POST /x?y HTTP/1.1\r\n"), "{seen}");
    for line in [
        "cookie: a=1; b=2",
        "te: trailers",
        "transfer-encoding: chunked",
        "x-forwarded-host: gw.example",
        "via: 2.0 clipgate",
    ] {
        assert!(seen.contains(&format!("\r\n{line}\r\n")), "{line} in {seen}");
    }
    assert_eq!(seen.matches("\r\nhost: ").count(), 1, "{seen}");
    body.send_data(Bytes::from_static(b"one")).await.unwrap();
    read_exact(&mut upstream, "3\r\none\r\n").await;
    drop(body);
    read_exact(&mut upstream, "0\r\n\r\n").await;
    let response = "HTTP/1.1 200 OK\r\nConnection: keep-alive\r\nTransfer-Encoding: chunked\r\n\r\n\
                  3\r\ntwo\r\n0\r\nx-sum: 1\r\n\r\n";
    write(&mut upstream, response).await;
    let response = sending.await.unwrap().unwrap();
    for gone in ["connection", "transfer-encoding"] {
        assert!(!response.headers().contains_key(gone), "{gone}");
    }
    let collected = response.into_body().collect().await.unwrap();
    assert_eq!(collected.trailers().unwrap()["x-sum"], "1");
    assert_eq!(collected.to_bytes(), "two");
}

#[tokio::test]
async fn an_http_2_request_whose_host_differs_from_its_authority_is_rejected() {
    let (_listener, gateway) = raw_upstream().await;
    let mut send = h2(gateway).await;
    let request = Request::get("http://gw/").header("host", "evil").body(Body::empty()).unwrap();
    let response = send.send_request(request).await.unwrap();
    assert_eq!(response.status(), 599);
    assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "misdirected");
}

#[tokio::test]
async fn a_failed_connection_is_not_reported_as_a_failed_upload() {
    let (listener, addr) = listen().await;
    drop(listener);
    let passthrough = passthrough(&format!("http://{addr}"), MAX_BODY, HEAD_TIMEOUT);
    let ctx = RequestCtx {
        id: RequestId::new(None),
        forwarded: ForwardedChain::from_peer(Peer::Unix),
        is_tls: false,
        arrived: clock::now(),
    };
    let request = Request::post("/").body(Full::new(Bytes::from_static(b"one"))).unwrap();
    let Err(error) = forward(&passthrough, request, &ctx, UpstreamAccount::default()).await else {
        panic!("a response without an upstream")
    };
    assert!(matches!(error, PassthroughError::Send(SendError::Connect(_))), "{error:?}");
}

#[tokio::test]
async fn an_incomplete_body_is_reported_as_a_failed_upload() {
    let (listener, addr) = listen().await;
    let passthrough = passthrough(&format!("http://{addr}"), MAX_BODY, HEAD_TIMEOUT);
    let ctx = RequestCtx {
        id: RequestId::new(None),
        forwarded: ForwardedChain::from_peer(Peer::Unix),
        is_tls: false,
        arrived: clock::now(),
    };
    let (sender, body) = Channel::<Bytes, std::io::Error>::new(1);
    let request = Request::post("/").body(body).unwrap();
    let (heads, mut seen) = mpsc::channel(1);
    let upstream = async {
        let mut upstream = accept(&listener).await;
        heads.send(read_head(&mut upstream).await).await.unwrap();
        sender.abort(std::io::Error::other("gone"));
        closed(&mut upstream).await;
    };
    let (outcome, ()) =
        tokio::join!(forward(&passthrough, request, &ctx, UpstreamAccount::default()), upstream);
    assert!(seen.recv().await.unwrap().contains("\r\nx-forwarded-for: unknown\r\n"));
    assert!(matches!(outcome, Err(PassthroughError::Upload(_))));
}

/// Starts an HTTP/2 upstream with this handler, and a gateway in front of it.
async fn in_front_of_h2<S, F>(max_body: u64, serve: S) -> SocketAddr
where
    S: Fn(Request<Incoming>) -> F + Send + Sync + Copy + 'static,
    F: Future<Output = Response<Body>> + Send + 'static,
{
    let (listener, addr) = listen().await;
    let (acceptor, trusting) = tls(&["h2"]);
    tokio::spawn(async move {
        let (socket, _) = listener.accept().await.unwrap();
        let stream = TokioIo::new(acceptor.accept(socket).await.unwrap());
        let service = service_fn(|request| async move { Ok::<_, Infallible>(serve(request).await) });
        let builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
        let _ = builder.serve_connection(stream, service).await;
    });
    let base_url = format!("https://localhost:{}", addr.port()).parse().unwrap();
    let upstream = config::UpstreamConfig { base_url, ..Config::default().upstream };
    let client = Client::with_tls(&upstream, trusting).unwrap();
    gateway(Passthrough::new(client, max_body, HEAD_TIMEOUT, unused_metrics()), None).await
}

#[tokio::test]
async fn an_http_1_request_is_translated_to_http_2() {
    let gateway = in_front_of_h2(MAX_BODY, |request| async move {
        let fields = request.headers();
        let host = request.uri().authority().unwrap().host().to_owned();
        let strays = ["host", "connection", "transfer-encoding", "upgrade"].iter();
        let strays = strays.filter(|name| fields.contains_key(**name)).count();
        let via = fields["via"].to_str().unwrap().to_owned();
        let sent = request.into_body().collect().await.unwrap().to_bytes();
        Response::new(Body::full(format!("{host} {strays} {via} {}", String::from_utf8_lossy(&sent))))
    })
    .await;
    let mut client = connect(
        gateway,
        "POST / HTTP/1.1\r\nHost: a\r\nConnection: te, close\r\nTE: trailers, gzip\r\n\
         Transfer-Encoding: chunked\r\n\r\n3\r\none\r\n0\r\n\r\n",
    )
    .await;
    let mut response = String::new();
    client.read_to_string(&mut response).await.unwrap();
    assert!(response.starts_with("HTTP/1.1 200 OK\r\n"), "{response}");
    assert!(response.contains("\r\nvia: 2.0 clipgate\r\n"), "{response}");
    assert!(response.ends_with("\r\n\r\nlocalhost 0 1.1 clipgate one"), "{response}");
}

#[tokio::test]
async fn a_chunked_body_over_the_limit_is_reported_in_front_of_an_http_2_upstream() {
    let gateway = in_front_of_h2(5, |request| async move {
        let cut = request.into_body().collect().await.is_err();
        assert!(cut, "the body is incomplete for the upstream");
        Response::new(Body::empty())
    })
    .await;
    let request = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n9\r\none two t\r\n";
    let mut client = connect(gateway, request).await;
    assert!(read_head(&mut client).await.starts_with("HTTP/1.1 599"));
    read_exact(&mut client, "body-too-large").await;
}
