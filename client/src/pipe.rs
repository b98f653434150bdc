//! One stream of frames to each node that serves something, and its life: opened when there is
//! something to send, broken, opened again.

use crate::channel::{Address, call_error};
use crate::client::Shared;
use crate::error::Error;
use crate::frame::Frame;
use crate::lane::{Cut, Lane};
use crate::retry;
use crate::v1;
use crate::v1::failure::Reason;
use futures::Stream;
use futures::task::AtomicWaker;
use parking_lot::Mutex;
use rustc_hash::FxHashMap;
use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::Instant;
use tonic::Streaming;

/// A node that was silent for so long, and beyond a deadline or half of the time of a frame that may
/// be sent again, is taken for dead.
const SILENCE_MAX: Duration = Duration::from_secs(1);
const RECONNECT_DELAY_MAX: Duration = Duration::from_millis(250);
/// A node that is slow enough to be told apart from a dead one must answer before the deadline of
/// its frames; this is what is left for its answer to travel.
const ANSWER_TRAVEL_MAX: Duration = Duration::from_millis(100);

/// The stream of frames to one node.
pub(crate) struct Pipe {
    pub address: Address,
    state: Mutex<State>,
    sent_frames: AtomicUsize,
    /// Wakes the sending half of the stream.
    sender: AtomicWaker,
    /// Wakes the task that owns the pipe.
    owner: Notify,
}

struct State {
    /// Lanes with something to send, each at most once.
    ready: VecDeque<Arc<Lane>>,
    sent: FxHashMap<u64, Sent>,
    next_id: u64,
    /// Which stream is the current one; frames go out only on that.
    stream: u64,
    is_open: bool,
    is_closed: bool,
    /// The stream is to be given up: it was silent beyond a deadline.
    is_suspect: bool,
    heard: Instant,
}

struct Sent {
    lane: Arc<Lane>,
    frame: Frame,
    at: Instant,
}

impl Sent {
    /// There is time enough to ask somebody else.
    fn is_worth_a_retry(&self, now: Instant) -> bool {
        self.frame.is_repeatable(self.lane.kind) && self.at + self.frame.timeout / 2 <= now
    }
}

impl Pipe {
    pub fn new(address: Address) -> Pipe {
        let state = State {
            ready: VecDeque::new(),
            sent: FxHashMap::default(),
            next_id: 1,
            stream: 0,
            is_open: false,
            is_closed: false,
            is_suspect: false,
            heard: Instant::now(),
        };
        Pipe {
            address,
            state: Mutex::new(state),
            sent_frames: AtomicUsize::new(0),
            sender: AtomicWaker::new(),
            owner: Notify::new(),
        }
    }

    /// Frames that are unanswered, roughly.
    pub fn sent_frames(&self) -> usize {
        self.sent_frames.load(Ordering::Relaxed)
    }

    /// Queues a lane that has something to send.
    pub fn enqueue(&self, lane: Arc<Lane>) {
        let mut state = self.state.lock();
        state.ready.push_back(lane);
        let is_open = state.is_open;
        drop(state);
        if is_open {
            self.sender.wake();
        } else {
            self.owner.notify_one();
        }
    }

    /// Ends the pipe for ever.
    pub fn close(&self) {
        self.state.lock().is_closed = true;
        self.sender.wake();
        self.owner.notify_one();
    }

    /// Takes the sent frames whose deadline is over. When the node was silent since one of them was
    /// sent, and for long, the stream is given up.
    pub fn take_expired(&self, now: Instant) -> Vec<(Arc<Lane>, Frame)> {
        let mut state = self.state.lock();
        let expired: Vec<u64> =
            state.sent.iter().filter_map(|(&id, sent)| (sent.frame.deadline <= now).then_some(id)).collect();
        let heard = state.heard;
        let expired: Vec<Sent> = expired.into_iter().filter_map(|id| state.sent.remove(&id)).collect();
        self.sent_frames.store(state.sent.len(), Ordering::Relaxed);
        let mut waiting = state.sent.values().filter(|sent| sent.is_worth_a_retry(now)).chain(&expired);
        if heard + SILENCE_MAX <= now && waiting.any(|sent| sent.at >= heard) {
            state.is_suspect = true;
            self.owner.notify_one();
        }
        expired.into_iter().map(|sent| (sent.lane, sent.frame)).collect()
    }

    fn take_answered(&self, id: u64) -> Option<Sent> {
        let mut state = self.state.lock();
        state.heard = Instant::now();
        let sent = state.sent.remove(&id);
        self.sent_frames.store(state.sent.len(), Ordering::Relaxed);
        sent
    }

    /// Keeps a frame that goes out now and numbers it; gives it back when the stream is over.
    fn keep(
        &self,
        stream: u64,
        lane: &Arc<Lane>,
        frame: Frame,
        more: bool,
        at: Instant,
    ) -> Result<u64, Box<Frame>> {
        let mut state = self.state.lock();
        if state.stream != stream || !state.is_open {
            return Err(Box::new(frame));
        }
        let id = state.next_id;
        state.next_id += 1;
        state.sent.insert(id, Sent { lane: lane.clone(), frame, at });
        self.sent_frames.store(state.sent.len(), Ordering::Relaxed);
        if more {
            state.ready.push_back(lane.clone());
        }
        Ok(id)
    }

    fn begin_stream(&self) -> u64 {
        let mut state = self.state.lock();
        state.stream += 1;
        state.is_suspect = false;
        state.stream
    }

    fn open_stream(&self) {
        let mut state = self.state.lock();
        state.is_open = true;
        state.heard = Instant::now();
        drop(state);
        self.sender.wake();
    }

    /// Ends the current stream; what was sent on it will not be answered.
    fn end_stream(&self) -> (Vec<Sent>, Vec<Arc<Lane>>) {
        let mut state = self.state.lock();
        state.is_open = false;
        state.stream += 1;
        self.sent_frames.store(0, Ordering::Relaxed);
        let sent = std::mem::take(&mut state.sent).into_values().collect();
        let ready = std::mem::take(&mut state.ready).into();
        drop(state);
        self.sender.wake();
        (sent, ready)
    }

    fn is_closed(&self) -> bool {
        self.state.lock().is_closed
    }

    fn must_stop(&self) -> bool {
        let state = self.state.lock();
        state.is_closed || state.is_suspect
    }

    /// Waits until there is something to send; false when the pipe is closed.
    async fn wait_for_work(&self) -> bool {
        loop {
            {
                let state = self.state.lock();
                if state.is_closed || !state.ready.is_empty() {
                    return !state.is_closed;
                }
            }
            self.owner.notified().await;
        }
    }

    /// Waits until the stream has to be given up from this side.
    async fn told_to_stop(&self) {
        while !self.must_stop() {
            self.owner.notified().await;
        }
    }
}

/// Owns a pipe: opens its stream whenever there is something to send, and hands everything back
/// when that fails.
pub(crate) async fn drive(shared: Arc<Shared>, pipe: Arc<Pipe>) {
    let mut attempt = 0;
    while pipe.wait_for_work().await {
        let failure = match open(&shared, &pipe).await {
            Ok(replies) => {
                let (answered, failure) = run(&shared, &pipe, replies).await;
                attempt = if answered { 0 } else { attempt + 1 };
                failure
            }
            Err(failure) => {
                attempt += 1;
                failure
            }
        };
        tracing::debug!(node = %pipe.address, %failure, "stream of frames ended");
        let (sent, ready) = pipe.end_stream();
        for Sent { lane, frame, .. } in sent {
            shared.frame_failed(&pipe, &lane, frame, failure.clone());
        }
        for lane in ready {
            shared.lane_stranded(&pipe, lane, &failure);
        }
        if attempt > 0 && !pipe.is_closed() {
            tokio::time::sleep(retry::delay(attempt).min(RECONNECT_DELAY_MAX)).await;
        }
    }
    let closed = Error::outcome_unknown(Reason::Unspecified, "the client was dropped while the call ran");
    for Sent { lane, frame, .. } in pipe.end_stream().0 {
        shared.finish(&lane, frame, |kind, frame| frame.fail(&crate::lane::of_kind(kind, closed.clone())));
    }
}

/// No frame goes out before the node accepted the stream, so failing here is definite for all.
async fn open(shared: &Arc<Shared>, pipe: &Arc<Pipe>) -> Result<Streaming<v1::FrameReply>, Error> {
    let stream = pipe.begin_stream();
    let outgoing = Outgoing { shared: shared.clone(), pipe: pipe.clone(), stream };
    let mut kv = shared.channels.kv(&pipe.address)?;
    let accepted = tokio::time::timeout(shared.options.connect_timeout, kv.pipe(outgoing));
    let definite = |error: Error| Error::did_not_happen(error.reason(), error.message());
    match accepted.await {
        Ok(Ok(response)) => Ok(response.into_inner()),
        Ok(Err(status)) => Err(definite(call_error(&pipe.address, &status))),
        Err(_) => {
            let waited = shared.options.connect_timeout.as_millis();
            let message = format!("{} did not accept a stream within {waited} ms", pipe.address);
            Err(Error::did_not_happen(Reason::Unspecified, message))
        }
    }
}

/// Reads answers until the stream ends; says whether there were any, and why it ended.
async fn run(
    shared: &Arc<Shared>,
    pipe: &Arc<Pipe>,
    mut replies: Streaming<v1::FrameReply>,
) -> (bool, Error) {
    pipe.open_stream();
    let mut answered = false;
    loop {
        let reply = tokio::select! {
            biased;
            reply = replies.message() => reply,
            () = pipe.told_to_stop() => {
                return (answered, lost(pipe, "was silent for too long"));
            }
        };
        match reply {
            Ok(Some(reply)) => {
                answered = true;
                if let Some(Sent { lane, frame, .. }) = pipe.take_answered(reply.id) {
                    shared.frame_answered(pipe, &lane, frame, reply);
                }
            }
            Ok(None) => return (answered, lost(pipe, "closed the stream")),
            Err(status) => return (answered, lost(pipe, status.message())),
        }
    }
}

/// What was sent and not answered when a stream ended may have happened or not.
fn lost(pipe: &Pipe, why: &str) -> Error {
    let message = format!("the connection to {} was lost: {why}", pipe.address);
    Error::outcome_unknown(Reason::Unspecified, message)
}

/// The sending half: asked for the next frame whenever the connection can take one.
struct Outgoing {
    shared: Arc<Shared>,
    pipe: Arc<Pipe>,
    stream: u64,
}

enum NextFrame {
    Frame(v1::Frame),
    NotYet,
    Over,
}

impl Outgoing {
    fn next_frame(&self) -> NextFrame {
        loop {
            let lane = {
                let mut state = self.pipe.state.lock();
                if state.stream != self.stream || state.is_closed {
                    return NextFrame::Over;
                }
                if !state.is_open {
                    return NextFrame::NotYet;
                }
                match state.ready.pop_front() {
                    Some(lane) => lane,
                    None => return NextFrame::NotYet,
                }
            };
            if let Some(frame) = self.cut(lane) {
                return NextFrame::Frame(frame);
            }
        }
    }

    fn cut(&self, lane: Arc<Lane>) -> Option<v1::Frame> {
        loop {
            let now = Instant::now();
            match lane.cut(&self.pipe, now) {
                Cut::Frame(frame, more) => return self.send(&lane, frame, more, now),
                Cut::Expired(frame) => self.shared.frame_expired_unsent(&lane, frame),
                Cut::Nothing => return None,
                Cut::Elsewhere(destination) => {
                    self.shared.schedule(lane, destination);
                    return None;
                }
            }
        }
    }

    fn send(&self, lane: &Arc<Lane>, frame: Frame, more: bool, now: Instant) -> Option<v1::Frame> {
        let mut message = v1::Frame {
            id: 0,
            group_id: lane.group,
            count: frame.count,
            ops: frame.ops(),
            consistency: lane.kind.consistency().into(),
            read: lane.kind.is_read(),
            timeout_ms: timeout_ms(frame.deadline, now),
        };
        match self.pipe.keep(self.stream, lane, frame, more, now) {
            Ok(id) => {
                message.id = id;
                Some(message)
            }
            // The stream broke in between: the frame was not sent.
            Err(frame) => {
                if more {
                    // The lane still counts as queued, here.
                    self.shared.schedule(lane.clone(), lane.route());
                }
                self.shared.give_back(lane, *frame, Duration::ZERO);
                None
            }
        }
    }
}

fn timeout_ms(deadline: Instant, now: Instant) -> u32 {
    let left = deadline.saturating_duration_since(now);
    let told = left - (left / 16).min(ANSWER_TRAVEL_MAX);
    u32::try_from(told.as_millis()).unwrap_or(u32::MAX).max(1)
}

impl Stream for Outgoing {
    type Item = v1::Frame;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<v1::Frame>> {
        self.pipe.sender.register(context.waker());
        match self.next_frame() {
            NextFrame::Frame(frame) => Poll::Ready(Some(frame)),
            NextFrame::NotYet => Poll::Pending,
            NextFrame::Over => Poll::Ready(None),
        }
    }
}
