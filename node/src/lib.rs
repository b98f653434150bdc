//! A DtKV store node.
//!
//! [`Node::build`] wires it together, [`Node::run`] serves until it is told to stop.

pub mod accept;
pub mod cli;
pub mod clock;
pub mod config;
pub mod dev;
pub mod engine;
pub mod failure;
pub mod group;
pub mod ids;
pub mod keyspace;
pub mod machine;
pub mod peer_codec;
mod planted;
pub mod service;
pub mod session;
pub mod store;
pub mod telemetry;
pub mod transport;
pub mod tree;
pub mod watch;
mod wiring;

pub use wiring::{Node, NodeError};

/// What store nodes say to each other, and how entries stand on disk.
#[allow(missing_docs, clippy::unwrap_used, clippy::doc_lazy_continuation, clippy::large_enum_variant)]
pub mod peer_v1 {
    tonic::include_proto!("dtkv.peer.v1");
}

/// What stands on disk besides log entries and tree nodes.
#[allow(missing_docs, clippy::unwrap_used, clippy::doc_lazy_continuation)]
pub mod storage_v1 {
    include!(concat!(env!("OUT_DIR"), "/storage/dtkv.storage.v1.rs"));
}
