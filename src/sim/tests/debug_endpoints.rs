//! The debug endpoints under `/sim/`.

use std::collections::HashSet;

use super::*;

#[tokio::test]
async fn echo_describes_the_request() {
    let rig = Rig::with_long_hold().await;
    let mut request = rig.request(Method::PATCH, "/sim/echo?a=%20");
    request.headers_mut().insert("x-mine", "1".parse().unwrap());
    *request.body_mut() = Full::new(Bytes::from(vec![7; 100_000]));
    let echo = rig.call(request).await.unwrap().json();
    assert_eq!((&echo["method"], &echo["target"]), (&"PATCH".into(), &"/sim/echo?a=%20".into()));
    assert_eq!(echo["body_bytes"], 100_000);
    assert_eq!(echo["body_blake3"], *blake3::hash(&[7; 100_000]).to_hex());
    let headers: HashSet<_> = echo["headers"].as_array().unwrap().iter().map(ToString::to_string).collect();
    assert!(headers.contains("[\"x-mine\",\"1\"]"), "{headers:?}");
    assert!(echo["has_key"].as_bool().unwrap() && !echo.to_string().contains("Bearer"));
}

#[tokio::test]
async fn mirror_sends_each_chunk_back_before_the_next_arrives() {
    let rig = Rig::with_long_hold().await;
    let mut stream =
        rig.raw("POST /sim/mirror HTTP/1.1\r\nhost: sim\r\ntransfer-encoding: chunked\r\n\r\n").await;
    let mut all = Vec::new();
    for part in ["one", "two", "three"] {
        stream.write_all(format!("{:x}\r\n{part}\r\n", part.len()).as_bytes()).await.unwrap();
        while !String::from_utf8_lossy(&all).contains(part) {
            let count = tokio::time::timeout(TIMEOUT, stream.read_buf(&mut all)).await.unwrap().unwrap();
            assert!(count > 0);
        }
    }
    assert_eq!(rig.sim.requests()[0].end, RequestEnd::Open);
    stream.write_all(b"0\r\n\r\n").await.unwrap();
    rig.wait_until(|seen| seen.requests[0].end == RequestEnd::Answered(StatusCode::OK)).await;
}

#[tokio::test]
async fn stream_sends_line_by_line_and_its_client_can_disconnect() {
    let rig = Rig::with_long_hold().await;
    let lines = rig.get("/sim/stream?n=3&every=10ms").await;
    assert_eq!(
        (&*lines.body, &lines.headers["content-type"]),
        (&b"0\n1\n2\n"[..], &"text/plain; charset=utf-8".parse().unwrap())
    );
    let mut request = rig.request(Method::GET, "/sim/stream?n=1");
    request.headers_mut().insert("accept", "text/event-stream".parse().unwrap());
    assert_eq!(rig.call(request).await.unwrap().body, "id: 0\ndata: 0\n\n");
    assert_eq!(rig.get("/sim/stream?n=many").await.status, 400);
    let mut stream = rig.raw("GET /sim/stream?every=60s HTTP/1.1\r\nhost: sim\r\n\r\n").await;
    assert!(stream.read(&mut [0; 64]).await.unwrap() > 0);
    drop(stream);
    rig.wait_until(|seen| seen.abandoned() == 1).await;
}

#[tokio::test]
async fn upgrade_opens_a_tunnel_that_echoes_each_byte() {
    let rig = Rig::with_long_hold().await;
    assert_eq!(rig.get("/sim/upgrade").await.status, StatusCode::UPGRADE_REQUIRED);
    let mut stream = rig
        .raw("GET /sim/upgrade HTTP/1.1\r\nhost: sim\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\n")
        .await;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        assert!(stream.read_buf(&mut head).await.unwrap() > 0);
    }
    assert!(head.starts_with(b"HTTP/1.1 101") && String::from_utf8_lossy(&head).contains("upgrade: echo"));
    stream.write_all(b"\x00raw").await.unwrap();
    let mut back = [0; 4];
    stream.read_exact(&mut back).await.unwrap();
    assert_eq!(&back, b"\x00raw");
    stream.shutdown().await.unwrap();
    assert_eq!(stream.read(&mut back).await.unwrap(), 0);
}
