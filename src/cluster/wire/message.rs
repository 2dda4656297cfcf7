//! Messages, leases and epochs as bytes with their codes.
//!
//! ```text
//!   message:  kind │ length │ text of the sender │ code of kind and text │ additions of a script
//!              u8     u32                            16 bytes
//! ```
//!
//! | kind | text | additions |
//! | --- | --- | --- |
//! | beat | replica, former name, number of the beat | |
//! | landed | poll, token, epoch of the seals and whether it was granted, outcome | epoch, delay in ms |
//! | failed, left, taken | poll, token | |
//! | attached | poll, replica | lease |
//! | detached | poll, replica | |
//! | note | poll, token, held, age of the attempt in ms | |
//! | revoked | key domain, replica | dead epoch, time since the rejection in ms |
//! | removed | instance of the replica; sealed: the removal | |
//! | paused | key domain, pause in ms | |
//! | flushed | replica | |
//!
//! A lease and an epoch have codes of their own, made by the replica that began them.

use std::time::Duration;

use bytes::Bytes;
use strum::VariantArray as _;

use super::{WireReader, put_field};
use crate::cluster::seal::{CODE_LEN, MessageCodes};
use crate::core::job::KeyDomain;
use crate::core::siblings::{KeyEpoch, LeaseToken, PollName, ReplicaName};
use crate::telemetry::metrics::MessageLabel;

/// Kinds of messages. A number is never used for another kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, strum::VariantArray)]
pub(in crate::cluster) enum WireKind {
    Beat = 1,
    Landed = 2,
    Failed = 3,
    Left = 4,
    Taken = 5,
    Attached = 6,
    Detached = 7,
    Note = 8,
    Revoked = 9,
    Flushed = 10,
    Removed = 11,
    Paused = 12,
}

impl WireKind {
    fn of(number: u8) -> Option<Self> {
        Self::VARIANTS.iter().copied().find(|kind| *kind as u8 == number)
    }

    pub(in crate::cluster) fn label(self) -> MessageLabel {
        match self {
            Self::Beat => MessageLabel::Beat,
            Self::Landed => MessageLabel::Landed,
            Self::Failed => MessageLabel::Failed,
            Self::Left => MessageLabel::Left,
            Self::Taken => MessageLabel::Taken,
            Self::Attached => MessageLabel::Attached,
            Self::Detached => MessageLabel::Detached,
            Self::Note => MessageLabel::Note,
            Self::Revoked => MessageLabel::Revoked,
            Self::Removed => MessageLabel::Removed,
            Self::Paused => MessageLabel::Paused,
            Self::Flushed => MessageLabel::Flushed,
        }
    }

    /// Returns whether the text begins with the name of a poll.
    fn has_poll(self) -> bool {
        match self {
            Self::Beat | Self::Revoked | Self::Flushed | Self::Removed | Self::Paused => false,
            Self::Landed
            | Self::Failed
            | Self::Left
            | Self::Taken
            | Self::Attached
            | Self::Detached
            | Self::Note => true,
        }
    }
}

/// A message whose code is not checked yet.
pub(in crate::cluster) struct Envelope {
    pub(in crate::cluster) kind: WireKind,
    /// Poll of the message, if it concerns one.
    pub(in crate::cluster) poll: Option<PollName>,
    text: Bytes,
    code: Bytes,
    additions: Bytes,
}

impl Envelope {
    /// Splits a message. `None`: malformed, or of a kind that a later version has added.
    pub(in crate::cluster) fn split(message: Bytes) -> Option<Self> {
        let mut reader = WireReader::new(message);
        let kind = WireKind::of(reader.u8()?)?;
        let text = reader.field()?;
        let code = reader.bytes(CODE_LEN)?;
        let poll = match kind.has_poll() {
            true => Some(PollName(WireReader::new(text.clone()).u128()?)),
            false => None,
        };
        Some(Self { kind, poll, text, code, additions: reader.rest() })
    }

    /// Returns the text after the name of the poll, and the additions of a script. `None`: the code is not valid.
    pub(in crate::cluster) fn open(self, codes: &MessageCodes) -> Option<(WireReader, WireReader)> {
        if !codes.is_valid(&[self.kind as u8], &self.text, &self.code) {
            return None;
        }
        let mut text = WireReader::new(self.text);
        if self.poll.is_some() {
            text.u128()?;
        }
        Some((text, WireReader::new(self.additions)))
    }
}

/// Returns a message with its code.
pub(in crate::cluster) fn message(codes: &MessageCodes, kind: WireKind, text: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len() + 21);
    out.push(kind as u8);
    put_field(&mut out, text);
    out.extend_from_slice(&codes.code(&[kind as u8], text));
    out
}

/// Bytes of a message before its text.
pub(in crate::cluster) const TEXT_AT: usize = 5;

/// Returns the beginning of a text about a lease.
pub(in crate::cluster) fn lease_text(PollName(poll): PollName, token: LeaseToken) -> Vec<u8> {
    [&poll.to_be_bytes()[..], &token_bytes(token)].concat()
}

/// Returns the text of a message about a replica and a poll.
pub(in crate::cluster) fn guest_text(PollName(poll): PollName, ReplicaName(replica): ReplicaName) -> Vec<u8> {
    [&poll.to_be_bytes()[..], &replica.to_be_bytes()].concat()
}

/// Returns the text of a note: whether the upstream holds the poll of this lease, and for how long it holds this attempt.
pub(in crate::cluster) fn note_text(
    poll: PollName,
    token: LeaseToken,
    held_for: Option<Duration>,
) -> Vec<u8> {
    let mut text = lease_text(poll, token);
    text.push(held_for.is_some().into());
    text.extend_from_slice(&millis(held_for.unwrap_or_default()).to_be_bytes());
    text
}

pub(in crate::cluster) fn read_note(text: &mut WireReader) -> Option<(LeaseToken, Option<Duration>)> {
    let (token, is_held) = (read_token(text)?, text.u8()? == 1);
    // Absent in the first notes of this version: the lease's age is the best guess then.
    let age = text.u64().map_or(Duration::MAX, Duration::from_millis);
    Some((token, is_held.then_some(age)))
}

pub(in crate::cluster) fn beat_text(me: ReplicaName, former: Option<ReplicaName>, number: u64) -> Vec<u8> {
    let mut text = me.0.to_be_bytes().to_vec();
    text.push(former.is_some().into());
    text.extend_from_slice(&former.map_or(0, |ReplicaName(name)| name).to_be_bytes());
    text.extend_from_slice(&number.to_be_bytes());
    text
}

pub(in crate::cluster) fn read_beat(
    text: &mut WireReader,
) -> Option<(ReplicaName, Option<ReplicaName>, u64)> {
    let me = ReplicaName(text.u64()?);
    let has_former = text.u8()? == 1;
    let former = ReplicaName(text.u64()?);
    Some((me, has_former.then_some(former), text.u64()?))
}

pub(in crate::cluster) fn token_bytes(token: LeaseToken) -> [u8; 16] {
    ((u128::from(token.instance) << 64) | u128::from(token.number)).to_be_bytes()
}

pub(in crate::cluster) fn read_token(reader: &mut WireReader) -> Option<LeaseToken> {
    Some(LeaseToken { instance: reader.u64()?, number: reader.u64()? })
}

/// Returns a lease as the engine keeps it: token, holder, code.
pub(in crate::cluster) fn lease_record(
    codes: &MessageCodes,
    poll: PollName,
    token: LeaseToken,
    holder: ReplicaName,
) -> Vec<u8> {
    let mut record = token_bytes(token).to_vec();
    record.extend_from_slice(&holder.0.to_be_bytes());
    let code = codes.code(b"lease", &[&poll.0.to_be_bytes()[..], &record].concat());
    record.extend_from_slice(&code);
    record
}

/// Reads a lease of this poll. `None` if another one wrote it than a replica.
pub(in crate::cluster) fn read_lease(
    codes: &MessageCodes,
    PollName(poll): PollName,
    reader: &mut WireReader,
) -> Option<(LeaseToken, ReplicaName)> {
    let record = reader.bytes(24)?;
    let code = reader.bytes(CODE_LEN)?;
    if !codes.is_valid(b"lease", &[&poll.to_be_bytes()[..], &record].concat(), &code) {
        return None;
    }
    let mut record = WireReader::new(record);
    Some((read_token(&mut record)?, ReplicaName(record.u64()?)))
}

/// Returns an epoch as the engine keeps it: number, code.
pub(in crate::cluster) fn epoch_record(
    codes: &MessageCodes,
    KeyDomain(domain): KeyDomain,
    KeyEpoch(epoch): KeyEpoch,
) -> Vec<u8> {
    let number = epoch.to_be_bytes();
    let code = codes.code(b"epoch", &[&domain[..], &number].concat());
    [&number[..], &code].concat()
}

/// Reads an epoch of this domain.
pub(in crate::cluster) fn read_epoch(
    codes: &MessageCodes,
    KeyDomain(domain): KeyDomain,
    reader: &mut WireReader,
) -> Option<KeyEpoch> {
    let number = reader.bytes(8)?;
    let code = reader.bytes(CODE_LEN)?;
    let is_valid = codes.is_valid(b"epoch", &[&domain[..], &number].concat(), &code);
    WireReader::new(number).u64().filter(|_| is_valid).map(KeyEpoch)
}

/// Returns a time in milliseconds. A script counts no further.
pub(in crate::cluster) fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX).min(1 << 50)
}

/// Reads a number of milliseconds that a script has written in decimal digits.
pub(in crate::cluster) fn read_millis(bytes: &[u8]) -> Option<Duration> {
    let digits = std::str::from_utf8(bytes).ok()?.trim();
    digits.parse().ok().map(Duration::from_millis)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::secret::Secret;

    const POLL: PollName = PollName(7);
    const TOKEN: LeaseToken = LeaseToken { instance: 1, number: 2 };
    const ME: ReplicaName = ReplicaName(9);

    fn codes(secret: &str) -> MessageCodes {
        MessageCodes::new(&Secret::new(secret), b"id")
    }

    #[test]
    fn a_message_opens_only_as_it_was_written() {
        let codes = codes("s");
        let mut bytes = message(&codes, WireKind::Left, &lease_text(POLL, TOKEN));
        bytes.extend_from_slice(b"added");
        let envelope = Envelope::split(bytes.clone().into()).unwrap();
        assert_eq!((envelope.kind, envelope.poll), (WireKind::Left, Some(POLL)));
        let (mut text, additions) = envelope.open(&codes).unwrap();
        assert_eq!((read_token(&mut text), &additions.rest()[..]), (Some(TOKEN), &b"added"[..]));
        for n in 0..bytes.len() - 5 {
            let mut changed = bytes.clone();
            changed[n] ^= 1;
            let opened = Envelope::split(changed.into()).and_then(|envelope| envelope.open(&codes));
            assert!(opened.is_none(), "byte {n}");
        }
        assert!(Envelope::split(bytes.into()).unwrap().open(&self::codes("t")).is_none());
    }

    #[test]
    fn a_message_of_an_unknown_kind_is_skipped() {
        assert!(Envelope::split(Bytes::from_static(&[200, 0, 0, 0, 0])).is_none());
    }

    #[test]
    fn leases_and_epochs_belong_to_their_poll_and_domain() {
        let codes = codes("s");
        let lease = lease_record(&codes, POLL, TOKEN, ME);
        let read = |poll, lease: &[u8]| read_lease(&codes, poll, &mut WireReader::new(lease.to_vec()));
        assert_eq!(read(POLL, &lease), Some((TOKEN, ME)));
        assert_eq!(read(PollName(8), &lease), None);
        assert_eq!(read(POLL, &lease[..39]), None);
        let domain = KeyDomain([3; 16]);
        let epoch = epoch_record(&codes, domain, KeyEpoch(5));
        let read = |domain, epoch: &[u8]| read_epoch(&codes, domain, &mut WireReader::new(epoch.to_vec()));
        assert_eq!(read(domain, &epoch), Some(KeyEpoch(5)));
        assert_eq!(read(KeyDomain([4; 16]), &epoch), None);
    }

    #[test]
    fn a_beat_is_read_as_it_was_written() {
        for former in [None, Some(ReplicaName(3))] {
            let text = beat_text(ME, former, 4);
            assert_eq!(read_beat(&mut WireReader::new(text)), Some((ME, former, 4)));
        }
    }

    #[test]
    fn a_note_is_read_as_it_was_written_also_without_the_age() {
        for held_for in [None, Some(Duration::from_millis(37_900))] {
            let text = note_text(POLL, TOKEN, held_for).split_off(16);
            let read = |text: &[u8]| read_note(&mut WireReader::new(text.to_vec()));
            assert_eq!(read(&text), Some((TOKEN, held_for)));
            assert_eq!(read(&text[..17]), Some((TOKEN, held_for.map(|_| Duration::MAX))));
        }
    }

    #[test]
    fn random_messages_never_panic() {
        let codes = codes("s");
        let mut rng = fastrand::Rng::with_seed(2);
        for _ in 0..20_000 {
            let mut bytes: Vec<u8> = (0..rng.usize(..90)).map(|_| rng.u8(..)).collect();
            if let Some(first) = bytes.first_mut() {
                *first %= 14;
            }
            let _ = Envelope::split(bytes.clone().into()).map(|envelope| envelope.open(&codes));
            let _ = read_beat(&mut WireReader::new(bytes.clone()));
            let _ = read_millis(&bytes);
        }
    }
}
