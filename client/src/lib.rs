//! DtKV's public contract and its Rust client.

pub mod admin;
mod answer;
mod batch;
mod channel;
mod client;
mod dispatch;
mod error;
mod group;
mod lane;
mod limit;
pub mod limits;
mod list;
pub mod packed;
mod pipe;
pub mod placement;
mod retry;
mod route;
mod unary;

pub use answer::{
    BatchRead, BatchWritten, CasOutcome, Expect, ListOptions, Made, MkdirOptions, New, Node, OpAnswer,
    OpResult, Page, PutOptions, ReadAnswer, RemoveOptions, Removed, Written,
};
pub use client::{Client, ClientBuilder};
pub use error::{Error, ErrorKind, explain};
pub use group::Group;
pub use v1::Consistency;

/// The generated types of package `dtkv.v1`, client and server stubs.
#[allow(missing_docs, clippy::unwrap_used, clippy::doc_lazy_continuation)]
pub mod v1 {
    tonic::include_proto!("dtkv.v1");

    /// The compiled descriptor of the package, for reflection and compatibility checks.
    pub const DESCRIPTOR: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/dtkv_v1.bin"));
}
