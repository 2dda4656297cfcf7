//! Bytes of values and messages. The wire version is a part of every name, so all replicas that meet have the same one.
//!
//! Within a version, fields are only added, at the end of a record. A reader ignores bytes after the fields that it
//! knows, and messages of unknown kinds. Malformed bytes are refused: each reading function returns an `Option`.
//!
//! | file | content |
//! | --- | --- |
//! | `state` | states of jobs and whole responses, before they are sealed |
//! | `message` | messages, leases and epochs with their codes |

pub(super) mod message;
pub(super) mod state;

use bytes::{Buf as _, Bytes};

/// Reads fields in big-endian order.
pub(super) struct WireReader(Bytes);

impl WireReader {
    pub(super) fn new(bytes: impl Into<Bytes>) -> Self {
        Self(bytes.into())
    }

    pub(super) fn bytes(&mut self, len: usize) -> Option<Bytes> {
        (self.0.remaining() >= len).then(|| self.0.split_to(len))
    }

    /// Reads a field with its length before it.
    pub(super) fn field(&mut self) -> Option<Bytes> {
        let len = usize::try_from(self.u32()?).ok()?;
        self.bytes(len)
    }

    pub(super) fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let mut array = [0; N];
        array.copy_from_slice(&self.bytes(N)?);
        Some(array)
    }

    pub(super) fn u8(&mut self) -> Option<u8> {
        self.0.try_get_u8().ok()
    }

    pub(super) fn u16(&mut self) -> Option<u16> {
        self.0.try_get_u16().ok()
    }

    pub(super) fn u32(&mut self) -> Option<u32> {
        self.0.try_get_u32().ok()
    }

    pub(super) fn u64(&mut self) -> Option<u64> {
        self.0.try_get_u64().ok()
    }

    pub(super) fn u128(&mut self) -> Option<u128> {
        self.0.try_get_u128().ok()
    }

    pub(super) fn rest(self) -> Bytes {
        self.0
    }
}

/// Writes a field with its length before it. Fields are far shorter than 4 GiB: bodies are limited.
pub(super) fn put_field(out: &mut Vec<u8>, field: &[u8]) {
    let len = u32::try_from(field.len()).unwrap_or(u32::MAX);
    out.extend_from_slice(&len.to_be_bytes());
    out.extend_from_slice(field.get(..len as usize).unwrap_or_default());
}
