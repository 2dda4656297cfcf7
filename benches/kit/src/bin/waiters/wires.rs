//! Clients with an HTTP/1.1 connection each, which they close when they have their answer. One thread and next to
//! nothing for each, so that what is measured is the server.

use std::io::{self, ErrorKind, Read as _, Write as _};
use std::time::{Duration, Instant};

use mio::event::Event;
use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Registry, Token};

use crate::answer::{Extent, Told, status};
use crate::{Args, Schedule, now_ns, say_asked};

/// Connections begun at a time, so that answers are not kept waiting.
const AT_ONCE: usize = 64;

/// One client's connection, until it is answered.
struct Wire {
    stream: TcpStream,
    asked_ns: u128,
    read: Vec<u8>,
    extent: Extent,
}

struct Wires<'a> {
    args: &'a Args,
    request: String,
    wires: Vec<Option<Wire>>,
    told: Vec<Option<Told>>,
    asked: usize,
    done: usize,
}

/// All of them, to the last answer.
pub(crate) fn wait(args: &Args) -> io::Result<Vec<Told>> {
    let mut poll = Poll::new()?;
    let mut events = Events::with_capacity(1024);
    let schedule = Schedule::new(args);
    let mut wires = Wires::new(args);
    let mut is_said = false;
    while wires.done < args.waits {
        wires.begin_due(&schedule, poll.registry())?;
        let pause = match wires.wires.len() {
            begun if begun < args.waits => schedule.due(begun).saturating_duration_since(Instant::now()),
            _ => Duration::from_millis(100),
        };
        poll.poll(&mut events, Some(pause))?;
        for event in &events {
            wires.on(event, poll.registry())?;
        }
        if !is_said && wires.asked == args.waits {
            say_asked()?;
            is_said = true;
        }
    }
    Ok(wires.told.into_iter().flatten().collect())
}

impl<'a> Wires<'a> {
    fn new(args: &'a Args) -> Self {
        let Args { target, key, .. } = args;
        let request = format!(
            "GET {target} HTTP/1.1\r\nHost: api.test\r\nAuthorization: Bearer {key}\r\n\
             User-Agent: waiters\r\nAccept: application/json\r\n\r\n"
        );
        Self { args, request, wires: Vec::new(), told: Vec::new(), asked: 0, done: 0 }
    }

    fn begin_due(&mut self, schedule: &Schedule, registry: &Registry) -> io::Result<()> {
        let now = Instant::now();
        for _ in 0..AT_ONCE {
            let number = self.wires.len();
            if number == self.args.waits || schedule.due(number) > now {
                break;
            }
            let mut stream = TcpStream::connect(self.args.to)?;
            registry.register(&mut stream, Token(number), Interest::WRITABLE)?;
            self.wires.push(Some(Wire { stream, asked_ns: 0, read: Vec::new(), extent: Extent::Unknown }));
            self.told.push(None);
        }
        Ok(())
    }

    fn on(&mut self, event: &Event, registry: &Registry) -> io::Result<()> {
        let Token(number) = event.token();
        let Some(wire) = &mut self.wires[number] else { return Ok(()) };
        if wire.asked_ns == 0 {
            wire.asked_ns = now_ns();
            self.asked += 1;
            // It fails where the connection was refused, as does reading then.
            let _ = wire.stream.set_nodelay(true);
            let _ = wire.stream.write_all(self.request.as_bytes());
            return registry.reregister(&mut wire.stream, event.token(), Interest::READABLE);
        }
        if let Some(told) = wire.read() {
            registry.deregister(&mut wire.stream)?;
            (self.wires[number], self.told[number]) = (None, Some(told));
            self.done += 1;
        }
        Ok(())
    }
}

impl Wire {
    /// Reads what there is; the answer, once it is whole.
    fn read(&mut self) -> Option<Told> {
        let mut buffer = [0; 16 << 10];
        loop {
            match self.stream.read(&mut buffer) {
                Ok(0) => return Some(Told::new(self.asked_ns, 0, b"")),
                Ok(length) => self.read.extend_from_slice(&buffer[..length]),
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return None,
                Err(_) => return Some(Told::new(self.asked_ns, 0, b"")),
            }
            if matches!(self.extent, Extent::Unknown) {
                self.extent = Extent::of(&self.read);
            }
            if self.extent.is_whole(&self.read) {
                return Some(Told::new(self.asked_ns, status(&self.read), &self.read));
            }
        }
    }
}
