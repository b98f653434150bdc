//! Real processes, faults, history checkers.

pub mod checker;
pub mod cluster;
pub mod contract;
pub mod history;
pub mod workload;
