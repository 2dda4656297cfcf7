//! Answers for several clips: whose bytes, in which order and shape, and what cannot be cut (promise 8).

use std::collections::BTreeSet;
use std::time::Duration;

use clipgate::sim::ListFormat;
use http::StatusCode;

use crate::harness::gateway::{
    TestGateway, clip_target, clips_target, join_all, set_hold, set_status_of_all,
};

const LONG: Duration = Duration::from_secs(60);

/// The answer that has these clips, completed, in this order and shape.
fn holds(stage: &TestGateway, shape: ListFormat, ids: &[&str]) -> String {
    let text = |id: &&str| String::from_utf8(stage.sim.body(id, "completed").to_vec()).expect("it is text");
    let list = || ids.iter().map(text).collect::<Vec<_>>().join(",");
    match shape {
        ListFormat::Array => format!("[{}]", list()),
        ListFormat::Object => format!("{{\"clips\":[{}]}}", list()),
        ListFormat::Map => {
            let members: Vec<_> = ids.iter().map(|id| format!("\"{id}\":{}", text(id))).collect();
            format!("{{{}}}", members.join(","))
        }
        ListFormat::Summary => unreachable!("it has no clips"),
    }
}

#[tokio::test]
async fn clips_come_in_the_order_asked_for_in_the_upstreams_own_shape() {
    for shape in [ListFormat::Array, ListFormat::Object, ListFormat::Map] {
        for in_order in [true, false] {
            let stage = TestGateway::with(|config, options| {
                set_hold(LONG, config, options);
                (options.list_format, options.in_order) = (shape, in_order);
            })
            .await;
            let orders = [["c", "a", "b"], ["a", "b", "c"], ["b", "c", "a"]];
            set_status_of_all(&stage, &["a", "b", "c"], "submitted");
            let waits = orders.map(|ids| stage.spawn_get(&clips_target(&ids, "completed"), &[]));
            stage.wait_until_parked(3).await;
            stage.wait_until(|seen| seen.open == 1).await;
            set_status_of_all(&stage, &["a", "b", "c"], "completed");
            for (ids, answer) in orders.iter().zip(join_all(waits.into()).await) {
                assert_eq!(answer.body, holds(&stage, shape, ids), "{shape:?} {in_order} {ids:?}");
            }
            let hit = stage.get(&clips_target(&["c", "b", "a"], "completed"), &[]).await;
            assert!(hit.is_hit());
            assert_eq!(hit.body, holds(&stage, shape, &["c", "b", "a"]), "{shape:?} {in_order}");
            let one = stage.get(&clip_target("b", "completed"), &[]).await;
            assert!(one.is_hit());
            assert_eq!(one.body, stage.sim.body("b", "completed"));
            assert_eq!(stage.upstream_requests(), [clips_target(&["a", "b", "c"], "completed")]);
        }
    }
}

#[tokio::test]
async fn an_answer_that_cannot_be_cut_goes_whole_to_the_waits_on_just_its_clips_and_is_not_kept() {
    let stage = TestGateway::with(|config, options| {
        set_hold(LONG, config, options);
        options.list_format = ListFormat::Summary;
    })
    .await;
    set_status_of_all(&stage, &["a", "b", "c"], "submitted");
    let waits = [["a", "b"], ["b", "a"]].map(|ids| stage.spawn_get(&clips_target(&ids, "completed"), &[]));
    stage.wait_until_parked(2).await;
    stage.wait_until(|seen| seen.open == 1).await;
    let three = stage.spawn_get(&clips_target(&["a", "b", "c"], "completed"), &[("prefer", "wait=40")]);
    stage.wait_until(|seen| seen.open == 2).await;
    set_status_of_all(&stage, &["a", "b", "c"], "completed");

    let answers = join_all(waits.into()).await;
    for answer in &answers {
        assert_eq!(answer.status, StatusCode::OK);
        assert_eq!(answer.field("cache-control"), "no-store");
        assert!(answer.body.starts_with(b"{\"summary\":{\"count\":2,"), "{answer:?}");
        assert_eq!(answer.body, answers[0].body);
    }
    // What the others got is no answer to this one, so it asks for its own.
    let three = three.await.unwrap();
    assert!(three.body.starts_with(b"{\"summary\":{\"count\":3,"), "{three:?}");
    assert_eq!(stage.upstream_requests().last(), Some(&clips_target(&["a", "b", "c"], "completed")));

    let asked = stage.upstream_requests().len();
    let again = stage.get(&clips_target(&["a", "b"], "completed"), &[]).await;
    assert!(again.is_opener() && again.body == answers[0].body, "{again:?}");
    assert_eq!(stage.upstream_requests()[asked..], [clips_target(&["a", "b"], "completed")]);
}

#[tokio::test]
async fn more_clips_than_one_poll_may_ask_for_are_split_over_several() {
    let stage = TestGateway::with(|config, options| {
        set_hold(LONG, config, options);
        config.wait.max_jobs = 14;
    })
    .await;
    let names: Vec<_> = (0..14).rev().map(|n| format!("clip-{n:02}")).collect();
    let ids: Vec<_> = names.iter().map(String::as_str).collect();
    set_status_of_all(&stage, &ids, "submitted");
    let sorted: Vec<_> = ids.iter().copied().rev().collect();
    let orders = [&ids, &sorted, &ids];
    let waits: Vec<_> =
        orders.iter().map(|ids| stage.spawn_get(&clips_target(ids, "completed"), &[])).collect();
    stage.wait_until_parked(3).await;
    stage.wait_until(|seen| seen.open == 3).await;
    set_status_of_all(&stage, &ids, "completed");
    for (ids, answer) in orders.iter().zip(join_all(waits).await) {
        assert_eq!(answer.body, holds(&stage, ListFormat::Array, ids));
    }
    let asked = stage.upstream_requests();
    let polls: Vec<BTreeSet<&str>> =
        asked.iter().map(|target| ids.iter().copied().filter(|id| target.contains(id)).collect()).collect();
    assert_eq!(polls.len(), 3);
    assert!(polls.iter().all(|ids| ids.len() <= 6), "{polls:?}");
    assert_eq!(polls.iter().map(BTreeSet::len).sum::<usize>(), 14);
    assert_eq!(polls.iter().flatten().collect::<BTreeSet<_>>().len(), 14);
}

#[tokio::test]
async fn a_wait_that_is_split_is_refused_as_one() {
    let stage = TestGateway::with(|config, options| {
        set_hold(LONG, config, options);
        config.wait.max_jobs = 14;
    })
    .await;
    let names: Vec<_> = (0..13).map(|n| format!("clip-{n:02}")).collect();
    let mut ids: Vec<_> = names.iter().map(String::as_str).collect();
    set_status_of_all(&stage, &ids, "submitted");
    ids.push("ghost");
    let answer = stage.get(&clips_target(&ids, "completed"), &[]).await;
    assert_eq!(answer.status, StatusCode::NOT_FOUND);
    stage.wait_until(|seen| seen.requests.len() == 3 && seen.open == 0).await;
    assert_eq!(stage.sim.observe().abandoned(), 2);
}

#[tokio::test]
async fn a_single_wait_gets_no_answer_that_cannot_be_cut() {
    let stage = TestGateway::with(|config, options| {
        set_hold(LONG, config, options);
        options.list_format = ListFormat::Summary;
    })
    .await;
    stage.sim.set_status("a", "submitted");
    let list = stage.spawn_get(&clips_target(&["a"], "completed"), &[]);
    stage.wait_until(|seen| seen.open == 1).await;
    let one = stage.spawn_get(&clip_target("a", "completed"), &[]);
    stage.wait_until_parked(2).await;
    stage.sim.set_status("a", "completed");
    assert!(list.await.unwrap().body.starts_with(b"{\"summary\":"));
    assert_eq!(one.await.unwrap().body, stage.sim.body("a", "completed"));
    assert_eq!(stage.upstream_requests(), [clips_target(&["a"], "completed"), clip_target("a", "completed")]);
}
