//! Locks: a first-come queue of clients for each lock, see `dtkv_client::packed::lock`.
//!
//! The holder's entry lasts as long as the lock is held, a waiting one as long as its client
//! waits. Whoever leaves as the holder, in whatever way, hands the lock to the next in the same
//! entry of the log. Fencing tokens grow with every grant of the group.

use super::node::{Body, NewNode};
use super::slab::Slot;
use super::{ApplyContext, ClientId, EventKind, Lease, Tree};
use dtkv_client::limits::{check_lock_key, check_lock_times};
use dtkv_client::packed::Op;
use dtkv_client::packed::lock::{LockEntry, entry_key};
use dtkv_client::v1::Code;

/// The code, and the fencing token of the grant that the caller holds; 0 when it holds none.
pub(super) type Grant = (Code, u64);

impl Tree {
    /// The fencing token of a lock's holder; 0 when it is free, or no lock.
    pub fn lock_token(&self, lock: &[u8]) -> u64 {
        let holder = self.find(lock).and_then(|lock| self.holder(lock));
        holder.and_then(|slot| self.slab[slot].lock_entry()).map_or(0, |entry| entry.token)
    }

    /// Whether a write with this guard may go through.
    pub(super) fn passes(&self, (token, lock): (u64, &[u8])) -> bool {
        token != 0 && self.lock_token(lock) == token
    }

    fn holder(&self, lock: Slot) -> Option<Slot> {
        let from = (lock, 0, Slot(0));
        self.leases.queues.range(from..).next().filter(|(of, _, _)| *of == lock).map(|(_, _, slot)| *slot)
    }

    pub(super) fn try_lock(
        &mut self,
        at: ApplyContext,
        op: &Op<'_>,
        caller: Option<ClientId>,
    ) -> Result<Grant, Code> {
        let (hold_ms, wait_ms) = lock_times(op)?;
        let held = Lease::begin(at, caller, hold_ms)?;
        check_lock_times(hold_ms, wait_ms)?;
        let name = entry_key(op.key, &held.owner);
        let lock = match self.lock_place(op.key)? {
            Ok(lock) => lock,
            Err(parent) => self.insert(at, parent, op.key, NewNode::lock(Body::dir(), None)),
        };
        let own = self.find(&name).and_then(|slot| Some((slot, self.slab[slot].lock_entry()?)));
        match (self.holder(lock), own) {
            (None, _) => Ok((Code::Success, self.enter_free_lock(at, lock, &name, held))),
            (Some(holder), Some((slot, entry))) if holder == slot => {
                // The grant stays the same, its time begins anew.
                self.replace_entry(at, slot, LockEntry { hold_ms, ..entry }, held);
                Ok((Code::LockBySelf, entry.token))
            }
            (Some(_), _) if wait_ms == 0 => Err(Code::LockByOther),
            (Some(_), own) => {
                let waiting = Lease { ttl_ms: wait_ms, ..held };
                match own {
                    Some((slot, entry)) => {
                        self.replace_entry(at, slot, LockEntry { hold_ms, ..entry }, waiting);
                    }
                    None => {
                        let entry = LockEntry { hold_ms, ticket: self.next_ticket(), token: 0 };
                        self.insert_entry(at, lock, &name, entry, waiting);
                    }
                }
                Err(Code::LockByOther)
            }
        }
    }

    /// The lock, or the directory that it would stand in.
    fn lock_place(&self, key: &[u8]) -> Result<Result<Slot, Slot>, Code> {
        check_lock_key(key)?;
        let found = self.find(key);
        let parent = match found {
            Some(slot) => self.check_parent(self.slab[slot].parent)?,
            None => self.find_parent(key)?,
        };
        if self.is_temp_or_below(parent) {
            return Err(Code::UnderTempDir);
        }
        match found {
            Some(slot) if !self.slab[slot].lock => Err(Code::NotLockNode),
            Some(slot) => Ok(Ok(slot)),
            None => Ok(Err(parent)),
        }
    }

    fn enter_free_lock(&mut self, at: ApplyContext, lock: Slot, name: &[u8], held: Lease) -> u64 {
        let token = self.next_token(at);
        let entry = LockEntry { hold_ms: held.ttl_ms, ticket: self.next_ticket(), token };
        self.insert_entry(at, lock, name, entry, held);
        token
    }

    fn insert_entry(&mut self, at: ApplyContext, lock: Slot, name: &[u8], entry: LockEntry, lease: Lease) {
        self.insert(at, lock, name, NewNode::lock(Body::value(&entry.pack()), Some(lease)));
    }

    /// The ticket stays: it is what the queue is ordered by.
    fn replace_entry(&mut self, at: ApplyContext, slot: Slot, entry: LockEntry, lease: Lease) {
        self.overwrite(at, slot, &entry.pack());
        self.set_lease(slot, lease);
    }

    pub(super) fn unlock(
        &mut self,
        at: ApplyContext,
        op: &Op<'_>,
        caller: Option<ClientId>,
    ) -> Result<Code, Code> {
        let (lock, own) = self.find_entry(op.key, caller.ok_or(Code::ClientReqError)?)?;
        let own = own.ok_or(Code::LockByOther)?;
        let is_holder = self.holder(lock) == Some(own);
        self.leave_lock(at, own);
        if is_holder { Ok(Code::Success) } else { Err(Code::LockByOther) }
    }

    pub(super) fn update_lease(
        &mut self,
        at: ApplyContext,
        op: &Op<'_>,
        caller: Option<ClientId>,
    ) -> Result<Grant, Code> {
        let held = Lease::begin(at, caller, op.ttl_ms.ok_or(Code::ClientReqError)?)?;
        let (lock, own) = self.find_entry(op.key, held.owner)?;
        let holder = self.holder(lock).filter(|holder| Some(*holder) == own);
        let holder = holder.ok_or(Code::LockByOther)?;
        self.set_lease(holder, held);
        Ok((Code::Success, self.lock_token(op.key)))
    }

    /// The lock, and the client's entry in it.
    fn find_entry(&self, key: &[u8], client: ClientId) -> Result<(Slot, Option<Slot>), Code> {
        check_lock_key(key)?;
        let lock = self.find(key).ok_or(Code::NotFound)?;
        let node = &self.slab[lock];
        if !node.lock || !node.is_dir() {
            return Err(Code::NotLockNode);
        }
        Ok((lock, self.find(&entry_key(key, &client))))
    }

    /// Removes an entry. If it was the holder's, the lock goes to the next, or away with the last.
    pub(super) fn leave_lock(&mut self, at: ApplyContext, entry: Slot) {
        let lock = self.slab[entry].parent;
        let was_holder = self.holder(lock) == Some(entry);
        self.unlink(at, entry);
        if was_holder {
            self.hand_over(at, lock);
        }
    }

    /// Grants a lock that nobody holds to the next who still waits.
    fn hand_over(&mut self, at: ApplyContext, lock: Slot) {
        while let Some(next) = self.holder(lock) {
            if self.slab[next].lease.as_ref().is_some_and(|lease| !lease.is_over(at.clock_ms)) {
                return self.grant(at, next);
            }
            // Its client has given up; granted, the lock would be idle for a whole hold.
            let told = std::mem::replace(&mut self.removal, EventKind::Expire);
            self.unlink(at, next);
            self.removal = told;
        }
        self.unlink(at, lock);
    }

    fn grant(&mut self, at: ApplyContext, slot: Slot) {
        let node = &self.slab[slot];
        let (Some(entry), Some(lease)) = (node.lock_entry(), &node.lease) else { return };
        let owner = lease.owner;
        let token = self.next_token(at);
        let held = Lease { owner, ttl_ms: entry.hold_ms, start_ms: at.clock_ms, ttl_index: at.index };
        self.replace_entry(at, slot, LockEntry { token, ..entry }, held);
    }

    /// Grows with every grant, several in one log entry included.
    fn next_token(&mut self, at: ApplyContext) -> u64 {
        self.counters.last_token = at.index.max(self.counters.last_token + 1);
        self.counters.last_token
    }

    fn next_ticket(&mut self) -> u64 {
        self.counters.last_ticket += 1;
        self.counters.last_ticket
    }
}

/// How long a try-lock holds and waits.
fn lock_times(op: &Op<'_>) -> Result<(u64, u64), Code> {
    let wait_ms = op.value.try_into().map(u64::from_le_bytes).map_err(|_| Code::ClientReqError)?;
    Ok((op.ttl_ms.ok_or(Code::ClientReqError)?, wait_ms))
}
