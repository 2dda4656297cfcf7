//! The upstream of passed-through requests: the same response of 2.5 kB to each, with as little work as possible, so that
//! the server between it and the clients is the limit.
//!
//! ```text
//! GET /kit/requests     the number of other requests so far
//! ```

use std::io::{self, ErrorKind, Read as _, Write as _};
use std::net::SocketAddr;

use clap::Parser;
use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token};

/// An upstream with one response
#[derive(Debug, Parser)]
struct Args {
    #[arg(long, default_value = "127.0.0.1:9001")]
    listen: SocketAddr,
}

const LISTENER: Token = Token(usize::MAX);
const BODY_BYTES: usize = 2500;
const HEAD_END: &[u8] = b"\r\n\r\n";

/// The connections by their token. Closed ones leave a gap: there are some hundred at most.
struct Fixed {
    listener: TcpListener,
    connections: Vec<Option<Connection>>,
    response: Vec<u8>,
    requests: u64,
}

struct Connection {
    stream: TcpStream,
    /// The begin of a request whose end is to come.
    read: Vec<u8>,
}

fn main() -> io::Result<()> {
    let args = Args::parse();
    let (mut poll, mut events) = (Poll::new()?, Events::with_capacity(1024));
    let mut listener = TcpListener::bind(args.listen)?;
    poll.registry().register(&mut listener, LISTENER, Interest::READABLE)?;
    let body = format!(r#"{{"id":"plain","prompt":"{}"}}"#, "x".repeat(BODY_BYTES - 26));
    let mut fixed = Fixed { listener, connections: Vec::new(), response: response(&body), requests: 0 };
    loop {
        poll.poll(&mut events, None)?;
        for event in &events {
            match event.token() {
                LISTENER => fixed.accept(&poll)?,
                Token(number) => fixed.serve(number),
            }
        }
    }
}

fn response(body: &str) -> Vec<u8> {
    let kind = "application/json; charset=utf-8";
    let date = "Mon, 01 Jan 2024 00:00:00 GMT";
    let length = body.len();
    format!("HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\ncontent-length: {length}\r\ndate: {date}\r\n\r\n{body}")
        .into_bytes()
}

impl Fixed {
    fn accept(&mut self, poll: &Poll) -> io::Result<()> {
        loop {
            let mut stream = match self.listener.accept() {
                Ok((stream, _)) => stream,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            };
            stream.set_nodelay(true)?;
            poll.registry().register(&mut stream, Token(self.connections.len()), Interest::READABLE)?;
            self.connections.push(Some(Connection { stream, read: Vec::new() }));
        }
    }

    /// Answers all requests that have arrived. A failed connection is closed.
    fn serve(&mut self, number: usize) {
        let Self { connections, response, requests, .. } = self;
        let Some(connection) = &mut connections[number] else { return };
        if connection.answer(response, requests).is_err() {
            connections[number] = None;
        }
    }
}

impl Connection {
    fn answer(&mut self, response: &[u8], requests: &mut u64) -> io::Result<()> {
        let mut buffer = [0; 4096];
        loop {
            let length = match self.stream.read(&mut buffer) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(length) => length,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            };
            self.read.extend_from_slice(&buffer[..length]);
            // Clients send the next request after the response, so the end of one is the end of the bytes.
            if self.read.ends_with(HEAD_END) {
                if self.read.starts_with(b"GET /kit/requests ") {
                    let count = requests.to_string();
                    let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{count}", count.len());
                    self.stream.write_all(head.as_bytes())?;
                } else {
                    // Fits into the send buffer of an idle connection.
                    self.stream.write_all(response)?;
                    *requests += 1;
                }
                self.read.clear();
            }
            if length < buffer.len() {
                return Ok(());
            }
        }
    }
}
