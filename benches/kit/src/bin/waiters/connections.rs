//! Clients with an HTTP/1.1 connection each, closed after the response. One thread and little memory per client, so that
//! the server is the limit.

use std::io::{self, ErrorKind, Read as _, Write as _};
use std::time::{Duration, Instant};

use mio::event::Event;
use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Registry, Token};

use crate::response::{Extent, Response, status};
use crate::{Args, Schedule, now_ns, print_sent};

/// Connections opened at a time, so that responses are read promptly.
const MAX_CONNECTS: usize = 64;

/// The connection of one client, until its response.
struct Connection {
    stream: TcpStream,
    sent_ns: u128,
    read: Vec<u8>,
    extent: Extent,
}

struct Connections<'a> {
    args: &'a Args,
    request: String,
    connections: Vec<Option<Connection>>,
    responses: Vec<Option<Response>>,
    sent: usize,
    done: usize,
}

/// Runs all clients until the last response.
pub(crate) fn wait(args: &Args) -> io::Result<Vec<Response>> {
    let mut poll = Poll::new()?;
    let mut events = Events::with_capacity(1024);
    let schedule = Schedule::new(args);
    let mut connections = Connections::new(args);
    let mut is_printed = false;
    while connections.done < args.waits {
        connections.connect_due(&schedule, poll.registry())?;
        let pause = match connections.connections.len() {
            begun if begun < args.waits => schedule.due(begun).saturating_duration_since(Instant::now()),
            _ => Duration::from_millis(100),
        };
        poll.poll(&mut events, Some(pause))?;
        for event in &events {
            connections.on(event, poll.registry())?;
        }
        if !is_printed && connections.sent == args.waits {
            print_sent()?;
            is_printed = true;
        }
    }
    Ok(connections.responses.into_iter().flatten().collect())
}

impl<'a> Connections<'a> {
    fn new(args: &'a Args) -> Self {
        let Args { target, key, .. } = args;
        let request = format!(
            "GET {target} HTTP/1.1\r\nHost: api.test\r\nAuthorization: Bearer {key}\r\n\
             User-Agent: waiters\r\nAccept: application/json\r\n\r\n"
        );
        Self { args, request, connections: Vec::new(), responses: Vec::new(), sent: 0, done: 0 }
    }

    fn connect_due(&mut self, schedule: &Schedule, registry: &Registry) -> io::Result<()> {
        let now = Instant::now();
        for _ in 0..MAX_CONNECTS {
            let number = self.connections.len();
            if number == self.args.waits || schedule.due(number) > now {
                break;
            }
            let mut stream = TcpStream::connect(self.args.to)?;
            registry.register(&mut stream, Token(number), Interest::WRITABLE)?;
            self.connections.push(Some(Connection {
                stream,
                sent_ns: 0,
                read: Vec::new(),
                extent: Extent::Unknown,
            }));
            self.responses.push(None);
        }
        Ok(())
    }

    fn on(&mut self, event: &Event, registry: &Registry) -> io::Result<()> {
        let Token(number) = event.token();
        let Some(connection) = &mut self.connections[number] else { return Ok(()) };
        if connection.sent_ns == 0 {
            connection.sent_ns = now_ns();
            self.sent += 1;
            // Fails if the connection was refused; the read then fails as well.
            let _ = connection.stream.set_nodelay(true);
            let _ = connection.stream.write_all(self.request.as_bytes());
            return registry.reregister(&mut connection.stream, event.token(), Interest::READABLE);
        }
        if let Some(response) = connection.read() {
            registry.deregister(&mut connection.stream)?;
            (self.connections[number], self.responses[number]) = (None, Some(response));
            self.done += 1;
        }
        Ok(())
    }
}

impl Connection {
    /// Reads the available bytes. Returns the response once it is complete.
    fn read(&mut self) -> Option<Response> {
        let mut buffer = [0; 16 << 10];
        loop {
            match self.stream.read(&mut buffer) {
                Ok(0) => return Some(Response::new(self.sent_ns, 0, b"")),
                Ok(length) => self.read.extend_from_slice(&buffer[..length]),
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return None,
                Err(_) => return Some(Response::new(self.sent_ns, 0, b"")),
            }
            if matches!(self.extent, Extent::Unknown) {
                self.extent = Extent::of(&self.read);
            }
            if self.extent.is_complete(&self.read) {
                return Some(Response::new(self.sent_ns, status(&self.read), &self.read));
            }
        }
    }
}
