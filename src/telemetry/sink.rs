//! Where lines go: into memory, and from there to their file by many at once.
//!
//! A line a request would otherwise be a system call a request. A thread of its own writes what is there, at most
//! [`LAG`] later; warnings and all that a person watches go out at once. Whoever fills the memory writes it, so
//! nothing is lost and nothing grows: a log that is read slowly slows down who logs, as it would without this.

use std::io::{self, Write};
use std::mem;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use crate::clock;

/// How long a line may lie in memory.
const LAG: Duration = Duration::from_millis(100);

/// Bytes in memory that are written by who adds to them.
const FULL: usize = 64 << 10;

/// The way to the file. All who have it share it.
#[derive(Clone)]
pub(super) struct Sink(Arc<Shared>);

struct Shared {
    waiting: Mutex<Waiting>,
    /// Told when there is something to write, and at the end.
    news: Condvar,
    /// Taken before `waiting`, so that lines keep their order.
    file: Mutex<Box<dyn Write + Send>>,
}

#[derive(Default)]
struct Waiting {
    lines: Vec<u8>,
    /// Nothing lies in memory any more.
    is_direct: bool,
}

/// Writes what is left when it is dropped; from then on each line goes out at once.
#[derive(Debug)]
pub(super) struct Flusher(Sink);

impl Sink {
    /// Lines to this file. A person watches: each goes out at once.
    pub(super) fn direct(file: impl Write + Send + 'static) -> Self {
        let waiting = Waiting { lines: Vec::new(), is_direct: true };
        let shared =
            Shared { waiting: Mutex::new(waiting), news: Condvar::new(), file: Mutex::new(Box::new(file)) };
        Self(Arc::new(shared))
    }

    /// The same by many at once, until the [`Flusher`] is gone.
    ///
    /// # Errors
    ///
    /// When the system has no thread left.
    pub(super) fn buffered(file: impl Write + Send + 'static) -> io::Result<(Self, Flusher)> {
        let sink = Self::direct(file);
        sink.0.waiting.lock().is_direct = false;
        let writer = sink.clone();
        std::thread::Builder::new().name("log".to_owned()).spawn(move || writer.write_now_and_then())?;
        Ok((sink.clone(), Flusher(sink)))
    }

    /// Takes one line, or a few, each with its end.
    pub(super) fn take(&self, line: &[u8], is_urgent: bool) {
        let mut waiting = self.0.waiting.lock();
        let was_empty = waiting.lines.is_empty();
        waiting.lines.extend_from_slice(line);
        let is_due = is_urgent || waiting.is_direct || waiting.lines.len() >= FULL;
        drop(waiting);
        if is_due {
            self.write();
        } else if was_empty {
            self.0.news.notify_one();
        }
    }

    /// Writes all there is.
    fn write(&self) {
        let mut file = self.0.file.lock();
        let lines = mem::take(&mut self.0.waiting.lock().lines);
        // A log that cannot be written has nobody to be told.
        let _ = file.write_all(&lines).and_then(|()| file.flush());
    }

    fn write_now_and_then(&self) {
        loop {
            let mut waiting = self.0.waiting.lock();
            while waiting.lines.is_empty() && !waiting.is_direct {
                self.0.news.wait(&mut waiting);
            }
            // More may come, and the end may.
            let until = clock::now() + LAG;
            while !waiting.is_direct && !self.0.news.wait_until(&mut waiting, until).timed_out() {}
            if waiting.is_direct {
                return;
            }
            drop(waiting);
            self.write();
        }
    }
}

impl std::fmt::Debug for Sink {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Sink")
    }
}

impl Drop for Flusher {
    fn drop(&mut self) {
        self.0.0.waiting.lock().is_direct = true;
        self.0.0.news.notify_one();
        self.0.write();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    /// Tells of each write.
    struct Page(mpsc::Sender<String>);

    impl Write for Page {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.send(String::from_utf8(bytes.to_vec()).unwrap()).unwrap();
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    const PATIENCE: Duration = Duration::from_secs(20);

    fn buffered() -> (Sink, Flusher, mpsc::Receiver<String>) {
        let (sender, writes) = mpsc::channel();
        let (sink, flusher) = Sink::buffered(Page(sender)).unwrap();
        (sink, flusher, writes)
    }

    #[test]
    fn lines_come_together_and_soon_without_anybody_asking() {
        let (sink, _flusher, writes) = buffered();
        sink.take(b"one\n", false);
        sink.take(b"two\n", false);
        let mut text = String::new();
        while text != "one\ntwo\n" {
            text += &writes.recv_timeout(PATIENCE).unwrap();
        }
    }

    #[test]
    fn an_urgent_line_goes_out_at_once_and_after_those_before_it() {
        let (sink, _flusher, writes) = buffered();
        sink.take(b"one\n", false);
        sink.take(b"two\n", true);
        let written: String = writes.try_iter().collect();
        assert_eq!(written, "one\ntwo\n");
    }

    #[test]
    fn a_full_memory_is_written_by_who_filled_it() {
        let (sink, _flusher, writes) = buffered();
        sink.take(&[b'x'; FULL], false);
        assert_eq!(writes.try_iter().map(|written| written.len()).sum::<usize>(), FULL);
    }

    #[test]
    fn nothing_is_lost_at_the_end_nor_after_it() {
        let (sink, flusher, writes) = buffered();
        sink.take(b"one\n", false);
        drop(flusher);
        sink.take(b"two\n", false);
        assert_eq!(writes.try_iter().collect::<String>(), "one\ntwo\n");
    }
}
