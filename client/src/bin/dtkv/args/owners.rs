//! Arguments of the commands for temporary nodes, locks and transactions.

use super::values::{GuardBy, OwnerId, parse_duration};
use clap::Args;
use std::time::Duration;

/// The guard of writes.
#[derive(Args, Clone, Debug, Default)]
pub struct Guarded {
    /// Only while this grant of a lock is the latest; dtkv lock hands it over as $DTKV_GUARD
    #[arg(long, value_name = "LOCK:TOKEN")]
    pub guard: Option<GuardBy>,
}

/// Arguments of `ttl`.
#[derive(Args, Debug)]
pub struct TtlArgs {
    /// Dotted key
    pub key: String,
    /// New time to live, from now on: 500ms, 30s, 5m, 1h
    #[arg(value_parser = parse_duration, value_name = "TIME")]
    pub ttl: Duration,
    #[command(flatten)]
    pub guarded: Guarded,
}

/// Arguments of `keep-alive`.
#[derive(Args, Debug)]
pub struct KeepAliveArgs {
    /// Renew again and again after so long, until interrupted
    #[arg(long, value_parser = parse_duration, value_name = "TIME")]
    pub every: Option<Duration>,
}

/// Arguments of `owned`.
#[derive(Args, Debug)]
pub struct OwnedArgs {
    /// The owner, if not the one of --owner: 32 hex digits
    #[arg(value_name = "ID")]
    pub id: Option<OwnerId>,
    /// Show indexes and times as well
    #[arg(short, long)]
    pub long: bool,
    /// Leave the values out
    #[arg(short, long)]
    pub keys_only: bool,
}

/// Arguments of `lock`.
#[derive(Args, Debug)]
pub struct LockArgs {
    /// Dotted key of the lock
    pub key: String,
    /// Lease of the lock; it is renewed three times as often
    #[arg(long, value_parser = parse_duration, default_value = "30s", value_name = "TIME")]
    pub hold: Duration,
    /// How long to wait for the lock
    #[arg(long, value_parser = parse_duration, default_value = "0s", value_name = "TIME")]
    pub wait: Duration,
    /// How long a command that has to stop may take until it is killed
    #[arg(long, value_parser = parse_duration, default_value = "5s", value_name = "TIME")]
    pub grace: Duration,
    /// The command and its arguments
    #[arg(last = true, required = true, value_name = "COMMAND")]
    pub command: Vec<String>,
}

/// Arguments of `txn`.
#[derive(Args, Debug)]
pub struct TxnArgs {
    /// File with the transaction; - = standard input
    #[arg(default_value = "-")]
    pub file: String,
    #[command(flatten)]
    pub guarded: Guarded,
}
