//! A consistent look at a range of keys that outlives the call which asked for it.

use super::rocks::Rocks;
use crate::keyspace::Family;
use crossbeam_channel::{Receiver, bounded};
use std::io;
use std::sync::Arc;

/// Key and value.
pub type Record = (Box<[u8]>, Box<[u8]>);

type Chunk = Vec<io::Result<Record>>;

const CHUNK_BYTES: usize = 256 << 10;
/// The reading thread is at most this many chunks ahead.
const CHUNKS_AHEAD: usize = 2;

/// Records of a range as they were when it was made. A thread of its own holds RocksDB's snapshot
/// and ends when this is dropped or read to its end.
pub struct SnapshotScan {
    chunks: Receiver<Chunk>,
    current: std::vec::IntoIter<io::Result<Record>>,
}

impl SnapshotScan {
    pub(super) fn start(
        rocks: Arc<Rocks>,
        family: Family,
        from: Vec<u8>,
        to: Vec<u8>,
    ) -> io::Result<SnapshotScan> {
        let (chunks_in, chunks) = bounded(CHUNKS_AHEAD);
        let (tell_ready, ready) = bounded(1);
        std::thread::Builder::new().name("engine-scan".into()).spawn(move || {
            let mut chunk = Chunk::new();
            let mut bytes = 0;
            let begun = || {
                let _ = tell_ready.send(());
            };
            rocks.scan_snapshot(family, &from, &to, begun, |record| {
                bytes += record.as_ref().map_or(0, |(key, value)| key.len() + value.len());
                chunk.push(record);
                if bytes < CHUNK_BYTES {
                    return true;
                }
                bytes = 0;
                chunks_in.send(std::mem::take(&mut chunk)).is_ok()
            });
            // Nobody listens any more, or the rest; either way this thread is done.
            let _ = chunks_in.send(chunk);
        })?;
        ready.recv().map_err(|_| io::Error::other("the scan's thread ended before it began"))?;
        Ok(SnapshotScan { chunks, current: Vec::new().into_iter() })
    }
}

impl Iterator for SnapshotScan {
    type Item = io::Result<Record>;

    fn next(&mut self) -> Option<io::Result<Record>> {
        loop {
            if let Some(record) = self.current.next() {
                return Some(record);
            }
            self.current = self.chunks.recv().ok()?.into_iter();
        }
    }
}
