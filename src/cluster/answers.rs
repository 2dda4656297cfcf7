//! Answers of scripts and published messages as inputs of the machine.

use std::time::Duration;

use bytes::Bytes;
use redis::Value;

use super::calls::{Dialect, OUTCOME_JOBS, OUTCOME_REFUSED, OUTCOME_UNSPLIT};
use super::polls::{ClusterPoll, ClusterPolls};
use super::wire::WireReader;
use super::wire::message::{
    Envelope, WireKind, read_beat, read_epoch, read_lease, read_millis, read_note, read_token,
};
use super::wire::state::{decode_response, decode_state};
use crate::core::job::KeyDomain;
use crate::core::siblings::{
    EngineAnswer, EngineTime, KeyEpoch, PollName, ReplicaName, SharedOutcome, SharedState, SiblingMessage,
};

/// Why an answer is not passed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BadAnswer {
    /// Stored states or a lease were changed by another program.
    Tampered,
    /// The answer has not the form of any script's.
    Malformed,
}

/// A published message.
#[derive(Debug)]
pub(super) enum Heard {
    /// The number of the beat distinguishes it from others of the same replica.
    Beat(ReplicaName, Option<ReplicaName>, u64),
    Other(SiblingMessage),
}

impl Dialect {
    /// Reads the answer of a script.
    pub(super) fn answer(&self, value: Value, poll: Option<&ClusterPoll>) -> Result<EngineAnswer, BadAnswer> {
        let Value::Array(items) = value else { return Err(BadAnswer::Malformed) };
        let mut items = items.into_iter();
        let kind = items.next().and_then(bulk).ok_or(BadAnswer::Malformed)?;
        match (&kind[..], poll) {
            (b"D", _) => {
                let time = items.next().and_then(|item| millis(&item)).ok_or(BadAnswer::Malformed)?;
                Ok(EngineAnswer::Done(EngineTime(time)))
            }
            (b"F", _) => Ok(EngineAnswer::Flushed),
            (b"V", _) => Ok(EngineAnswer::Vacant),
            (_, None) => Err(BadAnswer::Malformed),
            (_, Some(poll)) => {
                let epoch = items.next().and_then(bulk).ok_or(BadAnswer::Malformed)?;
                let epoch = read_epoch(&self.codes, poll.domain, &mut WireReader::new(epoch));
                let epoch = epoch.ok_or(BadAnswer::Tampered)?;
                self.epochs.seen(poll.domain, epoch);
                self.answer_of_poll(&kind, epoch, items.collect(), poll)
            }
        }
    }

    /// Returns the pause of the key in the answer to a granted claim.
    pub(super) fn pause_of_grant(&self, answer: &Value) -> Option<SiblingMessage> {
        let Value::Array(items) = answer else { return None };
        let [Value::BulkString(kind), _, left, Value::BulkString(message)] = &items[..] else { return None };
        self.stored_pause(left, message).filter(|_| kind == b"G")
    }

    /// Reads a stored pause. `None`: there is none, or no replica has written it.
    pub(super) fn stored_pause(&self, left: &Value, message: &[u8]) -> Option<SiblingMessage> {
        let message = Bytes::copy_from_slice(message);
        match self.message(message, &ClusterPolls::default())?.1 {
            Heard::Other(SiblingMessage::Paused(domain, pause)) => {
                Some(SiblingMessage::Paused(domain, pause.min(millis(left)?)))
            }
            Heard::Other(_) | Heard::Beat(..) => None,
        }
    }

    fn answer_of_poll(
        &self,
        kind: &[u8],
        epoch: KeyEpoch,
        items: Vec<Value>,
        poll: &ClusterPoll,
    ) -> Result<EngineAnswer, BadAnswer> {
        match kind {
            b"G" => Ok(EngineAnswer::Granted(epoch)),
            b"H" => {
                let [lease, age] = <[Value; 2]>::try_from(items).map_err(|_| BadAnswer::Malformed)?;
                let age = millis(&age).ok_or(BadAnswer::Malformed)?;
                let lease = bulk(lease).ok_or(BadAnswer::Malformed)?;
                let (token, by) = read_lease(&self.codes, poll.name, &mut WireReader::new(lease))
                    .ok_or(BadAnswer::Tampered)?;
                Ok(EngineAnswer::Held { by, token, age, epoch })
            }
            b"K" => {
                let count = poll.jobs.len();
                if items.len() != 2 * count {
                    return Err(BadAnswer::Malformed);
                }
                let (ages, sealed) = items.split_at(count);
                let states = poll.jobs.iter().enumerate().map(|(index, _)| {
                    let Value::BulkString(sealed) = &sealed[index] else { return None };
                    self.open_state(poll, index, epoch, sealed, millis(&ages[index])?)
                });
                let states: Option<Vec<SharedState>> = states.collect();
                states.map(|states| EngineAnswer::Known(states, epoch)).ok_or(BadAnswer::Tampered)
            }
            b"A" => {
                let mut items = items.into_iter();
                let is_mine = match items.next() {
                    Some(Value::Int(number)) => number == 1,
                    _ => return Err(BadAnswer::Malformed),
                };
                let guests = items.filter_map(|item| {
                    let name = bulk(item)?;
                    u64::from_str_radix(std::str::from_utf8(&name).ok()?, 16).ok().map(ReplicaName)
                });
                Ok(EngineAnswer::Adopted { is_mine, epoch, guests: guests.collect() })
            }
            _ => Err(BadAnswer::Malformed),
        }
    }

    /// Reads a message. `None`: it concerns no registered poll, is of an unknown kind, malformed, or not of a replica.
    pub(super) fn message(&self, message: Bytes, polls: &ClusterPolls) -> Option<(WireKind, Heard)> {
        let envelope = Envelope::split(message)?;
        let (kind, name) = (envelope.kind, envelope.poll);
        if name.is_some_and(|name| !polls.contains(name)) {
            return None;
        }
        let (mut text, mut additions) = envelope.open(&self.codes)?;
        if kind == WireKind::Beat {
            let (me, former, number) = read_beat(&mut text)?;
            return Some((kind, Heard::Beat(me, former, number)));
        }
        let message = match name {
            Some(name) => self.message_of_poll(kind, name, &mut text, &mut additions, polls)?,
            None => self.message_of_key(kind, text, &mut additions)?,
        };
        Some((kind, Heard::Other(message)))
    }

    fn message_of_poll(
        &self,
        kind: WireKind,
        name: PollName,
        text: &mut WireReader,
        additions: &mut WireReader,
        polls: &ClusterPolls,
    ) -> Option<SiblingMessage> {
        Some(match kind {
            WireKind::Landed => {
                let poll = polls.get(name)?;
                let token = read_token(text)?;
                let (sealed_for, is_granted) = (KeyEpoch(text.u64()?), text.u8()? == 1);
                let epoch = read_epoch(&self.codes, poll.domain, additions)?;
                if is_granted && epoch != sealed_for {
                    return None; // P11: not the engine's script has written this epoch
                }
                self.epochs.seen(poll.domain, epoch);
                let delay = read_millis(&additions.bytes(14)?)?;
                let outcome = self.read_outcome(text, &poll, sealed_for, delay)?;
                SiblingMessage::Landed(name, token, epoch, outcome)
            }
            WireKind::Failed => SiblingMessage::Failed(name, read_token(text)?),
            WireKind::Left => SiblingMessage::Left(name, read_token(text)?),
            WireKind::Taken => SiblingMessage::Taken(name, read_token(text)?),
            WireKind::Attached => {
                let guest = ReplicaName(text.u64()?);
                let (token, _) = read_lease(&self.codes, name, additions)?;
                SiblingMessage::Attached(name, token, guest)
            }
            WireKind::Detached => SiblingMessage::Detached(name, ReplicaName(text.u64()?)),
            WireKind::Note => {
                let (token, held_for) = read_note(text)?;
                SiblingMessage::Note(name, token, held_for)
            }
            WireKind::Beat | WireKind::Revoked | WireKind::Removed | WireKind::Paused | WireKind::Flushed => {
                return None;
            }
        })
    }

    fn message_of_key(
        &self,
        kind: WireKind,
        mut text: WireReader,
        additions: &mut WireReader,
    ) -> Option<SiblingMessage> {
        match kind {
            WireKind::Revoked => {
                let domain = KeyDomain(text.array()?);
                let by = text.u64().map(ReplicaName);
                let dead = read_epoch(&self.codes, domain, additions)?;
                self.epochs.died(domain, dead);
                let age = additions.bytes(14).and_then(|digits| read_millis(&digits)).unwrap_or_default();
                Some(SiblingMessage::Revoked { domain, dead, age, by })
            }
            WireKind::Paused => {
                let domain = KeyDomain(text.array()?);
                Some(SiblingMessage::Paused(domain, Duration::from_millis(text.u64()?)))
            }
            WireKind::Removed => self.removed(text),
            WireKind::Flushed => Some(SiblingMessage::Flushed),
            _ => None,
        }
    }

    fn read_outcome(
        &self,
        text: &mut WireReader,
        poll: &ClusterPoll,
        epoch: KeyEpoch,
        delay: Duration,
    ) -> Option<SharedOutcome> {
        let kind = text.u8()?;
        if kind != OUTCOME_JOBS {
            let place = self.response_place(poll.name, epoch);
            let response = decode_response(poll.seal.open(&place, &text.field()?)?)?;
            return match kind {
                OUTCOME_UNSPLIT => Some(SharedOutcome::Unsplit(response)),
                OUTCOME_REFUSED => Some(SharedOutcome::Refused(response)),
                _ => None,
            };
        }
        let mut states = Vec::new();
        for _ in 0..text.u16()? {
            let index = usize::from(text.u16()?);
            let age = Duration::from_millis(text.u64()?).saturating_add(delay);
            states.push(self.open_state(poll, index, epoch, &text.field()?, age)?);
        }
        Some(SharedOutcome::Jobs(states))
    }

    fn open_state(
        &self,
        poll: &ClusterPoll,
        index: usize,
        epoch: KeyEpoch,
        sealed: &[u8],
        age: Duration,
    ) -> Option<SharedState> {
        let (job, id) = (poll.job_names.get(index)?, poll.jobs.iter().nth(index)?);
        let text = poll.seal.open(&self.state_place(job, epoch), sealed)?;
        decode_state(text, id, age, &poll.route.ladder)
    }
}

pub(super) fn bulk(value: Value) -> Option<Bytes> {
    match value {
        Value::BulkString(bytes) => Some(bytes.into()),
        _ => None,
    }
}

fn millis(value: &Value) -> Option<Duration> {
    match value {
        Value::Int(number) => u64::try_from(*number).ok().map(Duration::from_millis),
        _ => None,
    }
}
