//! Writes server-sent events (HTML Standard, section 9.2).
//!
//! ```text
//! retry: 2000            OPENING: the first line of a stream
//! event: status          SseEvent
//! id: 5d1c29f0:queued
//! data: {…}
//!
//! :                      COMMENT: sent while there is no event
//! ```

use std::time::Duration;

use bytes::{BufMut as _, Bytes, BytesMut};

/// The pause before a client reconnects.
pub(crate) const RETRY: Duration = Duration::from_secs(2);

/// The first line of a stream: sets the client's pause to [`RETRY`]. No empty line follows: some clients take that for
/// an event without data.
pub(crate) const OPENING: Bytes = Bytes::from_static(b"retry: 2000\n");

/// A comment, which keeps proxies from closing a stream without events. Like [`OPENING`], without an empty line.
pub(crate) const COMMENT: Bytes = Bytes::from_static(b":\n");

/// One event.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SseEvent<'a> {
    name: &'static str,
    id: Option<&'a str>,
    retry: Option<Duration>,
    data: &'a [u8],
}

impl<'a> SseEvent<'a> {
    /// `data` is UTF-8 and not empty: clients drop events without data.
    pub(crate) fn new(name: &'static str, data: &'a [u8]) -> Self {
        Self { name, id: None, retry: None, data }
    }

    /// Sets the id that a reconnecting client sends as `Last-Event-ID`. Without one the client keeps the previous id.
    pub(crate) fn with_id(self, id: &'a str) -> Self {
        Self { id: Some(id), ..self }
    }

    /// Changes the client's pause before it reconnects.
    pub(crate) fn with_retry(self, retry: Duration) -> Self {
        Self { retry: Some(retry), ..self }
    }

    /// Returns the event as it is sent. The client joins the lines of the data by line feeds, also where the
    /// data has CR or CRLF.
    pub(crate) fn to_bytes(self) -> Bytes {
        let mut out = BytesMut::with_capacity(self.data.len() + 128);
        put_field(&mut out, "event", self.name.as_bytes());
        if let Some(id) = self.id {
            put_field(&mut out, "id", id.as_bytes());
        }
        if let Some(retry) = self.retry {
            put_field(&mut out, "retry", retry.as_millis().to_string().as_bytes());
        }
        for line in lines(self.data) {
            put_field(&mut out, "data", line);
        }
        out.put_u8(b'\n');
        out.freeze()
    }
}

fn put_field(out: &mut BytesMut, name: &str, value: &[u8]) {
    out.put_slice(name.as_bytes());
    out.put_slice(b": ");
    out.put_slice(value);
    out.put_u8(b'\n');
}

/// Splits at CRLF, LF and CR, each of which ends a line.
fn lines(data: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = Some(data);
    std::iter::from_fn(move || {
        let text = rest?;
        let Some(end) = text.iter().position(|byte| matches!(byte, b'\r' | b'\n')) else {
            rest = None;
            return Some(text);
        };
        let after = if text[end..].starts_with(b"\r\n") { end + 2 } else { end + 1 };
        rest = Some(&text[after..]);
        Some(&text[..end])
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_line_of_the_data_is_one_field_of_the_event() {
        let rows: [(&[u8], &str); 7] = [
            (b"{}", "data: {}\n"),
            (b"{\n}", "data: {\ndata: }\n"),
            (b"{\r\n}", "data: {\ndata: }\n"),
            (b"{\r}", "data: {\ndata: }\n"),
            (b"{\n\r\n}", "data: {\ndata: \ndata: }\n"),
            (b"{}\n", "data: {}\ndata: \n"),
            (b" {}", "data:  {}\n"),
        ];
        for (data, written) in rows {
            let event = SseEvent::new("status", data);
            assert_eq!(event.to_bytes(), format!("event: status\n{written}\n"), "{data:?}");
        }
    }

    #[test]
    fn an_event_may_have_an_id_and_its_own_retry_pause() {
        let event = SseEvent::new("error", b"{}").with_id("x:over").with_retry(Duration::from_secs(5));
        assert_eq!(event.to_bytes(), "event: error\nid: x:over\nretry: 5000\ndata: {}\n\n");
    }

    #[test]
    fn the_opening_sets_the_default_retry_pause() {
        assert_eq!(OPENING, format!("retry: {}\n", RETRY.as_millis()));
    }
}
