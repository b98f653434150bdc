//! What the transport hands up: to the right replica, and only if it is the right generation.

use crate::failure::Failure;
use crate::ids::{GroupId, NodeId};
use crate::peer_v1 as pb;
use crate::planted::{self, Fault};
use crate::store::{Inner, Store};
use crate::transport::{Inbound, NodeAddress, ReplySender, SnapshotSink};
use futures::FutureExt;
use futures::future::BoxFuture;
use std::sync::Weak;

/// The receiving half of a store.
pub(super) struct StoreInbound(Weak<Inner>);

impl StoreInbound {
    pub(super) fn new(store: &Store) -> StoreInbound {
        StoreInbound(std::sync::Arc::downgrade(&store.0))
    }

    fn store(&self) -> Option<Store> {
        self.0.upgrade().map(Store)
    }
}

fn refuse(message: &pb::Message, reply: &ReplySender, why: String) {
    let body = Some(pb::message::Body::Refused(why));
    let (group_id, generation, call) = (message.group_id, message.generation, message.call);
    reply.send(pb::Message { group_id, generation, call, body });
}

impl Inbound for StoreInbound {
    fn message(&self, from: NodeId, message: pb::Message, reply: ReplySender) {
        let Some(store) = self.store() else { return };
        if let Some(pb::message::Body::CreateReplica(create)) = message.body {
            tokio::spawn(async move {
                store.create_replica(message.group_id, message.generation, message.call, create, reply).await
            });
            return;
        }
        match store.group(GroupId(message.group_id)) {
            Ok(group)
                if group.generation() == message.generation || planted::has(Fault::GenerationIgnored) =>
            {
                group.message(from, message, reply);
            }
            Ok(group) => {
                let why = format!(
                    "{} here is another generation of the group: it was destroyed and created again",
                    group.id()
                );
                refuse(&message, &reply, why);
            }
            Err(failure) => refuse(&message, &reply, failure.message),
        }
    }

    fn snapshot(
        &self,
        from: NodeId,
        header: pb::SnapshotHeader,
    ) -> BoxFuture<'static, Result<Box<dyn SnapshotSink>, Failure>> {
        let Some(store) = self.store() else {
            return async { Err(Failure::stopping("the node")) }.boxed();
        };
        async move {
            let group = store.group(GroupId(header.group_id))?;
            if group.generation() != header.generation {
                return Err(Failure::precondition(format!(
                    "{from} sent a snapshot of another generation of {}",
                    group.id()
                )));
            }
            store.check_space()?;
            group.start_ticking();
            Ok(group.receive_snapshot(store.0.engine.clone(), header))
        }
        .boxed()
    }

    fn peer_lost(&self, peer: NodeId) {
        tracing::info!(%peer, "peer lost");
        self.peer_changed(peer);
    }

    fn peer_found(&self, peer: NodeId) {
        tracing::info!(%peer, "peer found");
        self.peer_changed(peer);
    }

    fn address_changed(&self, node: NodeAddress) {
        let Some(store) = self.store() else { return };
        tokio::spawn(async move {
            if let Err(error) = store.save_node(node.node).await {
                tracing::warn!(%error, "the address book was not saved");
            }
        });
    }
}

impl StoreInbound {
    fn peer_changed(&self, peer: NodeId) {
        let Some(store) = self.store() else { return };
        for group in store.0.groups.read().values() {
            group.peer_changed(peer);
        }
    }
}
