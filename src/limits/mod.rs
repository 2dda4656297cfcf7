//! Quotas of keys, members and addresses, and the `RateLimit` headers that report them.
//!
//! | quota | counts |
//! | --- | --- |
//! | `requests` | every request |
//! | `calls` | requests that need an upstream request |
//!
//! governor counts, with a store of bounded size (`bounded_store`). A reload replaces rates while requests are counted.
//! With siblings, counted requests wait in `takes` until the engine knows them, and its answers raise the counts here.
//! This file does not know requests. `unproven` bounds the waits of keys that the upstream has not accepted.

use std::collections::HashMap;
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::{ArcSwap, Guard};
use governor::clock::Clock;
use governor::middleware::StateInformationMiddleware;
use governor::{Quota as Rate, RateLimiter};
use http::HeaderValue;

use self::bounded_store::{BoundedStore, StoreEffect, StoreKey};
use self::fields::{policy_of, remaining_value};
use self::takes::time_of;
use crate::clock;
use crate::config::{self, TeamMember};
use crate::core::job::KeyDomain;
use crate::telemetry::metrics::Limit;

pub(crate) use self::fields::{
    KnownRemaining, QuotaHeaders, QuotaState, RATELIMIT, RATELIMIT_POLICY, Remaining,
};
pub(crate) use self::takes::{QuotaTake, QuotaTakes};
pub(crate) use self::unproven::{AddressFull, UnprovenWait, UnprovenWaits};

mod bounded_store;
mod fields;
mod takes;
mod unproven;

/// The owner of a quota. All requests of one subject count together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Subject {
    Key(KeyDomain),
    /// A member of the team, with any key. See [`Subject::member`].
    Member(MemberId),
    /// A client address, for requests without a key or with a key that the upstream has not accepted. `None` stands for
    /// all unix sockets.
    Address(Option<IpAddr>),
}

/// Hash of a member's name, so that all subjects have the same size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MemberId([u8; 16]);

impl Subject {
    /// Returns the subject of the member with this name.
    pub fn member(name: &str) -> Self {
        let mut digest = MemberId([0; 16]);
        digest.0.copy_from_slice(&blake3::hash(name.as_bytes()).as_bytes()[..16]);
        Subject::Member(digest)
    }

    /// Returns bytes that no other subject has, the same at all replicas.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        match self {
            Subject::Key(domain) => [b"k", &domain.0[..]].concat(),
            Subject::Member(MemberId(digest)) => [b"m", &digest[..]].concat(),
            Subject::Address(Some(IpAddr::V4(ip))) => [b"4", &ip.octets()[..]].concat(),
            Subject::Address(Some(IpAddr::V6(ip))) => [b"6", &ip.octets()[..]].concat(),
            Subject::Address(None) => b"u".to_vec(),
        }
    }
}

impl From<Option<IpAddr>> for Subject {
    fn from(client: Option<IpAddr>) -> Self {
        Subject::Address(client.map(address_or_network))
    }
}

/// Returns the address, or the /64 network of an IPv6 address, because one host commonly has a whole /64.
fn address_or_network(ip: IpAddr) -> IpAddr {
    match ip.to_canonical() {
        IpAddr::V6(v6) => IpAddr::V6((v6.to_bits() & !u128::from(u64::MAX)).into()),
        v4 => v4,
    }
}

/// The quotas `requests` and `calls` of all subjects.
#[derive(Debug)]
pub struct Limits {
    quotas: ArcSwap<QuotaSet>,
    /// `None`: this replica has its own quotas.
    takes: Option<QuotaTakes>,
}

#[derive(Debug)]
struct QuotaSet {
    requests: QuotaGroup,
    calls: QuotaGroup,
    /// Number of replicas by which the quotas are divided. 1: this one has the whole quotas.
    divisor: u32,
    /// Number of changes of the quotas.
    version: u64,
    /// `RateLimit-Policy` of subjects with the default quotas.
    policy: Option<HeaderValue>,
}

impl Limits {
    /// Returns the configured quotas. Members may have their own. A rate of 0 disables a quota.
    pub fn new(limits: &config::LimitsConfig, members: &[TeamMember]) -> Self {
        Self { quotas: ArcSwap::from_pointee(QuotaSet::new(limits, members, None)), takes: None }
    }

    /// Returns quotas that replicas share. The caller sends the [`takes`](Self::takes) to the engine.
    pub(crate) fn shared(limits: &config::LimitsConfig, members: &[TeamMember]) -> Self {
        Self { takes: Some(QuotaTakes::default()), ..Self::new(limits, members) }
    }

    pub(crate) fn takes(&self) -> Option<&QuotaTakes> {
        self.takes.as_ref()
    }

    /// Records the number of replicas, and whether each has only its part of the quotas.
    pub(crate) fn set_replicas(&self, replicas: u32, is_divided: bool) {
        if let Some(takes) = &self.takes {
            takes.set_replicas(replicas);
        }
        let divisor = if is_divided { replicas.max(1) } else { 1 };
        if self.quotas.load().divisor != divisor {
            self.quotas.rcu(|before| before.divided(divisor));
        }
    }

    /// Raises the count of a subject after the engine has counted a take. `full_in` is the time until the quota is full.
    pub(crate) fn raise(&self, take: &QuotaTake, full_in: Duration) {
        let quotas = self.quotas.load();
        let group = if take.quota == Limit::Calls { &quotas.calls } else { &quotas.requests };
        if let Some(quota) =
            group.of(take.subject).filter(|quota| quota.take_of(take.subject, take.count) == *take)
        {
            // Later requests are in the count here, and not in the answer yet.
            let pending = self.takes.as_ref().map_or(0, |takes| takes.of(take.quota).pending(&take.subject));
            quota.raise(take.subject, full_in.saturating_add(time_of(take.rate, pending)));
        }
    }

    /// Replaces the rates. Counts of unchanged rates are kept.
    pub fn reconfigure(&self, limits: &config::LimitsConfig, members: &[TeamMember]) {
        self.quotas.rcu(|before| QuotaSet::new(limits, members, Some(before)));
    }

    /// Counts one request against the quota `requests`.
    pub fn check_request(&self, subject: Subject) -> Result<Option<Remaining>, QuotaExceeded> {
        self.check(subject, NonZeroU32::MIN, |quotas| &quotas.requests)
    }

    /// Counts one upstream request against the quota `calls`.
    pub fn check_call(&self, subject: Subject) -> Result<Option<Remaining>, QuotaExceeded> {
        self.check_calls(subject, 1)
    }

    /// Counts several upstream requests: all of them, or none if the quota is too small.
    pub fn check_calls(&self, subject: Subject, count: usize) -> Result<Option<Remaining>, QuotaExceeded> {
        let count = u32::try_from(count).unwrap_or(u32::MAX);
        NonZeroU32::new(count).map_or(Ok(None), |count| self.check(subject, count, |quotas| &quotas.calls))
    }

    fn check(
        &self,
        subject: Subject,
        count: NonZeroU32,
        group: impl Fn(&QuotaSet) -> &QuotaGroup,
    ) -> Result<Option<Remaining>, QuotaExceeded> {
        let quotas = self.quotas.load();
        let Some(quota) = group(&quotas).of(subject) else { return Ok(None) };
        let counted = self.check_quota(quota, subject, count, quotas.divisor)?;
        Ok(counted.map(|state| Remaining { requests: state.remaining, version: quotas.version }))
    }

    /// Counts requests against a quota. Returns its state then.
    fn check_quota(
        &self,
        quota: &RateQuota,
        subject: Subject,
        count: NonZeroU32,
        divisor: u32,
    ) -> Result<Option<QuotaState>, QuotaExceeded> {
        let (counted, state) = quota.check(subject, count, divisor)?;
        if let Some(takes) = &self.takes {
            takes.record(quota.take_of(subject, counted.get()));
        }
        Ok(state)
    }

    /// Returns the `RateLimit` headers of a subject, without counting a request. `known` saves a look at its quotas, unless
    /// these have changed since. `None`: the subject has no quota.
    pub fn quota_headers(&self, subject: Subject, known: KnownRemaining) -> Option<QuotaHeaders> {
        let quotas = self.quotas.load();
        let groups = [(&quotas.requests, known.requests), (&quotas.calls, known.calls)];
        let states = groups.into_iter().filter_map(|(group, known)| {
            let quota = group.of(subject)?;
            Some(match known.filter(|known| known.version == quotas.version) {
                Some(known) => quota.state(known.requests, None),
                None => quota.peek(subject, quotas.divisor),
            })
        });
        let remaining = remaining_value(states)?;
        Some(QuotaHeaders { policy: quotas.policy(subject)?, remaining })
    }

    /// Returns the quotas as they are now, for a request whose `RateLimit-Policy` is known.
    pub(crate) fn current(&self) -> CurrentQuotas<'_> {
        CurrentQuotas { quotas: self.quotas.load(), limits: self }
    }

    /// Returns whether a quota counts the requests or the calls of a subject.
    pub(crate) fn has_quota(&self, subject: Subject) -> bool {
        self.quotas.load().of(subject).next().is_some()
    }

    /// Returns the state of each quota of a subject, without counting a request.
    pub fn quota_states(&self, subject: Subject) -> Vec<QuotaState> {
        let quotas = self.quotas.load();
        quotas.of(subject).map(|quota| quota.peek(subject, quotas.divisor)).collect()
    }

    /// Removes the subjects whose quotas are full again. Call it from time to time.
    pub fn purge_idle(&self) {
        for quota in self.quotas.load().all() {
            quota.limiter.retain_recent();
            quota.limiter.shrink_to_fit();
        }
    }

    /// Returns the number of stored counts, of both quotas.
    pub fn tracked_subjects(&self) -> usize {
        self.quotas.load().all().map(|quota| quota.limiter.len()).sum()
    }
}

/// The quotas between two changes of them.
pub(crate) struct CurrentQuotas<'l> {
    quotas: Guard<Arc<QuotaSet>>,
    limits: &'l Limits,
}

impl CurrentQuotas<'_> {
    /// Returns the number of these quotas. While it stays, `RateLimit-Policy` of a subject does.
    pub(crate) fn version(&self) -> u64 {
        self.quotas.version
    }

    /// Counts one request against the quota `requests`. Returns `RateLimit`, or `None` for a subject without a quota.
    pub(crate) fn count_request(&self, subject: Subject) -> Result<Option<HeaderValue>, QuotaExceeded> {
        let QuotaSet { requests, calls, divisor, .. } = &**self.quotas;
        let requests = match requests.of(subject) {
            Some(quota) => {
                let counted = self.limits.check_quota(quota, subject, NonZeroU32::MIN, *divisor)?;
                Some(counted.unwrap_or_else(|| quota.peek(subject, *divisor)))
            }
            None => None,
        };
        let calls = calls.of(subject).map(|quota| quota.peek(subject, *divisor));
        Ok(remaining_value(requests.into_iter().chain(calls)))
    }
}

impl QuotaSet {
    fn new(limits: &config::LimitsConfig, members: &[TeamMember], before: Option<&Self>) -> Self {
        let requests = |m: &TeamMember| (m.requests_per_second, m.burst);
        let calls = |m: &TeamMember| (m.calls_per_second, m.calls_burst);
        let requests = QuotaGroup::new(
            Limit::Requests,
            (limits.requests_per_second, limits.burst),
            members.iter().map(|member| (member, requests(member))),
            before.map(|before| &before.requests),
        );
        let calls = QuotaGroup::new(
            Limit::Calls,
            (limits.calls_per_second, limits.calls_burst),
            members.iter().map(|member| (member, calls(member))),
            before.map(|before| &before.calls),
        );
        let (divisor, version) = before.map_or((1, 0), |before| (before.divisor, before.version + 1));
        Self::of_groups(requests, calls, divisor, version)
    }

    fn of_groups(requests: QuotaGroup, calls: QuotaGroup, divisor: u32, version: u64) -> Self {
        let defaults = [&requests, &calls].into_iter().filter_map(|group| group.default.as_deref());
        Self { policy: policy_of(defaults, divisor), requests, calls, divisor, version }
    }

    /// Returns the same quotas with the same counts, divided by this number of replicas.
    fn divided(&self, divisor: u32) -> Self {
        Self::of_groups(self.requests.clone(), self.calls.clone(), divisor, self.version + 1)
    }

    fn of(&self, subject: Subject) -> impl Iterator<Item = &RateQuota> {
        [&self.requests, &self.calls].into_iter().filter_map(move |group| group.of(subject))
    }

    fn policy(&self, subject: Subject) -> Option<HeaderValue> {
        match [&self.requests, &self.calls].iter().any(|group| group.per_member.contains_key(&subject)) {
            false => self.policy.clone(),
            true => policy_of(self.of(subject), self.divisor),
        }
    }

    fn all(&self) -> impl Iterator<Item = &RateQuota> {
        [&self.requests, &self.calls]
            .into_iter()
            .flat_map(|group| group.default.iter().chain(group.per_member.values()))
            .map(Arc::as_ref)
    }
}

/// A quota that is used up.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("over the quota \"{}\"", .quota.into_str())]
pub struct QuotaExceeded {
    pub quota: Limit,
    /// Time until the next request is allowed, in whole seconds and at least one.
    pub retry_after: Duration,
}

/// One kind of quota: the default, and those of members with their own rate or burst.
#[derive(Clone, Debug)]
struct QuotaGroup {
    default: Option<Arc<RateQuota>>,
    per_member: HashMap<Subject, Arc<RateQuota>>,
}

impl QuotaGroup {
    /// Returns the quotas from pairs of rate and burst. A member's missing value is that of the default quota.
    fn new<'m>(
        name: Limit,
        default: (u32, u32),
        members: impl Iterator<Item = (&'m TeamMember, (Option<u32>, Option<u32>))>,
        before: Option<&Self>,
    ) -> Self {
        let per_member =
            members.filter(|(_, own)| *own != (None, None)).filter_map(|(member, (rate, burst))| {
                let pair = (rate.unwrap_or(default.0), burst.unwrap_or(default.1));
                let subject = Subject::member(&member.name);
                let previous = before.and_then(|before| before.per_member.get(&subject));
                Some((subject, RateQuota::reuse_or_new(previous, name, pair, BoundedStore::single_shard)?))
            });
        let previous = before.and_then(|before| before.default.as_ref());
        Self {
            per_member: per_member.collect(),
            default: RateQuota::reuse_or_new(previous, name, default, BoundedStore::sharded),
        }
    }

    fn of(&self, subject: Subject) -> Option<&RateQuota> {
        self.per_member.get(&subject).or(self.default.as_ref()).map(Arc::as_ref)
    }
}

#[derive(Debug)]
struct RateQuota {
    name: Limit,
    rate_and_burst: (u32, u32),
    /// Start of the times in the store.
    started_at: Instant,
    limiter: RateLimiter<StoreKey, BoundedStore, GatewayClock, StateInformationMiddleware>,
}

impl RateQuota {
    /// Returns the previous quota with its counts if its rate and burst are unchanged, else a new one.
    fn reuse_or_new(
        before: Option<&Arc<Self>>,
        name: Limit,
        pair: (u32, u32),
        store: fn() -> BoundedStore,
    ) -> Option<Arc<Self>> {
        match before.filter(|before| before.rate_and_burst == pair) {
            Some(before) => Some(Arc::clone(before)),
            None => Self::new(name, pair, store()).map(Arc::new),
        }
    }

    fn new(name: Limit, pair: (u32, u32), store: BoundedStore) -> Option<Self> {
        let rate = NonZeroU32::new(pair.0)?;
        let burst = NonZeroU32::new(pair.1).unwrap_or(rate);
        let started_at = clock::now();
        let limiter = RateLimiter::new(Rate::per_second(rate).allow_burst(burst), store, GatewayClock);
        Some(Self { name, rate_and_burst: pair, started_at, limiter })
    }

    /// Returns the quota's list member of `RateLimit-Policy`, for one of several replicas.
    fn policy(&self, divisor: u32) -> String {
        let (rate, burst) = self.effective();
        let window = burst.div_ceil(rate.max(1));
        format!("\"{}\";q={};w={window}", self.name.into_str(), burst.div_ceil(divisor))
    }

    /// Returns rate and burst. A burst that is not configured is the rate.
    fn effective(&self) -> (u32, u32) {
        let (rate, burst) = self.rate_and_burst;
        (rate, if burst == 0 { rate } else { burst })
    }

    fn take_of(&self, subject: Subject, count: u32) -> QuotaTake {
        let (rate, burst) = self.effective();
        QuotaTake { quota: self.name, subject, rate, burst, count }
    }

    /// Counts `count` requests, each as one of every replica among which the quota is divided. Returns the number that was
    /// counted: a count above the burst uses the whole burst; otherwise such a request could never pass. Also returns the
    /// state then, unless only [`Self::peek`] knows it.
    fn check(
        &self,
        subject: Subject,
        count: NonZeroU32,
        divisor: u32,
    ) -> Result<(NonZeroU32, Option<QuotaState>), QuotaExceeded> {
        let (rate, burst) = self.effective();
        let count = NonZeroU32::new(burst).map_or(count, |burst| count.min(burst));
        let surcharge = match divisor {
            1 => 0,
            _ => nanos(time_of(rate, count.get().saturating_mul(divisor - 1))),
        };
        let key = StoreKey { subject, effect: StoreEffect::Count { surcharge } };
        match self.limiter.check_key_n(&key, count) {
            Ok(Ok(state)) => {
                // The surcharge is not in the state, nor is the time until the next request if none remains.
                let remaining = state.remaining_burst_capacity();
                let is_known = divisor == 1 && remaining > 0;
                Ok((count, is_known.then(|| self.state(remaining, None))))
            }
            Ok(Err(until)) => {
                let retry_after = Duration::from_secs(seconds(until.wait_time_from(GatewayClock.now())));
                Err(QuotaExceeded { quota: self.name, retry_after })
            }
            Err(_) => Err(QuotaExceeded { quota: self.name, retry_after: Duration::from_secs(1) }),
        }
    }

    /// Raises the count of a subject, so that its quota is full in this time at the earliest.
    fn raise(&self, subject: Subject, full_in: Duration) {
        let full_at = clock::now().saturating_duration_since(self.started_at).saturating_add(full_in);
        // The result of the check says nothing: it is one that no client has sent.
        let _ = self.limiter.check_key(&StoreKey { subject, effect: StoreEffect::Raise(nanos(full_at)) });
    }

    /// Returns the state of the quota without counting a request.
    fn peek(&self, subject: Subject, divisor: u32) -> QuotaState {
        let key = StoreKey { subject, effect: StoreEffect::Peek };
        let (remaining, resets_in) = match self.limiter.check_key(&key) {
            // governor subtracts this check itself, which the store does not save.
            Ok(state) => ((state.remaining_burst_capacity() + 1).div_ceil(divisor), None),
            Err(until) => (0, Some(seconds(until.wait_time_from(GatewayClock.now())))),
        };
        self.state(remaining, resets_in)
    }

    fn state(&self, remaining: u32, resets_in: Option<u64>) -> QuotaState {
        let (rate, burst) = self.rate_and_burst;
        QuotaState { quota: self.name, rate, burst, remaining, resets_in }
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX / 2)
}

/// Returns the duration in seconds, rounded up and at least 1.
fn seconds(duration: Duration) -> u64 {
    (duration.as_secs() + u64::from(duration.subsec_nanos() > 0)).max(1)
}

/// The gateway's clock for governor, so that tests can pause it.
#[derive(Clone, Copy, Debug, Default)]
struct GatewayClock;

impl Clock for GatewayClock {
    type Instant = Instant;

    fn now(&self) -> Instant {
        clock::now()
    }
}

#[cfg(test)]
mod tests;
