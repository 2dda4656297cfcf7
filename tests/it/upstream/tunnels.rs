//! Upgraded connections, such as WebSockets, when the gateway stops.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::harness::process::{TestEnv, within_timeout};
use crate::harness::raw_http::read_until;

/// Opens a tunnel to an upstream that echoes each byte.
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

/// Asserts that the tunnel echoes bytes.
pub(crate) async fn assert_alive(tunnel: &mut TcpStream) {
    tunnel.write_all(b"message").await.unwrap();
    read_until(tunnel, |back| back == b"message").await;
}

/// Returns once the peer has ended the connection.
pub(crate) async fn closed(mut stream: TcpStream) {
    let mut rest = Vec::new();
    // A reset is an end, too.
    let _ = within_timeout("the end of a connection", stream.read_to_end(&mut rest)).await;
}

#[tokio::test]
async fn an_open_tunnel_outlives_sigterm_and_the_gateway_exits_with_it() {
    let env = TestEnv::new().await;
    env.configure("drain_timeout = \"1h\"");
    let mut gateway = env.start();
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
async fn the_gateway_closes_a_tunnel_at_drain_timeout() {
    let env = TestEnv::new().await;
    env.configure("drain_timeout = \"500ms\"");
    let mut gateway = env.start();
    let mut tunnel = open(gateway.address().await, "Bearer demo").await;
    assert_alive(&mut tunnel).await;
    gateway.signal("TERM");
    closed(tunnel).await;
    assert_eq!(gateway.wait_for_exit().await.code(), Some(0));
    assert!(gateway.rest_of_log().await.iter().any(|line| line.contains("cut off")));
}
