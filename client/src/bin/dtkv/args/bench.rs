//! Arguments of the benchmark.

use super::parse_duration;
use clap::{Args, ValueEnum};
use std::str::FromStr;
use std::time::Duration;

const HELP: &str = "\
Closed loop by default: so many operations are kept in flight (-p, over all connections). --rate
makes it an open loop: operations start on a schedule, and latency counts from the scheduled time,
so that a stall is seen by every operation it delayed. Keys are bench.key0 .. below the directory
`bench` of each group; they are written before reads are measured, and stay.

watch: WATCHERS watches over -c clients are told of --rate writes a second (10,000 unless given) to
WATCHED_KEYS keys below `bench-watch`; latency counts from the acknowledgement of the write.

--api:  async  one producer thread for each connection, answers by callback (the fastest)
        await  a task for each operation in flight, on the client's futures
        unary  the same with plain unary gRPC calls to the leader, as any language would do

Examples:
  dtkv bench put -d 10s
  dtkv bench get -c 2 -p 10000
  dtkv bench put --value-bytes 1024 --rate 50000
  dtkv bench --mix 90 --groups all --runs 3 -o json
  dtkv bench put --api unary -p 100
  dtkv bench put -p 1        # one write at a time
  dtkv bench watch -c 20 --watchers 10000 --watched-keys 100 --rate 10000";

/// Arguments of `bench`.
#[derive(Args, Clone, Debug)]
#[command(after_help = HELP)]
pub struct BenchArgs {
    /// What to measure
    #[arg(value_enum, default_value = "put")]
    pub operation: Operation,
    /// Share of gets in percent, the rest are puts; overrides OPERATION
    #[arg(long, value_name = "READ%", value_parser = clap::value_parser!(u32).range(0..=100))]
    pub mix: Option<u32>,
    /// Size of a value
    #[arg(short = 's', long, default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..=1 << 20))]
    #[arg(value_name = "BYTES")]
    pub value_bytes: u32,
    /// How many different keys in each group; drawn at random
    #[arg(short, long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..))]
    #[arg(value_name = "N")]
    pub keys: u32,
    /// Independent clients, each with connections of its own
    #[arg(short, long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1000))]
    #[arg(value_name = "N")]
    pub connections: u32,
    /// Most operations in flight, over all connections
    #[arg(short = 'p', long, default_value_t = 2000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    #[arg(value_name = "N")]
    pub max_in_flight: u32,
    /// Time measured
    #[arg(short, long, default_value = "10s", value_parser = parse_duration, value_name = "TIME")]
    pub duration: Duration,
    /// Time before that, not measured
    #[arg(short, long, default_value = "3s", value_parser = parse_duration, value_name = "TIME")]
    pub warm_up: Duration,
    /// Open loop: start so many operations a second, over all connections
    #[arg(long, value_name = "OPS/S", value_parser = clap::value_parser!(u64).range(1..))]
    pub rate: Option<u64>,
    /// Groups to spread operations over: a list, or `all`; without it the group of -g
    #[arg(long, value_name = "LIST|all")]
    pub groups: Option<GroupChoice>,
    /// Most operations that the client puts into one frame
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=256), value_name = "N")]
    pub frame_ops: Option<u32>,
    /// How operations are issued: async, await or unary; see below
    #[arg(long, value_enum, default_value = "async", hide_possible_values = true)]
    pub api: Api,
    /// Measure so often; the minimum, the median and the maximum are shown
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1000))]
    #[arg(value_name = "N")]
    pub runs: u32,
    /// The keys are there already: do not write them before reading
    #[arg(long)]
    pub no_prefill: bool,
    /// watch: how many watches, over all connections
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    #[arg(value_name = "N")]
    pub watchers: u32,
    /// watch: how many keys they watch, in turn; each write is told WATCHERS / N times
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    #[arg(value_name = "N")]
    pub watched_keys: u32,
    /// watch: states instead of events; those in between may be left out
    #[arg(long)]
    pub states: bool,
    /// No line a second on standard error
    #[arg(short, long)]
    pub quiet: bool,
}

impl BenchArgs {
    /// Gets in percent of all operations.
    pub fn read_percent(&self) -> u32 {
        self.mix.unwrap_or(match self.operation {
            Operation::Put | Operation::Watch => 0,
            Operation::Get => 100,
        })
    }
}

/// What to measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Operation {
    Put,
    Get,
    /// Writes, and watches that are told of them
    Watch,
}

/// How operations are issued.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Api {
    Async,
    Unary,
    Await,
}

/// Which groups take part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GroupChoice {
    All,
    List(Vec<u32>),
}

impl FromStr for GroupChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<GroupChoice, String> {
        if text.eq_ignore_ascii_case("all") {
            return Ok(GroupChoice::All);
        }
        let mut groups = Vec::new();
        for part in text.split(',') {
            groups.extend(parse_range(part.trim())?);
        }
        groups.sort_unstable();
        groups.dedup();
        Ok(GroupChoice::List(groups))
    }
}

fn parse_range(text: &str) -> Result<std::ops::RangeInclusive<u32>, String> {
    let bad = |_| format!("`{text}` is not a group id; write 1,2,5 or 1-8 or all");
    let (from, to) = text.split_once('-').unwrap_or((text, text));
    let (from, to): (u32, u32) = (from.parse().map_err(bad)?, to.parse().map_err(bad)?);
    if from > to || to - from >= 100_000 {
        return Err(format!("`{text}` is not a range of at most 100000 groups"));
    }
    Ok(from..=to)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn group_lists_take_ids_ranges_and_all() {
        assert_eq!("all".parse(), Ok(GroupChoice::All));
        assert_eq!("3,1-2,2".parse(), Ok(GroupChoice::List(vec![1, 2, 3])));
        for bad in ["", "a", "3-1", "1,,2", "0-4000000000"] {
            assert!(bad.parse::<GroupChoice>().is_err(), "{bad}");
        }
    }
}
