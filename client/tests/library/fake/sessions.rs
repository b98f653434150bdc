//! What the scripted nodes remember of numbered writes.

use dtkv_client::packed::scope::Scope;
use dtkv_client::v1::Session;
use std::collections::BTreeMap;

pub enum Verdict {
    Fresh,
    Repeated(u64, Vec<u8>),
    Expired,
}

#[derive(Default)]
struct Client {
    acknowledged_below: u64,
    answers: BTreeMap<u64, (u64, Vec<u8>)>,
}

#[derive(Default)]
pub struct Sessions {
    clients: BTreeMap<(u32, [u8; 16]), Client>,
    has_forgotten: bool,
}

impl Sessions {
    pub fn begin(&mut self, group: u32, scope: &Scope) -> Verdict {
        let key = (group, scope.client_id);
        if scope.is_retry && self.has_forgotten && !self.clients.contains_key(&key) {
            return Verdict::Expired;
        }
        let client = self.clients.entry(key).or_default();
        client.acknowledged_below = client.acknowledged_below.max(scope.acknowledged_below);
        client.answers.retain(|sequence, _| *sequence >= client.acknowledged_below);
        assert!(client.answers.len() < 1024, "more unacknowledged frames than are remembered");
        match client.answers.get(&scope.sequence) {
            Some((index, results)) => Verdict::Repeated(*index, results.clone()),
            None if scope.sequence < client.acknowledged_below => Verdict::Expired,
            None => Verdict::Fresh,
        }
    }

    pub fn record(&mut self, group: u32, scope: &Scope, index: u64, results: &[u8]) {
        let client = self.clients.entry((group, scope.client_id)).or_default();
        client.answers.insert(scope.sequence, (index, results.to_vec()));
    }

    /// Forgets all clients, as if they had to make room.
    pub fn forget(&mut self) {
        self.clients.clear();
        self.has_forgotten = true;
    }

    /// How many answers are remembered.
    pub fn answers(&self) -> usize {
        self.clients.values().map(|client| client.answers.len()).sum()
    }
}

/// The packed scope of a unary write; nothing without a number.
pub fn scope_of(session: Option<&Session>, operations: usize) -> Vec<u8> {
    let mut ops = Vec::new();
    if let Some(session) = session.filter(|session| session.sequence > 0) {
        let scope = Scope {
            client_id: session.client_id.as_ref().try_into().unwrap(),
            sequence: session.sequence,
            acknowledged_below: session.acknowledged_below,
            operations: operations as u16,
            is_retry: session.retry,
        };
        ops.extend_from_slice(&scope.to_bytes());
    }
    ops
}
