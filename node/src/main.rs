//! The `dtkv-node` program.

use clap::Parser;
use dtkv_node::cli::Cli;
use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    // An idle replica would take 1.9 MB instead of 160 KB with huge pages.
    let _ = rustix::thread::disable_transparent_huge_pages(true);
    match Cli::parse().execute() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("dtkv-node: {error:#}");
            ExitCode::FAILURE
        }
    }
}
