//! The `dtkv` program as users run it, against a small stand-in for a node.

#![allow(clippy::unwrap_used)]

mod admin;
mod bench;
mod fake;
mod keys;
mod owners;
mod settings;

use fake::Fake;
use std::io::Write;
use std::process::{Command, Output, Stdio};

/// A stand-in for a node, and a home directory.
struct World {
    fake: Fake,
    home: tempfile::TempDir,
}

/// What a command left.
#[derive(Debug)]
struct Left {
    code: i32,
    out: String,
    err: String,
}

impl Left {
    fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.out).unwrap_or_else(|e| panic!("{e}: {self:?}"))
    }
}

impl World {
    fn new() -> World {
        World { fake: Fake::start(), home: tempfile::tempdir().unwrap() }
    }

    /// The program with no settings but the home directory.
    fn bare(&self, line: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_dtkv"));
        command.args(line).env_clear().env("HOME", self.home.path());
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    fn run_with_input(&self, line: &[&str], input: &[u8]) -> Left {
        let mut command = self.bare(line);
        command.env("DTKV_ENDPOINTS", self.fake.address());
        left(command, input)
    }

    /// Runs the words of a line without quotes.
    fn run(&self, line: &str) -> Left {
        let words: Vec<&str> = line.split_whitespace().collect();
        self.run_with_input(&words, b"")
    }

    /// As [`World::run`], and it must be done.
    fn done(&self, line: &str) -> String {
        let left = self.run(line);
        assert_eq!(left.code, 0, "{line}: {left:?}");
        left.out
    }
}

fn left(mut command: Command, input: &[u8]) -> Left {
    let mut child = command.spawn().unwrap();
    // A program that reads no input may be gone already.
    let _ = child.stdin.take().unwrap().write_all(input);
    let Output { status, stdout, stderr } = child.wait_with_output().unwrap();
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    Left { code: status.code().unwrap(), out: text(&stdout), err: text(&stderr) }
}
