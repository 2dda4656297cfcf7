//! Raw HTTP: bytes on a socket, requests without default headers, and checks of responses.

use std::net::SocketAddr;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode};
use http_body_util::Full;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::harness::gateway::{Answer, TestGateway, within_secs};

/// The path of Suno's API for the state of one clip (GET) and for new clips (POST).
pub(crate) const CLIP: &str = "/v2/generate/audio/suno-ai/clip";

/// Returns the value of a header field. Empty if there is none; panics if there are several.
pub(crate) fn field<'a>(answer: &'a Answer, name: &str) -> &'a str {
    assert!(answer.headers.get_all(name).iter().count() <= 1, "the response has several {name} fields");
    answer.headers.get(name).map_or("", |value| value.to_str().unwrap())
}

/// Returns a request with exactly these header fields.
pub(crate) fn request(
    method: &str,
    target: &str,
    fields: &[(&str, &str)],
    body: impl Into<Bytes>,
) -> Request<Full<Bytes>> {
    let mut request = Request::new(Full::new(body.into()));
    *request.method_mut() = Method::try_from(method).unwrap();
    *request.uri_mut() = target.parse().unwrap();
    for (name, value) in fields {
        let name = HeaderName::try_from(*name).unwrap();
        request.headers_mut().append(name, HeaderValue::try_from(*value).unwrap());
    }
    request
}

/// Sends bytes and returns everything that the server sends until the connection ends.
pub(crate) async fn send_raw(address: SocketAddr, bytes: &[u8]) -> Vec<u8> {
    let (mut read, mut write) = TcpStream::connect(address).await.unwrap().into_split();
    let bytes = bytes.to_vec();
    // In a task of its own, with errors ignored: the server may reject the request before all bytes are sent.
    let writing = tokio::spawn(async move {
        let _ = write.write_all(&bytes).await;
        write
    });
    let mut back = Vec::new();
    let _ = within_secs(10, read.read_to_end(&mut back)).await;
    drop(writing.await);
    back
}

/// Reads from a socket until `is_enough` accepts the received bytes.
pub(crate) async fn read_until(stream: &mut TcpStream, mut is_enough: impl FnMut(&[u8]) -> bool) -> Vec<u8> {
    let mut back = Vec::new();
    while !is_enough(&back) {
        let count = within_secs(10, stream.read_buf(&mut back)).await.unwrap();
        assert!(count > 0, "the connection ended after {:?}", String::from_utf8_lossy(&back));
    }
    back
}

/// Parses one HTTP/1 response with a `Content-Length`. Returns it and the bytes after it; `None` if it is incomplete.
pub(crate) fn parse_response(bytes: &[u8]) -> Option<(Answer, &[u8])> {
    let at = bytes.windows(4).position(|four| four == b"\r\n\r\n")?;
    let head = std::str::from_utf8(&bytes[..at]).unwrap();
    let mut lines = head.split("\r\n");
    let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse::<StatusCode>().unwrap();
    let mut headers = HeaderMap::new();
    for line in lines {
        let (name, value) = line.split_once(": ").unwrap();
        headers.append(HeaderName::try_from(name).unwrap(), HeaderValue::try_from(value).unwrap());
    }
    let length = headers.get("content-length").map_or(0, |value| value.to_str().unwrap().parse().unwrap());
    let rest = &bytes[at + 4..];
    let body = Bytes::copy_from_slice(rest.get(..length)?);
    Some((Answer { status, headers, body, took: std::time::Duration::ZERO }, &rest[length..]))
}

/// Checks the form of an error that the gateway itself writes (`docs/http-reference.md`), and returns its message.
pub(crate) fn assert_gateway_error(answer: &Answer, status: u16, reason: &str) -> String {
    let shown = format!("{answer:?}");
    assert_eq!(answer.status, status, "{shown}");
    assert_eq!(field(answer, "cache-status"), format!("clipgate; detail={reason}"), "{shown}");
    assert_eq!(field(answer, "via"), "1.1 clipgate", "{shown}");
    assert_eq!(field(answer, "content-type"), "application/json", "{shown}");
    assert_eq!(field(answer, "cache-control"), "no-store", "{shown}");
    let body: serde_json::Value = serde_json::from_slice(&answer.body).unwrap();
    let names: Vec<_> = body.as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(names, ["message", "path", "requestId", "statusCode", "timestamp"], "{shown}");
    assert_eq!(body["statusCode"], status, "{shown}");
    assert_eq!(body["requestId"], field(answer, "x-request-id"), "{shown}");
    assert!(!field(answer, "x-request-id").is_empty(), "{shown}");
    assert!(body["timestamp"].as_str().unwrap().ends_with('Z'), "{shown}");
    body["message"].as_str().unwrap().to_owned()
}

/// Asserts that these bytes are hyper's own response to a malformed head, and that nothing follows it: this status, no
/// body and no header of the gateway.
pub(crate) fn assert_bare_rejection(bytes: &[u8], status: u16) {
    let shown = String::from_utf8_lossy(bytes);
    let (answer, rest) = parse_response(bytes).unwrap_or_else(|| panic!("not a response: {shown:?}"));
    assert_eq!((answer.status.as_u16(), answer.body.len(), rest.len()), (status, 0, 0), "{shown}");
    let mut names: Vec<_> = answer.headers.keys().map(HeaderName::as_str).collect();
    names.sort_unstable();
    assert_eq!(names, ["connection", "content-length", "date"], "{shown}");
    assert_eq!(field(&answer, "connection"), "close", "{shown}");
}

/// Returns the number of upstream requests so far.
pub(crate) fn upstream_request_count(gateway: &TestGateway) -> usize {
    gateway.sim.requests().len()
}
