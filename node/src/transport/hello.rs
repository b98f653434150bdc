//! Who may speak with whom: what both ends of a stream check before anything else.

use super::book::{AddressBook, NodeAddress};
use crate::ids::NodeId;
use crate::peer_v1 as pb;

/// Nodes of one cluster must speak the same.
pub(super) const PROTOCOL_VERSION: u32 = 1;

/// Who this node is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// Empty until the node has joined a cluster; it speaks with nobody before.
    pub cluster_id: String,
    /// This node.
    pub node: NodeId,
    /// Drawn when the data directory was made.
    pub incarnation: String,
    /// Where peers reach this node (host:port).
    pub peer_address: String,
    /// Where clients reach this node (host:port).
    pub client_address: String,
}

/// Why a Hello is refused; `message` says what to do.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Refusal {
    /// Label of the metric.
    pub reason: &'static str,
    pub message: String,
}

impl Refusal {
    fn new(reason: &'static str, message: String) -> Refusal {
        Refusal { reason, message }
    }
}

/// What this node says about itself to `to`.
pub(super) fn hello(identity: &Identity, to: NodeId, lane: pb::Lane) -> pb::Hello {
    pb::Hello {
        protocol_version: PROTOCOL_VERSION,
        cluster_id: identity.cluster_id.clone(),
        node_id: identity.node.0,
        incarnation: identity.incarnation.clone(),
        to_node_id: to.0,
        lane: lane.into(),
        peer_address: identity.peer_address.clone(),
        client_address: identity.client_address.clone(),
    }
}

/// Judges a Hello. `Some` is what it teaches.
pub(super) fn judge(
    identity: &Identity,
    book: &AddressBook,
    hello: &pb::Hello,
) -> Result<Option<NodeAddress>, Refusal> {
    same_protocol(hello)?;
    same_cluster(identity, hello)?;
    meant_for_us(identity, hello)?;
    let from = NodeId(hello.node_id);
    if book.is_tombstone(from) {
        let text = format!("{from} was removed from the cluster for ever; join it again under a new node id");
        return Err(Refusal::new("tombstone", text));
    }
    let entry = NodeAddress {
        node: from,
        peer_address: hello.peer_address.clone(),
        client_address: hello.client_address.clone(),
        incarnation: hello.incarnation.clone(),
        tombstone: false,
    };
    book.put(entry).map_err(|failure| Refusal::new("incarnation", failure.message))
}

fn same_protocol(hello: &pb::Hello) -> Result<(), Refusal> {
    if hello.protocol_version == PROTOCOL_VERSION {
        return Ok(());
    }
    Err(Refusal::new(
        "version",
        format!(
            "n{} speaks peer protocol {}, this node speaks {PROTOCOL_VERSION}; run one release on all nodes",
            hello.node_id, hello.protocol_version
        ),
    ))
}

fn same_cluster(identity: &Identity, hello: &pb::Hello) -> Result<(), Refusal> {
    let (ours, theirs) = (&identity.cluster_id, &hello.cluster_id);
    let me = identity.node;
    if ours.is_empty() {
        return Err(Refusal::new("no_cluster", format!("{me} has not joined a cluster yet; join it first")));
    }
    if theirs.is_empty() {
        let text = format!("n{} has not joined a cluster yet; join it to {ours:?} first", hello.node_id);
        return Err(Refusal::new("no_cluster", text));
    }
    if ours == theirs {
        return Ok(());
    }
    Err(Refusal::new(
        "cluster",
        format!(
            "n{} belongs to cluster {theirs:?}, {me} to {ours:?}; correct the address that leads here",
            hello.node_id
        ),
    ))
}

fn meant_for_us(identity: &Identity, hello: &pb::Hello) -> Result<(), Refusal> {
    let (me, meant) = (identity.node, NodeId(hello.to_node_id));
    if hello.node_id == 0 || hello.incarnation.is_empty() {
        return Err(Refusal::new("malformed", "a hello needs a node id and an incarnation".into()));
    }
    if meant != me {
        let text = format!("this is {me}, not {meant}; correct the address of {meant} in the address book");
        return Err(Refusal::new("wrong_node", text));
    }
    if hello.node_id == me.0 {
        let text = format!("two nodes call themselves {me}; stop one and join it under a new node id");
        return Err(Refusal::new("wrong_node", text));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(node: u64) -> Identity {
        Identity {
            cluster_id: "c".into(),
            node: NodeId(node),
            incarnation: format!("i{node}"),
            peer_address: format!("h{node}:1"),
            client_address: format!("h{node}:2"),
        }
    }

    fn refused(change: impl FnOnce(&mut pb::Hello, &mut Identity)) -> Refusal {
        let mut me = identity(2);
        let book = AddressBook::new([
            NodeAddress { node: NodeId(1), incarnation: "i1".into(), ..NodeAddress::default() },
            NodeAddress { node: NodeId(9), tombstone: true, ..NodeAddress::default() },
        ]);
        let mut said = hello(&identity(1), NodeId(2), pb::Lane::Control);
        change(&mut said, &mut me);
        judge(&me, &book, &said).unwrap_err()
    }

    #[test]
    fn a_good_hello_teaches_the_addresses_once() {
        let book = AddressBook::default();
        let said = hello(&identity(1), NodeId(2), pb::Lane::Append);
        let learned = judge(&identity(2), &book, &said).unwrap().unwrap();
        assert_eq!((learned.peer_address.as_str(), learned.incarnation.as_str()), ("h1:1", "i1"));
        assert_eq!(judge(&identity(2), &book, &said).unwrap(), None);
    }

    #[test]
    fn every_rule_refuses_and_says_what_to_do() {
        let cases: [(&str, Refusal); 8] = [
            ("one release", refused(|said, _| said.protocol_version = 9)),
            ("join it first", refused(|_, me| me.cluster_id.clear())),
            ("first", refused(|said, _| said.cluster_id.clear())),
            ("belongs to cluster", refused(|said, _| said.cluster_id = "other".into())),
            ("this is n2, not n3", refused(|said, _| said.to_node_id = 3)),
            ("new node id", refused(|said, _| said.node_id = 9)),
            ("under a new id", refused(|said, _| said.incarnation = "other".into())),
            ("two nodes call themselves n2", refused(|said, _| said.node_id = 2)),
        ];
        for (part, refusal) in cases {
            assert!(refusal.message.contains(part), "{part}: {refusal:?}");
        }
    }
}
