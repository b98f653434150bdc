//! Stands in for a cluster of one node: groups 1 and 2 in memory, without Raft.

mod admin;
mod kv;
#[path = "../library/fake/owners.rs"]
mod owners;
mod tree;

use dtkv_client::v1::admin_server::AdminServer;
use dtkv_client::v1::failure::Reason;
use dtkv_client::v1::kv_server::KvServer;
use dtkv_client::v1::{Failure, NodeAddress};
use parking_lot::Mutex;
use prost::Message;
use std::collections::BTreeMap;
use std::sync::Arc;
use tonic::Status;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tree::Tree;

pub const CLUSTER_ID: &str = "cluster-of-tests";

/// What the services share.
#[derive(Default)]
struct State {
    address: String,
    trees: Mutex<BTreeMap<u32, Tree>>,
    /// Every write is answered with this.
    failure: Mutex<Option<Failure>>,
    /// Calls that change the cluster, in words.
    calls: Mutex<Vec<String>>,
}

impl State {
    fn own_address(&self) -> NodeAddress {
        NodeAddress { node_id: 1, client_address: self.address.clone(), peer_address: "127.0.0.1:1".into() }
    }

    fn with_tree<T>(&self, group: u32, work: impl FnOnce(&mut Tree) -> T) -> Result<T, Failure> {
        let mut trees = self.trees.lock();
        let tree = trees.get_mut(&group).ok_or_else(|| failure(Reason::GroupNotFound, false))?;
        Ok(work(tree))
    }

    fn note(&self, call: String) {
        self.calls.lock().push(call);
    }
}

pub fn failure(reason: Reason, outcome_unknown: bool) -> Failure {
    let message = format!("the fake answers {}", reason.as_str_name());
    Failure { reason: reason.into(), message, outcome_unknown, ..Failure::default() }
}

fn status(failure: &Failure) -> Status {
    let code = if failure.reason() == Reason::Timeout {
        tonic::Code::DeadlineExceeded
    } else {
        tonic::Code::FailedPrecondition
    };
    Status::with_details(code, failure.message.clone(), failure.encode_to_vec().into())
}

/// The running stand-in; it ends with this value.
pub struct Fake {
    state: Arc<State>,
    _runtime: tokio::runtime::Runtime,
}

impl Fake {
    pub fn start() -> Fake {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let incoming = {
            let _guard = runtime.enter();
            TcpIncoming::bind("127.0.0.1:0".parse().unwrap()).unwrap()
        };
        let address = incoming.local_addr().unwrap().to_string();
        let trees = [(1, Tree::default()), (2, Tree::default())].into();
        let state = Arc::new(State { address, trees: Mutex::new(trees), ..State::default() });
        let server = Server::builder()
            .add_service(KvServer::new(kv::Service(state.clone())))
            .add_service(AdminServer::new(admin::Service(state.clone())));
        runtime.spawn(server.serve_with_incoming(incoming));
        Fake { state, _runtime: runtime }
    }

    pub fn address(&self) -> &str {
        &self.state.address
    }

    /// From now on every write is answered with this failure.
    pub fn fail_writes(&self, failure: Failure) {
        *self.state.failure.lock() = Some(failure);
    }

    /// Looks at the temporary nodes and locks of group 1, or changes them.
    pub fn owners<T>(&self, work: impl FnOnce(&mut owners::Owners) -> T) -> T {
        self.state.with_tree(1, |tree| work(&mut tree.owners)).unwrap()
    }

    /// Calls that changed the cluster.
    pub fn calls(&self) -> Vec<String> {
        self.state.calls.lock().clone()
    }
}
