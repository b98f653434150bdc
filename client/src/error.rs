//! What a call can fail with, and whether it may have happened.

use crate::v1::failure::Reason;
use crate::v1::{Code, Failure, NodeAddress};
use prost::Message;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// What sort of failure this is: decides what the caller may do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// The store answered with a business code; nothing was changed by this operation.
    Refused(Code),
    /// The request breaks a rule (syntax, sizes, limits); sent again it is refused again.
    InvalidRequest,
    /// The request definitely did not happen; sending it again is safe.
    DidNotHappen,
    /// Nobody knows whether the request happened. Read before writing again.
    OutcomeUnknown,
}

/// Why a call failed. Cheap to clone.
#[derive(Clone)]
pub struct Error(Arc<Inner>);

#[derive(Clone, Debug)]
struct Inner {
    kind: ErrorKind,
    reason: Reason,
    message: String,
    leader: Option<NodeAddress>,
    retry_after: Option<Duration>,
}

impl Error {
    fn new(kind: ErrorKind, reason: Reason, message: impl Into<String>) -> Error {
        Error(Arc::new(Inner { kind, reason, message: message.into(), leader: None, retry_after: None }))
    }

    /// The store's business answer to an operation.
    pub fn refused(code: Code) -> Error {
        let message = format!("{}: {}", code.as_str_name(), explain(code));
        Error::new(ErrorKind::Refused(code), Reason::Unspecified, message)
    }

    /// The request breaks a rule that `message` names.
    pub fn invalid(message: impl Into<String>) -> Error {
        Error::new(ErrorKind::InvalidRequest, Reason::InvalidArgument, message)
    }

    /// A definite failure.
    pub fn did_not_happen(reason: Reason, message: impl Into<String>) -> Error {
        Error::new(ErrorKind::DidNotHappen, reason, message)
    }

    /// A failure that leaves the outcome open.
    pub fn outcome_unknown(reason: Reason, message: impl Into<String>) -> Error {
        Error::new(ErrorKind::OutcomeUnknown, reason, message)
    }

    /// What sort of failure this is.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// The business code, when the store refused the operation with one.
    pub fn code(&self) -> Option<Code> {
        match self.0.kind {
            ErrorKind::Refused(code) => Some(code),
            _ => None,
        }
    }

    /// Why the store gave no answer; `Unspecified` for business refusals.
    pub fn reason(&self) -> Reason {
        self.0.reason
    }

    /// True when the request definitely did not happen.
    pub fn is_definite(&self) -> bool {
        self.0.kind != ErrorKind::OutcomeUnknown
    }

    /// What went wrong, without the advice that `Display` adds.
    pub fn message(&self) -> &str {
        &self.0.message
    }

    /// Where the leader is, when the failure named it.
    pub fn leader(&self) -> Option<&NodeAddress> {
        self.0.leader.as_ref()
    }

    /// When the store asks to be tried again.
    pub fn retry_after(&self) -> Option<Duration> {
        self.0.retry_after
    }

    /// The same error with words in front that say where it happened.
    #[must_use]
    pub fn context(&self, place: impl fmt::Display) -> Error {
        let mut inner = (*self.0).clone();
        inner.message = format!("{place}: {}", inner.message);
        Error(Arc::new(inner))
    }

    /// The store does not know any more whether it carried a write out.
    pub(crate) fn session_expired() -> Error {
        let message = "the store has forgotten what became of this write: its session had to make room, or was \
                       idle for too long";
        Error::did_not_happen(Reason::Unspecified, message)
    }

    /// The same failure, of a request that was sent before and of which `first` left the outcome
    /// open: sent again it came to nothing, which says nothing about the first time.
    pub(crate) fn of_unknown(self, first: &Error) -> Error {
        if !self.is_definite() {
            return self;
        }
        let mut inner = (*self.0).clone();
        inner.kind = ErrorKind::OutcomeUnknown;
        inner.reason = first.reason();
        inner.message = format!("{}; sent again: {}", first.message(), inner.message);
        Error(Arc::new(inner))
    }

    /// The same failure, for a request that changes nothing: its outcome is never unknown.
    pub(crate) fn of_read(self) -> Error {
        if self.is_definite() {
            return self;
        }
        let mut inner = (*self.0).clone();
        inner.kind = ErrorKind::DidNotHappen;
        Error(Arc::new(inner))
    }
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Error {
        let reason = failure.reason();
        let kind = match reason {
            _ if failure.outcome_unknown => ErrorKind::OutcomeUnknown,
            Reason::InvalidArgument => ErrorKind::InvalidRequest,
            _ => ErrorKind::DidNotHappen,
        };
        let retry_after =
            (failure.retry_after_ms > 0).then(|| Duration::from_millis(failure.retry_after_ms.into()));
        let message =
            if failure.message.is_empty() { reason.as_str_name().to_string() } else { failure.message };
        Error(Arc::new(Inner { kind, reason, message, leader: failure.leader, retry_after }))
    }
}

impl From<&tonic::Status> for Error {
    /// Uses the typed detail when there is one. Without it the status came from the connection or
    /// from something between client and node; only refusals that are made before a request is
    /// handed on count as definite.
    fn from(status: &tonic::Status) -> Error {
        match Failure::decode(status.details()) {
            Ok(failure) if !status.details().is_empty() => Error::from(failure),
            _ => from_bare_status(status),
        }
    }
}

fn from_bare_status(status: &tonic::Status) -> Error {
    use tonic::Code as Grpc;
    let message = format!("gRPC {:?}: {}", status.code(), status.message());
    match status.code() {
        Grpc::InvalidArgument | Grpc::OutOfRange => Error::invalid(message),
        Grpc::Unimplemented => Error::did_not_happen(Reason::Unspecified, message),
        Grpc::Unauthenticated | Grpc::PermissionDenied | Grpc::FailedPrecondition | Grpc::AlreadyExists => {
            Error::did_not_happen(Reason::Precondition, message)
        }
        Grpc::NotFound => Error::did_not_happen(Reason::GroupNotFound, message),
        Grpc::ResourceExhausted => Error::did_not_happen(Reason::Overloaded, message),
        Grpc::DeadlineExceeded => Error::outcome_unknown(Reason::Timeout, message),
        _ => Error::outcome_unknown(Reason::Unspecified, message),
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let advice = match self.0.kind {
            ErrorKind::Refused(_) => return f.write_str(&self.0.message),
            ErrorKind::InvalidRequest => "change the request",
            ErrorKind::DidNotHappen => "it did not happen; it is safe to try again",
            ErrorKind::OutcomeUnknown => "the outcome is unknown; read before you write again",
        };
        write!(f, "{} ({advice})", self.0.message)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}/{}: {}", self.0.kind, self.0.reason.as_str_name(), self.0.message)
    }
}

impl std::error::Error for Error {}

/// What a code means and what to do about it.
pub fn explain(code: Code) -> &'static str {
    match code {
        Code::Success => "done",
        Code::SuccessOverwrite => "done, an older value was replaced",
        Code::NotFound => "no node has this key; check the key, or create it first",
        Code::DirExists => "the key names a directory; choose another key, or remove the directory first",
        Code::ValueExists => "the key names a value; choose another key, or remove the value first",
        Code::ParentNotDir => "a node above the key is a value; only directories have children",
        Code::InvalidKey => {
            "keys are segments separated by single dots, without control characters or blanks, and not empty"
        }
        Code::InvalidValue => "values have at least 1 byte; to delete a key use remove",
        Code::ParentDirNotExists => {
            "the parent directory is missing; create it first, or ask for parents to be made"
        }
        Code::HasChildren => "the directory is not empty; remove its children first, or remove recursively",
        Code::KeyTooLong => "keys have at most 8192 bytes; shorten the key",
        Code::ValueTooLong => "values have at most 1048576 bytes; split the value",
        Code::CasMismatch => "the value is not the expected one; read it again and decide anew",
        Code::ClientReqError => {
            "the store does not accept this request; check the options used with this operation"
        }
        Code::NotOwner => "another client owns this node; only its owner may change it",
        Code::NotTempNode => "the node is permanent; only temporary nodes have a time to live",
        Code::IsTempNode => "the node is temporary; use the operations for temporary nodes",
        Code::InvalidTtl => "the time to live is out of range; use 1 ms to 36500 days",
        Code::UnderTempDir => "the key lies under a temporary directory, which its owner controls",
        Code::ParentIsLock => "a node above the key is a lock; locks have no children",
        Code::NotLockNode => "the key does not name a lock",
        Code::IsLockNode => "the key names a lock; use the operations for locks",
        Code::LockBySelf => "this client holds the lock already",
        Code::LockByOther => "another client holds the lock; wait for it or try again later",
        Code::Fenced => "the lock was granted to somebody else since; acquire it again before writing",
        Code::SessionExpired => "the session is over; begin a new one",
        Code::Compacted => "the history that was asked for is gone; start again from the current state",
        Code::InstallSnapshot | Code::RemoveWatch | Code::RemoveAllWatch | Code::TtlIndexMismatch => {
            "an internal code that callers never get to see; please report it"
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_is_explained_in_its_error_message() {
        for number in 0..=30 {
            let code = Code::try_from(number).unwrap();
            let error = Error::refused(code);
            assert_eq!(error.code(), Some(code));
            assert!(error.is_definite());
            assert!(error.to_string().starts_with(code.as_str_name()), "{error}");
            assert!(error.to_string().len() > code.as_str_name().len() + 3);
        }
    }

    #[test]
    fn typed_detail_of_a_status_decides_whether_it_happened() {
        let failure = Failure {
            reason: Reason::Timeout.into(),
            message: "late".into(),
            outcome_unknown: true,
            ..Failure::default()
        };
        let status = tonic::Status::with_details(
            tonic::Code::DeadlineExceeded,
            "late",
            failure.encode_to_vec().into(),
        );
        let error = Error::from(&status);
        assert_eq!(error.kind(), ErrorKind::OutcomeUnknown);
        assert_eq!(error.reason(), Reason::Timeout);
        assert_eq!(error.of_read().kind(), ErrorKind::DidNotHappen);
    }

    #[test]
    fn status_without_detail_is_unknown_unless_refused_up_front() {
        let broken = Error::from(&tonic::Status::unavailable("connection reset"));
        assert_eq!(broken.kind(), ErrorKind::OutcomeUnknown);
        let refused = Error::from(&tonic::Status::unimplemented("no such method"));
        assert_eq!(refused.kind(), ErrorKind::DidNotHappen);
    }

    #[test]
    fn messages_say_what_to_do_next() {
        let unknown = Error::outcome_unknown(Reason::Timeout, "no answer from n1 within 5 s");
        assert!(unknown.to_string().contains("read before you write again"));
        let definite = Error::did_not_happen(Reason::NotLeader, "g1 has no leader");
        assert!(definite.to_string().contains("safe to try again"));
        assert!(definite.context("put").message().starts_with("put: "));
    }
}
