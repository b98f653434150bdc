//! The ordered children of a directory.

use super::slab::Slot;
use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::collections::btree_map::Range;
use std::ops::Bound;
use std::sync::Arc;

/// Segments up to this long stand in the child map itself, so that ordering them follows no pointer.
const INLINE_BYTES: usize = 22;

/// One segment of a key, with the order of its bytes.
enum Segment {
    Inline { len: u8, bytes: [u8; INLINE_BYTES] },
    Shared { start: u16, key: Arc<[u8]> },
}

impl Segment {
    /// The last segment of a key, which begins at `start`.
    fn of(key: &Arc<[u8]>, start: usize) -> Segment {
        let segment = &key[start..];
        if segment.len() > INLINE_BYTES {
            // Keys are at most 8 KiB long: `start` fits.
            return Segment::Shared { start: start as u16, key: Arc::clone(key) };
        }
        let mut bytes = [0; INLINE_BYTES];
        bytes[..segment.len()].copy_from_slice(segment);
        Segment::Inline { len: segment.len() as u8, bytes }
    }

    fn as_bytes(&self) -> &[u8] {
        match self {
            Segment::Inline { len, bytes } => &bytes[..*len as usize],
            Segment::Shared { start, key } => &key[*start as usize..],
        }
    }
}

impl std::borrow::Borrow<[u8]> for Segment {
    fn borrow(&self) -> &[u8] {
        self.as_bytes()
    }
}

impl PartialEq for Segment {
    fn eq(&self, other: &Segment) -> bool {
        self.as_bytes() == other.as_bytes()
    }
}

impl Eq for Segment {}

impl PartialOrd for Segment {
    fn partial_cmp(&self, other: &Segment) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Segment {
    fn cmp(&self, other: &Segment) -> Ordering {
        self.as_bytes().cmp(other.as_bytes())
    }
}

/// Where the last segment of a key begins.
pub(super) fn last_segment_start(key: &[u8]) -> usize {
    key.iter().rposition(|byte| *byte == b'.').map_or(0, |dot| dot + 1)
}

/// The children of a directory, by segment.
#[derive(Default)]
pub(super) struct Children(BTreeMap<Segment, Slot>);

/// Children in order, from some point on.
pub(super) struct ChildIter<'a>(Range<'a, Segment, Slot>);

impl Iterator for ChildIter<'_> {
    type Item = Slot;

    fn next(&mut self) -> Option<Slot> {
        self.0.next().map(|(_, slot)| *slot)
    }
}

impl Children {
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn insert(&mut self, key: &Arc<[u8]>, slot: Slot) {
        self.0.insert(Segment::of(key, last_segment_start(key)), slot);
    }

    pub(super) fn remove(&mut self, key: &[u8]) {
        self.0.remove(&key[last_segment_start(key)..]);
    }

    pub(super) fn get(&self, segment: &[u8]) -> Option<Slot> {
        self.0.get(segment).copied()
    }

    pub(super) fn iter(&self) -> ChildIter<'_> {
        ChildIter(self.0.range::<[u8], _>(..))
    }

    /// The children behind this segment, whether or not it is there.
    pub(super) fn after(&self, segment: &[u8]) -> ChildIter<'_> {
        ChildIter(self.0.range::<[u8], _>((Bound::Excluded(segment), Bound::Unbounded)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_segment_is_no_larger_than_a_vector() {
        assert_eq!(size_of::<Segment>(), 24);
    }

    #[test]
    fn short_and_long_segments_share_one_order() {
        let keys: Vec<Arc<[u8]>> = [
            &b"d.b"[..],
            b"d.a",
            b"d.a-long-segment-that-does-not-fit-inline",
            b"d.aaaaaaaaaaaaaaaaaaaaaa",
            b"d.aaaaaaaaaaaaaaaaaaaaaaa",
        ]
        .into_iter()
        .map(Arc::from)
        .collect();
        let mut children = Children::default();
        for (i, key) in keys.iter().enumerate() {
            children.insert(key, Slot(i as u32));
        }
        assert_eq!(children.iter().map(|s| s.0).collect::<Vec<_>>(), [1, 2, 3, 4, 0]);
        assert_eq!(children.after(b"aaaaaaaaaaaaaaaaaaaaaa").map(|s| s.0).collect::<Vec<_>>(), [4, 0]);
        assert_eq!(children.get(b"aaaaaaaaaaaaaaaaaaaaaaa"), Some(Slot(4)));
        children.remove(&keys[2]);
        assert_eq!(children.len(), 4);
    }
}
