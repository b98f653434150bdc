//! What makes a node temporary: a lease. And the orders in which leases are looked up, which are
//! derived from the nodes and never stored.

use super::slab::Slot;
use super::{ApplyContext, Tree};
use dtkv_client::limits::check_ttl;
use dtkv_client::packed::lock::LockEntry;
use dtkv_client::v1::Code;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Who owns temporary nodes and locks.
pub type ClientId = [u8; 16];

/// Makes a node temporary: who owns it and how long it stays. All times are of the group clock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    /// Client id of the owner.
    pub owner: ClientId,
    /// How long it lasts, in ms.
    pub ttl_ms: u64,
    /// When it began, in ms.
    pub start_ms: u64,
    /// Index of the operation that began or renewed it.
    pub ttl_index: u64,
}

impl Lease {
    /// A lease that begins with this entry.
    ///
    /// # Errors
    /// `CLIENT_REQ_ERROR` when nobody would own it, `INVALID_TTL`.
    pub(super) fn begin(at: ApplyContext, owner: Option<ClientId>, ttl_ms: u64) -> Result<Lease, Code> {
        let owner = owner.ok_or(Code::ClientReqError)?;
        check_ttl(ttl_ms)?;
        Ok(Lease { owner, ttl_ms, start_ms: at.clock_ms, ttl_index: at.index })
    }

    /// When it ends, in ms.
    pub fn deadline_ms(&self) -> u64 {
        self.start_ms.saturating_add(self.ttl_ms)
    }

    /// Whether its time is over. The clock counts whole milliseconds, and the lease began somewhere
    /// within one: only in the one behind the deadline nothing of the TTL is left for sure.
    pub fn is_over(&self, clock_ms: u64) -> bool {
        clock_ms > self.deadline_ms()
    }

    /// What is left of it, in ms.
    pub fn remaining_ms(&self, clock_ms: u64) -> u64 {
        self.deadline_ms().saturating_sub(clock_ms)
    }
}

/// A node whose time is over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Due {
    /// The node.
    pub key: Arc<[u8]>,
    /// Index of the operation that began or renewed its lease.
    pub ttl_index: u64,
    /// The last millisecond of its lease, on the group clock.
    pub deadline_ms: u64,
}

/// The orders of the leases.
#[derive(Default)]
pub(super) struct Leases {
    deadlines: BTreeSet<(u64, Slot)>,
    owned: BTreeMap<ClientId, BTreeMap<Arc<[u8]>, Slot>>,
    /// Lock directory, ticket, entry.
    pub(super) queues: BTreeSet<(Slot, u64, Slot)>,
}

impl Leases {
    /// What a client owns, by key.
    pub(super) fn owned(&self, owner: &ClientId) -> Option<&BTreeMap<Arc<[u8]>, Slot>> {
        self.owned.get(owner)
    }
}

impl Tree {
    /// The last millisecond, on the group clock, of the node whose time is over first.
    pub fn next_deadline(&self) -> Option<u64> {
        self.leases.deadlines.first().map(|(deadline, _)| *deadline)
    }

    /// How many nodes have a lease.
    pub fn lease_count(&self) -> u64 {
        self.leases.deadlines.len() as u64
    }

    /// At most `limit` nodes whose time is over, those that waited longest first.
    pub fn due(&self, clock_ms: u64, limit: usize) -> Vec<Due> {
        let is_over = |(deadline, _): &&(u64, Slot)| *deadline < clock_ms;
        let due = self.leases.deadlines.iter().take_while(is_over).take(limit);
        due.filter_map(|(deadline_ms, slot)| {
            let node = &self.slab[*slot];
            let ttl_index = node.lease.as_ref()?.ttl_index;
            Some(Due { key: Arc::clone(&node.key), ttl_index, deadline_ms: *deadline_ms })
        })
        .collect()
    }

    /// Takes the lease of a node that was made or loaded into the orders.
    pub(super) fn enroll(&mut self, slot: Slot) {
        let node = &self.slab[slot];
        let Some(lease) = &node.lease else { return };
        self.leases.deadlines.insert((lease.deadline_ms(), slot));
        self.leases.owned.entry(lease.owner).or_default().insert(Arc::clone(&node.key), slot);
        if let Some(entry) = node.lock_entry() {
            self.leases.queues.insert((node.parent, entry.ticket, slot));
        }
    }

    /// Takes the lease of a node that goes away out of the orders.
    pub(super) fn withdraw(&mut self, slot: Slot) {
        let node = &self.slab[slot];
        let Some(lease) = &node.lease else { return };
        self.leases.deadlines.remove(&(lease.deadline_ms(), slot));
        if let Some(owned) = self.leases.owned.get_mut(&lease.owner) {
            owned.remove(&node.key);
            if owned.is_empty() {
                self.leases.owned.remove(&lease.owner);
            }
        }
        if let Some(entry) = node.lock_entry() {
            self.leases.queues.remove(&(node.parent, entry.ticket, slot));
        }
    }

    /// Gives a temporary node a new lease of the same owner. Every renewal goes through here; it
    /// moves neither index nor time.
    pub(super) fn set_lease(&mut self, slot: Slot, lease: Lease) {
        let deadline = lease.deadline_ms();
        if let Some(current) = &mut self.change(slot).lease {
            let before = current.deadline_ms();
            **current = lease;
            self.leases.deadlines.remove(&(before, slot));
            self.leases.deadlines.insert((deadline, slot));
        }
    }

    /// Begins a node's lease anew, as long as it is.
    pub(super) fn renew(&mut self, at: ApplyContext, slot: Slot) {
        if let Some(lease) = &self.slab[slot].lease {
            let renewed = Lease { start_ms: at.clock_ms, ttl_index: at.index, ..(**lease).clone() };
            self.set_lease(slot, renewed);
        }
    }
}

impl super::node::Node {
    /// What an entry of a lock holds.
    pub(super) fn lock_entry(&self) -> Option<LockEntry> {
        match &self.body {
            super::node::Body::Value(value) if self.lock => LockEntry::read(value),
            _ => None,
        }
    }
}
