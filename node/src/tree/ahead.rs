//! Looking nodes up before their operations are applied.
//!
//! One after the other, each operation would wait for memory several times. The look-ups of
//! several operations wait at the same time, and leave the nodes in the processor's caches.

use super::Tree;
use super::node::Body;
use dtkv_client::packed::{self, Ops};

/// Operations whose nodes are looked up together.
const LOOKED_UP_AT_ONCE: usize = 16;
/// Of a longer value, the processor fetches the rest by itself once it is written.
const SEEN_BYTES_MAX: usize = 512;
const CACHE_LINE_BYTES: usize = 64;

/// Runs ahead of the operations of one entry.
pub struct Ahead<'a> {
    ops: Ops<'a>,
    /// How many operations have been looked up and not been applied.
    left: usize,
}

impl<'a> Ahead<'a> {
    /// At the first of these operations.
    pub fn new(ops: &'a [u8]) -> Ahead<'a> {
        Ahead { ops: packed::ops(ops), left: 0 }
    }

    /// To be called before each operation.
    #[inline]
    pub fn step(&mut self, tree: &Tree) {
        if self.left == 0 {
            self.look_up(tree);
            self.left = LOOKED_UP_AT_ONCE;
        }
        self.left -= 1;
    }

    fn look_up(&mut self, tree: &Tree) {
        let mut seen = 0;
        for op in self.ops.by_ref().take(LOOKED_UP_AT_ONCE).flatten() {
            let body = tree.find(op.key).map(|slot| &tree.slab[slot].body);
            if let Some(Body::Value(value)) = body {
                let lines = value.iter().take(SEEN_BYTES_MAX).step_by(CACHE_LINE_BYTES);
                seen ^= lines.fold(0, |all, byte| all ^ byte);
            }
        }
        std::hint::black_box(seen);
    }
}
