//! What a store keeps about itself in the engine.

use crate::engine::{Engine, WriteOp};
use crate::ids::{GroupId, NodeId};
use crate::keyspace::{self, Family, GroupKind, MetaKey};
use crate::storage_v1 as pb;
use crate::transport::NodeAddress;
use prost::Message;
use std::io;

fn put(key: MetaKey, record: &impl Message) -> WriteOp {
    WriteOp::Put { family: Family::Meta, key: key.encode(), value: keyspace::encode_record(record).into() }
}

fn get<R: Message + Default>(engine: &Engine, key: MetaKey) -> io::Result<Option<R>> {
    engine.get(Family::Meta, &key.encode())?.map(|bytes| keyspace::decode_record(&bytes)).transpose()
}

/// The node's identity.
pub(super) fn identity(engine: &Engine) -> io::Result<Option<pb::Identity>> {
    get(engine, MetaKey::Identity)
}

/// Writes it.
pub(super) fn identity_op(record: &pb::Identity) -> WriteOp {
    put(MetaKey::Identity, record)
}

/// The groups that this node hosts.
pub(super) fn descriptors(engine: &Engine) -> io::Result<Vec<pb::Descriptor>> {
    let (from, to) = keyspace::all_groups_meta_range();
    let mut found = Vec::new();
    for item in engine.scan(Family::Meta, &from, &to) {
        let (key, record) = item?;
        if matches!(MetaKey::decode(&key), Some(MetaKey::Group(_, GroupKind::Descriptor))) {
            found.push(keyspace::decode_record(&record)?);
        }
    }
    Ok(found)
}

/// One of them.
pub(super) fn descriptor(engine: &Engine, group: GroupId) -> io::Result<Option<pb::Descriptor>> {
    get(engine, MetaKey::Group(group, GroupKind::Descriptor))
}

/// Writes one.
pub(super) fn descriptor_op(record: &pb::Descriptor) -> WriteOp {
    put(MetaKey::Group(GroupId(record.group_id), GroupKind::Descriptor), record)
}

/// What was removed from this node of a group, if anything ever was.
pub(super) fn replica_tombstone(engine: &Engine, group: GroupId) -> io::Result<Option<pb::ReplicaTombstone>> {
    get(engine, MetaKey::ReplicaTombstone(group))
}

/// Writes it.
pub(super) fn replica_tombstone_op(record: &pb::ReplicaTombstone) -> WriteOp {
    put(MetaKey::ReplicaTombstone(GroupId(record.group_id)), record)
}

/// The address book, for the transport.
///
/// # Errors
/// When the engine fails or a record is damaged.
pub fn addresses(engine: &Engine) -> io::Result<Vec<NodeAddress>> {
    let (from, to) = keyspace::addresses_range();
    engine.scan(Family::Meta, &from, &to).map(|item| keyspace::decode_record(&item?.1).map(address)).collect()
}

fn address(record: pb::NodeAddress) -> NodeAddress {
    NodeAddress {
        node: NodeId(record.node_id),
        peer_address: record.peer_address,
        client_address: record.client_address,
        incarnation: record.incarnation,
        tombstone: record.tombstone,
    }
}

/// Writes one entry of the address book.
pub(super) fn address_op(entry: NodeAddress) -> WriteOp {
    let record = pb::NodeAddress {
        node_id: entry.node.0,
        peer_address: entry.peer_address,
        client_address: entry.client_address,
        incarnation: entry.incarnation,
        tombstone: entry.tombstone,
    };
    put(MetaKey::Address(entry.node), &record)
}
