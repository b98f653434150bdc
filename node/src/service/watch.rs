//! Streams of watches: requests in, what has changed out. One task reads the requests of a stream;
//! its deliveries are packed when the connection asks for them.

use crate::failure::Failure;
use crate::ids::GroupId;
use crate::service::{Service, admission};
use crate::watch::{Outbox, OutboxOptions, WatchRequest};
use dtkv_client::limits::check_key_or_root;
use dtkv_client::v1;
use dtkv_client::v1::failure::Reason;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::time::{Interval, MissedTickBehavior};
use tokio_stream::Stream;
use tokio_util::sync::{CancellationToken, DropGuard, WaitForCancellationFutureOwned};
use tonic::{Status, Streaming};

/// What the service takes on in watches.
#[derive(Clone, Debug)]
pub struct WatchLimits {
    /// Bytes sent on a stream before the client must acknowledge some.
    pub window_bytes: u64,
    /// Watches on one stream.
    pub watches_per_stream_max: usize,
    /// Watches on the whole node.
    pub watches_max: usize,
    /// A stream says something at least this often.
    pub progress_interval: Duration,
    /// History that is kept for a group, for those who ask for the limits.
    pub history_group_bytes_max: u64,
}

/// Bytes of events that wait for a stream, in windows. Beyond that they wait in the history.
const QUEUED_WINDOWS: u64 = 1;

/// The deliveries of one stream.
pub struct Deliveries {
    service: Service,
    outbox: Arc<Outbox>,
    progress: Interval,
    stopping: Pin<Box<WaitForCancellationFutureOwned>>,
    is_over: bool,
    /// Ends the task that reads the requests.
    _reader: DropGuard,
}

impl Stream for Deliveries {
    type Item = Result<v1::WatchResponse, Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.is_over {
            return Poll::Ready(None);
        }
        if self.stopping.as_mut().poll(context).is_ready() {
            self.is_over = true;
            return Poll::Ready(Some(Ok(self.farewell())));
        }
        while self.progress.poll_tick(context).is_ready() {
            self.outbox.progress_due();
        }
        self.outbox.poll(context).map(|response| response.map(Ok))
    }
}

impl Deliveries {
    /// The client goes on elsewhere at once.
    fn farewell(&self) -> v1::WatchResponse {
        let failure = Failure::new(Reason::Stopping, "this node is stopping");
        let ended = v1::WatchEnded { failure: Some(self.service.failure(failure)), ..Default::default() };
        v1::WatchResponse { ended: vec![ended], ..Default::default() }
    }
}

impl Drop for Deliveries {
    fn drop(&mut self) {
        self.outbox.close();
        self.service.0.options.watch_metrics.streams.dec();
    }
}

impl Service {
    /// Starts to read a stream. It ends when the client is gone or wants no more, and when the node
    /// stops.
    pub(super) fn open_watches(&self, requests: Streaming<v1::WatchRequest>) -> Deliveries {
        let limits = &self.0.options.watch;
        let outbox = Outbox::new(OutboxOptions {
            window_bytes: limits.window_bytes,
            queue_bytes_max: usize::try_from(limits.window_bytes * QUEUED_WINDOWS).unwrap_or(usize::MAX),
            watches_max: limits.watches_per_stream_max,
            progress_interval: limits.progress_interval,
        });
        let mut progress = tokio::time::interval(limits.progress_interval);
        progress.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let gone = CancellationToken::new();
        tokio::spawn(self.clone().read_watch_requests(requests, outbox.clone(), gone.clone()));
        self.0.options.watch_metrics.streams.inc();
        Deliveries {
            service: self.clone(),
            outbox,
            progress,
            stopping: Box::pin(self.0.stopping.clone().cancelled_owned()),
            is_over: false,
            _reader: gone.drop_guard(),
        }
    }

    async fn read_watch_requests(
        self,
        mut requests: Streaming<v1::WatchRequest>,
        outbox: Arc<Outbox>,
        gone: CancellationToken,
    ) {
        loop {
            let next = tokio::select! {
                biased;
                () = gone.cancelled() => return,
                next = requests.message() => next,
            };
            let Ok(Some(request)) = next else { return outbox.finish() };
            if request.acknowledged_bytes > 0 {
                outbox.acknowledge(request.acknowledged_bytes);
            }
            request.cancel.iter().for_each(|id| outbox.cancel(*id));
            for create in request.create {
                let id = create.watch_id;
                if let Err(failure) = self.create_watch(create, &outbox) {
                    outbox.refuse(id, self.failure(failure));
                }
            }
            if gone.is_cancelled() {
                // What was made meanwhile has nobody any more.
                return outbox.close();
            }
        }
    }

    fn create_watch(&self, create: v1::WatchCreate, outbox: &Arc<Outbox>) -> Result<(), Failure> {
        let group = self.0.store.group(GroupId(create.group_id))?;
        let request = checked(&create)?;
        if !group.is_ready() {
            let message =
                format!("the replica of {} on this node has no leader or is catching up", group.id());
            return Err(Failure::new(Reason::GroupNotReady, message));
        }
        let (open, limit) = (self.0.options.watch_metrics.watches.get(), self.0.options.watch.watches_max);
        if usize::try_from(open).is_ok_and(|open| open >= limit) {
            let message = format!("this node has {open} watches, the limit is {limit}");
            return Err(Failure::overloaded(message, admission::RETRY_AFTER_MS));
        }
        group.watch(request, outbox)
    }
}

fn checked(create: &v1::WatchCreate) -> Result<WatchRequest, Failure> {
    check_key_or_root(&create.key)
        .map_err(|code| Failure::invalid(format!("the key of the watch: {}", code.as_str_name())))?;
    let mode = v1::WatchMode::try_from(create.mode).map_err(|_| {
        Failure::invalid(format!(
            "there is no watch mode {}; this node knows 0 (state), 1 (events)",
            create.mode
        ))
    })?;
    let kind = |kind: &i32| match v1::EventKind::try_from(*kind) {
        Ok(kind) if kind != v1::EventKind::EventUnspecified => Ok(kind),
        _ => Err(Failure::invalid(format!("there is no kind of event {kind}; this node knows 1 to 4"))),
    };
    Ok(WatchRequest {
        id: create.watch_id,
        key: Arc::from(&create.key[..]),
        mode,
        index: create.index,
        keys_only: create.keys_only,
        kinds: create.kinds.iter().map(kind).collect::<Result<_, _>>()?,
    })
}
