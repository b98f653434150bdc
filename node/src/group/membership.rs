//! Learners, joint changes, transfer of leadership.

use crate::clock;
use crate::failure::Failure;
use crate::group::Group;
use crate::group::propose::failure_of;
use crate::group::raft::{LogId, TypeConfig};
use crate::ids::NodeId;
use crate::planted::{self, Fault};
use dtkv_client::v1::failure::Reason;
use openraft::async_runtime::WatchReceiver;
use openraft::errors::{ClientWriteError, RaftError};
use openraft::raft::{ClientWriteResponse, Precondition};
use openraft::{ChangeMembers, EmptyNode};
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

/// A learner may become a voter once it is at most so many entries behind.
const PROMOTION_LAG_ENTRIES_MAX: u64 = 1000;

/// Least time that a voter gets to take leadership, before another is asked.
const SLICE_MIN: Duration = Duration::from_millis(100);

type Change = ChangeMembers<NodeId, EmptyNode>;
type ChangeResult =
    Result<ClientWriteResponse<TypeConfig>, RaftError<TypeConfig, ClientWriteError<TypeConfig>>>;

impl Group {
    /// Adds a learner if the configuration is still `expected_config_index` (None = whatever it is);
    /// adding one that is a member already changes nothing. Returns the configuration's index.
    ///
    /// # Errors
    /// NOT_LEADER, PRECONDITION, or a time-out with an unknown outcome.
    pub async fn add_learner(
        &self,
        node: NodeId,
        expected_config_index: Option<u64>,
        wait: bool,
        timeout: Duration,
    ) -> Result<u64, Failure> {
        self.wake().await?;
        let current = self.effective_config()?;
        if !current.members.contains(&node) {
            if let Some(expected) = expected_config_index {
                self.check_config_index(&current, expected)?;
            }
            let add = Change::AddNodes(BTreeMap::from([(node, EmptyNode::new())]));
            self.change(add, true, current.log_id, clock::now() + timeout).await?;
        }
        if wait {
            self.wait_caught_up(node, timeout).await?;
        }
        // It is a member by now, whoever leads.
        Ok(self.effective_config().map_err(Failure::unknown)?.log_id.index())
    }

    /// Whether adding this learner could begin now: nothing must be prepared for one that is refused.
    ///
    /// # Errors
    /// NOT_LEADER, or PRECONDITION when the configuration is another.
    pub fn check_before_learner(
        &self,
        node: NodeId,
        expected_config_index: Option<u64>,
    ) -> Result<(), Failure> {
        let current = self.effective_config()?;
        if current.members.contains(&node) {
            return Ok(());
        }
        expected_config_index.map_or(Ok(()), |expected| self.check_config_index(&current, expected))
    }

    /// Changes the configuration by joint consensus, if it is still `expected_config_index`.
    /// Returns the index of the new configuration, committed.
    ///
    /// # Errors
    /// NOT_LEADER, PRECONDITION (index, unknown node, a new voter that is far behind), or a
    /// time-out with an unknown outcome.
    pub async fn change_membership(
        &self,
        expected_config_index: u64,
        voters: BTreeSet<NodeId>,
        learners: BTreeSet<NodeId>,
        timeout: Duration,
    ) -> Result<u64, Failure> {
        self.wake().await?;
        let current = self.effective_config()?;
        if current.voters == voters && current.learners == learners && current.is_uniform {
            return Ok(current.log_id.index());
        }
        self.check_config_index(&current, expected_config_index)?;
        self.check_change(&current, &voters, &learners)?;
        let changed = self.change_in_steps(&current, voters, learners, clock::now() + timeout).await;
        changed.map_err(|failure| match self.config_log_id() == Some(current.log_id) {
            true => failure,
            // One entry of several went through, or the joint one without the one that ends it.
            false => failure.unknown(),
        })
    }

    fn config_log_id(&self) -> Option<LogId> {
        let metrics = self.raft().metrics();
        *metrics.borrow_watched().membership_config.log_id()
    }

    async fn change_in_steps(
        &self,
        current: &Config,
        voters: BTreeSet<NodeId>,
        learners: BTreeSet<NodeId>,
        deadline: Instant,
    ) -> Result<u64, Failure> {
        let mut at = current.log_id;
        let wanted: BTreeSet<NodeId> = voters.union(&learners).copied().collect();
        let missing: BTreeMap<_, _> =
            wanted.difference(&current.members).map(|node| (*node, EmptyNode::new())).collect();
        if !missing.is_empty() {
            at = self.change(Change::AddNodes(missing), true, at, deadline).await?;
        }
        if current.voters != voters || !current.is_uniform {
            let demotes = current.voters.iter().any(|node| learners.contains(node));
            at = self.change(Change::ReplaceAllVoters(voters), demotes, at, deadline).await?;
        }
        let now = self.effective_config()?;
        let surplus: BTreeSet<NodeId> = now.learners.difference(&learners).copied().collect();
        if !surplus.is_empty() {
            at = self.change(Change::RemoveNodes(surplus), false, at, deadline).await?;
        }
        Ok(at.index())
    }

    /// Hands leadership to `to`, or to one voter after the other until one has taken it; returns who
    /// leads and the term.
    ///
    /// # Errors
    /// NOT_LEADER, PRECONDITION (`to` is no voter, or none is connected), or a time-out: who leads
    /// is decided by an election then.
    pub async fn transfer_leader(
        &self,
        to: Option<NodeId>,
        timeout: Duration,
    ) -> Result<(NodeId, u64), Failure> {
        let deadline = clock::now() + timeout;
        self.wake().await?;
        let current = self.effective_config()?;
        match to {
            Some(node) if node == self.node_id() => Ok((node, self.term())),
            Some(node) if current.voters.contains(&node) => {
                match self.offer_leadership(node, deadline).await? {
                    (leader, _) if leader != node => Err(Failure::not_leader(self.id(), Some(leader))),
                    taken => Ok(taken),
                }
            }
            Some(node) => Err(Failure::precondition(format!("{node} is not a voter of {}", self.id()))),
            None => self.offer_leadership_around(deadline).await,
        }
    }

    /// Each voter gets a slice of the time; whoever does not answer, or lacks a part of the log, has
    /// its next turn after the others. A leader that hands over takes no writes and shows no sign of
    /// life, so it must not wait long for one that has just been started.
    async fn offer_leadership_around(&self, deadline: Instant) -> Result<(NodeId, u64), Failure> {
        let none = format!("{} has no other voter that is connected", self.id());
        let mut last = Failure::precondition(none);
        let mut tried = BTreeSet::new();
        loop {
            let candidates = self.successors();
            let fresh = candidates.iter().find(|node| !tried.contains(*node)).copied();
            let Some(target) = fresh.or_else(|| candidates.first().copied()) else { return Err(last) };
            if fresh.is_none() {
                tried.clear();
            }
            tried.insert(target);
            let left = deadline.saturating_duration_since(clock::now());
            let slice = (left / candidates.len() as u32)
                .min(Duration::from_millis(self.0.options.election_timeout_min_ms))
                .max(left.min(SLICE_MIN));
            match self.offer_leadership(target, clock::now() + slice).await {
                Err(failure) if failure.reason == Reason::Timeout && clock::now() < deadline => {
                    last = failure
                }
                outcome => return outcome,
            }
        }
    }

    async fn offer_leadership(&self, target: NodeId, deadline: Instant) -> Result<(NodeId, u64), Failure> {
        self.raft().trigger().transfer_leader(target).await.map_err(|_| Failure::stopping(self.id()))?;
        self.wait_for_successor(target, deadline).await
    }

    /// Any other leader ends the wait: one that was asked before may have been slow only.
    async fn wait_for_successor(&self, target: NodeId, deadline: Instant) -> Result<(NodeId, u64), Failure> {
        let mut metrics = self.raft().server_metrics();
        loop {
            let (leader, term) = {
                let metrics = metrics.borrow_watched();
                (metrics.current_leader, metrics.vote.leader_id.term)
            };
            if let Some(leader) = leader.filter(|leader| *leader != self.node_id()) {
                return Ok((leader, term));
            }
            if tokio::time::timeout_at(deadline.into(), metrics.changed()).await.is_err() {
                let message =
                    format!("{target} did not become leader of {} in time; ask for the status", self.id());
                return Err(Failure::new(Reason::Timeout, message).unknown());
            }
        }
    }

    /// The other voters that are connected, the one with the most of the log first.
    pub fn successors(&self) -> Vec<NodeId> {
        let metrics = self.raft().metrics();
        let metrics = metrics.borrow_watched();
        let voters: BTreeSet<NodeId> = metrics.membership_config.voter_ids().collect();
        let progress = metrics.replication.iter().flatten();
        let mut others: Vec<_> = progress
            .map(|(node, matched)| (matched.map_or(0, |id| id.index()), *node))
            .filter(|(_, node)| *node != self.node_id() && voters.contains(node))
            .filter(|(_, node)| self.0.transport.is_connected(*node))
            .collect();
        others.sort_unstable_by(|a, b| b.cmp(a));
        others.into_iter().map(|(_, node)| node).collect()
    }

    async fn change(
        &self,
        change: Change,
        retain: bool,
        at: LogId,
        deadline: Instant,
    ) -> Result<LogId, Failure> {
        let guard = [Precondition::LastMembershipLogId { last_membership_log_id: Some(at) }];
        let change = self.raft().change_membership_if(change, retain, guard);
        let result = tokio::time::timeout_at(deadline.into(), change).await;
        match result {
            Ok(result) => self.change_outcome(result),
            Err(_) => {
                let message = format!("{} did not commit the change in time; ask for the status", self.id());
                Err(Failure::new(Reason::Timeout, message).unknown())
            }
        }
    }

    fn change_outcome(&self, result: ChangeResult) -> Result<LogId, Failure> {
        match result {
            Ok(response) => Ok(*response.log_id()),
            Err(RaftError::APIError(error)) => Err(failure_of(self.id(), &error)),
            Err(RaftError::Fatal(_)) => Err(Failure::stopping(self.id()).unknown()),
        }
    }

    fn check_config_index(&self, current: &Config, expected: u64) -> Result<(), Failure> {
        let actual = current.log_id.index();
        if expected == actual || planted::has(Fault::ConfigIndexIgnored) {
            return Ok(());
        }
        Err(Failure::precondition(format!(
            "the configuration of {} is at index {actual}, not {expected}: read the status and decide again",
            self.id()
        )))
    }

    fn check_change(
        &self,
        current: &Config,
        voters: &BTreeSet<NodeId>,
        learners: &BTreeSet<NodeId>,
    ) -> Result<(), Failure> {
        if voters.is_empty() {
            return Err(Failure::invalid(format!("{} needs at least one voter", self.id())));
        }
        if let Some(node) = voters.intersection(learners).next() {
            return Err(Failure::invalid(format!(
                "{node} cannot be both voter and learner of {}",
                self.id()
            )));
        }
        for node in voters.difference(&current.voters) {
            if !current.members.contains(node) {
                return Err(Failure::precondition(format!(
                    "{node} must be a learner of {} first",
                    self.id()
                )));
            }
            let behind = self.entries_behind(*node);
            if behind > PROMOTION_LAG_ENTRIES_MAX {
                return Err(Failure::precondition(format!(
                    "{node} is {behind} entries behind in {}; a new voter may be at most {PROMOTION_LAG_ENTRIES_MAX}",
                    self.id()
                )));
            }
        }
        Ok(())
    }

    fn entries_behind(&self, node: NodeId) -> u64 {
        let metrics = self.raft().metrics();
        let metrics = metrics.borrow_watched();
        let matched = metrics.replication.as_ref().and_then(|all| all.get(&node).copied().flatten());
        metrics.last_log_index.unwrap_or(0).saturating_sub(matched.map_or(0, |id| id.index()))
    }

    async fn wait_caught_up(&self, node: NodeId, timeout: Duration) -> Result<(), Failure> {
        let deadline = clock::now() + timeout;
        while self.entries_behind(node) > PROMOTION_LAG_ENTRIES_MAX / 10 {
            if !self.is_leader() {
                return Err(Failure::not_leader(self.id(), self.leader()));
            }
            if clock::now() >= deadline {
                let behind = self.entries_behind(node);
                let message =
                    format!("{node} was added to {} but is still {behind} entries behind", self.id());
                return Err(Failure::new(Reason::Timeout, message).unknown());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }

    fn effective_config(&self) -> Result<Config, Failure> {
        let metrics = self.raft().metrics();
        let metrics = metrics.borrow_watched();
        if !metrics.state.is_leader() {
            return Err(Failure::not_leader(self.id(), metrics.current_leader));
        }
        let stored = &metrics.membership_config;
        let log_id = (*stored.log_id()).ok_or_else(|| Failure::not_leader(self.id(), None))?;
        let voters: BTreeSet<NodeId> =
            stored.membership().get_joint_config().last().cloned().unwrap_or_default();
        Ok(Config {
            log_id,
            voters,
            learners: stored.membership().learner_ids().collect(),
            members: stored.membership().nodes().map(|(node, _)| *node).collect(),
            is_uniform: stored.membership().get_joint_config().len() == 1,
        })
    }
}

struct Config {
    log_id: LogId,
    voters: BTreeSet<NodeId>,
    learners: BTreeSet<NodeId>,
    members: BTreeSet<NodeId>,
    is_uniform: bool,
}
