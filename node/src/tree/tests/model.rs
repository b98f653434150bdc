//! The tree against a naive model: one sorted map of full keys, every rule spelled out again.

use super::steps::{Guess, Step, steps};
use super::*;
use Code::*;
use proptest::prelude::*;
use std::collections::BTreeMap;

#[derive(Clone, Debug, PartialEq)]
struct Entry {
    value: Option<String>,
    meta: Meta,
}

struct Model(BTreeMap<String, Entry>);

impl Model {
    fn new() -> Model {
        Model(BTreeMap::from([(String::new(), Entry { value: None, meta: Meta::default() })]))
    }

    fn is_dir(&self, key: &str) -> bool {
        self.0.get(key).is_some_and(|entry| entry.value.is_none())
    }

    fn parents(key: &str) -> Vec<&str> {
        let mut parents = vec![""];
        parents.extend(key.match_indices('.').map(|(dot, _)| &key[..dot]));
        parents
    }

    fn changed(&mut self, at: ApplyContext, key: &str) {
        for parent in Model::parents(key) {
            let meta = &mut self.0.get_mut(parent).unwrap().meta;
            (meta.update_index, meta.update_time_ms) = (at.index, at.time_ms);
        }
    }

    fn write(&mut self, at: ApplyContext, key: &str, value: Option<&str>) {
        let new = Meta { create_index: at.index, create_time_ms: at.time_ms, ..Meta::default() };
        let entry = self.0.entry(key.to_owned()).or_insert(Entry { value: None, meta: new });
        entry.value = value.map(str::to_owned);
        (entry.meta.update_index, entry.meta.update_time_ms) = (at.index, at.time_ms);
        self.changed(at, key);
    }

    fn key_is_bad(key: &str) -> bool {
        key.split('.').any(str::is_empty) || key.contains(' ')
    }

    /// Rows that put, mkdir and compare-and-set share.
    fn check_place(&mut self, at: ApplyContext, key: &str, create_parents: bool) -> Result<(), Code> {
        if Model::key_is_bad(key) {
            return Err(InvalidKey);
        }
        let parents = Model::parents(key);
        let parent = parents[parents.len() - 1];
        if !create_parents && !self.0.contains_key(parent) {
            return Err(ParentDirNotExists);
        }
        if parents.iter().any(|parent| self.0.contains_key(*parent) && !self.is_dir(parent)) {
            return Err(ParentNotDir);
        }
        for parent in parents {
            if !self.0.contains_key(parent) {
                self.write(at, parent, None);
            }
        }
        Ok(())
    }

    fn put(&mut self, at: ApplyContext, key: &str, value: &str, create_parents: bool) -> Result<Code, Code> {
        if value.is_empty() {
            return Err(InvalidValue);
        }
        self.check_place(at, key, create_parents)?;
        if self.is_dir(key) {
            return Err(DirExists);
        }
        let code = if self.0.contains_key(key) { SuccessOverwrite } else { Success };
        self.write(at, key, Some(value));
        Ok(code)
    }

    fn mkdir(&mut self, at: ApplyContext, key: &str, create_parents: bool) -> Result<Code, Code> {
        self.check_place(at, key, create_parents)?;
        match self.0.get(key) {
            Some(entry) if entry.value.is_none() => Err(DirExists),
            Some(_) => Err(ValueExists),
            None => {
                self.write(at, key, None);
                Ok(Success)
            }
        }
    }

    fn remove(&mut self, at: ApplyContext, key: &str, recursive: bool) -> Result<Code, Code> {
        if Model::key_is_bad(key) {
            return Err(InvalidKey);
        }
        if !self.0.contains_key(key) {
            return Err(NotFound);
        }
        let prefix = format!("{key}.");
        if !recursive && self.0.keys().any(|other| other.starts_with(&prefix)) {
            return Err(HasChildren);
        }
        self.0.retain(|other, _| other != key && !other.starts_with(&prefix));
        self.changed(at, key);
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
        let current = self.0.get(key).cloned();
        let guess = match (guess, &current) {
            (Guess::CurrentValue, Some(Entry { value: Some(value), .. })) => Guess::Value(value.clone()),
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
        self.check_place(at, key, false)?;
        let matches = match (&guess, &current) {
            (Guess::Absent, None) => true,
            (Guess::Value(value), Some(entry)) => entry.value.as_ref() == Some(value),
            (Guess::Index(index), Some(entry)) => entry.value.is_some() && entry.meta.update_index == *index,
            _ => false,
        };
        if !matches {
            return Err(CasMismatch);
        }
        match new {
            Some(new) => self.write(at, key, Some(new)),
            None => {
                self.0.remove(key);
                self.changed(at, key);
            }
        }
        Ok(Success)
    }

    fn apply(&mut self, at: ApplyContext, step: &Step) -> Vec<u8> {
        let result = match step {
            Step::Put { key, value, create_parents } => self.put(at, key, value, *create_parents),
            Step::Mkdir { key, create_parents } => self.mkdir(at, key, *create_parents),
            Step::Remove { key, recursive } => self.remove(at, key, *recursive),
            Step::CompareAndSet { key, guess, new } => self.compare_and_set(at, key, guess, new.as_deref()),
            Step::Batch(items) => {
                let codes = items.iter().flat_map(|item| self.apply(at, item));
                return [0, items.len() as u8, 0].into_iter().chain(codes).collect();
            }
        };
        vec![result.unwrap_or_else(|code| code) as u8]
    }

    /// All below the root, by segments.
    fn sorted(&self) -> Vec<(&str, &Entry)> {
        let mut all: Vec<_> = self.0.iter().filter(|(key, _)| !key.is_empty()).collect();
        all.sort_by(|(a, _), (b, _)| a.split('.').cmp(b.split('.')));
        all.into_iter().map(|(key, entry)| (key.as_str(), entry)).collect()
    }

    fn child_count(&self, key: &str) -> usize {
        self.0.keys().filter(|other| !other.is_empty() && Model::parents(other).pop() == Some(key)).count()
    }
}

fn assert_same(model: &Model, tree: &Tree) {
    let page = tree.list(&ListQuery { recursive: true, ..ListQuery::default() }).unwrap();
    assert!(page.continuation.is_empty());
    let expected = model.sorted();
    let names: Vec<_> = page.nodes.iter().map(|node| str::from_utf8(&node.key).unwrap()).collect();
    assert_eq!(names, expected.iter().map(|(key, _)| *key).collect::<Vec<_>>());
    for (node, (key, entry)) in page.nodes.iter().zip(&expected) {
        assert_eq!((node.meta, node.dir), (entry.meta, entry.value.is_none()), "{key}");
        assert_eq!(node.value.as_deref(), entry.value.as_ref().map(String::as_bytes), "{key}");
        assert_eq!(node.child_count as usize, model.child_count(key), "{key}");
        let got = tree.get(key.as_bytes()).unwrap_or_else(|code| panic!("{key}: {code:?}"));
        assert_eq!(got.to_listed(false), *node);
    }
    assert_eq!(tree.get(b"").ok().map(|root| root.meta()), Some(model.0[""].meta));
    assert_eq!(tree.node_count() as usize, model.0.len());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn the_tree_does_what_a_naive_model_does(steps in steps(), take_every in 1usize..20) {
        let (mut tree, mut model) = (Tree::new(), Model::new());
        for (i, step) in steps.iter().enumerate() {
            let at = context(i as u64 + 1);
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
        let (mut tree, mut packed, mut results) = (Tree::new(), Vec::new(), Vec::new());
        for ([kind, flags, session], key, value, expect_index) in &ops {
            let kinds = [Kind::Put, Kind::Remove, Kind::Mkdir, Kind::CompareAndSet, Kind::Batch, Kind::Get];
            let op = Op {
                session: (session % 2 == 0).then_some((ME, 1)),
                ttl_ms: (flags % 16 == 0).then_some(1),
                expect_index: *expect_index,
                expect: (flags & 1 != 0).then_some(b"a"),
                has_new_value: flags & 2 != 0,
                create_parents: flags & 4 != 0,
                recursive: flags & 8 != 0,
                guard: (flags % 17 == 0).then_some((1, b"a")),
                ..op(kinds[*kind as usize % kinds.len()], key, value)
            };
            op.pack(&mut packed);
        }
        prop_assert_eq!(tree.apply(context(1), &packed, &mut results), Ok(()));
        prop_assert!(results.len() >= ops.len());
    }
}
