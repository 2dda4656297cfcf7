use super::*;
use crate::secret::{Secret, TokenHash};

fn config(requests: (u32, u32), calls: (u32, u32)) -> config::LimitsConfig {
    config::LimitsConfig {
        requests_per_second: requests.0,
        burst: requests.1,
        calls_per_second: calls.0,
        calls_burst: calls.1,
        ..config::Config::default().limits
    }
}

fn limits(requests: (u32, u32), calls: (u32, u32)) -> Limits {
    Limits::new(&config(requests, calls), &[])
}

fn member(name: &str, requests: (Option<u32>, Option<u32>), calls: (Option<u32>, Option<u32>)) -> TeamMember {
    TeamMember {
        name: name.to_owned(),
        token_sha256: TokenHash([0; 32]),
        upstream_key: Secret::new("k"),
        requests_per_second: requests.0,
        burst: requests.1,
        calls_per_second: calls.0,
        calls_burst: calls.1,
    }
}

fn key(number: u32) -> Subject {
    let mut domain = KeyDomain([0; 16]);
    domain.0[..4].copy_from_slice(&number.to_be_bytes());
    Subject::Key(domain)
}

/// Returns how many of 100 requests pass.
fn passed_requests(limits: &Limits, subject: Subject) -> usize {
    (0..100).filter(|_| limits.check_request(subject).is_ok()).count()
}

fn fields(limits: &Limits, subject: Subject) -> (String, String) {
    let mut headers = HeaderMap::new();
    limits.quota_headers(subject).unwrap().write(&mut headers);
    let text = |name| headers[&name].to_str().unwrap().to_owned();
    (text(RATELIMIT_POLICY), text(RATELIMIT))
}

#[tokio::test(start_paused = true)]
async fn a_burst_passes_then_each_key_recovers_at_its_rate() {
    let limits = limits((2, 10), (0, 0));
    assert_eq!(passed_requests(&limits, key(1)), 10);
    assert!(limits.check_request(key(2)).is_ok(), "the quota of another key is full");
    tokio::time::advance(Duration::from_secs(1)).await;
    assert_eq!(passed_requests(&limits, key(1)), 2);
}

#[tokio::test(start_paused = true)]
async fn the_headers_report_the_rest_and_the_reset_of_both_quotas() {
    let limits = limits((1, 2), (1, 3));
    let policy = "\"requests\";q=2;w=2, \"calls\";q=3;w=3";
    let expected = |now: &str| (policy.to_owned(), now.to_owned());
    assert_eq!(fields(&limits, key(1)), expected("\"requests\";r=2, \"calls\";r=3"));
    limits.check_request(key(1)).unwrap();
    assert_eq!(fields(&limits, key(1)), expected("\"requests\";r=1, \"calls\";r=3"));
    limits.check_request(key(1)).unwrap();
    limits.check_call(key(1)).unwrap();
    assert_eq!(fields(&limits, key(1)), expected("\"requests\";r=0;t=1, \"calls\";r=2"));
    let exceeded = limits.check_request(key(1)).unwrap_err();
    assert_eq!(exceeded, QuotaExceeded { quota: Limit::Requests, retry_after: Duration::from_secs(1) });
    assert_eq!(fields(&limits, key(1)), expected("\"requests\";r=0;t=1, \"calls\";r=2"));
    tokio::time::advance(Duration::from_secs(1)).await;
    assert_eq!(fields(&limits, key(1)), expected("\"requests\";r=1, \"calls\";r=3"));
}

#[tokio::test(start_paused = true)]
async fn calls_count_separately_from_requests() {
    let limits = limits((1, 100), (1, 2));
    assert!(limits.check_call(key(1)).is_ok() && limits.check_call(key(1)).is_ok());
    assert_eq!(limits.check_call(key(1)).unwrap_err().quota, Limit::Calls);
    assert!(limits.check_request(key(1)).is_ok());
    assert!(limits.check_call(key(2)).is_ok());
}

#[test]
fn a_rate_of_zero_disables_a_quota() {
    let limits = limits((0, 0), (0, 0));
    assert_eq!(passed_requests(&limits, key(1)), 100);
    assert!(limits.quota_headers(key(1)).is_none());
}

#[tokio::test(start_paused = true)]
async fn a_member_has_its_own_rates_and_the_defaults_for_missing_ones() {
    let members = [
        member("both", (Some(1), Some(3)), (None, None)),
        member("burst", (None, Some(4)), (None, Some(1))),
        member("plain", (None, None), (None, None)),
    ];
    let limits = Limits::new(&config((2, 10), (2, 20)), &members);
    let policy = |name| fields(&limits, Subject::member(name)).0;
    assert_eq!(policy("both"), "\"requests\";q=3;w=3, \"calls\";q=20;w=10");
    assert_eq!(policy("burst"), "\"requests\";q=4;w=2, \"calls\";q=1;w=1");
    assert_eq!(policy("plain"), "\"requests\";q=10;w=5, \"calls\";q=20;w=10");
    for (name, passes) in [("both", 3), ("burst", 4), ("plain", 10)] {
        assert_eq!(passed_requests(&limits, Subject::member(name)), passes, "{name}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_reload_applies_at_once_and_keeps_the_counts_of_unchanged_rates() {
    let own = |burst| member("a", (None, Some(burst)), (None, None));
    let limits = Limits::new(&config((1, 5), (1, 5)), &[own(3)]);
    let a = Subject::member("a");
    assert_eq!((passed_requests(&limits, a), passed_requests(&limits, key(1))), (3, 5));

    limits.reconfigure(&config((1, 5), (1, 6)), &[own(3)]);
    assert_eq!(
        (passed_requests(&limits, a), passed_requests(&limits, key(1))),
        (0, 0),
        "these rates have not changed"
    );
    assert_eq!(fields(&limits, a).0, "\"requests\";q=3;w=3, \"calls\";q=6;w=6");

    limits.reconfigure(&config((1, 5), (1, 6)), &[own(4)]);
    assert_eq!((passed_requests(&limits, a), passed_requests(&limits, key(1))), (4, 0));

    limits.reconfigure(&config((1, 7), (1, 6)), &[]);
    assert_eq!((passed_requests(&limits, a), passed_requests(&limits, key(1))), (7, 7));
}

#[tokio::test(start_paused = true)]
async fn idle_keys_are_removed() {
    let limits = limits((10, 10), (10, 10));
    for number in 0..100 {
        limits.check_request(key(number)).unwrap();
        limits.check_call(key(number)).unwrap();
    }
    assert_eq!(limits.tracked_subjects(), 200);
    tokio::time::advance(Duration::from_secs(60)).await;
    limits.purge_idle();
    assert_eq!(limits.tracked_subjects(), 0);
}

/// Prints the resident memory if it runs alone with `--nocapture`.
#[tokio::test(start_paused = true)]
async fn a_million_keys_stay_within_the_bound_and_idle_ones_are_removed() {
    let limits = limits((200, 400), (20, 40));
    let before = resident();
    for number in 0..1_000_000 {
        limits.check_request(key(number)).unwrap();
        limits.check_call(key(number)).unwrap();
    }
    let full = resident();
    let tracked = limits.tracked_subjects();
    assert!((400_000..=2 * 458_752).contains(&tracked), "{tracked}");
    tokio::time::advance(Duration::from_secs(60)).await;
    limits.purge_idle();
    assert_eq!(limits.tracked_subjects(), 0);
    println!("KiB resident: {before} before, {full} with {tracked} states, {} idle", resident());
}

/// Returns the resident memory in KiB. 0 if the system does not report it.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok()).unwrap_or(0)
}

#[test]
fn an_ipv6_client_counts_as_its_network() {
    let subject = |text: &str| Subject::from(Some(text.parse::<IpAddr>().unwrap()));
    assert_eq!(subject("2001:db8::1"), subject("2001:db8::2"));
    assert_ne!(subject("2001:db8::1"), subject("2001:db8:0:1::1"));
    assert_eq!(subject("::ffff:192.0.2.1"), subject("192.0.2.1"));
    assert_ne!(subject("192.0.2.1"), subject("192.0.2.2"));
}
