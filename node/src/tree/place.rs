//! Where a key may be written: what stands there and above it.

use super::node::{Body, NewNode};
use super::slab::Slot;
use super::{ApplyContext, ClientId, ROOT, Tree};
use dtkv_client::limits::check_key;
use dtkv_client::packed::Op;
use dtkv_client::v1::Code;

/// Where a key may be written.
pub(super) enum Place {
    /// A node of the wanted kind (permanent; or temporary, and the caller's) stands there.
    Taken(Slot),
    /// Nothing stands there. This is the directory that it would stand in or, if missing parents
    /// are to be made, the deepest one above it.
    Free(Slot),
}

impl Tree {
    /// Where a permanent node may be written.
    #[inline]
    pub(super) fn place(&self, key: &[u8], create_parents: bool) -> Result<Place, Code> {
        let Some(slot) = self.find(key) else {
            // A key that is there was checked when it was made.
            check_key(key)?;
            return self.find_above(key, create_parents).map(Place::Free);
        };
        let node = &self.slab[slot];
        if self.slab[node.parent].lock {
            return Err(Code::ParentIsLock);
        }
        if node.lock {
            return Err(Code::IsLockNode);
        }
        if node.lease.is_some() {
            return Err(Code::IsTempNode);
        }
        Ok(Place::Taken(slot))
    }

    /// Where a client may write a temporary node.
    pub(super) fn place_temp(
        &self,
        key: &[u8],
        create_parents: bool,
        owner: ClientId,
    ) -> Result<Place, Code> {
        check_key(key)?;
        let found = self.find(key);
        let above = match found {
            Some(slot) => self.check_parent(self.slab[slot].parent)?,
            None => self.find_above(key, create_parents)?,
        };
        if self.is_temp_or_below(above) {
            return Err(Code::UnderTempDir);
        }
        let Some(slot) = found else { return Ok(Place::Free(above)) };
        let node = &self.slab[slot];
        if node.lock {
            return Err(Code::IsLockNode);
        }
        match &node.lease {
            None => Err(Code::NotTempNode),
            Some(lease) if lease.owner != owner => Err(Code::NotOwner),
            Some(_) => Ok(Place::Taken(slot)),
        }
    }

    /// Compares the update index of what stands at the key with the one that the operation expects.
    #[inline]
    pub(super) fn check_expected(&self, op: &Op<'_>, found: Option<Slot>) -> Result<(), Code> {
        let Some(expected) = op.expect_index else { return Ok(()) };
        let index = found.map_or(0, |slot| self.slab[slot].meta.update_index);
        if index == expected { Ok(()) } else { Err(Code::CasMismatch) }
    }

    /// Makes a node in a free place, and first its missing parents.
    #[inline]
    pub(super) fn create(&mut self, at: ApplyContext, above: Slot, op: &Op<'_>, new: NewNode) {
        let parent = if op.create_parents { self.make_parents(at, above, op.key) } else { above };
        self.insert(at, parent, op.key, new);
    }

    fn find_above(&self, key: &[u8], create_parents: bool) -> Result<Slot, Code> {
        if create_parents { self.find_deepest(key) } else { self.find_parent(key) }
    }

    pub(super) fn find_parent(&self, key: &[u8]) -> Result<Slot, Code> {
        let parent = match parent_key(key) {
            Some(parent) => self.find(parent).ok_or(Code::ParentDirNotExists)?,
            None => ROOT,
        };
        self.check_parent(parent)
    }

    /// The deepest directory above a key.
    fn find_deepest(&self, key: &[u8]) -> Result<Slot, Code> {
        let mut next = parent_key(key);
        while let Some(parent) = next {
            if let Some(slot) = self.find(parent) {
                return self.check_parent(slot);
            }
            next = parent_key(parent);
        }
        Ok(ROOT)
    }

    pub(super) fn check_parent(&self, parent: Slot) -> Result<Slot, Code> {
        let node = &self.slab[parent];
        if !node.is_dir() {
            return Err(Code::ParentNotDir);
        }
        if node.lock { Err(Code::ParentIsLock) } else { Ok(parent) }
    }

    /// True for a temporary directory, and for everything below one.
    pub(super) fn is_temp_or_below(&self, dir: Slot) -> bool {
        let mut slot = dir;
        while slot != ROOT {
            let node = &self.slab[slot];
            if node.lease.is_some() {
                return true;
            }
            slot = node.parent;
        }
        false
    }

    /// Makes the directories between one and a key.
    fn make_parents(&mut self, at: ApplyContext, above: Slot, key: &[u8]) -> Slot {
        let known = self.slab[above].key.len();
        let dots = key.iter().enumerate().filter(|(dot, byte)| **byte == b'.' && *dot > known);
        dots.fold(above, |dir, (dot, _)| self.insert(at, dir, &key[..dot], NewNode::permanent(Body::dir())))
    }
}

/// The key of the directory that a key stands in; none for those in the root.
fn parent_key(key: &[u8]) -> Option<&[u8]> {
    key.iter().rposition(|byte| *byte == b'.').map(|dot| &key[..dot])
}
