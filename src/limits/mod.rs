//! What one key may do: governor's quotas, and what the client is told of them.
//!
//! It knows keys, members' names and addresses, never requests. There are two quotas: `requests`, which
//! everything counts against, and `calls`, which only what makes an upstream request counts against. What is
//! counted, and by whose rate, can be changed while requests are counted.

use std::collections::HashMap;
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use arrayvec::ArrayString;
use governor::clock::Clock;
use governor::middleware::StateInformationMiddleware;
use governor::{Quota as Rate, RateLimiter};
use http::{HeaderMap, HeaderName, HeaderValue};

use self::bounded_store::{Store, StoreKey};
use crate::clock;
use crate::config::{self, Member};
use crate::core::job::KeyDomain;
use crate::telemetry::metrics::Limit;

pub(crate) use self::unproven::{AddressFull, UnprovenWait, UnprovenWaits};

mod bounded_store;
mod unproven;

/// Whom a quota is counted for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Subject {
    /// A key.
    Key(KeyDomain),
    /// A member of the team, whatever its key; by [`Who::member`].
    Member(MemberId),
    /// An address, while the key is not known or there is none. `None`: unix sockets, which have none.
    Address(Option<IpAddr>),
}

/// A member's name in as many bytes as any other has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MemberId([u8; 16]);

impl Subject {
    /// The member of this name.
    pub fn member(name: &str) -> Self {
        let mut digest = MemberId([0; 16]);
        digest.0.copy_from_slice(&blake3::hash(name.as_bytes()).as_bytes()[..16]);
        Subject::Member(digest)
    }
}

impl From<Option<IpAddr>> for Subject {
    fn from(client: Option<IpAddr>) -> Self {
        Subject::Address(client.map(network))
    }
}

/// Whoever holds one IPv6 address holds its /64.
fn network(ip: IpAddr) -> IpAddr {
    match ip.to_canonical() {
        IpAddr::V6(v6) => IpAddr::V6((v6.to_bits() & !u128::from(u64::MAX)).into()),
        v4 => v4,
    }
}

/// The quotas of section 5 of the contract.
#[derive(Debug)]
pub struct Limits {
    rules: ArcSwap<Rules>,
}

#[derive(Debug)]
struct Rules {
    requests: QuotaGroup,
    calls: QuotaGroup,
    /// The policy of who has no quota of its own.
    policy: Option<HeaderValue>,
}

impl Limits {
    /// The quotas as configured, `members` with their own; a rate of 0 is no quota.
    pub fn new(limits: &config::Limits, members: &[Member]) -> Self {
        Self { rules: ArcSwap::from_pointee(Rules::new(limits, members, None)) }
    }

    /// Counts by these from now on. Who was counted by a rate that stays is not forgotten.
    pub fn set(&self, limits: &config::Limits, members: &[Member]) {
        self.rules.rcu(|before| Rules::new(limits, members, Some(before)));
    }

    /// Counts one request.
    pub fn request(&self, who: Subject) -> Result<(), QuotaExceeded> {
        self.rules.load().requests.check(who, NonZeroU32::MIN)
    }

    /// Counts one request to the upstream.
    pub fn call(&self, who: Subject) -> Result<(), QuotaExceeded> {
        self.calls(who, 1)
    }

    /// Counts several requests to the upstream, all or none of them.
    pub fn calls(&self, who: Subject, count: usize) -> Result<(), QuotaExceeded> {
        let count = u32::try_from(count).unwrap_or(u32::MAX);
        NonZeroU32::new(count).map_or(Ok(()), |count| self.rules.load().calls.check(who, count))
    }

    /// Where it stands with all its quotas now, which takes nothing from them; `None`: it has none.
    pub fn standing(&self, who: Subject) -> Option<QuotaHeaders> {
        let rules = self.rules.load();
        let mut now = ArrayString::<MAX_STANDING>::new();
        for quota in rules.of(who) {
            if !now.is_empty() {
                now.push_str(", ");
            }
            quota.peek(who).write(&mut now);
        }
        let now = HeaderValue::from_str(&now).expect("quotas' names are tokens");
        Some(QuotaHeaders { policy: rules.policy(who)?, now })
    }

    /// What is left of each of its quotas, which takes nothing from them.
    pub fn left(&self, who: Subject) -> Vec<QuotaState> {
        self.rules.load().of(who).map(|quota| quota.peek(who)).collect()
    }

    /// Forgets who has been idle for so long that it makes no difference. To be called now and then.
    pub fn forget_idle(&self) {
        for quota in self.rules.load().all() {
            quota.limiter.retain_recent();
            quota.limiter.shrink_to_fit();
        }
    }

    /// How many states the quotas hold.
    pub fn tracked_subjects(&self) -> usize {
        self.rules.load().all().map(|quota| quota.limiter.len()).sum()
    }
}

impl Rules {
    fn new(limits: &config::Limits, members: &[Member], before: Option<&Self>) -> Self {
        let requests = |m: &Member| (m.requests_per_second, m.burst);
        let calls = |m: &Member| (m.calls_per_second, m.calls_burst);
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
        let general = [&requests, &calls].into_iter().filter_map(|rates| rates.general.as_deref());
        Self { policy: policy_of(general), requests, calls }
    }

    fn of(&self, who: Subject) -> impl Iterator<Item = &Quota> {
        [&self.requests, &self.calls].into_iter().filter_map(move |rates| rates.of(who))
    }

    fn policy(&self, who: Subject) -> Option<HeaderValue> {
        match [&self.requests, &self.calls].iter().any(|rates| rates.own.contains_key(&who)) {
            false => self.policy.clone(),
            true => policy_of(self.of(who)),
        }
    }

    fn all(&self) -> impl Iterator<Item = &Quota> {
        [&self.requests, &self.calls]
            .into_iter()
            .flat_map(|rates| rates.general.iter().chain(rates.own.values()))
            .map(Arc::as_ref)
    }
}

/// `RateLimit-Policy`; `None`: there is no quota.
fn policy_of<'q>(quotas: impl Iterator<Item = &'q Quota>) -> Option<HeaderValue> {
    let policies: Vec<&str> = quotas.map(|quota| quota.policy.as_str()).collect();
    let value = || HeaderValue::try_from(policies.join(", ")).expect("quotas' names are tokens");
    (!policies.is_empty()).then(value)
}

/// Room for two quotas, each with the longest name and the largest numbers.
const MAX_STANDING: usize = 2 * "\"requests\";r=4294967295;t=18446744073709551615, ".len();

/// Where a client stands with its quotas.
#[derive(Clone, Debug)]
pub struct QuotaHeaders {
    policy: HeaderValue,
    now: HeaderValue,
}

impl QuotaHeaders {
    /// Tells the client, in the fields of draft-ietf-httpapi-ratelimit-headers-10. An upstream that uses the
    /// same fields is left the word.
    pub fn write(self, headers: &mut HeaderMap) {
        if !headers.contains_key(RATELIMIT) && !headers.contains_key(RATELIMIT_POLICY) {
            headers.insert(RATELIMIT_POLICY, self.policy);
            headers.insert(RATELIMIT, self.now);
        }
    }
}

/// A quota that is used up.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("over the quota \"{}\"", .quota.into_str())]
pub struct QuotaExceeded {
    /// Which one.
    pub quota: Limit,
    /// When the next request is allowed, from now; whole seconds, at least one.
    pub retry_after: Duration,
}

/// One kind of quota: the one that all are counted by, and the members' own.
#[derive(Debug)]
struct QuotaGroup {
    general: Option<Arc<Quota>>,
    own: HashMap<Subject, Arc<Quota>>,
}

impl QuotaGroup {
    /// A pair is a rate and a burst. What a member's own lines leave out is as in the general ones.
    fn new<'m>(
        name: Limit,
        general: (u32, u32),
        members: impl Iterator<Item = (&'m Member, (Option<u32>, Option<u32>))>,
        before: Option<&Self>,
    ) -> Self {
        let own = members.filter(|(_, own)| *own != (None, None)).filter_map(|(member, (rate, burst))| {
            let pair = (rate.unwrap_or(general.0), burst.unwrap_or(general.1));
            let who = Subject::member(&member.name);
            let same = before.and_then(|before| before.own.get(&who));
            Some((who, Quota::same_or_new(same, name, pair, Store::for_one)?))
        });
        let same = before.and_then(|before| before.general.as_ref());
        Self { own: own.collect(), general: Quota::same_or_new(same, name, general, Store::for_many) }
    }

    fn of(&self, who: Subject) -> Option<&Quota> {
        self.own.get(&who).or(self.general.as_ref()).map(Arc::as_ref)
    }

    fn check(&self, who: Subject, count: NonZeroU32) -> Result<(), QuotaExceeded> {
        self.of(who).map_or(Ok(()), |quota| quota.check(who, count))
    }
}

#[derive(Debug)]
struct Quota {
    name: Limit,
    pair: (u32, u32),
    policy: String,
    limiter: RateLimiter<StoreKey, Store, GatewayClock, StateInformationMiddleware>,
}

impl Quota {
    fn same_or_new(
        before: Option<&Arc<Self>>,
        name: Limit,
        pair: (u32, u32),
        store: fn() -> Store,
    ) -> Option<Arc<Self>> {
        match before.filter(|before| before.pair == pair) {
            Some(before) => Some(Arc::clone(before)),
            None => Self::new(name, pair, store()).map(Arc::new),
        }
    }

    fn new(name: Limit, pair: (u32, u32), store: Store) -> Option<Self> {
        let rate = NonZeroU32::new(pair.0)?;
        let burst = NonZeroU32::new(pair.1).unwrap_or(rate);
        let window = burst.get().div_ceil(rate.get());
        let policy = format!("\"{}\";q={burst};w={window}", name.into_str());
        let limiter = RateLimiter::new(Rate::per_second(rate).allow_burst(burst), store, GatewayClock);
        Some(Self { name, pair, policy, limiter })
    }

    /// A request that costs more than the quota ever holds costs all of it: else it could never be made.
    fn check(&self, who: Subject, count: NonZeroU32) -> Result<(), QuotaExceeded> {
        let most = NonZeroU32::new(self.pair.1).unwrap_or(NonZeroU32::new(self.pair.0).unwrap_or(count));
        match self.limiter.check_key_n(&StoreKey { who, is_peek: false }, count.min(most)) {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(until)) => {
                let retry_after = Duration::from_secs(seconds(until.wait_time_from(GatewayClock.now())));
                Err(QuotaExceeded { quota: self.name, retry_after })
            }
            Err(_) => Err(QuotaExceeded { quota: self.name, retry_after: Duration::from_secs(1) }),
        }
    }

    fn peek(&self, who: Subject) -> QuotaState {
        let (left, more_in) = match self.limiter.check_key(&StoreKey { who, is_peek: true }) {
            // What the look itself would have taken is still there.
            Ok(state) => (state.remaining_burst_capacity() + 1, None),
            Err(until) => (0, Some(seconds(until.wait_time_from(GatewayClock.now())))),
        };
        let (rate, burst) = self.pair;
        QuotaState { quota: self.name, rate, burst, left, more_in }
    }
}

/// What is left of a quota.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QuotaState {
    /// Which one.
    pub quota: Limit,
    /// What is added to it each second.
    pub rate: u32,
    /// The most that it can be.
    pub burst: u32,
    /// What it is.
    pub left: u32,
    /// Where that is nothing, in how many seconds there is more.
    pub more_in: Option<u64>,
}

impl QuotaState {
    /// Writes the member of `RateLimit`.
    fn write(&self, out: &mut ArrayString<MAX_STANDING>) {
        out.push('"');
        out.push_str(self.quota.into_str());
        out.push_str("\";r=");
        let mut digits = itoa::Buffer::new();
        out.push_str(digits.format(self.left));
        if let Some(seconds) = self.more_in {
            out.push_str(";t=");
            out.push_str(digits.format(seconds));
        }
    }
}

/// Whole seconds that are not too few.
fn seconds(duration: Duration) -> u64 {
    (duration.as_secs() + u64::from(duration.subsec_nanos() > 0)).max(1)
}

/// governor by the one clock, so that paused time holds for it too.
#[derive(Clone, Copy, Debug, Default)]
struct GatewayClock;

impl Clock for GatewayClock {
    type Instant = Instant;

    fn now(&self) -> Instant {
        clock::now()
    }
}

const RATELIMIT: HeaderName = HeaderName::from_static("ratelimit");
const RATELIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");

#[cfg(test)]
mod tests;
