//! Random calls against a plain list, with restarts between.

use super::*;
use proptest::prelude::*;

#[derive(Clone, Debug)]
enum Call {
    Append {
        count: u64,
        bytes: usize,
        wait: bool,
    },
    /// Keep this share of the log, in 1/8.
    Truncate {
        eighths: u64,
    },
    Purge {
        eighths: u64,
    },
    /// As when a snapshot is installed.
    PurgeBeyond {
        by: u64,
    },
    Vote,
    Read {
        from: u64,
        count: u64,
    },
    Reopen,
}

fn calls() -> impl Strategy<Value = Vec<Call>> {
    let call = prop_oneof![
        6 => (1..6u64, 0..3000usize, any::<bool>())
            .prop_map(|(count, bytes, wait)| Call::Append { count, bytes, wait }),
        2 => (0..9u64).prop_map(|eighths| Call::Truncate { eighths }),
        2 => (0..9u64).prop_map(|eighths| Call::Purge { eighths }),
        1 => (1..5u64).prop_map(|by| Call::PurgeBeyond { by }),
        1 => Just(Call::Vote),
        4 => (0..8u64, 0..12u64).prop_map(|(from, count)| Call::Read { from, count }),
        1 => Just(Call::Reopen),
    ];
    prop::collection::vec(call, 1..60)
}

#[derive(Default)]
struct Model {
    purged: Option<LogId>,
    entries: Vec<Entry>,
    vote: Option<Vote>,
    term: u64,
}

impl Model {
    fn first(&self) -> u64 {
        self.purged.map_or(0, |id| id.index() + 1)
    }

    fn next(&self) -> u64 {
        self.first() + self.entries.len() as u64
    }

    fn last(&self) -> Option<LogId> {
        self.entries.last().map(RaftEntry::log_id).or(self.purged)
    }

    fn before(&self, at: usize) -> Option<LogId> {
        at.checked_sub(1).map(|last| self.entries[last].log_id()).or(self.purged)
    }
}

struct Run {
    dir: tempfile::TempDir,
    memory_bytes_max: usize,
    store: Option<LogStore>,
    model: Model,
}

impl Run {
    fn new(memory_bytes_max: usize) -> Run {
        let dir = tempfile::tempdir().unwrap();
        let mut run = Run { dir, memory_bytes_max, store: None, model: Model::default() };
        run.reopen();
        run
    }

    fn reopen(&mut self) {
        self.store = None;
        let store = LogStore::open_with(engine(self.dir.path()), GROUP, self.memory_bytes_max);
        self.store = Some(store.unwrap());
    }

    async fn call(&mut self, call: &Call) {
        let Run { store: Some(store), model, .. } = self else { unreachable!() };
        match *call {
            Call::Append { count, bytes, wait } => {
                let entries: Vec<_> =
                    (0..count).map(|i| entry(model.term, model.next() + i, bytes)).collect();
                model.entries.extend(entries.clone());
                store.append(entries, IOFlushed::noop()).await.unwrap();
                if wait {
                    settle(store).await;
                }
            }
            Call::Truncate { eighths } => {
                let keep = model.entries.len() * eighths.min(8) as usize / 8;
                store.truncate_after(model.before(keep)).await.unwrap();
                model.entries.truncate(keep);
                // Other entries at the same places belong to a later leader.
                model.term += 1;
            }
            Call::Purge { eighths } => {
                let count = model.entries.len() * eighths.min(8) as usize / 8;
                if let Some(upto) = model.before(count) {
                    store.purge(upto).await.unwrap();
                    model.entries.drain(..count);
                    model.purged = Some(upto);
                }
            }
            Call::PurgeBeyond { by } => {
                model.term += 1;
                let upto = log_id(model.term, model.next() + by);
                store.purge(upto).await.unwrap();
                model.entries.clear();
                model.purged = Some(upto);
            }
            Call::Vote => {
                model.term += 1;
                let vote = Vote::new(model.term, NodeId(3));
                store.save_vote(&vote).await.unwrap();
                model.vote = Some(vote);
            }
            Call::Read { from, count } => {
                let from = model.first() + from;
                let found = store.try_get_log_entries(from..from + count).await.unwrap();
                let wanted = model.entries.iter().filter(|e| (from..from + count).contains(&e.index()));
                assert!(found.iter().eq(wanted), "{from}..{}", from + count);
            }
            Call::Reopen => self.reopen(),
        }
    }

    async fn check(&mut self) {
        let Run { store: Some(store), model, .. } = self else { unreachable!() };
        let state = store.get_log_state().await.unwrap();
        assert_eq!(state.last_purged_log_id, model.purged);
        assert_eq!(state.last_log_id, model.last());
        assert_eq!(store.read_vote().await.unwrap(), model.vote);
        assert_eq!(all(store).await, model.entries);
        let sizes: usize = model.entries.iter().map(|e| append_op(GROUP, e.clone()).1.1).sum();
        assert_eq!(store.log_bytes(), sizes as u64);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn the_log_is_the_list(calls in calls(), memory in prop::sample::select(vec![0usize, 4000, 1 << 20])) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let mut run = Run::new(memory);
            for call in &calls {
                run.call(call).await;
                run.check().await;
            }
            run.reopen();
            run.check().await;
        });
    }
}
