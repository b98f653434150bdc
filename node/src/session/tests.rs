use super::*;
use proptest::prelude::*;

const ME: ClientId = [1; 16];
const OTHER: ClientId = [2; 16];

/// Small, so that every bound is met.
const BOUNDS: Bounds = Bounds { clients: 3, answers: 4, client_bytes: 400, bytes: 2000, idle_ms: 1000 };

fn at(index: u64) -> Moment {
    Moment { index, clock_ms: index }
}

fn scope(client_id: ClientId, sequence: u64) -> Scope {
    Scope { client_id, sequence, acknowledged_below: 0, operations: 1, is_retry: false }
}

fn retry(scope: Scope) -> Scope {
    Scope { is_retry: true, ..scope }
}

/// What a verdict says, without the table.
#[derive(Debug, PartialEq)]
enum Outcome {
    Applied,
    First(u64, Vec<u8>),
    Expired,
}

fn run(sessions: &mut Sessions, at: Moment, scope: Scope, results: &[u8]) -> Outcome {
    match sessions.begin(at, &scope) {
        Verdict::Repeated(index, results) => Outcome::First(index, results.to_vec()),
        Verdict::Expired => Outcome::Expired,
        Verdict::Fresh => {
            sessions.record(at, &scope, results);
            Outcome::Applied
        }
    }
}

#[test]
fn a_frame_that_comes_again_gets_its_first_answer() {
    let mut sessions = Sessions::new(Bounds::default());
    assert_eq!(run(&mut sessions, at(5), scope(ME, 1), b"one"), Outcome::Applied);
    assert_eq!(run(&mut sessions, at(6), scope(ME, 2), b"two"), Outcome::Applied);
    for again in [scope(ME, 1), retry(scope(ME, 1))] {
        assert_eq!(run(&mut sessions, at(9), again, b"new"), Outcome::First(5, b"one".to_vec()));
    }
    assert_eq!(run(&mut sessions, at(10), retry(scope(OTHER, 1)), b"x"), Outcome::Applied);
}

#[test]
fn frames_may_come_in_any_order() {
    let mut sessions = Sessions::new(Bounds::default());
    for sequence in [3, 1, 4, 2] {
        let results = [sequence as u8];
        assert_eq!(run(&mut sessions, at(10 + sequence), scope(ME, sequence), &results), Outcome::Applied);
    }
    for sequence in 1..=4 {
        let first = Outcome::First(10 + sequence, vec![sequence as u8]);
        assert_eq!(run(&mut sessions, at(20), retry(scope(ME, sequence)), b""), first);
    }
}

#[test]
fn what_was_acknowledged_is_forgotten_and_refused() {
    let mut sessions = Sessions::new(Bounds::default());
    for sequence in 1..=3 {
        run(&mut sessions, at(sequence), scope(ME, sequence), &[7; 100]);
    }
    let before = sessions.bytes();
    let acknowledging = Scope { acknowledged_below: 3, ..scope(ME, 4) };
    assert_eq!(run(&mut sessions, at(4), acknowledging, b""), Outcome::Applied);
    assert!(sessions.bytes() < before - 200);
    assert_eq!(run(&mut sessions, at(5), retry(scope(ME, 2)), b""), Outcome::Expired);
    assert_eq!(run(&mut sessions, at(6), retry(scope(ME, 3)), b""), Outcome::First(3, vec![7; 100]));
}

#[test]
fn an_answer_that_had_to_make_room_is_refused_whoever_asks() {
    let mut sessions = Sessions::new(BOUNDS);
    for sequence in 1..=5 {
        run(&mut sessions, at(sequence), scope(ME, sequence), b"r");
    }
    assert_eq!(run(&mut sessions, at(6), scope(ME, 1), b""), Outcome::Expired);
    assert_eq!(run(&mut sessions, at(6), retry(scope(ME, 1)), b""), Outcome::Expired);
    assert_eq!(run(&mut sessions, at(6), retry(scope(ME, 2)), b""), Outcome::First(2, b"r".to_vec()));
    assert_eq!(run(&mut sessions, at(7), scope(ME, 6), &[1; 300]), Outcome::Applied);
    assert_eq!(run(&mut sessions, at(8), retry(scope(ME, 4)), b""), Outcome::Expired, "bytes count too");
}

#[test]
fn results_too_large_to_keep_cost_only_their_own_answer() {
    let mut sessions = Sessions::new(BOUNDS);
    run(&mut sessions, at(1), scope(ME, 1), b"small");
    assert_eq!(run(&mut sessions, at(2), scope(ME, 2), &[1; 500]), Outcome::Applied);
    assert_eq!(run(&mut sessions, at(3), retry(scope(ME, 2)), b""), Outcome::Expired);
    assert_eq!(run(&mut sessions, at(3), retry(scope(ME, 1)), b""), Outcome::First(1, b"small".to_vec()));
}

#[test]
fn the_least_recently_used_client_makes_room_and_its_retries_are_refused() {
    let mut sessions = Sessions::new(BOUNDS);
    for (index, client) in [(1, 1), (2, 2), (3, 3), (4, 1), (5, 4)] {
        run(&mut sessions, at(index), scope([client; 16], index), b"r");
    }
    assert_eq!(sessions.len(), 3);
    assert_eq!(run(&mut sessions, at(6), retry(scope(OTHER, 2)), b""), Outcome::Expired);
    assert_eq!(run(&mut sessions, at(7), retry(scope([9; 16], 1)), b""), Outcome::Expired, "who knows");
    assert_eq!(run(&mut sessions, at(8), scope(OTHER, 7), b""), Outcome::Applied, "a new frame is none");
    assert_eq!(run(&mut sessions, at(9), retry(scope(OTHER, 2)), b""), Outcome::Expired, "still");
    assert_eq!(run(&mut sessions, at(10), scope(OTHER, 6), b""), Outcome::Applied, "overtaken, sent once");
    // So long after, a retry would come from before the longest time that a frame may be sent again.
    assert_eq!(run(&mut sessions, at(1007), retry(scope([9; 16], 1)), b""), Outcome::Applied);
}

#[test]
fn all_clients_together_are_bounded_in_bytes() {
    let mut sessions = Sessions::new(Bounds { clients: 100, ..BOUNDS });
    for client in 1..=50 {
        run(&mut sessions, at(client.into()), scope([client; 16], 1), &[1; 100]);
        assert!(sessions.bytes() <= 2000);
    }
    assert_eq!(sessions.len(), 4);
}

#[test]
fn idle_clients_are_forgotten_without_casting_doubt_on_others() {
    let mut sessions = Sessions::new(BOUNDS);
    run(&mut sessions, at(1), scope(ME, 1), b"r");
    run(&mut sessions, at(500), scope(OTHER, 1), b"r");
    run(&mut sessions, at(1000), scope([3; 16], 1), b"r");
    assert_eq!(sessions.len(), 3);
    assert_eq!(run(&mut sessions, at(1001), retry(scope([4; 16], 1)), b"r"), Outcome::Applied);
    assert_eq!(sessions.len(), 3);
    assert_eq!(run(&mut sessions, at(1002), retry(scope(OTHER, 1)), b""), Outcome::First(500, b"r".to_vec()));
}

/// The rules, told naively.
#[derive(Default)]
struct Model {
    clients: BTreeMap<ClientId, ModelClient>,
    suspect_until: u64,
}

#[derive(Default)]
struct ModelClient {
    answers: BTreeMap<u64, (u64, Vec<u8>)>,
    acknowledged: u64,
    lost: u64,
    began: u64,
    used: u64,
}

impl ModelClient {
    fn bytes(&self) -> usize {
        let kept = |(_, results): &(u64, Vec<u8>)| if results.len() + 48 > 400 { 0 } else { results.len() };
        self.answers.values().map(|answer| 48 + kept(answer)).sum()
    }
}

impl Model {
    fn run(&mut self, now: u64, scope: Scope, results: &[u8]) -> Outcome {
        self.clients.retain(|_, client| client.used + BOUNDS.idle_ms > now);
        let suspect = now < self.suspect_until;
        if !self.clients.contains_key(&scope.client_id) && scope.is_retry && suspect {
            return Outcome::Expired;
        }
        let began = if suspect { scope.sequence } else { 0 };
        let client = self.clients.entry(scope.client_id);
        let client = client.or_insert_with(|| ModelClient { began, ..ModelClient::default() });
        client.used = now;
        client.acknowledged = client.acknowledged.max(scope.acknowledged_below);
        client.answers = client.answers.split_off(&client.acknowledged);
        if scope.sequence < client.acknowledged {
            return Outcome::Expired;
        }
        match client.answers.get(&scope.sequence) {
            Some((_, results)) if results.len() + 48 > 400 => return Outcome::Expired,
            Some((index, results)) => return Outcome::First(*index, results.clone()),
            None => {}
        }
        if scope.sequence < client.lost || (scope.is_retry && scope.sequence < client.began) {
            return Outcome::Expired;
        }
        client.answers.insert(scope.sequence, (now, results.to_vec()));
        while client.answers.len() > BOUNDS.answers || client.bytes() > BOUNDS.client_bytes {
            let (sequence, _) = client.answers.pop_first().unwrap();
            client.lost = client.lost.max(sequence + 1);
        }
        self.make_room();
        Outcome::Applied
    }

    fn make_room(&mut self) {
        let bytes = |model: &Model| model.clients.values().map(|c| c.bytes() + 256).sum::<usize>();
        while self.clients.len() > BOUNDS.clients || bytes(self) > BOUNDS.bytes {
            let (used, id) = self.clients.iter().map(|(id, client)| (client.used, *id)).min().unwrap();
            self.clients.remove(&id);
            self.suspect_until = self.suspect_until.max(used + BOUNDS.idle_ms);
        }
    }
}

fn step() -> impl Strategy<Value = (Scope, u64, usize)> {
    let scope =
        (0u8..6, 1u64..12, 0u64..12, any::<bool>()).prop_map(|(client, sequence, below, is_retry)| {
            let acknowledged_below = if below % 3 == 0 { below.min(sequence) } else { 0 };
            Scope { client_id: [client; 16], sequence, acknowledged_below, operations: 1, is_retry }
        });
    let time = prop_oneof![8 => 0u64..3, 1 => 100u64..1500];
    let results = prop_oneof![6 => 0usize..20, 2 => 100usize..300, 1 => 340usize..500];
    (scope, time, results)
}

/// What the engine would hold.
#[derive(Default)]
struct Disk {
    records: BTreeMap<ClientId, Vec<u8>>,
    suspect_until_ms: u64,
}

impl Disk {
    fn write(&mut self, changed: Changed, suspect_until_ms: u64) {
        self.records.extend(changed.changed);
        changed.removed.iter().for_each(|id| drop(self.records.remove(id)));
        self.suspect_until_ms = suspect_until_ms;
    }

    fn restore(&self) -> Sessions {
        let mut sessions = Sessions::new(BOUNDS);
        self.records.iter().for_each(|(id, record)| sessions.load(*id, record).unwrap());
        sessions.set_suspect_until_ms(self.suspect_until_ms);
        sessions
    }
}

fn image(sessions: &Sessions) -> BTreeMap<ClientId, Vec<u8>> {
    sessions.records().collect()
}

proptest! {
    #[test]
    fn the_table_does_what_the_model_does(steps in prop::collection::vec(step(), 1..120)) {
        let (mut sessions, mut model, mut now) = (Sessions::new(BOUNDS), Model::default(), 0);
        for (index, (scope, pause, size)) in steps.into_iter().enumerate() {
            now += pause + 1;
            let results = vec![index as u8; size];
            let outcome = run(&mut sessions, Moment { index: now, clock_ms: now }, scope, &results);
            prop_assert_eq!(outcome, model.run(now, scope, &results), "{:?}", scope);
            prop_assert_eq!(sessions.len(), model.clients.len());
            let bytes: usize = model.clients.values().map(|client| client.bytes() + 256).sum();
            prop_assert_eq!(sessions.bytes(), bytes as u64);
        }
    }

    /// Sets are fixed, drained in pieces while scopes go on, and sometimes not drained to the end;
    /// a table restored at any fixed set goes on as the first one did.
    #[test]
    fn what_is_handed_out_restores_the_table_as_it_was_when_fixed(
        steps in prop::collection::vec((step(), 0u8..8), 1..120),
    ) {
        let (mut sessions, mut disk, mut now) = (Sessions::new(BOUNDS), Disk::default(), 0);
        let mut pending: Option<(Changed, BTreeMap<ClientId, Vec<u8>>, u64)> = None;
        for ((scope, pause, size), action) in steps {
            now += pause + 1;
            let (at, results) = (Moment { index: now, clock_ms: now }, vec![now as u8; size]);
            run(&mut sessions, at, scope, &results);
            match (action, pending.take()) {
                (0, None) => {
                    sessions.freeze_dirty();
                    pending = Some((Changed::default(), image(&sessions), sessions.suspect_until_ms()));
                }
                (1, Some((changed, ..))) => {
                    // Given up: whatever was handed out reaches the disk, the rest comes later.
                    disk.write(changed, disk.suspect_until_ms);
                    sessions.freeze_dirty();
                    pending = Some((Changed::default(), image(&sessions), sessions.suspect_until_ms()));
                }
                (_, Some((mut changed, expected, suspect))) => {
                    if sessions.drain_frozen(1, &mut changed) {
                        disk.write(changed, suspect);
                        prop_assert_eq!(&image(&disk.restore()), &expected);
                    } else {
                        pending = Some((changed, expected, suspect));
                    }
                }
                (_, None) => {}
            }
        }
        disk.write(pending.map(|(changed, ..)| changed).unwrap_or_default(), disk.suspect_until_ms);
        sessions.freeze_dirty();
        let mut changed = Changed::default();
        prop_assert!(sessions.drain_frozen(usize::MAX, &mut changed));
        disk.write(changed, sessions.suspect_until_ms());
        let mut again = disk.restore();
        prop_assert_eq!(image(&again), image(&sessions));
        prop_assert_eq!((again.len(), again.bytes()), (sessions.len(), sessions.bytes()));
        for client in 0..6 {
            let scope = retry(scope([client; 16], 3));
            let at = Moment { index: now + 1, clock_ms: now + 1 };
            prop_assert_eq!(run(&mut again, at, scope, b"x"), run(&mut sessions, at, scope, b"x"));
        }
    }
}
