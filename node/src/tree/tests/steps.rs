//! Random operations on few keys, so that they meet.

use super::*;
use proptest::prelude::*;

/// What a compare-and-set compares with.
#[derive(Clone, Debug)]
pub(super) enum Guess {
    Absent,
    Value(String),
    Index(u64),
    CurrentValue,
    CurrentIndex,
}

#[derive(Clone, Debug)]
pub(super) enum Step {
    Put { key: String, value: String, create_parents: bool },
    Mkdir { key: String, create_parents: bool },
    Remove { key: String, recursive: bool },
    CompareAndSet { key: String, guess: Guess, new: Option<String> },
    Batch(Vec<Step>),
}

impl Step {
    /// Packs the step for the tree as it is.
    pub(super) fn pack(&self, tree: &Tree) -> Vec<u8> {
        let mut packed = Vec::new();
        match self {
            Step::Put { key, value, create_parents } => {
                Op { create_parents: *create_parents, ..op(Kind::Put, key, value) }.pack(&mut packed);
            }
            Step::Mkdir { key, create_parents } => {
                Op { create_parents: *create_parents, ..op(Kind::Mkdir, key, "") }.pack(&mut packed);
            }
            Step::Remove { key, recursive } => {
                Op { recursive: *recursive, ..op(Kind::Remove, key, "") }.pack(&mut packed);
            }
            Step::CompareAndSet { key, guess, new } => {
                pack_cas(tree, key, guess, new.as_deref(), &mut packed)
            }
            Step::Batch(items) => {
                let items: Vec<u8> = items.iter().flat_map(|item| item.pack(tree)).collect();
                Op::new(Kind::Batch, &[], &items).pack(&mut packed);
            }
        }
        packed
    }
}

fn pack_cas(tree: &Tree, key: &str, guess: &Guess, new: Option<&str>, packed: &mut Vec<u8>) {
    let mut op = op(Kind::CompareAndSet, key, new.unwrap_or_default());
    op.has_new_value = new.is_some();
    let node = tree.get(key.as_bytes()).ok();
    match guess {
        Guess::Absent => {}
        Guess::Value(value) => op.expect = Some(value.as_bytes()),
        Guess::Index(index) => op.expect_index = Some(*index),
        Guess::CurrentValue => op.expect = node.and_then(|node| node.value()).map(|value| &value[..]),
        Guess::CurrentIndex => op.expect_index = node.map(|node| node.meta().update_index),
    }
    op.pack(packed);
}

/// Segments around the dot in byte order, and on both sides of what fits inline.
pub(super) fn key() -> impl Strategy<Value = String> {
    let segment = prop_oneof![
        4 => Just("a".to_owned()),
        3 => Just("b".to_owned()),
        1 => Just("a-".to_owned()),
        1 => Just("a!".to_owned()),
        1 => Just("a0".to_owned()),
        1 => Just("s".repeat(22)),
        1 => Just("s".repeat(23)),
    ];
    let good = prop::collection::vec(segment, 1..5).prop_map(|segments| segments.join("."));
    let bad = prop::sample::select(vec!["", ".", "a.", ".a", "a..b", "a b"]).prop_map(str::to_owned);
    prop_oneof![30 => good, 1 => bad]
}

fn value() -> impl Strategy<Value = String> {
    prop::sample::select(vec!["x", "y", "z", "longer", ""]).prop_map(str::to_owned)
}

fn guess() -> impl Strategy<Value = Guess> {
    prop_oneof![
        2 => Just(Guess::Absent),
        1 => value().prop_map(Guess::Value),
        1 => (0u64..20).prop_map(Guess::Index),
        2 => Just(Guess::CurrentValue),
        2 => Just(Guess::CurrentIndex),
    ]
}

fn item() -> impl Strategy<Value = Step> {
    prop_oneof![
        (key(), value(), any::<bool>()).prop_map(|(key, value, create_parents)| Step::Put {
            key,
            value,
            create_parents
        }),
        (key(), any::<bool>()).prop_map(|(key, recursive)| Step::Remove { key, recursive }),
    ]
}

pub(super) fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => item(),
        3 => (key(), any::<bool>()).prop_map(|(key, create_parents)| Step::Mkdir { key, create_parents }),
        2 => (key(), guess(), prop::option::of(value()))
            .prop_map(|(key, guess, new)| Step::CompareAndSet { key, guess, new }),
        1 => prop::collection::vec(item(), 1..6).prop_map(Step::Batch),
    ]
}

pub(super) fn steps() -> impl Strategy<Value = Vec<Step>> {
    prop::collection::vec(step(), 1..80)
}
