//! Load over HTTP/2: each connection requests one target with a number of streams at once, and again when all have ended, until
//! the time is over. So all servers get requests in the same groups, whether they write each response by itself or several.
//!
//! A generator must cost less than the servers, so this one knows one request only, and reads little of a response: the headers of its
//! frames, whether the status is 200, and the length of the body. h2load costs 5 µs a request, more than the fastest servers.
//! The generator never sleeps: a server whose client is on another machine does not pay for waking it either.
//!
//! ```text
//! {"requests":330123,"bad":0,"seconds":2.0}    the output
//! ```

use std::io::{self, ErrorKind, Read as _, Write as _};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use clap::Parser;
use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};

/// Load over HTTP/2
#[derive(Debug, Parser)]
struct Args {
    #[arg(long)]
    to: SocketAddr,
    #[arg(long)]
    target: String,
    #[arg(long, default_value = "k")]
    key: String,
    /// Length of the body of each response, in bytes
    #[arg(long)]
    body: usize,
    #[arg(long, default_value_t = 8)]
    connections: usize,
    /// Streams of each connection at once
    #[arg(long, default_value_t = 8)]
    streams: usize,
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
}

fn main() -> io::Result<()> {
    let args = Args::parse();
    let (mut poll, mut events) = (Poll::new()?, Events::with_capacity(args.connections));
    let mut connections = Vec::new();
    for number in 0..args.connections {
        let mut connection = Connection::open(&args)?;
        poll.registry().register(&mut connection.stream, Token(number), Interest::READABLE)?;
        connections.push(connection);
    }
    let began = Instant::now();
    let until = began + Duration::from_secs_f64(args.seconds);
    while Instant::now() < until {
        poll.poll(&mut events, Some(Duration::ZERO))?;
        for event in &events {
            connections[event.token().0].serve()?;
        }
    }
    let seconds = began.elapsed().as_secs_f64();
    let requests: u64 = connections.iter().map(|connection| connection.ended).sum();
    let bad: u64 = connections.iter().map(|connection| connection.bad).sum();
    println!("{}", serde_json::json!({ "requests": requests, "bad": bad, "seconds": seconds }));
    Ok(())
}

/// Room for the responses to all streams of a connection.
const READ_BYTES: usize = 256 << 10;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const FRAME_HEADER_BYTES: usize = 9;
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const END_STREAM: u8 = 1;
const ACK: u8 = 1;
const END_HEADERS: u8 = 4;
const PADDED: u8 = 8;
const MAX_WINDOW: u32 = (1 << 31) - 1;
/// The window of a connection at its start (RFC 9113 section 6.9.2).
const FIRST_WINDOW: u32 = (1 << 16) - 1;
/// Received bytes after which the window of a connection is filled again.
const WINDOW_STEP: u32 = 1 << 30;

struct Connection {
    stream: TcpStream,
    /// Bytes that were read, from the start of a frame on.
    read: Box<[u8]>,
    length: usize,
    /// Frames to send.
    unsent: Vec<u8>,
    /// The header of a request without its stream.
    request: Vec<u8>,
    next_stream: u32,
    streams: usize,
    open: Vec<Stream>,
    /// Received bytes that the window does not have again yet.
    used_window: u32,
    body: usize,
    ended: u64,
    bad: u64,
}

struct Stream {
    id: u32,
    is_ok: bool,
    received: usize,
}

impl Connection {
    /// Connects, and sends the first requests.
    fn open(args: &Args) -> io::Result<Self> {
        let stream = std::net::TcpStream::connect(args.to)?;
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        let mut connection = Self {
            stream: TcpStream::from_std(stream),
            read: vec![0; READ_BYTES].into(),
            length: 0,
            unsent: PREFACE.to_vec(),
            request: frame(HEADERS, END_HEADERS | END_STREAM, &header_block(args)),
            next_stream: 1,
            streams: args.streams,
            open: Vec::new(),
            used_window: 0,
            body: args.body,
            ended: 0,
            bad: 0,
        };
        // SETTINGS_ENABLE_PUSH and SETTINGS_INITIAL_WINDOW_SIZE.
        let settings = [&[0, 2, 0, 0, 0, 0, 0, 4], &MAX_WINDOW.to_be_bytes()[..]].concat();
        connection.unsent.extend(frame(SETTINGS, 0, &settings));
        connection.unsent.extend(frame(WINDOW_UPDATE, 0, &(MAX_WINDOW - FIRST_WINDOW).to_be_bytes()));
        connection.request_all();
        connection.send()?;
        Ok(connection)
    }

    fn request_all(&mut self) {
        for _ in 0..self.streams {
            let at = self.unsent.len();
            self.unsent.extend_from_slice(&self.request);
            self.unsent[at + 5..at + FRAME_HEADER_BYTES].copy_from_slice(&self.next_stream.to_be_bytes());
            self.open.push(Stream { id: self.next_stream, is_ok: false, received: 0 });
            self.next_stream += 2;
        }
    }

    /// Sends all frames. They fit into the send buffer of a connection whose server reads.
    fn send(&mut self) -> io::Result<()> {
        self.stream.write_all(&self.unsent)?;
        self.unsent.clear();
        Ok(())
    }

    /// Reads the available responses, and sends the next requests if all have ended.
    fn serve(&mut self) -> io::Result<()> {
        loop {
            let length = match self.stream.read(&mut self.read[self.length..]) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(length) => length,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            };
            self.length += length;
            let is_full = self.length == self.read.len();
            self.take_frames()?;
            if !self.unsent.is_empty() {
                self.send()?;
            }
            if !is_full {
                return Ok(());
            }
        }
    }

    /// Takes all complete frames.
    fn take_frames(&mut self) -> io::Result<()> {
        let mut at = 0;
        while let Some(header) = self.read[at..self.length].first_chunk::<FRAME_HEADER_BYTES>() {
            let [a, b, c, kind, flags, id @ ..] = *header;
            let payload = at + FRAME_HEADER_BYTES;
            let end = payload + u32::from_be_bytes([0, a, b, c]) as usize;
            if end > self.length {
                break;
            }
            self.take_frame(kind, flags, u32::from_be_bytes(id), payload, end)?;
            at = end;
        }
        self.read.copy_within(at..self.length, 0);
        self.length -= at;
        Ok(())
    }

    fn take_frame(&mut self, kind: u8, flags: u8, id: u32, from: usize, to: usize) -> io::Result<()> {
        match kind {
            DATA | HEADERS => {
                let Some(position) = self.open.iter().position(|stream| stream.id == id) else {
                    return Err(unexpected("a frame of a stream that is not open"));
                };
                if flags & PADDED != 0 || (kind == HEADERS && flags & END_HEADERS == 0) {
                    return Err(unexpected("a padded or divided frame"));
                }
                let stream = &mut self.open[position];
                match kind {
                    HEADERS => stream.is_ok = is_ok(&self.read[from..to]),
                    _ => {
                        stream.received += to - from;
                        self.use_window((to - from) as u32);
                    }
                }
                if flags & END_STREAM != 0 {
                    let stream = self.open.swap_remove(position);
                    self.ended += 1;
                    self.bad += u64::from(!stream.is_ok || stream.received != self.body);
                    if self.open.is_empty() {
                        self.request_all();
                    }
                }
            }
            SETTINGS if flags & ACK == 0 => self.unsent.extend(frame(SETTINGS, ACK, &[])),
            PING if flags & ACK == 0 => self.unsent.extend(frame(PING, ACK, &self.read[from..to])),
            RST_STREAM | GOAWAY => return Err(unexpected("the end of a stream or of the connection")),
            _ => {}
        }
        Ok(())
    }

    fn use_window(&mut self, length: u32) {
        self.used_window += length;
        if self.used_window >= WINDOW_STEP {
            self.unsent.extend(frame(WINDOW_UPDATE, 0, &self.used_window.to_be_bytes()));
            self.used_window = 0;
        }
    }
}

fn unexpected(what: &str) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, format!("the server sent {what}"))
}

/// Returns a frame of stream 0 (RFC 9113 section 4.1).
fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("a short payload").to_be_bytes();
    [&length[1..], &[kind, flags, 0, 0, 0, 0], payload].concat()
}

/// Returns whether a block of fields begins with status 200: field 8 of the static table. An encoder may announce the size of
/// its dynamic table before (RFC 7541 section 6.3), in a byte up to 62 or in more bytes.
fn is_ok(block: &[u8]) -> bool {
    let mut rest = block;
    while let [first @ 0x20..=0x3f, more @ ..] = rest {
        let long = if *first == 0x3f { more.iter().take_while(|byte| **byte >= 0x80).count() + 1 } else { 0 };
        rest = more.get(long..).unwrap_or_default();
    }
    rest.first() == Some(&0x88)
}

/// Returns the fields of the request. Strings have the Huffman code, as those of most clients. None is put into the dynamic
/// table, so that all requests have the same bytes.
fn header_block(args: &Args) -> Vec<u8> {
    // Fields of the static table: GET, http.
    let mut block = vec![0x82, 0x86];
    let (authority, key) = (args.to.to_string(), format!("Bearer {}", args.key));
    // Names of the static table: `:authority`, `:path`, `user-agent`, `authorization`.
    for (name, value) in [(1, &*authority), (4, &*args.target), (58, "kit"), (23, &*key)] {
        put_integer(&mut block, 0x00, 4, name);
        let mut code = Vec::new();
        httlib_huffman::encode(value.as_bytes(), &mut code).expect("a code for each byte");
        put_integer(&mut block, 0x80, 7, code.len());
        block.extend(code);
    }
    block
}

/// Appends an integer with a prefix of this many bits (RFC 7541 section 5.1).
fn put_integer(block: &mut Vec<u8>, first: u8, bits: u32, integer: usize) {
    let max = (1 << bits) - 1;
    if integer < max {
        block.push(first | integer as u8);
        return;
    }
    block.push(first | max as u8);
    let mut rest = integer - max;
    while rest >= 0x80 {
        block.push(0x80 | (rest & 0x7f) as u8);
        rest >>= 7;
    }
    block.push(rest as u8);
}
