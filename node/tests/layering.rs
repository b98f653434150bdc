//! Keeps the floors of this crate acyclic: a module uses only modules of floors below its own.
//! The floors, and what each may not do, are told in `ARCHITECTURE.md`.

use std::path::{Path, PathBuf};

/// Modules by floor, the lowest first. Modules of one floor do not know each other.
const FLOORS: [&[&str]; 8] = [
    &["ids", "clock", "planted", "peer_v1", "storage_v1"],
    &["accept", "failure", "config", "telemetry", "peer_codec"],
    &["keyspace", "tree", "session"],
    &["machine", "engine", "transport", "watch"],
    &["group"],
    &["store"],
    &["service"],
    &["lib", "main", "cli", "dev", "wiring"],
];

fn floor(module: &str) -> Option<usize> {
    FLOORS.iter().position(|modules| modules.contains(&module))
}

/// The modules of this crate that a source names by `crate::`, also in groups of uses.
fn used_modules(source: &str) -> Vec<String> {
    let mut used = Vec::new();
    for line in source.lines().map(|line| line.split("//").next().unwrap_or_default()) {
        for (at, found) in line.match_indices("crate::") {
            // `$crate::` and `other_crate::` are not ours.
            let before = line[..at].chars().next_back();
            if before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == '$') {
                continue;
            }
            used.extend(names(&line[at + found.len()..]));
        }
    }
    used.sort();
    used.dedup();
    used
}

/// `a::b` gives a, `{a, b::c}` gives a and b.
fn names(path: &str) -> Vec<String> {
    let list = path.strip_prefix('{').map_or(path, |rest| rest.trim_end_matches(['}', ';']));
    let name = |part: &str| part.trim().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
    let parts = if path.starts_with('{') { top_level_parts(list) } else { vec![list] };
    parts.into_iter().map(name).filter(|name: &String| !name.is_empty()).collect()
}

fn top_level_parts(list: &str) -> Vec<&str> {
    let (mut parts, mut depth, mut start) = (Vec::new(), 0, 0);
    for (at, c) in list.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(&list[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&list[start..]);
    parts
}

/// What is wrong with the uses of one module.
fn violations(module: &str, source: &str) -> Vec<String> {
    let Some(own) = floor(module) else {
        return vec![format!("{module} stands on no floor: name it in FLOORS of tests/layering.rs")];
    };
    let top = own == FLOORS.len() - 1;
    let wrong = |used: &String| {
        let fine = used == module || top;
        // A name that is no module is an item of lib.rs, which nobody below may use.
        !fine && floor(used).is_none_or(|floor| floor >= own)
    };
    used_modules(source).into_iter().filter(wrong).map(|used| format!("{module} uses {used}")).collect()
}

/// Every source file with the top-level module that it belongs to.
fn sources(root: &Path) -> Vec<(String, PathBuf)> {
    let mut found = Vec::new();
    let mut directories = vec![root.to_path_buf()];
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(&directory).expect("a directory of sources") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                directories.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let inside = path.strip_prefix(root).expect("below the root");
                let first = inside.components().next().expect("a name").as_os_str().to_string_lossy();
                found.push((first.trim_end_matches(".rs").to_owned(), path));
            }
        }
    }
    found
}

#[test]
fn every_module_uses_only_floors_below_its_own() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut all = Vec::new();
    for (module, path) in sources(&root) {
        let source = std::fs::read_to_string(&path).expect("a source file");
        all.extend(violations(&module, &source).into_iter().map(|v| format!("{}: {v}", path.display())));
    }
    assert!(all.is_empty(), "uses that cross the floors upwards or sideways:\n{}", all.join("\n"));
}

#[test]
fn a_bad_use_is_found() {
    for (module, source, expected) in [
        ("tree", "use crate::engine::Engine;", "tree uses engine"),
        ("tree", "use crate::keyspace;", "tree uses keyspace"),
        ("engine", "    let x = crate::group::raft::encode_entry(e);", "engine uses group"),
        ("engine", "use crate::{ids::NodeId, store::{Store, X}};", "engine uses store"),
        ("group", "use crate::service;", "group uses service"),
        ("store", "use crate::Node;", "store uses Node"),
        ("newcomer", "", "newcomer stands on no floor"),
    ] {
        let found = violations(module, source);
        assert!(found.iter().any(|v| v.starts_with(expected)), "{source}: {found:?}");
    }
}

#[test]
fn good_uses_pass() {
    for (module, source) in [
        ("group", "use crate::{engine::Engine, ids::{GroupId, NodeId}, group::raft};"),
        ("group", "// crate::service would be wrong here"),
        ("failure", "use crate::ids::NodeId;"),
        ("tree", "use dtkv_client::packed; use other_crate::engine::X;"),
        ("main", "use crate::cli;"),
    ] {
        assert_eq!(violations(module, source), Vec::<String>::new(), "{source}");
    }
}
