//! Exactly once: the operation that stands in front of others and numbers them.
//!
//! A scope covers the operations of its frame. They are one unit: applied once, under one sequence
//! number of one client, and answered again with the first results when they come again. It says how
//! many they are, because a log entry holds the operations of several frames.

use super::{Kind, Op, Reader};

/// Bytes of the value of a scope.
const VALUE_BYTES: usize = 11;
const RETRY: u8 = 1;

/// Who the operations come from and which of the client's writes to the group they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scope {
    /// The client.
    pub client_id: [u8; 16],
    /// Grows by one with every scope of the client to the group, from 1.
    pub sequence: u64,
    /// Every scope below this one has been answered to the client, which will not send it again.
    pub acknowledged_below: u64,
    /// How many of the operations behind it belong to it; at least 1.
    pub operations: u16,
    /// It was sent before and its outcome is unknown.
    pub is_retry: bool,
}

impl Scope {
    /// Bytes of the packed form.
    pub const PACKED_BYTES: usize = super::HEADER_BYTES + VALUE_BYTES + 24;

    /// The packed form.
    pub fn to_bytes(&self) -> [u8; Scope::PACKED_BYTES] {
        let mut bytes = [0; Scope::PACKED_BYTES];
        bytes[0] = Kind::Scope as u8;
        bytes[1] = super::SESSION;
        bytes[4] = VALUE_BYTES as u8;
        let (value, session) = bytes[super::HEADER_BYTES..].split_at_mut(VALUE_BYTES);
        value[..8].copy_from_slice(&self.acknowledged_below.to_le_bytes());
        value[8..10].copy_from_slice(&self.operations.to_le_bytes());
        value[10] = if self.is_retry { RETRY } else { 0 };
        session[..16].copy_from_slice(&self.client_id);
        session[16..].copy_from_slice(&self.sequence.to_le_bytes());
        bytes
    }

    /// Appends the packed form.
    pub fn pack(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.to_bytes());
    }

    /// Reads a scope. None when the operation is none, or a broken one: a key, a wrong length,
    /// unknown flags, the sequence 0 or one that was acknowledged already, or no operations.
    pub fn read(op: &Op<'_>) -> Option<Scope> {
        let (client_id, sequence) = op.session.filter(|_| op.kind == Kind::Scope && op.key.is_empty())?;
        let mut reader = Reader { bytes: op.value, at: 0 };
        let (acknowledged_below, operations, flags) = (reader.u64()?, reader.u16()?, reader.u8()?);
        let is_sound = reader.is_done()
            && flags & !RETRY == 0
            && sequence > 0
            && operations > 0
            && acknowledged_below <= sequence
            && op.packed_len() == Scope::PACKED_BYTES;
        let is_retry = flags & RETRY != 0;
        is_sound.then_some(Scope { client_id, sequence, acknowledged_below, operations, is_retry })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packed::ops;

    fn packed(scope: &Scope) -> Vec<u8> {
        let mut bytes = Vec::new();
        scope.pack(&mut bytes);
        assert_eq!(bytes.len(), Scope::PACKED_BYTES);
        bytes
    }

    #[test]
    fn scopes_round_trip_and_broken_ones_are_none() {
        let scope =
            Scope { client_id: [3; 16], sequence: 9, acknowledged_below: 7, operations: 2, is_retry: true };
        let read = |scope: &Scope| ops(&packed(scope)).next().unwrap().ok().and_then(|op| Scope::read(&op));
        assert_eq!(read(&scope), Some(scope));
        assert_eq!(read(&Scope { sequence: 0, acknowledged_below: 0, ..scope }), None);
        assert_eq!(read(&Scope { acknowledged_below: 10, ..scope }), None);
        assert_eq!(read(&Scope { operations: 0, ..scope }), None);
        assert_eq!(Scope::read(&Op::new(Kind::Put, b"k", b"v")), None);
        let session = Some(([3; 16], 9));
        assert_eq!(Scope::read(&Op { session, ..Op::new(Kind::Scope, b"", b"short") }), None);
        assert_eq!(
            Scope::read(&Op { session, ..Op::new(Kind::Scope, b"", &[0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 2]) }),
            None
        );
        let recursive = Op { session, recursive: true, ..Op::new(Kind::Scope, b"key", &[1; 11]) };
        assert_eq!(Scope::read(&recursive), None);
    }
}
