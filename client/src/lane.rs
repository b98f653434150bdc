//! What waits for one group: operations packed into the frame that goes out next, full frames, and
//! frames that came back to be sent again.
//!
//! There are no timers. A frame goes out as soon as the sender is free, except that only a few
//! frames that are not full may be unanswered at once: while they are on their way, the next one
//! fills. A lone operation therefore travels at once, and many travel together.

use crate::error::Error;
use crate::frame::{Contents, Entry, Frame, Waiter};
use crate::limits::FRAME_BYTES_TARGET;
use crate::numbering::{Identity, Numbering};
use crate::packed::Kind;
use crate::packed::scope::Scope;
use crate::pipe::Pipe;
use crate::v1::Consistency;
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// With so many frames unanswered on a node's stream there is no need for a second small frame of
/// one group: larger frames cost the node less.
const PIPE_BUSY_FRAMES: usize = 16;

/// What one lane carries; a frame never mixes them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LaneKind {
    Write,
    Read(Consistency),
}

impl LaneKind {
    pub fn is_read(self) -> bool {
        self != LaneKind::Write
    }

    /// True when a follower may answer.
    pub fn any_replica(self) -> bool {
        self == LaneKind::Read(Consistency::Stale)
    }

    pub fn consistency(self) -> Consistency {
        match self {
            LaneKind::Write => Consistency::Linearizable,
            LaneKind::Read(consistency) => consistency,
        }
    }
}

/// Reads have no effect, so their outcome is never unknown.
pub(crate) fn of_kind(kind: LaneKind, error: Error) -> Error {
    if kind.is_read() { error.of_read() } else { error }
}

/// Where a lane goes that has something to send: to this node, or first to have its node found.
pub(crate) type Destination = Option<Arc<Pipe>>;

/// What a pipe gets from a lane.
pub(crate) enum Cut {
    /// A frame; true when there is another.
    Frame(Frame, bool),
    /// A frame whose deadline is over; the lane is to be asked again.
    Expired(Frame),
    /// Nothing; the lane comes back by itself.
    Nothing,
    /// The lane belongs to another node by now.
    Elsewhere(Destination),
}

#[derive(Default)]
struct State {
    /// The frame that is being packed.
    open: Option<Contents>,
    /// None: reads, and writes that are not numbered.
    numbering: Option<Numbering>,
    /// Full frames and frames to be sent again, in order.
    closed: VecDeque<Frame>,
    route: Destination,
    /// It stands in exactly one queue: a pipe's, or the one for routing.
    is_scheduled: bool,
    /// Nothing is sent before this time.
    paused_until: Option<Instant>,
    small_frames: usize,
    next_place: u64,
    /// Size of the last frame, a guess at the next.
    last_bytes: usize,
    last_entries: usize,
}

/// How lanes form frames.
#[derive(Clone, Copy)]
pub(crate) struct LaneOptions {
    pub frame_ops_max: u32,
    pub small_frames_max: usize,
    /// Who writes, if every write shall happen once.
    pub identity: Option<Identity>,
}

/// One group's operations of one kind.
pub(crate) struct Lane {
    pub group: u32,
    pub kind: LaneKind,
    frame_ops_max: u32,
    small_frames_max: usize,
    state: Mutex<State>,
}

impl Lane {
    pub fn new(group: u32, kind: LaneKind, options: LaneOptions) -> Lane {
        let LaneOptions { frame_ops_max, small_frames_max, identity } = options;
        let numbering = identity.filter(|_| !kind.is_read()).map(Numbering::new);
        let state = Mutex::new(State { numbering, ..State::default() });
        Lane { group, kind, frame_ops_max, small_frames_max, state }
    }

    /// Packs operations that get one answer. The caller schedules the lane when told to.
    #[inline]
    pub fn push(
        &self,
        kind: Kind,
        waiter: Waiter,
        size: Size,
        timeout: Duration,
        pack: impl FnOnce(&mut Vec<u8>),
    ) -> Option<Destination> {
        let mut state = self.state.lock();
        state.make_room(&size, timeout, self.frame_ops_max);
        let open = state.opened(timeout);
        pack(&mut open.ops);
        open.entries.push(Entry { kind, waiter });
        open.count += size.ops;
        open.units += size.units as usize;
        if open.count >= self.frame_ops_max || open.ops.len() >= FRAME_BYTES_TARGET {
            state.close_open();
        }
        self.schedule(&mut state)
    }

    fn schedule(&self, state: &mut State) -> Option<Destination> {
        if state.is_scheduled || state.paused_until.is_some() || !self.has_sendable(state) {
            return None;
        }
        state.is_scheduled = true;
        Some(state.route.clone())
    }

    fn has_sendable(&self, state: &State) -> bool {
        match state.closed.front() {
            Some(frame) => frame.sequence.is_some() || state.has_number(),
            None => state.open.is_some() && self.may_send_small(state) && state.has_number(),
        }
    }

    fn may_send_small(&self, state: &State) -> bool {
        state.small_frames == 0
            || (state.small_frames < self.small_frames_max
                && state.route.as_ref().is_none_or(|pipe| pipe.sent_frames() < PIPE_BUSY_FRAMES))
    }

    /// Takes the next frame for a pipe in whose queue the lane stood.
    pub fn cut(&self, pipe: &Arc<Pipe>, now: Instant) -> Cut {
        let mut state = self.state.lock();
        if !state.route.as_ref().is_some_and(|route| Arc::ptr_eq(route, pipe)) {
            return Cut::Elsewhere(state.route.clone());
        }
        let next = if state.paused_until.is_some() { None } else { self.take_next(&mut state) };
        let Some(mut frame) = next else {
            state.is_scheduled = false;
            return Cut::Nothing;
        };
        if frame.deadline <= now {
            return Cut::Expired(frame);
        }
        state.seal(&mut frame);
        let more = self.has_sendable(&state);
        state.is_scheduled = more;
        Cut::Frame(frame, more)
    }

    fn take_next(&self, state: &mut State) -> Option<Frame> {
        if !self.has_sendable(state) {
            return None;
        }
        if let Some(frame) = state.closed.pop_front() {
            return Some(frame);
        }
        state.close_open();
        let mut frame = state.closed.pop_front()?;
        frame.is_small = true;
        state.small_frames += 1;
        Some(frame)
    }

    /// A frame was answered or given up: the next ones may go.
    pub fn settle(&self, is_small: bool, sequence: Option<u64>) -> Option<Destination> {
        if !is_small && sequence.is_none() {
            return None;
        }
        let mut state = self.state.lock();
        state.small_frames -= usize::from(is_small);
        if let (Some(sequence), Some(numbering)) = (sequence, &mut state.numbering) {
            numbering.settle(sequence);
        }
        self.schedule(&mut state)
    }

    /// A number, and the lowest one in use, for a write that travels outside of frames. None when
    /// writes are not numbered. To be settled with [`Lane::settle`].
    pub fn take_number(&self) -> Option<(u64, u64)> {
        let mut state = self.state.lock();
        let numbering = state.numbering.as_mut()?;
        let sequence = numbering.take();
        Some((sequence, numbering.acknowledged_below()))
    }

    /// The store refused a number that was never sent before.
    pub fn refuse_number(&self, sequence: u64) -> Option<Destination> {
        let mut state = self.state.lock();
        if let Some(numbering) = &mut state.numbering {
            numbering.refused(sequence);
        }
        self.schedule(&mut state)
    }

    /// Takes a frame back that has to be sent again, after a pause. The caller schedules the lane
    /// when told to; after a pause, [`Lane::tick`] tells.
    pub fn give_back(&self, mut frame: Frame, pause: Duration) -> Option<Destination> {
        let mut state = self.state.lock();
        state.small_frames -= usize::from(frame.is_small);
        frame.is_small = false;
        let place = state.closed.partition_point(|other| other.place < frame.place);
        state.closed.insert(place, frame);
        if !pause.is_zero() {
            state.paused_until = state.paused_until.max(Some(Instant::now() + pause));
        }
        self.schedule(&mut state)
    }

    /// What time brings: the end of a pause, and unsent frames whose deadline is over.
    pub fn tick(&self, now: Instant) -> (Vec<Frame>, Option<Destination>) {
        let mut state = self.state.lock();
        if state.open.as_ref().is_some_and(|open| is_stale(open, now)) {
            state.close_open();
        }
        let expired = state.take_expired(now);
        if state.paused_until.is_some_and(|until| until <= now) {
            state.paused_until = None;
        }
        let destination = self.schedule(&mut state);
        (expired, destination)
    }

    /// The node that serves this lane.
    pub fn set_route(&self, pipe: Arc<Pipe>) {
        self.state.lock().route = Some(pipe);
    }

    /// Forgets the node that serves this lane, if it is this one.
    pub fn leave(&self, pipe: &Arc<Pipe>) {
        let mut state = self.state.lock();
        if state.route.as_ref().is_some_and(|route| Arc::ptr_eq(route, pipe)) {
            state.route = None;
        }
    }

    pub fn route(&self) -> Destination {
        self.state.lock().route.clone()
    }

    /// Remembers why nothing can be sent, for those whose deadline comes before that changes.
    pub fn note_failure(&self, failure: &Error) {
        let mut state = self.state.lock();
        state.close_open();
        for frame in &mut state.closed {
            frame.note_obstacle(failure);
        }
    }

    /// Takes all unsent frames, of a lane that nobody can serve.
    pub fn take_all(&self) -> Vec<Frame> {
        let mut state = self.state.lock();
        state.close_open();
        state.is_scheduled = false;
        std::mem::take(&mut state.closed).into()
    }
}

/// Room that an operation needs.
#[derive(Clone, Copy)]
pub(crate) struct Size {
    pub ops: u32,
    pub bytes: usize,
    pub units: u32,
}

/// Whoever joined this frame now would be given up too early, with the first.
fn is_stale(open: &Contents, now: Instant) -> bool {
    open.deadline <= now + open.timeout - open.timeout / 16
}

impl State {
    fn take_expired(&mut self, now: Instant) -> Vec<Frame> {
        if self.closed.iter().all(|frame| frame.deadline > now) {
            return Vec::new();
        }
        let all = std::mem::take(&mut self.closed);
        let (expired, kept): (VecDeque<_>, _) = all.into_iter().partition(|frame| frame.deadline <= now);
        self.closed = kept;
        expired.into()
    }

    /// Closes the open frame when the next operations do not fit or have another deadline.
    #[inline]
    fn make_room(&mut self, size: &Size, timeout: Duration, frame_ops_max: u32) {
        let fits = self.open.as_ref().is_none_or(|open| {
            open.count + size.ops <= frame_ops_max
                && open.ops.len() + size.bytes <= FRAME_BYTES_TARGET
                && open.timeout == timeout
        });
        if !fits {
            self.close_open();
        }
    }

    #[inline]
    fn opened(&mut self, timeout: Duration) -> &mut Contents {
        let (last_bytes, last_entries) = (self.last_bytes, self.last_entries);
        let is_numbered = self.numbering.is_some();
        self.open.get_or_insert_with(|| {
            let mut ops = Vec::with_capacity(last_bytes);
            if is_numbered {
                ops.resize(Scope::PACKED_BYTES, 0);
            }
            Contents {
                ops,
                entries: Vec::with_capacity(last_entries),
                count: 0,
                units: 0,
                timeout,
                deadline: Instant::now() + timeout,
            }
        })
    }

    fn close_open(&mut self) {
        let Some(open) = self.open.take() else { return };
        self.last_bytes = open.ops.len().min(FRAME_BYTES_TARGET);
        self.last_entries = open.entries.len();
        let place = self.next_place;
        self.next_place += 1;
        self.closed.push_back(Frame::new(open, place));
    }

    /// True when a frame that was not sent before may be sent.
    fn has_number(&self) -> bool {
        self.numbering.as_ref().is_none_or(Numbering::has_room)
    }

    /// Numbers a frame that goes out now.
    fn seal(&mut self, frame: &mut Frame) {
        let numbers = self.numbering.as_mut().map(|numbering| {
            frame.sequence.get_or_insert_with(|| numbering.take());
            (numbering.client_id(), numbering.acknowledged_below())
        });
        frame.seal(numbers);
    }
}

#[cfg(test)]
mod tests;
