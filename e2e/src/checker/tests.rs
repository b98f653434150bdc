//! The checker on histories whose verdict is known.

use super::*;
use crate::history::{Action, Answer, Outcome, Value};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

/// An operation of client 0 on key 0.
fn op(action: Action, from: u64, to: u64, index: u64, outcome: Outcome) -> Operation {
    let answer = Some(Answer { at_ns: to, index: Some(index), outcome });
    Operation { client: 0, key: 0, action, invoked_ns: from, answer }
}

fn put(value: Value, from: u64, to: u64, index: u64, created: bool) -> Operation {
    op(Action::Put(value), from, to, index, Outcome::Put { created })
}

fn read(value: Option<Value>, from: u64, to: u64, index: u64) -> Operation {
    op(Action::Get, from, to, index, Outcome::Read { value, update_index: None })
}

fn seen(value: Value, update_index: u64, from: u64, to: u64, index: u64) -> Operation {
    let outcome = Outcome::Read { value: Some(value), update_index: Some(update_index) };
    op(Action::Get, from, to, index, outcome)
}

fn remove(from: u64, to: u64, index: u64, existed: bool) -> Operation {
    op(Action::Remove, from, to, index, Outcome::Removed { existed })
}

fn cas(expect: Option<Value>, new: Option<Value>, span: (u64, u64), index: u64, swapped: bool) -> Operation {
    op(Action::CompareAndSet { expect, new }, span.0, span.1, index, Outcome::CompareAndSet { swapped })
}

fn unknown(action: Action, from: u64) -> Operation {
    Operation { client: 9, key: 0, action, invoked_ns: from, answer: None }
}

fn verdict(operations: Vec<Operation>) -> Result<Summary, Violation> {
    check(&History { operations })
}

/// The same history with all indexes left out.
fn verdict_without_indexes(mut operations: Vec<Operation>) -> Result<Summary, Violation> {
    for answer in operations.iter_mut().filter_map(|op| op.answer.as_mut()) {
        answer.index = None;
        if let Outcome::Read { update_index, .. } = &mut answer.outcome {
            *update_index = None;
        }
    }
    verdict(operations)
}

fn accepted(operations: Vec<Operation>) {
    assert_eq!(verdict(operations.clone()).err(), None);
    assert_eq!(verdict_without_indexes(operations).err(), None);
}

/// Refused, and not only because of the indexes.
fn refused(operations: Vec<Operation>) -> Violation {
    verdict_without_indexes(operations.clone()).expect_err("must be refused without indexes");
    verdict(operations).expect_err("must be refused")
}

#[test]
fn a_history_of_one_client_is_accepted() {
    accepted(vec![
        read(None, 0, 1, 0),
        put(1, 2, 3, 5, true),
        read(Some(1), 4, 5, 5),
        cas(Some(1), Some(2), (6, 7), 6, true),
        cas(Some(1), Some(3), (8, 9), 7, false),
        read(Some(2), 10, 11, 7),
        remove(12, 13, 8, true),
        remove(14, 15, 9, false),
        cas(None, Some(4), (16, 17), 10, true),
        read(Some(4), 18, 19, 10),
    ]);
}

#[test]
fn overlapping_writes_may_come_in_either_order() {
    for last in [1, 2] {
        let index = |value| if value == last { 6 } else { 5 };
        let first = 3 - last;
        accepted(vec![
            put(1, 0, 10, index(1), first == 1),
            put(2, 0, 10, index(2), first == 2),
            read(Some(last), 11, 12, 6),
        ]);
    }
}

#[test]
fn writes_of_one_entry_are_ordered_by_what_they_answered() {
    accepted(vec![put(1, 0, 10, 5, false), put(2, 0, 10, 5, true), read(Some(1), 11, 12, 5)]);
    refused(vec![put(1, 0, 10, 5, false), put(2, 0, 10, 5, true), read(Some(2), 11, 12, 5)]);
}

#[test]
fn stale_read_is_found() {
    let violation = refused(vec![put(1, 0, 1, 5, true), put(2, 2, 3, 6, false), read(Some(1), 4, 5, 6)]);
    assert!(violation.to_string().contains("key 0"), "{violation}");
}

#[test]
fn stale_read_that_admits_its_index_is_found_by_order() {
    let history = vec![put(1, 0, 1, 5, true), put(2, 2, 3, 6, false), read(Some(1), 4, 5, 5)];
    assert!(matches!(refused(history), Violation::Order { .. }));
}

#[test]
fn stale_read_of_another_key_is_found_by_order() {
    let mut other = put(2, 2, 3, 6, true);
    other.key = 1;
    let history = vec![put(1, 0, 1, 5, true), other, read(Some(1), 4, 5, 5)];
    assert!(matches!(verdict(history), Err(Violation::Order { .. })));
}

#[test]
fn lost_write_is_found() {
    refused(vec![put(1, 0, 1, 5, true), read(None, 2, 3, 6)]);
    refused(vec![
        put(1, 0, 1, 5, true),
        put(2, 2, 3, 6, false),
        read(Some(2), 4, 5, 6),
        read(Some(1), 6, 7, 7),
    ]);
}

#[test]
fn phantom_is_found() {
    let violation = refused(vec![put(1, 0, 1, 5, true), read(Some(77), 2, 3, 5)]);
    assert!(matches!(violation, Violation::Provenance { .. }), "{violation}");
}

#[test]
fn value_seen_before_it_was_written_is_found() {
    refused(vec![read(Some(1), 0, 1, 5), put(1, 2, 3, 6, true)]);
    refused(vec![read(Some(1), 0, 1, 5), unknown(Action::Put(1), 2)]);
}

#[test]
fn wrong_compare_and_set_is_found() {
    let before = || vec![put(1, 0, 1, 5, true)];
    let with = |more: Vec<Operation>| [before(), more].concat();
    refused(with(vec![cas(Some(2), Some(3), (2, 3), 6, true)]));
    refused(with(vec![cas(None, Some(3), (2, 3), 6, true)]));
    refused(with(vec![cas(Some(1), Some(3), (2, 3), 6, false)]));
    refused(with(vec![cas(Some(1), None, (2, 3), 6, true), read(Some(1), 4, 5, 6)]));
    refused(with(vec![cas(Some(2), Some(3), (2, 3), 6, false), read(Some(3), 4, 5, 6)]));
    let both = vec![cas(Some(1), Some(3), (2, 9), 6, true), cas(Some(1), Some(4), (2, 9), 7, true)];
    refused(with(both));
}

#[test]
fn lost_update_is_found() {
    // Both read 1 and put their own in its place; the later one has swallowed the other.
    let reads = vec![put(1, 0, 1, 5, true), read(Some(1), 2, 3, 5), read(Some(1), 2, 3, 5)];
    let first = cas(Some(1), Some(2), (4, 8), 6, true);
    let second = cas(Some(1), Some(3), (5, 9), 7, true);
    refused([reads.clone(), vec![first, second, read(Some(3), 10, 11, 7)]].concat());
    let late = cas(Some(1), Some(3), (5, 9), 7, false);
    accepted([reads.clone(), vec![first, late, read(Some(2), 10, 11, 7)]].concat());
    // The same with an answer that got lost: what was acknowledged must still be the base.
    let lost = Operation { answer: None, ..second };
    refused([reads, vec![first, lost, read(Some(3), 10, 11, 7)]].concat());
}

#[test]
fn write_that_is_applied_again_is_found() {
    refused(vec![
        put(1, 0, 1, 5, true),
        put(2, 2, 3, 6, false),
        read(Some(2), 4, 5, 6),
        read(Some(1), 6, 7, 7),
    ]);
    refused(vec![put(1, 0, 1, 5, true), remove(2, 3, 6, true), read(None, 4, 5, 6), read(Some(1), 6, 7, 7)]);
    let swap = vec![put(1, 0, 1, 5, true), cas(Some(1), Some(2), (2, 3), 6, true), put(1, 4, 5, 7, false)];
    refused([swap, vec![read(Some(2), 6, 7, 8)]].concat());
    let removes = vec![put(1, 0, 1, 5, true), unknown(Action::Remove, 2), remove(3, 4, 6, false)];
    refused([removes, vec![put(2, 5, 6, 7, true), put(3, 7, 8, 9, true)]].concat());
}

#[test]
fn wrong_created_and_existed_are_found() {
    refused(vec![put(1, 0, 1, 5, false)]);
    refused(vec![put(1, 0, 1, 5, true), put(2, 2, 3, 6, true)]);
    refused(vec![remove(0, 1, 5, true)]);
    refused(vec![put(1, 0, 1, 5, true), remove(2, 3, 6, false)]);
}

#[test]
fn unknown_write_may_have_happened_or_not() {
    let write = unknown(Action::Put(2), 2);
    let first = put(1, 0, 1, 5, true);
    accepted(vec![first, write, read(Some(1), 4, 5, 6)]);
    accepted(vec![first, write, read(Some(2), 4, 5, 6)]);
    accepted(vec![first, write, read(Some(1), 4, 5, 6), read(Some(2), 600, 601, 7)]);
}

#[test]
fn unknown_write_happens_at_most_once() {
    let write = unknown(Action::Put(2), 2);
    let history = vec![
        put(1, 0, 1, 5, true),
        write,
        read(Some(2), 4, 5, 6),
        put(3, 6, 7, 7, false),
        read(Some(2), 8, 9, 8),
        put(4, 10, 11, 9, false),
        read(Some(2), 12, 13, 10),
    ];
    refused(history);
}

#[test]
fn unknown_write_does_not_vanish_again() {
    refused(vec![
        put(1, 0, 1, 5, true),
        unknown(Action::Put(2), 2),
        read(Some(2), 4, 5, 6),
        read(Some(1), 6, 7, 7),
    ]);
}

#[test]
fn unknown_remove_explains_one_disappearance_only() {
    let history = vec![put(1, 0, 1, 5, true), unknown(Action::Remove, 2), read(None, 4, 5, 6)];
    accepted(history.clone());
    refused([history, vec![put(2, 6, 7, 7, true), read(None, 8, 9, 8)]].concat());
}

#[test]
fn write_applied_twice_is_found_by_its_update_index() {
    let history = vec![put(1, 0, 1, 5, true), seen(1, 5, 2, 3, 5), seen(1, 7, 4, 5, 7)];
    assert!(matches!(verdict(history), Err(Violation::Provenance { .. })));
    let history = vec![unknown(Action::Put(1), 0), seen(1, 5, 2, 3, 5), seen(1, 7, 4, 5, 7)];
    assert!(matches!(verdict(history), Err(Violation::Provenance { .. })));
}

#[test]
fn read_of_the_future_is_found_by_its_update_index() {
    let history = vec![unknown(Action::Put(1), 0), seen(1, 9, 2, 3, 8)];
    assert!(matches!(verdict(history), Err(Violation::Provenance { .. })));
}

#[test]
fn unknown_write_cannot_stand_before_what_was_answered_before_it_began() {
    // The put of 2 began after index 6 was answered, so nobody can have seen its value at index 6.
    let history = vec![put(1, 0, 1, 6, true), unknown(Action::Put(2), 2), read(Some(2), 3, 4, 6)];
    assert!(matches!(verdict(history), Err(Violation::Search { by: "by index", .. })));
}

#[test]
fn operations_without_an_index_are_placed_between_their_neighbours() {
    let mut stale = read(Some(1), 4, 5, 0);
    stale.answer.as_mut().expect("answered").index = None;
    let history = vec![put(1, 0, 1, 5, true), put(2, 2, 3, 6, false), stale, put(3, 6, 7, 7, false)];
    assert!(verdict(history).is_err());
    let mut fresh = read(Some(2), 4, 5, 0);
    fresh.answer.as_mut().expect("answered").index = None;
    let history = vec![put(1, 0, 1, 5, true), put(2, 2, 3, 6, false), fresh, put(3, 6, 7, 7, false)];
    assert_eq!(verdict(history).err(), None);
}

/// A store that is right: clients overlap, each operation takes effect at one moment inside its
/// interval, several writes share an entry, and some answers get lost.
fn simulate(seed: u64, operations: usize, keys: u32, lost: f64) -> History {
    let mut rng = SmallRng::seed_from_u64(seed);
    let mut state: Vec<Option<(Value, u64)>> = vec![None; keys as usize];
    let (mut index, mut history) = (0, History::default());
    let (mut moment, mut entry_is_open) = (1000, false);
    for number in 0..operations as u64 {
        let key = rng.random_range(0..keys);
        let slot = &mut state[key as usize];
        let current = slot.map(|(value, _)| value);
        let action = match rng.random_range(0..10) {
            0..4 => Action::Get,
            4..7 => Action::Put(number),
            7 => Action::Remove,
            8 => Action::CompareAndSet { expect: current, new: Some(number) },
            _ => Action::CompareAndSet { expect: Some(rng.random_range(0..=number)), new: None },
        };
        // A write may share the entry, and so the moment, of the writes right before it.
        let joins = entry_is_open && action.is_write() && rng.random_bool(0.4);
        index += u64::from(action.is_write() && !joins);
        moment += if joins { 0 } else { 10 };
        entry_is_open = action.is_write();
        let is_unknown = action.is_write() && rng.random_bool(lost);
        let happens = !is_unknown || rng.random_bool(0.5);
        let outcome = if happens { apply(slot, action, index) } else { Outcome::Put { created: true } };
        let answer = (!is_unknown).then(|| Answer {
            at_ns: moment + rng.random_range(0..100),
            index: Some(index),
            outcome,
        });
        let invoked_ns = moment - rng.random_range(0..100);
        history.operations.push(Operation { client: 0, key, action, invoked_ns, answer });
    }
    history
}

fn apply(slot: &mut Option<(Value, u64)>, action: Action, index: u64) -> Outcome {
    let current = slot.map(|(value, _)| value);
    match action {
        Action::Get => Outcome::Read { value: current, update_index: slot.map(|(_, index)| index) },
        Action::Put(value) => Outcome::Put { created: slot.replace((value, index)).is_none() },
        Action::Remove => Outcome::Removed { existed: slot.take().is_some() },
        Action::CompareAndSet { expect, new } => {
            let swapped = current == expect;
            if swapped {
                *slot = new.map(|value| (value, index));
            }
            Outcome::CompareAndSet { swapped }
        }
    }
}

#[test]
fn histories_of_a_store_that_is_right_are_accepted() {
    let mut gave_up = 0;
    for seed in 0..200 {
        let history = simulate(seed, 300, 2 + seed as u32 % 5, 0.03);
        match check(&history) {
            Ok(summary) => gave_up += summary.gave_up,
            Err(violation) => panic!("seed {seed}: {violation}"),
        }
    }
    assert!(gave_up < 5, "the search without indexes gave up on {gave_up} keys");
}

#[test]
fn a_planted_stale_read_in_a_long_history_is_found() {
    for seed in 0..100 {
        let mut history = simulate(seed, 500, 3, 0.03);
        let read_before = |value: Value, from: u64| {
            history.operations.iter().any(|op| {
                op.answer.is_some_and(|answer| {
                    answer.at_ns < from
                        && matches!(answer.outcome, Outcome::Read { value: seen, .. } if seen != Some(value))
                })
            })
        };
        // The last read of a value repeats what was there in the beginning.
        let first = history.operations.iter().find_map(|op| match op.action {
            Action::Put(value) if op.answer.is_some() => Some((op.key, value)),
            _ => None,
        });
        let (key, value) = first.expect("there is a put");
        let last = history.operations.iter().rposition(|op| op.key == key && op.action == Action::Get);
        let last = last.expect("there is a read");
        assert!(read_before(value, history.operations[last].invoked_ns));
        let answer = history.operations[last].answer.as_mut().expect("reads are answered");
        answer.outcome = Outcome::Read { value: Some(value), update_index: None };
        assert!(check(&history).is_err(), "seed {seed}");
    }
}

#[test]
fn a_forgotten_write_in_a_long_history_is_found() {
    for seed in 0..100 {
        // What was acknowledged last is gone: every key reads as absent in the end.
        let mut history = simulate(seed, 200, 2, 0.0);
        let last = history.operations.iter().map(|op| op.answer.map_or(0, |a| a.at_ns)).max().unwrap_or(0);
        let index = history.operations.iter().filter_map(Operation::index).max().unwrap_or(0);
        let put = op(Action::Put(1_000_000), last + 1, last + 2, index + 1, Outcome::Put { created: false });
        let created = history.operations.iter().any(|op| op.key == 0);
        assert!(created);
        history.operations.push(put);
        history.operations.push(read(None, last + 3, last + 4, index + 1));
        assert!(check(&history).is_err(), "seed {seed}");
    }
}

#[test]
fn a_large_history_is_checked_in_little_time() {
    let history = simulate(7, 200_000, 1000, 0.01);
    let summary = check(&history).expect("a right history");
    assert_eq!((summary.answered + summary.unknown, summary.keys), (200_000, 1000));
}
