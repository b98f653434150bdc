//! Start, stop, and starts that must not be.

use crate::harness::{Running, config, frame, put};
use dtkv_client::v1;
use dtkv_node::{Node, NodeError};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

#[tokio::test(flavor = "multi_thread")]
async fn a_node_without_a_cluster_waits_and_says_who_it_is() {
    let node = Running::start_empty(|_| {}).await;
    let identity = node.admin().await.identity(v1::IdentityRequest {}).await.expect("an answer").into_inner();
    assert_eq!((identity.node_id, identity.cluster_id.as_str()), (1, ""));
    assert!(node.get("/").await.1.contains("waits for a cluster"));
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_written_is_there_after_a_restart() {
    let node = Running::start().await;
    let request =
        v1::PutRequest { group_id: 1, key: "k".into(), value: "v".into(), ..v1::PutRequest::default() };
    node.kv().await.put(request).await.expect("written");
    let directory = node.stop().await;
    let node = Running::start_with(|config| config.node.data_dir = directory.path().to_owned()).await;
    let request = v1::GetRequest { group_id: 1, key: "k".into(), consistency: 0 };
    let found = node.kv().await.get(request).await.expect("an answer").into_inner().node;
    assert_eq!(found.and_then(|node| node.value), Some("v".into()));
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_stops_although_a_stream_is_open() {
    let node = Running::start().await;
    let mut kv = node.kv().await;
    let (send, frames) = mpsc::channel(4);
    let mut replies = kv.pipe(ReceiverStream::new(frames)).await.expect("a stream").into_inner();
    send.send(frame(1, &[put(b"k", b"v")])).await.expect("sent");
    assert_eq!(replies.message().await.expect("a reply").map(|reply| reply.id), Some(1));
    node.stop().await;
    assert!(!matches!(replies.message().await, Ok(Some(_))), "the stream has ended");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_of_another_node_is_refused() {
    let directory = Running::start().await.stop().await;
    let mut wrong = config(directory.path());
    wrong.node.id = Some(2);
    let error = Node::build(wrong).await.err().expect("must be refused").to_string();
    assert!(error.contains("belongs to n1") && error.contains("node.id"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_in_use_is_refused() {
    let node = Running::start_empty(|_| {}).await;
    let error = Node::build(config(node.directory.path())).await.err().expect("must be refused");
    assert!(matches!(error, NodeError::Engine(_)) && error.to_string().contains("in use"), "{error}");
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_in_use_is_named_with_its_setting() {
    let node = Running::start_empty(|_| {}).await;
    let directory = tempfile::TempDir::new().expect("a directory");
    let mut taken = config(directory.path());
    taken.listen.client = node.config.listen.client;
    let error = Node::build(taken).await.err().expect("must be refused").to_string();
    assert!(error.contains("listen.client") && error.contains(&node.config.client_address()), "{error}");
    node.stop().await;
}
