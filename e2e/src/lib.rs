//! Real processes, faults, history checkers.
