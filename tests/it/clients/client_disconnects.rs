//! A client's disconnect is noticed at once, with any bytes sent before it (P6).

use std::net::SocketAddr;
use std::time::Duration;

use clipgate::sim::RequestEnd;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use crate::harness::gateway::{TestGateway, clip_target, within_secs};
use crate::harness::raw_http::{parse_response, read_until};

fn head(target: &str) -> String {
    format!("GET {target} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer demo\r\n\r\n")
}

/// Bytes that a client may have sent after its request.
fn further_bytes() -> [(&'static str, Vec<u8>); 6] {
    let wait = head(&clip_target("b", "completed"));
    [
        ("nothing", vec![]),
        ("an empty line", b"\r\n".to_vec()),
        ("half a head", b"GET / HT".to_vec()),
        ("a request", wait.clone().into_bytes()),
        ("60 kB of requests", wait.repeat(60_000 / wait.len()).into_bytes()),
        ("zero bytes", vec![0; 1000]),
    ]
}

#[tokio::test]
async fn a_disconnect_ends_the_wait_at_once_with_any_bytes_sent_after_it() {
    let further = further_bytes();
    for (what, rest) in &further {
        for is_at_once in [true, false] {
            for is_half_closed in [true, false] {
                let gateway = TestGateway::with_hold(Duration::from_secs(60)).await;
                gateway.sim.set_status("a", "queued");
                gateway.sim.set_status("b", "queued");
                let mut stream = TcpStream::connect(gateway.address).await.unwrap();
                let wait = head(&clip_target("a", "completed")).into_bytes();
                if is_at_once {
                    stream.write_all(&[&wait[..], rest].concat()).await.unwrap();
                    gateway.wait_until(|seen| seen.open == 1).await;
                } else {
                    stream.write_all(&wait).await.unwrap();
                    gateway.wait_until(|seen| seen.open == 1).await;
                    stream.write_all(rest).await.unwrap();
                }
                let shown = format!("{what}, at once {is_at_once}, half-closed {is_half_closed}");
                // Both count as a disconnect, as in nginx.
                if is_half_closed {
                    stream.shutdown().await.unwrap();
                } else {
                    drop(stream);
                }
                let gone = async {
                    gateway.wait_until_parked(0).await;
                    gateway.wait_until(|seen| seen.open == 0 && seen.abandoned() == 1).await;
                };
                // Without a disconnect the wait is held for a minute.
                let came = tokio::time::timeout(Duration::from_secs(30), gone).await;
                assert!(came.is_ok(), "{shown}");
                assert_eq!(gateway.upstream_requests(), [clip_target("a", "completed")], "{shown}");
            }
        }
    }
    assert_eq!(further.len(), 6);
}

#[tokio::test]
async fn a_disconnect_ends_a_passed_through_response_with_any_bytes_sent_after_it() {
    let gateway = TestGateway::new().await;
    let mut stream = TcpStream::connect(gateway.address).await.unwrap();
    stream.write_all(head("/sim/stream?n=2&every=60s").as_bytes()).await.unwrap();
    read_until(&mut stream, |back| back.ends_with(b"0\n\r\n")).await;
    stream.write_all(head("/sim/echo").as_bytes()).await.unwrap();
    assert_eq!(gateway.sim.requests()[0].end, RequestEnd::Open);
    drop(stream);
    within_secs(30, gateway.sim.wait_until(|seen| seen.abandoned() == 1)).await;
}

#[tokio::test]
async fn pipelined_requests_are_answered_after_the_wait_in_order() {
    let gateway = TestGateway::with_hold(Duration::from_secs(60)).await;
    gateway.sim.set_status("a", "queued");
    gateway.sim.set_status("b", "completed");
    let mut stream = TcpStream::connect(gateway.address).await.unwrap();
    stream.write_all(head(&clip_target("a", "completed")).as_bytes()).await.unwrap();
    gateway.wait_until(|seen| seen.open == 1).await;
    // Some hundred kB, more than the gateway reads ahead; with a body, and with empty lines, which a server skips.
    let padding = "x".repeat(9000);
    let many: Vec<_> =
        (0..40).map(|n| format!("\r\n{}", head(&format!("/sim/echo?n={n}&{padding}")))).collect();
    let body = "7".repeat(100_000);
    let upload = format!("PUT /sim/echo HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n{body}", body.len());
    let rest =
        [head(&clip_target("b", "completed")), many.concat(), upload, head("/sim/status/418")].concat();
    let (mut read, mut write) = stream.into_split();
    let writing = tokio::spawn(async move {
        write.write_all(rest.as_bytes()).await.unwrap();
        write
    });
    // The gateway has read all that fits, and has sent no request out of order.
    tokio::task::yield_now().await;
    assert_eq!(gateway.upstream_requests(), [clip_target("a", "completed")]);
    gateway.sim.set_status("a", "completed");

    let mut back = Vec::new();
    let mut answers = Vec::new();
    while answers.len() < 44 {
        assert!(
            within_secs(10, read.read_buf(&mut back)).await.unwrap() > 0,
            "it ended after {}",
            answers.len()
        );
        let mut rest = &back[..];
        while let Some((answer, after)) = parse_response(rest) {
            answers.push(answer);
            rest = after;
        }
        back = rest.to_vec();
    }
    assert!(back.is_empty());
    assert_eq!(answers[0].body, gateway.sim.body("a", "completed"));
    assert_eq!(answers[1].body, gateway.sim.body("b", "completed"));
    for (n, answer) in answers[2..42].iter().enumerate() {
        let echo: serde_json::Value = serde_json::from_slice(&answer.body).unwrap();
        assert!(echo["target"].as_str().unwrap().starts_with(&format!("/sim/echo?n={n}&")));
    }
    let echo: serde_json::Value = serde_json::from_slice(&answers[42].body).unwrap();
    assert_eq!(echo["body_blake3"], *blake3::hash(body.as_bytes()).to_hex());
    assert_eq!(answers[43].status, 418);
    drop(writing.await.unwrap());
}

#[tokio::test]
async fn a_half_closed_tunnel_still_carries_the_upstreams_bytes() {
    let upstream = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", upstream.local_addr().unwrap());
    let gateway =
        TestGateway::without_upstream(|config, _| config.upstream.base_url = url.parse().unwrap()).await;
    let mut client = TcpStream::connect(gateway.address).await.unwrap();
    let upgrade = "connection: upgrade\r\nupgrade: websocket\r\n\r\n";
    client.write_all(format!("GET / HTTP/1.1\r\nhost: x\r\n{upgrade}").as_bytes()).await.unwrap();
    let (mut server, _) = within_secs(10, upstream.accept()).await.unwrap();
    read_until(&mut server, |seen| seen.ends_with(b"\r\n\r\n")).await;
    server.write_all(format!("HTTP/1.1 101 Switching Protocols\r\n{upgrade}").as_bytes()).await.unwrap();
    read_until(&mut client, |back| back.ends_with(b"\r\n\r\n")).await;

    client.write_all(b"all").await.unwrap();
    client.shutdown().await.unwrap();
    let mut sent = Vec::new();
    within_secs(10, server.read_to_end(&mut sent)).await.unwrap();
    assert_eq!(sent, b"all");
    for piece in ["one", "two", "three"] {
        server.write_all(piece.as_bytes()).await.unwrap();
        read_until(&mut client, |back| back == piece.as_bytes()).await;
    }
}

/// Returns the kernel's timer of a connection: its kind, 2 for keep-alive, and the hundredths of a second until it
/// fires.
fn timer(from: SocketAddr, to: SocketAddr) -> (u8, u64) {
    let of = |address: SocketAddr| match address {
        SocketAddr::V4(v4) => format!("{:08X}:{:04X}", u32::from_ne_bytes(v4.ip().octets()), v4.port()),
        SocketAddr::V6(_) => panic!("the gateway listens on IPv4"),
    };
    let (from, to) = (of(from), of(to));
    let table = std::fs::read_to_string("/proc/self/net/tcp").unwrap();
    let rows: Vec<Vec<&str>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
    let row = rows.iter().find(|row| row[1] == from && row[2] == to).expect("the connection is open");
    let (kind, left) = row[5].split_once(':').unwrap();
    (u8::from_str_radix(kind, 16).unwrap(), u64::from_str_radix(left, 16).unwrap())
}

#[tokio::test]
async fn an_idle_connection_is_probed_after_a_minute() {
    let gateway = TestGateway::with_hold(Duration::from_secs(60)).await;
    gateway.sim.set_status("a", "queued");
    let mut stream = TcpStream::connect(gateway.address).await.unwrap();
    stream.write_all(head(&clip_target("a", "completed")).as_bytes()).await.unwrap();
    gateway.wait_until(|seen| seen.open == 1).await;
    let (kind, left) = timer(gateway.address, stream.local_addr().unwrap());
    assert_eq!(kind, 2, "the keep-alive timer runs");
    assert!((3000..=6100).contains(&left), "{left} hundredths of a second");
}
