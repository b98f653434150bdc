//! DtKV's public contract and its Rust client.
//!
//! DtKV is a key-value store of many groups. A group is a tree of keys behind one Raft log: keys
//! are segments separated by dots (`app.config.port`), inner nodes are directories. The caller
//! names the group in each call; everything inside a group is ordered by its index, nothing across
//! groups.
//!
//! # First steps
//! One endpoint is enough; the client finds the other nodes and the leader of each group, follows
//! them when they move, and reconnects.
//!
//! ```no_run
//! # async fn example() -> Result<(), dtkv_client::Error> {
//! use dtkv_client::Client;
//!
//! let client = Client::connect(["127.0.0.1:9332"]).await?;
//! let group = client.group(1);
//! group.mkdir("app").await?;
//! group.put("app.port", "8080").await?;
//! let node = group.get("app.port").await?.expect("just written");
//! assert_eq!(node.value.as_deref(), Some(&b"8080"[..]));
//! # Ok(())
//! # }
//! ```
//!
//! [`Client`] and [`Group`] are cheap to clone and to share between tasks. Concurrent calls travel
//! together, so many calls at once are the way to high rates; no call waits for others to gather.
//!
//! # What an error means
//! Every [`Error`] says whether the request may have happened:
//!
//! ```no_run
//! # async fn example(group: dtkv_client::Group) -> Result<(), dtkv_client::Error> {
//! use dtkv_client::{ErrorKind, v1::Code};
//!
//! match group.put("app.port", "8080").await {
//!     Ok(written) => println!("written at index {}", written.index),
//!     Err(error) => match error.kind() {
//!         // The store's answer: the operation was not carried out, and will not be if repeated.
//!         ErrorKind::Refused(Code::ParentDirNotExists) => drop(group.mkdir("app").await?),
//!         ErrorKind::Refused(code) => println!("refused with {code:?}"),
//!         ErrorKind::InvalidRequest => println!("change the request: {error}"),
//!         // Safe to send again. The client did so itself until the deadline.
//!         ErrorKind::DidNotHappen => println!("not done: {error}"),
//!         // Written or not: read before writing again.
//!         ErrorKind::OutcomeUnknown => println!("perhaps done: {error}"),
//!     },
//! }
//! # Ok(())
//! # }
//! ```
//!
//! What definitely did not happen is tried again within the deadline of the call (5 s unless set),
//! and so are reads; a write whose outcome is unknown never is.
//!
//! # Compare-and-set
//! Expect an index rather than a value to notice that the same value was written again:
//!
//! ```no_run
//! # async fn example(group: dtkv_client::Group) -> Result<(), dtkv_client::Error> {
//! use dtkv_client::{CasOutcome, Expect, New};
//!
//! let node = group.get("app.leader").await?;
//! let expect = node.map_or(Expect::Absent, |node| Expect::Index(node.update_index));
//! match group.compare_and_set("app.leader", expect, New::Value(b"me")).await? {
//!     CasOutcome::Swapped { index } => println!("elected at {index}"),
//!     CasOutcome::Mismatch { .. } => println!("somebody was faster"),
//! }
//! # Ok(())
//! # }
//! ```
//!
//! # Freshness of reads
//! Reads see every write acknowledged before they began. Two cheaper ways can be asked for:
//!
//! ```no_run
//! # async fn example(client: dtkv_client::Client) -> Result<(), dtkv_client::Error> {
//! use dtkv_client::Consistency;
//!
//! let stale = client.group(1).with_consistency(Consistency::Stale);
//! let answer = stale.read("app.port").await?;
//! println!("as of index {}, {:?} ms behind the leader", answer.index, answer.lag_ms);
//! # Ok(())
//! # }
//! ```
//!
//! # Listing
//! ```no_run
//! # async fn example(group: dtkv_client::Group) -> Result<(), dtkv_client::Error> {
//! use dtkv_client::ListOptions;
//! use futures::TryStreamExt;
//!
//! let options = ListOptions { keys_only: true, ..ListOptions::default() };
//! let mut nodes = group.list_all("app", options);
//! while let Some(node) = nodes.try_next().await? {
//!     println!("{}", String::from_utf8_lossy(&node.key));
//! }
//! # Ok(())
//! # }
//! ```
//!
//! # Watching
//! [`Group::watch`] tells the latest state of a key whenever it changes, [`Group::watch_events`] every
//! change at or below one. Both go on by themselves when nodes or connections are lost.
//!
//! ```no_run
//! # async fn example(group: dtkv_client::Group) -> Result<(), dtkv_client::Error> {
//! let mut port = group.watch("app.port");
//! while let Some(value) = port.next().await?.value() {
//!     println!("listen on {}", String::from_utf8_lossy(value));
//! }
//! # Ok(())
//! # }
//! ```
//!
//! # High rates
//! [`Group::submit`] packs an operation into the frame that goes out next and calls back when it is
//! answered: no task, no future. What is in flight is bounded; [`Group::ready`] waits for room.
//!
//! ```no_run
//! # async fn example(group: dtkv_client::Group) {
//! use dtkv_client::packed::{Kind, Op};
//!
//! for i in 0..1_000_000 {
//!     group.ready().await;
//!     let key = format!("bench.k{i}");
//!     group.submit(&Op::new(Kind::Put, key.as_bytes(), b"value"), |result| {
//!         if let Err(error) = result {
//!             eprintln!("{error}");
//!         }
//!     });
//! }
//! # }
//! ```
//!
//! # Administration
//! [`Client::admin`] leads to typed calls for every administrative operation and to whole steps
//! that can be repeated safely:
//!
//! ```no_run
//! # async fn example() -> Result<(), dtkv_client::Error> {
//! use dtkv_client::{Client, admin::ClusterInit};
//!
//! let nodes = ["10.0.0.1:9332", "10.0.0.2:9332", "10.0.0.3:9332"];
//! let client = Client::connect(nodes).await?;
//! let made = client.admin().cluster_init(ClusterInit::new(8, 3), |step| println!("{step:?}")).await?;
//! println!("cluster {} with groups 1 to 8", made.cluster_id);
//! # Ok(())
//! # }
//! ```

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
mod watch;

pub use answer::{
    BatchRead, BatchWritten, CasOutcome, Expect, ListOptions, Made, MkdirOptions, New, Node, OpAnswer,
    OpResult, Page, PutOptions, ReadAnswer, RemoveOptions, Removed, Written,
};
pub use client::{Client, ClientBuilder};
pub use error::{Error, ErrorKind, explain};
pub use group::Group;
pub use v1::Consistency;
pub use watch::{
    Change, Event, EventKind, EventWatch, EventWatchBuilder, Presence, Resync, State, StateWatch,
    StateWatchOptions,
};

/// The generated types of package `dtkv.v1`, client and server stubs.
#[allow(missing_docs, clippy::unwrap_used, clippy::doc_lazy_continuation)]
pub mod v1 {
    tonic::include_proto!("dtkv.v1");

    /// The compiled descriptor of the package, for reflection and compatibility checks.
    pub const DESCRIPTOR: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/dtkv_v1.bin"));
}
