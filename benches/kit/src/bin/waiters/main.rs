//! Many clients with identical waits.
//!
//! Prints `sent` once all requests are sent. At the end prints one line for each client: the times of request and response in
//! nanoseconds of the time of day, the HTTP status and the status of the clip. There is no time-out: the caller kills it.

mod connections;
mod response;
mod streams;

use std::io::{self, BufWriter, Write as _};
use std::net::SocketAddr;
use std::time::{Duration, Instant, SystemTime};

use clap::Parser;

/// Many clients with identical waits
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
    /// Pause between two requests, in microseconds
    #[arg(long, default_value_t = 250)]
    pause: u64,
    /// Use HTTP/2, with this number of streams on each connection
    #[arg(long)]
    streams: Option<usize>,
}

fn main() -> io::Result<()> {
    let args = Args::parse();
    let responses = match args.streams {
        Some(streams) => streams::wait(&args, streams)?,
        None => connections::wait(&args)?,
    };
    let mut out = BufWriter::new(io::stdout().lock());
    for response in responses {
        writeln!(out, "{} {} {} {}", response.sent_ns, response.answered_ns, response.status, response.word)?;
    }
    out.flush()
}

/// The times of the requests.
struct Schedule {
    began: Instant,
    pause: Duration,
}

impl Schedule {
    fn new(args: &Args) -> Self {
        Self { began: Instant::now(), pause: Duration::from_micros(args.pause) }
    }

    fn due(&self, number: usize) -> Instant {
        self.began + self.pause * u32::try_from(number).expect("fewer than 2^32 clients")
    }
}

fn print_sent() -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "sent")?;
    out.flush()
}

fn now_ns() -> u128 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_nanos())
}
