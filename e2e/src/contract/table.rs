//! Calls in an order in which each code that these operations have comes up.

use super::Call;
use dtkv_client::limits::{KEY_BYTES_MAX, VALUE_BYTES_MAX};
use dtkv_client::v1::Code::{self, *};

/// A call, its codes, and for reads the value that it must find.
#[derive(Clone, Debug)]
pub struct Row {
    /// The call.
    pub call: Call,
    /// What it must be answered with.
    pub codes: Vec<Code>,
    /// What a read must see.
    pub value: Option<&'static str>,
}

/// Keys of the table lie below one directory, so that it can be run on the same group many times.
struct Below<'a>(&'a str);

impl Below<'_> {
    fn key(&self, key: &str) -> String {
        if key.is_empty() { self.0.to_owned() } else { format!("{}.{key}", self.0) }
    }
    fn put(&self, key: &str, value: &str) -> Call {
        Call::Put { key: self.key(key), value: value.into(), create_parents: false }
    }
    fn put_deep(&self, key: &str) -> Call {
        Call::Put { key: self.key(key), value: "v".into(), create_parents: true }
    }
    fn get(&self, key: &str) -> Call {
        Call::Get { key: self.key(key) }
    }
    fn list(&self, key: &str) -> Call {
        Call::List { key: self.key(key) }
    }
    fn remove(&self, key: &str) -> Call {
        Call::Remove { key: self.key(key), recursive: false }
    }
    fn remove_all(&self, key: &str) -> Call {
        Call::Remove { key: self.key(key), recursive: true }
    }
    fn mkdir(&self, key: &str) -> Call {
        Call::Mkdir { key: self.key(key), create_parents: false }
    }
    fn mkdir_deep(&self, key: &str) -> Call {
        Call::Mkdir { key: self.key(key), create_parents: true }
    }
    fn cas(&self, key: &str, expect: Option<&str>, new: Option<&str>) -> Call {
        let (expect, new) = (expect.map(str::to_owned), new.map(Into::into));
        Call::CompareAndSet { key: self.key(key), expect, expect_index: None, new }
    }
    fn cas_index(&self, key: &str, index: u64, new: Option<&str>) -> Call {
        let new = new.map(Into::into);
        Call::CompareAndSet { key: self.key(key), expect: None, expect_index: Some(index), new }
    }
    fn keys(&self, keys: &[&str]) -> Vec<String> {
        keys.iter().map(|key| self.key(key)).collect()
    }
    fn batch_put(&self, keys: &[&str]) -> Call {
        Call::BatchPut { items: self.keys(keys).into_iter().map(|key| (key, "b".to_owned())).collect() }
    }
}

fn row(call: Call, code: Code) -> Row {
    Row { call, codes: vec![code], value: None }
}

fn sees(call: Call, value: &'static str) -> Row {
    Row { call, codes: vec![Success], value: Some(value) }
}

fn many(call: Call, codes: &[Code]) -> Row {
    Row { call, codes: codes.to_vec(), value: None }
}

/// The rows, with all keys below `directory`.
pub fn table(directory: &str) -> Vec<Row> {
    let at = Below(directory);
    [writes(&at), directories(&at), compare_and_set(&at), batches(&at), bad_keys(), sizes(&at)].concat()
}

fn writes(at: &Below<'_>) -> Vec<Row> {
    vec![
        row(at.mkdir(""), Success),
        row(at.get("a"), NotFound),
        row(at.put("a", "1"), Success),
        sees(at.get("a"), "1"),
        row(at.put("a", "2"), SuccessOverwrite),
        row(at.put("a", "2"), SuccessOverwrite),
        sees(at.get("a"), "2"),
        row(at.put("", "x"), DirExists),
        row(at.put("no.parent", "x"), ParentDirNotExists),
        row(at.put("a.below", "x"), ParentNotDir),
        row(at.put("a", ""), InvalidValue),
        row(at.put("no.parent", ""), InvalidValue),
        row(at.remove("none"), NotFound),
        row(at.remove("a"), Success),
        row(at.remove("a"), NotFound),
        row(at.get("a"), NotFound),
        row(Call::Guarded { key: at.key("guarded") }, Fenced),
        row(at.get("guarded"), NotFound),
    ]
}

fn directories(at: &Below<'_>) -> Vec<Row> {
    vec![
        row(at.mkdir(""), DirExists),
        row(at.mkdir("no.parent"), ParentDirNotExists),
        row(at.put("v", "x"), Success),
        row(at.mkdir("v"), ValueExists),
        row(at.mkdir("v.below"), ParentNotDir),
        row(at.mkdir_deep("m.n.o"), Success),
        row(at.mkdir_deep("v.n.o"), ParentNotDir),
        row(at.put_deep("p.q.r"), Success),
        row(at.put_deep("p.q.r"), SuccessOverwrite),
        row(at.put_deep("v.q.r"), ParentNotDir),
        row(at.get("p.q"), Success),
        row(at.list("p.q"), Success),
        row(at.list("v"), ParentNotDir),
        row(at.list("none"), NotFound),
        row(Call::List { key: String::new() }, Success),
        row(Call::Get { key: String::new() }, Success),
        row(at.remove("p"), HasChildren),
        row(at.remove("m.n.o"), Success),
        row(at.remove_all("p"), Success),
        row(at.get("p.q.r"), NotFound),
        row(at.remove_all("v"), Success),
    ]
}

fn compare_and_set(at: &Below<'_>) -> Vec<Row> {
    vec![
        row(at.cas("c", Some("x"), Some("1")), CasMismatch),
        row(at.cas("c", None, Some("1")), Success),
        row(at.cas("c", None, Some("2")), CasMismatch),
        row(at.cas("c", Some("2"), Some("3")), CasMismatch),
        sees(at.get("c"), "1"),
        row(at.cas("c", Some("1"), Some("2")), Success),
        sees(at.get("c"), "2"),
        row(at.cas("c", Some("1"), None), CasMismatch),
        row(at.cas("c", Some("2"), None), Success),
        row(at.get("c"), NotFound),
        row(at.cas("c", None, None), InvalidValue),
        row(at.cas("c", None, Some("")), InvalidValue),
        row(at.cas("", None, Some("1")), CasMismatch),
        row(at.cas("", Some("1"), Some("1")), CasMismatch),
        row(at.cas("no.parent", Some("1"), None), ParentDirNotExists),
        row(at.cas_index("c", 1, Some("1")), CasMismatch),
        row(at.cas_index("c", 0, Some("1")), Success),
        row(at.cas_index("c", 0, Some("1")), CasMismatch),
        row(at.cas_index("c", 1, Some("1")), CasMismatch),
        row(at.cas("c.below", None, Some("1")), ParentNotDir),
        row(at.remove("c"), Success),
    ]
}

fn batches(at: &Below<'_>) -> Vec<Row> {
    let keys = at.keys(&["b1", "none", ""]);
    vec![
        many(
            at.batch_put(&["b1", "b2", "b1", "no.parent", "b1.below", ""]),
            &[Success, Success, SuccessOverwrite, ParentDirNotExists, ParentNotDir, DirExists],
        ),
        many(at.batch_put(&["bad..key", "b3"]), &[InvalidKey, Success]),
        many(Call::BatchGet { keys }, &[Success, NotFound, Success]),
        many(
            Call::BatchRemove { keys: at.keys(&["b1", "b1", "b2", "b3", "none", "bad..key"]) },
            &[Success, NotFound, Success, Success, NotFound, InvalidKey],
        ),
        many(Call::BatchRemove { keys: at.keys(&["", "m"]) }, &[HasChildren, HasChildren]),
        many(Call::BatchRemove { keys: at.keys(&["m.n", "m", ""]) }, &[Success, Success, Success]),
        row(at.mkdir(""), Success),
    ]
}

fn bad_keys() -> Vec<Row> {
    let calls = |key: &str| {
        let key = key.to_owned();
        vec![
            Call::Put { key: key.clone(), value: "x".into(), create_parents: true },
            Call::Get { key: key.clone() },
            Call::List { key: key.clone() },
            Call::Remove { key: key.clone(), recursive: true },
            Call::Mkdir { key: key.clone(), create_parents: true },
            Call::CompareAndSet { key, expect: None, expect_index: None, new: Some("x".into()) },
        ]
    };
    let bad = [".", ".a", "a.", "a..b", "a b", "a\tb", "a\nb", "\u{0}", "a\u{7f}"];
    let long = "k".repeat(KEY_BYTES_MAX + 1);
    let bad = bad.into_iter().flat_map(calls).map(|call| row(call, InvalidKey));
    let root = calls("").into_iter().filter(|call| !matches!(call, Call::Get { .. } | Call::List { .. }));
    let root = root.map(|call| row(call, InvalidKey));
    bad.chain(root).chain(calls(&long).into_iter().map(|call| row(call, KeyTooLong))).collect()
}

fn sizes(at: &Below<'_>) -> Vec<Row> {
    let value = |bytes: usize| "v".repeat(bytes);
    let longest = "k".repeat(KEY_BYTES_MAX - at.key("").len() - 1);
    vec![
        row(at.put("big", &value(VALUE_BYTES_MAX)), Success),
        row(at.put("big", &value(VALUE_BYTES_MAX + 1)), ValueTooLong),
        row(at.cas("big", None, Some(&value(VALUE_BYTES_MAX + 1))), ValueTooLong),
        row(at.put(&longest, "x"), Success),
        sees(at.get(&longest), "x"),
        row(at.remove(&longest), Success),
        row(at.remove("big"), Success),
    ]
}
