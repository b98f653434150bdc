//! The HTTP port, health, reflection, administration and the limits of connections.

use crate::harness::{GROUP, Running, failure};
use dtkv_client::v1;
use dtkv_client::v1::failure::Reason;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_reflection::pb::v1::ServerReflectionRequest;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;

#[tokio::test(flavor = "multi_thread")]
async fn machines_and_people_get_their_pages() {
    let node = Running::start().await;
    assert_eq!(node.get("/healthz").await, (200, "ok\n".to_owned()));
    assert_eq!(node.get("/readyz").await, (200, "ready\n".to_owned()));
    let (status, page) = node.get("/").await;
    assert_eq!(status, 200);
    for part in ["DtKV node n1", "<td>g1</td>", "this node", &*node.config.client_address()] {
        assert!(page.contains(part), "no {part:?} in\n{page}");
    }
    let (status, json) = node.get("/status.json").await;
    let json: serde_json::Value = serde_json::from_str(&json).expect("json");
    assert_eq!((status, &json["groups"][0]["role"]), (200, &"leader".into()));
    let (status, hint) = node.get("/nowhere").await;
    assert!(status == 404 && hint.contains("/metrics"), "{hint}");
    for name in ["dtkv_node_groups", "dtkv_node_leaders", "dtkv_group_is_leader{group=\"1\"}"] {
        assert_eq!(node.metric(name).await, 1.0, "{name}");
    }
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn dangerous_settings_are_shown_to_people() {
    let node = Running::start_with(|config| config.listen.insecure_plaintext = true).await;
    assert!(node.get("/").await.1.contains("neither encrypted nor authenticated"));
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn health_is_told_for_the_node_and_for_each_group() {
    let node = Running::start().await;
    let mut health = HealthClient::new(node.channel().await);
    for service in ["", "dtkv.v1.Kv", "dtkv.v1.Admin", "group/1"] {
        let request = HealthCheckRequest { service: service.to_owned() };
        let status = health.check(request.clone()).await.expect("an answer").into_inner().status();
        assert_eq!(status, ServingStatus::Serving, "{service}");
        let mut watched = health.watch(request).await.expect("a stream").into_inner();
        let first = watched.message().await.expect("an answer").expect("a status");
        assert_eq!(first.status(), ServingStatus::Serving, "{service}");
    }
    for service in ["group/2", "group/x", "else"] {
        let request = HealthCheckRequest { service: service.to_owned() };
        let status = health.check(request).await.expect_err("unknown");
        assert_eq!(status.code(), tonic::Code::NotFound, "{service}");
    }
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn reflection_names_every_service() {
    let node = Running::start_empty(|_| {}).await;
    let mut reflection = ServerReflectionClient::new(node.channel().await);
    let message_request = Some(MessageRequest::ListServices(String::new()));
    let request = ServerReflectionRequest { host: String::new(), message_request };
    let stream = reflection.server_reflection_info(tokio_stream::once(request)).await.expect("a stream");
    let answer = stream.into_inner().message().await.expect("an answer").expect("a message");
    let Some(MessageResponse::ListServicesResponse(list)) = answer.message_response else {
        panic!("{answer:?}")
    };
    let names: Vec<&str> = list.service.iter().map(|service| service.name.as_str()).collect();
    for name in ["dtkv.v1.Kv", "dtkv.v1.Admin", "grpc.health.v1.Health"] {
        assert!(names.contains(&name), "{names:?}");
    }
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn administration_is_delegated_and_its_failures_typed() {
    let node = Running::start().await;
    let mut admin = node.admin().await;
    let identity = admin.identity(v1::IdentityRequest {}).await.expect("an answer").into_inner();
    assert_eq!((identity.node_id, identity.groups, identity.leaders), (1, 1, 1));
    let limits = admin.limits(v1::LimitsRequest {}).await.expect("an answer").into_inner();
    assert_eq!((limits.key_bytes_max, limits.frame_ops_max, limits.request_timeout_ms), (8_192, 256, 5_000));
    let groups = admin.list_groups(v1::ListGroupsRequest {}).await.expect("an answer").into_inner().groups;
    assert_eq!(groups.iter().map(|group| group.group_id).collect::<Vec<_>>(), [GROUP]);
    let request = v1::GroupStatusRequest { group_id: GROUP, confirm: true };
    assert!(admin.group_status(request).await.expect("an answer").into_inner().confirmed);
    let status = admin.tree_digest(v1::TreeDigestRequest { group_id: 99 }).await.expect_err("no such group");
    assert_eq!(failure(&status).reason(), Reason::GroupNotFound);
    let wrong_index = v1::ChangeMembershipRequest {
        group_id: GROUP,
        expected_config_index: 12_345,
        voters: vec![1, 2],
        ..Default::default()
    };
    let status = admin.change_membership(wrong_index).await.expect_err("another configuration");
    assert_eq!(failure(&status).reason(), Reason::Precondition);
    assert_eq!(status.code(), tonic::Code::FailedPrecondition);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_beyond_the_limit_are_closed_and_counted() {
    let node = Running::start_empty(|config| config.limits.connections_max = 1).await;
    let mut first = node.admin().await;
    first.identity(v1::IdentityRequest {}).await.expect("the first connection has its place");
    let endpoint = format!("http://{}", node.config.client_address());
    let second = tonic::transport::Channel::from_shared(endpoint).expect("an address").connect_lazy();
    let mut second = v1::admin_client::AdminClient::new(second);
    second.identity(v1::IdentityRequest {}).await.expect_err("there is no place for a second one");
    assert!(node.metric("dtkv_service_connections_refused_total").await >= 1.0);
    first.identity(v1::IdentityRequest {}).await.expect("the first still works");
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_connects_and_says_nothing_is_closed_and_counted() {
    let node = Running::start_empty(|config| {
        config.limits.handshake_timeout_ms = 200;
        config.peers.handshake_timeout_ms = 200;
    })
    .await;
    let ports = [
        (node.config.listen.client, "dtkv_service_connections_refused_total"),
        (node.config.listen.peer, "dtkv_transport_connections_refused_total"),
    ];
    for (port, metric) in ports {
        let mut silent = TcpStream::connect(port).await.expect("connected");
        assert_eq!(silent.read(&mut [0]).await.expect("closed in order"), 0, "{metric}");
        node.metric_becomes(metric, 1.0).await;
    }
    node.stop().await;
}
