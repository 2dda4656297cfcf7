//! Cookies of the upstream account stay between the gateway and the upstream, unless the client owns the account
//! (P11).

use clipgate::sim::SimOptions;
use clipgate::testing::config::{AuthMode, Config};
use clipgate::testing::secret::Secret;
use http::Uri;

use crate::clients::team;
use crate::harness::gateway::{TestGateway, clip_target};
use crate::harness::raw_http::send_raw;
use crate::harness::scripted_upstream::ScriptedUpstream;

const LENT: [bool; 3] = [false, true, true];

fn modes() -> [AuthMode; 3] {
    let team = AuthMode::Team(vec![team::member(("alice", "cg_token", "sk-account"))]);
    [AuthMode::Passthrough, AuthMode::Sidecar, team]
}

async fn gateway(auth: AuthMode, upstream: &Uri) -> TestGateway {
    let url = upstream.clone();
    let configure = |config: &mut Config, _: &mut SimOptions| {
        config.auth.mode = auth;
        config.upstream.api_key = Some(Secret::new("sk-account"));
        config.upstream.base_url = url;
    };
    TestGateway::without_upstream(configure).await
}

fn head(line: &str, fields: &str) -> String {
    format!(
        "{line} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer cg_token\r\ncookie: session=mine\r\n{fields}\r\n"
    )
}

/// Sends the request in each mode of `auth`. Returns the upstream's request and the client's response.
async fn exchange(request: &str, answer: &'static str) -> Vec<(String, String)> {
    let mut seen = Vec::new();
    for auth in modes() {
        let mut upstream = ScriptedUpstream::answering(answer).await;
        let gateway = gateway(auth, &upstream.url).await;
        let back = send_raw(gateway.address, request.as_bytes()).await;
        seen.push((upstream.next_request().await, String::from_utf8(back).unwrap()));
    }
    seen
}

fn assert_kept_apart(seen: Vec<(String, String)>, mark: &str) {
    for ((request, answer), is_lent) in seen.into_iter().zip(LENT) {
        assert!(answer.contains(mark), "{answer}");
        assert_eq!(answer.to_lowercase().contains("set-cookie"), !is_lent, "{answer}");
        assert_eq!(answer.contains("account-session"), !is_lent, "{answer}");
        assert!(!(is_lent && request.contains("session=mine")), "{request}");
    }
}

#[tokio::test]
async fn a_passed_through_response_has_the_accounts_cookies_only_for_their_owner() {
    let answer = "HTTP/1.1 200 OK\r\nSet-Cookie: a=account-session\r\nset-cookie: b=account-session\r\n\
        Set-Cookie2: c=account-session\r\nx-mark: here\r\ncontent-length: 2\r\n\r\n{}";
    let request = head("GET /x", "connection: close\r\n");
    let seen = exchange(&request, answer).await;
    assert!(seen[0].0.contains("cookie: session=mine"), "{}", seen[0].0);
    assert_kept_apart(seen, "x-mark: here");
}

#[tokio::test]
async fn a_wait_gets_no_cookie_of_the_account_even_from_its_own_poll() {
    let answer = "HTTP/1.1 200 OK\r\nset-cookie: a=account-session\r\nx-mark: here\r\n\
        content-type: application/json\r\ncontent-length: 32\r\n\r\n{\"id\":\"a\",\"status\":\"completed\"}\n";
    let request = head(&format!("GET {}", clip_target("a", "completed")), "connection: close\r\n");
    assert_kept_apart(exchange(&request, answer).await, "x-mark: here");
    let error = "HTTP/1.1 404 Not Found\r\nset-cookie: a=account-session\r\nx-mark: here\r\n\
        content-length: 2\r\n\r\n{}";
    assert_kept_apart(exchange(&request, error).await, "x-mark: here");
}

#[tokio::test]
async fn an_upgrade_response_has_no_cookie_of_the_account() {
    let answer = "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: echo\r\n\
        set-cookie: a=account-session\r\nx-mark: here\r\n\r\n";
    for (auth, is_lent) in modes().into_iter().zip(LENT) {
        let upstream = ScriptedUpstream::answering(answer).await;
        let gateway = gateway(auth, &upstream.url).await;
        let mut stream = tokio::net::TcpStream::connect(gateway.address).await.unwrap();
        let request = head("GET /x", "connection: upgrade\r\nupgrade: echo\r\n");
        tokio::io::AsyncWriteExt::write_all(&mut stream, request.as_bytes()).await.unwrap();
        let back =
            crate::harness::raw_http::read_until(&mut stream, |back| back.ends_with(b"\r\n\r\n")).await;
        let back = String::from_utf8(back).unwrap();
        assert!(back.starts_with("HTTP/1.1 101 ") && back.contains("x-mark: here"), "{back}");
        assert_eq!(back.contains("account-session"), !is_lent, "{back}");
    }
}

#[tokio::test]
async fn trailers_have_no_cookie_of_the_account() {
    let answer = "HTTP/1.1 200 OK\r\ntrailer: x-mark, x-cookie, set-cookie2\r\ntransfer-encoding: chunked\r\n\r\n\
        2\r\n{}\r\n0\r\nset-cookie2: a=account-session\r\nx-mark: here\r\n\r\n";
    let request = head("GET /x", "te: trailers\r\nconnection: te, close\r\n");
    for ((_, answer), is_lent) in exchange(&request, answer).await.into_iter().zip(LENT) {
        assert!(answer.ends_with("x-mark: here\r\n\r\n"), "{answer}");
        assert_eq!(answer.contains("account-session"), !is_lent, "{answer}");
    }
}
