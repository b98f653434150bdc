//! Where the groups and their leaders are: what nodes say about each other, merged.

use crate::channel::{Address, Channels, call_error, parse_address};
use crate::error::Error;
use crate::v1::{GroupStatus, ListGroupsRequest, ListNodesRequest, NodeAddress, NodeStatus, Role};
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use parking_lot::Mutex;
use rustc_hash::FxHashMap;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// How long one node may take to say what it knows.
const ASK_TIMEOUT: Duration = Duration::from_millis(1000);
/// How long to wait for further nodes once one has answered.
const STRAGGLER_TIMEOUT: Duration = Duration::from_millis(300);

/// Everything that is known about nodes, groups and leaders. Pure.
#[derive(Default)]
pub(crate) struct Topology {
    endpoints: Vec<Address>,
    nodes: BTreeMap<u64, Address>,
    groups: FxHashMap<u32, GroupRoute>,
}

struct GroupRoute {
    leader: Option<Claim>,
    replicas: Vec<u64>,
    turn: usize,
}

impl Default for GroupRoute {
    /// Each client begins with another replica.
    fn default() -> GroupRoute {
        GroupRoute { leader: None, replicas: Vec::new(), turn: rand::random_range(0..1024) }
    }
}

struct Claim {
    term: u64,
    by_itself: bool,
    address: Address,
}

impl Topology {
    /// Every address worth asking.
    fn addresses(&self) -> Vec<Address> {
        let all: BTreeSet<&Address> = self.endpoints.iter().chain(self.nodes.values()).collect();
        all.into_iter().cloned().collect()
    }

    fn absorb(&mut self, asked: &Address, nodes: &[NodeStatus], groups: &[GroupStatus]) {
        for status in nodes {
            self.absorb_node(status);
        }
        for status in groups {
            self.absorb_group(asked, status);
        }
    }

    fn absorb_node(&mut self, status: &NodeStatus) {
        let Some(node) = &status.address else { return };
        if status.tombstone {
            self.nodes.remove(&node.node_id);
        } else {
            self.learn_node(node);
        }
    }

    fn learn_node(&mut self, node: &NodeAddress) -> Option<Address> {
        let address = parse_address(&node.client_address).ok()?;
        if node.node_id != 0 {
            self.nodes.insert(node.node_id, address.clone());
        }
        Some(address)
    }

    fn absorb_group(&mut self, asked: &Address, status: &GroupStatus) {
        let route = self.groups.entry(status.group_id).or_default();
        for node in [&[status.node_id][..], &status.voters, &status.learners].concat() {
            if !route.replicas.contains(&node) {
                route.replicas.push(node);
            }
        }
        let by_itself = status.role() == Role::Leader;
        let leader = if by_itself { status.node_id } else { status.leader_id };
        let address = self.nodes.get(&leader).or(by_itself.then_some(asked)).cloned();
        let newer = route.leader.as_ref().is_none_or(|known| {
            status.term > known.term || (status.term == known.term && by_itself && !known.by_itself)
        });
        if let (true, Some(address)) = (newer, address) {
            route.leader = Some(Claim { term: status.term, by_itself, address });
        }
    }

    fn leader(&self, group: u32) -> Option<&Claim> {
        self.groups.get(&group)?.leader.as_ref()
    }

    fn redirect(&mut self, group: u32, leader: &NodeAddress) -> Option<Address> {
        // A node that has not heard the leader's address names its id alone.
        let address = self.learn_node(leader).or_else(|| self.nodes.get(&leader.node_id).cloned())?;
        let route = self.groups.entry(group).or_default();
        let term = route.leader.as_ref().map_or(0, |claim| claim.term);
        route.leader = Some(Claim { term, by_itself: false, address: address.clone() });
        Some(address)
    }

    /// Any replica, another one each time.
    fn replica(&mut self, group: u32) -> Option<Address> {
        let route = self.groups.get_mut(&group)?;
        route.turn = route.turn.wrapping_add(1);
        let turn = route.turn;
        let known: Vec<&Address> = route.replicas.iter().filter_map(|node| self.nodes.get(node)).collect();
        (!known.is_empty()).then(|| known[turn % known.len()].clone())
    }

    /// Every known replica, and whether it leads.
    fn replicas(&self, group: u32) -> Vec<(Address, bool)> {
        let Some(route) = self.groups.get(&group) else { return Vec::new() };
        let leads = |address: &Address| route.leader.as_ref().is_some_and(|claim| claim.address == *address);
        let known = route.replicas.iter().filter_map(|node| self.nodes.get(node));
        known.map(|address| (address.clone(), leads(address))).collect()
    }

    fn forget_leader(&mut self, group: u32, address: &Address) {
        if let Some(route) = self.groups.get_mut(&group)
            && route.leader.as_ref().is_some_and(|claim| claim.address == *address)
        {
            route.leader = None;
        }
    }

    fn forget_replicas(&mut self, group: u32) {
        if let Some(route) = self.groups.get_mut(&group) {
            route.replicas.clear();
        }
    }
}

/// What a round of questions brought.
#[derive(Debug, Default)]
pub(crate) struct Discovery {
    /// Nodes that answered.
    pub answered: usize,
    /// What those that did not answer failed with.
    pub failures: Vec<Error>,
    /// True when nodes were not waited for.
    pub is_partial: bool,
}

impl Discovery {
    /// True when every known node has answered.
    pub fn is_complete(&self) -> bool {
        !self.is_partial && self.failures.is_empty()
    }

    /// The failures in one line, for error messages.
    pub fn complaint(&self) -> String {
        let failures: Vec<&str> = self.failures.iter().map(Error::message).collect();
        failures.join("; ")
    }
}

/// Knows, finds and forgets leaders.
pub(crate) struct Router {
    topology: Mutex<Topology>,
    /// Held during a round of questions.
    asking: tokio::sync::Mutex<()>,
}

impl Router {
    pub fn new(endpoints: Vec<Address>) -> Router {
        let topology = Topology { endpoints, ..Topology::default() };
        Router { topology: Mutex::new(topology), asking: tokio::sync::Mutex::default() }
    }

    pub fn endpoints(&self) -> Vec<Address> {
        self.topology.lock().endpoints.clone()
    }

    pub fn addresses(&self) -> Vec<Address> {
        self.topology.lock().addresses()
    }

    pub fn nodes(&self) -> BTreeMap<u64, Address> {
        self.topology.lock().nodes.clone()
    }

    pub fn node(&self, node: u64) -> Option<Address> {
        self.topology.lock().nodes.get(&node).cloned()
    }

    pub fn leader(&self, group: u32) -> Option<Address> {
        self.topology.lock().leader(group).map(|claim| claim.address.clone())
    }

    /// A node that may serve the request: any replica when `any`, else the leader.
    pub fn target(&self, group: u32, any: bool) -> Option<Address> {
        if any { self.topology.lock().replica(group) } else { self.leader(group) }
    }

    /// Every known replica, and whether it leads.
    pub fn replicas(&self, group: u32) -> Vec<(Address, bool)> {
        self.topology.lock().replicas(group)
    }

    pub fn knows_group(&self, group: u32) -> bool {
        self.topology.lock().groups.get(&group).is_some_and(|route| !route.replicas.is_empty())
    }

    /// Believes a hint. None when it does not lead to an address.
    pub fn redirect(&self, group: u32, leader: &NodeAddress) -> Option<Address> {
        self.topology.lock().redirect(group, leader)
    }

    /// This node turned out not to serve the group.
    pub fn forget(&self, group: u32, address: &Address) {
        self.topology.lock().forget_leader(group, address);
    }

    /// Asks nodes until each wanted group has a leader that calls itself so, or all have answered.
    /// Callers that come while a round runs wait for it and then ask anew only if they must.
    pub async fn discover(&self, channels: &Channels, wanted: &[u32]) -> Discovery {
        let busy = self.asking.try_lock().is_err();
        let _turn = self.asking.lock().await;
        if busy && !wanted.is_empty() && wanted.iter().all(|&group| self.leader(group).is_some()) {
            return Discovery { is_partial: true, ..Discovery::default() };
        }
        self.ask_all(channels, wanted).await
    }

    async fn ask_all(&self, channels: &Channels, wanted: &[u32]) -> Discovery {
        let mut discovery = Discovery::default();
        let mut asked: BTreeSet<Address> = self.addresses().into_iter().collect();
        let mut answers: FuturesUnordered<_> =
            asked.iter().cloned().map(|address| ask(channels, address)).collect();
        for &group in wanted {
            self.topology.lock().forget_replicas(group);
        }
        let mut patience = ASK_TIMEOUT * 2;
        loop {
            let (address, answer) = match tokio::time::timeout(patience, answers.next()).await {
                Ok(Some(answer)) => answer,
                Ok(None) => return discovery,
                Err(_) => {
                    discovery.is_partial = true;
                    return discovery;
                }
            };
            match answer {
                Ok((nodes, groups)) => {
                    patience = STRAGGLER_TIMEOUT;
                    discovery.answered += 1;
                    self.topology.lock().absorb(&address, &nodes, &groups);
                }
                Err(error) => discovery.failures.push(error),
            }
            if !wanted.is_empty() && self.all_settled(wanted) {
                discovery.is_partial = true;
                return discovery;
            }
            for address in self.addresses() {
                if asked.insert(address.clone()) {
                    answers.push(ask(channels, address));
                }
            }
        }
    }

    fn all_settled(&self, wanted: &[u32]) -> bool {
        let topology = self.topology.lock();
        wanted.iter().all(|&group| topology.leader(group).is_some_and(|claim| claim.by_itself))
    }
}

type Answer = Result<(Vec<NodeStatus>, Vec<GroupStatus>), Error>;

async fn ask(channels: &Channels, address: Address) -> (Address, Answer) {
    let answer = match tokio::time::timeout(ASK_TIMEOUT, ask_node(channels, &address)).await {
        Ok(answer) => answer,
        Err(_) => Err(Error::did_not_happen(
            crate::v1::failure::Reason::Timeout,
            format!("{address} did not answer within {} ms", ASK_TIMEOUT.as_millis()),
        )),
    };
    (address, answer)
}

async fn ask_node(channels: &Channels, address: &Address) -> Answer {
    let mut admin = channels.admin(address)?;
    let mut same = admin.clone();
    let answers =
        tokio::try_join!(admin.list_nodes(ListNodesRequest {}), same.list_groups(ListGroupsRequest {}));
    match answers {
        Ok((nodes, groups)) => Ok((nodes.into_inner().nodes, groups.into_inner().groups)),
        // A node that says why it cannot tell (it has not joined a cluster yet) is there.
        Err(status) if !status.details().is_empty() => Ok((Vec::new(), Vec::new())),
        Err(status) => Err(call_error(address, &status).of_read()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(id: u64) -> NodeStatus {
        let address =
            NodeAddress { node_id: id, client_address: format!("n{id}:9332"), ..NodeAddress::default() };
        NodeStatus { address: Some(address), ..NodeStatus::default() }
    }

    fn status(node_id: u64, role: Role, term: u64, leader_id: u64) -> GroupStatus {
        GroupStatus { group_id: 1, node_id, role: role.into(), term, leader_id, ..GroupStatus::default() }
    }

    fn topology(says: &[GroupStatus]) -> Topology {
        let mut topology = Topology::default();
        for status in says {
            let asked: Address = format!("n{}:9332", status.node_id).into();
            topology.absorb(&asked, &[node(1), node(2), node(3)], std::slice::from_ref(status));
        }
        topology
    }

    fn leader(topology: &Topology) -> Option<&str> {
        topology.leader(1).map(|claim| &*claim.address)
    }

    #[test]
    fn leader_of_the_highest_term_wins_in_any_order() {
        let old = status(1, Role::Leader, 3, 1);
        let hearsay = status(3, Role::Follower, 4, 2);
        assert_eq!(leader(&topology(&[old.clone(), hearsay.clone()])), Some("n2:9332"));
        assert_eq!(leader(&topology(&[hearsay, old])), Some("n2:9332"));
    }

    #[test]
    fn group_without_leader_has_no_route_but_is_known() {
        let mut topology = topology(&[status(1, Role::Candidate, 3, 0)]);
        assert_eq!(leader(&topology), None);
        assert_eq!(topology.replica(1).as_deref(), Some("n1:9332"));
    }

    #[test]
    fn forgotten_leader_is_not_forgotten_for_another_address() {
        let mut topology = topology(&[status(1, Role::Leader, 3, 1)]);
        topology.forget_leader(1, &"n2:9332".into());
        assert_eq!(leader(&topology), Some("n1:9332"));
        topology.forget_leader(1, &"n1:9332".into());
        assert_eq!(leader(&topology), None);
    }

    #[test]
    fn hint_with_an_id_alone_leads_to_the_known_address() {
        let mut topology = topology(&[status(1, Role::Leader, 3, 1)]);
        let hint = |node_id| NodeAddress { node_id, ..NodeAddress::default() };
        assert_eq!(topology.redirect(1, &hint(2)).as_deref(), Some("n2:9332"));
        assert_eq!(leader(&topology), Some("n2:9332"));
        assert_eq!(topology.redirect(1, &hint(9)), None);
    }

    #[test]
    fn replicas_take_turns() {
        let mut topology = topology(&[
            status(1, Role::Leader, 1, 1),
            status(2, Role::Follower, 1, 1),
            status(3, Role::Follower, 1, 1),
        ]);
        let mut seen: Vec<Address> = (0..3).filter_map(|_| topology.replica(1)).collect();
        seen.sort();
        seen.dedup();
        assert_eq!(seen.len(), 3);
    }

    #[test]
    fn tombstoned_node_is_dropped() {
        let mut topology = topology(&[status(1, Role::Leader, 1, 1)]);
        topology.absorb_node(&NodeStatus { tombstone: true, ..node(3) });
        assert_eq!(topology.addresses().len(), 2);
    }
}
