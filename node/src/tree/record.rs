//! How a node stands on disk and in snapshots.
//!
//! Hand-made instead of protobuf, because every changed node passes here on its way to disk and
//! every node of a group on a restart. All integers are little endian:
//!
//! | field | bytes | |
//! |---|---|---|
//! | version | 1 | 1 |
//! | flags | 1 | 0x01 directory, 0x02 lock, 0x04 has a lease |
//! | create index, create time, update index, update time | 4 x 8 | |
//! | owner, TTL, start, TTL index | 16 + 3 x 8 | with flag 0x04 |
//! | value | the rest | nothing for directories |

use super::lease::Lease;
use super::node::Meta;
use std::sync::Arc;

const VERSION: u8 = 1;
const DIR: u8 = 1;
const LOCK: u8 = 2;
const LEASE: u8 = 4;
const META_BYTES: usize = 32;
const LEASE_BYTES: usize = 40;

/// A node without its key. Cloning and building it copies no value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeRecord {
    /// Indexes and times.
    pub meta: Meta,
    /// A lock directory, or an entry in one.
    pub lock: bool,
    /// Temporary nodes only.
    pub lease: Option<Box<Lease>>,
    /// None for a directory.
    pub value: Option<Arc<[u8]>>,
}

/// A record that cannot be loaded. The store's data are damaged, or newer than this program.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("record of key \"{}\" cannot be loaded: {what}", key.escape_ascii())]
pub struct BadRecord {
    /// The key of the record.
    pub key: Vec<u8>,
    /// What is wrong with it.
    pub what: &'static str,
}

impl NodeRecord {
    /// How many bytes [`NodeRecord::encode`] appends.
    pub fn encoded_len(&self) -> usize {
        let lease = if self.lease.is_some() { LEASE_BYTES } else { 0 };
        2 + META_BYTES + lease + self.value.as_ref().map_or(0, |value| value.len())
    }

    /// Appends the record.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.reserve(self.encoded_len());
        out.push(VERSION);
        let flag = |on: bool, flag: u8| if on { flag } else { 0 };
        out.push(flag(self.value.is_none(), DIR) | flag(self.lock, LOCK) | flag(self.lease.is_some(), LEASE));
        let meta = &self.meta;
        for number in [meta.create_index, meta.create_time_ms, meta.update_index, meta.update_time_ms] {
            out.extend_from_slice(&number.to_le_bytes());
        }
        if let Some(lease) = &self.lease {
            out.extend_from_slice(&lease.owner);
            for number in [lease.ttl_ms, lease.start_ms, lease.ttl_index] {
                out.extend_from_slice(&number.to_le_bytes());
            }
        }
        out.extend_from_slice(self.value.as_deref().unwrap_or_default());
    }

    /// Reads a record.
    ///
    /// # Errors
    /// Says what is wrong with the bytes.
    pub fn decode(bytes: &[u8]) -> Result<NodeRecord, &'static str> {
        let (&[version, flags], rest) = bytes.split_first_chunk().ok_or(CUT)?;
        if version != VERSION {
            return Err("its format version is unknown; it was written by a newer release or is damaged");
        }
        if flags & !(DIR | LOCK | LEASE) != 0 {
            return Err("it has unknown flags");
        }
        let (meta, rest) = decode_meta(rest).ok_or(CUT)?;
        let (lease, rest) = if flags & LEASE == 0 {
            (None, rest)
        } else {
            decode_lease(rest).map(|(l, r)| (Some(l), r)).ok_or(CUT)?
        };
        let dir = flags & DIR != 0;
        if dir && !rest.is_empty() {
            return Err("it is a directory with a value");
        }
        Ok(NodeRecord { meta, lock: flags & LOCK != 0, lease, value: (!dir).then(|| Arc::from(rest)) })
    }
}

const CUT: &str = "it is too short";

fn decode_u64(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let (number, rest) = bytes.split_first_chunk()?;
    Some((u64::from_le_bytes(*number), rest))
}

fn decode_meta(bytes: &[u8]) -> Option<(Meta, &[u8])> {
    let (create_index, rest) = decode_u64(bytes)?;
    let (create_time_ms, rest) = decode_u64(rest)?;
    let (update_index, rest) = decode_u64(rest)?;
    let (update_time_ms, rest) = decode_u64(rest)?;
    Some((Meta { create_index, create_time_ms, update_index, update_time_ms }, rest))
}

fn decode_lease(bytes: &[u8]) -> Option<(Box<Lease>, &[u8])> {
    let (owner, rest) = bytes.split_first_chunk()?;
    let (ttl_ms, rest) = decode_u64(rest)?;
    let (start_ms, rest) = decode_u64(rest)?;
    let (ttl_index, rest) = decode_u64(rest)?;
    Some((Box::new(Lease { owner: *owner, ttl_ms, start_ms, ttl_index }), rest))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn encoded(record: &NodeRecord) -> Vec<u8> {
        let mut bytes = Vec::new();
        record.encode(&mut bytes);
        assert_eq!(bytes.len(), record.encoded_len());
        bytes
    }

    #[test]
    fn the_layout_of_version_1_stays_as_it_is() {
        let meta = Meta { create_index: 1, create_time_ms: 2, update_index: 3, update_time_ms: 0x0102 };
        let lease = Some(Box::new(Lease { owner: [9; 16], ttl_ms: 4, start_ms: 5, ttl_index: 6 }));
        let record = NodeRecord { meta, lock: true, lease, value: Some(Arc::from(&b"ab"[..])) };
        let mut expected = vec![1, 6];
        expected.extend([
            1, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0, 2, 1, 0, 0, 0, 0, 0, 0,
        ]);
        expected.extend([9; 16]);
        expected.extend([4, 0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0, 6, 0, 0, 0, 0, 0, 0, 0, b'a', b'b']);
        assert_eq!(encoded(&record), expected);
        let dir = NodeRecord { meta: Meta::default(), lock: false, lease: None, value: None };
        assert_eq!(encoded(&dir)[..2], [1, 1]);
    }

    #[test]
    fn damaged_records_are_refused_with_a_reason() {
        let dir = NodeRecord { meta: Meta::default(), lock: false, lease: None, value: None };
        let good = encoded(&dir);
        for cut in 0..good.len() {
            assert_eq!(NodeRecord::decode(&good[..cut]), Err(CUT));
        }
        let with = |at: usize, byte: u8| {
            let mut bytes = good.clone();
            bytes[at] = byte;
            NodeRecord::decode(&bytes)
        };
        assert!(with(0, 2).unwrap_err().contains("version"));
        assert!(with(1, 9).unwrap_err().contains("flags"));
        assert_eq!(with(1, 5), Err(CUT));
        assert!(NodeRecord::decode(&[good.clone(), vec![0]].concat()).unwrap_err().contains("directory"));
    }

    proptest! {
        #[test]
        fn records_round_trip(numbers: [u64; 4], lock: bool, lease: Option<([u8; 16], [u64; 3])>,
                              value: Option<Vec<u8>>) {
            let [create_index, create_time_ms, update_index, update_time_ms] = numbers;
            let record = NodeRecord {
                meta: Meta { create_index, create_time_ms, update_index, update_time_ms },
                lock,
                lease: lease.map(|(owner, [ttl_ms, start_ms, ttl_index])| {
                    Box::new(Lease { owner, ttl_ms, start_ms, ttl_index })
                }),
                value: value.map(Arc::from),
            };
            prop_assert_eq!(NodeRecord::decode(&encoded(&record)), Ok(record));
        }

        #[test]
        fn any_bytes_are_decoded_without_panic(bytes: Vec<u8>) {
            if let Ok(record) = NodeRecord::decode(&bytes) {
                prop_assert_eq!(encoded(&record), bytes);
            }
        }
    }
}
