//! Where replicas and leaders should be. Pure and deterministic: the same input always gives the
//! same plan, whatever order the nodes are named in.

use std::collections::{BTreeMap, VecDeque};

/// Where one group goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupPlacement {
    /// The group.
    pub group_id: u32,
    /// Its voters, in ascending order.
    pub members: Vec<u64>,
    /// Who should lead it; one of the members.
    pub preferred_leader: u64,
}

/// Where every group goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// In the order of the groups that were asked for.
    pub groups: Vec<GroupPlacement>,
}

/// What a node carries already.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NodeLoad {
    /// Replicas on the node.
    pub replicas: usize,
    /// Groups that the node leads or should lead.
    pub leaders: usize,
}

/// Why there is no plan.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlacementError {
    /// No two replicas of a group share a node.
    #[error(
        "{replicas} replicas need as many nodes, and there are {nodes}; add nodes or ask for fewer replicas"
    )]
    TooFewNodes {
        /// Replicas asked for.
        replicas: usize,
        /// Distinct nodes given.
        nodes: usize,
    },
    /// A group needs at least one replica.
    #[error("a group needs at least 1 replica; 3 survive the loss of one node")]
    NoReplicas,
    /// Node ids are positive.
    #[error("node id 0 is not an id; ids start at 1")]
    NodeZero,
    /// The same group twice.
    #[error("group {0} is named twice")]
    DuplicateGroup(u32),
}

/// Places new groups on empty nodes: every node gets the same number of replicas and of leaders,
/// give or take one, and no node two replicas of one group.
///
/// # Errors
/// When there are fewer nodes than replicas, no replicas, or an id that is none or named twice.
///
/// ```
/// use dtkv_client::placement::initial_layout;
/// let layout = initial_layout(&[1, 2, 3], &[1, 2, 3, 4, 5, 6], 3)?;
/// assert_eq!(layout.groups[0].members, [1, 2, 3]);
/// # Ok::<(), dtkv_client::placement::PlacementError>(())
/// ```
pub fn initial_layout(nodes: &[u64], groups: &[u32], replicas: usize) -> Result<Layout, PlacementError> {
    let loads: BTreeMap<u64, NodeLoad> = nodes.iter().map(|&node| (node, NodeLoad::default())).collect();
    place_groups(&loads, groups, replicas)
}

/// Places new groups on nodes that carry others already: the least loaded nodes take them.
///
/// # Errors
/// As [`initial_layout`].
pub fn place_groups(
    loads: &BTreeMap<u64, NodeLoad>,
    groups: &[u32],
    replicas: usize,
) -> Result<Layout, PlacementError> {
    check(loads, groups, replicas)?;
    let mut loads = loads.clone();
    let mut placed = Vec::with_capacity(groups.len());
    for (turn, &group_id) in groups.iter().enumerate() {
        let members = least_loaded(&loads, replicas, turn);
        for member in &members {
            loads.entry(*member).or_default().replicas += 1;
        }
        placed.push(GroupPlacement { group_id, preferred_leader: members[0], members });
    }
    spread_leaders(&loads, &mut placed);
    Ok(Layout { groups: placed })
}

fn check(loads: &BTreeMap<u64, NodeLoad>, groups: &[u32], replicas: usize) -> Result<(), PlacementError> {
    if replicas == 0 {
        return Err(PlacementError::NoReplicas);
    }
    if loads.contains_key(&0) {
        return Err(PlacementError::NodeZero);
    }
    if loads.len() < replicas {
        return Err(PlacementError::TooFewNodes { replicas, nodes: loads.len() });
    }
    let mut sorted = groups.to_vec();
    sorted.sort_unstable();
    match sorted.windows(2).find(|pair| pair[0] == pair[1]) {
        Some(pair) => Err(PlacementError::DuplicateGroup(pair[0])),
        None => Ok(()),
    }
}

/// The nodes with the fewest replicas. Equals are taken from a starting point that moves on with
/// every group, so that the same nodes do not always meet.
fn least_loaded(loads: &BTreeMap<u64, NodeLoad>, replicas: usize, turn: usize) -> Vec<u64> {
    let start = turn.wrapping_mul(replicas).wrapping_add(turn / loads.len()) % loads.len();
    let mut order: Vec<(usize, usize, u64)> = loads
        .iter()
        .enumerate()
        .map(|(position, (&node, load))| {
            (load.replicas, (position + loads.len() - start) % loads.len(), node)
        })
        .collect();
    order.sort_unstable();
    let mut members: Vec<u64> = order.into_iter().take(replicas).map(|(_, _, node)| node).collect();
    members.sort_unstable();
    members
}

/// Gives each group the member that leads least, then shifts leaders along chains of groups from
/// the node that leads most to the one that leads least until they differ by one at most.
fn spread_leaders(loads: &BTreeMap<u64, NodeLoad>, groups: &mut [GroupPlacement]) {
    let mut leaders: BTreeMap<u64, usize> = loads.iter().map(|(&node, load)| (node, load.leaders)).collect();
    for group in groups.iter_mut() {
        let least = group.members.iter().copied().min_by_key(|node| (leaders[node], *node));
        group.preferred_leader = least.unwrap_or(group.preferred_leader);
        *leaders.entry(group.preferred_leader).or_default() += 1;
    }
    while shift_one_leader(&mut leaders, groups) {}
}

fn shift_one_leader(leaders: &mut BTreeMap<u64, usize>, groups: &mut [GroupPlacement]) -> bool {
    let mut busiest: Vec<u64> = leaders.keys().copied().collect();
    busiest.sort_by_key(|node| (std::cmp::Reverse(leaders[node]), *node));
    for from in busiest {
        if let Some(chain) = chain_to_idler(from, leaders, groups) {
            let to = apply_chain(&chain, groups);
            *leaders.entry(from).or_default() -= 1;
            *leaders.entry(to).or_default() += 1;
            return true;
        }
    }
    false
}

/// Shortest chain of (group, new leader) that moves one leadership from `from` to a node that
/// leads at least two groups fewer.
fn chain_to_idler(
    from: u64,
    leaders: &BTreeMap<u64, usize>,
    groups: &[GroupPlacement],
) -> Option<Vec<(usize, u64)>> {
    let mut came_by: BTreeMap<u64, (usize, u64)> = BTreeMap::new();
    let mut queue = VecDeque::from([from]);
    while let Some(node) = queue.pop_front() {
        if leaders[&node] + 2 <= leaders[&from] {
            return Some(walk_back(from, node, &came_by));
        }
        let led = groups.iter().enumerate().filter(|(_, group)| group.preferred_leader == node);
        for (position, group) in led {
            for &member in &group.members {
                if member != from && !came_by.contains_key(&member) {
                    came_by.insert(member, (position, node));
                    queue.push_back(member);
                }
            }
        }
    }
    None
}

fn walk_back(from: u64, to: u64, came_by: &BTreeMap<u64, (usize, u64)>) -> Vec<(usize, u64)> {
    let mut chain = Vec::new();
    let mut node = to;
    while node != from {
        let (group, before) = came_by[&node];
        chain.push((group, node));
        node = before;
    }
    chain
}

fn apply_chain(chain: &[(usize, u64)], groups: &mut [GroupPlacement]) -> u64 {
    for &(group, leader) in chain {
        groups[group].preferred_leader = leader;
    }
    chain.first().map_or(0, |&(_, node)| node)
}

/// A name for a layout: equal for equal layouts, and with all likelihood different otherwise.
/// Nodes refuse to bootstrap a group a second time under another name. `life` counts how often
/// the group was destroyed under the same layout: each life has a name of its own.
pub fn layout_hash(cluster_id: &str, group: &GroupPlacement, life: u32) -> String {
    let members: Vec<String> = group.members.iter().map(u64::to_string).collect();
    let life = if life == 0 { String::new() } else { format!("/{life}") };
    let text = format!("{cluster_id}/{}/{}{life}", group.group_id, members.join(","));
    format!("{:032x}", fnv1a_128(text.as_bytes()))
}

/// FNV-1a: short, stable for ever, and enough against mistakes (it is no defence against intent).
fn fnv1a_128(bytes: &[u8]) -> u128 {
    const OFFSET: u128 = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d;
    const PRIME: u128 = 0x0000_0000_0100_0000_0000_0000_0000_013b;
    bytes.iter().fold(OFFSET, |hash, &byte| (hash ^ u128::from(byte)).wrapping_mul(PRIME))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn spread(counts: impl Iterator<Item = usize> + Clone) -> usize {
        counts.clone().max().unwrap_or(0) - counts.min().unwrap_or(0)
    }

    fn count(nodes: &[u64], layout: &Layout) -> BTreeMap<u64, NodeLoad> {
        let mut loads: BTreeMap<u64, NodeLoad> = nodes.iter().map(|&n| (n, NodeLoad::default())).collect();
        for group in &layout.groups {
            for member in &group.members {
                loads.get_mut(member).unwrap().replicas += 1;
            }
            loads.get_mut(&group.preferred_leader).unwrap().leaders += 1;
        }
        loads
    }

    #[test]
    fn too_few_nodes_and_bad_ids_are_refused() {
        assert_eq!(
            initial_layout(&[1, 2, 2], &[1], 3),
            Err(PlacementError::TooFewNodes { replicas: 3, nodes: 2 })
        );
        assert_eq!(initial_layout(&[1], &[1], 0), Err(PlacementError::NoReplicas));
        assert_eq!(initial_layout(&[0, 1], &[1], 1), Err(PlacementError::NodeZero));
        assert_eq!(initial_layout(&[1], &[4, 4], 1), Err(PlacementError::DuplicateGroup(4)));
    }

    #[test]
    fn layout_hash_is_stable_and_names_the_members() {
        let group = GroupPlacement { group_id: 1, members: vec![1, 2, 3], preferred_leader: 1 };
        let same = GroupPlacement { preferred_leader: 2, ..group.clone() };
        let other = GroupPlacement { members: vec![1, 2, 4], ..group.clone() };
        assert_eq!(layout_hash("c", &group, 0), layout_hash("c", &same, 0));
        assert_ne!(layout_hash("c", &group, 0), layout_hash("c", &group, 1));
        assert_ne!(layout_hash("c", &group, 0), layout_hash("c", &other, 0));
        assert_eq!(fnv1a_128(b""), 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d);
        assert_eq!(fnv1a_128(b"a"), 0xd228_cb69_6f1a_8caf_7891_2b70_4e4a_8964);
    }

    #[test]
    fn new_group_goes_to_the_least_loaded_nodes() {
        let loads = BTreeMap::from([
            (1, NodeLoad { replicas: 5, leaders: 1 }),
            (2, NodeLoad { replicas: 1, leaders: 1 }),
            (3, NodeLoad { replicas: 0, leaders: 0 }),
            (4, NodeLoad { replicas: 2, leaders: 1 }),
        ]);
        let layout = place_groups(&loads, &[9], 3).unwrap();
        assert_eq!(layout.groups[0].members, [2, 3, 4]);
        assert_eq!(layout.groups[0].preferred_leader, 3);
    }

    proptest! {
        #[test]
        fn replicas_and_leaders_are_spread_evenly(
            nodes in proptest::collection::btree_set(1u64..500, 1..20),
            groups in 0u32..200,
            replicas in 1usize..6,
        ) {
            let nodes: Vec<u64> = nodes.into_iter().collect();
            prop_assume!(replicas <= nodes.len());
            let groups: Vec<u32> = (1..=groups).collect();
            let layout = initial_layout(&nodes, &groups, replicas).unwrap();
            for group in &layout.groups {
                let mut members = group.members.clone();
                members.dedup();
                prop_assert_eq!(members.len(), replicas);
                prop_assert!(members.contains(&group.preferred_leader));
            }
            let loads = count(&nodes, &layout);
            prop_assert!(spread(loads.values().map(|load| load.replicas)) <= 1);
            prop_assert!(spread(loads.values().map(|load| load.leaders)) <= 1, "{:?}", loads);
        }

        #[test]
        fn order_of_the_nodes_does_not_matter(
            mut nodes in proptest::collection::vec(1u64..50, 3..12), groups in 1u32..30,
        ) {
            let groups: Vec<u32> = (1..=groups).collect();
            let first = initial_layout(&nodes, &groups, 1);
            nodes.reverse();
            prop_assert_eq!(first, initial_layout(&nodes, &groups, 1));
        }
    }
}
