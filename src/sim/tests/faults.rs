//! Injected faults as clients see them.

use super::*;

#[tokio::test]
async fn a_reset_fault_resets_the_connection_at_once_or_in_the_middle_of_a_poll() {
    let rig = Rig::with_long_hold().await;
    rig.sim.set_status("a", "queued");
    let get =
        format!("GET {} HTTP/1.1\r\nhost: sim\r\nauthorization: Bearer k\r\n\r\n", one("a", "completed"));
    for after in [0, 200] {
        let after = Duration::from_millis(after);
        rig.sim.fault(FaultTarget::Clip("a".into()), Fault::reset_after(after), 1);
        let start = clock::now();
        let mut stream = rig.raw(&get).await;
        let error = stream.read(&mut [0; 64]).await.unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
        assert!((after..TIMEOUT).contains(&start.elapsed()), "{:?}", start.elapsed());
    }
    rig.wait_until(|seen| seen.open == 0 && seen.requests.iter().all(|seen| seen.end == RequestEnd::Broken))
        .await;
    rig.sim.set_status("a", "completed");
    assert_eq!(rig.get(&one("a", "completed")).await.status, 200);
}

#[tokio::test]
async fn over_http2_a_reset_fault_ends_only_its_own_stream() {
    let mut rig = Rig::start_with(SimOptions { hold: LONG, ..SimOptions::default() }, true).await;
    rig.sim.set_status("a", "queued");
    rig.sim.set_status("b", "queued");
    let other = rig.spawn_get(&one("b", "completed"));
    rig.wait_until(|seen| seen.open == 1).await;
    rig.sim.fault(FaultTarget::Clip("a".into()), Fault::reset(), 1);
    assert!(rig.try_get(&one("a", "completed")).await.is_err());
    rig.sim.set_status("b", "completed");
    assert_eq!(other.await.unwrap().unwrap().status, 200);
}

#[tokio::test]
async fn a_refuse_fault_closes_a_connection_before_or_after_its_request_is_read() {
    let rig = Rig::with_long_hold().await;
    rig.sim.fault(FaultTarget::Any, Fault::Refuse, 1);
    let mut stream = TcpStream::connect(rig.at).await.unwrap();
    assert_eq!(stream.read(&mut [0; 64]).await.unwrap(), 0);
    assert_eq!(rig.sim.observe().accepted, 0);
    rig.sim.fault(FaultTarget::Path("/sim/echo".into()), Fault::Refuse, 1);
    let mut stream = rig.raw("GET /sim/echo HTTP/1.1\r\nhost: sim\r\n\r\n").await;
    assert_eq!(stream.read(&mut [0; 64]).await.unwrap(), 0);
    assert_eq!(rig.get("/sim/echo").await.status, 200);
}

#[tokio::test]
async fn a_hang_fault_never_answers() {
    let mut rig = Rig::with_hold_ms(100).await;
    rig.sim.set_status("a", "completed");
    rig.sim.fault(FaultTarget::Polls, Fault::Hang, 1);
    let mut hung = rig.spawn_get(&one("a", "completed"));
    rig.wait_until(|seen| seen.open == 1).await;
    assert_eq!(rig.get(&one("a", "completed")).await.status, 200);
    assert!(hung.try_recv().is_err());
    assert_eq!(rig.sim.open(), 1);
}

#[tokio::test]
async fn a_429_fault_has_retry_after_and_ends_after_its_count() {
    let rig = Rig::with_long_hold().await;
    rig.sim.set_status("a", "queued");
    rig.sim.fault(FaultTarget::Any, Fault::retry_after(429, Duration::from_millis(1500)), 2);
    for (status, retry_after) in [(429, Some("2")), (429, Some("2")), (200, None)] {
        let answer = rig.get(&one("a", "queued")).await;
        assert_eq!(answer.status, status);
        assert_eq!(answer.headers.get("retry-after").map(|value| value.to_str().unwrap()), retry_after);
    }
}

#[tokio::test]
async fn an_injected_error_has_the_requested_status_body_and_delay() {
    let rig = Rig::with_long_hold().await;
    rig.sim.set_status("a", "queued");
    let inject = |status, body| rig.sim.fault(FaultTarget::Any, Fault::status_with(status, body), 1);
    inject(500, ErrorBody::Json);
    inject(502, ErrorBody::Html);
    inject(504, ErrorBody::Empty);
    let json = rig.get(&one("a", "queued")).await;
    assert_eq!((json.status.as_u16(), &json.json()["statusCode"]), (500, &500.into()));
    let html = rig.get(&one("a", "queued")).await;
    assert_eq!((html.status.as_u16(), &html.headers["content-type"]), (502, &"text/html".parse().unwrap()));
    let empty = rig.get(&one("a", "queued")).await;
    assert_eq!((empty.status.as_u16(), empty.body.len()), (504, 0));
    let after = Duration::from_millis(200);
    let late =
        Fault::Status { status: StatusCode::BAD_GATEWAY, retry_after: None, body: ErrorBody::Html, after };
    rig.sim.fault(FaultTarget::Any, late, 1);
    let start = clock::now();
    assert_eq!(rig.get(&one("a", "completed")).await.status, 502);
    assert!((after..TIMEOUT).contains(&start.elapsed()));
}

#[tokio::test]
async fn an_html_fault_answers_200_with_a_page() {
    let rig = Rig::with_long_hold().await;
    rig.sim.set_status("a", "queued");
    rig.sim.fault(FaultTarget::Any, Fault::Html, 1);
    let answer = rig.get(&one("a", "queued")).await;
    assert_eq!(
        (answer.status, &answer.headers["content-type"]),
        (StatusCode::OK, &"text/html".parse().unwrap())
    );
    assert!(serde_json::from_slice::<Value>(&answer.body).is_err());
}

#[tokio::test]
async fn a_cut_response_ends_before_its_content_length() {
    let rig = Rig::with_long_hold().await;
    rig.sim.set_status("a", "completed");
    rig.sim.fault(FaultTarget::Clip("a".into()), Fault::Cut, 2);
    let mut stream = rig
        .raw(&format!("GET {} HTTP/1.1\r\nhost: sim\r\nauthorization: Bearer k\r\n\r\n", one("a", "queued")))
        .await;
    let mut all = Vec::new();
    let _ = tokio::time::timeout(TIMEOUT, stream.read_to_end(&mut all)).await.unwrap();
    let text = String::from_utf8_lossy(&all);
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    let complete = rig.sim.body("a", "completed");
    assert!(head.starts_with("HTTP/1.1 200"));
    assert!(head.contains(&format!("content-length: {}", complete.len())), "{head}");
    assert!(body.len() > 100 && body.len() < complete.len());
    assert!(rig.try_get(&one("a", "queued")).await.is_err());
    rig.wait_until(|seen| seen.requests.iter().all(|seen| seen.end == RequestEnd::Broken)).await;
    assert_eq!(rig.get(&one("a", "queued")).await.body, complete);
}

#[tokio::test]
async fn over_http2_a_cut_response_ends_with_a_stream_error() {
    let rig = Rig::start_with(SimOptions::default(), true).await;
    rig.sim.set_status("a", "completed");
    rig.sim.fault(FaultTarget::Clip("a".into()), Fault::Cut, 1);
    assert!(rig.try_get(&one("a", "queued")).await.is_err());
    assert_eq!(rig.get(&one("a", "queued")).await.status, 200);
}

#[tokio::test]
async fn cleared_faults_hit_no_request() {
    let rig = Rig::with_long_hold().await;
    rig.sim.fault_share(FaultTarget::Any, Fault::status(500), 1.0);
    assert_eq!([rig.get("/sim/echo").await.status, rig.get("/sim/echo").await.status], [500, 500]);
    rig.sim.clear_faults();
    assert_eq!(rig.get("/sim/echo").await.status, 200);
}

#[tokio::test]
async fn reset_connections_resets_all_open_connections_and_spares_new_ones() {
    for http2 in [false, true] {
        let mut rig = Rig::start_with(SimOptions { hold: LONG, ..SimOptions::default() }, http2).await;
        rig.sim.set_status("a", "queued");
        let target = format!("{CLIP}?clip_id=a&status=completed");
        let held = [rig.spawn_get(&target), rig.spawn_get(&target), rig.spawn_get(&target)];
        rig.sim.wait_until(|seen| seen.open == 3).await;
        rig.sim.reset_connections();
        for held in held {
            assert!(held.await.unwrap().is_err(), "http2 {http2}");
        }
        rig.sim.wait_until(|seen| seen.open == 0 && seen.connections == 0).await;
        assert_eq!(rig.get(&format!("{CLIP}?clip_id=a")).await.status, StatusCode::OK);
    }
}

#[tokio::test]
async fn a_fault_is_recorded_with_its_request_and_its_end() {
    let mut rig = Rig::with_long_hold().await;
    let began = clock::now();
    rig.sim.fault(FaultTarget::Key("key".to_owned()), Fault::status(500), 1);
    assert_eq!(rig.get("/sim/echo?n=1").await.status, StatusCode::INTERNAL_SERVER_ERROR);
    assert_eq!(rig.get("/sim/echo?n=2").await.status, StatusCode::OK);
    rig.sim.fault(FaultTarget::Any, Fault::Hang, 1);
    let _hanging = rig.spawn_get("/sim/echo?n=3");
    rig.sim.wait_until(|seen| seen.open == 1).await;

    let faults = rig.sim.faults_since(began, |_| true);
    let recorded: Vec<_> =
        faults.iter().map(|record| (&*record.target, &record.fault, record.ended_at.is_some())).collect();
    assert_eq!(
        recorded,
        [("/sim/echo?n=3", &Fault::Hang, false), ("/sim/echo?n=1", &Fault::status(500), true)]
    );
    assert!(faults.iter().all(|record| record.key.unwrap().matches("key")));
    let later = rig.sim.faults_since(clock::now() + LONG, |_| true);
    assert_eq!(later.len(), 1, "a fault that has not ended is recent");
    assert!(rig.sim.faults_since(began, |record| record.target.ends_with("n=2")).is_empty());
}
