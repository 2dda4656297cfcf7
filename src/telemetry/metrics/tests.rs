//! Tests of the page that Prometheus scrapes.

use std::time::Duration;

use prometheus_client::encoding::prometheus_text::encode;
use strum::VariantArray;

use super::*;
use crate::clock;

fn page(registry: &Registry) -> String {
    let mut page = String::new();
    encode(&mut page, registry).unwrap();
    page
}

/// Returns the value of a sample.
fn value(page: &str, sample: &str) -> Option<f64> {
    page.lines().find_map(|line| line.strip_prefix(sample)?.strip_prefix(' ')?.parse().ok())
}

fn assert_labels<L: VariantArray + Copy + Into<&'static str>>(expected: &[&str]) {
    let labels: Vec<&str> = L::VARIANTS.iter().map(|&label| label.into()).collect();
    assert_eq!(labels, expected);
}

#[test]
fn labels_are_those_of_the_documentation() {
    assert_labels::<EndpointLabel>(&["clip", "clips", "other"]);
    assert_labels::<Outcome>(&[
        "hit",
        "opened",
        "coalesced",
        "proven",
        "passthrough",
        "rejected",
        "preflight",
        "event_stream",
        "client_closed",
    ]);
    assert_labels::<WaitEnd>(&[
        "reached",
        "timed-out",
        "unsplit",
        "upstream_rejected",
        "failed",
        "client_closed",
    ]);
    assert_labels::<CallKind>(&["poll", "snapshot", "passthrough"]);
    assert_labels::<CallCause>(&[
        "wait",
        "batch",
        "reopen",
        "snapshot",
        "deadline",
        "watch",
        "no-cache",
        "retry",
        "passthrough",
    ]);
    assert_labels::<CallError>(&[
        "connect",
        "connect-timeout",
        "tls",
        "local-resources",
        "reset",
        "timeout",
        "invalid",
    ]);
    assert_labels::<Limit>(&[
        "requests",
        "calls",
        "waits-per-key",
        "waits",
        "passthrough-per-key",
        "passthrough",
    ]);
    assert_labels::<CloseReason>(&["idle", "address"]);
}

#[test]
fn counts_are_on_the_page_with_their_labels() {
    let mut registry = Registry::default();
    let metrics = Metrics::new(&mut registry);
    metrics.requests.finish(EndpointLabel::Job, Outcome::Hit, Duration::from_millis(2));
    metrics.requests.finish(EndpointLabel::Jobs, Outcome::Hit, Duration::ZERO);
    metrics.requests.finish(EndpointLabel::Job, Outcome::Coalesced, Duration::from_secs(120));
    metrics.requests.finish(EndpointLabel::Job, Outcome::Proven, Duration::ZERO);
    metrics.requests.finish(EndpointLabel::Other, Outcome::Passthrough, Duration::from_secs(1));
    metrics.upstream.retried();
    metrics.upstream.set_poll_counts(PollCounts { open: 3, waiting: 2, watches: 1, is_breaker_open: true });
    metrics.waits.finish(WaitEnd::Reached, Duration::from_secs(1));
    metrics.waits.finish(WaitEnd::ClientClosed, Duration::ZERO);
    metrics.cluster.set_link(LinkLabel::Far);
    metrics.cluster.set_counts(3, 7);
    metrics.cluster.claim(ClaimOutcome::Held, Duration::from_millis(1));
    metrics.cluster.message(MessageLabel::Landed);
    let page = page(&registry);
    let rows = [
        ("clipgate_requests_total{route=\"clip\",outcome=\"hit\"}", 1.0),
        ("clipgate_requests_total{route=\"clips\",outcome=\"hit\"}", 1.0),
        ("clipgate_requests_total{route=\"clip\",outcome=\"coalesced\"}", 1.0),
        ("clipgate_requests_total{route=\"other\",outcome=\"passthrough\"}", 1.0),
        ("clipgate_requests_total{route=\"other\",outcome=\"rejected\"}", 0.0),
        ("clipgate_upstream_calls_saved_total", 4.0),
        ("clipgate_request_seconds_count{outcome=\"hit\"}", 2.0),
        ("clipgate_request_seconds_bucket{outcome=\"hit\",le=\"0.001\"}", 1.0),
        ("clipgate_request_seconds_bucket{outcome=\"coalesced\",le=\"121\"}", 1.0),
        ("clipgate_request_seconds_bucket{outcome=\"coalesced\",le=\"90\"}", 0.0),
        ("clipgate_wait_seconds_count{end=\"reached\"}", 1.0),
        ("clipgate_wait_seconds_count{end=\"client_closed\"}", 1.0),
        ("clipgate_upstream_retries_total", 1.0),
        ("clipgate_upstream_polls", 3.0),
        ("clipgate_upstream_polls_waiting", 2.0),
        ("clipgate_watches", 1.0),
        ("clipgate_breaker_open", 1.0),
        ("clipgate_cluster_link{state=\"near\"}", 0.0),
        ("clipgate_cluster_link{state=\"far\"}", 1.0),
        ("clipgate_cluster_members", 3.0),
        ("clipgate_cluster_outbox", 7.0),
        ("clipgate_cluster_claims_total{outcome=\"held\"}", 1.0),
        ("clipgate_cluster_claims_total{outcome=\"timeout\"}", 0.0),
        ("clipgate_cluster_claim_seconds_count", 1.0),
        ("clipgate_cluster_takeovers_total{why=\"dead\"}", 0.0),
        ("clipgate_cluster_messages_total{kind=\"landed\"}", 1.0),
        ("clipgate_upstream_requests_total{kind=\"poll\",code=\"200\",cause=\"wait\"}", 0.0),
    ];
    for (sample, expected) in rows {
        assert_eq!(value(&page, sample), Some(expected), "{sample} in {page}");
    }
    let version = format!("clipgate_build_info{{version=\"{}\"}}", env!("CARGO_PKG_VERSION"));
    assert_eq!(value(&page, &version), Some(1.0), "{page}");
    assert_eq!(metrics.requests.count(Outcome::Hit), 2);
    assert_eq!(metrics.requests.saved(), 4);
    let counts = PollCounts { open: 3, waiting: 2, watches: 1, is_breaker_open: true };
    assert_eq!(metrics.upstream.poll_counts(), counts);
}

#[test]
fn an_upstream_request_is_counted_once_with_its_result() {
    let mut registry = Registry::default();
    let metrics = Metrics::new(&mut registry);
    let codes = [
        (Code::Status(200), "200", false),
        (Code::Status(404), "404", false),
        (Code::Status(503), "503", true),
        (Code::Status(999), "600", true),
        (Code::Fault(CallError::ConnectTimeout), "connect-timeout", true),
        (Code::Fault(CallError::LocalResources), "local-resources", false), // the gateway's own
        (Code::Fault(CallError::Invalid), "invalid", true),
    ];
    for (code, _, _) in codes {
        metrics.upstream.call(CallKind::Poll, CallCause::Wait).finish(code);
    }
    drop(metrics.upstream.call(CallKind::Snapshot, CallCause::Deadline));
    let page = page(&registry);
    for (_, label, _) in codes {
        let sample =
            format!("clipgate_upstream_requests_total{{kind=\"poll\",code=\"{label}\",cause=\"wait\"}}");
        assert_eq!(value(&page, &sample), Some(1.0), "{label}: {page}");
    }
    let cancelled =
        "clipgate_upstream_requests_total{kind=\"snapshot\",code=\"cancelled\",cause=\"deadline\"}";
    assert_eq!(value(&page, cancelled), Some(1.0));
    assert_eq!(value(&page, "clipgate_upstream_seconds_count{kind=\"poll\"}"), Some(7.0));
    assert_eq!(metrics.upstream.count(CallKind::Poll), 7);
    assert_eq!(metrics.upstream.count_of_cause(CallCause::Wait), 7);
    assert_eq!(metrics.upstream.count_of_cause(CallCause::Deadline), 1);
    let faults = codes.iter().filter(|(_, _, is_fault)| *is_fault).count();
    assert_eq!(metrics.upstream.errors(), faults as u64);
    let health = metrics.upstream.health();
    assert!(health.answered_at.is_some());
    assert_eq!(health.failed.map(|(_, code)| code), Some(Code::Fault(CallError::Invalid)));
}

#[test]
fn the_last_wait_of_a_response_ends_its_fanout() {
    let mut registry = Registry::default();
    let metrics = Metrics::new(&mut registry);
    let count = || value(&page(&registry), "clipgate_fanout_seconds_count");
    let first = Arc::new(metrics.waits.fanout(clock::now()));
    let last = Arc::clone(&first);
    drop(first);
    assert_eq!(count(), Some(0.0));
    drop(last);
    assert_eq!(count(), Some(1.0));
}

#[test]
fn only_members_of_the_configuration_are_label_values() {
    let mut registry = Registry::default();
    let limited = &Metrics::new(&mut registry).rate_limited;
    limited.set_members(["ann \"the\" first", "bob"]);
    limited.record(Limit::Calls, Some("bob"));
    limited.record(Limit::Calls, Some("mallory"));
    limited.record(Limit::Waits, None);
    let count = |quota: &str, member: &str| {
        let sample = format!("clipgate_rate_limited_total{{quota=\"{quota}\",member=\"{member}\"}}");
        value(&page(&registry), &sample)
    };
    assert_eq!(count("calls", "bob"), Some(1.0));
    assert_eq!(count("calls", r#"ann \"the\" first"#), Some(0.0));
    assert_eq!(count("calls", "mallory"), None);
    assert_eq!(count("calls", ""), Some(1.0));
    assert_eq!(count("waits", ""), Some(1.0));
    assert_eq!((limited.count(Limit::Calls), limited.count(Limit::Requests)), (2, 0));

    limited.set_members(["bob", "carol"]);
    assert_eq!(count("calls", "bob"), Some(1.0), "a member that stays keeps its count");
    assert_eq!(count("waits-per-key", "carol"), Some(0.0));
    assert!(!page(&registry).contains("member=\"ann"));
}

#[cfg(target_os = "linux")]
#[test]
fn the_process_has_metrics_of_its_own() {
    let mut registry = Registry::default();
    Metrics::new(&mut registry);
    let page = page(&registry);
    for name in ["resident_memory_bytes", "virtual_memory_bytes", "open_fds", "max_fds", "threads"] {
        let value = value(&page, &format!("process_{name}"));
        assert!(value.is_some_and(|value| value > 0.0), "{name}: {page}");
    }
    let now = std::time::UNIX_EPOCH.elapsed().unwrap().as_secs_f64();
    let started = value(&page, "process_start_time_seconds").unwrap();
    assert!((now - 3600.0..=now + 5.0).contains(&started), "{started} at {now}");
    assert!(value(&page, "process_cpu_seconds_total").is_some());
}
