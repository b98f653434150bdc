//! The task that keeps all watches of a client registered somewhere.

use super::cursor::Cursor;
use super::inbox::{EventInbox, StateInbox};
use super::links::{Accepted, Incoming, Links};
use super::registration::{Audience, Place, Registration, Spec, Told};
use super::{Change, resync};
use crate::channel::Address;
use crate::client::{Handle, Shared};
use crate::error::Error;
use crate::packed::delivery::deliveries;
use crate::retry;
use crate::route::Discovery;
use crate::v1::failure::Reason;
use crate::v1::{Code, WatchEnded, WatchProgress, WatchResponse};
use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use rustc_hash::{FxHashMap, FxHashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::time::{Instant, MissedTickBehavior};

const TICK: Duration = Duration::from_millis(50);
/// A replica that has not heard its leader for so long is left for another one ...
const LAG_MAX_MS: u64 = 15_000;
/// ... and avoided for so long.
const LAG_PAUSE: Duration = Duration::from_secs(15);
/// How long a replica is avoided whose history was too short for a watch.
const SHORT_HISTORY_PAUSE: Duration = Duration::from_secs(1);
const COMMANDS_AT_ONCE: usize = 4096;

/// What callers want of the task.
pub(crate) enum Command {
    State {
        spec: Spec,
        inbox: Arc<StateInbox>,
    },
    Events {
        spec: Spec,
        from: Option<u64>,
        inbox: Arc<EventInbox>,
    },
    /// An inbox that was cut has room again.
    Resume {
        inbox: u64,
        cursor: Cursor,
    },
    Forget {
        inbox: u64,
    },
    Close,
}

/// The callers' end.
pub(crate) struct Watcher {
    commands: UnboundedSender<Command>,
    next_inbox: AtomicU64,
}

impl Watcher {
    /// Starts the task. It ends with the client.
    pub fn start(shared: &Arc<Shared>, handle: &Arc<Handle>) -> Watcher {
        let (commands, receiver) = unbounded_channel();
        shared.runtime.spawn(run(shared.clone(), Arc::downgrade(handle), receiver));
        Watcher { commands, next_inbox: AtomicU64::new(1) }
    }

    fn inbox_id(&self) -> u64 {
        self.next_inbox.fetch_add(1, Ordering::Relaxed)
    }

    pub fn state_inbox(&self, known: Option<u64>) -> Arc<StateInbox> {
        Arc::new(StateInbox::new(self.inbox_id(), known))
    }

    pub fn event_inbox(&self) -> Arc<EventInbox> {
        Arc::new(EventInbox::new(self.inbox_id(), self.commands.clone()))
    }

    pub fn watch_state(&self, spec: Spec, inbox: Arc<StateInbox>) {
        let _ = self.commands.send(Command::State { spec, inbox });
    }

    pub fn watch_events(&self, spec: Spec, from: Option<u64>, inbox: Arc<EventInbox>) {
        let _ = self.commands.send(Command::Events { spec, from, inbox });
    }

    pub fn forget(&self, inbox: u64) {
        let _ = self.commands.send(Command::Forget { inbox });
    }

    pub fn close(&self) {
        let _ = self.commands.send(Command::Close);
    }
}

/// What the task waits for besides commands and nodes.
enum Job {
    Accepted(Accepted),
    Discovered(u32, Discovery),
    Resynced(u64, Result<(u64, Change), Error>),
}

/// Where the watches of a group are to go.
#[derive(Default)]
struct Home {
    address: Option<Address>,
    attempt: u32,
    retry_at: Option<Instant>,
    is_looking: bool,
    registrations: FxHashSet<u64>,
}

struct Task {
    shared: Arc<Shared>,
    handle: Weak<Handle>,
    registrations: FxHashMap<u64, Registration>,
    next_registration: u64,
    next_watch_id: u32,
    by_watch_id: FxHashMap<u32, u64>,
    by_inbox: FxHashMap<u64, u64>,
    /// Registrations that further callers may share: of states, and of events from now on.
    shared_states: FxHashMap<Spec, u64>,
    shared_events: FxHashMap<Spec, u64>,
    /// Inboxes without room, and what they watch.
    cut: FxHashMap<u64, (Arc<EventInbox>, Spec)>,
    homes: FxHashMap<u32, Home>,
    /// Replicas not to be tried before a time.
    avoided: FxHashMap<(u32, Address), Instant>,
    links: Links,
    jobs: FuturesUnordered<BoxFuture<'static, Job>>,
}

async fn run(shared: Arc<Shared>, handle: Weak<Handle>, mut commands: UnboundedReceiver<Command>) {
    let mut task = Task {
        shared,
        handle,
        registrations: FxHashMap::default(),
        next_registration: 0,
        next_watch_id: 0,
        by_watch_id: FxHashMap::default(),
        by_inbox: FxHashMap::default(),
        shared_states: FxHashMap::default(),
        shared_events: FxHashMap::default(),
        cut: FxHashMap::default(),
        homes: FxHashMap::default(),
        avoided: FxHashMap::default(),
        links: Links::default(),
        jobs: FuturesUnordered::new(),
    };
    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let is_idle = task.registrations.is_empty() && task.links.is_empty();
        tokio::select! {
            command = commands.recv() => {
                let Some(command) = command else { return };
                let mut next = Some(command);
                for _ in 0..COMMANDS_AT_ONCE {
                    match next {
                        Some(Command::Close) => return,
                        Some(command) => task.command(command),
                        None => break,
                    }
                    next = commands.try_recv().ok();
                }
                if let Some(command) = next {
                    task.command(command);
                }
                task.settle_all();
            }
            incoming = task.links.next() => task.incoming(incoming),
            Some(job) = task.jobs.next() => task.finished(job),
            _ = tick.tick(), if !is_idle => task.tick(Instant::now()),
        }
        task.links.flush();
    }
}

impl Task {
    fn command(&mut self, command: Command) {
        match command {
            Command::State { spec, inbox } => self.add_state(spec, inbox),
            Command::Events { spec, from, inbox } => self.add_events(spec, from, inbox),
            Command::Resume { inbox, cursor } => {
                if let Some((inbox, spec)) = self.cut.remove(&inbox) {
                    let ids = vec![inbox.id];
                    self.add(spec, Audience::Events { cursor, inboxes: vec![inbox] }, &ids);
                }
            }
            Command::Forget { inbox } => self.forget(inbox),
            // The loop ends by itself.
            Command::Close => {}
        }
    }

    fn add_state(&mut self, spec: Spec, inbox: Arc<StateInbox>) {
        let id = inbox.id;
        if let Some(known) = self.shared_states.get(&spec)
            && let Some(registration) = self.registrations.get_mut(known)
            && let Audience::State { last, inboxes } = &mut registration.audience
        {
            if let Some(last) = last {
                inbox.put(last);
            }
            inboxes.push(inbox);
            self.by_inbox.insert(id, *known);
            return;
        }
        let audience = Audience::State { last: None, inboxes: vec![inbox] };
        let registration = self.add(spec.clone(), audience, &[id]);
        self.shared_states.insert(spec, registration);
    }

    fn add_events(&mut self, spec: Spec, from: Option<u64>, inbox: Arc<EventInbox>) {
        let id = inbox.id;
        if let (None, Some(known)) = (from, self.shared_events.get(&spec))
            && let Some(registration) = self.registrations.get_mut(known)
            && matches!(registration.place, Place::At { is_created: true, .. })
            && let Audience::Events { cursor, inboxes } = &mut registration.audience
        {
            inbox.begun(cursor.known());
            inboxes.push(inbox);
            self.by_inbox.insert(id, *known);
            return;
        }
        let audience = Audience::Events { cursor: Cursor::new(from), inboxes: vec![inbox] };
        let registration = self.add(spec.clone(), audience, &[id]);
        if from.is_none() {
            self.shared_events.insert(spec, registration);
        }
    }

    fn add(&mut self, spec: Spec, audience: Audience, inboxes: &[u64]) -> u64 {
        self.next_registration += 1;
        let id = self.next_registration;
        self.homes.entry(spec.group).or_default().registrations.insert(id);
        self.registrations
            .insert(id, Registration { spec, place: Place::Nowhere, audience, too_short: Vec::new() });
        for inbox in inboxes {
            self.by_inbox.insert(*inbox, id);
        }
        id
    }

    fn forget(&mut self, inbox: u64) {
        self.cut.remove(&inbox);
        let Some(id) = self.by_inbox.remove(&inbox) else { return };
        let Some(registration) = self.registrations.get_mut(&id) else { return };
        registration.remove(inbox);
        if registration.has_nobody() {
            self.remove(id);
        }
    }

    /// Takes a registration out, here and at its node.
    fn remove(&mut self, id: u64) -> Option<Registration> {
        self.leave(id);
        let registration = self.registrations.remove(&id)?;
        for inbox in registration.inbox_ids() {
            self.by_inbox.remove(&inbox);
        }
        let spec = &registration.spec;
        let shared = match registration.audience {
            Audience::State { .. } => &mut self.shared_states,
            Audience::Events { .. } => &mut self.shared_events,
        };
        if shared.get(spec) == Some(&id) {
            shared.remove(spec);
        }
        if let Some(home) = self.homes.get_mut(&spec.group) {
            home.registrations.remove(&id);
            if home.registrations.is_empty() {
                self.homes.remove(&spec.group);
            }
        }
        if self.registrations.is_empty() {
            self.links = Links::default();
        }
        Some(registration)
    }

    /// Takes a registration away from its node.
    fn leave(&mut self, id: u64) {
        let Some(registration) = self.registrations.get_mut(&id) else { return };
        if let Place::At { address, watch_id, .. } = &registration.place {
            self.by_watch_id.remove(watch_id);
            if let Some(link) = self.links.get(address) {
                link.cancel(*watch_id);
            }
        }
        registration.place = Place::Nowhere;
    }

    /// Sends the registrations of all groups that wait to a node.
    fn settle_all(&mut self) {
        let groups: Vec<u32> = self.homes.keys().copied().collect();
        groups.into_iter().for_each(|group| self.settle(group));
    }

    fn settle(&mut self, group: u32) {
        let Some(home) = self.homes.get(&group) else { return };
        let is_waiting = |id: &&u64| self.registrations.get(id).is_some_and(|r| r.place == Place::Nowhere);
        let waiting: Vec<u64> = home.registrations.iter().filter(is_waiting).copied().collect();
        if waiting.is_empty() || home.retry_at.is_some_and(|at| at > Instant::now()) {
            return;
        }
        let address = match &home.address {
            Some(address) => address.clone(),
            None => match self.choose(group) {
                Some(address) => address,
                None => return self.look(group),
            },
        };
        if let Some(home) = self.homes.get_mut(&group) {
            home.address = Some(address.clone());
            home.retry_at = None;
        }
        waiting.into_iter().for_each(|id| self.register(id, &address));
    }

    fn register(&mut self, id: u64, address: &Address) {
        let Some(registration) = self.registrations.get_mut(&id) else { return };
        self.next_watch_id = self.next_watch_id.wrapping_add(1);
        let watch_id = self.next_watch_id;
        let (link, opening) = self.links.get_or_add(address);
        link.create(registration.create(watch_id));
        registration.place = Place::At { address: address.clone(), watch_id, is_created: false };
        self.by_watch_id.insert(watch_id, id);
        if let Some(opening) = opening {
            let shared = self.shared.clone();
            self.jobs.push(Box::pin(async move { Job::Accepted(opening.run(shared).await) }));
        }
    }

    /// A replica to go to: near, and not the leader if there is another.
    fn choose(&mut self, group: u32) -> Option<Address> {
        let now = Instant::now();
        self.avoided.retain(|_, until| *until > now);
        let mut replicas = self.shared.router.replicas(group);
        replicas.retain(|(address, _)| !self.avoided.contains_key(&(group, address.clone())));
        let rank = |(address, is_leader): &(Address, bool)| {
            (*is_leader, self.links.distance_ms(address), rand::random::<u32>())
        };
        replicas.into_iter().min_by_key(rank).map(|(address, _)| address)
    }

    /// Asks around where the replicas of a group are.
    fn look(&mut self, group: u32) {
        let Some(home) = self.homes.get_mut(&group).filter(|home| !home.is_looking) else { return };
        home.is_looking = true;
        let shared = self.shared.clone();
        self.jobs.push(Box::pin(async move {
            Job::Discovered(group, shared.router.discover(&shared.channels, &[group]).await)
        }));
    }

    fn finished(&mut self, job: Job) {
        match job {
            Job::Accepted(Accepted { address, serial, responses: Ok(responses) }) => {
                self.links.opened(&address, serial, responses);
            }
            Job::Accepted(Accepted { address, serial, responses: Err(error) }) => {
                self.link_lost(&address, serial, &error);
            }
            Job::Discovered(group, discovery) => self.discovered(group, &discovery),
            Job::Resynced(id, outcome) => self.resynced(id, outcome),
        }
    }

    fn discovered(&mut self, group: u32, discovery: &Discovery) {
        let is_found = self.choose(group).is_some();
        let Some(home) = self.homes.get_mut(&group) else { return };
        home.is_looking = false;
        if is_found {
            return self.settle(group);
        }
        home.attempt += 1;
        home.retry_at = Some(Instant::now() + retry::delay(home.attempt));
        let error = self.shared.no_route(group, discovery.is_complete(), &discovery.complaint());
        if error.reason() == Reason::GroupNotFound {
            let all: Vec<u64> = home.registrations.iter().copied().collect();
            all.into_iter().for_each(|id| self.fail(id, &error));
        }
    }

    fn fail(&mut self, id: u64, error: &Error) {
        if let Some(registration) = self.remove(id) {
            registration.fail(error);
        }
    }

    fn incoming(&mut self, incoming: Incoming) {
        let Incoming { address, serial, response } = incoming;
        if !self.links.is_current(&address, serial) {
            return;
        }
        match response {
            Ok(response) => self.response(&address, response),
            Err(error) => self.link_lost(&address, serial, &error),
        }
    }

    /// All watches of a node have to go elsewhere.
    fn link_lost(&mut self, address: &Address, serial: u64, error: &Error) {
        if !self.links.is_current(address, serial) {
            return;
        }
        tracing::debug!(node = %address, %error, "stream of watches ended");
        self.move_all(address);
    }

    fn move_all(&mut self, address: &Address) {
        self.links.remove(address);
        let is_there = |registration: &Registration| matches!(&registration.place, Place::At { address: at, .. } if at == address);
        let there: Vec<u64> =
            self.registrations.iter().filter(|(_, r)| is_there(r)).map(|(id, _)| *id).collect();
        for id in there {
            self.displace(id, address, Duration::ZERO);
        }
        self.settle_all();
    }

    /// A registration cannot stay at a node. The node is avoided for its group for a while.
    fn displace(&mut self, id: u64, address: &Address, pause: Duration) {
        self.leave(id);
        let Some(group) = self.registrations.get(&id).map(|registration| registration.spec.group) else {
            return;
        };
        let Some(home) = self.homes.get_mut(&group) else { return };
        if home.address.as_ref() == Some(address) {
            home.address = None;
            home.attempt += 1;
            let until = Instant::now() + pause.max(retry::delay(home.attempt));
            self.avoided.insert((group, address.clone()), until);
        }
    }

    fn response(&mut self, address: &Address, response: WatchResponse) {
        if let Some(link) = self.links.get(address) {
            link.hear(response.opened.as_ref());
        }
        for created in response.created {
            let Some(id) = self.by_watch_id.get(&created.watch_id) else { continue };
            let Some(registration) = self.registrations.get_mut(id) else { continue };
            registration.created(created.index);
            if let Some(home) = self.homes.get_mut(&registration.spec.group) {
                home.attempt = 0;
            }
        }
        self.deliver(address, &response.deliveries);
        if let Some(link) = self.links.get(address) {
            link.deal(response.bytes);
        }
        for ended in response.ended {
            self.ended(address, ended);
        }
        for progress in response.progress {
            self.progress(address, &progress);
        }
    }

    fn deliver(&mut self, address: &Address, packed: &[u8]) {
        for delivery in deliveries(packed) {
            let Ok((ids, delivery)) = delivery else {
                tracing::warn!(node = %address, "a malformed delivery of watches");
                return self.move_all(address);
            };
            let told = Told::of(&delivery);
            for watch_id in ids.iter() {
                let Some(id) = self.by_watch_id.get(&watch_id).copied() else { continue };
                let Some(registration) = self.registrations.get_mut(&id) else { continue };
                let full = registration.tell(&told);
                self.set_aside(id, full);
            }
        }
    }

    /// Inboxes without room leave their registration; they come back when there is some.
    fn set_aside(&mut self, id: u64, full: Vec<Arc<EventInbox>>) {
        let Some(registration) = self.registrations.get(&id).filter(|_| !full.is_empty()) else { return };
        for inbox in full {
            self.by_inbox.remove(&inbox.id);
            self.cut.insert(inbox.id, (inbox, registration.spec.clone()));
        }
        if registration.has_nobody() {
            self.remove(id);
        }
    }

    fn ended(&mut self, address: &Address, ended: WatchEnded) {
        if ended.watch_ids.is_empty() {
            return self.move_all(address);
        }
        let is_compacted = ended.code() == Code::Compacted;
        let error = Error::from(ended.failure.unwrap_or_default());
        let mut groups = FxHashSet::default();
        for watch_id in ended.watch_ids {
            let Some(id) = self.by_watch_id.remove(&watch_id) else { continue };
            let Some(registration) = self.registrations.get_mut(&id) else { continue };
            registration.place = Place::Nowhere;
            groups.insert(registration.spec.group);
            match error.reason() {
                _ if is_compacted => self.history_is_gone(id, address),
                Reason::InvalidArgument | Reason::Internal => self.fail(id, &error),
                _ => self.displace(id, address, error.retry_after().unwrap_or_default()),
            }
        }
        groups.into_iter().for_each(|group| self.settle(group));
    }

    /// Replicas keep histories of different lengths: one that was started lately has little. Only when
    /// none has enough, events are missing.
    fn history_is_gone(&mut self, id: u64, address: &Address) {
        let Some(registration) = self.registrations.get_mut(&id) else { return };
        registration.too_short.push(address.clone());
        let replicas = self.shared.router.replicas(registration.spec.group);
        if replicas.iter().all(|(other, _)| registration.too_short.contains(other)) {
            self.resync(id, Duration::ZERO);
        } else {
            self.displace(id, address, SHORT_HISTORY_PAUSE);
        }
    }

    /// Reads what is there, after a pause.
    fn resync(&mut self, id: u64, pause: Duration) {
        let Some(registration) = self.registrations.get_mut(&id) else { return };
        let Some(handle) = self.handle.upgrade() else { return };
        registration.place = Place::Resyncing;
        let spec = registration.spec.clone();
        let group = handle.group(spec.group);
        drop(handle);
        self.jobs.push(Box::pin(async move {
            tokio::time::sleep(pause).await;
            Job::Resynced(id, resync::read(group, &spec).await)
        }));
    }

    fn resynced(&mut self, id: u64, outcome: Result<(u64, Change), Error>) {
        let Some(registration) = self.registrations.get_mut(&id) else { return };
        match outcome {
            Ok((index, change)) => {
                registration.place = Place::Nowhere;
                let full = registration.resynced(index, &change);
                let group = registration.spec.group;
                self.set_aside(id, full);
                self.settle(group);
            }
            Err(error) if error.reason() == Reason::GroupNotFound => self.fail(id, &error),
            Err(error) => {
                tracing::debug!(%error, "reading anew for a watch failed");
                self.resync(id, retry::delay(u32::MAX));
            }
        }
    }

    fn progress(&mut self, address: &Address, progress: &WatchProgress) {
        let Some(home) = self.homes.get(&progress.group_id) else { return };
        let is_there = |registration: &Registration| matches!(&registration.place, Place::At { address: at, .. } if at == address);
        let ids: Vec<u64> = home.registrations.iter().copied().collect();
        let is_behind = progress.lag_ms > LAG_MAX_MS;
        let goes = is_behind && self.has_other(progress.group_id, address);
        for id in ids {
            let Some(registration) = self.registrations.get_mut(&id).filter(|r| is_there(r)) else {
                continue;
            };
            registration.passed(progress.index);
            if goes {
                self.displace(id, address, LAG_PAUSE);
            }
        }
        self.settle(progress.group_id);
    }

    fn has_other(&self, group: u32, address: &Address) -> bool {
        let replicas = self.shared.router.replicas(group).into_iter();
        replicas
            .map(|(other, _)| other)
            .any(|other| other != *address && !self.avoided.contains_key(&(group, other)))
    }

    fn tick(&mut self, now: Instant) {
        for address in self.links.silent(now) {
            tracing::debug!(node = %address, "stream of watches was silent for too long");
            self.move_all(&address);
        }
        self.settle_all();
    }
}
