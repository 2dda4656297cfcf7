//! State of an HTTP/1.1 connection during a request: not idle, and closed when its upload stalls after the response.

use std::sync::atomic::{AtomicBool, Ordering};

use futures_util::FutureExt as _;
use http::HeaderValue;
use tokio::net::TcpStream;

use super::super::connect::Stream;
use super::super::http1::{Http1, Lease};
use super::*;
use crate::clock;

/// The codec looks for a request, finds none, and then reports that it is ready. A request passed between the two
/// steps once generated the connection look idle, and a second request waited behind the first.
#[tokio::test]
async fn a_connection_with_a_new_request_never_looks_idle_to_its_driver() {
    let (listener, addr) = listen().await;
    let client = Client::new(&config(&format!("http://{addr}"))).unwrap();
    let host = HeaderValue::from_static("localhost");
    let runtime = tokio::runtime::Handle::current();
    for round in 0..300 {
        let near = TcpStream::connect(addr).await.unwrap();
        let _far = listener.accept().await.unwrap();
        let (pool, retire_at) = (Arc::downgrade(&client.pool), clock::now() + Duration::from_secs(3600));
        let (http1, driver) = Http1::handshake(Stream::Plain(near), retire_at, pool.clone()).await.unwrap();
        let mut sending = Box::pin(Lease::new(http1, pool).send(get(&client, "/"), &host, None));
        let (mut driver, is_polled, is_sent) =
            (Box::pin(driver), AtomicBool::new(false), AtomicBool::new(false));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let _entered = runtime.enter();
                while !is_sent.load(Ordering::Relaxed) {
                    assert!(driver.as_mut().now_or_never().is_none());
                    is_polled.store(true, Ordering::Relaxed);
                }
            });
            while !is_polled.load(Ordering::Relaxed) {
                std::hint::spin_loop();
            }
            assert!(sending.as_mut().now_or_never().is_none());
            is_sent.store(true, Ordering::Relaxed);
        });
        assert!(driver.as_mut().now_or_never().is_none());
        assert_eq!(client.pool.usable(), 0, "round {round}");
    }
}

/// `ends`: whether the response ends. The peer reads nothing of the request body, and keeps the connection open.
async fn is_upload_aborted(ends: bool) -> bool {
    let (listener, addr) = listen().await;
    let client = Client::new(&config(&format!("http://{addr}"))).unwrap();
    let (mut chunks, body) =
        http_body_util::channel::Channel::<Bytes, crate::protocol::body::BoxError>::new(1);
    let uri = client.uri(&PathAndQuery::from_static("/")).unwrap();
    let request = Request::post(uri).body(Body::stream(body)).unwrap();
    let sent = tokio::spawn({
        let client = client.clone();
        async move { client.send(request).await }
    });
    let (mut peer, _) = listener.accept().await.unwrap();
    let mut byte = [0];
    tokio::io::AsyncReadExt::read_exact(&mut peer, &mut byte).await.unwrap();
    let chunk = Bytes::from(vec![0; 1 << 20]);
    while let Ok(sent) =
        tokio::time::timeout(Duration::from_millis(300), chunks.send_data(chunk.clone())).await
    {
        sent.unwrap(); // until the socket is full
    }
    let length = if ends { 4 } else { 100 };
    let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\nsome");
    tokio::io::AsyncWriteExt::write_all(&mut peer, answer.as_bytes()).await.unwrap();
    let mut answer = sent.await.unwrap().unwrap().into_body();
    assert_eq!(answer.frame().await.unwrap().unwrap().into_data().unwrap(), "some");
    drop(answer);
    let aborted = async { while chunks.send_data(chunk.clone()).await.is_ok() {} };
    tokio::time::timeout(Duration::from_secs(20), aborted).await.is_ok()
}

#[tokio::test]
async fn over_http_1_dropping_a_response_aborts_an_upload_that_the_peer_does_not_read() {
    assert!(is_upload_aborted(false).await);
}

#[tokio::test]
async fn over_http_1_the_client_aborts_an_upload_that_stalls_after_the_response() {
    assert!(is_upload_aborted(true).await);
}
