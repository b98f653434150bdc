//! Where what was told waits for the one who asked.

use super::cursor::Cursor;
use super::task::Command;
use super::{Change, State};
use crate::error::Error;
use futures::task::AtomicWaker;
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::task::{Context, Poll};
use tokio::sync::mpsc::UnboundedSender;

/// Changes that wait in one watch.
const CHANGES_MAX: usize = 4096;
/// Bytes of them.
const BYTES_MAX: usize = 1 << 20;

/// The latest state, if it has not been taken.
pub(crate) struct StateInbox {
    pub id: u64,
    state: Mutex<Latest>,
    waker: AtomicWaker,
}

struct Latest {
    known: Option<u64>,
    next: Option<State>,
    error: Option<Error>,
}

impl StateInbox {
    pub fn new(id: u64, known: Option<u64>) -> StateInbox {
        let state = Mutex::new(Latest { known, next: None, error: None });
        StateInbox { id, state, waker: AtomicWaker::new() }
    }

    /// Puts a state in, in place of the one that waits.
    pub fn put(&self, state: &State) {
        let mut latest = self.state.lock();
        if latest.known.is_some_and(|known| state.index <= known) {
            return;
        }
        latest.known = Some(state.index);
        latest.next = Some(state.clone());
        drop(latest);
        self.waker.wake();
    }

    pub fn fail(&self, error: Error) {
        self.state.lock().error = Some(error);
        self.waker.wake();
    }

    pub fn poll(&self, context: &Context<'_>) -> Poll<Result<State, Error>> {
        self.waker.register(context.waker());
        let mut latest = self.state.lock();
        match (latest.next.take(), &latest.error) {
            (Some(state), _) => Poll::Ready(Ok(state)),
            (None, Some(error)) => Poll::Ready(Err(error.clone())),
            (None, None) => Poll::Pending,
        }
    }
}

/// Changes in order.
pub(crate) struct EventInbox {
    pub id: u64,
    queue: Mutex<Queue>,
    waker: AtomicWaker,
    commands: UnboundedSender<Command>,
}

#[derive(Default)]
struct Queue {
    changes: VecDeque<Change>,
    bytes: usize,
    /// Where to go on once there is room: the watch was cut.
    cut: Option<Cursor>,
    last_taken: Option<u64>,
    begun: Option<u64>,
    error: Option<Error>,
}

fn bytes(change: &Change) -> usize {
    match change {
        Change::Event(event) => event.key.len() + event.value.as_ref().map_or(0, |value| value.len()),
        Change::Resynced(_) => 0,
    }
}

impl EventInbox {
    pub fn new(id: u64, commands: UnboundedSender<Command>) -> EventInbox {
        EventInbox { id, queue: Mutex::default(), waker: AtomicWaker::new(), commands }
    }

    /// Puts a change in; false when there is no room, and the watch is to go on from `cursor` later.
    pub fn put(&self, change: &Change, cursor: Cursor) -> bool {
        let mut queue = self.queue.lock();
        if queue.changes.len() >= CHANGES_MAX || queue.bytes >= BYTES_MAX {
            queue.cut = Some(cursor);
            return false;
        }
        queue.bytes += bytes(change);
        queue.changes.push_back(change.clone());
        drop(queue);
        self.waker.wake();
        true
    }

    pub fn fail(&self, error: Error) {
        self.queue.lock().error = Some(error);
        self.waker.wake();
    }

    /// A node tells everything after this index.
    pub fn begun(&self, index: u64) {
        self.queue.lock().begun.get_or_insert(index);
        self.waker.wake();
    }

    pub fn poll_begun(&self, context: &Context<'_>) -> Poll<Result<u64, Error>> {
        self.waker.register(context.waker());
        let queue = self.queue.lock();
        match (queue.begun, &queue.error) {
            (Some(index), _) => Poll::Ready(Ok(index)),
            (None, Some(error)) => Poll::Ready(Err(error.clone())),
            (None, None) => Poll::Pending,
        }
    }

    pub fn resume_index(&self) -> Option<u64> {
        self.queue.lock().last_taken
    }

    pub fn poll(&self, context: &Context<'_>) -> Poll<Result<Change, Error>> {
        self.waker.register(context.waker());
        let mut queue = self.queue.lock();
        let next = queue.changes.pop_front();
        if let Some(change) = &next {
            queue.bytes -= bytes(change);
            queue.last_taken = Some(match change {
                Change::Event(event) => event.index,
                Change::Resynced(resync) => resync.index + 1,
            });
        }
        let has_room = queue.changes.len() <= CHANGES_MAX / 2 && queue.bytes <= BYTES_MAX / 2;
        if has_room && let Some(cursor) = queue.cut.take() {
            // The task may have ended with the client.
            let _ = self.commands.send(Command::Resume { inbox: self.id, cursor });
        }
        match (next, &queue.error) {
            (Some(change), _) => Poll::Ready(Ok(change)),
            (None, Some(error)) => Poll::Ready(Err(error.clone())),
            (None, None) => Poll::Pending,
        }
    }
}
