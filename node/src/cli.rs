//! The command line of `dtkv-node`.

use crate::config::{Config, Faults, Sources};
use crate::{Node, config, dev, telemetry};
use anyhow::{Context, Result};
use clap::{Args, Parser, Subcommand};
use std::path::{Path, PathBuf};

const EXAMPLES: &str = "\
Try it, a whole cluster in one process:
  dtkv-node dev
Three nodes on one machine, then one cluster of them:
  dtkv-node run --id 1 --data n1 --peer 127.0.0.1:9331 --client 127.0.0.1:9332 --http 127.0.0.1:9333
  dtkv-node run --id 2 --data n2 --peer 127.0.0.1:9341 --client 127.0.0.1:9342 --http 127.0.0.1:9343
  dtkv-node run --id 3 --data n3 --peer 127.0.0.1:9351 --client 127.0.0.1:9352 --http 127.0.0.1:9353
  dtkv -e 127.0.0.1:9332,127.0.0.1:9342,127.0.0.1:9352 cluster init --groups 8
With a file:
  dtkv-node config --print-default > dtkv.toml     # then edit it
  dtkv-node check-config dtkv.toml
  dtkv-node run --config dtkv.toml";

/// A store node of DtKV, a durable, linearizable key-value store of many Raft groups.
#[derive(Parser, Debug)]
#[command(name = "dtkv-node", version, after_help = EXAMPLES, arg_required_else_help = true)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Runs one node until SIGTERM or SIGINT.
    ///
    /// A node with an empty data directory waits to be taken into a cluster (`dtkv cluster init`).
    Run(RunArgs),
    /// Runs a whole cluster in this process, for trying things out.
    ///
    /// It uses real sockets on loopback and keeps its data: run it again on the same directory to
    /// go on.
    Dev(dev::DevArgs),
    /// Checks a configuration file and tells everything that is wrong with it.
    CheckConfig {
        /// The file.
        file: PathBuf,
        #[command(flatten)]
        overrides: Overrides,
    },
    /// Shows the configuration.
    Config {
        /// Every setting with its meaning and default, as a file to start from.
        #[arg(long, required = true)]
        print_default: bool,
    },
}

#[derive(Args, Debug)]
struct RunArgs {
    /// Configuration file (TOML). See `dtkv-node config --print-default`.
    #[arg(short, long, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    overrides: Overrides,
}

/// Settings on the command line; they win over the environment and the file.
#[derive(Args, Debug, Default)]
struct Overrides {
    /// This node's id (node.id).
    #[arg(long, value_name = "ID")]
    id: Option<String>,
    /// Data directory (node.data_dir).
    #[arg(long, value_name = "DIR")]
    data: Option<String>,
    /// Where other nodes connect (listen.peer).
    #[arg(long, value_name = "IP:PORT")]
    peer: Option<String>,
    /// Where clients connect (listen.client).
    #[arg(long, value_name = "IP:PORT")]
    client: Option<String>,
    /// Where metrics and the status page are (listen.http).
    #[arg(long, value_name = "IP:PORT")]
    http: Option<String>,
    /// Allows addresses beyond loopback without encryption (listen.insecure_plaintext).
    #[arg(long)]
    insecure_plaintext: bool,
    /// Any setting, by its name in the file; may be repeated.
    #[arg(long = "set", value_name = "SECTION.KEY=VALUE")]
    settings: Vec<String>,
}

impl Overrides {
    fn add_to(&self, sources: &mut Sources) {
        let named = [
            ("node.id", &self.id),
            ("node.data_dir", &self.data),
            ("listen.peer", &self.peer),
            ("listen.client", &self.client),
            ("listen.http", &self.http),
        ];
        self.settings.iter().for_each(|setting| sources.flag(setting));
        for (name, value) in named.into_iter().filter_map(|(name, value)| Some((name, value.as_ref()?))) {
            sources.flag(&format!("{name}={value}"));
        }
        if self.insecure_plaintext {
            sources.flag("listen.insecure_plaintext=true");
        }
    }
}

impl Cli {
    /// Does what was asked for.
    ///
    /// # Errors
    /// What went wrong, for a person to read.
    pub fn execute(self) -> Result<()> {
        match self.command {
            Command::Run(args) => run(&args),
            Command::Dev(args) => dev::run(args),
            Command::CheckConfig { file, overrides } => {
                load(Some(&file), &overrides)?;
                println!("{} is fine", file.display());
                Ok(())
            }
            Command::Config { .. } => {
                print!("{}", Config::default_file());
                Ok(())
            }
        }
    }
}

fn load(file: Option<&Path>, overrides: &Overrides) -> Result<Config, Faults> {
    let mut sources = Sources::default();
    file.into_iter().for_each(|file| sources.path(file));
    sources.environment(
        std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?))),
    );
    overrides.add_to(&mut sources);
    sources.load()
}

fn run(args: &RunArgs) -> Result<()> {
    let config = load(args.config.as_deref(), &args.overrides)?;
    telemetry::init_log(&config.log.level, config.log.format == config::LogFormat::Json)?;
    runtime(config.node.worker_threads)?.block_on(async {
        let shutdown = shutdown_signal()?;
        let node = Node::build(config).await?;
        node.run(shutdown).await?;
        Ok(())
    })
}

/// The runtime of the process; 0 threads = one for each processor.
pub(crate) fn runtime(worker_threads: u32) -> Result<tokio::runtime::Runtime> {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    if worker_threads > 0 {
        builder.worker_threads(worker_threads as usize);
    }
    builder.enable_all().thread_name("dtkv").build().context("the runtime cannot be started")
}

/// Completes at the first SIGTERM or SIGINT; a second one ends the process at once.
pub(crate) fn shutdown_signal() -> Result<impl Future<Output = ()>> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate()).context("SIGTERM cannot be caught")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("SIGINT cannot be caught")?;
    Ok(async move {
        tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
        tokio::spawn(async move {
            tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
            tracing::warn!("told to stop a second time; stopping at once");
            std::process::exit(130);
        });
    })
}
