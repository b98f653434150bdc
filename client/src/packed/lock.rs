//! How a lock stands in the tree: a lock directory with one entry for each client that holds it or
//! waits for it. The entry with the lowest ticket is the holder's.

use super::Reader;
use std::fmt::Write;

/// Value of an entry: hold in ms (8), ticket (8), fencing token (8).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LockEntry {
    /// How long the lock is held once it is granted, in ms.
    pub hold_ms: u64,
    /// Place in the queue; lower ones come first.
    pub ticket: u64,
    /// Of the grant; 0 while the entry waits.
    pub token: u64,
}

impl LockEntry {
    /// Bytes of the packed form.
    pub const PACKED_BYTES: usize = 24;

    /// The packed form.
    pub fn pack(&self) -> [u8; LockEntry::PACKED_BYTES] {
        let mut bytes = [0; LockEntry::PACKED_BYTES];
        for (at, number) in [self.hold_ms, self.ticket, self.token].into_iter().enumerate() {
            bytes[8 * at..8 * at + 8].copy_from_slice(&number.to_le_bytes());
        }
        bytes
    }

    /// Reads the packed form; None when it has another length.
    pub fn read(value: &[u8]) -> Option<LockEntry> {
        let mut reader = Reader { bytes: value, at: 0 };
        let entry = LockEntry { hold_ms: reader.u64()?, ticket: reader.u64()?, token: reader.u64()? };
        reader.is_done().then_some(entry)
    }
}

/// Key of a client's entry: the lock's key, a dot, and 32 lower-case hexadecimal digits.
pub fn entry_key(lock: &[u8], client_id: &[u8; 16]) -> Vec<u8> {
    let mut name = String::with_capacity(33);
    // Writing into a string does not fail.
    let _ = write!(name, ".{:032x}", u128::from_be_bytes(*client_id));
    [lock, name.as_bytes()].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_round_trip_and_other_lengths_are_none() {
        let entry = LockEntry { hold_ms: 1, ticket: 2, token: 0x0304 };
        let bytes = entry.pack();
        assert_eq!(bytes[16..18], [4, 3]);
        assert_eq!(LockEntry::read(&bytes), Some(entry));
        assert_eq!(LockEntry::read(&bytes[1..]), None);
        assert_eq!(LockEntry::read(&[&bytes[..], &[0]].concat()), None);
    }

    #[test]
    fn an_entry_is_named_by_its_client() {
        let mut client = [0xAB; 16];
        client[0] = 1;
        assert_eq!(entry_key(b"a.lock", &client), [&b"a.lock.01"[..], &b"ab".repeat(15)].concat());
    }
}
