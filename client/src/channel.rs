//! One HTTP/2 connection for each node, made when first needed and shared by everything.

use crate::error::Error;
use crate::v1::admin_client::AdminClient;
use crate::v1::kv_client::KvClient;
use parking_lot::Mutex;
use rustc_hash::FxHashMap;
use std::sync::Arc;
use std::time::Duration;
use tonic::transport::{Channel, Endpoint};

const STREAM_WINDOW_BYTES: u32 = 8 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 16 << 20;
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(2);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(3);
/// Replies to frames of reads may be as large as the values that were asked for.
const REPLY_BYTES_MAX: usize = 1 << 30;

/// `host:port` of a node's client listener.
pub(crate) type Address = Arc<str>;

/// The connections of one client.
pub(crate) struct Channels {
    open: Mutex<FxHashMap<Address, Channel>>,
    connect_timeout: Duration,
}

impl Channels {
    pub fn new(connect_timeout: Duration) -> Channels {
        Channels { open: Mutex::default(), connect_timeout }
    }

    /// The connection to an address. It connects by itself, again and again, as requests need it.
    pub fn get(&self, address: &Address) -> Result<Channel, Error> {
        let mut open = self.open.lock();
        if let Some(channel) = open.get(address) {
            return Ok(channel.clone());
        }
        let channel = self.endpoint(address)?.connect_lazy();
        open.insert(address.clone(), channel.clone());
        Ok(channel)
    }

    pub fn kv(&self, address: &Address) -> Result<KvClient<Channel>, Error> {
        Ok(KvClient::new(self.get(address)?).max_decoding_message_size(REPLY_BYTES_MAX))
    }

    pub fn admin(&self, address: &Address) -> Result<AdminClient<Channel>, Error> {
        Ok(AdminClient::new(self.get(address)?).max_decoding_message_size(REPLY_BYTES_MAX))
    }

    fn endpoint(&self, address: &Address) -> Result<Endpoint, Error> {
        let endpoint = Endpoint::from_shared(format!("http://{address}"))
            .map_err(|error| Error::invalid(format!("{address} is not an address (host:port): {error}")))?;
        Ok(endpoint
            .connect_timeout(self.connect_timeout)
            .tcp_nodelay(true)
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .http2_keep_alive_interval(KEEP_ALIVE_INTERVAL)
            .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
            .keep_alive_while_idle(true))
    }
}

/// Brings what people write (`host:port`, `http://host:port/`) into one form.
pub(crate) fn parse_address(text: &str) -> Result<Address, Error> {
    let text = text.trim();
    if text.starts_with("https://") {
        return Err(Error::invalid(format!(
            "{text}: TLS is not supported; use http:// or a plain host:port"
        )));
    }
    let bare = text.strip_prefix("http://").unwrap_or(text).trim_end_matches('/');
    let port = bare.rsplit_once(':').map(|(host, port)| (host.is_empty(), port.parse::<u16>()));
    match port {
        Some((false, Ok(port))) if port > 0 => Ok(bare.into()),
        _ => Err(Error::invalid(format!(
            "{text:?} is not an address; write host:port, for example 127.0.0.1:9332"
        ))),
    }
}

/// True when the status says that no connection was made, so the request was never sent.
pub(crate) fn never_connected(status: &tonic::Status) -> bool {
    let mut source = std::error::Error::source(status);
    while let Some(error) = source {
        if error.is::<tonic::ConnectError>() {
            return true;
        }
        source = error.source();
    }
    false
}

/// The error of a call to one node, with the node's address in front.
pub(crate) fn call_error(address: &str, status: &tonic::Status) -> Error {
    if never_connected(status) {
        let message = format!("{address} cannot be reached: {}", deepest(status));
        return Error::did_not_happen(crate::v1::failure::Reason::Unspecified, message);
    }
    Error::from(status).context(address)
}

fn deepest(status: &tonic::Status) -> String {
    let mut text = status.message().to_string();
    let mut source = std::error::Error::source(status);
    while let Some(error) = source {
        text = error.to_string();
        source = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_brought_into_one_form() {
        for text in ["127.0.0.1:9332", "http://127.0.0.1:9332", " http://127.0.0.1:9332/ "] {
            assert_eq!(&*parse_address(text).unwrap(), "127.0.0.1:9332");
        }
        assert_eq!(&*parse_address("[::1]:9332").unwrap(), "[::1]:9332");
    }

    #[test]
    fn addresses_without_a_port_are_refused_with_an_example() {
        for text in ["", "localhost", "localhost:", ":9332", "host:0", "https://a:1"] {
            let error = parse_address(text).unwrap_err();
            assert!(!error.message().is_empty());
        }
        assert!(parse_address("localhost").unwrap_err().message().contains("127.0.0.1:9332"));
    }

    #[tokio::test]
    async fn refused_connection_is_a_definite_failure() {
        let channels = Channels::new(Duration::from_millis(500));
        let address: Address = "127.0.0.1:1".into();
        let mut admin = channels.admin(&address).unwrap();
        let status = admin.identity(crate::v1::IdentityRequest {}).await.unwrap_err();
        let error = call_error(&address, &status);
        assert!(error.is_definite(), "{error}");
        assert!(error.message().contains("127.0.0.1:1 cannot be reached"), "{error}");
    }
}
