//! Removals of stored states: their marks in the engine, and the message.
//!
//! ```text
//!   Id, All       marks in 16 shards ──▶ all are answered ──▶ the mark again, the log and the message
//!   one key       the mark, the log and the message
//! ```
//!
//! A sibling that hears the message and claims then gets no removed state, in whatever shard. Nor does this replica, whose
//! next claim comes after the marks.

use super::calls::{Dialect, ScriptCall, number};
use super::names::ShardIndex;
use super::scripts::EngineScript;
use super::wire::message::{WireKind, message};
use super::wire::{WireReader, put_field};
use crate::core::job::{JobId, KeyDomain, RouteIndex};
use crate::core::siblings::{EngineCall, Removal, SiblingMessage};

const ALL: u8 = 0;
const ID: u8 = 1;
const CHANGED: u8 = 2;
const ALL_CHANGED: u8 = 3;
const ALL_CHANGED_OF_KEY: u8 = 4;

/// Field of a key domain's record with the time of its mark.
const CHANGED_FIELD: &str = "c";

impl Dialect {
    /// Returns the scripts of a removal that come first, in any order.
    pub(super) fn removal_marks(&self, removal: &Removal) -> Vec<ScriptCall> {
        if is_of_one_key(removal) {
            return Vec::new();
        }
        let mark = |shard| ScriptCall {
            script: EngineScript::Mark,
            keys: vec![self.mark_key(removal, shard)],
            args: vec![number(self.longest_lifetime())],
        };
        ShardIndex::all().map(mark).collect()
    }

    /// Returns the script of a call that comes after the answers to all others of it.
    pub(super) fn last_script(&self, call: &EngineCall) -> Option<ScriptCall> {
        match call {
            EngineCall::Remove(removal) => self.removal_message(removal),
            _ => None,
        }
    }

    fn removal_message(&self, removal: &Removal) -> Option<ScriptCall> {
        let shard = shard_of(removal);
        let text = message(&self.codes, WireKind::Removed, &self.encode_removal(removal)?);
        let (key, field) = match removal {
            Removal::Changed(domain, job) => {
                (self.names.changed_job_key(*domain, self.names.route(job.route())?, job), "")
            }
            Removal::AllChanged(Some(domain)) => (self.names.domain_key(*domain), CHANGED_FIELD),
            Removal::All | Removal::AllChanged(None) | Removal::Id(_) => (self.mark_key(removal, shard), ""),
        };
        let keys = vec![self.names.channel(shard), key, self.names.removals_key(shard)];
        let args = vec![text, number(self.longest_lifetime()), field.into()];
        Some(ScriptCall { script: EngineScript::Remove, keys, args })
    }

    /// Returns the key of the mark of a removal that concerns all keys.
    fn mark_key(&self, removal: &Removal, shard: ShardIndex) -> String {
        match removal {
            Removal::Id(job) => self.names.removed_id_key(shard, job),
            Removal::All | Removal::AllChanged(_) | Removal::Changed(..) => self.names.removal_key(shard),
        }
    }

    /// Returns this replica's instance and the sealed removal, which may have the id of a job.
    fn encode_removal(&self, removal: &Removal) -> Option<Vec<u8>> {
        let mut text = Vec::new();
        let write_job = |text: &mut Vec<u8>, job: &JobId| {
            put_field(text, job.as_str().as_bytes());
            put_field(text, job.rest().as_bytes());
        };
        match removal {
            Removal::All => text.push(ALL),
            Removal::Id(job) => {
                text.push(ID);
                write_job(&mut text, job);
            }
            Removal::Changed(KeyDomain(domain), job) => {
                text.push(CHANGED);
                text.extend_from_slice(domain);
                text.extend_from_slice(&self.names.route_mark(job.route())?);
                write_job(&mut text, job);
            }
            Removal::AllChanged(None) => text.push(ALL_CHANGED),
            Removal::AllChanged(Some(KeyDomain(domain))) => {
                text.push(ALL_CHANGED_OF_KEY);
                text.extend_from_slice(domain);
            }
        }
        let sealed = self.removals.seal(self.names.id_bytes(), text)?;
        Some([&self.instance.to_be_bytes()[..], &sealed].concat())
    }

    pub(super) fn removed(&self, mut text: WireReader) -> Option<SiblingMessage> {
        let by = text.u64()?;
        let text = self.removals.open(self.names.id_bytes(), &text.rest())?;
        let removal = self.read_removal(&mut WireReader::new(text))?;
        Some(SiblingMessage::Removed { removal, by: Some(by) })
    }

    fn read_removal(&self, text: &mut WireReader) -> Option<Removal> {
        let job = |text: &mut WireReader, route| {
            let (id, rest) = (text.field()?, text.field()?);
            JobId::with_rest(route, std::str::from_utf8(&id).ok()?, std::str::from_utf8(&rest).ok()?).ok()
        };
        match text.u8()? {
            ALL => Some(Removal::All),
            ID => Some(Removal::Id(job(text, RouteIndex::default())?)),
            CHANGED => {
                let domain = KeyDomain(text.array()?);
                let route = self.names.route_of_mark(text.array()?)?;
                Some(Removal::Changed(domain, job(text, route)?))
            }
            ALL_CHANGED => Some(Removal::AllChanged(None)),
            ALL_CHANGED_OF_KEY => Some(Removal::AllChanged(Some(KeyDomain(text.array()?)))),
            _ => None,
        }
    }
}

/// Returns whether the states are those of one key, which has one shard.
fn is_of_one_key(removal: &Removal) -> bool {
    matches!(removal, Removal::Changed(..) | Removal::AllChanged(Some(_)))
}

/// Returns the shard that has the message and the log of a removal.
fn shard_of(removal: &Removal) -> ShardIndex {
    match removal {
        Removal::Changed(domain, _) | Removal::AllChanged(Some(domain)) => ShardIndex::of_domain(*domain),
        // The logs of all shards take part.
        Removal::Id(job) => ShardIndex::of_hash(blake3::hash(job.as_str().as_bytes()).as_bytes()),
        Removal::All | Removal::AllChanged(None) => ShardIndex::of_hash(&[0]),
    }
}
