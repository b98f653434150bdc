//! The streams of watches, one to each node that serves some.

use crate::channel::{Address, call_error};
use crate::client::Shared;
use crate::error::Error;
use crate::v1::failure::Reason;
use crate::v1::{WatchCreate, WatchOpened, WatchRequest, WatchResponse};
use futures::stream::{AbortHandle, BoxStream, SelectAll, abortable, unfold};
use futures::{StreamExt, TryFutureExt};
use rustc_hash::FxHashMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::time::Instant;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::Streaming;

/// Watches registered by one request.
const CREATES_AT_ONCE: usize = 512;
/// Silence that is borne until the node has said how often it speaks.
const SILENCE_FIRST: Duration = Duration::from_secs(10);
/// Acknowledgements go out after this part of the window.
const ACKNOWLEDGED_PART: u64 = 4;

/// What came from a node, or that nothing will come any more.
pub(super) struct Incoming {
    pub address: Address,
    pub serial: u64,
    pub response: Result<WatchResponse, Error>,
}

/// A stream was accepted, or not.
pub(super) struct Accepted {
    pub address: Address,
    pub serial: u64,
    pub responses: Result<Streaming<WatchResponse>, Error>,
}

pub(super) struct Link {
    serial: u64,
    requests: UnboundedSender<WatchRequest>,
    next: WatchRequest,
    since: Instant,
    heard: Instant,
    silence_max: Duration,
    window: u64,
    dealt_with: u64,
    acknowledged: u64,
    reader: Option<AbortHandle>,
}

#[derive(Default)]
pub(super) struct Links {
    open: FxHashMap<Address, Link>,
    incoming: SelectAll<BoxStream<'static, Incoming>>,
    /// How long nodes took to accept a stream.
    round_trips: FxHashMap<Address, Duration>,
    next_serial: u64,
}

impl Links {
    pub fn is_empty(&self) -> bool {
        self.open.is_empty()
    }

    /// The next response of any node; pends for ever when there are no streams.
    pub async fn next(&mut self) -> Incoming {
        match self.incoming.next().await {
            Some(incoming) => incoming,
            None => std::future::pending().await,
        }
    }

    /// How far a node is, as far as that is known, in ms.
    pub fn distance_ms(&self, address: &Address) -> u128 {
        self.round_trips.get(address).map_or(0, Duration::as_millis)
    }

    pub fn get(&mut self, address: &Address) -> Option<&mut Link> {
        self.open.get_mut(address)
    }

    /// The link to a node. When it is new, the stream that it needs has to be opened.
    pub fn get_or_add(&mut self, address: &Address) -> (&mut Link, Option<Opening>) {
        let mut opening = None;
        let next_serial = &mut self.next_serial;
        let link = self.open.entry(address.clone()).or_insert_with(|| {
            *next_serial += 1;
            let (requests, outgoing) = unbounded_channel();
            opening = Some(Opening { address: address.clone(), serial: *next_serial, outgoing });
            Link::new(*next_serial, requests)
        });
        (link, opening)
    }

    /// Begins to read a stream. False when the link is not wanted any more.
    pub fn opened(&mut self, address: &Address, serial: u64, responses: Streaming<WatchResponse>) -> bool {
        let Some(link) = self.open.get_mut(address).filter(|link| link.serial == serial) else {
            return false;
        };
        link.heard = Instant::now();
        self.round_trips.insert(address.clone(), link.since.elapsed());
        let (stream, reader) = abortable(read(address.clone(), serial, responses));
        link.reader = Some(reader);
        self.incoming.push(stream.boxed());
        true
    }

    /// Whether the link is the one of this serial.
    pub fn is_current(&self, address: &Address, serial: u64) -> bool {
        self.open.get(address).is_some_and(|link| link.serial == serial)
    }

    pub fn remove(&mut self, address: &Address) {
        self.open.remove(address);
    }

    /// Nodes that have been silent for too long.
    pub fn silent(&self, now: Instant) -> Vec<Address> {
        let is_silent = |link: &Link| now.saturating_duration_since(link.heard) > link.silence_max;
        self.open.iter().filter(|(_, link)| is_silent(link)).map(|(address, _)| address.clone()).collect()
    }

    /// Sends what has gathered.
    pub fn flush(&mut self) {
        self.open.values_mut().for_each(Link::flush);
    }
}

impl Link {
    fn new(serial: u64, requests: UnboundedSender<WatchRequest>) -> Link {
        let now = Instant::now();
        Link {
            serial,
            requests,
            next: WatchRequest::default(),
            since: now,
            heard: now,
            silence_max: SILENCE_FIRST,
            window: u64::MAX,
            dealt_with: 0,
            acknowledged: 0,
            reader: None,
        }
    }

    pub fn create(&mut self, create: WatchCreate) {
        self.next.create.push(create);
    }

    pub fn cancel(&mut self, watch_id: u32) {
        self.next.cancel.push(watch_id);
    }

    pub fn hear(&mut self, opened: Option<&WatchOpened>) {
        self.heard = Instant::now();
        if let Some(opened) = opened {
            self.silence_max = Duration::from_millis(opened.progress_interval_ms.into()) * 2;
            self.window = opened.window_bytes;
        }
    }

    /// A response has been dealt with.
    pub fn deal(&mut self, bytes: u32) {
        self.dealt_with += u64::from(bytes);
        if (self.dealt_with - self.acknowledged) >= self.window / ACKNOWLEDGED_PART {
            self.acknowledged = self.dealt_with;
            self.next.acknowledged_bytes = self.dealt_with;
        }
    }

    fn flush(&mut self) {
        while self.next != WatchRequest::default() {
            let mut request = std::mem::take(&mut self.next);
            if request.create.len() > CREATES_AT_ONCE {
                self.next.create = request.create.split_off(CREATES_AT_ONCE);
            }
            // When the stream is gone, its end arrives from the other side.
            let _ = self.requests.send(request);
        }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        if let Some(reader) = &self.reader {
            reader.abort();
        }
    }
}

fn read(
    address: Address,
    serial: u64,
    responses: Streaming<WatchResponse>,
) -> impl futures::Stream<Item = Incoming> {
    unfold(Some(responses), move |responses| {
        let address = address.clone();
        async move {
            let mut responses = responses?;
            let (response, rest) = match responses.message().await {
                Ok(Some(response)) => (Ok(response), Some(responses)),
                Ok(None) => (Err(lost(&address, "it closed the stream")), None),
                Err(status) => (Err(lost(&address, status.message())), None),
            };
            Some((Incoming { address, serial, response }, rest))
        }
    })
}

fn lost(address: &Address, why: &str) -> Error {
    Error::did_not_happen(Reason::Unspecified, format!("watches at {address} were lost: {why}"))
}

/// A stream about to be opened.
pub(super) struct Opening {
    address: Address,
    serial: u64,
    outgoing: UnboundedReceiver<WatchRequest>,
}

impl Opening {
    pub async fn run(self, shared: Arc<Shared>) -> Accepted {
        let Opening { address, serial, outgoing } = self;
        let timeout = shared.options.connect_timeout;
        let opened = async {
            let mut kv = shared.channels.kv(&address)?;
            let call = kv.watch(UnboundedReceiverStream::new(outgoing));
            call.map_err(|status| call_error(&address, &status)).await
        };
        let responses = match tokio::time::timeout(timeout, opened).await {
            Ok(opened) => opened.map(|response| response.into_inner()),
            Err(_) => Err(lost(&address, "it did not accept a stream in time")),
        };
        Accepted { address, serial, responses }
    }
}
