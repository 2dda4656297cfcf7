//! Hostile clients over HTTP/2, frame by frame: the connection is closed, or it harms nobody but itself; nothing of it
//! reaches the upstream; and while it goes on another client's hit is served at once.

use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};

use crate::clients::hostile_clients_http1::while_under_attack;
use crate::harness::gateway::{TestGateway, clip_target, clips_target, set_hold, within_secs};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Frames' kinds, RFC 9113 §6.
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const PRIORITY: u8 = 2;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PUSH_PROMISE: u8 = 5;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;

/// Frames' flags.
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

/// Errors, RFC 9113 §7.
const NO_ERROR: u32 = 0;
const PROTOCOL_ERROR: u32 = 1;
const FRAME_SIZE_ERROR: u32 = 6;
const CANCEL: u32 = 8;
const ENHANCE_YOUR_CALM: u32 = 11;

/// How a block begins that says `:status 200`, from HPACK's static table.
const STATUS_200: u8 = 0x88;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// A field as HPACK writes it that keeps nothing (RFC 7541 §6.2.2); both texts are short.
fn literal(name: &str, value: &[u8]) -> Vec<u8> {
    let text = |text: &[u8]| {
        let length = match u8::try_from(text.len()).unwrap() {
            short @ ..127 => vec![short],
            long => vec![127, long - 127],
        };
        [&length, text].concat()
    };
    [&[0][..], &text(name.as_bytes()), &text(value)].concat()
}

type Field<'a> = (&'a str, &'a [u8]);

fn block(fields: &[Field]) -> Vec<u8> {
    fields.iter().flat_map(|(name, value)| literal(name, value)).collect()
}

const METHOD: Field = (":method", b"GET");
const SCHEME: Field = (":scheme", b"http");
const PATH: Field = (":path", b"/sim/echo");
const HOST: Field = (":authority", b"x");

/// A GET with a key.
fn get(stream: u32, target: &str) -> Vec<u8> {
    let fields = [METHOD, SCHEME, (":path", target.as_bytes()), HOST, ("authorization", b"Bearer demo")];
    frame(HEADERS, END_HEADERS | END_STREAM, stream, &block(&fields))
}

fn reset(stream: u32) -> Vec<u8> {
    frame(RST_STREAM, 0, stream, &CANCEL.to_be_bytes())
}

/// The n-th stream that a client opens.
fn stream(n: u32) -> u32 {
    2 * n + 1
}

/// What came back on a connection.
#[derive(Debug, Default)]
struct Back {
    bytes: Vec<u8>,
    /// So many of them have been read.
    read: usize,
    /// The last GOAWAY's code, if there was one.
    code: Option<u32>,
    /// The codes of streams that were reset.
    resets: Vec<u32>,
    /// The first byte of each answer's block.
    answers: Vec<u8>,
    pings: usize,
}

impl Back {
    /// Reads some more of it; false at its end.
    async fn more(&mut self, read: &mut (impl tokio::io::AsyncRead + Unpin)) -> bool {
        let came = read.read_buf(&mut self.bytes).await.is_ok_and(|count| count > 0);
        while let Some((head, rest)) = self.bytes[self.read..].split_at_checked(9) {
            let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
            let Some(payload) = rest.get(..length) else { break };
            let code = |at: usize| u32::from_be_bytes(payload[at..at + 4].try_into().unwrap());
            match head[3] {
                HEADERS => self.answers.push(payload[0]),
                RST_STREAM => self.resets.push(code(0)),
                GOAWAY => self.code = Some(code(4)),
                PING => self.pings += 1,
                _ => {}
            }
            self.read += 9 + length;
        }
        came
    }
}

/// Sends the preface, settings, and then what `next` makes, until it makes nothing more or the gateway has had enough.
/// What came back, and how many bytes went out.
async fn flood(stage: &TestGateway, mut next: impl FnMut(u32) -> Option<Vec<u8>>) -> (Back, usize) {
    let (mut read, mut write) = TcpStream::connect(stage.address).await.unwrap().into_split();
    let reading = async {
        let mut back = Back::default();
        while back.more(&mut read).await {}
        back
    };
    let writing = async {
        let mut sent = 0;
        let mut more = [PREFACE, &frame(SETTINGS, 0, 0, &[])].concat();
        for number in 0.. {
            if write.write_all(&more).await.is_err() {
                return sent;
            }
            sent += more.len();
            match next(number) {
                Some(frames) => more = frames,
                None => break,
            }
        }
        // A polite end, so that the other side may have its say.
        let _ = write.write_all(&frame(GOAWAY, 0, 0, &[0; 8])).await;
        sent
    };
    tokio::join!(reading, writing)
}

/// What a request that HTTP/2 does not allow, or the gateway does not, comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// Its stream is reset.
    Reset,
    /// Its connection is closed.
    Closed,
    /// It is answered, but not with 200.
    Refused,
}

#[tokio::test]
async fn a_request_that_is_none_is_reset_or_refused_and_never_reaches_the_upstream() {
    use Fate::{Closed, Refused, Reset};
    let with = |more: &[Field<'static>]| [&[METHOD, SCHEME, PATH, HOST], more].concat();
    let path = |path: &'static [u8]| vec![METHOD, SCHEME, (":path", path), HOST];
    let rows: [(&str, Vec<Field>, Fate); 37] = [
        ("capital letters", with(&[("X-Y", b"z")]), Closed),
        ("a field of the connection's", with(&[("connection", b"close")]), Reset),
        ("chunks", with(&[("transfer-encoding", b"chunked")]), Reset),
        ("an upgrade", with(&[("upgrade", b"h2c")]), Reset),
        ("te other than trailers", with(&[("te", b"gzip")]), Reset),
        ("a CR in a value", with(&[("x", b"a\rb")]), Closed),
        ("an LF in a value", with(&[("x", b"a\nb")]), Closed),
        ("a field in a value", with(&[("x", b"a\r\nhost: b")]), Closed),
        ("a NUL in a value", with(&[("x", b"a\0b")]), Closed),
        ("a space in a name", with(&[("x y", b"a")]), Closed),
        ("a colon in a name", with(&[("x:y", b"a")]), Closed),
        ("a line's end in a name", with(&[("x\r\ny", b"a")]), Closed),
        ("no name", with(&[("", b"a")]), Closed),
        ("a path after fields", with(&[("x", b"a"), PATH]), Reset),
        ("two paths", with(&[(":path", b"/other")]), Reset),
        ("a status", with(&[(":status", b"200")]), Reset),
        ("a pseudo-field that is none", with(&[(":x", b"y")]), Closed),
        ("no method", vec![SCHEME, PATH, HOST], Reset),
        ("no scheme", vec![METHOD, PATH, HOST], Reset),
        ("no path", vec![METHOD, SCHEME, HOST], Reset),
        ("an empty path", path(b""), Reset),
        ("a path without a slash", path(b"sim/echo"), Reset),
        ("a path with a space", path(b"/sim/echo HTTP/1.1"), Reset),
        ("a request in a path", path(b"/sim/echo HTTP/1.1\r\nhost: y\r\n\r\n"), Reset),
        ("a path that is a URL", path(b"http://other/sim/echo"), Reset),
        ("a method with a space", vec![(":method", b"GET /x HTTP/1.1"), SCHEME, PATH, HOST], Closed),
        ("another scheme", vec![METHOD, (":scheme", b"ftp"), PATH, HOST], Refused),
        ("an authority with a user", vec![METHOD, SCHEME, PATH, (":authority", b"y@x")], Refused),
        ("an authority with a space", vec![METHOD, SCHEME, PATH, (":authority", b"x y")], Reset),
        ("another host", with(&[("host", b"y")]), Refused),
        ("two hosts", with(&[("host", b"x"), ("host", b"x")]), Refused),
        ("a host with a user", with(&[("host", b"y@x")]), Refused),
        ("a length without a body", with(&[("content-length", b"5")]), Reset),
        ("two lengths", with(&[("content-length", b"0"), ("content-length", b"5")]), Reset),
        ("a length that is none", with(&[("content-length", b"+5")]), Reset),
        ("a tunnel", vec![(":method", b"CONNECT"), (":authority", b"x:443")], Refused),
        (
            "a tunnel for a protocol",
            vec![(":method", b"CONNECT"), SCHEME, PATH, HOST, (":protocol", b"x")],
            Reset,
        ),
    ];
    let stage = TestGateway::new().await;
    let mut count = 0;
    for (name, fields, fate) in rows {
        let mut once = Some(frame(HEADERS, END_HEADERS | END_STREAM, 1, &block(&fields)));
        let (back, _) = while_under_attack(&stage, name, flood(&stage, |_| once.take())).await;
        let came = match (&back.resets[..], &back.answers[..], back.code) {
            ([PROTOCOL_ERROR], [], Some(NO_ERROR)) => Reset,
            ([], [], Some(PROTOCOL_ERROR)) => Closed,
            ([], [status], Some(NO_ERROR)) if *status != STATUS_200 => Refused,
            _ => panic!("{name}: {back:?}"),
        };
        assert_eq!(came, fate, "{name}");
        assert_eq!(stage.upstream_requests(), [clip_target("kept", "completed")], "{name}");
        count += 1;
    }
    assert_eq!(count, 37);
    let mut once = Some(frame(HEADERS, END_HEADERS | END_STREAM, 1, &block(&with(&[]))));
    let (back, _) = flood(&stage, |_| once.take()).await;
    assert_eq!(back.answers, [STATUS_200], "the same without a fault");
}

type Frames = Box<dyn FnMut(u32) -> Option<Vec<u8>>>;

/// The same frames so many times, the first time after others.
fn again(times: u32, first: Vec<u8>, frames: Vec<u8>) -> Frames {
    Box::new(move |n| match n {
        0 => Some(first.clone()),
        _ => (n <= times).then(|| frames.clone()),
    })
}

#[tokio::test]
async fn a_flood_is_answered_with_the_end_of_its_connection_or_harms_nobody() {
    let wait = clip_target("a", "completed");
    let (once, batch) = (wait.clone(), wait.clone());
    let reset_at_once = move |n| [get(stream(n), &once), reset(stream(n))].concat();
    let begun = frame(HEADERS, 0, 1, &block(&[METHOD, SCHEME, PATH]));
    let upload = frame(HEADERS, END_HEADERS, 1, &block(&[(":method", b"POST"), SCHEME, PATH, HOST]));
    // A field of 4000 bytes that is kept in the table, and 10,000 fields more that refer to it.
    let kept = [&[0x40, 1, b'x', 0x7f, 0xa1, 0x1e][..], &[b'y'; 4000]].concat();
    let bomb = [&block(&[METHOD, SCHEME, PATH, HOST])[..], &kept, &[0x80 | 62; 10_000]].concat();
    let rows: [(&str, Frames, u32); 14] = [
        // CVE-2023-44487
        (
            "streams reset at once",
            Box::new(move |n| {
                (n < 1000).then(|| (1000 * n..1000 * (n + 1)).flat_map(&reset_at_once).collect())
            }),
            ENHANCE_YOUR_CALM,
        ),
        (
            "more streams than allowed",
            Box::new(move |n| (n < 5000).then(|| get(stream(n), &batch))),
            ENHANCE_YOUR_CALM,
        ),
        // CVE-2024-27316 and its like
        (
            "continuations",
            again(1_000_000, begun.clone(), frame(CONTINUATION, 0, 1, &literal("x", b"y"))),
            ENHANCE_YOUR_CALM,
        ),
        ("empty continuations", again(1_000_000, begun, frame(CONTINUATION, 0, 1, &[])), ENHANCE_YOUR_CALM),
        (
            "a head that unpacks to 40 MB",
            again(0, frame(HEADERS, END_HEADERS | END_STREAM, 1, &bomb), vec![]),
            ENHANCE_YOUR_CALM,
        ),
        // CVE-2019-9518
        ("empty data", again(2000, upload, frame(DATA, 0, 1, &[]).repeat(100)), ENHANCE_YOUR_CALM),
        // CVE-2019-9512, CVE-2019-9515: their answers are read here
        ("pings", again(1000, vec![], frame(PING, 0, 0, &[0; 8]).repeat(100)), NO_ERROR),
        ("settings", again(1000, vec![], frame(SETTINGS, 0, 0, &[0, 4, 0, 1, 0, 0]).repeat(100)), NO_ERROR),
        (
            "window updates",
            again(1000, vec![], frame(WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1]).repeat(100)),
            NO_ERROR,
        ),
        ("priorities", again(1000, vec![], frame(PRIORITY, 0, 1, &[0, 0, 0, 0, 1]).repeat(100)), NO_ERROR),
        ("frames of no known kind", again(1000, vec![], frame(99, 0, 0, &[0; 8]).repeat(100)), NO_ERROR),
        (
            "a promise by a client",
            again(0, frame(PUSH_PROMISE, END_HEADERS, 1, &[0, 0, 0, 2]), vec![]),
            PROTOCOL_ERROR,
        ),
        ("data on no stream", again(0, frame(DATA, 0, 1, b"x"), vec![]), PROTOCOL_ERROR),
        ("a frame over the bound", again(0, frame(DATA, 0, 1, &[0; 20_000]), vec![]), FRAME_SIZE_ERROR),
    ];
    let mut count = 0;
    for (name, frames, code) in rows {
        let stage =
            TestGateway::with(|config, options| set_hold(Duration::from_secs(60), config, options)).await;
        stage.sim.set_status("a", "queued");
        let (back, sent) = while_under_attack(&stage, name, flood(&stage, frames)).await;
        assert_eq!(back.code, Some(code), "{name}: {sent} bytes");
        assert!(back.answers.is_empty(), "{name}: {:?}", back.answers);
        stage.wait_until_parked(0).await;
        // Waits that were begun share one poll; an upload's head goes through.
        let asked = stage.upstream_requests();
        assert!(asked.len() <= 2 && asked.iter().all(|target| !target.contains("/x")), "{name}: {asked:?}");
        count += 1;
    }
    assert_eq!(count, 14);
}

#[tokio::test]
async fn a_wait_outlives_999_streams_that_its_client_resets_before_they_were_looked_at() {
    let stage = TestGateway::with(|config, options| set_hold(Duration::from_secs(60), config, options)).await;
    stage.sim.set_status("a", "queued");
    let (mut read, mut write) = TcpStream::connect(stage.address).await.unwrap().into_split();
    let wait = get(stream(0), &clip_target("a", "completed"));
    write.write_all(&[PREFACE, &frame(SETTINGS, 0, 0, &[]), &wait].concat()).await.unwrap();
    stage.wait_until_parked(1).await;
    let gone =
        (1..1000).flat_map(|n| [get(stream(n), &clip_target("a", "completed")), reset(stream(n))].concat());
    let gone: Vec<u8> = gone.chain(frame(PING, 0, 0, &[7; 8])).collect();
    let mut back = Back::default();
    let storm = async {
        write.write_all(&gone).await.unwrap();
        // The answer to the settings is none to a ping, and hyper may ping too.
        while back.pings == 0 {
            assert!(back.more(&mut read).await, "{:?}", back.code);
        }
    };
    within_secs(60, storm).await;
    stage.sim.set_status("a", "completed");
    let answer = async {
        while back.answers.is_empty() {
            assert!(back.more(&mut read).await, "{:?}", back.code);
        }
    };
    within_secs(60, answer).await;
    assert_eq!((&back.answers[..], back.code), (&[STATUS_200][..], None));
}

#[tokio::test]
async fn streams_that_are_reset_once_they_are_served_cost_the_upstream_one_poll() {
    let stage = TestGateway::with(|config, options| set_hold(Duration::from_secs(60), config, options)).await;
    stage.sim.set_status("a", "queued");
    let (mut read, mut write) = TcpStream::connect(stage.address).await.unwrap().into_split();
    write.write_all(&[PREFACE, &frame(SETTINGS, 0, 0, &[])].concat()).await.unwrap();
    let attack = async {
        let mut back = Back::default();
        // Fewer at once than the gateway takes for an attack.
        for batch in 0..500 {
            let streams: Vec<u32> = (10 * batch..10 * batch + 10).map(stream).collect();
            let opened = streams.iter().flat_map(|&id| get(id, &clip_target("a", "completed")));
            let gone = streams.iter().flat_map(|&id| reset(id));
            let ping = |n: u8| frame(PING, 0, 0, &[n; 8]);
            for (frames, pings) in
                [(opened.collect::<Vec<u8>>(), 2 * batch + 1), (gone.collect(), 2 * batch + 2)]
            {
                write.write_all(&[frames, ping(0)].concat()).await.unwrap();
                while back.pings < pings as usize {
                    assert!(back.more(&mut read).await, "{:?}", back.code);
                }
            }
        }
    };
    while_under_attack(&stage, "streams reset when they are served", attack).await;
    stage.wait_until_parked(0).await;
    let asked = stage.upstream_requests();
    assert!((2..20).contains(&asked.len()), "a poll that lingers, or some: {}", asked.len());
}

#[tokio::test]
async fn who_floods_and_reads_nothing_is_gone_after_the_patience() {
    let stage = TestGateway::with_stall_timeout(Duration::from_secs(1)).await;
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let mut stream = socket.connect(stage.address).await.unwrap();
    let attack = async {
        let pings = frame(PING, 0, 0, &[0; 8]).repeat(1000);
        let _ = stream.write_all(PREFACE).await;
        let _ = stream.write_all(&frame(SETTINGS, 0, 0, &[])).await;
        while stream.write_all(&pings).await.is_ok() {}
    };
    while_under_attack(&stage, "pings whose answers nobody reads", within_secs(30, attack)).await;
}

/// Settings that give each stream a window of so many bytes for its answer.
fn windows_of(bytes: u32) -> Vec<u8> {
    frame(SETTINGS, 0, 0, &[&[0, 4][..], &bytes.to_be_bytes()].concat())
}

#[tokio::test]
async fn a_stream_whose_client_takes_nothing_is_reset_and_a_wait_beside_it_is_answered() {
    let stage = TestGateway::with_stall_timeout(Duration::from_secs(1)).await;
    stage.sim.set_status("kept", "completed");
    stage.sim.set_status("a", "queued");
    assert_eq!(stage.get(&clip_target("kept", "completed"), &[]).await.status, 200);
    let (mut read, mut write) = TcpStream::connect(stage.address).await.unwrap().into_split();
    let hits = (1..=20).flat_map(|n| get(stream(n), &clip_target("kept", "completed"))).collect();
    let wait = get(stream(0), &clip_target("a", "completed"));
    write.write_all(&[PREFACE.to_vec(), windows_of(0), wait, hits].concat()).await.unwrap();
    let mut back = Back::default();
    let resets = async {
        while back.resets.len() < 20 {
            assert!(back.more(&mut read).await, "{back:?}");
        }
    };
    within_secs(60, resets).await;
    assert_eq!((&back.resets[..], &back.answers[..]), (&[CANCEL; 20][..], &[STATUS_200; 20][..]));
    stage.wait_until_parked(1).await;
    stage.sim.set_status("a", "completed");
    let answer = async {
        while back.answers.len() < 21 {
            assert!(back.more(&mut read).await, "{back:?}");
        }
    };
    within_secs(60, answer).await;
    assert_eq!(back.code, None);
}

#[tokio::test]
async fn who_leaves_answers_lie_in_their_hundreds_loses_the_connection_whatever_it_waits_for() {
    let stage = TestGateway::with_stall_timeout(Duration::from_millis(500)).await;
    let ids = ["b", "c", "d", "e", "f", "g"];
    ids.iter().for_each(|id| stage.sim.set_status(id, "completed"));
    stage.sim.set_status("a", "queued");
    assert_eq!(stage.get(&clips_target(&ids, "completed"), &[]).await.status, 200);
    let (mut read, mut write) = TcpStream::connect(stage.address).await.unwrap().into_split();
    // A window of one byte takes a whole answer from hyper.
    let hits = (1..=60).flat_map(|n| get(stream(n), &clips_target(&ids, "completed"))).collect();
    let wait = get(stream(0), &clip_target("a", "completed"));
    write.write_all(&[PREFACE.to_vec(), windows_of(1), wait, hits].concat()).await.unwrap();
    let mut back = Back::default();
    within_secs(60, async { while back.more(&mut read).await {} }).await;
    assert_eq!(back.answers, [STATUS_200; 60]);
    stage.wait_until_parked(0).await;
}
