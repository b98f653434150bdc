//! A lock that is taken again whenever it is free, and renewed while it is held: leader election.

use super::{Lock, LockToken};
use crate::error::Error;
use crate::retry;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;

/// What an [`AutoRenewalLock`] tells its callback; the two alternate, beginning with `Acquired`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Leadership {
    /// This client holds the lock, from now on until told otherwise.
    Acquired(LockToken),
    /// It does not any more.
    Lost(LockToken),
}

/// Keeps asking for a lock and renews it while it is held, until it is stopped. Dropped, it gives the
/// lock up in the background, and calls back no more.
///
/// ```no_run
/// # async fn example(group: dtkv_client::Group) -> Result<(), dtkv_client::Error> {
/// use dtkv_client::{AutoRenewalLock, Leadership};
/// use std::time::Duration;
///
/// let lock = group.lock("app.leader")?;
/// let election = AutoRenewalLock::start(lock, Duration::from_secs(10), |event| match event {
///     Leadership::Acquired(token) => println!("leader, fencing token {}", token.fencing_token()),
///     Leadership::Lost(_) => println!("not leader any more"),
/// })?;
/// // ...
/// election.stop().await?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct AutoRenewalLock {
    lock: Lock,
    stop: watch::Sender<bool>,
    driver: Option<tokio::task::JoinHandle<Result<(), Error>>>,
    teller: tokio::task::JoinHandle<()>,
}

impl AutoRenewalLock {
    /// Starts to ask for the lock. Each grant holds for `lease` and is renewed three times as often;
    /// when no renewal comes through, the loss is told at the end of the lease at the latest.
    ///
    /// Calls of `callback` never overlap and may block. `Lost` cannot be told while the callback for
    /// `Acquired` is running: [`Lock::token`] is up to date even then.
    ///
    /// # Errors
    /// When the lease is below 10 ms or beyond 36,500 days.
    pub fn start(
        lock: Lock,
        lease: Duration,
        callback: impl FnMut(Leadership) + Send + 'static,
    ) -> Result<AutoRenewalLock, Error> {
        crate::temp::ttl_ms(lease)?;
        if lease < Duration::from_millis(10) {
            return Err(Error::invalid(format!("a lease of {lease:?} is below 10 ms")));
        }
        let runtime = lock.inner.group.handle.shared().runtime.clone();
        let (tell, events) = mpsc::unbounded_channel();
        let (stop, stopped) = watch::channel(false);
        let teller = runtime.spawn(tell_all(events, callback));
        let driver = Driver { lock: lock.clone(), lease, tell, stopped };
        let driver = Some(runtime.spawn(driver.run()));
        Ok(AutoRenewalLock { lock, stop, driver, teller })
    }

    /// The lock itself: its state, token and what is left of its lease.
    pub fn lock(&self) -> &Lock {
        &self.lock
    }

    /// Tells the callback that the lock is lost, waits until it has returned or the lease is over, and
    /// gives the lock up.
    ///
    /// # Errors
    /// As [`Lock::unlock`]. Nothing is renewed any more then, so the store ends the lock.
    pub async fn stop(mut self) -> Result<(), Error> {
        self.stop.send_replace(true);
        let unlocked = match self.driver.take() {
            Some(driver) => driver.await.unwrap_or(Ok(())),
            None => Ok(()),
        };
        // It ends with the driver's end of the channel.
        let _ = (&mut self.teller).await;
        unlocked
    }
}

impl Drop for AutoRenewalLock {
    fn drop(&mut self) {
        if let Some(driver) = self.driver.take() {
            driver.abort();
            self.teller.abort();
            self.lock.inner.give_up_later();
        }
    }
}

/// Runs the callback, one call after the other, where it may block.
async fn tell_all(
    mut events: mpsc::UnboundedReceiver<Event>,
    mut callback: impl FnMut(Leadership) + Send + 'static,
) {
    while let Some((event, told)) = events.recv().await {
        let called = tokio::task::spawn_blocking(move || {
            callback(event);
            callback
        });
        match called.await {
            Ok(returned) => callback = returned,
            Err(_) => {
                tracing::error!("the callback of a lock panicked; it is not called any more");
                return;
            }
        }
        if let Some(told) = told {
            // The driver may have given up waiting.
            let _ = told.send(());
        }
    }
}

/// What to tell, and whom to say that it was told.
type Event = (Leadership, Option<oneshot::Sender<()>>);

struct Driver {
    lock: Lock,
    lease: Duration,
    tell: mpsc::UnboundedSender<Event>,
    stopped: watch::Receiver<bool>,
}

impl Driver {
    async fn run(mut self) -> Result<(), Error> {
        let mut failures = 0;
        while !*self.stopped.borrow() {
            let mut stopped = self.stopped.clone();
            let asked = tokio::select! {
                // Dropped, it gives its place in the queue up.
                asked = self.lock.try_lock(self.lease, self.lease) => asked,
                _ = stopped.wait_for(|stopped| *stopped) => break,
            };
            match asked {
                Ok(Some(token)) => {
                    failures = 0;
                    self.hold(token).await;
                }
                Ok(None) => failures = 0,
                Err(error) => {
                    tracing::debug!(%error, "a lock could not be asked for");
                    failures += 1;
                    self.pause(retry::delay(failures)).await;
                }
            }
        }
        self.lock.unlock().await.map(drop)
    }

    /// Renews a grant until it is lost or given up, and tells about both ends of it.
    async fn hold(&mut self, token: LockToken) {
        // Nobody listens any more when this object was dropped.
        let _ = self.tell.send((Leadership::Acquired(token.clone()), None));
        let mut failures = 0;
        let mut next = Instant::now() + self.lease / 3;
        while self.lock.token().as_ref() == Some(&token) {
            let lock = self.lock.clone();
            tokio::select! {
                () = tokio::time::sleep_until(next) => {}
                () = lock.released() => continue,
                _ = self.stopped.wait_for(|stopped| *stopped) => break,
            }
            let sent = Instant::now();
            let renewed =
                tokio::time::timeout(self.lock.lease_left(), self.lock.update_lease(self.lease)).await;
            if matches!(renewed, Ok(Ok(_))) {
                failures = 0;
                next = sent + self.lease / 3;
            } else {
                failures += 1;
                next = Instant::now() + retry::delay(failures).min(self.lease / 10);
            }
        }
        let (told, heard) = oneshot::channel();
        let _ = self.tell.send((Leadership::Lost(token), Some(told)));
        if *self.stopped.borrow() {
            // While the callback winds up what it does as the holder, nobody else must get the lock.
            tokio::select! {
                _ = heard => {}
                () = self.lock.released() => {}
            }
        }
    }

    async fn pause(&mut self, pause: Duration) {
        let _ = tokio::time::timeout(pause, self.stopped.wait_for(|stopped| *stopped)).await;
    }
}
