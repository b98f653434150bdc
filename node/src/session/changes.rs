//! What waits to be written behind: each changed session once.
//!
//! As with the tree, the set is fixed in an instant and handed out in pieces; a session of the fixed
//! set that is about to change is first put aside as it was.

use super::{ClientId, Sessions, record};
use std::collections::BTreeSet;

/// Records to write and clients whose records to delete.
#[derive(Debug, Default)]
pub struct Changed {
    /// Each client once, as it was when the set was fixed.
    pub changed: Vec<(ClientId, Vec<u8>)>,
    /// Clients that are not known any more, or never were on disk.
    pub removed: Vec<ClientId>,
}

impl Changed {
    /// True when there is nothing to write.
    pub fn is_empty(&self) -> bool {
        self.changed.is_empty() && self.removed.is_empty()
    }

    fn push(&mut self, id: ClientId, record: Option<Vec<u8>>) {
        match record {
            Some(record) => self.changed.push((id, record)),
            None => self.removed.push(id),
        }
    }
}

#[derive(Default)]
pub(super) struct Changes {
    /// Number of times that the set was fixed, from 1; a client of this generation is in `dirty`.
    fixed: u64,
    dirty: BTreeSet<ClientId>,
    frozen: BTreeSet<ClientId>,
    /// Frozen sessions as they were, put aside because they changed.
    aside: Changed,
}

impl Changes {
    pub(super) fn generation(&self) -> u64 {
        self.fixed + 1
    }
}

impl Sessions {
    /// Fixes what [`Sessions::drain_frozen`] hands out: everything that changed since the last call,
    /// as it is now, and whatever was not drained before.
    pub fn freeze_dirty(&mut self) {
        let changes = &mut self.changes;
        // What was put aside has changed since, so it is among the dirty ones.
        changes.aside = Changed::default();
        changes.frozen.append(&mut changes.dirty);
        changes.fixed += 1;
    }

    /// Hands out at most `limit` frozen sessions and those put aside; true when none are left.
    pub fn drain_frozen(&mut self, limit: usize, into: &mut Changed) -> bool {
        into.changed.append(&mut self.changes.aside.changed);
        into.removed.append(&mut self.changes.aside.removed);
        for _ in 0..limit {
            let Some(id) = self.changes.frozen.pop_first() else { break };
            into.push(id, self.clients.get(&id).map(record::encode));
        }
        self.changes.frozen.is_empty()
    }

    /// To be called before a session changes, comes or goes.
    pub(super) fn mark_changed(&mut self, id: &ClientId) {
        let client = self.clients.get(id);
        if client.is_some_and(|client| client.generation == self.changes.generation()) {
            return;
        }
        if self.changes.frozen.remove(id) {
            self.changes.aside.push(*id, client.map(record::encode));
        }
        self.changes.dirty.insert(*id);
    }
}
