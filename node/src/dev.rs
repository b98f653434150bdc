//! A whole cluster in one process, for trying things out: real nodes, real sockets on loopback, a
//! directory each. It is made by the same administrative calls as any other cluster.

use crate::cli::{runtime, shutdown_signal};
use crate::config::{Config, Sources};
use crate::{Node, NodeError, telemetry};
use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use dtkv_client::Client;
use dtkv_client::admin::{Admin, ClusterInit, InitProgress};
use dtkv_client::placement;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// Ports of the next node begin so much higher.
const PORTS_PER_NODE: u16 = 10;
const READY_TIMEOUT: Duration = Duration::from_secs(30);
/// Kept beside the nodes' directories.
const SHAPE_FILE: &str = "dev.json";

/// Options of `dtkv-node dev`.
#[derive(Args, Debug)]
pub struct DevArgs {
    /// Nodes [default: 3, or what the directory holds]
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=99))]
    nodes: Option<u16>,
    /// Groups [default: 8, or what the directory holds]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    groups: Option<u32>,
    /// Directory of the cluster's data
    #[arg(long, default_value = "dtkv-dev", value_name = "DIR")]
    data: PathBuf,
    /// First port; every node takes three, the next node's begin 10 higher
    #[arg(long, default_value_t = 9331, value_name = "PORT")]
    port: u16,
    /// Log filter; nodes that do not find each other yet are no news here, so it is error
    #[arg(long, default_value = "error", value_name = "FILTER")]
    log: String,
    /// Any setting for all nodes; may be repeated
    #[arg(long = "set", value_name = "SECTION.KEY=VALUE")]
    settings: Vec<String>,
}

/// What a directory was made for; it cannot change afterwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Shape {
    nodes: u16,
    groups: u32,
}

/// Runs the cluster until SIGTERM or SIGINT.
///
/// # Errors
/// When it cannot be started, or a node stops by itself.
pub fn run(args: DevArgs) -> Result<()> {
    telemetry::init_log(&args.log, false)?;
    let shape = shape(&args)?;
    let configs: Vec<Config> = (1..=shape.nodes).map(|id| config(&args, id)).collect::<Result<_>>()?;
    runtime(0)?.block_on(async {
        let mut shutdown = std::pin::pin!(shutdown_signal()?);
        println!(
            "Starting {} nodes with {} groups; data in {}",
            shape.nodes,
            shape.groups,
            args.data.display()
        );
        let mut cluster = Cluster::start(&configs).await?;
        let formed = tokio::select! {
            formed = form(&configs, shape.groups) => formed,
            ended = cluster.ended() => ended,
            () = &mut shutdown => return cluster.stop().await,
        };
        if let Err(error) = formed {
            cluster.stop().await?;
            return Err(error);
        }
        announce(&configs);
        let ended = tokio::select! { ended = cluster.ended() => ended, () = &mut shutdown => Ok(()) };
        println!("\nStopping");
        cluster.stop().await.and(ended)
    })
}

/// The shape that the directory has, or gets now.
fn shape(args: &DevArgs) -> Result<Shape> {
    let file = args.data.join(SHAPE_FILE);
    if !file.exists() {
        std::fs::create_dir_all(&args.data)
            .with_context(|| format!("{} cannot be made", args.data.display()))?;
        let shape = Shape { nodes: args.nodes.unwrap_or(3), groups: args.groups.unwrap_or(8) };
        std::fs::write(&file, serde_json::to_string(&shape)?)
            .with_context(|| format!("{} cannot be written", file.display()))?;
        return Ok(shape);
    }
    let text =
        std::fs::read_to_string(&file).with_context(|| format!("{} cannot be read", file.display()))?;
    let held: Shape =
        serde_json::from_str(&text).with_context(|| format!("{} is damaged", file.display()))?;
    let wanted =
        Shape { nodes: args.nodes.unwrap_or(held.nodes), groups: args.groups.unwrap_or(held.groups) };
    ensure!(
        wanted == held,
        "{} holds a cluster of {} nodes and {} groups: leave --nodes and --groups out to go on with it, or name \
         another --data for a new one",
        args.data.display(),
        held.nodes,
        held.groups
    );
    Ok(held)
}

fn config(args: &DevArgs, id: u16) -> Result<Config> {
    let first = u32::from(args.port) + u32::from(PORTS_PER_NODE) * u32::from(id - 1);
    ensure!(first + 2 <= u32::from(u16::MAX), "--port {} leaves no ports for node {id}", args.port);
    let mut sources = Sources::default();
    // All nodes stop together, so there is nobody to hand leadership over to.
    sources.flag("node.handover_timeout_ms=0");
    args.settings.iter().for_each(|setting| sources.flag(setting));
    sources.flag(&format!("node.id={id}"));
    sources.flag(&format!("node.data_dir={}", args.data.join(format!("n{id}")).display()));
    for (port, name) in (first..).zip(["listen.peer", "listen.client", "listen.http"]) {
        sources.flag(&format!("{name}=127.0.0.1:{port}"));
    }
    Ok(sources.load()?)
}

/// The nodes of this process.
struct Cluster {
    stop: CancellationToken,
    nodes: JoinSet<Result<(), NodeError>>,
}

impl Cluster {
    async fn start(configs: &[Config]) -> Result<Cluster> {
        let mut cluster = Cluster { stop: CancellationToken::new(), nodes: JoinSet::new() };
        for config in configs {
            match Node::build(config.clone()).await {
                Ok(node) => drop(cluster.nodes.spawn(node.run(cluster.stop.clone().cancelled_owned()))),
                Err(error) => {
                    cluster.stop().await?;
                    return Err(error.into());
                }
            }
        }
        Ok(cluster)
    }

    /// Completes when a node stops by itself.
    async fn ended(&mut self) -> Result<()> {
        match self.nodes.join_next().await {
            Some(ended) => Ok(ended??),
            None => bail!("there is no node"),
        }
    }

    async fn stop(&mut self) -> Result<()> {
        self.stop.cancel();
        let mut first_failure = Ok(());
        while let Some(ended) = self.nodes.join_next().await {
            let ended = ended.map_err(anyhow::Error::from).and_then(|ended| Ok(ended?));
            first_failure = first_failure.and(ended);
        }
        first_failure
    }
}

/// Makes the cluster, or waits until it is complete again; then spreads the leaders.
async fn form(configs: &[Config], groups: u32) -> Result<()> {
    let endpoints: Vec<String> = configs.iter().map(Config::client_address).collect();
    let client = Client::connect(endpoints).await?;
    // Two replicas would survive no more than one does.
    let replicas = if configs.len() < 3 { 1 } else { 3 };
    let init = ClusterInit { ready_timeout: READY_TIMEOUT, ..ClusterInit::new(groups, replicas) };
    let report = client.admin().cluster_init(init, show).await?;
    println!("Cluster {}, {}", report.cluster_id, if report.created { "just made" } else { "back again" });
    spread_leaders(&client.admin(), &report.layout).await;
    Ok(())
}

fn show(progress: InitProgress) {
    if let InitProgress::Ready { ready, total } = progress
        && ready == total
    {
        println!("All {total} groups have a leader");
    }
}

/// Leaders start where the layout wants them; after a restart they are anywhere.
async fn spread_leaders(admin: &Admin, layout: &placement::Layout) {
    for group in &layout.groups {
        if let Err(error) = admin.transfer_leader(group.group_id, Some(group.preferred_leader)).await {
            tracing::warn!(group = group.group_id, %error, "the leader stays where it is");
        }
    }
}

fn announce(configs: &[Config]) {
    println!();
    for config in configs {
        let id = config.node.id.unwrap_or_default();
        println!(
            "  node {id}   clients {}   status page http://{}/",
            config.client_address(),
            config.listen.http
        );
    }
    let first = configs.first().map(Config::client_address).unwrap_or_default();
    println!("\nType in another terminal:\n");
    println!("  dtkv -e {first} put hello world");
    println!("  dtkv -e {first} get hello\n");
    println!("Ctrl-C stops the cluster; the same command on {} goes on with it.", shown_data(configs));
}

fn shown_data(configs: &[Config]) -> String {
    let parent = configs.first().and_then(|config| config.node.data_dir.parent());
    parent.unwrap_or(Path::new(".")).display().to_string()
}
