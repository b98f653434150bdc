//! Reads what is there now, for an event watch whose history is gone.

use super::registration::Spec;
use super::{Change, Resync};
use crate::answer::{ListOptions, Node};
use crate::error::Error;
use crate::group::Group;
use crate::v1::Code;
use futures::TryStreamExt;

/// The node and everything below it. Events after the index that the first read saw make up for
/// what changes while the rest is read.
pub(super) async fn read(group: Group, spec: &Spec) -> Result<(u64, Change), Error> {
    let answer = group.read(&spec.key).await?;
    let mut nodes = Vec::new();
    let is_dir = answer.node.as_ref().is_some_and(|node| node.dir);
    if let Some(node) = answer.node.filter(|_| !spec.key.is_empty()) {
        let value = node.value.filter(|_| !spec.keys_only);
        nodes.push(Node { value, ..node });
    }
    if is_dir {
        let options = ListOptions { keys_only: spec.keys_only, recursive: true, ..ListOptions::default() };
        match group.list_all(&spec.key, options).try_collect::<Vec<Node>>().await {
            Ok(below) => nodes.extend(below),
            // Removed meanwhile; the events behind the first read say so.
            Err(error) if matches!(error.code(), Some(Code::NotFound | Code::ParentNotDir)) => {}
            Err(error) => return Err(error),
        }
    }
    Ok((answer.index, Change::Resynced(Resync { index: answer.index, nodes })))
}
