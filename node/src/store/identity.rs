//! Who this node is, for ever.

use crate::engine::Engine;
use crate::ids::NodeId;
use crate::storage_v1 as pb;
use crate::store::StoreError;
use crate::store::records;

/// The identity on disk.
#[derive(Clone, Debug)]
pub struct NodeIdentity {
    /// Empty before the node joined a cluster.
    pub cluster_id: String,
    /// This node.
    pub node_id: NodeId,
    /// New with every empty disk, so that peers notice a disk that came back empty.
    pub incarnation: String,
    /// The highest operator epoch seen.
    pub operator_epoch: u64,
    /// A draining node takes no new replicas.
    pub draining: bool,
}

/// Reads the identity, or writes a new one when the disk is empty. It is durable on return.
///
/// # Errors
/// When the disk belongs to another node than the configuration says.
pub async fn load(engine: &Engine, node_id: NodeId) -> Result<NodeIdentity, StoreError> {
    if let Some(record) = records::identity(engine)? {
        let on_disk = NodeId(record.node_id);
        if on_disk != node_id {
            return Err(StoreError::Identity(format!(
                "the data directory belongs to {on_disk}, but the configuration says {node_id}: correct node.id, or \
                 give {node_id} a data directory of its own"
            )));
        }
        return Ok(NodeIdentity {
            cluster_id: record.cluster_id,
            node_id,
            incarnation: record.incarnation,
            operator_epoch: record.operator_epoch,
            draining: record.draining,
        });
    }
    let identity = NodeIdentity {
        cluster_id: String::new(),
        node_id,
        incarnation: uuid::Uuid::new_v4().to_string(),
        operator_epoch: 0,
        draining: false,
    };
    save(engine, &identity).await?;
    Ok(identity)
}

/// Writes the identity; durable on return.
///
/// # Errors
/// When the engine fails.
pub async fn save(engine: &Engine, identity: &NodeIdentity) -> std::io::Result<()> {
    let record = pb::Identity {
        cluster_id: identity.cluster_id.clone(),
        node_id: identity.node_id.0,
        incarnation: identity.incarnation.clone(),
        operator_epoch: identity.operator_epoch,
        draining: identity.draining,
    };
    engine.write(vec![records::identity_op(&record)]).await
}
