//! A client of event streams that takes them apart line by line.

use bytes::Bytes;
use http::{Request, response};
use http_body_util::{BodyExt as _, Empty};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio_util::task::AbortOnDropHandle;

use crate::harness::gateway::{TestGateway, within_secs};

/// Nothing here takes so long, on however busy a machine.
const PATIENCE: u64 = 30;

/// What makes a wait a stream.
pub(crate) const ACCEPT_EVENTS: (&str, &str) = ("accept", "text/event-stream");

/// A stream that is being read, on a connection of its own. Dropping it hangs up.
pub(crate) struct EventClient {
    pub(crate) head: response::Parts,
    body: Incoming,
    unread: String,
    _connection: Option<AbortOnDropHandle<()>>,
}

/// One event.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Event {
    pub(crate) name: String,
    pub(crate) id: Option<String>,
    pub(crate) retry: Option<u64>,
    pub(crate) data: String,
}

impl EventClient {
    /// Opens one, with `Authorization: Bearer demo` if no other is given.
    pub(crate) async fn open(stage: &TestGateway, target: &str, fields: &[(&str, &str)]) -> Self {
        let socket = TcpStream::connect(stage.address).await.unwrap();
        let (mut sender, connection) = http1::handshake(TokioIo::new(socket)).await.unwrap();
        let connection = AbortOnDropHandle::new(tokio::spawn(async { drop(connection.await) }));
        let request = request(target, fields);
        let answer = within_secs(PATIENCE, sender.send_request(request)).await.unwrap();
        Self { _connection: Some(connection), ..Self::from_response(answer) }
    }

    /// The one that this answer is.
    pub(crate) fn from_response(answer: http::Response<Incoming>) -> Self {
        let (head, body) = answer.into_parts();
        Self { head, body, unread: String::new(), _connection: None }
    }

    pub(crate) fn field(&self, name: &str) -> &str {
        self.head.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    /// More of it; false at its end.
    async fn read(&mut self) -> bool {
        let Some(frame) = self.body.frame().await else { return false };
        let data = frame.unwrap().into_data().unwrap();
        self.unread.push_str(std::str::from_utf8(&data).unwrap());
        true
    }

    /// The next line; `None` at the end.
    pub(crate) async fn line(&mut self) -> Option<String> {
        loop {
            if let Some((line, rest)) = self.unread.split_once('\n') {
                let line = line.to_owned();
                self.unread = rest.to_owned();
                return Some(line);
            }
            if !self.read().await {
                assert_eq!(self.unread, "", "it breaks off");
                return None;
            }
        }
    }

    /// The next event; `None` at the end.
    pub(crate) async fn next(&mut self) -> Option<Event> {
        let next = async {
            let mut lines = Vec::new();
            loop {
                match self.line().await?.as_str() {
                    "" => return Some(parse(&lines)),
                    line => lines.push(line.to_owned()),
                }
            }
        };
        within_secs(PATIENCE, next).await
    }

    /// The next event, which tells this state.
    pub(crate) async fn expect_status(&mut self, body: &Bytes) -> Event {
        let event = self.next().await.expect("it goes on");
        assert_eq!((event.name.as_str(), event.data.as_bytes()), ("status", &body[..]));
        event
    }

    /// All events to the end, by name.
    pub(crate) async fn names(&mut self) -> Vec<String> {
        let mut names = Vec::new();
        while let Some(event) = self.next().await {
            names.push(event.name);
        }
        names
    }

    /// All the bytes to the end.
    pub(crate) async fn read_to_end(mut self) -> String {
        within_secs(PATIENCE, async { while self.read().await {} }).await;
        self.unread
    }
}

/// A request for a stream.
pub(crate) fn request(target: &str, fields: &[(&str, &str)]) -> Request<Empty<Bytes>> {
    let mut request = Request::get(target);
    let given = |name: &str| fields.iter().any(|(given, _)| *given == name);
    let defaults = [ACCEPT_EVENTS, ("authorization", "Bearer demo"), ("host", "gw.example")];
    for (name, value) in defaults.iter().filter(|(name, _)| !given(name)).chain(fields) {
        request = request.header(*name, *value);
    }
    request.body(Empty::new()).unwrap()
}

fn parse(lines: &[String]) -> Event {
    let mut event = Event::default();
    let mut data = Vec::new();
    for line in lines {
        match line.split_once(": ").unwrap_or((line, "")) {
            ("event", name) => event.name = name.to_owned(),
            ("id", id) => event.id = Some(id.to_owned()),
            ("retry", pause) => event.retry = Some(pause.parse().unwrap()),
            ("data", line) => data.push(line),
            (other, _) => assert_eq!(other, ":", "{lines:?}"),
        }
    }
    assert!(!data.is_empty(), "no client is told an event without data: {lines:?}");
    event.data = data.join("\n");
    event
}
