//! DtKV's public contract and its Rust client.

pub mod limits;
pub mod packed;

/// The generated types of package `dtkv.v1`, client and server stubs.
#[allow(missing_docs, clippy::unwrap_used, clippy::doc_lazy_continuation)]
pub mod v1 {
    tonic::include_proto!("dtkv.v1");

    /// The compiled descriptor of the package, for reflection and compatibility checks.
    pub const DESCRIPTOR: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/dtkv_v1.bin"));
}
