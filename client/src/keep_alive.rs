//! Keeps everything alive that a client owns in a group, by itself.

use crate::error::Error;
use crate::group::Group;
use crate::retry;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

/// How the renewals of a [`KeepAlive`] go.
#[derive(Clone, Debug, Default)]
pub struct KeepAliveStatus {
    /// When the last renewal that succeeded was sent; None before the first.
    pub renewed_at: Option<Instant>,
    /// How many nodes and locks it renewed.
    pub nodes: u32,
    /// Why the last renewal failed; None when it succeeded.
    pub error: Option<Error>,
    /// No renewal succeeded for the shortest time to live: temporary nodes may have ended. A later
    /// renewal does not take this back.
    pub is_lost: bool,
}

/// Renews what a client owns in a group until it is dropped; made by [`Group::keep_alive_every`].
#[derive(Debug)]
pub struct KeepAlive {
    status: watch::Receiver<KeepAliveStatus>,
    task: tokio::task::JoinHandle<()>,
}

impl KeepAlive {
    /// How it goes.
    pub fn status(&self) -> KeepAliveStatus {
        self.status.borrow().clone()
    }

    /// Waits until no renewal has succeeded for the shortest time to live, and says why.
    pub async fn lost(&self) -> Error {
        let mut status = self.status.clone();
        let error = match status.wait_for(|status| status.is_lost).await {
            Ok(status) => status.error.clone(),
            Err(_) => None,
        };
        error.unwrap_or_else(|| {
            Error::did_not_happen(crate::v1::failure::Reason::Timeout, "nothing was renewed in time")
        })
    }
}

impl Drop for KeepAlive {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Group {
    /// Renews everything that this client owns in the group, at once and then again after every
    /// `period`, until the handle is dropped. What has been renewed still lives on for its own time to
    /// live then.
    ///
    /// `shortest_ttl` is the shortest time to live among it: when no renewal succeeds for so long,
    /// the handle reports a loss. A third of it is a good period.
    ///
    /// # Errors
    /// When the period is not shorter than the time to live, or one of them is 0.
    pub fn keep_alive_every(&self, period: Duration, shortest_ttl: Duration) -> Result<KeepAlive, Error> {
        if period.is_zero() || period >= shortest_ttl {
            return Err(Error::invalid(format!(
                "a period of {period:?} does not keep a time to live of {shortest_ttl:?} alive; renew three \
                 times as often"
            )));
        }
        let (sender, status) = watch::channel(KeepAliveStatus::default());
        let group = self.clone().with_timeout(self.timeout.min(shortest_ttl));
        let runtime = self.handle.shared().runtime.clone();
        let task = runtime.spawn(renew(group, period, shortest_ttl, sender));
        Ok(KeepAlive { status, task })
    }
}

async fn renew(group: Group, period: Duration, ttl: Duration, status: watch::Sender<KeepAliveStatus>) {
    let mut last = Instant::now();
    let mut failures = 0;
    loop {
        let sent = Instant::now();
        let renewed = tokio::time::timeout_at((last + ttl).max(sent + period), group.keep_alive()).await;
        let renewed = renewed.unwrap_or_else(|_| {
            let message = format!("no renewal succeeded within {ttl:?}");
            Err(Error::outcome_unknown(crate::v1::failure::Reason::Timeout, message))
        });
        let pause = if renewed.is_ok() {
            // A renewal that comes after the end has nothing left to renew.
            failures = 0;
            period.saturating_sub(sent.elapsed())
        } else {
            failures += 1;
            retry::delay(failures).min(period)
        };
        let is_late = last + ttl <= Instant::now();
        if renewed.is_ok() {
            last = sent;
        }
        status.send_modify(|status| {
            status.is_lost |= is_late;
            match renewed {
                Ok(owned) => {
                    (status.renewed_at, status.nodes, status.error) = (Some(sent), owned.count, None);
                }
                Err(error) => status.error = Some(error),
            }
        });
        tokio::time::sleep(pause).await;
    }
}
