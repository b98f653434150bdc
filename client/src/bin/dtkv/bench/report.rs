//! How a benchmark's figures look.

use super::record::Latencies;
use crate::args::{Api, BenchArgs, Freshness};
use crate::output::{Report, count, table};
use clap::ValueEnum;
use hdrhistogram::Histogram;
use serde::Serialize;
use std::collections::BTreeMap;
use std::time::Duration;

/// Latencies of one kind of operation, in us.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Latency {
    count: u64,
    mean_us: f64,
    min_us: f64,
    p50_us: f64,
    p90_us: f64,
    p99_us: f64,
    p99_9_us: f64,
    max_us: f64,
}

impl Latency {
    /// One line for people.
    pub(super) fn text(&self) -> String {
        let ms = |us: f64| us / 1000.0;
        format!(
            "p50 {:.2} ms, p90 {:.2} ms, p99 {:.2} ms, p99.9 {:.2} ms, max {:.2} ms",
            ms(self.p50_us),
            ms(self.p90_us),
            ms(self.p99_us),
            ms(self.p99_9_us),
            ms(self.max_us)
        )
    }

    pub(super) fn of(histogram: &Histogram<u64>) -> Option<Latency> {
        let at = |quantile| histogram.value_at_quantile(quantile) as f64 / 1000.0;
        (!histogram.is_empty()).then(|| Latency {
            count: histogram.len(),
            mean_us: (histogram.mean() / 10.0).round() / 100.0,
            min_us: histogram.min() as f64 / 1000.0,
            p50_us: at(0.5),
            p90_us: at(0.9),
            p99_us: at(0.99),
            p99_9_us: at(0.999),
            max_us: histogram.max() as f64 / 1000.0,
        })
    }
}

/// Figures of one run.
#[derive(Clone, Debug, Serialize)]
pub struct Run {
    ops_per_second: f64,
    succeeded: u64,
    failed: u64,
    errors: BTreeMap<String, u64>,
    seconds: f64,
    /// CPU time of the benchmark itself, in cores.
    #[serde(skip_serializing_if = "Option::is_none")]
    client_cpu_cores: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    latency: Option<Latency>,
    #[serde(skip_serializing_if = "Option::is_none")]
    put_latency: Option<Latency>,
    #[serde(skip_serializing_if = "Option::is_none")]
    get_latency: Option<Latency>,
    ops_by_second: Vec<u64>,
}

impl Run {
    pub fn new(
        latencies: Latencies,
        errors: BTreeMap<String, u64>,
        elapsed: Duration,
        cpu: Option<Duration>,
        ops_by_second: Vec<u64>,
    ) -> Run {
        let all = latencies.all();
        let seconds = elapsed.as_secs_f64();
        Run {
            ops_per_second: (all.len() as f64 / seconds).round(),
            succeeded: all.len(),
            failed: errors.values().sum(),
            errors,
            seconds: (seconds * 1000.0).round() / 1000.0,
            client_cpu_cores: cpu.map(|cpu| (cpu.as_secs_f64() / seconds * 100.0).round() / 100.0),
            latency: Latency::of(&all),
            put_latency: Latency::of(&latencies.puts),
            get_latency: Latency::of(&latencies.gets),
            ops_by_second,
        }
    }
}

/// What was asked for.
#[derive(Serialize)]
struct Options {
    read_percent: u32,
    value_bytes: u32,
    keys: u32,
    groups: Vec<u32>,
    connections: u32,
    max_in_flight: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    rate: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    frame_ops: Option<u32>,
    api: String,
    consistency: &'static str,
    duration_ms: u64,
    warm_up_ms: u64,
}

#[derive(Serialize)]
struct Spread {
    min: f64,
    median: f64,
    max: f64,
}

/// What `bench` prints.
#[derive(Serialize)]
pub struct BenchReport {
    version: &'static str,
    options: Options,
    ops_per_second: Spread,
    runs: Vec<Run>,
}

impl BenchReport {
    pub fn new(args: &BenchArgs, freshness: Freshness, groups: Vec<u32>, runs: Vec<Run>) -> BenchReport {
        let api = |api: Api| api.to_possible_value().map(|value| value.get_name().to_string());
        let options = Options {
            read_percent: args.read_percent(),
            value_bytes: args.value_bytes,
            keys: args.keys,
            groups,
            connections: args.connections,
            max_in_flight: args.max_in_flight,
            rate: args.rate,
            frame_ops: args.frame_ops,
            api: api(args.api).unwrap_or_default(),
            consistency: freshness.word(),
            duration_ms: args.duration.as_millis() as u64,
            warm_up_ms: args.warm_up.as_millis() as u64,
        };
        let ops_per_second = spread(runs.iter().map(|run| run.ops_per_second).collect());
        BenchReport { version: env!("CARGO_PKG_VERSION"), options, ops_per_second, runs }
    }

    /// True when nothing at all succeeded.
    pub fn is_all_failed(&self) -> bool {
        self.runs.iter().all(|run| run.succeeded == 0)
    }
}

fn spread(mut rates: Vec<f64>) -> Spread {
    rates.sort_by(f64::total_cmp);
    let at = |index: usize| rates.get(index).copied().unwrap_or(0.0);
    let half = rates.len() / 2;
    let median = if rates.len() % 2 == 1 { at(half) } else { (at(half) + at(half.saturating_sub(1))) / 2.0 };
    Spread { min: at(0), median, max: at(rates.len().saturating_sub(1)) }
}

impl Options {
    fn sentence(&self) -> String {
        let what = match self.read_percent {
            0 => "put".to_string(),
            100 => format!("get ({})", self.consistency),
            reads => format!("{reads} % get ({}), {} % put", self.consistency, 100 - reads),
        };
        let pace = match self.rate {
            Some(rate) => format!("open loop at {rate} ops/s, at most {} in flight", self.max_in_flight),
            None => format!("{} in flight", self.max_in_flight),
        };
        let keys = count(self.keys as usize, "key");
        let groups = count(self.groups.len(), "group");
        format!(
            "{what}, {} B values, {keys} in {groups}, {}, {pace}, {} API\n{} s measured after {} s of warm-up\n\n",
            self.value_bytes,
            count(self.connections as usize, "connection"),
            self.api,
            self.duration_ms as f64 / 1000.0,
            self.warm_up_ms as f64 / 1000.0,
        )
    }
}

impl Report for BenchReport {
    fn text(&self) -> String {
        let header =
            ["RUN", "OP", "OPS/S", "FAILED", "MEAN", "P50", "P90", "P99", "P99.9", "MAX", "CLIENT CPU"];
        let all = match self.options.read_percent {
            0 => "put",
            100 => "get",
            _ => "all",
        };
        let rows = self.runs.iter().enumerate().flat_map(|(at, run)| rows(at + 1, all, run));
        let mut text = self.options.sentence();
        text += &table(&header, &[0, 2, 3, 4, 5, 6, 7, 8, 9, 10], rows);
        if self.runs.len() > 1 {
            let Spread { min, median, max } = self.ops_per_second;
            text += &format!("\nops/s: minimum {min:.0}, median {median:.0}, maximum {max:.0}\n");
        }
        text + &self.error_lines()
    }
}

impl BenchReport {
    fn error_lines(&self) -> String {
        let mut sums: BTreeMap<&str, u64> = BTreeMap::new();
        for (reason, n) in self.runs.iter().flat_map(|run| &run.errors) {
            *sums.entry(reason).or_default() += n;
        }
        let lines: String = sums.iter().map(|(reason, n)| format!("  {n:>9}  {reason}\n")).collect();
        if lines.is_empty() { lines } else { format!("\nfailed:\n{lines}") }
    }
}

/// One line for the run; with a mix, also one for each kind.
fn rows(number: usize, all: &str, run: &Run) -> Vec<Vec<String>> {
    let cpu = run.client_cpu_cores.map_or("-".into(), |cores| format!("{cores:.2}"));
    let mut rows = vec![row(number, all, run.latency.as_ref(), run, run.failed.to_string(), cpu)];
    if all == "all" {
        rows.push(row(number, "get", run.get_latency.as_ref(), run, String::new(), String::new()));
        rows.push(row(number, "put", run.put_latency.as_ref(), run, String::new(), String::new()));
    }
    rows
}

fn row(
    number: usize,
    op: &str,
    latency: Option<&Latency>,
    run: &Run,
    failed: String,
    cpu: String,
) -> Vec<String> {
    let rate = latency.map_or(0.0, |latency| latency.count as f64 / run.seconds);
    let mut row = vec![number.to_string(), op.to_string(), format!("{rate:.0}"), failed];
    let times = latency.map(|l| [l.mean_us, l.p50_us, l.p90_us, l.p99_us, l.p99_9_us, l.max_us].map(micros));
    row.extend(times.unwrap_or_else(|| std::array::from_fn(|_| "-".to_string())));
    row.push(cpu);
    row
}

/// Three digits and a unit.
fn micros(us: f64) -> String {
    match us {
        us if us < 10.0 => format!("{us:.1} us"),
        us if us < 1000.0 => format!("{us:.0} us"),
        us if us < 10_000.0 => format!("{:.2} ms", us / 1e3),
        us if us < 100_000.0 => format!("{:.1} ms", us / 1e3),
        us if us < 1e6 => format!("{:.0} ms", us / 1e3),
        us => format!("{:.2} s", us / 1e6),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::Layout;
    use crate::bench::load::tests::args;
    use crate::output::render;

    fn latencies(puts: u64, gets: u64) -> Latencies {
        let histogram = |n: u64, step| {
            let mut histogram = Histogram::new_with_bounds(100, 120_000_000_000, 3).unwrap();
            (1..=n).for_each(|i| histogram.record(i * step).unwrap());
            histogram
        };
        Latencies { puts: histogram(puts, 2000), gets: histogram(gets, 1000) }
    }

    fn run(puts: u64, gets: u64, errors: &[(&str, u64)]) -> Run {
        let errors = errors.iter().map(|(reason, n)| (reason.to_string(), *n)).collect();
        let cpu = Some(Duration::from_millis(500));
        Run::new(latencies(puts, gets), errors, Duration::from_secs(1), cpu, vec![puts + gets])
    }

    fn report(words: &[&str], runs: Vec<Run>) -> BenchReport {
        BenchReport::new(&args(words), Freshness::Linearizable, vec![1], runs)
    }

    #[test]
    fn one_run_is_one_line() {
        let wanted = "\
put, 256 B values, 10000 keys in 1 group, 1 connection, 2000 in flight, async API
10 s measured after 3 s of warm-up

RUN  OP   OPS/S  FAILED     MEAN      P50      P90      P99    P99.9      MAX  CLIENT CPU
  1  put   1000       0  1.00 ms  1.00 ms  1.80 ms  1.98 ms  2.00 ms  2.00 ms        0.50
";
        assert_eq!(report(&[], vec![run(1000, 0, &[])]).text(), wanted);
    }

    #[test]
    fn mixed_runs_have_a_line_for_each_kind_and_a_spread() {
        let runs = vec![
            run(300, 700, &[]),
            run(200, 400, &[("OVERLOADED", 7)]),
            run(400, 500, &[("OVERLOADED", 1)]),
        ];
        let text = report(&["--mix", "70", "--rate", "1000"], runs).text();
        assert!(text.starts_with("70 % get (linearizable), 30 % put, 256 B values"), "{text}");
        assert!(text.contains("open loop at 1000 ops/s, at most 2000 in flight"), "{text}");
        assert!(text.contains("  1  all   1000       0"), "{text}");
        assert!(text.contains("  2  get    400"), "{text}");
        assert!(
            text.ends_with(
                "\nops/s: minimum 600, median 900, maximum 1000\n\nfailed:\n          8  OVERLOADED\n"
            ),
            "{text}"
        );
    }

    #[test]
    fn json_holds_everything() {
        let report = report(&["get"], vec![run(0, 1000, &[("TIMEOUT", 2)])]);
        let json: serde_json::Value = serde_json::from_str(&render(&report, Layout::Json)).unwrap();
        assert_eq!(json["options"]["read_percent"], 100);
        assert_eq!(json["options"]["consistency"], "linearizable");
        assert_eq!(json["ops_per_second"]["median"], 1000.0);
        assert_eq!(json["runs"][0]["ops_by_second"][0], 1000);
        assert_eq!(json["runs"][0]["errors"]["TIMEOUT"], 2);
        assert_eq!(json["runs"][0]["failed"], 2);
        assert!(json["runs"][0]["get_latency"]["p99_9_us"].as_f64().unwrap() > 990.0);
        assert!(json["runs"][0].get("put_latency").is_none());
    }

    #[test]
    fn nothing_succeeded_is_told() {
        let report = report(&["get"], vec![run(0, 0, &[("TIMEOUT", 2)])]);
        assert!(report.is_all_failed());
        assert!(report.text().contains("  1  get      0       2     -"), "{}", report.text());
    }

    #[test]
    fn medians_of_even_and_odd_numbers() {
        assert_eq!(spread(vec![3.0, 1.0, 2.0]).median, 2.0);
        assert_eq!(spread(vec![4.0, 1.0, 2.0, 3.0]).median, 2.5);
        assert_eq!(spread(Vec::new()).max, 0.0);
    }

    #[test]
    fn latencies_have_three_digits_and_a_unit() {
        let shown = [0.4, 123.4, 1234.0, 45_600.0, 123_456.0, 2_500_000.0].map(micros);
        assert_eq!(shown, ["0.4 us", "123 us", "1.23 ms", "45.6 ms", "123 ms", "2.50 s"]);
    }
}
