//! Requests and responses of an HTTP/1.1 connection, as bytes, and its state after them.

use http_body_util::channel::{Channel, Sender};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::*;
use crate::protocol::body::BoxError;

/// Upstream of one test.
struct Peer {
    listener: TcpListener,
    client: Client,
}

impl Peer {
    async fn new() -> Self {
        let (listener, addr) = listen().await;
        Self { listener, client: Client::new(&config(&format!("http://{addr}"))).unwrap() }
    }

    async fn accept(&self) -> TcpStream {
        self.listener.accept().await.unwrap().0
    }

    /// Sends a request in a task.
    fn send(
        &self,
        request: Request<Body>,
    ) -> tokio::task::JoinHandle<Result<Response<ResponseBody>, SendError>> {
        let client = self.client.clone();
        tokio::spawn(async move { client.send(request).await })
    }

    /// Returns a POST with a streamed body.
    fn post(&self) -> (Sender<Bytes, BoxError>, Request<Body>) {
        let (sender, body) = Channel::new(1);
        let uri = self.client.uri(&PathAndQuery::from_static("/")).unwrap();
        (sender, Request::post(uri).header("trailer", "x-sum").body(Body::stream(body)).unwrap())
    }

    /// Sends a GET and returns the body of its response.
    async fn body(&self) -> Result<Bytes, String> {
        let response =
            self.client.send(get(&self.client, "/")).await.map_err(|error| format!("{error:?}"))?;
        Ok(response.into_body().collect().await.map_err(|error| error.to_string())?.to_bytes())
    }

    /// Answers the next request with these bytes.
    async fn answer_next(&self, socket: &mut TcpStream, answer: &str) {
        read_until(socket, "\r\n\r\n").await;
        socket.write_all(answer.as_bytes()).await.unwrap();
    }

    async fn answer(&self, socket: &mut TcpStream, answer: &str) -> Result<Bytes, String> {
        tokio::join!(self.body(), self.answer_next(socket, answer)).0
    }

    /// Returns the number of idle connections, once the end of their streams has arrived.
    async fn idle(&self) -> usize {
        tokio::time::sleep(Duration::from_millis(20)).await;
        self.client.pool.usable()
    }
}

async fn read_until(socket: &mut TcpStream, end: &str) -> String {
    let mut read = Vec::new();
    while !read.ends_with(end.as_bytes()) {
        assert!(socket.read_buf(&mut read).await.unwrap() > 0, "{}", read.escape_ascii());
    }
    String::from_utf8(read).unwrap()
}

#[tokio::test]
async fn a_streamed_request_is_chunked_with_its_announced_trailers() {
    let peer = Peer::new().await;
    let (mut body, request) = peer.post();
    let sent = peer.send(request);
    let mut socket = peer.accept().await;
    let head = read_until(&mut socket, "\r\n\r\n").await;
    assert!(head.contains("\r\ntransfer-encoding: chunked\r\n"), "{head}");
    for data in ["0123456789abcdef", "", "x"] {
        body.send_data(data.into()).await.unwrap();
    }
    let trailers = [("x-sum", "1"), ("x-other", "2"), ("content-length", "3")];
    let trailers = trailers.map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()));
    body.send_trailers(trailers.into_iter().collect()).await.unwrap();
    drop(body);
    let wire = read_until(&mut socket, "\r\n\r\n").await;
    assert_eq!(wire, "10\r\n0123456789abcdef\r\n1\r\nx\r\n0\r\nx-sum: 1\r\n\r\n");
    socket.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").await.unwrap();
    assert_eq!(sent.await.unwrap().unwrap().status(), 204);
    assert_eq!(peer.idle().await, 1);
}

#[tokio::test]
async fn a_response_before_the_end_of_its_request_is_passed_on_and_both_end() {
    let peer = Peer::new().await;
    for head in ["content-length: 4", "transfer-encoding: chunked", "content-length: 0"] {
        let (mut body, request) = peer.post();
        let sent = peer.send(request);
        let mut socket = peer.accept().await;
        read_until(&mut socket, "\r\n\r\n").await;
        socket.write_all(format!("HTTP/1.1 200 OK\r\n{head}\r\n\r\n").as_bytes()).await.unwrap();
        let mut answer = sent.await.unwrap().unwrap().into_body();
        body.send_data("up".into()).await.unwrap();
        read_until(&mut socket, "2\r\nup\r\n").await;
        let (wire, data) = match head {
            "content-length: 4" => ("down", "down"),
            "transfer-encoding: chunked" => ("4\r\ndown\r\n0\r\n\r\n", "down"),
            _ => ("", ""),
        };
        socket.write_all(wire.as_bytes()).await.unwrap();
        let mut got = Vec::new();
        while let Some(frame) = answer.frame().await {
            got.extend_from_slice(&frame.unwrap().into_data().unwrap());
        }
        assert_eq!(got, data.as_bytes(), "{head}");
        drop(answer);
        // The request goes on after the response.
        body.send_data("more".into()).await.unwrap();
        drop(body);
        read_until(&mut socket, "4\r\nmore\r\n0\r\n\r\n").await;
        assert_eq!(peer.idle().await, 1, "{head}");
        drop(socket);
        assert_eq!(peer.idle().await, 0, "{head}");
    }
}

#[tokio::test]
async fn a_connection_is_used_again_only_after_a_complete_response_and_no_byte_more() {
    let peer = Peer::new().await;
    let rows = [
        ("HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nbody", 1),
        ("HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nbody", 1),
        ("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\n\r\n", 1),
        ("HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nbodyHTTP/1.1 200 OK\r\n", 0),
        ("HTTP/1.1 200 OK\r\ncontent-length: 4\r\nconnection: close\r\n\r\nbody", 0),
        ("HTTP/1.0 200 OK\r\ncontent-length: 4\r\n\r\nbody", 0),
    ];
    for (answer, idle) in rows {
        let sent = async {
            let mut socket = peer.accept().await;
            peer.answer_next(&mut socket, answer).await;
            socket
        };
        let (body, mut socket) = tokio::join!(peer.body(), sent);
        assert_eq!(body.as_deref(), Ok(&b"body"[..]), "{answer}");
        assert_eq!(peer.idle().await, idle, "{answer}");
        if idle == 1 {
            assert_eq!(peer.answer(&mut socket, answer).await.as_deref(), Ok(&b"body"[..]));
        }
        drop(socket);
        assert_eq!(peer.idle().await, 0);
    }
}

#[tokio::test]
async fn a_body_that_ends_early_fails_and_one_without_a_length_ends_with_the_connection() {
    let peer = Peer::new().await;
    let rows = [
        ("HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nbody", false),
        ("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nbody\r\n", false),
        ("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nbody\r\nx\r\n", false),
        ("HTTP/1.1 200 OK\r\n\r\nbody", true),
    ];
    for (answer, is_whole) in rows {
        let sent = async {
            let mut socket = peer.accept().await;
            peer.answer_next(&mut socket, answer).await;
        };
        let (body, ()) = tokio::join!(peer.body(), sent);
        assert_eq!(body.is_ok(), is_whole, "{answer}: {body:?}");
        assert_eq!(peer.idle().await, 0, "{answer}");
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
