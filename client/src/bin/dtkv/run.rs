//! From the command line to the command and its exit code.

use crate::args::{Cli, Command};
use crate::context::Context;
use crate::fault::{Exit, Fault};
use crate::settings::{File, Settings, home};
use crate::{admin, batch, bench, kv, overview, shell, watch};
use clap::{CommandFactory, Parser};
use std::future::Future;
use std::pin::Pin;

/// Everything, for `main`.
pub fn main() -> Exit {
    let cli = Cli::parse();
    report(run(cli))
}

/// Says on standard error what went wrong.
pub fn report(result: Result<Exit, Fault>) -> Exit {
    result.unwrap_or_else(|fault| {
        eprintln!("dtkv: {fault}");
        fault.exit
    })
}

fn run(cli: Cli) -> Result<Exit, Fault> {
    if let Command::Completions { shell } = cli.command {
        return completions(shell);
    }
    let file = File::load(cli.global.config.as_deref(), home().as_deref())?;
    let settings = Settings::resolve(&cli.global, file);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    match cli.command {
        Command::Shell => shell::run(&runtime, settings),
        command => runtime.block_on(async {
            let context = Context::connect(settings).await?;
            dispatch(&context, command).await
        }),
    }
}

fn completions(shell: clap_complete::Shell) -> Result<Exit, Fault> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "dtkv", &mut script);
    crate::output::write(script)?;
    Ok(Exit::Done)
}

type Answer<'a> = Pin<Box<dyn Future<Output = Result<Exit, Fault>> + 'a>>;

/// Runs a command that needs a connection. Boxed: the futures of all commands together are large.
pub fn dispatch(context: &Context, command: Command) -> Answer<'_> {
    match command {
        Command::Put(args) => Box::pin(kv::put(context, args)),
        Command::Get(args) => Box::pin(kv::get(context, args)),
        Command::Ls(args) => Box::pin(kv::ls(context, args)),
        Command::Rm(args) => Box::pin(kv::rm(context, args)),
        Command::Mkdir(args) => Box::pin(kv::mkdir(context, args)),
        Command::Cas(args) => Box::pin(kv::cas(context, args)),
        Command::Watch(args) => Box::pin(watch::run(context, args)),
        Command::Batch(args) => Box::pin(batch::run(context, args)),
        Command::Groups => Box::pin(overview::groups(context)),
        Command::Nodes => Box::pin(overview::nodes(context)),
        Command::Status => Box::pin(overview::status(context)),
        Command::Digest(args) => Box::pin(admin::digest(context, args)),
        Command::Limits => Box::pin(admin::limits(context)),
        Command::Group(command) => Box::pin(admin::group(context, command)),
        Command::Node(command) => Box::pin(admin::node(context, command)),
        Command::Cluster(command) => Box::pin(admin::cluster(context, command)),
        Command::Bench(args) => Box::pin(bench::run(context, args)),
        Command::Shell | Command::Completions { .. } => {
            Box::pin(async { Err(Fault::usage("this command works only outside of the shell")) })
        }
    }
}
