//! Locks: one holder at a time, a queue in the store, a lease, and a fencing token for every grant.

mod auto;
mod inner;
mod state;

pub use auto::{AutoRenewalLock, Leadership};
pub use state::{LockState, LockToken};

use crate::answer::OpAnswer;
use crate::check::check;
use crate::error::Error;
use crate::group::Group;
use crate::packed::lock::entry_key;
use crate::packed::{Kind, Op};
use crate::temp::ttl_ms;
use crate::v1::{Code, Consistency};
use bytes::Bytes;
use inner::{EntryGuard, Inner, Wait};
use state::State;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

/// A lock of a group, as this client sees it: one object for each lock and client, cheap to clone.
///
/// The lease counts from before the request for it is sent, by the clock of this machine: when this
/// object says that the lock is held, the store agrees, as long as both clocks run at nearly the same
/// rate. What must not be written by anybody but the holder should nevertheless be
/// [guarded](Group::guarded), because a process can be stopped at any point between a look at the lock
/// and a write.
///
/// When the last clone is dropped, a lock that may be held is given up in the background.
#[derive(Clone)]
pub struct Lock {
    inner: Arc<Inner>,
}

impl Group {
    /// The lock with this key. A lock that nobody holds or waits for does not exist in the store; its
    /// parent directory must.
    ///
    /// # Errors
    /// When the key breaks a rule, and when this client has an object for the lock already: share
    /// that one.
    pub fn lock(&self, key: impl AsRef<[u8]>) -> Result<Lock, Error> {
        let key = Bytes::copy_from_slice(key.as_ref());
        check(&Op::new(Kind::Unlock, &key, b""))?;
        let shared = self.handle.shared();
        if !shared.locks.lock().insert((self.id, key.clone())) {
            let name = String::from_utf8_lossy(&key);
            return Err(Error::invalid(format!(
                "this client has an object for the lock {name} of group {} already; clone that one",
                self.id
            )));
        }
        let entry = entry_key(&key, &shared.options.identity.client_id);
        let group = Group { guard: None, ..self.clone().with_consistency(Consistency::Linearizable) };
        let inner = Inner {
            group,
            key,
            entry: entry.into(),
            state: watch::Sender::default(),
            unlocks: watch::Sender::default(),
            busy: tokio::sync::Mutex::default(),
            on_lost: parking_lot::Mutex::default(),
        };
        Ok(Lock { inner: Arc::new(inner) })
    }
}

impl Lock {
    /// The lock's key.
    pub fn key(&self) -> &Bytes {
        &self.inner.key
    }

    /// Takes the lock for `hold`; when somebody else has it, waits in its queue for `wait`. None when
    /// it was not granted in time: the place in the queue is given up then, and so it is when this
    /// call is dropped. A lock that the store still takes this client for the holder of, after a lost
    /// answer or a restart with the same client id, is found again.
    ///
    /// # Errors
    /// When the lock is held already ([`Lock::update_lease`] prolongs it), another operation of this
    /// object runs, or `wait` is longer than `hold`. As [`Group::put`] otherwise; with an unknown
    /// outcome the state is [`LockState::Unknown`].
    pub async fn try_lock(&self, hold: Duration, wait: Duration) -> Result<Option<LockToken>, Error> {
        let inner = &self.inner;
        let hold_ms = ttl_ms(hold)?;
        if wait > hold {
            let message = format!("a wait of {wait:?} is longer than the hold of {hold:?}");
            return Err(Error::refused(Code::InvalidTtl).context(message));
        }
        let _busy = inner.busy.try_lock().map_err(|_| inner.invalid("another operation is running"))?;
        match inner.public_state() {
            LockState::Locked => return Err(inner.invalid("it is held already; update its lease instead")),
            LockState::Closed => return Err(inner.invalid("it was closed")),
            LockState::NotLocked | LockState::Unknown => {}
        }
        let mut unlocks = inner.unlocks.subscribe();
        let sent = Instant::now();
        // From here on this call may leave an entry behind, whether it waits or is dropped.
        let entry = EntryGuard { inner, is_left: true };
        let wait_ms = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX).to_le_bytes();
        let op = Op { ttl_ms: Some(hold_ms), ..Op::new(Kind::TryLock, &inner.key, &wait_ms) };
        let answered = inner.group.call(&op).await.map(|result| result.answer);
        let granted = match answered {
            Ok(OpAnswer::Token(Code::Success | Code::LockBySelf, token)) => inner.granted(token, sent + hold),
            Ok(OpAnswer::Token(Code::LockByOther, _)) if !wait.is_zero() => {
                let wait = Wait { asked: sent, hold, over: sent + wait };
                tokio::select! {
                    granted = inner.wait_for_grant(&wait) => granted,
                    _ = unlocks.changed() => None,
                }
            }
            Ok(answer) => {
                entry.keep();
                inner.set(State::NotLocked);
                return if answer.code() == Code::LockByOther {
                    Ok(None)
                } else {
                    Err(Error::refused(answer.code()))
                };
            }
            Err(error) => {
                entry.keep();
                inner.set(if error.is_definite() { State::NotLocked } else { State::Unknown });
                return Err(error);
            }
        };
        entry.keep();
        if granted.is_none() {
            inner.give_up().await;
        }
        Ok(granted)
    }

    /// Gives the lock up, or the place in its queue; a [`Lock::try_lock`] that waits ends without a
    /// grant. True when this client held the lock. Nothing to give up is fine.
    ///
    /// # Errors
    /// As [`Group::put`]; the state is [`LockState::Unknown`] then, and the store ends the lock when
    /// its lease is over.
    pub async fn unlock(&self) -> Result<bool, Error> {
        let inner = &self.inner;
        inner.unlocks.send_modify(|unlocks| *unlocks += 1);
        let _busy = inner.busy.lock().await;
        if !inner.state.borrow().may_hold() {
            return Ok(false);
        }
        // From now on nobody may rely on it.
        inner.set(State::Unknown);
        inner.unlock().await
    }

    /// Gives a lock that is held a new lease, from now on.
    ///
    /// # Errors
    /// When the lock is not held, or another operation of this object runs. LOCK_BY_OTHER, NOT_FOUND
    /// and NOT_LOCK_NODE say that the lock was lost. After other errors the lease goes on as it was.
    pub async fn update_lease(&self, hold: Duration) -> Result<LockToken, Error> {
        let inner = &self.inner;
        let hold_ms = ttl_ms(hold)?;
        let _busy = inner.busy.try_lock().map_err(|_| inner.invalid("another operation is running"))?;
        let Some(token) = self.token() else { return Err(inner.invalid("it is not held")) };
        let sent = Instant::now();
        let op = Op { ttl_ms: Some(hold_ms), ..Op::new(Kind::UpdateLease, &inner.key, b"") };
        let answered = inner.group.call(&op).await;
        let unchanged = |error: Error| {
            if !error.is_definite() {
                // It may have been shortened.
                inner.shorten(&token, sent + hold);
            }
            error
        };
        match answered.map_err(unchanged)?.answer {
            OpAnswer::Token(Code::Success | Code::LockBySelf, now) if now == token.fencing_token() => inner
                .granted(now, sent + hold)
                .ok_or_else(|| inner.lost(&token, "its lease ended before the answer came")),
            OpAnswer::Token(Code::Success | Code::LockBySelf, _) => {
                Err(inner.lost(&token, "it was lost and granted again in between"))
            }
            answer => {
                inner.lose(&token);
                Err(Error::refused(answer.code()))
            }
        }
    }

    /// What this client knows, by its own clock.
    pub fn state(&self) -> LockState {
        self.inner.public_state()
    }

    /// The grant, while the lock is held.
    pub fn token(&self) -> Option<LockToken> {
        self.inner.state.borrow().grant(Instant::now()).map(|grant| grant.token.clone())
    }

    /// How long the lock is held for sure; 0 when it is not.
    pub fn lease_left(&self) -> Duration {
        let now = Instant::now();
        self.inner.state.borrow().grant(now).map_or(Duration::ZERO, |grant| grant.until - now)
    }

    /// Waits until the lock is not held any more: the lease is over, or it was lost or given up.
    pub async fn released(&self) {
        let mut state = self.inner.state.subscribe();
        loop {
            let until = match state.borrow_and_update().grant(Instant::now()) {
                Some(grant) => grant.until,
                None => return,
            };
            tokio::select! {
                () = tokio::time::sleep_until(until) => {}
                changed = state.changed() => if changed.is_err() { return },
            }
        }
    }

    /// Calls back, once for each grant that ends other than by [`Lock::unlock`]: its lease is over, or
    /// the store says that somebody else has the lock. It must be quick and must not block.
    pub fn on_lost(&self, callback: impl Fn(&LockToken) + Send + Sync + 'static) {
        *self.inner.on_lost.lock() = Some(Arc::new(callback));
    }

    /// Gives the lock up if it may be held, and ends this object: a new one can be made.
    ///
    /// # Errors
    /// As [`Lock::unlock`]; the object is closed nevertheless.
    pub async fn close(self) -> Result<(), Error> {
        let unlocked = self.unlock().await;
        self.inner.set(State::Closed);
        self.inner.forget();
        unlocked.map(drop)
    }
}

impl std::fmt::Debug for Lock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let key = String::from_utf8_lossy(&self.inner.key);
        write!(f, "Lock({key} of group {}, {:?})", self.inner.group.id(), self.state())
    }
}
