//! The fields `RateLimit` and `RateLimit-Policy`.

use arrayvec::ArrayString;
use http::{HeaderMap, HeaderName, HeaderValue};

use super::RateQuota;
use crate::telemetry::metrics::Limit;

/// State of one quota of a subject.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QuotaState {
    pub quota: Limit,
    /// Requests that are added each second.
    pub rate: u32,
    /// The most requests that can be saved up.
    pub burst: u32,
    /// Requests that are allowed now.
    pub remaining: u32,
    /// Seconds until the next request is allowed, if none remains.
    pub resets_in: Option<u64>,
}

/// Requests that a quota still allowed, right after a request was counted.
#[derive(Clone, Copy, Debug)]
pub struct Remaining {
    pub(super) requests: u32,
    /// Version of the quotas that counted.
    pub(super) version: u64,
}

/// Requests that the quotas of a subject still allowed, right after a request was counted. `None`: the subject has no
/// such quota, or its state must be read from the quota.
#[derive(Clone, Copy, Debug, Default)]
pub struct KnownRemaining {
    pub requests: Option<Remaining>,
    pub calls: Option<Remaining>,
}

/// The `RateLimit` headers of a subject at one moment.
#[derive(Clone, Debug)]
pub struct QuotaHeaders {
    pub(super) policy: HeaderValue,
    pub(super) remaining: HeaderValue,
}

impl QuotaHeaders {
    /// Adds the fields of draft-ietf-httpapi-ratelimit-headers-10 to a response without such fields of the upstream.
    pub fn write(self, headers: &mut HeaderMap) {
        headers.append(RATELIMIT_POLICY, self.policy);
        headers.append(RATELIMIT, self.remaining);
    }
}

/// Returns the value of `RateLimit-Policy`. `None`: no quota.
pub(super) fn policy_of<'q>(
    quotas: impl Iterator<Item = &'q RateQuota>,
    divisor: u32,
) -> Option<HeaderValue> {
    let policies: Vec<String> = quotas.map(|quota| quota.policy(divisor)).collect();
    let value = || HeaderValue::try_from(policies.join(", ")).expect("names of quotas are tokens");
    (!policies.is_empty()).then(value)
}

/// Returns the value of `RateLimit`. `None`: no quota.
pub(super) fn remaining_value(states: impl Iterator<Item = QuotaState>) -> Option<HeaderValue> {
    let mut remaining = ArrayString::<MAX_HEADER_LEN>::new();
    for state in states {
        if !remaining.is_empty() {
            remaining.push_str(", ");
        }
        state.write(&mut remaining);
    }
    if remaining.is_empty() {
        return None;
    }
    let mut remaining = HeaderValue::from_str(&remaining).expect("names of quotas are tokens");
    // Not secret, but different in each response: HTTP/2 must not index it.
    remaining.set_sensitive(true);
    Some(remaining)
}

impl QuotaState {
    /// Appends the quota's list member of `RateLimit`.
    fn write(&self, out: &mut ArrayString<MAX_HEADER_LEN>) {
        out.push('"');
        out.push_str(self.quota.into_str());
        out.push_str("\";r=");
        let mut digits = itoa::Buffer::new();
        out.push_str(digits.format(self.remaining));
        if let Some(seconds) = self.resets_in {
            out.push_str(";t=");
            out.push_str(digits.format(seconds));
        }
    }
}

/// Length of `RateLimit` for two quotas with the longest name and the largest numbers.
const MAX_HEADER_LEN: usize = 2 * "\"requests\";r=4294967295;t=18446744073709551615, ".len();

pub(crate) const RATELIMIT: HeaderName = HeaderName::from_static("ratelimit");
pub(crate) const RATELIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");
