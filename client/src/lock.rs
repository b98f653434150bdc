//! Locks: one holder at a time, a queue in the store, a lease, and a fencing token for every grant.

mod auto;
mod state;

pub use auto::{AutoRenewalLock, Leadership};
pub use state::{LockState, LockToken};

use crate::answer::OpAnswer;
use crate::check::check;
use crate::error::Error;
use crate::group::Group;
use crate::packed::lock::{LockEntry, entry_key};
use crate::packed::{Kind, Op};
use crate::temp::ttl_ms;
use crate::v1::failure::Reason;
use crate::v1::{Code, Consistency};
use bytes::Bytes;
use parking_lot::Mutex;
use state::{Grant, State};
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

/// Pauses between two looks at the queue, from the first to the longest.
const LOOK_FIRST: Duration = Duration::from_millis(10);
const LOOK_MAX: Duration = Duration::from_millis(500);

type OnLost = Arc<dyn Fn(&LockToken) + Send + Sync>;

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

struct Inner {
    group: Group,
    key: Bytes,
    entry: Bytes,
    state: watch::Sender<State>,
    /// Counts calls of unlock, which end a try_lock that waits.
    unlocks: watch::Sender<u64>,
    /// One operation at a time.
    busy: tokio::sync::Mutex<()>,
    on_lost: Mutex<Option<OnLost>>,
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
            on_lost: Mutex::default(),
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

/// A request that waits in the queue.
struct Wait {
    asked: Instant,
    hold: Duration,
    over: Instant,
}

impl Inner {
    fn set(&self, state: State) {
        self.state.send_replace(state);
    }

    fn public_state(&self) -> LockState {
        self.state.borrow().public(Instant::now())
    }

    fn invalid(&self, what: &str) -> Error {
        Error::invalid(format!("lock {}: {what}", String::from_utf8_lossy(&self.key)))
    }

    /// Notes a grant; None when its lease is over already.
    fn granted(self: &Arc<Self>, fencing_token: u64, until: Instant) -> Option<LockToken> {
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

    fn shorten(&self, token: &LockToken, until: Instant) {
        self.state.send_if_modified(|state| match state {
            State::Locked(grant) if grant.token == *token && until < grant.until => {
                grant.until = until;
                true
            }
            _ => false,
        });
    }

    /// Notes that a grant is over, and tells about it once.
    fn lose(&self, token: &LockToken) {
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

    fn lost(&self, token: &LockToken, why: &str) -> Error {
        self.lose(token);
        let message = format!("lock {}: {why}", String::from_utf8_lossy(&self.key));
        Error::did_not_happen(Reason::Unspecified, message)
    }

    /// Looks at this client's entry until it holds the lock, is gone, or the time is over.
    async fn wait_for_grant(self: &Arc<Self>, wait: &Wait) -> Option<LockToken> {
        let mut pause = LOOK_FIRST;
        loop {
            tokio::time::sleep_until(wait.over.min(Instant::now() + pause)).await;
            pause = (pause * 2).min(LOOK_MAX);
            let looked = Instant::now();
            if looked >= wait.over {
                return None;
            }
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

    async fn unlock(&self) -> Result<bool, Error> {
        let result = self.group.call(&Op::new(Kind::Unlock, &self.key, b"")).await?;
        self.set(State::NotLocked);
        match result.code() {
            Code::Success => Ok(true),
            Code::LockByOther | Code::NotFound => Ok(false),
            code => Err(Error::refused(code)),
        }
    }

    /// Gives a place in the queue up, or what came of it.
    async fn give_up(&self) {
        self.set(State::Unknown);
        // When this fails, the store ends the entry at the end of its time.
        let _ = self.unlock().await;
    }

    /// Gives up without waiting for it.
    fn give_up_later(&self) {
        self.set(State::Unknown);
        self.group.submit(&Op::new(Kind::Unlock, &self.key, b""), |_| {});
    }

    fn forget(&self) {
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

/// Gives an entry up that a dropped try_lock would leave behind.
struct EntryGuard<'a> {
    inner: &'a Inner,
    is_left: bool,
}

impl EntryGuard<'_> {
    fn keep(mut self) {
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
