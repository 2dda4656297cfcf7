use prometheus_client::registry::Registry;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::core::job::{JobId, JobSet, KeyDomain};
use crate::core::route::{Form, Goal};

/// Poller and the socket of its upstream, which the test writes byte by byte.
struct Fixture {
    listener: TcpListener,
    poller: Poller,
}

impl Fixture {
    async fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base_url = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
        let config = config::UpstreamConfig { base_url, ..config::Config::default().upstream };
        let client = Client::for_polls(&config).unwrap();
        Self {
            listener,
            poller: Poller::new(
                client,
                Arc::new(Route::suno().into()),
                &config,
                Metrics::new(&mut Registry::default()),
            ),
        }
    }

    async fn try_poll(&self) -> AttemptOutcome {
        let jobs = JobSet::new([JobId::new("a").unwrap()]);
        let spec = PollSpec { domain: KeyDomain([0; 16]), form: Form::Single, jobs, goal: Goal::Now };
        let trace = TraceContext::unrecorded();
        let credential = |fields: &mut HeaderMap| {
            fields.insert("authorization", HeaderValue::from_static("Bearer k"));
        };
        self.poller.run(&spec, CallCause::Wait, credential, &trace, async {}).await
    }

    /// Runs an attempt that is answered with these headers and a job. Returns its outcome and the request.
    async fn answered_with(&self, fields: &str) -> (AttemptOutcome, String) {
        let answering = async {
            let (mut socket, _) = self.listener.accept().await.unwrap();
            let request = read_head(&mut socket).await;
            let body = r#"{"id":"a","status":"queued"}"#;
            let length = body.len();
            let answer = format!("HTTP/1.1 200 OK\r\n{fields}Content-Length: {length}\r\n\r\n{body}");
            socket.write_all(answer.as_bytes()).await.unwrap();
            request
        };
        tokio::join!(self.try_poll(), answering)
    }

    /// Runs an attempt that is answered with this head.
    async fn answered(&self, head: &str) -> AttemptOutcome {
        let answering = async {
            let (mut socket, _) = self.listener.accept().await.unwrap();
            read_head(&mut socket).await;
            socket.write_all(head.as_bytes()).await.unwrap();
        };
        tokio::join!(self.try_poll(), answering).0
    }
}

/// hyper would resend it on a new connection, which may take seconds, after the hub was notified that the poll is
/// held.
#[tokio::test]
async fn the_client_does_not_resend_a_poll_from_a_dead_kept_connection() {
    let fixture = Fixture::new().await;
    let answering = async {
        let (mut socket, _) = fixture.listener.accept().await.unwrap();
        read_head(&mut socket).await;
        let body = r#"{"id":"a","status":"queued"}"#;
        let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        socket.write_all(answer.as_bytes()).await.unwrap();
        socket
    };
    let (outcome, socket) = tokio::join!(fixture.try_poll(), answering);
    assert!(matches!(outcome, AttemptOutcome::Landed(_)), "{outcome:?}");
    drop(socket);
    tokio::task::yield_now().await; // the client sees that the socket is readable, and has not read its end yet
    let outcome = tokio::select! {
        outcome = fixture.try_poll() => outcome,
        _ = fixture.listener.accept() => panic!("the poll was sent again"),
    };
    assert!(
        matches!(outcome, AttemptOutcome::Failed(Failure::Unreachable, RetryAdvice::Reconnect)),
        "{outcome:?}"
    );
}

async fn read_head(socket: &mut TcpStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(socket.read_u8().await.unwrap());
    }
    String::from_utf8(head).unwrap()
}

#[tokio::test]
async fn a_poll_requests_an_unencoded_body() {
    let (outcome, request) = Fixture::new().await.answered_with("Content-Encoding: identity\r\n").await;
    assert!(request.contains("accept-encoding: identity\r\n"), "{request}");
    let AttemptOutcome::Landed(PollLanding { outcome: PollOutcome::Jobs(states), .. }) = outcome else {
        panic!("{outcome:?}")
    };
    assert_eq!(states.len(), 1);
}

#[tokio::test]
async fn the_poller_never_splits_an_encoded_body() {
    for coding in ["gzip", "identity, br", "GZIP"] {
        let fixture = Fixture::new().await;
        let (outcome, _) = fixture.answered_with(&format!("Content-Encoding: {coding}\r\n")).await;
        assert!(
            matches!(outcome, AttemptOutcome::Failed(Failure::InvalidResponse(_), RetryAdvice::BackOff)),
            "{coding}: {outcome:?}"
        );
    }
}

#[tokio::test]
async fn the_poller_rejects_a_switch_of_protocols() {
    let head = "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n";
    let outcome = Fixture::new().await.answered(head).await;
    assert!(
        matches!(outcome, AttemptOutcome::Failed(Failure::InvalidResponse(_), RetryAdvice::BackOff)),
        "{outcome:?}"
    );
}
