//! What a snapshot of a group is made of: not bytes but a handle on records.

use std::fmt;

/// Records of one group's state: node key and record bytes, in key order.
pub type Records = Box<dyn Iterator<Item = std::io::Result<(Box<[u8]>, Box<[u8]>)>> + Send>;

/// openraft's `SnapshotData`.
pub enum SnapshotHandle {
    /// A checkpoint was written; there is nothing to read.
    Checkpointed,
    /// To be streamed to a follower: a consistent view of the last checkpoint.
    Outgoing(Records),
    /// Received from a leader and lying in the engine under this epoch.
    Received {
        /// Where the records lie.
        epoch: u64,
    },
}

impl fmt::Debug for SnapshotHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SnapshotHandle::Checkpointed => f.write_str("Checkpointed"),
            SnapshotHandle::Outgoing(_) => f.write_str("Outgoing"),
            SnapshotHandle::Received { epoch } => write!(f, "Received(epoch {epoch})"),
        }
    }
}
