//! Choice of the connection for a request, number of connections, and their end.

use std::future::poll_fn;
use std::io::Write as _;
use std::task::Poll;

use futures_util::future::{FutureExt as _, join_all};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use super::super::connect::Stream;
use super::super::http2::{self, Http2, StreamSlot};

use super::raw_http2::{Http2Event, RawHttp2, data, early_hints, go_away, head, ok, refuse, settings};
use super::*;

/// Returns an upstream whose SETTINGS allow this many streams, and two clients of it: one for passed-through requests
/// and one for polls.
pub(super) fn raw_upstream(
    streams: u32,
    change: impl Fn(&mut config::UpstreamConfig),
) -> (RawHttp2, Client, Client) {
    let (acceptor, trusting) = tls(&["h2"]);
    let upstream = RawHttp2::start(acceptor, streams);
    let mut config = config(&format!("https://localhost:{}", upstream.address.port()));
    change(&mut config);
    let client = Client::with_tls(&config, trusting.clone()).unwrap();
    let polls = Client::build(&config, trusting, ResendPolicy::Never).unwrap();
    (upstream, client, polls)
}

type Sent = JoinSet<Result<Response<ResponseBody>, SendError>>;

/// Sends this many requests at once.
fn burst(client: &Client, count: usize) -> Sent {
    let mut sent = JoinSet::new();
    for _ in 0..count {
        let client = client.clone();
        sent.spawn(async move { client.send(get(&client, "/")).await });
    }
    sent
}

/// Starts a poll in the background. Returns once it is on a connection.
async fn hold(polls: &Client, sent: &mut Sent) {
    let PendingRequest { on_connection, response } = polls.start(get(polls, "/"));
    sent.spawn(response);
    on_connection.await;
}

async fn all_ok(sent: Sent) {
    for answer in sent.join_all().await {
        assert_eq!(answer.unwrap().status(), 200);
    }
}

/// The eleventh poll once waited behind the first ten, and counted as held.
#[tokio::test]
async fn requests_over_the_peers_stream_limit_get_another_connection() {
    let (mut upstream, client, polls) = raw_upstream(10, |_| {});
    let mut held = Sent::new();
    for _ in 0..12 {
        hold(&polls, &mut held).await;
    }
    let mut open_requests = upstream.requests(12).await;
    assert!(open_requests[..10].iter().all(|(connection, _)| *connection == 0), "{open_requests:?}");
    assert!(open_requests[10..].iter().all(|(connection, _)| *connection == 1), "{open_requests:?}");

    let mut short = Sent::new();
    hold(&polls, &mut short).await;
    let request = upstream.requests(1).await[0];
    assert_eq!(request.0, 1);
    upstream.answer(request);
    all_ok(short).await;

    // A response makes room on the first connection. The other client has connections of its own.
    upstream.answer(open_requests.remove(3));
    assert_eq!(held.join_next().await.unwrap().unwrap().unwrap().status(), 200);
    hold(&polls, &mut held).await;
    open_requests.push(upstream.requests(1).await[0]);
    assert_eq!(open_requests.last().unwrap().0, 0);
    let passed = burst(&client, 1);
    let request = upstream.requests(1).await[0];
    assert_eq!(request.0, 2);
    upstream.answer(request);
    all_ok(passed).await;
    for request in open_requests {
        upstream.answer(request);
    }
    all_ok(held).await;
    assert_eq!(upstream.handshakes(), 3);
}

#[tokio::test]
async fn a_burst_over_a_small_stream_limit_opens_enough_connections() {
    let (mut upstream, client, _) = raw_upstream(10, |_| {});
    let sent = burst(&client, 35);
    let requests = upstream.requests(35).await; // hangs if a request waits for another's end
    assert_eq!(upstream.handshakes(), 4);
    for request in requests {
        upstream.answer(request);
    }
    all_ok(sent).await;
    assert_eq!(client.pool.slots_taken(), 0);
}

#[tokio::test]
async fn the_pool_follows_a_changed_stream_limit() {
    let (mut upstream, _, polls) = raw_upstream(10, |_| {});
    let mut held = Sent::new();
    for _ in 0..5 {
        hold(&polls, &mut held).await;
    }
    let mut open_requests = upstream.requests(5).await;
    for (limit, connection) in [(5, 1), (2, 1), (6, 0)] {
        upstream.write(0, settings(limit));
        upstream.until(Http2Event::Acknowledged { connection: 0 }).await;
        hold(&polls, &mut held).await;
        open_requests.push(upstream.requests(1).await[0]);
        assert_eq!(open_requests.last().unwrap().0, connection, "at a limit of {limit}");
    }
    for request in open_requests {
        upstream.answer(request);
    }
    all_ok(held).await;
}

/// The peer lowers its limit at the moment a poll is passed to h2, so h2 holds it back.
#[tokio::test]
async fn a_poll_behind_a_stream_limit_does_not_count_as_held_until_its_headers_are_sent() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let (lower, lowers) = std::sync::mpsc::channel();
    let (answer, answers) = std::sync::mpsc::channel();
    let upstream = std::thread::spawn(move || {
        let (mut connection, _) = listener.accept().unwrap();
        let (mut beside, _) = listener.accept().unwrap();
        connection.write_all(&settings(10)).unwrap();
        lowers.recv().unwrap();
        connection.write_all(&settings(1)).unwrap();
        beside.write_all(b"!").unwrap();
        answers.recv().unwrap();
        connection.write_all(&ok(1)).unwrap();
        (connection, beside)
    });
    let socket = TcpStream::connect(address).await.unwrap();
    let mut beside = TcpStream::connect(address).await.unwrap();
    let (year, forever) = (Duration::from_secs(365 * 24 * 3600), std::sync::Weak::new());
    let (http2, mut driver) =
        Http2::handshake(Stream::Plain(socket), crate::clock::now() + year, 0, year, forever.clone())
            .await
            .unwrap();
    let tasks = tokio_util::task::TaskTracker::new();
    let start = || {
        let (notice, sent) = oneshot::channel();
        let (head, body) = Request::get("http://up.example/").body(Body::empty()).unwrap().into_parts();
        let slot = StreamSlot::take(&http2, forever.clone());
        (Box::pin(http2::send(slot, head, body, Some(notice), &tasks)), sent)
    };
    poll_fn(|cx| {
        assert!(Pin::new(&mut driver).poll(cx).is_pending());
        if http2.is_ready() { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
    let (mut first, mut first_sent) = start();
    assert!((&mut first).now_or_never().is_none());
    tokio::select! {
        sent = &mut first_sent => sent.unwrap(),
        () = &mut driver => panic!("the connection ended"),
    }

    lower.send(()).unwrap();
    beside.read_exact(&mut [0]).await.unwrap(); // the SETTINGS have arrived at the other socket
    let (mut second, mut second_sent) = start();
    assert!((&mut second).now_or_never().is_none());
    assert!((&mut driver).now_or_never().is_none());
    assert!(!http2.has_room());
    assert!(second_sent.try_recv().is_err(), "the second poll has not left");

    answer.send(()).unwrap();
    let answered = tokio::select! {
        answered = &mut first => answered.ok().unwrap(),
        () = &mut driver => panic!("the connection ended"),
    };
    assert!(second_sent.try_recv().is_err(), "the first request keeps its slot until its body has ended");
    drop(answered);
    second_sent.try_recv().unwrap();
    drop(upstream.join().unwrap());
}

#[tokio::test]
async fn a_poll_that_waits_for_a_connection_does_not_count_as_held() {
    let (mut upstream, _, polls) = raw_upstream(1, |_| {});
    let mut held = Sent::new();
    hold(&polls, &mut held).await;
    let first = upstream.requests(1).await[0];
    upstream.accept_handshakes(false);
    let mut second = polls.start(get(&polls, "/"));
    assert!((&mut second.response).now_or_never().is_none());
    assert!((&mut second.on_connection).now_or_never().is_none());
    upstream.accept_handshakes(true);
    let answered = tokio::spawn(second.response);
    second.on_connection.await;
    let request = upstream.requests(1).await[0];
    assert_eq!(request.0, 1);
    upstream.answer(request);
    upstream.answer(first);
    assert_eq!(answered.await.unwrap().unwrap().status(), 200);
    all_ok(held).await;
}

#[tokio::test]
async fn an_upstream_that_allows_no_stream_fails_requests_at_once() {
    let (mut upstream, client, _) = raw_upstream(0, |_| {});
    let mut failing = std::pin::pin!(burst(&client, 5).join_all());
    let answers = loop {
        tokio::select! {
            answers = &mut failing => break answers,
            // Sent before the limit was known.
            early = upstream.requests(1) => upstream.write(early[0].0, refuse(early[0].1)),
        }
    };
    for answer in answers {
        let error = answer.unwrap_err();
        assert!(matches!(error, SendError::Connect(_) | SendError::Closed(_)), "{error:?}");
    }
    assert_eq!(client.pool.waiting(), 0);
}

/// A pool that dials for each request generated 60 handshakes here, and used one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_burst_makes_one_handshake_when_cold_after_goaway_and_after_a_loss() {
    let (mut upstream, client, polls) = raw_upstream(100, |_| {});
    let sent = burst(&client, 60);
    for request in upstream.requests(60).await {
        assert_eq!(request.0, 0);
        upstream.answer(request);
    }
    all_ok(sent).await;
    assert_eq!(upstream.handshakes(), 1);

    // A request that is held during a GOAWAY ends on its connection.
    let held = burst(&client, 1);
    let old = upstream.requests(1).await[0];
    upstream.write(0, go_away(old.1));
    until_retired(&client).await;
    let sent = burst(&client, 60);
    for request in upstream.requests(60).await {
        assert_eq!(request.0, 1);
        upstream.answer(request);
    }
    all_ok(sent).await;
    upstream.answer(old);
    all_ok(held).await;
    upstream.until(Http2Event::Closed { connection: 0 }).await;
    assert_eq!(upstream.handshakes(), 2);

    let lost = burst(&client, 1);
    upstream.requests(1).await;
    upstream.close(1);
    for answer in lost.join_all().await {
        assert!(matches!(answer, Err(SendError::Reset(_))));
    }
    until_retired(&client).await;
    let sent = burst(&client, 60);
    for request in upstream.requests(60).await {
        upstream.answer(request);
    }
    all_ok(sent).await;
    assert_eq!(upstream.handshakes(), 3);
    drop(polls);
}

/// Waits until no connection takes requests.
async fn until_retired(client: &Client) {
    while client.pool.usable() > 0 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_cancelled_request_leaves_its_handshake_to_the_others() {
    let (mut upstream, client, _) = raw_upstream(100, |_| {});
    upstream.accept_handshakes(false);
    let mut first = client.start(get(&client, "/"));
    assert!((&mut first.response).now_or_never().is_none());
    let mut others: Vec<_> = (0..3).map(|_| client.start(get(&client, "/"))).collect();
    for other in &mut others {
        assert!((&mut other.response).now_or_never().is_none());
    }
    drop(first);
    upstream.accept_handshakes(true);
    let answers = tokio::spawn(join_all(others.into_iter().map(|other| other.response)));
    for request in upstream.requests(3).await {
        upstream.answer(request);
    }
    for answer in answers.await.unwrap() {
        assert_eq!(answer.unwrap().status(), 200);
    }
    assert_eq!(upstream.handshakes(), 1);
}

#[tokio::test]
async fn a_failed_handshake_fails_all_requests_that_wait_for_it() {
    let (listener, addr) = listen().await;
    let (_, trusting) = tls(&["h2"]);
    let client = Client::with_tls(&config(&format!("https://localhost:{}", addr.port())), trusting).unwrap();
    let sent = burst(&client, 60);
    let mut accepted = 0;
    let mut failing = std::pin::pin!(sent.join_all());
    let answers = loop {
        tokio::select! {
            answers = &mut failing => break answers,
            socket = listener.accept() => {
                accepted += 1;
                drop(socket.unwrap());
            }
        }
    };
    for answer in answers {
        let error = answer.unwrap_err();
        assert!(matches!(error, SendError::Connect(_)), "{error:?}");
    }
    assert!(accepted <= 3, "{accepted} connections");
    assert_eq!(client.pool.waiting(), 0);
}

/// A connection carries fewer than 120 requests. The upstream closes the second one, and the first serves the rest.
#[tokio::test]
async fn a_failed_handshake_does_not_fail_requests_that_another_connection_can_carry() {
    let (acceptor, trusting) = tls(&["h2"]);
    let mut upstream = RawHttp2::start(acceptor, 100);
    let (listener, addr) = listen().await;
    let to = upstream.address;
    tokio::spawn(async move {
        let (mut first, _) = listener.accept().await.unwrap();
        let mut through = TcpStream::connect(to).await.unwrap();
        tokio::spawn(async move { tokio::io::copy_bidirectional(&mut first, &mut through).await });
        while let Ok((refused, _)) = listener.accept().await {
            drop(refused);
        }
    });
    let client = Client::with_tls(&config(&format!("https://localhost:{}", addr.port())), trusting).unwrap();
    let sent = burst(&client, 120);
    for request in upstream.requests(http2::MAX_STREAMS).await {
        upstream.answer(request);
    }
    let (answered, failed): (Vec<_>, Vec<_>) = sent.join_all().await.into_iter().partition(Result::is_ok);
    assert!(answered.len() >= http2::MAX_STREAMS, "{}", answered.len());
    assert!(failed.iter().all(|error| matches!(error, Err(SendError::Connect(_)))), "{failed:?}");
}

#[tokio::test]
async fn over_http_1_each_request_of_a_burst_gets_its_own_connection() {
    let (listener, addr) = listen().await;
    let (acceptor, trusting) = tls(&["http/1.1"]);
    let (go, wait) = watch::channel(false);
    let mut requests = serve(listener, acceptor, wait);
    let client = Client::with_tls(&config(&format!("https://localhost:{}", addr.port())), trusting).unwrap();
    let sent = burst(&client, 20);
    for _ in 0..20 {
        requests.recv().await.unwrap(); // hangs if a request waits for another's end
    }
    go.send(true).unwrap();
    for answer in sent.join_all().await {
        answer.unwrap().into_body().collect().await.unwrap();
    }
    assert_eq!(client.pool.waiting(), 0);
}

#[tokio::test]
async fn a_connection_over_its_maximum_age_takes_no_more_requests_and_finishes_its_own() {
    let (mut upstream, _, polls) = raw_upstream(100, |config| config.connection_max_age = Duration::ZERO);
    let mut held = Sent::new();
    let mut open_requests = Vec::new();
    for connection in 0..3 {
        hold(&polls, &mut held).await;
        open_requests.push(upstream.requests(1).await[0]);
        assert_eq!(open_requests[connection].0, connection);
    }
    for (connection, request) in open_requests.into_iter().enumerate() {
        upstream.answer(request);
        assert_eq!(held.join_next().await.unwrap().unwrap().unwrap().status(), 200);
        if connection < 2 {
            upstream.until(Http2Event::Closed { connection }).await;
        }
    }
}

#[tokio::test]
async fn the_pool_reuses_an_http_1_connection_until_its_maximum_age() {
    for (max_age, connections) in [(Duration::from_secs(300), 1), (Duration::ZERO, 3)] {
        let (listener, addr) = listen().await;
        let mut config = config(&format!("http://{addr}"));
        config.connection_max_age = max_age;
        let client = Client::new(&config).unwrap();
        let accepted = tokio::spawn(async move {
            let mut accepted = 0;
            let mut served = JoinSet::new();
            loop {
                let (mut socket, _) = tokio::select! {
                    socket = listener.accept() => socket.unwrap(),
                    Some(done) = served.join_next() => match done.unwrap() {
                        true => return accepted,
                        false => continue,
                    },
                };
                accepted += 1;
                served.spawn(async move {
                    let mut head = Vec::new();
                    while socket.read_buf(&mut head).await.unwrap() > 0 {
                        if head.ends_with(b"\r\n\r\n") {
                            let is_last = head.starts_with(b"GET /last");
                            let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
                            socket.write_all(answer).await.unwrap();
                            if is_last {
                                return true;
                            }
                            head.clear();
                        }
                    }
                    false
                });
            }
        });
        for target in ["/", "/", "/last"] {
            let answer = client.send(get(&client, target)).await.unwrap();
            assert_eq!(answer.into_body().collect().await.unwrap().to_bytes(), "ok");
            while target != "/last" && !max_age.is_zero() && client.pool.usable() == 0 {
                tokio::task::yield_now().await; // until the connection is returned
            }
        }
        assert_eq!(accepted.await.unwrap(), connections, "{max_age:?}");
    }
}

#[tokio::test]
async fn the_client_resends_a_request_that_the_peer_has_not_processed_but_never_a_poll() {
    let (mut upstream, client, polls) = raw_upstream(100, |_| {});
    let refused = burst(&client, 1);
    let (connection, stream) = upstream.requests(1).await[0];
    upstream.write(connection, refuse(stream));
    let again = upstream.requests(1).await[0];
    upstream.write(again.0, go_away(stream));
    let third = upstream.requests(1).await[0];
    assert_ne!(third.0, connection, "the first connection takes no more requests");
    upstream.answer(third);
    all_ok(refused).await;

    let mut held = Sent::new();
    hold(&polls, &mut held).await;
    let (connection, stream) = upstream.requests(1).await[0];
    upstream.write(connection, refuse(stream));
    let error = held.join_next().await.unwrap().unwrap().unwrap_err();
    assert!(matches!(error, SendError::Closed(_)), "{error:?}");
    assert!(!error.may_have_been_sent());
}

#[tokio::test]
async fn the_client_never_resends_an_upload_that_has_begun() {
    let (mut upstream, client, _) = raw_upstream(100, |_| {});
    let uri = client.uri(&PathAndQuery::from_static("/")).unwrap();
    let request = Request::post(uri).body(Body::full("x")).unwrap();
    let sending = client.send(request);
    let refusing = async {
        let (connection, stream) = upstream.requests(1).await[0];
        upstream.write(connection, refuse(stream));
    };
    let (answer, ()) = tokio::join!(sending, refusing);
    assert!(matches!(answer, Err(SendError::Closed(_))));
}

#[tokio::test]
async fn dropping_a_request_or_its_response_resets_the_stream() {
    let (mut upstream, client, _) = raw_upstream(100, |_| {});
    let mut sent = burst(&client, 1);
    let (connection, stream) = upstream.requests(1).await[0];
    sent.abort_all();
    while sent.join_next().await.is_some() {}
    upstream.until(Http2Event::Reset { connection, stream }).await;

    let mut sent = burst(&client, 1);
    let (connection, stream) = upstream.requests(1).await[0];
    upstream.write(connection, [head(stream), data(stream, b"some")].concat());
    let mut answer = sent.join_next().await.unwrap().unwrap().unwrap();
    assert_eq!(answer.body_mut().frame().await.unwrap().unwrap().into_data().unwrap(), "some");
    drop(answer);
    upstream.until(Http2Event::Reset { connection, stream }).await;
    assert_eq!(client.pool.slots_taken(), 0);
}

/// `tests/it/upstream/hostile_upstream.rs` tests it over HTTP/1.1.
#[tokio::test]
async fn endless_interim_responses_fail_their_request_only() {
    let (mut upstream, client, _) = raw_upstream(100, |_| {});
    let mut sent = burst(&client, 2);
    let mut requests = upstream.requests(2).await;
    let (connection, stream) = requests.remove(0);
    upstream.write(connection, early_hints(stream).repeat(MAX_INTERIM));
    upstream.write(connection, ok(stream));
    assert_eq!(sent.join_next().await.unwrap().unwrap().unwrap().status(), 200, "within the limit");

    let (connection, stream) = requests.remove(0);
    upstream.write(connection, early_hints(stream).repeat(MAX_INTERIM + 1));
    let error = sent.join_next().await.unwrap().unwrap().unwrap_err();
    assert!(matches!(error, SendError::TooManyInterim), "{error:?}");
    assert_eq!((error.reason(), error.may_have_been_sent()), ("invalid", true));
    upstream.until(Http2Event::Reset { connection, stream }).await;

    let sent = burst(&client, 1);
    let request = upstream.requests(1).await[0];
    assert_ne!(request.0, connection);
    upstream.answer(request);
    all_ok(sent).await;
}

#[tokio::test]
async fn over_http_1_the_client_accepts_interim_responses_up_to_the_limit() {
    for (interim, is_fine) in [(MAX_INTERIM, true), (4 * MAX_INTERIM, false)] {
        let (listener, addr) = listen().await;
        let client = Client::new(&config(&format!("http://{addr}"))).unwrap();
        let answering = async {
            let (mut socket, _) = listener.accept().await.unwrap();
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                assert!(socket.read_buf(&mut request).await.unwrap() > 0);
            }
            for _ in 0..interim {
                // One by one, so that the last one is not buffered together with the response.
                if socket.write_all(b"HTTP/1.1 103 Early Hints\r\n\r\n").await.is_err() {
                    return;
                }
                tokio::task::yield_now().await;
            }
            let _ = socket.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").await;
            // until the client has closed the connection, or read the response
            let mut rest = Vec::new();
            if !is_fine {
                let _ = socket.read_to_end(&mut rest).await;
            }
        };
        let (answer, ()) = tokio::join!(client.send(get(&client, "/")), answering);
        match answer {
            Ok(answer) => assert!(is_fine && answer.status() == 204),
            Err(error) => assert!(!is_fine && matches!(error, SendError::TooManyInterim), "{error:?}"),
        }
    }
}

/// Takes all descriptors, so it runs in its own process.
#[test]
fn a_lack_of_descriptors_is_reported_as_local_resources() {
    const NAME: &str =
        "upstream::client::tests::connections::a_lack_of_descriptors_is_reported_as_local_resources";
    const IS_CHILD: &str = "CLIPGATE_TEST_TAKES_DESCRIPTORS";
    if std::env::var_os(IS_CHILD).is_none() {
        let this = std::env::current_exe().unwrap();
        let limited = std::process::Command::new("sh")
            .args(["-c", "ulimit -n 64 && exec \"$0\" --exact \"$1\" --nocapture"])
            .args([this.as_os_str(), NAME.as_ref()])
            .env(IS_CHILD, "1")
            .output()
            .unwrap();
        let output = String::from_utf8_lossy(&limited.stdout).into_owned();
        assert!(limited.status.success() && output.contains("1 passed"), "{limited:?}");
        return;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let (_listener, addr) = listen().await;
        let numbered = Client::new(&config(&format!("http://{addr}"))).unwrap();
        let named = Client::new(&config(&format!("http://localhost:{}", addr.port()))).unwrap();
        let mut taken = Vec::new();
        while let Ok(file) = std::fs::File::open("/dev/null") {
            taken.push(file);
        }
        for client in [numbered, named] {
            let error = client.send(get(&client, "/")).await.unwrap_err();
            assert!(matches!(error, SendError::LocalResources(_)), "{error:?}");
            assert_eq!(error.reason(), "local-resources");
        }
    });
}
