//! The `dtkv` command line.

mod admin;
mod args;
mod batch;
mod bench;
mod context;
mod fault;
mod kv;
mod kv_report;
mod output;
mod overview;
mod run;
mod settings;
mod shell;
mod watch;
mod words;

use std::process::ExitCode;

// Threads of the benchmark hand small allocations to each other, which the system's allocator is
// slow at.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    run::main().into()
}
