//! A digest over everything that replicas must agree on.

use super::node::Node;
use super::walk::Walk;
use super::{ROOT, Tree};
use std::fmt;
use xxhash_rust::xxh3::Xxh3;

/// XXH3-128 over all keys and records in key order. Replicas of one release have the same digest
/// at the same applied index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Digest(pub [u8; 16]);

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", u128::from_be_bytes(self.0))
    }
}

struct Hasher {
    state: Xxh3,
    record: Vec<u8>,
}

impl Hasher {
    fn node(&mut self, node: &Node) {
        self.record.clear();
        node.record().encode(&mut self.record);
        self.state.update(&(node.key.len() as u32).to_le_bytes());
        self.state.update(&node.key);
        self.state.update(&(self.record.len() as u32).to_le_bytes());
        self.state.update(&self.record);
    }
}

pub(super) fn digest(tree: &Tree) -> Digest {
    let mut hasher = Hasher { state: Xxh3::new(), record: Vec::new() };
    hasher.node(&tree.slab[ROOT]);
    Walk::new(tree, ROOT, true).for_each(|node| hasher.node(node));
    Digest(hasher.state.digest128().to_be_bytes())
}
