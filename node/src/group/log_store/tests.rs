use super::*;
use crate::engine::{EngineMetrics, EngineOptions};
use crate::group::raft::{Commands, Membership};
use crate::ids::NodeId;
use bytes::Bytes;
use openraft::storage::RaftLogStorageExt;
use openraft::vote::leader_id_std::CommittedLeaderId;
use std::collections::BTreeSet;
use std::path::Path;

mod conformance;
mod model;

const GROUP: GroupId = GroupId(7);

fn engine(path: &Path) -> Engine {
    let options = EngineOptions { write_buffer_bytes: 1 << 20, ..EngineOptions::new(path) };
    Engine::open(options, EngineMetrics::register(&prometheus::Registry::new())).unwrap()
}

fn log_id(term: u64, index: u64) -> LogId {
    LogId::new(CommittedLeaderId { term }, index)
}

fn entry(term: u64, index: u64, ops: usize) -> Entry {
    let commands = Commands {
        time_ms: index * 10,
        clock_ms: index * 7,
        count: 3,
        ops: Bytes::from(vec![index as u8; ops]),
    };
    Entry::new(log_id(term, index), EntryPayload::Normal(commands))
}

async fn append(store: &mut LogStore, entries: impl IntoIterator<Item = Entry>) {
    store.blocking_append(entries.into_iter().collect::<Vec<_>>()).await.unwrap();
}

/// Everything written so far is on disk, and what does not fit is out of memory.
async fn settle(store: &LogStore) {
    store.0.engine.write(Vec::new()).await.unwrap();
}

async fn all(store: &mut LogStore) -> Vec<Entry> {
    store.try_get_log_entries(..).await.unwrap()
}

#[test]
fn every_kind_of_entry_comes_back_after_a_restart() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let voters = vec![BTreeSet::from([NodeId(1), NodeId(2)])];
    let membership = Membership::new_with_defaults(voters, [NodeId(3)]);
    let entries = vec![
        Entry::new(log_id(1, 0), EntryPayload::Membership(membership)),
        Entry::new(log_id(1, 1), EntryPayload::Blank),
        entry(2, 2, 0),
        entry(2, 3, 1),
        entry(3, 4, 300_000),
    ];
    runtime.block_on(async {
        let mut store = LogStore::open(engine(dir.path()), GROUP).unwrap();
        append(&mut store, entries.clone()).await;
        assert_eq!(all(&mut store).await, entries);
    });
    runtime.block_on(async {
        let mut store = LogStore::open(engine(dir.path()), GROUP).unwrap();
        assert_eq!(all(&mut store).await, entries);
        assert_eq!(store.last_index(), 4);
        assert!(store.log_bytes() > 300_000 && store.log_bytes() < 300_300, "{}", store.log_bytes());
    });
}

#[test]
fn a_log_record_has_golden_bytes() {
    let (op, (entry, bytes)) = append_op(GROUP, entry(2, 300, 2));
    let WriteOp::Put { family: Family::Log, key, value } = op else { panic!("{op:?}") };
    let hex: String = value.iter().map(|b| format!("{b:02x}")).collect();
    assert_eq!(key, keyspace::log_key(GROUP, 300));
    assert_eq!(hex, "010a05080210ac021a0c08b81710031a022c2c20b410");
    assert_eq!(bytes, value.len());
    assert_eq!(entry, super::entry_from_pb(keyspace::decode_record(&value).unwrap()).unwrap());
}

#[tokio::test]
async fn an_entry_in_memory_does_not_hold_the_buffer_it_came_in() {
    let frame = Bytes::from(vec![1; 1 << 20]);
    let commands = Commands { time_ms: 1, clock_ms: 1, count: 1, ops: frame.slice(100..200) };
    let (_, (kept, _)) = append_op(GROUP, Entry::new(log_id(1, 0), EntryPayload::Normal(commands)));
    assert!(frame.is_unique());
    let EntryPayload::Normal(commands) = kept.payload else { panic!() };
    assert_eq!(commands.ops, frame.slice(100..200));
}

#[tokio::test]
async fn votes_of_groups_do_not_mix_and_survive() {
    let dir = tempfile::tempdir().unwrap();
    let vote = |term| Vote::new(term, NodeId(term));
    {
        let engine = engine(dir.path());
        for group in 1..4 {
            let mut store = LogStore::open(engine.clone(), GroupId(group)).unwrap();
            assert_eq!(store.read_vote().await.unwrap(), None);
            store.save_vote(&vote(u64::from(group))).await.unwrap();
        }
    }
    let engine = engine(dir.path());
    for group in 1..4 {
        let mut store = LogStore::open(engine.clone(), GroupId(group)).unwrap();
        assert_eq!(store.read_vote().await.unwrap(), Some(vote(u64::from(group))));
    }
}

#[tokio::test]
async fn memory_is_bounded_and_old_entries_are_read_from_the_disk() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = LogStore::open_with(engine(dir.path()), GROUP, 50_000).unwrap();
    let entries: Vec<_> = (0..100).map(|index| entry(1, index, 10_000)).collect();
    for entry in &entries {
        append(&mut store, [entry.clone()]).await;
    }
    settle(&store).await;
    assert!(store.0.log.read().window.memory_bytes() <= 50_000);
    assert!(store.log_bytes() > 1_000_000);
    assert_eq!(all(&mut store).await, entries);
    let streamed: Vec<_> = store.entries_stream(0..100).await.try_collect().await.unwrap();
    assert_eq!(streamed, entries);
    // Across the border of disk and memory.
    assert_eq!(store.try_get_log_entries(90..=97).await.unwrap(), entries[90..98]);
    assert_eq!(store.try_get_log_entries(99..200).await.unwrap(), entries[99..]);
}

#[tokio::test]
async fn a_batch_is_bounded_in_bytes_and_never_empty() {
    let dir = tempfile::tempdir().unwrap();
    for memory in [usize::MAX, 900_000, 0] {
        let path = dir.path().join(memory.to_string());
        let mut store = LogStore::open_with(engine(&path), GROUP, memory).unwrap();
        let sizes = [10, 3 << 20, 400_000, 400_000, 400_000, 10];
        append(&mut store, (0..6).map(|index| entry(1, index, sizes[index as usize]))).await;
        settle(&store).await;
        let mut counts = Vec::new();
        let mut next = 0;
        while next < 6 {
            let batch = store.limited_get_log_entries(next, 6).await.unwrap();
            assert_eq!(batch[0].index(), next);
            counts.push(batch.len());
            next += batch.len() as u64;
        }
        assert_eq!(counts, [1, 1, 2, 2], "{memory} bytes of memory");
        assert!(store.limited_get_log_entries(3, 3).await.unwrap().is_empty());
    }
}

#[tokio::test]
async fn purge_frees_memory_and_reads_begin_behind_it() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = LogStore::open_with(engine(dir.path()), GROUP, 20_000).unwrap();
    append(&mut store, (0..10).map(|index| entry(1, index, 5000))).await;
    settle(&store).await;
    store.purge(log_id(1, 8)).await.unwrap();
    assert!(store.log_bytes() < 5100);
    assert_eq!(all(&mut store).await, [entry(1, 9, 5000)]);
    store.purge(log_id(1, 3)).await.unwrap();
    assert_eq!(store.get_log_state().await.unwrap().last_purged_log_id, Some(log_id(1, 8)));
    store.purge(log_id(2, 50)).await.unwrap();
    assert_eq!(store.get_log_state().await.unwrap().last_log_id, Some(log_id(2, 50)));
    append(&mut store, [entry(2, 51, 10)]).await;
    assert_eq!(all(&mut store).await, [entry(2, 51, 10)]);
}

#[tokio::test]
async fn the_last_entry_is_known_after_a_cut_into_the_part_on_disk() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = LogStore::open_with(engine(dir.path()), GROUP, 0).unwrap();
    append(&mut store, (0..5).map(|index| entry(index + 1, index, 100))).await;
    append(&mut store, (5..10).map(|index| entry(9, index, 100))).await;
    settle(&store).await;
    store.truncate_after(Some(log_id(3, 2))).await.unwrap();
    assert_eq!(store.get_log_state().await.unwrap().last_log_id, Some(log_id(3, 2)));
    append(&mut store, [entry(10, 3, 100)]).await;
    settle(&store).await;
    let expected: Vec<_> = (0..3).map(|i| entry(i + 1, i, 100)).chain([entry(10, 3, 100)]).collect();
    assert_eq!(all(&mut store).await, expected);
}

#[tokio::test]
async fn the_committed_index_travels_with_a_later_append() {
    let dir = tempfile::tempdir().unwrap();
    {
        let mut store = LogStore::open(engine(dir.path()), GROUP).unwrap();
        append(&mut store, (0..100).map(|index| entry(1, index, 10))).await;
        store.save_committed(Some(log_id(1, 99))).await.unwrap();
        assert_eq!(store.read_committed().await.unwrap(), Some(log_id(1, 99)));
        append(&mut store, [entry(1, 100, 10)]).await;
        store.save_committed(Some(log_id(1, 100))).await.unwrap();
        append(&mut store, [entry(1, 101, 10)]).await;
    }
    let mut store = LogStore::open(engine(dir.path()), GROUP).unwrap();
    assert_eq!(store.read_committed().await.unwrap(), Some(log_id(1, 99)));
}

#[tokio::test]
async fn a_hole_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let engine = engine(dir.path());
    let mut store = LogStore::open(engine.clone(), GROUP).unwrap();
    append(&mut store, (0..5).map(|index| entry(1, index, 10))).await;
    let refused = store.append(vec![entry(1, 6, 10)], IOFlushed::noop()).await.unwrap_err();
    assert!(refused.to_string().contains("goes on at 5"), "{refused}");
    engine.write(vec![WriteOp::delete(Family::Log, keyspace::log_key(GROUP, 2))]).await.unwrap();
    let hole = LogStore::open(engine.clone(), GROUP).err().unwrap();
    assert!(hole.to_string().contains("entry 2 is missing before 3"), "{hole}");
    engine.write(vec![WriteOp::delete(Family::Log, keyspace::log_key(GROUP, 0))]).await.unwrap();
    assert!(LogStore::open(engine, GROUP).is_err());
}

#[tokio::test]
async fn an_entry_lost_from_the_disk_is_an_error_and_not_an_empty_answer() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = LogStore::open_with(engine(dir.path()), GROUP, 0).unwrap();
    append(&mut store, (0..5).map(|index| entry(1, index, 10))).await;
    settle(&store).await;
    let lost = WriteOp::delete(Family::Log, keyspace::log_key(GROUP, 2));
    store.0.engine.write(vec![lost]).await.unwrap();
    let error = store.try_get_log_entries(0..5).await.unwrap_err();
    assert!(error.to_string().contains("not all on disk"), "{error}");
}

#[tokio::test]
async fn a_record_under_another_key_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let engine = engine(dir.path());
    let (op, _) = append_op(GROUP, entry(1, 4, 10));
    let WriteOp::Put { value, .. } = op else { panic!() };
    engine.write(vec![WriteOp::put(Family::Log, keyspace::log_key(GROUP, 0), value)]).await.unwrap();
    let error = LogStore::open(engine, GROUP).err().unwrap();
    assert!(error.to_string().contains("holds entry 4"), "{error}");
}

#[tokio::test]
async fn a_tail_of_bytes_stays_behind_the_index_that_may_go() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = LogStore::open_with(engine(dir.path()), GROUP, 4_000).unwrap();
    append(&mut store, (1..=10).map(|index| entry(1, index, 1000))).await;
    settle(&store).await;
    let (all, each) = (store.log_bytes(), store.log_bytes() / 10);
    assert_eq!(store.purgeable(8, 0), 8, "nothing has to stay");
    assert_eq!(store.purgeable(8, all), 0, "everything has to stay");
    assert_eq!(store.purgeable(8, 3 * each), 7);
    assert_eq!(store.purgeable(4, 3 * each), 4);
    store.purge(log_id(1, 7)).await.unwrap();
    assert_eq!(store.purgeable(9, 3 * each), 7, "it is gone already");
    assert_eq!(store.purgeable(9, 0), 9);
}
