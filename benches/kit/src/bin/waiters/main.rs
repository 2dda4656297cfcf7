//! Many clients that ask the same and wait.
//!
//! It says `asked` once all have asked, and at the end one line for each: when it asked and when it had its answer, in
//! nanoseconds of the time of day, the answer's HTTP status and the clip's own. Who runs it ends it.

mod answer;
mod streams;
mod wires;

use std::io::{self, BufWriter, Write as _};
use std::net::SocketAddr;
use std::time::{Duration, Instant, SystemTime};

use clap::Parser;

/// Many clients that ask the same and wait
#[derive(Debug, Parser)]
struct Args {
    #[arg(long)]
    to: SocketAddr,
    #[arg(long)]
    target: String,
    #[arg(long, default_value = "k")]
    key: String,
    #[arg(long)]
    waits: usize,
    /// The pause from one to the next, in microseconds
    #[arg(long, default_value_t = 250)]
    pause: u64,
    /// They are streams of HTTP/2 connections, so many on each
    #[arg(long)]
    streams: Option<usize>,
}

fn main() -> io::Result<()> {
    let args = Args::parse();
    let told = match args.streams {
        Some(streams) => streams::wait(&args, streams)?,
        None => wires::wait(&args)?,
    };
    let mut out = BufWriter::new(io::stdout().lock());
    for told in told {
        writeln!(out, "{} {} {} {}", told.asked_ns, told.answered_ns, told.status, told.word)?;
    }
    out.flush()
}

/// When each of the clients asks.
struct Schedule {
    began: Instant,
    pause: Duration,
}

impl Schedule {
    fn new(args: &Args) -> Self {
        Self { began: Instant::now(), pause: Duration::from_micros(args.pause) }
    }

    fn due(&self, number: usize) -> Instant {
        self.began + self.pause * u32::try_from(number).expect("there are not so many")
    }
}

fn say_asked() -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "asked")?;
    out.flush()
}

fn now_ns() -> u128 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_nanos())
}
