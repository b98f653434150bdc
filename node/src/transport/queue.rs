//! Messages that wait for a stream, and how many may wait.

use super::metrics::LaneMetrics;
use crate::peer_v1 as pb;
use futures::Stream;
use parking_lot::Mutex;
use prost::Message;
use rustc_hash::FxHashMap;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker};
use tonic::Status;

/// Bounds of a queue and of the batches cut from it.
#[derive(Clone, Copy, Debug)]
pub(super) struct QueueLimits {
    pub bytes_max: usize,
    pub batch_bytes_max: usize,
    pub batch_messages_max: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PushError {
    Full,
    Closed,
}

/// The queue before one gRPC stream. The stream takes everything that waits whenever it has room:
/// batches grow with the load, without a timer.
#[derive(Debug)]
pub(super) struct Outbound {
    limits: QueueLimits,
    metrics: LaneMetrics,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    hello: Option<pb::Hello>,
    /// The other end has introduced itself; messages may go.
    open: bool,
    closed: bool,
    messages: Vec<pb::Message>,
    bytes: usize,
    reader: Option<Waker>,
}

impl Outbound {
    pub fn new(limits: QueueLimits, metrics: LaneMetrics) -> Arc<Outbound> {
        Arc::new(Outbound { limits, metrics, state: Mutex::default() })
    }

    /// The first thing the stream says.
    pub fn greet(&self, hello: pb::Hello) {
        self.state.lock().hello = Some(hello);
    }

    /// Lets the messages go.
    pub fn open(&self) {
        let reader = {
            let mut state = self.state.lock();
            state.open = true;
            state.reader.take()
        };
        wake(reader);
    }

    pub fn push(&self, message: pb::Message) -> Result<(), PushError> {
        let bytes = message.encoded_len();
        self.push_sized(message, bytes)
    }

    /// For callers that have measured the message already.
    pub fn push_sized(&self, message: pb::Message, bytes: usize) -> Result<(), PushError> {
        let reader = {
            let mut state = self.state.lock();
            if state.closed {
                return Err(PushError::Closed);
            }
            if state.bytes >= self.limits.bytes_max {
                self.metrics.dropped.inc();
                return Err(PushError::Full);
            }
            state.messages.push(message);
            state.bytes += bytes;
            if state.open { state.reader.take() } else { None }
        };
        self.metrics.queue_bytes.add(bytes as i64);
        wake(reader);
        Ok(())
    }

    /// Drops what waits and ends the stream.
    pub fn close(&self) {
        let (bytes, reader) = {
            let mut state = self.state.lock();
            state.closed = true;
            state.messages = Vec::new();
            (std::mem::take(&mut state.bytes), state.reader.take())
        };
        self.metrics.queue_bytes.sub(bytes as i64);
        wake(reader);
    }

    fn poll_batch(&self, cx: &mut Context<'_>) -> Poll<Option<pb::Batch>> {
        let mut state = self.state.lock();
        if state.closed {
            return Poll::Ready(None);
        }
        if let Some(hello) = state.hello.take() {
            return Poll::Ready(Some(pb::Batch { hello: Some(hello), messages: Vec::new() }));
        }
        if !state.open || state.messages.is_empty() {
            keep_waker(&mut state.reader, cx);
            return Poll::Pending;
        }
        let (messages, bytes) = state.cut(&self.limits);
        drop(state);
        self.metrics.queue_bytes.sub(bytes as i64);
        self.metrics.sent.batch(messages.len(), bytes);
        Poll::Ready(Some(pb::Batch { hello: None, messages }))
    }
}

impl State {
    /// Takes what fits in one batch, at least one message.
    fn cut(&mut self, limits: &QueueLimits) -> (Vec<pb::Message>, usize) {
        if self.bytes <= limits.batch_bytes_max && self.messages.len() <= limits.batch_messages_max {
            return (std::mem::take(&mut self.messages), std::mem::take(&mut self.bytes));
        }
        let (mut count, mut bytes) = (0, 0);
        for message in self.messages.iter().take(limits.batch_messages_max) {
            let next = message.encoded_len();
            if count > 0 && bytes + next > limits.batch_bytes_max {
                break;
            }
            (count, bytes) = (count + 1, bytes + next);
        }
        self.bytes -= bytes;
        (self.messages.drain(..count).collect(), bytes)
    }
}

fn wake(waker: Option<Waker>) {
    if let Some(waker) = waker {
        waker.wake();
    }
}

pub(super) fn keep_waker(slot: &mut Option<Waker>, cx: &Context<'_>) {
    match slot {
        Some(waker) => waker.clone_from(cx.waker()),
        None => *slot = Some(cx.waker().clone()),
    }
}

/// The asking side's end of an [`Outbound`]; dropping it closes the queue.
#[derive(Debug)]
pub(super) struct BatchStream(pub Arc<Outbound>);

impl Drop for BatchStream {
    fn drop(&mut self) {
        self.0.close();
    }
}

impl Stream for BatchStream {
    type Item = pb::Batch;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<pb::Batch>> {
        self.0.poll_batch(cx)
    }
}

/// The answering side's end of a queue; dropping it closes the queue.
#[derive(Debug)]
pub struct Replies(pub(super) BatchStream);

impl Stream for Replies {
    type Item = Result<pb::Batch, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        Pin::new(&mut self.0).poll_next(cx).map(|batch| batch.map(Ok))
    }
}

/// Bytes of append requests that are on their way to one peer, queued or not yet answered. Who
/// finds it used up waits.
#[derive(Debug)]
pub(super) struct Budget {
    bytes_max: usize,
    used: AtomicUsize,
    waiting: Mutex<FxHashMap<u64, Waker>>,
}

impl Budget {
    pub fn new(bytes_max: usize) -> Budget {
        Budget { bytes_max, used: AtomicUsize::new(0), waiting: Mutex::default() }
    }

    /// Ready while there is room; `who` is woken otherwise.
    pub fn poll_room(&self, who: u64, cx: &Context<'_>) -> Poll<()> {
        if self.has_room() {
            return Poll::Ready(());
        }
        let mut waiting = self.waiting.lock();
        waiting.insert(who, cx.waker().clone());
        // Given back between the look and the insertion: the giver found nobody to wake.
        if self.has_room() {
            waiting.remove(&who);
            return Poll::Ready(());
        }
        Poll::Pending
    }

    fn has_room(&self) -> bool {
        self.used.load(Ordering::SeqCst) < self.bytes_max
    }

    pub fn take(&self, bytes: usize) {
        self.used.fetch_add(bytes, Ordering::SeqCst);
    }

    pub fn give(&self, bytes: usize) {
        let before = self.used.fetch_sub(bytes, Ordering::SeqCst);
        if before >= self.bytes_max && before - bytes < self.bytes_max {
            let woken = std::mem::take(&mut *self.waiting.lock());
            woken.into_values().for_each(Waker::wake);
        }
    }

    /// `who` gave up.
    pub fn forget(&self, who: u64) {
        if !self.has_room() {
            self.waiting.lock().remove(&who);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::metrics::TransportMetrics;
    use super::*;
    use futures::FutureExt;
    use futures::StreamExt;

    fn outbound(bytes_max: usize) -> Arc<Outbound> {
        let metrics = TransportMetrics::register(&prometheus::Registry::new());
        let limits = QueueLimits { bytes_max, batch_bytes_max: 1000, batch_messages_max: 3 };
        Outbound::new(limits, metrics.lane(pb::Lane::Append).clone())
    }

    fn message(call: u64, text: usize) -> pb::Message {
        let body = pb::message::Body::Refused("x".repeat(text));
        pb::Message { group_id: 1, call, body: Some(body), ..pb::Message::default() }
    }

    #[test]
    fn the_hello_goes_first_and_messages_wait_until_the_queue_opens() {
        let outbound = outbound(10_000);
        outbound.greet(pb::Hello::default());
        outbound.push(message(1, 1)).unwrap();
        let mut stream = BatchStream(outbound.clone());
        assert!(stream.next().now_or_never().flatten().unwrap().hello.is_some());
        assert!(stream.next().now_or_never().is_none());
        outbound.open();
        assert_eq!(stream.next().now_or_never().flatten().unwrap().messages.len(), 1);
    }

    #[test]
    fn batches_are_bounded_in_messages_and_bytes_and_keep_the_order() {
        let outbound = outbound(100_000);
        outbound.open();
        (0..4).for_each(|call| outbound.push(message(call, 10)).unwrap());
        (4..7).for_each(|call| outbound.push(message(call, 600)).unwrap());
        outbound.push(message(7, 5000)).unwrap();
        let mut stream = BatchStream(outbound);
        let mut sizes = Vec::new();
        let mut calls = Vec::new();
        while let Some(Some(batch)) = stream.next().now_or_never() {
            sizes.push(batch.messages.len());
            calls.extend(batch.messages.iter().map(|m| m.call));
        }
        assert_eq!(sizes, [3, 2, 1, 1, 1]);
        assert_eq!(calls, (0..8).collect::<Vec<_>>());
    }

    #[test]
    fn a_full_queue_refuses_and_a_closed_one_ends_the_stream() {
        let outbound = outbound(100);
        outbound.push(message(1, 200)).unwrap();
        assert_eq!(outbound.push(message(2, 1)), Err(PushError::Full));
        outbound.close();
        assert_eq!(outbound.push(message(3, 1)), Err(PushError::Closed));
        let mut stream = BatchStream(outbound.clone());
        assert_eq!(stream.next().now_or_never().unwrap(), None);
        assert_eq!(outbound.metrics.queue_bytes.get(), 0);
    }

    #[tokio::test]
    async fn a_used_up_budget_wakes_who_waits_when_it_is_given_back() {
        let budget = Arc::new(Budget::new(100));
        budget.take(150);
        let waiting = budget.clone();
        let waiter = tokio::spawn(async move {
            std::future::poll_fn(|cx| waiting.poll_room(1, cx)).await;
        });
        tokio::task::yield_now().await;
        budget.give(20);
        tokio::task::yield_now().await;
        assert!(!waiter.is_finished());
        budget.give(40);
        waiter.await.unwrap();
    }
}
