//! The client against nodes in this process that answer as they are told.

#[path = "library/admin.rs"]
mod admin;
#[path = "library/calls.rs"]
mod calls;
#[path = "library/fake.rs"]
mod fake;
#[path = "library/faults.rs"]
mod faults;
#[path = "library/load.rs"]
mod load;
