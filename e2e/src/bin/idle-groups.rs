//! What idle groups cost: starts nodes with many groups, leaves them alone, and prints the CPU time
//! and the memory of each node.

use anyhow::{Context, Result};
use clap::Parser;
use dtkv_e2e::cluster::{Cluster, ClusterOptions, NodeProcess};
use std::time::Duration;
use tokio::time::Instant;

/// Measures CPU and memory of idle groups on real nodes.
#[derive(Debug, Parser)]
struct Arguments {
    /// Nodes of the cluster
    #[arg(long, default_value_t = 3)]
    nodes: u64,
    /// Groups, each with up to three replicas
    #[arg(long, default_value_t = 1_000)]
    groups: u32,
    /// Seconds to wait before measuring, so that groups can be parked
    #[arg(long, default_value_t = 20)]
    settle: u64,
    /// Seconds to measure
    #[arg(long, default_value_t = 20)]
    seconds: u64,
    /// Write one key to each group before
    #[arg(long)]
    write: bool,
}

#[tokio::main]
async fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let empty = Cluster::start("no-groups", ClusterOptions::new(arguments.nodes, 0)).await?;
    let base: Vec<u64> = memory(&empty)?;
    empty.finish()?;
    let began = Instant::now();
    let cluster =
        Cluster::start("idle-groups", ClusterOptions::new(arguments.nodes, arguments.groups)).await?;
    cluster.wait_ready().await?;
    println!(
        "{} groups on {} nodes ready in {:.1} s",
        arguments.groups,
        arguments.nodes,
        began.elapsed().as_secs_f64()
    );
    if arguments.write {
        for group in cluster.groups() {
            cluster.client().group(group).put("key", "value").await?;
        }
    }
    tokio::time::sleep(Duration::from_secs(arguments.settle)).await;
    measure(&cluster, &arguments, &base).await?;
    cluster.finish()
}

async fn measure(cluster: &Cluster, arguments: &Arguments, base: &[u64]) -> Result<()> {
    let before = cpu(cluster)?;
    let began = Instant::now();
    tokio::time::sleep(Duration::from_secs(arguments.seconds)).await;
    let elapsed_ms = began.elapsed().as_millis() as f64;
    let (after, resident) = (cpu(cluster)?, memory(cluster)?);
    println!("node   CPU of one core   resident   of that without groups   a replica");
    let mut total = 0.0;
    for (at, node) in cluster.node_ids().into_iter().enumerate() {
        let percent = (after[at] - before[at]) as f64 * 100.0 / elapsed_ms;
        let replicas = cluster.admin(node).identity().await?.groups;
        let each = resident[at].saturating_sub(base[at]) / u64::from(replicas.max(1)) / 1024;
        let mib = |bytes: u64| bytes >> 20;
        println!(
            "n{node:<5} {percent:>13.2} % {:>6} MiB {:>20} MiB {each:>7} KiB",
            mib(resident[at]),
            mib(base[at])
        );
        total += percent;
    }
    println!("all nodes together: {total:.2} % of one core over {} s", arguments.seconds);
    Ok(())
}

fn each<T>(cluster: &Cluster, ask: impl Fn(&NodeProcess) -> Result<T>) -> Result<Vec<T>> {
    cluster.node_ids().into_iter().map(|id| ask(cluster.node(id)).with_context(|| format!("n{id}"))).collect()
}

fn cpu(cluster: &Cluster) -> Result<Vec<u64>> {
    each(cluster, NodeProcess::cpu_ms)
}

fn memory(cluster: &Cluster) -> Result<Vec<u64>> {
    each(cluster, NodeProcess::resident_bytes)
}
