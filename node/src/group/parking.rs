//! Idle groups sleep.
//!
//! A replica that ticks costs CPU even when nothing happens: thousands of idle groups would keep a
//! core busy. When a leader has seen no traffic for a while and every member holds everything, it
//! asks them to park; all stop ticking. What wakes a replica: a request, any message of the group,
//! the loss of the node that leads it (the transport's pings notice), or that node's return.
//!
//! Parking never weakens safety: a parked leader's lease runs out, so it answers nothing and
//! accepts no write before a quorum has confirmed it again.

use crate::clock;
use crate::failure::Failure;
use crate::group::Group;
use crate::group::raft::{LogId, log_id_from_pb, log_id_to_pb, vote_from_pb, vote_to_pb};
use crate::ids::NodeId;
use crate::peer_v1 as pb;
use dtkv_client::v1::Consistency;
use openraft::async_runtime::WatchReceiver;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// How long a leader waits for its followers' word that they are parked, and a waker for a quorum.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);

/// Whether the replica sleeps, and when it was last used.
pub struct Parking {
    started: Instant,
    last_use_ms: AtomicU64,
    is_parked: AtomicBool,
    is_trying: AtomicBool,
    /// One waker at a time; the others wait for it.
    waking: tokio::sync::Mutex<()>,
}

impl Parking {
    /// Awake.
    pub fn new(now: Instant) -> Parking {
        Parking {
            started: now,
            last_use_ms: AtomicU64::new(0),
            is_parked: AtomicBool::new(false),
            is_trying: AtomicBool::new(false),
            waking: tokio::sync::Mutex::new(()),
        }
    }

    /// Somebody uses the group.
    pub fn touch(&self) {
        self.last_use_ms.store(self.started.elapsed().as_millis() as u64, Ordering::SeqCst);
    }

    /// Whether the replica sleeps.
    pub fn is_parked(&self) -> bool {
        self.is_parked.load(Ordering::SeqCst)
    }

    fn idle_for(&self) -> Duration {
        let last = Duration::from_millis(self.last_use_ms.load(Ordering::SeqCst));
        self.started.elapsed().saturating_sub(last)
    }
}

impl Group {
    /// Whether the replica sleeps.
    pub fn is_parked(&self) -> bool {
        self.0.parking.is_parked()
    }

    /// Wakes the replica and, on a leader, waits until a quorum has confirmed it.
    ///
    /// # Errors
    /// When no quorum answers in time, or somebody else leads.
    pub async fn wake(&self) -> Result<(), Failure> {
        if !self.is_parked() {
            return Ok(());
        }
        let _waking = self.0.parking.waking.lock().await;
        if !self.is_parked() {
            return Ok(());
        }
        self.0.parking.touch();
        self.start_ticking();
        if !self.is_leader() {
            return Ok(());
        }
        self.0.reads.permit(Consistency::Linearizable, clock::now() + ANSWER_TIMEOUT).await.map(|_| ())
    }

    /// Lets the replica tick again; at once, without waiting for anybody.
    pub fn start_ticking(&self) {
        if !self.is_parked() {
            return;
        }
        self.0.contact.note_waking();
        if self.0.parking.is_parked.swap(false, Ordering::SeqCst) {
            self.0.metrics.woken.inc();
            self.0.parking.touch();
            self.0.raft.runtime_config().tick(true);
        }
    }

    /// A node was lost or came back: whoever sleeps under its leadership must look again. The
    /// groups of a lost node do not all stand for election in the same instant.
    pub fn peer_changed(&self, peer: NodeId) {
        if self.is_parked() && self.leader() == Some(peer) {
            let group = self.clone();
            let spread = self.0.options.election_timeout_max_ms - self.0.options.election_timeout_min_ms;
            let wait = Duration::from_millis(u64::from(self.id().0).wrapping_mul(37) % spread.max(1));
            tokio::spawn(async move {
                tokio::time::sleep(wait).await;
                group.start_ticking();
            });
        }
    }

    /// The leader asks to park. Answers whether this replica did.
    pub fn park_on_request(&self, park: &pb::Park) -> bool {
        let (Some(vote), Some(log_id)) = (&park.vote, &park.log_id) else { return false };
        let metrics = self.0.raft.metrics();
        let agrees = {
            let metrics = metrics.borrow_watched();
            metrics.vote == vote_from_pb(vote)
                && metrics.last_applied == Some(log_id_from_pb(log_id))
                && metrics.last_log_index == Some(log_id.index)
        };
        if agrees && !self.0.parking.is_parked.swap(true, Ordering::SeqCst) {
            self.0.raft.runtime_config().tick(false);
            self.0.metrics.parked.inc();
        }
        agrees
    }

    /// Begins to park the group when it has been idle long enough and nothing is left to do.
    pub(super) fn park_if_idle(&self) {
        let Some(after) = self.0.options.park_after else { return };
        let parking = &self.0.parking;
        if parking.is_parked() || parking.idle_for() < after || !self.is_leader() {
            return;
        }
        let Some((members, park, log_id)) = self.ready_to_park() else { return };
        if parking.is_trying.swap(true, Ordering::SeqCst) {
            return;
        }
        let group = self.clone();
        tokio::spawn(async move {
            let used = group.0.parking.last_use_ms.load(Ordering::SeqCst);
            if group.ask_members_to_park(members, park).await {
                group.park_leader(used, log_id);
            }
            group.0.parking.is_trying.store(false, Ordering::SeqCst);
        });
    }

    /// The members to ask, when all of them hold and have checkpointed everything.
    fn ready_to_park(&self) -> Option<(Vec<NodeId>, pb::Park, LogId)> {
        let metrics = self.0.raft.metrics();
        let metrics = metrics.borrow_watched();
        let last = metrics.last_applied?;
        let is_quiet = metrics.last_log_index == Some(last.index())
            && metrics.membership_config.membership().get_joint_config().len() == 1
            && self.0.replica.checkpointed() == Some(last);
        let replication = metrics.replication.as_ref()?;
        let others: Vec<NodeId> =
            replication.keys().copied().filter(|node| *node != self.node_id()).collect();
        let all_have_it = others.iter().all(|node| replication.get(node).copied().flatten() == Some(last));
        let park = pb::Park { vote: Some(vote_to_pb(&metrics.vote)), log_id: Some(log_id_to_pb(&last)) };
        (is_quiet && all_have_it).then_some((others, park, last))
    }

    async fn ask_members_to_park(&self, members: Vec<NodeId>, park: pb::Park) -> bool {
        let calls = members.into_iter().map(|node| {
            let message = self.message_of(pb::message::Body::Park(park));
            let call = self.0.transport.call(node, pb::Lane::Control, message);
            async move {
                let answer = tokio::time::timeout(ANSWER_TIMEOUT, call).await;
                matches!(answer, Ok(Ok(pb::Message { body: Some(pb::message::Body::ParkReply(r)), .. })) if r.parked)
            }
        });
        futures::future::join_all(calls).await.into_iter().all(|parked| parked)
    }

    fn park_leader(&self, used: u64, log_id: LogId) {
        let parking = &self.0.parking;
        if parking.is_parked.swap(true, Ordering::SeqCst) {
            return;
        }
        self.0.raft.runtime_config().tick(false);
        self.0.metrics.parked.inc();
        let last = self.0.raft.metrics().borrow_watched().last_log_index;
        if parking.last_use_ms.load(Ordering::SeqCst) != used || last != Some(log_id.index()) {
            // Somebody came in between.
            self.start_ticking();
        }
    }

    /// A message of this group.
    pub(super) fn message_of(&self, body: pb::message::Body) -> pb::Message {
        pb::Message { group_id: self.id().0, generation: self.generation(), call: 0, body: Some(body) }
    }
}
