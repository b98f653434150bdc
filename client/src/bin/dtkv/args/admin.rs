//! Arguments of the commands that change groups, nodes and the cluster.

use super::parse_duration;
use clap::Subcommand;
use std::time::Duration;

/// Commands on one group.
#[derive(Debug, Subcommand)]
pub enum GroupCommand {
    /// Create a group
    #[command(after_help = "\
Without --members the least loaded nodes are taken. The same command again is fine; other members
for an existing id are refused.

Examples:
  dtkv group create 9
  dtkv group create 9 --replicas 1
  dtkv group create 9 --members 1,2,3
  dtkv group create 9 --members 1,2,3 --leader 2")]
    Create {
        /// Id of the new group
        id: u32,
        /// Node ids of the first voters
        #[arg(short, long, value_delimiter = ',', value_name = "NODE")]
        members: Vec<u64>,
        /// How many voters; without it 3, or the number of nodes when there are fewer
        #[arg(short, long, conflicts_with = "members", value_parser = clap::value_parser!(u32).range(1..=9))]
        replicas: Option<u32>,
        /// Node that should lead first
        #[arg(short, long, requires = "members", value_name = "NODE")]
        leader: Option<u64>,
    },
    /// Show the members of a group and how far each is
    #[command(after_help = "Examples:\n  dtkv group members 1")]
    Members {
        /// Id of the group
        id: u32,
    },
    /// Add a node as learner: it receives the log but has no vote
    #[command(after_help = "\
Returns once the learner has caught up, unless --no-wait.

Examples:
  dtkv group add-learner 1 4")]
    AddLearner {
        /// Id of the group
        id: u32,
        /// Node that becomes a learner
        node: u64,
        /// Return at once
        #[arg(long)]
        no_wait: bool,
    },
    /// Change voters and learners in one joint step
    #[command(after_help = "\
Names the whole new membership. New voters should have been learners before (dtkv group add-learner).
The change is refused when somebody else changed the membership since it was read.

Examples:
  dtkv group change 1 --voters 1,2,4
  dtkv group change 1 --voters 1,2,3 --learners 4")]
    Change {
        /// Id of the group
        id: u32,
        /// Node ids of all voters
        #[arg(long, value_delimiter = ',', required = true, value_name = "NODE")]
        voters: Vec<u64>,
        /// Node ids of all learners
        #[arg(long, value_delimiter = ',', value_name = "NODE")]
        learners: Vec<u64>,
        /// Config index that the change builds on; without it the current one
        #[arg(long, value_name = "INDEX")]
        config_index: Option<u64>,
    },
    /// Hand leadership to another voter
    #[command(after_help = "Examples:\n  dtkv group transfer 1 --to 2\n  dtkv group transfer 1")]
    Transfer {
        /// Id of the group
        id: u32,
        /// The new leader; without it the follower that is furthest
        #[arg(long, value_name = "NODE")]
        to: Option<u64>,
    },
    /// Destroy a group with all its data, on every node
    #[command(after_help = "\
There is no way back. The cluster's id must be typed as confirmation; dtkv status shows it.

Examples:
  dtkv group destroy 9 --confirm 6f1c0a52-...")]
    Destroy {
        /// Id of the group
        id: u32,
        /// Id of the cluster
        #[arg(long, value_name = "CLUSTER_ID")]
        confirm: String,
    },
}

/// Commands on one node.
#[derive(Debug, Subcommand)]
pub enum NodeCommand {
    /// Let a node take no new replicas
    #[command(after_help = "Examples:\n  dtkv node drain 3")]
    Drain {
        /// Id of the node
        id: u64,
    },
    /// Let a drained node take replicas again
    #[command(after_help = "Examples:\n  dtkv node undrain 3")]
    Undrain {
        /// Id of the node
        id: u64,
    },
    /// Move all leaders away from a node for some time, for example before a restart
    #[command(after_help = "\
Examples:
  dtkv node evict-leaders 3 --for 10m
  dtkv node evict-leaders 3 --stop")]
    EvictLeaders {
        /// Id of the node
        id: u64,
        /// How long; it ends by itself
        #[arg(long = "for", value_parser = parse_duration, default_value = "10m", value_name = "TIME")]
        time: Duration,
        /// End it now
        #[arg(long, conflicts_with = "time")]
        stop: bool,
    },
    /// Forget a lost node for ever; its id is never used again
    #[command(after_help = "\
Tells every reachable node to refuse the lost node. It must be in no group any more
(dtkv group change). There is no way back.

Examples:
  dtkv node tombstone 3")]
    Tombstone {
        /// Id of the node
        id: u64,
    },
}

/// Commands on the whole cluster.
#[derive(Debug, Subcommand)]
pub enum ClusterCommand {
    /// Make a cluster of started nodes and create its groups
    #[command(after_help = "\
--endpoints must name every node. Groups get the ids 1 to N, replicas and leaders are spread evenly.
The same command again finishes what an interrupted one left open.

Examples:
  dtkv -e 10.0.0.1:9332,10.0.0.2:9332,10.0.0.3:9332 cluster init --groups 8 --replicas 3")]
    Init {
        /// How many groups
        #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=100_000))]
        groups: u32,
        /// Voters of each group; without it 3, or the number of nodes when there are fewer
        #[arg(long, value_parser = clap::value_parser!(u32).range(1..=9))]
        replicas: Option<u32>,
        /// Id of the new cluster; without it a random one
        #[arg(long, value_name = "ID")]
        cluster_id: Option<String>,
    },
    /// Let started, empty nodes join the cluster
    #[command(after_help = "\
The new nodes hold no replicas yet: see dtkv group add-learner and dtkv group change.

Examples:
  dtkv cluster add-nodes 10.0.0.4:9332 10.0.0.5:9332")]
    AddNodes {
        /// Client addresses of the new nodes
        #[arg(required = true, value_name = "HOST:PORT")]
        addresses: Vec<String>,
    },
}
