//! Frames, bounds and many calls at once.

use crate::fake::{Act, FakeNode, World};
use dtkv_client::packed::{Kind, Op};
use dtkv_client::v1::failure::Reason;
use dtkv_client::{Client, ErrorKind};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

async fn connect(nodes: &[FakeNode]) -> Client {
    Client::connect([nodes[0].address.as_str()]).await.unwrap()
}

#[tokio::test]
async fn lone_operations_travel_at_once_and_alone() {
    let (_world, nodes) = World::start(1, 1);
    let group = connect(&nodes).await.group(1);
    for i in 0..20 {
        group.put(format!("k{i}"), "v").await.unwrap();
    }
    let seen = nodes[0].seen();
    assert_eq!(seen.len(), 20);
    assert!(seen.iter().all(|frame| frame.count == 1 && !frame.read));
}

#[tokio::test]
async fn concurrent_operations_share_frames_within_the_bounds() {
    let (_world, nodes) = World::start(1, 1);
    let group = connect(&nodes).await.group(1);
    nodes[0].script(|_| Act::Delay(Duration::from_millis(5)));
    let calls = (0..5000).map(|i| {
        let group = group.clone();
        async move { group.put(format!("k{i}"), vec![b'v'; 256]).await.unwrap() }
    });
    futures::future::join_all(calls).await;
    let seen = nodes[0].seen();
    assert_eq!(seen.iter().map(|frame| frame.count).sum::<u32>(), 5000);
    assert!(seen.iter().all(|frame| frame.count <= 128 && frame.bytes <= 64 << 10));
    assert!(seen.len() < 80, "{} frames", seen.len());
}

#[tokio::test]
async fn large_operations_travel_alone() {
    let (_world, nodes) = World::start(1, 1);
    let group = connect(&nodes).await.group(1);
    nodes[0].script(|_| Act::Delay(Duration::from_millis(5)));
    let calls = (0..40).map(|i| {
        let group = group.clone();
        let size = if i % 4 == 0 { 100 << 10 } else { 100 };
        async move { group.put(format!("k{i}"), vec![b'v'; size]).await.unwrap() }
    });
    futures::future::join_all(calls).await;
    assert!(nodes[0].seen().iter().all(|frame| frame.bytes <= 64 << 10 || frame.count == 1));
}

#[tokio::test]
async fn reads_and_writes_never_share_a_frame() {
    let (_world, nodes) = World::start(1, 1);
    let group = connect(&nodes).await.group(1);
    nodes[0].script(|frame| {
        let kinds = dtkv_client::packed::ops(&frame.ops).map(|op| op.unwrap().kind == Kind::Get);
        assert!(kinds.into_iter().all(|is_get| is_get == frame.read));
        Act::Serve
    });
    let calls = (0..500).map(|i| {
        let group = group.clone();
        async move {
            if i % 2 == 0 {
                group.put("k", "v").await.map(drop).unwrap();
            } else {
                group.get("k").await.map(drop).unwrap();
            }
        }
    });
    futures::future::join_all(calls).await;
}

#[tokio::test]
async fn callers_wait_when_too_much_is_in_flight() {
    let (_world, nodes) = World::start(1, 1);
    let client = Client::builder().in_flight_ops_max(10).connect([nodes[0].address.as_str()]).await.unwrap();
    let group = client.group(1);
    nodes[0].script(|_| Act::Delay(Duration::from_millis(2)));
    let calls = (0..500).map(|i| {
        let group = group.clone();
        async move { group.put(format!("k{i}"), "v").await.unwrap() }
    });
    futures::future::join_all(calls).await;
    assert!(nodes[0].pending_max() <= 10, "{} at once", nodes[0].pending_max());
}

#[tokio::test]
async fn waiting_for_room_ends_at_the_deadline_and_definitely() {
    let (_world, nodes) = World::start(1, 1);
    let client = Client::builder().in_flight_ops_max(1).connect([nodes[0].address.as_str()]).await.unwrap();
    nodes[0].script(|_| Act::Swallow);
    let group = client.group(1);
    let first = group.clone();
    let first = tokio::spawn(async move { first.put("a", "1").await });
    tokio::time::sleep(Duration::from_millis(50)).await;
    let error = group.with_timeout(Duration::from_millis(100)).put("b", "1").await.unwrap_err();
    assert_eq!((error.kind(), error.reason()), (ErrorKind::DidNotHappen, Reason::Overloaded));
    first.abort();
}

#[tokio::test]
async fn submit_refuses_what_does_not_fit_and_is_ready_again_later() {
    let (_world, nodes) = World::start(1, 1);
    let client = Client::builder().in_flight_ops_max(100).connect([nodes[0].address.as_str()]).await.unwrap();
    nodes[0].script(|_| Act::Delay(Duration::from_millis(50)));
    let group = client.group(1);
    let (done, refused) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    for _ in 0..150 {
        let (done, refused) = (done.clone(), refused.clone());
        group.submit(&Op::new(Kind::Put, b"k", b"v"), move |result| {
            match result {
                Ok(_) => done.fetch_add(1, Ordering::SeqCst),
                Err(error) => {
                    assert_eq!(error.reason(), Reason::Overloaded);
                    refused.fetch_add(1, Ordering::SeqCst)
                }
            };
        });
    }
    assert_eq!(refused.load(Ordering::SeqCst), 50);
    group.ready().await;
    group.put("k", "v").await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn thousands_of_concurrent_calls_over_many_groups_are_all_answered() {
    let (world, nodes) = World::start(3, 32);
    for group in 1..=32 {
        world.lead(group, u64::from(group % 3) + 1);
    }
    let client = connect(&nodes).await;
    let calls = (0..20_000u32).map(|i| {
        let group = client.group(i % 32 + 1);
        tokio::spawn(async move {
            let key = format!("k{i}");
            group.put(&key, &key).await.unwrap();
            let node = group.get(&key).await.unwrap().unwrap();
            assert_eq!(node.value.unwrap(), key.as_bytes());
        })
    });
    for call in calls.collect::<Vec<_>>() {
        call.await.unwrap();
    }
    let seen = nodes.iter().map(FakeNode::seen).enumerate();
    for (node, frame) in seen.flat_map(|(node, seen)| seen.into_iter().map(move |frame| (node, frame))) {
        assert_eq!(frame.group as usize % 3, node, "each group's frames go to its leader");
    }
    let frames: usize = nodes.iter().map(|node| node.seen().len()).sum();
    assert!(frames < 20_000, "{frames} frames for 40000 operations");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_caller_gets_its_own_answer_while_leaders_move() {
    let (world, nodes) = World::start(3, 4);
    let client = connect(&nodes).await;
    let mover = {
        let world = world.clone();
        tokio::spawn(async move {
            for round in 0u64.. {
                world.lead((round % 4) as u32 + 1, round % 3 + 1);
                tokio::time::sleep(Duration::from_millis(3)).await;
            }
        })
    };
    let callers = (0..64u32).map(|caller| {
        let group = client.group(caller % 4 + 1);
        tokio::spawn(async move {
            for i in 0..200 {
                let key = format!("c{caller}.k{i}");
                group.put(&key, &key).await.unwrap();
                let node = group.get(&key).await.unwrap().unwrap();
                assert_eq!(node.value.unwrap(), key.as_bytes());
            }
        })
    });
    for caller in callers.collect::<Vec<_>>() {
        caller.await.unwrap();
    }
    mover.abort();
}

/// CPU time of this thread so far.
fn thread_cpu() -> Duration {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    Duration::from_nanos(text.split_whitespace().next().unwrap().parse().unwrap())
}

/// Everything that a client does, on one thread, against a node on another.
#[tokio::test]
#[ignore = "a measurement, to be run alone: --ignored --nocapture client_cpu"]
async fn client_cpu_of_an_operation() {
    const OPS: usize = 1_000_000;
    let (_world, nodes) = World::start(1, 1);
    nodes[0].script(|_| Act::Accept);
    let group = connect(&nodes).await.group(1);
    let room = Arc::new(tokio::sync::Semaphore::new(2000));
    let value = vec![b'v'; 256];
    let (cpu, begun) = (thread_cpu(), tokio::time::Instant::now());
    for i in 0..OPS {
        room.acquire().await.unwrap().forget();
        let key = format!("bench.benchmark.key{:04}", i % 10_000);
        let room = room.clone();
        group.submit(&Op::new(Kind::Put, key.as_bytes(), &value), move |result| {
            result.unwrap();
            room.add_permits(1);
        });
    }
    drop(room.acquire_many(2000).await.unwrap());
    let (cpu, wall) = (thread_cpu() - cpu, begun.elapsed());
    let frames = nodes[0].seen().len();
    println!(
        "{} ns of client CPU an operation, {:.0} operations/s, {frames} frames",
        cpu.as_nanos() / OPS as u128,
        OPS as f64 / wall.as_secs_f64()
    );
}
