//! The tree against a naive model: one sorted map of full keys, every rule spelled out again.

use super::steps::{Action, Guess, Step, due, steps};
use super::*;
use Code::*;
use dtkv_client::packed::lock::entry_key;
use dtkv_client::packed::{pack_count_result, pack_token_result};
use proptest::prelude::*;
use std::collections::BTreeMap;

#[derive(Clone, Debug, PartialEq)]
struct Entry {
    value: Option<Vec<u8>>,
    meta: Meta,
    lock: bool,
    lease: Option<Lease>,
}

struct Model {
    nodes: BTreeMap<String, Entry>,
    counters: Counters,
}

/// What a write leaves behind.
struct Written<'a> {
    value: Option<&'a [u8]>,
    lock: bool,
    lease: Option<Lease>,
}

impl Model {
    fn new() -> Model {
        let root = Entry { value: None, meta: Meta::default(), lock: false, lease: None };
        Model { nodes: BTreeMap::from([(String::new(), root)]), counters: Counters::default() }
    }

    fn is_dir(&self, key: &str) -> bool {
        self.nodes.get(key).is_some_and(|entry| entry.value.is_none())
    }

    fn parents(key: &str) -> Vec<&str> {
        let mut parents = vec![""];
        parents.extend(key.match_indices('.').map(|(dot, _)| &key[..dot]));
        parents
    }

    fn changed(&mut self, at: ApplyContext, key: &str) {
        for parent in Model::parents(key) {
            let meta = &mut self.nodes.get_mut(parent).unwrap().meta;
            (meta.update_index, meta.update_time_ms) = (at.index, at.time_ms);
        }
    }

    fn write(&mut self, at: ApplyContext, key: &str, written: Written<'_>) {
        let new = Meta { create_index: at.index, create_time_ms: at.time_ms, ..Meta::default() };
        let created = self.nodes.get(key).map_or(new, |entry| entry.meta);
        let meta = Meta { update_index: at.index, update_time_ms: at.time_ms, ..created };
        let Written { value, lock, lease } = written;
        self.nodes.insert(key.to_owned(), Entry { value: value.map(<[u8]>::to_vec), meta, lock, lease });
        self.changed(at, key);
    }

    fn delete(&mut self, at: ApplyContext, key: &str) {
        let below = format!("{key}.");
        self.nodes.retain(|other, _| other != key && !other.starts_with(&below));
        self.changed(at, key);
    }

    fn key_is_bad(key: &str) -> bool {
        key.split('.').any(str::is_empty) || key.contains(' ')
    }

    /// Rows on the key and its parents, which all that write a key share.
    fn check_parents(&self, key: &str, create_parents: bool) -> Result<(), Code> {
        if Model::key_is_bad(key) {
            return Err(InvalidKey);
        }
        let parents = Model::parents(key);
        let parent = parents[parents.len() - 1];
        if !create_parents && !self.nodes.contains_key(parent) {
            return Err(ParentDirNotExists);
        }
        if parents.iter().any(|parent| self.nodes.contains_key(*parent) && !self.is_dir(parent)) {
            return Err(ParentNotDir);
        }
        if parents.iter().any(|parent| self.nodes.get(*parent).is_some_and(|entry| entry.lock)) {
            return Err(ParentIsLock);
        }
        Ok(())
    }

    fn is_below_temp(&self, key: &str) -> bool {
        Model::parents(key).iter().any(|parent| self.nodes.get(*parent).is_some_and(|e| e.lease.is_some()))
    }

    /// Rows on what stands at the key: of a permanent node, or of a temporary one of `lease.owner`.
    fn check_there(&self, key: &str, lease: &Option<Lease>) -> Result<(), Code> {
        if lease.is_some() && self.is_below_temp(key) {
            return Err(UnderTempDir);
        }
        let Some(entry) = self.nodes.get(key) else { return Ok(()) };
        match (&entry.lease, lease) {
            _ if entry.lock => Err(IsLockNode),
            (Some(_), None) => Err(IsTempNode),
            (None, Some(_)) => Err(NotTempNode),
            (Some(there), Some(new)) if there.owner != new.owner => Err(NotOwner),
            _ => Ok(()),
        }
    }

    fn make_parents(&mut self, at: ApplyContext, key: &str) {
        for parent in Model::parents(key) {
            if !self.nodes.contains_key(parent) {
                self.write(at, parent, Written { value: None, lock: false, lease: None });
            }
        }
    }

    fn lease(at: ApplyContext, client: Option<ClientId>, ttl_ms: u64) -> Result<Lease, Code> {
        let owner = client.ok_or(ClientReqError)?;
        if ttl_ms == 0 || ttl_ms > TTL_MS_MAX {
            return Err(InvalidTtl);
        }
        Ok(Lease { owner, ttl_ms, start_ms: at.clock_ms, ttl_index: at.index })
    }

    fn check_index(&self, key: &str, guess: &Option<Guess>) -> Result<(), Code> {
        let index = self.nodes.get(key).map_or(0, |entry| entry.meta.update_index);
        match guess {
            Some(Guess::Index(expected)) if *expected != index => Err(CasMismatch),
            _ => Ok(()),
        }
    }

    fn make(
        &mut self,
        at: ApplyContext,
        (key, value, create_parents): (&str, Option<&str>, bool),
        lease: Option<Lease>,
        guess: &Option<Guess>,
    ) -> Result<Code, Code> {
        if value == Some("") {
            return Err(InvalidValue);
        }
        self.check_parents(key, create_parents)?;
        self.check_there(key, &lease)?;
        let there = self.nodes.get(key).map(|entry| entry.value.is_none());
        match (there, value) {
            (Some(true), Some(_)) => return Err(DirExists),
            (Some(true), None) => {
                self.nodes.get_mut(key).unwrap().lease = lease;
                return Err(DirExists);
            }
            (Some(false), None) => return Err(ValueExists),
            _ => {}
        }
        self.check_index(key, guess)?;
        self.make_parents(at, key);
        self.write(at, key, Written { value: value.map(str::as_bytes), lock: false, lease });
        Ok(if there.is_some() { SuccessOverwrite } else { Success })
    }

    fn remove(
        &mut self,
        at: ApplyContext,
        (key, recursive): (&str, bool),
        client: Option<ClientId>,
        guess: &Option<Guess>,
    ) -> Result<Code, Code> {
        if Model::key_is_bad(key) {
            return Err(InvalidKey);
        }
        let entry = self.nodes.get(key).ok_or(NotFound)?;
        let is_foreign = |e: &Entry| e.lease.as_ref().is_some_and(|lease| Some(lease.owner) != client);
        if entry.lock {
            return Err(IsLockNode);
        }
        if is_foreign(entry) {
            return Err(NotOwner);
        }
        let prefix = format!("{key}.");
        let below = || self.nodes.iter().filter(|(other, _)| other.starts_with(&prefix)).map(|(_, e)| e);
        if !recursive && below().next().is_some() {
            return Err(HasChildren);
        }
        if below().any(|entry| entry.lock) {
            return Err(IsLockNode);
        }
        if below().any(is_foreign) {
            return Err(NotOwner);
        }
        self.check_index(key, guess)?;
        self.delete(at, key);
        Ok(Success)
    }

    fn compare_and_set(
        &mut self,
        at: ApplyContext,
        key: &str,
        guess: &Guess,
        new: Option<&str>,
    ) -> Result<Code, Code> {
        if Model::key_is_bad(key) {
            return Err(InvalidKey);
        }
        let current = self.nodes.get(key).cloned();
        let text = |value: &[u8]| String::from_utf8_lossy(value).into_owned();
        let guess = match (guess, &current) {
            (Guess::CurrentValue, Some(Entry { value: Some(value), .. })) => Guess::Value(text(value)),
            (Guess::CurrentIndex, Some(entry)) => Guess::Index(entry.meta.update_index),
            (Guess::CurrentValue | Guess::CurrentIndex | Guess::Index(0), _) => Guess::Absent,
            (guess, _) => guess.clone(),
        };
        let bad_guess = match &guess {
            Guess::Absent => new.is_none(),
            Guess::Value(value) => value.is_empty(),
            _ => false,
        };
        if bad_guess || new == Some("") {
            return Err(InvalidValue);
        }
        self.check_parents(key, false)?;
        self.check_there(key, &None)?;
        let matches = match (&guess, &current) {
            (Guess::Absent, None) => true,
            (Guess::Value(value), Some(entry)) => entry.value.as_deref() == Some(value.as_bytes()),
            (Guess::Index(index), Some(entry)) => entry.value.is_some() && entry.meta.update_index == *index,
            _ => false,
        };
        if !matches {
            return Err(CasMismatch);
        }
        match new {
            Some(new) => {
                self.write(at, key, Written { value: Some(new.as_bytes()), lock: false, lease: None });
            }
            None => self.delete(at, key),
        }
        Ok(Success)
    }

    fn update_ttl(
        &mut self,
        at: ApplyContext,
        key: &str,
        ttl_ms: u64,
        client: Option<ClientId>,
    ) -> Result<Code, Code> {
        let lease = Model::lease(at, client, ttl_ms)?;
        if Model::key_is_bad(key) {
            return Err(InvalidKey);
        }
        let entry = self.nodes.get_mut(key).ok_or(NotFound)?;
        match &entry.lease {
            Some(there) if !entry.lock && there.owner != lease.owner => Err(NotOwner),
            Some(_) if !entry.lock => {
                entry.lease = Some(lease);
                Ok(Success)
            }
            _ => Err(NotTempNode),
        }
    }

    // Locks

    /// The queue of a lock, its holder first.
    fn queue(&self, lock: &str) -> Vec<(String, LockEntry)> {
        let is_child = |key: &str| Model::parents(key).pop() == Some(lock);
        let entries = self.nodes.iter().filter(|(key, entry)| entry.lock && is_child(key));
        let read =
            |(key, entry): (&String, &Entry)| Some((key.clone(), LockEntry::read(entry.value.as_ref()?)?));
        let mut queue: Vec<_> = entries.filter_map(read).collect();
        queue.sort_by_key(|(_, entry)| entry.ticket);
        queue
    }

    fn token(&self, lock: &str) -> u64 {
        self.queue(lock).first().map_or(0, |(_, entry)| entry.token)
    }

    fn next_token(&mut self, at: ApplyContext) -> u64 {
        self.counters.last_token = at.index.max(self.counters.last_token + 1);
        self.counters.last_token
    }

    fn write_entry(&mut self, at: ApplyContext, key: &str, entry: LockEntry, lease: Lease) {
        self.write(at, key, Written { value: Some(&entry.pack()), lock: true, lease: Some(lease) });
    }

    fn try_lock(
        &mut self,
        at: ApplyContext,
        key: &str,
        (hold_ms, wait_ms): (u64, u64),
        client: Option<ClientId>,
    ) -> Result<(Code, u64), Code> {
        let held = Model::lease(at, client, hold_ms)?;
        if wait_ms > hold_ms {
            return Err(InvalidTtl);
        }
        self.check_parents(key, false)?;
        if self.is_below_temp(key) {
            return Err(UnderTempDir);
        }
        match self.nodes.get(key) {
            Some(entry) if !entry.lock => return Err(NotLockNode),
            Some(_) => {}
            None => self.write(at, key, Written { value: None, lock: true, lease: None }),
        }
        let own = String::from_utf8(entry_key(key.as_bytes(), &held.owner)).unwrap();
        let queue = self.queue(key);
        let place = queue.iter().position(|(name, _)| *name == own);
        if place == Some(0) {
            let entry = queue[0].1;
            self.write_entry(at, &own, LockEntry { hold_ms, ..entry }, held);
            return Ok((LockBySelf, entry.token));
        }
        if !queue.is_empty() && wait_ms == 0 {
            return Err(LockByOther);
        }
        if let Some(place) = place {
            let entry = LockEntry { hold_ms, ..queue[place].1 };
            self.write_entry(at, &own, entry, Lease { ttl_ms: wait_ms, ..held });
            return Err(LockByOther);
        }
        self.counters.last_ticket += 1;
        let ticket = self.counters.last_ticket;
        if queue.is_empty() {
            let token = self.next_token(at);
            self.write_entry(at, &own, LockEntry { hold_ms, ticket, token }, held);
            return Ok((Success, token));
        }
        self.write_entry(
            at,
            &own,
            LockEntry { hold_ms, ticket, token: 0 },
            Lease { ttl_ms: wait_ms, ..held },
        );
        Err(LockByOther)
    }

    /// The client's place in the queue.
    fn place(&self, key: &str, client: ClientId) -> Result<(usize, String), Code> {
        if Model::key_is_bad(key) {
            return Err(InvalidKey);
        }
        let entry = self.nodes.get(key).ok_or(NotFound)?;
        if !entry.lock || entry.value.is_some() {
            return Err(NotLockNode);
        }
        let own = String::from_utf8(entry_key(key.as_bytes(), &client)).unwrap();
        let place = self.queue(key).iter().position(|(name, _)| *name == own);
        place.map(|place| (place, own)).ok_or(LockByOther)
    }

    fn unlock(&mut self, at: ApplyContext, key: &str, client: Option<ClientId>) -> Result<Code, Code> {
        let (place, own) = self.place(key, client.ok_or(ClientReqError)?)?;
        self.leave(at, &own);
        if place == 0 { Ok(Success) } else { Err(LockByOther) }
    }

    fn update_lease(
        &mut self,
        at: ApplyContext,
        (key, hold_ms): (&str, u64),
        client: Option<ClientId>,
    ) -> Result<(Code, u64), Code> {
        let held = Model::lease(at, client, hold_ms)?;
        match self.place(key, held.owner)? {
            (0, own) => {
                self.nodes.get_mut(&own).unwrap().lease = Some(held);
                Ok((Success, self.token(key)))
            }
            _ => Err(LockByOther),
        }
    }

    fn leave(&mut self, at: ApplyContext, own: &str) {
        let lock = own[..own.rfind('.').unwrap()].to_owned();
        let was_holder = self.queue(&lock)[0].0 == own;
        self.delete(at, own);
        if !was_holder {
            return;
        }
        for (name, entry) in self.queue(&lock) {
            let lease = self.nodes[&name].lease.clone().unwrap();
            if at.clock_ms <= lease.start_ms + lease.ttl_ms {
                let token = self.next_token(at);
                let held =
                    Lease { ttl_ms: entry.hold_ms, start_ms: at.clock_ms, ttl_index: at.index, ..lease };
                return self.write_entry(at, &name, LockEntry { token, ..entry }, held);
            }
            self.delete(at, &name);
        }
        self.delete(at, &lock);
    }

    // Owners and expiry

    fn owned(&self, owner: ClientId) -> Vec<String> {
        let is_owned = |entry: &Entry| entry.lease.as_ref().is_some_and(|lease| lease.owner == owner);
        self.nodes.iter().filter(|(_, entry)| is_owned(entry)).map(|(key, _)| key.clone()).collect()
    }

    fn keep_alive(&mut self, at: ApplyContext, client: Option<ClientId>) -> Result<usize, Code> {
        let mut renewed = 0;
        for key in self.owned(client.ok_or(ClientReqError)?) {
            let entry = self.nodes.get_mut(&key).unwrap();
            let waits = entry.lock && LockEntry::read(entry.value.as_ref().unwrap()).unwrap().token == 0;
            let lease = entry.lease.as_mut().filter(|_| !waits);
            renewed += usize::from(lease.is_some());
            if let Some(lease) = lease {
                (lease.start_ms, lease.ttl_index) = (at.clock_ms, at.index);
            }
        }
        Ok(renewed)
    }

    fn end(&mut self, at: ApplyContext, key: &str) {
        if self.nodes[key].lock { self.leave(at, key) } else { self.delete(at, key) }
    }

    fn drop_owner(&mut self, at: ApplyContext, client: Option<ClientId>) -> Result<usize, Code> {
        let owned = self.owned(client.ok_or(ClientReqError)?);
        owned.iter().for_each(|key| self.end(at, key));
        Ok(owned.len())
    }

    /// Keys and indexes of the leases, those that are over first.
    fn due(&self, clock_ms: u64) -> Vec<(String, u64)> {
        let lease = |(key, entry): (&String, &Entry)| {
            let lease = entry.lease.as_ref()?;
            Some((lease.start_ms + lease.ttl_ms, key.clone(), lease.ttl_index))
        };
        let mut due: Vec<_> =
            self.nodes.iter().filter_map(lease).filter(|(end, ..)| clock_ms > *end).collect();
        due.sort();
        due.into_iter().map(|(_, key, ttl_index)| (key, ttl_index)).collect()
    }

    fn expire(&mut self, at: ApplyContext, named: &[(String, u64)]) -> usize {
        let mut ended = 0;
        for (key, ttl_index) in named {
            if self.due(at.clock_ms).contains(&(key.clone(), *ttl_index)) {
                self.end(at, key);
                ended += 1;
            }
        }
        ended
    }

    // Entries

    fn apply_code(&mut self, at: ApplyContext, action: &Action, client: Option<ClientId>) -> Code {
        let lease = |ttl_ms: &Option<u64>| ttl_ms.map(|ttl_ms| Model::lease(at, client, ttl_ms)).transpose();
        let result = match action {
            Action::Put { key, value, create_parents, ttl_ms, guess } => lease(ttl_ms)
                .and_then(|lease| self.make(at, (key, Some(value), *create_parents), lease, guess)),
            Action::Mkdir { key, create_parents, ttl_ms } => {
                lease(ttl_ms).and_then(|lease| self.make(at, (key, None, *create_parents), lease, &None))
            }
            Action::Remove { key, recursive, guess } => self.remove(at, (key, *recursive), client, guess),
            Action::CompareAndSet { key, guess, new } => self.compare_and_set(at, key, guess, new.as_deref()),
            Action::UpdateTtl { key, ttl_ms } => self.update_ttl(at, key, *ttl_ms, client),
            Action::Unlock { key } => self.unlock(at, key, client),
            other => panic!("{other:?} has no code for a result"),
        };
        result.unwrap_or_else(|code| code)
    }

    fn apply(&mut self, at: ApplyContext, step: &Step) -> Vec<u8> {
        self.counters.clock_ms = self.counters.clock_ms.max(at.clock_ms);
        let at = ApplyContext { clock_ms: self.counters.clock_ms, ..at };
        let shown = step.guard.as_ref().map(|(lock, is_current)| match (self.token(lock), is_current) {
            (0, _) => false,
            (token, is_current) => *is_current || token == 1,
        });
        let refused = (shown == Some(false)).then_some(Fenced);
        let mut results = Vec::new();
        let client = step.client;
        let grant = |result: Result<(Code, u64), Code>, results: &mut Vec<u8>| {
            let (code, token) = result.unwrap_or_else(|code| (code, 0));
            pack_token_result(code, token, results);
        };
        let count = |result: Result<usize, Code>, results: &mut Vec<u8>| match result {
            Ok(count) => pack_count_result(Success, count as u32, results),
            Err(code) => pack_count_result(code, 0, results),
        };
        match &step.action {
            Action::Batch(_) if refused.is_some() => results.extend([Fenced as u8, 0, 0]),
            Action::Batch(items) => {
                results.extend([0, items.len() as u8, 0]);
                results.extend(items.iter().map(|item| self.apply_code(at, item, client) as u8));
            }
            Action::TryLock { key, hold_ms, wait_ms } => {
                let result = refused.map_or(Ok(()), Err);
                grant(
                    result.and_then(|()| self.try_lock(at, key, (*hold_ms, *wait_ms), client)),
                    &mut results,
                );
            }
            Action::UpdateLease { key, hold_ms } => {
                let result = refused.map_or(Ok(()), Err);
                grant(result.and_then(|()| self.update_lease(at, (key, *hold_ms), client)), &mut results);
            }
            Action::KeepAlive => {
                let result = refused.map_or(Ok(()), Err);
                count(result.and_then(|()| self.keep_alive(at, client)), &mut results);
            }
            Action::DropOwner => {
                let result = refused.map_or(Ok(()), Err);
                count(result.and_then(|()| self.drop_owner(at, client)), &mut results);
            }
            Action::Expire => {
                let named = self.due(at.clock_ms);
                let result = refused.map_or(Ok(()), Err);
                count(result.map(|()| self.expire(at, &named)), &mut results);
            }
            Action::ExpireOne { key, is_current } => {
                let lease = self.nodes.get(key).and_then(|entry| entry.lease.as_ref());
                let ttl_index = lease.map_or(0, |lease| lease.ttl_index) + u64::from(!is_current);
                let result = refused.map_or(Ok(()), Err);
                count(result.map(|()| self.expire(at, &[(key.clone(), ttl_index)])), &mut results);
            }
            action => results.push(refused.unwrap_or_else(|| self.apply_code(at, action, client)) as u8),
        }
        results
    }

    /// All below the root, by segments.
    fn sorted(&self) -> Vec<(&str, &Entry)> {
        let mut all: Vec<_> = self.nodes.iter().filter(|(key, _)| !key.is_empty()).collect();
        all.sort_by(|(a, _), (b, _)| a.split('.').cmp(b.split('.')));
        all.into_iter().map(|(key, entry)| (key.as_str(), entry)).collect()
    }

    fn child_count(&self, key: &str) -> usize {
        self.nodes
            .keys()
            .filter(|other| !other.is_empty() && Model::parents(other).pop() == Some(key))
            .count()
    }
}

fn names(page: &ListPage) -> Vec<&str> {
    page.nodes.iter().map(|node| str::from_utf8(&node.key).unwrap()).collect()
}

fn assert_same(model: &Model, tree: &Tree) {
    let page = tree.list(&ListQuery { recursive: true, ..ListQuery::default() }).unwrap();
    assert!(page.continuation.is_empty());
    let expected = model.sorted();
    assert_eq!(names(&page), expected.iter().map(|(key, _)| *key).collect::<Vec<_>>());
    for (node, (key, entry)) in page.nodes.iter().zip(&expected) {
        assert_eq!((node.meta, node.dir), (entry.meta, entry.value.is_none()), "{key}");
        assert_eq!(node.value.as_deref(), entry.value.as_deref(), "{key}");
        assert_eq!((node.lock, &node.lease), (entry.lock, &entry.lease), "{key}");
        assert_eq!(node.child_count as usize, model.child_count(key), "{key}");
        let got = tree.get(key.as_bytes()).unwrap_or_else(|code| panic!("{key}: {code:?}"));
        assert_eq!(got.to_listed(false), *node);
    }
    assert_eq!(tree.get(b"").ok().map(|root| root.meta()), Some(model.nodes[""].meta));
    assert_eq!((tree.node_count() as usize, tree.counters()), (model.nodes.len(), model.counters));
    assert_same_leases(model, tree);
}

fn assert_same_leases(model: &Model, tree: &Tree) {
    for clock_ms in [model.counters.clock_ms, u64::MAX] {
        let due = due(tree, clock_ms).into_iter();
        let due = due.map(|due| (String::from_utf8(due.key.to_vec()).unwrap(), due.ttl_index));
        assert_eq!(due.collect::<Vec<_>>(), model.due(clock_ms));
    }
    assert_eq!(tree.lease_count() as usize, model.due(u64::MAX).len());
    for owner in [ME, OTHER, [3; 16]] {
        let page = tree.list_owned(&OwnedQuery { owner, ..OwnedQuery::default() }).unwrap();
        assert_eq!(names(&page), model.owned(owner));
    }
    for lock in ["lock", "a.lock", "a"] {
        assert_eq!(tree.lock_token(lock.as_bytes()), model.token(lock));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]

    #[test]
    fn the_tree_does_what_a_naive_model_does(steps in steps(), take_every in 1usize..20) {
        let (mut tree, mut model) = (Tree::new(), Model::new());
        for (i, step) in steps.iter().enumerate() {
            let at = step.context(i as u64 + 1);
            let mut results = Vec::new();
            tree.apply(at, &step.pack(&tree), &mut results).unwrap();
            prop_assert_eq!(results, model.apply(at, step), "step {} {:?}", i, step);
            if i % take_every == 0 {
                tree.take_dirty();
            }
            assert_same(&model, &tree);
        }
    }

    #[test]
    fn any_bytes_are_applied_without_panic(entries: Vec<Vec<u8>>) {
        let mut tree = Tree::new();
        for (i, entry) in entries.iter().enumerate() {
            let _ = tree.apply(context(i as u64), entry, &mut Vec::new());
        }
    }

    /// Operations that can be read, with arbitrary contents.
    #[test]
    fn any_operations_are_applied_without_panic(
        ops in prop::collection::vec((any::<[u8; 3]>(), "[ab.]{0,5}", "[ab]{0,2}", any::<Option<u64>>()), 0..50)
    ) {
        let (mut tree, mut packed) = (Tree::new(), Vec::new());
        for ([kind, flags, session], key, value, number) in &ops {
            let kinds = [
                Kind::Put, Kind::Remove, Kind::Mkdir, Kind::CompareAndSet, Kind::Batch, Kind::Get, Kind::UpdateTtl,
                Kind::TryLock, Kind::Unlock, Kind::UpdateLease, Kind::KeepAlive, Kind::DropOwner, Kind::Expire,
            ];
            let kind = kinds[*kind as usize % kinds.len()];
            let wait = number.unwrap_or(0).to_le_bytes();
            let value = if kind == Kind::TryLock { &wait[..] } else { value.as_bytes() };
            let op = Op {
                session: (session % 4 != 0).then_some(([session % 3; 16], 1)),
                ttl_ms: (flags % 3 != 0).then_some(number.unwrap_or(0)),
                expect_index: *number,
                expect: (flags & 1 != 0).then_some(b"a"),
                has_new_value: flags & 2 != 0,
                create_parents: flags & 4 != 0,
                recursive: flags & 8 != 0,
                guard: (flags % 17 == 0).then_some((1, b"a")),
                ..Op::new(kind, key.as_bytes(), value)
            };
            op.pack(&mut packed);
        }
        let mut results = Vec::new();
        prop_assert_eq!(tree.apply(context(1), &packed, &mut results), Ok(()));
        prop_assert!(results.len() >= ops.len());
    }
}
