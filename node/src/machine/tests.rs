use super::*;
use dtkv_client::packed::{PackedResult, txn::TxnResult};
use proptest::prelude::*;
use std::collections::BTreeMap;

const ME: [u8; 16] = [1; 16];

fn at(index: u64) -> ApplyContext {
    ApplyContext { index, time_ms: index, clock_ms: 1000 * index }
}

fn scope(sequence: u64, operations: u16) -> Scope {
    Scope { client_id: ME, sequence, acknowledged_below: 0, operations, is_retry: false }
}

fn frame(scope: Option<Scope>, ops: &[Op<'_>]) -> Vec<u8> {
    let mut bytes = Vec::new();
    scope.iter().for_each(|scope| scope.pack(&mut bytes));
    ops.iter().for_each(|op| op.pack(&mut bytes));
    bytes
}

fn apply(machine: &mut Machine, index: u64, ops: &[u8]) -> Outcome {
    let mut outcome = Outcome::default();
    machine.apply(at(index), ops, &mut outcome).unwrap();
    outcome
}

fn value(machine: &Machine, key: &str) -> Vec<u8> {
    machine.tree.get(key.as_bytes()).unwrap().value().unwrap().to_vec()
}

const OK: u8 = Code::Success as u8;
const OVER: u8 = Code::SuccessOverwrite as u8;

#[test]
fn a_frame_that_comes_again_is_answered_with_its_first_results_and_index() {
    let mut machine = Machine::default();
    let one = frame(Some(scope(1, 2)), &[Op::new(Kind::Put, b"a", b"1"), Op::new(Kind::Put, b"b", b"1")]);
    let two = frame(Some(scope(2, 1)), &[Op::new(Kind::Put, b"a", b"2")]);
    assert_eq!(apply(&mut machine, 5, &one).results, [OK, OK]);
    assert_eq!(apply(&mut machine, 6, &two).results, [OVER]);
    // One entry of several frames, two of them for the second time.
    let plain = frame(None, &[Op::new(Kind::Put, b"b", b"3")]);
    let outcome = apply(&mut machine, 9, &[&plain[..], &one, &two, &plain].concat());
    assert_eq!(outcome.results, [OVER, OK, OK, OVER, OVER]);
    let repeats = [Repeat { offset: 1, index: 5 }, Repeat { offset: 3, index: 6 }];
    assert_eq!(outcome.repeats, repeats);
    assert_eq!((value(&machine, "a"), value(&machine, "b")), (b"2".to_vec(), b"3".to_vec()));
}

#[test]
fn twice_in_one_entry_is_applied_once() {
    let mut machine = Machine::default();
    let put = frame(Some(scope(1, 1)), &[Op::new(Kind::Put, b"a", b"1")]);
    let outcome = apply(&mut machine, 5, &[&put[..], &put].concat());
    assert_eq!(outcome.results, [OK, OK]);
    assert_eq!(outcome.repeats, [Repeat { offset: 1, index: 5 }]);
}

#[test]
fn an_expired_frame_is_refused_in_the_shape_of_each_operation() {
    let mut machine = Machine::default();
    apply(
        &mut machine,
        1,
        &frame(Some(Scope { acknowledged_below: 9, ..scope(9, 1) }), &[Op::new(Kind::Put, b"a", b"1")]),
    );
    let item = frame(None, &[Op::new(Kind::Put, b"x", b"1")]);
    let kinds = [Kind::Put, Kind::Batch, Kind::TryLock, Kind::KeepAlive, Kind::Txn, Kind::Unlock];
    let ops: Vec<Op<'_>> = kinds.iter().map(|kind| Op::new(*kind, b"", &item)).collect();
    let outcome = apply(&mut machine, 2, &frame(Some(scope(3, 6)), &ops));
    let code = Code::SessionExpired;
    let txn = TxnResult { code, succeeded: false, failed_op: None, results: b"" };
    let expected = [
        PackedResult::Code(code),
        PackedResult::Batch(code, &[]),
        PackedResult::Token(code, 0),
        PackedResult::Count(code, 0),
        PackedResult::Txn(txn),
        PackedResult::Code(code),
    ];
    let mut results = packed::results(&outcome.results);
    for (kind, expected) in kinds.into_iter().zip(expected) {
        assert_eq!(results.next(kind), Ok(expected));
    }
    assert_eq!((outcome.repeats.len(), machine.tree.node_count()), (0, 2));
}

#[test]
fn a_broken_scope_ends_its_entry_alike_everywhere() {
    let put = frame(None, &[Op::new(Kind::Put, b"a", b"1")]);
    let inner = frame(Some(scope(2, 1)), &[]);
    for broken in [frame(Some(scope(1, 2)), &[Op::new(Kind::Put, b"b", b"1")]), [&inner[..], &inner].concat()]
    {
        let mut machine = Machine::default();
        let mut outcome = Outcome::default();
        assert!(machine.apply(at(1), &[&put[..], &broken].concat(), &mut outcome).is_err());
        assert_eq!(outcome.results[0], OK);
        assert!(outcome.repeats.is_empty());
    }
}

/// What the engine would hold.
#[derive(Default)]
struct Disk(BTreeMap<Vec<u8>, Bytes>);

impl Disk {
    fn write(&mut self, changes: Changes) {
        let (changed, removed) = changes.into_records();
        changed.for_each(|(key, record)| drop(self.0.insert(key.to_vec(), record)));
        removed.for_each(|key| drop(self.0.remove(&key[..])));
    }

    fn restore(&self) -> Machine {
        let mut machine = Machine::new(BOUNDS);
        self.0.iter().for_each(|(key, record)| machine.load(key, record).unwrap());
        machine
    }
}

/// Small, so that all of them are met.
const BOUNDS: Bounds = Bounds { clients: 3, answers: 4, client_bytes: 400, bytes: 2000, idle_ms: 20_000 };

/// An entry: frames of the clients, each with the sequence that it has, if any.
type Frames = Vec<(u8, Option<u64>, bool, Vec<(u8, u8)>)>;

fn frames() -> impl Strategy<Value = Frames> {
    let ops = prop::collection::vec((0u8..8, 0u8..5), 1..4);
    prop::collection::vec((0u8..5, prop::option::weighted(0.8, 1u64..12), any::<bool>(), ops), 1..4)
}

fn packed_entry(frames: &Frames) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (client, sequence, is_retry, ops) in frames {
        let scope = sequence.map(|sequence| Scope {
            client_id: [*client; 16],
            is_retry: *is_retry,
            ..scope(sequence, ops.len() as u16)
        });
        let keys: Vec<String> = ops.iter().map(|(key, _)| format!("k{key}")).collect();
        let value = |kind: &u8| if *kind == 4 { &b""[..] } else { &b"value"[..] };
        let op = |(key, (_, kind)): (&String, &(u8, u8))| {
            let op_kind = if *kind == 4 { Kind::Remove } else { Kind::Put };
            frame(None, &[Op::new(op_kind, key.as_bytes(), value(kind))])
        };
        bytes.extend(frame(scope, &[]));
        keys.iter().zip(ops).for_each(|pair| bytes.extend(op(pair)));
    }
    bytes
}

proptest! {
    /// N entries, a checkpoint drained in pieces while M go on, a restart from it, the M again: equal to
    /// N + M, in state and in every answer.
    #[test]
    fn restoring_a_checkpoint_and_replaying_is_as_if_nothing_had_happened(
        before in prop::collection::vec(frames(), 0..30),
        after in prop::collection::vec(frames(), 0..30),
        checkpoints in prop::collection::btree_set(0usize..30, 0..4),
        piece in 1usize..20,
    ) {
        let (mut machine, mut disk) = (Machine::new(BOUNDS), Disk::default());
        for (index, entry) in before.iter().enumerate() {
            apply(&mut machine, index as u64 + 1, &packed_entry(entry));
            if checkpoints.contains(&index) {
                let mut changes = Changes::default();
                machine.freeze_dirty();
                prop_assert!(machine.drain_frozen(usize::MAX, &mut changes));
                disk.write(changes);
                prop_assert_eq!(disk.restore().digest(), machine.digest());
            }
        }
        machine.freeze_dirty();
        let (fixed, mut changes) = (machine.digest(), Changes::default());
        let (mut is_drained, mut answers) = (false, Vec::new());
        for (n, entry) in after.iter().enumerate() {
            answers.push(apply(&mut machine, (before.len() + n + 1) as u64, &packed_entry(entry)));
            is_drained = is_drained || machine.drain_frozen(piece, &mut changes);
        }
        while !is_drained {
            is_drained = machine.drain_frozen(piece, &mut changes);
        }
        disk.write(changes);
        let mut restored = disk.restore();
        prop_assert_eq!(restored.digest(), fixed);
        for (n, entry) in after.iter().enumerate() {
            let again = apply(&mut restored, (before.len() + n + 1) as u64, &packed_entry(entry));
            prop_assert_eq!(&again, &answers[n]);
        }
        prop_assert_eq!(restored.digest(), machine.digest());
        prop_assert_eq!(restored.bytes(), machine.bytes());
    }
}
