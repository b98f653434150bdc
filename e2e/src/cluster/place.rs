//! Where the programs under test are, which ports they get, and that only one cluster runs at once.

use anyhow::{Context, Result, bail};
use std::fs::File;
use std::net::TcpListener;
use std::path::{Path, PathBuf};

/// A program of the workspace: beside the test executables, where cargo puts it, or in
/// `DTKV_BIN_DIR`.
///
/// # Errors
/// When it has not been built; the message says how.
pub fn program(name: &str) -> Result<PathBuf> {
    let directory = match std::env::var_os("DTKV_BIN_DIR") {
        Some(directory) => PathBuf::from(directory),
        None => build_directory()?,
    };
    let path = directory.join(name);
    if !path.is_file() {
        bail!("{} is missing: run `cargo build --release --workspace --bins` first", path.display());
    }
    Ok(path)
}

/// `target/release`: tests lie in its `deps`, programs in itself.
fn build_directory() -> Result<PathBuf> {
    let own = std::env::current_exe().context("the path of this program")?;
    let parent = own.parent().context("this program has no directory")?;
    let in_deps = parent.file_name().is_some_and(|name| name == "deps");
    Ok(if in_deps { parent.parent().unwrap_or(parent) } else { parent }.to_path_buf())
}

/// Waits until no other cluster of these tests runs on this machine. The lock ends with the file.
///
/// # Errors
/// When the lock file cannot be made.
pub fn only_cluster() -> Result<File> {
    let path = std::env::temp_dir().join("dtkv-e2e.lock");
    let file = File::create(&path).with_context(|| format!("lock file {}", path.display()))?;
    file.lock().with_context(|| format!("lock {}", path.display()))?;
    Ok(file)
}

/// Ports below the range from which the system takes the ports of outgoing connections: a node that
/// is down for a while must find its ports free when it comes back.
const FIRST: u16 = 20_000;
const LAST: u16 = 30_000;

/// Finds free ports on loopback.
///
/// # Errors
/// When there are not enough.
pub fn free_ports(count: usize) -> Result<Vec<u16>> {
    let start = FIRST + rand::random_range(0..LAST - FIRST);
    let candidates = (start..LAST).chain(FIRST..start);
    let ports: Vec<u16> =
        candidates.filter(|&port| TcpListener::bind(("127.0.0.1", port)).is_ok()).take(count).collect();
    if ports.len() < count {
        bail!("fewer than {count} free ports between {FIRST} and {LAST} on 127.0.0.1");
    }
    Ok(ports)
}

/// The last lines of a log, and before them those that speak of trouble.
pub fn end_of_log(path: &Path, lines_max: usize) -> String {
    let text = std::fs::read_to_string(path).unwrap_or_else(|error| format!("(no log: {error})"));
    // What openraft says of unreachable peers fills pages.
    let lines: Vec<&str> = text.lines().filter(|line| !line.contains(" openraft::")).collect();
    let (early, late) = lines.split_at(lines.len().saturating_sub(lines_max));
    let trouble = early.iter().filter(|line| ["ERROR", "WARN", "panicked"].iter().any(|w| line.contains(w)));
    trouble.take(lines_max).chain(late).map(|line| format!("    {line}\n")).collect()
}
