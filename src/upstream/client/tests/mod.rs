mod bodies;
mod connections;
mod http1_connection;
mod raw_http2;
mod stress;

use std::convert::Infallible;
use std::net::SocketAddr;

use bytes::Bytes;
use http::uri::Authority;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio_rustls::TlsAcceptor;

use super::*;

fn config(base_url: &str) -> config::UpstreamConfig {
    config::UpstreamConfig { base_url: base_url.parse().unwrap(), ..config::Config::default().upstream }
}

fn get(client: &Client, target: &'static str) -> Request<Body> {
    let uri = client.uri(&PathAndQuery::from_static(target)).unwrap();
    Request::get(uri).body(Body::empty()).unwrap()
}

async fn listen() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    (listener, addr)
}

/// Returns a self-signed certificate for `localhost`, as an acceptor and as settings of a client that trusts it.
pub(crate) fn tls(alpn: &[&str]) -> (TlsAcceptor, rustls::ClientConfig) {
    let generated = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let cert = generated.cert.der().clone();
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(generated.signing_key.serialize_der()));
    let ring = || Arc::new(rustls::crypto::ring::default_provider());
    let mut server = rustls::ServerConfig::builder_with_provider(ring())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![cert.clone()], key)
        .unwrap();
    server.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
    let mut roots = rustls::RootCertStore::empty();
    roots.add(cert).unwrap();
    let client = rustls::ClientConfig::builder_with_provider(ring())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    (TlsAcceptor::from(Arc::new(server)), client)
}

/// Runs a TLS server that reports the version and `Host` of each request, and answers once `go` is true.
fn serve(
    listener: TcpListener,
    acceptor: TlsAcceptor,
    go: watch::Receiver<bool>,
) -> mpsc::Receiver<(http::Version, Option<String>)> {
    let (seen, requests) = mpsc::channel(1000);
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            let (acceptor, seen, go) = (acceptor.clone(), seen.clone(), go.clone());
            tokio::spawn(async move {
                let Ok(stream) = acceptor.accept(socket).await else { return };
                let service = service_fn(move |request: Request<Incoming>| {
                    let (seen, mut go) = (seen.clone(), go.clone());
                    async move {
                        let host =
                            request.headers().get("host").map(|host| host.to_str().unwrap().to_owned());
                        seen.send((request.version(), host)).await.unwrap();
                        let _ = go.wait_for(|go| *go).await;
                        Ok::<_, Infallible>(Response::new(Full::new(Bytes::from_static(b"done"))))
                    }
                });
                let mut builder = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
                builder.http2().max_concurrent_streams(100);
                let _ = builder.serve_connection_with_upgrades(TokioIo::new(stream), service).await;
            });
        }
    });
    requests
}

#[test]
fn every_target_leads_to_the_configured_host() {
    let client = Client::new(&config("http://up.example:81")).unwrap();
    for target in [
        "/",
        "/v2/x?y=z%20&y=http://evil/",
        "//evil/path",
        "///evil",
        "/\\evil/",
        "/\\\\evil",
        "/@evil/",
        "/user:pass@evil/",
        "/../../etc/passwd",
        "/%2e%2e/x",
        "/a//b/./c/",
        "/http://evil/",
        "/?",
        "/a;b=c,d!$&'()*+:@~|{}\"",
        "/\u{fc}",
    ] {
        let uri = client.uri(&target.parse().unwrap()).unwrap();
        assert_eq!(uri.scheme_str(), Some("http"), "{target}");
        assert_eq!(uri.authority().map(Authority::as_str), Some("up.example:81"), "{target}");
        assert_eq!(uri.path_and_query().map(PathAndQuery::as_str), Some(target));
    }
}

#[test]
fn the_client_rejects_a_target_that_is_not_a_path() {
    let client = Client::new(&config("http://up.example")).unwrap();
    assert_eq!(client.uri(&PathAndQuery::from_static("*")), Err(BadTarget::NoPath));
    if let Ok(query) = PathAndQuery::try_from("?a=b") {
        assert!(client.uri(&query).map_or(true, |uri| uri.authority().unwrap() == "up.example"));
    }
}

#[test]
fn every_uri_begins_with_the_path_prefix_of_the_base_url() {
    for base in ["http://up.example/api/v1", "http://up.example/api/v1/"] {
        let client = Client::new(&config(base)).unwrap();
        let uri = |target: &str| client.uri(&target.parse().unwrap());
        assert_eq!(uri("/x?q=..").unwrap(), "http://up.example/api/v1/x?q=..");
        assert_eq!(uri("//x").unwrap(), "http://up.example/api/v1//x");
        assert_eq!(uri("/...").unwrap(), "http://up.example/api/v1/...");
        assert_eq!(uri("/a/../../b"), Err(BadTarget::DotSegment)); // target.rs tests encoded segments
    }
}

#[test]
fn the_client_rejects_an_invalid_base_url() {
    for bad in ["/path", "ftp://up.example", "http://user@up.example", "http://up.example/?q"] {
        assert!(matches!(Client::new(&config(bad)), Err(ClientError::BaseUrl)), "{bad}");
    }
    assert!(Client::new(&config("https://up.example")).is_ok());
}

#[tokio::test]
async fn a_self_signed_server_fails_as_a_tls_error() {
    let (listener, addr) = listen().await;
    let (acceptor, _) = tls(&["h2"]);
    let (_go, wait) = watch::channel(true);
    let _requests = serve(listener, acceptor, wait);
    let client = Client::new(&config(&format!("https://localhost:{}", addr.port()))).unwrap();
    let error = client.send(get(&client, "/")).await.unwrap_err();
    assert!(matches!(error, SendError::Tls(_)), "{error:?}");
    assert_eq!((error.reason(), error.may_have_been_sent()), ("tls", false));
}

#[tokio::test]
async fn a_certificate_for_another_name_fails_as_a_tls_error() {
    let (listener, addr) = listen().await;
    let (acceptor, trusting) = tls(&["h2"]);
    let (_go, wait) = watch::channel(true);
    let _requests = serve(listener, acceptor, wait);
    let client = Client::with_tls(&config(&format!("https://{addr}")), trusting).unwrap();
    let error = client.send(get(&client, "/")).await.unwrap_err();
    assert!(matches!(error, SendError::Tls(_)), "{error:?}");
}

#[tokio::test]
async fn the_connect_timeout_covers_a_tls_server_that_never_speaks() {
    let (_listener, addr) = listen().await; // the kernel accepts, no server answers the handshake
    let (_, trusting) = tls(&[]);
    let mut config = config(&format!("https://localhost:{}", addr.port()));
    config.connect_timeout = Duration::from_millis(50);
    let client = Client::with_tls(&config, trusting).unwrap();
    let error = client.send(get(&client, "/")).await.unwrap_err();
    assert!(matches!(error, SendError::ConnectTimeout(_)), "{error:?}");
    assert_eq!((error.reason(), error.may_have_been_sent()), ("connect-timeout", false));
}

#[tokio::test]
async fn a_refused_connection_and_a_reset_one_are_different_errors() {
    let (listener, addr) = listen().await;
    let client = Client::new(&config(&format!("http://{addr}"))).unwrap();
    let breaking = async {
        let (socket, _) = listener.accept().await.unwrap();
        socket.readable().await.unwrap(); // the request has arrived
        drop(socket);
    };
    let (answer, ()) = tokio::join!(client.send(get(&client, "/")), breaking);
    let error = answer.unwrap_err();
    assert!(matches!(error, SendError::Reset(_)), "{error:?}");
    assert!(error.may_have_been_sent());
    drop(listener);
    let error = client.send(get(&client, "/")).await.unwrap_err();
    assert!(matches!(error, SendError::Connect(_)), "{error:?}");
    assert_eq!((error.reason(), error.may_have_been_sent()), ("connect", false));
}

#[tokio::test]
async fn the_client_uses_http_2_where_offered_but_not_for_an_upgrade() {
    let (listener, addr) = listen().await;
    let (acceptor, trusting) = tls(&["h2", "http/1.1"]);
    let (_go, wait) = watch::channel(true);
    let mut requests = serve(listener, acceptor, wait);
    let host = format!("localhost:{}", addr.port());
    let client = Client::with_tls(&config(&format!("https://{host}")), trusting).unwrap();

    let answer = client.send(get(&client, "/")).await.unwrap();
    assert_eq!(answer.into_body().collect().await.unwrap().to_bytes(), "done");
    assert_eq!(requests.recv().await, Some((http::Version::HTTP_2, None)));

    client.send_upgradable(get(&client, "/").into(), true).await.unwrap();
    assert_eq!(requests.recv().await, Some((http::Version::HTTP_11, Some(host))));
}

#[tokio::test]
async fn the_client_uses_http_1_where_http_2_is_not_offered() {
    let (listener, addr) = listen().await;
    let (acceptor, trusting) = tls(&[]);
    let (_go, wait) = watch::channel(true);
    let mut requests = serve(listener, acceptor, wait);
    let host = format!("localhost:{}", addr.port());
    let client = Client::with_tls(&config(&format!("https://{host}")), trusting).unwrap();
    client.send(get(&client, "/")).await.unwrap();
    assert_eq!(requests.recv().await, Some((http::Version::HTTP_11, Some(host))));
}

#[tokio::test]
async fn more_long_polls_than_one_http_2_connection_carries_are_all_held_at_once() {
    let (listener, addr) = listen().await;
    let (acceptor, trusting) = tls(&["h2"]);
    let (go, wait) = watch::channel(false);
    let mut requests = serve(listener, acceptor, wait);
    let client = Client::with_tls(&config(&format!("https://localhost:{}", addr.port())), trusting).unwrap();
    let mut polls = tokio::task::JoinSet::new();
    for _ in 0..250 {
        let client = client.clone();
        polls.spawn(async move { client.send(get(&client, "/")).await.unwrap().status() });
    }
    for _ in 0..250 {
        requests.recv().await.unwrap(); // hangs if a request waits for another's end
    }
    go.send(true).unwrap();
    while let Some(status) = polls.join_next().await {
        assert_eq!(status.unwrap(), 200);
    }
    assert_eq!(client.pool.slots_taken(), 0);
}

#[tokio::test]
async fn a_pending_request_reports_when_it_is_on_a_connection() {
    let (listener, addr) = listen().await;
    let client = Client::new(&config(&format!("http://{addr}"))).unwrap();
    let mut started = client.start(get(&client, "/"));
    tokio::select! {
        () = &mut started.on_connection => {}
        answer = &mut started.response => panic!("no server answers: {:?}", answer.map(|_| ())),
    }
    let (mut socket, _) = listener.accept().await.unwrap();
    let answering = async {
        socket.readable().await.unwrap();
        tokio::io::AsyncWriteExt::write_all(&mut socket, b"HTTP/1.1 204 No Content\r\n\r\n").await.unwrap();
    };
    let (answer, ()) = tokio::join!(&mut started.response, answering);
    assert_eq!(answer.unwrap().status(), 204);
}

#[tokio::test]
async fn a_pending_request_without_a_connection_never_reports_one() {
    let (listener, addr) = listen().await;
    drop(listener);
    let client = Client::new(&config(&format!("http://{addr}"))).unwrap();
    let mut started = client.start(get(&client, "/"));
    let answer = tokio::select! {
        biased;
        () = &mut started.on_connection => panic!("there is no connection"),
        answer = &mut started.response => answer,
    };
    assert!(matches!(answer, Err(SendError::Connect(_))));
    tokio::select! {
        biased;
        () = &mut started.on_connection => panic!("there is no connection"),
        () = tokio::task::yield_now() => {}
    }
}
