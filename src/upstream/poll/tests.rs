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

/// An idle connection that the peer has closed is not used, so the poll is sent once and its attempt succeeds.
#[tokio::test]
async fn a_poll_is_not_sent_on_a_kept_connection_that_the_peer_has_closed() {
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
    tokio::time::sleep(Duration::from_millis(20)).await; // until the end of the stream has arrived
    let (outcome, _) = fixture.answered_with("").await;
    assert!(matches!(outcome, AttemptOutcome::Landed(_)), "{outcome:?}");
}

/// The peer closes the connection after the request has arrived: the upstream may have begun to work.
#[tokio::test]
async fn the_client_does_not_resend_a_poll_whose_connection_ends() {
    let fixture = Fixture::new().await;
    let breaking = async {
        let (mut socket, _) = fixture.listener.accept().await.unwrap();
        read_head(&mut socket).await;
        drop(socket);
    };
    let attempt = async { tokio::join!(fixture.try_poll(), breaking).0 };
    let outcome = attempt.await;
    let again = tokio::time::timeout(Duration::from_millis(100), fixture.listener.accept()).await;
    assert!(again.is_err(), "the poll was sent again");
    assert!(
        matches!(outcome, AttemptOutcome::Failed(Failure::Unreachable, RetryAdvice::BackOff)),
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

#[tokio::test]
async fn a_body_over_the_limit_ends_the_poll() {
    let mut response = b"HTTP/1.1 200 OK\r\n\r\n".to_vec();
    response.resize(response.len() + MAX_RESPONSE + 1, b' ');
    let outcome = Fixture::new().await.answered(&String::from_utf8(response).unwrap()).await;
    assert!(matches!(outcome, AttemptOutcome::Failed(Failure::TooLarge, RetryAdvice::GiveUp)), "{outcome:?}");
}
