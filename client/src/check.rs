//! What can be said about an operation without asking a node: one that breaks a rule would take its
//! whole frame down, with the operations of others.

use crate::error::Error;
use crate::limits::{TTL_MS_MAX, check_key, check_key_or_root, check_lock_key, check_value};
use crate::packed::{self, Kind, Op};
use crate::v1::Code;

/// Checks an operation that is to be sent.
///
/// # Errors
/// Business codes for keys, values and TTLs; else the request is invalid.
pub(crate) fn check(op: &Op<'_>) -> Result<(), Error> {
    match op.kind {
        Kind::Batch => return check_batch(op.value),
        Kind::Txn => return check_txn(op.value),
        Kind::KeepAlive | Kind::DropOwner => return Ok(()),
        Kind::Expire | Kind::Scope => {
            return Err(Error::invalid(format!("{:?} is no operation that clients send", op.kind)));
        }
        _ => {}
    }
    let key = match op.kind {
        Kind::Get => check_key_or_root(op.key),
        Kind::TryLock | Kind::Unlock | Kind::UpdateLease => check_lock_key(op.key),
        _ => check_key(op.key),
    };
    let value = match op.kind {
        Kind::Put => check_value(op.value),
        Kind::CompareAndSet if op.has_new_value => check_value(op.value),
        Kind::CompareAndSet if op.expect.is_none() && op.expect_index.is_none() => Err(Code::InvalidValue),
        _ => Ok(()),
    };
    key.and(value).and_then(|()| check_ttl(op)).map_err(Error::refused)
}

fn check_ttl(op: &Op<'_>) -> Result<(), Code> {
    let needs_ttl = matches!(op.kind, Kind::UpdateTtl | Kind::TryLock | Kind::UpdateLease);
    match op.ttl_ms {
        Some(1..=TTL_MS_MAX) => Ok(()),
        None if !needs_ttl => Ok(()),
        _ => Err(Code::InvalidTtl),
    }
}

fn check_batch(ops: &[u8]) -> Result<(), Error> {
    let mut packer = crate::batch::Packer::default();
    for op in packed::ops(ops) {
        let op = op.map_err(|malformed| Error::invalid(malformed.to_string()))?;
        if !matches!(op.kind, Kind::Put | Kind::Remove) {
            return Err(Error::invalid("a batch holds puts or removes; send other operations alone"));
        }
        packer.check(&op)?;
    }
    packer.check_not_empty()
}

fn check_txn(value: &[u8]) -> Result<(), Error> {
    let malformed = |malformed: packed::Malformed| Error::invalid(malformed.to_string());
    let txn = packed::txn::Txn::read(value).map_err(malformed)?;
    for op in txn.branch(true).chain(txn.branch(false)) {
        let op = op.map_err(malformed)?;
        let kinds = [Kind::Put, Kind::Remove, Kind::Mkdir, Kind::CompareAndSet, Kind::UpdateTtl, Kind::Get];
        if !kinds.contains(&op.kind) {
            return Err(Error::invalid(format!("{:?} is no operation of a transaction", op.kind)));
        }
        check(&op)?;
    }
    Ok(())
}

/// True when a guard of a lock makes sense for this kind of operation.
pub(crate) fn may_have_guard(kind: Kind) -> bool {
    use Kind::*;
    matches!(kind, Put | Remove | Mkdir | CompareAndSet | Batch | UpdateTtl | Txn)
}

/// True when the store has to know who sends this operation.
pub(crate) fn needs_owner(op: &Op<'_>) -> bool {
    use Kind::*;
    op.ttl_ms.is_some() || matches!(op.kind, Remove | Batch | Txn | Unlock | KeepAlive | DropOwner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(op: &Op<'_>) -> Option<Code> {
        check(op).err().and_then(|error| error.code())
    }

    #[test]
    fn times_to_live_have_a_range() {
        let put = |ttl_ms| Op { ttl_ms, ..Op::new(Kind::Put, b"a", b"1") };
        assert_eq!(code(&put(None)), None);
        assert_eq!(code(&put(Some(1))), None);
        assert_eq!(code(&put(Some(0))), Some(Code::InvalidTtl));
        assert_eq!(code(&put(Some(TTL_MS_MAX + 1))), Some(Code::InvalidTtl));
        assert_eq!(code(&Op::new(Kind::UpdateTtl, b"a", b"")), Some(Code::InvalidTtl));
    }

    #[test]
    fn keys_of_locks_leave_room_for_their_entries() {
        let key = vec![b'k'; crate::limits::LOCK_KEY_BYTES_MAX + 1];
        let lock = |key| Op { ttl_ms: Some(5), ..Op::new(Kind::TryLock, key, &[0; 8]) };
        assert_eq!(code(&lock(&key)), Some(Code::KeyTooLong));
        assert_eq!(code(&lock(&key[1..])), None);
    }

    #[test]
    fn what_only_the_store_makes_is_not_sent() {
        for kind in [Kind::Scope, Kind::Expire] {
            assert!(check(&Op::new(kind, b"", b"")).is_err());
        }
        let mut lock = Vec::new();
        Op::new(Kind::Unlock, b"a", b"").pack(&mut lock);
        let mut value = Vec::new();
        packed::txn::Txn { compares: Vec::new(), then_ops: &lock, else_ops: b"" }.pack(&mut value);
        assert!(check(&Op::new(Kind::Txn, b"", &value)).is_err());
    }
}
