//! What a checkpoint of one group writes: changed nodes, each once, with how far they are.

use super::WriteOp;
use crate::ids::GroupId;
use crate::keyspace::{Family, GroupKind, MetaKey, encode_record, state_key};
use crate::storage_v1::Applied;
use bytes::Bytes;

/// The operations of one checkpoint. They must go in one [`super::Write`]: the nodes are those of
/// exactly `applied`.
pub fn checkpoint_ops<K>(
    group: GroupId,
    changed: impl IntoIterator<Item = (K, Bytes)>,
    removed: impl IntoIterator<Item = K>,
    applied: &Applied,
) -> Vec<WriteOp>
where
    K: AsRef<[u8]>,
{
    let key = |node: K| state_key(group, applied.epoch, node.as_ref());
    let changed = changed.into_iter().map(|(node, record)| WriteOp::put(Family::State, key(node), record));
    let removed = removed.into_iter().map(|node| WriteOp::delete(Family::State, key(node)));
    changed.chain(removed).chain([applied_op(group, applied)]).collect()
}

/// Says which epoch of the group's state is valid and how far it is. On its own it switches to the
/// state that was received under another epoch.
pub fn applied_op(group: GroupId, applied: &Applied) -> WriteOp {
    WriteOp::put(Family::Meta, MetaKey::Group(group, GroupKind::Applied).encode(), encode_record(applied))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keyspace::decode_record;

    #[test]
    fn a_checkpoint_is_changes_then_removals_then_progress() {
        let applied = Applied { epoch: 3, ..Applied::default() };
        let group = GroupId(1);
        let ops = checkpoint_ops(group, [("a", Bytes::from_static(b"1"))], ["b"], &applied);
        assert_eq!(ops[0], WriteOp::put(Family::State, state_key(group, 3, b"a"), "1"));
        assert_eq!(ops[1], WriteOp::delete(Family::State, state_key(group, 3, b"b")));
        let WriteOp::Put { family: Family::Meta, value, .. } = &ops[2] else { panic!("{:?}", ops[2]) };
        assert_eq!(decode_record::<Applied>(value).unwrap(), applied);
        assert_eq!(ops.len(), 3);
    }
}
