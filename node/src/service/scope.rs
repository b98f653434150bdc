//! Scopes of requests: the one that stands in front of a frame's operations, and the one that a unary
//! call with a sequence gets.

use crate::failure::Failure;
use dtkv_client::packed::scope::Scope;
use dtkv_client::packed::{self, Kind, Op};
use dtkv_client::v1;

/// Takes the scope, if there is one, off the front of a frame's operations.
///
/// # Errors
/// When it is malformed, or does not cover exactly the frame.
pub fn take(ops: &[u8], count: u32) -> Result<(Option<Scope>, &[u8]), Failure> {
    let Some(Ok(op)) = packed::ops(ops).next().filter(|_| ops.first() == Some(&(Kind::Scope as u8))) else {
        return Ok((None, ops));
    };
    let malformed = || {
        Failure::invalid(
            "the scope is malformed: it has a session with a sequence from 1, no key, and a value of 11 bytes"
                .to_owned(),
        )
    };
    let scope = Scope::read(&op).ok_or_else(malformed)?;
    if u32::from(scope.operations) != count {
        return Err(Failure::invalid(format!(
            "the scope covers {} operations and the frame says {count}",
            scope.operations
        )));
    }
    Ok((Some(scope), &ops[Scope::PACKED_BYTES..]))
}

/// The operation with its caller: the client of its scope.
///
/// # Errors
/// When it says that it comes from another client.
pub fn owned<'a>(op: Op<'a>, scope: Option<&Scope>) -> Result<Op<'a>, String> {
    let Some(scope) = scope else { return Ok(op) };
    if op.kind == Kind::Scope {
        return Err("a second scope; a frame has one at most".to_owned());
    }
    if op.session.is_some_and(|(client, _)| client != scope.client_id) {
        return Err("the operation comes from another client than the scope".to_owned());
    }
    Ok(Op { session: Some((scope.client_id, scope.sequence)), ..op })
}

/// The id of a client.
///
/// # Errors
/// When it has another length; `field` says where it stood.
pub fn client_id(field: &str, bytes: &[u8]) -> Result<[u8; 16], Failure> {
    let length = bytes.len();
    bytes.try_into().map_err(|_| Failure::invalid(format!("{field} has {length} bytes, it must have 16")))
}

/// The caller and, when the request has a sequence, the scope of its one operation.
///
/// # Errors
/// When the session breaks a rule.
pub fn of_session(session: &v1::Session) -> Result<([u8; 16], Option<Scope>), Failure> {
    let client_id = client_id("session.client_id", &session.client_id)?;
    let v1::Session { sequence, acknowledged_below, retry: is_retry, .. } = *session;
    if sequence == 0 {
        return Ok((client_id, None));
    }
    if acknowledged_below > sequence {
        return Err(Failure::invalid(format!(
            "session.acknowledged_below is {acknowledged_below}, above session.sequence, which is {sequence}"
        )));
    }
    Ok((client_id, Some(Scope { client_id, sequence, acknowledged_below, operations: 1, is_retry })))
}
