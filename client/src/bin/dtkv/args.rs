//! The command line, as clap sees it. The help texts are the manual, so they carry examples.

mod admin;
mod bench;
mod owners;
mod values;

pub use admin::{ClusterCommand, GroupCommand, NodeCommand};
pub use bench::{Api, BenchArgs, GroupChoice, Operation};
pub use owners::{Guarded, KeepAliveArgs, LockArgs, OwnedArgs, TtlArgs, TxnArgs};
pub use values::{Freshness, Layout, OwnerId, Rooted, deserialize_duration, parse_duration};

use clap::{Args, Parser, Subcommand, ValueEnum};
use std::path::PathBuf;
use std::time::Duration;

const ABOUT: &str = "Talks to a DtKV cluster: keys and values, groups, nodes, and a benchmark.";

const EXIT_CODES: &str = "\
Exit codes:
  0  done
  1  the store said no: key not found, compare-and-set mismatch, an item of a batch refused ...
  2  the command line or the request is not valid; nothing was sent
  3  definite failure: it did not happen, trying again is safe
  4  unknown outcome: it may have happened, read before you write again

Configuration: flags win over DTKV_* variables, these over the file named by --config, by
DTKV_CONFIG, or ~/.config/dtkv/config.toml:
  endpoints = [\"10.0.0.1:9332\", \"10.0.0.2:9332\"]
  group = 1
  timeout = \"5s\"
  consistency = \"linearizable\"
  output = \"table\"

Examples:
  dtkv status
  dtkv mkdir user
  dtkv put user.alice '{\"age\": 30}'
  dtkv get user.alice
  dtkv -g 7 ls user -o json
  dtkv shell";

/// The `dtkv` command line.
#[derive(Debug, Parser)]
#[command(name = "dtkv", version, about = ABOUT, after_help = EXIT_CODES, max_term_width = 110)]
#[command(subcommand_required = true, arg_required_else_help = true, infer_subcommands = false)]
pub struct Cli {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub command: Command,
}

/// Options that every command takes. What is not given comes from the configuration file.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Global options")]
pub struct Global {
    /// Client addresses (host:port) of one or more nodes; any node finds the others
    #[arg(short, long, global = true, env = "DTKV_ENDPOINTS", hide_env_values = true, value_delimiter = ',')]
    #[arg(value_name = "HOST:PORT")]
    pub endpoints: Vec<String>,
    /// Group that keys belong to
    #[arg(short, long, global = true, env = "DTKV_GROUP", hide_env_values = true, value_name = "ID")]
    pub group: Option<u32>,
    /// Time for one request: 500ms, 5s, 1m
    #[arg(long, global = true, env = "DTKV_TIMEOUT", hide_env_values = true, value_parser = parse_duration)]
    #[arg(value_name = "TIME")]
    pub timeout: Option<Duration>,
    /// How fresh reads must be: linearizable, lease or stale
    #[arg(long, global = true, env = "DTKV_CONSISTENCY", hide_env_values = true, value_enum)]
    #[arg(hide_possible_values = true, value_name = "HOW")]
    pub consistency: Option<Freshness>,
    /// How answers are printed: table (for people) or json (for programs)
    #[arg(short, long, global = true, env = "DTKV_OUTPUT", hide_env_values = true, value_enum)]
    #[arg(hide_possible_values = true, value_name = "HOW")]
    pub output: Option<Layout>,
    /// Identity of this client, which owns temporary nodes and locks: 32 hex digits; random when not given
    #[arg(long, global = true, env = "DTKV_OWNER", hide_env_values = true, value_name = "ID")]
    pub owner: Option<OwnerId>,
    /// Configuration file
    #[arg(long, global = true, env = "DTKV_CONFIG", hide_env_values = true, value_name = "FILE")]
    pub config: Option<PathBuf>,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Write a value
    #[command(after_help = "\
The parent directory must exist (dtkv mkdir), unless -p makes it.
VALUE is taken as it is; - reads standard input, @FILE reads a file, --literal switches both off.

With --ttl the value is temporary: it belongs to --owner (or to a random identity, which the answer
names) and ends unless dtkv ttl or dtkv keep-alive renews it in time.

Examples:
  dtkv put user.alice hello
  dtkv put -p app.db.url postgres://db/app
  dtkv put config.site @site.json
  echo -n secret | dtkv put token -
  dtkv put node.a up --ttl 30s --owner 000102030405060708090a0b0c0d0e0f
  dtkv put user.alice hello --if-index 4711")]
    Put(PutArgs),
    /// Read values
    #[command(after_help = "\
Prints the value alone, so that it can be used in scripts; --meta and -o json add indexes and times.
Bytes that are not UTF-8 are shown as hex; --raw writes them as they are, without a line end.
Several keys are read at one point in time.

Examples:
  dtkv get user.alice
  dtkv get user.alice --meta
  dtkv get blob --raw > blob.bin
  dtkv get user.alice user.bob -o json
  dtkv get user.alice --consistency stale")]
    Get(GetArgs),
    /// List a directory, sorted
    #[command(after_help = "\
Without DIR it lists the root. All pages are read unless --limit cuts the listing; the answer then
names the token that --continue takes.

Examples:
  dtkv ls
  dtkv ls user -l
  dtkv ls user -r --keys-only
  dtkv ls user --limit 100 --continue 757365722e62")]
    Ls(LsArgs),
    /// Remove values and directories
    #[command(after_help = "\
A directory must be empty, unless -r removes all that is below it. An absent key is exit code 1,
with -f it is fine.

Examples:
  dtkv rm user.alice
  dtkv rm -r user
  dtkv rm -f app.old app.older
  dtkv rm app.job --guard app.lock:4711")]
    Rm(RmArgs),
    /// Make a directory
    #[command(after_help = "\
A directory that is there already is fine.

Examples:
  dtkv mkdir user
  dtkv mkdir -p app.db.pool
  dtkv mkdir session.7 --ttl 5m")]
    Mkdir(MkdirArgs),
    /// Compare and set: change a value only if it is what you expect
    #[command(after_help = "\
Say what you expect (--expect, --absent or --index) and what shall be there then (--set, --delete).
A mismatch changes nothing and is exit code 1. --index compares the node's update index, which the
same value written again does not pass; dtkv get KEY --meta shows it.

Examples:
  dtkv cas leader --absent --set node-1
  dtkv cas leader --expect node-1 --set node-2
  dtkv cas leader --index 4711 --delete")]
    Cas(CasArgs),
    /// Watch a key and print what changes, until interrupted
    #[command(after_help = "\
Prints the latest state of KEY at once and whenever it changes; of a directory, whenever anything
below it changes. States that follow each other quickly may be left out, the last one never is.
--events prints every change at or below KEY instead, in order.
The watch goes on by itself when nodes or connections are lost. -o json prints one object a line.

Examples:
  dtkv watch app.leader
  dtkv watch app --events
  dtkv watch . --events --from 4711 --kinds put,remove -o json
  dtkv watch job.done -n 2          # the present state and the next one")]
    Watch(WatchArgs),
    /// Write many values, one log entry for many of them
    #[command(after_help = "\
Each line of FILE (or of standard input) is one item; words are quoted as in a shell:
  put KEY VALUE
  rm KEY
  # a comment
Neighbouring puts, or removes, go into one log entry: in order, in one step, without rollback.
Each item has its own answer; the exit code is 1 when one was refused.

Examples:
  dtkv batch items.txt
  printf 'put a 1\\nput b 2\\nrm c\\n' | dtkv batch
  dtkv batch items.txt --items 100 --stop-on-refusal")]
    Batch(BatchArgs),
    /// Give a temporary node a new time to live
    #[command(after_help = "\
Only its owner may do so; name it with --owner or DTKV_OWNER.

Examples:
  dtkv ttl node.a 30s --owner 000102030405060708090a0b0c0d0e0f")]
    Ttl(TtlArgs),
    /// Renew everything that an owner has: temporary nodes and held locks
    #[command(after_help = "\
Each gets its own time to live anew. With --every it goes on until it is interrupted; the exit code is 1
when nothing is owned.

Examples:
  dtkv keep-alive --owner 000102030405060708090a0b0c0d0e0f
  dtkv keep-alive --every 10s --owner 000102030405060708090a0b0c0d0e0f")]
    KeepAlive(KeepAliveArgs),
    /// List what an owner has
    #[command(after_help = "\
Examples:
  dtkv owned 000102030405060708090a0b0c0d0e0f
  DTKV_OWNER=000102030405060708090a0b0c0d0e0f dtkv owned -l")]
    Owned(OwnedArgs),
    /// Remove everything that an owner has, and give up its locks
    #[command(after_help = "\
Temporary directories go with all that is below them.

Examples:
  dtkv drop-owner --owner 000102030405060708090a0b0c0d0e0f")]
    DropOwner,
    /// Run a command while holding a lock
    #[command(after_help = "\
Takes the lock, runs the command, renews the lock while it runs, and gives it up. When the lock is lost,
the command gets SIGTERM, and SIGKILL after the grace period. The lock's parent directory must exist.

The command finds in its environment:
  DTKV_LOCK           the lock's key
  DTKV_FENCING_TOKEN  the number of this grant, higher than all before
  DTKV_GUARD          both, for --guard: writes are refused once somebody else got the lock

Exit codes: that of the command, 128 + N when signal N ended it, and
  123  the lock was lost and the command was stopped
  124  the lock was not granted in time; the command was not run
  126  the command could not be run
  127  the command was not found
1 to 4 as everywhere when the lock could not be asked for.

Examples:
  dtkv lock app.backup -- ./backup.sh
  dtkv lock app.job --wait 1m --hold 10s -- sh -c 'dtkv put app.state mine --guard \"$DTKV_GUARD\"'")]
    Lock(LockArgs),
    /// Compare and do: all of it or nothing
    #[command(after_help = "\
The transaction is read from FILE or from standard input, one condition or operation a line, words
quoted as in a shell:
  when value KEY == VALUE        (also !=, <, >)
  when index KEY == N            index of the last change; created KEY: index of the creation
  when token LOCK == N           fencing token of the lock's holder, 0 = free
  when exists KEY                when absent KEY
  then OPERATION                 when all conditions hold
  else OPERATION                 when one does not
Operations:
  put KEY VALUE [-p] [--ttl TIME] [--if-index N]      mkdir KEY [-p] [--ttl TIME]
  rm KEY [-r] [--if-index N]     ttl KEY TIME         get KEY
  cas KEY EXPECTED|--absent NEW|--delete
JSON does as well: {\"when\": [\"absent a\"], \"then\": [\"put a 1\"], \"else\": [\"get a\"]}, or words in
arrays: [\"put\", \"a\", \"1\"].
The exit code is 1 when the conditions did not hold or an operation was refused; then nothing happened.

Examples:
  dtkv txn transfer.txn
  printf 'when absent leader\\nthen put leader me\\nelse get leader\\n' | dtkv txn")]
    Txn(TxnArgs),
    /// Show the groups: leader, members, how far each replica is
    #[command(after_help = "Examples:\n  dtkv groups\n  dtkv groups -o json")]
    Groups,
    /// Show the nodes: address, state, replicas, leaders
    #[command(after_help = "Examples:\n  dtkv nodes\n  dtkv nodes -o json")]
    Nodes,
    /// Create, change and destroy a group
    #[command(subcommand)]
    Group(GroupCommand),
    /// Drain nodes and move leaders away from them
    #[command(subcommand)]
    Node(NodeCommand),
    /// Turn started nodes into a cluster, and add nodes to it
    #[command(subcommand)]
    Cluster(ClusterCommand),
    /// Show the cluster at one glance, with warnings
    #[command(after_help = "\
The exit code is 1 when there is a warning, so that scripts can ask for health.

Examples:
  dtkv status
  dtkv status -o json")]
    Status,
    /// Compare the replicas of a group by a digest of their trees
    #[command(after_help = "\
Replicas at the same applied index must have the same digest; exit code 1 says that they differ.

Examples:
  dtkv digest
  dtkv digest 1 2 3")]
    Digest(DigestArgs),
    /// Show the limits that requests are held to
    #[command(after_help = "Examples:\n  dtkv limits")]
    Limits,
    /// Measure puts and gets
    Bench(BenchArgs),
    /// Type commands at a prompt
    #[command(after_help = "\
Inside, the same commands work without the word dtkv. `use 7` chooses group 7, `help` lists the
commands, `exit` or Ctrl-D leaves. The history is kept in ~/.local/state/dtkv/history.

Examples:
  dtkv shell
  dtkv -g 7 shell")]
    Shell,
    /// Print a completion script for a shell
    #[command(after_help = "\
Examples:
  dtkv completions bash > /etc/bash_completion.d/dtkv
  dtkv completions zsh > ~/.zfunc/_dtkv")]
    Completions {
        /// Which shell
        shell: clap_complete::Shell,
    },
}

/// Arguments of `put`.
#[derive(Args, Debug)]
pub struct PutArgs {
    /// Dotted key
    pub key: String,
    /// The value; - = standard input, @FILE = a file
    #[arg(allow_hyphen_values = true)]
    pub value: String,
    /// Make missing parent directories
    #[arg(short = 'p', long)]
    pub create_parents: bool,
    /// Take VALUE as it is, also if it begins with @ or is -
    #[arg(long)]
    pub literal: bool,
    /// Only while the node was last changed at this index; 0 = while it does not exist
    #[arg(long, value_name = "UPDATE_INDEX")]
    pub if_index: Option<u64>,
    /// Make a temporary value that ends after so long: 500ms, 30s, 5m, 1h
    #[arg(long, value_parser = parse_duration, value_name = "TIME")]
    pub ttl: Option<Duration>,
    #[command(flatten)]
    pub guarded: Guarded,
}

/// Arguments of `get`.
#[derive(Args, Debug)]
pub struct GetArgs {
    /// Dotted keys; . is the root
    #[arg(required = true, value_name = "KEY")]
    pub keys: Vec<Rooted>,
    /// Write the bytes as they are, without a line end
    #[arg(long, conflicts_with = "meta")]
    pub raw: bool,
    /// Show kind, indexes and times as well
    #[arg(short, long)]
    pub meta: bool,
}

/// Arguments of `ls`.
#[derive(Args, Debug)]
pub struct LsArgs {
    /// Directory; . or nothing is the root
    #[arg(default_value = ".")]
    pub dir: Rooted,
    /// Show indexes and times as well
    #[arg(short, long)]
    pub long: bool,
    /// Everything below the directory, depth first
    #[arg(short, long)]
    pub recursive: bool,
    /// Leave the values out
    #[arg(short, long)]
    pub keys_only: bool,
    /// Stop after so many nodes
    #[arg(short = 'n', long, value_parser = clap::value_parser!(u32).range(1..), value_name = "N")]
    pub limit: Option<u32>,
    /// Go on where a listing with --limit stopped
    #[arg(long = "continue", value_name = "TOKEN", value_parser = values::parse_hex)]
    pub continuation: Option<bytes::Bytes>,
}

/// Arguments of `rm`.
#[derive(Args, Debug)]
pub struct RmArgs {
    /// Dotted keys
    #[arg(required = true, value_name = "KEY")]
    pub keys: Vec<String>,
    /// Remove directories with all that is below them
    #[arg(short, long)]
    pub recursive: bool,
    /// An absent key is fine
    #[arg(short, long)]
    pub force: bool,
    /// Only while the node was last changed at this index
    #[arg(long, value_name = "UPDATE_INDEX")]
    pub if_index: Option<u64>,
    #[command(flatten)]
    pub guarded: Guarded,
}

/// Arguments of `mkdir`.
#[derive(Args, Debug)]
pub struct MkdirArgs {
    /// Dotted key
    pub key: String,
    /// Make missing parent directories
    #[arg(short = 'p', long)]
    pub create_parents: bool,
    /// Make a temporary directory that ends after so long, with all that is below it: 30s, 5m, 1h
    #[arg(long, value_parser = parse_duration, value_name = "TIME")]
    pub ttl: Option<Duration>,
    #[command(flatten)]
    pub guarded: Guarded,
}

/// Arguments of `cas`.
#[derive(Args, Debug)]
pub struct CasArgs {
    /// Dotted key
    pub key: String,
    #[command(flatten)]
    pub expected: CasExpected,
    #[command(flatten)]
    pub wanted: CasWanted,
    /// Take values as they are, also if they begin with @ or are -
    #[arg(long)]
    pub literal: bool,
    #[command(flatten)]
    pub guarded: Guarded,
}

/// What a compare-and-set expects.
#[derive(Args, Debug)]
#[group(required = true, multiple = false)]
pub struct CasExpected {
    /// The key holds this value
    #[arg(long, value_name = "VALUE", allow_hyphen_values = true)]
    pub expect: Option<String>,
    /// The key does not exist
    #[arg(long)]
    pub absent: bool,
    /// The node was last changed at this index
    #[arg(long, value_name = "UPDATE_INDEX")]
    pub index: Option<u64>,
}

/// What a compare-and-set leaves.
#[derive(Args, Debug)]
#[group(required = true, multiple = false)]
pub struct CasWanted {
    /// Write this value; - = standard input, @FILE = a file
    #[arg(long, value_name = "VALUE", allow_hyphen_values = true)]
    pub set: Option<String>,
    /// Delete the key
    #[arg(long)]
    pub delete: bool,
}

/// Arguments of `watch`.
#[derive(Args, Debug)]
pub struct WatchArgs {
    /// Dotted key, there or not; . is the root
    pub key: Rooted,
    /// Every change at or below the key, not its latest state
    #[arg(short = 'E', long)]
    pub events: bool,
    /// Events: the first index wanted. States: only later ones than this
    #[arg(long, value_name = "INDEX")]
    pub from: Option<u64>,
    /// Leave the values out
    #[arg(short, long)]
    pub keys_only: bool,
    /// Only these events
    #[arg(long, value_enum, value_delimiter = ',', requires = "events", value_name = "KIND")]
    pub kinds: Vec<WatchKind>,
    /// End after so many lines
    #[arg(short = 'n', long, value_parser = clap::value_parser!(u64).range(1..), value_name = "N")]
    pub count: Option<u64>,
}

/// Kinds of events.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum WatchKind {
    Put,
    Remove,
    Expire,
    Mkdir,
}

/// Arguments of `batch`.
#[derive(Args, Debug)]
pub struct BatchArgs {
    /// File with one item a line; - = standard input
    #[arg(default_value = "-")]
    pub file: String,
    /// Most items in one log entry
    #[arg(short = 'n', long, default_value_t = 1024, value_parser = clap::value_parser!(u32).range(1..=1024))]
    #[arg(value_name = "N")]
    pub items: u32,
    /// Make missing parent directories
    #[arg(short = 'p', long)]
    pub create_parents: bool,
    /// Send no further log entry after one with a refused item
    #[arg(long)]
    pub stop_on_refusal: bool,
    /// Print only refused items and the totals
    #[arg(short, long)]
    pub quiet: bool,
    #[command(flatten)]
    pub guarded: Guarded,
}

/// Arguments of `digest`.
#[derive(Args, Debug)]
pub struct DigestArgs {
    /// Groups; all when none is named
    #[arg(value_name = "GROUP")]
    pub groups: Vec<u32>,
}

#[cfg(test)]
mod tests;
