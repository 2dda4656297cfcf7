//! Chains of snapshots: the waits and plain GETs that share one, its pace, and its end.

use std::time::{Duration, Instant};

use clipgate::sim::{Fault, FaultTarget, RecordedRequest, RequestEnd, Vendor};
use clipgate::testing::clock;
use http::StatusCode;

use crate::harness::gateway::{Answer, TestGateway, join_all};
use crate::routes::config_file::preset_with;

const MILLIS: fn(u64) -> Duration = Duration::from_millis;
const JOB: &str = "/v1/predictions/a";
const PACE: Duration = Duration::from_millis(200);
/// Delay of a busy machine.
const SLACK: Duration = Duration::from_millis(400);

/// Starts a gateway with the preset `replicate`, these lines of its route, and the job `a` in its second state.
async fn gateway(lines: &str) -> TestGateway {
    let routes = preset_with("replicate", lines);
    let gateway = TestGateway::with(|config, _| config.routes = routes).await;
    gateway.sim.set_job(Vendor::Replicate, "a", "processing");
    gateway
}

fn word(answer: &Answer) -> String {
    assert_eq!(answer.status, 200, "{answer:?}");
    let body: serde_json::Value = serde_json::from_slice(&answer.body).unwrap();
    body["status"].as_str().unwrap().to_owned()
}

/// Asserts that each request begins a pace after the one before it. Half a pace is enough for the first gap.
fn assert_one_chain(requests: &[RecordedRequest], pace: Duration) {
    let gaps: Vec<_> = requests.windows(2).map(|pair| pair[1].at - pair[0].at).collect();
    let is_paced = |(at, gap): (usize, &Duration)| *gap >= if at == 0 { pace / 2 } else { pace };
    assert!(gaps.iter().enumerate().all(is_paced), "{gaps:?}");
}

/// Returns the most requests that one in each interval makes, from `began` until now.
fn most_since(began: Instant, interval: Duration) -> usize {
    (began.elapsed().as_millis() / interval.as_millis()) as usize + 1
}

#[tokio::test]
async fn a_wait_is_answered_within_the_pace_after_the_end_of_its_job() {
    let gateway = gateway("pace = \"200ms\"\nmax_pace = \"200ms\"").await;
    let began = clock::now();
    let waiting = gateway.spawn_get(JOB, &[("prefer", "wait=20")]);
    tokio::time::sleep(MILLIS(1000)).await;
    gateway.sim.set_job(Vendor::Replicate, "a", "succeeded");
    let ended = clock::now();
    assert_eq!(word(&waiting.await.unwrap()), "succeeded");
    assert!(ended.elapsed() < PACE + SLACK, "{:?}", ended.elapsed());
    let requests = gateway.sim.requests();
    assert!((3..=most_since(began, PACE) + 1).contains(&requests.len()), "{}", requests.len());
    assert_one_chain(&requests, PACE);
}

#[tokio::test]
async fn forty_waits_for_two_states_share_one_chain() {
    let gateway = gateway("pace = \"200ms\"\nmax_pace = \"200ms\"\nwait_param = \"until\"").await;
    gateway.sim.set_job(Vendor::Replicate, "a", "starting");
    let began = clock::now();
    let for_start = format!("{JOB}?until=processing");
    let (mut starts, mut ends) = (Vec::new(), Vec::new());
    for _ in 0..20 {
        starts.push(gateway.spawn_get(&for_start, &[("prefer", "wait=20")]));
        ends.push(gateway.spawn_get(JOB, &[("prefer", "wait=20")]));
    }
    gateway.wait_until_parked(40).await;
    tokio::time::sleep(2 * PACE).await;
    gateway.sim.set_job(Vendor::Replicate, "a", "processing");
    for answer in join_all(starts).await {
        assert_eq!(word(&answer), "processing");
    }
    gateway.wait_until_parked(20).await;
    gateway.sim.set_job(Vendor::Replicate, "a", "succeeded");
    for answer in join_all(ends).await {
        assert_eq!(word(&answer), "succeeded");
    }
    let requests = gateway.sim.requests();
    assert!(requests.len() <= most_since(began, PACE) + 1, "{}", requests.len());
    assert_one_chain(&requests, PACE);
    assert!(requests.iter().all(|seen| &*seen.target == JOB), "the vendor does not have `until`");
}

/// Sends plain GETs of ten clients, each every 20 ms, for this time.
async fn poll_plainly(gateway: &TestGateway, time: Duration) -> Vec<Answer> {
    let (began, mut answers) = (clock::now(), Vec::new());
    while began.elapsed() < time {
        let round = (0..10).map(|_| gateway.spawn_get(JOB, &[])).collect();
        answers.extend(join_all(round).await);
        tokio::time::sleep(MILLIS(20)).await;
    }
    answers
}

#[tokio::test]
async fn ten_plain_pollers_cause_at_most_one_request_in_each_live_ttl() {
    let gateway = gateway("pace = \"2s\"\nlive_ttl = \"150ms\"").await;
    let began = clock::now();
    for answer in poll_plainly(&gateway, MILLIS(1500)).await {
        assert_eq!(word(&answer), "processing");
    }
    let requests = gateway.sim.requests().len();
    assert!((3..=most_since(began, MILLIS(150))).contains(&requests), "{requests}");
}

#[tokio::test]
async fn plain_pollers_beside_a_wait_cause_no_request_of_their_own() {
    let gateway = gateway("pace = \"200ms\"\nmax_pace = \"200ms\"\nlive_ttl = \"900ms\"").await;
    let waiting = gateway.spawn_get(JOB, &[("prefer", "wait=20")]);
    gateway.wait_until(|seen| seen.requests.len() >= 2).await;
    for answer in poll_plainly(&gateway, MILLIS(1200)).await {
        assert_eq!(word(&answer), "processing");
        assert!(answer.is_hit(), "{answer:?}");
    }
    gateway.sim.set_job(Vendor::Replicate, "a", "succeeded");
    assert_eq!(word(&waiting.await.unwrap()), "succeeded");
    assert_one_chain(&gateway.sim.requests(), PACE);
}

#[tokio::test]
async fn a_wait_that_joins_after_the_end_of_the_job_is_answered_within_live_ttl() {
    let gateway = gateway("pace = \"4s\"\nlive_ttl = \"300ms\"").await;
    let first = gateway.spawn_get(JOB, &[("prefer", "wait=20")]);
    gateway.wait_until(|seen| seen.requests.iter().any(|request| request.ended_at.is_some())).await;
    gateway.sim.set_job(Vendor::Replicate, "a", "succeeded");
    tokio::time::sleep(MILLIS(200)).await;
    let second = gateway.get(JOB, &[("prefer", "wait=20")]).await;
    assert_eq!(word(&second), "succeeded");
    assert!(second.took < MILLIS(300) + SLACK, "{second:?}");
    assert_eq!(word(&first.await.unwrap()), "succeeded");
    assert_eq!(gateway.sim.requests().len(), 2);
}

#[tokio::test]
async fn a_slow_answer_proves_nothing_at_a_deadline() {
    let gateway = gateway("pace = \"4s\"\nlive_ttl = \"300ms\"").await;
    gateway.sim.fault_share(FaultTarget::Polls, Fault::Slow { after: MILLIS(900) }, 1.0);
    let waiting = gateway.spawn_get(JOB, &[("prefer", "wait=1")]);
    gateway.wait_until(|seen| seen.requests.len() == 1).await;
    gateway.sim.set_job(Vendor::Replicate, "a", "succeeded");
    let answer = waiting.await.unwrap();
    assert_eq!(word(&answer), "succeeded", "its first state is a second old: {answer:?}");
    assert_eq!(gateway.sim.requests().len(), 2);
}

#[tokio::test]
async fn a_429_without_retry_after_in_the_middle_of_a_chain_fails_no_wait() {
    let gateway = gateway("pace = \"200ms\"\nmax_pace = \"200ms\"").await;
    let waits = (0..5).map(|_| gateway.spawn_get(JOB, &[("prefer", "wait=20")])).collect();
    gateway.wait_until_parked(5).await;
    gateway.wait_until(|seen| seen.requests.len() >= 2).await;
    gateway.sim.fault(FaultTarget::Polls, Fault::status(429), 1);
    let is_rejected =
        |seen: &RecordedRequest| seen.end == RequestEnd::Answered(StatusCode::TOO_MANY_REQUESTS);
    gateway.wait_until(|seen| seen.requests.iter().any(is_rejected)).await;
    gateway.sim.set_job(Vendor::Replicate, "a", "succeeded");
    for answer in join_all(waits).await {
        assert_eq!(word(&answer), "succeeded");
    }
    let requests = gateway.sim.requests();
    let at = requests.iter().position(is_rejected).unwrap();
    assert_eq!(requests.len(), at + 2, "one snapshot after the pause");
    assert!(requests[at + 1].at - requests[at].at >= MILLIS(900), "the key is paused for a second");
}

#[tokio::test]
async fn a_hundred_jobs_keep_to_the_budget_of_their_key_and_no_wait_fails() {
    const INTERVAL: Duration = Duration::from_millis(10);
    let routes = preset_with("replicate", "pace = \"200ms\"\nmax_pace = \"200ms\"");
    let gateway = TestGateway::with(|config, _| {
        config.routes = routes;
        config.upstream.requests_per_second_per_key = 100;
    })
    .await;
    let ids: Vec<_> = (0..100).map(|n| format!("job{n}")).collect();
    for id in &ids {
        gateway.sim.set_job(Vendor::Replicate, id, "processing");
    }
    let began = clock::now();
    let get = |id| gateway.spawn_get(&format!("/v1/predictions/{id}"), &[("prefer", "wait=20")]);
    let waits = ids.iter().map(get).collect();
    gateway.wait_until(|seen| seen.requests.len() >= 150).await;
    for id in &ids {
        gateway.sim.set_job(Vendor::Replicate, id, "succeeded");
    }
    for (answer, id) in join_all(waits).await.iter().zip(&ids) {
        assert_eq!(word(answer), "succeeded", "{id}");
    }
    let mut times: Vec<_> = gateway.sim.requests().iter().map(|seen| seen.at).collect();
    times.sort();
    for (count, at) in times.iter().enumerate() {
        let earliest = INTERVAL * u32::try_from(count).unwrap();
        assert!(*at - began + 3 * INTERVAL >= earliest, "request {count} after {:?}", *at - began);
    }
    let most = times.windows(40).map(|window| window[39] - window[0]).min().unwrap();
    assert!(most >= 20 * INTERVAL, "no burst: 40 requests in {most:?}");
}
