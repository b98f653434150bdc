//! The network between nodes, as far as a test wants to break it: a small TCP proxy stands before
//! the peer port of every node, so that each direction between two nodes can be blocked.
//!
//! Blocked is what a network does that loses every packet: connections stay open, nothing arrives,
//! nobody is told. It needs no privileges, and processes and sockets are real ones.

use anyhow::{Context, Result};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

const BUFFER_BYTES: usize = 64 << 10;

/// One direction between two nodes.
#[derive(Debug)]
struct Way {
    is_blocked: watch::Sender<bool>,
    passed: AtomicU64,
}

/// What the proxies share.
#[derive(Debug, Default)]
struct Shared {
    ways: BTreeMap<(u64, u64), Way>,
    /// Process ids, to tell whose connection it is.
    processes: Mutex<BTreeMap<u64, u32>>,
}

/// All proxies of a cluster. They end with it.
#[derive(Debug)]
pub struct Cuts {
    shared: Arc<Shared>,
    _proxies: JoinSet<()>,
}

/// A node and its proxy.
#[derive(Clone, Copy, Debug)]
pub struct Proxied {
    /// The node.
    pub node: u64,
    /// Where others believe it to be.
    pub proxy_port: u16,
    /// Where it is.
    pub peer_port: u16,
}

impl Cuts {
    /// Starts a proxy for each of these nodes.
    ///
    /// # Errors
    /// When one cannot listen.
    pub async fn start(nodes: &[Proxied]) -> Result<Cuts> {
        let pairs = nodes.iter().flat_map(|from| nodes.iter().map(move |to| (from.node, to.node)));
        let way = || Way { is_blocked: watch::Sender::new(false), passed: AtomicU64::new(0) };
        let ways = pairs.filter(|(from, to)| from != to).map(|pair| (pair, way())).collect();
        let shared = Arc::new(Shared { ways, processes: Mutex::default() });
        let mut proxies = JoinSet::new();
        for &proxied in nodes {
            let listener = TcpListener::bind(("127.0.0.1", proxied.proxy_port)).await;
            let listener = listener.with_context(|| format!("the proxy of n{}", proxied.node))?;
            proxies.spawn(accept(listener, proxied, shared.clone()));
        }
        Ok(Cuts { shared, _proxies: proxies })
    }

    /// The process of a node, as long as it lives.
    pub(super) fn know(&self, node: u64, process: u32) {
        self.shared.processes.lock().insert(node, process);
    }

    /// Blocks everything that one node says to another, or lets it through again.
    ///
    /// # Panics
    /// When there is no such pair.
    pub fn set_blocked(&self, from: u64, to: u64, is_blocked: bool) {
        self.shared.ways[&(from, to)].is_blocked.send_replace(is_blocked);
    }

    /// Nobody hears the node any more.
    pub fn make_dumb(&self, node: u64) {
        let ways = self.shared.ways.keys().filter(|(from, _)| *from == node);
        ways.for_each(|&(from, to)| self.set_blocked(from, to, true));
    }

    /// The node hears nobody any more.
    pub fn make_deaf(&self, node: u64) {
        let ways = self.shared.ways.keys().filter(|(_, to)| *to == node);
        ways.for_each(|&(from, to)| self.set_blocked(from, to, true));
    }

    /// Both.
    pub fn isolate(&self, node: u64) {
        self.make_dumb(node);
        self.make_deaf(node);
    }

    /// Everything gets through again.
    pub fn heal(&self) {
        self.shared.ways.keys().for_each(|&(from, to)| self.set_blocked(from, to, false));
    }

    /// Bytes that got through to or from a node so far.
    pub fn passed(&self, node: u64) -> u64 {
        let ways = self.shared.ways.iter().filter(|((from, to), _)| *from == node || *to == node);
        ways.map(|(_, way)| way.passed.load(Ordering::Relaxed)).sum()
    }
}

async fn accept(listener: TcpListener, proxied: Proxied, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    while let Ok((near, _)) = listener.accept().await {
        while connections.try_join_next().is_some() {}
        connections.spawn(connect(near, proxied, shared.clone()));
    }
}

async fn connect(near: TcpStream, proxied: Proxied, shared: Arc<Shared>) {
    let Some(from) = near.peer_addr().ok().and_then(|peer| shared.owner(peer.port(), proxied.proxy_port))
    else {
        // It is gone already, or nobody's; a node tries again.
        return;
    };
    let (Some(there), Some(back)) =
        (shared.ways.get(&(from, proxied.node)), shared.ways.get(&(proxied.node, from)))
    else {
        return;
    };
    // Who cannot be heard cannot connect either.
    there.opened().await;
    back.opened().await;
    let Ok(far) = TcpStream::connect(("127.0.0.1", proxied.peer_port)).await else { return };
    let _ = (near.set_nodelay(true), far.set_nodelay(true));
    let ((near_read, near_write), (far_read, far_write)) = (near.into_split(), far.into_split());
    tokio::select! {
        () = carry(near_read, far_write, there) => {}
        () = carry(far_read, near_write, back) => {}
    }
}

/// Carries bytes until one end closes; the end is news like any other and waits like it.
async fn carry(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, way: &Way) {
    let mut buffer = vec![0; BUFFER_BYTES];
    while let Ok(count @ 1..) = from.read(&mut buffer).await {
        way.opened().await;
        if to.write_all(&buffer[..count]).await.is_err() {
            return;
        }
        way.passed.fetch_add(count as u64, Ordering::Relaxed);
    }
    way.opened().await;
}

impl Way {
    async fn opened(&self) {
        // The sender lives as long as the proxies.
        let _ = self.is_blocked.subscribe().wait_for(|is_blocked| !is_blocked).await;
    }
}

impl Shared {
    /// The node that holds the connection from `port` to `proxy_port`.
    fn owner(&self, port: u16, proxy_port: u16) -> Option<u64> {
        let table = std::fs::read_to_string("/proc/net/tcp").ok()?;
        let socket = format!("socket:[{}]", inode_of(&table, port, proxy_port)?);
        let holds = |process: u32| {
            let files = std::fs::read_dir(format!("/proc/{process}/fd")).into_iter().flatten().flatten();
            files.filter_map(|file| std::fs::read_link(file.path()).ok()).any(|to| to.as_os_str() == &*socket)
        };
        self.processes.lock().iter().find(|(_, process)| holds(**process)).map(|(node, _)| *node)
    }
}

/// The inode of the socket from one local port to another, in the words of /proc/net/tcp.
fn inode_of(table: &str, from: u16, to: u16) -> Option<&str> {
    let port = |address: &str| u16::from_str_radix(address.rsplit(':').next()?, 16).ok();
    table.lines().skip(1).find_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let is_it = port(fields.get(1)?)? == from && port(fields.get(2)?)? == to;
        is_it.then(|| fields.get(9).copied())?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_is_found_by_its_ports() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n\
                     0: 0100007F:1F90 0100007F:D431 01 00000000:00000000 00:00000000 00000000     0        0 11 1\n\
                     1: 0100007F:D431 0100007F:1F90 01 00000000:00000000 00:00000000 00000000     0        0 12 1\n";
        assert_eq!(inode_of(table, 0xD431, 0x1F90), Some("12"));
        assert_eq!(inode_of(table, 0x1F90, 0xD431), Some("11"));
        assert_eq!(inode_of(table, 1, 2), None);
    }
}
