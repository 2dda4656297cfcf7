//! Server-sent events as bytes (HTML Standard, section 9.2).
//!
//! It must never know what an event tells.

use std::time::Duration;

use bytes::{BufMut as _, Bytes, BytesMut};

/// How long a client waits before it connects anew.
pub(crate) const RETRY: Duration = Duration::from_secs(2);

/// What a silent stream says so that nobody on the way takes it for dead. No empty line comes after it, nor after the
/// greeting: some clients take that for an event, if an empty one.
pub(crate) const COMMENT: Bytes = Bytes::from_static(b":\n");

/// One event.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Event<'a> {
    pub name: &'static str,
    /// What a client that connects anew gives back; `None`: what it was told before.
    pub id: Option<&'a str>,
    /// From now on the pause before a client connects anew.
    pub retry: Option<Duration>,
    /// UTF-8, and not empty: no client is told an event without data.
    pub data: &'a [u8],
}

impl Event<'_> {
    /// The event's bytes. Where the data has several lines, the client puts a line feed between them, whatever
    /// was there.
    pub(crate) fn bytes(&self) -> Bytes {
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

/// What a stream begins with.
pub(crate) fn greeting() -> Bytes {
    Bytes::from(format!("retry: {}\n", RETRY.as_millis()))
}

fn put_field(out: &mut BytesMut, name: &str, value: &[u8]) {
    out.put_slice(name.as_bytes());
    out.put_slice(b": ");
    out.put_slice(value);
    out.put_u8(b'\n');
}

/// CRLF, LF and CR each end a line.
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
    fn each_line_of_the_data_is_one_of_the_event() {
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
            let event = Event { name: "status", id: None, retry: None, data };
            assert_eq!(event.bytes(), format!("event: status\n{written}\n"), "{data:?}");
        }
    }

    #[test]
    fn an_event_may_have_an_id_and_another_pause() {
        let retry = Some(Duration::from_secs(5));
        let event = Event { name: "error", id: Some("x:over"), retry, data: b"{}" };
        assert_eq!(event.bytes(), "event: error\nid: x:over\nretry: 5000\ndata: {}\n\n");
        assert_eq!(greeting(), "retry: 2000\n");
    }
}
