//! Commands on groups, nodes and the cluster.

use super::World;
use super::fake::CLUSTER_ID;

#[test]
fn cluster_is_shown() {
    let world = World::new();
    world.done("put k v");
    let groups = "\
GROUP  LEADER  TERM  VOTERS  LEARNERS  COMMIT  LAG  KEYS  TREE  LOG  STATE
    1  n1         2  n1      -              1    0     1   0 B  0 B  ok
    2  n1         2  n1      -              0    0     0   0 B  0 B  ok
";
    assert_eq!(world.done("groups"), groups);
    let status = world.done("status");
    assert!(
        status.starts_with("cluster cluster-of-tests: 1 of 1 node up, 2 of 2 groups with a leader"),
        "{status}"
    );
    assert!(status.contains(groups), "{status}");
    assert_eq!(world.run("nodes -o json").json()[0]["state"], "up");
    assert_eq!(world.run("status -o json").json()["warnings"], serde_json::json!([]));
    assert!(world.done("group members 1").contains("n1    voter   leader"));
    assert_eq!(world.run("group members 7").code, 1);
    assert!(world.done("limits").contains("key_bytes_max"));
    assert!(world.done("digest 1").contains("00112233445566778899aabbccddeeff  same"));
    assert_eq!(world.run("digest 7").code, 1);
}

#[test]
fn groups_are_created_changed_and_destroyed() {
    let world = World::new();
    assert_eq!(world.done("group create 9 --members 1"), "group 9 is ready on n1\n");
    assert_eq!(world.done("group create 10"), "group 10 is ready on n1\n");
    assert_eq!(world.done("group transfer 9"), "n1 leads group 9 in term 3\n");
    assert_eq!(world.done("group change 9 --voters 2"), "group 9: voters n2, learners - (config index 3)\n");
    assert_eq!(
        world.done("group add-learner 9 1"),
        "n1 is a learner and has caught up in group 9 (config index 2)\n"
    );
    let calls = [
        "bootstrap 9 on [1]",
        "bootstrap 10 on [1]",
        "transfer_leader 9 to 0",
        "change_membership 9 at 1 to [2] []",
        "destroy_replica 9 at 3",
        "add_learner 9 n1 wait true",
    ];
    assert_eq!(world.fake.calls(), calls);
    let refused = world.run("group destroy 9 --confirm another");
    assert_eq!(refused.code, 2);
    assert!(refused.err.contains(CLUSTER_ID) && refused.err.contains("nothing was destroyed"), "{refused:?}");
    let destroyed = world.done(&format!("group destroy 9 --confirm {CLUSTER_ID}"));
    assert_eq!(destroyed, "group 9 is destroyed (1 replica)\n");
    assert_eq!(world.run(&format!("group destroy 9 --confirm {CLUSTER_ID}")).code, 1);
}

#[test]
fn nodes_are_drained_and_forgotten() {
    let world = World::new();
    assert_eq!(world.done("node drain 1"), "n1 takes no new replicas; it has 2 replicas now\n");
    assert_eq!(world.done("node undrain 1"), "n1 takes replicas again; it has 2 replicas now\n");
    let evicted = world.done("node evict-leaders 1 --for 2m");
    assert_eq!(evicted, "n1 gives up leadership for 120 s; it leads 2 groups now\n");
    assert_eq!(world.done("node evict-leaders 1 --stop"), "n1 may lead again; it leads 2 groups now\n");
    assert_eq!(world.done("node tombstone 5"), "n5 is forgotten by 1 node\n");
    let calls = [
        "set_draining true",
        "set_draining false",
        "set_leader_eviction 120000",
        "set_leader_eviction 0",
        "tombstone 5",
    ];
    assert_eq!(world.fake.calls(), calls);
    let unknown = world.run("node drain 7");
    assert_eq!(unknown.code, 3);
    assert!(unknown.err.contains("n7 is not a node of this cluster"), "{unknown:?}");
}

#[test]
fn cluster_is_made_and_making_it_again_is_fine() {
    let world = World::new();
    let left = world.run("cluster init --groups 3");
    assert_eq!(left.code, 0, "{left:?}");
    assert_eq!(left.out, format!("cluster {CLUSTER_ID} is ready, with 3 groups\n"));
    assert!(
        left.err.contains("group 3 is created") && left.err.contains("group 1 was there already"),
        "{left:?}"
    );
    let json = world.run("cluster init --groups 3 -o json").json();
    assert_eq!(json["created"], false);
    assert_eq!(json["groups"][2]["leader"], 1);
    let same = world.run(&format!("cluster add-nodes {}", world.fake.address()));
    assert_eq!(same.code, 0, "{same:?}");
}
