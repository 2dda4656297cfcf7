//! The upstream of the comparison: holds polls until a clip reaches its status, and counts them.
//!
//! ```text
//! GET  /v2/generate/audio/suno-ai/clip?clip_id=ID&status=WORD   a long-poll, as the real API answers it
//! PUT  /kit/clips/ID/WORD                                       sets the status, and answers the polls
//! GET  /kit/clips/ID                                            {"calls":1,"max_open":1,"answered_ns":…}
//! GET  /plain                                                   2.5 kB, at once
//! GET  /bytes/N                                                 N bytes, streamed
//! ```
//!
//! A clip without a PUT is completed. `answered_ns` is the time of day at which the first poll after the last PUT was
//! answered: clients on the same machine measure from there.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use clap::Parser;
use http_body_util::channel::Channel;
use http_body_util::{Either, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio::task::LocalSet;

/// An upstream that holds polls
#[derive(Debug, Parser)]
struct Args {
    #[arg(long, default_value = "127.0.0.1:9000")]
    listen: SocketAddr,
    /// Seconds for which a poll is held
    #[arg(long, default_value_t = 120.0)]
    hold: f64,
    /// Status of the response to a poll whose clip did not reach its status in time
    #[arg(long, default_value_t = 200)]
    unreached: u16,
}

const LADDER: [&str; 5] = ["submitted", "queued", "streaming", "completed", "error"];
const DONE: usize = 3;

/// Size of the body of a clip, in bytes.
const BODY_BYTES: usize = 2500;

struct Clip {
    rung: watch::Sender<usize>,
    calls: Cell<u64>,
    open: Cell<u64>,
    max_open: Cell<u64>,
    answered_ns: Cell<u128>,
}

struct Upstream {
    hold: Duration,
    unreached: StatusCode,
    clips: RefCell<HashMap<String, Rc<Clip>>>,
}

type Body = Either<Full<Bytes>, Channel<Bytes>>;

fn main() -> std::io::Result<()> {
    let args = Args::parse();
    let upstream = Rc::new(Upstream {
        hold: Duration::from_secs_f64(args.hold),
        unreached: StatusCode::from_u16(args.unreached).expect("a status"),
        clips: RefCell::default(),
    });
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    LocalSet::new().block_on(&runtime, async {
        let listener = listen(args.listen)?;
        loop {
            let (stream, _) = listener.accept().await?;
            tokio::task::spawn_local(connection(Rc::clone(&upstream), stream));
        }
    })
}

fn listen(address: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(4096)
}

async fn connection(upstream: Rc<Upstream>, stream: TcpStream) {
    // Both fail only if the client has disconnected.
    let _ = stream.set_nodelay(true);
    let service = service_fn(|request| {
        let upstream = Rc::clone(&upstream);
        async move { Ok::<_, Infallible>(upstream.answer(request).await) }
    });
    let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
}

impl Upstream {
    async fn answer(&self, request: Request<Incoming>) -> Response<Body> {
        let path = request.uri().path();
        if let Some(clip) = path.strip_prefix("/kit/clips/") {
            return match (request.method(), clip.split_once('/')) {
                (&Method::PUT, Some((id, word))) => self.put(id, word),
                (_, _) => self.counts(clip),
            };
        }
        if let Some(length) = path.strip_prefix("/bytes/").and_then(|length| length.parse().ok()) {
            return stream(length);
        }
        if path == "/plain" {
            return json(StatusCode::OK, body("plain", DONE));
        }
        let (id, goal) = parse(request.uri().query().unwrap_or_default());
        // Not kept while the poll is held.
        drop(request);
        self.poll(&id, goal).await
    }

    async fn poll(&self, id: &str, goal: usize) -> Response<Body> {
        let Some(clip) = self.clips.borrow().get(id).cloned() else {
            return json(StatusCode::OK, body(id, DONE));
        };
        let open = Open::new(&clip);
        let mut rung = clip.rung.subscribe();
        let reached = tokio::time::timeout(self.hold, rung.wait_for(|rung| *rung >= goal)).await.is_ok();
        drop(open);
        if clip.answered_ns.get() == 0 {
            clip.answered_ns.set(now_ns());
        }
        let rung = *clip.rung.borrow();
        json(if reached { StatusCode::OK } else { self.unreached }, body(id, rung))
    }

    fn put(&self, id: &str, word: &str) -> Response<Body> {
        let rung = LADDER.iter().position(|rung| *rung == word).expect("a word of the ladder");
        let mut clips = self.clips.borrow_mut();
        let clip = clips.entry(id.to_owned()).or_insert_with(|| {
            Rc::new(Clip {
                rung: watch::Sender::new(rung),
                calls: Cell::new(0),
                open: Cell::new(0),
                max_open: Cell::new(0),
                answered_ns: Cell::new(0),
            })
        });
        clip.answered_ns.set(0);
        clip.rung.send_replace(rung);
        json(StatusCode::OK, "{}".to_owned())
    }

    fn counts(&self, id: &str) -> Response<Body> {
        let clips = self.clips.borrow();
        let Some(clip) = clips.get(id) else { return json(StatusCode::NOT_FOUND, "{}".to_owned()) };
        let counts = serde_json::json!({
            "calls": clip.calls.get(),
            "max_open": clip.max_open.get(),
            "answered_ns": u64::try_from(clip.answered_ns.get()).expect("until the year 2554"),
        });
        json(StatusCode::OK, counts.to_string())
    }
}

/// Counts an open poll, until dropped. Hyper drops it too when the client disconnects.
struct Open<'a>(&'a Clip);

impl<'a> Open<'a> {
    fn new(clip: &'a Clip) -> Self {
        clip.calls.set(clip.calls.get() + 1);
        clip.open.set(clip.open.get() + 1);
        clip.max_open.set(clip.max_open.get().max(clip.open.get()));
        Self(clip)
    }
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.0.open.set(self.0.open.get() - 1);
    }
}

/// Returns the clip's id, and the requested rung, by default the lowest.
fn parse(query: &str) -> (String, usize) {
    let (mut id, mut goal) = (String::new(), 0);
    for (name, value) in query.split('&').filter_map(|pair| pair.split_once('=')) {
        match name {
            "clip_id" => value.clone_into(&mut id),
            "status" => goal = LADDER.iter().position(|rung| *rung == value).unwrap_or(0),
            _ => {}
        }
    }
    (id, goal)
}

fn body(id: &str, rung: usize) -> String {
    let word = LADDER[rung];
    let mut text = format!(
        r#"{{"id":"{id}","status":"{word}","title":"Night drive","audio_url":"https://cdn.test/{id}.mp3","prompt":""#
    );
    while text.len() < BODY_BYTES - 2 {
        text.push_str("Headlights paint the empty road. ");
    }
    text.truncate(BODY_BYTES - 2);
    text.push_str("\"}");
    text
}

fn json(status: StatusCode, text: String) -> Response<Body> {
    let mut response = Response::new(Either::Left(Full::new(Bytes::from(text))));
    *response.status_mut() = status;
    let kind = hyper::header::HeaderValue::from_static("application/json; charset=utf-8");
    response.headers_mut().insert(hyper::header::CONTENT_TYPE, kind);
    response
}

/// Returns a body of this length, which is produced as the client reads it.
fn stream(length: usize) -> Response<Body> {
    const CHUNK: usize = 64 << 10;
    let (mut sender, body) = Channel::new(1);
    tokio::task::spawn_local(async move {
        let piece = Bytes::from(vec![b'x'; CHUNK]);
        let mut left = length;
        while left > 0 {
            let size = left.min(CHUNK);
            if sender.send_data(piece.slice(..size)).await.is_err() {
                return;
            }
            left -= size;
        }
    });
    let mut response = Response::new(Either::Right(body));
    response.headers_mut().insert(hyper::header::CONTENT_LENGTH, length.into());
    response
}

fn now_ns() -> u128 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_nanos())
}
