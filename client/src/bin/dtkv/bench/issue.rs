//! The ways in which an operation is issued.

use super::work::{Drawn, Work};
use crate::context::Context;
use crate::fault::Fault;
use bytes::Bytes;
use dtkv_client::packed::{Kind, Op};
use dtkv_client::v1::failure::Reason;
use dtkv_client::v1::kv_client::KvClient;
use dtkv_client::v1::{Code, GetRequest, PutRequest};
use dtkv_client::{Error, ErrorKind, Group, OpResult};
use std::collections::HashMap;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;
use tonic::transport::{Channel, Endpoint};

/// What came of one operation: nothing to say, or why it failed.
pub type Outcome = Result<(), String>;

/// One independent client.
#[derive(Clone)]
pub enum Connection {
    Submitted(Submitted),
    Awaited(Awaited),
    Unary(Unary),
}

/// The client's low-level call: an answer by callback.
#[derive(Clone)]
pub struct Submitted {
    groups: Arc<[Group]>,
    work: Arc<Work>,
}

impl Submitted {
    pub fn new(groups: Vec<Group>, work: &Arc<Work>) -> Submitted {
        Submitted { groups: groups.into(), work: work.clone() }
    }

    #[inline]
    pub fn issue(&self, drawn: Drawn, done: impl FnOnce(Outcome) + Send + 'static) {
        let key = &self.work.keys[drawn.key];
        let op = match drawn.is_read {
            true => Op::new(Kind::Get, key, b""),
            false => Op::new(Kind::Put, key, &self.work.value),
        };
        self.groups[drawn.group].submit(&op, move |result| done(outcome(result.as_ref())));
    }
}

/// The client's futures.
#[derive(Clone)]
pub struct Awaited {
    groups: Arc<[Group]>,
    work: Arc<Work>,
}

impl Awaited {
    pub fn new(groups: Vec<Group>, work: &Arc<Work>) -> Awaited {
        Awaited { groups: groups.into(), work: work.clone() }
    }

    async fn issue(&self, drawn: Drawn) -> Outcome {
        let (group, key) = (&self.groups[drawn.group], &self.work.keys[drawn.key]);
        match drawn.is_read {
            true => match group.get(key).await {
                Ok(Some(_)) => Ok(()),
                Ok(None) => Err(Code::NotFound.as_str_name().into()),
                Err(error) => Err(reason(&error)),
            },
            false => group.put(key, &self.work.value).await.map(drop).map_err(|error| reason(&error)),
        }
    }
}

/// Plain unary calls to the nodes that led the groups at the start.
#[derive(Clone)]
pub struct Unary {
    /// One for each group: its id and its leader.
    leaders: Arc<[(u32, KvClient<Channel>)]>,
    keys: Arc<[Bytes]>,
    value: Bytes,
    consistency: i32,
    timeout: Duration,
}

impl Unary {
    /// `leaders`: id and leader's address of each group.
    pub fn connect(leaders: &[(u32, String)], context: &Context, work: &Work) -> Result<Unary, Fault> {
        let mut channels: HashMap<&str, KvClient<Channel>> = HashMap::new();
        let mut groups = Vec::new();
        for (id, address) in leaders {
            if !channels.contains_key(address.as_str()) {
                let endpoint = Endpoint::from_shared(format!("http://{address}"));
                let endpoint =
                    endpoint.map_err(|e| Fault::failed(format!("{address} is no address: {e}")))?;
                channels.insert(address, KvClient::new(endpoint.tcp_nodelay(true).connect_lazy()));
            }
            groups.push((*id, channels[address.as_str()].clone()));
        }
        Ok(Unary {
            leaders: groups.into(),
            keys: work.keys.iter().map(|key| Bytes::copy_from_slice(key)).collect(),
            value: Bytes::copy_from_slice(&work.value),
            consistency: dtkv_client::v1::Consistency::from(context.settings.freshness).into(),
            timeout: context.settings.timeout,
        })
    }

    async fn issue(&self, drawn: Drawn) -> Outcome {
        let (group_id, kv) = &self.leaders[drawn.group];
        let (mut kv, group_id, key) = (kv.clone(), *group_id, self.keys[drawn.key].clone());
        let code = match drawn.is_read {
            true => {
                let request = GetRequest { group_id, key, consistency: self.consistency };
                kv.get(self.request(request)).await.map(|answer| answer.into_inner().code())
            }
            false => {
                let request = PutRequest { group_id, key, value: self.value.clone(), ..Default::default() };
                kv.put(self.request(request)).await.map(|answer| answer.into_inner().code())
            }
        };
        code.map_err(|status| reason(&Error::from(&status))).and_then(of_code)
    }

    fn request<T>(&self, message: T) -> tonic::Request<T> {
        let mut request = tonic::Request::new(message);
        request.set_timeout(self.timeout);
        request
    }
}

/// An operation that is awaited.
pub trait Issue: Clone + Send + Sync + 'static {
    fn issue(&self, drawn: Drawn) -> impl Future<Output = Outcome> + Send;
}

impl Issue for Awaited {
    fn issue(&self, drawn: Drawn) -> impl Future<Output = Outcome> + Send {
        Awaited::issue(self, drawn)
    }
}

impl Issue for Unary {
    fn issue(&self, drawn: Drawn) -> impl Future<Output = Outcome> + Send {
        Unary::issue(self, drawn)
    }
}

/// Id and leader's address of each group.
pub async fn leaders(context: &Context, groups: &[u32]) -> Result<Vec<(u32, String)>, Fault> {
    let admin = context.admin();
    let (nodes, report) = tokio::try_join!(admin.nodes(), admin.groups())?;
    let address = |id: u32| {
        let leader = report.groups.iter().find(|group| group.group_id == id)?.leader?;
        let node = nodes.iter().find(|node| node.address.node_id == leader)?;
        Some((id, node.address.client_address.clone()))
    };
    let found = groups.iter().map(|&id| {
        address(id)
            .ok_or_else(|| Fault::failed(format!("group {id} has no leader; dtkv groups shows its state")))
    });
    found.collect()
}

fn outcome(result: Result<&OpResult, &Error>) -> Outcome {
    result.map_err(reason).and_then(|result| of_code(result.code()))
}

fn of_code(code: Code) -> Outcome {
    match code {
        Code::Success | Code::SuccessOverwrite => Ok(()),
        code => Err(code.as_str_name().into()),
    }
}

/// A short word, of which there are few.
fn reason(error: &Error) -> String {
    let reason = match error.reason() {
        Reason::Unspecified => "UNAVAILABLE",
        reason => reason.as_str_name(),
    };
    match error.kind() {
        ErrorKind::Refused(code) => code.as_str_name().into(),
        ErrorKind::OutcomeUnknown => format!("{reason} (outcome unknown)"),
        ErrorKind::InvalidRequest | ErrorKind::DidNotHappen => reason.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_are_counted_under_few_words() {
        assert_eq!(reason(&Error::refused(Code::NotFound)), "NOT_FOUND");
        assert_eq!(reason(&Error::did_not_happen(Reason::Overloaded, "x")), "OVERLOADED");
        assert_eq!(reason(&Error::did_not_happen(Reason::Unspecified, "x")), "UNAVAILABLE");
        assert_eq!(reason(&Error::outcome_unknown(Reason::Timeout, "x")), "TIMEOUT (outcome unknown)");
        assert_eq!(of_code(Code::SuccessOverwrite), Ok(()));
        assert_eq!(of_code(Code::NotFound), Err("NOT_FOUND".into()));
    }
}
