//! Heads of messages (RFC 9112 sections 2 to 6): writes that of a request, reads that of a response. Pure.

use std::mem::MaybeUninit;

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use http::header::{CONNECTION, CONTENT_LENGTH, HOST, TRAILER, TRANSFER_ENCODING};
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode, Version};
use http_body::Body as _;
use hyper::ext::ReasonPhrase;

use super::decoder::{BodyDecoder, to_field};
use crate::protocol::body::Body;
use crate::protocol::field_value::tokens;
use crate::upstream::client::OutgoingRequest;

/// Longest head of a response, in bytes.
const MAX_HEAD: usize = 256 << 10;
/// Most fields in the head of a response. More than any server in use sends.
const MAX_FIELDS: usize = 256;
/// Fields that suffice for nearly all responses.
const FEW_FIELDS: usize = 64;
/// Fields that the gateway adds to a response: `Via`, `Cache-Status`, `X-Request-Id`, and the two of the quotas.
const ADDED_FIELDS: usize = 5;

/// Framing of a request body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum UploadFraming {
    /// Bytes that are left.
    Length(u64),
    Chunked {
        /// Names that `Trailer` announces.
        allowed: Vec<HeaderName>,
        trailers: Option<HeaderMap>,
    },
}

/// Reason why the head of a response cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeadFault {
    #[error("the upstream's response is not HTTP/1.1: {0}")]
    Syntax(httparse::Error),
    #[error("the upstream sent an invalid field")]
    Field,
    #[error("the head of the upstream's response is longer than 256 KiB")]
    TooLong,
    #[error("the upstream's response has more than {MAX_FIELDS} header fields")]
    TooManyFields,
    /// Two lengths, a coding that HTTP/1.0 does not have, or codings that are not a list of names with at most one
    /// `chunked`. Another proxy could read another body.
    #[error("the length of the upstream's response is ambiguous")]
    Length,
}

/// A response whose body follows.
pub struct ResponseStart {
    pub response: Response<BodyDecoder>,
    /// Whether the connection may carry another request after the body.
    pub keeps_alive: bool,
}

/// Returns the head of a request, and the framing of its body.
///
/// A body of unknown length is chunked if the head has `Transfer-Encoding` or the method is likely to have a body.
pub(super) fn write_request(
    request: &OutgoingRequest,
    host: &HeaderValue,
) -> (BytesMut, Option<UploadFraming>) {
    let OutgoingRequest { head, body, added } = request;
    let framing = upload_framing(head, body);
    let mut bytes = BytesMut::with_capacity(256 + 48 * head.headers.len() + added.lines().len());
    bytes.put_slice(head.method.as_str().as_bytes());
    bytes.put_u8(b' ');
    bytes.put_slice(head.uri.path_and_query().map_or("/", |target| target.as_str()).as_bytes());
    bytes.put_slice(b" HTTP/1.1\r\n");
    write_field(&mut bytes, HOST.as_str(), host.as_bytes());
    for (name, value) in &head.headers {
        if *name != HOST && *name != TRANSFER_ENCODING && (*name != CONTENT_LENGTH || framing.is_none()) {
            write_field(&mut bytes, name.as_str(), value.as_bytes());
        }
    }
    bytes.put_slice(added.lines());
    match &framing {
        Some(UploadFraming::Length(length)) => {
            write_field(&mut bytes, CONTENT_LENGTH.as_str(), itoa::Buffer::new().format(*length).as_bytes());
        }
        Some(UploadFraming::Chunked { .. }) => {
            write_field(&mut bytes, TRANSFER_ENCODING.as_str(), b"chunked")
        }
        None => {}
    }
    bytes.put_slice(b"\r\n");
    (bytes, framing)
}

fn write_field(bytes: &mut BytesMut, name: &str, value: &[u8]) {
    for part in [name.as_bytes(), b": ", value, b"\r\n"] {
        bytes.put_slice(part);
    }
}

/// `None`: no body is sent.
fn upload_framing(head: &Parts, body: &Body) -> Option<UploadFraming> {
    if body.is_end_stream() {
        return None;
    }
    let is_chunked = head.headers.contains_key(TRANSFER_ENCODING);
    let declared = || head.headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok();
    if !is_chunked && let Some(length) = declared().or(body.size_hint().exact()) {
        return Some(UploadFraming::Length(length));
    }
    if !is_chunked && [Method::GET, Method::HEAD, Method::CONNECT].contains(&head.method) {
        return None;
    }
    let names = tokens(&head.headers, &TRAILER).filter_map(|name| name.parse().ok());
    Some(UploadFraming::Chunked { allowed: names.filter(may_be_trailer).collect(), trailers: None })
}

/// RFC 9110 section 6.5.1: no fields for framing, routing or authentication.
fn may_be_trailer(name: &HeaderName) -> bool {
    ![CONTENT_LENGTH, TRANSFER_ENCODING, HOST, TRAILER, CONNECTION, http::header::AUTHORIZATION]
        .contains(name)
}

/// Writes the last chunk and the allowed trailers.
pub(super) fn write_last_chunk(allowed: &[HeaderName], trailers: Option<&HeaderMap>) -> Bytes {
    let mut bytes = BytesMut::from(&b"0\r\n"[..]);
    for (name, value) in trailers.into_iter().flatten() {
        if allowed.contains(name) {
            write_field(&mut bytes, name.as_str(), value.as_bytes());
        }
    }
    bytes.put_slice(b"\r\n");
    bytes.freeze()
}

/// Reads heads of responses, final and interim ones.
#[derive(Debug, Default)]
pub struct HeadReader {
    /// Bytes of the buffer without the end of a head.
    scanned: usize,
    /// Whether the buffer was parsed once.
    is_begun: bool,
}

impl HeadReader {
    /// Takes the head of a response from the buffer. `None`: more bytes are needed.
    pub fn read(&mut self, read: &mut BytesMut, method: &Method) -> Result<Option<ResponseStart>, HeadFault> {
        // Most heads arrive in one piece, so the search for their end follows the first attempt only.
        let is_first = std::mem::replace(&mut self.is_begun, true);
        if read.is_empty() || (!is_first && !self.has_end(read)) {
            return if read.len() <= MAX_HEAD { Ok(None) } else { Err(HeadFault::TooLong) };
        }
        let parsed = match parse(read, &mut [MaybeUninit::uninit(); FEW_FIELDS], method) {
            Err(HeadFault::TooManyFields) => parse(read, &mut [MaybeUninit::uninit(); MAX_FIELDS], method),
            parsed => parsed,
        };
        match parsed? {
            Some((_, end)) if end > MAX_HEAD => Err(HeadFault::TooLong),
            Some((start, end)) => {
                read.advance(end);
                *self = Self::default();
                Ok(Some(start))
            }
            None if read.len() <= MAX_HEAD => {
                self.scanned = read.len();
                Ok(None)
            }
            None => Err(HeadFault::TooLong),
        }
    }

    /// Returns whether an empty line has arrived, so that each byte is parsed about once.
    fn has_end(&mut self, read: &BytesMut) -> bool {
        let from = self.scanned.saturating_sub(2);
        self.scanned = read.len();
        let ends = |at: usize| matches!(read[from + at + 1..], [b'\n', ..] | [b'\r', b'\n', ..]);
        read[from..].iter().enumerate().any(|(at, byte)| *byte == b'\n' && ends(at))
    }
}

/// Returns the response and the length of its head.
fn parse<'b>(
    read: &'b BytesMut,
    fields: &mut [MaybeUninit<httparse::Header<'b>>],
    method: &Method,
) -> Result<Option<(ResponseStart, usize)>, HeadFault> {
    let mut head = httparse::Response::new(&mut []);
    let fault = |error| match error {
        httparse::Error::TooManyHeaders => HeadFault::TooManyFields,
        error => HeadFault::Syntax(error),
    };
    let parsed =
        httparse::ParserConfig::default().parse_response_with_uninit_headers(&mut head, read, fields);
    let end = match parsed.map_err(fault)? {
        httparse::Status::Complete(end) => end,
        httparse::Status::Partial => return Ok(None),
    };
    let status = StatusCode::from_u16(head.code.unwrap_or(0))
        .map_err(|_| HeadFault::Syntax(httparse::Error::Status))?;
    let is_http11 = head.version == Some(1);
    let mut headers = HeaderMap::with_capacity(head.headers.len() + ADDED_FIELDS);
    let (mut is_coded, mut has_options) = (false, false);
    for field in head.headers.iter() {
        let (name, value) = to_field(field).ok_or(HeadFault::Field)?;
        is_coded |= name == TRANSFER_ENCODING;
        has_options |= name == CONNECTION;
        headers.append(name, value);
    }
    let decoder = body_decoder(&mut headers, status, method, is_http11, is_coded)?;
    let is_kept = if has_options { keeps_alive(&headers, is_http11) } else { is_http11 };
    let keeps_alive = is_kept && decoder != BodyDecoder::until_close();
    let mut response = Response::new(decoder);
    *response.status_mut() = status;
    *response.version_mut() = if is_http11 { Version::HTTP_11 } else { Version::HTTP_10 };
    *response.headers_mut() = headers;
    let reason = head.reason.filter(|reason| status.canonical_reason() != Some(reason));
    if let Some(reason) = reason.and_then(|reason| ReasonPhrase::try_from(reason.as_bytes()).ok()) {
        response.extensions_mut().insert(reason);
    }
    Ok(Some((ResponseStart { response, keeps_alive }, end)))
}

/// RFC 9112 section 6.3. `is_coded`: whether there is a transfer coding.
fn body_decoder(
    headers: &mut HeaderMap,
    status: StatusCode,
    method: &Method,
    is_http11: bool,
    is_coded: bool,
) -> Result<BodyDecoder, HeadFault> {
    let has_no_body = status.is_informational()
        || [StatusCode::NO_CONTENT, StatusCode::NOT_MODIFIED].contains(&status)
        || *method == Method::HEAD;
    if has_no_body {
        return Ok(BodyDecoder::length(0));
    }
    if is_coded {
        let is_chunked = is_chunked(headers).filter(|_| is_http11).ok_or(HeadFault::Length)?;
        headers.remove(CONTENT_LENGTH);
        return Ok(if is_chunked { BodyDecoder::chunked() } else { BodyDecoder::until_close() });
    }
    let lengths =
        headers.get_all(CONTENT_LENGTH).iter().flat_map(|value| value.as_bytes().split(|byte| *byte == b','));
    let (mut length, mut is_repeated) = (None, false);
    for digits in lengths {
        let next = parse_length(digits.trim_ascii()).ok_or(HeadFault::Length)?;
        is_repeated = length.is_some();
        if length.replace(next).is_some_and(|length| length != next) {
            return Err(HeadFault::Length);
        }
    }
    let Some(length) = length else { return Ok(BodyDecoder::until_close()) };
    if is_repeated {
        headers.insert(CONTENT_LENGTH, length.into());
    }
    Ok(BodyDecoder::length(length))
}

/// Returns whether `chunked` is the last transfer coding. `None`: a member of the list is empty or not a name, or
/// `chunked` is there twice.
fn is_chunked(headers: &HeaderMap) -> Option<bool> {
    let lines = headers.get_all(TRANSFER_ENCODING).iter();
    let codings = lines.flat_map(|line| line.as_bytes().split(|byte| *byte == b','));
    let (mut is_last, mut is_found) = (false, false);
    for coding in codings.map(<[u8]>::trim_ascii) {
        // The name of a field is a token, like that of a coding (RFC 9110 section 5.6.2).
        if HeaderName::from_bytes(coding).is_err() {
            return None;
        }
        is_last = coding.eq_ignore_ascii_case(b"chunked");
        if is_last && std::mem::replace(&mut is_found, true) {
            return None;
        }
    }
    Some(is_last)
}

fn parse_length(digits: &[u8]) -> Option<u64> {
    let add = |number: u64, digit: &u8| {
        let digit = digit.is_ascii_digit().then(|| u64::from(digit - b'0'))?;
        number.checked_mul(10)?.checked_add(digit)
    };
    (!digits.is_empty()).then(|| digits.iter().try_fold(0, add)).flatten()
}

/// RFC 9112 section 9.3. `close` wins over `keep-alive`.
fn keeps_alive(headers: &HeaderMap, is_http11: bool) -> bool {
    let has = |option: &[u8]| {
        let mut values =
            headers.get_all(CONNECTION).iter().flat_map(|value| value.as_bytes().split(|byte| *byte == b','));
        values.any(|value| value.trim_ascii().eq_ignore_ascii_case(option))
    };
    !has(b"close") && (is_http11 || has(b"keep-alive"))
}

#[cfg(test)]
mod tests {
    use http::Request;
    use http_body_util::{BodyExt as _, Empty};

    use super::*;

    fn written(request: Request<Body>) -> (String, Option<UploadFraming>) {
        let request: Box<OutgoingRequest> = request.into();
        let (head, framing) = write_request(&request, &HeaderValue::from_static("up.example"));
        (String::from_utf8(head.to_vec()).unwrap(), framing)
    }

    fn unknown_length() -> Body {
        let frames =
            futures_util::stream::iter([Ok::<_, std::io::Error>(http_body::Frame::data(Bytes::from("x")))]);
        Body::stream(http_body_util::StreamBody::new(frames))
    }

    #[test]
    fn a_request_has_the_framing_of_its_body() {
        let post = || Request::post("http://up.example/a?b=c");
        let (head, framing) = written(post().header("x-a", "1").body(Body::empty()).unwrap());
        assert_eq!(head, "POST /a?b=c HTTP/1.1\r\nhost: up.example\r\nx-a: 1\r\n\r\n");
        assert_eq!(framing, None);
        let (head, framing) = written(post().header(HOST, "other").body(Body::full("body")).unwrap());
        assert_eq!(head, "POST /a?b=c HTTP/1.1\r\nhost: up.example\r\ncontent-length: 4\r\n\r\n");
        assert_eq!(framing, Some(UploadFraming::Length(4)));
        let chunked = |allowed: &[&str]| {
            let allowed = allowed.iter().map(|name| name.parse().unwrap()).collect();
            Some(UploadFraming::Chunked { allowed, trailers: None })
        };
        let trailer = "x-sum, content-length, authorization";
        let (head, framing) = written(post().header(TRAILER, trailer).body(unknown_length()).unwrap());
        assert!(head.ends_with("\r\ntransfer-encoding: chunked\r\n\r\n"), "{head}");
        assert_eq!(framing, chunked(&["x-sum"]));
        // The length that the head declares.
        let (_, framing) = written(post().header(CONTENT_LENGTH, "1").body(unknown_length()).unwrap());
        assert_eq!(framing, Some(UploadFraming::Length(1)));
        // A GET seldom has a body: only one that says so.
        let get = || Request::get("http://up.example");
        let (head, framing) = written(get().body(unknown_length()).unwrap());
        assert_eq!((head.as_str(), framing), ("GET / HTTP/1.1\r\nhost: up.example\r\n\r\n", None));
        let (head, framing) =
            written(get().header(TRANSFER_ENCODING, "chunked").body(unknown_length()).unwrap());
        assert_eq!(head.matches("transfer-encoding: chunked\r\n").count(), 1);
        assert_eq!(framing, chunked(&[]));
        let (head, _) = written(
            get()
                .header(CONTENT_LENGTH, "0")
                .body(Body::stream(Empty::new().map_err(|never: std::convert::Infallible| match never {})))
                .unwrap(),
        );
        assert!(head.contains("content-length: 0\r\n"), "{head}");
    }

    fn read(head: &str, method: &Method) -> Result<Option<ResponseStart>, HeadFault> {
        HeadReader::default().read(&mut BytesMut::from(head), method)
    }

    #[test]
    fn a_body_ends_where_rfc_9112_says() {
        let length = || BodyDecoder::length(3);
        let rows: [(&str, Method, BodyDecoder, bool); 15] = [
            ("1.1 200 OK\r\ncontent-length: 3", Method::GET, length(), true),
            ("1.1 200 OK\r\ncontent-length: 3\r\nconnection: x, Close", Method::GET, length(), false),
            ("1.1 200 OK\r\ncontent-length: 3\r\ncontent-length: 3", Method::GET, length(), true),
            ("1.1 200 OK\r\ncontent-length: 3, 3", Method::GET, length(), true),
            ("1.0 200 OK\r\ncontent-length: 3", Method::GET, length(), false),
            ("1.0 200 OK\r\ncontent-length: 3\r\nconnection: keep-alive", Method::GET, length(), true),
            (
                "1.0 200 OK\r\ncontent-length: 3\r\nconnection: keep-alive, close",
                Method::GET,
                length(),
                false,
            ),
            ("1.1 200 OK", Method::GET, BodyDecoder::until_close(), false),
            ("1.1 200 OK\r\ntransfer-encoding: Chunked", Method::GET, BodyDecoder::chunked(), true),
            ("1.1 200 OK\r\ntransfer-encoding: gzip, chunked", Method::GET, BodyDecoder::chunked(), true),
            (
                "1.1 200 OK\r\ntransfer-encoding: chunked, gzip",
                Method::GET,
                BodyDecoder::until_close(),
                false,
            ),
            (
                "1.1 200 OK\r\ntransfer-encoding: chunked\r\ncontent-length: 3",
                Method::GET,
                BodyDecoder::chunked(),
                true,
            ),
            ("1.1 200 OK\r\ncontent-length: 3", Method::HEAD, BodyDecoder::length(0), true),
            ("1.1 304 Not Modified\r\ncontent-length: 3", Method::GET, BodyDecoder::length(0), true),
            ("1.1 204 No Content\r\ntransfer-encoding: chunked", Method::GET, BodyDecoder::length(0), true),
        ];
        for (head, method, decoder, keeps_alive) in rows {
            let start = read(&format!("HTTP/{head}\r\n\r\n"), &method).unwrap().unwrap();
            assert_eq!((start.response.body(), start.keeps_alive), (&decoder, keeps_alive), "{head}");
            if *start.response.body() == BodyDecoder::chunked() {
                assert_eq!(start.response.headers().get(CONTENT_LENGTH), None, "{head}");
            }
            assert!(start.response.headers().get_all(CONTENT_LENGTH).iter().count() < 2);
        }
    }

    #[test]
    fn an_ambiguous_or_invalid_head_fails() {
        for lines in [
            "1.1 200 OK\r\ncontent-length: 3\r\ncontent-length: 4",
            "1.1 200 OK\r\ncontent-length: 3, 4",
            "1.1 200 OK\r\ncontent-length: +3",
            "1.1 200 OK\r\ncontent-length: 0x3",
            "1.1 200 OK\r\ncontent-length:",
            "1.1 200 OK\r\ncontent-length: 99999999999999999999",
            "1.0 200 OK\r\ntransfer-encoding: chunked",
            "1.1 200 OK\r\ntransfer-encoding:",
            "1.1 200 OK\r\ntransfer-encoding: \u{fc}, chunked",
            "1.1 200 OK\r\ntransfer-encoding: \u{fc}\r\ntransfer-encoding: chunked",
            "1.1 200 OK\r\ntransfer-encoding: chunked\u{fc}",
            "1.1 200 OK\r\ntransfer-encoding: chunked,",
            "1.1 200 OK\r\ntransfer-encoding: , chunked",
            "1.1 200 OK\r\ntransfer-encoding: chunked, chunked",
            "1.1 200 OK\r\ntransfer-encoding: chunked\r\ntransfer-encoding: chunked",
            "1.1 200 OK\r\ntransfer-encoding: chunked, gzip, chunked",
            "1.1 200 OK\r\ntransfer-encoding: chunked;q=1",
            "1.1 200 OK\r\ntransfer-encoding: x y, chunked",
            "1.1 200 OK\r\ntransfer-encoding: \"x, chunked",
        ] {
            let fault = read(&format!("HTTP/{lines}\r\n\r\n"), &Method::GET).err();
            assert_eq!(fault, Some(HeadFault::Length), "{lines}");
        }
        for head in [
            "HTTP/2.0 200 OK\r\n\r\n",
            "HTTP/1.1 20 OK\r\n\r\n",
            "HTTP/1.1 200 OK\r\na b: c\r\n\r\n",
            "HTTP/1.1 200 OK\r\na: b\r\n c\r\n\r\n",
            "HTTP/1.1 200 OK\r\n: c\r\n\r\n",
            "GET / HTTP/1.1\r\n\r\n",
        ] {
            assert!(read(head, &Method::GET).is_err(), "{head}");
        }
    }

    #[test]
    fn a_head_is_the_same_however_its_bytes_are_divided() {
        let wire = b"HTTP/1.1 200 Fine\r\nA: b\r\na: \xfc\r\ncontent-length: 3\r\n\r\nabc";
        for at in 0..wire.len() {
            let (mut reader, mut read) = (HeadReader::default(), BytesMut::from(&wire[..at]));
            let early = reader.read(&mut read, &Method::GET).unwrap();
            read.extend_from_slice(&wire[at..]);
            let start = early.or_else(|| reader.read(&mut read, &Method::GET).unwrap()).unwrap();
            assert_eq!(read.as_ref(), b"abc", "{at}");
            let headers = start.response.headers();
            let values: Vec<_> = headers.get_all("a").iter().map(HeaderValue::as_bytes).collect();
            assert_eq!(values, [&b"b"[..], b"\xfc"]);
            let reason = start.response.extensions().get::<ReasonPhrase>().unwrap();
            assert_eq!(reason.as_bytes(), b"Fine");
        }
    }

    #[test]
    fn the_fields_and_the_length_of_a_head_are_bounded() {
        let fields = |count: usize| -> String { (0..count).map(|n| format!("a{n}: b\r\n")).collect() };
        let head = |count| format!("HTTP/1.1 200 OK\r\n{}\r\n", fields(count));
        let start = read(&head(MAX_FIELDS), &Method::GET).unwrap().unwrap();
        assert_eq!(start.response.headers().len(), MAX_FIELDS);
        let fault = read(&head(MAX_FIELDS + 1), &Method::GET).err();
        assert_eq!(fault, Some(HeadFault::TooManyFields));
        let long = format!("HTTP/1.1 200 OK\r\na: {}", "b".repeat(MAX_HEAD));
        assert_eq!(read(&long, &Method::GET).err(), Some(HeadFault::TooLong));
        assert_eq!(read(&format!("{long}\r\n\r\n"), &Method::GET).err(), Some(HeadFault::TooLong));
    }
}
