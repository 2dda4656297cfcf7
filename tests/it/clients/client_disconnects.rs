//! A client that hangs up is noticed at once, whatever else it has sent (contract, promise 6).

use std::net::SocketAddr;
use std::time::Duration;

use clipgate::sim::RequestEnd;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use crate::harness::gateway::{TestGateway, clip_target, within_secs};
use crate::harness::raw_http::{parse_response, read_until};

/// A request as it goes over the wire.
fn head(target: &str) -> String {
    format!("GET {target} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer demo\r\n\r\n")
}

/// What a client may have sent behind its request by the time that it hangs up.
fn rests() -> [(&'static str, Vec<u8>); 6] {
    let wait = head(&clip_target("b", "completed"));
    [
        ("nothing", vec![]),
        ("a stray line", b"\r\n".to_vec()),
        ("half a head", b"GET / HT".to_vec()),
        ("a request", wait.clone().into_bytes()),
        ("60 kB of requests", wait.repeat(60_000 / wait.len()).into_bytes()),
        ("no request at all", vec![0; 1000]),
    ]
}

#[tokio::test]
async fn a_client_that_hangs_up_is_forgotten_at_once_whatever_followed_its_wait() {
    let rests = rests();
    for (what, rest) in &rests {
        for is_at_once in [true, false] {
            for is_half_closed in [true, false] {
                let stage = TestGateway::with_hold(Duration::from_secs(60)).await;
                stage.sim.set_status("a", "queued");
                stage.sim.set_status("b", "queued");
                let mut stream = TcpStream::connect(stage.address).await.unwrap();
                let wait = head(&clip_target("a", "completed")).into_bytes();
                if is_at_once {
                    stream.write_all(&[&wait[..], rest].concat()).await.unwrap();
                    stage.wait_until(|seen| seen.open == 1).await;
                } else {
                    stream.write_all(&wait).await.unwrap();
                    stage.wait_until(|seen| seen.open == 1).await;
                    stream.write_all(rest).await.unwrap();
                }
                let shown = format!("{what}, at once {is_at_once}, half-closed {is_half_closed}");
                // Both count as hanging up, as they do to nginx.
                if is_half_closed {
                    stream.shutdown().await.unwrap();
                } else {
                    drop(stream);
                }
                let gone = async {
                    stage.wait_until_parked(0).await;
                    stage.wait_until(|seen| seen.open == 0 && seen.abandoned() == 1).await;
                };
                // Left alone the wait is held for a minute.
                let came = tokio::time::timeout(Duration::from_secs(30), gone).await;
                assert!(came.is_ok(), "{shown}");
                assert_eq!(stage.upstream_requests(), [clip_target("a", "completed")], "{shown}");
            }
        }
    }
    assert_eq!(rests.len(), 6);
}

#[tokio::test]
async fn a_client_that_hangs_up_ends_its_stream_whatever_it_has_sent_meanwhile() {
    let stage = TestGateway::new().await;
    let mut stream = TcpStream::connect(stage.address).await.unwrap();
    stream.write_all(head("/sim/stream?n=2&every=60s").as_bytes()).await.unwrap();
    read_until(&mut stream, |back| back.ends_with(b"0\n\r\n")).await;
    stream.write_all(head("/sim/echo").as_bytes()).await.unwrap();
    assert_eq!(stage.sim.requests()[0].end, RequestEnd::Open);
    drop(stream);
    within_secs(30, stage.sim.wait_until(|seen| seen.abandoned() == 1)).await;
}

#[tokio::test]
async fn requests_that_follow_a_wait_are_answered_after_it_in_their_order() {
    let stage = TestGateway::with_hold(Duration::from_secs(60)).await;
    stage.sim.set_status("a", "queued");
    stage.sim.set_status("b", "completed");
    let mut stream = TcpStream::connect(stage.address).await.unwrap();
    stream.write_all(head(&clip_target("a", "completed")).as_bytes()).await.unwrap();
    stage.wait_until(|seen| seen.open == 1).await;
    // Some hundred kB, more than is read ahead; with a body among them, and stray lines, which a server skips.
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
    // As much as fits is on its way now, and nothing of it has been answered out of turn.
    tokio::task::yield_now().await;
    assert_eq!(stage.upstream_requests(), [clip_target("a", "completed")]);
    stage.sim.set_status("a", "completed");

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
    assert_eq!(answers[0].body, stage.sim.body("a", "completed"));
    assert_eq!(answers[1].body, stage.sim.body("b", "completed"));
    for (n, answer) in answers[2..42].iter().enumerate() {
        let told: serde_json::Value = serde_json::from_slice(&answer.body).unwrap();
        assert!(told["target"].as_str().unwrap().starts_with(&format!("/sim/echo?n={n}&")));
    }
    let told: serde_json::Value = serde_json::from_slice(&answers[42].body).unwrap();
    assert_eq!(told["body_blake3"], *blake3::hash(body.as_bytes()).to_hex());
    assert_eq!(answers[43].status, 418);
    drop(writing.await.unwrap());
}

#[tokio::test]
async fn a_tunnel_whose_client_has_said_all_still_brings_the_rest() {
    let upstream = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", upstream.local_addr().unwrap());
    let stage =
        TestGateway::without_upstream(|config, _| config.upstream.base_url = url.parse().unwrap()).await;
    let mut client = TcpStream::connect(stage.address).await.unwrap();
    let upgrade = "connection: upgrade\r\nupgrade: websocket\r\n\r\n";
    client.write_all(format!("GET / HTTP/1.1\r\nhost: x\r\n{upgrade}").as_bytes()).await.unwrap();
    let (mut server, _) = within_secs(10, upstream.accept()).await.unwrap();
    read_until(&mut server, |seen| seen.ends_with(b"\r\n\r\n")).await;
    server.write_all(format!("HTTP/1.1 101 Switching Protocols\r\n{upgrade}").as_bytes()).await.unwrap();
    read_until(&mut client, |back| back.ends_with(b"\r\n\r\n")).await;

    client.write_all(b"all").await.unwrap();
    client.shutdown().await.unwrap();
    let mut said = Vec::new();
    within_secs(10, server.read_to_end(&mut said)).await.unwrap();
    assert_eq!(said, b"all");
    for piece in ["one", "two", "three"] {
        server.write_all(piece.as_bytes()).await.unwrap();
        read_until(&mut client, |back| back == piece.as_bytes()).await;
    }
}

/// What the kernel says of the timer of the connection from this address: its kind, 2 for keep-alive, and the
/// hundredths of a second until it ends.
fn timer(from: SocketAddr, to: SocketAddr) -> (u8, u64) {
    let of = |address: SocketAddr| match address {
        SocketAddr::V4(v4) => format!("{:08X}:{:04X}", u32::from_ne_bytes(v4.ip().octets()), v4.port()),
        SocketAddr::V6(_) => panic!("the stage listens on IPv4"),
    };
    let (from, to) = (of(from), of(to));
    let table = std::fs::read_to_string("/proc/self/net/tcp").unwrap();
    let rows: Vec<Vec<&str>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
    let row = rows.iter().find(|row| row[1] == from && row[2] == to).expect("the connection stands");
    let (kind, left) = row[5].split_once(':').unwrap();
    (u8::from_str_radix(kind, 16).unwrap(), u64::from_str_radix(left, 16).unwrap())
}

#[tokio::test]
async fn a_silent_connection_is_probed_after_a_minute_to_find_out_whether_its_client_vanished() {
    let stage = TestGateway::with_hold(Duration::from_secs(60)).await;
    stage.sim.set_status("a", "queued");
    let mut stream = TcpStream::connect(stage.address).await.unwrap();
    stream.write_all(head(&clip_target("a", "completed")).as_bytes()).await.unwrap();
    stage.wait_until(|seen| seen.open == 1).await;
    let (kind, left) = timer(stage.address, stream.local_addr().unwrap());
    assert_eq!(kind, 2, "a timer for keep-alive runs");
    assert!((3000..=6100).contains(&left), "{left} hundredths of a second");
}
