//! Real processes, faults, history checkers.

pub mod checker;
pub mod cluster;
pub mod history;
pub mod workload;
