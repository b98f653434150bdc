//! Why a command did not succeed, and the exit code that says so.

use dtkv_client::{Error, ErrorKind};
use std::fmt;
use std::process::ExitCode;

/// The exit codes; `dtkv --help` lists them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Exit {
    /// Done.
    Done,
    /// The store said no.
    Refused,
    /// The command line or the request is not valid.
    Usage,
    /// Definite failure.
    Failed,
    /// Nobody knows whether it happened.
    Unknown,
    /// What came of a command that was run under a lock.
    Command(u8),
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> ExitCode {
        ExitCode::from(match exit {
            Exit::Done => 0,
            Exit::Refused => 1,
            Exit::Usage => 2,
            Exit::Failed => 3,
            Exit::Unknown => 4,
            Exit::Command(code) => code,
        })
    }
}

/// A command that did not succeed.
#[derive(Debug)]
pub struct Fault {
    pub exit: Exit,
    pub message: String,
}

impl Fault {
    /// The store said no.
    pub fn refused(message: impl Into<String>) -> Fault {
        Fault { exit: Exit::Refused, message: message.into() }
    }

    /// The command line or the request is not valid.
    pub fn usage(message: impl Into<String>) -> Fault {
        Fault { exit: Exit::Usage, message: message.into() }
    }

    /// It definitely did not happen.
    pub fn failed(message: impl Into<String>) -> Fault {
        Fault { exit: Exit::Failed, message: message.into() }
    }

    /// The same with words in front that say where it happened.
    #[must_use]
    pub fn at(self, place: impl fmt::Display) -> Fault {
        Fault { exit: self.exit, message: format!("{place}: {}", self.message) }
    }
}

impl From<Error> for Fault {
    fn from(error: Error) -> Fault {
        let exit = match error.kind() {
            ErrorKind::Refused(_) => Exit::Refused,
            ErrorKind::InvalidRequest => Exit::Usage,
            ErrorKind::DidNotHappen => Exit::Failed,
            ErrorKind::OutcomeUnknown => Exit::Unknown,
        };
        Fault { exit, message: error.to_string() }
    }
}

impl From<std::io::Error> for Fault {
    fn from(error: std::io::Error) -> Fault {
        Fault::failed(format!("input or output failed: {error}"))
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dtkv_client::v1::Code;
    use dtkv_client::v1::failure::Reason;

    #[test]
    fn every_kind_of_error_has_its_exit_code() {
        let exit = |error: Error| Fault::from(error).exit;
        assert_eq!(exit(Error::refused(Code::NotFound)), Exit::Refused);
        assert_eq!(exit(Error::invalid("too long")), Exit::Usage);
        assert_eq!(exit(Error::did_not_happen(Reason::NotLeader, "no leader")), Exit::Failed);
        assert_eq!(exit(Error::outcome_unknown(Reason::Timeout, "late")), Exit::Unknown);
    }
}
