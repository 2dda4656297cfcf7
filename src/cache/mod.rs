//! What is known without asking: terminal jobs, and live states for a moment, each by key domain.
//!
//! moka keeps and evicts; when an entry is over, and for whom it may be read at all, is decided here by the
//! one clock. Any task reads; what one read sees is whole. The hub writes.
//!
//! ```text
//!   keys:  KeyDomain ─▶ epoch, accepted at        a 401 ends the epoch, and with it all entries that were
//!   jobs: (KeyDomain, JobId) ─▶ epoch, state    stored under it; a 403 removes the jobs asked for
//! ```

mod heads;
mod keys;
mod weight;

use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use bytes::Bytes;
use foldhash::quality::RandomState;
use http::HeaderValue;
use moka::Expiry;
use parking_lot::Mutex;

use self::heads::{HeadInterner, StoredHead};
pub(crate) use self::keys::KeyProof;
use self::keys::KeyTable;
use crate::config;
use crate::core::job::{JobId, JobState, KeyDomain};
use crate::core::job_body::ListShape;
use crate::core::route::{Ladder, Rung};

/// The most bytes that are held to know their validator.
const MAX_REMEMBERED_BODY: usize = 64 << 10;

/// The cache.
#[derive(Debug)]
pub struct Cache {
    config: ArcSwap<config::Cache>,
    ladder: Ladder,
    jobs: moka::sync::Cache<(KeyDomain, JobId), Arc<CachedJob>, RandomState>,
    keys: KeyTable,
    heads: HeadInterner,
    /// The last bytes that a validator was made of, and it.
    last_etag: Mutex<Option<(Bytes, HeaderValue)>>,
}

/// A job's state that may be answered with.
#[derive(Clone, Debug)]
pub struct Hit {
    /// What is kept.
    pub entry: Arc<CachedJob>,
    /// How long it may be answered with from now on.
    pub ttl: Duration,
}

impl Hit {
    /// Whether it was seen no longer than so long ago.
    pub fn is_within(&self, max_age: Duration, now: Instant) -> bool {
        now.saturating_duration_since(self.entry.state.seen_at) <= max_age
    }
}

/// A job's state, and what goes along with it to everybody who is told it.
#[derive(Debug)]
pub struct CachedJob {
    /// The state.
    pub state: JobState,
    /// The strong validator of the state's bytes.
    pub etag: HeaderValue,
    /// The head that it came with.
    pub head: Arc<StoredHead>,
    epoch: u64,
    expires_at: Instant,
    ttl: Duration,
    /// What it takes up in memory.
    weight: u32,
}

/// What is kept, all keys together; entries of a refused key count until they are over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheSize {
    /// Jobs.
    pub entries: u64,
    /// What they weigh.
    pub bytes: u64,
}

impl Cache {
    /// An empty cache.
    pub fn new(rules: config::Cache, ladder: Ladder) -> Self {
        let jobs = moka::sync::Cache::builder()
            .max_capacity(rules.max_bytes)
            .weigher(|_, kept: &Arc<CachedJob>| kept.weight)
            .expire_after(PerEntryExpiry)
            .build_with_hasher(RandomState::default());
        let heads = HeadInterner::new(rules.max_bytes);
        let rules = ArcSwap::from_pointee(rules);
        Self { config: rules, ladder, jobs, keys: KeyTable::new(), heads, last_etag: Mutex::new(None) }
    }

    /// From now on keeps states for other times; what is kept already stays for its own. Its size does not change.
    pub fn reconfigure(&self, rules: config::Cache) {
        self.config.store(Arc::new(rules));
    }

    /// What says that this key is one.
    pub fn proof(&self, domain: KeyDomain) -> Option<KeyProof> {
        self.keys.proof(domain)
    }

    /// Whether the upstream has accepted this key, as far as is remembered.
    pub fn is_key_proven(&self, domain: KeyDomain) -> bool {
        self.proof(domain).is_some()
    }

    /// The state kept of a job, if this key may be told it at `now`.
    pub fn get(&self, domain: KeyDomain, id: &JobId, now: Instant) -> Option<Hit> {
        self.get_proven(self.proof(domain)?, domain, id, now)
    }

    /// The same for a key whose proof is at hand.
    pub fn get_proven(&self, proof: KeyProof, domain: KeyDomain, id: &JobId, now: Instant) -> Option<Hit> {
        if now.saturating_duration_since(proof.accepted_at?) >= self.config.load().key_recheck_interval {
            return None;
        }
        let kept = self.jobs.get(&(domain, id.clone()))?;
        let ttl = kept.expires_at.saturating_duration_since(now);
        (kept.epoch == proof.epoch && !ttl.is_zero()).then_some(Hit { entry: kept, ttl })
    }

    /// The state kept of a job, if this key may be told it, and it was seen no longer than `max_age` ago.
    pub fn get_within(&self, domain: KeyDomain, id: &JobId, max_age: Duration, now: Instant) -> Option<Hit> {
        self.get(domain, id, now).filter(|hit| hit.is_within(max_age, now))
    }

    /// The upstream answered a request that began at `began` with a success. It looks at the key when a request
    /// comes: one that began before a refusal says nothing of the time after it.
    pub fn key_accepted(&self, domain: KeyDomain, began: Instant) {
        self.keys.key_accepted(domain, began);
    }

    /// The upstream answered this key with 401 at `now`: nothing that it was told before is told again.
    pub fn key_rejected(&self, domain: KeyDomain, now: Instant) {
        self.keys.key_rejected(domain, now);
    }

    /// The upstream answered this key with 403 at `now`, when it asked for these jobs: they are removed, and the key
    /// must be proven again before it is told of others.
    pub fn key_forbidden<'a>(
        &self,
        domain: KeyDomain,
        asked: impl IntoIterator<Item = &'a JobId>,
        now: Instant,
    ) {
        self.keys.key_forbidden(domain, now);
        for id in asked {
            self.jobs.invalidate(&(domain, id.clone()));
        }
    }

    /// Returns the outer shape of the last list that the upstream answered this key with; an array before the first
    /// one. It may hold the name of what the key belongs to, so no other key is told it.
    pub fn list_shape(&self, domain: KeyDomain) -> Arc<ListShape> {
        self.keys.list_shape(domain)
    }

    /// Records the outer shape of a list that the upstream answered this key with.
    pub fn set_list_shape(&self, domain: KeyDomain, shape: &ListShape) {
        self.keys.set_list_shape(domain, shape);
    }

    /// Keeps a state that the upstream told this key in answer to a request that began at `began`. Needs
    /// [`Self::accepted`] before. Not kept are a state behind one that is known, what is not the whole representation, and
    /// what was asked for before a refusal, which may have been about this very job.
    pub fn store(&self, domain: KeyDomain, state: &JobState, began: Instant, now: Instant) {
        if !state.head.is_whole || self.keys.is_rejected_since(domain, began) {
            return;
        }
        let Some(ttl) = state.rung.map(|rung| self.ttl(rung)) else { return };
        let Some(proof) = self.proof(domain) else { return };
        let expires = state.seen_at + ttl;
        let key = (domain, state.id.clone());
        let is_behind = self.jobs.get(&key).is_some_and(|kept| {
            kept.epoch == proof.epoch && now < kept.expires_at && kept.state.rung > state.rung
        });
        if now >= expires || is_behind {
            return;
        }
        let (head, head_bytes) = self.heads.intern(&state.head);
        // The bytes may be a part of a larger answer, which would stay in memory with them.
        let body = Bytes::copy_from_slice(&state.body);
        let state = JobState { body, head: Arc::clone(&head.head), ..state.clone() };
        let etag = etag(&state.body);
        let weight = u32::try_from(weight::of(&state, etag.len()) + head_bytes).unwrap_or(u32::MAX);
        let kept = CachedJob { state, etag, head, epoch: proof.epoch, expires_at: expires, ttl, weight };
        self.jobs.insert(key.clone(), Arc::new(kept));
        // A 403 that came meanwhile has removed the job before it was stored.
        if self.keys.is_rejected_since(domain, began) {
            self.jobs.invalidate(&key);
        }
    }

    /// The strong validator of these bytes. Of the same bytes in memory, as all have them who waited for one answer, it is
    /// made once.
    pub fn etag(&self, body: &Bytes) -> HeaderValue {
        if body.len() > MAX_REMEMBERED_BODY {
            return etag(body);
        }
        let mut validated = self.last_etag.lock();
        match &*validated {
            // While it is held here, no other bytes can be where it is.
            Some((last, etag)) if last.as_ptr() == body.as_ptr() && last.len() == body.len() => etag.clone(),
            Some(_) | None => {
                let etag = etag(body);
                *validated = Some((body.clone(), etag.clone()));
                etag
            }
        }
    }

    /// How much is kept.
    pub fn size(&self) -> CacheSize {
        self.jobs.run_pending_tasks();
        CacheSize { entries: self.jobs.entry_count(), bytes: self.jobs.weighted_size() }
    }

    /// Forgets what is kept of a job, whoever's key it is kept for. Says how many entries there were.
    pub fn remove(&self, id: &JobId) -> u64 {
        let keys: Vec<_> = self.jobs.iter().map(|(key, _)| key).filter(|key| key.1 == *id).collect();
        keys.iter().filter(|key| self.jobs.remove(&***key).is_some()).count() as u64
    }

    /// Forgets all jobs; keys stay proven. Says how many entries there were.
    pub fn remove_all(&self) -> u64 {
        let size = self.size();
        self.jobs.invalidate_all();
        size.entries
    }

    /// How long a state on this rung is kept, if it is the job's last.
    pub fn terminal_ttl(&self, rung: Rung) -> Option<Duration> {
        self.ladder.is_terminal(rung).then(|| self.ttl(rung))
    }

    fn ttl(&self, rung: Rung) -> Duration {
        let rules = self.config.load();
        if !self.ladder.is_terminal(rung) {
            rules.live_ttl
        } else if self.ladder.is_failure(rung) {
            rules.error_ttl
        } else {
            rules.completed_ttl
        }
    }
}

/// Half of a hash, in quotes.
const ETAG_BYTES: usize = 34;

/// The strong validator of these bytes (RFC 9110 §8.8.3).
fn etag(body: &[u8]) -> HeaderValue {
    let hash = blake3::hash(body).to_hex();
    let mut quoted = [b'"'; ETAG_BYTES];
    quoted[1..ETAG_BYTES - 1].copy_from_slice(&hash.as_bytes()[..ETAG_BYTES - 2]);
    HeaderValue::from_bytes(&quoted).expect("hex digits are a header value")
}

/// Lets moka free what is over; it counts by a clock of its own.
#[derive(Debug)]
struct PerEntryExpiry;

impl Expiry<(KeyDomain, JobId), Arc<CachedJob>> for PerEntryExpiry {
    fn expire_after_create(
        &self,
        _: &(KeyDomain, JobId),
        kept: &Arc<CachedJob>,
        _: Instant,
    ) -> Option<Duration> {
        Some(kept.ttl)
    }

    fn expire_after_update(
        &self,
        _: &(KeyDomain, JobId),
        kept: &Arc<CachedJob>,
        _: Instant,
        _: Option<Duration>,
    ) -> Option<Duration> {
        Some(kept.ttl)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock;
    use crate::core::job::Head;
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
            head: Arc::new(Head::default()),
            seen_at: at,
        }
    }

    fn cache() -> Cache {
        Cache::new(config::Config::default().cache, Route::suno().ladder)
    }

    fn secs(secs: u64) -> Duration {
        Duration::from_secs(secs)
    }

    #[test]
    fn each_kind_of_state_is_kept_for_its_own_time() {
        let rows = [
            ("completed", 24 * 3600),
            ("complete", 24 * 3600),
            ("error", 600),
            ("streaming", 1),
            ("queued", 1),
        ];
        for (word, ttl) in rows {
            let mut rules = config::Config::default().cache;
            rules.key_recheck_interval = secs(1_000_000);
            let cache = Cache::new(rules, Route::suno().ladder);
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
    fn new_rules_are_for_what_is_kept_from_then_on() {
        let (cache, t0) = (cache(), clock::now());
        cache.key_accepted(ALICE, t0);
        cache.store(ALICE, &state("a", "completed", t0), t0, t0);
        let rules = config::Cache { completed_ttl: secs(5), ..config::Config::default().cache };
        cache.reconfigure(rules);
        cache.store(ALICE, &state("b", "completed", t0), t0, t0);
        let ttl = |name| cache.get(ALICE, &id(name), t0).map(|hit| hit.ttl);
        assert_eq!((ttl("a"), ttl("b")), (Some(secs(24 * 3600)), Some(secs(5))));
    }

    #[test]
    fn what_is_on_no_ladder_is_not_kept() {
        let (cache, t0) = (cache(), clock::now());
        cache.key_accepted(ALICE, t0);
        cache.store(ALICE, &state("a", "paused", t0), t0, t0);
        assert!(cache.get(ALICE, &id("a"), t0).is_none());
    }

    #[test]
    fn an_entry_is_for_its_own_key_only() {
        let (cache, t0) = (cache(), clock::now());
        cache.key_accepted(ALICE, t0);
        cache.key_accepted(BOB, t0);
        cache.store(ALICE, &state("a", "completed", t0), t0, t0);
        assert!(cache.get(ALICE, &id("a"), t0).is_some());
        assert!(cache.get(BOB, &id("a"), t0).is_none());
    }

    #[test]
    fn a_key_is_proven_again_before_it_is_told_more() {
        let (cache, t0) = (cache(), clock::now());
        cache.key_accepted(ALICE, t0);
        cache.store(ALICE, &state("a", "completed", t0), t0, t0);
        assert!(cache.get(ALICE, &id("a"), t0 + secs(599)).is_some());
        assert!(cache.get(ALICE, &id("a"), t0 + secs(600)).is_none());
        cache.key_accepted(ALICE, t0 + secs(601));
        assert!(cache.get(ALICE, &id("a"), t0 + secs(601)).is_some(), "what was kept is good again");
    }

    #[test]
    fn a_refused_key_loses_what_was_kept_for_it_for_good() {
        let (cache, t0) = (cache(), clock::now());
        cache.key_accepted(ALICE, t0);
        cache.store(ALICE, &state("a", "completed", t0), t0, t0);
        cache.key_rejected(ALICE, t0);
        assert!(cache.get(ALICE, &id("a"), t0).is_none());
        cache.key_accepted(ALICE, t0);
        cache.store(ALICE, &state("a", "completed", t0), t0, t0);
        assert!(cache.get(ALICE, &id("a"), t0).is_none(), "what began before the refusal proves nothing");
        cache.key_accepted(ALICE, t0 + secs(1));
        assert!(cache.get(ALICE, &id("a"), t0 + secs(1)).is_none(), "what was kept is gone");
    }

    #[test]
    fn a_403_removes_the_jobs_asked_for_and_the_rest_waits_for_a_new_proof() {
        let (cache, t0) = (cache(), clock::now());
        let kept = |name, at| cache.get(ALICE, &id(name), at).is_some();
        cache.key_accepted(ALICE, t0);
        for name in ["a", "b", "c"] {
            cache.store(ALICE, &state(name, "completed", t0), t0, t0);
        }
        cache.key_forbidden(ALICE, &[id("b"), id("unknown")], t0 + secs(2));
        assert!(cache.is_key_proven(ALICE), "it still counts for itself");
        assert_eq!(["a", "b", "c"].map(|name| kept(name, t0 + secs(2))), [false; 3]);
        cache.store(ALICE, &state("b", "completed", t0 + secs(3)), t0 + secs(1), t0 + secs(3));
        cache.key_accepted(ALICE, t0 + secs(1));
        assert_eq!(["a", "b", "c"].map(|name| kept(name, t0 + secs(3))), [false; 3], "they began before");
        cache.key_accepted(ALICE, t0 + secs(4));
        assert_eq!(["a", "b", "c"].map(|name| kept(name, t0 + secs(4))), [true, false, true]);
        cache.key_forbidden(BOB, &[], t0);
        assert!(!cache.is_key_proven(BOB), "a refusal proves nothing");
    }

    #[test]
    fn the_shape_of_a_keys_lists_is_its_own_and_the_newest() {
        let cache = cache();
        let shape = |name: &str| ListShape::Wrapped(name.to_owned());
        for (domain, told) in
            [(ALICE, shape("a")), (BOB, ListShape::Map), (ALICE, shape("b")), (BOB, ListShape::Array)]
        {
            cache.set_list_shape(domain, &told);
            assert_eq!(*cache.list_shape(domain), told);
        }
        assert_eq!(*cache.list_shape(ALICE), shape("b"));
        assert_eq!(*cache.list_shape(KeyDomain([3; 16])), ListShape::Array);
    }

    #[test]
    fn a_state_that_goes_backwards_is_ignored() {
        let (cache, t0) = (cache(), clock::now());
        cache.key_accepted(ALICE, t0);
        cache.store(ALICE, &state("a", "completed", t0), t0, t0);
        cache.store(ALICE, &state("a", "streaming", t0), t0, t0);
        assert_eq!(cache.get(ALICE, &id("a"), t0).unwrap().entry.state.body, "a completed");
    }

    #[test]
    fn a_job_is_forgotten_for_all_keys_and_all_jobs_at_once() {
        let (cache, t0) = (cache(), clock::now());
        for domain in [ALICE, BOB] {
            cache.key_accepted(domain, t0);
            for name in ["a", "b"] {
                cache.store(domain, &state(name, "completed", t0), t0, t0);
            }
        }
        let kept = |domain, name| cache.get(domain, &id(name), t0).is_some();
        assert_eq!(cache.size().entries, 4);
        assert!(cache.size().bytes > 4 * 512, "{:?}", cache.size());
        assert_eq!(cache.remove(&id("a")), 2);
        assert_eq!(
            [kept(ALICE, "a"), kept(BOB, "a"), kept(ALICE, "b"), kept(BOB, "b")],
            [false, false, true, true]
        );
        assert_eq!(cache.remove(&id("a")), 0);
        assert_eq!(cache.remove_all(), 2);
        assert_eq!([kept(ALICE, "b"), kept(BOB, "b")], [false; 2]);
        assert_eq!(cache.size(), CacheSize { entries: 0, bytes: 0 });
        cache.store(ALICE, &state("a", "completed", t0), t0, t0);
        assert!(kept(ALICE, "a"), "keys stay proven, and what comes later is kept");
    }

    #[test]
    fn bytes_bound_the_cache() {
        let rules = config::Cache { max_bytes: 20_000, ..config::Config::default().cache };
        let (cache, t0) = (Cache::new(rules, Route::suno().ladder), clock::now());
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
    fn the_validator_follows_the_bytes() {
        assert_eq!(etag(b"a"), etag(b"a"));
        assert_ne!(etag(b"a"), etag(b"b"));
        assert_eq!(etag(b"a").len(), 34);
    }
}
