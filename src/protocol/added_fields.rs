//! The fields that the gateway adds to a request, as HTTP/1.1 writes them.
//!
//! A [`HeaderMap`] would cost each of them a hash, a validation and an allocation, and HTTP/1.1 would then copy it into the
//! same text: 2k instructions more for each request. A client's fields with these names must be removed from its head.

use http::header::{HeaderMap, HeaderName, HeaderValue};

/// Lines of a head. Each is valid: its value has no control character but the tab.
#[derive(Clone, Debug, Default)]
pub(crate) struct AddedFields(Vec<u8>);

/// Bytes that suffice for nearly all requests.
const TYPICAL_LEN: usize = 384;

impl AddedFields {
    pub(crate) fn new() -> Self {
        Self(Vec::with_capacity(TYPICAL_LEN))
    }

    pub(crate) fn push(&mut self, name: &HeaderName, value: &HeaderValue) {
        for part in [name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"] {
            self.0.extend_from_slice(part);
        }
    }

    /// Adds a field whose value `write` makes of constants, numbers and addresses, and which is therefore valid. Inlined,
    /// because lengths that are known to the compiler halve the cost.
    #[inline(always)]
    pub(crate) fn push_own(&mut self, name: &'static str, write: impl FnOnce(&mut Vec<u8>)) {
        let value = self.begin(name);
        write(&mut self.0);
        debug_assert!(is_valid(&self.0[value..]), "the value of {name}");
        self.0.extend_from_slice(b"\r\n");
    }

    /// Like [`Self::push_own`], for a value with text of a client. Adds no field if the value would be invalid.
    #[inline(always)]
    pub(crate) fn push_with(&mut self, name: &'static str, write: impl FnOnce(&mut Vec<u8>)) {
        let start = self.0.len();
        let value = self.begin(name);
        write(&mut self.0);
        if is_valid(&self.0[value..]) {
            self.0.extend_from_slice(b"\r\n");
        } else {
            self.0.truncate(start);
        }
    }

    /// Returns the start of the value.
    #[inline(always)]
    fn begin(&mut self, name: &'static str) -> usize {
        self.0.extend_from_slice(name.as_bytes());
        self.0.extend_from_slice(b": ");
        self.0.len()
    }

    /// Returns the lines, each with its line end.
    pub(crate) fn lines(&self) -> &[u8] {
        &self.0
    }

    /// Moves the fields into a head, for HTTP/2.
    pub(crate) fn move_into(&mut self, headers: &mut HeaderMap) {
        for line in std::mem::take(&mut self.0).split(|byte| *byte == b'\n') {
            let Some(line) = line.strip_suffix(b"\r") else { continue };
            let Some(colon) = line.iter().position(|byte| *byte == b':') else { continue };
            let (name, value) = (&line[..colon], line[colon..].strip_prefix(b": ").unwrap_or_default());
            if let (Ok(name), Ok(mut value)) = (HeaderName::from_bytes(name), HeaderValue::from_bytes(value))
            {
                // Not secret, but different in each request: HTTP/2 must not index it.
                value.set_sensitive(name == "x-request-id");
                headers.append(name, value);
            }
        }
    }
}

fn is_valid(value: &[u8]) -> bool {
    // In pieces of one length and without a branch for each byte, so that the processor compares a piece at once.
    let is_valid = |byte: u8| (byte.wrapping_sub(b' ') <= b'~' - b' ') | (byte == b'\t');
    let are_valid = |piece: &[u8; 16]| piece.iter().fold(true, |valid, byte| valid & is_valid(*byte));
    let (pieces, rest) = value.as_chunks();
    pieces.iter().all(are_valid) && rest.iter().all(|byte| is_valid(*byte))
}

#[cfg(test)]
mod tests {
    use http::header::VIA;

    use super::*;
    use crate::protocol::header_map as map;

    #[test]
    fn added_fields_are_lines_of_http_1_and_fields_of_http_2() {
        let mut added = AddedFields::new();
        added.push(&HeaderName::from_static("x-request-id"), &HeaderValue::from_static("a: b"));
        added.push_with("forwarded", |value| value.extend_from_slice(b"for=1.1.1.1;host=\"a\""));
        added.push(&VIA, &HeaderValue::from_static("1.1 clipgate"));
        let lines = "x-request-id: a: b\r\nforwarded: for=1.1.1.1;host=\"a\"\r\nvia: 1.1 clipgate\r\n";
        assert_eq!(added.lines(), lines.as_bytes());
        let mut headers = map(&[("via", "1.0 fred")]);
        added.move_into(&mut headers);
        assert_eq!(added.lines(), b"");
        let expected = [
            ("via", "1.0 fred"),
            ("via", "1.1 clipgate"),
            ("x-request-id", "a: b"),
            ("forwarded", "for=1.1.1.1;host=\"a\""),
        ];
        assert_eq!(headers, map(&expected));
        assert!(headers["x-request-id"].is_sensitive());
    }

    #[test]
    fn a_text_with_control_characters_adds_no_field() {
        for text in ["a\r\nx: y", "a\nb", "a\rb", "\0", "\u{7f}", "\u{fc}"] {
            let mut added = AddedFields::new();
            added.push_with("via", |value| value.extend_from_slice(b"1.1 x"));
            added.push_with("forwarded", |value| {
                value.extend_from_slice(b"for=a");
                value.extend_from_slice(text.as_bytes());
            });
            assert_eq!(added.lines(), b"via: 1.1 x\r\n", "{text:?}");
        }
    }
}
