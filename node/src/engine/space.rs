//! Free space of the disk under the data directory.
//!
//! A write that fails for want of space ends the process, so growth has to stop before: below the
//! reserve the node refuses it. What is left then is for votes, removes, entries of other leaders,
//! and the flushes and compactions that give space back.

use super::EngineMetrics;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Largest reserve that is taken when none is set: this, or a part of a small disk.
const RESERVE_BYTES_MAX: u64 = 512 << 20;
const RESERVE_PART: u64 = 20;
/// The part of the reserve that must be free beyond it before growth goes on: no flapping.
const RELIEF_PART: u64 = 8;

/// Size of a disk and what of it is free, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiskSize {
    /// Free for this process.
    pub free: u64,
    /// All of it.
    pub total: u64,
}

/// Looks at the disk under a directory.
pub type DiskProbe = Arc<dyn Fn(&Path) -> io::Result<DiskSize> + Send + Sync>;

/// Asks the operating system.
///
/// # Errors
/// When the directory cannot be looked at.
pub fn disk_size(directory: &Path) -> io::Result<DiskSize> {
    let found = rustix::fs::statvfs(directory)?;
    let bytes = |blocks: u64| blocks.saturating_mul(found.f_frsize);
    Ok(DiskSize { free: bytes(found.f_bavail), total: bytes(found.f_blocks) })
}

/// What is known about the disk of an engine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DiskSpace {
    /// Free bytes at the last look; 0 when nobody could look yet.
    pub free_bytes: u64,
    /// Growth is refused below.
    pub reserve_bytes: u64,
    /// Whether growth is to be refused now.
    pub is_low: bool,
}

/// Watches the free space.
pub(super) struct SpaceWatch {
    directory: PathBuf,
    probe: DiskProbe,
    metrics: EngineMetrics,
    reserve: u64,
    free: AtomicU64,
    is_low: AtomicBool,
}

impl SpaceWatch {
    /// Looks for the first time. `reserve` None: as fits the disk; 0: never low.
    pub(super) fn new(
        directory: &Path,
        probe: DiskProbe,
        reserve: Option<u64>,
        metrics: EngineMetrics,
    ) -> SpaceWatch {
        let fitting = || match probe(directory) {
            Ok(size) => RESERVE_BYTES_MAX.min(size.total / RESERVE_PART),
            Err(_) => RESERVE_BYTES_MAX,
        };
        let reserve = reserve.unwrap_or_else(fitting);
        metrics.disk_reserve_bytes.set(as_gauge(reserve));
        let watch = SpaceWatch {
            directory: directory.to_owned(),
            probe,
            metrics,
            reserve,
            free: AtomicU64::new(0),
            is_low: AtomicBool::new(false),
        };
        watch.look();
        watch
    }

    /// Looks again. A disk that cannot be looked at stays what it was.
    pub(super) fn look(&self) {
        let free = match (self.probe)(&self.directory) {
            Ok(size) => size.free,
            Err(error) => {
                tracing::debug!(%error, "the free space of the data directory cannot be read");
                return;
            }
        };
        self.free.store(free, Ordering::Relaxed);
        self.metrics.disk_free_bytes.set(as_gauge(free));
        let was_low = self.is_low.load(Ordering::Relaxed);
        let bound =
            if was_low { self.reserve.saturating_add(self.reserve / RELIEF_PART) } else { self.reserve };
        let is_low = free < bound;
        if is_low == was_low {
            return;
        }
        self.is_low.store(is_low, Ordering::Relaxed);
        self.metrics.disk_low.set(is_low.into());
        let reserve = self.reserve;
        if is_low {
            tracing::warn!(free, reserve, "the disk is nearly full: writes that grow are refused");
        } else {
            tracing::info!(free, reserve, "the disk has space again");
        }
    }

    pub(super) fn is_low(&self) -> bool {
        self.is_low.load(Ordering::Relaxed)
    }

    pub(super) fn state(&self) -> DiskSpace {
        DiskSpace {
            free_bytes: self.free.load(Ordering::Relaxed),
            reserve_bytes: self.reserve,
            is_low: self.is_low(),
        }
    }
}

fn as_gauge(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

/// What an operator does about a disk that failed.
pub(super) fn advice(cause: &str) -> &'static str {
    let says = |text: &str| cause.to_ascii_lowercase().contains(text);
    if says("no space left") || says("os error 28") || says("quota exceeded") {
        "Make space on the disk of node.data_dir, then start the node again on the same directory: nothing that \
         was acknowledged is lost. node.disk_reserve_bytes says how early growth is refused"
    } else {
        "Check the disk of node.data_dir (the kernel's log tells more). When it is sound, start the node again on \
         the same directory; when it lost data, remove the node from its groups and let a new one with a new id \
         and an empty directory join"
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use prometheus::Registry;

    /// A watch of a disk of 100,000 bytes whose free bytes the test sets.
    fn watch(reserve: Option<u64>) -> (Arc<AtomicU64>, SpaceWatch) {
        let free = Arc::new(AtomicU64::new(50_000));
        let seen = free.clone();
        let probe: DiskProbe =
            Arc::new(move |_| Ok(DiskSize { free: seen.load(Ordering::Relaxed), total: 100_000 }));
        let watch =
            SpaceWatch::new(Path::new("."), probe, reserve, EngineMetrics::register(&Registry::new()));
        (free, watch)
    }

    #[test]
    fn a_disk_is_low_below_its_reserve_and_heals_a_little_above() {
        let (free, watch) = watch(Some(8_000));
        for (now, is_low) in [(8_000, false), (7_999, true), (8_500, true), (8_999, true), (9_000, false)] {
            free.store(now, Ordering::Relaxed);
            watch.look();
            let expected = DiskSpace { free_bytes: now, reserve_bytes: 8_000, is_low };
            assert_eq!(watch.state(), expected);
            assert_eq!(watch.metrics.disk_low.get(), i64::from(is_low));
        }
    }

    #[test]
    fn the_reserve_fits_the_disk_unless_it_is_set() {
        assert_eq!(watch(None).1.state().reserve_bytes, 5_000);
        let (free, never) = watch(Some(0));
        free.store(0, Ordering::Relaxed);
        never.look();
        assert!(!never.is_low());
    }

    #[test]
    fn a_real_disk_has_a_size() {
        let size = disk_size(Path::new(".")).expect("this directory is on a disk");
        assert!(size.total > 0 && size.free <= size.total, "{size:?}");
        assert!(disk_size(Path::new("no/such/directory")).is_err());
    }

    #[test]
    fn a_full_disk_and_a_broken_one_need_different_things() {
        let full = "IO error: No space left on device: While appending to file: 000123.log";
        assert!(advice(full).contains("Make space") && advice(full).contains("disk_reserve_bytes"));
        assert!(advice("IO error: Input/output error").contains("Check the disk"));
    }
}
