//! Who the nodes are and where they listen.

use crate::failure::Failure;
use crate::ids::NodeId;
use parking_lot::RwLock;
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio::sync::watch;

/// What is known about a node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeAddress {
    /// Which node.
    pub node: NodeId,
    /// host:port of its peers' listener; empty when not known.
    pub peer_address: String,
    /// host:port of its clients' listener; empty when not known.
    pub client_address: String,
    /// Drawn when its data directory was made; empty until the first contact. A node id that comes
    /// back with another incarnation has lost its disk and is refused.
    pub incarnation: String,
    /// The node was removed for ever.
    pub tombstone: bool,
}

/// Every node of the cluster that this node knows. Cheap to clone; the store loads it at start and
/// persists what changes.
#[derive(Clone, Debug)]
pub struct AddressBook(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    nodes: RwLock<BTreeMap<NodeId, NodeAddress>>,
    changed: watch::Sender<u64>,
}

impl Default for AddressBook {
    fn default() -> Self {
        AddressBook::new([])
    }
}

impl AddressBook {
    /// A book with these entries.
    pub fn new(entries: impl IntoIterator<Item = NodeAddress>) -> AddressBook {
        let nodes = entries.into_iter().map(|entry| (entry.node, entry)).collect();
        AddressBook(Arc::new(Shared { nodes: RwLock::new(nodes), changed: watch::channel(0).0 }))
    }

    /// What is known about a node.
    pub fn get(&self, node: NodeId) -> Option<NodeAddress> {
        self.0.nodes.read().get(&node).cloned()
    }

    /// Every entry, tombstones too, by node id.
    pub fn list(&self) -> Vec<NodeAddress> {
        self.0.nodes.read().values().cloned().collect()
    }

    /// Where the node's peers' listener is; none for unknown and for tombstoned nodes.
    pub fn peer_address(&self, node: NodeId) -> Option<String> {
        let nodes = self.0.nodes.read();
        let entry = nodes.get(&node).filter(|entry| !entry.tombstone)?;
        (!entry.peer_address.is_empty()).then(|| entry.peer_address.clone())
    }

    /// Was this node removed for ever?
    pub fn is_tombstone(&self, node: NodeId) -> bool {
        self.0.nodes.read().get(&node).is_some_and(|entry| entry.tombstone)
    }

    /// Adds a node or updates its addresses. What is empty in `entry` leaves what is known; a
    /// tombstone stays. Returns the entry when it changed.
    ///
    /// # Errors
    /// When the node is known with another incarnation.
    pub fn put(&self, entry: NodeAddress) -> Result<Option<NodeAddress>, Failure> {
        let changed = {
            let mut nodes = self.0.nodes.write();
            let known = nodes
                .entry(entry.node)
                .or_insert_with(|| NodeAddress { node: entry.node, ..NodeAddress::default() });
            let merged = merge(known, entry)?;
            (*known != merged).then(|| {
                *known = merged;
                known.clone()
            })
        };
        if changed.is_some() {
            self.touch();
        }
        Ok(changed)
    }

    /// Marks the node as removed for ever; its streams are cut. Returns the entry when it changed.
    pub fn tombstone(&self, node: NodeId) -> Option<NodeAddress> {
        let changed = {
            let mut nodes = self.0.nodes.write();
            let known = nodes.entry(node).or_insert_with(|| NodeAddress { node, ..NodeAddress::default() });
            (!std::mem::replace(&mut known.tombstone, true)).then(|| known.clone())
        };
        if changed.is_some() {
            self.touch();
        }
        changed
    }

    /// Resolves whenever an entry changed.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.0.changed.subscribe()
    }

    /// Makes every stream look again at what it rests on.
    pub(super) fn touch(&self) {
        self.0.changed.send_modify(|version| *version += 1);
    }
}

fn merge(known: &NodeAddress, new: NodeAddress) -> Result<NodeAddress, Failure> {
    let pick = |new: String, old: &String| if new.is_empty() { old.clone() } else { new };
    let other =
        !known.incarnation.is_empty() && !new.incarnation.is_empty() && known.incarnation != new.incarnation;
    if other {
        return Err(Failure::precondition(format!(
            "{} is known with incarnation {} and cannot become {}: add the node under a new id",
            new.node, known.incarnation, new.incarnation
        )));
    }
    Ok(NodeAddress {
        node: new.node,
        peer_address: pick(new.peer_address, &known.peer_address),
        client_address: pick(new.client_address, &known.client_address),
        incarnation: pick(new.incarnation, &known.incarnation),
        tombstone: known.tombstone || new.tombstone,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(peer: &str, incarnation: &str) -> NodeAddress {
        NodeAddress {
            node: NodeId(7),
            peer_address: peer.into(),
            incarnation: incarnation.into(),
            ..NodeAddress::default()
        }
    }

    #[test]
    fn put_reports_only_changes_and_keeps_what_is_known() {
        let book = AddressBook::default();
        let mut changes = book.changes();
        changes.mark_unchanged();
        assert!(book.put(entry("a:1", "")).unwrap().is_some());
        assert!(changes.has_changed().unwrap());
        assert!(book.put(entry("a:1", "")).unwrap().is_none());
        assert_eq!(book.put(entry("", "x")).unwrap().unwrap().peer_address, "a:1");
        assert_eq!(book.put(entry("b:1", "")).unwrap().unwrap().incarnation, "x");
    }

    #[test]
    fn another_incarnation_is_refused_and_changes_nothing() {
        let book = AddressBook::new([entry("a:1", "x")]);
        let failure = book.put(entry("b:1", "y")).unwrap_err();
        assert!(failure.message.contains("under a new id"), "{failure}");
        assert_eq!(book.peer_address(NodeId(7)).unwrap(), "a:1");
    }

    #[test]
    fn a_tombstone_stays_and_has_no_address() {
        let book = AddressBook::new([entry("a:1", "x")]);
        assert!(book.tombstone(NodeId(7)).is_some());
        assert!(book.tombstone(NodeId(7)).is_none());
        book.put(entry("c:1", "x")).unwrap();
        assert!(book.is_tombstone(NodeId(7)));
        assert_eq!(book.peer_address(NodeId(7)), None);
    }
}
