//! The clients' port: its services and its limits.

use crate::accept::{self, AcceptLimits};
use crate::service::Service;
use dtkv_client::v1;
use dtkv_client::v1::admin_server::AdminServer;
use dtkv_client::v1::kv_server::KvServer;
use std::time::Duration;
use tokio::net::TcpListener;
use tonic::transport::Server;
use tonic_health::pb::health_server::HealthServer;

const STREAM_WINDOW_BYTES: u32 = 4 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 16 << 20;
const FRAME_BYTES_MAX: u32 = 256 << 10;
const HEADER_LIST_BYTES_MAX: u32 = 16 << 10;
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(20);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// A client that resets more streams than it waits for attacks; its connection is closed.
const RESET_STREAMS_MAX: usize = 256;

impl Service {
    /// Serves the clients' port until the service is stopped, and then until its last call has
    /// ended.
    ///
    /// # Errors
    /// When the listener fails.
    pub async fn serve(self, listener: TcpListener) -> Result<(), tonic::transport::Error> {
        let (stop, options) = (self.0.stop.clone(), &self.0.options);
        let bytes = options.request_bytes_max;
        let streams = options.streams_per_connection_max;
        let limits = AcceptLimits {
            connections_max: options.connections_max,
            handshakes_max: options.handshakes_max,
            handshake_timeout: options.handshake_timeout,
        };
        let incoming = accept::incoming(listener, limits, self.0.metrics.accept.clone());
        // Answers may be larger than requests: a batch of gets.
        let kv = KvServer::new(self.clone()).max_decoding_message_size(bytes);
        let admin = AdminServer::new(self.clone()).max_decoding_message_size(bytes);
        Server::builder()
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .max_frame_size(FRAME_BYTES_MAX)
            .max_concurrent_streams(streams)
            .concurrency_limit_per_connection(streams as usize)
            .http2_max_header_list_size(HEADER_LIST_BYTES_MAX)
            .http2_max_pending_accept_reset_streams(Some(RESET_STREAMS_MAX))
            .http2_max_local_error_reset_streams(Some(RESET_STREAMS_MAX))
            .http2_keepalive_interval(Some(KEEP_ALIVE_INTERVAL))
            .http2_keepalive_timeout(Some(KEEP_ALIVE_TIMEOUT))
            .add_service(kv)
            .add_service(admin)
            .add_service(HealthServer::new(self.clone()))
            .add_optional_service(reflection_v1())
            .add_optional_service(reflection_v1alpha())
            .serve_with_incoming_shutdown(incoming, stop.cancelled_owned())
            .await
    }
}

fn reflection() -> tonic_reflection::server::Builder<'static> {
    tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(v1::DESCRIPTOR)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
}

fn reflection_v1() -> Option<
    tonic_reflection::server::v1::ServerReflectionServer<impl tonic_reflection::server::v1::ServerReflection>,
> {
    let built = reflection().build_v1();
    built.inspect_err(|error| tracing::error!(%error, "the descriptor cannot be shown by reflection")).ok()
}

/// Older tools ask for this one.
fn reflection_v1alpha() -> Option<
    tonic_reflection::server::v1alpha::ServerReflectionServer<
        impl tonic_reflection::server::v1alpha::ServerReflection,
    >,
> {
    reflection().build_v1alpha().ok()
}
