//! A disk with less free space than its reserve: what grows is refused, the rest goes on.

use crate::harness::{GROUP, Running, failure};
use dtkv_client::v1;
use dtkv_client::v1::failure::Reason;
use dtkv_node::config::ByteSize;
use tonic::Status;

/// More than any disk has.
const TOO_MUCH: ByteSize = ByteSize(1 << 60);

fn put(key: &'static str) -> v1::PutRequest {
    v1::PutRequest { group_id: GROUP, key: key.into(), value: "v".into(), ..Default::default() }
}

fn remove(key: &'static str) -> v1::RemoveRequest {
    v1::RemoveRequest { group_id: GROUP, key: key.into(), ..Default::default() }
}

fn swap(key: &'static str, new: Option<&'static str>) -> v1::CompareAndSetRequest {
    let (expect, new) = (Some("v".into()), new.map(Into::into));
    v1::CompareAndSetRequest { group_id: GROUP, key: key.into(), expect, new, ..Default::default() }
}

fn assert_refused(status: Status) {
    let failure = failure(&status);
    assert_eq!((failure.reason(), failure.outcome_unknown), (Reason::Overloaded, false), "{failure:?}");
    assert!(failure.retry_after_ms > 0, "{failure:?}");
    assert!(failure.message.contains("node.disk_reserve_bytes"), "{failure:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_nearly_full_disk_takes_removes_and_reads_and_heals() {
    let node = Running::start().await;
    let mut kv = node.kv().await;
    for key in ["a", "b", "c", "d"] {
        kv.put(put(key)).await.expect("there is space");
    }
    assert_eq!(node.metric("dtkv_engine_disk_low").await, 0.0);
    let directory = node.stop().await;
    let node = Running::start_empty(|config| {
        config.node.data_dir = directory.path().to_owned();
        config.node.disk_reserve_bytes = Some(TOO_MUCH);
    })
    .await;
    let mut kv = node.kv().await;
    for _ in 0..400 {
        if node.get("/readyz").await.0 == 200 {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    assert_refused(kv.put(put("e")).await.expect_err("it grows"));
    assert_refused(kv.compare_and_set(swap("a", Some("longer"))).await.expect_err("it grows"));
    let mkdir = v1::MkdirRequest { group_id: GROUP, key: "dir".into(), ..Default::default() };
    assert_refused(kv.mkdir(mkdir).await.expect_err("it grows"));
    let items = vec![v1::KeyValue { key: "e".into(), value: "v".into() }];
    let batch = v1::BatchPutRequest { group_id: GROUP, items, ..Default::default() };
    assert_refused(kv.batch_put(batch).await.expect_err("it grows"));
    let group = v1::BootstrapRequest {
        group_id: GROUP + 1,
        cluster_id: node
            .admin()
            .await
            .identity(v1::IdentityRequest {})
            .await
            .expect("it answers")
            .into_inner()
            .cluster_id,
        members: vec![1],
        ..Default::default()
    };
    assert_refused(node.admin().await.bootstrap(group).await.expect_err("it grows"));

    let get = v1::GetRequest { group_id: GROUP, key: "a".into(), consistency: 0 };
    assert!(kv.get(get).await.expect("reads go on").into_inner().node.is_some());
    kv.remove(remove("a")).await.expect("removes go on");
    kv.compare_and_set(swap("b", None)).await.expect("so do those by value");
    let keys = vec!["c".into()];
    let batch = v1::BatchRemoveRequest { group_id: GROUP, keys, ..Default::default() };
    kv.batch_remove(batch).await.expect("and batches of them");

    let (status, text) = node.get("/readyz").await;
    assert!(status == 200 && text.contains("warning: the disk of this node is nearly full"), "{text}");
    assert!(node.get("/").await.1.contains("nearly full"));
    assert_eq!(node.metric("dtkv_engine_disk_low").await, 1.0);
    let identity =
        node.admin().await.identity(v1::IdentityRequest {}).await.expect("it answers").into_inner();
    assert!(identity.disk_low && identity.disk_free_bytes > 0, "{identity:?}");
    assert_eq!(identity.disk_reserve_bytes, 1 << 60);
    node.stop().await;
}
