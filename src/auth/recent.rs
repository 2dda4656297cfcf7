//! Identities of recent requests. Each thread keeps them by the value of `Authorization`, so that most requests need no hash
//! of their key and no copy of it: 1,800 instructions.
//!
//! Only where nothing but `Authorization` identifies a request. A reload replaces the keys of the configuration. The next
//! request of the thread then drops all that was kept for the old ones.

use std::cell::RefCell;
use std::hash::BuildHasher as _;
use std::sync::Arc;

use foldhash::quality::RandomState;
use http::HeaderValue;

use super::{Identity, KeyFields, Keyring};
use crate::protocol::field_value::copy_value;

/// Most identities of one thread. A newer one takes the place of an older one with the same low bits of its hash.
const SLOTS: usize = 256;

/// Longest value that is kept, in bytes.
const MAX_VALUE: usize = 2 << 10;

thread_local! {
    static RECENT: RefCell<RecentIdentities> = RefCell::new(RecentIdentities::default());
}

#[derive(Default)]
struct RecentIdentities {
    /// The keys of the configuration to which all identities belong.
    keyring: Option<Arc<Keyring>>,
    slots: Vec<Option<RecentIdentity>>,
    hasher: RandomState,
}

struct RecentIdentity {
    /// Compared before the value, so that the time of the comparison reveals nothing about it.
    hash: u64,
    value: HeaderValue,
    identity: Identity,
    fields: KeyFields,
}

/// Returns a part of the identity that was kept for this value under this configuration.
pub(super) fn find<T>(
    keyring: &Arc<Keyring>,
    value: &HeaderValue,
    part: impl FnOnce(&Identity, &KeyFields) -> T,
) -> Option<T> {
    RECENT.with_borrow(|recent| {
        if !recent.keyring.as_ref().is_some_and(|own| Arc::ptr_eq(own, keyring)) {
            return None;
        }
        let hash = recent.hasher.hash_one(value.as_bytes());
        let found = recent.slots[slot(hash)].as_ref()?;
        (found.hash == hash && found.value == *value).then(|| part(&found.identity, &found.fields))
    })
}

/// Keeps the identity of this value.
pub(super) fn keep(keyring: &Arc<Keyring>, value: &HeaderValue, identity: &Identity, fields: KeyFields) {
    if value.len() > MAX_VALUE {
        return;
    }
    RECENT.with_borrow_mut(|recent| {
        if !recent.keyring.as_ref().is_some_and(|own| Arc::ptr_eq(own, keyring)) {
            recent.slots.clear();
            recent.slots.resize_with(SLOTS, || None);
            recent.keyring = Some(Arc::clone(keyring));
        }
        let hash = recent.hasher.hash_one(value.as_bytes());
        let (value, identity) = (copy_value(value), identity.clone());
        recent.slots[slot(hash)] = Some(RecentIdentity { hash, value, identity, fields });
    });
}

fn slot(hash: u64) -> usize {
    usize::try_from(hash % SLOTS as u64).unwrap_or_default()
}
