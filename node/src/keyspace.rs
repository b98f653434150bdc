//! The one registry of what stands in RocksDB: column families, keys and record formats. Keys sort
//! so that everything of one group lies together and in the order in which it is read.

use crate::ids::{GroupId, NodeId};

mod record;

pub use record::{
    RECORD_VERSION, decode_record, decode_shared_record, encode_record, log_record, record_body,
};

/// The column families; all groups share them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Family {
    /// Log entries.
    Log,
    /// The groups' state: nodes, sessions, the machines' own records.
    State,
    /// Everything else: votes, progress, identity, addresses.
    Meta,
}

impl Family {
    /// Every family.
    pub const ALL: [Family; 3] = [Family::Log, Family::State, Family::Meta];

    /// Its name in RocksDB and in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Family::Log => "log",
            Family::State => "state",
            Family::Meta => "meta",
        }
    }
}

const GROUP_SCOPE: u8 = b'g';
const NODE_SCOPE: u8 = b'n';

/// Kinds of records of one group in [`Family::Meta`]. The tags are for ever.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum GroupKind {
    /// `peer_v1::Vote`
    Vote = 1,
    /// `storage_v1::LogMeta`
    LogMeta = 2,
    /// `storage_v1::Applied`
    Applied = 3,
    /// `storage_v1::Descriptor`
    Descriptor = 4,
    /// `storage_v1::Committed`
    Committed = 5,
}

impl GroupKind {
    /// Every kind.
    pub const ALL: [GroupKind; 5] = [
        GroupKind::Vote,
        GroupKind::LogMeta,
        GroupKind::Applied,
        GroupKind::Descriptor,
        GroupKind::Committed,
    ];
}

const IDENTITY: u8 = 1;
const ADDRESS: u8 = 2;
const REPLICA_TOMBSTONE: u8 = 3;

/// A key of [`Family::Meta`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MetaKey {
    /// Of one group.
    Group(GroupId, GroupKind),
    /// `storage_v1::Identity`
    Identity,
    /// `storage_v1::NodeAddress`
    Address(NodeId),
    /// `storage_v1::ReplicaTombstone`
    ReplicaTombstone(GroupId),
}

impl MetaKey {
    /// The key's bytes.
    pub fn encode(self) -> Vec<u8> {
        let node = |kind: u8, id: &[u8]| [&[NODE_SCOPE, kind], id].concat();
        match self {
            MetaKey::Group(group, kind) => [&group_meta_prefix(group)[..], &[kind as u8]].concat(),
            MetaKey::Identity => node(IDENTITY, &[]),
            MetaKey::Address(id) => node(ADDRESS, &id.0.to_be_bytes()),
            MetaKey::ReplicaTombstone(group) => node(REPLICA_TOMBSTONE, &group.0.to_be_bytes()),
        }
    }

    /// The key that these bytes are.
    pub fn decode(bytes: &[u8]) -> Option<MetaKey> {
        match bytes.split_first()? {
            (&GROUP_SCOPE, rest) => {
                let (group, kind) = rest.split_first_chunk::<4>()?;
                let kind = GroupKind::ALL.into_iter().find(|k| [*k as u8] == kind)?;
                Some(MetaKey::Group(GroupId(u32::from_be_bytes(*group)), kind))
            }
            (&NODE_SCOPE, rest) => decode_node_key(rest),
            _ => None,
        }
    }
}

fn decode_node_key(bytes: &[u8]) -> Option<MetaKey> {
    let (kind, id) = bytes.split_first()?;
    match *kind {
        IDENTITY if id.is_empty() => Some(MetaKey::Identity),
        ADDRESS => Some(MetaKey::Address(NodeId(u64::from_be_bytes(id.try_into().ok()?)))),
        REPLICA_TOMBSTONE => {
            Some(MetaKey::ReplicaTombstone(GroupId(u32::from_be_bytes(id.try_into().ok()?))))
        }
        _ => None,
    }
}

/// First key of a range, and the first one behind it.
pub type KeyRange = (Vec<u8>, Vec<u8>);

fn prefix_range(prefix: &[u8]) -> KeyRange {
    (prefix.to_vec(), successor(prefix))
}

/// The first key behind all keys with this prefix.
fn successor(prefix: &[u8]) -> Vec<u8> {
    match prefix.iter().rposition(|b| *b != u8::MAX) {
        Some(at) => {
            let mut next = prefix[..=at].to_vec();
            next[at] += 1;
            next
        }
        // Only for the highest group id; no index and no epoch comes near its maximum.
        None => [prefix, &[u8::MAX; 8]].concat(),
    }
}

fn group_meta_prefix(group: GroupId) -> [u8; 5] {
    let [a, b, c, d] = group.0.to_be_bytes();
    [GROUP_SCOPE, a, b, c, d]
}

/// All records of one group in [`Family::Meta`], the tombstone not among them.
pub fn group_meta_range(group: GroupId) -> KeyRange {
    prefix_range(&group_meta_prefix(group))
}

/// The records of every group in [`Family::Meta`].
pub fn all_groups_meta_range() -> KeyRange {
    prefix_range(&[GROUP_SCOPE])
}

/// The addresses of all nodes.
pub fn addresses_range() -> KeyRange {
    prefix_range(&[NODE_SCOPE, ADDRESS])
}

/// Key of one log entry.
pub fn log_key(group: GroupId, index: u64) -> [u8; 12] {
    let mut key = [0; 12];
    key[..4].copy_from_slice(&group.0.to_be_bytes());
    key[4..].copy_from_slice(&index.to_be_bytes());
    key
}

/// The group and the index of a log key.
pub fn decode_log_key(key: &[u8]) -> Option<(GroupId, u64)> {
    let (group, index) = key.split_first_chunk::<4>()?;
    Some((GroupId(u32::from_be_bytes(*group)), u64::from_be_bytes(index.try_into().ok()?)))
}

/// The entries `from..to` of one group.
pub fn log_range(group: GroupId, from: u64, to: u64) -> KeyRange {
    (log_key(group, from).to_vec(), log_key(group, to).to_vec())
}

/// The whole log of one group.
pub fn group_log_range(group: GroupId) -> KeyRange {
    prefix_range(&group.0.to_be_bytes())
}

fn state_prefix(group: GroupId, epoch: u64) -> [u8; 12] {
    // The same shape as a log key: group, then a number.
    log_key(group, epoch)
}

/// What a record of a group's state is about: the part of its key behind the epoch. No key of a node
/// begins with a byte below 0x21, so the others have room there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StateKey<'a> {
    /// A node of the tree, by its key.
    Node(&'a [u8]),
    /// What is neither in a node nor in a session.
    Machine,
    /// The session of a client.
    Session([u8; 16]),
}

const MACHINE: u8 = 1;
const SESSION: u8 = 2;

/// [`StateKey::Machine`] as bytes.
pub const MACHINE_KEY: [u8; 1] = [MACHINE];

/// [`StateKey::Session`] as bytes.
pub fn session_key(client: &[u8; 16]) -> [u8; 17] {
    let mut key = [SESSION; 17];
    key[1..].copy_from_slice(client);
    key
}

/// Reads the part of a state key that is behind the epoch.
pub fn state_key_of(bytes: &[u8]) -> Option<StateKey<'_>> {
    match bytes.split_first() {
        Some((&MACHINE, [])) => Some(StateKey::Machine),
        Some((&SESSION, client)) => client.try_into().ok().map(StateKey::Session),
        Some((..0x21, _)) => None,
        _ => Some(StateKey::Node(bytes)),
    }
}

/// Key of one record of a group's state, in one epoch of it.
pub fn state_key(group: GroupId, epoch: u64, record: &[u8]) -> Vec<u8> {
    [&state_prefix(group, epoch)[..], record].concat()
}

/// Group, epoch and the rest of a state key.
pub fn decode_state_key(key: &[u8]) -> Option<(GroupId, u64, &[u8])> {
    let (prefix, node) = key.split_first_chunk::<12>()?;
    let (group, epoch) = decode_log_key(prefix)?;
    Some((group, epoch, node))
}

/// One epoch of one group's state.
pub fn state_range(group: GroupId, epoch: u64) -> KeyRange {
    prefix_range(&state_prefix(group, epoch))
}

/// A group's state in all epochs.
pub fn group_state_range(group: GroupId) -> KeyRange {
    prefix_range(&group.0.to_be_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|b| format!("{b:02x}")).collect()
    }

    fn all_meta_keys() -> Vec<(MetaKey, &'static str)> {
        let group = GroupId(0x0102_0304);
        let node = NodeId(0x0a0b);
        vec![
            (MetaKey::Group(group, GroupKind::Vote), "670102030401"),
            (MetaKey::Group(group, GroupKind::LogMeta), "670102030402"),
            (MetaKey::Group(group, GroupKind::Applied), "670102030403"),
            (MetaKey::Group(group, GroupKind::Descriptor), "670102030404"),
            (MetaKey::Group(group, GroupKind::Committed), "670102030405"),
            (MetaKey::Identity, "6e01"),
            (MetaKey::Address(node), "6e020000000000000a0b"),
            (MetaKey::ReplicaTombstone(group), "6e0301020304"),
        ]
    }

    #[test]
    fn meta_keys_have_golden_bytes_and_come_back() {
        for (key, golden) in all_meta_keys() {
            assert_eq!(hex(&key.encode()), golden, "{key:?}");
            assert_eq!(MetaKey::decode(&key.encode()), Some(key));
        }
    }

    #[test]
    fn broken_meta_keys_are_not_keys() {
        for bytes in [
            &b""[..],
            b"g",
            b"g123",
            b"g1234",
            b"g1234\xff",
            b"g1234\x01x",
            b"n",
            b"n\x01x",
            b"n\x02123",
            b"x",
        ] {
            assert_eq!(MetaKey::decode(bytes), None, "{bytes:?}");
        }
    }

    #[test]
    fn log_and_state_keys_have_golden_bytes_and_come_back() {
        let group = GroupId(7);
        assert_eq!(hex(&log_key(group, 258)), "000000070000000000000102");
        assert_eq!(decode_log_key(&log_key(group, 258)), Some((group, 258)));
        assert_eq!(hex(&state_key(group, 3, b"a/b")), "000000070000000000000003612f62");
        assert_eq!(decode_state_key(&state_key(group, 3, b"a/b")), Some((group, 3, &b"a/b"[..])));
        assert_eq!(decode_state_key(&state_key(group, 3, b"")), Some((group, 3, &b""[..])));
        assert_eq!(decode_log_key(b"short"), None);
        assert_eq!(decode_state_key(b"short"), None);
    }

    #[test]
    fn records_of_the_state_have_golden_keys_and_come_back() {
        assert_eq!(hex(&MACHINE_KEY), "01");
        assert_eq!(hex(&session_key(&[7; 16])), "0207070707070707070707070707070707");
        let cases: [(&[u8], Option<StateKey<'_>>); 7] = [
            (b"", Some(StateKey::Node(b""))),
            (b"a.b", Some(StateKey::Node(b"a.b"))),
            (&MACHINE_KEY, Some(StateKey::Machine)),
            (&session_key(&[7; 16]), Some(StateKey::Session([7; 16]))),
            (b"\x01x", None),
            (b"\x02short", None),
            (b"\x20", None),
        ];
        for (bytes, expected) in cases {
            assert_eq!(state_key_of(bytes), expected, "{bytes:?}");
        }
    }

    #[test]
    fn keys_sort_by_group_then_by_number() {
        let keys = [(1, 1), (1, 2), (1, 255), (1, 256), (1, u64::MAX - 1), (2, 0), (256, 0), (u32::MAX, 5)];
        let encoded: Vec<_> = keys.iter().map(|(g, i)| log_key(GroupId(*g), *i)).collect();
        assert!(encoded.is_sorted());
        assert!(state_key(GroupId(1), 1, b"\xff\xff") < state_key(GroupId(1), 2, b""));
    }

    fn holds((from, to): &KeyRange, key: &[u8]) -> bool {
        from.as_slice() <= key && key < to.as_slice()
    }

    #[test]
    fn ranges_hold_their_own_and_nothing_else() {
        for id in [0, 1, 255, 256, 0xffff, u32::MAX - 1, u32::MAX] {
            let group = GroupId(id);
            let other = GroupId(id.wrapping_add(1));
            for index in [0, 1, u64::from(u32::MAX), 1 << 62] {
                assert!(holds(&group_log_range(group), &log_key(group, index)));
                assert!(!holds(&group_log_range(group), &log_key(other, index)));
                assert!(holds(&state_range(group, index), &state_key(group, index, b"\xff\xff\xff")));
                assert!(!holds(&state_range(group, index), &state_key(group, index + 1, b"")));
                assert!(holds(&group_state_range(group), &state_key(group, index, b"\xff")));
                assert!(!holds(&group_state_range(group), &state_key(other, index, b"")));
            }
            for kind in GroupKind::ALL {
                assert!(holds(&group_meta_range(group), &MetaKey::Group(group, kind).encode()));
                assert!(!holds(&group_meta_range(group), &MetaKey::Group(other, kind).encode()));
                assert!(holds(&all_groups_meta_range(), &MetaKey::Group(group, kind).encode()));
            }
        }
        assert!(holds(&log_range(GroupId(1), 5, 7), &log_key(GroupId(1), 6)));
        assert!(!holds(&log_range(GroupId(1), 5, 7), &log_key(GroupId(1), 7)));
    }

    #[test]
    fn node_ranges_hold_exactly_their_kind() {
        type Belongs = fn(&MetaKey) -> bool;
        let ranges: [(KeyRange, Belongs); 2] = [
            (addresses_range(), |k| matches!(k, MetaKey::Address(_))),
            (all_groups_meta_range(), |k| matches!(k, MetaKey::Group(..))),
        ];
        for (range, belongs) in &ranges {
            for (key, _) in all_meta_keys() {
                assert_eq!(holds(range, &key.encode()), belongs(&key), "{key:?}");
            }
        }
    }
}
