use super::*;
use crate::ids::GroupId;
use crate::keyspace::log_key;
use parking_lot::Mutex;
use std::path::Path;
use std::sync::mpsc::channel;
use std::time::Duration;

fn metrics() -> EngineMetrics {
    EngineMetrics::register(&prometheus::Registry::new())
}

fn options(path: &Path) -> EngineOptions {
    EngineOptions { write_buffer_bytes: 1 << 20, ..EngineOptions::new(path) }
}

fn open(path: &Path) -> Engine {
    Engine::open(options(path), metrics()).unwrap()
}

fn put(index: u64, value: &[u8]) -> WriteOp {
    WriteOp::put(Family::Log, log_key(GroupId(1), index), value.to_vec())
}

fn get(engine: &Engine, index: u64) -> Option<Vec<u8>> {
    engine.get(Family::Log, &log_key(GroupId(1), index)).unwrap()
}

/// What a crash leaves: the files as they are while the engine runs.
fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else if entry.file_name() != "LOCK" {
            // A file that the engine replaced meanwhile is not what a crash would leave either.
            if let Err(error) = std::fs::copy(entry.path(), target) {
                assert_eq!(error.kind(), std::io::ErrorKind::NotFound, "{error}");
            }
        }
    }
}

fn log_files(path: &Path) -> Vec<std::path::PathBuf> {
    let files = std::fs::read_dir(path.join("db")).unwrap().map(|entry| entry.unwrap().path());
    files.filter(|file| file.extension().is_some_and(|e| e == "log")).collect()
}

#[test]
fn writes_of_all_kinds_survive_a_reopen() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path());
    for family in Family::ALL {
        let ops = [b"a", b"b", b"c", b"d"].map(|key| WriteOp::put(family, *key, "value"));
        engine.write_blocking(ops.into()).unwrap();
        let range = (b"b".to_vec(), b"d".to_vec());
        engine
            .write_blocking(vec![WriteOp::delete(family, *b"a"), WriteOp::delete_range(family, range)])
            .unwrap();
    }
    engine.shutdown();
    drop(engine);
    let engine = open(dir.path());
    for family in Family::ALL {
        let records: Vec<_> = engine.scan(family, b"", b"\xff").map(Result::unwrap).collect();
        assert_eq!(records, [(Box::from(*b"d"), Box::from(*b"value"))]);
    }
}

#[test]
fn an_acknowledged_write_survives_a_crash() {
    let dir = tempfile::tempdir().unwrap();
    let after = tempfile::tempdir().unwrap();
    let engine = open(dir.path());
    // Several memtables and recycled log files.
    for index in 0..400 {
        engine.write_blocking(vec![put(index, &[index as u8; 20_000])]).unwrap();
    }
    copy(dir.path(), after.path());
    let crashed = open(after.path());
    for index in 0..400 {
        assert_eq!(get(&crashed, index).unwrap(), [index as u8; 20_000], "{index}");
    }
}

#[test]
fn completions_come_in_order_and_after_the_write() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path());
    let (tell, told) = channel();
    let count = 20_000;
    for index in 0..count {
        let (tell, reader) = (tell.clone(), engine.clone());
        let done: Completion = Box::new(move |result| {
            result.unwrap();
            assert!(index % 100 > 0 || get(&reader, index).is_some());
            tell.send(index).unwrap();
        });
        engine.submit(super::Write { ops: vec![put(index, b"x")], done: Some(done) });
    }
    engine.write_blocking(Vec::new()).unwrap();
    drop(tell);
    assert!(told.iter().eq(0..count));
    // The room is given back after the last caller has been told.
    let is_empty = |_| {
        std::thread::sleep(Duration::from_millis(5));
        engine.queue_bytes() == 0
    };
    assert!((0..2_000).any(is_empty), "{} bytes are still counted", engine.queue_bytes());
}

#[test]
fn shutdown_finishes_what_is_queued_and_refuses_what_comes_later() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path());
    let (tell, told) = channel();
    for index in 0..1000 {
        let tell = tell.clone();
        let done: Completion = Box::new(move |result| tell.send(result.is_ok()).unwrap());
        engine.submit(super::Write { ops: vec![put(index, &[7; 1000])], done: Some(done) });
    }
    engine.shutdown();
    drop(tell);
    assert_eq!(told.iter().filter(|ok| *ok).count(), 1000);
    let late = engine.write_blocking(vec![put(1, b"late")]).unwrap_err();
    assert!(late.to_string().contains("not done"), "{late}");
}

#[test]
fn writes_with_durability_of_the_operating_system_survive_the_process() {
    let dir = tempfile::tempdir().unwrap();
    let after = tempfile::tempdir().unwrap();
    let engine =
        Engine::open(EngineOptions { durability: Durability::Os, ..options(dir.path()) }, metrics()).unwrap();
    for index in 0..50 {
        engine.write_blocking(vec![put(index, b"x")]).unwrap();
        assert!(get(&engine, index).is_some());
    }
    copy(dir.path(), after.path());
    assert!((0..50).all(|index| get(&open(after.path()), index).is_some()));
}

#[test]
fn a_lost_log_file_is_found_and_refused() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path());
    engine.write_blocking(vec![put(1, b"x"), put(2, b"y")]).unwrap();
    engine.shutdown();
    drop(engine);
    log_files(dir.path()).into_iter().for_each(|file| std::fs::remove_file(file).unwrap());
    let error = Engine::open(options(dir.path()), metrics()).err().unwrap();
    assert!(matches!(error, EngineError::LostWrites { durable: 2, .. }), "{error}");
    assert!(error.to_string().contains("must not vote again"), "{error}");
}

#[test]
fn a_cut_log_file_is_found_and_refused() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path());
    engine.write_blocking(vec![put(1, &[1; 40_000])]).unwrap();
    engine.write_blocking(vec![put(2, &[2; 40_000])]).unwrap();
    engine.shutdown();
    drop(engine);
    for file in log_files(dir.path()) {
        let file = std::fs::OpenOptions::new().write(true).open(file).unwrap();
        file.set_len(50_000).unwrap();
    }
    let error = Engine::open(options(dir.path()), metrics()).err().unwrap();
    assert!(matches!(error, EngineError::LostWrites { found: 1, durable: 2, .. }), "{error}");
}

#[test]
fn a_torn_tail_behind_the_watermark_is_no_loss() {
    let dir = tempfile::tempdir().unwrap();
    let after = tempfile::tempdir().unwrap();
    let engine = open(dir.path());
    engine.write_blocking(vec![put(1, &[1; 40_000])]).unwrap();
    copy(dir.path(), after.path());
    let watermark = std::fs::read(after.path().join("WATERMARK")).unwrap();
    engine.write_blocking(vec![put(2, &[2; 40_000])]).unwrap();
    copy(dir.path(), after.path());
    std::fs::write(after.path().join("WATERMARK"), watermark).unwrap();
    for file in log_files(after.path()) {
        std::fs::OpenOptions::new().write(true).open(file).unwrap().set_len(50_000).unwrap();
    }
    let crashed = open(after.path());
    assert_eq!(get(&crashed, 1).unwrap(), [1; 40_000]);
    assert_eq!(get(&crashed, 2), None);
}

#[test]
fn the_watermark_follows_and_stays_true_over_many_memtables() {
    let dir = tempfile::tempdir().unwrap();
    let after = tempfile::tempdir().unwrap();
    let engine = open(dir.path());
    for index in 0..200 {
        let ops = vec![put(index, &[9; 30_000]), WriteOp::delete(Family::State, *b"k"), put(index, b"z")];
        engine.write_blocking(ops).unwrap();
    }
    let stored = || {
        copy(dir.path(), after.path());
        watermark::WatermarkFile::open(after.path(), false).unwrap().durable()
    };
    let deadline = crate::clock::now() + Duration::from_secs(20);
    while stored() != 600 && crate::clock::now() < deadline {
        std::thread::sleep(Duration::from_millis(100));
    }
    assert_eq!(stored(), 600);
    assert_eq!(open(after.path()).0.rocks.latest_sequence(), 600);
}

#[test]
fn data_without_a_format_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path());
    engine.write_blocking(vec![put(1, b"x")]).unwrap();
    drop(engine);
    std::fs::remove_file(dir.path().join("FORMAT")).unwrap();
    let error = Engine::open(options(dir.path()), metrics()).err().unwrap();
    assert!(matches!(error, EngineError::NoFormat { .. }), "{error}");
}

#[test]
fn a_directory_whose_creation_was_interrupted_is_created_again() {
    let dir = tempfile::tempdir().unwrap();
    drop(open(dir.path()));
    std::fs::remove_file(dir.path().join("FORMAT")).unwrap();
    let engine = open(dir.path());
    engine.write_blocking(vec![put(1, b"x")]).unwrap();
}

#[test]
fn a_newer_format_is_refused_before_anything_is_touched() {
    let dir = tempfile::tempdir().unwrap();
    drop(open(dir.path()));
    format::write(dir.path(), FORMAT_VERSION + 1).unwrap();
    let error = Engine::open(options(dir.path()), metrics()).err().unwrap();
    assert!(matches!(error, EngineError::NewerFormat { .. }), "{error}");
}

#[test]
fn a_directory_in_use_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let _first = open(dir.path());
    let error = Engine::open(options(dir.path()), metrics()).err().unwrap();
    assert!(matches!(error, EngineError::Locked { .. }), "{error}");
    assert!(error.to_string().contains("in use by another process"), "{error}");
}

fn failing(fault: impl Fn(&Engine)) -> (Vec<String>, io::Error, io::Error) {
    let dir = tempfile::tempdir().unwrap();
    let causes = Arc::new(Mutex::new(Vec::new()));
    let told = causes.clone();
    let fail_stop: FailStop = Arc::new(move |cause| told.lock().push(cause.to_owned()));
    let engine = Engine::open(EngineOptions { fail_stop, ..options(dir.path()) }, metrics()).unwrap();
    engine.write_blocking(vec![put(1, b"x")]).unwrap();
    fault(&engine);
    let first = engine.write_blocking(vec![put(2, b"x")]).unwrap_err();
    let second = engine.write_blocking(vec![put(3, b"x")]).unwrap_err();
    engine.shutdown();
    (causes.lock().clone(), first, second)
}

#[test]
fn a_failed_write_stops_the_node_and_no_write_is_acknowledged_again() {
    let (causes, first, second) = failing(|e| e.0.commit.faults.fail_write.store(true, Ordering::SeqCst));
    assert_eq!(causes.len(), 1);
    assert!(causes[0].starts_with("write of"), "{causes:?}");
    assert!(first.to_string().contains("unknown"), "{first}");
    assert!(second.to_string().contains("not done"), "{second}");
}

#[test]
fn a_failed_sync_stops_the_node_and_no_write_is_acknowledged_again() {
    let (causes, first, _) = failing(|e| e.0.commit.faults.fail_sync.store(true, Ordering::SeqCst));
    assert_eq!(causes, ["sync of the write-ahead log: injected"]);
    assert!(first.to_string().contains("unknown"), "{first}");
}

#[test]
fn a_panic_in_a_completion_stops_the_node() {
    let (causes, ..) = failing(|engine| {
        engine.submit(super::Write { ops: Vec::new(), done: Some(Box::new(|_| panic!("on purpose"))) });
        while engine.write_blocking(Vec::new()).is_ok() {}
    });
    assert_eq!(causes, ["a thread of the engine panicked"]);
}

#[test]
fn a_snapshot_scan_shows_its_moment_however_late_it_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path());
    let keys: Vec<_> = (0..3000).map(|index| log_key(GroupId(1), index)).collect();
    for chunk in keys.chunks(100) {
        engine
            .write_blocking(chunk.iter().map(|k| WriteOp::put(Family::State, *k, vec![1; 1000])).collect())
            .unwrap();
    }
    let (from, to) = crate::keyspace::group_log_range(GroupId(1));
    let scan = engine.snapshot_scan(Family::State, from.clone(), to.clone()).unwrap();
    engine.write_blocking(vec![WriteOp::delete_range(Family::State, (from, to))]).unwrap();
    engine.0.rocks.flush_tables();
    let seen: Vec<_> = scan.map(|record| record.unwrap().0).collect();
    assert!(seen.iter().map(|key| &key[..]).eq(keys.iter().map(|key| &key[..])));
    assert_eq!(engine.scan(Family::State, b"", b"\xff").count(), 0);
}

#[test]
fn a_dropped_snapshot_scan_ends_its_thread() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path());
    let ops = (0..2000).map(|index| put(index, &[1; 1000])).collect();
    engine.write_blocking(ops).unwrap();
    let mut scan = engine.snapshot_scan(Family::Log, vec![0], vec![0xff]).unwrap();
    assert!(scan.next().is_some());
    drop(scan);
    drop(engine);
    // The database closes only once the thread has let go of it.
    for _ in 0..100 {
        if Engine::open(options(dir.path()), metrics()).is_ok() {
            return;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    panic!("the database is still open");
}

#[test]
fn reversed_and_empty_ranges_hold_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path());
    engine.write_blocking(vec![put(1, b"x")]).unwrap();
    let reversed = (log_key(GroupId(2), 0).to_vec(), log_key(GroupId(1), 0).to_vec());
    engine.write_blocking(vec![WriteOp::delete_range(Family::Log, reversed.clone())]).unwrap();
    assert_eq!(engine.scan(Family::Log, &reversed.0, &reversed.1).count(), 0);
    assert_eq!(engine.snapshot_scan(Family::Log, reversed.0, reversed.1).unwrap().count(), 0);
    assert!(get(&engine, 1).is_some());
}

#[test]
fn a_full_queue_makes_callers_wait_for_room() {
    let dir = tempfile::tempdir().unwrap();
    let engine =
        Engine::open(EngineOptions { queue_bytes_max: 100_000, ..options(dir.path()) }, metrics()).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        for index in 0..200 {
            engine.room().await;
            assert!(engine.queue_bytes() < 100_000);
            engine.submit(super::Write { ops: vec![put(index, &[1; 50_000])], done: None });
        }
    });
    engine.write_blocking(Vec::new()).unwrap();
    assert!(get(&engine, 199).is_some());
}

#[test]
fn metrics_count_what_was_written() {
    let dir = tempfile::tempdir().unwrap();
    let registry = prometheus::Registry::new();
    let engine = Engine::open(options(dir.path()), EngineMetrics::register(&registry)).unwrap();
    for index in 0..10 {
        engine.write_blocking(vec![put(index, &[1; 100])]).unwrap();
    }
    engine.shutdown();
    let text = prometheus::TextEncoder::new().encode_to_string(&registry.gather()).unwrap();
    assert!(text.contains("dtkv_engine_writes_total 10"), "{text}");
    assert!(text.contains("dtkv_engine_sync_seconds_count 10"), "{text}");
    assert!(text.contains("dtkv_engine_queue_bytes 0"), "{text}");
    assert!(text.contains("dtkv_engine_memtable_bytes{family=\"log\"}"), "{text}");
}
