//! Upgraded connections, as WebSockets are, when the gateway stops.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::harness::process::{TestEnv, within_timeout};
use crate::harness::raw_http::read_until;

/// A tunnel to an upstream that sends each byte back.
pub(crate) async fn open(address: SocketAddr, authorization: &str) -> TcpStream {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let head = format!(
        "GET /sim/upgrade HTTP/1.1\r\nhost: x\r\nauthorization: {authorization}\r\n\
         connection: upgrade\r\nupgrade: websocket\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    let back = read_until(&mut stream, |back| back.ends_with(b"\r\n\r\n")).await;
    assert!(back.starts_with(b"HTTP/1.1 101 "), "{}", String::from_utf8_lossy(&back));
    stream
}

/// Has bytes go up and come back.
pub(crate) async fn assert_alive(tunnel: &mut TcpStream) {
    tunnel.write_all(b"message").await.unwrap();
    read_until(tunnel, |back| back == b"message").await;
}

/// Comes back when the other side has ended it.
pub(crate) async fn closed(mut stream: TcpStream) {
    let mut rest = Vec::new();
    // A reset is an end as well.
    let _ = within_timeout("the end of a connection", stream.read_to_end(&mut rest)).await;
}

#[tokio::test]
async fn an_open_tunnel_outlives_sigterm_and_the_gateway_ends_with_it() {
    let ground = TestEnv::new().await;
    ground.configure("drain_timeout = \"1h\"");
    let mut gateway = ground.start();
    let mut tunnel = open(gateway.address().await, "Bearer demo").await;
    tunnel.write_all(b"mess").await.unwrap();
    gateway.signal("TERM");
    gateway.wait_for_log("stopping").await;
    tunnel.write_all(b"age").await.unwrap();
    read_until(&mut tunnel, |back| back == b"message").await;
    assert_alive(&mut tunnel).await;
    drop(tunnel);
    assert_eq!(gateway.wait_for_exit().await.code(), Some(0));
    assert!(!gateway.rest_of_log().await.iter().any(|line| line.contains("cut off")));
}

#[tokio::test]
async fn a_tunnel_that_outlasts_drain_timeout_is_closed() {
    let ground = TestEnv::new().await;
    ground.configure("drain_timeout = \"500ms\"");
    let mut gateway = ground.start();
    let mut tunnel = open(gateway.address().await, "Bearer demo").await;
    assert_alive(&mut tunnel).await;
    gateway.signal("TERM");
    closed(tunnel).await;
    assert_eq!(gateway.wait_for_exit().await.code(), Some(0));
    assert!(gateway.rest_of_log().await.iter().any(|line| line.contains("cut off")));
}
