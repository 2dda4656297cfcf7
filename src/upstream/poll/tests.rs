use prometheus_client::registry::Registry;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::core::job::{JobId, JobSet, KeyDomain};
use crate::core::route::{Form, Goal};

/// An upstream played by the test, byte for byte, and who polls it.
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
                Arc::new(Route::suno()),
                &config,
                Metrics::new(&mut Registry::default()),
            ),
        }
    }

    async fn try_poll(&self) -> AttemptOutcome {
        let jobs = JobSet::new([JobId::new("a").unwrap()]);
        let spec = PollSpec { domain: KeyDomain([0; 16]), form: Form::Single, jobs, goal: Goal::Now };
        let trace = TraceContext::unrecorded();
        self.poller.run(&spec, &HeaderValue::from_static("Bearer k"), &trace, async {}).await
    }

    /// One try that is answered with these fields and a job; how it ended, and the request.
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

    /// One try that is answered with this head.
    async fn answered(&self, head: &str) -> AttemptOutcome {
        let answering = async {
            let (mut socket, _) = self.listener.accept().await.unwrap();
            read_head(&mut socket).await;
            socket.write_all(head.as_bytes()).await.unwrap();
        };
        tokio::join!(self.try_poll(), answering).0
    }
}

/// hyper would send it again, on a connection that may take seconds to make, when its standing has been told already.
#[tokio::test]
async fn a_poll_on_a_kept_connection_that_is_dead_is_not_sent_again_unseen() {
    let stage = Fixture::new().await;
    let answering = async {
        let (mut socket, _) = stage.listener.accept().await.unwrap();
        read_head(&mut socket).await;
        let body = r#"{"id":"a","status":"queued"}"#;
        let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        socket.write_all(answer.as_bytes()).await.unwrap();
        socket
    };
    let (tried, socket) = tokio::join!(stage.try_poll(), answering);
    assert!(matches!(tried, AttemptOutcome::Landed(_)), "{tried:?}");
    drop(socket);
    tokio::task::yield_now().await; // it is seen that there is something to read, and not yet what
    let tried = tokio::select! {
        tried = stage.try_poll() => tried,
        _ = stage.listener.accept() => panic!("it is sent again"),
    };
    assert!(
        matches!(tried, AttemptOutcome::Failed(Failure::Unreachable, RetryAdvice::Reconnect)),
        "{tried:?}"
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
async fn a_poll_asks_for_bytes_in_no_coding() {
    let (tried, request) = Fixture::new().await.answered_with("Content-Encoding: identity\r\n").await;
    assert!(request.contains("accept-encoding: identity\r\n"), "{request}");
    let AttemptOutcome::Landed(PollLanding { outcome: PollOutcome::Jobs(states), .. }) = tried else {
        panic!("{tried:?}")
    };
    assert_eq!(states.len(), 1);
}

#[tokio::test]
async fn an_answer_in_a_coding_is_never_taken_for_jobs() {
    for coding in ["gzip", "identity, br", "GZIP"] {
        let stage = Fixture::new().await;
        let (tried, _) = stage.answered_with(&format!("Content-Encoding: {coding}\r\n")).await;
        assert!(
            matches!(tried, AttemptOutcome::Failed(Failure::InvalidResponse(_), RetryAdvice::BackOff)),
            "{coding}: {tried:?}"
        );
    }
}

#[tokio::test]
async fn a_switch_of_protocols_that_nobody_asked_for_is_no_answer() {
    let head = "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n";
    let tried = Fixture::new().await.answered(head).await;
    assert!(
        matches!(tried, AttemptOutcome::Failed(Failure::InvalidResponse(_), RetryAdvice::BackOff)),
        "{tried:?}"
    );
}
