//! What clients own: temporary nodes and locks, over unary calls and streams.

use crate::harness::{GROUP, Running, failure, frame, put};
use crate::pipe::exchange;
use bytes::Bytes;
use dtkv_client::packed::{self, Kind, Op, PackedResult};
use dtkv_client::v1::failure::Reason;
use dtkv_client::v1::kv_client::KvClient;
use dtkv_client::v1::{self, Code};
use std::time::Duration;
use tonic::transport::Channel;

const ME: [u8; 16] = [1; 16];
const OTHER: [u8; 16] = [2; 16];
const HOUR_MS: u64 = 3_600_000;

fn bytes(text: &'static str) -> Bytes {
    Bytes::from_static(text.as_bytes())
}

fn session(client: [u8; 16]) -> Option<v1::Session> {
    Some(v1::Session { client_id: Bytes::copy_from_slice(&client), ..Default::default() })
}

fn put_temp(key: &'static str, ttl_ms: u64) -> v1::PutRequest {
    let (ttl_ms, session) = (Some(ttl_ms), session(ME));
    v1::PutRequest {
        group_id: GROUP,
        key: bytes(key),
        value: bytes("v"),
        ttl_ms,
        session,
        ..Default::default()
    }
}

fn try_lock(client: [u8; 16], hold_ms: u64, wait_ms: u64) -> v1::TryLockRequest {
    v1::TryLockRequest { group_id: GROUP, key: bytes("lock"), hold_ms, wait_ms, session: session(client) }
}

async fn get(kv: &mut KvClient<Channel>, key: &'static str) -> Option<v1::Node> {
    let request = v1::GetRequest { group_id: GROUP, key: bytes(key), consistency: 0 };
    kv.get(request).await.expect("an answer").into_inner().node
}

async fn is_gone(kv: &mut KvClient<Channel>, key: &'static str) {
    for _ in 0..500 {
        if get(kv, key).await.is_none() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("{key} is still there");
}

#[tokio::test(flavor = "multi_thread")]
async fn temporary_nodes_are_made_seen_renewed_and_expire() {
    let node = Running::start().await;
    let mut kv = node.kv().await;
    let made = kv.put(put_temp("t", HOUR_MS)).await.expect("an answer").into_inner();
    assert_eq!(made.code(), Code::Success);
    let dir = v1::MkdirRequest {
        group_id: GROUP,
        key: bytes("dir"),
        ttl_ms: Some(HOUR_MS),
        session: session(ME),
        ..Default::default()
    };
    assert_eq!(kv.mkdir(dir).await.expect("an answer").into_inner().code(), Code::Success);
    let seen = get(&mut kv, "t").await.expect("a node");
    assert!(seen.temp && seen.owner.as_deref() == Some(&ME[..]));
    assert!(seen.ttl_remaining_ms.is_some_and(|left| left <= HOUR_MS && left > HOUR_MS - 600_000));
    let list = v1::ListRequest { group_id: GROUP, ..Default::default() };
    let page = kv.list(list).await.expect("an answer").into_inner();
    assert!(page.nodes.iter().all(|node| node.temp && node.ttl_remaining_ms > Some(0)));
    let batch = v1::BatchGetRequest { group_id: GROUP, keys: vec![bytes("t")], ..Default::default() };
    let batch = kv.batch_get(batch).await.expect("an answer").into_inner();
    assert!(batch.items[0].node.as_ref().is_some_and(|node| node.ttl_remaining_ms > Some(0)));

    let mine = v1::ListOwnedRequest { group_id: GROUP, client_id: ME.to_vec().into(), ..Default::default() };
    let page = kv.list_owned(mine.clone()).await.expect("an answer").into_inner();
    assert_eq!(page.nodes.iter().map(|node| node.key.clone()).collect::<Vec<_>>(), ["dir", "t"]);
    let renew = v1::UpdateTtlRequest { group_id: GROUP, key: bytes("t"), ttl_ms: 50, session: session(ME) };
    let theirs = v1::UpdateTtlRequest { session: session(OTHER), ..renew.clone() };
    assert_eq!(kv.update_ttl(theirs).await.expect("an answer").into_inner().code(), Code::NotOwner);
    let alive = v1::KeepAliveRequest { group_id: GROUP, session: session(ME) };
    assert_eq!(kv.keep_alive(alive).await.expect("an answer").into_inner().count, 2);
    assert_eq!(kv.update_ttl(renew).await.expect("an answer").into_inner().code(), Code::Success);
    is_gone(&mut kv, "t").await;
    node.metric_becomes("dtkv_group_expired_nodes_total", 1.0).await;
    assert_eq!(node.metric("dtkv_group_expiry_lag_seconds_count").await, 1.0);

    let drop = v1::DropOwnerRequest { group_id: GROUP, session: session(ME) };
    let dropped = kv.drop_owner(drop).await.expect("an answer").into_inner();
    assert_eq!((dropped.code(), dropped.count), (Code::Success, 1));
    assert!(kv.list_owned(mine).await.expect("an answer").into_inner().nodes.is_empty());
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lock_goes_from_hand_to_hand_and_guards_writes() {
    let node = Running::start().await;
    let mut kv = node.kv().await;
    let mine = kv.try_lock(try_lock(ME, HOUR_MS, 0)).await.expect("an answer").into_inner();
    assert_eq!((mine.code(), mine.fencing_token), (Code::Success, mine.index));
    let busy = kv.try_lock(try_lock(OTHER, HOUR_MS, 0)).await.expect("an answer").into_inner();
    assert_eq!((busy.code(), busy.fencing_token), (Code::LockByOther, 0));
    let queued = kv.try_lock(try_lock(OTHER, HOUR_MS, HOUR_MS)).await.expect("an answer").into_inner();
    assert_eq!(queued.code(), Code::LockByOther);

    let guarded = |fencing_token| v1::PutRequest {
        group_id: GROUP,
        key: bytes("k"),
        value: bytes("v"),
        guard: Some(v1::Guard { lock: bytes("lock"), fencing_token }),
        ..Default::default()
    };
    let written = kv.put(guarded(mine.fencing_token)).await.expect("an answer").into_inner();
    assert_eq!(written.code(), Code::Success);
    let lease = v1::UpdateLeaseRequest {
        group_id: GROUP,
        key: bytes("lock"),
        hold_ms: HOUR_MS,
        session: session(ME),
    };
    let renewed = kv.update_lease(lease).await.expect("an answer").into_inner();
    assert_eq!((renewed.code(), renewed.fencing_token), (Code::Success, mine.fencing_token));
    let unlock = |client| v1::UnlockRequest { group_id: GROUP, key: bytes("lock"), session: session(client) };
    assert_eq!(kv.unlock(unlock(ME)).await.expect("an answer").into_inner().code(), Code::Success);
    let stale = kv.put(guarded(mine.fencing_token)).await.expect("an answer").into_inner();
    assert_eq!(stale.code(), Code::Fenced);
    let again = kv.try_lock(try_lock(OTHER, HOUR_MS, 0)).await.expect("an answer").into_inner();
    assert_eq!(again.code(), Code::LockBySelf);
    assert!(again.fencing_token > mine.fencing_token);
    assert_eq!(kv.unlock(unlock(OTHER)).await.expect("an answer").into_inner().code(), Code::Success);
    assert_eq!(kv.unlock(unlock(OTHER)).await.expect("an answer").into_inner().code(), Code::NotFound);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn owners_times_and_keys_are_checked_before_the_log() {
    let node = Running::start().await;
    let mut kv = node.kv().await;
    let before = node.metric("dtkv_group_last_index{group=\"1\"}").await;
    let nobody = kv.put(v1::PutRequest { session: None, ..put_temp("t", 5) }).await.expect_err("refused");
    assert!(failure(&nobody).message.contains("needs a session"), "{nobody:?}");
    let unlock = v1::UnlockRequest { group_id: GROUP, key: bytes("lock"), session: None };
    let refused = kv.unlock(unlock).await.expect_err("refused");
    let why = failure(&refused);
    assert_eq!((why.reason(), why.outcome_unknown), (Reason::InvalidArgument, false));
    assert!(why.message.contains("Unlock needs a session"), "{why:?}");
    let short = v1::ListOwnedRequest { group_id: GROUP, client_id: bytes("short"), ..Default::default() };
    assert!(failure(&kv.list_owned(short).await.expect_err("refused")).message.contains("must have 16"));
    assert_eq!(kv.put(put_temp("t", 0)).await.expect("an answer").into_inner().code(), Code::InvalidTtl);
    let backwards = kv.try_lock(try_lock(ME, 5, 6)).await.expect("an answer").into_inner();
    assert_eq!((backwards.code(), backwards.index), (Code::InvalidTtl, 0));
    let long = v1::TryLockRequest { key: vec![b'k'; 8_160].into(), ..try_lock(ME, 5, 0) };
    assert_eq!(kv.try_lock(long).await.expect("an answer").into_inner().code(), Code::KeyTooLong);
    let guard = Some(v1::Guard { lock: vec![b'l'; 70_000].into(), fencing_token: 1 });
    let guarded = v1::PutRequest { ttl_ms: None, guard, ..put_temp("t", 5) };
    assert_eq!(kv.put(guarded).await.expect("an answer").into_inner().code(), Code::Fenced);
    let expire = Op::new(Kind::Expire, b"", b"");
    let reply = exchange(&node, vec![frame(1, &[expire])]).await.remove(&1).expect("a reply");
    assert!(reply.failure.is_some_and(|failure| failure.message.contains("only leaders")));
    assert_eq!(node.metric("dtkv_group_last_index{group=\"1\"}").await, before, "no log entry");
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expected_index_decides_about_puts_and_removes() {
    let node = Running::start().await;
    let mut kv = node.kv().await;
    let put = |expect_index| v1::PutRequest {
        group_id: GROUP,
        key: bytes("k"),
        value: bytes("v"),
        expect_index,
        ..Default::default()
    };
    let made = kv.put(put(Some(0))).await.expect("an answer").into_inner();
    assert_eq!(made.code(), Code::Success);
    assert_eq!(kv.put(put(Some(0))).await.expect("an answer").into_inner().code(), Code::CasMismatch);
    let second = kv.put(put(Some(made.index))).await.expect("an answer").into_inner();
    assert_eq!(second.code(), Code::SuccessOverwrite);
    let remove = |expect_index| v1::RemoveRequest {
        group_id: GROUP,
        key: bytes("k"),
        expect_index: Some(expect_index),
        ..Default::default()
    };
    let stale = kv.remove(remove(made.index)).await.expect("an answer").into_inner();
    assert_eq!(stale.code(), Code::CasMismatch);
    let removed = kv.remove(remove(second.index)).await.expect("an answer").into_inner();
    assert_eq!(removed.code(), Code::Success);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_carries_operations_of_owners() {
    let node = Running::start().await;
    let by = |op| Op { session: Some((ME, 0)), ..op };
    let wait = 0u64.to_le_bytes();
    let ops = [
        by(Op { ttl_ms: Some(HOUR_MS), ..put(b"t", b"v") }),
        by(Op { ttl_ms: Some(0), ..Op::new(Kind::UpdateLease, b"lock", b"") }),
        by(Op { ttl_ms: Some(HOUR_MS), ..Op::new(Kind::TryLock, b"lock", &wait) }),
        by(Op::new(Kind::KeepAlive, b"", b"")),
        by(Op::new(Kind::Unlock, b"lock", b"")),
    ];
    let reply = exchange(&node, vec![frame(1, &ops)]).await.remove(&1).expect("a reply");
    assert!(reply.failure.is_none(), "{reply:?}");
    let mut results = packed::results(&reply.results);
    let expected = [
        PackedResult::Code(Code::Success),
        PackedResult::Token(Code::InvalidTtl, 0),
        PackedResult::Token(Code::Success, reply.index),
        PackedResult::Count(Code::Success, 2),
        PackedResult::Code(Code::Success),
    ];
    for (op, expected) in ops.iter().zip(expected) {
        assert_eq!(results.next(op.kind), Ok(expected), "{:?}", op.kind);
    }
    let read = frame(2, &[Op::new(Kind::Get, b"t", b"")]);
    let reply = exchange(&node, vec![read]).await.remove(&2).expect("a reply");
    let Ok(PackedResult::Node(found)) = packed::results(&reply.results).next(Kind::Get) else { panic!() };
    assert!(found.temp && found.lease.is_some_and(|(left, owner)| left > 0 && owner == ME));
    node.stop().await;
}
