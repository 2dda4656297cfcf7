use http::HeaderMap;

use super::fields::RATELIMIT_POLICY;
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
    limits.quota_headers(subject, KnownRemaining::default()).unwrap().write(&mut headers);
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
async fn the_headers_report_the_remaining_requests_and_the_reset_of_both_quotas() {
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

/// `RateLimit` and its policy are those of the same quotas.
#[test]
fn the_headers_of_a_request_that_the_quotas_before_a_change_counted_report_the_new_quotas() {
    let counted = || {
        let shared = Limits::shared(&config((100, 100), (100, 100)), &[]);
        let known = KnownRemaining {
            requests: shared.check_request(key(1)).unwrap(),
            calls: shared.check_call(key(1)).unwrap(),
        };
        (shared, known)
    };
    let text = |limits: &Limits, known| {
        let mut headers = HeaderMap::new();
        limits.quota_headers(key(1), known).unwrap().write(&mut headers);
        [RATELIMIT_POLICY, RATELIMIT].map(|name| headers[&name].to_str().unwrap().to_owned())
    };
    let (limits, known) = counted();
    assert_eq!(text(&limits, known)[1], "\"requests\";r=99, \"calls\";r=99");
    limits.reconfigure(&config((5, 10), (5, 10)), &[]);
    assert_eq!(
        text(&limits, known),
        ["\"requests\";q=10;w=2, \"calls\";q=10;w=2", "\"requests\";r=10, \"calls\";r=10"]
    );
    let (limits, known) = counted();
    limits.set_replicas(4, true);
    assert_eq!(text(&limits, known), text(&limits, KnownRemaining::default()));
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
    assert!(limits.quota_headers(key(1), KnownRemaining::default()).is_none());
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

fn shared_limits(requests: (u32, u32), calls: (u32, u32)) -> Limits {
    Limits::shared(&config(requests, calls), &[])
}

#[tokio::test(start_paused = true)]
async fn an_answer_of_the_engine_raises_a_count_and_the_headers_say_so() {
    let limits = shared_limits((1, 4), (0, 0));
    limits.check_request(key(1)).unwrap();
    let [take] = limits.takes().unwrap().drain(Limit::Requests)[..] else { panic!("not one take") };
    assert_eq!((take.count, take.rate, take.burst), (1, 1, 4));
    limits.check_request(key(1)).unwrap();
    assert_eq!(fields(&limits, key(1)).1, "\"requests\";r=2");
    // Siblings have used one more. The second request here is not in the answer yet.
    limits.raise(&take, Duration::from_secs(2));
    assert_eq!(fields(&limits, key(1)).1, "\"requests\";r=1");
    limits.raise(&take, Duration::from_secs(1));
    assert_eq!(fields(&limits, key(1)).1, "\"requests\";r=1", "an answer never lowers a count");
    limits.raise(&take, Duration::from_secs(7));
    assert_eq!(fields(&limits, key(1)).1, "\"requests\";r=0;t=5", "a debt is paid off first");
    assert_eq!(limits.check_request(key(1)).unwrap_err().retry_after, Duration::from_secs(5));
    limits.reconfigure(&config((1, 5), (0, 0)), &[]);
    limits.raise(&take, Duration::from_secs(2));
    assert_eq!(
        fields(&limits, key(1)).1,
        "\"requests\";r=5",
        "the answer concerns a quota of before the reload"
    );
}

#[tokio::test(start_paused = true)]
async fn a_divided_quota_has_its_part_of_burst_and_rate() {
    for (replicas, rate, burst, passes) in [(3, 3, 9, 3), (3, 1, 1, 1), (2, 10, 5, 3), (1, 2, 4, 4)] {
        let limits = shared_limits((rate, burst), (0, 0));
        limits.set_replicas(replicas, true);
        let policy = format!("\"requests\";q={passes};w={}", burst.div_ceil(rate));
        assert_eq!(fields(&limits, key(1)), (policy, format!("\"requests\";r={passes}")));
        assert_eq!(passed_requests(&limits, key(1)), passes);
        let window = 60 * replicas;
        let mut later = 0;
        for _ in 0..10 * window {
            tokio::time::advance(Duration::from_millis(100)).await;
            later += passed_requests(&limits, key(1));
        }
        let ideal = (window * rate / replicas) as usize;
        assert!(later <= ideal + passes && later + passes >= ideal, "{later} of {ideal}");
        limits.set_replicas(replicas, false);
        tokio::time::advance(Duration::from_secs(60)).await;
        assert_eq!(passed_requests(&limits, key(1)), burst as usize, "the whole quota with the engine");
    }
}

#[tokio::test(start_paused = true)]
async fn a_divided_quota_keeps_the_counts_and_a_reload_keeps_it_divided() {
    let limits = shared_limits((1, 6), (0, 0));
    assert!((0..4).all(|_| limits.check_request(key(1)).is_ok()));
    limits.set_replicas(2, true);
    assert_eq!(fields(&limits, key(1)).1, "\"requests\";r=1");
    limits.reconfigure(&config((1, 8), (0, 0)), &[]);
    assert_eq!(fields(&limits, key(1)), ("\"requests\";q=4;w=8".to_owned(), "\"requests\";r=4".to_owned()));
}

/// The count of a quota at the engine, as `take.lua` has it.
struct EngineCount(Instant);

impl EngineCount {
    fn take(&mut self, take: &QuotaTake, replicas: u32, now: Instant) -> Duration {
        let full_in = self.0.saturating_duration_since(now) + take.time();
        let full_in = full_in.min(take.max_time(replicas));
        self.0 = now + full_in;
        full_in
    }
}

/// A replica and its take on the way to the engine and back.
struct Flooded {
    limits: Limits,
    drained_at: Instant,
    under_way: Option<(Instant, Instant, QuotaTake, Option<Duration>)>,
}

/// Returns the requests that passed in each half of the time, under a flood at all replicas.
async fn flood(rng: &mut fastrand::Rng, replicas: u32, pair: (u32, u32), delay: u64, loss: f64) -> [u32; 2] {
    let now = clock::now();
    let mut engine = EngineCount(now);
    let new = || Flooded { limits: shared_limits(pair, (0, 0)), drained_at: now, under_way: None };
    let mut all: Vec<Flooded> = (0..replicas).map(|_| new()).collect();
    let pause = Duration::from_millis(rng.u64(0..=1) * 100);
    let mut passed = [0, 0];
    for ms in 0..2 * HALF_MS {
        let now = clock::now();
        for Flooded { limits, drained_at, under_way } in &mut all {
            limits.set_replicas(replicas, false);
            for _ in 0..rng.u32(0..4) {
                passed[usize::from(ms >= HALF_MS)] += u32::from(limits.check_request(key(1)).is_ok());
            }
            if let Some((at_engine, _, take, answer @ None)) = under_way
                && *at_engine <= now
            {
                *answer = Some(engine.take(take, replicas, now));
            }
            if let Some((_, back, take, answer)) = under_way.take_if(|(_, back, ..)| *back <= now) {
                debug_assert!(back <= now);
                answer.into_iter().for_each(|full_in| limits.raise(&take, full_in));
            }
            let takes = limits.takes().unwrap();
            let is_urgent = takes.requests.pending(&key(1)) >= (pair.1 / replicas / 2).max(1);
            if under_way.is_none() && (is_urgent || now >= *drained_at + pause) {
                *drained_at = now;
                if let Some(take) = takes.drain(Limit::Requests).pop().filter(|_| rng.f64() >= loss) {
                    let at_engine = now + Duration::from_millis(rng.u64(0..=delay));
                    let back = at_engine + Duration::from_millis(rng.u64(0..=delay));
                    *under_way = Some((at_engine, back, take, None));
                }
            }
        }
        tokio::time::advance(Duration::from_millis(1)).await;
    }
    passed
}

const HALF_MS: u64 = 4000;

#[tokio::test(start_paused = true)]
async fn replicas_together_keep_to_the_rate_and_overshoot_a_burst_by_a_round_trip() {
    for seed in 0..48 {
        let mut rng = fastrand::Rng::with_seed(seed);
        let (replicas, delay) = (rng.u32(1..=4), rng.u64(0..=10));
        let pair = (rng.u32(5..=100), rng.u32(1..=200));
        let (rate, burst) = (f64::from(pair.0), f64::from(pair.1));
        let [first, second] = flood(&mut rng, replicas, pair, delay, 0.0).await;
        // A replica knows the others' requests after two round trips: that of a take under way, and that of the next.
        let stale = f64::from(replicas) * (2.0 + rate * (4.0 * delay as f64 + 2.0) / 1000.0);
        let half = rate * HALF_MS as f64 / 1000.0;
        let context = format!("seed {seed}: {replicas} replicas, {pair:?}, {delay} ms: {first} and {second}");
        assert!(f64::from(first) <= half + f64::from(replicas) * burst + stale, "{context}");
        // A debt of more than a burst is forgiven.
        if stale <= burst {
            assert!(f64::from(second) <= half + burst + stale, "{context}");
        }
        assert!(f64::from(first + second) >= 2.0 * half - 1.0, "no request is lost: {context}");
    }
}

#[tokio::test(start_paused = true)]
async fn lost_takes_cost_their_part_of_the_quota_only() {
    let mut rng = fastrand::Rng::with_seed(1);
    let [first, second] = flood(&mut rng, 3, (50, 100), 5, 0.1).await;
    assert!(first <= 200 + 3 * 100 + 50, "{first}");
    assert!(second <= 200 * 5 / 4 + 100, "{second}");
}
