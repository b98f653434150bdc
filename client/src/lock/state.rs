//! What a client believes about a lock, by its own clock and with caution: a lease counts from before
//! the request for it was sent.

use bytes::Bytes;
use tokio::time::Instant;

/// What a client knows about a lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LockState {
    /// This client does not hold it.
    NotLocked,
    /// This client holds it until its lease is over.
    Locked,
    /// The outcome of a request is unknown: the client may hold the lock until the lease that it asked
    /// for is over. `try_lock` and `unlock` find out.
    Unknown,
    /// The object was closed.
    Closed,
}

/// A grant of a lock. The store hands out a higher number with every grant, so that whatever is
/// written under an earlier one can be told and refused ([`crate::Group::guarded`]).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct LockToken {
    lock: Bytes,
    fencing_token: u64,
}

impl LockToken {
    /// A token that was handed over from elsewhere, from another process for example.
    pub fn new(lock: impl AsRef<[u8]>, fencing_token: u64) -> LockToken {
        LockToken { lock: Bytes::copy_from_slice(lock.as_ref()), fencing_token }
    }

    /// The lock's key.
    pub fn lock(&self) -> &Bytes {
        &self.lock
    }

    /// Grows with every grant of the lock.
    pub fn fencing_token(&self) -> u64 {
        self.fencing_token
    }
}

/// What is held, and until when.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Grant {
    pub token: LockToken,
    pub until: Instant,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum State {
    #[default]
    NotLocked,
    Locked(Grant),
    Unknown,
    Closed,
}

impl State {
    /// The grant that holds at this time.
    pub fn grant(&self, now: Instant) -> Option<&Grant> {
        match self {
            State::Locked(grant) if now < grant.until => Some(grant),
            _ => None,
        }
    }

    pub fn public(&self, now: Instant) -> LockState {
        match self {
            State::Locked(grant) if now < grant.until => LockState::Locked,
            State::Locked(_) | State::NotLocked => LockState::NotLocked,
            State::Unknown => LockState::Unknown,
            State::Closed => LockState::Closed,
        }
    }

    /// True when the store may take this client for the holder, or have it in the queue.
    pub fn may_hold(&self) -> bool {
        matches!(self, State::Locked(_) | State::Unknown)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn grant_ends_by_the_local_clock() {
        let now = Instant::now();
        let grant = Grant { token: LockToken::new("l", 7), until: now + Duration::from_secs(1) };
        let state = State::Locked(grant);
        assert_eq!(state.public(now), LockState::Locked);
        assert_eq!(state.public(now + Duration::from_secs(1)), LockState::NotLocked);
        assert!(state.grant(now + Duration::from_secs(1)).is_none());
    }
}
