//! Limits and syntax rules that hold on the client and, again, on the server.
//!
//! A refusal that can be decided from the request alone is decided before replication, so that a
//! bad request costs no log entry.

use crate::v1::Code;

/// Longest key, in bytes.
pub const KEY_BYTES_MAX: usize = 8192;
/// Longest key of a lock, in bytes: each entry of its queue is a key that is 33 bytes longer.
pub const LOCK_KEY_BYTES_MAX: usize = KEY_BYTES_MAX - 33;
/// Longest value, in bytes.
pub const VALUE_BYTES_MAX: usize = 1 << 20;
/// Most items in one batch.
pub const BATCH_ITEMS_MAX: usize = 1024;
/// Most bytes (keys and values) in one batch.
pub const BATCH_BYTES_MAX: usize = 4 << 20;
/// Most bytes in one page of a listing.
pub const LIST_BYTES_MAX: usize = 1 << 20;
/// Most operations in one frame.
pub const FRAME_OPS_MAX: usize = 256;
/// Bytes at which a client closes a frame. One operation may be larger than that.
pub const FRAME_BYTES_TARGET: usize = 64 << 10;
/// Largest gRPC message that a node accepts: a full batch and its envelope.
pub const REQUEST_BYTES_MAX: usize = BATCH_BYTES_MAX + (1 << 20);
/// Most bytes of the answer to one frame or batch of gets. A single node always fits.
pub const ANSWER_BYTES_MAX: usize = 16 << 20;
/// Most clients whose writes a group remembers, so that they happen once.
pub const SESSIONS_MAX: usize = 65_536;
/// Most answers that a group remembers for one client.
pub const SESSION_ANSWERS_MAX: usize = 1024;
/// Most bytes of answers that a group remembers for one client.
pub const SESSION_BYTES_MAX: usize = 256 << 10;
/// Most bytes that a group remembers for all clients.
pub const SESSIONS_BYTES_MAX: usize = 64 << 20;
/// A client that writes nothing for so long is forgotten, in ms.
pub const SESSION_IDLE_MS: u64 = 3_600_000;
/// Longest TTL, in ms: 36,500 days.
pub const TTL_MS_MAX: u64 = 3_153_600_000_000;

/// Checks the syntax of a key that names a node other than the root.
///
/// # Errors
/// `INVALID_KEY` for an empty key, a leading, trailing or doubled dot, a byte below 0x21 or 0x7F;
/// `KEY_TOO_LONG` beyond [`KEY_BYTES_MAX`].
pub fn check_key(key: &[u8]) -> Result<(), Code> {
    if key.is_empty() {
        return Err(Code::InvalidKey);
    }
    if key.len() > KEY_BYTES_MAX {
        return Err(Code::KeyTooLong);
    }
    let mut previous = b'.';
    for &byte in key {
        if byte < 0x21 || byte == 0x7F || (byte == b'.' && previous == b'.') {
            return Err(Code::InvalidKey);
        }
        previous = byte;
    }
    if previous == b'.' { Err(Code::InvalidKey) } else { Ok(()) }
}

/// As [`check_key`], but the empty key (the root) is fine: for get and list.
///
/// # Errors
/// As [`check_key`].
pub fn check_key_or_root(key: &[u8]) -> Result<(), Code> {
    if key.is_empty() { Ok(()) } else { check_key(key) }
}

/// As [`check_key`], for the key of a lock.
///
/// # Errors
/// As [`check_key`]; `KEY_TOO_LONG` beyond [`LOCK_KEY_BYTES_MAX`].
pub fn check_lock_key(key: &[u8]) -> Result<(), Code> {
    check_key(key)?;
    if key.len() > LOCK_KEY_BYTES_MAX { Err(Code::KeyTooLong) } else { Ok(()) }
}

/// Checks a TTL, or how long a lock is held, in ms.
///
/// # Errors
/// `INVALID_TTL` unless it is 1 to [`TTL_MS_MAX`].
pub fn check_ttl(ttl_ms: u64) -> Result<(), Code> {
    if (1..=TTL_MS_MAX).contains(&ttl_ms) { Ok(()) } else { Err(Code::InvalidTtl) }
}

/// Checks how long a lock is held and waited for, in ms.
///
/// # Errors
/// `INVALID_TTL` as [`check_ttl`] for `hold_ms`, and when the wait is longer than the hold.
pub fn check_lock_times(hold_ms: u64, wait_ms: u64) -> Result<(), Code> {
    check_ttl(hold_ms)?;
    if wait_ms > hold_ms { Err(Code::InvalidTtl) } else { Ok(()) }
}

/// Checks the size of a value.
///
/// # Errors
/// `INVALID_VALUE` when empty, `VALUE_TOO_LONG` beyond [`VALUE_BYTES_MAX`].
pub fn check_value(value: &[u8]) -> Result<(), Code> {
    match value.len() {
        0 => Err(Code::InvalidValue),
        n if n > VALUE_BYTES_MAX => Err(Code::ValueTooLong),
        _ => Ok(()),
    }
}
