//! The status page: what a person wants to know about this node at a glance, as JSON and as HTML.

use crate::service::group_metrics;
use dtkv_client::v1::{GroupStatus, IdentityResponse, NodeStatus, Role};
use serde::Serialize;

const TEMPLATE: &str = include_str!("page.html");

/// Everything that the page shows.
#[derive(Debug, Serialize)]
pub struct Page {
    node_id: u64,
    cluster_id: String,
    version: String,
    durability: String,
    incarnation: String,
    uptime_ms: u64,
    is_ready: bool,
    is_draining: bool,
    is_evicting_leaders: bool,
    /// What an operator must not overlook.
    notices: Vec<String>,
    nodes: Vec<NodeRow>,
    groups: Vec<GroupRow>,
}

#[derive(Debug, Serialize)]
struct NodeRow {
    node_id: u64,
    client_address: String,
    peer_address: String,
    state: &'static str,
    /// Absent for this node, and for one that was never heard.
    last_contact_ms: Option<u64>,
}

#[derive(Debug, Serialize)]
struct GroupRow {
    group_id: u32,
    role: &'static str,
    /// 0 = none known.
    leader_id: u64,
    term: u64,
    voters: Vec<u64>,
    learners: Vec<u64>,
    is_ready: bool,
    is_parked: bool,
    commit_index: u64,
    applied_index: u64,
    /// Committed entries that this replica has not applied.
    lag_entries: u64,
    /// On the leader: entries that the member furthest behind lacks.
    slowest_member_lag_entries: Option<u64>,
    /// None when there never was any.
    last_contact_ms: Option<u64>,
    log_bytes: u64,
    tree_bytes: u64,
    tree_nodes: u64,
    #[serde(skip_serializing_if = "String::is_empty")]
    failure: String,
}

impl Page {
    /// From what the store says.
    pub fn new(
        identity: &IdentityResponse,
        nodes: &[NodeStatus],
        groups: &[GroupStatus],
        is_ready: bool,
        notices: Vec<String>,
    ) -> Page {
        Page {
            node_id: identity.node_id,
            cluster_id: identity.cluster_id.clone(),
            version: identity.version.clone(),
            durability: identity.durability.clone(),
            incarnation: identity.incarnation.clone(),
            uptime_ms: identity.uptime_ms,
            is_ready,
            is_draining: identity.draining,
            is_evicting_leaders: identity.evicting_leaders,
            notices,
            nodes: nodes.iter().map(node_row).collect(),
            groups: groups.iter().map(group_row).collect(),
        }
    }

    /// The whole page. It is complete as it is sent; the script only fetches it anew.
    pub fn html(&self) -> String {
        TEMPLATE
            .replace("{{title}}", &format!("n{}", self.node_id))
            .replace("{{head}}", &self.head())
            .replace("{{nodes}}", &self.nodes.iter().map(NodeRow::html).collect::<String>())
            .replace("{{groups_summary}}", &self.groups_summary())
            .replace("{{groups}}", &self.groups.iter().map(GroupRow::html).collect::<String>())
    }

    fn head(&self) -> String {
        let state = match (self.is_ready, self.cluster_id.is_empty()) {
            (_, true) => badge("warn", "waits for a cluster"),
            (true, _) => badge("good", "ready"),
            (false, _) => badge("bad", "not ready"),
        };
        let draining = if self.is_draining { badge("warn", "draining") } else { String::new() };
        let evicting =
            if self.is_evicting_leaders { badge("warn", "gives up leadership") } else { String::new() };
        let cluster = if self.cluster_id.is_empty() { "none" } else { &self.cluster_id };
        let facts = [
            ("cluster", escape(cluster)),
            ("version", escape(&self.version)),
            ("durability", escape(&self.durability)),
            ("up for", duration(self.uptime_ms)),
        ];
        let facts: String =
            facts.iter().map(|(name, value)| format!("<span>{name} <b>{value}</b></span>")).collect();
        let notices: String =
            self.notices.iter().map(|notice| format!("<p class=notice>{}</p>", escape(notice))).collect();
        format!(
            "<h1>DtKV node n{} {state}{draining}{evicting}</h1><p class=facts>{facts}</p>{notices}",
            self.node_id
        )
    }

    fn groups_summary(&self) -> String {
        let count = |filter: fn(&&GroupRow) -> bool| self.groups.iter().filter(filter).count();
        let (leaders, not_ready) = (count(|group| group.role == "leader"), count(|group| !group.is_ready));
        let mut text = format!("{} here, {leaders} led by this node", self.groups.len());
        if not_ready > 0 {
            text = format!("{text}, {}", badge("bad", &format!("{not_ready} not ready")));
        }
        text
    }
}

fn node_row(node: &NodeStatus) -> NodeRow {
    let address = node.address.clone().unwrap_or_default();
    let state = match (node.tombstone, node.self_, node.connected) {
        (true, _, _) => "removed",
        (_, true, _) => "this node",
        (_, _, true) => "connected",
        _ => "not connected",
    };
    let was_heard = !node.self_ && node.last_contact_ms != u64::MAX;
    NodeRow {
        node_id: address.node_id,
        client_address: address.client_address,
        peer_address: address.peer_address,
        state,
        last_contact_ms: was_heard.then_some(node.last_contact_ms),
    }
}

fn group_row(status: &GroupStatus) -> GroupRow {
    let role = match status.role() {
        Role::Leader => "leader",
        Role::Follower => "follower",
        Role::Candidate => "candidate",
        Role::Learner => "learner",
        Role::Shutdown | Role::Unspecified => "stopped",
    };
    GroupRow {
        group_id: status.group_id,
        role,
        leader_id: status.leader_id,
        term: status.term,
        voters: status.voters.clone(),
        learners: status.learners.clone(),
        is_ready: status.ready,
        is_parked: status.parked,
        commit_index: status.commit_index,
        applied_index: status.applied_index,
        lag_entries: status.commit_index.saturating_sub(status.applied_index),
        slowest_member_lag_entries: (role == "leader").then(|| group_metrics::lag(status)),
        last_contact_ms: Some(status.last_contact_ms).filter(|ms| *ms != u64::MAX),
        log_bytes: status.log_bytes,
        tree_bytes: status.tree_bytes,
        tree_nodes: status.tree_nodes,
        failure: status.failure.clone(),
    }
}

impl NodeRow {
    fn html(&self) -> String {
        let class = match self.state {
            "connected" | "this node" => "good",
            "removed" => "dim",
            _ => "bad",
        };
        let contact = self.last_contact_ms.map_or_else(String::new, |ms| format!("{} ago", duration(ms)));
        let (client, peer) = (escape(&self.client_address), escape(&self.peer_address));
        row(&[format!("n{}", self.node_id), badge(class, self.state), client, peer, contact])
    }
}

impl GroupRow {
    fn html(&self) -> String {
        let leader = match self.leader_id {
            0 => badge("bad", "none"),
            id => format!("n{id}"),
        };
        let state = match (&*self.failure, self.is_ready, self.is_parked) {
            ("", true, true) => badge("dim", "sleeps"),
            ("", true, false) => badge("good", "serves"),
            ("", false, _) => badge("bad", "not ready"),
            (failure, _, _) => badge("bad", failure),
        };
        row(&[
            format!("g{}", self.group_id),
            state,
            badge(if self.role == "leader" { "leader" } else { "dim" }, self.role),
            leader,
            self.members(),
            self.term.to_string(),
            self.applied_index.to_string(),
            self.lag(),
            self.tree_nodes.to_string(),
            size(self.tree_bytes),
            size(self.log_bytes),
        ])
    }

    fn members(&self) -> String {
        let list = |ids: &[u64]| ids.iter().map(|id| format!("n{id}")).collect::<Vec<_>>().join(" ");
        match self.learners.is_empty() {
            true => list(&self.voters),
            false => format!("{} <i>+ learning: {}</i>", list(&self.voters), list(&self.learners)),
        }
    }

    /// What is behind: this replica's apply, or the slowest member of the group that it leads.
    fn lag(&self) -> String {
        match self.slowest_member_lag_entries {
            Some(behind) if behind > 0 => format!("member: {behind}"),
            _ if self.lag_entries > 0 => self.lag_entries.to_string(),
            _ => "0".to_owned(),
        }
    }
}

fn row(cells: &[String]) -> String {
    let cells: String = cells.iter().map(|cell| format!("<td>{cell}</td>")).collect();
    format!("<tr>{cells}</tr>\n")
}

fn badge(class: &str, text: &str) -> String {
    format!("<span class=\"badge {class}\">{}</span>", escape(text))
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
        .replace('{', "&#123;")
}

fn duration(ms: u64) -> String {
    match ms {
        0..1_000 => format!("{ms} ms"),
        1_000..120_000 => format!("{} s", ms / 1_000),
        120_000..7_200_000 => format!("{} min", ms / 60_000),
        7_200_000..172_800_000 => format!("{} h", ms / 3_600_000),
        _ => format!("{} days", ms / 86_400_000),
    }
}

fn size(bytes: u64) -> String {
    match bytes {
        0..10_240 => format!("{bytes} B"),
        10_240..10_485_760 => format!("{} KiB", bytes >> 10),
        10_485_760..10_737_418_240 => format!("{} MiB", bytes >> 20),
        _ => format!("{} GiB", bytes >> 30),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dtkv_client::v1::{NodeAddress, PeerProgress};

    fn page() -> Page {
        let address = |node_id, client_address: &str| NodeAddress {
            node_id,
            client_address: client_address.to_owned(),
            ..Default::default()
        };
        let identity = IdentityResponse {
            node_id: 1,
            cluster_id: "<b>".to_owned(),
            uptime_ms: 200_000,
            ..Default::default()
        };
        let own = NodeStatus { address: Some(address(1, "a:1")), self_: true, ..Default::default() };
        let lost = NodeStatus {
            address: Some(address(2, "{{groups}}")),
            last_contact_ms: 5_000,
            ..Default::default()
        };
        let peer = PeerProgress { node_id: 2, match_index: 40, ..Default::default() };
        let group = GroupStatus {
            group_id: 7,
            role: Role::Leader.into(),
            leader_id: 1,
            term: 3,
            voters: vec![1, 2, 3],
            learners: vec![4],
            last_index: 50,
            commit_index: 50,
            applied_index: 50,
            tree_bytes: 3 << 20,
            ready: true,
            peers: vec![peer],
            ..Default::default()
        };
        let broken = GroupStatus { group_id: 8, failure: "no log".to_owned(), ..Default::default() };
        Page::new(&identity, &[own, lost], &[group, broken], true, vec!["beware".to_owned()])
    }

    #[test]
    fn the_page_is_complete_without_a_script_and_escapes_what_it_shows() {
        let html = page().html();
        for part in [
            "DtKV node n1",
            "&lt;b&gt;",
            "3 min",
            "beware",
            "not connected",
            "5 s ago",
            "<td>g7</td>",
            "n1 n2 n3",
            "learning: n4",
            "member: 10",
            "3072 KiB",
            "no log",
            "2 here, 1 led by this node",
        ] {
            assert!(html.contains(part), "no {part:?} in\n{html}");
        }
        assert!(!html.contains("<b><b>") && !html.contains("{{"), "{html}");
        assert_eq!(html.matches("<td>g7</td>").count(), 1, "an address is no place holder");
    }

    #[test]
    fn the_json_has_the_same_facts() {
        let json = serde_json::to_value(page()).expect("json");
        assert_eq!(json["groups"][0]["slowest_member_lag_entries"], 10);
        assert_eq!(json["groups"][1]["failure"], "no log");
        assert_eq!(json["nodes"][0]["last_contact_ms"], serde_json::Value::Null);
        assert_eq!(json["nodes"][1]["state"], "not connected");
    }
}
