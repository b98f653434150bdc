//! The operations. Each makes its checks in the order of the contract's tables; the first that
//! fails is the answer, and nothing has changed.
//!
//! Flags that an operation does not know are ignored. TTLs and guards are refused with
//! `CLIENT_REQ_ERROR` wherever they stand.

use super::node::{Body, Node};
use super::slab::Slot;
use super::{ApplyContext, ROOT, Tree};
use dtkv_client::limits::{BATCH_BYTES_MAX, BATCH_ITEMS_MAX, check_key, check_value};
use dtkv_client::packed::{self, Kind, Malformed, Op, pack_batch_result};
use dtkv_client::v1::Code;

/// Operations whose nodes are looked up together, before they are applied one by one.
const LOOKED_UP_AHEAD: usize = 16;
/// Of a longer value, the processor fetches the rest by itself once it is written.
const SEEN_BYTES_MAX: usize = 512;
const CACHE_LINE_BYTES: usize = 64;

/// Where a key may be written.
enum Place {
    /// A permanent node that is no lock stands there.
    Taken(Slot),
    /// Nothing stands there; this directory would be the parent.
    Free(Slot),
}

/// What a compare-and-set compares with.
enum Expect<'a> {
    Absent,
    Value(&'a [u8]),
    Index(u64),
}

impl<'a> Expect<'a> {
    fn of(op: &Op<'a>) -> Expect<'a> {
        match (op.expect_index, op.expect) {
            (Some(0), _) | (None, None) => Expect::Absent,
            (Some(index), _) => Expect::Index(index),
            (None, Some(value)) => Expect::Value(value),
        }
    }

    /// Directories match nothing.
    fn matches(&self, node: &Node) -> bool {
        match (&node.body, self) {
            (Body::Dir(_), _) | (_, Expect::Absent) => false,
            (Body::Value(value), Expect::Value(expected)) => **value == **expected,
            (Body::Value(_), Expect::Index(index)) => node.meta.update_index == *index,
        }
    }
}

fn code(result: Result<Code, Code>) -> Code {
    result.unwrap_or_else(|refused| refused)
}

impl Tree {
    /// Applies one log entry: packed operations, in order, in one step. Appends a packed result
    /// for each.
    ///
    /// # Errors
    /// When the bytes do not follow the layout, which the service prevents before replication. The
    /// operations in front of the bad one stay applied, on every replica alike, and have results.
    pub fn apply(&mut self, at: ApplyContext, ops: &[u8], results: &mut Vec<u8>) -> Result<(), Malformed> {
        let mut ahead = packed::ops(ops);
        for (done, op) in packed::ops(ops).enumerate() {
            let op = op?;
            if done % LOOKED_UP_AHEAD == 0 {
                self.look_up_ahead(&mut ahead);
            }
            if op.kind == Kind::Batch {
                self.apply_batch(at, &op, results);
            } else {
                let caller = op.session.map(|(client, _)| client);
                results.push(self.apply_one(at, &op, caller) as u8);
            }
        }
        Ok(())
    }

    /// Brings the nodes of the next operations into the processor's caches. One after the other, each
    /// operation would wait for memory several times; these look-ups wait at the same time.
    fn look_up_ahead(&self, ahead: &mut packed::Ops<'_>) {
        let mut seen = 0;
        for op in ahead.take(LOOKED_UP_AHEAD).flatten() {
            let node = self.find(op.key).map(|slot| &self.slab[slot].body);
            if let Some(Body::Value(value)) = node {
                seen ^= value
                    .iter()
                    .take(SEEN_BYTES_MAX)
                    .step_by(CACHE_LINE_BYTES)
                    .fold(0, |all, byte| all ^ byte);
            }
        }
        std::hint::black_box(seen);
    }

    #[inline]
    fn apply_one(&mut self, at: ApplyContext, op: &Op<'_>, caller: Option<[u8; 16]>) -> Code {
        if op.ttl_ms.is_some() || op.guard.is_some() {
            return Code::ClientReqError;
        }
        code(match op.kind {
            Kind::Put => self.put(at, op),
            Kind::Remove => self.remove(at, op, caller),
            Kind::Mkdir => self.mkdir(at, op),
            Kind::CompareAndSet => self.compare_and_set(at, op),
            Kind::Batch | Kind::Get => Err(Code::ClientReqError),
        })
    }

    fn apply_batch(&mut self, at: ApplyContext, batch: &Op<'_>, results: &mut Vec<u8>) {
        let items = batch_items(batch.value).filter(|_| batch.ttl_ms.is_none() && batch.guard.is_none());
        let Some(items) = items else {
            return pack_batch_result(Code::ClientReqError, &[], results);
        };
        let caller = batch.session.map(|(client, _)| client);
        results.push(Code::Success as u8);
        results.extend_from_slice(&items.to_le_bytes());
        for item in packed::ops(batch.value).flatten() {
            results.push(self.apply_item(at, &item, caller) as u8);
        }
    }

    /// An item is a put or a remove, and leaves session, TTL and guard to its batch.
    fn apply_item(&mut self, at: ApplyContext, item: &Op<'_>, caller: Option<[u8; 16]>) -> Code {
        match item.kind {
            Kind::Put | Kind::Remove if item.session.is_none() => self.apply_one(at, item, caller),
            _ => Code::ClientReqError,
        }
    }

    #[inline]
    fn put(&mut self, at: ApplyContext, op: &Op<'_>) -> Result<Code, Code> {
        check_value(op.value)?;
        match self.place(at, op.key, op.create_parents)? {
            Place::Taken(slot) if self.slab[slot].is_dir() => Err(Code::DirExists),
            Place::Taken(slot) => {
                self.overwrite(at, slot, op.value);
                Ok(Code::SuccessOverwrite)
            }
            Place::Free(parent) => {
                self.insert(at, parent, op.key, Body::value(op.value));
                Ok(Code::Success)
            }
        }
    }

    fn mkdir(&mut self, at: ApplyContext, op: &Op<'_>) -> Result<Code, Code> {
        match self.place(at, op.key, op.create_parents)? {
            Place::Taken(slot) if self.slab[slot].is_dir() => Ok(Code::DirExists),
            Place::Taken(_) => Err(Code::ValueExists),
            Place::Free(parent) => {
                self.insert(at, parent, op.key, Body::dir());
                Ok(Code::Success)
            }
        }
    }

    fn remove(&mut self, at: ApplyContext, op: &Op<'_>, caller: Option<[u8; 16]>) -> Result<Code, Code> {
        let Some(slot) = self.find(op.key) else {
            return check_key(op.key).and(Err(Code::NotFound));
        };
        let below = self.check_removal(slot, op.recursive, caller)?;
        self.unlink(at, slot);
        below.into_iter().for_each(|slot| self.bury(slot));
        Ok(Code::Success)
    }

    /// Answers what goes with the node: everything below it, when that may be removed too.
    fn check_removal(
        &self,
        slot: Slot,
        recursive: bool,
        caller: Option<[u8; 16]>,
    ) -> Result<Vec<Slot>, Code> {
        let node = &self.slab[slot];
        if node.lock {
            return Err(Code::IsLockNode);
        }
        if node.is_foreign(caller) {
            return Err(Code::NotOwner);
        }
        if node.child_count() == 0 {
            return Ok(Vec::new());
        }
        if !recursive {
            return Err(Code::HasChildren);
        }
        self.removable_below(slot, caller)
    }

    /// Everything below a directory. A lock anywhere below refuses before somebody else's
    /// temporary node does.
    fn removable_below(&self, dir: Slot, caller: Option<[u8; 16]>) -> Result<Vec<Slot>, Code> {
        let mut below = Vec::new();
        let mut has_foreign = false;
        let mut next = Some(dir);
        let mut visited = 0;
        while let Some(slot) = next {
            let node = &self.slab[slot];
            if node.lock {
                return Err(Code::IsLockNode);
            }
            has_foreign |= node.is_foreign(caller);
            below.extend(node.children().into_iter().flat_map(|children| children.iter()));
            next = below.get(visited).copied();
            visited += 1;
        }
        if has_foreign { Err(Code::NotOwner) } else { Ok(below) }
    }

    fn compare_and_set(&mut self, at: ApplyContext, op: &Op<'_>) -> Result<Code, Code> {
        check_key(op.key)?;
        let expect = Expect::of(op);
        match expect {
            Expect::Absent if !op.has_new_value => return Err(Code::InvalidValue),
            Expect::Value(value) => check_value(value)?,
            _ => {}
        }
        if op.has_new_value {
            check_value(op.value)?;
        }
        match (self.place(at, op.key, false)?, &expect) {
            (Place::Free(parent), Expect::Absent) => {
                self.insert(at, parent, op.key, Body::value(op.value));
            }
            (Place::Taken(slot), _) if expect.matches(&self.slab[slot]) && op.has_new_value => {
                self.overwrite(at, slot, op.value);
            }
            (Place::Taken(slot), _) if expect.matches(&self.slab[slot]) => self.unlink(at, slot),
            _ => return Err(Code::CasMismatch),
        }
        Ok(Code::Success)
    }

    /// Where a permanent node may be written. With `create_parents` it makes the missing
    /// directories; nothing after that refuses, because then the key itself is missing too.
    #[inline]
    fn place(&mut self, at: ApplyContext, key: &[u8], create_parents: bool) -> Result<Place, Code> {
        let Some(slot) = self.find(key) else {
            // A key that is there was checked when it was made.
            check_key(key)?;
            let parent = if create_parents { self.make_parents(at, key) } else { self.find_parent(key) };
            return parent.map(Place::Free);
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

    fn find_parent(&self, key: &[u8]) -> Result<Slot, Code> {
        let parent = match parent_key(key) {
            Some(parent) => self.find(parent).ok_or(Code::ParentDirNotExists)?,
            None => ROOT,
        };
        self.check_parent(parent)
    }

    fn check_parent(&self, parent: Slot) -> Result<Slot, Code> {
        let node = &self.slab[parent];
        if !node.is_dir() {
            return Err(Code::ParentNotDir);
        }
        if node.lock { Err(Code::ParentIsLock) } else { Ok(parent) }
    }

    fn make_parents(&mut self, at: ApplyContext, key: &[u8]) -> Result<Slot, Code> {
        let mut missing = Vec::new();
        let mut existing = ROOT;
        let mut next = parent_key(key);
        while let Some(parent) = next {
            if let Some(slot) = self.find(parent) {
                existing = slot;
                break;
            }
            missing.push(parent);
            next = parent_key(parent);
        }
        self.check_parent(existing)?;
        let make = |dir: Slot, key: &&[u8]| self.insert(at, dir, key, Body::dir());
        Ok(missing.iter().rev().fold(existing, make))
    }
}

/// The key of the directory that a key stands in; none for those in the root.
fn parent_key(key: &[u8]) -> Option<&[u8]> {
    key.iter().rposition(|byte| *byte == b'.').map(|dot| &key[..dot])
}

/// Number of items, if they can be read and keep the limits.
fn batch_items(bytes: &[u8]) -> Option<u16> {
    let (mut items, mut item_bytes) = (0, 0);
    for item in packed::ops(bytes) {
        let item = item.ok()?;
        items += 1;
        item_bytes += item.key.len() + item.value.len();
    }
    let fits = (1..=BATCH_ITEMS_MAX).contains(&items) && item_bytes <= BATCH_BYTES_MAX;
    u16::try_from(items).ok().filter(|_| fits)
}
