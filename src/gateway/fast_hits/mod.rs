//! Repeated hits: each thread keeps the answers to requests that it has answered from the cache before, by the bytes of
//! the request. Such a request costs a lookup, the quotas, four header fields, the metrics and the access line. It writes to
//! memory of its thread only, but for the counts of quotas and of members.
//!
//! ```text
//!   request ── known? ── unchanged? ── not expired? ── within the quota? ──▶ the kept answer, with its new values
//!                 └────────────┴─────────────┴───────────────┴── no ──▶ the ordinary way ── a hit ──▶ kept
//! ```
//!
//! Only the ordinary way decides. Its answer depends on:
//!
//! | dependency | detection of an outdated answer |
//! | --- | --- |
//! | method, version, TLS, kind of peer, target, `Host`, `Authorization`, `Accept` | part of the key |
//! | `User-Agent`, `X-Request-Id` | read again, for the access line and the answer |
//! | `Accept-Encoding`, `Accept-Language`, `Connection`, `Content-Type` | the ordinary way reads none of them |
//! | any other field, a body | takes the ordinary way |
//! | state of the job, 401 and 403 to the key, removals, reloads | [`Generation`] |
//! | quotas, metrics, access line | counted and written for each request |
//! | number of replicas that share the quotas | version of the quotas |
//! | lifetime of the state, `cache.key_recheck_interval` | `valid_until` |
//! | eviction by moka, in [`TOUCH_INTERVAL`] | [`Cache::valid_until`](crate::cache::Cache::valid_until), which also counts the use |
//! | `auth.headers` and `auth.with_key` with other fields, traces | such gateways keep no answers |
//!
//! Only answers with a single job are kept. Bounds: [`MAX_ENTRIES`] and [`MAX_BYTES`] a thread.

mod key;

use std::cell::RefCell;
use std::collections::HashMap;
use std::fmt;
use std::hash::BuildHasher as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use foldhash::quality::RandomState;
use http::header::AGE;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode};
use http_body::Body as HttpBody;

use self::key::write_key;
use super::Gateway;
use super::access_log::{AccessLog, AnsweredHit, log_hit};
use super::response::{CACHE_STATUS, ResponseOrigin, X_REQUEST_ID, age_value, hit_status};
use crate::cache::{CachedJob, Generation};
use crate::core::job::KeyDomain;
use crate::limits::{CurrentQuotas, RATELIMIT, RATELIMIT_POLICY, Subject};
use crate::protocol::body::Body;
use crate::protocol::field_value::copy_value;
use crate::protocol::request::RequestCtx;
use crate::telemetry::log::KeptText;
use crate::telemetry::metrics::RouteLabel;

/// Most answers of one thread.
const MAX_ENTRIES: usize = 1024;

/// Most bytes of keys, headers, bodies and log lines of one thread. States that the cache has evicted may add as many, until their
/// requests come again.
const MAX_BYTES: usize = 4 << 20;

/// A nearly full table admits one of so many requests, whose answer replaces others. Where more requests come in turn than
/// fit, most of its answers stay until they are asked for again, and most other requests cost no more than without it.
const REPLACED_PART: u8 = 16;

/// Longest body of a kept answer, and its longest header.
const MAX_BODY: usize = 64 << 10;
const MAX_HEADER: usize = 4 << 10;

/// Memory of a field besides its bytes.
const FIELD_OVERHEAD: usize = 100;

/// Fields that hyper adds over HTTP/2: `date` and `content-length`. Without room for them the hash table of the fields grows.
const HYPERS_FIELDS: usize = 2;

/// Hits, and the time, after which the cache sees that an entry is still used, and the table that it was evicted.
const TOUCH_HITS: u32 = 64;
const TOUCH_INTERVAL: Duration = Duration::from_millis(100);

/// Requests that a thread remembers to keep an answer only the second time: most jobs are read once.
const REMEMBERED: usize = 4096;

thread_local! {
    static TABLE: RefCell<Table> = RefCell::new(Table::new());
}

/// The answers that one thread keeps for one gateway.
struct Table {
    gateway: u64,
    /// Count of the changes of everything when the answers were kept.
    all: u64,
    entries: HashMap<Box<[u8]>, KeptAnswer, RandomState>,
    bytes: usize,
    /// Key of the current request.
    key: Vec<u8>,
    /// Hashes of recent keys without an answer.
    recent: Box<[u32]>,
    /// Requests that a nearly full table has not admitted since the last one.
    refused: u8,
    served: u64,
}

struct KeptAnswer {
    generation: Generation,
    /// Version of the quotas.
    quotas: u64,
    valid_until: Instant,
    entry: Arc<CachedJob>,
    domain: KeyDomain,
    /// `None`: the address of the client.
    subject: Option<Subject>,
    route: RouteLabel,
    member: Option<Arc<str>>,
    jobs: Box<str>,
    text: KeptText,
    status: StatusCode,
    /// All fields, without the values of those that change.
    headers: HeaderMap,
    /// The fields that change, in the order of `headers`. `None`: a field that stays.
    changing: Box<[Option<ChangingField>]>,
    body: Bytes,
    age: SecondValue,
    hit_status: SecondValue,
    touched_at: Instant,
    untouched_hits: u32,
}

/// A field whose value is set for each answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ChangingField {
    Age,
    CacheStatus,
    RateLimit,
    RequestId,
}

/// A value that changes each second.
struct SecondValue {
    seconds: u64,
    value: HeaderValue,
}

/// A request whose answer is kept if it is a hit.
pub(super) struct Candidate {
    key: Box<[u8]>,
    /// Changes of everything, before the answer was begun.
    all: u64,
    /// Version of the quotas, before the answer was begun.
    quotas: u64,
    /// The state that the answer shows.
    entry: Option<Arc<CachedJob>>,
}

/// The key has the client's key in clear.
impl fmt::Debug for Candidate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Candidate").field("all", &self.all).finish_non_exhaustive()
    }
}

impl Candidate {
    /// Records the state that the answer shows.
    pub(super) fn set_origin(&mut self, origin: &ResponseOrigin) {
        if let ResponseOrigin::Hit { first, .. } = origin {
            self.entry = Some(Arc::clone(first));
        }
    }
}

/// The number of a gateway, which keeps the answers of several in one process apart.
#[derive(Debug)]
pub(super) struct GatewayNumber(pub(super) u64);

impl GatewayNumber {
    pub(super) fn new() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Self(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

/// Result of the lookup of a request.
pub(super) enum Known {
    Answer(Response<Body>),
    /// Keep the answer if it is a hit.
    Candidate(Box<Candidate>),
    Nothing,
}

impl Gateway {
    /// Returns the kept answer to a request, if there is one that is still right.
    ///
    /// With an answer, the id of the request is taken.
    pub(super) fn kept_answer<B: HttpBody>(&self, request: &Request<B>, ctx: &mut RequestCtx) -> Known {
        if !self.0.tracer.is_off() {
            return Known::Nothing;
        }
        // Read before anything that the answer depends on.
        let (all, quotas) = (self.0.cache.all_changes(), self.0.limits.current());
        TABLE.with_borrow_mut(|table| {
            table.clear_outdated(self.0.number.0, all);
            if !write_key(request, ctx, &mut table.key) {
                return Known::Nothing;
            }
            let candidate = |key: &[u8]| {
                let candidate = Candidate { key: key.into(), all, quotas: quotas.version(), entry: None };
                Known::Candidate(Box::new(candidate))
            };
            let Some(kept) = table.entries.get_mut(&*table.key) else {
                return if table.is_recent() && table.admits() {
                    candidate(&table.key)
                } else {
                    Known::Nothing
                };
            };
            if kept.quotas != quotas.version() || !self.is_right(kept, ctx.arrived) {
                let key = std::mem::take(&mut table.key);
                table.remove(&key);
                return candidate(&key);
            }
            match self.answer_again(kept, &quotas, request, ctx) {
                Some(response) => {
                    table.served += 1;
                    Known::Answer(response)
                }
                None => Known::Nothing,
            }
        })
    }

    /// Frees keys and bodies that a reload or an operator has removed.
    pub(super) fn clear_outdated_answers(&self) {
        let all = self.0.cache.all_changes();
        TABLE.with_borrow_mut(|table| table.clear_outdated(self.0.number.0, all));
    }

    /// Returns whether nothing has changed since the answer was kept. Shows its use to the cache from time to time.
    fn is_right(&self, kept: &mut KeptAnswer, now: Instant) -> bool {
        if now >= kept.valid_until || !self.0.cache.is_current(kept.generation) {
            return false;
        }
        kept.untouched_hits += 1;
        if kept.untouched_hits < TOUCH_HITS && now.saturating_duration_since(kept.touched_at) < TOUCH_INTERVAL
        {
            return true;
        }
        (kept.touched_at, kept.untouched_hits) = (now, 0);
        match self.0.cache.valid_until(kept.domain, &kept.entry, now) {
            Some(valid_until) => {
                kept.valid_until = valid_until;
                true
            }
            None => false,
        }
    }

    /// Counts the request, and returns the answer with its new values. `None`: a quota is used up.
    fn answer_again<B: HttpBody>(
        &self,
        kept: &mut KeptAnswer,
        quotas: &CurrentQuotas<'_>,
        request: &Request<B>,
        ctx: &mut RequestCtx,
    ) -> Option<Response<Body>> {
        let subject = kept.subject.unwrap_or_else(|| ctx.forwarded.client_ip().into());
        let mut remaining = quotas.count_request(subject).ok()?;
        let answered = AnsweredHit {
            status: kept.status,
            body_size: kept.body.len(),
            route: kept.route,
            domain: kept.domain,
            jobs: &kept.jobs,
            member: kept.member.as_deref(),
            text: &kept.text,
        };
        log_hit(&self.0.metrics, request, ctx, &answered);
        let (age, ttl) = kept.entry.age_and_ttl(ctx.arrived);
        let mut headers = kept.headers.clone();
        for (value, changing) in headers.values_mut().zip(&kept.changing) {
            let Some(changing) = changing else { continue };
            let new = match changing {
                ChangingField::Age => Some(kept.age.at(age.as_secs(), age_value)),
                ChangingField::CacheStatus => {
                    Some(kept.hit_status.at(ttl.as_secs(), |seconds| hit_status(seconds, "")))
                }
                ChangingField::RateLimit => remaining.take(),
                ChangingField::RequestId => Some(ctx.id.take_value()),
            };
            if let Some(new) = new {
                *value = new;
            }
        }
        let mut response = Response::new(Body::full(kept.body.clone()));
        *response.status_mut() = kept.status;
        *response.headers_mut() = headers;
        Some(response)
    }

    /// Keeps an answer of the ordinary way, if it is a hit of one job.
    pub(super) fn keep_answer(
        &self,
        candidate: Candidate,
        log: &AccessLog,
        subject: Subject,
        response: &Response<Body>,
    ) {
        let Candidate { key, all, quotas, entry: Some(entry) } = candidate else { return };
        let Some((domain, jobs)) = log.wait() else { return };
        let (body, headers) = (&entry.state.body, response.headers());
        let has_one = |name: &HeaderName| headers.get_all(name).iter().count() == 1;
        let is_plain = response.body().size_hint().exact() == Some(body.len() as u64)
            && body.len() <= MAX_BODY
            && header_bytes(headers) <= MAX_HEADER
            && has_one(&AGE)
            && has_one(&CACHE_STATUS)
            && has_one(&X_REQUEST_ID)
            && headers.get(X_REQUEST_ID) == Some(log.ctx().id.value())
            && has_one(&RATELIMIT) == self.0.limits.has_quota(subject);
        if !is_plain || !self.0.access.authenticator.reads_authorization_only() {
            return;
        }
        // In this order: a change between the two is counted after the first.
        let generation = self.0.cache.generation(all, domain, &entry.state.id);
        let arrived = log.ctx().arrived;
        let Some(valid_until) = self.0.cache.valid_until(domain, &entry, arrived) else { return };
        let subject = match subject {
            Subject::Address(_) => None,
            Subject::Key(_) | Subject::Member(_) => Some(subject),
        };
        let (age, ttl) = entry.age_and_ttl(arrived);
        let (headers, changing) = own_headers(headers);
        let kept = KeptAnswer {
            generation,
            quotas,
            valid_until,
            domain,
            subject,
            route: log.route(),
            member: log.member.clone(),
            jobs: jobs.into(),
            text: log.kept_text(),
            status: response.status(),
            headers,
            changing,
            // A copy, because threads would share the count of references.
            body: Bytes::copy_from_slice(body),
            age: SecondValue { seconds: age.as_secs(), value: age_value(age.as_secs()) },
            hit_status: SecondValue { seconds: ttl.as_secs(), value: hit_status(ttl.as_secs(), "") },
            entry,
            touched_at: arrived,
            untouched_hits: 0,
        };
        TABLE.with_borrow_mut(|table| table.insert(self.0.number.0, key, kept));
    }
}

/// Returns copies of all fields, without the values of those that change, and the places of these. Copies, because threads
/// would share the counts of references of names and values.
fn own_headers(headers: &HeaderMap) -> (HeaderMap, Box<[Option<ChangingField>]>) {
    let mut own = HeaderMap::with_capacity(headers.len() + HYPERS_FIELDS);
    for (name, value) in headers {
        match ChangingField::of(name) {
            Some(changing) => own.append(changing.name(), HeaderValue::from_static("")),
            None => own.append(own_name(name), own_value(value)),
        };
    }
    let changing = own.iter().map(|(name, _)| ChangingField::of(name)).collect();
    (own, changing)
}

fn own_name(name: &HeaderName) -> HeaderName {
    match *name == RATELIMIT_POLICY {
        true => RATELIMIT_POLICY,
        false => HeaderName::from_bytes(name.as_str().as_bytes()).expect("bytes of a valid name"),
    }
}

fn own_value(value: &HeaderValue) -> HeaderValue {
    let common = COMMON_VALUES.into_iter().find(|common| common.as_bytes() == value.as_bytes());
    match common.filter(|_| !value.is_sensitive()) {
        Some(common) => HeaderValue::from_static(common),
        None => copy_value(value),
    }
}

/// Values of most answers. The clones of a static value count no references.
const COMMON_VALUES: [&str; 4] =
    ["application/json; charset=utf-8", "application/json", "1.1 clipgate", "authorization, accept"];

impl ChangingField {
    const ALL: [Self; 4] = [Self::Age, Self::CacheStatus, Self::RateLimit, Self::RequestId];

    fn of(name: &HeaderName) -> Option<Self> {
        Self::ALL.into_iter().find(|field| field.name() == *name)
    }

    const fn name(self) -> HeaderName {
        match self {
            Self::Age => AGE,
            Self::CacheStatus => CACHE_STATUS,
            Self::RateLimit => RATELIMIT,
            Self::RequestId => X_REQUEST_ID,
        }
    }
}

/// Returns how many requests this thread has answered again.
#[cfg(test)]
fn served() -> u64 {
    TABLE.with_borrow(|table| table.served)
}

impl Table {
    fn new() -> Self {
        Self {
            gateway: 0,
            all: 0,
            entries: HashMap::default(),
            bytes: 0,
            key: Vec::new(),
            recent: vec![0; REMEMBERED].into(),
            refused: 0,
            served: 0,
        }
    }

    /// Returns whether the current request came recently, and remembers it.
    fn is_recent(&mut self) -> bool {
        let hash = self.entries.hasher().hash_one(&*self.key);
        let slot = usize::try_from(hash % REMEMBERED as u64).unwrap_or_default();
        // The low bits are those of the slot. 0 stands for no request.
        let rest = (hash >> 32) as u32 | 1;
        std::mem::replace(&mut self.recent[slot], rest) == rest
    }

    fn insert(&mut self, gateway: u64, key: Box<[u8]>, kept: KeptAnswer) {
        if self.gateway != gateway {
            return;
        }
        let bytes = weight(&key, &kept);
        self.remove(&key);
        self.make_room(bytes);
        self.bytes += bytes;
        self.entries.insert(key, kept);
    }

    fn remove(&mut self, key: &[u8]) {
        if let Some((key, kept)) = self.entries.remove_entry(key) {
            self.bytes -= weight(&key, &kept);
        }
    }

    /// Returns whether to keep the answer to one more request.
    fn admits(&mut self) -> bool {
        if self.entries.len() < MAX_ENTRIES && self.bytes < MAX_BYTES - MAX_BYTES / 16 {
            return true;
        }
        self.refused = (self.refused + 1) % REPLACED_PART;
        self.refused == 0
    }

    /// Removes answers until there is room for one of this size, in the order of the hash table, which is random.
    fn make_room(&mut self, bytes: usize) {
        while self.entries.len() >= MAX_ENTRIES || self.bytes + bytes > MAX_BYTES {
            let Some((key, kept)) = self.entries.extract_if(|_, _| true).next() else { return };
            self.bytes -= weight(&key, &kept);
        }
    }

    /// Removes all answers if they are those of another gateway, or were kept before a change of everything.
    fn clear_outdated(&mut self, gateway: u64, all: u64) {
        if (self.gateway, self.all) != (gateway, all) {
            self.entries.clear();
            (self.gateway, self.all, self.bytes) = (gateway, all, 0);
        }
    }
}

fn weight(key: &[u8], kept: &KeptAnswer) -> usize {
    key.len() + header_bytes(&kept.headers) + kept.body.len() + kept.jobs.len() + kept.text.size()
}

/// Returns about the memory of a header, whose fields share their bytes with nothing else in the worst case.
fn header_bytes(headers: &HeaderMap) -> usize {
    headers.iter().map(|(name, value)| name.as_str().len() + value.len() + FIELD_OVERHEAD).sum()
}

impl SecondValue {
    fn at(&mut self, seconds: u64, value: impl FnOnce(u64) -> HeaderValue) -> HeaderValue {
        if self.seconds != seconds {
            *self = Self { seconds, value: value(seconds) };
        }
        self.value.clone()
    }
}

#[cfg(test)]
mod tests;
