//! Listings: sorted, in pages.
//!
//! # Continuation
//! A page ends at `limit` nodes or before [`LIST_BYTES_MAX`] bytes, but never empty while there is
//! something left. Its continuation names the last node of the page, not a position: the next page
//! begins behind that name, whether or not the node is still there. So a node that exists during
//! the whole listing is listed exactly once, whatever is created and removed meanwhile.
//!
//! The bytes are opaque to callers: version (1), mode (1: 0 direct, 1 recursive), low half of the
//! XXH3 of the directory's key (4, little endian), path of the last node relative to the directory. For
//! what a client owns: mode 2, XXH3 of the client id, key of the last node.
//! `keys_only` and `limit` may change from page to page. A continuation that cannot be read, or
//! that was made for another directory or mode, is refused with `INVALID_KEY`, before it is looked
//! whether the directory exists.

use super::node::{ListedNode, Node, NodeView};
use super::slab::Slot;
use super::walk::Walk;
use super::{ClientId, ROOT, Tree};
use dtkv_client::limits::{LIST_BYTES_MAX, check_key, check_key_or_root};
use dtkv_client::v1::Code;
use xxhash_rust::xxh3::xxh3_64;

const TOKEN_VERSION: u8 = 1;
const TOKEN_HEADER_BYTES: usize = 6;
const MODE_OWNED: u8 = 2;

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
        let token = PageToken::of(query);
        let after = token.read(query.continuation)?;
        after.map_or(Ok(()), |path| check_path(path, query.recursive))?;
        let dir = if query.key.is_empty() { ROOT } else { self.find(query.key).ok_or(Code::NotFound)? };
        if !self.slab[dir].is_dir() {
            return Err(Code::ParentNotDir);
        }
        let nodes = self.walk_from(dir, after, query.recursive);
        let path_start = if query.key.is_empty() { 0 } else { query.key.len() + 1 };
        Ok(fill_page(nodes, query.limit, query.keys_only, |last| token.write(&last.key[path_start..])))
    }

    fn walk_from(&self, dir: Slot, after: Option<&[u8]>, deep: bool) -> Walk<'_> {
        match after {
            Some(path) => Walk::after(self, dir, path, deep),
            None => Walk::new(self, dir, deep),
        }
    }
}

/// As many of the nodes as fit into a page. The continuation is made from the last one.
pub(super) fn fill_page<'a>(
    nodes: impl Iterator<Item = &'a Node>,
    limit: u32,
    keys_only: bool,
    continuation: impl Fn(&Node) -> Vec<u8>,
) -> ListPage {
    let limit = if limit == 0 { usize::MAX } else { limit as usize };
    let mut page = ListPage::default();
    let (mut bytes, mut last) = (0, None);
    for node in nodes {
        bytes += listed_bytes(node, keys_only);
        let full = page.nodes.len() >= limit || bytes > LIST_BYTES_MAX;
        if let Some(last) = last.filter(|_| full) {
            page.continuation = continuation(last);
            break;
        }
        page.nodes.push(NodeView(node).to_listed(keys_only));
        last = Some(node);
    }
    page
}

fn listed_bytes(node: &Node, keys_only: bool) -> usize {
    let value = NodeView(node).value().filter(|_| !keys_only);
    NODE_OVERHEAD_BYTES + node.key.len() + value.map_or(0, |value| value.len())
}

fn check_path(path: &[u8], recursive: bool) -> Result<(), Code> {
    let is_path = check_key(path).is_ok() && (recursive || !path.contains(&b'.'));
    if is_path { Ok(()) } else { Err(Code::InvalidKey) }
}

/// What the continuations of one listing begin with.
pub(super) struct PageToken {
    header: [u8; TOKEN_HEADER_BYTES],
}

impl PageToken {
    fn new(mode: u8, of: &[u8]) -> PageToken {
        let [a, b, c, d, ..] = xxh3_64(of).to_le_bytes();
        PageToken { header: [TOKEN_VERSION, mode, a, b, c, d] }
    }

    fn of(query: &ListQuery<'_>) -> PageToken {
        PageToken::new(u8::from(query.recursive), query.key)
    }

    /// Of what a client owns.
    pub(super) fn owned(owner: &ClientId) -> PageToken {
        PageToken::new(MODE_OWNED, owner)
    }

    pub(super) fn write(&self, last: &[u8]) -> Vec<u8> {
        [&self.header, last].concat()
    }

    /// What the page begins behind; none for the first page.
    pub(super) fn read<'a>(&self, continuation: &'a [u8]) -> Result<Option<&'a [u8]>, Code> {
        match continuation {
            [] => Ok(None),
            _ => continuation.strip_prefix(&self.header).map(Some).ok_or(Code::InvalidKey),
        }
    }
}
