//! The connections that a gRPC port takes: a bounded number, each of which must begin HTTP/2 within
//! a deadline before it counts as one. Whoever only connects costs a place for a few seconds.

use futures::Stream;
use prometheus::{IntCounter, IntGauge};
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tonic::transport::server::{Connected, TcpConnectInfo};

/// What every HTTP/2 connection begins with.
const PREFACE: [u8; 24] = *b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// After a connection that could not be accepted: too many open files, as a rule.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The bounds of one port.
#[derive(Clone, Copy, Debug)]
pub struct AcceptLimits {
    /// Open connections, those in their handshake too.
    pub connections_max: u32,
    /// Connections in their handshake.
    pub handshakes_max: u32,
    /// How long a handshake may take.
    pub handshake_timeout: Duration,
}

/// What one port counts.
#[derive(Clone, Debug)]
pub struct AcceptMetrics {
    /// Open connections, those in their handshake too.
    pub open: IntGauge,
    /// Connections that were closed for want of a place, or because they did not begin in time.
    pub refused: IntCounter,
}

/// The connections of a listener, each with its place among those that the port takes. Ends never;
/// dropped, it ends every handshake.
pub fn incoming(
    listener: TcpListener,
    limits: AcceptLimits,
    metrics: AcceptMetrics,
) -> impl Stream<Item = io::Result<Connection>> {
    let gate = Gate { listener, limits, metrics, handshakes: JoinSet::new() };
    futures::stream::unfold(gate, async |mut gate| Some((Ok(gate.next().await), gate)))
}

struct Gate {
    listener: TcpListener,
    limits: AcceptLimits,
    metrics: AcceptMetrics,
    handshakes: JoinSet<Option<Connection>>,
}

impl Gate {
    async fn next(&mut self) -> Connection {
        loop {
            tokio::select! {
                Some(done) = self.handshakes.join_next() => match done {
                    Ok(Some(connection)) => return connection,
                    _ => self.metrics.refused.inc(),
                },
                accepted = self.listener.accept() => match accepted {
                    Ok((stream, _)) => self.begin(stream),
                    // The client may have gone away at once; the next one may be fine.
                    Err(error) => {
                        tracing::warn!(%error, "a connection could not be accepted");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                },
            }
        }
    }

    fn begin(&mut self, stream: TcpStream) {
        let AcceptLimits { connections_max, handshakes_max, handshake_timeout } = self.limits;
        let is_full = self.metrics.open.get() >= connections_max.into();
        if is_full || self.handshakes.len() >= handshakes_max as usize {
            self.metrics.refused.inc();
            tracing::debug!(connections_max, handshakes_max, is_full, "refused a connection: too many");
            return;
        }
        let place = Place::take(&self.metrics.open);
        self.handshakes.spawn(async move {
            let handshake = tokio::time::timeout(handshake_timeout, Connection::begin(stream, place));
            handshake.await.ok()?.ok()
        });
    }
}

/// Counts as open until it is dropped.
struct Place(IntGauge);

impl Place {
    fn take(open: &IntGauge) -> Place {
        open.inc();
        Place(open.clone())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// A connection that has begun HTTP/2.
pub struct Connection {
    stream: TcpStream,
    /// How much of the preface, which has been read already, was handed on.
    replayed: usize,
    _open: Place,
}

impl Connection {
    async fn begin(mut stream: TcpStream, place: Place) -> io::Result<Connection> {
        stream.set_nodelay(true)?;
        let mut preface = [0; PREFACE.len()];
        stream.read_exact(&mut preface).await?;
        if preface != PREFACE {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "this is no HTTP/2"));
        }
        Ok(Connection { stream, replayed: 0, _open: place })
    }
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
        let left = &PREFACE[self.replayed..];
        if left.is_empty() {
            return Pin::new(&mut self.stream).poll_read(context, buffer);
        }
        let fits = left.len().min(buffer.remaining());
        buffer.put_slice(&left[..fits]);
        self.replayed += fits;
        Poll::Ready(Ok(()))
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

#[cfg(test)]
mod tests {
    use super::*;
    use futures::StreamExt;
    use tokio::io::AsyncWriteExt;

    /// A port, what it counts, and the connections that it let through.
    async fn port(
        connections_max: u32,
        handshakes_max: u32,
        handshake_timeout: Duration,
    ) -> (std::net::SocketAddr, AcceptMetrics, tokio::sync::mpsc::UnboundedReceiver<Connection>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let metrics = AcceptMetrics {
            open: IntGauge::new("open", "open").expect("a gauge"),
            refused: IntCounter::new("refused", "refused").expect("a counter"),
        };
        let limits = AcceptLimits { connections_max, handshakes_max, handshake_timeout };
        let (send, receive) = tokio::sync::mpsc::unbounded_channel();
        let counted = metrics.clone();
        tokio::spawn(async move {
            let mut incoming = std::pin::pin!(incoming(listener, limits, counted));
            while let Some(Ok(connection)) = incoming.next().await {
                if send.send(connection).is_err() {
                    return;
                }
            }
        });
        (address, metrics, receive)
    }

    async fn closed(mut stream: TcpStream) {
        // Closed at once, or reset because of unread bytes.
        let _ = stream.read(&mut [0]).await.map(|read| assert_eq!(read, 0));
    }

    const LONG: Duration = Duration::from_secs(60);

    #[tokio::test]
    async fn a_connection_passes_with_everything_that_it_sent() {
        let (address, metrics, mut passed) = port(2, 2, LONG).await;
        let mut client = TcpStream::connect(address).await.expect("connected");
        for part in [&PREFACE[..10], &PREFACE[10..], b"rest"] {
            client.write_all(part).await.expect("sent");
        }
        let mut connection = passed.recv().await.expect("it passes");
        let mut all = [0; PREFACE.len() + 4];
        connection.read_exact(&mut all).await.expect("read");
        assert_eq!((&all[..24], &all[24..]), (&PREFACE[..], &b"rest"[..]));
        assert_eq!((metrics.open.get(), metrics.refused.get()), (1, 0));
        drop(connection);
        assert_eq!(metrics.open.get(), 0);
    }

    #[tokio::test]
    async fn a_connection_that_says_nothing_or_something_else_is_closed() {
        let (address, metrics, _passed) = port(8, 8, Duration::from_millis(200)).await;
        closed(TcpStream::connect(address).await.expect("connected")).await;
        let mut stranger = TcpStream::connect(address).await.expect("connected");
        stranger.write_all(b"GET / HTTP/1.1\r\nHost: somebody\r\n\r\n").await.expect("sent");
        closed(stranger).await;
        while metrics.refused.get() < 2 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert_eq!(metrics.open.get(), 0);
    }

    #[tokio::test]
    async fn handshakes_and_connections_are_bounded() {
        let (address, metrics, mut passed) = port(2, 1, LONG).await;
        let mut slow = TcpStream::connect(address).await.expect("connected");
        while metrics.open.get() < 1 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        closed(TcpStream::connect(address).await.expect("connected")).await;
        assert_eq!(metrics.refused.get(), 1, "one handshake at a time");
        let mut open = Vec::new();
        slow.write_all(&PREFACE).await.expect("sent");
        open.push(passed.recv().await.expect("it passes"));
        let mut second = TcpStream::connect(address).await.expect("connected");
        second.write_all(&PREFACE).await.expect("sent");
        open.push(passed.recv().await.expect("it passes"));
        closed(TcpStream::connect(address).await.expect("connected")).await;
        assert_eq!((metrics.open.get(), metrics.refused.get()), (2, 2), "two connections at a time");
        open.clear();
        let mut third = TcpStream::connect(address).await.expect("connected");
        third.write_all(&PREFACE).await.expect("sent");
        passed.recv().await.expect("there is a place again");
    }
}
