//! Exactly once: what a group remembers of its clients' writes.
//!
//! A client numbers its frames. The table keeps, for each client, the answers that the client has
//! not acknowledged yet; a frame that comes again gets its first answer and is not applied again. A
//! frame of which the table cannot tell any more whether it was applied is refused, never applied on
//! suspicion.
//!
//! The table is bounded in clients, in answers and in bytes, and decides only by what it is given:
//! indexes, the group's clock and the scopes. So it is the same on every replica.
//!
//! | the frame's sequence | answer |
//! |---|---|
//! | acknowledged | expired |
//! | remembered | the first one |
//! | below an answer that had to make room | expired |
//! | of a client that is not known, sent before, while a session that was forgotten for want of room could still be this client's | expired |
//! | any other | it is applied |
//!
//! A session is forgotten for want of room, the least recently used first, or because its client
//! wrote nothing for [`Bounds::idle_ms`]. A frame must not be sent again after that time: then a
//! client that idled so long needs no trace.

mod changes;
mod client;
mod record;
#[cfg(test)]
mod tests;

pub use changes::Changed;
pub use record::BadSession;

use changes::Changes;
use client::Client;
use dtkv_client::limits;
use dtkv_client::packed::scope::Scope;
use std::collections::{BTreeMap, HashMap};

/// A client.
pub type ClientId = [u8; 16];

/// How much is remembered.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Clients.
    pub clients: usize,
    /// Answers of one client.
    pub answers: usize,
    /// Bytes of one client's answers.
    pub client_bytes: usize,
    /// Bytes of everything.
    pub bytes: usize,
    /// A client that writes nothing for so long is forgotten, in ms of the group's clock.
    pub idle_ms: u64,
}

impl Default for Bounds {
    fn default() -> Bounds {
        Bounds {
            clients: limits::SESSIONS_MAX,
            answers: limits::SESSION_ANSWERS_MAX,
            client_bytes: limits::SESSION_BYTES_MAX,
            bytes: limits::SESSIONS_BYTES_MAX,
            idle_ms: limits::SESSION_IDLE_MS,
        }
    }
}

/// Where in the log an entry stands, and the group's clock there in ms; both never go back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Moment {
    pub index: u64,
    pub clock_ms: u64,
}

/// What to do with the operations of a scope.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict<'a> {
    /// They have not been applied: apply them, then [`Sessions::record`].
    Fresh,
    /// They were applied at this index, with these results.
    Repeated(u64, &'a [u8]),
    /// Nobody knows any more whether they were applied; refuse them.
    Expired,
}

/// Idle sessions that are forgotten with one scope at most: many that end together must not stop
/// the group.
const FORGOTTEN_AT_ONCE: usize = 16;

/// The sessions of one group.
pub struct Sessions {
    bounds: Bounds,
    clients: HashMap<ClientId, Client>,
    /// Index and client of the last use, least recent first, with the clock there.
    uses: BTreeMap<(u64, ClientId), u64>,
    bytes: usize,
    /// Until the clock is here, a client that is not known may be one that had to make room.
    suspect_until_ms: u64,
    changes: Changes,
}

impl Sessions {
    /// An empty table.
    pub fn new(bounds: Bounds) -> Sessions {
        Sessions {
            bounds,
            clients: HashMap::new(),
            uses: BTreeMap::new(),
            bytes: 0,
            suspect_until_ms: 0,
            changes: Changes::default(),
        }
    }

    /// Decides what happens to the operations of a scope.
    pub fn begin(&mut self, at: Moment, scope: &Scope) -> Verdict<'_> {
        self.forget_idle(at);
        let is_suspect = at.clock_ms < self.suspect_until_ms;
        if !self.clients.contains_key(&scope.client_id) && scope.is_retry && is_suspect {
            return Verdict::Expired;
        }
        self.mark_changed(&scope.client_id);
        let generation = self.changes.generation();
        let client = self.clients.entry(scope.client_id).or_insert_with(|| {
            self.bytes += client::OVERHEAD_BYTES;
            // An earlier session of this client may have been forgotten, with answers below this one.
            Client::new(at, if is_suspect { scope.sequence } else { 0 })
        });
        client.generation = generation;
        if client.used != at {
            self.uses.remove(&(client.used.index, scope.client_id));
            client.used = at;
        }
        self.uses.insert((at.index, scope.client_id), at.clock_ms);
        self.bytes -= client.acknowledge(scope.acknowledged_below);
        client.verdict(scope)
    }

    /// Remembers the results of operations that were [`Verdict::Fresh`].
    pub fn record(&mut self, at: Moment, scope: &Scope, results: &[u8]) {
        let Some(client) = self.clients.get_mut(&scope.client_id) else { return };
        let before = client.bytes();
        client.remember(scope.sequence, at.index, results, &self.bounds);
        self.bytes = self.bytes - before + client.bytes();
        self.make_room();
    }

    fn make_room(&mut self) {
        while self.clients.len() > self.bounds.clients || self.bytes > self.bounds.bytes {
            let Some(((_, id), clock_ms)) = self.uses.pop_first() else { return };
            self.suspect_until_ms = self.suspect_until_ms.max(clock_ms + self.bounds.idle_ms);
            self.forget(&id);
        }
    }

    fn forget_idle(&mut self, at: Moment) {
        for _ in 0..FORGOTTEN_AT_ONCE {
            let Some(first) = self.uses.first_entry() else { return };
            if first.get() + self.bounds.idle_ms > at.clock_ms {
                return;
            }
            let (_, id) = first.remove_entry().0;
            self.forget(&id);
        }
    }

    fn forget(&mut self, id: &ClientId) {
        self.mark_changed(id);
        if let Some(client) = self.clients.remove(id) {
            self.bytes -= client.bytes();
        }
    }

    /// How many clients are known.
    pub fn len(&self) -> usize {
        self.clients.len()
    }

    /// Whether no client is known.
    pub fn is_empty(&self) -> bool {
        self.clients.is_empty()
    }

    /// Approximate heap bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes as u64
    }

    /// Until the group's clock is here, in ms, a client that is not known may be one that was
    /// forgotten for want of room. To be kept with the sessions' records.
    pub fn suspect_until_ms(&self) -> u64 {
        self.suspect_until_ms
    }

    /// Restores what [`Sessions::suspect_until_ms`] said.
    pub fn set_suspect_until_ms(&mut self, clock_ms: u64) {
        self.suspect_until_ms = clock_ms;
    }

    /// Every client with its record, sorted by client.
    pub fn records(&self) -> impl Iterator<Item = (ClientId, Vec<u8>)> {
        let mut clients: Vec<_> = self.clients.iter().collect();
        clients.sort_by_key(|(id, _)| **id);
        clients.into_iter().map(|(id, client)| (*id, record::encode(client)))
    }

    /// Restores one session.
    ///
    /// # Errors
    /// When the record is damaged or there already.
    pub fn load(&mut self, id: ClientId, record: &[u8]) -> Result<(), BadSession> {
        let client = record::decode(record).map_err(|what| BadSession { client: id, what })?;
        if self.clients.contains_key(&id) {
            return Err(BadSession { client: id, what: "it is there already" });
        }
        self.bytes += client.bytes();
        self.uses.insert((client.used.index, id), client.used.clock_ms);
        self.clients.insert(id, client);
        Ok(())
    }
}
