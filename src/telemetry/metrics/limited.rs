//! Requests that are refused over a limit, by member.

use parking_lot::Mutex;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;

use super::each::{Each, Label as _};
use super::labels::Limit;

/// Of all refusals over a limit.
#[derive(Debug)]
pub struct RateLimited {
    counts: Family<Labels, Counter>,
    totals: Each<Limit, Counter>,
    members: Mutex<Vec<String>>,
}

/// Who is no member has no name.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Labels {
    quota: &'static str,
    member: String,
}

impl RateLimited {
    pub(super) fn new(registry: &mut Registry) -> Self {
        let counts = Family::default();
        registry.register("rate_limited", "Clients' requests refused over a limit", counts.clone());
        let limited = Self { counts, totals: Each::new(|_| Counter::default()), members: Mutex::default() };
        limited.start("");
        limited
    }

    /// One was, of this member if of any.
    pub fn refused(&self, quota: Limit, member: Option<&str>) {
        self.totals.of(quota).inc();
        // Under the lock, so that a member that has just gone does not come back.
        let members = self.members.lock();
        let member = member.filter(|name| members.iter().any(|known| known == name)).unwrap_or_default();
        self.counts.get_or_create_owned(&Labels::new(quota, member)).inc();
    }

    /// Counts these members apart from now on, and forgets those that are gone.
    pub fn set_members<'n>(&self, names: impl IntoIterator<Item = &'n str>) {
        let names: Vec<String> = names.into_iter().map(str::to_owned).collect();
        let mut members = self.members.lock();
        for gone in members.iter().filter(|name| !names.contains(name)) {
            for quota in Limit::ALL {
                self.counts.remove(&Labels::new(*quota, gone));
            }
        }
        names.iter().for_each(|name| self.start(name));
        *members = names;
    }

    /// How many were, over this limit.
    pub fn count(&self, quota: Limit) -> u64 {
        self.totals.of(quota).get()
    }

    fn start(&self, member: &str) {
        for quota in Limit::ALL {
            self.counts.get_or_create_owned(&Labels::new(*quota, member));
        }
    }
}

impl Labels {
    fn new(quota: Limit, member: &str) -> Self {
        Self { quota: quota.as_str(), member: member.to_owned() }
    }
}
