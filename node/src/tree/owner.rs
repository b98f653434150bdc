//! Everything that one client owns: renewing, dropping and listing it.

use super::list::{ListPage, PageToken, fill_page};
use super::slab::Slot;
use super::{ApplyContext, ClientId, Tree};
use dtkv_client::limits::check_key;
use dtkv_client::v1::Code;
use std::ops::Bound;

/// Which of a client's nodes to list.
#[derive(Clone, Copy, Debug, Default)]
pub struct OwnedQuery<'a> {
    /// The client.
    pub owner: ClientId,
    /// Most nodes in the page; 0 = as many as fit.
    pub limit: u32,
    /// Continuation of the page before; empty for the first page.
    pub continuation: &'a [u8],
    /// Leaves the values out.
    pub keys_only: bool,
}

impl Tree {
    /// One page of what a client owns, sorted by key: temporary nodes, and entries of locks.
    ///
    /// # Errors
    /// `INVALID_KEY` for a continuation that cannot be read or was made for another client.
    pub fn list_owned(&self, query: &OwnedQuery<'_>) -> Result<ListPage, Code> {
        let token = PageToken::owned(&query.owner);
        let after = token.read(query.continuation)?;
        after.map_or(Ok(()), |key| check_key(key).map_err(|_| Code::InvalidKey))?;
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let owned = self.leases.owned(&query.owner).into_iter();
        let nodes = owned
            .flat_map(|owned| owned.range::<[u8], _>((from, Bound::Unbounded)))
            .map(|(_, slot)| &self.slab[*slot]);
        Ok(fill_page(nodes, query.limit, query.keys_only, |last| token.write(&last.key)))
    }

    /// Begins the leases of the client's temporary nodes and held locks anew; answers how many.
    /// Whoever waits for a lock goes on waiting as long as it said.
    pub(super) fn keep_alive(&mut self, at: ApplyContext, caller: Option<ClientId>) -> Result<u32, Code> {
        let mut owned = self.owned_slots(caller)?;
        owned.retain(|slot| self.slab[*slot].lock_entry().is_none_or(|entry| entry.token != 0));
        owned.iter().for_each(|slot| self.renew(at, *slot));
        Ok(owned.len() as u32)
    }

    /// Removes everything that the client owns, in the order of the keys; answers how many nodes,
    /// a directory counting once.
    pub(super) fn drop_owner(&mut self, at: ApplyContext, caller: Option<ClientId>) -> Result<u32, Code> {
        let owned = self.owned_slots(caller)?;
        owned.iter().for_each(|slot| self.remove_leased(at, *slot));
        Ok(owned.len() as u32)
    }

    fn owned_slots(&self, caller: Option<ClientId>) -> Result<Vec<Slot>, Code> {
        let owner = caller.ok_or(Code::ClientReqError)?;
        Ok(self.leases.owned(&owner).map_or_else(Vec::new, |owned| owned.values().copied().collect()))
    }
}
