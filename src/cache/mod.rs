//! The cache: states of jobs by key domain. The hub stores jobs, the hub and pass-through requests record verdicts on
//! keys, and any task reads.
//!
//! | stored | for |
//! | --- | --- |
//! | terminal state of a job | `cache.completed_ttl` or `cache.error_ttl` |
//! | state of an unfinished job | `cache.live_ttl` |
//! | key proof of a key domain, and its list format of each route | until eviction; see `keys` |
//!
//! ```text
//!   keys:  KeyDomain          ─▶ epoch, accepted_at    a 401 starts a new epoch: all entries of the old one are invalid
//!   jobs: (KeyDomain, JobId) ─▶ epoch, state           a 403 removes the jobs that the request named, an action and a
//!                                                      404 the job; see `changes`
//! ```
//!
//! A hit needs three things (P11): an entry of the same key domain, the current epoch, and a key that the upstream has
//! accepted within `cache.key_recheck_interval`. moka stores and evicts; expiry is decided here with the gateway's
//! clock. `cache.max_bytes` bounds the jobs by their allocated bytes (`weight`).

mod changes;
mod generations;
mod heads;
mod keys;
mod weight;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use bytes::Bytes;
use foldhash::quality::RandomState;
use http::HeaderValue;
use moka::Expiry;
use parking_lot::Mutex;

use self::changes::ChangeTable;
pub(crate) use self::generations::Generation;
use self::generations::Generations;
use self::heads::{HeadInterner, StoredHead};
pub(crate) use self::keys::KeyProof;
use self::keys::KeyTable;
use crate::config;
use crate::core::job::{JobId, JobState, KeyDomain, RouteIndex};
use crate::core::job_body::ListShape;
use crate::core::route::{Lifetimes, Routes, Rung};

/// The longest body that [`Cache::etag`] remembers, in bytes.
const MAX_REMEMBERED_BODY: usize = 64 << 10;

#[derive(Debug)]
pub struct Cache {
    config: Arc<ArcSwap<config::CacheConfig>>,
    routes: Arc<Routes>,
    jobs: moka::sync::Cache<(KeyDomain, JobId), Arc<CachedJob>, RandomState>,
    keys: KeyTable,
    changes: ChangeTable,
    generations: Generations,
    heads: HeadInterner,
    /// The last body that [`Self::etag`] hashed, and its validator.
    last_etag: Mutex<Option<(Bytes, HeaderValue)>>,
}

/// A cached state that may be served.
#[derive(Clone, Debug)]
pub struct Hit {
    pub entry: Arc<CachedJob>,
    /// Remaining lifetime of the entry.
    pub ttl: Duration,
}

impl Hit {
    /// Returns whether the state is at most `max_age` old.
    pub fn is_within(&self, max_age: Duration, now: Instant) -> bool {
        now.saturating_duration_since(self.entry.state.as_of) <= max_age
    }
}

/// A cached state with the headers of its responses.
#[derive(Debug)]
pub struct CachedJob {
    pub state: JobState,
    /// Strong validator of the state's body.
    pub etag: HeaderValue,
    pub head: Arc<StoredHead>,
    /// Epoch of the key when the state was stored.
    epoch: u64,
    /// Stamp of the job's variants when the state was stored.
    stamp: u64,
    expires_at: Instant,
    ttl: Duration,
    /// Allocated bytes.
    weight: u32,
    /// Whether a sibling read the state, and no hit has said so.
    is_news: AtomicBool,
}

impl CachedJob {
    /// Returns whether a sibling read the state, to the first caller.
    pub fn take_news(&self) -> bool {
        self.is_news.load(Ordering::Relaxed) && self.is_news.swap(false, Ordering::Relaxed)
    }

    /// Returns the age of the state and its remaining lifetime.
    pub(crate) fn age_and_ttl(&self, now: Instant) -> (Duration, Duration) {
        (now.saturating_duration_since(self.state.as_of), self.expires_at.saturating_duration_since(now))
    }
}

/// Size of the cache over all keys. Entries of a rejected key count until they expire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheSize {
    pub entries: u64,
    /// Sum of the weights.
    pub bytes: u64,
}

impl Cache {
    /// Returns an empty cache.
    pub fn new(config: config::CacheConfig, routes: Arc<Routes>) -> Self {
        let jobs = moka::sync::Cache::builder()
            .max_capacity(config.max_bytes)
            .weigher(|_, entry: &Arc<CachedJob>| entry.weight)
            .expire_after(PerEntryExpiry)
            .build_with_hasher(RandomState::default());
        let heads = HeadInterner::new(config.max_bytes);
        let config = Arc::new(ArcSwap::from_pointee(config));
        let (keys, changes, generations) = (KeyTable::new(), ChangeTable::new(), Generations::new());
        Self { config, routes, jobs, keys, changes, generations, heads, last_etag: Mutex::new(None) }
    }

    /// Uses these lifetimes for entries that are stored from now on. Existing entries keep theirs. `max_bytes` does not
    /// change.
    pub fn reconfigure(&self, config: config::CacheConfig) {
        self.config.store(Arc::new(config));
        self.everything_changed();
    }

    /// Returns the settings, which follow each [`Self::reconfigure`].
    pub(crate) fn config(&self) -> Arc<ArcSwap<config::CacheConfig>> {
        Arc::clone(&self.config)
    }

    /// Records a change that may concern the answer to any request.
    pub(crate) fn everything_changed(&self) {
        self.generations.everything_changed();
    }

    /// Returns the count of these changes. Read it before an answer is begun.
    pub(crate) fn all_changes(&self) -> u64 {
        self.generations.all()
    }

    /// Returns the counts of all changes that concern the answer to this key about this job. `all` is the count of
    /// [`Self::all_changes`] before the answer was begun.
    pub(crate) fn generation(&self, all: u64, domain: KeyDomain, id: &JobId) -> Generation {
        self.generations.generation(all, domain, id)
    }

    /// Returns whether no such change came since.
    pub(crate) fn is_current(&self, generation: Generation) -> bool {
        self.generations.is_current(generation)
    }

    /// Returns whether two keys, or two jobs of the first key, have the same counter of changes.
    #[cfg(test)]
    pub(crate) fn shares_counters(&self, keys: [KeyDomain; 2], jobs: [&JobId; 2]) -> bool {
        self.generations.shares_counters(keys, jobs)
    }

    /// Returns the time until which this key may have this entry if nothing changes. `None`: it may not have it now, or the
    /// cache has another one. Counts as a use of the entry and of the key.
    pub(crate) fn valid_until(
        &self,
        domain: KeyDomain,
        entry: &Arc<CachedJob>,
        now: Instant,
    ) -> Option<Instant> {
        let proof = self.proof(domain)?;
        let hit = self.get_proven(proof, domain, &entry.state.id, now)?;
        let interval = self.config.load().key_recheck_interval;
        let recheck_at = proof.accepted_at?.checked_add(interval).unwrap_or(entry.expires_at);
        Arc::ptr_eq(&hit.entry, entry).then(|| entry.expires_at.min(recheck_at))
    }

    /// Returns the proof that the upstream has accepted this key.
    pub fn proof(&self, domain: KeyDomain) -> Option<KeyProof> {
        self.keys.proof(domain)
    }

    /// Returns whether the upstream has accepted this key and has not answered 401 since.
    pub fn is_key_proven(&self, domain: KeyDomain) -> bool {
        self.proof(domain).is_some()
    }

    /// Returns the keys that the upstream has accepted or rejected, in no order.
    pub fn keys(&self) -> impl Iterator<Item = KeyDomain> + '_ {
        self.keys.domains()
    }

    /// Returns the cached state of a job, if this key may have it at `now` (P11).
    pub fn get(&self, domain: KeyDomain, id: &JobId, now: Instant) -> Option<Hit> {
        self.get_proven(self.proof(domain)?, domain, id, now)
    }

    /// Like [`Self::get`], for a caller that already has the key's proof.
    pub fn get_proven(&self, proof: KeyProof, domain: KeyDomain, id: &JobId, now: Instant) -> Option<Hit> {
        if !is_recent(proof, &self.config.load(), now) {
            return None;
        }
        let entry = self.jobs.get(&(domain, id.clone()))?;
        let ttl = entry.expires_at.saturating_duration_since(now);
        let is_valid = entry.epoch == proof.epoch && self.changes.is_current(domain, id, entry.stamp);
        (is_valid && !ttl.is_zero()).then_some(Hit { entry, ttl })
    }

    /// Returns the greatest age of a state that an open poll may prove to a request with this key: `cache.proven_ttl`, and
    /// zero for a key that gets no hits (P11).
    pub fn proven_ttl(&self, proof: Option<KeyProof>, now: Instant) -> Duration {
        let config = self.config.load();
        match proof {
            Some(proof) if is_recent(proof, &config, now) => {
                let since = proof.rejected_at.map_or(Duration::MAX, |at| now.saturating_duration_since(at));
                config.proven_ttl.min(since)
            }
            Some(_) | None => Duration::ZERO,
        }
    }

    /// Like [`Self::get`], but only for a state that is at most `max_age` old.
    pub fn get_within(&self, domain: KeyDomain, id: &JobId, max_age: Duration, now: Instant) -> Option<Hit> {
        self.get(domain, id, now).filter(|hit| hit.is_within(max_age, now))
    }

    /// Records a 2xx to a request of this key that started at `began`. Ignored if the upstream has rejected the key
    /// after `began`.
    pub fn key_accepted(&self, domain: KeyDomain, began: Instant) {
        self.keys.key_accepted(domain, began);
    }

    /// Records a 401 at `now`: all entries of the key become invalid (P11).
    pub fn key_rejected(&self, domain: KeyDomain, now: Instant) {
        self.keys.key_rejected(domain, now);
        self.generations.key_changed(domain);
    }

    /// Records a 403 at `now` to a request for these jobs: removes them, and suspends hits of the key until the
    /// upstream accepts it again (P11).
    pub fn key_forbidden<'a>(
        &self,
        domain: KeyDomain,
        jobs: impl IntoIterator<Item = &'a JobId>,
        now: Instant,
    ) {
        self.keys.key_forbidden(domain, now);
        self.generations.key_changed(domain);
        jobs.into_iter().for_each(|job| self.job_changed(domain, job, now));
    }

    /// Records at `now` that an action changed a job, or that the upstream does not have it: removes the job with all its
    /// variants for this key. Later, no read of it is stored whose request began before (RFC 9111 section 4.4).
    pub fn job_changed(&self, domain: KeyDomain, job: &JobId, now: Instant) {
        self.changes.record(domain, job, now);
        // The stamp of the record invalidates the variants.
        self.jobs.invalidate(&(domain, job.without_params()));
        self.generations.job_changed(domain, job);
    }

    /// Like [`Self::job_changed`], for all jobs of a key, or of all keys.
    pub(crate) fn all_jobs_changed(&self, domain: Option<KeyDomain>, now: Instant) {
        match domain {
            Some(domain) => {
                self.keys.jobs_changed(domain, now);
                self.generations.key_changed(domain);
            }
            None => {
                self.changes.record_all(now);
                self.jobs.invalidate_all();
                self.everything_changed();
            }
        }
    }

    /// Removes a state that a later read contradicts, which did not accept a cached one. Otherwise a terminal state
    /// changes only by an action.
    pub fn contradict(&self, domain: KeyDomain, state: &JobState) {
        let key = (domain, state.id.clone());
        let is_contradicted =
            |entry: Arc<CachedJob>| entry.state.rung != state.rung && entry.state.as_of <= state.as_of;
        if self.jobs.get(&key).is_some_and(is_contradicted) {
            self.jobs.invalidate(&key);
            self.generations.job_changed(domain, &state.id);
        }
    }

    /// Returns the format of the upstream's last list of a route for this key. An array before the first list. A format
    /// can contain names of the key's account, so keys do not share it (P11).
    pub fn list_shape(&self, domain: KeyDomain, route: RouteIndex) -> Arc<ListShape> {
        self.keys.list_shape(domain, route)
    }

    /// Returns the format of the upstream's last list of a route for this key, if there was one.
    pub fn known_list_shape(&self, domain: KeyDomain, route: RouteIndex) -> Option<Arc<ListShape>> {
        self.keys.known_list_shape(domain, route)
    }

    /// From now on also keeps the formats that are arrays: replicas need to know that a list was seen.
    pub fn keep_array_shapes(&self) {
        self.keys.keep_array_shapes();
    }

    /// Records the format of a list that the upstream sent to this key.
    pub fn set_list_shape(&self, domain: KeyDomain, route: RouteIndex, shape: &ListShape) {
        self.keys.set_list_shape(domain, route, shape);
    }

    /// Stores a state from the response to a request of this key that started at `began`. Call [`Self::key_accepted`]
    /// first. Does not store:
    ///
    /// - a state that is behind the cached one;
    /// - a response that is not the complete representation;
    /// - the response to a request that started before a rejection, which may have been about this job (P11);
    /// - the response to a request that started before a change of the job.
    pub fn store(&self, domain: KeyDomain, state: &JobState, began: Instant, now: Instant) {
        self.insert(domain, state, began, false, now);
    }

    /// Like [`Self::store`], for a state that a sibling read. `is_news`: no client here got it yet.
    pub fn store_shared(&self, domain: KeyDomain, state: &JobState, is_news: bool, now: Instant) {
        self.insert(domain, state, state.as_of, is_news, now);
    }

    fn insert(&self, domain: KeyDomain, state: &JobState, began: Instant, is_news: bool, now: Instant) {
        if !state.head.is_complete || self.is_outdated(domain, state, began) {
            return;
        }
        let Some(ttl) = state.rung.map(|rung| self.ttl(state.id.route(), rung)) else { return };
        let Some(proof) = self.proof(domain) else { return };
        let expires_at = state.as_of + ttl;
        let key = (domain, state.id.clone());
        let stamp = self.changes.stamp(domain, &state.id);
        let is_behind = self.jobs.get(&key).is_some_and(|entry| {
            let is_valid = entry.epoch == proof.epoch && entry.stamp == stamp && now < entry.expires_at;
            is_valid && self.is_behind(state, &entry.state)
        });
        if now >= expires_at || is_behind {
            return;
        }
        let (head, head_bytes) = self.heads.intern(&state.head);
        // A copy, because a slice would keep the whole response in memory.
        let body = Bytes::copy_from_slice(&state.body);
        let state = JobState { body, head: Arc::clone(&head.head), ..state.clone() };
        let etag = etag(&state.body);
        let weight = u32::try_from(weight::of_job(&state, etag.len()) + head_bytes).unwrap_or(u32::MAX);
        let (epoch, is_news) = (proof.epoch, AtomicBool::new(is_news));
        let entry = Arc::new(CachedJob { state, etag, head, epoch, stamp, expires_at, ttl, weight, is_news });
        self.jobs.insert(key.clone(), Arc::clone(&entry));
        // A rejection or a change since the check above may have removed the job before this insert.
        if self.is_outdated(domain, &entry.state, began) {
            self.jobs.invalidate(&key);
        }
        self.generations.job_changed(domain, &entry.state.id);
    }

    /// Returns whether the upstream rejected the key, or the job changed, at `began` or later.
    fn is_outdated(&self, domain: KeyDomain, state: &JobState, began: Instant) -> bool {
        self.keys.is_rejected_since(domain, began)
            || self.keys.is_changed_since(domain, began)
            || self.changes.is_changed_since(domain, &state.id, began)
    }

    /// Returns whether the cached state is ahead of the new one. Where the upstream never holds, the latest read counts,
    /// also backwards; only a terminal state stays.
    fn is_behind(&self, state: &JobState, cached: &JobState) -> bool {
        let route = self.routes.get(state.id.route());
        if !route.never_holds() {
            return cached.rung > state.rung;
        }
        let is_final = cached.rung.is_some_and(|rung| route.ladder.is_terminal(rung));
        cached.as_of > state.as_of || (is_final && cached.rung != state.rung)
    }

    /// Returns the strong validator of a body. All waits that one response settles share its bytes, so the last result
    /// is reused for the same memory.
    pub fn etag(&self, body: &Bytes) -> HeaderValue {
        if body.len() > MAX_REMEMBERED_BODY {
            return etag(body);
        }
        let mut last_etag = self.last_etag.lock();
        match &*last_etag {
            // `last` keeps its memory alive, so equal pointers mean equal bytes.
            Some((last, etag)) if last.as_ptr() == body.as_ptr() && last.len() == body.len() => etag.clone(),
            Some(_) | None => {
                let etag = etag(body);
                *last_etag = Some((body.clone(), etag.clone()));
                etag
            }
        }
    }

    /// Returns the number and weight of the entries.
    pub fn size(&self) -> CacheSize {
        self.jobs.run_pending_tasks();
        CacheSize { entries: self.jobs.entry_count(), bytes: self.jobs.weighted_size() }
    }

    /// Removes a job for all keys, and returns the number of removed entries.
    pub fn remove(&self, id: &JobId) -> u64 {
        self.remove_each(|other| other == id.as_str())
    }

    /// Removes the jobs with these ids for all keys, and returns the number of removed entries. Searches the whole cache.
    pub(crate) fn remove_each(&self, is_removed: impl Fn(&str) -> bool) -> u64 {
        let keys: Vec<_> =
            self.jobs.iter().map(|(key, _)| key).filter(|key| is_removed(key.1.as_str())).collect();
        let removed = keys.iter().filter(|key| self.jobs.remove(&***key).is_some()).count() as u64;
        self.everything_changed();
        removed
    }

    /// Removes all jobs and returns their number. Keys stay proven.
    pub fn remove_all(&self) -> u64 {
        let size = self.size();
        self.jobs.invalidate_all();
        self.everything_changed();
        size.entries
    }

    /// Returns the lifetime of a state that is not terminal.
    pub fn live_ttl(&self, route: RouteIndex) -> Duration {
        self.routes.get(route).lifetimes.live.unwrap_or(self.config.load().live_ttl)
    }

    /// Returns the lifetime of a terminal rung. `None` for other rungs.
    pub fn terminal_ttl(&self, route: RouteIndex, rung: Rung) -> Option<Duration> {
        self.routes.get(route).ladder.is_terminal(rung).then(|| self.ttl(route, rung))
    }

    fn ttl(&self, route: RouteIndex, rung: Rung) -> Duration {
        let (config, index, route) = (self.config.load(), route, self.routes.get(route));
        let Lifetimes { success, failure, .. } = route.lifetimes;
        if !route.ladder.is_terminal(rung) {
            self.live_ttl(index)
        } else if route.ladder.is_failure(rung) {
            failure.unwrap_or(config.error_ttl)
        } else {
            success.unwrap_or(config.completed_ttl)
        }
    }
}

/// Length of a validator: half of a hash in hex digits, and quotes.
const ETAG_BYTES: usize = 34;

/// Returns a strong validator (RFC 9110 section 8.8.3).
fn etag(body: &[u8]) -> HeaderValue {
    let hash = blake3::hash(body).to_hex();
    let mut quoted = [b'"'; ETAG_BYTES];
    quoted[1..ETAG_BYTES - 1].copy_from_slice(&hash.as_bytes()[..ETAG_BYTES - 2]);
    HeaderValue::from_bytes(&quoted).expect("hex digits are a header value")
}

/// Lets moka free expired entries. moka uses its own clock, so [`Cache::get`] checks the expiry again.
#[derive(Debug)]
struct PerEntryExpiry;

impl Expiry<(KeyDomain, JobId), Arc<CachedJob>> for PerEntryExpiry {
    fn expire_after_create(
        &self,
        _: &(KeyDomain, JobId),
        entry: &Arc<CachedJob>,
        _: Instant,
    ) -> Option<Duration> {
        Some(entry.ttl)
    }

    fn expire_after_update(
        &self,
        _: &(KeyDomain, JobId),
        entry: &Arc<CachedJob>,
        _: Instant,
        _: Option<Duration>,
    ) -> Option<Duration> {
        Some(entry.ttl)
    }
}

/// Returns whether the upstream has accepted the key within `cache.key_recheck_interval`.
fn is_recent(proof: KeyProof, config: &config::CacheConfig, now: Instant) -> bool {
    let age = proof.accepted_at.map(|accepted_at| now.saturating_duration_since(accepted_at));
    age.is_some_and(|age| age < config.key_recheck_interval)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock;
    use crate::core::job::ResponseHead;
    use crate::core::route::Route;

    const ALICE: KeyDomain = KeyDomain([1; 16]);
    const BOB: KeyDomain = KeyDomain([2; 16]);

    fn id(text: &str) -> JobId {
        JobId::new(text).unwrap()
    }

    fn state(name: &str, word: &str, at: Instant) -> JobState {
        JobState {
            id: id(name),
            rung: Route::suno().ladder.rung(word),
            body: Bytes::from(format!("{name} {word}")),
            head: Arc::new(ResponseHead::default()),
            seen_at: at,
            as_of: at,
        }
    }

    fn cache() -> Cache {
        Cache::new(config::Config::default().cache, Arc::new(Route::suno().into()))
    }

    fn secs(secs: u64) -> Duration {
        Duration::from_secs(secs)
    }

    #[test]
    fn each_kind_of_state_has_its_own_lifetime() {
        let rows = [
            ("completed", 24 * 3600),
            ("complete", 24 * 3600),
            ("error", 600),
            ("streaming", 1),
            ("queued", 1),
        ];
        for (word, ttl) in rows {
            let mut config = config::Config::default().cache;
            config.key_recheck_interval = secs(1_000_000);
            let cache = Cache::new(config, Arc::new(Route::suno().into()));
            let t0 = clock::now();
            cache.key_accepted(ALICE, t0);
            cache.store(ALICE, &state("a", word, t0), t0, t0);
            let hit = |after| cache.get(ALICE, &id("a"), t0 + after);
            assert_eq!(hit(secs(0)).map(|hit| hit.ttl), Some(secs(ttl)), "{word}");
            assert!(hit(secs(ttl) - Duration::from_millis(1)).is_some(), "{word}");
            assert!(hit(secs(ttl)).is_none(), "{word}");
        }
    }

    #[test]
    fn a_reload_changes_the_lifetimes_of_new_entries_only() {
        let (cache, t0) = (cache(), clock::now());
        cache.key_accepted(ALICE, t0);
        cache.store(ALICE, &state("a", "completed", t0), t0, t0);
        let config = config::CacheConfig { completed_ttl: secs(5), ..config::Config::default().cache };
        cache.reconfigure(config);
        cache.store(ALICE, &state("b", "completed", t0), t0, t0);
        let ttl = |name| cache.get(ALICE, &id(name), t0).map(|hit| hit.ttl);
        assert_eq!((ttl("a"), ttl("b")), (Some(secs(24 * 3600)), Some(secs(5))));
    }

    #[test]
    fn a_status_outside_the_ladder_is_not_stored() {
        let (cache, t0) = (cache(), clock::now());
        cache.key_accepted(ALICE, t0);
        cache.store(ALICE, &state("a", "paused", t0), t0, t0);
        assert!(cache.get(ALICE, &id("a"), t0).is_none());
    }

    #[test]
    fn only_the_key_that_stored_an_entry_gets_it() {
        let (cache, t0) = (cache(), clock::now());
        cache.key_accepted(ALICE, t0);
        cache.key_accepted(BOB, t0);
        cache.store(ALICE, &state("a", "completed", t0), t0, t0);
        assert!(cache.get(ALICE, &id("a"), t0).is_some());
        assert!(cache.get(BOB, &id("a"), t0).is_none());
    }

    #[test]
    fn a_key_gets_no_hits_after_the_recheck_interval_until_the_upstream_accepts_it_again() {
        let (cache, t0) = (cache(), clock::now());
        cache.key_accepted(ALICE, t0);
        cache.store(ALICE, &state("a", "completed", t0), t0, t0);
        assert!(cache.get(ALICE, &id("a"), t0 + secs(599)).is_some());
        assert!(cache.get(ALICE, &id("a"), t0 + secs(600)).is_none());
        cache.key_accepted(ALICE, t0 + secs(601));
        assert!(cache.get(ALICE, &id("a"), t0 + secs(601)).is_some(), "the entry is valid again");
    }

    #[test]
    fn a_401_invalidates_all_entries_of_the_key() {
        let (cache, t0) = (cache(), clock::now());
        cache.key_accepted(ALICE, t0);
        cache.store(ALICE, &state("a", "completed", t0), t0, t0);
        cache.key_rejected(ALICE, t0);
        assert!(cache.get(ALICE, &id("a"), t0).is_none());
        cache.key_accepted(ALICE, t0);
        cache.store(ALICE, &state("a", "completed", t0), t0, t0);
        assert!(cache.get(ALICE, &id("a"), t0).is_none(), "a request from before the 401 proves nothing");
        cache.key_accepted(ALICE, t0 + secs(1));
        assert!(cache.get(ALICE, &id("a"), t0 + secs(1)).is_none(), "the entry stays invalid");
    }

    #[test]
    fn a_state_that_was_seen_before_a_rejection_of_the_key_is_not_proven_after_it() {
        let (cache, t0) = (cache(), clock::now());
        let proven_ttl = |at| cache.proven_ttl(cache.proof(ALICE), at);
        assert_eq!(proven_ttl(t0), Duration::ZERO, "the upstream has not accepted the key");
        cache.key_accepted(ALICE, t0);
        assert_eq!(proven_ttl(t0 + secs(1)), secs(30));
        cache.key_rejected(ALICE, t0 + secs(10));
        assert_eq!(proven_ttl(t0 + secs(10)), Duration::ZERO);
        cache.key_accepted(ALICE, t0 + secs(11));
        assert_eq!(proven_ttl(t0 + secs(13)), secs(3), "states since the rejection");
        assert_eq!(proven_ttl(t0 + secs(60)), secs(30));
    }

    #[test]
    fn a_403_removes_the_named_jobs_and_suspends_hits_until_the_upstream_accepts_the_key_again() {
        let (cache, t0) = (cache(), clock::now());
        let is_cached = |name, at| cache.get(ALICE, &id(name), at).is_some();
        cache.key_accepted(ALICE, t0);
        for name in ["a", "b", "c"] {
            cache.store(ALICE, &state(name, "completed", t0), t0, t0);
        }
        cache.key_forbidden(ALICE, &[id("b"), id("unknown")], t0 + secs(2));
        assert!(cache.is_key_proven(ALICE), "its waits still count for the key");
        assert_eq!(["a", "b", "c"].map(|name| is_cached(name, t0 + secs(2))), [false; 3]);
        cache.store(ALICE, &state("b", "completed", t0 + secs(3)), t0 + secs(1), t0 + secs(3));
        cache.key_accepted(ALICE, t0 + secs(1));
        assert_eq!(
            ["a", "b", "c"].map(|name| is_cached(name, t0 + secs(3))),
            [false; 3],
            "both requests started before the 403"
        );
        cache.key_accepted(ALICE, t0 + secs(4));
        assert_eq!(["a", "b", "c"].map(|name| is_cached(name, t0 + secs(4))), [true, false, true]);
        cache.key_forbidden(BOB, &[], t0);
        assert!(!cache.is_key_proven(BOB), "a rejection is not a proof");
    }

    #[test]
    fn each_key_has_the_format_of_its_newest_list_on_each_route() {
        let (cache, [first, second]) = (cache(), [RouteIndex(0), RouteIndex(1)]);
        cache.keep_array_shapes();
        let shape = |name: &str| ListShape::Wrapped(name.to_owned());
        for (domain, route, newest) in [
            (ALICE, first, shape("a")),
            (BOB, first, ListShape::Map),
            (ALICE, second, ListShape::Map),
            (ALICE, first, shape("b")),
            (BOB, first, ListShape::Array),
        ] {
            cache.set_list_shape(domain, route, &newest);
            assert_eq!(*cache.list_shape(domain, route), newest);
        }
        assert_eq!(*cache.list_shape(ALICE, first), shape("b"));
        assert_eq!(*cache.list_shape(ALICE, second), ListShape::Map);
        assert_eq!(*cache.list_shape(BOB, second), ListShape::Array);
        assert_eq!(cache.known_list_shape(BOB, second), None);
        assert_eq!(cache.known_list_shape(BOB, first).as_deref(), Some(&ListShape::Array));
    }

    #[test]
    fn a_state_behind_the_cached_one_is_ignored() {
        let (cache, t0) = (cache(), clock::now());
        cache.key_accepted(ALICE, t0);
        cache.store(ALICE, &state("a", "completed", t0), t0, t0);
        cache.store(ALICE, &state("a", "streaming", t0), t0, t0);
        assert_eq!(cache.get(ALICE, &id("a"), t0).unwrap().entry.state.body, "a completed");
    }

    fn plain_cache() -> Cache {
        let lifetimes = Lifetimes { live: Some(secs(5)), ..Lifetimes::default() };
        let route = Route { lifetimes, ..Route::never_holding() };
        Cache::new(config::Config::default().cache, Arc::new(route.into()))
    }

    #[test]
    fn where_the_upstream_never_holds_the_latest_read_counts_but_a_terminal_state_stays() {
        let (cache, t0) = (plain_cache(), clock::now());
        let cached =
            |at| String::from_utf8(cache.get(ALICE, &id("a"), at).unwrap().entry.state.body.to_vec());
        cache.key_accepted(ALICE, t0);
        let store = |word, at| cache.store(ALICE, &state("a", word, at), at, at);
        store("streaming", t0 + secs(1));
        store("queued", t0 + secs(2));
        assert_eq!(cached(t0 + secs(2)).unwrap(), "a queued");
        store("submitted", t0 + secs(1));
        assert_eq!(cached(t0 + secs(2)).unwrap(), "a queued", "an older read");
        store("error", t0 + secs(3));
        store("queued", t0 + secs(4));
        assert_eq!(cached(t0 + secs(4)).unwrap(), "a error");
        let later = state("a", "queued", t0 + secs(4));
        cache.contradict(ALICE, &later);
        cache.store(ALICE, &later, t0 + secs(4), t0 + secs(4));
        assert_eq!(cached(t0 + secs(4)).unwrap(), "a queued");
    }

    #[test]
    fn a_changed_job_leaves_the_cache_with_all_its_variants_and_older_reads_stay_out() {
        let (cache, t0) = (plain_cache(), clock::now());
        let job = |rest| JobId::with_rest(RouteIndex(0), "a", rest).unwrap();
        let store = |domain, rest, began| {
            let state = JobState { id: job(rest), ..state("a", "completed", began) };
            cache.store(domain, &state, began, began);
        };
        let is_cached = |domain, rest| cache.get(domain, &job(rest), t0 + secs(3)).is_some();
        for domain in [ALICE, BOB] {
            cache.key_accepted(domain, t0);
            for rest in ["", "x", "x?logs=1", "?logs=1"] {
                store(domain, rest, t0);
            }
        }
        cache.job_changed(ALICE, &job("x"), t0 + secs(1));
        assert_eq!(
            ["", "x", "x?logs=1", "?logs=1"].map(|rest| is_cached(ALICE, rest)),
            [true, false, false, true]
        );
        assert_eq!(["x", "x?logs=1"].map(|rest| is_cached(BOB, rest)), [true; 2]);
        for rest in ["x", "x?logs=1", "x?logs=2"] {
            store(ALICE, rest, t0 + secs(1));
            assert!(!is_cached(ALICE, rest), "{rest}: its read began before the change");
            store(ALICE, rest, t0 + secs(2));
            assert!(is_cached(ALICE, rest), "{rest}");
        }
    }

    // P11
    #[test]
    fn a_403_to_one_variant_of_a_job_removes_all_of_them() {
        for named in ["x", "x?logs=1"] {
            let (cache, t0) = (plain_cache(), clock::now());
            let job = |rest| JobId::with_rest(RouteIndex(0), "a", rest).unwrap();
            cache.key_accepted(ALICE, t0);
            for rest in ["", "x", "x?logs=1", "x?logs=2"] {
                cache.store(ALICE, &JobState { id: job(rest), ..state("a", "completed", t0) }, t0, t0);
            }
            cache.key_forbidden(ALICE, &[job(named)], t0 + secs(1));
            cache.key_accepted(ALICE, t0 + secs(2));
            let is_cached = |rest| cache.get(ALICE, &job(rest), t0 + secs(3)).is_some();
            assert_eq!(
                ["", "x", "x?logs=1", "x?logs=2"].map(is_cached),
                [true, false, false, false],
                "{named}"
            );
        }
    }

    #[test]
    fn an_operator_removes_the_jobs_of_an_id_on_all_routes_with_all_their_variants() {
        let routes = Arc::new(Routes::new(vec![Route::never_holding(), Route::never_holding()]));
        let (cache, t0) = (Cache::new(config::Config::default().cache, routes), clock::now());
        cache.key_accepted(ALICE, t0);
        let job = |route, id, rest| JobId::with_rest(RouteIndex(route), id, rest).unwrap();
        let jobs = [job(0, "a", ""), job(1, "a", ""), job(1, "a", "x?logs=1"), job(1, "b", "")];
        for job in &jobs {
            cache.store(ALICE, &JobState { id: job.clone(), ..state("a", "completed", t0) }, t0, t0);
        }
        assert_eq!(cache.remove(&id("a")), 3);
        let is_cached = |job: &JobId| cache.get(ALICE, job, t0).is_some();
        assert_eq!(jobs.each_ref().map(is_cached), [false, false, false, true]);
    }

    #[test]
    fn an_operator_can_remove_one_job_for_all_keys_or_all_jobs() {
        let (cache, t0) = (cache(), clock::now());
        for domain in [ALICE, BOB] {
            cache.key_accepted(domain, t0);
            for name in ["a", "b"] {
                cache.store(domain, &state(name, "completed", t0), t0, t0);
            }
        }
        let is_cached = |domain, name| cache.get(domain, &id(name), t0).is_some();
        assert_eq!(cache.size().entries, 4);
        assert!(cache.size().bytes > 4 * 512, "{:?}", cache.size());
        assert_eq!(cache.remove(&id("a")), 2);
        assert_eq!(
            [is_cached(ALICE, "a"), is_cached(BOB, "a"), is_cached(ALICE, "b"), is_cached(BOB, "b")],
            [false, false, true, true]
        );
        assert_eq!(cache.remove(&id("a")), 0);
        assert_eq!(cache.remove_all(), 2);
        assert_eq!([is_cached(ALICE, "b"), is_cached(BOB, "b")], [false; 2]);
        assert_eq!(cache.size(), CacheSize { entries: 0, bytes: 0 });
        cache.store(ALICE, &state("a", "completed", t0), t0, t0);
        assert!(is_cached(ALICE, "a"), "the key stays proven, and new entries are stored");
    }

    #[test]
    fn max_bytes_bounds_the_cache() {
        let config = config::CacheConfig { max_bytes: 20_000, ..config::Config::default().cache };
        let (cache, t0) = (Cache::new(config, Arc::new(Route::suno().into())), clock::now());
        cache.key_accepted(ALICE, t0);
        for n in 0..100 {
            let body = Bytes::from(vec![b'x'; 1000]);
            cache.store(ALICE, &JobState { body, ..state(&format!("clip-{n}"), "completed", t0) }, t0, t0);
        }
        cache.jobs.run_pending_tasks();
        assert!(cache.jobs.weighted_size() <= 20_000, "{}", cache.jobs.weighted_size());
        assert!(cache.jobs.entry_count() >= 10, "{}", cache.jobs.entry_count());
    }

    #[test]
    fn different_bodies_have_different_validators() {
        assert_eq!(etag(b"a"), etag(b"a"));
        assert_ne!(etag(b"a"), etag(b"b"));
        assert_eq!(etag(b"a").len(), 34);
    }
}
