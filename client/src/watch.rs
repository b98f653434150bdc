//! Watches: being told of changes.
//!
//! All watches of a client share one stream to each node that serves some, and identical state
//! watches share one registration. A follower is preferred, so that leaders are left to write. When
//! a stream, a node or a leader is lost, or nothing is heard for two progress periods, the watches
//! go on at another replica from where they were.

mod cursor;
mod inbox;
mod links;
mod registration;
mod resync;
mod task;

use crate::answer::Node;
use crate::error::Error;
use crate::group::Group;
use crate::limits::check_key_or_root;
use crate::v1;
use bytes::Bytes;
use futures::Stream;
use inbox::{EventInbox, StateInbox};
use registration::Spec;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
pub(crate) use task::Watcher;

/// What a key holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Presence {
    /// Nothing.
    NotExists,
    /// A value; empty in keys-only watches.
    Value(Bytes),
    /// A directory or a lock.
    Directory,
}

/// The state of a watched key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State {
    /// Update index of the node: for a directory it grows with every change below it. Where nothing
    /// exists, index of the nearest directory above, not lower than that of the removal.
    pub index: u64,
    /// What is there.
    pub presence: Presence,
}

impl State {
    /// The value, if there is one.
    pub fn value(&self) -> Option<&Bytes> {
        match &self.presence {
            Presence::Value(value) => Some(value),
            _ => None,
        }
    }

    /// Whether anything is there.
    pub fn exists(&self) -> bool {
        self.presence != Presence::NotExists
    }
}

/// What happened to a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EventKind {
    /// A value was created or overwritten.
    Put,
    /// A node was removed.
    Remove,
    /// A node was removed because its time, or that of a directory above it, was over.
    Expire,
    /// A directory or a lock was created.
    Mkdir,
}

impl From<EventKind> for v1::EventKind {
    fn from(kind: EventKind) -> v1::EventKind {
        match kind {
            EventKind::Put => v1::EventKind::EventPut,
            EventKind::Remove => v1::EventKind::EventRemove,
            EventKind::Expire => v1::EventKind::EventExpire,
            EventKind::Mkdir => v1::EventKind::EventMkdir,
        }
    }
}

/// One change of one node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// What happened.
    pub kind: EventKind,
    /// The key that changed.
    pub key: Bytes,
    /// The new value; puts only, and not in keys-only watches.
    pub value: Option<Bytes>,
    /// The node is, or was, a directory.
    pub dir: bool,
    /// Index of the change. Changes made in one step share it, and are in order.
    pub index: u64,
    /// Leader's clock when it accepted the operation, ms since the Unix epoch.
    pub time_ms: u64,
    /// Update index of the node before; 0 when it did not exist.
    pub prev_index: u64,
}

/// What an event watch tells.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    /// Something changed.
    Event(Event),
    /// The store's history did not reach back far enough: events are missing. Instead, this is what
    /// is there now; the events behind it are complete again.
    Resynced(Resync),
}

/// What is at and below a watched key.
#[derive(Clone, Debug, PartialEq)]
pub struct Resync {
    /// Every change after this index follows as an event. A node that was changed while the nodes
    /// were read may be shown here already changed; its event follows all the same.
    pub index: u64,
    /// The node itself and everything below it. What is not here does not exist.
    pub nodes: Vec<Node>,
}

/// Options of a state watch.
#[derive(Clone, Copy, Debug, Default)]
pub struct StateWatchOptions {
    /// Leaves values out.
    pub keys_only: bool,
    /// Only states with a higher index than this are told; None: the present one at once.
    pub known_index: Option<u64>,
}

/// Tells the latest state of a key. Dropping it ends the watch.
pub struct StateWatch {
    group: Group,
    inbox: Arc<StateInbox>,
    is_over: bool,
}

/// Tells every change at or below a key. Dropping it ends the watch.
pub struct EventWatch {
    group: Group,
    inbox: Arc<EventInbox>,
    is_over: bool,
}

/// An event watch that has not begun.
#[derive(Clone, Debug)]
#[must_use = "nothing is watched before start()"]
pub struct EventWatchBuilder {
    group: Group,
    key: Bytes,
    from: Option<u64>,
    keys_only: bool,
    kinds: Vec<EventKind>,
}

impl Group {
    /// Watches the state of a key, which need not exist; of a directory, with everything below it.
    /// The empty key is the root.
    ///
    /// The present state is told at once, then each new one. The index grows from state to state.
    /// States in between may be left out when they follow each other faster than they are taken; the
    /// last one never is. Replicas tell what they have applied, so a state may be told a little
    /// later than a linearizable read would see it.
    ///
    /// ```no_run
    /// # async fn example(group: dtkv_client::Group) -> Result<(), dtkv_client::Error> {
    /// let mut watch = group.watch("app.leader");
    /// loop {
    ///     let state = watch.next().await?;
    ///     match state.value() {
    ///         Some(leader) => println!("{:?} leads since index {}", leader, state.index),
    ///         None => println!("nobody leads"),
    ///     }
    /// }
    /// # }
    /// ```
    pub fn watch(&self, key: impl AsRef<[u8]>) -> StateWatch {
        self.watch_with(key, StateWatchOptions::default())
    }

    /// As [`Group::watch`], with options.
    pub fn watch_with(&self, key: impl AsRef<[u8]>, options: StateWatchOptions) -> StateWatch {
        let key = Bytes::copy_from_slice(key.as_ref());
        let watcher = self.watcher();
        let inbox = watcher.state_inbox(options.known_index);
        match check_key_or_root(&key) {
            Ok(()) => {
                let spec = Spec { group: self.id, key, keys_only: options.keys_only, kinds: Vec::new() };
                watcher.watch_state(spec, inbox.clone());
            }
            Err(code) => inbox.fail(Error::refused(code)),
        }
        StateWatch { group: self.clone(), inbox, is_over: false }
    }

    /// Watches every change at or below a key, in order; the empty key is the root.
    ///
    /// ```no_run
    /// # async fn example(group: dtkv_client::Group) -> Result<(), dtkv_client::Error> {
    /// use dtkv_client::{Change, EventKind};
    ///
    /// let mut watch = group.watch_events("app").from(4711).kinds([EventKind::Put]).start();
    /// loop {
    ///     match watch.next().await? {
    ///         Change::Event(event) => println!("{:?} at {}: {:?}", event.key, event.index, event.value),
    ///         Change::Resynced(now) => println!("history is gone; {} nodes at {}", now.nodes.len(), now.index),
    ///     }
    /// }
    /// # }
    /// ```
    pub fn watch_events(&self, key: impl AsRef<[u8]>) -> EventWatchBuilder {
        let key = Bytes::copy_from_slice(key.as_ref());
        EventWatchBuilder { group: self.clone(), key, from: None, keys_only: false, kinds: Vec::new() }
    }

    fn watcher(&self) -> &Watcher {
        self.handle.shared().watcher(&self.handle)
    }
}

impl EventWatchBuilder {
    /// The first index wanted. Unless given, the watch begins with what is applied after it has
    /// reached a node. From 0 on means from the first operation of the group.
    pub fn from(mut self, index: u64) -> EventWatchBuilder {
        self.from = Some(index.max(1));
        self
    }

    /// Leaves values out.
    pub fn keys_only(mut self) -> EventWatchBuilder {
        self.keys_only = true;
        self
    }

    /// Only these kinds.
    pub fn kinds(mut self, kinds: impl IntoIterator<Item = EventKind>) -> EventWatchBuilder {
        self.kinds = kinds.into_iter().collect();
        self
    }

    /// Begins to watch.
    pub fn start(self) -> EventWatch {
        let watcher = self.group.watcher();
        let inbox = watcher.event_inbox();
        match check_key_or_root(&self.key) {
            Ok(()) => {
                let (group, key, keys_only) = (self.group.id, self.key, self.keys_only);
                let kinds = self.kinds.into_iter().map(|kind| v1::EventKind::from(kind) as i32).collect();
                watcher.watch_events(Spec { group, key, keys_only, kinds }, self.from, inbox.clone());
            }
            Err(code) => inbox.fail(Error::refused(code)),
        }
        EventWatch { group: self.group, inbox, is_over: false }
    }
}

impl StateWatch {
    /// Waits for the next state. Cancelling loses nothing.
    ///
    /// # Errors
    /// When the key breaks the syntax or the group does not exist any more; the watch is over then.
    /// Everything else it gets over by itself.
    pub async fn next(&mut self) -> Result<State, Error> {
        poll_fn(|context| self.inbox.poll(context)).await
    }

    /// The group of the key.
    pub fn group(&self) -> &Group {
        &self.group
    }
}

impl Stream for StateWatch {
    type Item = Result<State, Error>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.is_over {
            return Poll::Ready(None);
        }
        let next = self.inbox.poll(context);
        self.is_over = matches!(next, Poll::Ready(Err(_)));
        next.map(Some)
    }
}

impl Drop for StateWatch {
    fn drop(&mut self) {
        self.group.watcher().forget(self.inbox.id);
    }
}

impl EventWatch {
    /// Waits for the next change. Cancelling loses nothing.
    ///
    /// Changes wait here, up to 1 MiB; a watch that takes them too slowly is taken from its node and
    /// goes on from where it was when there is room again, without disturbing any other.
    ///
    /// # Errors
    /// When the key breaks the syntax or the group does not exist any more; the watch is over then.
    /// Everything else it gets over by itself.
    pub async fn next(&mut self) -> Result<Change, Error> {
        poll_fn(|context| self.inbox.poll(context)).await
    }

    /// Waits until a node has taken the watch in. Every change after the index that it answers is told.
    ///
    /// # Errors
    /// As [`EventWatch::next`].
    pub async fn begun(&mut self) -> Result<u64, Error> {
        poll_fn(|context| self.inbox.poll_begun(context)).await
    }

    /// Where to begin another watch to miss nothing behind what was taken from this one, with
    /// [`EventWatchBuilder::from`]. The changes of that index may be told again. None before the
    /// first change.
    pub fn resume_index(&self) -> Option<u64> {
        self.inbox.resume_index()
    }

    /// The group of the key.
    pub fn group(&self) -> &Group {
        &self.group
    }
}

impl Stream for EventWatch {
    type Item = Result<Change, Error>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.is_over {
            return Poll::Ready(None);
        }
        let next = self.inbox.poll(context);
        self.is_over = matches!(next, Poll::Ready(Err(_)));
        next.map(Some)
    }
}

impl Drop for EventWatch {
    fn drop(&mut self) {
        self.group.watcher().forget(self.inbox.id);
    }
}
