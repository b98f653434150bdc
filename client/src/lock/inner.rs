//! The part of a lock that its clones share, and the tasks that outlive a call.

use super::state::{Grant, LockState, LockToken, State};
use crate::error::Error;
use crate::group::Group;
use crate::packed::lock::LockEntry;
use crate::packed::{Kind, Op};
use crate::v1::Code;
use crate::v1::failure::Reason;
use crate::watch::StateWatch;
use bytes::Bytes;
use parking_lot::Mutex;
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

/// Time between two looks at an entry that waits, in case that a push comes late.
const LOOK_INTERVAL: Duration = Duration::from_secs(5);
/// The same when there is no watch.
const LOOK_INTERVAL_UNWATCHED: Duration = Duration::from_millis(500);

pub(super) type OnLost = Arc<dyn Fn(&LockToken) + Send + Sync>;

pub(super) struct Inner {
    pub(super) group: Group,
    pub(super) key: Bytes,
    pub(super) entry: Bytes,
    pub(super) state: watch::Sender<State>,
    /// Counts calls of unlock, which end a try_lock that waits.
    pub(super) unlocks: watch::Sender<u64>,
    /// One operation at a time.
    pub(super) busy: tokio::sync::Mutex<()>,
    pub(super) on_lost: Mutex<Option<OnLost>>,
}

/// A request that waits in the queue.
pub(super) struct Wait {
    pub(super) asked: Instant,
    pub(super) hold: Duration,
    pub(super) over: Instant,
}

impl Inner {
    pub(super) fn set(&self, state: State) {
        self.state.send_replace(state);
    }

    pub(super) fn public_state(&self) -> LockState {
        self.state.borrow().public(Instant::now())
    }

    pub(super) fn invalid(&self, what: &str) -> Error {
        Error::invalid(format!("lock {}: {what}", String::from_utf8_lossy(&self.key)))
    }

    /// Notes a grant; None when its lease is over already.
    pub(super) fn granted(self: &Arc<Self>, fencing_token: u64, until: Instant) -> Option<LockToken> {
        if until <= Instant::now() {
            return None;
        }
        let token = LockToken::new(&self.key, fencing_token);
        let before = self.state.send_replace(State::Locked(Grant { token: token.clone(), until }));
        if !matches!(before, State::Locked(grant) if grant.token == token) {
            let runtime = self.group.handle.shared().runtime.clone();
            runtime.spawn(watch_lease(Arc::downgrade(self), self.state.subscribe(), token.clone()));
        }
        Some(token)
    }

    pub(super) fn shorten(&self, token: &LockToken, until: Instant) {
        self.state.send_if_modified(|state| match state {
            State::Locked(grant) if grant.token == *token && until < grant.until => {
                grant.until = until;
                true
            }
            _ => false,
        });
    }

    /// Notes that a grant is over, and tells about it once.
    pub(super) fn lose(&self, token: &LockToken) {
        let was_held = self.state.send_if_modified(|state| {
            let is_held = matches!(state, State::Locked(grant) if grant.token == *token);
            if is_held {
                *state = State::NotLocked;
            }
            is_held
        });
        let callback = self.on_lost.lock().clone().filter(|_| was_held);
        if let Some(callback) = callback {
            callback(token);
        }
    }

    pub(super) fn lost(&self, token: &LockToken, why: &str) -> Error {
        self.lose(token);
        let message = format!("lock {}: {why}", String::from_utf8_lossy(&self.key));
        Error::did_not_happen(Reason::Unspecified, message)
    }

    /// Waits until this client's entry holds the lock, is gone, or the time is over. The store pushes
    /// the grant through a watch of the entry; a look at it from time to time, and whenever it changes,
    /// makes sure.
    pub(super) async fn wait_for_grant(self: &Arc<Self>, wait: &Wait) -> Option<LockToken> {
        let mut pushes = Some(self.group.watch(&self.entry));
        loop {
            let interval = if pushes.is_some() { LOOK_INTERVAL } else { LOOK_INTERVAL_UNWATCHED };
            tokio::select! {
                () = pushed(&mut pushes) => {}
                () = tokio::time::sleep(interval) => {}
                () = tokio::time::sleep_until(wait.over) => return None,
            }
            let looked = Instant::now();
            let Ok(Ok(node)) = tokio::time::timeout_at(wait.over, self.group.get(&self.entry)).await else {
                continue;
            };
            let entry = node.as_ref().and_then(|node| LockEntry::read(node.value.as_deref()?))?;
            if entry.token != 0 {
                let left = node.and_then(|node| node.ttl_remaining_ms).map(Duration::from_millis);
                // The hold began when the lock was granted, later than it was asked for.
                let until = left.map_or(wait.asked + wait.hold, |left| looked + left);
                return self.granted(entry.token, until);
            }
        }
    }

    pub(super) async fn unlock(&self) -> Result<bool, Error> {
        let result = self.group.call(&Op::new(Kind::Unlock, &self.key, b"")).await?;
        self.set(State::NotLocked);
        match result.code() {
            Code::Success => Ok(true),
            Code::LockByOther | Code::NotFound => Ok(false),
            code => Err(Error::refused(code)),
        }
    }

    /// Gives a place in the queue up, or what came of it.
    pub(super) async fn give_up(&self) {
        self.set(State::Unknown);
        // When this fails, the store ends the entry at the end of its time.
        let _ = self.unlock().await;
    }

    /// Gives up without waiting for it.
    pub(super) fn give_up_later(&self) {
        self.set(State::Unknown);
        self.group.submit(&Op::new(Kind::Unlock, &self.key, b""), |_| {});
    }

    pub(super) fn forget(&self) {
        self.group.handle.shared().locks.lock().remove(&(self.group.id(), self.key.clone()));
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if *self.state.borrow() != State::Closed {
            self.forget();
        }
        if self.state.borrow().may_hold() {
            self.give_up_later();
        }
    }
}

/// Waits until an entry has changed into something else than one that waits. A watch that is over is
/// taken away.
async fn pushed(pushes: &mut Option<StateWatch>) {
    while let Some(watch) = pushes {
        let Ok(state) = watch.next().await else {
            *pushes = None;
            break;
        };
        let entry = state.value().and_then(|value| LockEntry::read(value));
        if entry.is_none_or(|entry| entry.token != 0) {
            return;
        }
    }
    std::future::pending().await
}

/// Gives an entry up that a dropped try_lock would leave behind.
pub(super) struct EntryGuard<'a> {
    pub(super) inner: &'a Inner,
    pub(super) is_left: bool,
}

impl EntryGuard<'_> {
    pub(super) fn keep(mut self) {
        self.is_left = false;
    }
}

impl Drop for EntryGuard<'_> {
    fn drop(&mut self) {
        if self.is_left {
            self.inner.give_up_later();
        }
    }
}

/// Tells when the lease of a grant is over.
async fn watch_lease(lock: Weak<Inner>, mut state: watch::Receiver<State>, token: LockToken) {
    loop {
        let until = match &*state.borrow_and_update() {
            State::Locked(grant) if grant.token == token => grant.until,
            _ => return,
        };
        tokio::select! {
            () = tokio::time::sleep_until(until) => {
                let Some(lock) = lock.upgrade() else { return };
                let is_over = matches!(&*state.borrow(), State::Locked(grant) if grant.until <= Instant::now());
                if is_over {
                    return lock.lose(&token);
                }
            }
            changed = state.changed() => if changed.is_err() { return },
        }
    }
}
