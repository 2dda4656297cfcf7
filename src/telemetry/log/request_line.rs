//! Short line of a request, for people: `200 GET …/clip 3.18s coalesced alice`.
//!
//! JSON has all fields of a request. Text has those that a reader looks at first; the id of a request follows an error,
//! because error bodies have it too.

use std::fmt;
use std::io::Write as _;

use tracing::field::{Field, Visit};

use super::format::{escape_from, put, put_integer};
use crate::printable;

/// Fields of the line. Texts are copied into one small buffer each: a visitor may not keep the borrowed values.
#[derive(Default)]
pub(super) struct RequestLine {
    status: Option<u64>,
    seconds: Option<f64>,
    method: FieldText<16>,
    path: FieldText<MAX_PATH>,
    outcome: FieldText<16>,
    reason: FieldText<32>,
    member: FieldText<64>,
    client: FieldText<48>,
    id: FieldText<128>,
}

/// Longest path of a line, in bytes; a longer one loses its beginning.
const MAX_PATH: usize = 24;

impl RequestLine {
    /// Writes the line after its time. A disconnected client has no status.
    pub(super) fn write(&self, line: &mut Vec<u8>, is_colored: bool) {
        let is_error = self.status.is_some_and(|status| status >= 400);
        let color = match self.status {
            Some(500..) => "\x1b[31m",
            Some(400..) => "\x1b[33m",
            Some(_) => "\x1b[32m",
            None => "\x1b[2m",
        };
        let (color, faint, reset) = if is_colored { (color, "\x1b[2m", "\x1b[0m") } else { ("", "", "") };
        put(line, color);
        match self.status {
            Some(status) => put_integer(line, status),
            None => put(line, "---"),
        }
        put(line, reset);
        let from = line.len();
        self.method.put(line, " ");
        self.path.put(line, if self.path.is_cut { " \u{2026}" } else { " " });
        if let Some(seconds) = self.seconds {
            put(line, " ");
            put_duration(line, seconds);
        }
        self.outcome.put(line, " ");
        // Most waits reach their goal.
        if self.reason.as_bytes() != b"reached" {
            self.reason.put(line, " ");
        }
        match self.member.is_empty() {
            true if is_error => self.client.put(line, " "),
            true => {}
            false => self.member.put(line, " "),
        }
        escape_from(line, from, printable::escape);
        if is_error {
            put(line, faint);
            let from = line.len();
            self.id.put(line, " id=");
            escape_from(line, from, printable::escape);
            put(line, reset);
        }
    }
}

impl Visit for RequestLine {
    fn record_debug(&mut self, _: &Field, _: &dyn fmt::Debug) {}

    fn record_u64(&mut self, field: &Field, value: u64) {
        if field.name() == "http.response.status_code" {
            self.status = Some(value);
        }
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        if field.name() == "http.server.request.duration" {
            self.seconds = Some(value);
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        match field.name() {
            "http.request.method" => self.method.set_start(value),
            "url.path" => self.path.set_end(value),
            "clipgate.outcome" => self.outcome.set_start(value),
            "clipgate.reason" => self.reason.set_start(value),
            "clipgate.member" => self.member.set_start(value),
            "client.address" => self.client.set_start(value),
            // Of a request with a malformed head.
            "network.peer.address" if self.client.is_empty() => self.client.set_start(value),
            "clipgate.request_id" => self.id.set_start(value),
            _ => {}
        }
    }
}

/// Text of a field, without an allocation.
struct FieldText<const N: usize> {
    bytes: [u8; N],
    len: usize,
    is_cut: bool,
}

impl<const N: usize> Default for FieldText<N> {
    fn default() -> Self {
        Self { bytes: [0; N], len: 0, is_cut: false }
    }
}

impl<const N: usize> FieldText<N> {
    /// Keeps the text up to the capacity.
    fn set_start(&mut self, text: &str) {
        self.set(&text[..text.floor_char_boundary(N)], text.len());
    }

    /// Keeps the end of the text, from a slash on if there is one.
    fn set_end(&mut self, text: &str) {
        let end = &text[text.ceil_char_boundary(text.len().saturating_sub(N))..];
        let is_cut = end.len() < text.len();
        let end = end.find('/').filter(|_| is_cut).map_or(end, |slash| &end[slash..]);
        self.set(end, text.len());
    }

    fn set(&mut self, kept: &str, len: usize) {
        self.bytes[..kept.len()].copy_from_slice(kept.as_bytes());
        (self.len, self.is_cut) = (kept.len(), kept.len() < len);
    }

    fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }

    fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Writes the text after a prefix, if there is a text.
    fn put(&self, line: &mut Vec<u8>, prefix: &str) {
        if !self.is_empty() {
            put(line, prefix);
            line.extend_from_slice(self.as_bytes());
        }
    }
}

/// Writes three digits at most: `0.2ms`, `41ms`, `3.18s`, `120s`.
fn put_duration(line: &mut Vec<u8>, seconds: f64) {
    let micros = (seconds * 1e6) as u64;
    // Writing to memory cannot fail.
    let _ = match micros {
        ..10_000 => {
            put_integer(line, micros / 1000);
            line.push(b'.');
            put_integer(line, micros / 100 % 10);
            put(line, "ms");
            Ok(())
        }
        10_000..1_000_000 => write!(line, "{}ms", micros / 1000),
        1_000_000..10_000_000 => write!(line, "{seconds:.2}s"),
        10_000_000..100_000_000 => write!(line, "{seconds:.1}s"),
        _ => write!(line, "{seconds:.0}s"),
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_three_digits_at_most() {
        let rows = [
            (0.000_04, "0.0ms"),
            (0.004_2, "4.2ms"),
            (0.041_9, "41ms"),
            (3.184, "3.18s"),
            (42.04, "42.0s"),
            (120.4, "120s"),
        ];
        for (seconds, expected) in rows {
            let mut line = Vec::new();
            put_duration(&mut line, seconds);
            assert_eq!(String::from_utf8(line).unwrap(), expected);
        }
    }

    #[test]
    fn a_long_path_keeps_its_last_segments() {
        let mut path = FieldText::<MAX_PATH>::default();
        path.set_end("/v1/chat/completions");
        assert!(!path.is_cut);
        path.set_end("/v2/generate/audio/suno-ai/clip");
        assert!(path.is_cut);
        assert_eq!(path.as_bytes(), b"/audio/suno-ai/clip");
        path.set_end(&"\u{e9}".repeat(100));
        assert_eq!(path.as_bytes().len(), MAX_PATH);
    }

    #[test]
    fn a_colored_line_marks_errors() {
        let mut request = RequestLine { status: Some(503), seconds: Some(0.002), ..RequestLine::default() };
        request.method.set_start("GET");
        request.path.set_end("/x");
        request.outcome.set_start("rejected");
        request.reason.set_start("too-many-waits");
        request.client.set_start("127.0.0.1");
        request.id.set_start("r1");
        let text = |is_colored| {
            let mut line = Vec::new();
            request.write(&mut line, is_colored);
            String::from_utf8(line).unwrap()
        };
        assert_eq!(text(false), "503 GET /x 2.0ms rejected too-many-waits 127.0.0.1 id=r1");
        assert!(text(true).starts_with("\u{1b}[31m503\u{1b}[0m GET /x "), "{:?}", text(true));
    }
}
