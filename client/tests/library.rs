//! The client against nodes in this process that answer as they are told.
#![allow(clippy::unwrap_used, reason = "helpers of tests, outside of test functions")]

#[path = "library/admin.rs"]
mod admin;
#[path = "library/calls.rs"]
mod calls;
#[path = "library/fake.rs"]
mod fake;
#[path = "library/fake_watch.rs"]
mod fake_watch;
#[path = "library/faults.rs"]
mod faults;
#[path = "library/load.rs"]
mod load;
#[path = "library/watches.rs"]
mod watches;
