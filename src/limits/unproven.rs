//! Parked waits of keys that the upstream has not accepted yet. They count for their client's address, so that invented
//! keys cannot fill `limits.max_waits`.
//!
//! ```text
//!   park ──▶ UnprovenWait ── dropped when the wait ends, or when the upstream accepts the key ──▶ slot is free
//! ```

use std::net::IpAddr;
use std::sync::Arc;

use parking_lot::Mutex;

use super::Subject;
use crate::core::Map;

/// Numbers of such waits by address. Clones share the numbers.
#[derive(Clone, Debug)]
pub(crate) struct UnprovenWaits(Arc<Counts>);

#[derive(Debug)]
struct Counts {
    max: usize,
    /// Contains only addresses with at least one wait, so the number of waits bounds it.
    parked: Mutex<Map<Option<IpAddr>, usize>>,
}

/// The slot of one parked wait. Dropping it frees the slot.
#[derive(Debug)]
pub(crate) struct UnprovenWait {
    counts: Arc<Counts>,
    address: Option<IpAddr>,
}

/// Error: the address has its maximum of parked waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct AddressFull;

impl UnprovenWaits {
    /// Returns counts with a bound of `max` for each address.
    pub(crate) fn new(max: usize) -> Self {
        Self(Arc::new(Counts { max, parked: Mutex::default() }))
    }

    /// Counts a wait for its address. Returns `None` for the wait of a key or member, which counts there.
    pub(crate) fn park(&self, subject: Subject) -> Result<Option<UnprovenWait>, AddressFull> {
        let Subject::Address(address) = subject else { return Ok(None) };
        let mut parked = self.0.parked.lock();
        let waits = parked.entry(address).or_default();
        // This leaves no empty entry behind: `max` is at least 1, so a full address has waits.
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
    fn each_address_and_each_ipv6_network_has_its_maximum() {
        let waits = UnprovenWaits::new(2);
        let park = |subject| waits.park(subject);
        let held = [park(address("2001:db8::1")), park(address("2001:db8::2"))].map(|wait| wait.unwrap());
        assert_eq!(park(address("2001:db8::3")).unwrap_err(), AddressFull);
        let other = park(address("2001:db8:0:1::3")).unwrap();
        let unix = [park(Subject::Address(None)), park(Subject::Address(None))];
        assert_eq!(park(Subject::Address(None)).unwrap_err(), AddressFull);
        let [first, _second] = held;
        drop(first);
        assert!(park(address("2001:db8::3")).is_ok());
        drop((other, unix));
        assert_eq!(waits.0.parked.lock().len(), 1, "addresses without waits are removed");
    }

    #[test]
    fn waits_of_keys_and_members_count_for_no_address() {
        let waits = UnprovenWaits::new(1);
        for _ in 0..3 {
            assert!(waits.park(Subject::Key(KeyDomain([1; 16]))).unwrap().is_none());
            assert!(waits.park(Subject::member("ann")).unwrap().is_none());
        }
        assert!(waits.0.parked.lock().is_empty());
    }
}
