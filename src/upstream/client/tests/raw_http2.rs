//! Upstream that speaks HTTP/2 over TLS frame by frame. It sends sequences that no server library would send.
//!
//! It runs on a separate thread, so a test may block on it while no task of the client runs.

use std::net::SocketAddr;
use std::sync::mpsc as blocking;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;

/// Event on a connection of the upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Http2Event {
    /// A request's HEADERS.
    Request { connection: usize, stream: u32 },
    /// The client has acknowledged the last SETTINGS.
    Acknowledged { connection: usize },
    /// RST_STREAM.
    Reset { connection: usize, stream: u32 },
    /// End of a connection.
    Closed { connection: usize },
}

/// Command for a connection.
enum ConnectionCommand {
    Write(Vec<u8>, blocking::Sender<()>),
    Close,
}

/// The upstream. It numbers its connections from 0 in the command of their TLS handshakes.
pub(super) struct RawHttp2 {
    pub(super) address: SocketAddr,
    seen: mpsc::UnboundedReceiver<Http2Event>,
    opened: mpsc::UnboundedReceiver<mpsc::UnboundedSender<ConnectionCommand>>,
    connections: Vec<mpsc::UnboundedSender<ConnectionCommand>>,
    accepts: watch::Sender<bool>,
}

impl RawHttp2 {
    /// `streams`: stream limit in the SETTINGS of each connection.
    pub(super) fn start(acceptor: TlsAcceptor, streams: u32) -> Self {
        let (saw, seen) = mpsc::unbounded_channel();
        let (opens, opened) = mpsc::unbounded_channel();
        let (accepts, gate) = watch::channel(true);
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        listener.set_nonblocking(true).unwrap();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(accept(listener, acceptor, streams, gate, saw, opens));
        });
        Self { address, seen, opened, connections: Vec::new(), accepts }
    }

    /// Sets whether TLS handshakes continue.
    pub(super) fn accept_handshakes(&self, accepts: bool) {
        self.accepts.send(accepts).unwrap();
    }

    pub(super) async fn event(&mut self) -> Http2Event {
        self.seen.recv().await.unwrap()
    }

    /// Returns the next requests, each as connection and stream.
    pub(super) async fn requests(&mut self, count: usize) -> Vec<(usize, u32)> {
        let mut requests = Vec::new();
        while requests.len() < count {
            if let Http2Event::Request { connection, stream } = self.event().await {
                requests.push((connection, stream));
            }
        }
        requests
    }

    /// Waits for this event, and discards earlier ones.
    pub(super) async fn until(&mut self, awaited: Http2Event) {
        while self.event().await != awaited {}
    }

    /// Returns the number of TLS handshakes so far.
    pub(super) fn handshakes(&mut self) -> usize {
        while let Ok(connection) = self.opened.try_recv() {
            self.connections.push(connection);
        }
        self.connections.len()
    }

    /// Writes frames. Returns once they are in the socket of the client.
    pub(super) fn write(&mut self, connection: usize, frames: Vec<u8>) {
        self.handshakes();
        let (done, wrote) = blocking::channel();
        self.connections[connection].send(ConnectionCommand::Write(frames, done)).ok().unwrap();
        wrote.recv().unwrap();
    }

    /// Returns the next event if there is one.
    pub(super) fn try_event(&mut self) -> Option<Http2Event> {
        self.seen.try_recv().ok()
    }

    /// Like [`RawHttp2::write`], without waiting. Ignores a connection that has ended.
    pub(super) fn try_write(&mut self, connection: usize, frames: Vec<u8>) {
        self.handshakes();
        if let Some(connection) = self.connections.get(connection) {
            let _ = connection.send(ConnectionCommand::Write(frames, blocking::channel().0));
        }
    }

    /// Like [`RawHttp2::close`]. Ignores a connection that has ended.
    pub(super) fn try_close(&mut self, connection: usize) {
        self.handshakes();
        if let Some(connection) = self.connections.get(connection) {
            let _ = connection.send(ConnectionCommand::Close);
        }
    }

    /// Answers with 200 and no body.
    pub(super) fn answer(&mut self, (connection, stream): (usize, u32)) {
        self.write(connection, ok(stream));
    }

    pub(super) fn close(&mut self, connection: usize) {
        self.handshakes();
        self.connections[connection].send(ConnectionCommand::Close).ok().unwrap();
    }
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// `:status: 200` and the end of the stream.
pub(super) fn ok(stream: u32) -> Vec<u8> {
    frame(HEADERS, 0x05, stream, &[0x88])
}

/// `:status: 103`.
pub(super) fn early_hints(stream: u32) -> Vec<u8> {
    frame(HEADERS, 0x04, stream, b"\x08\x03103")
}

/// Head of a response whose body follows.
pub(super) fn head(stream: u32) -> Vec<u8> {
    frame(HEADERS, 0x04, stream, &[0x88])
}

pub(super) fn data(stream: u32, data: &[u8]) -> Vec<u8> {
    frame(DATA, 0, stream, data)
}

/// SETTINGS_MAX_CONCURRENT_STREAMS.
pub(super) fn settings(streams: u32) -> Vec<u8> {
    frame(SETTINGS, 0, 0, &[&[0, 3], &streams.to_be_bytes()[..]].concat())
}

pub(super) fn go_away(last: u32) -> Vec<u8> {
    frame(GOAWAY, 0, 0, &[last.to_be_bytes(), [0; 4]].concat())
}

/// REFUSED_STREAM.
pub(super) fn refuse(stream: u32) -> Vec<u8> {
    frame(RST_STREAM, 0, stream, &7_u32.to_be_bytes())
}

async fn accept(
    listener: std::net::TcpListener,
    acceptor: TlsAcceptor,
    streams: u32,
    gate: watch::Receiver<bool>,
    saw: mpsc::UnboundedSender<Http2Event>,
    opens: mpsc::UnboundedSender<mpsc::UnboundedSender<ConnectionCommand>>,
) {
    let listener = TcpListener::from_std(listener).unwrap();
    let opened = std::rc::Rc::new(std::cell::Cell::new(0));
    let local = tokio::task::LocalSet::new();
    local
        .run_until(async {
            loop {
                let (socket, _) = tokio::select! {
                    () = saw.closed() => return, // the test has ended
                    accepted = listener.accept() => accepted.unwrap(),
                };
                let (acceptor, saw, opens, mut gate) =
                    (acceptor.clone(), saw.clone(), opens.clone(), gate.clone());
                let opened = std::rc::Rc::clone(&opened);
                tokio::task::spawn_local(async move {
                    let _ = gate.wait_for(|accepts| *accepts).await;
                    let Ok(mut tls) = acceptor.accept(socket).await else { return };
                    let number = opened.replace(opened.get() + 1);
                    let (command, commands) = mpsc::unbounded_channel();
                    let _ = opens.send(command);
                    let _ = serve(&mut tls, streams, number, commands, &saw).await;
                    let _ = saw.send(Http2Event::Closed { connection: number });
                });
            }
        })
        .await;
}

async fn serve(
    tls: &mut TlsStream<TcpStream>,
    streams: u32,
    connection: usize,
    mut commands: mpsc::UnboundedReceiver<ConnectionCommand>,
    saw: &mpsc::UnboundedSender<Http2Event>,
) -> std::io::Result<()> {
    let mut preface = [0; 24];
    tls.read_exact(&mut preface).await?;
    tls.write_all(&settings(streams)).await?;
    tls.flush().await?;
    let mut read = Vec::new();
    loop {
        tokio::select! {
            command = commands.recv() => match command {
                Some(ConnectionCommand::Write(frames, done)) => {
                    tls.write_all(&frames).await?;
                    tls.flush().await?;
                    let _ = done.send(());
                }
                Some(ConnectionCommand::Close) | None => return Ok(()),
            },
            length = tls.read_buf(&mut read) => if length? == 0 { return Ok(()) },
        }
        while let Some((kind, flags, stream, payload)) = take_frame(&mut read) {
            let seen = match kind {
                HEADERS => Http2Event::Request { connection, stream },
                RST_STREAM => Http2Event::Reset { connection, stream },
                SETTINGS if flags & 1 == 1 => Http2Event::Acknowledged { connection },
                SETTINGS => {
                    tls.write_all(&frame(SETTINGS, 1, 0, &[])).await?;
                    continue;
                }
                PING if flags & 1 == 0 => {
                    tls.write_all(&frame(PING, 1, 0, &payload)).await?;
                    continue;
                }
                _ => continue,
            };
            let _ = saw.send(seen);
        }
        tls.flush().await?;
    }
}

fn take_frame(read: &mut Vec<u8>) -> Option<(u8, u8, u32, Vec<u8>)> {
    let [a, b, c, kind, flags, stream @ ..] = *read.first_chunk::<9>()?;
    let length = u32::from_be_bytes([0, a, b, c]) as usize;
    if read.len() < 9 + length {
        return None;
    }
    let payload = read.drain(..9 + length).skip(9).collect();
    Some((kind, flags, u32::from_be_bytes(stream), payload))
}
