//! What the tests share.

mod events;
mod guards;
mod locks;
mod model;
mod owners;
mod paging;
mod restore;
mod steps;
mod tables;
mod temp;
mod txn;

use super::*;
use dtkv_client::limits::TTL_MS_MAX;
use dtkv_client::packed::expiry::Expired;
use dtkv_client::packed::{Kind, Op};

pub(super) const ME: [u8; 16] = [1; 16];
pub(super) const OTHER: [u8; 16] = [2; 16];

/// A tree, the index of its last entry and the group clock of the next.
pub(super) struct Fixture {
    pub(super) tree: Tree,
    pub(super) index: u64,
    pub(super) clock_ms: u64,
}

impl Fixture {
    pub(super) fn new() -> Fixture {
        Fixture { tree: Tree::new(), index: 100, clock_ms: 5_000 }
    }

    pub(super) fn apply(&mut self, op: &Op<'_>) -> Code {
        let results = self.apply_all(std::slice::from_ref(op));
        assert_eq!(results.len(), 1);
        Code::try_from(i32::from(results[0])).unwrap()
    }

    /// One entry.
    pub(super) fn apply_all(&mut self, ops: &[Op<'_>]) -> Vec<u8> {
        self.index += 1;
        let (mut packed, mut results) = (Vec::new(), Vec::new());
        ops.iter().for_each(|op| op.pack(&mut packed));
        let at = ApplyContext { clock_ms: self.clock_ms, ..context(self.index) };
        self.tree.apply(at, &packed, &mut results).unwrap();
        results
    }

    pub(super) fn put(&mut self, key: &str, value: &str) -> Code {
        self.apply(&op(Kind::Put, key, value))
    }

    pub(super) fn mkdir(&mut self, key: &str) -> Code {
        self.apply(&op(Kind::Mkdir, key, ""))
    }

    pub(super) fn remove(&mut self, key: &str) -> Code {
        self.apply(&op(Kind::Remove, key, ""))
    }

    pub(super) fn remove_all(&mut self, key: &str) -> Code {
        self.apply(&Op { recursive: true, ..op(Kind::Remove, key, "") })
    }

    pub(super) fn value(&self, key: &str) -> Option<String> {
        let value = self.tree.get(key.as_bytes()).ok()?.value()?;
        Some(String::from_utf8(value.to_vec()).unwrap())
    }

    pub(super) fn meta(&self, key: &str) -> Meta {
        self.tree.get(key.as_bytes()).unwrap_or_else(|code| panic!("{key}: {code:?}")).meta()
    }

    pub(super) fn exists(&self, key: &str) -> bool {
        self.tree.get(key.as_bytes()).is_ok()
    }

    pub(super) fn lease(&self, key: &str) -> Lease {
        let node = self.tree.get(key.as_bytes()).unwrap_or_else(|code| panic!("{key}: {code:?}"));
        node.lease().unwrap_or_else(|| panic!("{key} has no lease")).clone()
    }

    /// Expires everything whose time is over, as a leader does; answers the keys.
    pub(super) fn expire(&mut self) -> Vec<String> {
        let due = self.tree.due(self.clock_ms, usize::MAX);
        let value = expiry(&due);
        let results = self.apply_all(&[Op::new(Kind::Expire, b"", &value)]);
        assert_eq!(results[0], Code::Success as u8);
        due.iter().map(|due| String::from_utf8(due.key.to_vec()).unwrap()).collect()
    }

    /// Puts a node in as a restart does.
    pub(super) fn plant(&mut self, key: &str, dir: bool, lock: bool, owner: Option<[u8; 16]>) {
        let entry = LockEntry { hold_ms: 1, ticket: 1, token: 1 }.pack();
        let value = if lock { &entry[..] } else { b"planted" };
        let lease = Lease { owner: owner.unwrap_or_default(), ttl_ms: TTL_MS_MAX, start_ms: 1, ttl_index: 1 };
        let record = NodeRecord {
            meta: Meta::default(),
            lock,
            lease: owner.map(|_| Box::new(lease)),
            value: (!dir).then(|| Arc::from(value)),
        };
        let mut bytes = Vec::new();
        record.encode(&mut bytes);
        self.tree.load(key.as_bytes(), &bytes).unwrap();
    }
}

pub(super) fn context(index: u64) -> ApplyContext {
    ApplyContext { index, time_ms: 1_000_000 + index, clock_ms: 5_000 }
}

pub(super) fn op<'a>(kind: Kind, key: &'a str, value: &'a str) -> Op<'a> {
    Op::new(kind, key.as_bytes(), value.as_bytes())
}

pub(super) fn expiry(due: &[Due]) -> Vec<u8> {
    let mut value = Vec::new();
    due.iter().for_each(|due| Expired { ttl_index: due.ttl_index, key: &due.key }.pack(&mut value));
    value
}

pub(super) fn by<'a>(client: [u8; 16], op: Op<'a>) -> Op<'a> {
    Op { session: Some((client, 0)), ..op }
}

pub(super) fn with_ttl<'a>(ttl_ms: u64, op: Op<'a>) -> Op<'a> {
    Op { ttl_ms: Some(ttl_ms), ..op }
}
