//! Streams of watches of a fake node: it looks at the log of all puts every now and then.

use crate::fake::Node;
use dtkv_client::packed::delivery::{Delivery, DeliveryKind};
use dtkv_client::v1::*;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::sync::mpsc::Sender;
use tonic::{Status, Streaming};

const LOOK_INTERVAL: Duration = Duration::from_millis(5);
/// What the node promises; twice as long without a word and clients go.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(300);

/// What a node does with a stream of watches.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum WatchScript {
    #[default]
    Serve,
    /// Takes everything and never says a word behind the opening.
    Mute,
    /// Ends the stream after so many deliveries, in the middle of an index or not.
    BreakAfter(usize),
    /// Has not heard its leader for a minute.
    Lagging,
    /// Says that it stops.
    Stop,
    /// Has events from this index on.
    HistoryFrom(u64),
}

#[derive(Default)]
pub struct Watching {
    pub script: WatchScript,
    pub seen: Vec<WatchCreate>,
}

struct Watch {
    create: WatchCreate,
    /// Place in the log.
    at: usize,
    known: Option<u64>,
}

struct Stream {
    node: Arc<Node>,
    watches: Vec<Watch>,
    delivered: usize,
}

pub async fn serve_watches(
    node: Arc<Node>,
    mut requests: Streaming<WatchRequest>,
    out: Sender<Result<WatchResponse, Status>>,
) {
    let opened = WatchOpened {
        progress_interval_ms: PROGRESS_INTERVAL.as_millis() as u32,
        window_bytes: 1 << 20,
        watches_max: 10_000,
    };
    let _ = out.send(Ok(WatchResponse { opened: Some(opened), ..Default::default() })).await;
    let mut stream = Stream { node, watches: Vec::new(), delivered: 0 };
    let mut look = tokio::time::interval(LOOK_INTERVAL);
    loop {
        let mut response = WatchResponse::default();
        tokio::select! {
            request = requests.message() => match request {
                Ok(Some(request)) => stream.take(request, &mut response),
                _ => return,
            },
            _ = look.tick() => stream.look(&mut response),
        }
        let script = stream.node.watching.lock().script;
        if script == WatchScript::Mute {
            continue;
        }
        if script == WatchScript::Stop {
            let failure = Failure { reason: failure::Reason::Stopping.into(), ..Default::default() };
            response.ended = vec![WatchEnded { failure: Some(failure), ..Default::default() }];
        }
        let is_broken = matches!(script, WatchScript::BreakAfter(limit) if stream.delivered >= limit);
        if out.send(Ok(response)).await.is_err() || is_broken {
            return;
        }
    }
}

impl Stream {
    fn take(&mut self, request: WatchRequest, response: &mut WatchResponse) {
        self.watches.retain(|watch| !request.cancel.contains(&watch.create.watch_id));
        for create in request.create {
            self.node.watching.lock().seen.push(create.clone());
            let index = self.node.world.index.load(Ordering::SeqCst);
            response.created.push(WatchCreated { watch_id: create.watch_id, index });
            let from = create.index.unwrap_or(index + 1);
            let script = self.node.watching.lock().script;
            if let WatchScript::HistoryFrom(oldest) = script
                && from < oldest
                && create.mode() == WatchMode::WatchEvents
            {
                response.ended.push(WatchEnded {
                    watch_ids: vec![create.watch_id],
                    code: Code::Compacted.into(),
                    oldest_index: oldest,
                    failure: None,
                });
                continue;
            }
            let at = match create.mode() {
                WatchMode::WatchState => 0,
                WatchMode::WatchEvents => self.node.world.log.lock().partition_point(|put| put.1 < from),
            };
            let known = create.index;
            self.watches.push(Watch { create, at, known });
        }
    }

    fn look(&mut self, response: &mut WatchResponse) {
        let script = self.node.watching.lock().script;
        let limit = match script {
            WatchScript::BreakAfter(limit) => limit,
            _ => usize::MAX,
        };
        let log = self.node.world.log.lock().clone();
        let mut packed = Vec::new();
        for watch in &mut self.watches {
            let is_state = watch.create.mode() == WatchMode::WatchState;
            let is_watched = |key: &[u8]| watch.create.key.is_empty() || *key == watch.create.key[..];
            while watch.at < log.len() && self.delivered < limit {
                let (group, index, key, value) = &log[watch.at];
                watch.at += 1;
                let is_old = is_state && watch.known.is_some_and(|known| *index <= known);
                if *group != watch.create.group_id || !is_watched(key) || is_old {
                    continue;
                }
                watch.known = Some(*index);
                self.delivered += 1;
                let kind = if is_state { DeliveryKind::StateValue } else { DeliveryKind::Put };
                let key: &[u8] = if is_state { b"" } else { key };
                Delivery { kind, dir: false, index: *index, time_ms: 0, prev_index: 0, key, value }
                    .pack(&[watch.create.watch_id], &mut packed);
            }
        }
        response.bytes = packed.len() as u32;
        response.deliveries = packed.into();
        let lag_ms = if script == WatchScript::Lagging { 60_000 } else { 0 };
        response.progress = vec![WatchProgress { group_id: 1, index: 0, lag_ms }];
    }
}
