//! Hostile clients over HTTP/2, frame by frame. The gateway closes the connection, or the attack harms no other client.
//! Nothing of it reaches the upstream, and during the attack the hits of another client are served at once.

use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};

use crate::clients::hostile_clients_http1::while_under_attack;
use crate::harness::gateway::{TestGateway, clip_target, clips_target, set_hold, within_secs};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Frame types (RFC 9113 §6).
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

/// Frame flags.
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

/// Error codes (RFC 9113 §7).
const NO_ERROR: u32 = 0;
const PROTOCOL_ERROR: u32 = 1;
const FRAME_SIZE_ERROR: u32 = 6;
const CANCEL: u32 = 8;
const ENHANCE_YOUR_CALM: u32 = 11;

/// The first byte of a header block with `:status 200`: an index of HPACK's static table.
const STATUS_200: u8 = 0x88;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// Encodes a short field as an HPACK literal without indexing (RFC 7541 §6.2.2).
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

/// Returns the id of the n-th stream of a client.
fn stream(n: u32) -> u32 {
    2 * n + 1
}

/// The frames that the gateway sent on a connection.
#[derive(Debug, Default)]
struct Back {
    bytes: Vec<u8>,
    /// The number of bytes that are parsed.
    parsed: usize,
    /// The code of the last GOAWAY.
    code: Option<u32>,
    /// The codes of the RST_STREAM frames.
    resets: Vec<u32>,
    /// The first byte of the header block of each response.
    answers: Vec<u8>,
    pings: usize,
}

impl Back {
    /// Reads further frames; false at the end of the connection.
    async fn more(&mut self, read: &mut (impl tokio::io::AsyncRead + Unpin)) -> bool {
        let came = read.read_buf(&mut self.bytes).await.is_ok_and(|count| count > 0);
        while let Some((head, rest)) = self.bytes[self.parsed..].split_at_checked(9) {
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
            self.parsed += 9 + length;
        }
        came
    }
}

/// Sends the preface, settings, and the frames of `next` until it returns none or the gateway closes the connection.
/// Returns the frames of the gateway and the number of bytes sent.
async fn flood(gateway: &TestGateway, mut next: impl FnMut(u32) -> Option<Vec<u8>>) -> (Back, usize) {
    let (mut read, mut write) = TcpStream::connect(gateway.address).await.unwrap().into_split();
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
        // An orderly end, so that the gateway sends its last frames.
        let _ = write.write_all(&frame(GOAWAY, 0, 0, &[0; 8])).await;
        sent
    };
    tokio::join!(reading, writing)
}

/// The gateway's reaction to an invalid request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reaction {
    StreamReset,
    ConnectionClosed,
    /// A response with a status other than 200.
    Rejected,
}

#[tokio::test]
async fn an_invalid_request_is_reset_or_rejected_and_does_not_reach_the_upstream() {
    use Reaction::{ConnectionClosed, Rejected, StreamReset};
    let with = |more: &[Field<'static>]| [&[METHOD, SCHEME, PATH, HOST], more].concat();
    let path = |path: &'static [u8]| vec![METHOD, SCHEME, (":path", path), HOST];
    let rows: [(&str, Vec<Field>, Reaction); 37] = [
        ("capital letters", with(&[("X-Y", b"z")]), ConnectionClosed),
        ("a field of the connection's", with(&[("connection", b"close")]), StreamReset),
        ("chunks", with(&[("transfer-encoding", b"chunked")]), StreamReset),
        ("an upgrade", with(&[("upgrade", b"h2c")]), StreamReset),
        ("te other than trailers", with(&[("te", b"gzip")]), StreamReset),
        ("a CR in a value", with(&[("x", b"a\rb")]), ConnectionClosed),
        ("an LF in a value", with(&[("x", b"a\nb")]), ConnectionClosed),
        ("a field in a value", with(&[("x", b"a\r\nhost: b")]), ConnectionClosed),
        ("a NUL in a value", with(&[("x", b"a\0b")]), ConnectionClosed),
        ("a space in a name", with(&[("x y", b"a")]), ConnectionClosed),
        ("a colon in a name", with(&[("x:y", b"a")]), ConnectionClosed),
        ("a line's end in a name", with(&[("x\r\ny", b"a")]), ConnectionClosed),
        ("no name", with(&[("", b"a")]), ConnectionClosed),
        ("a path after fields", with(&[("x", b"a"), PATH]), StreamReset),
        ("two paths", with(&[(":path", b"/other")]), StreamReset),
        ("a status", with(&[(":status", b"200")]), StreamReset),
        ("an unknown pseudo-field", with(&[(":x", b"y")]), ConnectionClosed),
        ("no method", vec![SCHEME, PATH, HOST], StreamReset),
        ("no scheme", vec![METHOD, PATH, HOST], StreamReset),
        ("no path", vec![METHOD, SCHEME, HOST], StreamReset),
        ("an empty path", path(b""), StreamReset),
        ("a path without a slash", path(b"sim/echo"), StreamReset),
        ("a path with a space", path(b"/sim/echo HTTP/1.1"), StreamReset),
        ("a request in a path", path(b"/sim/echo HTTP/1.1\r\nhost: y\r\n\r\n"), StreamReset),
        ("a path that is a URL", path(b"http://other/sim/echo"), StreamReset),
        (
            "a method with a space",
            vec![(":method", b"GET /x HTTP/1.1"), SCHEME, PATH, HOST],
            ConnectionClosed,
        ),
        ("another scheme", vec![METHOD, (":scheme", b"ftp"), PATH, HOST], Rejected),
        ("an authority with a user", vec![METHOD, SCHEME, PATH, (":authority", b"y@x")], Rejected),
        ("an authority with a space", vec![METHOD, SCHEME, PATH, (":authority", b"x y")], StreamReset),
        ("another host", with(&[("host", b"y")]), Rejected),
        ("two hosts", with(&[("host", b"x"), ("host", b"x")]), Rejected),
        ("a host with a user", with(&[("host", b"y@x")]), Rejected),
        ("a length without a body", with(&[("content-length", b"5")]), StreamReset),
        ("two lengths", with(&[("content-length", b"0"), ("content-length", b"5")]), StreamReset),
        ("an invalid length", with(&[("content-length", b"+5")]), StreamReset),
        ("a tunnel", vec![(":method", b"CONNECT"), (":authority", b"x:443")], Rejected),
        (
            "a tunnel for a protocol",
            vec![(":method", b"CONNECT"), SCHEME, PATH, HOST, (":protocol", b"x")],
            StreamReset,
        ),
    ];
    let gateway = TestGateway::new().await;
    let mut count = 0;
    for (name, fields, expected) in rows {
        let mut once = Some(frame(HEADERS, END_HEADERS | END_STREAM, 1, &block(&fields)));
        let (back, _) = while_under_attack(&gateway, name, flood(&gateway, |_| once.take())).await;
        let reaction = match (&back.resets[..], &back.answers[..], back.code) {
            ([PROTOCOL_ERROR], [], Some(NO_ERROR)) => StreamReset,
            ([], [], Some(PROTOCOL_ERROR)) => ConnectionClosed,
            ([], [status], Some(NO_ERROR)) if *status != STATUS_200 => Rejected,
            _ => panic!("{name}: {back:?}"),
        };
        assert_eq!(reaction, expected, "{name}");
        assert_eq!(gateway.upstream_requests(), [clip_target("cached", "completed")], "{name}");
        count += 1;
    }
    assert_eq!(count, 37);
    let mut once = Some(frame(HEADERS, END_HEADERS | END_STREAM, 1, &block(&with(&[]))));
    let (back, _) = flood(&gateway, |_| once.take()).await;
    assert_eq!(back.answers, [STATUS_200], "a valid request");
}

type Frames = Box<dyn FnMut(u32) -> Option<Vec<u8>>>;

/// Returns `first`, and then `frames` `times` times.
fn repeated(times: u32, first: Vec<u8>, frames: Vec<u8>) -> Frames {
    Box::new(move |n| match n {
        0 => Some(first.clone()),
        _ => (n <= times).then(|| frames.clone()),
    })
}

#[tokio::test]
async fn a_flood_ends_its_connection_or_harms_no_other_client() {
    let wait = clip_target("a", "completed");
    let (once, batch) = (wait.clone(), wait.clone());
    let reset_at_once = move |n| [get(stream(n), &once), reset(stream(n))].concat();
    let begun = frame(HEADERS, 0, 1, &block(&[METHOD, SCHEME, PATH]));
    let upload = frame(HEADERS, END_HEADERS, 1, &block(&[(":method", b"POST"), SCHEME, PATH, HOST]));
    // A field of 4000 bytes in the dynamic table, and 10,000 references to it.
    let indexed = [&[0x40, 1, b'x', 0x7f, 0xa1, 0x1e][..], &[b'y'; 4000]].concat();
    let bomb = [&block(&[METHOD, SCHEME, PATH, HOST])[..], &indexed, &[0x80 | 62; 10_000]].concat();
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
        // CVE-2024-27316 and similar ones
        (
            "continuations",
            repeated(1_000_000, begun.clone(), frame(CONTINUATION, 0, 1, &literal("x", b"y"))),
            ENHANCE_YOUR_CALM,
        ),
        (
            "empty continuations",
            repeated(1_000_000, begun, frame(CONTINUATION, 0, 1, &[])),
            ENHANCE_YOUR_CALM,
        ),
        (
            "a head that unpacks to 40 MB",
            repeated(0, frame(HEADERS, END_HEADERS | END_STREAM, 1, &bomb), vec![]),
            ENHANCE_YOUR_CALM,
        ),
        // CVE-2019-9518
        ("empty data", repeated(2000, upload, frame(DATA, 0, 1, &[]).repeat(100)), ENHANCE_YOUR_CALM),
        // CVE-2019-9512, CVE-2019-9515; this client reads the replies
        ("pings", repeated(1000, vec![], frame(PING, 0, 0, &[0; 8]).repeat(100)), NO_ERROR),
        (
            "settings",
            repeated(1000, vec![], frame(SETTINGS, 0, 0, &[0, 4, 0, 1, 0, 0]).repeat(100)),
            NO_ERROR,
        ),
        (
            "window updates",
            repeated(1000, vec![], frame(WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1]).repeat(100)),
            NO_ERROR,
        ),
        ("priorities", repeated(1000, vec![], frame(PRIORITY, 0, 1, &[0, 0, 0, 0, 1]).repeat(100)), NO_ERROR),
        ("frames of no known kind", repeated(1000, vec![], frame(99, 0, 0, &[0; 8]).repeat(100)), NO_ERROR),
        (
            "a promise by a client",
            repeated(0, frame(PUSH_PROMISE, END_HEADERS, 1, &[0, 0, 0, 2]), vec![]),
            PROTOCOL_ERROR,
        ),
        ("data on no stream", repeated(0, frame(DATA, 0, 1, b"x"), vec![]), PROTOCOL_ERROR),
        ("a frame over the bound", repeated(0, frame(DATA, 0, 1, &[0; 20_000]), vec![]), FRAME_SIZE_ERROR),
    ];
    let mut count = 0;
    for (name, frames, code) in rows {
        let gateway =
            TestGateway::with(|config, options| set_hold(Duration::from_secs(60), config, options)).await;
        gateway.sim.set_status("a", "queued");
        let (back, sent) = while_under_attack(&gateway, name, flood(&gateway, frames)).await;
        assert_eq!(back.code, Some(code), "{name}: {sent} bytes");
        assert!(back.answers.is_empty(), "{name}: {:?}", back.answers);
        gateway.wait_until_parked(0).await;
        // Waits that began share one poll; the head of an upload is passed through.
        let requests = gateway.upstream_requests();
        assert!(
            requests.len() <= 2 && requests.iter().all(|target| !target.contains("/x")),
            "{name}: {requests:?}"
        );
        count += 1;
    }
    assert_eq!(count, 14);
}

#[tokio::test]
async fn a_wait_survives_999_streams_that_its_client_resets_at_once() {
    let gateway =
        TestGateway::with(|config, options| set_hold(Duration::from_secs(60), config, options)).await;
    gateway.sim.set_status("a", "queued");
    let (mut read, mut write) = TcpStream::connect(gateway.address).await.unwrap().into_split();
    let wait = get(stream(0), &clip_target("a", "completed"));
    write.write_all(&[PREFACE, &frame(SETTINGS, 0, 0, &[]), &wait].concat()).await.unwrap();
    gateway.wait_until_parked(1).await;
    let gone =
        (1..1000).flat_map(|n| [get(stream(n), &clip_target("a", "completed")), reset(stream(n))].concat());
    let gone: Vec<u8> = gone.chain(frame(PING, 0, 0, &[7; 8])).collect();
    let mut back = Back::default();
    let storm = async {
        write.write_all(&gone).await.unwrap();
        // The acknowledgement of the settings does not count, and hyper may send pings too.
        while back.pings == 0 {
            assert!(back.more(&mut read).await, "{:?}", back.code);
        }
    };
    within_secs(60, storm).await;
    gateway.sim.set_status("a", "completed");
    let answer = async {
        while back.answers.is_empty() {
            assert!(back.more(&mut read).await, "{:?}", back.code);
        }
    };
    within_secs(60, answer).await;
    assert_eq!((&back.answers[..], back.code), (&[STATUS_200][..], None));
}

#[tokio::test]
async fn streams_that_are_reset_while_they_wait_cost_few_polls() {
    let gateway =
        TestGateway::with(|config, options| set_hold(Duration::from_secs(60), config, options)).await;
    gateway.sim.set_status("a", "queued");
    let (mut read, mut write) = TcpStream::connect(gateway.address).await.unwrap().into_split();
    write.write_all(&[PREFACE, &frame(SETTINGS, 0, 0, &[])].concat()).await.unwrap();
    let attack = async {
        let mut back = Back::default();
        // Fewer at a time than the gateway's limit of resets.
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
    while_under_attack(&gateway, "streams reset while they wait", attack).await;
    gateway.wait_until_parked(0).await;
    let requests = gateway.upstream_requests();
    assert!((2..20).contains(&requests.len()), "{} polls, which linger", requests.len());
}

#[tokio::test]
async fn a_flooding_client_that_reads_nothing_is_disconnected_after_the_timeout() {
    let gateway = TestGateway::with_stall_timeout(Duration::from_secs(1)).await;
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let mut stream = socket.connect(gateway.address).await.unwrap();
    let attack = async {
        let pings = frame(PING, 0, 0, &[0; 8]).repeat(1000);
        let _ = stream.write_all(PREFACE).await;
        let _ = stream.write_all(&frame(SETTINGS, 0, 0, &[])).await;
        while stream.write_all(&pings).await.is_ok() {}
    };
    while_under_attack(&gateway, "pings with unread replies", within_secs(30, attack)).await;
}

/// Returns SETTINGS with this initial window for each stream.
fn windows_of(bytes: u32) -> Vec<u8> {
    frame(SETTINGS, 0, 0, &[&[0, 4][..], &bytes.to_be_bytes()].concat())
}

#[tokio::test]
async fn an_unread_stream_is_reset_and_a_wait_on_its_connection_is_answered() {
    let gateway = TestGateway::with_stall_timeout(Duration::from_secs(1)).await;
    gateway.sim.set_status("cached", "completed");
    gateway.sim.set_status("a", "queued");
    assert_eq!(gateway.get(&clip_target("cached", "completed"), &[]).await.status, 200);
    let (mut read, mut write) = TcpStream::connect(gateway.address).await.unwrap().into_split();
    let hits = (1..=20).flat_map(|n| get(stream(n), &clip_target("cached", "completed"))).collect();
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
    gateway.wait_until_parked(1).await;
    gateway.sim.set_status("a", "completed");
    let answer = async {
        while back.answers.len() < 21 {
            assert!(back.more(&mut read).await, "{back:?}");
        }
    };
    within_secs(60, answer).await;
    assert_eq!(back.code, None);
}

#[tokio::test]
async fn a_client_with_many_unread_responses_loses_its_connection_and_its_waits() {
    let gateway = TestGateway::with_stall_timeout(Duration::from_millis(500)).await;
    let ids = ["b", "c", "d", "e", "f", "g"];
    ids.iter().for_each(|id| gateway.sim.set_status(id, "completed"));
    gateway.sim.set_status("a", "queued");
    assert_eq!(gateway.get(&clips_target(&ids, "completed"), &[]).await.status, 200);
    let (mut read, mut write) = TcpStream::connect(gateway.address).await.unwrap().into_split();
    // With a window of one byte hyper takes a whole response from the gateway.
    let hits = (1..=60).flat_map(|n| get(stream(n), &clips_target(&ids, "completed"))).collect();
    let wait = get(stream(0), &clip_target("a", "completed"));
    write.write_all(&[PREFACE.to_vec(), windows_of(1), wait, hits].concat()).await.unwrap();
    let mut back = Back::default();
    within_secs(60, async { while back.more(&mut read).await {} }).await;
    assert_eq!(back.answers, [STATUS_200; 60]);
    gateway.wait_until_parked(0).await;
}
