//! The clients' port: its services, its limits, and the connections that it takes.

use crate::service::Service;
use crate::service::metrics::Gauged;
use dtkv_client::v1;
use dtkv_client::v1::admin_server::AdminServer;
use dtkv_client::v1::kv_server::KvServer;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio_stream::Stream;
use tonic::transport::Server;
use tonic::transport::server::{Connected, TcpConnectInfo};
use tonic_health::pb::health_server::HealthServer;

const STREAM_WINDOW_BYTES: u32 = 4 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 16 << 20;
const FRAME_BYTES_MAX: u32 = 256 << 10;
const HEADER_LIST_BYTES_MAX: u32 = 16 << 10;
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(20);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(10);
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// A client that resets more streams than it waits for attacks; its connection is closed.
const RESET_STREAMS_MAX: usize = 256;

impl Service {
    /// Serves the clients' port until the service is stopped, and then until its last call has
    /// ended.
    ///
    /// # Errors
    /// When the listener fails.
    pub async fn serve(self, listener: TcpListener) -> Result<(), tonic::transport::Error> {
        let (stop, bytes) = (self.0.stop.clone(), self.0.options.request_bytes_max);
        let streams = self.0.options.streams_per_connection_max;
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
            .serve_with_incoming_shutdown(incoming(listener, self), stop.cancelled_owned())
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

/// Connections as they come, each with its place among those that the node takes.
fn incoming(listener: TcpListener, service: Service) -> impl Stream<Item = io::Result<Connection>> {
    futures::stream::unfold((listener, service), async |(listener, service)| {
        let connection = service.accept(&listener).await;
        Some((Ok(connection), (listener, service)))
    })
}

impl Service {
    async fn accept(&self, listener: &TcpListener) -> Connection {
        let (metrics, limit) = (&self.0.metrics, self.0.options.connections_max);
        loop {
            match listener.accept().await {
                Ok((_, from)) if metrics.open_connections() >= limit.into() => {
                    metrics.connections_refused.inc();
                    tracing::debug!(%from, limit, "refused a connection: limits.connections_max are open");
                }
                Ok((stream, _)) => {
                    let _ = stream.set_nodelay(true);
                    return Connection { stream, _open: metrics.connection() };
                }
                // Too many open files, or a client that went away at once: the next may be fine.
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }
}

/// A client's connection.
struct Connection {
    stream: TcpStream,
    _open: Gauged,
}

impl Connected for Connection {
    type ConnectInfo = TcpConnectInfo;

    fn connect_info(&self) -> TcpConnectInfo {
        self.stream.connect_info()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
