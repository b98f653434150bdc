//! Unary calls: sent to the leader (or to any replica), and again after failures that allow it.

use crate::channel::{Address, call_error};
use crate::client::Shared;
use crate::error::{Error, ErrorKind};
use crate::group::Group;
use crate::retry::{self, Next};
use crate::v1::failure::Reason;
use crate::v1::kv_client::KvClient;
use crate::v1::{self, Code, Consistency};
use std::future::Future;
use std::time::Duration;
use tokio::time::Instant;
use tonic::transport::Channel;
use tonic::{Request, Response, Status};

/// The stub that a unary call is made with.
pub(crate) type Kv = KvClient<Channel>;

/// One attempt at a call: what goes into its request.
#[derive(Clone)]
pub(crate) struct Attempt {
    left: Duration,
    /// Writes: who they come from, and their number if they are to happen once.
    pub session: Option<v1::Session>,
}

impl Attempt {
    /// Puts the time that is left into a request.
    pub fn wrap<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.set_timeout(self.left);
        request
    }
}

/// An answer to a write.
pub(crate) trait WriteAnswer {
    /// The code of the write as a whole.
    fn whole(&self) -> Code;
}

impl WriteAnswer for v1::BatchWriteResponse {
    fn whole(&self) -> Code {
        self.code()
    }
}

/// The number of a write that travels outside of frames; given back when this is dropped.
struct Number<'a> {
    group: &'a Group,
    /// None: writes are not numbered.
    numbers: Option<(u64, u64)>,
}

impl<'a> Number<'a> {
    fn take(group: &'a Group) -> Number<'a> {
        Number { group, numbers: group.lanes.write().take_number() }
    }

    fn session(&self, retry: bool) -> v1::Session {
        let (sequence, acknowledged_below) = self.numbers.unwrap_or_default();
        let client_id = self.group.handle.shared().options.identity.client_id;
        let client_id = bytes::Bytes::copy_from_slice(&client_id);
        v1::Session { client_id, sequence, acknowledged_below, retry }
    }

    /// The store did not take this number; the next one comes in its place.
    fn renew(&mut self) {
        let lane = self.group.lanes.write();
        let destination = self.numbers.take().and_then(|(sequence, _)| lane.refuse_number(sequence));
        if let Some(destination) = destination {
            self.group.handle.shared().schedule(lane.clone(), destination);
        }
        self.numbers = lane.take_number();
    }
}

impl Drop for Number<'_> {
    fn drop(&mut self) {
        let Some((sequence, _)) = self.numbers else { return };
        let lane = self.group.lanes.write();
        if let Some(destination) = lane.settle(false, Some(sequence)) {
            self.group.handle.shared().schedule(lane.clone(), destination);
        }
    }
}

impl Group {
    /// Runs a unary call that reads, until it succeeds, must not be repeated, or the deadline is over.
    pub(crate) async fn unary_read<T, F, C>(&self, call: C) -> Result<T, Error>
    where
        C: Fn(Kv, Attempt) -> F,
        F: Future<Output = Result<Response<T>, Status>>,
    {
        let any_replica = self.consistency == Consistency::Stale;
        let deadline = Instant::now() + self.timeout;
        let mut attempt = 0;
        loop {
            let error = match self.attempt(any_replica, deadline, None, &call).await? {
                Ok(answer) => return Ok(answer),
                Err(tried) => tried.of_read(),
            };
            attempt += 1;
            self.pause_after(error, true, attempt, deadline).await?;
        }
    }

    /// Runs a unary call that writes, likewise. When writes are numbered it happens once, however
    /// often it is sent.
    pub(crate) async fn unary_write<T, F, C>(&self, call: C) -> Result<T, Error>
    where
        T: WriteAnswer,
        C: Fn(Kv, Attempt) -> F,
        F: Future<Output = Result<Response<T>, Status>>,
    {
        let deadline = Instant::now() + self.timeout;
        let mut number = Number::take(self);
        let is_numbered = number.numbers.is_some();
        let (mut attempt, mut unknown) = (0, None);
        loop {
            let session = Some(number.session(unknown.is_some()));
            let tried = match self.attempt(false, deadline, session, &call).await {
                Ok(Ok(answer)) if is_numbered && answer.whole() == Code::SessionExpired => {
                    number.renew();
                    Tried { address: None, error: Error::session_expired() }
                }
                Ok(Ok(answer)) => return Ok(answer),
                Ok(Err(tried)) => tried,
                Err(no_route) => return Err(with_first(no_route, unknown)),
            };
            if tried.address.is_none() && unknown.is_some() {
                return Err(with_first(tried.error, unknown));
            }
            if is_numbered && !tried.error.is_definite() {
                unknown.get_or_insert_with(|| tried.error.clone());
            }
            attempt += 1;
            if let Err(error) = self.pause_after(tried, is_numbered, attempt, deadline).await {
                return Err(with_first(error, unknown));
            }
        }
    }

    /// Sends a request once. The outer error: there was nobody to send it to.
    async fn attempt<T, F, C>(
        &self,
        any_replica: bool,
        deadline: Instant,
        session: Option<v1::Session>,
        call: &C,
    ) -> Result<Result<T, Tried>, Error>
    where
        C: Fn(Kv, Attempt) -> F,
        F: Future<Output = Result<Response<T>, Status>>,
    {
        let shared = self.handle.shared();
        let address = shared.find_target(self.id, any_replica, deadline).await?;
        let left = deadline.saturating_duration_since(Instant::now());
        let kv = shared.channels.kv(&address)?;
        let outcome = tokio::time::timeout_at(deadline, call(kv, Attempt { left, session })).await;
        let error = match outcome {
            Ok(Ok(response)) => return Ok(Ok(response.into_inner())),
            Ok(Err(status)) => call_error(&address, &status),
            Err(_) => no_answer(&address, self.timeout),
        };
        Ok(Err(Tried { address: Some(address), error }))
    }

    /// Notes what a failure says, and waits before the next attempt; the error when there must be
    /// none.
    async fn pause_after(
        &self,
        tried: Tried,
        is_repeatable: bool,
        attempt: u32,
        deadline: Instant,
    ) -> Result<(), Error> {
        let Tried { address, error } = tried;
        let pause = match &address {
            Some(address) => {
                self.handle.shared().after_failure(self.id, address, &error, is_repeatable, attempt)
            }
            None => Some(retry::delay(attempt)),
        };
        match pause {
            Some(pause) if Instant::now() + pause < deadline => {
                tokio::time::sleep(pause).await;
                Ok(())
            }
            _ => Err(error),
        }
    }
}

/// The last failure of a request, of which `first` may have left the outcome open.
fn with_first(error: Error, first: Option<Error>) -> Error {
    match first {
        Some(first) => error.of_unknown(&first),
        None => error,
    }
}

/// A request that came to nothing.
struct Tried {
    /// None: it did arrive, but the store did not take its number.
    address: Option<Address>,
    error: Error,
}

impl Tried {
    fn of_read(self) -> Tried {
        Tried { error: self.error.of_read(), ..self }
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
        is_repeatable: bool,
        attempt: u32,
    ) -> Option<Duration> {
        match retry::decide(error, is_repeatable, attempt) {
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
