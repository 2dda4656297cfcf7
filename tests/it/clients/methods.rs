//! Methods that the gateway answers itself, in every mode.

use clipgate::sim::SimOptions;
use clipgate::testing::config::AuthMode;
use clipgate::testing::secret::Secret;

use crate::clients::team;
use crate::harness::gateway::TestGateway;
use crate::harness::raw_http::{
    assert_gateway_error, field, parse_response, request, send_raw, upstream_request_count,
};

const TOKEN: (&str, &str) = ("authorization", "Bearer cg_token");

/// Starts a gateway in each mode. All of them accept `TOKEN`.
async fn gateways() -> [TestGateway; 3] {
    let team = AuthMode::Team(vec![team::member(("alice", "cg_token", "sk-account"))]);
    let modes = [AuthMode::Passthrough, AuthMode::Sidecar, team];
    let mut gateways = Vec::new();
    for auth in modes {
        let configure = |config: &mut clipgate::testing::config::Config, _: &mut SimOptions| {
            config.auth.mode = auth;
            config.upstream.api_key = Some(Secret::new("sk-account"));
        };
        gateways.push(TestGateway::with(configure).await);
    }
    gateways.try_into().unwrap_or_else(|_| panic!("three modes"))
}

#[tokio::test]
async fn methods_that_echo_the_request_are_rejected_in_every_mode_and_not_sent() {
    for gateway in gateways().await {
        for method in ["TRACE", "TRACK", "DEBUG", "trace", "Track"] {
            for target in ["/", "/sim/echo", "/v2/generate/audio/suno-ai/clip?clip_id=a"] {
                for fields in [&[TOKEN][..], &[TOKEN, ("max-forwards", "0")], &[]] {
                    let answer = gateway.send(request(method, target, fields, "")).await;
                    assert_gateway_error(&answer, 405, "method-not-allowed");
                    assert_eq!(field(&answer, "allow"), "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS");
                    assert!(!String::from_utf8_lossy(&answer.body).contains("sk-account"));
                }
            }
        }
        assert_eq!(upstream_request_count(&gateway), 0);
    }
}

#[tokio::test]
async fn rejected_methods_count_against_the_quota_of_requests() {
    let gateway = TestGateway::with(|config, _| {
        config.limits.requests_per_second = 1;
        config.limits.burst = 1;
    })
    .await;
    let mut statuses = Vec::new();
    for _ in 0..2 {
        statuses.push(gateway.send(request("TRACE", "/", &[], "")).await.status.as_u16());
    }
    assert_eq!(statuses, [405, 429]);
}

#[tokio::test]
async fn an_options_request_that_may_not_be_forwarded_is_answered_by_the_gateway() {
    for gateway in gateways().await {
        for target in ["/sim/echo", "*"] {
            let head = format!(
                "OPTIONS {target} HTTP/1.1\r\nhost: x\r\n{}: {}\r\nmax-forwards: 0\r\nconnection: close\r\n\r\n",
                TOKEN.0, TOKEN.1
            );
            let back = send_raw(gateway.address, head.as_bytes()).await;
            let (answer, rest) = parse_response(&back).unwrap();
            assert_eq!(answer.status, 204, "{answer:?}");
            assert_eq!(field(&answer, "allow"), "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS");
            assert_eq!(field(&answer, "cache-status"), "clipgate; detail=max-forwards");
            assert!(rest.is_empty());
        }
        assert_eq!(upstream_request_count(&gateway), 0);
    }
}

#[tokio::test]
async fn max_forwards_is_decremented_for_options_only() {
    let gateway = TestGateway::new().await;
    for (method, sent, expected) in [
        ("OPTIONS", "7", "6"),
        ("OPTIONS", "1", "0"),
        ("OPTIONS", "99999999999999999999999", "18446744073709551614"),
        ("OPTIONS", "-1", "-1"),
        ("OPTIONS", "many", "many"),
        ("GET", "0", "0"),
        ("POST", "7", "7"),
    ] {
        gateway.send(request(method, "/sim/echo", &[TOKEN, ("max-forwards", sent)], "")).await;
        let last = gateway.sim.requests().pop().unwrap();
        assert_eq!(last.headers["max-forwards"], expected, "{method} {sent}");
    }
    assert_eq!(upstream_request_count(&gateway), 7);
}
