//! Random sequences of actions of peers and clients, each of which HTTP permits at any moment.

use std::collections::BTreeMap;

use fastrand::Rng;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::{AbortHandle, JoinSet};

use super::connections::raw_upstream;
use super::raw_http2::{Http2Event, RawHttp2, data, go_away, head, ok, refuse, settings};
use super::*;

/// An upstream, and the streams that it has not answered.
struct RandomPeer {
    upstream: RawHttp2,
    open: Vec<(usize, u32)>,
    last: BTreeMap<usize, u32>,
}

impl RandomPeer {
    fn look(&mut self) {
        while let Some(seen) = self.upstream.try_event() {
            self.note(seen);
        }
    }

    fn note(&mut self, seen: Http2Event) {
        match seen {
            Http2Event::Request { connection, stream } => {
                self.open.push((connection, stream));
                self.last.insert(connection, stream);
            }
            Http2Event::Reset { connection, stream } => {
                self.open.retain(|open| *open != (connection, stream))
            }
            Http2Event::Closed { connection } => {
                self.open.retain(|open| open.0 != connection);
                self.last.remove(&connection);
            }
            Http2Event::Acknowledged { .. } => {}
        }
    }

    fn act(&mut self, rng: &mut Rng) {
        self.look();
        let some = (!self.open.is_empty()).then(|| rng.usize(..self.open.len()));
        let connection = self.last.keys().nth(rng.usize(..self.last.len().max(1))).copied();
        match (rng.u32(..12), some, connection) {
            (0..=4, Some(some), _) => {
                let (connection, stream) = self.open.swap_remove(some);
                self.upstream.try_write(connection, ok(stream));
            }
            (5..=6, Some(some), _) => {
                let (connection, stream) = self.open[some];
                self.upstream.try_write(connection, [head(stream), data(stream, b"some")].concat());
                self.open.swap_remove(some);
            }
            (7, Some(some), _) => {
                let (connection, stream) = self.open.swap_remove(some);
                self.upstream.try_write(connection, refuse(stream));
            }
            (8..=9, _, Some(connection)) => {
                self.upstream.try_write(connection, settings(rng.u32(0..6)));
            }
            (10, _, Some(connection)) => {
                let last = self.last.get(&connection).copied().unwrap_or_default();
                let last = if rng.bool() { last } else { last.saturating_sub(2) };
                self.upstream.try_write(connection, go_away(last));
            }
            (11, _, Some(connection)) => self.upstream.try_close(connection),
            _ => {}
        }
    }
}

async fn run(seed: u64) {
    let mut rng = Rng::with_seed(seed);
    let age = [0, 20, 300_000][rng.usize(..3)];
    let (upstream, client, polls) =
        raw_upstream(rng.u32(1..5), |config| config.connection_max_age = Duration::from_millis(age));
    let mut peer = RandomPeer { upstream, open: Vec::new(), last: BTreeMap::new() };
    let mut sent = JoinSet::new();
    let mut handles: Vec<AbortHandle> = Vec::new();
    for _ in 0..300 {
        match rng.u32(..10) {
            0..=4 => {
                let client = if rng.bool() { client.clone() } else { polls.clone() };
                let is_read = rng.bool();
                handles.push(sent.spawn(async move {
                    if let Ok(answer) = client.send(get(&client, "/")).await
                        && is_read
                    {
                        let mut body = answer.into_body();
                        let _ = body.frame().await;
                    }
                }));
            }
            5 if !handles.is_empty() => handles.swap_remove(rng.usize(..handles.len())).abort(),
            _ => peer.act(&mut rng),
        }
        for _ in 0..rng.u32(..20) {
            tokio::task::yield_now().await;
        }
        while sent.try_join_next().is_some() {}
    }
    let end = async {
        // Raises all limits, so that every request is answered.
        let mut raised = 0;
        while !sent.is_empty() {
            while raised < peer.upstream.handshakes() {
                peer.upstream.try_write(raised, settings(100));
                raised += 1;
            }
            for (connection, stream) in std::mem::take(&mut peer.open) {
                peer.upstream.try_write(connection, ok(stream));
            }
            tokio::select! {
                _ = sent.join_next() => {}
                seen = peer.upstream.event() => peer.note(seen),
            }
        }
        while client.pool.slots_taken() + polls.pool.slots_taken() > 0 {
            tokio::task::yield_now().await;
        }
    };
    let has_ended = tokio::time::timeout(Duration::from_secs(8), end).await.is_ok();
    let state = |client: &Client| (client.pool.waiting(), client.pool.slots_taken(), client.pool.usable());
    assert!(has_ended, "seed {seed}: {:?} {:?} {} left", state(&client), state(&polls), sent.len());
    assert_eq!((client.pool.waiting(), polls.pool.waiting()), (0, 0), "seed {seed}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn under_random_actions_no_request_waits_for_ever_and_no_slot_is_lost() {
    for _ in 0..8 {
        run(fastrand::u64(..)).await;
    }
}

/// Answers each request with its target. Sometimes closes early, or sends too much.
async fn serve_http1(mut socket: TcpStream, mut rng: Rng) -> std::io::Result<()> {
    let mut read = Vec::new();
    loop {
        while !read.ends_with(b"\r\n\r\n") {
            if socket.read_buf(&mut read).await? == 0 {
                return Ok(());
            }
        }
        let target = String::from_utf8(read.clone()).unwrap().split(' ').nth(1).unwrap().to_owned();
        read.clear();
        for _ in 0..rng.u32(..30) {
            tokio::task::yield_now().await;
        }
        let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{target}", target.len());
        match rng.u32(..20) {
            0 => return Ok(()),
            1 => return socket.write_all(&answer.as_bytes()[..rng.usize(..answer.len())]).await,
            2 => return socket.write_all(answer.as_bytes()).await,
            3 => socket.write_all(answer.repeat(2).as_bytes()).await?,
            4 => {
                socket.write_all(b"HTTP/1.1 103 Early Hints\r\n\r\n").await?;
                socket.write_all(answer.as_bytes()).await?;
            }
            5..=9 => {
                let (first, rest) = answer.as_bytes().split_at(rng.usize(1..answer.len()));
                socket.write_all(first).await?;
                tokio::task::yield_now().await;
                socket.write_all(rest).await?;
            }
            _ => socket.write_all(answer.as_bytes()).await?,
        }
    }
}

async fn run_http1(seed: u64) {
    let mut rng = Rng::with_seed(seed);
    let (listener, address) = listen().await;
    let mut servers = rng.fork();
    let serving = tokio::spawn(async move {
        let mut served = JoinSet::new();
        loop {
            let (socket, _) = listener.accept().await.unwrap();
            served.spawn(serve_http1(socket, servers.fork()));
        }
    });
    let mut config = config(&format!("http://{address}"));
    config.connection_max_age = Duration::from_millis([0, 20, 300_000][rng.usize(..3)]);
    let client = Client::new(&config).unwrap();
    let (mut sent, mut handles) = (JoinSet::new(), Vec::<AbortHandle>::new());
    for number in 0..500 {
        if rng.u32(..6) == 0 && !handles.is_empty() {
            handles.swap_remove(rng.usize(..handles.len())).abort();
        } else {
            let (client, is_read) = (client.clone(), rng.u32(..4) > 0);
            handles.push(sent.spawn(async move {
                let target = format!("/{number}");
                let uri = client.uri(&target.parse().unwrap()).unwrap();
                let request = Request::get(uri).body(Body::empty()).unwrap();
                if let Ok(answer) = client.send(request).await
                    && is_read
                    && let Ok(body) = answer.into_body().collect().await
                {
                    let body = String::from_utf8(body.to_bytes().to_vec()).unwrap();
                    assert_eq!(body, target);
                }
            }));
        }
        for _ in 0..rng.u32(..20) {
            tokio::task::yield_now().await;
        }
        while let Some(ended) = sent.try_join_next() {
            assert!(
                ended.as_ref().map_or_else(|error| error.is_cancelled(), |()| true),
                "seed {seed}: {ended:?}"
            );
        }
    }
    let end = async {
        while let Some(ended) = sent.join_next().await {
            assert!(
                ended.as_ref().map_or_else(|error| error.is_cancelled(), |()| true),
                "seed {seed}: {ended:?}"
            );
        }
    };
    let has_ended = tokio::time::timeout(Duration::from_secs(8), end).await.is_ok();
    assert!(has_ended && client.pool.waiting() == 0, "seed {seed}: {} left", sent.len());
    serving.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_http_1_no_request_gets_the_response_of_another_or_waits_for_ever() {
    for _ in 0..8 {
        run_http1(fastrand::u64(..)).await;
    }
}
