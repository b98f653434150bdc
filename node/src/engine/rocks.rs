//! RocksDB as the engine sets it up, and its errors in our words.

use super::scan::Record;
use super::{EngineError, EngineOptions, Write, WriteOp};
use crate::keyspace::Family;
use rocksdb::{
    BlockBasedOptions, Cache, ColumnFamily, ColumnFamilyDescriptor, DB, DBCompactionStyle, DBCompressionType,
    DBRecoveryMode, Direction, FlushOptions, IteratorMode, Options, ReadOptions, UniversalCompactOptions,
    WriteBatch,
};
use std::io;
use std::path::Path;

const STATE_BUFFER_BYTES: usize = 32 << 20;
const META_BUFFER_BYTES: usize = 4 << 20;
const BLOCK_CACHE_BYTES: usize = 32 << 20;
const BLOCK_BYTES: usize = 16 << 10;
const READAHEAD_BYTES: usize = 1 << 20;

/// The open database.
pub(super) struct Rocks {
    db: DB,
    log_buffer_bytes: usize,
}

impl Rocks {
    pub(super) fn open(options: &EngineOptions) -> Result<Rocks, EngineError> {
        let cache = Cache::new_lru_cache(BLOCK_CACHE_BYTES);
        let families = Family::ALL.map(|family| {
            let settings = family_options(family, options.write_buffer_bytes, &cache);
            ColumnFamilyDescriptor::new(family.name(), settings)
        });
        let path = options.path.join("db");
        let db = DB::open_cf_descriptors(&database_options(options), &path, families)
            .map_err(|e| open_error(&options.path, e))?;
        Ok(Rocks { db, log_buffer_bytes: options.write_buffer_bytes })
    }

    fn family(&self, family: Family) -> &ColumnFamily {
        self.db.cf_handle(family.name()).expect("the family was opened with the database")
    }

    /// Number of the last operation written.
    pub(super) fn latest_sequence(&self) -> u64 {
        self.db.latest_sequence_number()
    }

    /// Puts writes into the memtables and the log's buffer. Not durable before a sync. Returns
    /// the size of the batch.
    pub(super) fn write(&self, writes: &[Write], bytes: usize) -> io::Result<usize> {
        // Three handles for thousands of operations.
        let handles = Family::ALL.map(|family| self.family(family));
        let mut batch = WriteBatch::with_capacity_bytes(bytes + 64);
        for op in writes.iter().flat_map(|write| &write.ops) {
            add(&mut batch, &handles, op);
        }
        let size = batch.size_in_bytes();
        if !batch.is_empty() {
            self.db.write(batch).map_err(io_error)?;
        }
        if writes.iter().flat_map(|write| &write.ops).any(is_purge) {
            self.flush_purged_log()?;
        }
        Ok(size)
    }

    /// Starts to write the memtable of the log out, when it is rather full. Right after a purge least of
    /// it is alive, and only that is written: pages of new files are what writing costs most.
    fn flush_purged_log(&self) -> io::Result<()> {
        let log = self.family(Family::Log);
        let name = rocksdb::properties::CUR_SIZE_ACTIVE_MEM_TABLE;
        let bytes = self.db.property_int_value_cf(log, name).map_err(io_error)?.unwrap_or(0);
        if bytes < (self.log_buffer_bytes / 4 * 3) as u64 {
            return Ok(());
        }
        let mut options = FlushOptions::default();
        options.set_wait(false);
        self.db.flush_cf_opt(log, &options).map_err(io_error)
    }

    /// Hands what was written to the operating system, and with `sync` to the disk.
    pub(super) fn flush_log(&self, sync: bool) -> io::Result<()> {
        self.db.flush_wal(sync).map_err(io_error)
    }

    pub(super) fn get(&self, family: Family, key: &[u8]) -> io::Result<Option<Vec<u8>>> {
        self.db.get_cf(self.family(family), key).map_err(io_error)
    }

    pub(super) fn scan(
        &self,
        family: Family,
        from: &[u8],
        to: &[u8],
    ) -> impl Iterator<Item = io::Result<Record>> + use<'_> {
        let mode = IteratorMode::From(from, Direction::Forward);
        let records = self.db.iterator_cf_opt(self.family(family), range_options(from, to), mode);
        // RocksDB takes a range that ends before it begins for the whole family.
        let empty = from >= to;
        records.take_while(move |_| !empty).map(|record| record.map_err(io_error))
    }

    /// Calls `each` for the records as they are now, after telling `ready` that "now" has begun.
    pub(super) fn scan_snapshot(
        &self,
        family: Family,
        from: &[u8],
        to: &[u8],
        ready: impl FnOnce(),
        mut each: impl FnMut(io::Result<Record>) -> bool,
    ) {
        let snapshot = self.db.snapshot();
        ready();
        if from >= to {
            return;
        }
        let mode = IteratorMode::From(from, Direction::Forward);
        let records = snapshot.iterator_cf_opt(self.family(family), range_options(from, to), mode);
        for record in records {
            if !each(record.map_err(io_error)) {
                return;
            }
        }
    }

    pub(super) fn free_files(&self, family: Family, from: &[u8], to: &[u8]) -> io::Result<()> {
        self.db.delete_file_in_range_cf(self.family(family), from, to).map_err(io_error)
    }

    /// Memory of the memtables and bytes of the table files of a family.
    pub(super) fn sizes(&self, family: Family) -> (u64, u64) {
        let property = |name: &rocksdb::properties::PropName| {
            self.db.property_int_value_cf(self.family(family), name).ok().flatten().unwrap_or(0)
        };
        (
            property(rocksdb::properties::CUR_SIZE_ALL_MEM_TABLES),
            property(rocksdb::properties::TOTAL_SST_FILES_SIZE),
        )
    }

    /// Writes memtables to table files, so that tests can look at what lies on the disk.
    #[cfg(test)]
    pub(super) fn flush_tables(&self) {
        for family in Family::ALL {
            self.db.flush_cf(self.family(family)).unwrap();
        }
    }
}

fn is_purge(op: &WriteOp) -> bool {
    matches!(op, WriteOp::DeleteRange { family: Family::Log, .. })
}

fn add(batch: &mut WriteBatch, handles: &[&ColumnFamily; 3], op: &WriteOp) {
    match op {
        WriteOp::Put { family, key, value } => batch.put_cf(handles[*family as usize], key, value),
        WriteOp::Delete { family, key } => batch.delete_cf(handles[*family as usize], key),
        WriteOp::DeleteRange { family, from, to } if from < to => {
            batch.delete_range_cf(handles[*family as usize], from, to);
        }
        WriteOp::DeleteRange { .. } => {}
    }
}

fn range_options(from: &[u8], to: &[u8]) -> ReadOptions {
    let mut options = ReadOptions::default();
    options.set_iterate_lower_bound(from);
    options.set_iterate_upper_bound(to);
    options.set_readahead_size(READAHEAD_BYTES);
    options.fill_cache(false);
    options
}

fn database_options(options: &EngineOptions) -> Options {
    let mut db = Options::default();
    db.create_if_missing(true);
    db.create_missing_column_families(true);
    // The commit threads flush and sync by themselves, so that a batch is built during a sync.
    db.set_manual_wal_flush(true);
    // A sync of a file that is overwritten needs no journal commit: twice as many syncs. The
    // stricter recovery modes switch recycling off; what point-in-time recovery drops silently is
    // found by the watermark.
    db.set_recycle_log_file_num(4);
    db.set_wal_recovery_mode(DBRecoveryMode::PointInTime);
    // Records in the small families must not keep old log files from being used again.
    db.set_max_total_wal_size(2 * options.write_buffer_bytes as u64);
    db.set_bytes_per_sync(1 << 20);
    db.set_wal_bytes_per_sync(512 << 10);
    // One thread writes at a time.
    db.set_allow_concurrent_memtable_write(false);
    db.set_enable_write_thread_adaptive_yield(false);
    db.set_max_background_jobs(2);
    db.set_max_file_opening_threads(2);
    db.set_keep_log_file_num(4);
    db.set_max_log_file_size(4 << 20);
    db.set_stats_dump_period_sec(0);
    db.set_stats_persist_period_sec(0);
    db
}

fn family_options(family: Family, log_buffer_bytes: usize, cache: &Cache) -> Options {
    let mut table = BlockBasedOptions::default();
    table.set_block_cache(cache);
    table.set_block_size(BLOCK_BYTES);
    let mut options = Options::default();
    options.set_block_based_table_factory(&table);
    options.set_compression_type(DBCompressionType::None);
    match family {
        Family::Log => log_options(&mut options, log_buffer_bytes),
        Family::State => {
            options.set_write_buffer_size(STATE_BUFFER_BYTES);
            options.set_max_write_buffer_number(3);
        }
        Family::Meta => options.set_write_buffer_size(META_BUFFER_BYTES),
    }
    options
}

/// Entries die young: most are purged before their memtable is written out, and nearly all before
/// a compaction would pay.
fn log_options(options: &mut Options, buffer_bytes: usize) {
    options.set_write_buffer_size(buffer_bytes);
    options.set_max_write_buffer_number(4);
    options.set_compaction_style(DBCompactionStyle::Universal);
    options.set_universal_compaction_options(&UniversalCompactOptions::default());
    options.set_level_zero_file_num_compaction_trigger(8);
    options.set_level_zero_slowdown_writes_trigger(40);
    options.set_level_zero_stop_writes_trigger(64);
}

fn open_error(path: &Path, error: rocksdb::Error) -> EngineError {
    let cause = error.to_string();
    let path = path.to_owned();
    // RocksDB has no kind of its own for this.
    if cause.contains("While lock file") || cause.contains("lock hold by current process") {
        EngineError::Locked { path, cause }
    } else {
        EngineError::Rocks { path, cause }
    }
}

fn io_error(error: rocksdb::Error) -> io::Error {
    let kind = match error.kind() {
        rocksdb::ErrorKind::Corruption => io::ErrorKind::InvalidData,
        rocksdb::ErrorKind::ShutdownInProgress => io::ErrorKind::BrokenPipe,
        _ => io::ErrorKind::Other,
    };
    io::Error::new(kind, error.to_string())
}
