//! Methods that the gateway answers itself, in every mode.

use clipgate::sim::SimOptions;
use clipgate::testing::config::AuthConfig;
use clipgate::testing::secret::Secret;

use crate::clients::team;
use crate::harness::gateway::TestGateway;
use crate::harness::raw_http::{
    assert_gateway_error, field, parse_response, request, send_raw, upstream_request_count,
};

const TOKEN: (&str, &str) = ("authorization", "Bearer cg_token");

/// A gateway in each mode. In all of them `TOKEN` lets a client in.
async fn stages() -> [TestGateway; 3] {
    let team = AuthConfig::Team(vec![team::member(("alice", "cg_token", "sk-account"))]);
    let modes = [AuthConfig::Passthrough, AuthConfig::Sidecar, team];
    let mut stages = Vec::new();
    for auth in modes {
        let configure = |config: &mut clipgate::testing::config::Config, _: &mut SimOptions| {
            config.auth = auth;
            config.upstream.api_key = Some(Secret::new("sk-account"));
        };
        stages.push(TestGateway::with(configure).await);
    }
    stages.try_into().unwrap_or_else(|_| panic!("three modes"))
}

#[tokio::test]
async fn methods_that_repeat_the_request_are_refused_in_every_mode_and_never_reach_the_upstream() {
    for stage in stages().await {
        for method in ["TRACE", "TRACK", "DEBUG", "trace", "Track"] {
            for target in ["/", "/sim/echo", "/v2/generate/audio/suno-ai/clip?clip_id=a"] {
                for fields in [&[TOKEN][..], &[TOKEN, ("max-forwards", "0")], &[]] {
                    let answer = stage.send(request(method, target, fields, "")).await;
                    assert_gateway_error(&answer, 405, "method-not-allowed");
                    assert_eq!(field(&answer, "allow"), "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS");
                    assert!(!String::from_utf8_lossy(&answer.body).contains("sk-account"));
                }
            }
        }
        assert_eq!(upstream_request_count(&stage), 0);
    }
}

#[tokio::test]
async fn refused_methods_count_against_the_quota_of_requests() {
    let stage = TestGateway::with(|config, _| {
        config.limits.requests_per_second = 1;
        config.limits.burst = 1;
    })
    .await;
    let mut statuses = Vec::new();
    for _ in 0..2 {
        statuses.push(stage.send(request("TRACE", "/", &[], "")).await.status.as_u16());
    }
    assert_eq!(statuses, [405, 429]);
}

#[tokio::test]
async fn an_options_request_that_may_not_be_forwarded_is_answered_by_the_gateway() {
    for stage in stages().await {
        for target in ["/sim/echo", "*"] {
            let head = format!(
                "OPTIONS {target} HTTP/1.1\r\nhost: x\r\n{}: {}\r\nmax-forwards: 0\r\nconnection: close\r\n\r\n",
                TOKEN.0, TOKEN.1
            );
            let back = send_raw(stage.address, head.as_bytes()).await;
            let (answer, rest) = parse_response(&back).unwrap();
            assert_eq!(answer.status, 204, "{answer:?}");
            assert_eq!(field(&answer, "allow"), "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS");
            assert_eq!(field(&answer, "cache-status"), "clipgate; detail=max-forwards");
            assert!(rest.is_empty());
        }
        assert_eq!(upstream_request_count(&stage), 0);
    }
}

#[tokio::test]
async fn max_forwards_is_counted_down_for_options_and_left_alone_elsewhere() {
    let stage = TestGateway::new().await;
    for (method, said, seen) in [
        ("OPTIONS", "7", "6"),
        ("OPTIONS", "1", "0"),
        ("OPTIONS", "99999999999999999999999", "18446744073709551614"),
        ("OPTIONS", "-1", "-1"),
        ("OPTIONS", "many", "many"),
        ("GET", "0", "0"),
        ("POST", "7", "7"),
    ] {
        stage.send(request(method, "/sim/echo", &[TOKEN, ("max-forwards", said)], "")).await;
        let last = stage.sim.requests().pop().unwrap();

        assert_eq!(last.headers["max-forwards"], seen, "{method} {said}");
    }
    assert_eq!(upstream_request_count(&stage), 7);
}
