//! How the overview looks.

use super::{GroupView, NodeView, Overview, ReplicaView};
use crate::output::{Report, age, count, nodes, size, table};
use serde::Serialize;

/// What `groups` prints.
#[derive(Serialize)]
#[serde(transparent)]
pub struct GroupsTable<'a>(pub &'a [GroupView]);

impl Report for GroupsTable<'_> {
    fn text(&self) -> String {
        let row = |group: &GroupView| {
            [
                group.group_id.to_string(),
                group.leader.map_or("-".into(), |leader| format!("n{leader}")),
                group.term.to_string(),
                nodes(&group.voters),
                nodes(&group.learners),
                group.commit_index.to_string(),
                group.lag_entries.to_string(),
                group.keys.to_string(),
                size(group.tree_bytes),
                size(group.log_bytes),
                if group.warnings.is_empty() { "ok".into() } else { group.warnings.join("; ") },
            ]
        };
        let header = [
            "GROUP", "LEADER", "TERM", "VOTERS", "LEARNERS", "COMMIT", "LAG", "KEYS", "TREE", "LOG", "STATE",
        ];
        table(&header, &[0, 2, 5, 6, 7, 8, 9], self.0.iter().map(row))
    }
}

/// What `nodes` prints.
#[derive(Serialize)]
#[serde(transparent)]
pub struct NodesTable<'a>(pub &'a [NodeView]);

impl Report for NodesTable<'_> {
    fn text(&self) -> String {
        let known = |node: &NodeView, text: String| match node.state {
            "down" | "tombstone" => "-".to_string(),
            _ => text,
        };
        let row = |node: &NodeView| {
            [
                format!("n{}", node.node_id),
                node.state.to_string(),
                node.client_address.clone(),
                node.peer_address.clone(),
                known(node, node.groups.to_string()),
                known(node, node.leaders.to_string()),
                known(node, node.durability.clone()),
                known(node, age(node.uptime_ms)),
                known(node, node.version.clone()),
            ]
        };
        let header =
            ["NODE", "STATE", "CLIENTS", "PEERS", "REPLICAS", "LEADERS", "DURABILITY", "UPTIME", "VERSION"];
        table(&header, &[4, 5], self.0.iter().map(row))
    }
}

/// What `group members` prints.
#[derive(Serialize)]
#[serde(transparent)]
pub struct MembersTable<'a>(pub &'a GroupView);

impl Report for MembersTable<'_> {
    fn text(&self) -> String {
        let row = |replica: &ReplicaView| {
            let known = |text: String| if replica.role == "unreachable" { "-".to_string() } else { text };
            [
                format!("n{}", replica.node_id),
                replica.member.to_string(),
                replica.role.to_string(),
                known(replica.applied_index.to_string()),
                known(replica.lag_entries.to_string()),
                last_contact(replica),
                known(size(replica.log_bytes)),
                known(if replica.ready { "yes" } else { "no" }.to_string()),
            ]
        };
        let header = ["NODE", "MEMBER", "ROLE", "APPLIED", "LAG", "LAST CONTACT", "LOG", "READY"];
        let rows = table(&header, &[3, 4, 5, 6], self.0.replicas.iter().map(row));
        let group = self.0;
        let line =
            format!("group {}, term {}, config index {}\n", group.group_id, group.term, group.config_index);
        line + &rows + &warning_lines(&group.warnings)
    }
}

fn last_contact(replica: &ReplicaView) -> String {
    match replica.last_contact_ms {
        Some(_) if replica.parked => "parked".into(),
        Some(ms) => age(ms),
        None => "-".into(),
    }
}

/// What `status` prints.
#[derive(Serialize)]
#[serde(transparent)]
pub struct StatusPage<'a>(pub &'a Overview);

impl Report for StatusPage<'_> {
    fn text(&self) -> String {
        let overview = self.0;
        let id = if overview.cluster_id.is_empty() { "none yet" } else { &overview.cluster_id };
        let up = overview.nodes.iter().filter(|node| !matches!(node.state, "down" | "tombstone")).count();
        let total = overview.nodes.iter().filter(|node| node.state != "tombstone").count();
        let leaders = overview.groups.iter().filter(|group| group.leader.is_some()).count();
        let keys: u64 = overview.groups.iter().map(|group| group.keys).sum();
        let mut text = format!("cluster {id}: {up} of {} up, ", count(total, "node"));
        text +=
            &format!("{leaders} of {} with a leader, {keys} keys\n\n", count(overview.groups.len(), "group"));
        text += &NodesTable(&overview.nodes).text();
        if !overview.groups.is_empty() {
            text += "\n";
            text += &GroupsTable(&overview.groups).text();
        }
        text + &warning_lines(&overview.warnings)
    }
}

fn warning_lines(warnings: &[String]) -> String {
    if warnings.is_empty() {
        return String::new();
    }
    let lines: String = warnings.iter().map(|warning| format!("  {warning}\n")).collect();
    format!("\n{}:\n{lines}", count(warnings.len(), "warning"))
}

#[cfg(test)]
mod tests {
    use super::super::tests::{group_of, healthy, node_of};
    use super::*;
    use crate::args::Layout;
    use crate::output::render;

    #[test]
    fn groups_are_one_line_each() {
        let wanted = "\
GROUP  LEADER  TERM  VOTERS    LEARNERS  COMMIT  LAG  KEYS     TREE      LOG  STATE
    1  n1         3  n1 n2 n3  -            120    0     9  2.0 KiB  4.0 KiB  ok
";
        assert_eq!(GroupsTable(&[group_of(healthy())]).text(), wanted);
    }

    #[test]
    fn members_show_how_far_each_is() {
        let mut replicas = healthy();
        replicas[1].applied_index = 100;
        replicas[1].parked = true;
        replicas.pop();
        let wanted = "\
group 1, term 3, config index 5
NODE  MEMBER  ROLE         APPLIED  LAG  LAST CONTACT      LOG  READY
n1    voter   leader           120    0          0 ms  4.0 KiB  yes
n2    voter   follower         100   20        parked  4.0 KiB  yes
n3    voter   unreachable        -    -             -        -  -

1 warning:
  n3 does not answer
";
        assert_eq!(MembersTable(&group_of(replicas)).text(), wanted);
    }

    #[test]
    fn status_has_nodes_groups_and_warnings() {
        let overview = Overview {
            cluster_id: "c-1".into(),
            nodes: vec![node_of(1, true).into(), node_of(2, false).into()],
            groups: vec![group_of(healthy())],
            warnings: vec!["n2 is down".into()],
        };
        let wanted = "\
cluster c-1: 1 of 2 nodes up, 1 of 1 group with a leader, 9 keys

NODE  STATE  CLIENTS        PEERS          REPLICAS  LEADERS  DURABILITY  UPTIME    VERSION
n1    up     10.0.0.1:9332  10.0.0.1:9331         8        3  fsync       2 h 01 m  0.1.0
n2    down   10.0.0.2:9332  10.0.0.2:9331         -        -  -           -         -

GROUP  LEADER  TERM  VOTERS    LEARNERS  COMMIT  LAG  KEYS     TREE      LOG  STATE
    1  n1         3  n1 n2 n3  -            120    0     9  2.0 KiB  4.0 KiB  ok

1 warning:
  n2 is down
";
        assert_eq!(StatusPage(&overview).text(), wanted);
        let json: serde_json::Value =
            serde_json::from_str(&render(&StatusPage(&overview), Layout::Json)).unwrap();
        assert_eq!(json["nodes"][1]["failure"], "connection refused");
        assert_eq!(json["groups"][0]["replicas"][0]["role"], "leader");
        assert_eq!(json["warnings"][0], "n2 is down");
    }
}
