//! Brings operations to lanes, lanes to pipes, answers to callers; and what to do when that fails.

use crate::answer::OpResult;
use crate::channel::Address;
use crate::check::{self, check};
use crate::client::{Done, Shared};
use crate::error::{Error, ErrorKind};
use crate::frame::{Frame, ManyResults, Waiter};
use crate::group::Group;
use crate::lane::{Destination, Lane, LaneKind, Size, of_kind};
use crate::limit::units;
use crate::limits::FRAME_BYTES_TARGET;
use crate::packed::{self, Kind, Op};
use crate::pipe::{self, Pipe};
use crate::retry::{self, Next};
use crate::v1::failure::Reason;
use crate::v1::{Consistency, FrameReply};
use bytes::Bytes;
use parking_lot::Mutex;
use rustc_hash::FxHashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;

/// How exactly deadlines and pauses are kept.
const TICK: Duration = Duration::from_millis(10);
/// Ticks without anything in flight after which the ticking stops.
const IDLE_TICKS: u32 = 100;
const ROUTE_DELAY_MAX: Duration = Duration::from_millis(200);

/// The lanes of one group.
pub(crate) struct Lanes {
    write: Arc<Lane>,
    reads: [Arc<Lane>; 3],
}

impl Lanes {
    fn of(&self, kind: LaneKind) -> &Arc<Lane> {
        match kind {
            LaneKind::Write => &self.write,
            LaneKind::Read(consistency) => &self.reads[consistency as usize],
        }
    }

    /// The lane of writes.
    pub fn write(&self) -> &Arc<Lane> {
        &self.write
    }

    fn all(&self) -> impl Iterator<Item = &Arc<Lane>> {
        std::iter::once(&self.write).chain(&self.reads)
    }
}

/// Lanes, pipes and the tasks that serve them.
#[derive(Default)]
pub(crate) struct Dispatch {
    lanes: Mutex<FxHashMap<u32, Arc<Lanes>>>,
    pipes: Mutex<FxHashMap<Address, Arc<Pipe>>>,
    /// Lanes with something to send whose node has to be found.
    homeless: Mutex<Vec<Arc<Lane>>>,
    router: Notify,
    ticker: Notify,
    ticker_sleeps: AtomicBool,
    is_closed: AtomicBool,
}

impl Group {
    fn lane(&self, kind: Kind) -> &Arc<Lane> {
        let kind = if kind == Kind::Get { LaneKind::Read(self.consistency) } else { LaneKind::Write };
        self.lanes.of(kind)
    }

    /// The operation with the group's guard, and with its owner where the frame does not say it.
    fn complete<'a>(&'a self, op: &Op<'a>) -> Op<'a> {
        let mut op = *op;
        if let (Some(token), None, true) = (&self.guard, op.guard, check::may_have_guard(op.kind)) {
            op.guard = Some((token.fencing_token(), token.lock()));
        }
        let options = &self.handle.shared().options;
        if !options.exactly_once && op.session.is_none() && check::needs_owner(&op) {
            op.session = Some((options.identity.client_id, 0));
        }
        op
    }
}

impl Shared {
    /// The lanes of a group, made when first asked for. They are small and stay.
    pub fn lanes(&self, group: u32) -> Arc<Lanes> {
        let options = self.options.lanes();
        let lane = |kind| Arc::new(Lane::new(group, kind, options));
        let read = |consistency| lane(LaneKind::Read(consistency));
        let mut lanes = self.dispatch.lanes.lock();
        let made = lanes.entry(group).or_insert_with(|| {
            let reads = [Consistency::Linearizable, Consistency::Lease, Consistency::Stale].map(read);
            Arc::new(Lanes { write: lane(LaneKind::Write), reads })
        });
        made.clone()
    }

    /// One operation with a callback; never waits.
    pub fn submit(self: &Arc<Self>, group: &Group, op: &Op<'_>, done: Done) {
        let op = &group.complete(op);
        if let Err(error) = check(op) {
            return done(Err(error));
        }
        let bytes = op.packed_len();
        let size = Size { ops: 1, bytes, units: units(bytes) };
        if !self.limiter.try_take(size.ops, size.units) {
            let message = "too many operations are in flight in this client; wait until it is ready";
            return done(Err(Error::did_not_happen(Reason::Overloaded, message)));
        }
        let lane = group.lane(op.kind);
        self.push(lane, op.kind, Waiter::Done(done), size, group.timeout, |out| op.pack(out));
    }

    /// One operation, waited for.
    pub async fn call(self: &Arc<Self>, group: &Group, op: &Op<'_>) -> Result<OpResult, Error> {
        let op = &group.complete(op);
        check(op)?;
        let bytes = op.packed_len();
        let size = Size { ops: 1, bytes, units: units(bytes) };
        let timeout = self.take_room(size, group.timeout).await?;
        let (caller, answer) = oneshot::channel();
        let lane = group.lane(op.kind);
        self.push(lane, op.kind, Waiter::Call(caller), size, timeout, |out| op.pack(out));
        answer.await.unwrap_or_else(|_| Err(of_kind(lane.kind, ended())))
    }

    /// Many gets in one frame. None when they do not fit.
    pub async fn call_gets(
        self: &Arc<Self>,
        group: &Group,
        keys: &[Bytes],
    ) -> Option<Result<ManyResults, Error>> {
        let bytes = keys.iter().map(|key| packed::HEADER_BYTES + key.len()).sum();
        if keys.len() > self.options.frame_ops_max || bytes > FRAME_BYTES_TARGET {
            return None;
        }
        let ops = u32::try_from(keys.len()).ok()?;
        let size = Size { ops, bytes, units: units(bytes) };
        let timeout = match self.take_room(size, group.timeout).await {
            Ok(timeout) => timeout,
            Err(error) => return Some(Err(error)),
        };
        let (caller, answer) = oneshot::channel();
        let pack = |out: &mut Vec<u8>| keys.iter().for_each(|key| Op::new(Kind::Get, key, b"").pack(out));
        self.push(group.lane(Kind::Get), Kind::Get, Waiter::Many(ops, caller), size, timeout, pack);
        Some(answer.await.unwrap_or_else(|_| Err(ended().of_read())))
    }

    /// Takes room for operations, waiting within the deadline. Answers what is left of it.
    async fn take_room(&self, size: Size, timeout: Duration) -> Result<Duration, Error> {
        if self.limiter.try_take(size.ops, size.units) {
            return Ok(timeout);
        }
        let deadline = Instant::now() + timeout;
        let room = self.limiter.take(size.ops, size.units);
        if tokio::time::timeout_at(deadline, room).await.is_err() {
            let message = format!(
                "no room within {} ms: at most {} operations and {} bytes are in flight at once; send less, or \
                 raise the bounds of the client",
                timeout.as_millis(),
                self.options.in_flight_ops_max,
                self.options.in_flight_bytes_max
            );
            return Err(Error::did_not_happen(Reason::Overloaded, message));
        }
        Ok(round_up(deadline.saturating_duration_since(Instant::now()), timeout))
    }

    #[inline]
    fn push(
        &self,
        lane: &Arc<Lane>,
        kind: Kind,
        waiter: Waiter,
        size: Size,
        timeout: Duration,
        pack: impl FnOnce(&mut Vec<u8>),
    ) {
        if let Some(destination) = lane.push(kind, waiter, size, timeout, pack) {
            self.schedule(lane.clone(), destination);
        }
        if self.dispatch.ticker_sleeps.load(Ordering::SeqCst) {
            self.dispatch.ticker.notify_one();
        }
    }

    /// Queues a lane where it belongs.
    pub fn schedule(&self, lane: Arc<Lane>, destination: Destination) {
        match destination {
            Some(pipe) => pipe.enqueue(lane),
            None => {
                self.dispatch.homeless.lock().push(lane);
                self.dispatch.router.notify_one();
            }
        }
    }

    /// Gives a frame's room back, then answers its callers, then lets its lane go on.
    pub fn finish(&self, lane: &Arc<Lane>, frame: Frame, answer: impl FnOnce(LaneKind, Frame)) {
        self.limiter.give_back(frame.count, frame.units);
        let (is_small, sequence) = (frame.is_small, frame.sequence);
        answer(lane.kind, frame);
        if let Some(destination) = lane.settle(is_small, sequence) {
            self.schedule(lane.clone(), destination);
        }
    }

    pub fn frame_answered(
        self: &Arc<Self>,
        pipe: &Arc<Pipe>,
        lane: &Arc<Lane>,
        frame: Frame,
        reply: FrameReply,
    ) {
        match reply.failure {
            Some(failure) => {
                let error = Error::from(failure).context(&pipe.address);
                self.frame_failed(pipe, lane, frame, error);
            }
            None if frame.is_session_expired(&reply) => self.session_expired(lane, frame),
            None => self.finish(lane, frame, |kind, frame| frame.answer(kind, &reply)),
        }
    }

    /// The store does not know any more what became of the number that a frame has. A frame that was
    /// sent for the first time did not happen then, and gets another number.
    fn session_expired(&self, lane: &Arc<Lane>, mut frame: Frame) {
        let error = Error::session_expired();
        if frame.is_unknown() {
            return self.finish(lane, frame, |_, frame| frame.fail(&error));
        }
        if let Some(destination) = frame.unnumber().and_then(|sequence| lane.refuse_number(sequence)) {
            self.schedule(lane.clone(), destination);
        }
        let pause = if frame.attempts == 0 { Duration::ZERO } else { retry::delay(frame.attempts) };
        frame.note(error);
        self.give_back(lane, frame, pause);
    }

    /// A frame came to nothing at a node: it is sent again, or its callers hear why not.
    pub fn frame_failed(
        self: &Arc<Self>,
        pipe: &Arc<Pipe>,
        lane: &Arc<Lane>,
        mut frame: Frame,
        error: Error,
    ) {
        let error = of_kind(lane.kind, error);
        if lane.kind.is_read() && error.reason() == Reason::InvalidArgument {
            // Gets were checked before they were packed together: what breaks a limit is their common
            // answer, and none of them asked for that.
            let (first, rest) = frame.split();
            if let Some(rest) = rest {
                self.give_back(lane, rest, Duration::ZERO);
                return self.give_back(lane, first, Duration::ZERO);
            }
            frame = first;
        }
        let next = retry::decide(&error, frame.is_repeatable(lane.kind), frame.attempts + 1);
        let pause = match next {
            Next::Fail => {
                // A leader that is cut off from the others may answer nothing else for long.
                if error.kind() == ErrorKind::OutcomeUnknown {
                    self.leave(pipe, lane);
                }
                return self.finish(lane, frame, |_, frame| frame.fail(&error));
            }
            Next::Again(pause) => pause,
            Next::Rediscover(pause) => {
                self.leave(pipe, lane);
                pause
            }
            Next::Redirect(leader, pause) => {
                match self.router.redirect(lane.group, &leader) {
                    Some(address) => lane.set_route(self.pipe(&address)),
                    None => self.leave(pipe, lane),
                }
                pause
            }
        };
        frame.note(error);
        self.give_back(lane, frame, pause);
    }

    /// A frame has to be sent (again) after a pause.
    pub fn give_back(&self, lane: &Arc<Lane>, frame: Frame, pause: Duration) {
        if let Some(destination) = lane.give_back(frame, pause) {
            self.schedule(lane.clone(), destination);
        }
        if self.is_closed() {
            self.fail_unsent(lane, &dropped());
        }
    }

    /// Fails everything that a lane has not sent.
    fn fail_unsent(&self, lane: &Arc<Lane>, error: &Error) {
        for frame in lane.take_all() {
            self.finish(lane, frame, |_, frame| frame.fail(error));
        }
    }

    fn leave(&self, pipe: &Arc<Pipe>, lane: &Arc<Lane>) {
        self.router.forget(lane.group, &pipe.address);
        lane.leave(pipe);
    }

    /// The stream that a lane was queued for could not be opened, or broke.
    pub fn lane_stranded(&self, pipe: &Arc<Pipe>, lane: Arc<Lane>, failure: &Error) {
        self.leave(pipe, &lane);
        lane.note_failure(failure);
        let destination = lane.route();
        self.schedule(lane, destination);
    }

    pub fn frame_expired_unsent(&self, lane: &Arc<Lane>, frame: Frame) {
        let error = frame.expired_unsent();
        self.finish(lane, frame, |_, frame| frame.fail(&error));
    }

    /// The pipe to an address; its task starts with it.
    fn pipe(self: &Arc<Self>, address: &Address) -> Arc<Pipe> {
        let mut pipes = self.dispatch.pipes.lock();
        let made = pipes.entry(address.clone()).or_insert_with(|| {
            let pipe = Arc::new(Pipe::new(address.clone()));
            self.runtime.spawn(pipe::drive(self.clone(), pipe.clone()));
            pipe
        });
        if self.is_closed() {
            made.close();
        }
        made.clone()
    }

    /// Starts the tasks that belong to no pipe.
    pub fn start(self: &Arc<Self>) {
        self.runtime.spawn(find_routes(self.clone()));
        self.runtime.spawn(keep_time(self.clone()));
    }

    /// Ends all tasks; whoever still waits hears so.
    pub fn close(&self) {
        self.dispatch.is_closed.store(true, Ordering::SeqCst);
        self.dispatch.router.notify_one();
        self.dispatch.ticker.notify_one();
        for pipe in self.dispatch.pipes.lock().values() {
            pipe.close();
        }
        for lanes in self.every_group() {
            lanes.all().for_each(|lane| self.fail_unsent(lane, &dropped()));
        }
    }

    fn is_closed(&self) -> bool {
        self.dispatch.is_closed.load(Ordering::SeqCst)
    }

    fn every_group(&self) -> Vec<Arc<Lanes>> {
        self.dispatch.lanes.lock().values().cloned().collect()
    }

    /// True when the lane's node is known and the lane was queued there.
    fn try_route(self: &Arc<Self>, lane: &Arc<Lane>) -> bool {
        let pipe = match lane.route() {
            Some(pipe) => pipe,
            None => match self.router.target(lane.group, lane.kind.any_replica()) {
                Some(address) => self.pipe(&address),
                None => return false,
            },
        };
        lane.set_route(pipe.clone());
        pipe.enqueue(lane.clone());
        true
    }

    /// One round of questions for lanes without a node; those that are still without stay.
    async fn find_routes_once(self: &Arc<Self>, mut lanes: Vec<Arc<Lane>>) -> Vec<Arc<Lane>> {
        lanes.retain(|lane| !self.try_route(lane));
        if lanes.is_empty() {
            return lanes;
        }
        let mut wanted: Vec<u32> = lanes.iter().map(|lane| lane.group).collect();
        wanted.sort_unstable();
        wanted.dedup();
        let discovery = self.router.discover(&self.channels, &wanted).await;
        lanes.retain(|lane| !self.try_route(lane));
        lanes.retain(|lane| {
            let error = self.no_route(lane.group, discovery.is_complete(), &discovery.complaint());
            let is_hopeless = error.reason() == Reason::GroupNotFound;
            if is_hopeless {
                self.fail_unsent(lane, &error);
            } else {
                lane.note_failure(&error);
            }
            !is_hopeless
        });
        lanes
    }

    fn tick_lane(&self, lane: &Arc<Lane>, now: Instant) {
        let (expired, destination) = lane.tick(now);
        for frame in expired {
            self.frame_expired_unsent(lane, frame);
        }
        if let Some(destination) = destination {
            self.schedule(lane.clone(), destination);
        }
    }

    /// Deadlines and pauses, everywhere.
    fn tick(&self, now: Instant) {
        for lanes in self.every_group() {
            lanes.all().for_each(|lane| self.tick_lane(lane, now));
        }
        let pipes: Vec<Arc<Pipe>> = self.dispatch.pipes.lock().values().cloned().collect();
        for pipe in pipes {
            for (lane, frame) in pipe.take_expired(now) {
                let error = frame.expired_unanswered(lane.kind, &pipe.address);
                self.leave(&pipe, &lane);
                self.finish(&lane, frame, |_, frame| frame.fail(&error));
            }
        }
    }
}

/// Only operations with the same deadline share a frame, so what is left of one after waiting is
/// rounded to an eighth.
fn round_up(left: Duration, timeout: Duration) -> Duration {
    let step = (timeout / 8).max(Duration::from_millis(1));
    let steps = left.as_nanos().div_ceil(step.as_nanos());
    step.saturating_mul(u32::try_from(steps).unwrap_or(u32::MAX)).min(timeout)
}

fn dropped() -> Error {
    Error::did_not_happen(Reason::Unspecified, "the client was dropped before the call was sent")
}

fn ended() -> Error {
    Error::outcome_unknown(Reason::Unspecified, "the runtime ended while the call ran")
}

/// The task that finds nodes for lanes that have none.
async fn find_routes(shared: Arc<Shared>) {
    let mut unresolved = Vec::new();
    let mut attempt = 0;
    while !shared.is_closed() {
        let arrived = shared.dispatch.router.notified();
        if unresolved.is_empty() {
            attempt = 0;
            arrived.await;
        } else {
            attempt += 1;
            let pause = retry::delay(attempt).min(ROUTE_DELAY_MAX);
            // Whoever comes meanwhile is looked up at once, but nodes are not asked more often.
            let pause = tokio::time::timeout(pause, arrived).await.map_or(Duration::ZERO, |()| TICK / 2);
            tokio::time::sleep(pause).await;
        }
        unresolved.append(&mut shared.dispatch.homeless.lock());
        unresolved = shared.find_routes_once(unresolved).await;
    }
}

/// The task that keeps deadlines while something is in flight.
async fn keep_time(shared: Arc<Shared>) {
    let mut idle_ticks = 0;
    while !shared.is_closed() {
        if idle_ticks < IDLE_TICKS {
            tokio::time::sleep(TICK).await;
        } else {
            shared.dispatch.ticker_sleeps.store(true, Ordering::SeqCst);
            if shared.limiter.is_idle() {
                shared.dispatch.ticker.notified().await;
            }
            shared.dispatch.ticker_sleeps.store(false, Ordering::SeqCst);
        }
        idle_ticks = if shared.limiter.is_idle() { idle_ticks + 1 } else { 0 };
        if idle_ticks == 0 {
            shared.tick(Instant::now());
        }
    }
}
