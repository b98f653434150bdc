//! How the answers of administration look.

use crate::output::{Report, age, count, size, table};
use dtkv_client::Error;
use dtkv_client::admin::InitReport;
use dtkv_client::placement::GroupPlacement;
use dtkv_client::v1::{LimitsResponse, TreeDigestResponse};
use serde::{Serialize, Serializer};
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// A sentence for people and an object for programs.
pub struct Outcome {
    text: String,
    json: Value,
}

impl Outcome {
    pub fn new(text: String, json: Value) -> Outcome {
        Outcome { text, json }
    }
}

impl Serialize for Outcome {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        self.json.serialize(to)
    }
}

impl Report for Outcome {
    fn text(&self) -> String {
        format!("{}\n", self.text)
    }
}

/// What `cluster init` prints.
pub struct InitTable<'a>(pub &'a InitReport);

impl Serialize for InitTable<'_> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let group = |group: &GroupPlacement| {
            let GroupPlacement { group_id, members, preferred_leader } = group;
            json!({ "group_id": group_id, "members": members, "leader": preferred_leader })
        };
        let groups: Vec<Value> = self.0.layout.groups.iter().map(group).collect();
        json!({ "cluster_id": self.0.cluster_id, "created": self.0.created, "groups": groups }).serialize(to)
    }
}

impl Report for InitTable<'_> {
    fn text(&self) -> String {
        let groups = &self.0.layout.groups;
        let what = if self.0.created { "is ready" } else { "was ready already" };
        format!("cluster {} {what}, with {}\n", self.0.cluster_id, count(groups.len(), "group"))
    }
}

/// The tree of one replica.
#[derive(Serialize)]
pub struct ReplicaDigest {
    group_id: u32,
    node_id: u64,
    applied_index: u64,
    digest: String,
    /// Nodes of the tree without its root.
    keys: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    failure: Option<String>,
}

impl ReplicaDigest {
    pub fn new(group_id: u32, node_id: u64, answer: Result<TreeDigestResponse, Error>) -> ReplicaDigest {
        let failure = answer.as_ref().err().map(|e| e.message().to_string());
        let answer = answer.unwrap_or_default();
        ReplicaDigest {
            group_id,
            node_id,
            applied_index: answer.applied_index,
            digest: answer.digest,
            keys: answer.nodes.saturating_sub(1),
            failure,
        }
    }
}

/// What `digest` prints.
#[derive(Serialize)]
pub struct Digests {
    /// same, different, or unknown when no two replicas were at one index.
    groups: BTreeMap<u32, &'static str>,
    replicas: Vec<ReplicaDigest>,
}

impl Digests {
    pub fn of(replicas: Vec<ReplicaDigest>) -> Digests {
        let mut by_group: BTreeMap<u32, Vec<&ReplicaDigest>> = BTreeMap::new();
        for replica in &replicas {
            by_group.entry(replica.group_id).or_default().push(replica);
        }
        let groups = by_group.into_iter().map(|(id, replicas)| (id, verdict(&replicas))).collect();
        Digests { groups, replicas }
    }

    /// True when two replicas at the same index have different trees.
    pub fn differ(&self) -> bool {
        self.groups.values().any(|verdict| *verdict == "different")
    }
}

/// Only replicas at the same applied index can be compared.
fn verdict(replicas: &[&ReplicaDigest]) -> &'static str {
    let answered: Vec<&&ReplicaDigest> = replicas.iter().filter(|r| r.failure.is_none()).collect();
    let mut verdict = if answered.len() == 1 && replicas.len() == 1 { "same" } else { "unknown" };
    for (at, one) in answered.iter().enumerate() {
        for other in &answered[at + 1..] {
            match (one.applied_index == other.applied_index, one.digest == other.digest) {
                (true, false) => return "different",
                (true, true) => verdict = "same",
                (false, _) => {}
            }
        }
    }
    verdict
}

impl Report for Digests {
    fn text(&self) -> String {
        let row = |replica: &ReplicaDigest| {
            let digest = replica.failure.clone().unwrap_or_else(|| replica.digest.clone());
            let verdict = self.groups.get(&replica.group_id).copied().unwrap_or_default();
            [
                replica.group_id.to_string(),
                format!("n{}", replica.node_id),
                replica.applied_index.to_string(),
                replica.keys.to_string(),
                digest,
                verdict.to_string(),
            ]
        };
        let mut text = table(
            &["GROUP", "NODE", "APPLIED", "KEYS", "DIGEST", "VERDICT"],
            &[0, 2, 3],
            self.replicas.iter().map(row),
        );
        if self.groups.values().any(|verdict| *verdict == "unknown") {
            text += "\nunknown: the replicas were at different indexes; ask again when fewer writes arrive\n";
        }
        if self.differ() {
            let at_fault = self.groups.iter().filter(|(_, verdict)| **verdict == "different");
            let ids: Vec<String> = at_fault.map(|(id, _)| format!("g{id}")).collect();
            text += &format!(
                "\nthe trees differ in {}: please report it, with the log of each node\n",
                ids.join(", ")
            );
        }
        text
    }
}

/// What `limits` prints.
pub struct Limits(pub LimitsResponse);

impl Limits {
    fn rows(&self) -> [(&'static str, u64); 23] {
        let limits = &self.0;
        [
            ("key_bytes_max", limits.key_bytes_max.into()),
            ("value_bytes_max", limits.value_bytes_max.into()),
            ("batch_items_max", limits.batch_items_max.into()),
            ("batch_bytes_max", limits.batch_bytes_max.into()),
            ("list_bytes_max", limits.list_bytes_max.into()),
            ("frame_ops_max", limits.frame_ops_max.into()),
            ("frame_bytes_max", limits.frame_bytes_max.into()),
            ("request_bytes_max", limits.request_bytes_max.into()),
            ("inflight_bytes_max", limits.inflight_bytes_max.into()),
            ("streams_per_connection_max", limits.streams_per_connection_max.into()),
            ("request_timeout_ms", limits.request_timeout_ms.into()),
            ("answer_bytes_max", limits.answer_bytes_max.into()),
            ("sessions_max", limits.sessions_max.into()),
            ("session_answers_max", limits.session_answers_max.into()),
            ("session_bytes_max", limits.session_bytes_max.into()),
            ("sessions_bytes_max", limits.sessions_bytes_max.into()),
            ("session_idle_ms", limits.session_idle_ms.into()),
            ("ttl_ms_max", limits.ttl_ms_max),
            ("lock_key_bytes_max", limits.lock_key_bytes_max.into()),
            ("watches_per_stream_max", limits.watches_per_stream_max.into()),
            ("watches_max", limits.watches_max.into()),
            ("watch_window_bytes", limits.watch_window_bytes),
            ("watch_history_bytes_max", limits.watch_history_bytes_max),
        ]
    }
}

impl Serialize for Limits {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_map(self.rows())
    }
}

impl Report for Limits {
    fn text(&self) -> String {
        let row = |(name, value): (&str, u64)| {
            let readable = match name {
                name if name.contains("bytes") => size(value),
                name if name.ends_with("_ms") => age(value),
                _ => String::new(),
            };
            [name.to_string(), value.to_string(), readable]
        };
        table(&["LIMIT", "VALUE", ""], &[1], self.rows().map(row))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::Layout;
    use crate::output::{nodes, render};
    use dtkv_client::v1::failure::Reason;

    fn digest(group_id: u32, node_id: u64, applied_index: u64, digest: &str) -> ReplicaDigest {
        let answer = TreeDigestResponse { applied_index, digest: digest.into(), nodes: 5 };
        ReplicaDigest::new(group_id, node_id, Ok(answer))
    }

    #[test]
    fn digests_are_compared_at_the_same_index_only() {
        let same = Digests::of(vec![digest(1, 1, 9, "aa"), digest(1, 2, 9, "aa"), digest(1, 3, 8, "bb")]);
        assert!(!same.differ());
        assert_eq!(same.groups[&1], "same");
        let unknown = Digests::of(vec![digest(1, 1, 9, "aa"), digest(1, 2, 8, "bb")]);
        assert_eq!(unknown.groups[&1], "unknown");
        assert_eq!(Digests::of(vec![digest(1, 1, 9, "aa")]).groups[&1], "same");
        let failed = ReplicaDigest::new(1, 2, Err(Error::did_not_happen(Reason::Internal, "no answer")));
        assert_eq!(Digests::of(vec![digest(1, 1, 9, "aa"), failed]).groups[&1], "unknown");
    }

    #[test]
    fn different_trees_are_shouted() {
        let report = Digests::of(vec![digest(1, 1, 9, "aa"), digest(2, 1, 9, "aa"), digest(2, 2, 9, "bb")]);
        assert!(report.differ());
        let wanted = "\
GROUP  NODE  APPLIED  KEYS  DIGEST  VERDICT
    1  n1          9     4  aa      same
    2  n1          9     4  aa      different
    2  n2          9     4  bb      different

the trees differ in g2: please report it, with the log of each node
";
        assert_eq!(report.text(), wanted);
    }

    #[test]
    fn limits_are_readable_for_both() {
        let limits =
            Limits(LimitsResponse { key_bytes_max: 8192, request_timeout_ms: 5000, ..Default::default() });
        let text = limits.text();
        assert!(text.contains("key_bytes_max                8192  8.0 KiB\n"), "{text}");
        assert!(text.contains("request_timeout_ms           5000  5 s\n"), "{text}");
        let json: Value = serde_json::from_str(&render(&limits, Layout::Json)).unwrap();
        assert_eq!(json["key_bytes_max"], 8192);
    }

    #[test]
    fn outcomes_are_a_sentence_or_an_object() {
        let outcome = Outcome::new(format!("ready on {}", nodes(&[1, 2])), json!({ "members": [1, 2] }));
        assert_eq!(outcome.text(), "ready on n1 n2\n");
        assert!(render(&outcome, Layout::Json).contains("\"members\""));
    }
}
