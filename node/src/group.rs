//! One replica of one group, on openraft.

pub mod inbound;
pub mod network;
pub mod raft;
pub mod snapshot;
