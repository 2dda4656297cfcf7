//! Format of a log line: text, or a flat JSON object.
//!
//! Each thread formats into a buffer of its own, and most fields cost no allocation: a busy gateway writes a line for
//! each request.

use std::borrow::Cow;
use std::cell::{Cell, RefCell};
use std::fmt::{self, Write as _};
use std::io::Write as _;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use jiff::Timestamp;
use jiff::tz::TimeZone;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

use super::request_line::{KeptText, RequestLine};
use super::writer::LogWriter;
use crate::config::LogFormat;
use crate::printable;

/// Layer of `tracing_subscriber` that writes each event as one line. Lines of requests do not pass `tracing`, which
/// costs a visitor a field.
#[derive(Clone, Debug)]
pub(super) struct LineLayer {
    pub(super) writer: LogWriter,
    pub(super) format: LogFormat,
    pub(super) is_colored: bool,
    /// Zone of the times at a terminal, whose reader knows the date. `None`: times are RFC 3339, in UTC.
    pub(super) zone: Option<TimeZone>,
}

thread_local! {
    static LINE: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
    /// Unix time of the last line and its text.
    static SECOND: Cell<(u64, [u8; SECOND_LEN])> = const { Cell::new((0, *b"1970-01-01T00:00:00")) };
}

/// Largest capacity that a thread's buffer keeps between two lines, in bytes.
const KEPT_CAPACITY: usize = 16 << 10;

impl<S: Subscriber> Layer<S> for LineLayer {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let is_urgent = *event.metadata().level() <= Level::WARN;
        let write = |line: &mut Vec<u8>| {
            line.clear();
            match self.format {
                LogFormat::Text => self.write_text(event, line),
                LogFormat::Json => write_json(event, line),
            }
            self.writer.push(line, is_urgent);
            line.shrink_to(KEPT_CAPACITY);
        };
        // Borrowed already if the formatting of a value logs.
        LINE.with(|line| match line.try_borrow_mut() {
            Ok(mut line) => write(&mut line),
            Err(_) => write(&mut Vec::new()),
        });
    }
}

impl LineLayer {
    /// Writes the line of a request.
    pub(super) fn write_request(&self, request: &RequestLine<'_>) {
        self.writer.append(|line| match self.format {
            LogFormat::Text => {
                self.put_text_time(line);
                request.write_text(line, self.is_colored);
            }
            LogFormat::Json => {
                put(line, "{\"timestamp\":\"");
                put_time(line, SystemTime::now());
                request.write_json(line);
            }
        });
    }

    /// Writes the line of a request whose text is kept. Returns `false` if lines are JSON.
    pub(super) fn write_kept(&self, text: &KeptText, seconds: f64) -> bool {
        if self.format != LogFormat::Text {
            return false;
        }
        self.writer.append(|line| {
            self.put_text_time(line);
            text.write(line, seconds);
        });
        true
    }

    fn put_text_time(&self, line: &mut Vec<u8>) {
        if self.is_colored {
            put(line, "\x1b[2m");
        }
        match &self.zone {
            Some(zone) => put_time_of_day(line, SystemTime::now(), zone),
            None => put_time(line, SystemTime::now()),
        }
        if self.is_colored {
            put(line, "\x1b[0m");
        }
        line.push(b' ');
    }

    fn write_text(&self, event: &Event<'_>, line: &mut Vec<u8>) {
        self.put_text_time(line);
        write_fields(event, self.is_colored, line);
        line.push(b'\n');
    }
}

/// Writes the level, the target and all fields.
fn write_fields(event: &Event<'_>, is_colored: bool, line: &mut Vec<u8>) {
    let (level, target) = (event.metadata().level(), event.metadata().target());
    let (faint, reset) = if is_colored { ("\x1b[2m", "\x1b[0m") } else { ("", "") };
    if is_colored {
        // Writing to memory cannot fail, here and below.
        let _ = write!(line, "\x1b[{}m", color(level));
    }
    put(line, padded(level));
    put(line, reset);
    put(line, " ");
    put(line, faint);
    put(line, target);
    put(line, ":");
    put(line, reset);
    put(line, " ");
    let mut fields = TextVisitor { line, is_colored, is_first: true };
    event.record(&mut fields);
}

/// Returns the level in five columns.
fn padded(level: &Level) -> &'static str {
    match *level {
        Level::ERROR => "ERROR",
        Level::WARN => " WARN",
        Level::INFO => " INFO",
        Level::DEBUG => "DEBUG",
        Level::TRACE => "TRACE",
    }
}

fn color(level: &Level) -> u8 {
    match *level {
        Level::ERROR => 31,
        Level::WARN => 33,
        Level::INFO => 32,
        Level::DEBUG => 34,
        Level::TRACE => 35,
    }
}

fn write_json(event: &Event<'_>, line: &mut Vec<u8>) {
    let (level, target) = (event.metadata().level(), event.metadata().target());
    put(line, "{\"timestamp\":\"");
    put_time(line, SystemTime::now());
    put(line, "\",\"level\":\"");
    put(line, level.as_str());
    put(line, "\"");
    event.record(&mut JsonVisitor { line });
    put(line, ",\"target\":");
    put_json(line, target);
    put(line, "}\n");
}

#[inline]
pub(super) fn put(line: &mut Vec<u8>, text: &str) {
    line.extend_from_slice(text.as_bytes());
}

/// Writes a time as RFC 3339 with microseconds.
fn put_time(line: &mut Vec<u8>, now: SystemTime) {
    let since = now.duration_since(UNIX_EPOCH).unwrap_or_default();
    let mut text = *b"1970-01-01T00:00:00.000000Z";
    let (second, fraction) = text.split_at_mut(SECOND_LEN);
    second.copy_from_slice(&text_of_second(since));
    let mut micros = since.subsec_micros();
    for digit in fraction[1..=6].iter_mut().rev() {
        *digit = b'0' + (micros % 10) as u8;
        micros /= 10;
    }
    line.extend_from_slice(&text);
}

/// Writes the hour, minute and second of a time.
fn put_time_of_day(line: &mut Vec<u8>, now: SystemTime, zone: &TimeZone) {
    let now = Timestamp::try_from(now).unwrap_or_default();
    let _ = write!(line, "{}", zone.to_datetime(now).strftime("%H:%M:%S"));
}

/// Returns a time as RFC 3339 up to the second. The text is cached: most lines share it.
fn text_of_second(since: Duration) -> [u8; SECOND_LEN] {
    let (mut second, mut text) = SECOND.get();
    if second != since.as_secs() {
        second = since.as_secs();
        let formatted =
            humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_secs(second)).to_string();
        text.copy_from_slice(&formatted.as_bytes()[..SECOND_LEN]);
        SECOND.set((second, text));
    }
    text
}

/// Length of a time up to its seconds.
const SECOND_LEN: usize = "1970-01-01T00:00:00".len();

pub(super) fn put_json(line: &mut Vec<u8>, text: &str) {
    // Reads all bytes without a branch for each: most values need no escape.
    if text
        .bytes()
        .fold(true, |all, byte| all & (matches!(byte, b' '..=b'~') & (byte != b'"') & (byte != b'\\')))
    {
        line.push(b'"');
        put(line, text);
        line.push(b'"');
        return;
    }
    let from = line.len();
    serde_json::to_writer(&mut *line, text).expect("writing a string to memory cannot fail");
    escape_from(line, from, printable::escape_json);
}

/// Escapes characters of the line from `from` on that a terminal might act on.
pub(super) fn escape_from(line: &mut Vec<u8>, from: usize, escape: fn(&str) -> Cow<'_, str>) {
    // Reads all bytes without a branch for each: most values need no escape.
    if line[from..].iter().fold(true, |all, byte| all & matches!(byte, b' '..=b'~')) {
        return;
    }
    let text = String::from_utf8_lossy(&line[from..]);
    if text.contains(printable::is_hidden) {
        let escaped = escape(&text).into_owned();
        line.truncate(from);
        line.extend_from_slice(escaped.as_bytes());
    }
}

pub(super) fn put_float(line: &mut Vec<u8>, value: f64) {
    // Writing to memory cannot fail.
    let _ = serde_json::to_writer(&mut *line, &value);
}

pub(super) fn put_integer(line: &mut Vec<u8>, integer: impl itoa::Integer) {
    line.extend_from_slice(itoa::Buffer::new().format(integer).as_bytes());
}

const MESSAGE: &str = "message";

/// Returns whether a value needs no quotes in logfmt.
fn is_bare(text: &str) -> bool {
    let is_plain = |byte: u8| matches!(byte, b'!'..=b'~') && !matches!(byte, b'"' | b'\\' | b'=');
    // Reads all bytes without a branch for each: a fifth of the instructions for plain values.
    !text.is_empty() && text.bytes().fold(true, |all, byte| all & is_plain(byte))
}

/// Writes fields as `message name=value name="a text"`.
struct TextVisitor<'l> {
    line: &'l mut Vec<u8>,
    is_colored: bool,
    is_first: bool,
}

impl TextVisitor<'_> {
    fn begin(&mut self, field: &Field) {
        if !std::mem::replace(&mut self.is_first, false) {
            self.line.push(b' ');
        }
        match (field.name(), self.is_colored) {
            (MESSAGE, _) => {}
            (name, false) => {
                self.line.extend_from_slice(name.as_bytes());
                self.line.push(b'=');
            }
            (name, true) => {
                let _ = write!(self.line, "\x1b[2m{name}=\x1b[0m");
            }
        }
    }
}

impl Visit for TextVisitor<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.begin(field);
        let from = self.line.len();
        let _ = write!(self.line, "{value:?}");
        // A displayed value may contain any character: it must neither start a line nor move a cursor.
        escape_from(self.line, from, printable::escape);
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.begin(field);
        if field.name() == MESSAGE || is_bare(value) {
            put(self.line, value);
        } else {
            let _ = write!(self.line, "{value:?}");
        }
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.begin(field);
        put_integer(self.line, value);
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.begin(field);
        put_integer(self.line, value);
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.begin(field);
        put_float(self.line, value);
    }

    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        self.record_debug(field, &format_args!("{}", ErrorChain(value)));
    }
}

/// Writes fields as `,"name":value`.
struct JsonVisitor<'l> {
    line: &'l mut Vec<u8>,
}

impl JsonVisitor<'_> {
    fn begin(&mut self, field: &Field) {
        self.line.push(b',');
        put_json(self.line, field.name());
        self.line.push(b':');
    }
}

impl Visit for JsonVisitor<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.begin(field);
        let mut text = String::new();
        let _ = write!(text, "{value:?}");
        put_json(self.line, &text);
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.begin(field);
        put_json(self.line, value);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.begin(field);
        put_integer(self.line, value);
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.begin(field);
        put_integer(self.line, value);
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.begin(field);
        put_float(self.line, value);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.begin(field);
        self.line.extend_from_slice(if value { b"true" } else { b"false" });
    }

    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        self.record_debug(field, &format_args!("{}", ErrorChain(value)));
    }
}

/// An error with its causes.
struct ErrorChain<'e>(&'e (dyn std::error::Error + 'static));

impl fmt::Display for ErrorChain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)?;
        let mut next = self.0.source();
        while let Some(cause) = next {
            write!(f, ": {cause}")?;
            next = cause.source();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_of_day_follows_its_zone() {
        let noon = UNIX_EPOCH + Duration::from_secs(1_700_049_600); // 2023-11-15T12:00:00Z
        let summer = UNIX_EPOCH + Duration::from_secs(1_690_027_200); // 2023-07-22T12:00:00Z
        let text = |time, zone: &str| {
            let mut line = Vec::new();
            put_time_of_day(&mut line, time, &TimeZone::posix(zone).unwrap());
            String::from_utf8(line).unwrap()
        };
        let berlin = "CET-1CEST,M3.5.0,M10.5.0/3";
        let found = [text(noon, "UTC0"), text(noon, berlin), text(summer, berlin), text(noon, "IST-5:30")];
        assert_eq!(found, ["12:00:00", "13:00:00", "14:00:00", "17:30:00"]);
    }
}
