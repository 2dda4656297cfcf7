//! Bodies over HTTP/2, both ways.

use http::{HeaderMap, HeaderValue};
use http_body::Frame;
use http_body_util::channel::Channel;

use super::super::http2::MAX_STREAMS;
use super::connections::raw;
use super::raw_http2::Seen;
use super::*;
use crate::protocol::body::BoxError;

type Pieces = http_body_util::channel::Sender<Bytes, BoxError>;

/// An upstream that speaks HTTP/2 and does this with each request.
async fn before<S, F>(serve: S) -> Client
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

/// A request whose body is sent piece by piece.
fn post(client: &Client) -> (Request<Body>, Pieces) {
    let (pieces, body) = Channel::new(1);
    let uri = client.uri(&PathAndQuery::from_static("/")).unwrap();
    (Request::post(uri).body(Body::stream(body)).unwrap(), pieces)
}

fn trailers(value: &'static str) -> HeaderMap {
    HeaderMap::from_iter([("x-sum".parse().unwrap(), HeaderValue::from_static(value))])
}

#[tokio::test]
async fn a_large_upload_arrives_whole_and_trailers_go_both_ways() {
    let client = before(|request| async move {
        let whole = request.into_body().collect().await.unwrap();
        let sum = whole.trailers().unwrap()["x-sum"].clone();
        let bytes = whole.to_bytes();
        let is_right = bytes.iter().enumerate().all(|(n, byte)| *byte == u8::try_from(n % 251).unwrap());
        let (mut pieces, body) = Channel::<Bytes, BoxError>::new(2);
        pieces
            .send_data(format!("{} {is_right} {}", bytes.len(), sum.to_str().unwrap()).into())
            .await
            .unwrap();
        pieces.send_trailers(trailers("down")).await.unwrap();
        Response::new(Body::stream(body))
    })
    .await;
    let (request, mut pieces) = post(&client);
    let bytes: Bytes = (0..3_000_000).map(|n| u8::try_from(n % 251).unwrap()).collect();
    let uploading = async move {
        let mut rest = bytes;
        for length in [1, 16_384, 0, 65_536, 500_000, 1_000_000] {
            pieces.send_data(rest.split_to(length)).await.unwrap();
        }
        pieces.send_data(rest).await.unwrap();
        pieces.send_trailers(trailers("up")).await.unwrap();
    };
    let (answer, ()) = tokio::join!(client.send(request), uploading);
    let whole = answer.unwrap().into_body().collect().await.unwrap();
    assert_eq!(whole.trailers().unwrap()["x-sum"], "down");
    assert_eq!(whole.to_bytes(), "3000000 true up");
    until_nothing_is_taken(&client).await;
}

#[tokio::test]
async fn both_bodies_stream_at_once() {
    let client = before(|request| async move { Response::new(Body::stream(request.into_body())) }).await;
    let (request, mut pieces) = post(&client);
    let mut body = client.send(request).await.unwrap().into_body();
    for piece in ["one", "two", "three"] {
        pieces.send_data(piece.into()).await.unwrap();
        assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), piece);
    }
    drop(pieces);
    assert_eq!(body.collect().await.unwrap().to_bytes(), "");
    until_nothing_is_taken(&client).await;
}

/// The client's other side may not read before it has sent all.
#[tokio::test]
async fn an_upload_goes_on_while_nobody_reads_the_answer() {
    let client = before(|request| async move {
        let (mut pieces, body) = Channel::<Bytes, BoxError>::new(1);
        tokio::spawn(async move {
            let length = request.into_body().collect().await.unwrap().to_bytes().len();
            pieces.send(Frame::data(length.to_string().into())).await.unwrap();
        });
        Response::new(Body::stream(body))
    })
    .await;
    let (request, mut pieces) = post(&client);
    let answer = client.send(request).await.unwrap();
    for _ in 0..100 {
        pieces.send_data(vec![0; 10_000].into()).await.unwrap();
    }
    drop(pieces);
    assert_eq!(answer.into_body().collect().await.unwrap().to_bytes(), "1000000");
}

#[tokio::test]
async fn an_early_answer_does_not_wait_for_the_upload() {
    let client = before(|_| async { Response::new(Body::full("enough")) }).await;
    let (request, mut pieces) = post(&client);
    pieces.send_data("some".into()).await.unwrap();
    let answer = client.send(request).await.unwrap();
    assert_eq!(answer.into_body().collect().await.unwrap().to_bytes(), "enough");
    while pieces.send_data("more".into()).await.is_ok() {} // until the upload is given up
    until_nothing_is_taken(&client).await;
}

/// Its window stays shut, and it does not reset the stream: the body, and all that was held for it, stayed for ever.
#[tokio::test]
async fn an_upload_of_which_a_peer_that_has_answered_takes_nothing_is_given_up() {
    let (mut upstream, client, _) = raw(10, |_| {});
    let uri = client.uri(&PathAndQuery::from_static("/")).unwrap();
    let request = Request::post(uri).body(Body::full(vec![0; 200_000])).unwrap();
    let sent = tokio::spawn({
        let client = client.clone();
        async move { client.send(request).await }
    });
    let (connection, stream) = upstream.requests(1).await[0];
    upstream.answer((connection, stream));
    assert_eq!(sent.await.unwrap().unwrap().into_body().collect().await.unwrap().to_bytes(), "");
    let reset = upstream.until(Seen::Reset { connection, stream });
    tokio::time::timeout(Duration::from_secs(20), reset).await.unwrap();
    until_nothing_is_taken(&client).await;
}

#[tokio::test]
async fn an_upload_that_breaks_off_is_not_taken_for_whole() {
    let client = before(|request| async move {
        assert!(request.into_body().collect().await.is_err());
        Response::new(Body::empty())
    })
    .await;
    let (request, mut pieces) = post(&client);
    let breaking = async move {
        pieces.send_data("some".into()).await.unwrap();
        pieces.abort(std::io::Error::other("gone").into());
    };
    let (answer, ()) = tokio::join!(client.send(request), breaking);
    assert!(matches!(answer, Err(SendError::Broke(_))));
    until_nothing_is_taken(&client).await;
}

#[tokio::test]
async fn dropping_an_answer_ends_its_upload() {
    let client = before(|request| async move { Response::new(Body::stream(request.into_body())) }).await;
    let (request, mut pieces) = post(&client);
    let answer = client.send(request).await.unwrap();
    drop(answer);
    while pieces.send_data("more".into()).await.is_ok() {}
    until_nothing_is_taken(&client).await;
}

/// As many as a connection carries, each with all that it may hold back.
#[tokio::test]
async fn answers_that_nobody_reads_do_not_stall_the_others() {
    const LENGTH: usize = 400_000;
    let client = before(|request| async move {
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

async fn until_nothing_is_taken(client: &Client) {
    while client.pool.taken() > 0 {
        tokio::task::yield_now().await;
    }
}
