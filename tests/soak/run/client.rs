//! The clients' side of one request: it is sent over a real socket, its answer read whole and judged.
//!
//! It must never know more of the gateway than its address.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use clipgate::core::route::Route;
use clipgate::testing::clock;
use http::header::{AUTHORIZATION, CACHE_CONTROL, ETAG, IF_NONE_MATCH};
use http::{HeaderValue, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper_util::client::legacy::{self, connect::HttpConnector};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use serde_json::Value;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

use super::ask::{Ask, Errand, Key, Kind, Manner, Pass};
use super::clips::WORDS;
use super::counts::{Outcome, Tally, Wrong};
use super::oracle::{Answer, Oracle, wrong};

/// Shorter than the gateway's patience with a connection on which nothing is asked.
const IDLE: Duration = Duration::from_secs(4);
/// How long what is written late may still be: the machine's own delays are known by then.
pub(super) const SECOND_LOOK: Duration = Duration::from_secs(1);

/// So many that the requests given up on each are not taken for an attack.
const HTTP2_CONNECTIONS: usize = 32;

type Http = legacy::Client<HttpConnector, Full<Bytes>>;

/// All clients. Each request is one's own; connections are used again.
pub(crate) struct Clients {
    address: SocketAddr,
    route: Route,
    http1: Http,
    /// Each is a connection.
    http2: Vec<Http>,
    pub(super) oracle: Arc<Oracle>,
    pub(super) tally: Arc<Tally>,
}

impl Clients {
    pub(crate) fn new(address: SocketAddr, oracle: Arc<Oracle>, tally: Arc<Tally>) -> Self {
        let client = |is_http2| {
            let mut builder = legacy::Client::builder(TokioExecutor::new());
            builder.pool_timer(TokioTimer::new()).pool_idle_timeout(IDLE).http2_only(is_http2);
            let mut connector = HttpConnector::new();
            connector.set_nodelay(true);
            builder.build(connector)
        };
        let http2 = (0..HTTP2_CONNECTIONS).map(|_| client(true)).collect();
        Self { address, route: Route::suno(), http1: client(false), http2, oracle, tally }
    }

    /// Does one errand, and counts how it ended. Cancel safe: dropped, its client hangs up.
    pub(crate) async fn run(&self, errand: Errand, manner: Manner) {
        let kind = errand.kind();
        let work = async {
            match errand {
                Errand::Clips(ask) => self.ask(&ask, manner.is_http2).await,
                Errand::Follow(ask, seed) => self.follow(&ask, seed, manner.is_http2).await,
                Errand::Pass(pass) => self.pass(&pass, manner.is_http2).await,
            }
        };
        let ended = match manner.leaves {
            None => Some(work.await),
            Some(after) => tokio::time::timeout(after, work).await.ok(),
        };
        match ended {
            Some(Ok(outcome)) => self.tally.ended(kind, outcome),
            Some(Err(wrong)) => self.tally.wrong(wrong),
            None => self.tally.ended(kind, Outcome::Left),
        }
    }

    /// A client that knows no HTTP, or dies in the middle of a word.
    pub(crate) async fn be_rude(&self, bytes: &[u8], pause: Duration) {
        if let Ok(mut stream) = TcpStream::connect(self.address).await {
            let _ = stream.write_all(bytes).await;
            tokio::time::sleep(pause).await;
        }
    }

    async fn ask(&self, ask: &Ask, is_http2: bool) -> Result<Outcome, Wrong> {
        let mut answer = self.send(self.request(ask), is_http2, ask).await?;
        self.oracle.note(ask.key, &answer)?;
        if ask.kind == Kind::Conditional
            && answer.status == StatusCode::OK
            && let Some(etag) = answer.headers.get(ETAG).cloned()
        {
            self.look_again(ask, &answer).await?;
            let mut request = self.request(ask);
            request.headers_mut().insert(IF_NONE_MATCH, etag);
            answer = self.send(request, is_http2, ask).await?;
            self.oracle.note(ask.key, &answer)?;
        }
        self.look_again(ask, &answer).await
    }

    /// What looks late may be this machine's fault, of which all is known a moment later.
    async fn look_again(&self, ask: &Ask, answer: &Answer) -> Result<Outcome, Wrong> {
        match self.oracle.judge(ask, answer, &self.tally) {
            Ok(outcome) => Ok(outcome),
            Err(_) => {
                tokio::time::sleep(SECOND_LOOK).await;
                self.oracle.judge(ask, answer, &self.tally)
            }
        }
    }

    async fn send(&self, request: Request<Full<Bytes>>, is_http2: bool, ask: &Ask) -> Result<Answer, Wrong> {
        let (sent, limit) = (clock::now(), self.oracle.longest(ask.prefer) + Duration::from_secs(20));
        let story =
            |why: String| format!("{:?} by {:?} after {:?}: {why}", ask.kind, ask.key, sent.elapsed());
        match tokio::time::timeout(limit, self.whole(request, is_http2, sent)).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => wrong("no whole answer", story(chain(&*error))),
            Err(_) => wrong("no answer", story("the client gives up".to_owned())),
        }
    }

    async fn whole(
        &self,
        request: Request<Full<Bytes>>,
        is_http2: bool,
        sent: Instant,
    ) -> Result<Answer, Box<dyn std::error::Error + Send + Sync>> {
        let (head, body) = self.start(request, is_http2).await?.into_parts();
        let body = body.collect().await?.to_bytes();
        Ok(Answer { status: head.status, headers: head.headers, body, sent, got: clock::now() })
    }

    pub(super) async fn start(
        &self,
        request: Request<Full<Bytes>>,
        is_http2: bool,
    ) -> Result<Response<Incoming>, legacy::Error> {
        let number = fastrand::usize(..HTTP2_CONNECTIONS);
        let client = if is_http2 { &self.http2[number] } else { &self.http1 };
        client.request(request).await
    }

    pub(super) fn request(&self, ask: &Ask) -> Request<Full<Bytes>> {
        let Route { single_path, multi_path, single_param, multi_param, status_param, .. } = &self.route;
        let (path, param) = if ask.is_single {
            (single_path, single_param.clone())
        } else {
            (multi_path, format!("{multi_param}[]"))
        };
        let mut query = form_urlencoded::Serializer::new(String::new());
        for clip in &ask.clips {
            query.append_pair(&param, &clip.id);
        }
        if let Some(goal) = ask.goal {
            query.append_pair(status_param, WORDS[goal]);
        }
        let mut request = self.get(ask.key, &format!("{path}?{}", query.finish()));
        let control = match ask.kind {
            Kind::NoCache => Some("no-cache"),
            Kind::NoStore => Some("no-store"),
            Kind::OnlyIfCached => Some("only-if-cached"),
            _ => None,
        };
        let fields = request.headers_mut();
        if let Some(control) = control {
            fields.insert(CACHE_CONTROL, HeaderValue::from_static(control));
        }
        if let Some(wait) = ask.prefer {
            let wait = format!("wait={}", wait.as_secs());
            fields.insert("prefer", wait.parse().expect("digits are a value"));
        }
        request
    }

    fn get(&self, key: Key, target: &str) -> Request<Full<Bytes>> {
        Request::get(format!("http://{}{target}", self.address))
            .header(AUTHORIZATION, format!("Bearer {}", key.text()))
            .body(Full::default())
            .expect("targets here are written well")
    }

    /// Does one request that is passed through. The answer is the upstream's, unless a fault explains its failure.
    async fn pass(&self, pass: &Pass, is_http2: bool) -> Result<Outcome, Wrong> {
        let (key, target) = pass.target();
        let mut request = self.get(key, &target);
        if let Pass::Mirror(_, _, body) = pass {
            *request.method_mut() = http::Method::POST;
            *request.body_mut() = Full::new(body.clone());
        }
        let sent = clock::now();
        let limit = self.oracle.longest(None) * 2;
        let whole = tokio::time::timeout(limit, self.whole(request, is_http2, sent)).await;
        let explain = |story: String| match self.oracle.explain_passed(key, &target, sent, clock::now()) {
            Ok(cause) => {
                self.tally.explained(cause);
                Ok(Outcome::Failed)
            }
            Err(why) => wrong(why, story),
        };
        let answer = match whole {
            Ok(Ok(answer)) => answer,
            Ok(Err(error)) => return explain(format!("{}: {}", pass.name(), chain(&*error))),
            Err(_) => return explain(format!("{}: no answer", pass.name())),
        };
        self.oracle.note(key, &answer)?;
        match pass.is_right(&answer) {
            Some(outcome) => Ok(outcome),
            // An error, or as 200 a page in place of the answer.
            None => explain(pass.story(&answer)),
        }
    }
}

impl Errand {
    fn kind(&self) -> Kind {
        match self {
            Errand::Clips(ask) | Errand::Follow(ask, _) => ask.kind,
            Errand::Pass(pass) => pass.kind(),
        }
    }
}

impl Pass {
    fn kind(&self) -> Kind {
        match self {
            Pass::Unknown(_) => Kind::Unknown,
            Pass::Echo(..) => Kind::Echo,
            Pass::Mirror(..) => Kind::Mirror,
            Pass::Stream(..) => Kind::Stream,
        }
    }

    /// Who asks, and for what. Numbers tell requests apart.
    fn target(&self) -> (Key, String) {
        match self {
            Pass::Unknown(key) => {
                let Route { single_path, single_param, .. } = Route::suno();
                (*key, format!("{single_path}?{single_param}=nobody&status=queued"))
            }
            Pass::Echo(key, number) => (*key, format!("/sim/echo?n={number}")),
            Pass::Mirror(key, number, _) => (*key, format!("/sim/mirror?number={number}")),
            Pass::Stream(key, number, lines) => {
                (*key, format!("/sim/stream?n={lines}&every=20ms&number={number}"))
            }
        }
    }

    fn name(&self) -> &'static str {
        Kind::ALL.iter().find(|(kind, _)| *kind == self.kind()).map_or("", |(_, name)| name)
    }

    fn is_right(&self, answer: &Answer) -> Option<Outcome> {
        let Answer { status, body, .. } = answer;
        let has = |status_word: &str| answer.field("cache-status") == format!("clipgate; fwd={status_word}");
        let is_so = match self {
            Pass::Unknown(_) => return (*status == StatusCode::NOT_FOUND).then_some(Outcome::Refused),
            Pass::Echo(_, number) => {
                let seen: Option<Value> = serde_json::from_slice(body).ok();
                let target = format!("/sim/echo?n={number}");
                has("bypass") && seen.is_some_and(|seen| seen["target"] == target && seen["has_key"] == true)
            }
            Pass::Mirror(_, _, sent) => has("method") && body == sent,
            Pass::Stream(_, _, lines) => {
                let all: String = (0..*lines).map(|line| format!("{line}\n")).collect();
                has("bypass") && all.as_bytes() == body
            }
        };
        (*status == StatusCode::OK && is_so).then_some(Outcome::Passed)
    }

    fn story(&self, answer: &Answer) -> String {
        let text: String = String::from_utf8_lossy(&answer.body).chars().take(120).collect();
        let took = answer.got - answer.sent;
        format!("{}: {} after {took:?}, {}; {text}", self.name(), answer.status, answer.field("cache-status"))
    }
}

/// An error and all its causes.
pub(super) fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        text.extend([": ", &inner.to_string()]);
        source = inner.source();
    }
    text
}
