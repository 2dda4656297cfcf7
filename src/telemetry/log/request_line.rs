//! Line of a request. JSON has all its fields, text the short form for people: `200 GET …/clip 3.18s coalesced alice`.
//!
//! Text has the fields that a reader looks at first; the id of a request follows an error, because error bodies have it
//! too. Field names of JSON are those of docs/observability.md.

use std::borrow::Cow;
use std::net::IpAddr;

use super::LINES;
use super::format::{escape_from, put, put_float, put_integer, put_json};
use crate::core::job::KeyDomain;
use crate::printable;
use crate::protocol::peer::{Peer, address_text};

/// Target of the lines of requests: the module that writes them. A filter in `RUST_LOG` can name it.
pub(super) const REQUEST_TARGET: &str = "clipgate::gateway::access_log";

/// Fields of the line. Fields without a value are left out.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RequestLine<'a> {
    pub(crate) method: Option<&'a str>,
    pub(crate) path: Option<&'a str>,
    /// `None`: the client disconnected before its response.
    pub(crate) status: Option<u16>,
    pub(crate) body_size: Option<u64>,
    pub(crate) seconds: Option<f64>,
    pub(crate) outcome: &'a str,
    pub(crate) reason: Option<&'a str>,
    pub(crate) route: Option<&'a str>,
    pub(crate) jobs: Option<&'a str>,
    pub(crate) member: Option<&'a str>,
    pub(crate) key: Option<KeyDomain>,
    pub(crate) client: Option<IpAddr>,
    /// The host name for which the request is rejected.
    pub(crate) foreign_host: Option<&'a str>,
    pub(crate) peer: Peer,
    pub(crate) version: Option<&'a str>,
    pub(crate) user_agent: Option<&'a str>,
    pub(crate) id: &'a str,
    pub(crate) upstream_id: Option<&'a str>,
}

/// Longest path of a text line, in bytes; a longer one loses its beginning.
const MAX_PATH: usize = 24;

/// Longest id of a request in a text line, in bytes.
const MAX_ID: usize = 128;

impl<'a> RequestLine<'a> {
    /// Returns the line of a request of which only this much is known: its head is malformed.
    pub(crate) fn malformed(status: u16, outcome: &'a str, reason: &'a str, peer: Peer, id: &'a str) -> Self {
        Self {
            method: None,
            path: None,
            status: Some(status),
            body_size: None,
            seconds: None,
            outcome,
            reason: Some(reason),
            route: None,
            jobs: None,
            member: None,
            key: None,
            client: None,
            foreign_host: None,
            peer,
            version: None,
            user_agent: None,
            id,
            upstream_id: None,
        }
    }

    /// Writes the text line after its time. A disconnected client has no status.
    pub(super) fn write_text(&self, line: &mut Vec<u8>, is_colored: bool) {
        self.write_start(line, is_colored);
        if let Some(seconds) = self.seconds {
            put(line, " ");
            put_duration(line, seconds);
        }
        self.write_end(line, is_colored);
    }

    /// Writes the text line up to its duration.
    fn write_start(&self, line: &mut Vec<u8>, is_colored: bool) {
        let color = match self.status {
            Some(500..) => "\x1b[31m",
            Some(400..) => "\x1b[33m",
            Some(_) => "\x1b[32m",
            None => "\x1b[2m",
        };
        let (color, reset) = if is_colored { (color, "\x1b[0m") } else { ("", "") };
        put(line, color);
        match self.status {
            Some(status) => put_integer(line, status),
            None => put(line, "---"),
        }
        put(line, reset);
        let mut from = line.len();
        put_after(line, " ", start_of(self.method.unwrap_or_default(), 16));
        let (path, is_cut) = end_of(self.path.unwrap_or_default());
        if is_cut {
            // Apart from the escaped bytes: ASCII needs no second look.
            escape_from(line, from, printable::escape);
            put(line, " \u{2026}");
            from = line.len();
            put(line, path);
        } else {
            put_after(line, " ", path);
        }
        escape_from(line, from, printable::escape);
    }

    /// Writes the text line after its duration.
    fn write_end(&self, line: &mut Vec<u8>, is_colored: bool) {
        let is_error = self.status.is_some_and(|status| status >= 400);
        let (faint, reset) = if is_colored { ("\x1b[2m", "\x1b[0m") } else { ("", "") };
        let from = line.len();
        put_after(line, " ", start_of(self.outcome, 16));
        // Most waits reach their goal.
        if let Some(reason) = self.reason.filter(|reason| *reason != "reached") {
            put_after(line, " ", start_of(reason, 32));
        }
        match self.member {
            Some(member) if !member.is_empty() => put_after(line, " ", start_of(member, 64)),
            Some(_) | None if is_error => {
                put(line, " ");
                put(line, &self.client.map_or_else(|| self.peer.address(), |ip| address_text(ip).into()));
            }
            Some(_) | None => {}
        }
        escape_from(line, from, printable::escape);
        if is_error {
            put(line, faint);
            let from = line.len();
            put_after(line, " id=", start_of(self.id, MAX_ID));
            escape_from(line, from, printable::escape);
            put(line, reset);
        }
        line.push(b'\n');
    }

    /// Writes the JSON line after its time.
    pub(super) fn write_json(&self, line: &mut Vec<u8>) {
        put(line, "\",\"level\":\"INFO\",\"message\":\"request\"");
        put_text(line, ",\"http.request.method\":", self.method);
        put_text(line, ",\"url.path\":", self.path);
        put_number(line, ",\"http.response.status_code\":", self.status.map(u64::from));
        put_number(line, ",\"http.response.body.size\":", self.body_size);
        if let Some(seconds) = self.seconds {
            put(line, ",\"http.server.request.duration\":");
            put_float(line, seconds);
        }
        put_text(line, ",\"clipgate.outcome\":", Some(self.outcome));
        put_text(line, ",\"clipgate.reason\":", self.reason);
        put_text(line, ",\"clipgate.route\":", self.route);
        put_text(line, ",\"clipgate.jobs\":", self.jobs);
        put_text(line, ",\"clipgate.member\":", self.member);
        put_text(line, ",\"clipgate.key\":", self.key.map(|key| key.short()).as_deref());
        let peer = self.peer.address();
        // Mostly the peer's address, which is then formatted once.
        let client = self.client.map(|ip| match self.peer.ip() == Some(ip) {
            true => Cow::Borrowed(&*peer),
            false => Cow::Owned(address_text(ip)),
        });
        put_text(line, ",\"client.address\":", client.as_deref());
        put_text(line, ",\"server.address\":", self.foreign_host);
        put_text(line, ",\"network.peer.address\":", Some(&peer));
        put_number(line, ",\"network.peer.port\":", self.peer.port().map(u64::from));
        put_text(line, ",\"network.protocol.version\":", self.version);
        put_text(line, ",\"user_agent.original\":", self.user_agent);
        put_text(line, ",\"clipgate.request_id\":", Some(self.id));
        put_text(line, ",\"clipgate.upstream_request_id\":", self.upstream_id);
        put_text(line, ",\"target\":", Some(REQUEST_TARGET));
        put(line, "}\n");
    }
}

/// Text line of a request that comes again, but for its time and its duration. It saves two thirds of the line's instructions.
///
/// All requests have the same line if they differ in their clients and ids only, and if it reports no error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct KeptText {
    start: Box<[u8]>,
    end: Box<[u8]>,
}

impl KeptText {
    /// Returns the text in the colors of the log.
    pub(crate) fn of(line: &RequestLine<'_>) -> Self {
        Self::new(line, LINES.get().is_some_and(|lines| lines.is_colored))
    }

    fn new(line: &RequestLine<'_>, is_colored: bool) -> Self {
        let (mut start, mut end) = (Vec::new(), Vec::new());
        line.write_start(&mut start, is_colored);
        start.push(b' ');
        line.write_end(&mut end, is_colored);
        Self { start: start.into(), end: end.into() }
    }

    /// Returns the number of its bytes.
    pub(crate) fn size(&self) -> usize {
        self.start.len() + self.end.len()
    }

    /// Writes the line after its time.
    pub(super) fn write(&self, line: &mut Vec<u8>, seconds: f64) {
        line.extend_from_slice(&self.start);
        put_duration(line, seconds);
        line.extend_from_slice(&self.end);
    }
}

fn put_text(line: &mut Vec<u8>, name: &str, value: Option<&str>) {
    if let Some(value) = value {
        put(line, name);
        put_json(line, value);
    }
}

fn put_number(line: &mut Vec<u8>, name: &str, value: Option<u64>) {
    if let Some(value) = value {
        put(line, name);
        put_integer(line, value);
    }
}

/// Writes the text after a prefix, if there is a text.
fn put_after(line: &mut Vec<u8>, prefix: &str, text: &str) {
    if !text.is_empty() {
        put(line, prefix);
        put(line, text);
    }
}

/// Returns the start of a text, at most `max` bytes.
fn start_of(text: &str, max: usize) -> &str {
    &text[..text.floor_char_boundary(max)]
}

/// Returns the end of a path, from a slash on if there is one, and whether the beginning is lost.
fn end_of(path: &str) -> (&str, bool) {
    let end = &path[path.ceil_char_boundary(path.len().saturating_sub(MAX_PATH))..];
    let is_cut = end.len() < path.len();
    (end.find('/').filter(|_| is_cut).map_or(end, |slash| &end[slash..]), is_cut)
}

/// Writes three digits at most, and cuts the others of the microseconds: `0.2ms`, `41ms`, `3.18s`, `120s`.
fn put_duration(line: &mut Vec<u8>, seconds: f64) {
    let micros = (seconds * 1e6).round() as u64;
    let digit = |unit: u64| b'0' + (micros / unit % 10) as u8;
    let whole = |line: &mut Vec<u8>, unit: u64| put_integer(line, micros / unit);
    match micros {
        ..10_000 => line.extend_from_slice(&[digit(1000), b'.', digit(100), b'm', b's']),
        10_000..1_000_000 => {
            whole(line, 1000);
            put(line, "ms");
        }
        1_000_000..10_000_000 => {
            line.extend_from_slice(&[digit(1_000_000), b'.', digit(100_000), digit(10_000), b's']);
        }
        10_000_000..100_000_000 => {
            whole(line, 1_000_000);
            line.extend_from_slice(&[b'.', digit(100_000), b's']);
        }
        _ => {
            whole(line, 1_000_000);
            line.push(b's');
        }
    }
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
            (9.999, "9.99s"),
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
        assert!(!end_of("/v1/chat/completions").1);
        assert_eq!(end_of("/v2/generate/audio/suno-ai/clip"), ("/audio/suno-ai/clip", true));
        assert_eq!(end_of(&"\u{e9}".repeat(100)).0.len(), MAX_PATH);
    }

    #[test]
    fn a_colored_line_marks_errors() {
        let peer = Peer::Tcp(([127, 0, 0, 1], 80).into());
        let request = RequestLine {
            method: Some("GET"),
            path: Some("/x"),
            seconds: Some(0.002),
            ..RequestLine::malformed(503, "rejected", "too-many-waits", peer, "r1")
        };
        let text = |is_colored| {
            let mut line = Vec::new();
            request.write_text(&mut line, is_colored);
            String::from_utf8(line).unwrap()
        };
        assert_eq!(text(false), "503 GET /x 2.0ms rejected too-many-waits 127.0.0.1 id=r1\n");
        assert!(text(true).starts_with("\u{1b}[31m503\u{1b}[0m GET /x "), "{:?}", text(true));
    }

    #[test]
    fn a_kept_text_has_the_bytes_of_the_line() {
        let peer = Peer::Tcp(([127, 0, 0, 1], 80).into());
        let paths = ["/x", "/v2/generate/audio/suno-ai/clip", "/v2/generate/audio/suno-ai/cl\u{9b}p"];
        for (path, member) in paths.into_iter().zip([None, Some("ann"), Some("a\u{202e}n")]) {
            let request = RequestLine {
                method: Some("GET"),
                path: Some(path),
                seconds: Some(0.002),
                member,
                ..RequestLine::malformed(200, "hit", "reached", peer, "r1")
            };
            for is_colored in [false, true] {
                let (mut line, mut kept) = (Vec::new(), Vec::new());
                request.write_text(&mut line, is_colored);
                KeptText::new(&request, is_colored).write(&mut kept, 0.002);
                assert_eq!(String::from_utf8(kept), String::from_utf8(line));
            }
        }
    }
}
