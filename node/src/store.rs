//! Every replica of this node over one engine and one transport.

pub mod admin;
pub mod identity;
pub mod inbound;
pub mod records;
pub mod ticker;

use crate::engine::Engine;
use crate::failure::Failure;
use crate::group::lifecycle::GroupParts;
use crate::group::metrics::GroupMetrics;
use crate::group::{Group, GroupOptions};
use crate::ids::{GroupId, NodeId};
use crate::storage_v1 as pb;
use crate::store::identity::NodeIdentity;
use crate::transport::Transport;
use dtkv_client::v1;
use parking_lot::{Mutex, RwLock};
use rustc_hash::FxHashMap;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// When a write that was refused for want of disk space may come again.
const SPACE_RETRY_AFTER_MS: u32 = 1_000;

/// How the replicas of a node behave.
#[derive(Clone, Debug)]
pub struct StoreOptions {
    /// Options of every replica.
    pub group: GroupOptions,
    /// How often the upkeep of the groups runs.
    pub tick_interval: Duration,
    /// fsync or os, for people.
    pub durability: &'static str,
    /// How this node is reached.
    pub address: v1::NodeAddress,
}

/// A node must not start like this.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The identity on disk and the configuration do not fit.
    #[error("{0}")]
    Identity(String),
    /// The engine failed.
    #[error("the store cannot be opened: {0}")]
    Io(#[from] io::Error),
}

struct Inner {
    engine: Engine,
    transport: Transport,
    options: StoreOptions,
    metrics: GroupMetrics,
    started: Instant,
    identity: RwLock<NodeIdentity>,
    groups: RwLock<FxHashMap<GroupId, Group>>,
    /// Groups that could not be opened, and why.
    failed: RwLock<FxHashMap<GroupId, String>>,
    /// Bootstraps, destructions and other changes of what this node hosts, one at a time.
    changing: tokio::sync::Mutex<()>,
    evicting_until: Mutex<Option<Instant>>,
    ticker: Mutex<Option<tokio::task::JoinHandle<()>>>,
}

/// A handle on the store of this node.
#[derive(Clone)]
pub struct Store(Arc<Inner>);

impl Store {
    /// Starts every replica that this node hosts. `identity` comes from [`identity::load`], the
    /// transport was made for it. A replica that cannot be opened keeps no other from serving.
    ///
    /// # Errors
    /// When the engine fails.
    pub async fn open(
        options: StoreOptions,
        identity: NodeIdentity,
        engine: Engine,
        transport: Transport,
        metrics: GroupMetrics,
    ) -> Result<Store, StoreError> {
        let store = Store(Arc::new(Inner {
            engine,
            transport,
            options,
            metrics,
            started: crate::clock::now(),
            identity: RwLock::new(identity),
            groups: RwLock::default(),
            failed: RwLock::default(),
            changing: tokio::sync::Mutex::new(()),
            evicting_until: Mutex::new(None),
            ticker: Mutex::new(None),
        }));
        for descriptor in records::descriptors(&store.0.engine)? {
            let id = GroupId(descriptor.group_id);
            if let Err(error) = store.start_group(&descriptor).await {
                tracing::error!(group = %id, %error, "the replica cannot be opened; the others serve");
                store.0.failed.write().insert(id, error.to_string());
            }
        }
        store.0.transport.set_inbound(Arc::new(inbound::StoreInbound::new(&store)));
        let ticker = tokio::spawn(ticker::run(Arc::downgrade(&store.0)));
        *store.0.ticker.lock() = Some(ticker);
        Ok(store)
    }

    /// The replica of a group.
    ///
    /// # Errors
    /// GROUP_NOT_FOUND, or INTERNAL when it is here but could not be opened.
    pub fn group(&self, id: GroupId) -> Result<Group, Failure> {
        if let Some(group) = self.0.groups.read().get(&id) {
            return Ok(group.clone());
        }
        match self.0.failed.read().get(&id) {
            Some(error) => {
                Err(Failure::internal(format!("the replica of {id} on this node failed: {error}")))
            }
            None => Err(Failure::group_not_found(id)),
        }
    }

    /// Every replica, by group id.
    pub fn groups(&self) -> Vec<Group> {
        let mut groups: Vec<Group> = self.0.groups.read().values().cloned().collect();
        groups.sort_by_key(Group::id);
        groups
    }

    /// Groups that could not be opened, and why.
    pub fn failed_groups(&self) -> Vec<(GroupId, String)> {
        let mut failed: Vec<_> =
            self.0.failed.read().iter().map(|(id, error)| (*id, error.clone())).collect();
        failed.sort();
        failed
    }

    /// Who this node is and what it does.
    pub fn identity(&self) -> v1::IdentityResponse {
        let identity = self.0.identity.read();
        let groups = self.0.groups.read();
        let disk = self.0.engine.disk_space();
        v1::IdentityResponse {
            cluster_id: identity.cluster_id.clone(),
            node_id: identity.node_id.0,
            incarnation: identity.incarnation.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            disk_format_version: crate::engine::FORMAT_VERSION,
            operator_epoch: identity.operator_epoch,
            draining: identity.draining,
            evicting_leaders: self.is_evicting_leaders(),
            durability: self.0.options.durability.to_owned(),
            address: Some(self.0.options.address.clone()),
            uptime_ms: self.0.started.elapsed().as_millis() as u64,
            groups: groups.len() as u32,
            leaders: groups.values().filter(|group| group.is_leader()).count() as u32,
            disk_free_bytes: disk.free_bytes,
            disk_reserve_bytes: disk.reserve_bytes,
            disk_low: disk.is_low,
        }
    }

    /// Whether every replica serves that is led, or could be.
    pub fn is_ready(&self) -> bool {
        self.0.groups.read().values().all(|group| group.is_ready() || group.is_left_alone())
    }

    /// Refuses what makes the data grow while the disk has too little space.
    ///
    /// # Errors
    /// OVERLOADED, with the setting that says how much is too little.
    pub fn check_space(&self) -> Result<(), Failure> {
        if !self.0.engine.is_disk_low() {
            return Ok(());
        }
        let disk = self.0.engine.disk_space();
        let message = format!(
            "the disk of this node is nearly full: {} bytes are free, node.disk_reserve_bytes is {}; until there \
             is space again only reads and removes are served",
            disk.free_bytes, disk.reserve_bytes
        );
        Err(Failure::overloaded(message, SPACE_RETRY_AFTER_MS))
    }

    /// This node.
    pub fn node_id(&self) -> NodeId {
        self.0.identity.read().node_id
    }

    /// Where a node is, for hints.
    pub fn address(&self, node: NodeId) -> Option<v1::NodeAddress> {
        if node == self.node_id() {
            return Some(self.0.options.address.clone());
        }
        self.0.transport.book().get(node).map(admin::public_address)
    }

    fn is_evicting_leaders(&self) -> bool {
        self.0.evicting_until.lock().is_some_and(|until| crate::clock::now() < until)
    }

    async fn start_group(&self, descriptor: &pb::Descriptor) -> io::Result<Group> {
        let id = GroupId(descriptor.group_id);
        let group = Group::start(GroupParts {
            id,
            node_id: self.node_id(),
            generation: descriptor.generation,
            options: self.0.options.group.clone(),
            engine: self.0.engine.clone(),
            transport: self.0.transport.clone(),
            metrics: self.0.metrics.clone(),
        })
        .await?;
        self.0.groups.write().insert(id, group.clone());
        Ok(group)
    }

    /// Hands leadership over, answers what is on its way, stops every replica.
    pub async fn shutdown(&self, handover_timeout: Duration) {
        let groups = self.groups();
        futures::future::join_all(groups.iter().map(|group| group.hand_over(handover_timeout))).await;
        if let Some(ticker) = self.0.ticker.lock().take() {
            ticker.abort();
        }
        futures::future::join_all(groups.iter().map(Group::shutdown)).await;
    }
}

#[cfg(test)]
mod simulation;
