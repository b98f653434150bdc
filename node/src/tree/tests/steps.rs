//! Random operations of a few clients on few keys, so that they meet.

use super::*;
use dtkv_client::packed::lock::entry_key;
use proptest::prelude::*;

/// What an operation expects of a node.
#[derive(Clone, Debug)]
pub(super) enum Guess {
    Absent,
    Value(String),
    Index(u64),
    CurrentValue,
    CurrentIndex,
}

#[derive(Clone, Debug)]
pub(super) enum Action {
    Put {
        key: String,
        value: String,
        create_parents: bool,
        ttl_ms: Option<u64>,
        guess: Option<Guess>,
    },
    Mkdir {
        key: String,
        create_parents: bool,
        ttl_ms: Option<u64>,
    },
    Remove {
        key: String,
        recursive: bool,
        guess: Option<Guess>,
    },
    CompareAndSet {
        key: String,
        guess: Guess,
        new: Option<String>,
    },
    Batch(Vec<Action>),
    UpdateTtl {
        key: String,
        ttl_ms: u64,
    },
    TryLock {
        key: String,
        hold_ms: u64,
        wait_ms: u64,
    },
    Unlock {
        key: String,
    },
    UpdateLease {
        key: String,
        hold_ms: u64,
    },
    KeepAlive,
    DropOwner,
    /// Everything that is due.
    Expire,
    /// One node, with the index of its lease or with another.
    ExpireOne {
        key: String,
        is_current: bool,
    },
}

/// One entry of the log.
#[derive(Clone, Debug)]
pub(super) struct Step {
    pub(super) action: Action,
    pub(super) client: Option<ClientId>,
    /// A lock, and whether its current token is shown.
    pub(super) guard: Option<(String, bool)>,
    pub(super) clock_ms: u64,
}

impl Step {
    pub(super) fn context(&self, index: u64) -> ApplyContext {
        ApplyContext { clock_ms: self.clock_ms, ..context(index) }
    }

    /// Packs the step for the tree as it is.
    pub(super) fn pack(&self, tree: &Tree) -> Vec<u8> {
        let mut packed = Vec::new();
        let token = |(lock, is_current): &(String, bool)| match is_current {
            true => tree.lock_token(lock.as_bytes()),
            false => 1,
        };
        let guard = self.guard.as_ref().map(|guard| (token(guard), guard.0.as_bytes()));
        let session = self.client.map(|client| (client, 0));
        let clock_ms = self.clock_ms.max(tree.counters().clock_ms);
        let finish = |op: Op<'_>, packed: &mut Vec<u8>| Op { session, guard, ..op }.pack(packed);
        self.action.pack(tree, clock_ms, &mut packed, &finish);
        packed
    }
}

/// Everything that is due, in an order that does not depend on the layout of the tree.
pub(super) fn due(tree: &Tree, clock_ms: u64) -> Vec<Due> {
    let mut due = tree.due(clock_ms, usize::MAX);
    due.sort_by(|a, b| (a.deadline_ms, &a.key).cmp(&(b.deadline_ms, &b.key)));
    due
}

impl Action {
    /// Packs it without a client and a guard.
    pub(super) fn pack_plain(&self, tree: &Tree) -> Vec<u8> {
        let mut packed = Vec::new();
        self.pack(tree, tree.counters().clock_ms, &mut packed, &|op, packed| op.pack(packed));
        packed
    }

    fn pack(&self, tree: &Tree, clock_ms: u64, packed: &mut Vec<u8>, finish: &dyn Fn(Op<'_>, &mut Vec<u8>)) {
        let index = |key: &str, guess: &Option<Guess>| match guess {
            Some(Guess::Index(index)) => Some(*index),
            Some(_) => tree.get(key.as_bytes()).ok().map(|node| node.meta().update_index),
            None => None,
        };
        match self {
            Action::Put { key, value, create_parents, ttl_ms, guess } => {
                let expect_index = index(key, guess);
                let op = op(Kind::Put, key, value);
                finish(Op { create_parents: *create_parents, ttl_ms: *ttl_ms, expect_index, ..op }, packed);
            }
            Action::Mkdir { key, create_parents, ttl_ms } => {
                let op = op(Kind::Mkdir, key, "");
                finish(Op { create_parents: *create_parents, ttl_ms: *ttl_ms, ..op }, packed);
            }
            Action::Remove { key, recursive, guess } => {
                let expect_index = index(key, guess);
                finish(Op { recursive: *recursive, expect_index, ..op(Kind::Remove, key, "") }, packed);
            }
            Action::CompareAndSet { key, guess, new } => {
                finish(cas(tree, key, guess, new.as_deref()), packed);
            }
            Action::Batch(items) => {
                let mut bytes = Vec::new();
                let plain = |op: Op<'_>, packed: &mut Vec<u8>| op.pack(packed);
                items.iter().for_each(|item| item.pack(tree, clock_ms, &mut bytes, &plain));
                finish(Op::new(Kind::Batch, &[], &bytes), packed);
            }
            Action::UpdateTtl { key, ttl_ms } => {
                finish(with_ttl(*ttl_ms, op(Kind::UpdateTtl, key, "")), packed);
            }
            Action::TryLock { key, hold_ms, wait_ms } => {
                let wait = wait_ms.to_le_bytes();
                finish(with_ttl(*hold_ms, Op::new(Kind::TryLock, key.as_bytes(), &wait)), packed);
            }
            Action::Unlock { key } => finish(op(Kind::Unlock, key, ""), packed),
            Action::UpdateLease { key, hold_ms } => {
                finish(with_ttl(*hold_ms, op(Kind::UpdateLease, key, "")), packed);
            }
            Action::KeepAlive => finish(Op::new(Kind::KeepAlive, b"", b""), packed),
            Action::DropOwner => finish(Op::new(Kind::DropOwner, b"", b""), packed),
            Action::Expire => finish(Op::new(Kind::Expire, b"", &expiry(&due(tree, clock_ms))), packed),
            Action::ExpireOne { key, is_current } => {
                let node = tree.get(key.as_bytes()).ok();
                let ttl_index = node.and_then(|node| node.lease()).map_or(0, |lease| lease.ttl_index);
                let ttl_index = ttl_index + u64::from(!is_current);
                let named = Due { key: Arc::from(key.as_bytes()), ttl_index, deadline_ms: 0 };
                finish(Op::new(Kind::Expire, b"", &expiry(&[named])), packed);
            }
        }
    }
}

fn cas<'a>(tree: &'a Tree, key: &'a str, guess: &'a Guess, new: Option<&'a str>) -> Op<'a> {
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
    op
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
    prop_oneof![30 => good, 6 => lock(), 2 => entry(), 1 => bad]
}

/// Where most of the locks are.
fn lock() -> impl Strategy<Value = String> {
    prop::sample::select(vec!["lock", "a.lock"]).prop_map(str::to_owned)
}

fn entry() -> impl Strategy<Value = String> {
    (lock(), client()).prop_map(|(lock, client)| {
        String::from_utf8(entry_key(lock.as_bytes(), &client.unwrap_or(ME))).unwrap()
    })
}

fn client() -> impl Strategy<Value = Option<ClientId>> {
    prop::sample::select(vec![None, Some(ME), Some(ME), Some(OTHER), Some(OTHER), Some([3; 16])])
}

fn value() -> impl Strategy<Value = String> {
    prop::sample::select(vec!["x", "y", "z", "longer", ""]).prop_map(str::to_owned)
}

fn ttl() -> impl Strategy<Value = u64> {
    prop::sample::select(vec![5, 20, 20, 100, 100, 1_000, 0, TTL_MS_MAX + 1])
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

fn index_guess() -> impl Strategy<Value = Option<Guess>> {
    prop_oneof![
        8 => Just(None),
        1 => (0u64..20).prop_map(|index| Some(Guess::Index(index))),
        1 => Just(Some(Guess::CurrentIndex)),
    ]
}

fn put(ttl_ms: impl Strategy<Value = Option<u64>>) -> impl Strategy<Value = Action> {
    (key(), value(), any::<bool>(), ttl_ms).prop_map(|(key, value, create_parents, ttl_ms)| Action::Put {
        key,
        value,
        create_parents,
        ttl_ms,
        guess: None,
    })
}

fn remove() -> impl Strategy<Value = Action> {
    (key(), any::<bool>()).prop_map(|(key, recursive)| Action::Remove { key, recursive, guess: None })
}

fn item() -> impl Strategy<Value = Action> {
    prop_oneof![put(Just(None)), remove()]
}

fn cas_action() -> impl Strategy<Value = Action> {
    (key(), guess(), prop::option::of(value())).prop_map(|(key, guess, new)| Action::CompareAndSet {
        key,
        guess,
        new,
    })
}

/// Single operations on permanent nodes.
pub(super) fn plain() -> impl Strategy<Value = Action> {
    prop_oneof![
        6 => item(),
        3 => (key(), any::<bool>())
            .prop_map(|(key, create_parents)| Action::Mkdir { key, create_parents, ttl_ms: None }),
        2 => cas_action(),
    ]
}

fn action() -> impl Strategy<Value = Action> {
    let expecting = (item(), index_guess()).prop_map(|(item, expected)| match item {
        Action::Put { key, value, create_parents, ttl_ms, .. } => {
            Action::Put { key, value, create_parents, ttl_ms, guess: expected }
        }
        Action::Remove { key, recursive, .. } => Action::Remove { key, recursive, guess: expected },
        other => other,
    });
    let times = (ttl(), prop::sample::select(vec![0, 0, 5, 20, 100]));
    let lock_key = || prop_oneof![4 => lock(), 1 => key()];
    prop_oneof![
        6 => expecting,
        3 => put(ttl().prop_map(Some)),
        3 => (key(), any::<bool>(), prop::option::of(ttl()))
            .prop_map(|(key, create_parents, ttl_ms)| Action::Mkdir { key, create_parents, ttl_ms }),
        2 => cas_action(),
        1 => prop::collection::vec(item(), 1..6).prop_map(Action::Batch),
        1 => (key(), ttl()).prop_map(|(key, ttl_ms)| Action::UpdateTtl { key, ttl_ms }),
        5 => (lock_key(), times)
            .prop_map(|(key, (hold_ms, wait_ms))| Action::TryLock { key, hold_ms, wait_ms }),
        2 => lock_key().prop_map(|key| Action::Unlock { key }),
        1 => (lock_key(), ttl()).prop_map(|(key, hold_ms)| Action::UpdateLease { key, hold_ms }),
        1 => Just(Action::KeepAlive),
        1 => Just(Action::DropOwner),
        3 => Just(Action::Expire),
        1 => (key(), any::<bool>()).prop_map(|(key, is_current)| Action::ExpireOne { key, is_current }),
    ]
}

fn guard() -> impl Strategy<Value = Option<(String, bool)>> {
    prop_oneof![9 => Just(None), 1 => (lock(), any::<bool>()).prop_map(Some)]
}

/// Most entries follow one another soon, some after a while, and some leaders' clocks are behind.
fn passed_ms() -> impl Strategy<Value = (u64, u64)> {
    (prop_oneof![4 => 0u64..4, 2 => 0u64..30, 1 => 50u64..300], prop_oneof![9 => Just(0), 1 => 0u64..50])
}

pub(super) fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = (action(), client(), guard(), passed_ms());
    prop::collection::vec(step, 1..80).prop_map(|steps| {
        let mut now_ms = 1_000;
        let at = |(action, client, guard, (passed_ms, behind_ms))| {
            now_ms += passed_ms;
            Step { action, client, guard, clock_ms: now_ms - behind_ms }
        };
        steps.into_iter().map(at).collect()
    })
}
