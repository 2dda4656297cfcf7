//! Writer of log lines: bounded buffers in memory, and a thread that writes them to the file.
//!
//! ```text
//!   events ───────── push ───▶ pending, MAX_BYTES at most ────────────┬─ thread "log" ──▶ stderr
//!   access lines ── append ──▶ one buffer a thread, THREAD_MAX_BYTES ─┘
//!                                └─ full: dropped, counted
//! ```
//!
//! Only that thread waits for the file, which may be a pipe without a reader. The thread writes warnings at once, and
//! batches other lines for up to [`FLUSH_INTERVAL`]: one write per line would be a system call per request.
//! `tracing-appender` uses a channel instead: an allocation per line, and a bound in lines rather than bytes.
//!
//! The buffers of the threads spare a busy gateway the lock that all threads would take for each request. Before they
//! are written, or an event is appended, their lines are merged in order of time (`merge`), so the log stays in order.

use std::cell::RefCell;
use std::io::{self, Write};
use std::mem;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use prometheus_client::metrics::counter::Counter;
use tracing::warn;

use super::merge::merge_lines;
use crate::clock;

/// Longest time that a line stays in the buffer while the file accepts writes.
const FLUSH_INTERVAL: Duration = Duration::from_millis(100);

/// Buffered bytes that are written without waiting for further lines.
const DUE_BYTES: usize = 64 << 10;

/// Bound of the buffer, in bytes: about half a second of a busy gateway's lines. A batch of up to the same size may be
/// in the hands of the thread.
const MAX_BYTES: usize = 4 << 20;

/// Bound of the buffer of one thread, in bytes.
const THREAD_MAX_BYTES: usize = 2 << 20;

/// Capacity of a buffer at the start, and the largest that it keeps between two writes, in bytes. Requests then seldom pay
/// for its growth.
const KEPT_CAPACITY: usize = 256 << 10;

/// Longest time that the drop of the log waits for the file.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);

/// Pause before another attempt to write to a non-blocking file that is full.
const RETRY_PAUSE: Duration = Duration::from_millis(10);

/// Handle of the buffer; clones share it.
#[derive(Clone)]
pub(super) struct LogWriter(Arc<LogBuffer>);

struct LogBuffer {
    pending: Mutex<Pending>,
    /// Notified when there are lines to write.
    ready: Condvar,
    /// Notified when no line is left to write.
    idle: Condvar,
    dropped: Counter,
    /// Write each line at once.
    is_direct: AtomicBool,
}

struct Pending {
    lines: Vec<u8>,
    threads: Vec<ThreadLines>,
    /// A thread may have lines in its own buffer.
    has_thread_lines: bool,
    /// Lines that were dropped and are not reported in the log yet.
    dropped: u64,
    /// Write the buffer now.
    is_due: bool,
    is_writing: bool,
}

/// Buffer of one thread, and the empty one that takes its place.
struct ThreadLines {
    own: Arc<Mutex<Vec<u8>>>,
    spare: Vec<u8>,
}

/// The buffer of this thread, and the log that it belongs to.
type OwnLines = (LogWriter, Arc<Mutex<Vec<u8>>>);

thread_local! {
    static OWN_LINES: RefCell<Option<OwnLines>> = const { RefCell::new(None) };
}

/// Guard whose drop blocks until all lines are written, [`FLUSH_TIMEOUT`] at most.
#[derive(Debug)]
pub(super) struct FlushGuard(LogWriter);

impl LogWriter {
    /// Starts the thread that writes to the file. `is_direct` writes each line at once, for a terminal.
    ///
    /// # Errors
    ///
    /// If the system has no thread left.
    pub(super) fn start(
        file: impl Write + Send + 'static,
        is_direct: bool,
    ) -> io::Result<(Self, FlushGuard)> {
        let lines = Vec::with_capacity(KEPT_CAPACITY);
        let pending = Pending {
            lines,
            threads: Vec::new(),
            has_thread_lines: false,
            dropped: 0,
            is_due: false,
            is_writing: false,
        };
        let writer = Self(Arc::new(LogBuffer {
            pending: Mutex::new(pending),
            ready: Condvar::new(),
            idle: Condvar::new(),
            dropped: Counter::default(),
            is_direct: AtomicBool::new(is_direct),
        }));
        let thread_writer = writer.clone();
        std::thread::Builder::new().name("log".to_owned()).spawn(move || thread_writer.run(file))?;
        Ok((writer.clone(), FlushGuard(writer)))
    }

    /// Appends one or more lines, with their line ends. Never waits for the file.
    pub(super) fn push(&self, line: &[u8], is_urgent: bool) {
        let mut pending = self.0.pending.lock();
        if pending.lines.len() + line.len() > MAX_BYTES {
            pending.dropped += 1;
            self.0.dropped.inc();
            return;
        }
        let was_empty = pending.is_empty();
        pending.collect();
        pending.lines.extend_from_slice(line);
        let is_due = is_urgent || self.is_direct() || pending.lines.len() >= DUE_BYTES;
        let becomes_due = !pending.is_due && is_due;
        pending.is_due |= becomes_due;
        drop(pending);
        if was_empty || becomes_due {
            self.0.ready.notify_one();
        }
    }

    /// Appends the line that `write` writes, with its line end, to the buffer of this thread. Never waits for the file.
    /// `write` must not log.
    pub(super) fn append(&self, write: impl Fn(&mut Vec<u8>)) {
        let append_to_own = |own: &RefCell<Option<OwnLines>>| {
            let mut own = own.borrow_mut();
            let lines = match &*own {
                Some((writer, lines)) if Arc::ptr_eq(&writer.0, &self.0) => lines,
                Some(_) | None => &own.insert((self.clone(), self.register_thread())).1,
            };
            self.append_to(lines, &write);
        };
        // An ending thread may have no buffer left.
        if self.is_direct() || OWN_LINES.try_with(append_to_own).is_err() {
            let mut line = Vec::new();
            write(&mut line);
            self.push(&line, false);
        }
    }

    fn append_to(&self, lines: &Mutex<Vec<u8>>, write: impl Fn(&mut Vec<u8>)) {
        let mut lines = lines.lock();
        let before = lines.len();
        if before >= THREAD_MAX_BYTES {
            drop(lines);
            self.0.pending.lock().dropped += 1;
            self.0.dropped.inc();
            return;
        }
        write(&mut lines);
        let becomes_due = before < DUE_BYTES && lines.len() >= DUE_BYTES;
        drop(lines);
        if before == 0 || becomes_due {
            let mut pending = self.0.pending.lock();
            pending.has_thread_lines = true;
            pending.is_due |= becomes_due;
            drop(pending);
            self.0.ready.notify_one();
        }
    }

    fn register_thread(&self) -> Arc<Mutex<Vec<u8>>> {
        let own = Arc::new(Mutex::new(Vec::new()));
        self.0.pending.lock().threads.push(ThreadLines { own: Arc::clone(&own), spare: Vec::new() });
        own
    }

    fn is_direct(&self) -> bool {
        self.0.is_direct.load(Ordering::Relaxed)
    }

    /// Returns the count of lines that were dropped or could not be written.
    pub(super) fn dropped(&self) -> &Counter {
        &self.0.dropped
    }

    fn run(&self, mut file: impl Write) {
        let (mut lines, mut is_accepting) = (Vec::with_capacity(KEPT_CAPACITY), true);
        loop {
            let mut pending = self.0.pending.lock();
            while pending.is_empty() && !(is_accepting && pending.dropped > 0) {
                self.0.idle.notify_all();
                self.0.ready.wait(&mut pending);
            }
            let until = clock::now() + FLUSH_INTERVAL;
            while !pending.is_due && !self.0.ready.wait_until(&mut pending, until).timed_out() {}
            pending.collect();
            mem::swap(&mut lines, &mut pending.lines);
            (pending.is_due, pending.is_writing) = (false, true);
            // Reports only once the file accepts lines again: a lost report must not cause another.
            let dropped = if is_accepting { mem::take(&mut pending.dropped) } else { 0 };
            drop(pending);
            if dropped > 0 {
                // Fits: the buffer is empty.
                warn!(lines = dropped, "log lines were dropped, the log was not read fast enough");
            }

            let lost = write(&mut file, &lines);
            is_accepting = lost == 0;
            lines.clear();
            lines.shrink_to(KEPT_CAPACITY);
            let mut pending = self.0.pending.lock();
            pending.is_writing = false;
            pending.dropped += lost;
            self.0.dropped.inc_by(lost);
        }
    }

    /// Blocks until all lines are written, or the timeout has passed.
    fn flush(&self, timeout: Duration) {
        let until = clock::now() + timeout;
        let mut pending = self.0.pending.lock();
        (pending.is_due, pending.has_thread_lines) = (true, true);
        self.0.ready.notify_one();
        while pending.is_writing || !pending.is_empty() {
            if self.0.idle.wait_until(&mut pending, until).timed_out() {
                return;
            }
        }
    }
}

impl Pending {
    fn is_empty(&self) -> bool {
        self.lines.is_empty() && !self.has_thread_lines
    }

    /// Moves the lines of all threads behind the others. Holds the lock of a thread's buffer for a swap only.
    fn collect(&mut self) {
        if !mem::take(&mut self.has_thread_lines) {
            return;
        }
        for thread in &mut self.threads {
            mem::swap(&mut *thread.own.lock(), &mut thread.spare);
        }
        let sources: Vec<&[u8]> = self.threads.iter().map(|thread| &*thread.spare).collect();
        merge_lines(&sources, &mut self.lines);
        for thread in &mut self.threads {
            thread.spare.clear();
            thread.spare.shrink_to(KEPT_CAPACITY);
        }
        // The thread has ended, and its lines are written.
        self.threads.retain(|thread| Arc::strong_count(&thread.own) > 1);
    }
}

/// Writes all lines. Returns the number of lines that the file did not accept.
fn write(file: &mut impl Write, lines: &[u8]) -> u64 {
    let mut rest = lines;
    while !rest.is_empty() {
        match file.write(rest) {
            Ok(written) if written > 0 => rest = &rest[written..],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // Another process that shares the pipe has made it non-blocking.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => std::thread::park_timeout(RETRY_PAUSE),
            Ok(_) | Err(_) => return rest.iter().filter(|byte| **byte == b'\n').count() as u64,
        }
    }
    // Ignores the result: the bytes are written already.
    let _ = file.flush();
    0
}

impl std::fmt::Debug for LogWriter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("LogWriter")
    }
}

impl Drop for FlushGuard {
    fn drop(&mut self) {
        // Later lines have no guard, so the thread writes each at once.
        self.0.0.is_direct.store(true, Ordering::Relaxed);
        self.0.flush(FLUSH_TIMEOUT);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    const TEST_TIMEOUT: Duration = Duration::from_secs(20);

    /// Sends each write to a channel, while the gate is open.
    struct CaptureWriter {
        writes: mpsc::Sender<String>,
        gate: Arc<Mutex<()>>,
    }

    impl Write for CaptureWriter {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let _gate = self.gate.lock();
            self.writes.send(String::from_utf8(bytes.to_vec()).unwrap()).map_err(io::Error::other)?;
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// A writer whose file accepts writes only while the gate is not locked.
    struct GatedWriter {
        writer: LogWriter,
        flusher: FlushGuard,
        writes: mpsc::Receiver<String>,
        gate: Arc<Mutex<()>>,
    }

    fn gated_writer(is_direct: bool) -> GatedWriter {
        let ((sender, writes), gate) = (mpsc::channel(), Arc::new(Mutex::new(())));
        let (writer, flusher) =
            LogWriter::start(CaptureWriter { writes: sender, gate: Arc::clone(&gate) }, is_direct).unwrap();
        GatedWriter { writer, flusher, writes, gate }
    }

    /// Reads until the file has exactly this text.
    fn read_until(writes: &mpsc::Receiver<String>, expected: &str) {
        let mut text = String::new();
        while text != expected {
            text += &writes.recv_timeout(TEST_TIMEOUT).unwrap();
            assert!(expected.starts_with(&text), "{text}");
        }
    }

    #[test]
    fn lines_are_written_in_order() {
        for is_direct in [false, true] {
            let log = gated_writer(is_direct);
            log.writer.push(b"one\n", false);
            log.writer.push(b"two\n", true);
            log.writer.push(b"three\n", false);
            read_until(&log.writes, "one\ntwo\nthree\n");
        }
    }

    #[test]
    fn an_urgent_line_or_a_full_buffer_is_written_at_once() {
        // With a blocked file only the lines decide when the buffer is due.
        let log = gated_writer(false);
        let closed = log.gate.lock();
        log.writer.push(b"stuck\n", true);
        while !log.writer.0.pending.lock().is_writing {
            std::thread::yield_now();
        }
        log.writer.push(b"one\n", false);
        assert!(!log.writer.0.pending.lock().is_due);
        log.writer.push(b"two\n", true);
        assert!(log.writer.0.pending.lock().is_due);
        log.writer.0.pending.lock().is_due = false;
        log.writer.push(&[b'x'; DUE_BYTES], false);
        assert!(log.writer.0.pending.lock().is_due);
        drop(closed);
    }

    #[test]
    fn the_drop_writes_all_lines_and_later_lines_are_written_too() {
        let log = gated_writer(false);
        log.writer.push(b"one\n", false);
        drop(log.flusher);
        assert_eq!(log.writes.try_iter().collect::<String>(), "one\n");
        log.writer.push(b"two\n", false);
        read_until(&log.writes, "two\n");
    }

    #[test]
    fn unread_lines_are_dropped_and_counted_and_the_drop_returns() {
        let log = gated_writer(false);
        let closed = log.gate.lock();
        let line = [&[b'x'; 1023][..], b"\n"].concat();
        let count = 4 * MAX_BYTES / line.len();
        // Four times the buffer: the thread may hold as much as the buffer.
        for _ in 0..count {
            log.writer.push(&line, false);
        }
        let dropped = log.writer.dropped().get();
        assert!(dropped >= count as u64 / 2, "{dropped}");
        assert!(log.writer.0.pending.lock().lines.len() <= MAX_BYTES);
        drop(log.flusher);
        drop(closed);
        let mut written = 0;
        while written < count as u64 - dropped {
            written += log.writes.recv_timeout(TEST_TIMEOUT).unwrap().lines().count() as u64;
        }
        assert_eq!(written + dropped, count as u64);
    }

    #[test]
    fn appended_lines_are_written_with_the_others_in_order_of_time() {
        for is_direct in [false, true] {
            let log = gated_writer(is_direct);
            let closed = log.gate.lock();
            log.writer.push(b"0 stuck\n", true);
            while !log.writer.0.pending.lock().is_writing {
                std::thread::yield_now();
            }
            let append =
                |text: &'static str| log.writer.append(move |line| line.extend_from_slice(text.as_bytes()));
            append("1 one\n");
            std::thread::scope(|scope| scope.spawn(|| append("2 two\n")).join().unwrap());
            append("3 three\n");
            log.writer.push(b"4 four\n", false);
            append("5 five\n");
            drop((closed, log.flusher));
            let text: String = log.writes.try_iter().collect();
            assert_eq!(text, "0 stuck\n1 one\n2 two\n3 three\n4 four\n5 five\n");
            assert!(log.writer.0.pending.lock().threads.len() <= 1, "a thread that has ended is forgotten");
        }
    }

    #[test]
    fn appended_lines_are_written_in_time_without_a_flush_and_at_once_when_there_are_many() {
        let log = gated_writer(false);
        log.writer.append(|line| line.extend_from_slice(b"one\n"));
        read_until(&log.writes, "one\n");
        let closed = log.gate.lock();
        log.writer.push(b"stuck\n", true);
        while !log.writer.0.pending.lock().is_writing {
            std::thread::yield_now();
        }
        log.writer.append(|line| line.extend_from_slice(b"two\n"));
        assert!(!log.writer.0.pending.lock().is_due);
        log.writer.append(|line| line.extend_from_slice(&[b'x'; DUE_BYTES]));
        assert!(log.writer.0.pending.lock().is_due);
        drop(closed);
    }

    #[test]
    fn unread_appended_lines_are_dropped_and_counted() {
        let log = gated_writer(false);
        let closed = log.gate.lock();
        log.writer.push(b"stuck\n", true);
        while !log.writer.0.pending.lock().is_writing {
            std::thread::yield_now();
        }
        let line = [&[b'x'; 1023][..], b"\n"].concat();
        let (count, dropped) = (4 * THREAD_MAX_BYTES / line.len(), log.writer.dropped());
        for _ in 0..count {
            log.writer.append(|lines| lines.extend_from_slice(&line));
        }
        assert_eq!(dropped.get(), count as u64 * 3 / 4);
        drop(closed);
        let mut written = 0;
        while written < 1 + count as u64 / 4 {
            written += log.writes.recv_timeout(TEST_TIMEOUT).unwrap().lines().count() as u64;
        }
    }

    #[test]
    fn lines_that_cannot_be_written_are_counted_and_later_lines_are_attempted() {
        let GatedWriter { writer, writes, flusher: _flusher, .. } = gated_writer(true);
        drop(writes);
        writer.push(b"one\ntwo\n", false);
        writer.flush(TEST_TIMEOUT);
        assert_eq!(writer.dropped().get(), 2);
        writer.push(b"three\n", false);
        writer.flush(TEST_TIMEOUT);
        assert_eq!(writer.dropped().get(), 3);
    }
}
