//! Decoder of response bodies (RFC 9112 sections 6 and 7). Pure: bytes in, frames out.

use bytes::{Buf as _, Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue};

/// Longest line with a chunk's size and extensions, and the longest trailer section, in bytes.
const MAX_LINE: usize = 16 << 10;
/// Most fields of a trailer section.
const MAX_TRAILERS: usize = 64;

/// Reads one body from the bytes of a connection. Takes no byte after the end of the body.
#[derive(Debug, PartialEq, Eq)]
pub struct BodyDecoder {
    framing: Framing,
    /// Bytes of the buffer without the end of the current line.
    scanned: usize,
}

#[derive(Debug, PartialEq, Eq)]
enum Framing {
    Length(u64),
    ChunkSize,
    ChunkData(u64),
    /// The line end after the data of a chunk.
    ChunkEnd,
    Trailers,
    /// Until the connection ends.
    Close,
    Ended,
}

/// Next part of a body.
#[derive(Debug, PartialEq, Eq)]
pub enum BodyPart {
    Data(Bytes),
    Trailers(HeaderMap),
    /// The body has ended. Returned again after that.
    End,
    NeedsBytes,
}

/// Reason why a body cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BodyFault {
    #[error("the upstream sent an invalid chunk")]
    Chunk,
    #[error("the upstream sent an invalid trailer section")]
    Trailers,
    #[error("the upstream sent a chunk extension or a trailer section of more than 16 KiB")]
    TooLong,
    #[error("the upstream closed the connection within a body")]
    Incomplete,
}

impl BodyDecoder {
    pub(super) fn length(length: u64) -> Self {
        Self::new(if length == 0 { Framing::Ended } else { Framing::Length(length) })
    }

    pub(super) fn chunked() -> Self {
        Self::new(Framing::ChunkSize)
    }

    pub(super) fn until_close() -> Self {
        Self::new(Framing::Close)
    }

    fn new(framing: Framing) -> Self {
        Self { framing, scanned: 0 }
    }

    pub fn has_ended(&self) -> bool {
        self.framing == Framing::Ended
    }

    /// Returns the number of bytes that are left, if known.
    pub(super) fn left(&self) -> Option<u64> {
        match self.framing {
            Framing::Length(left) => Some(left),
            Framing::Ended => Some(0),
            _ => None,
        }
    }

    /// Takes the whole body of a declared length from the buffer, if all of it is there. The body has then ended.
    pub(super) fn take_complete(&mut self, read: &mut BytesMut) -> Option<Bytes> {
        let left = usize::try_from(self.left()?).ok().filter(|left| *left <= read.len())?;
        self.framing = Framing::Ended;
        Some(read.split_to(left).freeze())
    }

    /// Takes the next part of the body from the buffer.
    pub fn decode(&mut self, read: &mut BytesMut) -> Result<BodyPart, BodyFault> {
        loop {
            match &mut self.framing {
                Framing::Ended => return Ok(BodyPart::End),
                Framing::Close if read.is_empty() => return Ok(BodyPart::NeedsBytes),
                Framing::Close => return Ok(BodyPart::Data(read.split().freeze())),
                Framing::Length(left) | Framing::ChunkData(left) => {
                    let Some(data) = take_data(read, left) else { return Ok(BodyPart::NeedsBytes) };
                    if *left == 0 {
                        let is_chunk = matches!(self.framing, Framing::ChunkData(_));
                        self.framing = if is_chunk { Framing::ChunkEnd } else { Framing::Ended };
                    }
                    return Ok(BodyPart::Data(data));
                }
                Framing::ChunkEnd => {
                    match read.as_ref() {
                        [] | [b'\r'] => return Ok(BodyPart::NeedsBytes),
                        [b'\r', b'\n', ..] => read.advance(2),
                        _ => return Err(BodyFault::Chunk),
                    }
                    self.framing = Framing::ChunkSize;
                }
                Framing::ChunkSize => {
                    let Some(end) = self.line_end(read)? else { return Ok(BodyPart::NeedsBytes) };
                    let size = chunk_size(&read[..end])?;
                    read.advance(end);
                    self.framing = if size == 0 { Framing::Trailers } else { Framing::ChunkData(size) };
                }
                Framing::Trailers => {
                    let Some(trailers) = self.trailers(read)? else { return Ok(BodyPart::NeedsBytes) };
                    self.framing = Framing::Ended;
                    return Ok(if trailers.is_empty() {
                        BodyPart::End
                    } else {
                        BodyPart::Trailers(trailers)
                    });
                }
            }
        }
    }

    /// Takes in the end of the connection.
    pub fn close(&mut self) -> Result<(), BodyFault> {
        match self.framing {
            Framing::Close | Framing::Ended => {
                self.framing = Framing::Ended;
                Ok(())
            }
            _ => Err(BodyFault::Incomplete),
        }
    }

    /// Returns the index after the end of the first line.
    fn line_end(&mut self, read: &BytesMut) -> Result<Option<usize>, BodyFault> {
        let found = read[self.scanned..].iter().position(|byte| *byte == b'\n');
        match found.map(|at| self.scanned + at + 1) {
            Some(end) if end <= MAX_LINE => {
                self.scanned = 0;
                Ok(Some(end))
            }
            None if read.len() < MAX_LINE => {
                self.scanned = read.len();
                Ok(None)
            }
            Some(_) | None => Err(BodyFault::TooLong),
        }
    }

    /// Takes the trailer section with the empty line after it.
    fn trailers(&mut self, read: &mut BytesMut) -> Result<Option<HeaderMap>, BodyFault> {
        let mut fields = [httparse::EMPTY_HEADER; MAX_TRAILERS];
        // The section is parsed only when another line end has arrived.
        if !read[self.scanned..].contains(&b'\n') {
            self.scanned = read.len();
            return if read.len() < MAX_LINE { Ok(None) } else { Err(BodyFault::TooLong) };
        }
        match httparse::parse_headers(read, &mut fields) {
            Ok(httparse::Status::Complete((end, _))) if end > MAX_LINE => Err(BodyFault::TooLong),
            Ok(httparse::Status::Complete((end, _))) if has_bare_line_feed(&read[..end]) => {
                Err(BodyFault::Trailers)
            }
            Ok(httparse::Status::Complete((end, fields))) => {
                let fields = fields.iter().map(to_field).collect::<Option<HeaderMap>>();
                read.advance(end);
                self.scanned = 0;
                fields.map(Some).ok_or(BodyFault::Trailers)
            }
            Ok(httparse::Status::Partial) if read.len() < MAX_LINE => {
                self.scanned = read.len();
                Ok(None)
            }
            Ok(httparse::Status::Partial) => Err(BodyFault::TooLong),
            Err(_) => Err(BodyFault::Trailers),
        }
    }
}

/// Returns whether a line ends without CR. httparse accepts it, but another proxy could see another end of the body.
fn has_bare_line_feed(section: &[u8]) -> bool {
    let line_feeds = section.iter().enumerate().filter(|(_, byte)| **byte == b'\n');
    line_feeds.map(|(at, _)| at).any(|at| at == 0 || section[at - 1] != b'\r')
}

pub(super) fn to_field(field: &httparse::Header<'_>) -> Option<(HeaderName, HeaderValue)> {
    let name = HeaderName::from_bytes(field.name.as_bytes()).ok()?;
    Some((name, HeaderValue::from_bytes(field.value).ok()?))
}

/// Takes up to `left` bytes, and counts them.
fn take_data(read: &mut BytesMut, left: &mut u64) -> Option<Bytes> {
    if read.is_empty() {
        return None;
    }
    let taken = usize::try_from(*left).map_or(read.len(), |left| left.min(read.len()));
    *left -= taken as u64;
    Some(read.split_to(taken).freeze())
}

/// Returns the size of a chunk from its line: hexadecimal digits, optional spaces, optional extensions, CR LF.
fn chunk_size(line: &[u8]) -> Result<u64, BodyFault> {
    let line = line.strip_suffix(b"\r\n").ok_or(BodyFault::Chunk)?;
    if line.contains(&b'\r') {
        return Err(BodyFault::Chunk);
    }
    let digits = line.iter().take_while(|byte| byte.is_ascii_hexdigit()).count();
    let (digits, rest) = line.split_at(digits);
    let rest = rest.trim_ascii_start();
    if !(rest.is_empty() || rest.starts_with(b";")) {
        return Err(BodyFault::Chunk);
    }
    let digits = std::str::from_utf8(digits).map_err(|_| BodyFault::Chunk)?;
    u64::from_str_radix(digits, 16).map_err(|_| BodyFault::Chunk)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Decodes a body that arrives in pieces. Returns its data, its trailers and the bytes after it.
    fn decode(
        mut decoder: BodyDecoder,
        pieces: &[&[u8]],
    ) -> Result<(Vec<u8>, HeaderMap, Vec<u8>), BodyFault> {
        let (mut read, mut data, mut trailers) = (BytesMut::new(), Vec::new(), HeaderMap::new());
        let mut pieces = pieces.iter();
        loop {
            match decoder.decode(&mut read)? {
                BodyPart::Data(part) => data.extend_from_slice(&part),
                BodyPart::Trailers(fields) => trailers = fields,
                BodyPart::End => break,
                BodyPart::NeedsBytes => match pieces.next() {
                    Some(piece) => read.extend_from_slice(piece),
                    None => {
                        decoder.close()?;
                        break;
                    }
                },
            }
        }
        pieces.for_each(|piece| read.extend_from_slice(piece));
        Ok((data, trailers, read.to_vec()))
    }

    #[test]
    fn a_body_is_the_same_however_its_bytes_are_divided() {
        type Row<'w> = (fn() -> BodyDecoder, &'w [u8], &'w [u8], &'w [u8]);
        let rows: [Row<'_>; 5] = [
            (|| BodyDecoder::length(4), b"bodyHTTP", b"body", b"HTTP"),
            (|| BodyDecoder::length(0), b"HTTP", b"", b"HTTP"),
            (BodyDecoder::until_close, b"body", b"body", b""),
            (BodyDecoder::chunked, b"1\r\nb\r\n03 ;x=\"y\"\r\nody\r\n0\r\n\r\nHTTP", b"body", b"HTTP"),
            (
                BodyDecoder::chunked,
                b"A\r\n0123456789\r\n0;e\r\na: b\r\nc: d\r\n\r\nrest",
                b"0123456789",
                b"rest",
            ),
        ];
        for (decoder, wire, body, rest) in rows {
            let whole = decode(decoder(), &[wire]).unwrap();
            assert_eq!((whole.0.as_slice(), whole.2.as_slice()), (body, rest));
            let bytes: Vec<&[u8]> = wire.chunks(1).collect();
            assert_eq!(decode(decoder(), &bytes).unwrap(), whole);
            for at in 0..wire.len() {
                assert_eq!(decode(decoder(), &[&wire[..at], &wire[at..]]).unwrap(), whole, "{at}");
            }
        }
        let (_, trailers, _) = decode(BodyDecoder::chunked(), &[b"0\r\na: b\r\na: c\r\n\r\n"]).unwrap();
        assert_eq!(trailers.get_all("a").iter().collect::<Vec<_>>(), ["b", "c"]);
    }

    #[test]
    fn only_a_body_of_known_length_that_has_arrived_is_taken_at_once() {
        let take = |mut decoder: BodyDecoder, wire: &[u8]| {
            let mut read = BytesMut::from(wire);
            let body = decoder.take_complete(&mut read);
            (body, read.to_vec(), decoder.has_ended())
        };
        type Row = (BodyDecoder, &'static [u8], Option<&'static [u8]>, &'static [u8], bool);
        let rows: [Row; 6] = [
            (BodyDecoder::length(4), b"body", Some(b"body"), b"", true),
            (BodyDecoder::length(4), b"bodyHTTP", Some(b"body"), b"HTTP", true),
            (BodyDecoder::length(4), b"bod", None, b"bod", false),
            (BodyDecoder::length(0), b"HTTP", Some(b""), b"HTTP", true),
            (BodyDecoder::until_close(), b"body", None, b"body", false),
            (BodyDecoder::chunked(), b"0\r\n\r\n", None, b"0\r\n\r\n", false),
        ];
        for (decoder, wire, body, rest, has_ended) in rows {
            let (taken, left, ended) = take(decoder, wire);
            assert_eq!((taken.as_deref(), left.as_slice(), ended), (body, rest, has_ended));
        }
    }

    #[test]
    fn a_body_with_invalid_framing_fails() {
        let rows: [(&[u8], BodyFault); 14] = [
            (b"\r\n", BodyFault::Chunk),
            (b"+1\r\nb\r\n", BodyFault::Chunk),
            (b"0x1\r\nb\r\n", BodyFault::Chunk),
            (b" 1\r\nb\r\n", BodyFault::Chunk),
            (b"1 1\r\nb\r\n", BodyFault::Chunk),
            (b"1\nb\n", BodyFault::Chunk),
            (b"1;a\rb\r\nb\r\n", BodyFault::Chunk),
            (b"1\r\nbb\r\n", BodyFault::Chunk),
            (b"1\r\nb\n", BodyFault::Chunk),
            (b"10000000000000000\r\n", BodyFault::Chunk),
            (b"0\r\na b\r\n\r\n", BodyFault::Trailers),
            (b"0\r\n: b\r\n\r\n", BodyFault::Trailers),
            (b"5\r\nbo", BodyFault::Incomplete),
            (b"1\r\nb\r\n0\r\n", BodyFault::Incomplete),
        ];
        for (wire, fault) in rows {
            assert_eq!(decode(BodyDecoder::chunked(), &[wire]), Err(fault), "{}", wire.escape_ascii());
        }
        assert_eq!(decode(BodyDecoder::length(5), &[b"bo"]), Err(BodyFault::Incomplete));
    }

    #[test]
    fn chunk_extensions_and_trailers_are_bounded() {
        let long = "x".repeat(MAX_LINE);
        for wire in [
            format!("1;{long}"),
            format!("1;{long}\r\n"),
            format!("0\r\na: {long}"),
            format!("0\r\na: {long}\r\n\r\n"),
        ] {
            assert_eq!(decode(BodyDecoder::chunked(), &[wire.as_bytes()]), Err(BodyFault::TooLong));
        }
        let many: String = (0..=MAX_TRAILERS).map(|n| format!("a{n}: b\r\n")).collect();
        assert_eq!(
            decode(BodyDecoder::chunked(), &[format!("0\r\n{many}\r\n").as_bytes()]),
            Err(BodyFault::Trailers)
        );
    }

    #[test]
    fn random_bytes_neither_panic_nor_yield_more_data_than_arrived() {
        for seed in 0..20_000 {
            let mut rng = fastrand::Rng::with_seed(seed);
            let alphabet = b"0123af;: \r\n\r\nxX";
            let wire: Vec<u8> = (0..rng.usize(..60)).map(|_| alphabet[rng.usize(..alphabet.len())]).collect();
            let whole = decode(BodyDecoder::chunked(), &[&wire]);
            if let Ok((data, _, rest)) = &whole {
                assert!(data.len() + rest.len() <= wire.len());
            }
            let bytes: Vec<&[u8]> = wire.chunks(1).collect();
            assert_eq!(decode(BodyDecoder::chunked(), &bytes), whole, "seed {seed}");
        }
    }

    /// Found by the fuzz target, which compares with hyper: the empty line of one LF ended the body.
    #[test]
    fn a_line_of_trailers_without_cr_is_invalid() {
        for section in ["\n", "a: b\n\r\n", "a: b\r\n\n", "a: b\nc: d\r\n\r\n"] {
            let wire = format!("0\r\n{section}next");
            let fault = decode(BodyDecoder::chunked(), &[wire.as_bytes()]).unwrap_err();
            assert_eq!(fault, BodyFault::Trailers, "{section:?}");
        }
    }
}
