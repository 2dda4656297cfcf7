//! An upstream that speaks HTTP/2 over TLS frame by frame, so that a test can say what no server library would.
//!
//! It has a thread of its own: a test may block on it while nothing of the client's moves.

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

/// What the upstream sees, and on which connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Seen {
    /// A request's HEADERS.
    Request { connection: usize, stream: u32 },
    /// The last SETTINGS were acknowledged.
    Acknowledged { connection: usize },
    /// RST_STREAM.
    Reset { connection: usize, stream: u32 },
    /// The end of a connection.
    Closed { connection: usize },
}

/// What a connection is told to do.
enum Order {
    Write(Vec<u8>, blocking::Sender<()>),
    Close,
}

/// The upstream. Its connections are numbered from 0 in the order of their TLS handshakes.
pub(super) struct RawHttp2 {
    pub(super) address: SocketAddr,
    seen: mpsc::UnboundedReceiver<Seen>,
    opened: mpsc::UnboundedReceiver<mpsc::UnboundedSender<Order>>,
    connections: Vec<mpsc::UnboundedSender<Order>>,
    lets_in: watch::Sender<bool>,
}

impl RawHttp2 {
    /// `streams`: what the SETTINGS of each connection allow.
    pub(super) fn start(acceptor: TlsAcceptor, streams: u32) -> Self {
        let (saw, seen) = mpsc::unbounded_channel();
        let (opens, opened) = mpsc::unbounded_channel();
        let (lets_in, gate) = watch::channel(true);
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        listener.set_nonblocking(true).unwrap();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(accept(listener, acceptor, streams, gate, saw, opens));
        });
        Self { address, seen, opened, connections: Vec::new(), lets_in }
    }

    /// Whether TLS handshakes go on.
    pub(super) fn let_in(&self, lets_in: bool) {
        self.lets_in.send(lets_in).unwrap();
    }

    pub(super) async fn see(&mut self) -> Seen {
        self.seen.recv().await.unwrap()
    }

    /// The next so many requests, each by its connection and stream.
    pub(super) async fn requests(&mut self, count: usize) -> Vec<(usize, u32)> {
        let mut requests = Vec::new();
        while requests.len() < count {
            if let Seen::Request { connection, stream } = self.see().await {
                requests.push((connection, stream));
            }
        }
        requests
    }

    /// Waits until it sees this, and forgets all before.
    pub(super) async fn until(&mut self, awaited: Seen) {
        while self.see().await != awaited {}
    }

    /// TLS handshakes so far.
    pub(super) fn handshakes(&mut self) -> usize {
        while let Ok(connection) = self.opened.try_recv() {
            self.connections.push(connection);
        }
        self.connections.len()
    }

    /// Writes frames, and returns once they are in the client's socket.
    pub(super) fn write(&mut self, connection: usize, frames: Vec<u8>) {
        self.handshakes();
        let (done, wrote) = blocking::channel();
        self.connections[connection].send(Order::Write(frames, done)).ok().unwrap();
        wrote.recv().unwrap();
    }

    /// Returns what it has seen already.
    pub(super) fn try_see(&mut self) -> Option<Seen> {
        self.seen.try_recv().ok()
    }

    /// Like [`RawHttp2::write`], but waits for nothing, and the connection may have ended.
    pub(super) fn try_write(&mut self, connection: usize, frames: Vec<u8>) {
        self.handshakes();
        if let Some(connection) = self.connections.get(connection) {
            let _ = connection.send(Order::Write(frames, blocking::channel().0));
        }
    }

    /// Like [`RawHttp2::close`], but the connection may have ended.
    pub(super) fn try_close(&mut self, connection: usize) {
        self.handshakes();
        if let Some(connection) = self.connections.get(connection) {
            let _ = connection.send(Order::Close);
        }
    }

    /// Answers with 200 and no body.
    pub(super) fn answer(&mut self, (connection, stream): (usize, u32)) {
        self.write(connection, ok(stream));
    }

    pub(super) fn close(&mut self, connection: usize) {
        self.handshakes();
        self.connections[connection].send(Order::Close).ok().unwrap();
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

/// The head of an answer whose body is still to come.
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
    saw: mpsc::UnboundedSender<Seen>,
    opens: mpsc::UnboundedSender<mpsc::UnboundedSender<Order>>,
) {
    let listener = TcpListener::from_std(listener).unwrap();
    let opened = std::rc::Rc::new(std::cell::Cell::new(0));
    let local = tokio::task::LocalSet::new();
    local
        .run_until(async {
            loop {
                let (socket, _) = tokio::select! {
                    () = saw.closed() => return, // the test is over
                    accepted = listener.accept() => accepted.unwrap(),
                };
                let (acceptor, saw, opens, mut gate) =
                    (acceptor.clone(), saw.clone(), opens.clone(), gate.clone());
                let opened = std::rc::Rc::clone(&opened);
                tokio::task::spawn_local(async move {
                    let _ = gate.wait_for(|lets_in| *lets_in).await;
                    let Ok(mut tls) = acceptor.accept(socket).await else { return };
                    let number = opened.replace(opened.get() + 1);
                    let (order, orders) = mpsc::unbounded_channel();
                    let _ = opens.send(order);
                    let _ = serve(&mut tls, streams, number, orders, &saw).await;
                    let _ = saw.send(Seen::Closed { connection: number });
                });
            }
        })
        .await;
}

async fn serve(
    tls: &mut TlsStream<TcpStream>,
    streams: u32,
    connection: usize,
    mut orders: mpsc::UnboundedReceiver<Order>,
    saw: &mpsc::UnboundedSender<Seen>,
) -> std::io::Result<()> {
    let mut preface = [0; 24];
    tls.read_exact(&mut preface).await?;
    tls.write_all(&settings(streams)).await?;
    tls.flush().await?;
    let mut read = Vec::new();
    loop {
        tokio::select! {
            order = orders.recv() => match order {
                Some(Order::Write(frames, done)) => {
                    tls.write_all(&frames).await?;
                    tls.flush().await?;
                    let _ = done.send(());
                }
                Some(Order::Close) | None => return Ok(()),
            },
            length = tls.read_buf(&mut read) => if length? == 0 { return Ok(()) },
        }
        while let Some((kind, flags, stream, payload)) = take_frame(&mut read) {
            let seen = match kind {
                HEADERS => Seen::Request { connection, stream },
                RST_STREAM => Seen::Reset { connection, stream },
                SETTINGS if flags & 1 == 1 => Seen::Acknowledged { connection },
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
