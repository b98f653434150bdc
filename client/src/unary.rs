//! Unary calls: sent to the leader (or to any replica), and again after failures that allow it.

use crate::channel::{Address, call_error};
use crate::client::Shared;
use crate::error::{Error, ErrorKind};
use crate::group::Group;
use crate::retry::{self, Next};
use crate::v1::Consistency;
use crate::v1::failure::Reason;
use crate::v1::kv_client::KvClient;
use std::future::Future;
use std::time::Duration;
use tokio::time::Instant;
use tonic::transport::Channel;
use tonic::{Request, Response, Status};

/// What a unary call is, as far as routing and retries go.
#[derive(Clone, Copy)]
pub(crate) struct Unary {
    is_read: bool,
    any_replica: bool,
}

impl Unary {
    pub fn write() -> Unary {
        Unary { is_read: false, any_replica: false }
    }

    pub fn read(consistency: Consistency) -> Unary {
        Unary { is_read: true, any_replica: consistency == Consistency::Stale }
    }
}

/// Puts the time that is left into a request.
#[derive(Clone, Copy)]
pub(crate) struct Remaining(Duration);

impl Remaining {
    pub fn wrap<T>(self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.set_timeout(self.0);
        request
    }
}

impl Group {
    /// Runs one unary call until it succeeds, must not be repeated, or the deadline is over.
    pub(crate) async fn unary<T, F, C>(&self, what: Unary, call: C) -> Result<T, Error>
    where
        C: Fn(KvClient<Channel>, Remaining) -> F,
        F: Future<Output = Result<Response<T>, Status>>,
    {
        let shared = self.handle.shared();
        let deadline = Instant::now() + self.timeout;
        let mut attempt = 0;
        loop {
            let address = shared.find_target(self.id, what.any_replica, deadline).await?;
            let left = Remaining(deadline.saturating_duration_since(Instant::now()));
            let kv = shared.channels.kv(&address)?;
            let outcome = tokio::time::timeout_at(deadline, call(kv, left)).await;
            let error = match outcome {
                Ok(Ok(response)) => return Ok(response.into_inner()),
                Ok(Err(status)) => call_error(&address, &status),
                Err(_) => no_answer(&address, self.timeout),
            };
            let error = if what.is_read { error.of_read() } else { error };
            attempt += 1;
            let Some(pause) = shared.after_failure(self.id, &address, &error, what.is_read, attempt) else {
                return Err(error);
            };
            if Instant::now() + pause >= deadline {
                return Err(error);
            }
            tokio::time::sleep(pause).await;
        }
    }
}

fn no_answer(address: &Address, timeout: Duration) -> Error {
    let message = format!("{address} did not answer within {} ms", timeout.as_millis());
    Error::outcome_unknown(Reason::Timeout, message)
}

impl Shared {
    /// Notes what a failure says about the route, and how long to wait before the next attempt;
    /// None when there must be none.
    pub fn after_failure(
        &self,
        group: u32,
        address: &Address,
        error: &Error,
        is_read: bool,
        attempt: u32,
    ) -> Option<Duration> {
        match retry::decide(error, is_read, attempt) {
            Next::Fail => {
                // A leader that is cut off from the others may answer nothing else for long.
                if error.kind() == ErrorKind::OutcomeUnknown {
                    self.router.forget(group, address);
                }
                None
            }
            Next::Again(pause) => Some(pause),
            Next::Rediscover(pause) => {
                self.router.forget(group, address);
                Some(pause)
            }
            Next::Redirect(leader, pause) => {
                if self.router.redirect(group, &leader).is_none() {
                    self.router.forget(group, address);
                }
                Some(pause)
            }
        }
    }

    /// The node to send to; asks around until the deadline when it is not known.
    pub async fn find_target(&self, group: u32, any: bool, deadline: Instant) -> Result<Address, Error> {
        let mut attempt = 0;
        loop {
            if let Some(address) = self.router.target(group, any) {
                return Ok(address);
            }
            let discovery =
                tokio::time::timeout_at(deadline, self.router.discover(&self.channels, &[group])).await;
            if let Some(address) = self.router.target(group, any) {
                return Ok(address);
            }
            let error = match &discovery {
                Ok(discovery) => self.no_route(group, discovery.is_complete(), &discovery.complaint()),
                Err(_) => self.no_route(group, false, "the nodes did not answer in time"),
            };
            attempt += 1;
            let pause = retry::delay(attempt);
            if error.reason() == Reason::GroupNotFound || Instant::now() + pause >= deadline {
                return Err(error);
            }
            tokio::time::sleep(pause).await;
        }
    }

    /// Why nothing can be sent to a group after a round of questions.
    pub fn no_route(&self, group: u32, all_answered: bool, complaint: &str) -> Error {
        if all_answered && !self.router.knows_group(group) {
            let message = format!("group {group} does not exist on any node; list the groups, or create it");
            return Error::did_not_happen(Reason::GroupNotFound, message);
        }
        let mut message = format!("group {group} has no leader that can be reached");
        if !complaint.is_empty() {
            message = format!("{message} ({complaint})");
        }
        Error::did_not_happen(Reason::GroupNotReady, message)
    }
}
