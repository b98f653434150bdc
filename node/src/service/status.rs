//! The one table from a failure to a gRPC status.

use crate::failure::Failure;
use crate::ids::NodeId;
use dtkv_client::v1;
use dtkv_client::v1::failure::Reason;
use prost::Message;
use tonic::{Code, Status};

/// The gRPC code of a reason.
pub fn code(reason: Reason) -> Code {
    match reason {
        Reason::Unspecified => Code::Unknown,
        Reason::NotLeader | Reason::Precondition | Reason::GroupDestroyed => Code::FailedPrecondition,
        Reason::GroupNotFound => Code::NotFound,
        Reason::GroupNotReady | Reason::Stopping => Code::Unavailable,
        Reason::Overloaded => Code::ResourceExhausted,
        Reason::Timeout => Code::DeadlineExceeded,
        Reason::InvalidArgument => Code::InvalidArgument,
        Reason::Internal => Code::Internal,
    }
}

/// The name under which a reason is counted.
pub fn label(reason: Reason) -> &'static str {
    match reason {
        Reason::Unspecified => "unspecified",
        Reason::NotLeader => "not_leader",
        Reason::GroupNotFound => "group_not_found",
        Reason::GroupNotReady => "group_not_ready",
        Reason::Overloaded => "overloaded",
        Reason::Stopping => "stopping",
        Reason::Timeout => "timeout",
        Reason::InvalidArgument => "invalid_argument",
        Reason::Internal => "internal",
        Reason::Precondition => "precondition",
        Reason::GroupDestroyed => "group_destroyed",
    }
}

/// The failure as clients see it, with the leader's address where it is known.
pub fn to_v1(failure: Failure, address: impl FnOnce(NodeId) -> Option<v1::NodeAddress>) -> v1::Failure {
    let leader = failure.leader.map(|id| match address(id) {
        // The peers' listener is no business of clients.
        Some(found) => v1::NodeAddress { peer_address: String::new(), ..found },
        None => v1::NodeAddress { node_id: id.0, ..Default::default() },
    });
    v1::Failure {
        reason: failure.reason.into(),
        message: failure.message,
        outcome_unknown: failure.outcome_unknown,
        leader,
        retry_after_ms: failure.retry_after_ms.unwrap_or(0),
    }
}

/// The status of a unary call, with the failure in its details.
pub fn to_status(failure: v1::Failure) -> Status {
    let outcome = if failure.outcome_unknown { "outcome unknown" } else { "did not happen" };
    let message = format!("{} ({outcome})", failure.message);
    Status::with_details(code(failure.reason()), message, failure.encode_to_vec().into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::GroupId;

    const REASONS: [Reason; 11] = [
        Reason::Unspecified,
        Reason::NotLeader,
        Reason::GroupNotFound,
        Reason::GroupNotReady,
        Reason::Overloaded,
        Reason::Stopping,
        Reason::Timeout,
        Reason::InvalidArgument,
        Reason::Internal,
        Reason::Precondition,
        Reason::GroupDestroyed,
    ];

    #[test]
    fn every_reason_has_a_code_and_a_label_of_its_own() {
        let mut labels: Vec<_> = REASONS.map(label).into();
        labels.sort_unstable();
        labels.dedup();
        assert_eq!(labels.len(), REASONS.len());
        assert!(REASONS.iter().all(|reason| code(*reason) != Code::Ok));
        // The list above is complete: the next number is none.
        assert!(Reason::try_from(REASONS.len() as i32).is_err());
    }

    #[test]
    fn the_details_carry_the_whole_failure() {
        let failure = Failure::not_leader(GroupId(7), Some(NodeId(3)));
        let address = |id: NodeId| {
            let (client_address, peer_address) = ("c:1".to_owned(), "p:2".to_owned());
            Some(v1::NodeAddress { node_id: id.0, client_address, peer_address })
        };
        let status = to_status(to_v1(failure, address));
        assert_eq!(status.code(), Code::FailedPrecondition);
        let details = v1::Failure::decode(status.details()).expect("details");
        let leader = details.leader.clone().expect("a leader");
        assert_eq!((leader.node_id, leader.client_address.as_str()), (3, "c:1"));
        assert_eq!(leader.peer_address, "");
        assert!(!details.outcome_unknown && details.reason() == Reason::NotLeader);
        assert!(status.message().contains("g7 is led by n3") && status.message().contains("did not happen"));
    }

    #[test]
    fn a_leader_without_address_is_named_by_its_id() {
        let failure = Failure::not_leader(GroupId(7), Some(NodeId(3))).unknown();
        let details = to_v1(failure, |_| None);
        assert_eq!(details.leader.as_ref().map(|leader| leader.node_id), Some(3));
        assert!(to_status(details).message().contains("outcome unknown"));
    }
}
