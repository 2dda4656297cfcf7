//! Many waits on one HTTP/2 connection, with prior knowledge: a stream comes and goes like a client.

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

/// One connection; it stands as long as the handle.
async fn connect(stage: &TestGateway) -> (Streams, AbortOnDropHandle<()>) {
    let socket = TcpStream::connect(stage.address).await.expect("the gateway listens");
    let io = TokioIo::new(socket);
    let (streams, connection) =
        http2::handshake(TokioExecutor::new(), io).await.expect("the gateway speaks HTTP/2");
    let connection = tokio::spawn(async move { drop(connection.await) });
    (streams, AbortOnDropHandle::new(connection))
}

/// A wait on a stream of its own. Dropping the handle resets the stream.
fn wait(stage: &TestGateway, streams: &Streams) -> AbortOnDropHandle<(StatusCode, Bytes)> {
    let mut streams = streams.clone();
    let request = Request::get(format!("http://{}{}", stage.address, clip_target("a", "completed")))
        .version(Version::HTTP_2)
        .header("authorization", "Bearer demo")
        .body(Empty::new())
        .expect("it is a request");
    AbortOnDropHandle::new(tokio::spawn(async move {
        let response = streams.send_request(request).await.expect("there is an answer");
        let status = response.status();
        (status, response.into_body().collect().await.expect("it is whole").to_bytes())
    }))
}

#[tokio::test]
async fn streams_of_one_connection_hang_up_one_by_one_and_the_others_are_served() {
    let stage = TestGateway::with_hold(Duration::from_secs(60)).await;
    stage.sim.set_status("a", "submitted");
    let (streams, connection) = connect(&stage).await;
    let opener = wait(&stage, &streams);
    stage.wait_until(|seen| seen.open == 1).await;
    let mut waits: Vec<_> = (0..99).map(|_| wait(&stage, &streams)).collect();
    stage.wait_until_parked(100).await;
    drop(opener);
    drop(waits.pop());
    stage.wait_until_parked(98).await;
    stage.sim.set_status("a", "completed");
    let body = stage.sim.body("a", "completed");
    for wait in waits {
        assert_eq!(wait.await.unwrap(), (StatusCode::OK, body.clone()));
    }
    assert!(!connection.is_finished());
    assert_eq!(stage.upstream_requests(), [clip_target("a", "completed")]);
}

#[tokio::test]
async fn when_the_last_stream_is_reset_the_poll_is_cancelled_and_the_connection_stands() {
    let stage = TestGateway::with_hold(Duration::from_secs(60)).await;
    stage.sim.set_status("a", "submitted");
    let (streams, connection) = connect(&stage).await;
    let waits: Vec<_> = (0..3).map(|_| wait(&stage, &streams)).collect();
    stage.wait_until_parked(3).await;
    stage.wait_until(|seen| seen.open == 1).await;
    drop(waits);
    stage.wait_until(|seen| seen.abandoned() == 1).await;
    assert_eq!(stage.sim.requests()[0].end, RequestEnd::Abandoned);
    stage.sim.set_status("a", "completed");
    let (status, body) = wait(&stage, &streams).await.unwrap();
    assert_eq!((status, body), (StatusCode::OK, stage.sim.body("a", "completed")));
    assert!(!connection.is_finished());
    assert_eq!(stage.upstream_requests().len(), 2);
}
