//! One real node over real sockets: what clients, operators, collectors and people get from it.

#[path = "service/disk.rs"]
mod disk;
#[path = "service/harness.rs"]
mod harness;
#[path = "service/lifecycle.rs"]
mod lifecycle;
#[path = "service/once.rs"]
mod once;
#[path = "service/pipe.rs"]
mod pipe;
#[path = "service/ports.rs"]
mod ports;
#[path = "service/unary.rs"]
mod unary;
#[path = "service/watch.rs"]
mod watch;
