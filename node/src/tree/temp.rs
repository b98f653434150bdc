//! Temporary nodes: making, renewing and expiring them.

use super::node::{Body, NewNode};
use super::place::Place;
use super::slab::Slot;
use super::{ApplyContext, ClientId, EventKind, Lease, Tree};
use dtkv_client::limits::{check_key, check_value};
use dtkv_client::packed::Op;
use dtkv_client::packed::expiry::{Expired, expired};
use dtkv_client::v1::Code;

impl Tree {
    pub(super) fn put_temp(
        &mut self,
        at: ApplyContext,
        op: &Op<'_>,
        ttl_ms: u64,
        caller: Option<ClientId>,
    ) -> Result<Code, Code> {
        let lease = Lease::begin(at, caller, ttl_ms)?;
        check_value(op.value)?;
        match self.place_temp(op.key, op.create_parents, lease.owner)? {
            Place::Taken(slot) if self.slab[slot].is_dir() => Err(Code::DirExists),
            Place::Taken(slot) => {
                self.check_expected(op, Some(slot))?;
                self.overwrite(at, slot, op.value);
                self.set_lease(slot, lease);
                Ok(Code::SuccessOverwrite)
            }
            Place::Free(above) => {
                self.check_expected(op, None)?;
                self.create(at, above, op, NewNode::temporary(Body::value(op.value), lease));
                Ok(Code::Success)
            }
        }
    }

    pub(super) fn make_temp_dir(
        &mut self,
        at: ApplyContext,
        op: &Op<'_>,
        ttl_ms: u64,
        caller: Option<ClientId>,
    ) -> Result<Code, Code> {
        let lease = Lease::begin(at, caller, ttl_ms)?;
        match self.place_temp(op.key, op.create_parents, lease.owner)? {
            Place::Taken(slot) if self.slab[slot].is_dir() => {
                self.set_lease(slot, lease);
                Ok(Code::DirExists)
            }
            Place::Taken(_) => Err(Code::ValueExists),
            Place::Free(above) => {
                self.create(at, above, op, NewNode::temporary(Body::dir(), lease));
                Ok(Code::Success)
            }
        }
    }

    pub(super) fn update_ttl(
        &mut self,
        at: ApplyContext,
        op: &Op<'_>,
        caller: Option<ClientId>,
    ) -> Result<Code, Code> {
        let ttl_ms = op.ttl_ms.ok_or(Code::ClientReqError)?;
        let lease = Lease::begin(at, caller, ttl_ms)?;
        check_key(op.key)?;
        let slot = self.find(op.key).ok_or(Code::NotFound)?;
        let node = &self.slab[slot];
        // The times of a lock's entries are the lock's affair.
        if node.lock || node.lease.is_none() {
            return Err(Code::NotTempNode);
        }
        if node.is_foreign(caller) {
            return Err(Code::NotOwner);
        }
        self.set_lease(slot, lease);
        Ok(Code::Success)
    }

    /// Removes the nodes named whose time is over; answers how many.
    pub(super) fn expire(&mut self, at: ApplyContext, op: &Op<'_>) -> Result<u32, Code> {
        let named = expired(op.value).map_err(|_| Code::ClientReqError)?;
        let mut removed = 0;
        self.removal = EventKind::Expire;
        for named in named {
            if let Some(slot) = self.find_expired(at, &named) {
                self.remove_leased(at, slot);
                removed += 1;
            }
        }
        self.removal = EventKind::Remove;
        Ok(removed)
    }

    /// The node, unless it was renewed, or made again, since its time was seen to be over.
    fn find_expired(&self, at: ApplyContext, named: &Expired<'_>) -> Option<Slot> {
        let slot = self.find(named.key)?;
        let lease = self.slab[slot].lease.as_ref()?;
        (lease.ttl_index == named.ttl_index && lease.is_over(at.clock_ms)).then_some(slot)
    }

    /// Removes a node that has a lease: an entry from its lock, a directory with all below it.
    pub(super) fn remove_leased(&mut self, at: ApplyContext, slot: Slot) {
        if self.slab[slot].lock {
            return self.leave_lock(at, slot);
        }
        // Below a temporary directory there is neither a lock nor another temporary node.
        let below = self.below(slot);
        self.remove_subtree(at, slot, below);
    }
}
