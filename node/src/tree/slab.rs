//! Where the nodes live, and how a full key finds its node.

use super::node::Node;
use hashbrown::HashTable;
use std::hash::{BuildHasher, RandomState};
use std::ops::{Index, IndexMut};
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// Place of a node in the slab. It is never seen outside and decides nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Slot(pub(super) u32);

const CHUNK_BITS: u32 = 10;
const CHUNK: usize = 1 << CHUNK_BITS;

/// Nodes in chunks, so that growing never moves them (no pause, no doubled peak).
#[derive(Default)]
pub(super) struct Slab {
    chunks: Vec<Vec<Node>>,
    free: Vec<Slot>,
}

impl Slab {
    pub(super) fn insert(&mut self, node: Node) -> Slot {
        if let Some(slot) = self.free.pop() {
            self[slot] = node;
            return slot;
        }
        if self.chunks.last().is_none_or(|chunk| chunk.len() == CHUNK) {
            // The first chunk grows as needed: a node may host thousands of small groups.
            let capacity = if self.chunks.is_empty() { 0 } else { CHUNK };
            self.chunks.push(Vec::with_capacity(capacity));
        }
        let base = (self.chunks.len() - 1) << CHUNK_BITS;
        let last = self.chunks.len() - 1;
        let chunk = &mut self.chunks[last];
        chunk.push(node);
        // 2^32 nodes would take more than 500 GB in one group.
        Slot((base + chunk.len() - 1) as u32)
    }

    /// The caller has made sure that nothing names the slot any more.
    pub(super) fn release(&mut self, slot: Slot) {
        self.free.push(slot);
    }
}

impl Index<Slot> for Slab {
    type Output = Node;

    #[inline]
    fn index(&self, slot: Slot) -> &Node {
        &self.chunks[(slot.0 >> CHUNK_BITS) as usize][slot.0 as usize & (CHUNK - 1)]
    }
}

impl IndexMut<Slot> for Slab {
    #[inline]
    fn index_mut(&mut self, slot: Slot) -> &mut Node {
        &mut self.chunks[(slot.0 >> CHUNK_BITS) as usize][slot.0 as usize & (CHUNK - 1)]
    }
}

/// Hash of a key; 32 bits are kept beside each slot, so that growing the table reads no node.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct KeyHash(u32);

impl KeyHash {
    fn shard(self) -> usize {
        (self.0 >> (32 - SHARD_BITS)) as usize
    }

    /// The table takes its bucket from the low bits and a tag from the high ones.
    fn spread(self) -> u64 {
        u64::from(self.0).wrapping_mul(0x9E37_79B9_7F4A_7C15)
    }
}

const SHARD_BITS: u32 = 6;

/// Full key -> slot. It is never iterated. The seed is random, so that nobody can choose keys
/// that collide. It is cut into shards because a table that grows moves all its entries at once:
/// one table of 8 million keys would stop the group for a tenth of a second.
pub(super) struct KeyIndex {
    shards: Vec<HashTable<(KeyHash, Slot)>>,
    seed: u64,
}

impl KeyIndex {
    pub(super) fn new() -> KeyIndex {
        let shards = (0..1 << SHARD_BITS).map(|_| HashTable::new()).collect();
        KeyIndex { shards, seed: RandomState::new().hash_one(0u8) }
    }

    #[inline]
    pub(super) fn hash(&self, key: &[u8]) -> KeyHash {
        KeyHash(xxh3_64_with_seed(key, self.seed) as u32)
    }

    #[inline]
    pub(super) fn find(&self, slab: &Slab, hash: KeyHash, key: &[u8]) -> Option<Slot> {
        let same = |(h, slot): &(KeyHash, Slot)| *h == hash && *slab[*slot].key == *key;
        self.shards[hash.shard()].find(hash.spread(), same).map(|(_, slot)| *slot)
    }

    /// The key must not be there.
    pub(super) fn insert(&mut self, hash: KeyHash, slot: Slot) {
        self.shards[hash.shard()].insert_unique(hash.spread(), (hash, slot), |(h, _)| h.spread());
    }

    pub(super) fn remove(&mut self, key: &[u8], slot: Slot) {
        let hash = self.hash(key);
        if let Ok(entry) = self.shards[hash.shard()].find_entry(hash.spread(), |(_, s)| *s == slot) {
            entry.remove();
        }
    }
}
