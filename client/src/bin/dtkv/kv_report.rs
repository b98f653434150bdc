//! How answers of the commands on keys look.

use crate::output::{self, Report, age, json_bytes_option, show, show_short, table, time};
use bytes::Bytes;
use dtkv_client::Node;
use dtkv_client::v1::Code;
use serde::Serialize;

/// Characters of a value in a table.
const VALUE_WIDTH: usize = 60;

/// One change and what came of it.
#[derive(Serialize)]
pub struct Done {
    key: String,
    code: &'static str,
    index: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    owner: Option<String>,
    #[serde(skip)]
    what: &'static str,
}

impl Done {
    pub fn new(key: &str, what: &'static str, code: Code, index: u64) -> Done {
        Done { key: key.to_string(), code: code.as_str_name(), index, owner: None, what }
    }

    /// The same for a temporary node.
    pub fn owned_by(self, owner: Option<[u8; 16]>) -> Done {
        Done { owner: owner.map(|owner| output::hex(&owner)), ..self }
    }
}

impl Report for Done {
    fn text(&self) -> String {
        let owner = self.owner.as_ref().map(|owner| format!(", owner {owner}")).unwrap_or_default();
        format!("{} {} (index {}{owner})\n", self.key, self.what, self.index)
    }
}

/// A node as it is shown.
#[derive(Serialize)]
pub struct NodeView {
    key: String,
    kind: &'static str,
    #[serde(serialize_with = "json_bytes_option", skip_serializing_if = "Option::is_none")]
    value: Option<Bytes>,
    create_index: u64,
    create_time_ms: u64,
    update_index: u64,
    update_time_ms: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    child_count: Option<u32>,
    temp: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    ttl_remaining_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    owner: Option<String>,
}

impl From<Node> for NodeView {
    fn from(node: Node) -> NodeView {
        NodeView {
            key: show(&node.key),
            kind: kind(&node),
            value: node.value,
            create_index: node.create_index,
            create_time_ms: node.create_time_ms,
            update_index: node.update_index,
            update_time_ms: node.update_time_ms,
            child_count: node.dir.then_some(node.child_count),
            temp: node.temp,
            ttl_remaining_ms: node.ttl_remaining_ms,
            owner: node.owner.map(|owner| output::hex(&owner)),
        }
    }
}

fn kind(node: &Node) -> &'static str {
    match (node.lock, node.dir) {
        (true, _) => "lock",
        (false, true) => "dir",
        (false, false) => "value",
    }
}

impl NodeView {
    pub fn value(&self) -> &[u8] {
        self.value.as_deref().unwrap_or_default()
    }

    pub fn summary(&self) -> String {
        match self.child_count {
            Some(children) => format!("({})", output::count_of(u64::from(children), "child", "children")),
            None => show_short(self.value(), VALUE_WIDTH),
        }
    }

    /// What it is, and how long it still lives.
    fn mark(&self) -> String {
        match self.ttl_remaining_ms {
            Some(ttl) => format!("{} ({} left)", self.kind, age(ttl)),
            None => self.kind.to_string(),
        }
    }

    fn name(&self) -> &str {
        if self.key.is_empty() { "." } else { &self.key }
    }

    fn details(&self) -> String {
        let mut rows = vec![
            ("key", self.name().to_string()),
            ("kind", format!("{}{}", if self.temp { "temporary " } else { "" }, self.kind)),
        ];
        match self.child_count {
            Some(children) => rows.push(("children", children.to_string())),
            None => {
                rows.push(("bytes", self.value().len().to_string()));
                rows.push(("value", show(self.value())));
            }
        }
        rows.push(("created", format!("{} at index {}", time(self.create_time_ms), self.create_index)));
        rows.push(("updated", format!("{} at index {}", time(self.update_time_ms), self.update_index)));
        if let Some(ttl) = self.ttl_remaining_ms {
            rows.push(("expires in", age(ttl)));
        }
        if let Some(owner) = &self.owner {
            rows.push(("owner", owner.clone()));
        }
        output::pairs(&rows)
    }
}

/// One key that was read.
#[derive(Serialize)]
pub struct Read {
    pub key: String,
    code: &'static str,
    index: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    lag_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<NodeView>,
}

impl Read {
    pub fn new(key: &str, index: u64, lag_ms: Option<u64>, node: Option<Node>) -> Read {
        let code = if node.is_some() { Code::Success } else { Code::NotFound };
        let key = if key.is_empty() { "." } else { key }.to_string();
        Read { key, code: code.as_str_name(), index, lag_ms, node: node.map(Into::into) }
    }
}

/// What `get` answers. One key is one JSON object, several are an array.
pub struct NodeReport<'a> {
    pub reads: &'a [Read],
    pub meta: bool,
}

impl Serialize for NodeReport<'_> {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        match self.reads {
            [read] => read.serialize(to),
            reads => reads.serialize(to),
        }
    }
}

impl Report for NodeReport<'_> {
    fn text(&self) -> String {
        let found = || self.reads.iter().filter_map(|read| read.node.as_ref());
        let is_one = self.reads.len() == 1;
        match found().next() {
            None => String::new(),
            Some(node) if is_one && (self.meta || node.child_count.is_some()) => node.details(),
            Some(node) if is_one => with_line_end(show(node.value())),
            _ if self.meta => long_table(found()),
            _ => table(&["KEY", "VALUE"], &[], found().map(|node| [node.name().to_string(), node.summary()])),
        }
    }
}

fn with_line_end(mut text: String) -> String {
    if !text.ends_with('\n') {
        text.push('\n');
    }
    text
}

/// What `ls` answers.
#[derive(Default, Serialize)]
pub struct Listing {
    pub index: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lag_ms: Option<u64>,
    pub nodes: Vec<NodeView>,
    #[serde(rename = "continue")]
    pub continuation: Option<String>,
    #[serde(skip)]
    pub long: bool,
    #[serde(skip)]
    pub keys_only: bool,
}

impl Report for Listing {
    fn text(&self) -> String {
        if self.nodes.is_empty() {
            return String::new();
        }
        if self.long {
            return long_table(self.nodes.iter());
        }
        if self.keys_only {
            return self.nodes.iter().map(|node| node.key.clone() + "\n").collect();
        }
        let row = |node: &NodeView| [node.name().to_string(), node.mark(), node.summary()];
        table(&["KEY", "KIND", "VALUE"], &[], self.nodes.iter().map(row))
    }
}

fn long_table<'a>(nodes: impl Iterator<Item = &'a NodeView>) -> String {
    let nodes: Vec<&NodeView> = nodes.collect();
    let has_owners = nodes.iter().any(|node| node.owner.is_some());
    let row = |node: &NodeView| {
        let mut row = vec![
            node.name().to_string(),
            node.kind.to_string(),
            time(node.create_time_ms),
            node.create_index.to_string(),
            time(node.update_time_ms),
            node.update_index.to_string(),
        ];
        if has_owners {
            row.push(node.ttl_remaining_ms.map_or_else(|| "-".into(), age));
            row.push(node.owner.clone().unwrap_or_else(|| "-".into()));
        }
        row.push(node.summary());
        row
    };
    let mut header = vec!["KEY", "KIND", "CREATED (UTC)", "AT", "UPDATED (UTC)", "AT"];
    if has_owners {
        header.extend(["LEFT", "OWNER"]);
    }
    header.push("VALUE");
    table(&header, &[3, 5], nodes.into_iter().map(row))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::Layout;
    use crate::output::render;

    fn value(key: &'static str, bytes: &'static [u8]) -> Node {
        Node {
            key: Bytes::from_static(key.as_bytes()),
            value: Some(Bytes::from_static(bytes)),
            create_index: 3,
            create_time_ms: 1_709_210_096_007,
            update_index: 12,
            update_time_ms: 1_709_210_097_000,
            ..Node::default()
        }
    }

    fn directory(key: &'static str, child_count: u32) -> Node {
        Node { dir: true, value: None, child_count, ..value(key, b"") }
    }

    fn report(reads: &[Read], meta: bool) -> String {
        NodeReport { reads, meta }.text()
    }

    #[test]
    fn one_value_is_printed_alone() {
        assert_eq!(report(&[Read::new("a", 9, None, Some(value("a", b"hi")))], false), "hi\n");
        assert_eq!(report(&[Read::new("a", 9, None, Some(value("a", &[255])))], false), "0xff\n");
        assert_eq!(report(&[Read::new("a", 9, None, None)], false), "");
    }

    #[test]
    fn details_of_a_node_name_indexes_and_times() {
        let text = report(&[Read::new("user.alice", 20, None, Some(value("user.alice", b"hi")))], true);
        let wanted = "\
key      user.alice
kind     value
bytes    2
value    hi
created  2024-02-29 12:34:56.007 at index 3
updated  2024-02-29 12:34:57.000 at index 12
";
        assert_eq!(text, wanted);
    }

    #[test]
    fn directories_show_their_details() {
        let text = report(&[Read::new("", 20, None, Some(directory("", 2)))], false);
        assert!(text.starts_with("key       .\nkind      dir\nchildren  2\n"), "{text}");
    }

    #[test]
    fn several_keys_are_a_table_and_a_json_array() {
        let reads = [
            Read::new("a", 9, None, Some(value("a", b"1"))),
            Read::new("b", 9, Some(40), None),
            Read::new("c", 9, None, Some(directory("c", 1))),
        ];
        assert_eq!(report(&reads, false), "KEY  VALUE\na    1\nc    (1 child)\n");
        let json = render(&NodeReport { reads: &reads[1..2], meta: false }, Layout::Json);
        assert_eq!(
            json,
            "{\n  \"key\": \"b\",\n  \"code\": \"NOT_FOUND\",\n  \"index\": 9,\n  \"lag_ms\": 40\n}\n"
        );
        let json: serde_json::Value =
            serde_json::from_str(&render(&NodeReport { reads: &reads, meta: false }, Layout::Json)).unwrap();
        assert_eq!(json[0]["node"]["value"], "1");
        assert_eq!(json[2]["node"]["child_count"], 1);
        assert!(json[2]["node"].get("value").is_none());
    }

    #[test]
    fn listings_are_tables() {
        let nodes = || vec![value("a.x", b"1").into(), directory("a.y", 0).into()];
        let listing = Listing { nodes: nodes(), ..Listing::default() };
        assert_eq!(listing.text(), "KEY  KIND   VALUE\na.x  value  1\na.y  dir    (0 children)\n");
        let listing = Listing { nodes: nodes(), keys_only: true, ..Listing::default() };
        assert_eq!(listing.text(), "a.x\na.y\n");
        let listing = Listing { nodes: nodes(), long: true, ..Listing::default() };
        let wanted = "\
KEY  KIND   CREATED (UTC)            AT  UPDATED (UTC)            AT  VALUE
a.x  value  2024-02-29 12:34:56.007   3  2024-02-29 12:34:57.000  12  1
a.y  dir    2024-02-29 12:34:56.007   3  2024-02-29 12:34:57.000  12  (0 children)
";
        assert_eq!(listing.text(), wanted);
    }

    #[test]
    fn changes_are_one_line_or_one_object() {
        let done = Done::new("a", "created", Code::Success, 7);
        assert_eq!(done.text(), "a created (index 7)\n");
        let json = render(&done, Layout::Json);
        assert_eq!(json, "{\n  \"key\": \"a\",\n  \"code\": \"SUCCESS\",\n  \"index\": 7\n}\n");
    }
}
