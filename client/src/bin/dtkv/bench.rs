//! `dtkv bench`: puts and gets as fast as they go, or at a given rate; and watches.
//!
//! The generator must cost less than what it measures: keys and the value are made beforehand, one
//! producer thread for each connection hands operations to the client without waiting for any of
//! them, and answers are recorded by callback, where they arrive.

mod gate;
mod issue;
mod load;
mod record;
mod report;
mod watch;
mod work;

use crate::args::{Api, BenchArgs, GroupChoice, Operation};
use crate::context::{self, Context};
use crate::fault::{Exit, Fault};
use crate::output::count;
use dtkv_client::{Client, Group};
use futures::stream::{self, StreamExt, TryStreamExt};
use issue::{Awaited, Connection, Submitted, Unary};
use report::{BenchReport, Run};
use std::sync::Arc;
use work::Work;

/// Batches written at once before reads are measured.
const PREFILL_BATCHES: usize = 16;
/// Bytes of values in one of them.
const PREFILL_BYTES: usize = 1 << 20;
/// Directory of the keys.
const DIRECTORY: &str = "bench";

pub async fn run(context: &Context, args: BenchArgs) -> Result<Exit, Fault> {
    if args.operation == Operation::Watch {
        return watch::run(context, &args).await;
    }
    let groups = chosen_groups(context, &args).await?;
    let work = Arc::new(Work::new(groups.len(), &args));
    let connections = connect(context, &args, &groups, &work).await?;
    let first: Vec<Group> = groups.iter().map(|&id| context.client.group(id)).collect();
    prepare(&first, &work, &args).await?;
    let mut runs: Vec<Run> = Vec::new();
    for number in 1..=args.runs {
        runs.push(load::measure(&connections, &work, &args, number).await?);
    }
    let report = BenchReport::new(&args, context.settings.freshness, groups, runs);
    let exit = if report.is_all_failed() { Exit::Failed } else { Exit::Done };
    context.print(&report)?;
    Ok(exit)
}

async fn chosen_groups(context: &Context, args: &BenchArgs) -> Result<Vec<u32>, Fault> {
    match &args.groups {
        None => Ok(vec![context.settings.group]),
        Some(GroupChoice::List(groups)) => Ok(groups.clone()),
        Some(GroupChoice::All) => {
            let report = context.admin().groups().await?;
            if report.groups.is_empty() {
                return Err(Fault::refused("there are no groups; see dtkv cluster init --help"));
            }
            Ok(report.groups.iter().map(|group| group.group_id).collect())
        }
    }
}

/// Independent clients: each has its own connections to the nodes.
async fn connect(
    context: &Context,
    args: &BenchArgs,
    groups: &[u32],
    work: &Arc<Work>,
) -> Result<Vec<Connection>, Fault> {
    let leaders = match args.api {
        Api::Unary => issue::leaders(context, groups).await?,
        Api::Async | Api::Await => Vec::new(),
    };
    let mut connections = Vec::new();
    for _ in 0..args.connections {
        connections.push(match args.api {
            Api::Async => {
                Connection::Submitted(Submitted::new(client_groups(context, args, groups).await?, work))
            }
            Api::Await => {
                Connection::Awaited(Awaited::new(client_groups(context, args, groups).await?, work))
            }
            Api::Unary => Connection::Unary(Unary::connect(&leaders, context, work)?),
        });
    }
    Ok(connections)
}

/// Twice the room that the load needs: the client frees room after it has called back.
async fn client_groups(context: &Context, args: &BenchArgs, groups: &[u32]) -> Result<Vec<Group>, Fault> {
    let in_flight = args.max_in_flight.div_ceil(args.connections) as usize;
    let op_bytes = args.value_bytes as usize + 64;
    let mut builder = Client::builder()
        .in_flight_ops_max(2 * in_flight + 1024)
        .in_flight_bytes_max((2 * in_flight + 1024) * op_bytes + (64 << 20));
    if let Some(ops) = args.frame_ops {
        builder = builder.frame_ops_max(ops as usize);
    }
    let client = context::connect(builder, &context.settings).await?;
    Ok(groups.iter().map(|&id| client.group(id)).collect())
}

/// Makes the directory, and the keys when they will be read.
async fn prepare(groups: &[Group], work: &Work, args: &BenchArgs) -> Result<(), Fault> {
    let says = |group: &Group| format!("preparing group {}", group.id());
    stream::iter(groups.iter().map(Ok))
        .try_for_each_concurrent(PREFILL_BATCHES, |group| async move {
            group.mkdir(DIRECTORY).await.map(drop).map_err(|e| Fault::from(e).at(says(group)))
        })
        .await?;
    if args.read_percent() == 0 || args.no_prefill {
        return Ok(());
    }
    if !args.quiet {
        eprintln!("writing {} to each of {}", count(work.keys.len(), "key"), count(groups.len(), "group"));
    }
    let items = (PREFILL_BYTES / work.value.len()).clamp(1, 1000);
    let batches = groups.iter().flat_map(|group| work.keys.chunks(items).map(move |keys| (group, keys)));
    let writes = batches.map(|(group, keys)| async move {
        let written = group.batch_put(keys.iter().map(|key| (key, &work.value))).await;
        match written.map_err(|e| Fault::from(e).at(says(group)))? {
            written if written.is_all_done() => Ok(()),
            written => Err(refused(group, &written.codes)),
        }
    });
    let mut writes = stream::iter(writes.collect::<Vec<_>>()).buffer_unordered(PREFILL_BATCHES);
    while let Some(written) = writes.next().await {
        written?;
    }
    Ok(())
}

fn refused(group: &Group, codes: &[dtkv_client::v1::Code]) -> Fault {
    let code = codes.iter().find(|code| **code as i32 > 2).map_or("a code", |code| code.as_str_name());
    Fault::refused(format!(
        "group {} answered {code} to keys below {DIRECTORY}; dtkv rm -r {DIRECTORY}",
        group.id()
    ))
}
