//! Parses server-sent events (HTML Standard, section 9.2.6) from the bytes of a response.

use std::time::Duration;

use bytes::{Bytes, BytesMut};

use crate::cli::job_client::MAX_RESPONSE;

/// Collects bytes, and returns the events in them.
#[derive(Debug, Default)]
pub(super) struct EventReader {
    unread: BytesMut,
    event: ReceivedEvent,
    has_data: bool,
}

/// One event.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct ReceivedEvent {
    /// Empty: the event has no name.
    pub(super) name: String,
    pub(super) id: Option<String>,
    /// Pause before a reconnect.
    pub(super) retry: Option<Duration>,
    pub(super) data: BytesMut,
}

/// The event is larger than [`MAX_RESPONSE`].
#[derive(Debug, PartialEq, Eq)]
pub(super) struct EventTooLarge;

impl EventReader {
    pub(super) fn push(&mut self, bytes: &Bytes) -> Result<(), EventTooLarge> {
        if self.unread.len() + self.event.data.len() + bytes.len() > MAX_RESPONSE {
            return Err(EventTooLarge);
        }
        self.unread.extend_from_slice(bytes);
        Ok(())
    }

    /// Returns the next complete event with data. Lines end with LF or CRLF.
    pub(super) fn next_event(&mut self) -> Option<ReceivedEvent> {
        while let Some(end) = self.unread.iter().position(|byte| *byte == b'\n') {
            let line = self.unread.split_to(end + 1);
            let line = line[..end].strip_suffix(b"\r").unwrap_or(&line[..end]);
            if !line.is_empty() {
                self.read_field(line);
                continue;
            }
            let event = std::mem::take(&mut self.event);
            if std::mem::take(&mut self.has_data) {
                return Some(event);
            }
        }
        None
    }

    fn read_field(&mut self, line: &[u8]) {
        let colon = line.iter().position(|byte| *byte == b':').unwrap_or(line.len());
        let (name, value) = line.split_at(colon);
        let value = value.strip_prefix(b":").unwrap_or(value);
        let value = value.strip_prefix(b" ").unwrap_or(value);
        let text = || String::from_utf8_lossy(value).into_owned();
        match name {
            b"event" => self.event.name = text(),
            b"id" => self.event.id = Some(text()),
            b"retry" => self.event.retry = text().parse().ok().map(Duration::from_millis),
            b"data" => {
                if std::mem::replace(&mut self.has_data, true) {
                    self.event.data.extend_from_slice(b"\n");
                }
                self.event.data.extend_from_slice(value);
            }
            _ => {} // a comment, or a field of a later version
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn events(pieces: &[&str]) -> Vec<(String, Option<String>, String)> {
        let mut reader = EventReader::default();
        let mut events = Vec::new();
        for piece in pieces {
            reader.push(&Bytes::copy_from_slice(piece.as_bytes())).unwrap();
            while let Some(event) = reader.next_event() {
                events.push((event.name, event.id, String::from_utf8(event.data.to_vec()).unwrap()));
            }
        }
        events
    }

    #[test]
    fn events_are_read_from_any_pieces() {
        let text = "retry: 2000\nevent: status\nid: x:queued\ndata: {\ndata: }\n\n:\nevent: done\r\ndata: {}\r\n\r\n\n";
        let expected = vec![
            ("status".to_owned(), Some("x:queued".to_owned()), "{\n}".to_owned()),
            ("done".to_owned(), None, "{}".to_owned()),
        ];
        assert_eq!(events(&[text]), expected);
        let bytes: Vec<String> = text.chars().map(String::from).collect();
        assert_eq!(events(&bytes.iter().map(String::as_str).collect::<Vec<_>>()), expected);
    }

    #[test]
    fn an_event_without_data_is_skipped_and_one_without_a_name_is_not() {
        assert_eq!(events(&["event: ping\n\ndata:{}\n\n"]), [(String::new(), None, "{}".to_owned())]);
    }

    #[test]
    fn an_event_without_end_is_an_error() {
        let mut reader = EventReader::default();
        reader.push(&Bytes::from(vec![b'x'; MAX_RESPONSE])).unwrap();
        assert_eq!(reader.push(&Bytes::from_static(b"x")), Err(EventTooLarge));
    }
}
