//! Listings: sorted, in pages.
//!
//! # Continuation
//! A page ends at `limit` nodes or before [`LIST_BYTES_MAX`] bytes, but never empty while there is
//! something left. Its continuation names the last node of the page, not a position: the next page
//! begins behind that name, whether or not the node is still there. So a node that exists during
//! the whole listing is listed exactly once, whatever is created and removed meanwhile.
//!
//! The bytes are opaque to callers: version (1), mode (1: 0 direct, 1 recursive), low half of the
//! XXH3 of the directory's key (4, little endian), path of the last node relative to the directory.
//! `keys_only` and `limit` may change from page to page. A continuation that cannot be read, or
//! that was made for another directory or mode, is refused with `INVALID_KEY`, before it is looked
//! whether the directory exists.

use super::node::{ListedNode, Node, NodeView};
use super::slab::Slot;
use super::walk::Walk;
use super::{ROOT, Tree};
use dtkv_client::limits::{LIST_BYTES_MAX, check_key, check_key_or_root};
use dtkv_client::v1::Code;
use xxhash_rust::xxh3::xxh3_64;

const TOKEN_VERSION: u8 = 1;
const TOKEN_HEADER_BYTES: usize = 6;

/// What a listed node takes in a page beside its key and its value.
const NODE_OVERHEAD_BYTES: usize = 64;

/// What to list.
#[derive(Clone, Copy, Debug, Default)]
pub struct ListQuery<'a> {
    /// The directory; empty for the root.
    pub key: &'a [u8],
    /// Most nodes in the page; 0 = as many as fit.
    pub limit: u32,
    /// Continuation of the page before; empty for the first page.
    pub continuation: &'a [u8],
    /// Leaves the values out.
    pub keys_only: bool,
    /// Everything below the directory, each directory before its children, instead of its direct
    /// children.
    pub recursive: bool,
}

/// One page.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ListPage {
    /// Sorted by segment.
    pub nodes: Vec<ListedNode>,
    /// Empty when there is nothing behind this page.
    pub continuation: Vec<u8>,
}

impl Tree {
    /// One page of a directory.
    ///
    /// # Errors
    /// `INVALID_KEY` (also for a bad continuation), `KEY_TOO_LONG`, `NOT_FOUND`, and
    /// `PARENT_NOT_DIR` when the key names a value.
    pub fn list(&self, query: &ListQuery<'_>) -> Result<ListPage, Code> {
        check_key_or_root(query.key)?;
        let after = read_token(query)?;
        let dir = if query.key.is_empty() { ROOT } else { self.find(query.key).ok_or(Code::NotFound)? };
        if !self.slab[dir].is_dir() {
            return Err(Code::ParentNotDir);
        }
        Ok(fill_page(self.walk_from(dir, after, query.recursive), query))
    }

    fn walk_from(&self, dir: Slot, after: Option<&[u8]>, deep: bool) -> Walk<'_> {
        match after {
            Some(path) => Walk::after(self, dir, path, deep),
            None => Walk::new(self, dir, deep),
        }
    }
}

fn fill_page(walk: Walk<'_>, query: &ListQuery<'_>) -> ListPage {
    let limit = if query.limit == 0 { usize::MAX } else { query.limit as usize };
    let mut page = ListPage::default();
    let mut bytes = 0;
    for node in walk {
        bytes += listed_bytes(node, query.keys_only);
        let full = page.nodes.len() >= limit || bytes > LIST_BYTES_MAX;
        if let Some(last) = page.nodes.last().filter(|_| full) {
            page.continuation = write_token(query, &last.key);
            break;
        }
        page.nodes.push(NodeView(node).to_listed(query.keys_only));
    }
    page
}

fn listed_bytes(node: &Node, keys_only: bool) -> usize {
    let value = NodeView(node).value().filter(|_| !keys_only);
    NODE_OVERHEAD_BYTES + node.key.len() + value.map_or(0, |value| value.len())
}

fn token_header(query: &ListQuery<'_>) -> [u8; TOKEN_HEADER_BYTES] {
    let [a, b, c, d, ..] = xxh3_64(query.key).to_le_bytes();
    [TOKEN_VERSION, u8::from(query.recursive), a, b, c, d]
}

fn write_token(query: &ListQuery<'_>, last: &[u8]) -> Vec<u8> {
    let path_start = if query.key.is_empty() { 0 } else { query.key.len() + 1 };
    [&token_header(query), &last[path_start..]].concat()
}

/// The path behind which the page begins.
fn read_token<'a>(query: &ListQuery<'a>) -> Result<Option<&'a [u8]>, Code> {
    if query.continuation.is_empty() {
        return Ok(None);
    }
    let path = query.continuation.strip_prefix(&token_header(query)).ok_or(Code::InvalidKey)?;
    check_key(path).map_err(|_| Code::InvalidKey)?;
    if !query.recursive && path.contains(&b'.') {
        return Err(Code::InvalidKey);
    }
    Ok(Some(path))
}
