//! The command line, run as a person or a script would.

use super::{Cluster, place};
use anyhow::{Context, Result};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

const TIMEOUT: Duration = Duration::from_secs(60);

/// What a program left behind.
#[derive(Clone, Debug)]
pub struct Output {
    /// Exit code; none when a signal ended it.
    pub code: Option<i32>,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Output {
    /// Standard output, if the exit code is 0.
    ///
    /// # Errors
    /// With all output, if it is not.
    pub fn success(self) -> Result<String> {
        anyhow::ensure!(self.code == Some(0), "exit code {:?}\n{}{}", self.code, self.stdout, self.stderr);
        Ok(self.stdout)
    }
}

/// Runs a program to its end with this standard input.
///
/// # Errors
/// When it does not start, or does not end within a minute.
pub async fn run_program(program: &Path, arguments: &[&str], input: &str) -> Result<Output> {
    let mut command = Command::new(program);
    command.args(arguments).kill_on_drop(true);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("start {}", program.display()))?;
    let mut stdin = child.stdin.take().context("standard input")?;
    let write = async move {
        // The program may end without reading.
        let _ = stdin.write_all(input.as_bytes()).await;
    };
    let both = async { tokio::join!(write, child.wait_with_output()).1 };
    let output = tokio::time::timeout(TIMEOUT, both).await.context("the program does not end")??;
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    Ok(Output { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) })
}

impl Cluster {
    /// Runs `dtkv` against all nodes.
    ///
    /// # Errors
    /// When it does not start or end.
    pub async fn dtkv(&self, arguments: &[&str]) -> Result<Output> {
        self.dtkv_with_input(arguments, "").await
    }

    /// The same, with something to read.
    ///
    /// # Errors
    /// When it does not start or end.
    pub async fn dtkv_with_input(&self, arguments: &[&str], input: &str) -> Result<Output> {
        let endpoints = self.endpoints().join(",");
        let all: Vec<&str> = ["-e", &endpoints].into_iter().chain(arguments.iter().copied()).collect();
        run_program(&place::program("dtkv")?, &all, input).await
    }
}
