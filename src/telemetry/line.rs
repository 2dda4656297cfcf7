//! One event as one line: text for people, or a flat JSON object.
//!
//! Written into a buffer of the thread's own, without an allocation for what most fields are: a busy gateway writes
//! one for each request.

use std::cell::RefCell;
use std::fmt::{self, Write as _};
use std::io::Write as _;
use std::time::SystemTime;

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

use super::sink::Sink;
use crate::config::LogFormat;

/// The layer that writes them.
pub(super) struct Lines {
    pub(super) sink: Sink,
    pub(super) format: LogFormat,
    /// Whether text is in colours.
    pub(super) is_colored: bool,
}

thread_local! {
    static LINE: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// What a thread's buffer keeps between two lines, in bytes.
const KEPT: usize = 16 << 10;

impl<S: Subscriber> Layer<S> for Lines {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let is_urgent = *event.metadata().level() <= Level::WARN;
        let write = |line: &mut Vec<u8>| {
            line.clear();
            match self.format {
                LogFormat::Text => text(event, self.is_colored, line),
                LogFormat::Json => json(event, line),
            }
            self.sink.take(line, is_urgent);
            line.shrink_to(KEPT);
        };
        // A value that logs while it is written finds the buffer taken.
        LINE.with(|line| match line.try_borrow_mut() {
            Ok(mut line) => write(&mut line),
            Err(_) => write(&mut Vec::new()),
        });
    }
}

fn text(event: &Event<'_>, is_colored: bool, line: &mut Vec<u8>) {
    let (level, target) = (event.metadata().level(), event.metadata().target());
    let now = humantime::format_rfc3339_micros(SystemTime::now());
    // Writing into memory cannot fail, here and below.
    let _ = match is_colored {
        true => write!(
            line,
            "\x1b[2m{now}\x1b[0m \x1b[{}m{level:>5}\x1b[0m \x1b[2m{target}:\x1b[0m ",
            color(level)
        ),
        false => write!(line, "{now} {level:>5} {target}: "),
    };
    let mut fields = Text { line, is_colored, is_first: true };
    event.record(&mut fields);
    line.push(b'\n');
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

fn json(event: &Event<'_>, line: &mut Vec<u8>) {
    let (level, target) = (event.metadata().level(), event.metadata().target());
    let now = humantime::format_rfc3339_micros(SystemTime::now());
    let _ = write!(line, "{{\"timestamp\":\"{now}\",\"level\":\"{level}\"");
    event.record(&mut Json { line });
    line.extend_from_slice(b",\"target\":");
    put_json(line, target);
    line.extend_from_slice(b"}\n");
}

fn put_json(line: &mut Vec<u8>, text: &str) {
    serde_json::to_writer(line, text).expect("a text is JSON, and memory takes all bytes");
}

fn put_integer(line: &mut Vec<u8>, integer: impl itoa::Integer) {
    line.extend_from_slice(itoa::Buffer::new().format(integer).as_bytes());
}

const MESSAGE: &str = "message";

/// `message name=value name="text"`
struct Text<'l> {
    line: &'l mut Vec<u8>,
    is_colored: bool,
    is_first: bool,
}

impl Text<'_> {
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

impl Visit for Text<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.begin(field);
        let from = self.line.len();
        let _ = write!(self.line, "{value:?}");
        // What is displayed may hold anything: it must not begin a line or move a cursor.
        if self.line[from..].iter().any(u8::is_ascii_control) {
            let shown = String::from_utf8_lossy(&self.line[from..]).escape_debug().to_string();
            self.line.truncate(from);
            self.line.extend_from_slice(shown.as_bytes());
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.begin(field);
        if field.name() == MESSAGE {
            self.line.extend_from_slice(value.as_bytes());
        } else if value.bytes().all(|byte| matches!(byte, b' '..=b'~') && byte != b'"' && byte != b'\\') {
            self.line.push(b'"');
            self.line.extend_from_slice(value.as_bytes());
            self.line.push(b'"');
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
        let _ = serde_json::to_writer(&mut *self.line, &value);
    }

    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        self.record_debug(field, &format_args!("{}", Chain(value)));
    }
}

/// `,"name":value`
struct Json<'l> {
    line: &'l mut Vec<u8>,
}

impl Json<'_> {
    fn begin(&mut self, field: &Field) {
        self.line.push(b',');
        put_json(self.line, field.name());
        self.line.push(b':');
    }
}

impl Visit for Json<'_> {
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
        let _ = serde_json::to_writer(&mut *self.line, &value);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.begin(field);
        self.line.extend_from_slice(if value { b"true" } else { b"false" });
    }

    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        self.record_debug(field, &format_args!("{}", Chain(value)));
    }
}

/// An error and what caused it.
struct Chain<'e>(&'e (dyn std::error::Error + 'static));

impl fmt::Display for Chain<'_> {
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
