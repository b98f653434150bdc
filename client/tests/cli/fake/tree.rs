//! A tree without any of the finer rules.

use super::owners::Owners;
use dtkv_client::packed::scope::Scope;
use dtkv_client::packed::txn::{Compare, Relation, Target, Txn, TxnResult};
use dtkv_client::packed::{Kind, Op, PackedNode, ops, pack_batch_result, pack_refusal};
use dtkv_client::v1::{Code, Node};
use std::collections::BTreeMap;

/// Wall clock of every change.
const TIME_MS: u64 = 1_709_210_096_007;

#[derive(Clone)]
struct Entry {
    /// None = directory.
    value: Option<Vec<u8>>,
    create_index: u64,
    update_index: u64,
}

#[derive(Default)]
pub struct Tree {
    pub index: u64,
    /// Its group does not matter.
    pub owners: Owners,
    entries: BTreeMap<Vec<u8>, Entry>,
}

fn parent(key: &[u8]) -> &[u8] {
    key.iter().rposition(|byte| *byte == b'.').map_or(b"", |dot| &key[..dot])
}

impl Tree {
    fn children<'a>(&'a self, key: &'a [u8]) -> impl Iterator<Item = &'a Vec<u8>> {
        self.entries.keys().filter(move |child| parent(child) == key)
    }

    fn check_parent(&mut self, key: &[u8], create: bool) -> Result<(), Code> {
        let parent = parent(key).to_vec();
        match self.entries.get(&parent) {
            _ if parent.is_empty() => Ok(()),
            Some(Entry { value: None, .. }) => Ok(()),
            Some(_) => Err(Code::ParentNotDir),
            None if create => self.make(&parent, None, true).map(drop),
            None => Err(Code::ParentDirNotExists),
        }
    }

    fn make(&mut self, key: &[u8], value: Option<&[u8]>, create: bool) -> Result<Code, Code> {
        self.check_parent(key, create)?;
        let index = self.index;
        let old = self.entries.get(key);
        let create_index = old.map_or(index, |entry| entry.create_index);
        let code = if old.is_some() { Code::SuccessOverwrite } else { Code::Success };
        let entry = Entry { value: value.map(<[u8]>::to_vec), create_index, update_index: index };
        self.entries.insert(key.to_vec(), entry);
        Ok(code)
    }

    fn is_dir(&self, key: &[u8]) -> Option<bool> {
        self.entries.get(key).map(|entry| entry.value.is_none())
    }

    fn remove(&mut self, op: &Op<'_>) -> Result<Code, Code> {
        self.is_dir(op.key).ok_or(Code::NotFound)?;
        if self.children(op.key).next().is_some() {
            if !op.recursive {
                return Err(Code::HasChildren);
            }
            let below = [op.key, b"."].concat();
            self.entries.retain(|key, _| !key.starts_with(&below));
        }
        self.entries.remove(op.key);
        Ok(Code::Success)
    }

    fn compare_and_set(&mut self, op: &Op<'_>) -> Result<Code, Code> {
        let entry = self.entries.get(op.key);
        let is_expected = match (op.expect_index, op.expect) {
            (Some(index), _) => entry.map_or(0, |entry| entry.update_index) == index,
            (None, expect) => entry.and_then(|entry| entry.value.as_deref()) == expect,
        };
        match (is_expected, op.has_new_value) {
            (false, _) => Err(Code::CasMismatch),
            (true, true) => self.make(op.key, Some(op.value), false).map(|_| Code::Success),
            (true, false) => self.remove(op),
        }
    }

    fn is_expected(&self, op: &Op<'_>) -> bool {
        let index = self.entries.get(op.key).map_or(0, |entry| entry.update_index);
        op.expect_index.is_none_or(|expected| expected == index)
    }

    fn change(&mut self, op: &Op<'_>) -> Code {
        let done = match op.kind {
            Kind::Put | Kind::Remove if !self.is_expected(op) => Err(Code::CasMismatch),
            Kind::Put if self.is_dir(op.key) == Some(true) => Err(Code::DirExists),
            Kind::Put => self.make(op.key, Some(op.value), op.create_parents),
            Kind::Mkdir => match self.is_dir(op.key) {
                Some(true) => Err(Code::DirExists),
                Some(false) => Err(Code::ValueExists),
                None => self.make(op.key, None, op.create_parents),
            },
            Kind::Remove => self.remove(op),
            Kind::CompareAndSet => self.compare_and_set(op),
            _ => Err(Code::ClientReqError),
        };
        done.unwrap_or_else(|code| code)
    }

    /// Applies packed operations as one entry; a scope in front says who they come from.
    pub fn apply(&mut self, packed: &[u8], out: &mut Vec<u8>) {
        self.index += 1;
        let mut client = None;
        for op in ops(packed) {
            let op = op.unwrap();
            if let Some(scope) = Scope::read(&op) {
                client = Some(scope.client_id);
            } else {
                let client = op.session.map(|(client, _)| client).or(client);
                self.apply_one(client, &op, out);
            }
        }
    }

    fn apply_one(&mut self, client: Option<[u8; 16]>, op: &Op<'_>, out: &mut Vec<u8>) {
        let is_done = self.owners.apply(0, self.index, client, op, out);
        // Nobody watches here.
        drop(self.owners.take_granted());
        if is_done {
            return;
        }
        if op.guard.is_some_and(|(token, lock)| self.owners.token(0, lock) != token) {
            return pack_refusal(op.kind, Code::Fenced, out);
        }
        match op.kind {
            Kind::Batch => {
                let codes: Vec<u8> = ops(op.value).map(|op| self.change(&op.unwrap()) as u8).collect();
                pack_batch_result(Code::Success, &codes, out);
            }
            Kind::Get => self.read_one(op.key, out),
            Kind::Txn => self.apply_txn(client, &Txn::read(op.value).unwrap(), out),
            _ => out.push(self.change(op) as u8),
        }
    }

    /// Only equality, and without a way back.
    fn apply_txn(&mut self, client: Option<[u8; 16]>, txn: &Txn<'_>, out: &mut Vec<u8>) {
        let holds = |compare: &Compare<'_>| {
            let entry = self.entries.get(compare.key);
            let is_equal = match compare.target {
                Target::Value => entry.and_then(|entry| entry.value.as_deref()) == Some(compare.operand),
                Target::UpdateIndex => compare.number() == Some(entry.map_or(0, |entry| entry.update_index)),
                _ => compare.number() == Some(entry.map_or(0, |entry| entry.create_index)),
            };
            is_equal == (compare.relation == Relation::Equal)
        };
        let succeeded = txn.compares.iter().all(holds);
        let mut results = Vec::new();
        txn.branch(succeeded).for_each(|op| self.apply_one(client, &op.unwrap(), &mut results));
        TxnResult { code: Code::Success, succeeded, failed_op: None, results: &results }.pack(out);
    }

    /// Answers packed gets.
    pub fn read(&mut self, packed: &[u8], out: &mut Vec<u8>) {
        for op in ops(packed) {
            let op = op.unwrap();
            if !self.owners.apply(0, self.index, None, &op, out) {
                self.read_one(op.key, out);
            }
        }
    }

    fn read_one(&self, key: &[u8], out: &mut Vec<u8>) {
        match self.node(key) {
            None => out.push(Code::NotFound as u8),
            Some(node) => PackedNode {
                dir: node.dir,
                create_index: node.create_index,
                create_time_ms: node.create_time_ms,
                update_index: node.update_index,
                update_time_ms: node.update_time_ms,
                child_count: node.child_count,
                value: node.value.as_deref().unwrap_or_default(),
                ..PackedNode::default()
            }
            .pack(out),
        }
    }

    pub fn node(&self, key: &[u8]) -> Option<Node> {
        let root = Entry { value: None, create_index: 0, update_index: self.index };
        let entry = if key.is_empty() { Some(&root) } else { self.entries.get(key) }?;
        Some(Node {
            key: key.to_vec().into(),
            value: entry.value.clone().map(Into::into),
            create_index: entry.create_index,
            create_time_ms: TIME_MS,
            update_index: entry.update_index,
            update_time_ms: TIME_MS,
            dir: entry.value.is_none(),
            child_count: self.children(key).count() as u32,
            ..Node::default()
        })
    }

    /// One page of a directory; `after` is the last key of the page before.
    pub fn list(
        &self,
        key: &[u8],
        recursive: bool,
        after: &[u8],
        limit: usize,
    ) -> Result<(Vec<Node>, bool), Code> {
        match self.node(key) {
            None => return Err(Code::NotFound),
            Some(node) if !node.dir => return Err(Code::ParentNotDir),
            Some(_) => {}
        }
        let below = if key.is_empty() { Vec::new() } else { [key, b"."].concat() };
        let is_listed = |child: &&Vec<u8>| child.starts_with(&below) && (recursive || parent(child) == key);
        let rest: Vec<&Vec<u8>> =
            self.entries.keys().filter(is_listed).filter(|child| child.as_slice() > after).collect();
        let page = rest.iter().take(limit).filter_map(|key| self.node(key)).collect();
        Ok((page, rest.len() > limit))
    }

    /// With the root.
    pub fn node_count(&self) -> u64 {
        self.entries.len() as u64 + 1
    }
}
