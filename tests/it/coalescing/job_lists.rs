//! Answers for several clips: bytes, order and outer form (P8), and answers that cannot be split.

use std::collections::BTreeSet;
use std::time::Duration;

use clipgate::sim::ListFormat;
use http::StatusCode;

use crate::harness::gateway::{
    TestGateway, clip_target, clips_target, join_all, set_hold, set_status_of_all,
};

const LONG: Duration = Duration::from_secs(60);

/// Returns the body with these clips, completed, in this order and form.
fn list_body(gateway: &TestGateway, shape: ListFormat, ids: &[&str]) -> String {
    let text =
        |id: &&str| String::from_utf8(gateway.sim.body(id, "completed").to_vec()).expect("bodies are text");
    let list = || ids.iter().map(text).collect::<Vec<_>>().join(",");
    match shape {
        ListFormat::Array => format!("[{}]", list()),
        ListFormat::Object => format!("{{\"clips\":[{}]}}", list()),
        ListFormat::Map => {
            let members: Vec<_> = ids.iter().map(|id| format!("\"{id}\":{}", text(id))).collect();
            format!("{{{}}}", members.join(","))
        }
        ListFormat::Summary => unreachable!("a summary has no clips"),
    }
}

#[tokio::test]
async fn a_client_gets_its_clips_in_the_order_it_asked_for_and_in_the_upstreams_form() {
    for shape in [ListFormat::Array, ListFormat::Object, ListFormat::Map] {
        for in_order in [true, false] {
            let gateway = TestGateway::with(|config, options| {
                set_hold(LONG, config, options);
                (options.list_format, options.in_order) = (shape, in_order);
            })
            .await;
            let orders = [["c", "a", "b"], ["a", "b", "c"], ["b", "c", "a"]];
            set_status_of_all(&gateway, &["a", "b", "c"], "submitted");
            let waits = orders.map(|ids| gateway.spawn_get(&clips_target(&ids, "completed"), &[]));
            gateway.wait_until_parked(3).await;
            gateway.wait_until(|seen| seen.open == 1).await;
            set_status_of_all(&gateway, &["a", "b", "c"], "completed");
            for (ids, answer) in orders.iter().zip(join_all(waits.into()).await) {
                assert_eq!(answer.body, list_body(&gateway, shape, ids), "{shape:?} {in_order} {ids:?}");
            }
            let hit = gateway.get(&clips_target(&["c", "b", "a"], "completed"), &[]).await;
            assert!(hit.is_hit());
            assert_eq!(hit.body, list_body(&gateway, shape, &["c", "b", "a"]), "{shape:?} {in_order}");
            let one = gateway.get(&clip_target("b", "completed"), &[]).await;
            assert!(one.is_hit());
            assert_eq!(one.body, gateway.sim.body("b", "completed"));
            assert_eq!(gateway.upstream_requests(), [clips_target(&["a", "b", "c"], "completed")]);
        }
    }
}

#[tokio::test]
async fn an_unsplit_answer_goes_to_the_waits_on_exactly_its_clips_and_is_not_cached() {
    let gateway = TestGateway::with(|config, options| {
        set_hold(LONG, config, options);
        options.list_format = ListFormat::Summary;
    })
    .await;
    set_status_of_all(&gateway, &["a", "b", "c"], "submitted");
    let waits = [["a", "b"], ["b", "a"]].map(|ids| gateway.spawn_get(&clips_target(&ids, "completed"), &[]));
    gateway.wait_until_parked(2).await;
    gateway.wait_until(|seen| seen.open == 1).await;
    let three = gateway.spawn_get(&clips_target(&["a", "b", "c"], "completed"), &[("prefer", "wait=40")]);
    gateway.wait_until(|seen| seen.open == 2).await;
    set_status_of_all(&gateway, &["a", "b", "c"], "completed");

    let answers = join_all(waits.into()).await;
    for answer in &answers {
        assert_eq!(answer.status, StatusCode::OK);
        assert_eq!(answer.field("cache-control"), "no-store");
        assert!(answer.body.starts_with(b"{\"summary\":{\"count\":2,"), "{answer:?}");
        assert_eq!(answer.body, answers[0].body);
    }
    // P3: the answer to two clips does not answer a wait on three, which opens its own poll.
    let three = three.await.unwrap();
    assert!(three.body.starts_with(b"{\"summary\":{\"count\":3,"), "{three:?}");
    assert_eq!(gateway.upstream_requests().last(), Some(&clips_target(&["a", "b", "c"], "completed")));

    let sent_before = gateway.upstream_requests().len();
    let again = gateway.get(&clips_target(&["a", "b"], "completed"), &[]).await;
    assert!(again.is_opener() && again.body == answers[0].body, "{again:?}");
    assert_eq!(gateway.upstream_requests()[sent_before..], [clips_target(&["a", "b"], "completed")]);
}

#[tokio::test]
async fn a_wait_for_more_clips_than_one_poll_may_ask_for_opens_several_polls() {
    let gateway = TestGateway::with(|config, options| {
        set_hold(LONG, config, options);
        config.wait.max_jobs = 14;
    })
    .await;
    let names: Vec<_> = (0..14).rev().map(|n| format!("clip-{n:02}")).collect();
    let ids: Vec<_> = names.iter().map(String::as_str).collect();
    set_status_of_all(&gateway, &ids, "submitted");
    let sorted: Vec<_> = ids.iter().copied().rev().collect();
    let orders = [&ids, &sorted, &ids];
    let waits: Vec<_> =
        orders.iter().map(|ids| gateway.spawn_get(&clips_target(ids, "completed"), &[])).collect();
    gateway.wait_until_parked(3).await;
    gateway.wait_until(|seen| seen.open == 3).await;
    set_status_of_all(&gateway, &ids, "completed");
    for (ids, answer) in orders.iter().zip(join_all(waits).await) {
        assert_eq!(answer.body, list_body(&gateway, ListFormat::Array, ids));
    }
    let requests = gateway.upstream_requests();
    let polls: Vec<BTreeSet<&str>> = requests
        .iter()
        .map(|target| ids.iter().copied().filter(|id| target.contains(id)).collect())
        .collect();
    assert_eq!(polls.len(), 3);
    assert!(polls.iter().all(|ids| ids.len() <= 6), "{polls:?}");
    assert_eq!(polls.iter().map(BTreeSet::len).sum::<usize>(), 14);
    assert_eq!(polls.iter().flatten().collect::<BTreeSet<_>>().len(), 14);
}

#[tokio::test]
async fn a_wait_with_several_polls_is_refused_when_one_of_them_is() {
    let gateway = TestGateway::with(|config, options| {
        set_hold(LONG, config, options);
        config.wait.max_jobs = 14;
    })
    .await;
    let names: Vec<_> = (0..13).map(|n| format!("clip-{n:02}")).collect();
    let mut ids: Vec<_> = names.iter().map(String::as_str).collect();
    set_status_of_all(&gateway, &ids, "submitted");
    ids.push("ghost");
    let answer = gateway.get(&clips_target(&ids, "completed"), &[]).await;
    assert_eq!(answer.status, StatusCode::NOT_FOUND);
    gateway.wait_until(|seen| seen.requests.len() == 3 && seen.open == 0).await;
    assert_eq!(gateway.sim.observe().abandoned(), 2);
}

#[tokio::test]
async fn a_wait_for_one_clip_does_not_get_an_unsplit_answer_of_the_list_endpoint() {
    let gateway = TestGateway::with(|config, options| {
        set_hold(LONG, config, options);
        options.list_format = ListFormat::Summary;
    })
    .await;
    gateway.sim.set_status("a", "submitted");
    let list = gateway.spawn_get(&clips_target(&["a"], "completed"), &[]);
    gateway.wait_until(|seen| seen.open == 1).await;
    let one = gateway.spawn_get(&clip_target("a", "completed"), &[]);
    gateway.wait_until_parked(2).await;
    gateway.sim.set_status("a", "completed");
    assert!(list.await.unwrap().body.starts_with(b"{\"summary\":"));
    assert_eq!(one.await.unwrap().body, gateway.sim.body("a", "completed"));
    assert_eq!(
        gateway.upstream_requests(),
        [clips_target(&["a"], "completed"), clip_target("a", "completed")]
    );
}
