//! Responses of the upstream over HTTP/1.1, in any pieces: the codec reads each as hyper's client does, takes no byte of
//! the next one, and reads the same however the bytes are divided.

#![no_main]

use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker};

use arbitrary::Arbitrary;
use bytes::{Bytes, BytesMut};
use clipgate::testing::upstream::http1::{BodyFault, BodyPart, HeadReader};
use http::header::{CONTENT_LENGTH, TRANSFER_ENCODING};
use http::{HeaderMap, Method, Request, StatusCode};
use http_body_util::{BodyExt as _, Empty};
use hyper::rt::ReadBufCursor;
use libfuzzer_sys::fuzz_target;

#[derive(Arbitrary, Debug)]
struct Input<'a> {
    method: RequestMethod,
    wire: Wire<'a>,
    /// Lengths of the pieces in which the bytes arrive; the last piece has the rest.
    pieces: Vec<u8>,
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum RequestMethod {
    Get,
    Head,
    Post,
}

#[derive(Arbitrary, Debug)]
enum Wire<'a> {
    /// The bytes themselves.
    Bytes(&'a [u8]),
    /// Each byte is one of [`TOKENS`].
    Tokens(&'a [u8]),
    /// A valid response, and bytes of the next one.
    Valid { response: ValidResponse<'a>, next: &'a [u8] },
}

#[derive(Arbitrary, Debug)]
struct ValidResponse<'a> {
    interim: u8,
    framing: ValidFraming<'a>,
    /// Whether another server could read another length.
    has_other_length: bool,
}

#[derive(Arbitrary, Debug)]
enum ValidFraming<'a> {
    /// Times that the length is given, less one, and the body.
    Length(u8, &'a [u8]),
    /// Chunks with their extensions, and whether a trailer follows.
    Chunked(Vec<(&'a [u8], ChunkStyle)>, bool),
    NoContent,
    NotModified,
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum ChunkStyle {
    Plain,
    UpperCase,
    LeadingZeros,
    Space,
    Extension,
    QuotedExtension,
}

/// Most fields of a head that the gateway reads.
const MAX_FIELDS: usize = 256;

/// Parts of responses, valid and invalid.
const TOKENS: [&str; 65] = [
    "HTTP/1.1 200 OK\r\n",
    "HTTP/1.1 200 OK\r\n",
    "HTTP/1.0 200 OK\r\n",
    "HTTP/1.1 204 No Content\r\n",
    "HTTP/1.1 304 Not Modified\r\n",
    "HTTP/1.1 100 Continue\r\n",
    "HTTP/1.1 103 Early Hints\r\n",
    "HTTP/1.1 101 Switching Protocols\r\n",
    "HTTP/1.1 500\r\n",
    "HTTP/1.1 299 \u{fc}\r\n",
    "HTTP/2.0 200 OK\r\n",
    "HTTP/1.1 20 OK\r\n",
    "\r\n",
    "\r\n",
    "\r\n",
    "\n",
    "\r",
    " ",
    "\t",
    "\0",
    "content-length: 0\r\n",
    "content-length: 3\r\n",
    "Content-Length: 3, 3\r\n",
    "content-length: 3,4\r\n",
    "content-length: +3\r\n",
    "content-length: -3\r\n",
    "content-length: 03\r\n",
    "content-length: 3 \r\n",
    "content-length:\r\n",
    "content-length: 18446744073709551615\r\n",
    "content-length: 18446744073709551616\r\n",
    "content-length : 3\r\n",
    "transfer-encoding: chunked\r\n",
    "Transfer-Encoding: CHUNKED\r\n",
    "transfer-encoding: gzip, chunked\r\n",
    "transfer-encoding: chunked, gzip\r\n",
    "transfer-encoding: gzip\r\n",
    "transfer-encoding: xchunked\r\n",
    "transfer-encoding:\r\n",
    "transfer-encoding: chunked,\r\n",
    "transfer-encoding: \u{fc}, chunked\r\n",
    "connection: close\r\n",
    "connection: keep-alive\r\n",
    "connection: upgrade\r\nupgrade: x\r\n",
    "trailer: x-sum\r\n",
    "x-sum: 1\r\n",
    "a: b\r\n c\r\n",
    ": c\r\n",
    "0\r\n",
    "0\r\n\r\n",
    "3\r\n",
    "abc",
    "abc\r\n",
    "a",
    "A\r\n",
    "03\r\n",
    "3;x=y\r\n",
    "3 ; x=\"y;z\"\r\n",
    "3 \r\n",
    "0x3\r\n",
    "-1\r\n",
    "ffffffffffffffff\r\n",
    "10000000000000000\r\n",
    "0;x\r\n",
    "3\n",
];

fuzz_target!(|input: Input<'_>| {
    let method = input.method.into();
    match &input.wire {
        Wire::Bytes(bytes) => check_any(&method, bytes, &input.pieces),
        Wire::Tokens(bytes) => {
            let tokens = bytes.iter().map(|byte| TOKENS[usize::from(*byte) % TOKENS.len()].as_bytes());
            check_any(&method, &tokens.collect::<Vec<_>>().concat(), &input.pieces);
        }
        Wire::Valid { response, next } => check_valid(&method, response, next, &input.pieces),
    }
});

impl From<RequestMethod> for Method {
    fn from(method: RequestMethod) -> Self {
        match method {
            RequestMethod::Get => Self::GET,
            RequestMethod::Head => Self::HEAD,
            RequestMethod::Post => Self::POST,
        }
    }
}

/// Compares a response in pieces with the same in one piece, and with hyper's reading.
fn check_any(method: &Method, wire: &[u8], pieces: &[u8]) {
    let (read, left) = decode(method, wire, pieces);
    let (whole, left_of_whole) = decode(method, wire, &[]);
    match (&read, &whole) {
        (Ok(_), Ok(_)) => {
            assert_eq!((&read, left), (&whole, left_of_whole), "the pieces change the response")
        }
        // A syntax error may be found before or after the connection ends.
        (Err(_), Err(_)) => {}
        (Ok(_), Err(_)) | (Err(_), Ok(_)) => panic!("{read:?} in pieces, {whole:?} as a whole"),
    }
    let by_hyper = decode_by_hyper(method, wire);
    // hyper reads a body of its own choice where the codings are not a list of names. The gateway refuses it.
    if by_hyper.as_ref().is_ok_and(|by_hyper| has_body(method, by_hyper.status) && has_odd_codings(by_hyper)) {
        assert!(read.is_err(), "odd codings: {read:?}");
        return;
    }
    match (&read, &by_hyper) {
        (Ok(read), Ok(by_hyper)) => {
            check_length(method, read);
            // The gateway passes one length on, hyper all of them.
            assert_eq!(read.without_length(), by_hyper.without_length());
        }
        (Err(_), Err(_)) => {}
        (Ok(read), Err(error)) => panic!("read {read:?}, hyper fails: {error}, {}", wire.escape_ascii()),
        // hyper reads more trailers, and some lines of them that end without CR.
        (Err(error), Ok(_)) if *error == BodyFault::Trailers.to_string() => {}
        (Err(error), Ok(by_hyper)) => panic!("{error}, hyper reads {by_hyper:?}, {}", wire.escape_ascii()),
    }
}

fn has_body(method: &Method, status: StatusCode) -> bool {
    method != Method::HEAD
        && !status.is_informational()
        && ![StatusCode::NO_CONTENT, StatusCode::NOT_MODIFIED].contains(&status)
}

/// Returns whether a member of `Transfer-Encoding` is not a name, or `chunked` is there twice.
fn has_odd_codings(response: &ReadResponse) -> bool {
    let lines = response.headers.get_all(TRANSFER_ENCODING).iter();
    let codings: Vec<_> =
        lines.flat_map(|line| line.as_bytes().split(|byte| *byte == b',')).map(<[u8]>::trim_ascii).collect();
    let is_name = |coding: &&[u8]| {
        let is_token = |byte: &u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte);
        !coding.is_empty() && coding.iter().all(is_token)
    };
    let is_chunked = |coding: &&&[u8]| coding.eq_ignore_ascii_case(b"chunked");
    !codings.iter().all(is_name) || codings.iter().filter(is_chunked).count() > 1
}

/// Checks that a length in the head is that of the body, so that the client reads the same body.
fn check_length(method: &Method, read: &ReadResponse) {
    let lengths: Vec<_> = read.headers.get_all(CONTENT_LENGTH).iter().collect();
    if has_body(method, read.status) && !lengths.is_empty() {
        let [length] = lengths[..] else { panic!("several lengths: {read:?}") };
        let length = length.to_str().ok().and_then(|length| length.trim().parse().ok());
        assert_eq!(length, Some(read.body.len()), "{read:?}");
    }
}

/// Checks that a valid response is read as it was written, up to its last byte.
fn check_valid(method: &Method, response: &ValidResponse<'_>, next: &[u8], pieces: &[u8]) {
    let (mut wire, expected) = response.write(method);
    wire.extend_from_slice(next);
    let (read, left) = decode(method, &wire, pieces);
    let read = read.unwrap_or_else(|error| panic!("{error}: {}", wire.escape_ascii()));
    assert_eq!(
        (read.status, &read.body, &read.trailers),
        (expected.status, &expected.body, &expected.trailers)
    );
    assert_eq!(left, next.len(), "the end of the response: {}", wire.escape_ascii());
}

/// A response whose body has ended.
#[derive(Debug, PartialEq)]
struct ReadResponse {
    status: StatusCode,
    headers: HeaderMap,
    body: Vec<u8>,
    trailers: HeaderMap,
}

/// The bytes of the connection that are still to come.
struct Feed<'a> {
    wire: &'a [u8],
    pieces: &'a [u8],
}

impl Feed<'_> {
    /// Adds the next piece to the buffer. Returns whether there was one.
    fn next(&mut self, buffer: &mut BytesMut) -> bool {
        let length = match self.pieces.split_first() {
            Some((length, rest)) => {
                self.pieces = rest;
                self.wire.len().min(usize::from(*length).max(1))
            }
            None => self.wire.len(),
        };
        let (piece, rest) = self.wire.split_at(length);
        buffer.extend_from_slice(piece);
        self.wire = rest;
        length > 0
    }
}

/// Reads a response as the gateway does. Returns the number of bytes after it, too.
fn decode(method: &Method, wire: &[u8], pieces: &[u8]) -> (Result<ReadResponse, String>, usize) {
    let (mut feed, mut buffer) = (Feed { wire, pieces }, BytesMut::new());
    let read = read_response(method, &mut feed, &mut buffer);
    (read, buffer.len() + feed.wire.len())
}

fn read_response(
    method: &Method,
    feed: &mut Feed<'_>,
    buffer: &mut BytesMut,
) -> Result<ReadResponse, String> {
    let mut reader = HeadReader::default();
    let start = loop {
        match reader.read(buffer, method).map_err(|fault| fault.to_string())? {
            Some(start) if !is_interim(start.response.status()) => break start,
            Some(_) => {}
            None if feed.next(buffer) => {}
            None => return Err("the connection ended before a response".to_owned()),
        }
    };
    let (head, mut decoder) = start.response.into_parts();
    let mut read = ReadResponse::new(head);
    loop {
        match decoder.decode(buffer).map_err(|fault| fault.to_string())? {
            BodyPart::Data(data) => read.body.extend_from_slice(&data),
            BodyPart::Trailers(trailers) => read.trailers = trailers,
            BodyPart::End => return Ok(read),
            BodyPart::NeedsBytes if feed.next(buffer) => {}
            BodyPart::NeedsBytes => decoder.close().map_err(|fault| fault.to_string())?,
        }
    }
}

fn is_interim(status: StatusCode) -> bool {
    status.is_informational() && status != StatusCode::SWITCHING_PROTOCOLS
}

impl ReadResponse {
    fn without_length(&self) -> (StatusCode, HeaderMap, &[u8], &HeaderMap) {
        let mut headers = self.headers.clone();
        headers.remove(CONTENT_LENGTH);
        (self.status, headers, &self.body, &self.trailers)
    }

    fn new(head: http::response::Parts) -> Self {
        Self { status: head.status, headers: head.headers, body: Vec::new(), trailers: HeaderMap::new() }
    }
}

/// Reads a response with hyper's client.
fn decode_by_hyper(method: &Method, wire: &[u8]) -> Result<ReadResponse, String> {
    let mut cx = Context::from_waker(Waker::noop());
    let stream = Script { left: wire.to_vec(), is_requested: false };
    let mut builder = hyper::client::conn::http1::Builder::new();
    builder.max_headers(MAX_FIELDS);
    let Poll::Ready(handshake) = pin!(builder.handshake(stream)).poll(&mut cx) else {
        panic!("a handshake sends nothing");
    };
    let (mut sender, mut connection) = handshake.map_err(|error| error.to_string())?;
    let request = Request::builder().method(method).uri("/").header("host", "a").body(Empty::<Bytes>::new());
    let mut exchange = Box::pin(async move {
        let response = sender.send_request(request.expect("a valid request")).await?;
        let (head, body) = response.into_parts();
        let mut read = ReadResponse::new(head);
        let collected = body.collect().await?;
        read.trailers = collected.trailers().cloned().unwrap_or_default();
        read.body = collected.to_bytes().to_vec();
        Ok::<_, hyper::Error>(read)
    });
    // The stream is always ready, so that a pending exchange needs another turn of the connection.
    for _ in 0..wire.len() + 64 {
        if let Poll::Ready(read) = exchange.as_mut().poll(&mut cx) {
            return read.map_err(|error| error.to_string());
        }
        let _ = Pin::new(&mut connection).poll(&mut cx); // the exchange fails with it
    }
    Err("hyper waits for more".to_owned())
}

/// Stream that responds to the first write, and then ends.
struct Script {
    left: Vec<u8>,
    is_requested: bool,
}

impl hyper::rt::Read for Script {
    fn poll_read(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        mut buffer: ReadBufCursor<'_>,
    ) -> Poll<std::io::Result<()>> {
        let this = self.get_mut();
        if !this.is_requested {
            return Poll::Pending;
        }
        let length = this.left.len().min(buffer.remaining());
        buffer.put_slice(&this.left[..length]);
        this.left.drain(..length);
        Poll::Ready(Ok(()))
    }
}

impl hyper::rt::Write for Script {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<std::io::Result<usize>> {
        self.get_mut().is_requested = true;
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

impl ValidResponse<'_> {
    /// Returns the bytes of the response to this method, and their meaning.
    fn write(&self, method: &Method) -> (Vec<u8>, ReadResponse) {
        let mut wire =
            "HTTP/1.1 103 Early Hints\r\ncontent-length: 9\r\n\r\n".repeat(usize::from(self.interim % 4));
        let mut body = Vec::new();
        let (status, has_trailer) = match &self.framing {
            ValidFraming::NoContent => (StatusCode::NO_CONTENT, false),
            ValidFraming::NotModified => (StatusCode::NOT_MODIFIED, false),
            ValidFraming::Length(..) => (StatusCode::OK, false),
            ValidFraming::Chunked(_, has_trailer) => (StatusCode::OK, *has_trailer),
        };
        wire.push_str(&format!("HTTP/1.1 {status}\r\n"));
        match &self.framing {
            ValidFraming::Length(times, data) => {
                let length = format!("content-length: {}\r\n", data.len());
                wire.push_str(&length.repeat(usize::from(times % 3) + 1));
                body.extend_from_slice(data);
            }
            ValidFraming::Chunked(chunks, _) => {
                if self.has_other_length {
                    wire.push_str("content-length: 2\r\n");
                }
                wire.push_str("transfer-encoding: chunked\r\n");
                chunks.iter().for_each(|(data, _)| body.extend_from_slice(data));
            }
            // RFC 9112 section 6.3: these have no body, even if they declare a length.
            ValidFraming::NoContent | ValidFraming::NotModified if self.has_other_length => {
                wire.push_str("content-length: 2\r\n");
            }
            ValidFraming::NoContent | ValidFraming::NotModified => {}
        }
        wire.push_str("\r\n");
        let mut wire = wire.into_bytes();
        let mut trailers = HeaderMap::new();
        if method == Method::HEAD {
            body.clear();
        } else if let ValidFraming::Chunked(chunks, _) = &self.framing {
            for (data, style) in chunks.iter().filter(|(data, _)| !data.is_empty()) {
                wire.extend_from_slice(style.line(data.len()).as_bytes());
                wire.extend_from_slice(data);
                wire.extend_from_slice(b"\r\n");
            }
            wire.extend_from_slice(b"0\r\n");
            if has_trailer {
                wire.extend_from_slice(b"X-Sum: 1\r\n");
                trailers.insert("x-sum", http::HeaderValue::from_static("1"));
            }
            wire.extend_from_slice(b"\r\n");
        } else {
            wire.extend_from_slice(&body);
        }
        (wire, ReadResponse { status, headers: HeaderMap::new(), body, trailers })
    }
}

impl ChunkStyle {
    /// Returns the line before the data of a chunk.
    fn line(self, length: usize) -> String {
        match self {
            Self::Plain => format!("{length:x}\r\n"),
            Self::UpperCase => format!("{length:X}\r\n"),
            Self::LeadingZeros => format!("000{length:x}\r\n"),
            Self::Space => format!("{length:x} \t\r\n"),
            Self::Extension => format!("{length:x};a=b;c\r\n"),
            Self::QuotedExtension => format!("{length:x} ;a=\"b;c\"\r\n"),
        }
    }
}
