//! The client itself: options, and what all its parts share.

use crate::admin::Admin;
use crate::answer::OpResult;
use crate::channel::{Address, Channels, parse_address};
use crate::dispatch::Dispatch;
use crate::error::Error;
use crate::group::Group;
use crate::limit::Limiter;
use crate::retry;
use crate::route::Router;
use crate::v1::Consistency;
use crate::v1::failure::Reason;
use crate::watch::Watcher;
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::time::Instant;

/// A connection to a DtKV cluster. Cheap to clone and to share; it ends when the last clone, and
/// the last [`Group`] made of it, is dropped.
#[derive(Clone)]
pub struct Client {
    handle: Arc<Handle>,
}

impl Client {
    /// Connects with the default options. One endpoint (`host:port`) is enough, several survive
    /// the loss of one; the other nodes and the leaders of the groups are found from there.
    ///
    /// # Errors
    /// When no endpoint answers; the message names each of them.
    pub async fn connect(endpoints: impl IntoIterator<Item = impl Into<String>>) -> Result<Client, Error> {
        Client::builder().connect(endpoints).await
    }

    /// Options before connecting.
    pub fn builder() -> ClientBuilder {
        ClientBuilder::default()
    }

    /// A group of the cluster. Asks nothing; a group that does not exist fails at the first call.
    pub fn group(&self, id: u32) -> Group {
        self.handle.group(id)
    }

    /// The administration of nodes and groups.
    pub fn admin(&self) -> Admin {
        Admin::new(self.handle.clone())
    }

    /// The identity of this client: the owner of what it will own.
    pub fn client_id(&self) -> [u8; 16] {
        self.handle.shared.options.client_id
    }
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Client({:?})", self.handle.shared.router.endpoints())
    }
}

/// Options of a [`Client`].
#[derive(Clone, Debug)]
pub struct ClientBuilder {
    options: Options,
}

#[derive(Clone, Debug)]
pub(crate) struct Options {
    pub request_timeout: Duration,
    pub connect_timeout: Duration,
    pub consistency: Consistency,
    pub client_id: [u8; 16],
    pub frame_ops_max: usize,
    pub small_frames_max: usize,
    pub in_flight_ops_max: usize,
    pub in_flight_bytes_max: usize,
}

impl Default for ClientBuilder {
    fn default() -> ClientBuilder {
        ClientBuilder {
            options: Options {
                request_timeout: Duration::from_secs(5),
                connect_timeout: Duration::from_secs(5),
                consistency: Consistency::Linearizable,
                client_id: *uuid::Uuid::new_v4().as_bytes(),
                frame_ops_max: 128,
                small_frames_max: 4,
                in_flight_ops_max: 16 << 10,
                in_flight_bytes_max: 64 << 20,
            },
        }
    }
}

impl ClientBuilder {
    /// Deadline of every call that names no other: 5 s unless set.
    #[must_use]
    pub fn request_timeout(mut self, timeout: Duration) -> ClientBuilder {
        self.options.request_timeout = timeout;
        self
    }

    /// How long [`ClientBuilder::connect`] tries to reach an endpoint: 5 s unless set.
    #[must_use]
    pub fn connect_timeout(mut self, timeout: Duration) -> ClientBuilder {
        self.options.connect_timeout = timeout;
        self
    }

    /// Freshness of reads: linearizable unless set.
    #[must_use]
    pub fn consistency(mut self, consistency: Consistency) -> ClientBuilder {
        self.options.consistency = consistency;
        self
    }

    /// The identity of the client, to own again what it owned before a restart: random unless set.
    #[must_use]
    pub fn client_id(mut self, id: [u8; 16]) -> ClientBuilder {
        self.options.client_id = id;
        self
    }

    /// Operations in one frame, 1 to 256: 128 unless set. Smaller frames overlap more of the work
    /// of client, disk and network; larger ones cost less of it.
    #[must_use]
    pub fn frame_ops_max(mut self, ops: usize) -> ClientBuilder {
        self.options.frame_ops_max = ops.clamp(1, crate::limits::FRAME_OPS_MAX);
        self
    }

    /// Frames of one group that may be unanswered before further operations wait until a frame is
    /// full or one is answered: 4 unless set. 1 makes the largest frames.
    #[must_use]
    pub fn small_frames_max(mut self, frames: usize) -> ClientBuilder {
        self.options.small_frames_max = frames.max(1);
        self
    }

    /// Operations that may be in flight at once: 16,384 unless set. Further callers wait.
    #[must_use]
    pub fn in_flight_ops_max(mut self, ops: usize) -> ClientBuilder {
        self.options.in_flight_ops_max = ops.max(1);
        self
    }

    /// Bytes of operations that may be in flight at once: 64 MiB unless set, at least one full
    /// batch. Further callers wait.
    #[must_use]
    pub fn in_flight_bytes_max(mut self, bytes: usize) -> ClientBuilder {
        self.options.in_flight_bytes_max = bytes.max(crate::limits::REQUEST_BYTES_MAX);
        self
    }

    /// Connects: the first endpoint that answers will do.
    ///
    /// # Errors
    /// When an endpoint is no address, or none answers in time; the message names each of them.
    pub async fn connect(
        self,
        endpoints: impl IntoIterator<Item = impl Into<String>>,
    ) -> Result<Client, Error> {
        let addresses: Result<Vec<Address>, Error> =
            endpoints.into_iter().map(|endpoint| parse_address(&endpoint.into())).collect();
        let addresses = addresses?;
        if addresses.is_empty() {
            return Err(Error::invalid("name at least one endpoint, for example 127.0.0.1:9332"));
        }
        let client = Client { handle: Handle::start(self.options, addresses) };
        client.handle.shared.first_contact().await?;
        Ok(client)
    }
}

/// Held by clients and groups; when the last is dropped, the tasks of the client end.
pub(crate) struct Handle {
    shared: Arc<Shared>,
}

impl Handle {
    fn start(options: Options, endpoints: Vec<Address>) -> Arc<Handle> {
        let shared = Arc::new(Shared {
            channels: Channels::new(options.connect_timeout.min(Duration::from_secs(2))),
            router: Router::new(endpoints),
            limiter: Limiter::new(options.in_flight_ops_max, options.in_flight_bytes_max),
            dispatch: Dispatch::default(),
            watcher: OnceLock::new(),
            runtime: tokio::runtime::Handle::current(),
            options,
        });
        shared.start();
        Arc::new(Handle { shared })
    }

    pub fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    pub fn group(self: &Arc<Self>, id: u32) -> Group {
        let options = &self.shared.options;
        Group {
            lanes: self.shared.lanes(id),
            handle: self.clone(),
            id,
            consistency: options.consistency,
            timeout: options.request_timeout,
        }
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.shared.close();
        if let Some(watcher) = self.shared.watcher.get() {
            watcher.close();
        }
    }
}

/// What all parts of a client share.
pub(crate) struct Shared {
    pub options: Options,
    pub channels: Channels,
    pub router: Router,
    pub limiter: Limiter,
    pub dispatch: Dispatch,
    watcher: OnceLock<Watcher>,
    pub runtime: tokio::runtime::Handle,
}

/// Gets the answer to one operation.
pub(crate) type Done = Box<dyn FnOnce(Result<OpResult, Error>) + Send>;

impl Shared {
    /// The task of the watches; it starts with the first.
    pub fn watcher(self: &Arc<Self>, handle: &Arc<Handle>) -> &Watcher {
        self.watcher.get_or_init(|| Watcher::start(self, handle))
    }

    async fn first_contact(&self) -> Result<(), Error> {
        let deadline = Instant::now() + self.options.connect_timeout;
        let mut attempt = 0;
        loop {
            let discovery = self.router.discover(&self.channels, &[]).await;
            if discovery.answered > 0 {
                return Ok(());
            }
            attempt += 1;
            let pause = retry::delay(attempt);
            if Instant::now() + pause >= deadline {
                let message = format!("no endpoint answers: {}", discovery.complaint());
                return Err(Error::did_not_happen(Reason::Unspecified, message));
            }
            tokio::time::sleep(pause).await;
        }
    }
}
