//! Random entries, watches, acknowledgements and delays against a plain list of all events.

use super::*;
use crate::tree::{Event, EventKind};
use proptest::prelude::*;
use std::collections::BTreeMap;

#[derive(Clone, Debug)]
enum Step {
    /// Keys, and whether they are put or removed.
    Apply(Vec<(String, bool)>),
    Watch {
        stream: usize,
        key: String,
        from: Option<u64>,
        is_state: bool,
    },
    Cancel {
        stream: usize,
        nth: usize,
    },
    Dispatch,
    Poll(usize),
    Acknowledge(usize),
}

fn key() -> impl Strategy<Value = String> {
    prop::sample::select(vec!["a", "b", "a.x", "a.y", "a.x.p", "a.x.q", "b.z"]).prop_map(str::to_owned)
}

fn watched() -> impl Strategy<Value = String> {
    prop_oneof![1 => Just(String::new()), 6 => key()]
}

fn step() -> impl Strategy<Value = Step> {
    let change = prop_oneof![3 => (key(), Just(true)), 1 => (key(), Just(false))];
    prop_oneof![
        6 => prop::collection::vec(change, 1..4).prop_map(Step::Apply),
        2 => (0usize..3, watched(), prop::option::of(1u64..40), any::<bool>())
            .prop_map(|(stream, key, from, is_state)| Step::Watch { stream, key, from, is_state }),
        1 => (0usize..3, 0usize..8).prop_map(|(stream, nth)| Step::Cancel { stream, nth }),
        3 => Just(Step::Dispatch),
        3 => (0usize..3).prop_map(Step::Poll),
        2 => (0usize..3).prop_map(Step::Acknowledge),
    ]
}

struct Watched {
    stream: usize,
    key: String,
    from: Option<u64>,
    is_state: bool,
}

#[derive(Default)]
struct World {
    log: Vec<Delivered>,
    watches: BTreeMap<u32, Watched>,
}

fn is_at_or_below(key: &str, dir: &str) -> bool {
    dir.is_empty() || key.strip_prefix(dir).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

impl World {
    fn note(&mut self, index: u64, events: &[Event]) {
        for event in events {
            let kind = match event.kind {
                EventKind::Put => DeliveryKind::Put,
                EventKind::Mkdir => DeliveryKind::Mkdir,
                EventKind::Remove => DeliveryKind::Remove,
                EventKind::Expire => DeliveryKind::Expire,
            };
            self.log.push((kind, String::from_utf8(event.key.to_vec()).unwrap(), index));
        }
    }

    fn run(&mut self, step: &Step, id: u32, fixture: &mut Fixture, streams: &mut [Stream]) {
        match step {
            Step::Apply(changes) => {
                let ops: Vec<Op<'_>> = changes
                    .iter()
                    .map(|(key, is_put)| if *is_put { put(key) } else { remove(key) })
                    .collect();
                let events = fixture.apply(&ops);
                self.note(fixture.index, &events);
            }
            Step::Watch { stream, key, from, is_state } => {
                let mode = if *is_state { v1::WatchMode::WatchState } else { v1::WatchMode::WatchEvents };
                let from = from.filter(|_| !is_state);
                fixture.watch(&streams[*stream], request(id, key, mode, from)).unwrap();
                let watched = Watched { stream: *stream, key: key.clone(), from, is_state: *is_state };
                self.watches.insert(id, watched);
            }
            Step::Cancel { stream, nth } => {
                let mut of = self.watches.iter().filter(|(_, watched)| watched.stream == *stream);
                if let Some(id) = of.nth(*nth).map(|(id, _)| *id) {
                    streams[*stream].outbox.cancel(id);
                    self.watches.remove(&id);
                }
            }
            Step::Dispatch => fixture.dispatch(),
            Step::Poll(stream) => {
                streams[*stream].poll();
            }
            Step::Acknowledge(stream) => streams[*stream].outbox.acknowledge(streams[*stream].dealt_with),
        }
    }

    fn check(&self, fixture: &Fixture, streams: &[Stream]) {
        for (id, watched) in &self.watches {
            let stream = &streams[watched.stream];
            let got = stream.of(*id);
            if watched.is_state {
                check_states(&got, &watched.key, fixture);
            } else {
                self.check_events(*id, &got, watched, stream);
            }
        }
    }

    fn check_events(&self, id: u32, got: &[Delivered], watched: &Watched, stream: &Stream) {
        let created = stream.created.iter().find(|created| created.watch_id == id).unwrap();
        let from = watched.from.unwrap_or(created.index + 1);
        let wanted = self.log.iter().filter(|(_, key, _)| is_at_or_below(key, &watched.key));
        let wanted: Vec<Delivered> = wanted.filter(|(_, _, index)| *index >= from).cloned().collect();
        match stream.ended.iter().find(|ended| ended.watch_ids.contains(&id)) {
            None => assert_eq!(got, wanted, "{} from {from}", watched.key),
            Some(ended) => {
                assert_eq!(ended.code(), v1::Code::Compacted);
                assert_eq!(got, &wanted[..got.len()], "without a gap up to the end");
            }
        }
    }
}

/// The index grows, and the last state is the one that holds.
fn check_states(got: &[Delivered], key: &str, fixture: &Fixture) {
    assert!(got.windows(2).all(|pair| pair[0].2 < pair[1].2), "the index grows");
    let now = KeyState::of(&fixture.tree.0.read(), key.as_bytes());
    let kind = match now.presence {
        Presence::NotExists => DeliveryKind::StateNotExists,
        Presence::Value(_) => DeliveryKind::StateValue,
        Presence::Directory => DeliveryKind::StateDirectory,
    };
    let last = got.last().expect("a state is told at once");
    assert_eq!(last.0, kind, "{key}: {got:?}");
    assert!(last.2 == now.index || kind == DeliveryKind::StateNotExists);
}

fn check(steps: &[Step], history: u64, window: u64, queue: usize) {
    let mut fixture = Fixture::with_history(history);
    let mut streams: Vec<Stream> = (0..3).map(|_| Stream::with(window, queue)).collect();
    let mut world = World::default();
    for (id, step) in (1..).zip(steps) {
        world.run(step, id, &mut fixture, &mut streams);
    }
    fixture.dispatch();
    streams.iter_mut().for_each(Stream::drain);
    world.check(&fixture, &streams);
    streams.iter().for_each(|stream| stream.outbox.close());
    assert_eq!(fixture.hub.metrics().watches.get(), 0);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn every_watch_is_told_exactly_what_it_asked_for(
        steps in prop::collection::vec(step(), 1..80),
        window in prop::sample::select(vec![60u64, 300, 1 << 20]),
        queue in prop::sample::select(vec![0usize, 200, 1 << 20]),
    ) {
        check(&steps, 1 << 20, window, queue);
    }

    #[test]
    fn with_little_history_nothing_is_skipped_without_a_word(
        steps in prop::collection::vec(step(), 1..80),
        history in prop::sample::select(vec![0u64, 200, 800]),
        queue in prop::sample::select(vec![0usize, 200]),
    ) {
        check(&steps, history, 100, queue);
    }
}
