//! Requests that were counted here and that other replicas have not heard of yet.
//!
//! ```text
//!   check ── passed ──▶ TakeQueue ── drain ──▶ engine ── time until the quota is full ──▶ Limits::raise
//! ```
//!
//! A check never waits for the engine. A queue is drained again once its last takes are answered, so each subject has at
//! most one take on its way.

use std::hash::BuildHasher as _;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use foldhash::quality::RandomState;
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::Subject;
use crate::core::Map;
use crate::telemetry::metrics::Limit;

/// Shards of a queue, so that threads seldom wait for each other.
const SHARDS: usize = 16;

/// The most subjects in one shard. The requests of further ones count at this replica only.
const MAX_SUBJECTS: usize = 256;

/// Requests of a subject that passed a quota.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct QuotaTake {
    pub(crate) quota: Limit,
    pub(crate) subject: Subject,
    pub(crate) rate: u32,
    pub(crate) burst: u32,
    pub(crate) count: u32,
}

impl QuotaTake {
    /// Returns the time after which the quota has regained the requests.
    pub(crate) fn time(&self) -> Duration {
        time_of(self.rate, self.count)
    }

    /// Returns the longest time until the quota is full that replicas may run up together: its burst, and as much debt. A
    /// burst smaller than the number of replicas allows a debt of one request for each.
    pub(crate) fn max_time(&self, replicas: u32) -> Duration {
        time_of(self.rate, self.burst).saturating_add(time_of(self.rate, self.burst.max(replicas)))
    }
}

/// Returns the time in which a rate per second adds a number of requests.
pub(super) fn time_of(rate: u32, count: u32) -> Duration {
    Duration::from_secs(1).checked_div(rate).unwrap_or_default().saturating_mul(count)
}

/// The queues of both quotas.
#[derive(Debug)]
pub(crate) struct QuotaTakes {
    pub(super) requests: TakeQueue,
    pub(super) calls: TakeQueue,
    /// Number of replicas, this one included.
    replicas: AtomicU32,
}

#[derive(Debug)]
pub(super) struct TakeQueue {
    shards: [Mutex<Map<Subject, QuotaTake>>; SHARDS],
    hasher: RandomState,
    /// Notified of the first take of a shard.
    filled: Notify,
    /// Notified of a subject with so many takes that siblings have to hear of them at once.
    urgent: Notify,
}

impl Default for QuotaTakes {
    fn default() -> Self {
        Self { requests: TakeQueue::default(), calls: TakeQueue::default(), replicas: AtomicU32::new(1) }
    }
}

impl QuotaTakes {
    pub(super) fn set_replicas(&self, replicas: u32) {
        self.replicas.store(replicas, Ordering::Relaxed);
    }

    pub(crate) fn replicas(&self) -> u32 {
        self.replicas.load(Ordering::Relaxed)
    }

    pub(super) fn of(&self, quota: Limit) -> &TakeQueue {
        if quota == Limit::Calls { &self.calls } else { &self.requests }
    }

    pub(super) fn record(&self, take: QuotaTake) {
        // The takes that replicas hold back are less than a burst together.
        let urgent_at = (take.burst / self.replicas().max(1) / 2).max(1);
        self.of(take.quota).record(take, urgent_at);
    }

    /// Resolves once there are takes of a quota, and then `pause` later at the latest. Cancel safe: takes stay where they
    /// are.
    pub(crate) async fn wait(&self, quota: Limit, pause: Duration) {
        let queue = self.of(quota);
        queue.filled.notified().await;
        // Cancel safe: both are.
        tokio::select! {
            () = tokio::time::sleep(pause), if !pause.is_zero() => {}
            () = queue.urgent.notified(), if !pause.is_zero() => {}
            else => {}
        }
    }

    /// Removes and returns the takes of a quota.
    pub(crate) fn drain(&self, quota: Limit) -> Vec<QuotaTake> {
        let taken = |shard: &Mutex<Map<Subject, QuotaTake>>| std::mem::take(&mut *shard.lock()).into_values();
        self.of(quota).shards.iter().flat_map(taken).collect()
    }
}

impl Default for TakeQueue {
    fn default() -> Self {
        Self {
            shards: Default::default(),
            hasher: RandomState::default(),
            filled: Notify::new(),
            urgent: Notify::new(),
        }
    }
}

impl TakeQueue {
    fn shard(&self, subject: &Subject) -> &Mutex<Map<Subject, QuotaTake>> {
        let hash = self.hasher.hash_one(subject) % SHARDS as u64;
        &self.shards[usize::try_from(hash).expect("it is below a length")]
    }

    fn record(&self, take: QuotaTake, urgent_at: u32) {
        let mut shard = self.shard(&take.subject).lock();
        let was_empty = shard.is_empty();
        let is_full = shard.len() >= MAX_SUBJECTS;
        let count = match shard.get_mut(&take.subject) {
            // A reload has replaced the rates of an entry that differs.
            Some(known) if (known.rate, known.burst) == (take.rate, take.burst) => {
                known.count = known.count.saturating_add(take.count);
                known.count
            }
            None if is_full => return,
            Some(_) | None => {
                shard.insert(take.subject, take);
                take.count
            }
        };
        drop(shard);
        if was_empty {
            self.filled.notify_one();
        }
        if count >= urgent_at && count - take.count < urgent_at {
            self.urgent.notify_one();
        }
    }

    /// Returns the number of a subject's requests that are here.
    pub(super) fn pending(&self, subject: &Subject) -> u32 {
        self.shard(subject).lock().get(subject).map_or(0, |take| take.count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock;
    use crate::core::job::KeyDomain;

    fn take(subject: u8, count: u32) -> QuotaTake {
        let subject = Subject::Key(KeyDomain([subject; 16]));
        QuotaTake { quota: Limit::Requests, subject, rate: 10, burst: 20, count }
    }

    #[tokio::test(start_paused = true)]
    async fn takes_of_requests_wait_for_each_other_and_many_of_one_subject_do_not() {
        let takes = QuotaTakes::default();
        let pause = Duration::from_millis(100);
        let began = clock::now();
        takes.record(take(1, 1));
        takes.record(take(1, 2));
        takes.record(take(2, 1));
        takes.wait(Limit::Requests, pause).await;
        assert_eq!(clock::now() - began, pause);
        assert_eq!(takes.of(Limit::Requests).pending(&take(1, 0).subject), 3);
        let mut drained = takes.drain(Limit::Requests);
        drained.sort_by_key(|take| take.count);
        assert_eq!(drained, [take(2, 1), take(1, 3)]);
        takes.set_replicas(2);
        takes.record(take(1, 4));
        takes.record(take(1, 1));
        while takes.drain(Limit::Requests).is_empty() {
            takes.wait(Limit::Requests, pause).await;
        }
        assert_eq!(clock::now() - began, pause, "a quarter of the burst is urgent with two replicas");
    }

    #[test]
    fn a_flood_of_subjects_ends_at_the_bound() {
        let takes = QuotaTakes::default();
        for number in 0..2 * SHARDS * MAX_SUBJECTS {
            let subject = Subject::member(&number.to_string());
            takes.record(QuotaTake { subject, ..take(0, 1) });
        }
        let drained = takes.drain(Limit::Requests).len();
        assert!(drained <= SHARDS * MAX_SUBJECTS && drained > SHARDS * MAX_SUBJECTS / 2, "{drained}");
    }

    #[test]
    fn debt_is_at_most_one_burst_or_one_request_a_replica() {
        assert_eq!(take(1, 5).time(), Duration::from_millis(500));
        assert_eq!(take(1, 5).max_time(3), Duration::from_secs(4));
        let narrow = QuotaTake { burst: 1, ..take(1, 1) };
        assert_eq!(narrow.max_time(3), Duration::from_millis(400));
    }
}
