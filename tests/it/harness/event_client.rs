//! A client of event streams (server-sent events) that parses them line by line.

use bytes::Bytes;
use http::{Request, response};
use http_body_util::{BodyExt as _, Empty};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio_util::task::AbortOnDropHandle;

use crate::harness::gateway::{TestGateway, within_secs};

/// Seconds until a test fails. Longer than any step takes on a busy machine.
const TIMEOUT_SECS: u64 = 30;

/// The header that makes a wait an event stream.
pub(crate) const ACCEPT_EVENTS: (&str, &str) = ("accept", "text/event-stream");

/// An open event stream on its own connection. Dropping it disconnects.
pub(crate) struct EventClient {
    pub(crate) head: response::Parts,
    body: Incoming,
    unread: String,
    _connection: Option<AbortOnDropHandle<()>>,
}

/// One server-sent event.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Event {
    pub(crate) name: String,
    pub(crate) id: Option<String>,
    pub(crate) retry: Option<u64>,
    pub(crate) data: String,
}

impl EventClient {
    /// Opens a stream, by default with `Authorization: Bearer demo`.
    pub(crate) async fn open(gateway: &TestGateway, target: &str, fields: &[(&str, &str)]) -> Self {
        let socket = TcpStream::connect(gateway.address).await.unwrap();
        let (mut sender, connection) = http1::handshake(TokioIo::new(socket)).await.unwrap();
        let connection = AbortOnDropHandle::new(tokio::spawn(async { drop(connection.await) }));
        let request = request(target, fields);
        let answer = within_secs(TIMEOUT_SECS, sender.send_request(request)).await.unwrap();
        Self { _connection: Some(connection), ..Self::from_response(answer) }
    }

    /// Reads the stream from a response that has begun.
    pub(crate) fn from_response(answer: http::Response<Incoming>) -> Self {
        let (head, body) = answer.into_parts();
        Self { head, body, unread: String::new(), _connection: None }
    }

    pub(crate) fn field(&self, name: &str) -> &str {
        self.head.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    /// Reads another frame. Returns false at the end of the stream.
    async fn read(&mut self) -> bool {
        let Some(frame) = self.body.frame().await else { return false };
        let data = frame.unwrap().into_data().unwrap();
        self.unread.push_str(std::str::from_utf8(&data).unwrap());
        true
    }

    /// Returns the next line. `None` at the end.
    pub(crate) async fn line(&mut self) -> Option<String> {
        loop {
            if let Some((line, rest)) = self.unread.split_once('\n') {
                let line = line.to_owned();
                self.unread = rest.to_owned();
                return Some(line);
            }
            if !self.read().await {
                assert_eq!(self.unread, "", "the stream ends in the middle of a line");
                return None;
            }
        }
    }

    /// Returns the next event. `None` at the end.
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
        within_secs(TIMEOUT_SECS, next).await
    }

    /// Returns the next event, which must be a status event with this body.
    pub(crate) async fn expect_status(&mut self, body: &Bytes) -> Event {
        let event = self.next().await.expect("the stream has another event");
        assert_eq!((event.name.as_str(), event.data.as_bytes()), ("status", &body[..]));
        event
    }

    /// Reads to the end and returns the names of the events.
    pub(crate) async fn names(&mut self) -> Vec<String> {
        let mut names = Vec::new();
        while let Some(event) = self.next().await {
            names.push(event.name);
        }
        names
    }

    /// Reads to the end and returns the text.
    pub(crate) async fn read_to_end(mut self) -> String {
        within_secs(TIMEOUT_SECS, async { while self.read().await {} }).await;
        self.unread
    }
}

/// Returns a request for an event stream.
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
    assert!(!data.is_empty(), "clients ignore an event without data: {lines:?}");
    event.data = data.join("\n");
    event
}
