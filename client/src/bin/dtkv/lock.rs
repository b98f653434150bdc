//! `dtkv lock`: runs a command while holding a lock.

use crate::args::LockArgs;
use crate::context::Context;
use crate::fault::{Exit, Fault};
use dtkv_client::{Lock, LockToken};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::io::ErrorKind;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::time::Duration;
use tokio::process::{Child, Command};
use tokio::signal::unix::{self, SignalKind};
use tokio::time::Instant;

/// The lock was lost and the command was stopped.
const LOST: Exit = Exit::Command(123);
/// The lock was not granted in time.
const NOT_GRANTED: Exit = Exit::Command(124);
const NOT_RUN: Exit = Exit::Command(126);
const NOT_FOUND: Exit = Exit::Command(127);

pub async fn run(context: &Context, args: LockArgs) -> Result<Exit, Fault> {
    let mut signals = Signals::new()?;
    let lock = context.group().lock(&args.key)?;
    let granted = tokio::select! {
        granted = take(&lock, &args) => granted?,
        signal = signals.next() => {
            lock.unlock().await?;
            return Ok(ended_by(signal as i32));
        }
    };
    let Some(token) = granted else {
        let message = format!("{} is held by somebody else; it was not granted in time", args.key);
        return Err(Fault { exit: NOT_GRANTED, message });
    };
    let result = run_under(&lock, &token, &args, &mut signals).await;
    if let Err(error) = lock.close().await {
        eprintln!("dtkv: {} could not be given up and stays locked until its lease ends: {error}", args.key);
    }
    result
}

/// Asks for the lock, in turns that are no longer than the lease.
async fn take(lock: &Lock, args: &LockArgs) -> Result<Option<LockToken>, Fault> {
    let deadline = Instant::now() + args.wait;
    loop {
        let wait = deadline.saturating_duration_since(Instant::now()).min(args.hold);
        let granted = lock.try_lock(args.hold, wait).await?;
        if granted.is_some() || Instant::now() >= deadline {
            return Ok(granted);
        }
    }
}

async fn run_under(
    lock: &Lock,
    token: &LockToken,
    args: &LockArgs,
    signals: &mut Signals,
) -> Result<Exit, Fault> {
    let mut child = start(token, args)?;
    let renewals = tokio::spawn(renew(lock.clone(), args.hold));
    let ended = loop {
        tokio::select! {
            status = child.wait() => break status.map(exit_of).map_err(Fault::from),
            () = lock.released() => {
                eprintln!("dtkv: {} was lost; the command is stopped", args.key);
                stop(&mut child, args.grace).await?;
                break Ok(LOST);
            }
            // An interrupt from the terminal reaches the command by itself.
            signal = signals.next() => if signal != Signal::SIGINT { send(&child, signal) },
        }
    };
    renewals.abort();
    // Its end leaves the lock to this task.
    let _ = renewals.await;
    ended
}

fn start(token: &LockToken, args: &LockArgs) -> Result<Child, Fault> {
    let [program, arguments @ ..] = args.command.as_slice() else {
        return Err(Fault::usage("name a command"));
    };
    let number = token.fencing_token();
    Command::new(program)
        .args(arguments)
        .env("DTKV_LOCK", &args.key)
        .env("DTKV_FENCING_TOKEN", number.to_string())
        .env("DTKV_GUARD", format!("{}:{number}", args.key))
        .kill_on_drop(true)
        .spawn()
        .map_err(|e| {
            let exit = if e.kind() == ErrorKind::NotFound { NOT_FOUND } else { NOT_RUN };
            Fault { exit, message: format!("{program} can't be run: {e}") }
        })
}

/// Renews the lease while the lock is held; when that fails for long enough, the lock ends by itself.
async fn renew(lock: Lock, hold: Duration) {
    let mut pause = hold / 3;
    loop {
        tokio::time::sleep(pause).await;
        let renewed = tokio::time::timeout(lock.lease_left(), lock.update_lease(hold)).await;
        pause = match renewed {
            Ok(Ok(_)) => hold / 3,
            _ if lock.token().is_none() => return,
            _ => hold / 10,
        };
    }
}

fn send(child: &Child, signal: Signal) {
    let Some(id) = child.id().and_then(|id| i32::try_from(id).ok()) else { return };
    // It may just have ended.
    let _ = kill(Pid::from_raw(id), signal);
}

async fn stop(child: &mut Child, grace: Duration) -> Result<(), Fault> {
    send(child, Signal::SIGTERM);
    if tokio::time::timeout(grace, child.wait()).await.is_err() {
        child.kill().await?;
    }
    Ok(())
}

fn exit_of(status: ExitStatus) -> Exit {
    match (status.code(), status.signal()) {
        (Some(0), _) => Exit::Done,
        (Some(code), _) => Exit::Command(u8::try_from(code).unwrap_or(u8::MAX)),
        (None, signal) => ended_by(signal.unwrap_or(0)),
    }
}

fn ended_by(signal: i32) -> Exit {
    Exit::Command(u8::try_from(128 + signal).unwrap_or(u8::MAX))
}

/// The signals that ask a program to end.
struct Signals {
    interrupt: unix::Signal,
    terminate: unix::Signal,
    hang_up: unix::Signal,
}

impl Signals {
    fn new() -> Result<Signals, Fault> {
        let interrupt = unix::signal(SignalKind::interrupt())?;
        let terminate = unix::signal(SignalKind::terminate())?;
        Ok(Signals { interrupt, terminate, hang_up: unix::signal(SignalKind::hangup())? })
    }

    async fn next(&mut self) -> Signal {
        tokio::select! {
            _ = self.interrupt.recv() => Signal::SIGINT,
            _ = self.terminate.recv() => Signal::SIGTERM,
            _ = self.hang_up.recv() => Signal::SIGHUP,
        }
    }
}
