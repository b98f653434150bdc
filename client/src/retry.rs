//! Which failures are tried again, where and when. Pure.

use crate::error::{Error, ErrorKind};
use crate::v1::NodeAddress;
use crate::v1::failure::Reason;
use std::time::Duration;

const DELAY_FIRST: Duration = Duration::from_millis(20);
const DELAY_MAX: Duration = Duration::from_millis(1000);
/// Redirects that are followed at once; further ones wait, in case two nodes name each other.
const REDIRECTS_AT_ONCE: u32 = 3;

/// What to do after a failure.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Next {
    /// Send it to this node.
    Redirect(NodeAddress, Duration),
    /// Look for the leader again after a while.
    Rediscover(Duration),
    /// Send it to the same node again after a while.
    Again(Duration),
    /// The caller has to know.
    Fail,
}

/// Decides after failure number `attempt` (the first is 1). What is repeatable, reads and writes that
/// are numbered, may have happened: once more does no harm.
pub(crate) fn decide(error: &Error, is_repeatable: bool, attempt: u32) -> Next {
    let unknown = error.kind() == ErrorKind::OutcomeUnknown;
    if matches!(error.kind(), ErrorKind::Refused(_) | ErrorKind::InvalidRequest)
        || (unknown && !is_repeatable)
    {
        return Next::Fail;
    }
    let delay = error.retry_after().unwrap_or(Duration::ZERO).max(delay(attempt));
    match error.reason() {
        Reason::NotLeader => redirect(error, attempt, delay),
        Reason::Overloaded => Next::Again(delay),
        Reason::GroupNotFound | Reason::GroupNotReady | Reason::Stopping => Next::Rediscover(delay),
        // The connection failed: without delay at first, another node may lead by now.
        Reason::Unspecified if attempt <= 1 => Next::Rediscover(Duration::ZERO),
        Reason::Unspecified | Reason::Timeout => Next::Rediscover(delay),
        Reason::InvalidArgument | Reason::Internal | Reason::Precondition | Reason::GroupDestroyed => {
            Next::Fail
        }
    }
}

fn redirect(error: &Error, attempt: u32, delay: Duration) -> Next {
    match error.leader() {
        Some(leader) if attempt <= REDIRECTS_AT_ONCE => Next::Redirect(leader.clone(), Duration::ZERO),
        Some(leader) => Next::Redirect(leader.clone(), delay),
        None => Next::Rediscover(delay),
    }
}

/// Exponential from 20 ms to 1 s, with jitter that keeps many clients from coming back at once.
pub(crate) fn delay(attempt: u32) -> Duration {
    let doubled = DELAY_FIRST.saturating_mul(1 << attempt.saturating_sub(1).min(10)).min(DELAY_MAX);
    doubled.mul_f64(rand::random_range(0.5..1.0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::v1::{Code, Failure};
    use proptest::prelude::*;

    fn failure(reason: Reason, outcome_unknown: bool) -> Error {
        Failure { reason: reason.into(), outcome_unknown, ..Failure::default() }.into()
    }

    #[test]
    fn unknown_outcome_of_a_write_without_a_number_is_never_tried_again() {
        for number in 0..=9 {
            let reason = Reason::try_from(number).unwrap();
            assert_eq!(decide(&failure(reason, true), false, 1), Next::Fail);
        }
    }

    #[test]
    fn lost_read_or_numbered_write_is_tried_again() {
        assert!(matches!(decide(&failure(Reason::Timeout, true), true, 1), Next::Rediscover(_)));
        assert_eq!(decide(&failure(Reason::Unspecified, true), true, 1), Next::Rediscover(Duration::ZERO));
    }

    #[test]
    fn hint_is_followed_at_once_but_not_for_ever() {
        let leader = NodeAddress { node_id: 2, client_address: "b:1".into(), ..NodeAddress::default() };
        let error = Error::from(Failure {
            reason: Reason::NotLeader.into(),
            leader: Some(leader.clone()),
            ..Failure::default()
        });
        assert_eq!(decide(&error, false, 1), Next::Redirect(leader, Duration::ZERO));
        assert!(matches!(decide(&error, false, 9), Next::Redirect(_, wait) if wait > Duration::ZERO));
    }

    #[test]
    fn overload_waits_as_long_as_the_store_asks() {
        let error = Error::from(Failure {
            reason: Reason::Overloaded.into(),
            retry_after_ms: 700,
            ..Failure::default()
        });
        assert_eq!(decide(&error, false, 1), Next::Again(Duration::from_millis(700)));
    }

    #[test]
    fn what_a_retry_cannot_mend_is_not_retried() {
        assert_eq!(decide(&Error::refused(Code::NotFound), true, 1), Next::Fail);
        assert_eq!(decide(&Error::invalid("x"), true, 1), Next::Fail);
        assert_eq!(decide(&failure(Reason::Internal, false), false, 1), Next::Fail);
        assert_eq!(decide(&failure(Reason::Precondition, false), false, 1), Next::Fail);
    }

    proptest! {
        #[test]
        fn delays_grow_and_stay_within_bounds(attempt in 0u32..10_000) {
            let waited = delay(attempt);
            prop_assert!(waited >= DELAY_FIRST / 2 && waited <= DELAY_MAX);
        }
    }
}
