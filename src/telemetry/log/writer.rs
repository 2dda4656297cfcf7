//! Writer of log lines: a bounded buffer in memory, and a thread that writes the buffer to the file.
//!
//! ```text
//!   data path ── push ──▶ buffer, MAX_BYTES at most ── thread "log" ──▶ stderr
//!                              └─ full: dropped, counted
//! ```
//!
//! Only that thread waits for the file, which may be a pipe without a reader. The thread writes warnings at once, and
//! batches other lines for up to [`FLUSH_INTERVAL`]: one write per line would be a system call per request.
//! `tracing-appender` uses a channel instead: an allocation per line, and a bound in lines rather than bytes.

use std::io::{self, Write};
use std::mem;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use prometheus_client::metrics::counter::Counter;
use tracing::warn;

use crate::clock;

/// Longest time that a line stays in the buffer while the file accepts writes.
const FLUSH_INTERVAL: Duration = Duration::from_millis(100);

/// Buffered bytes that are written without waiting for further lines.
const DUE_BYTES: usize = 64 << 10;

/// Bound of the buffer, in bytes: about half a second of a busy gateway's lines. A batch of up to the same size may be
/// in the hands of the thread.
const MAX_BYTES: usize = 4 << 20;

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
}

struct Pending {
    lines: Vec<u8>,
    /// Lines that were dropped and are not reported in the log yet.
    dropped: u64,
    /// Write the buffer now.
    is_due: bool,
    /// Write each line at once.
    is_direct: bool,
    is_writing: bool,
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
        let pending = Pending { lines, dropped: 0, is_due: false, is_direct, is_writing: false };
        let writer = Self(Arc::new(LogBuffer {
            pending: Mutex::new(pending),
            ready: Condvar::new(),
            idle: Condvar::new(),
            dropped: Counter::default(),
        }));
        let thread_writer = writer.clone();
        std::thread::Builder::new().name("log".to_owned()).spawn(move || thread_writer.run(file))?;
        Ok((writer.clone(), FlushGuard(writer)))
    }

    /// Appends one or more lines, with their line ends. Never waits for the file.
    pub(super) fn push(&self, line: &[u8], is_urgent: bool) {
        let mut pending = self.0.pending.lock();
        let length = pending.lines.len() + line.len();
        if length > MAX_BYTES {
            pending.dropped += 1;
            self.0.dropped.inc();
            return;
        }
        let was_empty = pending.lines.is_empty();
        pending.lines.extend_from_slice(line);
        let becomes_due = !pending.is_due && (is_urgent || pending.is_direct || length >= DUE_BYTES);
        pending.is_due |= becomes_due;
        drop(pending);
        if was_empty || becomes_due {
            self.0.ready.notify_one();
        }
    }

    /// Returns the count of lines that were dropped or could not be written.
    pub(super) fn dropped(&self) -> &Counter {
        &self.0.dropped
    }

    fn run(&self, mut file: impl Write) {
        let (mut lines, mut is_accepting) = (Vec::with_capacity(KEPT_CAPACITY), true);
        loop {
            let mut pending = self.0.pending.lock();
            while pending.lines.is_empty() && !(is_accepting && pending.dropped > 0) {
                self.0.idle.notify_all();
                self.0.ready.wait(&mut pending);
            }
            let until = clock::now() + FLUSH_INTERVAL;
            while !pending.is_due && !self.0.ready.wait_until(&mut pending, until).timed_out() {}
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
        pending.is_due = true;
        self.0.ready.notify_one();
        while pending.is_writing || !pending.lines.is_empty() {
            if self.0.idle.wait_until(&mut pending, until).timed_out() {
                return;
            }
        }
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
        self.0.0.pending.lock().is_direct = true;
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
