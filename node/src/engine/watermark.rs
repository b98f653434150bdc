//! How far the disk has promised. RocksDB's recovery drops everything behind the first bad record
//! of its log without a word; a number beside it, known to be durable, tells that something is
//! missing. It is at most a fraction of a second old.

use super::commit::Commit;
use super::format::sync_directory;
use super::rocks::Rocks;
use super::space::SpaceWatch;
use super::{EngineError, EngineMetrics};
use crate::keyspace::Family;
use parking_lot::{Condvar, Mutex};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

const FILE: &str = "WATERMARK";
const INTERVAL: Duration = Duration::from_millis(200);
/// Sizes are looked up every so many intervals.
const SIZES_EVERY: u32 = 10;

const MAGIC: &[u8; 8] = b"dtkv-wm1";
const RECORD_BYTES: usize = 20;
/// Two records, on pages of their own: a torn write leaves the other.
const SLOTS: [u64; 2] = [0, 4096];
const FILE_BYTES: u64 = 8192;

/// The file.
pub(super) struct WatermarkFile {
    file: File,
    durable: u64,
    next_slot: usize,
}

impl WatermarkFile {
    /// Opens it, or makes it for a fresh directory.
    pub(super) fn open(directory: &Path, fresh: bool) -> Result<WatermarkFile, EngineError> {
        let path = directory.join(FILE);
        if fresh {
            return WatermarkFile::create(directory, &path).map_err(|e| EngineError::io(&path, e));
        }
        let file = match OpenOptions::new().read(true).write(true).open(&path) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                return Err(EngineError::BadWatermark { file: path });
            }
            Err(e) => return Err(EngineError::io(&path, e)),
        };
        WatermarkFile::read(file, path)
    }

    fn create(directory: &Path, path: &Path) -> io::Result<WatermarkFile> {
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(path)?;
        // Written in full, so that later syncs change no metadata.
        file.write_all_at(&[0; FILE_BYTES as usize], 0)?;
        let mut created = WatermarkFile { file, durable: 0, next_slot: 0 };
        created.store(0)?;
        sync_directory(directory)?;
        Ok(created)
    }

    fn read(file: File, path: PathBuf) -> Result<WatermarkFile, EngineError> {
        let mut best = None;
        for (slot, offset) in SLOTS.into_iter().enumerate() {
            let mut record = [0; RECORD_BYTES];
            let complete = file.read_exact_at(&mut record, offset).is_ok();
            let found = decode(&record).filter(|_| complete).map(|durable| (durable, slot));
            best = best.max(found);
        }
        match best {
            Some((durable, slot)) => Ok(WatermarkFile { file, durable, next_slot: 1 - slot }),
            None => Err(EngineError::BadWatermark { file: path }),
        }
    }

    /// The last write that is known to be durable.
    pub(super) fn durable(&self) -> u64 {
        self.durable
    }

    fn store(&mut self, durable: u64) -> io::Result<()> {
        self.file.write_all_at(&encode(durable), SLOTS[self.next_slot])?;
        self.file.sync_data()?;
        self.durable = durable;
        self.next_slot = 1 - self.next_slot;
        Ok(())
    }
}

fn encode(durable: u64) -> [u8; RECORD_BYTES] {
    let mut record = [0; RECORD_BYTES];
    record[..8].copy_from_slice(MAGIC);
    record[8..16].copy_from_slice(&durable.to_le_bytes());
    let checksum = crc32c::crc32c(&record[..16]);
    record[16..].copy_from_slice(&checksum.to_le_bytes());
    record
}

fn decode(record: &[u8; RECORD_BYTES]) -> Option<u64> {
    let durable = u64::from_le_bytes(record[8..16].try_into().ok()?);
    (encode(durable) == *record).then_some(durable)
}

/// Writes the file, and looks up sizes and the free space on the way.
pub(super) struct WatermarkKeeper {
    commit: Arc<Commit>,
    rocks: Arc<Rocks>,
    space: Arc<SpaceWatch>,
    metrics: EngineMetrics,
    stopping: Mutex<bool>,
    wake: Condvar,
}

impl WatermarkKeeper {
    pub(super) fn new(
        commit: Arc<Commit>,
        rocks: Arc<Rocks>,
        space: Arc<SpaceWatch>,
        metrics: EngineMetrics,
    ) -> WatermarkKeeper {
        WatermarkKeeper { commit, rocks, space, metrics, stopping: Mutex::new(false), wake: Condvar::new() }
    }

    /// Ends the thread after a last write of the file.
    pub(super) fn stop(&self) {
        *self.stopping.lock() = true;
        self.wake.notify_all();
    }

    fn run(&self, mut file: WatermarkFile) {
        for round in 0u32.. {
            let stopping = self.wait();
            let durable = self.commit.durable();
            if durable != file.durable
                && let Err(cause) = file.store(durable)
            {
                return self.commit.fail(&format!("the {FILE} file: {cause}"), Vec::new());
            }
            if stopping {
                return;
            }
            self.space.look();
            if round.is_multiple_of(SIZES_EVERY) {
                self.look_up_sizes();
            }
        }
    }

    fn wait(&self) -> bool {
        let mut stopping = self.stopping.lock();
        if !*stopping {
            self.wake.wait_for(&mut stopping, INTERVAL);
        }
        *stopping
    }

    fn look_up_sizes(&self) {
        for family in Family::ALL {
            let (memtables, tables) = self.rocks.sizes(family);
            let label = &[family.name()];
            self.metrics.memtable_bytes.with_label_values(label).set(memtables as i64);
            self.metrics.sst_bytes.with_label_values(label).set(tables as i64);
        }
    }
}

/// Starts the thread.
pub(super) fn spawn(keeper: &Arc<WatermarkKeeper>, file: WatermarkFile) -> JoinHandle<()> {
    let keeper = keeper.clone();
    let thread = std::thread::Builder::new().name("engine-mark".into());
    thread
        .spawn(move || keeper.run(file))
        .expect("the operating system starts a thread at the start of the node")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_whole_record_wins() {
        let dir = tempfile::tempdir().unwrap();
        let mut file = WatermarkFile::open(dir.path(), true).unwrap();
        for durable in [5, 9, 12] {
            file.store(durable).unwrap();
            assert_eq!(WatermarkFile::open(dir.path(), false).unwrap().durable(), durable);
        }
        let torn = SLOTS[1 - file.next_slot] + 10;
        file.file.write_all_at(&[0xff], torn).unwrap();
        let mut after = WatermarkFile::open(dir.path(), false).unwrap();
        assert_eq!(after.durable(), 9);
        after.store(13).unwrap();
        assert_eq!(WatermarkFile::open(dir.path(), false).unwrap().durable(), 13);
    }

    #[test]
    fn a_missing_or_damaged_file_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(WatermarkFile::open(dir.path(), false), Err(EngineError::BadWatermark { .. })));
        std::fs::write(dir.path().join(FILE), b"short").unwrap();
        assert!(matches!(WatermarkFile::open(dir.path(), false), Err(EngineError::BadWatermark { .. })));
        std::fs::write(dir.path().join(FILE), [0; FILE_BYTES as usize]).unwrap();
        assert!(matches!(WatermarkFile::open(dir.path(), false), Err(EngineError::BadWatermark { .. })));
    }
}
