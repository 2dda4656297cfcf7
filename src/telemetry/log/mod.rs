//! The log: lines on stderr, as text or JSON.
//!
//! Lines of other crates are logged at `warn` and above only. The fields are those of docs/observability.md.

mod format;
mod merge;
mod request_line;
mod writer;

use std::backtrace::{Backtrace, BacktraceStatus};
use std::io::{self, IsTerminal as _};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use jiff::tz::TimeZone;
use prometheus_client::metrics::counter::Counter;
use tracing::{Level, error};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Registry, reload};

use self::format::LineLayer;
use self::request_line::REQUEST_TARGET;
pub(crate) use self::request_line::{KeptText, RequestLine};
use self::writer::{FlushGuard, LogWriter};
use crate::config::LogConfig;

/// Errors of the log's start.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    #[error("RUST_LOG is not a valid filter; write it as `debug` or `clipgate=debug,hyper=info`")]
    RustLog(#[source] tracing_subscriber::filter::ParseError),
    #[error("the log is started already")]
    AlreadyStarted(#[source] tracing_subscriber::util::TryInitError),
    #[error("cannot start the thread of the log")]
    Thread(#[source] io::Error),
}

/// Control of the running log. Its drop blocks until all lines are written, for a second at most.
#[derive(Debug)]
pub struct Handle {
    /// `None` if `RUST_LOG` is set: it stays in force.
    filter: Option<reload::Handle<EnvFilter, Registry>>,
    dropped: Counter,
    _flusher: FlushGuard,
}

impl Handle {
    /// Changes the lowest level that is logged. Does nothing if `RUST_LOG` is set.
    pub fn set_level(&self, level: Level) {
        if let Some(filter) = &self.filter {
            // Fails only once the subscriber is gone, and all lines with it.
            let _ = filter.reload(filter_for(level));
            update_request_filter();
        }
    }

    /// Returns the count of lines that were not read in time or could not be written.
    pub fn dropped_lines(&self) -> &Counter {
        &self.dropped
    }
}

/// Reads the filter of `RUST_LOG`. `None`: the variable is not set.
///
/// # Errors
///
/// If the filter is not valid.
pub fn environment_filter() -> Result<Option<EnvFilter>, TelemetryError> {
    let text = std::env::var("RUST_LOG").ok().filter(|text| !text.trim().is_empty());
    text.map(|text| EnvFilter::try_new(text).map_err(TelemetryError::RustLog)).transpose()
}

/// Starts the log of the process.
///
/// # Errors
///
/// If `RUST_LOG` is not a valid filter, if the log is started already, or if the system has no thread left.
pub fn init(log: &LogConfig) -> Result<Handle, TelemetryError> {
    let rust_log = environment_filter()?;
    let is_fixed = rust_log.is_some();
    let filter = rust_log.unwrap_or_else(|| filter_for(log.level));
    let (filter, handle) = reload::Layer::new(filter);
    let no_color = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let is_terminal = io::stderr().is_terminal();
    let (writer, flusher) = LogWriter::start(io::stderr(), is_terminal).map_err(TelemetryError::Thread)?;
    let dropped = writer.dropped().clone();
    let is_colored = is_terminal && !no_color;
    let zone = is_terminal.then(TimeZone::system);
    let lines = LineLayer { writer, format: log.format, is_colored, zone };
    tracing_subscriber::registry()
        .with(filter)
        .with(lines.clone())
        .try_init()
        .map_err(TelemetryError::AlreadyStarted)?;
    LINES.get_or_init(|| lines);
    update_request_filter();
    report_panics_in_log();
    Ok(Handle { filter: (!is_fixed).then_some(handle), dropped, _flusher: flusher })
}

/// The format and the buffers of the running log, for the lines of requests.
static LINES: OnceLock<LineLayer> = OnceLock::new();

/// Whether the level and `RUST_LOG` allow the lines of requests. The filter has a lock, which all threads would take for
/// each request.
static WRITES_REQUESTS: AtomicBool = AtomicBool::new(false);

/// Reads from the filter whether it allows the lines of requests.
fn update_request_filter() {
    WRITES_REQUESTS.store(tracing::enabled!(target: REQUEST_TARGET, Level::INFO), Ordering::Relaxed);
}

/// Writes the line of a request, unless the level or `RUST_LOG` leaves it out.
pub(crate) fn log_request(request: &RequestLine<'_>) {
    #[cfg(test)]
    LOGGED.with_borrow_mut(|lines| {
        let mut line = Vec::new();
        RequestLine { seconds: None, ..*request }.write_json(&mut line);
        lines.push(String::from_utf8_lossy(&line).into_owned());
    });
    if let Some(lines) = LINES.get()
        && WRITES_REQUESTS.load(Ordering::Relaxed)
    {
        lines.write_request(request);
    }
}

/// Writes the line of a request whose text is kept, unless the level or `RUST_LOG` leaves it out. Returns `false` if the line
/// needs the other fields: it is JSON, or the log is not started.
pub(crate) fn log_kept_text(text: &KeptText, seconds: f64) -> bool {
    let Some(lines) = LINES.get() else { return false };
    !WRITES_REQUESTS.load(Ordering::Relaxed) || lines.write_kept(text, seconds)
}

#[cfg(test)]
thread_local! {
    static LOGGED: std::cell::RefCell<Vec<String>> = const { std::cell::RefCell::new(Vec::new()) };
}

/// Returns the JSON lines of this thread's requests since the last call, without times and durations.
#[cfg(test)]
pub(crate) fn logged_requests() -> Vec<String> {
    LOGGED.take()
}

/// Writes panics to the log. The default message goes straight to stderr and would block the data path if no process
/// reads the pipe.
fn report_panics_in_log() {
    std::panic::set_hook(Box::new(|panic| {
        let location = panic.location().map(tracing::field::display);
        let thread = std::thread::current();
        let message = panic.payload_as_str().unwrap_or("no message");
        let backtrace = Backtrace::capture();
        let backtrace = (backtrace.status() == BacktraceStatus::Captured).then(|| backtrace.to_string());
        error!(thread = thread.name(), location, text = message, backtrace, "thread panicked");
    }));
}

/// Returns the filter for lines of this crate from `level` on and of other crates from `warn` on, or from `level` if
/// that is higher.
fn filter_for(level: Level) -> EnvFilter {
    let other_crates = level.min(Level::WARN);
    EnvFilter::new(format!("{other_crates},clipgate={level}"))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use parking_lot::Mutex;
    use tracing::{debug, info, warn};

    use super::*;
    use crate::config::LogFormat;
    use crate::core::job::KeyDomain;
    use crate::protocol::peer::Peer;

    #[derive(Clone, Default)]
    struct Capture(Arc<Mutex<Vec<u8>>>);

    impl Capture {
        fn text(&self) -> String {
            String::from_utf8(self.0.lock().clone()).unwrap()
        }
    }

    impl io::Write for Capture {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// Returns the lines that `act` logs.
    fn written(format: LogFormat, level: Level, act: impl FnOnce(&Handle)) -> String {
        let capture = Capture::default();
        let (filter, handle) = reload::Layer::new(filter_for(level));
        let (writer, flusher) = LogWriter::start(capture.clone(), false).unwrap();
        let dropped = writer.dropped().clone();
        let lines = LineLayer { writer, format, is_colored: false, zone: None };
        let subscriber = tracing_subscriber::registry().with(filter).with(lines);
        let handle = Handle { filter: Some(handle), dropped, _flusher: flusher };
        tracing::subscriber::with_default(subscriber, || act(&handle));
        drop(handle);
        capture.text()
    }

    #[test]
    fn json_is_one_object_a_line_with_the_fields_at_its_top() {
        let text = written(LogFormat::Json, Level::INFO, |_| {
            info!(target: "clipgate::hub", waits = 3, rung = "streaming", "poll opened");
            warn!(target: "clipgate::hub", odd = "two\nlines", "poll returned an odd body");
        });
        let lines: Vec<serde_json::Value> =
            text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(lines.len(), 2);
        assert_eq!(lines[0]["message"], "poll opened");
        assert_eq!(lines[0]["waits"], 3);
        assert_eq!(lines[0]["rung"], "streaming");
        assert_eq!(lines[0]["level"], "INFO");
        assert_eq!(lines[0]["target"], "clipgate::hub");
        assert_eq!(lines[1]["odd"], "two\nlines");
    }

    #[test]
    fn the_json_line_of_a_request_has_the_bytes_of_an_event_with_its_fields() {
        let odd = "a\"\\\n\u{9b}\u{202e}né";
        let peer = Peer::Tcp(([192, 0, 2, 1], 8).into());
        let key = KeyDomain([0xab; 16]);
        let full = RequestLine {
            method: Some("GET"),
            path: Some(odd),
            body_size: Some(u64::MAX),
            seconds: Some(0.000_123_4),
            route: Some("jobs"),
            jobs: Some(odd),
            member: Some("ann"),
            key: Some(key),
            client: Some([192, 0, 2, 7].into()),
            foreign_host: Some(odd),
            version: Some("1.1"),
            user_agent: Some(odd),
            upstream_id: Some("u1"),
            ..RequestLine::malformed(200, "hit", "reached", peer, "r1")
        };
        let without =
            RequestLine { status: None, ..RequestLine::malformed(400, "hit", "x", Peer::Unix, odd) };
        for line in [full, without] {
            let event = written(LogFormat::Json, Level::INFO, |_| {
                info!(
                    target: REQUEST_TARGET,
                    {http.request.method = line.method,
                    url.path = line.path,
                    http.response.status_code = line.status,
                    http.response.body.size = line.body_size,
                    http.server.request.duration = line.seconds,
                    clipgate.outcome = line.outcome,
                    clipgate.reason = line.reason,
                    clipgate.route = line.route,
                    clipgate.jobs = line.jobs,
                    clipgate.member = line.member,
                    clipgate.key = line.key.as_ref().map(KeyDomain::short),
                    client.address = line.client.map(|ip| ip.to_string()),
                    server.address = line.foreign_host,
                    network.peer.address = &*line.peer.address(),
                    network.peer.port = line.peer.port(),
                    network.protocol.version = line.version,
                    user_agent.original = line.user_agent,
                    clipgate.request_id = line.id,
                    clipgate.upstream_request_id = line.upstream_id},
                    "request"
                );
            });
            let mut bytes = Vec::new();
            line.write_json(&mut bytes);
            let (_, event) = event.split_once("Z\",").unwrap();
            assert_eq!(format!("\",{event}"), String::from_utf8(bytes).unwrap());
        }
    }

    #[test]
    fn text_has_colours_only_on_a_terminal() {
        let text =
            written(LogFormat::Text, Level::INFO, |_| info!(target: "clipgate", waits = 3, "poll opened"));
        assert!(text.contains("poll opened") && text.contains("waits=3"), "{text}");
        assert!(!text.contains('\u{1b}'), "{text}");
    }

    #[test]
    fn a_text_line_stays_one_line_with_any_value() {
        let text = written(LogFormat::Text, Level::INFO, |_| {
            let odd = "a\n2026 INFO forged \u{1b}[2J";
            info!(target: "clipgate", text = odd, shown = %odd, number = -3, share = 0.5, done = true, "read it");
        });
        let (_, line) = text.split_once("clipgate: ").unwrap();
        let odd = r"a\n2026 INFO forged \u{1b}[2J";
        assert_eq!(line, format!("read it text=\"{odd}\" shown={odd} number=-3 share=0.5 done=true\n"));
    }

    #[test]
    fn control_and_direction_characters_are_escaped() {
        let odd = "a\u{9b}2J\u{7f}\u{202e}\u{2066}\u{200f}\u{2028}\u{85}b";
        let write =
            |format| written(format, Level::INFO, |_| info!(id = odd, shown = %odd, "asked for {odd}"));
        let (text, json) = (write(LogFormat::Text), write(LogFormat::Json));
        for log in [&text, &json] {
            assert!(log.trim_end().bytes().all(|byte| matches!(byte, b' '..=b'~')), "{log:?}");
        }
        let shown = r"a\u{9b}2J\u{7f}\u{202e}\u{2066}\u{200f}\u{2028}\u{85}b";
        assert!(text.ends_with(&format!("asked for {shown} id=\"{shown}\" shown={shown}\n")), "{text}");
        let line: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!([&line["id"], &line["shown"]], [odd, odd]);
        assert_eq!(line["message"], format!("asked for {odd}"));
        let plain = "né à 日本";
        let text = written(LogFormat::Text, Level::INFO, |_| info!(shown = %plain, "asked"));
        assert!(text.ends_with(&format!("asked shown={plain}\n")), "{text}");
    }

    #[test]
    fn an_error_is_logged_with_its_causes() {
        let error = TelemetryError::Thread(io::Error::other("none left"));
        let error = &error as &(dyn std::error::Error + 'static);
        let text = written(LogFormat::Text, Level::INFO, |_| info!(error, "no luck"));
        assert!(text.ends_with("no luck error=cannot start the thread of the log: none left\n"), "{text}");
        let json = written(LogFormat::Json, Level::INFO, |_| info!(error, "no luck"));
        let line: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!(line["error"], "cannot start the thread of the log: none left");
    }

    #[test]
    fn lines_of_other_crates_are_logged_from_warn_on() {
        let text = written(LogFormat::Text, Level::TRACE, |_| {
            debug!(target: "hyper::proto", "hyper chatters");
            warn!(target: "rustls::conn", "rustls warns");
            debug!(target: "clipgate::hub", "we say more");
        });
        assert!(!text.contains("chatters") && text.contains("rustls warns") && text.contains("we say more"));
        let text = written(LogFormat::Text, Level::ERROR, |_| {
            warn!(target: "rustls::conn", "rustls warns");
            error!(target: "rustls::conn", "rustls fails");
        });
        assert!(!text.contains("warns") && text.contains("fails"), "{text}");
    }

    #[test]
    fn the_level_can_change_at_run_time() {
        let text = written(LogFormat::Text, Level::WARN, |handle| {
            info!(target: "clipgate::hub", "before");
            handle.set_level(Level::DEBUG);
            debug!(target: "clipgate::hub", "after");
        });
        assert!(!text.contains("before") && text.contains("after"), "{text}");
    }
}
