//! Why a data directory cannot be used.

use std::io;
use std::path::{Path, PathBuf};

/// Why the engine does not open. Every message says what to do.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The directory was written by a newer build.
    #[error(
        "{path} has data format {found}, this build knows formats up to {known}: run the newer build again; \
         older builds cannot read this directory"
    )]
    NewerFormat {
        /// The data directory.
        path: PathBuf,
        /// Its format.
        found: u32,
        /// Newest format of this build.
        known: u32,
    },
    /// The file that names the format cannot be understood.
    #[error(
        "{file} does not name a data format (it holds {found:?}): this is not a DtKV data directory, or it is \
         damaged; use another directory, or replace the node by a new one with an empty directory"
    )]
    BadFormat {
        /// The file.
        file: PathBuf,
        /// What stands in it.
        found: String,
    },
    /// Data without a format.
    #[error(
        "{path} holds data but no FORMAT file: it was damaged or copied in part; do not start this node on it, \
         replace it by a new node with an empty directory"
    )]
    NoFormat {
        /// The data directory.
        path: PathBuf,
    },
    /// Another process has the directory.
    #[error(
        "{path} is in use by another process: stop it first, or give this node a directory of its own ({cause})"
    )]
    Locked {
        /// The data directory.
        path: PathBuf,
        /// RocksDB's words.
        cause: String,
    },
    /// Writes that were known to be durable are gone.
    #[error(
        "{path} came back without acknowledged writes: it ends at write {found}, but write {durable} was known to \
         be durable. The disk lost or damaged data. This node must not vote again with it: remove the node from its \
         groups, and let it join as a new node with a new id and an empty directory"
    )]
    LostWrites {
        /// The data directory.
        path: PathBuf,
        /// Last write found.
        found: u64,
        /// Last write known to be durable.
        durable: u64,
    },
    /// The record of what is durable is gone.
    #[error(
        "{file} is missing or damaged, so nobody can tell whether acknowledged writes were lost. This node must not \
         vote again with this directory: remove the node from its groups, and let it join as a new node with a new \
         id and an empty directory"
    )]
    BadWatermark {
        /// The file.
        file: PathBuf,
    },
    /// RocksDB does not open.
    #[error(
        "{path} cannot be opened: {cause}. When the disk is sound and the directory complete, report this as a \
         defect; else replace the node by a new one with an empty directory"
    )]
    Rocks {
        /// The data directory.
        path: PathBuf,
        /// RocksDB's words.
        cause: String,
    },
    /// The operating system refuses.
    #[error("{path}: {cause}; check that the directory exists, is writable by this user and has space")]
    Io {
        /// What was touched.
        path: PathBuf,
        /// Its words.
        cause: io::Error,
    },
}

impl EngineError {
    pub(super) fn io(path: &Path, cause: io::Error) -> EngineError {
        EngineError::Io { path: path.to_owned(), cause }
    }
}
