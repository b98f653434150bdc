//! One replica of one group, on openraft.

pub mod raft;
pub mod snapshot;
