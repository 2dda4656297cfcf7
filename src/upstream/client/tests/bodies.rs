//! Request and response bodies over HTTP/2.

use http::{HeaderMap, HeaderValue};
use http_body::Frame;
use http_body_util::channel::Channel;

use super::super::http2::MAX_STREAMS;
use super::connections::raw_upstream;
use super::raw_http2::Http2Event;
use super::*;
use crate::protocol::body::BoxError;

type BodySender = http_body_util::channel::Sender<Bytes, BoxError>;

/// Returns the client of an HTTP/2 upstream that answers each request with `serve`.
async fn client_of<S, F>(serve: S) -> Client
where
    S: Fn(Request<Incoming>) -> F + Send + Sync + Copy + 'static,
    F: Future<Output = Response<Body>> + Send + 'static,
{
    let (listener, addr) = listen().await;
    let (acceptor, trusting) = tls(&["h2"]);
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            let stream = TokioIo::new(acceptor.accept(socket).await.unwrap());
            let service = service_fn(move |request| async move { Ok::<_, Infallible>(serve(request).await) });
            let builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            tokio::spawn(builder.serve_connection(stream, service));
        }
    });
    Client::with_tls(&config(&format!("https://localhost:{}", addr.port())), trusting).unwrap()
}

/// Returns a request whose body is sent chunk by chunk.
fn post(client: &Client) -> (Request<Body>, BodySender) {
    let (chunks, body) = Channel::new(1);
    let uri = client.uri(&PathAndQuery::from_static("/")).unwrap();
    (Request::post(uri).body(Body::stream(body)).unwrap(), chunks)
}

fn trailers(value: &'static str) -> HeaderMap {
    HeaderMap::from_iter([("x-sum".parse().unwrap(), HeaderValue::from_static(value))])
}

#[tokio::test]
async fn a_large_upload_arrives_complete_and_trailers_pass_both_ways() {
    let client = client_of(|request| async move {
        let collected = request.into_body().collect().await.unwrap();
        let sum = collected.trailers().unwrap()["x-sum"].clone();
        let bytes = collected.to_bytes();
        let is_intact = bytes.iter().enumerate().all(|(n, byte)| *byte == u8::try_from(n % 251).unwrap());
        let (mut chunks, body) = Channel::<Bytes, BoxError>::new(2);
        chunks
            .send_data(format!("{} {is_intact} {}", bytes.len(), sum.to_str().unwrap()).into())
            .await
            .unwrap();
        chunks.send_trailers(trailers("down")).await.unwrap();
        Response::new(Body::stream(body))
    })
    .await;
    let (request, mut chunks) = post(&client);
    let bytes: Bytes = (0..3_000_000).map(|n| u8::try_from(n % 251).unwrap()).collect();
    let uploading = async move {
        let mut rest = bytes;
        for length in [1, 16_384, 0, 65_536, 500_000, 1_000_000] {
            chunks.send_data(rest.split_to(length)).await.unwrap();
        }
        chunks.send_data(rest).await.unwrap();
        chunks.send_trailers(trailers("up")).await.unwrap();
    };
    let (answer, ()) = tokio::join!(client.send(request), uploading);
    let collected = answer.unwrap().into_body().collect().await.unwrap();
    assert_eq!(collected.trailers().unwrap()["x-sum"], "down");
    assert_eq!(collected.to_bytes(), "3000000 true up");
    until_no_slot_is_taken(&client).await;
}

#[tokio::test]
async fn both_bodies_stream_at_once() {
    let client = client_of(|request| async move { Response::new(Body::stream(request.into_body())) }).await;
    let (request, mut chunks) = post(&client);
    let mut body = client.send(request).await.unwrap().into_body();
    for chunk in ["one", "two", "three"] {
        chunks.send_data(chunk.into()).await.unwrap();
        assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), chunk);
    }
    drop(chunks);
    assert_eq!(body.collect().await.unwrap().to_bytes(), "");
    until_no_slot_is_taken(&client).await;
}

/// A client may send its collected request before it reads the response.
#[tokio::test]
async fn an_upload_continues_while_the_client_does_not_read_the_response() {
    let client = client_of(|request| async move {
        let (mut chunks, body) = Channel::<Bytes, BoxError>::new(1);
        tokio::spawn(async move {
            let length = request.into_body().collect().await.unwrap().to_bytes().len();
            chunks.send(Frame::data(length.to_string().into())).await.unwrap();
        });
        Response::new(Body::stream(body))
    })
    .await;
    let (request, mut chunks) = post(&client);
    let answer = client.send(request).await.unwrap();
    for _ in 0..100 {
        chunks.send_data(vec![0; 10_000].into()).await.unwrap();
    }
    drop(chunks);
    assert_eq!(answer.into_body().collect().await.unwrap().to_bytes(), "1000000");
}

#[tokio::test]
async fn an_early_response_does_not_wait_for_the_upload() {
    let client = client_of(|_| async { Response::new(Body::full("enough")) }).await;
    let (request, mut chunks) = post(&client);
    chunks.send_data("some".into()).await.unwrap();
    let answer = client.send(request).await.unwrap();
    assert_eq!(answer.into_body().collect().await.unwrap().to_bytes(), "enough");
    while chunks.send_data("more".into()).await.is_ok() {} // until the upload is aborted
    until_no_slot_is_taken(&client).await;
}

/// The peer neither opens its window nor resets the stream. The client once kept the body and its memory for ever.
#[tokio::test]
async fn the_client_aborts_an_upload_that_stalls_after_the_response() {
    let (mut upstream, client, _) = raw_upstream(10, |_| {});
    let uri = client.uri(&PathAndQuery::from_static("/")).unwrap();
    let request = Request::post(uri).body(Body::full(vec![0; 200_000])).unwrap();
    let sent = tokio::spawn({
        let client = client.clone();
        async move { client.send(request).await }
    });
    let (connection, stream) = upstream.requests(1).await[0];
    upstream.answer((connection, stream));
    assert_eq!(sent.await.unwrap().unwrap().into_body().collect().await.unwrap().to_bytes(), "");
    let reset = upstream.until(Http2Event::Reset { connection, stream });
    tokio::time::timeout(Duration::from_secs(20), reset).await.unwrap();
    until_no_slot_is_taken(&client).await;
}

#[tokio::test]
async fn a_failed_upload_resets_its_stream() {
    let client = client_of(|request| async move {
        assert!(request.into_body().collect().await.is_err());
        Response::new(Body::empty())
    })
    .await;
    let (request, mut chunks) = post(&client);
    let breaking = async move {
        chunks.send_data("some".into()).await.unwrap();
        chunks.abort(std::io::Error::other("gone").into());
    };
    let (answer, ()) = tokio::join!(client.send(request), breaking);
    assert!(matches!(answer, Err(SendError::Reset(_))));
    until_no_slot_is_taken(&client).await;
}

#[tokio::test]
async fn dropping_a_response_aborts_its_upload() {
    let client = client_of(|request| async move { Response::new(Body::stream(request.into_body())) }).await;
    let (request, mut chunks) = post(&client);
    let answer = client.send(request).await.unwrap();
    drop(answer);
    while chunks.send_data("more".into()).await.is_ok() {}
    until_no_slot_is_taken(&client).await;
}

/// As many responses as a connection carries, each with as many bytes as it may hold back.
#[tokio::test]
async fn unread_responses_do_not_stall_the_others() {
    const LENGTH: usize = 400_000;
    let client = client_of(|request| async move {
        Response::new(match request.uri().path() {
            "/unread" => Body::full(vec![0; LENGTH]),
            _ => Body::full("read"),
        })
    })
    .await;
    let mut unread = Vec::new();
    for _ in 0..MAX_STREAMS - 1 {
        unread.push(client.send(get(&client, "/unread")).await.unwrap());
    }
    for _ in 0..10 {
        let answer = client.send(get(&client, "/")).await.unwrap();
        assert_eq!(answer.into_body().collect().await.unwrap().to_bytes(), "read");
    }
    for answer in unread {
        assert_eq!(answer.into_body().collect().await.unwrap().to_bytes().len(), LENGTH);
    }
    assert_eq!(client.pool.usable(), 1);
}

async fn until_no_slot_is_taken(client: &Client) {
    while client.pool.slots_taken() > 0 {
        tokio::task::yield_now().await;
    }
}
