//! Identities of recent requests. Each thread keeps them by the value of `Authorization`, so that most requests need no hash
//! of their key and no copy of it: 1,800 instructions.
//!
//! Only where nothing but `Authorization` identifies a request. The values are in clear, so the table belongs to the keys of
//! one configuration: a reload frees it, at all threads. [`RecentIdentities::forget_unused`] frees what no request uses.

use std::fmt;
use std::hash::BuildHasher as _;
use std::sync::Arc;

use crossbeam_utils::CachePadded;
use foldhash::quality::RandomState;
use http::HeaderValue;
use http::header::AUTHORIZATION;
use parking_lot::Mutex;
use thread_local::ThreadLocal;

use super::{Identity, KeyFields};
use crate::protocol::field_value::copy_value;

/// Most identities of one thread. A newer one takes the place of an older one with the same low bits of its hash.
const SLOTS: usize = 256;

/// Longest value that is kept, in bytes. A thread has one copy of each: at most 128 KiB.
const MAX_VALUE: usize = 512;

/// The identities of all threads. Each thread locks its own part only, so only `forget_unused` can make it wait.
#[derive(Default)]
pub(super) struct RecentIdentities {
    threads: ThreadLocal<CachePadded<Mutex<IdentitySlots>>>,
    hasher: RandomState,
}

type IdentitySlots = Vec<Option<RecentIdentity>>;

struct RecentIdentity {
    /// Compared before the value, so that the time of the comparison reveals nothing about it.
    hash: u64,
    /// In the memory of the identity.
    value: HeaderValue,
    identity: Identity,
    /// Whether no request has used it since the last `forget_unused`.
    is_unused: bool,
}

impl RecentIdentities {
    /// Returns the identity that this thread keeps for this value.
    pub(super) fn find(&self, value: &HeaderValue) -> Option<Identity> {
        let mut slots = self.threads.get()?.lock();
        let hash = self.hasher.hash_one(value.as_bytes());
        let found = slots[slot(hash)].as_mut()?;
        if found.hash != hash || found.value != *value {
            return None;
        }
        found.is_unused = false;
        Some(found.identity.clone())
    }

    /// Keeps the identity of this value.
    pub(super) fn keep(&self, value: &HeaderValue, identity: &Identity) {
        if value.len() > MAX_VALUE {
            return;
        }
        let hash = self.hasher.hash_one(value.as_bytes());
        let of_client = identity.credential.client_authorization().cloned();
        let mut value = of_client.unwrap_or_else(|| copy_value(value));
        value.set_sensitive(true);
        let fields: KeyFields = Arc::from([(AUTHORIZATION, value.clone())]);
        let identity = Identity { fields: Some(fields), ..identity.clone() };
        let slots = self.threads.get_or(|| {
            let slots = std::iter::repeat_with(|| None).take(SLOTS);
            CachePadded::new(Mutex::new(slots.collect()))
        });
        slots.lock()[slot(hash)] = Some(RecentIdentity { hash, value, identity, is_unused: false });
    }

    /// Frees the identities that no request has used since the last call.
    pub(super) fn forget_unused(&self) {
        for slots in &self.threads {
            for slot in slots.lock().iter_mut() {
                slot.take_if(|known| std::mem::replace(&mut known.is_unused, true));
            }
        }
    }

    /// Returns the number of identities of all threads.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.threads.iter().map(|slots| slots.lock().iter().flatten().count()).sum()
    }
}

/// The values are keys and tokens.
impl fmt::Debug for RecentIdentities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RecentIdentities").finish_non_exhaustive()
    }
}

fn slot(hash: u64) -> usize {
    usize::try_from(hash % SLOTS as u64).unwrap_or_default()
}
