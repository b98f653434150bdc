//! The administration toolkit: typed calls to one node or to a group's leader, and whole steps
//! (initialise a cluster, create and destroy groups, wait until all is ready) that may be repeated
//! safely.

mod init;
mod node;

pub use init::{ClusterInit, InitProgress, InitReport};
pub use node::{NodeAdmin, Target};

use crate::channel::{Address, call_error};
use crate::client::{Handle, Shared};
use crate::error::Error;
use crate::v1::admin_client::AdminClient;
use crate::v1::failure::Reason;
use crate::v1::{self, GroupStatus, IdentityResponse, NodeAddress, Role};
use futures::future::join_all;
use prost::Message;
use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use tonic::transport::Channel;
use tonic::{Request, Response, Status};

const TIMEOUT: Duration = Duration::from_secs(10);
const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// Administration of a cluster. Cheap to clone.
#[derive(Clone)]
pub struct Admin {
    pub(crate) handle: Arc<Handle>,
    epoch: u64,
    timeout: Duration,
}

/// One node as the cluster knows it, and what it says of itself.
#[derive(Clone, Debug)]
pub struct NodeInfo {
    /// Its id and addresses.
    pub address: NodeAddress,
    /// It was removed for ever.
    pub tombstone: bool,
    /// What it answered, or why it did not.
    pub identity: Result<IdentityResponse, Error>,
}

/// One group as all its replicas describe it.
#[derive(Clone, Debug)]
pub struct GroupInfo {
    /// The group.
    pub group_id: u32,
    /// The node that calls itself leader in the highest term.
    pub leader: Option<u64>,
    /// Highest term seen.
    pub term: u64,
    /// Voters of the configuration with the highest index.
    pub voters: Vec<u64>,
    /// Learners of the same configuration.
    pub learners: Vec<u64>,
    /// Every replica that answered, by node id.
    pub replicas: Vec<GroupStatus>,
}

/// All groups, and the nodes that could not be asked.
#[derive(Clone, Debug, Default)]
pub struct GroupsReport {
    /// By group id.
    pub groups: Vec<GroupInfo>,
    /// Address and failure of each node that did not answer.
    pub unreachable: Vec<(String, Error)>,
}

impl Admin {
    pub(crate) fn new(handle: Arc<Handle>) -> Admin {
        Admin { handle, epoch: 0, timeout: TIMEOUT }
    }

    /// Sends this operator epoch with every change; 0 (the default) is for people.
    #[must_use]
    pub fn with_epoch(mut self, epoch: u64) -> Admin {
        self.epoch = epoch;
        self
    }

    /// Another deadline of calls: 10 s unless set.
    #[must_use]
    pub fn with_timeout(mut self, timeout: Duration) -> Admin {
        self.timeout = timeout;
        self
    }

    /// The calls to one node, named by its id or by its address.
    pub fn node(&self, target: impl Into<Target>) -> NodeAdmin {
        NodeAdmin::new(self.clone(), target.into())
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        self.handle.shared()
    }

    /// Every node of the cluster, asked at the same time.
    ///
    /// # Errors
    /// When no node at all answers.
    pub async fn nodes(&self) -> Result<Vec<NodeInfo>, Error> {
        let mut known: BTreeMap<u64, (NodeAddress, bool)> = BTreeMap::new();
        let (answers, failures) = self.of_all(|node| async move { node.list_nodes().await }).await;
        for status in answers.into_iter().flat_map(|(_, answer)| answer.nodes) {
            let Some(address) = status.address else { continue };
            let entry = known.entry(address.node_id).or_insert_with(|| (address.clone(), false));
            entry.1 |= status.tombstone;
            if status.self_ {
                entry.0 = address;
            }
        }
        if known.is_empty() {
            return self.strangers(failures).await;
        }
        let infos = known.into_values().map(|(address, tombstone)| async move {
            let identity = self.node(address.client_address.as_str()).identity().await;
            NodeInfo { address, tombstone, identity }
        });
        Ok(join_all(infos).await)
    }

    /// Nodes that have not joined a cluster know nobody, but say who they are.
    async fn strangers(&self, failures: Vec<(String, Error)>) -> Result<Vec<NodeInfo>, Error> {
        let (answers, more) = self.of_all(|node| async move { node.identity().await }).await;
        if answers.is_empty() {
            return Err(nobody_answers(if more.is_empty() { &failures } else { &more }));
        }
        let info = |(asked, identity): (Address, IdentityResponse)| NodeInfo {
            address: init::address_of(&asked, &identity),
            tombstone: false,
            identity: Ok(identity),
        };
        Ok(answers.into_iter().map(info).collect())
    }

    /// Every group of the cluster, as all reachable nodes describe it.
    ///
    /// # Errors
    /// When no node at all answers.
    pub async fn groups(&self) -> Result<GroupsReport, Error> {
        let shared = self.shared();
        shared.router.discover(&shared.channels, &[]).await;
        let (answers, unreachable) = self.of_all(|node| async move { node.list_groups().await }).await;
        if answers.is_empty() {
            return Err(nobody_answers(&unreachable));
        }
        let mut by_id: BTreeMap<u32, Vec<GroupStatus>> = BTreeMap::new();
        for status in answers.into_iter().flat_map(|(_, answer)| answer.groups) {
            by_id.entry(status.group_id).or_default().push(status);
        }
        let groups = by_id.into_iter().map(|(group_id, replicas)| merge_replicas(group_id, replicas));
        Ok(GroupsReport { groups: groups.collect(), unreachable })
    }

    /// Asks every known node the same; answers and failures by address.
    async fn of_all<T, F>(&self, ask: impl Fn(NodeAdmin) -> F) -> (Vec<(Address, T)>, Vec<(String, Error)>)
    where
        F: Future<Output = Result<T, Error>>,
    {
        let ask = &ask;
        let questions = self.shared().router.addresses().into_iter().map(|address| async move {
            let answer = ask(self.node(&*address)).await;
            (address, answer)
        });
        let (mut answers, mut failures) = (Vec::new(), Vec::new());
        for (address, answer) in join_all(questions).await {
            match answer {
                Ok(answer) => answers.push((address, answer)),
                Err(error) => failures.push((address.to_string(), error)),
            }
        }
        (answers, failures)
    }

    /// The state of a group as its leader sees it; with `confirm` the leader asks a quorum first.
    ///
    /// # Errors
    /// When no leader answers in time, or the group does not exist.
    pub async fn group_status(&self, group_id: u32, confirm: bool) -> Result<GroupStatus, Error> {
        let request = v1::GroupStatusRequest { group_id, confirm };
        let status = self.at_leader(group_id, true, request, async |mut admin, request| {
            let answer = admin.group_status(request).await?;
            if answer.get_ref().role() == Role::Leader {
                Ok(answer)
            } else {
                Err(not_leading(answer.get_ref()))
            }
        });
        status.await
    }

    /// Adds a learner to a group. With `wait` it returns once the learner has caught up.
    ///
    /// # Errors
    /// PRECONDITION when the configuration is no longer the expected one (None = any).
    pub async fn add_learner(
        &self,
        group_id: u32,
        node: NodeAddress,
        expected_config_index: Option<u64>,
        wait: bool,
    ) -> Result<u64, Error> {
        let request = v1::AddLearnerRequest {
            epoch: self.epoch,
            group_id,
            node: Some(node),
            expected_config_index,
            wait,
        };
        let answer = self
            .at_leader(group_id, false, request, async |mut admin, request| admin.add_learner(request).await);
        Ok(answer.await?.config_index)
    }

    /// Changes voters and learners of a group, if its configuration is still the expected one.
    /// Answers with the index of the new configuration.
    ///
    /// # Errors
    /// PRECONDITION when the configuration is another one.
    pub async fn change_membership(
        &self,
        group_id: u32,
        expected_config_index: u64,
        voters: Vec<u64>,
        learners: Vec<u64>,
    ) -> Result<u64, Error> {
        let request = v1::ChangeMembershipRequest {
            epoch: self.epoch,
            group_id,
            expected_config_index,
            voters,
            learners,
        };
        let answer = self.at_leader(group_id, false, request, async |mut admin, request| {
            admin.change_membership(request).await
        });
        Ok(answer.await?.config_index)
    }

    /// Hands the leadership of a group over; to the follower that is furthest when `to` is None.
    /// That the target leads already is fine.
    ///
    /// # Errors
    /// When the target does not lead in time; the old leader goes on then.
    pub async fn transfer_leader(
        &self,
        group_id: u32,
        to: Option<u64>,
    ) -> Result<v1::TransferLeaderResponse, Error> {
        let timeout_ms = u32::try_from(self.timeout.as_millis()).unwrap_or(u32::MAX);
        let request =
            v1::TransferLeaderRequest { epoch: self.epoch, group_id, to: to.unwrap_or(0), timeout_ms };
        let answer = self.at_leader(group_id, false, request, async |mut admin, request| {
            admin.transfer_leader(request).await
        });
        let answer = answer.await?;
        if let Some(leader) = self.shared().router.node(answer.leader_id) {
            let leader = NodeAddress {
                node_id: answer.leader_id,
                client_address: leader.to_string(),
                ..NodeAddress::default()
            };
            self.shared().router.redirect(group_id, &leader);
        }
        Ok(answer)
    }

    /// Waits until each of the groups has a leader that serves. `progress` hears how many do.
    ///
    /// # Errors
    /// When time runs out; the message names groups that are not ready and nodes that do not answer.
    pub async fn wait_ready(
        &self,
        groups: &[u32],
        timeout: Duration,
        mut progress: impl FnMut(usize, usize) + Send,
    ) -> Result<(), Error> {
        let deadline = Instant::now() + timeout;
        loop {
            let report = self.groups().await.unwrap_or_default();
            let ready = |id: &u32| report.groups.iter().any(|group| group.group_id == *id && is_ready(group));
            let missing: Vec<u32> = groups.iter().copied().filter(|id| !ready(id)).collect();
            progress(groups.len() - missing.len(), groups.len());
            if missing.is_empty() {
                return Ok(());
            }
            if Instant::now() + POLL_INTERVAL >= deadline {
                return Err(not_ready(&missing, &report, timeout));
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }

    /// A call to the leader of a group: follows hints and waits for elections until the deadline.
    async fn at_leader<Q, T, C>(&self, group: u32, is_read: bool, request: Q, call: C) -> Result<T, Error>
    where
        Q: Clone,
        C: AsyncFn(AdminClient<Channel>, Request<Q>) -> Result<Response<T>, Status>,
    {
        let shared = self.shared();
        let deadline = Instant::now() + self.timeout;
        let mut attempt = 0;
        loop {
            let address = shared.find_target(group, false, deadline).await?;
            let outcome = self.call_once(&address, request.clone(), deadline, &call).await;
            let error = match outcome {
                Ok(answer) => return Ok(answer),
                Err(error) if is_read => error.of_read(),
                Err(error) => error,
            };
            attempt += 1;
            match shared.after_failure(group, &address, &error, is_read, attempt) {
                Some(pause) if Instant::now() + pause < deadline => tokio::time::sleep(pause).await,
                _ => return Err(error),
            }
        }
    }

    /// One attempt at one node.
    async fn call_once<Q, T, C>(
        &self,
        address: &Address,
        request: Q,
        deadline: Instant,
        call: &C,
    ) -> Result<T, Error>
    where
        C: AsyncFn(AdminClient<Channel>, Request<Q>) -> Result<Response<T>, Status>,
    {
        let admin = self.shared().channels.admin(address)?;
        let mut request = Request::new(request);
        request.set_timeout(deadline.saturating_duration_since(Instant::now()));
        match tokio::time::timeout_at(deadline, call(admin, request)).await {
            Ok(Ok(response)) => Ok(response.into_inner()),
            Ok(Err(status)) => Err(call_error(address, &status)),
            Err(_) => {
                let message = format!("{address} did not answer within {} ms", self.timeout.as_millis());
                Err(Error::outcome_unknown(Reason::Timeout, message))
            }
        }
    }
}

/// Every replica answers a question for its status; this one must go on to the leader.
fn not_leading(status: &GroupStatus) -> Status {
    let leader = (status.leader_id != 0 && status.leader_id != status.node_id)
        .then(|| NodeAddress { node_id: status.leader_id, ..NodeAddress::default() });
    let message = format!("n{} does not lead group {}", status.node_id, status.group_id);
    let failure = v1::Failure {
        reason: Reason::NotLeader.into(),
        message: message.clone(),
        leader,
        ..v1::Failure::default()
    };
    Status::with_details(tonic::Code::FailedPrecondition, message, failure.encode_to_vec().into())
}

fn nobody_answers(failures: &[(String, Error)]) -> Error {
    let failures: Vec<&str> = failures.iter().map(|(_, error)| error.message()).collect();
    Error::did_not_happen(Reason::Unspecified, format!("no node answers: {}", failures.join("; ")))
}

fn merge_replicas(group_id: u32, mut replicas: Vec<GroupStatus>) -> GroupInfo {
    replicas.sort_by_key(|status| status.node_id);
    let leader =
        replicas.iter().filter(|status| status.role() == Role::Leader).max_by_key(|status| status.term);
    let config = replicas.iter().max_by_key(|status| (status.config_index, status.term));
    GroupInfo {
        group_id,
        leader: leader.map(|status| status.node_id),
        term: replicas.iter().map(|status| status.term).max().unwrap_or(0),
        voters: config.map(|status| status.voters.clone()).unwrap_or_default(),
        learners: config.map(|status| status.learners.clone()).unwrap_or_default(),
        replicas,
    }
}

fn is_ready(group: &GroupInfo) -> bool {
    group.replicas.iter().any(|status| status.role() == Role::Leader && status.ready)
}

fn not_ready(missing: &[u32], report: &GroupsReport, timeout: Duration) -> Error {
    let named: Vec<String> = missing.iter().take(8).map(u32::to_string).collect();
    let more = if missing.len() > named.len() { " ..." } else { "" };
    let mut message = format!(
        "{} of the groups have no leader after {} ms: {}{more}",
        missing.len(),
        timeout.as_millis(),
        named.join(", ")
    );
    for (_, error) in &report.unreachable {
        message = format!("{message}; {}", error.message());
    }
    Error::did_not_happen(Reason::GroupNotReady, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(node_id: u64, role: Role, term: u64, config_index: u64, voters: &[u64]) -> GroupStatus {
        let voters = voters.to_vec();
        GroupStatus {
            node_id,
            role: role.into(),
            term,
            config_index,
            voters,
            ready: true,
            ..GroupStatus::default()
        }
    }

    #[test]
    fn group_is_described_by_its_newest_leader_and_configuration() {
        let info = merge_replicas(
            7,
            vec![
                status(3, Role::Follower, 5, 9, &[2, 3, 4]),
                status(1, Role::Leader, 4, 2, &[1, 2, 3]),
                status(2, Role::Leader, 5, 9, &[2, 3, 4]),
            ],
        );
        assert_eq!((info.leader, info.term), (Some(2), 5));
        assert_eq!(info.voters, [2, 3, 4]);
        assert!(is_ready(&info));
    }

    #[test]
    fn group_without_leader_is_not_ready_and_the_error_names_it() {
        let info = merge_replicas(7, vec![status(1, Role::Candidate, 4, 2, &[1, 2, 3])]);
        assert!(!is_ready(&info));
        let error = not_ready(&[7], &GroupsReport::default(), Duration::from_secs(1));
        assert!(error.message().contains("7"), "{error}");
    }
}
