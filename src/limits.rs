//! What one key may do: governor's quotas, and what the client is told of them.
//!
//! It knows keys and addresses, never requests. One quota is in force, `requests`, which everything counts
//! against; a second one is a second `Quota`.

use std::net::IpAddr;
use std::num::NonZeroU32;
use std::time::{Duration, Instant};

use governor::clock::Clock;
use governor::middleware::StateInformationMiddleware;
use governor::state::keyed::DashMapStateStore;
use governor::{Quota as Rate, RateLimiter};
use http::{HeaderMap, HeaderName, HeaderValue};

use crate::clock;
use crate::config;
use crate::model::clip::KeyDomain;
use crate::request::Peer;

/// Whom a quota is counted for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Who {
    /// A key.
    Key(KeyDomain),
    /// An address, while the key is not known or there is none. `None`: unix sockets, which have none.
    Address(Option<IpAddr>),
}

impl From<Peer> for Who {
    fn from(peer: Peer) -> Self {
        match peer {
            Peer::Tcp(address) => Who::Address(Some(network(address.ip()))),
            Peer::Unix => Who::Address(None),
        }
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
    requests: Option<Quota>,
}

impl Limits {
    /// The quotas as configured; a rate of 0 is no quota.
    pub fn new(limits: &config::Limits) -> Self {
        Self { requests: Quota::new("requests", limits.requests_per_second, limits.burst) }
    }

    /// Counts one request.
    pub fn request(&self, who: Who) -> Result<Option<Standing>, Limited> {
        self.requests.as_ref().map(|quota| quota.take(who)).transpose()
    }

    /// Forgets who has been idle for so long that it makes no difference. To be called now and then.
    pub fn forget_idle(&self) {
        if let Some(quota) = &self.requests {
            quota.limiter.retain_recent();
            quota.limiter.shrink_to_fit();
        }
    }

    /// Whom the quotas remember.
    pub fn remembered(&self) -> usize {
        self.requests.as_ref().map_or(0, |quota| quota.limiter.len())
    }
}

/// A quota that allowed a request, and what is left of it.
#[derive(Clone, Debug)]
pub struct Standing {
    policy: HeaderValue,
    now: HeaderValue,
}

impl Standing {
    /// Tells the client, in the fields of draft-ietf-httpapi-ratelimit-headers-10, where it stands. An
    /// upstream that uses the same fields is left the word.
    pub fn write(&self, headers: &mut HeaderMap) {
        if !headers.contains_key(RATELIMIT) && !headers.contains_key(RATELIMIT_POLICY) {
            headers.insert(RATELIMIT_POLICY, self.policy.clone());
            headers.insert(RATELIMIT, self.now.clone());
        }
    }
}

/// A quota that is used up.
#[derive(Clone, Debug, thiserror::Error)]
#[error("over the quota \"{quota}\"")]
pub struct Limited {
    /// Its name.
    pub quota: &'static str,
    /// When the next request is allowed, from now; whole seconds, at least one.
    pub retry_after: Duration,
    /// What the client is told.
    pub standing: Standing,
}

#[derive(Debug)]
struct Quota {
    name: &'static str,
    policy: HeaderValue,
    limiter: RateLimiter<Who, DashMapStateStore<Who>, HouseClock, StateInformationMiddleware>,
}

impl Quota {
    fn new(name: &'static str, per_second: u32, burst: u32) -> Option<Self> {
        let rate = NonZeroU32::new(per_second)?;
        let burst = NonZeroU32::new(burst).unwrap_or(rate);
        let window = burst.get().div_ceil(rate.get());
        let policy = HeaderValue::try_from(format!("\"{name}\";q={burst};w={window}"))
            .expect("a quota's name is a token");
        let rate = Rate::per_second(rate).allow_burst(burst);
        let limiter = RateLimiter::new(rate, DashMapStateStore::default(), HouseClock);
        Some(Self { name, policy, limiter })
    }

    fn take(&self, who: Who) -> Result<Standing, Limited> {
        match self.limiter.check_key(&who) {
            Ok(state) => match state.remaining_burst_capacity() {
                0 => Ok(self.standing(0, Some(seconds(state.quota().replenish_interval())))),
                left => Ok(self.standing(left, None)),
            },
            Err(until) => {
                let wait = seconds(until.wait_time_from(HouseClock.now()));
                Err(Limited {
                    quota: self.name,
                    retry_after: Duration::from_secs(wait),
                    standing: self.standing(0, Some(wait)),
                })
            }
        }
    }

    fn standing(&self, left: u32, reset: Option<u64>) -> Standing {
        let name = self.name;
        let now = match reset {
            Some(reset) => format!("\"{name}\";r={left};t={reset}"),
            None => format!("\"{name}\";r={left}"),
        };
        Standing {
            policy: self.policy.clone(),
            now: HeaderValue::try_from(now).expect("a quota's name is a token"),
        }
    }
}

/// Whole seconds that are not too few.
fn seconds(duration: Duration) -> u64 {
    (duration.as_secs() + u64::from(duration.subsec_nanos() > 0)).max(1)
}

/// governor by the one clock, so that paused time holds for it too.
#[derive(Clone, Copy, Debug, Default)]
struct HouseClock;

impl Clock for HouseClock {
    type Instant = Instant;

    fn now(&self) -> Instant {
        clock::now()
    }
}

const RATELIMIT: HeaderName = HeaderName::from_static("ratelimit");
const RATELIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(per_second: u32, burst: u32) -> Limits {
        Limits::new(&config::Limits {
            requests_per_second: per_second,
            burst,
            ..config::Config::default().limits
        })
    }

    fn key(byte: u8) -> Who {
        Who::Key(KeyDomain([byte; 16]))
    }

    fn fields(standing: &Standing) -> (String, String) {
        let mut headers = HeaderMap::new();
        standing.write(&mut headers);
        let text = |name| headers[&name].to_str().unwrap().to_owned();
        (text(RATELIMIT_POLICY), text(RATELIMIT))
    }

    #[tokio::test(start_paused = true)]
    async fn a_burst_passes_then_each_key_recovers_at_its_own_rate() {
        let limits = limits(2, 10);
        let passed = (0..15).filter(|_| limits.request(key(1)).is_ok()).count();
        assert_eq!(passed, 10);
        assert!(limits.request(key(2)).is_ok(), "another key is not touched");
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!((0..5).filter(|_| limits.request(key(1)).is_ok()).count(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn the_fields_say_what_is_left_and_when_there_is_more() {
        let limits = limits(1, 2);
        let mut answers = (0..2).map(|_| limits.request(key(1)).unwrap().unwrap());
        assert_eq!(
            fields(&answers.next().unwrap()),
            ("\"requests\";q=2;w=2".into(), "\"requests\";r=1".into())
        );
        assert_eq!(fields(&answers.next().unwrap()).1, "\"requests\";r=0;t=1");
        let limited = limits.request(key(1)).unwrap_err();
        assert_eq!(fields(&limited.standing).1, "\"requests\";r=0;t=1");
        assert_eq!(limited.retry_after, Duration::from_secs(1));
    }

    #[tokio::test(start_paused = true)]
    async fn idle_keys_are_forgotten() {
        let limits = limits(10, 10);
        (0..100).for_each(|byte| assert!(limits.request(key(byte)).is_ok()));
        assert_eq!(limits.remembered(), 100);
        tokio::time::advance(Duration::from_secs(60)).await;
        limits.forget_idle();
        assert_eq!(limits.remembered(), 0);
    }

    #[test]
    fn a_rate_of_zero_is_no_quota() {
        assert!(limits(0, 0).request(key(1)).unwrap().is_none());
    }

    #[test]
    fn an_ipv6_peer_counts_as_its_network() {
        let who = |text: &str| Who::from(Peer::Tcp(text.parse().unwrap()));
        assert_eq!(who("[2001:db8::1]:1"), who("[2001:db8::2]:9"));
        assert_ne!(who("[2001:db8::1]:1"), who("[2001:db8:0:1::1]:1"));
        assert_eq!(who("[::ffff:192.0.2.1]:1"), who("192.0.2.1:2"));
        assert_ne!(who("192.0.2.1:1"), who("192.0.2.2:1"));
    }
}
