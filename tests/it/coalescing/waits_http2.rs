//! Many waits on one HTTP/2 connection with prior knowledge: each stream comes and goes like a client (P6).

use std::time::Duration;

use bytes::Bytes;
use clipgate::sim::RequestEnd;
use http::{Request, StatusCode, Version};
use http_body_util::{BodyExt as _, Empty};
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;
use tokio_util::task::AbortOnDropHandle;

use crate::harness::gateway::{TestGateway, clip_target};

type Streams = SendRequest<Empty<Bytes>>;

/// Opens one connection. Dropping the handle closes it.
async fn connect(gateway: &TestGateway) -> (Streams, AbortOnDropHandle<()>) {
    let socket = TcpStream::connect(gateway.address).await.expect("the gateway listens");
    let io = TokioIo::new(socket);
    let (streams, connection) =
        http2::handshake(TokioExecutor::new(), io).await.expect("the gateway speaks HTTP/2");
    let connection = tokio::spawn(async move { drop(connection.await) });
    (streams, AbortOnDropHandle::new(connection))
}

/// Sends a wait on a stream of its own. Dropping the handle resets the stream.
fn wait(gateway: &TestGateway, streams: &Streams) -> AbortOnDropHandle<(StatusCode, Bytes)> {
    let mut streams = streams.clone();
    let request = Request::get(format!("http://{}{}", gateway.address, clip_target("a", "completed")))
        .version(Version::HTTP_2)
        .header("authorization", "Bearer demo")
        .body(Empty::new())
        .expect("a valid request");
    AbortOnDropHandle::new(tokio::spawn(async move {
        let response = streams.send_request(request).await.expect("an answer");
        let status = response.status();
        (status, response.into_body().collect().await.expect("a complete body").to_bytes())
    }))
}

#[tokio::test]
async fn the_other_streams_of_a_connection_are_answered_after_some_were_reset() {
    let gateway = TestGateway::with_hold(Duration::from_secs(60)).await;
    gateway.sim.set_status("a", "submitted");
    let (streams, connection) = connect(&gateway).await;
    let opener = wait(&gateway, &streams);
    gateway.wait_until(|seen| seen.open == 1).await;
    let mut waits: Vec<_> = (0..99).map(|_| wait(&gateway, &streams)).collect();
    gateway.wait_until_parked(100).await;
    drop(opener);
    drop(waits.pop());
    gateway.wait_until_parked(98).await;
    gateway.sim.set_status("a", "completed");
    let body = gateway.sim.body("a", "completed");
    for wait in waits {
        assert_eq!(wait.await.unwrap(), (StatusCode::OK, body.clone()));
    }
    assert!(!connection.is_finished());
    assert_eq!(gateway.upstream_requests(), [clip_target("a", "completed")]);
}

#[tokio::test]
async fn the_poll_is_cancelled_when_the_last_stream_is_reset_and_the_connection_stays_open() {
    let gateway = TestGateway::with_hold(Duration::from_secs(60)).await;
    gateway.sim.set_status("a", "submitted");
    let (streams, connection) = connect(&gateway).await;
    let waits: Vec<_> = (0..3).map(|_| wait(&gateway, &streams)).collect();
    gateway.wait_until_parked(3).await;
    gateway.wait_until(|seen| seen.open == 1).await;
    drop(waits);
    gateway.wait_until(|seen| seen.abandoned() == 1).await;
    assert_eq!(gateway.sim.requests()[0].end, RequestEnd::Abandoned);
    gateway.sim.set_status("a", "completed");
    let (status, body) = wait(&gateway, &streams).await.unwrap();
    assert_eq!((status, body), (StatusCode::OK, gateway.sim.body("a", "completed")));
    assert!(!connection.is_finished());
    assert_eq!(gateway.upstream_requests().len(), 2);
}
