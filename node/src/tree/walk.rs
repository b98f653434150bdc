//! Walks over a directory in key order, without recursion: a key may have 4,096 segments.

use super::Tree;
use super::node::Node;
use super::segment::ChildIter;
use super::slab::Slot;

/// Yields the children of a directory by segment; a deep walk yields everything below it, each
/// directory before its children.
pub(super) struct Walk<'a> {
    tree: &'a Tree,
    stack: Vec<ChildIter<'a>>,
    deep: bool,
}

impl<'a> Walk<'a> {
    /// From the first child on.
    pub(super) fn new(tree: &'a Tree, dir: Slot, deep: bool) -> Walk<'a> {
        let mut walk = Walk { tree, stack: Vec::new(), deep };
        walk.enter(&tree.slab[dir]);
        walk
    }

    /// From behind `path`, which is relative to the directory. Whatever part of the path is not
    /// there any more is skipped.
    pub(super) fn after(tree: &'a Tree, dir: Slot, path: &[u8], deep: bool) -> Walk<'a> {
        let mut walk = Walk { tree, stack: Vec::new(), deep };
        let mut node = Some(&tree.slab[dir]);
        for segment in path.split(|byte| *byte == b'.') {
            let Some(children) = node.and_then(Node::children) else { return walk };
            walk.stack.push(children.after(segment));
            node = children.get(segment).map(|slot| &tree.slab[slot]);
        }
        if let Some(node) = node.filter(|_| deep) {
            walk.enter(node);
        }
        walk
    }

    fn enter(&mut self, node: &'a Node) {
        self.stack.extend(node.children().map(|children| children.iter()));
    }
}

impl<'a> Iterator for Walk<'a> {
    type Item = &'a Node;

    fn next(&mut self) -> Option<&'a Node> {
        loop {
            let Some(slot) = self.stack.last_mut()?.next() else {
                self.stack.pop();
                continue;
            };
            let node = &self.tree.slab[slot];
            if self.deep {
                self.enter(node);
            }
            return Some(node);
        }
    }
}
