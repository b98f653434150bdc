//! CPU time of the tree's operations, and of what a scope adds to them, one thread, decoding included:
//! `cargo bench --profile release -p dtkv-node --bench tree`.

use dtkv_client::packed::scope::Scope;
use dtkv_client::packed::{self, Kind, Op};
use dtkv_node::machine::{Machine, Outcome};
use dtkv_node::tree::{ApplyContext, ListQuery, Tree};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const VALUE_BYTES: usize = 256;
const OPS_PER_ENTRY: usize = 64;

fn key(i: usize, dirs: usize) -> Vec<u8> {
    format!("bench{:04}.key-{:010}", i % dirs, i).into_bytes()
}

/// Keys in an order that has nothing to do with theirs.
fn shuffled(keys: usize) -> impl Iterator<Item = usize> {
    (0..keys).map(move |i| i.wrapping_mul(7_368_787) % keys)
}

fn entries(kind: Kind, keys: usize, dirs: usize) -> Vec<Vec<u8>> {
    let order: Vec<usize> = shuffled(keys).collect();
    let value = [7; VALUE_BYTES];
    let pack = |chunk: &[usize]| {
        let mut ops = Vec::new();
        for i in chunk {
            let value = if kind == Kind::Put { &value[..] } else { &[] };
            let mut op = Op::new(kind, &[], value);
            let key = key(*i, dirs);
            op.key = &key;
            op.pack(&mut ops);
        }
        ops
    };
    order.chunks(OPS_PER_ENTRY).map(pack).collect()
}

struct Run {
    tree: Tree,
    index: u64,
    results: Vec<u8>,
}

impl Run {
    fn apply(&mut self, ops: &[u8]) {
        self.index += 1;
        self.results.clear();
        let at = ApplyContext { index: self.index, time_ms: self.index, clock_ms: self.index };
        assert_eq!(self.tree.apply(at, ops, &mut self.results), Ok(()));
        std::hint::black_box(self.tree.take_events());
    }
}

/// CPU time of this thread, so that other work on the machine counts less.
fn cpu_ns() -> u64 {
    // The kernel brings the figure up to date when it schedules.
    std::thread::yield_now();
    let schedstat = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    schedstat.split(' ').next().and_then(|ns| ns.parse().ok()).unwrap_or(0)
}

fn measure(what: &str, count: usize, work: impl FnOnce()) {
    let start = cpu_ns();
    work();
    println!("  {what:<28} {:>8.0} ns", (cpu_ns() - start) as f64 / count as f64);
}

fn bench(keys: usize, dirs: usize) {
    println!("{keys} keys of {VALUE_BYTES} bytes in {dirs} directories");
    let mut run = Run { tree: Tree::new(), index: 0, results: Vec::new() };
    for dir in 0..dirs {
        let mut ops = Vec::new();
        Op::new(Kind::Mkdir, format!("bench{dir:04}").as_bytes(), &[]).pack(&mut ops);
        run.apply(&ops);
    }
    let puts = entries(Kind::Put, keys, dirs);
    measure("insert", keys, || puts.iter().for_each(|ops| run.apply(ops)));
    measure("update, changes not taken", keys, || puts.iter().for_each(|ops| run.apply(ops)));
    let mut taken = None;
    measure("take_dirty", keys, || taken = Some(run.tree.take_dirty()));
    let mut record = Vec::new();
    measure("encode", keys, || {
        for (_, node) in taken.iter().flat_map(|dirty| &dirty.changed) {
            record.clear();
            node.encode(&mut record);
        }
    });
    measure("update, changes just taken", keys, || puts.iter().for_each(|ops| run.apply(ops)));
    drop(taken);
    let lookups: Vec<Vec<u8>> = shuffled(keys).map(|i| key(i, dirs)).collect();
    let mut out = Vec::new();
    measure("get", keys, || {
        for key in &lookups {
            out.clear();
            run.tree.pack_get(key, 0, &mut out);
        }
    });
    measure("list, per node", keys, || list_all(&run.tree));
    measure("digest, per node", keys, || {
        std::hint::black_box(run.tree.digest());
    });
    let removes = entries(Kind::Remove, keys, dirs);
    println!("  {} bytes for each key", run.tree.bytes() / run.tree.node_count());
    measure("remove", keys, || removes.iter().for_each(|ops| run.apply(ops)));
    puts.iter().for_each(|ops| run.apply(ops));
    let mut whole = Vec::new();
    Op { recursive: true, ..Op::new(Kind::Remove, b"bench0000", &[]) }.pack(&mut whole);
    measure("remove -r of a directory", keys / dirs, || run.apply(&whole));
}

fn list_all(tree: &Tree) {
    let mut continuation = Vec::new();
    loop {
        let query = ListQuery { recursive: true, continuation: &continuation, ..ListQuery::default() };
        let Ok(page) = tree.list(&query) else { return };
        continuation = page.continuation;
        if continuation.is_empty() {
            return;
        }
    }
}

const CLIENTS: u64 = 32;

/// The same entries in frames of so many operations, each behind a scope of one of many clients that
/// wait for the answer to every frame.
fn scoped(entries: &[Vec<u8>], ops_per_frame: usize) -> Vec<Vec<u8>> {
    let mut frames = 0;
    let pack = |entry: &Vec<u8>| {
        let ops: Vec<Op<'_>> = packed::ops(entry).flatten().collect();
        let mut bytes = Vec::new();
        for frame in ops.chunks(ops_per_frame) {
            let (client, sequence) = (frames % CLIENTS, frames / CLIENTS + 1);
            frames += 1;
            let mut client_id = [0; 16];
            client_id[..8].copy_from_slice(&client.wrapping_mul(0x9E37_79B9_7F4A_7C15).to_le_bytes());
            let operations = frame.len() as u16;
            Scope { client_id, sequence, acknowledged_below: sequence, operations, is_retry: false }
                .pack(&mut bytes);
            frame.iter().for_each(|op| op.pack(&mut bytes));
        }
        bytes
    };
    entries.iter().map(pack).collect()
}

fn bench_scopes(keys: usize) {
    println!("{keys} keys of {VALUE_BYTES} bytes, {CLIENTS} clients, entries of {OPS_PER_ENTRY} updates");
    let plain = entries(Kind::Put, keys, 1);
    let mut mkdir = Vec::new();
    Op::new(Kind::Mkdir, b"bench0000", &[]).pack(&mut mkdir);
    let (one, whole) = (scoped(&plain, 1), scoped(&plain, OPS_PER_ENTRY));
    let cases = [("no scope", &plain), ("a scope for each entry", &whole), ("a scope for each update", &one)];
    for round in 0..2 {
        for (what, entries) in cases {
            let (mut machine, mut index) = (Machine::default(), 1);
            let mut apply = |ops: &[u8]| {
                index += 1;
                let mut outcome = Outcome::default();
                let at = ApplyContext { index, time_ms: index, clock_ms: index };
                assert_eq!(machine.apply(at, ops, &mut outcome), Ok(()));
                assert!(outcome.repeats.is_empty());
                std::hint::black_box(machine.tree.take_events());
            };
            apply(&mkdir);
            plain.iter().for_each(|ops| apply(ops));
            measure(&format!("{what}, round {round}"), keys, || entries.iter().for_each(|ops| apply(ops)));
        }
    }
}

fn main() {
    // The large ones first: fresh memory from the kernel would be most of what the small one costs.
    bench(1_000_000, 1_000);
    bench(1_000_000, 1);
    bench(10_000, 1);
    bench_scopes(200_000);
}
