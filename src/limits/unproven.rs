//! Parked waits of keys that the upstream has not accepted yet. They count for their address, so that made-up keys
//! cannot fill `limits.max_waits`.
//!
//! ```text
//!   park ─▶ UnprovenWait ── dropped: the wait is over, or its key is proven and counts for itself ─▶ free
//! ```

use std::net::IpAddr;
use std::sync::Arc;

use parking_lot::Mutex;

use super::Subject;
use crate::core::Map;

/// How many such waits each address has parked. Clones are the same counts.
#[derive(Clone, Debug)]
pub(crate) struct UnprovenWaits(Arc<Counts>);

#[derive(Debug)]
struct Counts {
    max: usize,
    /// Addresses with at least one: no more than there are waits.
    parked: Mutex<Map<Option<IpAddr>, usize>>,
}

/// One parked wait. Dropping it frees its place.
#[derive(Debug)]
pub(crate) struct UnprovenWait {
    counts: Arc<Counts>,
    address: Option<IpAddr>,
}

/// An address has as many parked as it may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct AddressFull;

impl UnprovenWaits {
    /// Returns counts that end at `max` for each address.
    pub(crate) fn new(max: usize) -> Self {
        Self(Arc::new(Counts { max, parked: Mutex::default() }))
    }

    /// Counts a wait for its address; `None` for one that counts for a key or a member.
    pub(crate) fn park(&self, who: Subject) -> Result<Option<UnprovenWait>, AddressFull> {
        let Subject::Address(address) = who else { return Ok(None) };
        let mut parked = self.0.parked.lock();
        let waits = parked.entry(address).or_default();
        // It has an entry already if it is full: `max` is at least 1.
        if *waits >= self.0.max {
            return Err(AddressFull);
        }
        *waits += 1;
        Ok(Some(UnprovenWait { counts: Arc::clone(&self.0), address }))
    }
}

impl Drop for UnprovenWait {
    fn drop(&mut self) {
        let mut parked = self.counts.parked.lock();
        if let Some(waits) = parked.get_mut(&self.address) {
            *waits -= 1;
            if *waits == 0 {
                parked.remove(&self.address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::job::KeyDomain;

    fn address(text: &str) -> Subject {
        Subject::from(Some(text.parse::<IpAddr>().unwrap()))
    }

    #[test]
    fn each_address_has_so_many_and_each_network_of_ipv6_is_one() {
        let waits = UnprovenWaits::new(2);
        let park = |who| waits.park(who);
        let held = [park(address("2001:db8::1")), park(address("2001:db8::2"))].map(|wait| wait.unwrap());
        assert_eq!(park(address("2001:db8::3")).unwrap_err(), AddressFull);
        let other = park(address("2001:db8:0:1::3")).unwrap();
        let unix = [park(Subject::Address(None)), park(Subject::Address(None))];
        assert_eq!(park(Subject::Address(None)).unwrap_err(), AddressFull);
        let [first, _second] = held;
        drop(first);
        assert!(park(address("2001:db8::3")).is_ok());
        drop((other, unix));
        assert_eq!(waits.0.parked.lock().len(), 1, "who has none is not remembered");
    }

    #[test]
    fn keys_and_members_are_not_counted_here() {
        let waits = UnprovenWaits::new(1);
        for _ in 0..3 {
            assert!(waits.park(Subject::Key(KeyDomain([1; 16]))).unwrap().is_none());
            assert!(waits.park(Subject::member("ann")).unwrap().is_none());
        }
        assert!(waits.0.parked.lock().is_empty());
    }
}
