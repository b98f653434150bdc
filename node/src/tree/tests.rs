//! What the tests share.

mod events;
mod model;
mod paging;
mod restore;
mod steps;
mod tables;

use super::*;
use dtkv_client::packed::{Kind, Op};

pub(super) const ME: [u8; 16] = [1; 16];
pub(super) const OTHER: [u8; 16] = [2; 16];

/// A tree and the index of its last entry.
pub(super) struct Fixture {
    pub(super) tree: Tree,
    pub(super) index: u64,
}

impl Fixture {
    pub(super) fn new() -> Fixture {
        Fixture { tree: Tree::new(), index: 100 }
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
        self.tree.apply(context(self.index), &packed, &mut results).unwrap();
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

    /// Puts a node in that no operation makes yet.
    pub(super) fn plant(&mut self, key: &str, dir: bool, lock: bool, owner: Option<[u8; 16]>) {
        let record = NodeRecord {
            meta: Meta::default(),
            lock,
            lease: owner.map(|owner| Box::new(Lease { owner, deadline_ms: u64::MAX })),
            value: (!dir).then(|| Arc::from(&b"planted"[..])),
        };
        let mut bytes = Vec::new();
        record.encode(&mut bytes);
        self.tree.load(key.as_bytes(), &bytes).unwrap();
    }
}

pub(super) fn context(index: u64) -> ApplyContext {
    ApplyContext { index, time_ms: 1_000_000 + index }
}

pub(super) fn op<'a>(kind: Kind, key: &'a str, value: &'a str) -> Op<'a> {
    Op::new(kind, key.as_bytes(), value.as_bytes())
}
