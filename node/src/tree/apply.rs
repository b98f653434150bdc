//! The operations. Each makes its checks in the order of the contract's tables; the first that
//! fails is the answer, and nothing has changed.
//!
//! Flags that an operation does not know are ignored, except a TTL, which is refused with
//! `CLIENT_REQ_ERROR`.

use super::ahead::Ahead;
use super::lock::Grant;
use super::node::{Body, NewNode, Node};
use super::place::Place;
use super::slab::Slot;
use super::{ApplyContext, ClientId, Tree};
use dtkv_client::limits::{BATCH_BYTES_MAX, BATCH_ITEMS_MAX, check_key, check_value};
use dtkv_client::packed::{self, Kind, Malformed, Op, pack_batch_result, pack_refusal};
use dtkv_client::v1::Code;

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

/// Whether operations of this kind have a TTL. One that would be ignored must not pass.
fn takes_ttl(kind: Kind) -> bool {
    matches!(kind, Kind::Put | Kind::Mkdir | Kind::UpdateTtl | Kind::TryLock | Kind::UpdateLease)
}

fn pack_grant(grant: Result<Grant, Code>, results: &mut Vec<u8>) {
    let (code, token) = grant.unwrap_or_else(|refused| (refused, 0));
    packed::pack_token_result(code, token, results);
}

fn pack_count(count: Result<u32, Code>, results: &mut Vec<u8>) {
    let (code, count) = count.map_or_else(|refused| (refused, 0), |count| (Code::Success, count));
    packed::pack_count_result(code, count, results);
}

impl Tree {
    /// Applies one log entry: packed operations, in order, in one step. Appends a packed result
    /// for each.
    ///
    /// # Errors
    /// When the bytes do not follow the layout, which the service prevents before replication. The
    /// operations in front of the bad one stay applied, on every replica alike, and have results.
    pub fn apply(&mut self, at: ApplyContext, ops: &[u8], results: &mut Vec<u8>) -> Result<(), Malformed> {
        let at = self.begin_entry(at);
        let mut ahead = Ahead::new(ops);
        for op in packed::ops(ops) {
            ahead.step(self);
            self.apply_op(at, &op?, results);
        }
        Ok(())
    }

    /// Moves the group clock to that of an entry, which every entry has to do first. Where the
    /// entry's is behind, because its leader had lost time in a restart, the tree's holds.
    #[inline]
    pub fn begin_entry(&mut self, at: ApplyContext) -> ApplyContext {
        self.counters.clock_ms = self.counters.clock_ms.max(at.clock_ms);
        ApplyContext { clock_ms: self.counters.clock_ms, ..at }
    }

    /// Applies one operation of an entry that has begun, for the client of its session. Appends its
    /// packed result.
    #[inline]
    pub fn apply_op(&mut self, at: ApplyContext, op: &Op<'_>, results: &mut Vec<u8>) {
        let caller = op.session.map(|(client, _)| client);
        if let Err(refused) = self.check_options(op) {
            return pack_refusal(op.kind, refused, results);
        }
        match op.kind {
            Kind::Batch => self.apply_batch(at, op, caller, results),
            Kind::TryLock => pack_grant(self.try_lock(at, op, caller), results),
            Kind::UpdateLease => pack_grant(self.update_lease(at, op, caller), results),
            Kind::KeepAlive => pack_count(self.keep_alive(at, caller), results),
            Kind::DropOwner => pack_count(self.drop_owner(at, caller), results),
            Kind::Expire => pack_count(self.expire(at, op), results),
            Kind::Txn => self.apply_txn(at, op, caller, results),
            Kind::Scope => pack_refusal(op.kind, Code::ClientReqError, results),
            _ => results.push(self.apply_one(at, op, caller) as u8),
        }
    }

    /// A guard comes before everything else: whoever lost the lock learns nothing but that.
    #[inline]
    pub(super) fn check_options(&self, op: &Op<'_>) -> Result<(), Code> {
        if op.guard.is_some_and(|guard| !self.passes(guard)) {
            return Err(Code::Fenced);
        }
        if op.ttl_ms.is_some() && !takes_ttl(op.kind) { Err(Code::ClientReqError) } else { Ok(()) }
    }

    /// An operation whose result is a code.
    #[inline]
    pub(super) fn apply_one(&mut self, at: ApplyContext, op: &Op<'_>, caller: Option<ClientId>) -> Code {
        code(match (op.kind, op.ttl_ms) {
            (Kind::Put, None) => self.put(at, op),
            (Kind::Put, Some(ttl_ms)) => self.put_temp(at, op, ttl_ms, caller),
            (Kind::Remove, _) => self.remove(at, op, caller),
            (Kind::Mkdir, None) => self.mkdir(at, op),
            (Kind::Mkdir, Some(ttl_ms)) => self.make_temp_dir(at, op, ttl_ms, caller),
            (Kind::CompareAndSet, _) => self.compare_and_set(at, op),
            (Kind::UpdateTtl, _) => self.update_ttl(at, op, caller),
            (Kind::Unlock, _) => self.unlock(at, op, caller),
            _ => Err(Code::ClientReqError),
        })
    }

    fn apply_batch(
        &mut self,
        at: ApplyContext,
        batch: &Op<'_>,
        caller: Option<ClientId>,
        results: &mut Vec<u8>,
    ) {
        let Some(items) = batch_items(batch.value) else {
            return pack_batch_result(Code::ClientReqError, &[], results);
        };
        results.push(Code::Success as u8);
        results.extend_from_slice(&items.to_le_bytes());
        for item in packed::ops(batch.value).flatten() {
            results.push(self.apply_item(at, &item, caller) as u8);
        }
    }

    /// An item is a put or a remove, and has no extensions.
    fn apply_item(&mut self, at: ApplyContext, item: &Op<'_>, caller: Option<ClientId>) -> Code {
        let is_plain = item.session.is_none()
            && item.ttl_ms.is_none()
            && item.expect_index.is_none()
            && item.guard.is_none();
        match item.kind {
            Kind::Put | Kind::Remove if is_plain => self.apply_one(at, item, caller),
            _ => Code::ClientReqError,
        }
    }

    #[inline]
    fn put(&mut self, at: ApplyContext, op: &Op<'_>) -> Result<Code, Code> {
        check_value(op.value)?;
        match self.place(op.key, op.create_parents)? {
            Place::Taken(slot) if self.slab[slot].is_dir() => Err(Code::DirExists),
            Place::Taken(slot) => {
                self.check_expected(op, Some(slot))?;
                self.overwrite(at, slot, op.value);
                Ok(Code::SuccessOverwrite)
            }
            Place::Free(above) => {
                self.check_expected(op, None)?;
                self.create(at, above, op, NewNode::permanent(Body::value(op.value)));
                Ok(Code::Success)
            }
        }
    }

    fn mkdir(&mut self, at: ApplyContext, op: &Op<'_>) -> Result<Code, Code> {
        match self.place(op.key, op.create_parents)? {
            Place::Taken(slot) if self.slab[slot].is_dir() => Ok(Code::DirExists),
            Place::Taken(_) => Err(Code::ValueExists),
            Place::Free(above) => {
                self.create(at, above, op, NewNode::permanent(Body::dir()));
                Ok(Code::Success)
            }
        }
    }

    fn remove(&mut self, at: ApplyContext, op: &Op<'_>, caller: Option<ClientId>) -> Result<Code, Code> {
        let Some(slot) = self.find(op.key) else {
            return check_key(op.key).and(Err(Code::NotFound));
        };
        let below = self.check_removal(slot, op.recursive, caller)?;
        self.check_expected(op, Some(slot))?;
        self.remove_subtree(at, slot, below);
        Ok(Code::Success)
    }

    /// Answers what goes with the node: everything below it, when that may be removed too.
    fn check_removal(
        &self,
        slot: Slot,
        recursive: bool,
        caller: Option<ClientId>,
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
    fn removable_below(&self, dir: Slot, caller: Option<ClientId>) -> Result<Vec<Slot>, Code> {
        let below = self.below(dir);
        let is_any = |wanted: &dyn Fn(&Node) -> bool| below.iter().any(|slot| wanted(&self.slab[*slot]));
        if is_any(&|node| node.lock) {
            return Err(Code::IsLockNode);
        }
        if is_any(&|node| node.is_foreign(caller)) { Err(Code::NotOwner) } else { Ok(below) }
    }

    /// Removes a node and everything below it: children before their directories, so that whoever
    /// mirrors the tree can follow.
    pub(super) fn remove_subtree(&mut self, at: ApplyContext, slot: Slot, below: Vec<Slot>) {
        below.into_iter().rev().for_each(|slot| self.bury(slot));
        self.unlink(at, slot);
    }

    /// Everything below a directory.
    pub(super) fn below(&self, dir: Slot) -> Vec<Slot> {
        let mut below = Vec::new();
        let mut next = Some(dir);
        let mut visited = 0;
        while let Some(slot) = next {
            let children = self.slab[slot].children();
            below.extend(children.into_iter().flat_map(|children| children.iter()));
            next = below.get(visited).copied();
            visited += 1;
        }
        below
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
        match (self.place(op.key, false)?, &expect) {
            (Place::Free(parent), Expect::Absent) => {
                self.insert(at, parent, op.key, NewNode::permanent(Body::value(op.value)));
            }
            (Place::Taken(slot), _) if expect.matches(&self.slab[slot]) && op.has_new_value => {
                self.overwrite(at, slot, op.value);
            }
            (Place::Taken(slot), _) if expect.matches(&self.slab[slot]) => self.unlink(at, slot),
            _ => return Err(Code::CasMismatch),
        }
        Ok(Code::Success)
    }
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
