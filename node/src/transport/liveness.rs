//! Which peers are alive: pings on the control lane, and what to do about silence.

use super::Shared;
use super::peer_stream::ping;
use crate::clock;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::time::MissedTickBehavior;

/// When a peer was last heard.
#[derive(Debug)]
pub(super) struct Contact {
    start: Instant,
    /// ms since `start`.
    heard_ms: AtomicU64,
    ever: AtomicBool,
    lost: AtomicBool,
}

impl Contact {
    /// The peer gets a full span of silence from now on.
    pub fn new() -> Contact {
        Contact {
            start: clock::now(),
            heard_ms: AtomicU64::new(0),
            ever: AtomicBool::new(false),
            lost: AtomicBool::new(false),
        }
    }

    /// Something came from the peer; true when it had been lost.
    pub fn heard(&self) -> bool {
        self.excuse();
        self.ever.store(true, Ordering::Relaxed);
        self.lost.load(Ordering::Relaxed) && self.lost.swap(false, Ordering::AcqRel)
    }

    /// Starts the span of silence again without a sign of life.
    fn excuse(&self) {
        self.heard_ms.store(self.start.elapsed().as_millis() as u64, Ordering::Relaxed);
    }

    fn silence(&self) -> Duration {
        let heard = Duration::from_millis(self.heard_ms.load(Ordering::Relaxed));
        self.start.elapsed().saturating_sub(heard)
    }

    /// None when the peer was never heard.
    pub fn last(&self) -> Option<Duration> {
        self.ever.load(Ordering::Relaxed).then(|| self.silence())
    }

    /// True once when the peer becomes lost.
    fn lose(&self) -> bool {
        !self.lost.swap(true, Ordering::AcqRel)
    }
}

/// Pings every watched peer and reports who falls silent.
pub(super) async fn run(shared: Arc<Shared>) {
    let interval = shared.options.ping_interval;
    let mut ticks = tokio::time::interval(interval);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut before = clock::now();
    loop {
        tokio::select! {
            () = shared.stop.cancelled() => return,
            _ = ticks.tick() => {}
        }
        let stalled = before.elapsed() > interval * 3;
        before = clock::now();
        look(&shared, stalled);
    }
}

/// One look at all peers. When this process itself stood still, silence says nothing about them.
fn look(shared: &Shared, stalled: bool) {
    let silence_max = shared.options.ping_interval * shared.options.silent_pings_max;
    let nonce = clock::wall_ms();
    for peer in shared.peers() {
        if peer.control.is_connected() {
            // A full queue or a breaking stream is no news here.
            drop(peer.control.send(ping(nonce)));
        }
        if stalled {
            peer.contact.excuse();
        }
        let silence = peer.contact.silence();
        if silence > silence_max * 2 {
            // Nobody answers on a connection that looks alive: do not wait for TCP to notice.
            peer.cut();
        }
        if silence > silence_max && peer.contact.lose() {
            tracing::warn!(peer = %peer.node, "silent for {silence:?}");
            if let Some(inbound) = shared.inbound() {
                inbound.peer_lost(peer.node);
            }
        }
    }
}
