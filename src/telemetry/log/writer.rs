//! Where log lines go: into memory, and from there to the file by a thread of its own.
//!
//! ```text
//!   data path ── take ──▶ lines in memory, MAX_BYTES at most ── thread "log" ──▶ stderr
//!                              └─ full: dropped, counted
//! ```
//!
//! Nobody but that thread ever waits for the file, which may be a pipe that nobody reads. The thread writes warnings at
//! once, and other lines at most [`LAG`] later, many together: a line a request would otherwise be a system call a
//! request. `tracing-appender` does the same with a channel: an allocation a line, and a bound in lines, not in bytes.

use std::io::{self, Write};
use std::mem;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use prometheus_client::metrics::counter::Counter;
use tracing::warn;

use crate::clock;

/// How long a line may lie in memory while the file takes what is written to it.
const FLUSH_INTERVAL: Duration = Duration::from_millis(100);

/// The bytes in memory that are written without waiting for more.
const DUE_BYTES: usize = 64 << 10;

/// The bytes in memory at most, and as many again that are being written: a busy gateway's lines of half a second.
const MAX_BYTES: usize = 4 << 20;

/// The bytes that a buffer keeps between two writes.
const KEPT_BYTES: usize = 256 << 10;

/// How long the end waits for the file.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);

/// The pause before another attempt on a file that is not blocking and takes nothing now.
const RETRY_PAUSE: Duration = Duration::from_millis(10);

/// The way to the file. All who have it share it.
#[derive(Clone)]
pub(super) struct LogWriter(Arc<Shared>);

struct Shared {
    pending: Mutex<Pending>,
    /// Notified when there is something to write.
    news: Condvar,
    /// Notified when nothing is left to write.
    idle: Condvar,
    dropped: Counter,
}

struct Pending {
    lines: Vec<u8>,
    /// Lines that have been dropped since the file last took any.
    dropped: u64,
    /// What is in memory is to be written now.
    is_due: bool,
    /// Every line is written at once.
    is_direct: bool,
    is_writing: bool,
}

/// Waits until all lines are written when it is dropped, [`FLUSH_TIMEOUT`] at most.
#[derive(Debug)]
pub(super) struct FlushGuard(LogWriter);

impl LogWriter {
    /// Starts the thread that writes lines to this file: each of them at once where a person watches.
    ///
    /// # Errors
    ///
    /// When the system has no thread left.
    pub(super) fn start(
        file: impl Write + Send + 'static,
        is_direct: bool,
    ) -> io::Result<(Self, FlushGuard)> {
        let pending = Pending { lines: Vec::new(), dropped: 0, is_due: false, is_direct, is_writing: false };
        let sink = Self(Arc::new(Shared {
            pending: Mutex::new(pending),
            news: Condvar::new(),
            idle: Condvar::new(),
            dropped: Counter::default(),
        }));
        let writer = sink.clone();
        std::thread::Builder::new().name("log".to_owned()).spawn(move || writer.write_for_ever(file))?;
        Ok((sink.clone(), FlushGuard(sink)))
    }

    /// Takes one line, or a few, each with its end. Never waits for the file.
    pub(super) fn take(&self, line: &[u8], is_urgent: bool) {
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
            self.0.news.notify_one();
        }
    }

    /// The count of lines that nobody will read.
    pub(super) fn dropped(&self) -> &Counter {
        &self.0.dropped
    }

    fn write_for_ever(&self, mut file: impl Write) {
        let (mut lines, mut is_taken) = (Vec::new(), true);
        loop {
            let mut pending = self.0.pending.lock();
            while pending.lines.is_empty() && !(is_taken && pending.dropped > 0) {
                self.0.idle.notify_all();
                self.0.news.wait(&mut pending);
            }
            let until = clock::now() + FLUSH_INTERVAL;
            while !pending.is_due && !self.0.news.wait_until(&mut pending, until).timed_out() {}
            mem::swap(&mut lines, &mut pending.lines);
            (pending.is_due, pending.is_writing) = (false, true);
            // Only once the file takes lines again: a notice that is lost itself must not cause another.
            let dropped = if is_taken { mem::take(&mut pending.dropped) } else { 0 };
            drop(pending);
            if dropped > 0 {
                // The memory has room for it: it is empty.
                warn!(lines = dropped, "log lines were dropped, the log was not read fast enough");
            }

            let lost = write(&mut file, &lines);
            is_taken = lost == 0;
            lines.clear();
            lines.shrink_to(KEPT_BYTES);
            let mut pending = self.0.pending.lock();
            pending.is_writing = false;
            pending.dropped += lost;
            self.0.dropped.inc_by(lost);
        }
    }

    /// Waits until all lines are written, so long at most.
    fn flush(&self, timeout: Duration) {
        let until = clock::now() + timeout;
        let mut pending = self.0.pending.lock();
        pending.is_due = true;
        self.0.news.notify_one();
        while pending.is_writing || !pending.lines.is_empty() {
            if self.0.idle.wait_until(&mut pending, until).timed_out() {
                return;
            }
        }
    }
}

/// Writes all lines; returns how many the file has refused.
fn write(file: &mut impl Write, lines: &[u8]) -> u64 {
    let mut rest = lines;
    while !rest.is_empty() {
        match file.write(rest) {
            Ok(written) if written > 0 => rest = &rest[written..],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // Whoever shares the pipe with this process has set it so.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => std::thread::park_timeout(RETRY_PAUSE),
            Ok(_) | Err(_) => return rest.iter().filter(|byte| **byte == b'\n').count() as u64,
        }
    }
    // A file that cannot be flushed has taken the bytes all the same.
    let _ = file.flush();
    0
}

impl std::fmt::Debug for LogWriter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Sink")
    }
}

impl Drop for FlushGuard {
    fn drop(&mut self) {
        // Lines that come later are not waited for, so they are written as soon as can be.
        self.0.0.pending.lock().is_direct = true;
        self.0.flush(FLUSH_TIMEOUT);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(20);

    /// Tells of each write, once it may write.
    struct CaptureWriter {
        writes: mpsc::Sender<String>,
        gate: Arc<Mutex<()>>,
    }

    impl Write for CaptureWriter {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let _open = self.gate.lock();
            self.writes.send(String::from_utf8(bytes.to_vec()).unwrap()).map_err(io::Error::other)?;
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    struct SlowWriter {
        sink: LogWriter,
        flusher: FlushGuard,
        writes: mpsc::Receiver<String>,
        gate: Arc<Mutex<()>>,
    }

    fn desk(is_direct: bool) -> SlowWriter {
        let ((sender, writes), gate) = (mpsc::channel(), Arc::new(Mutex::new(())));
        let (sink, flusher) =
            LogWriter::start(CaptureWriter { writes: sender, gate: Arc::clone(&gate) }, is_direct).unwrap();
        SlowWriter { sink, flusher, writes, gate }
    }

    /// Reads until this is written.
    fn read_until(writes: &mpsc::Receiver<String>, expected: &str) {
        let mut text = String::new();
        while text != expected {
            text += &writes.recv_timeout(PATIENCE).unwrap();
            assert!(expected.starts_with(&text), "{text}");
        }
    }

    #[test]
    fn lines_are_written_in_order_without_anybody_asking() {
        for is_direct in [false, true] {
            let desk = desk(is_direct);
            desk.sink.take(b"one\n", false);
            desk.sink.take(b"two\n", true);
            desk.sink.take(b"three\n", false);
            read_until(&desk.writes, "one\ntwo\nthree\n");
        }
    }

    #[test]
    fn an_urgent_line_and_a_full_buffer_are_due_at_once() {
        // While the file takes nothing, nothing but the lines decides what is due.
        let desk = desk(false);
        let shut = desk.gate.lock();
        desk.sink.take(b"stuck\n", true);
        while !desk.sink.0.pending.lock().is_writing {
            std::thread::yield_now();
        }
        desk.sink.take(b"one\n", false);
        assert!(!desk.sink.0.pending.lock().is_due);
        desk.sink.take(b"two\n", true);
        assert!(desk.sink.0.pending.lock().is_due);
        desk.sink.0.pending.lock().is_due = false;
        desk.sink.take(&[b'x'; DUE_BYTES], false);
        assert!(desk.sink.0.pending.lock().is_due);
        drop(shut);
    }

    #[test]
    fn all_lines_are_written_at_the_end_and_later_ones_too() {
        let desk = desk(false);
        desk.sink.take(b"one\n", false);
        drop(desk.flusher);
        assert_eq!(desk.writes.try_iter().collect::<String>(), "one\n");
        desk.sink.take(b"two\n", false);
        read_until(&desk.writes, "two\n");
    }

    #[test]
    fn lines_that_nobody_reads_are_dropped_and_counted_and_the_end_does_not_wait_for_ever() {
        let desk = desk(false);
        let shut = desk.gate.lock();
        let line = [&[b'x'; 1023][..], b"\n"].concat();
        let taken = 2 * MAX_BYTES / line.len();
        // Twice the buffer, and more than the part that the writer may hold.
        for _ in 0..2 * taken {
            desk.sink.take(&line, false);
        }
        let dropped = desk.sink.dropped().get();
        assert!(dropped >= taken as u64, "{dropped}");
        assert!(desk.sink.0.pending.lock().lines.len() <= MAX_BYTES);
        drop(desk.flusher);
        drop(shut);
        let mut written = 0;
        while written < 2 * taken as u64 - dropped {
            written += desk.writes.recv_timeout(PATIENCE).unwrap().lines().count() as u64;
        }
        assert_eq!(written + dropped, 2 * taken as u64);
    }

    #[test]
    fn lines_that_the_file_refuses_are_counted_and_the_next_ones_are_tried() {
        let SlowWriter { sink, writes, flusher: _flusher, .. } = desk(true);
        drop(writes);
        sink.take(b"one\ntwo\n", false);
        sink.flush(PATIENCE);
        assert_eq!(sink.dropped().get(), 2);
        sink.take(b"three\n", false);
        sink.flush(PATIENCE);
        assert_eq!(sink.dropped().get(), 3);
    }
}
