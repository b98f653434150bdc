//! The `dtkv` command line.
fn main() {}
