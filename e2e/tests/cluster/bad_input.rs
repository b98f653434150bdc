//! A full batch of bad input on every call: each is refused, none costs a log entry, nothing breaks.

use anyhow::{Context, Result, ensure};
use dtkv_client::packed::{Kind, Op};
use dtkv_client::v1::admin_client::AdminClient;
use dtkv_client::v1::failure::Reason;
use dtkv_client::v1::{self, Failure, Frame};
use dtkv_e2e::cluster::{Cluster, ClusterOptions, http_get};
use dtkv_e2e::contract::{Call, Pipe, check_shape, unary};
use prost::Message;
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Fails unless the group's log and tree are as they were.
struct Untouched {
    last_index: u64,
    digest: String,
}

impl Untouched {
    async fn begin(cluster: &Cluster) -> Result<Untouched> {
        cluster.client().group(1).put("before", "x").await?;
        let digest = cluster.same_digest(1, &cluster.node_ids()).await?.digest;
        let leader = cluster.leader(1).await?;
        Ok(Untouched { last_index: cluster.status(leader, 1).await?.last_index, digest })
    }

    async fn check(&self, cluster: &Cluster) -> Result<()> {
        let leader = cluster.leader(1).await?;
        let last_index = cluster.status(leader, 1).await?.last_index;
        ensure!(last_index == self.last_index, "bad input cost {} log entries", last_index - self.last_index);
        let digest = cluster.same_digest(1, &cluster.node_ids()).await?.digest;
        ensure!(digest == self.digest, "bad input changed the tree");
        cluster.client().group(1).put("after", "x").await?;
        ensure!(cluster.client().group(1).get("before").await?.is_some());
        Ok(())
    }
}

fn failure_of(status: &tonic::Status) -> Option<Failure> {
    (!status.details().is_empty()).then(|| Failure::decode(status.details()).ok()).flatten()
}

/// One more byte, item or operation than allowed, or none at all.
fn bad_calls() -> Vec<Call> {
    let item = |n: usize| (format!("k{n}"), "v".to_owned());
    let big = |n: usize| (format!("k{n}"), "v".repeat(1 << 20));
    vec![
        Call::BatchPut { items: vec![] },
        Call::BatchGet { keys: vec![] },
        Call::BatchRemove { keys: vec![] },
        Call::BatchPut { items: (0..1025).map(item).collect() },
        Call::BatchGet { keys: (0..1025).map(|n| format!("k{n}")).collect() },
        Call::BatchRemove { keys: (0..1025).map(|n| format!("k{n}")).collect() },
        Call::BatchPut { items: (0..5).map(big).collect() },
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unary_calls_refuse_batches_beyond_the_limits_and_name_the_limit() -> Result<()> {
    let cluster = Cluster::start("bad-unary", ClusterOptions::new(3, 1)).await?;
    let untouched = Untouched::begin(&cluster).await?;
    let mut kv = cluster.kv(cluster.leader(1).await?).await?;
    for call in bad_calls() {
        let name = format!("{call:.80?}");
        let status = unary(&mut kv, 1, &call).await.err().with_context(|| format!("{name} went through"))?;
        ensure!(
            matches!(status.code(), tonic::Code::InvalidArgument | tonic::Code::OutOfRange),
            "{name}: {status:?}"
        );
        if let Some(failure) = failure_of(&status) {
            ensure!(failure.reason() == Reason::InvalidArgument && !failure.outcome_unknown, "{failure:?}");
            ensure!(failure.message.chars().any(|c| c.is_ascii_digit()), "no limit in {:?}", failure.message);
        }
    }
    let long_page =
        v1::ListRequest { group_id: 1, continuation: vec![9; 100_000].into(), ..Default::default() };
    let answer = kv.list(long_page).await;
    ensure!(answer.is_err() || answer.is_ok_and(|page| page.get_ref().nodes.len() <= 1), "a made up page");
    let odd = v1::GetRequest { group_id: 1, key: "before".into(), consistency: 99 };
    ensure!(kv.get(odd).await.is_err(), "an unknown consistency was taken");
    let session = Some(v1::Session { client_id: vec![1; 3].into(), ..Default::default() });
    let put =
        v1::PutRequest { group_id: 1, key: "s".into(), value: "v".into(), session, ..Default::default() };
    ensure!(kv.put(put).await.is_err(), "a client id of three bytes was taken");
    untouched.check(&cluster).await?;
    cluster.finish()
}

fn packed(ops: &[Op<'_>]) -> Vec<u8> {
    let mut out = Vec::new();
    ops.iter().for_each(|op| op.pack(&mut out));
    out
}

/// Frames that are none: count, bytes, whether they say to be reads.
fn bad_frames() -> Vec<(u32, Vec<u8>, bool)> {
    let put = Op::new(Kind::Put, b"k", b"v");
    let get = Op::new(Kind::Get, b"k", b"");
    let two = packed(&[put, put]);
    let nested = packed(&[Op::new(Kind::Batch, b"", &packed(&[Op::new(Kind::Batch, b"", &two)]))]);
    let mixed = packed(&[Op::new(Kind::Batch, b"", &packed(&[put, Op::new(Kind::Remove, b"k", b"")]))]);
    let mut frames = vec![
        (0, vec![], false),
        (1, vec![], false),
        (0, two.clone(), false),
        (1, two.clone(), false),
        (3, two.clone(), false),
        (257, two.clone(), false),
        (u32::MAX, two.clone(), false),
        (2, two.clone(), true),
        (1, packed(&[get]), false),
        (1, nested, false),
        (1, mixed, false),
        (1, packed(&[Op::new(Kind::Batch, b"", b"")]), false),
        (1, packed(&[Op::new(Kind::Batch, b"", b"\x01\x02\x03")]), false),
        (1, packed(&[Op::new(Kind::Remove, b"k", b"value")]), false),
        (1, packed(&[Op { recursive: true, ..put }]), false),
        (1, packed(&[Op { session: Some(([1; 16], 1)), ..get }]), true),
    ];
    frames.extend(
        (1..two.len()).filter(|cut| *cut != two.len() / 2).map(|cut| (2, two[..cut].to_vec(), false)),
    );
    // A length of 4 GiB, and a kind that does not exist.
    frames.push((1, [&[1, 0, 1, 0][..], &u32::MAX.to_le_bytes(), b"k"].concat(), false));
    frames.extend([0u8, 7, 200, 255].map(|kind| (1, [&[kind][..], &two[1..two.len() / 2]].concat(), false)));
    frames
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn malformed_frames_are_refused_one_by_one_and_the_stream_goes_on() -> Result<()> {
    let cluster = Cluster::start("bad-frames", ClusterOptions::new(3, 1)).await?;
    let untouched = Untouched::begin(&cluster).await?;
    let mut pipe = Pipe::open(cluster.kv(cluster.leader(1).await?).await?).await?;
    for (count, ops, read) in bad_frames() {
        let name = format!("{count} operations, read {read}: {ops:x?}");
        let frame = Frame { group_id: 1, count, ops: ops.into(), read, ..Frame::default() };
        let reply = pipe.exchange(frame).await.with_context(|| name.clone())?;
        check_shape(&reply)?;
        let failure = reply.failure.with_context(|| format!("{name} went through"))?;
        ensure!(
            failure.reason() == Reason::InvalidArgument && !failure.outcome_unknown,
            "{name}: {failure:?}"
        );
        ensure!(!failure.message.is_empty());
    }
    for group_id in [0, 99, u32::MAX] {
        let ops = packed(&[Op::new(Kind::Put, b"k", b"v")]).into();
        let reply = pipe.exchange(Frame { group_id, count: 1, ops, ..Frame::default() }).await?;
        let failure = reply.failure.context("a group that is not there")?;
        ensure!(failure.reason() == Reason::GroupNotFound, "{failure:?}");
    }
    untouched.check(&cluster).await?;
    cluster.finish()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_frames_never_break_a_node() -> Result<()> {
    let cluster = Cluster::start("bad-random", ClusterOptions::new(1, 2)).await?;
    let mut pipe = Pipe::open(cluster.kv(1).await?).await?;
    let mut rng = SmallRng::seed_from_u64(20);
    let template = packed(&[
        Op { session: Some(([7; 16], 9)), ..Op::new(Kind::Put, b"a.b", b"value") },
        Op { expect: Some(b"x"), has_new_value: true, ..Op::new(Kind::CompareAndSet, b"a", b"y") },
        Op { recursive: true, ..Op::new(Kind::Remove, b"a", b"") },
        Op::new(Kind::Batch, b"", &packed(&[Op::new(Kind::Put, b"c", b"d"), Op::new(Kind::Put, b"e", b"f")])),
    ]);
    let mut answered = 0;
    for round in 0..3_000u64 {
        let mut ops = template.clone();
        for _ in 0..rng.random_range(1..4) {
            let at = rng.random_range(0..ops.len());
            ops[at] = rng.random();
        }
        ops.truncate(if round % 3 == 0 { rng.random_range(0..=ops.len()) } else { ops.len() });
        let (count, read) = (rng.random_range(0..6), rng.random_bool(0.2));
        let frame = Frame {
            group_id: 2,
            count,
            ops: ops.into(),
            read,
            consistency: rng.random_range(-1..4),
            ..Frame::default()
        };
        let reply = pipe.exchange(frame).await.with_context(|| format!("round {round}"))?;
        check_shape(&reply)?;
        answered += usize::from(reply.failure.is_none());
    }
    println!("{answered} of 3000 frames were fit to be answered");
    cluster.client().group(2).put("after", "x").await?;
    cluster.finish()
}

/// What an open port may be sent by anybody.
fn garbage() -> Vec<Vec<u8>> {
    let mut rng = SmallRng::seed_from_u64(4);
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    let random: Vec<u8> = (0..4096).map(|_| rng.random()).collect();
    let headers_without_end =
        [&preface[..], &[0, 0, 0, 4, 0, 0, 0, 0, 0], &[0, 0xff, 0xff, 1, 0, 0, 0, 0, 1]].concat();
    vec![
        vec![],
        b"\r\n\r\n".to_vec(),
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(),
        format!("GET /{} HTTP/1.1\r\n\r\n", "a".repeat(100_000)).into_bytes(),
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".to_vec(),
        random.clone(),
        [&preface[..], &random].concat(),
        headers_without_end,
        preface,
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_that_are_no_protocol_end_their_connection_and_nothing_else() -> Result<()> {
    let cluster = Cluster::start("bad-bytes", ClusterOptions::new(3, 1)).await?;
    let untouched = Untouched::begin(&cluster).await?;
    let node = cluster.node(cluster.leader(1).await?);
    for address in [node.client_address(), node.peer_address(), node.http_address()] {
        for bytes in garbage() {
            let mut stream = TcpStream::connect(&address).await?;
            // The node may close before it has read everything.
            let _ = stream.write_all(&bytes).await;
            let _ = stream.shutdown().await;
            let mut answer = Vec::new();
            let read = stream.read_to_end(&mut answer);
            tokio::time::timeout(std::time::Duration::from_secs(10), read)
                .await
                .with_context(|| format!("{address} keeps a connection open after {bytes:.40x?}"))?
                .ok();
        }
    }
    for path in ["/..%2f..%2fetc%2fpasswd", "/metrics/x", "/%ff%fe", "/status.json?x=1&x=2"] {
        let (status, _) = http_get(&node.http_address(), path).await?;
        ensure!(status == 404 || status == 400 || path.starts_with("/status.json"), "{path}: {status}");
    }
    untouched.check(&cluster).await?;
    cluster.finish()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_beyond_the_limit_and_unknown_methods_are_refused() -> Result<()> {
    let cluster = Cluster::start("bad-messages", ClusterOptions::new(3, 1)).await?;
    let untouched = Untouched::begin(&cluster).await?;
    let leader = cluster.leader(1).await?;
    let mut kv = cluster.kv(leader).await?;
    let value = vec![b'v'; 20 << 20].into();
    let put = v1::PutRequest { group_id: 1, key: "k".into(), value, ..Default::default() };
    let status = kv.put(put).await.err().context("20 MiB went through")?;
    ensure!(
        matches!(
            status.code(),
            tonic::Code::OutOfRange | tonic::Code::ResourceExhausted | tonic::Code::InvalidArgument
        ),
        "{status:?}"
    );
    let mut grpc = tonic::client::Grpc::new(cluster.channel(leader).await?);
    for path in ["/dtkv.v1.Kv/Nothing", "/nothing.v9.Kv/Put", "/"] {
        grpc.ready().await?;
        let codec = tonic_prost::ProstCodec::<v1::GetRequest, v1::GetResponse>::default();
        let path = tonic::codegen::http::uri::PathAndQuery::from_static(path);
        let status = grpc.unary(tonic::Request::new(v1::GetRequest::default()), path, codec).await;
        ensure!(status.is_err_and(|status| status.code() == tonic::Code::Unimplemented));
    }
    untouched.check(&cluster).await?;
    cluster.finish()
}

/// Every administrative call with arguments that make no sense.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn administrative_calls_refuse_nonsense() -> Result<()> {
    let cluster = Cluster::start("bad-admin", ClusterOptions::new(3, 1)).await?;
    let untouched = Untouched::begin(&cluster).await?;
    let leader = cluster.leader(1).await?;
    let mut admin = AdminClient::new(cluster.channel(leader).await?);
    let id = cluster.cluster_id().to_owned();
    let nowhere =
        v1::NodeAddress { node_id: 9, client_address: "no port".into(), peer_address: String::new() };
    let nobody = v1::NodeAddress { node_id: 0, ..cluster.address(1) };
    let (mut calls, mut refused) = (0, 0);
    macro_rules! refuses {
        ($call:ident, $request:expr) => {{
            let request = $request;
            let what = format!("{} {:?}", stringify!($call), request);
            let status = admin.$call(request).await.err().with_context(|| format!("{what} went through"))?;
            let failure = failure_of(&status).with_context(|| format!("{what}: no detail in {status:?}"))?;
            ensure!(!failure.outcome_unknown && !failure.message.is_empty(), "{what}: {failure:?}");
            calls += 1;
            refused += 1;
        }};
    }
    refuses!(group_status, v1::GroupStatusRequest { group_id: 99, confirm: false });
    refuses!(group_status, v1::GroupStatusRequest { group_id: 99, confirm: true });
    refuses!(tree_digest, v1::TreeDigestRequest { group_id: 99 });
    refuses!(add_nodes, v1::AddNodesRequest { epoch: 0, nodes: vec![nowhere.clone()] });
    refuses!(add_nodes, v1::AddNodesRequest { epoch: 0, nodes: vec![nobody.clone()] });
    refuses!(join_cluster, v1::JoinClusterRequest { cluster_id: "another".into(), ..Default::default() });
    refuses!(join_cluster, v1::JoinClusterRequest::default());
    let bootstrap = v1::BootstrapRequest {
        cluster_id: id.clone(),
        group_id: 5,
        members: vec![1, 2, 3],
        layout_hash: "layout".into(),
        ..Default::default()
    };
    refuses!(bootstrap, v1::BootstrapRequest { members: vec![], ..bootstrap.clone() });
    refuses!(bootstrap, v1::BootstrapRequest { members: vec![0, leader], ..bootstrap.clone() });
    refuses!(bootstrap, v1::BootstrapRequest { members: vec![leader, leader], ..bootstrap.clone() });
    refuses!(bootstrap, v1::BootstrapRequest { members: vec![leader, 77], ..bootstrap.clone() });
    refuses!(bootstrap, v1::BootstrapRequest { cluster_id: "another".into(), ..bootstrap.clone() });
    refuses!(bootstrap, v1::BootstrapRequest { group_id: 0, ..bootstrap });
    let learner = v1::AddLearnerRequest { group_id: 1, ..Default::default() };
    refuses!(add_learner, learner.clone());
    refuses!(add_learner, v1::AddLearnerRequest { node: Some(nowhere), ..learner.clone() });
    refuses!(add_learner, v1::AddLearnerRequest { node: Some(nobody), ..learner.clone() });
    refuses!(add_learner, v1::AddLearnerRequest { group_id: 99, node: Some(cluster.address(2)), ..learner });
    let change = v1::ChangeMembershipRequest {
        group_id: 1,
        voters: vec![1, 2],
        expected_config_index: 1 << 40,
        ..Default::default()
    };
    refuses!(change_membership, change.clone());
    refuses!(change_membership, v1::ChangeMembershipRequest { group_id: 99, ..change.clone() });
    let now = admin.group_status(v1::GroupStatusRequest { group_id: 1, confirm: true }).await?.into_inner();
    let change = v1::ChangeMembershipRequest { expected_config_index: now.config_index, ..change };
    refuses!(change_membership, v1::ChangeMembershipRequest { voters: vec![], ..change.clone() });
    refuses!(change_membership, v1::ChangeMembershipRequest { voters: vec![0], ..change.clone() });
    refuses!(change_membership, v1::ChangeMembershipRequest { learners: vec![1], ..change });
    refuses!(transfer_leader, v1::TransferLeaderRequest { group_id: 99, ..Default::default() });
    refuses!(transfer_leader, v1::TransferLeaderRequest { group_id: 1, to: 99, timeout_ms: 500, epoch: 0 });
    refuses!(
        destroy_replica,
        v1::DestroyReplicaRequest { group_id: 1, removed_at_config_index: 1, epoch: 0 }
    );
    refuses!(destroy_group, v1::DestroyGroupRequest { group_id: 1, cluster_id: String::new(), epoch: 0 });
    refuses!(destroy_group, v1::DestroyGroupRequest { group_id: 1, cluster_id: "x".into(), epoch: 0 });
    refuses!(tombstone, v1::TombstoneRequest { node_id: 0, epoch: 0 });
    refuses!(tombstone, v1::TombstoneRequest { node_id: leader, epoch: 0 });
    ensure!(calls == refused);
    println!("{refused} administrative calls refused");
    untouched.check(&cluster).await?;
    cluster.finish()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_operator_with_an_older_epoch_is_refused() -> Result<()> {
    let cluster = Cluster::start("bad-epoch", ClusterOptions::new(1, 1)).await?;
    let mut admin = AdminClient::new(cluster.channel(1).await?);
    let drain = |epoch| v1::SetDrainingRequest { epoch, draining: false };
    admin.set_draining(drain(0)).await?;
    admin.set_draining(drain(5)).await?;
    admin.set_draining(drain(5)).await?;
    for older in [1, 4] {
        let status = admin.set_draining(drain(older)).await.err().context("an older operator was obeyed")?;
        let failure = failure_of(&status).context("a detail")?;
        ensure!(failure.reason() == Reason::Precondition && failure.message.contains('5'), "{failure:?}");
    }
    admin.set_draining(drain(6)).await?;
    ensure!(admin.identity(v1::IdentityRequest {}).await?.into_inner().operator_epoch == 6);
    cluster.finish()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_with_a_bad_configuration_says_everything_that_is_wrong_and_binds_nothing() -> Result<()> {
    use dtkv_e2e::cluster::{place, run_program};
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("dtkv.toml");
    std::fs::write(&file, "[node]\nid = 0\n[raft]\nheartbeat_interval_ms = 99999\n[lisen]\nx = 1\n")?;
    let path = file.to_string_lossy();
    for command in [&["run", "--config", &path][..], &["check-config", &path]] {
        let output = run_program(&place::program("dtkv-node")?, command, "").await?;
        ensure!(output.code.is_some_and(|code| code != 0), "{command:?}: {output:?}");
        let all = format!("{}{}", output.stdout, output.stderr);
        for word in ["node.id", "heartbeat_interval_ms", "lisen"] {
            ensure!(all.contains(word), "{command:?} says nothing of {word}:\n{all}");
        }
    }
    Ok(())
}
