//! The cause of each poll, as the metrics count it.

use super::*;

#[test]
fn the_first_poll_of_a_wait_is_counted_by_the_number_of_its_jobs() {
    let mut s = Scenario::new();
    s.join(1, "a", "completed").join(2, "b c", "completed");
    assert_eq!(s.causes, [Cause::Wait, Cause::Batch]);
}

#[test]
fn a_poll_that_follows_the_end_of_the_hold_is_a_reopen_and_one_for_the_next_rung_is_not() {
    let mut s = Scenario::new();
    s.join(1, "a", "streaming").join_for(2, "a", "completed", 400.0);
    s.at(60.0).land("a streaming", "a=streaming").at(180.0).land("a completed", "a=streaming");
    assert_eq!(s.causes, [Cause::Wait, Cause::Wait, Cause::Reopen]);
}

#[test]
fn a_request_without_a_status_is_a_snapshot_and_one_with_no_cache_is_its_own_cause() {
    let mut s = Scenario::new();
    s.join(1, "a", "").join(2, "b", "submitted");
    let spec = WaitSpec { proof: Proof::NoCache, ..s.spec("c", "") };
    s.join_with(3, spec);
    assert_eq!(s.causes, [Cause::Snapshot, Cause::Snapshot, Cause::NoCache]);
}

#[test]
fn the_snapshot_at_a_deadline_has_its_own_cause_whatever_the_client_sent() {
    let mut s = Scenario::new();
    let spec = WaitSpec { proof: Proof::NoCache, timeout: secs(5.0), ..s.spec("a", "completed") };
    s.join_with(1, spec).at(5.0);
    assert_eq!(s.causes, [Cause::Wait, Cause::Deadline]);
}
