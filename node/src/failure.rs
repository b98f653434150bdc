//! Why the store gave no answer, and whether the request may have happened.

use crate::ids::{GroupId, NodeId};
use dtkv_client::v1::failure::Reason;
use std::fmt;

/// A request that got no business answer. It converts to a gRPC status in `service`.
#[derive(Clone, Debug, PartialEq)]
pub struct Failure {
    /// What kind of failure.
    pub reason: Reason,
    /// Says what was wrong, with the limit or the ids, and what to do next.
    pub message: String,
    /// False: the request definitely did not happen.
    pub outcome_unknown: bool,
    /// The leader, when the request should go there.
    pub leader: Option<NodeId>,
    /// When to try again, in ms.
    pub retry_after_ms: Option<u32>,
}

impl Failure {
    /// A definite failure.
    pub fn new(reason: Reason, message: impl Into<String>) -> Failure {
        Failure {
            reason,
            message: message.into(),
            outcome_unknown: false,
            leader: None,
            retry_after_ms: None,
        }
    }

    /// The same, with an unknown outcome.
    pub fn unknown(mut self) -> Failure {
        self.outcome_unknown = true;
        self
    }

    /// This replica does not lead.
    pub fn not_leader(group: GroupId, leader: Option<NodeId>) -> Failure {
        let message = match leader {
            Some(leader) => format!("{group} is led by {leader}"),
            None => format!("{group} has no known leader"),
        };
        let reason = if leader.is_some() { Reason::NotLeader } else { Reason::GroupNotReady };
        Failure { leader, retry_after_ms: leader.is_none().then_some(100), ..Failure::new(reason, message) }
    }

    /// No replica here.
    pub fn group_not_found(group: GroupId) -> Failure {
        Failure::new(Reason::GroupNotFound, format!("this node has no replica of {group}"))
    }

    /// Refused early.
    pub fn overloaded(what: impl Into<String>, retry_after_ms: u32) -> Failure {
        Failure { retry_after_ms: Some(retry_after_ms), ..Failure::new(Reason::Overloaded, what) }
    }

    /// The node or the replica is shutting down.
    pub fn stopping(what: impl fmt::Display) -> Failure {
        Failure::new(Reason::Stopping, format!("{what} is stopping"))
    }

    /// The request breaks a rule.
    pub fn invalid(message: impl Into<String>) -> Failure {
        Failure::new(Reason::InvalidArgument, message)
    }

    /// An administrative precondition does not hold.
    pub fn precondition(message: impl Into<String>) -> Failure {
        Failure::new(Reason::Precondition, message)
    }

    /// A defect or a broken disk.
    pub fn internal(message: impl Into<String>) -> Failure {
        Failure::new(Reason::Internal, message)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let outcome = if self.outcome_unknown { "outcome unknown" } else { "did not happen" };
        write!(f, "{} ({outcome})", self.message)
    }
}

impl std::error::Error for Failure {}
