//! What clients, administrators and people talk to. Thin: decode, check limits, delegate, convert.

pub mod admission;
pub mod status;
