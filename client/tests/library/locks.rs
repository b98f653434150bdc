//! Locks and leader election.

use crate::fake::{Act, FakeNode, World, failure};
use dtkv_client::v1::Failure;
use dtkv_client::v1::failure::Reason;
use dtkv_client::{AutoRenewalLock, Client, ErrorKind, Leadership, Lock, LockState};
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

const LONG: Duration = Duration::from_secs(30);

async fn client(nodes: &[FakeNode]) -> Client {
    Client::connect([nodes[0].address.as_str()]).await.unwrap()
}

async fn lock(nodes: &[FakeNode]) -> Lock {
    client(nodes).await.group(1).lock("l").unwrap()
}

async fn until(what: impl Fn() -> bool) {
    let met = async {
        while !what() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), met).await.unwrap();
}

#[tokio::test]
async fn one_holder_at_a_time_in_the_order_of_asking() {
    let (world, nodes) = World::start(1, 1);
    let (first, second, third) = (lock(&nodes).await, lock(&nodes).await, lock(&nodes).await);
    let token = first.try_lock(LONG, Duration::ZERO).await.unwrap().unwrap();
    assert_eq!((first.state(), first.token().as_ref()), (LockState::Locked, Some(&token)));
    assert!(first.lease_left() > LONG / 2 && first.lease_left() <= LONG);
    assert_eq!(second.try_lock(LONG, Duration::ZERO).await.unwrap(), None);
    let waits = |lock: &Lock| {
        let lock = lock.clone();
        tokio::spawn(async move { lock.try_lock(LONG, LONG).await })
    };
    let second_waits = waits(&second);
    until(|| world.owners.lock().places(1, "l") == 2).await;
    let third_waits = waits(&third);
    until(|| world.owners.lock().places(1, "l") == 3).await;
    assert!(first.unlock().await.unwrap());
    assert_eq!((first.state(), first.lease_left()), (LockState::NotLocked, Duration::ZERO));
    let second_token = second_waits.await.unwrap().unwrap().unwrap();
    assert!(second_token.fencing_token() > token.fencing_token());
    assert!(second.lease_left() > LONG / 2);
    assert!(!third_waits.is_finished());
    second.unlock().await.unwrap();
    assert!(third_waits.await.unwrap().unwrap().unwrap().fencing_token() > second_token.fencing_token());
}

#[tokio::test]
async fn place_in_the_queue_is_given_up_in_time_and_when_dropped_and_by_unlock() {
    let (world, nodes) = World::start(1, 1);
    let (holder, waiter) = (lock(&nodes).await, lock(&nodes).await);
    holder.try_lock(LONG, Duration::ZERO).await.unwrap().unwrap();
    assert_eq!(waiter.try_lock(LONG, Duration::from_millis(100)).await.unwrap(), None);
    assert_eq!((world.owners.lock().places(1, "l"), waiter.state()), (1, LockState::NotLocked));
    let dropped = tokio::time::timeout(Duration::from_millis(300), waiter.try_lock(LONG, LONG)).await;
    assert!(dropped.is_err());
    until(|| world.owners.lock().places(1, "l") == 1).await;
    let waits = tokio::spawn({
        let waiter = waiter.clone();
        async move { waiter.try_lock(LONG, LONG).await }
    });
    until(|| world.owners.lock().places(1, "l") == 2).await;
    assert!(waiter.try_lock(LONG, LONG).await.is_err(), "one operation at a time");
    waiter.unlock().await.unwrap();
    assert_eq!(waits.await.unwrap().unwrap(), None);
    assert_eq!(world.owners.lock().places(1, "l"), 1);
}

/// A waiter in the queue behind a holder; both by clients of their own.
async fn queue(
    world: &World,
    nodes: &[FakeNode],
) -> (Lock, tokio::task::JoinHandle<Option<dtkv_client::LockToken>>) {
    let (holder, waiter) = (lock(nodes).await, lock(nodes).await);
    holder.try_lock(LONG, Duration::ZERO).await.unwrap().unwrap();
    let waits = tokio::spawn(async move { waiter.try_lock(LONG, LONG).await.unwrap() });
    until(|| world.owners.lock().places(1, "l") == 2).await;
    (holder, waits)
}

#[tokio::test]
async fn grant_is_pushed_to_whoever_waits_without_asking() {
    let (world, nodes) = World::start(1, 1);
    let (holder, waits) = queue(&world, &nodes).await;
    until(|| !nodes[0].watches_seen().is_empty()).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let reads = || nodes[0].seen().iter().filter(|frame| frame.read).count();
    assert_eq!(reads(), 0);
    holder.unlock().await.unwrap();
    assert!(waits.await.unwrap().is_some());
    assert_eq!(reads(), 1);
}

#[tokio::test]
async fn grant_whose_push_is_lost_is_found() {
    let (world, nodes) = World::start(1, 1);
    nodes[0].script_watches(crate::fake_watch::WatchScript::Mute);
    let (holder, waits) = queue(&world, &nodes).await;
    holder.unlock().await.unwrap();
    assert!(waits.await.unwrap().is_some());
}

#[tokio::test]
async fn lease_ends_by_the_local_clock_and_is_told_once() {
    let (_world, nodes) = World::start(1, 1);
    let lock = lock(&nodes).await;
    let lost = Arc::new(AtomicUsize::new(0));
    lock.on_lost({
        let lost = lost.clone();
        move |_| {
            lost.fetch_add(1, Ordering::SeqCst);
        }
    });
    lock.try_lock(Duration::from_millis(1500), Duration::ZERO).await.unwrap().unwrap();
    lock.update_lease(Duration::from_secs(3)).await.unwrap();
    assert!(lock.lease_left() > Duration::from_millis(1500));
    nodes[0].script(|_| Act::Swallow);
    lock.released().await;
    assert_eq!((lock.state(), lock.token()), (LockState::NotLocked, None));
    until(|| lost.load(Ordering::SeqCst) == 1).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(lost.load(Ordering::SeqCst), 1);
    assert_eq!(lock.update_lease(LONG).await.unwrap_err().kind(), ErrorKind::InvalidRequest);
}

#[tokio::test]
async fn lock_that_was_taken_away_is_noticed_by_the_renewal() {
    let (world, nodes) = World::start(1, 1);
    let lock = lock(&nodes).await;
    let is_lost = Arc::new(AtomicBool::new(false));
    lock.on_lost({
        let is_lost = is_lost.clone();
        move |_| is_lost.store(true, Ordering::SeqCst)
    });
    lock.try_lock(LONG, Duration::ZERO).await.unwrap().unwrap();
    world.owners.lock().steal(1, "l");
    assert!(matches!(lock.update_lease(LONG).await.unwrap_err().kind(), ErrorKind::Refused(_)));
    assert!(is_lost.load(Ordering::SeqCst));
    assert_eq!(lock.state(), LockState::NotLocked);
}

#[tokio::test]
async fn lock_with_an_unknown_outcome_is_found_again() {
    let (_world, nodes) = World::start(1, 1);
    let client = Client::builder().exactly_once(false).connect([nodes[0].address.as_str()]).await.unwrap();
    let lock = client.group(1).lock("l").unwrap();
    let unknown = Failure { outcome_unknown: true, ..failure(Reason::Timeout) };
    nodes[0].script(move |_| Act::ServeAndFail(unknown.clone()));
    let error = lock.try_lock(LONG, Duration::ZERO).await.unwrap_err();
    assert_eq!((error.kind(), lock.state()), (ErrorKind::OutcomeUnknown, LockState::Unknown));
    assert_eq!(lock.lease_left(), Duration::ZERO);
    nodes[0].serve();
    assert!(lock.try_lock(LONG, Duration::ZERO).await.unwrap().is_some(), "it holds the lock already");
}

#[tokio::test]
async fn lock_is_found_again_by_a_new_client_of_the_same_id() {
    let (_world, nodes) = World::start(1, 1);
    let connect = || Client::builder().client_id([5; 16]).connect([nodes[0].address.clone()]);
    let first = connect().await.unwrap().group(1).lock("l").unwrap();
    let token = first.try_lock(LONG, Duration::ZERO).await.unwrap().unwrap();
    let second = connect().await.unwrap().group(1).lock("l").unwrap();
    assert_eq!(second.try_lock(LONG, Duration::ZERO).await.unwrap(), Some(token));
}

#[tokio::test]
async fn there_is_one_object_for_each_lock_until_it_is_closed_or_dropped() {
    let (world, nodes) = World::start(1, 1);
    let client = client(&nodes).await;
    let lock = client.group(1).lock("l").unwrap();
    assert_eq!(client.group(1).lock("l").unwrap_err().kind(), ErrorKind::InvalidRequest);
    lock.try_lock(LONG, Duration::ZERO).await.unwrap().unwrap();
    drop(lock);
    until(|| world.owners.lock().places(1, "l") == 0).await;
    let lock = client.group(1).lock("l").unwrap();
    let clone = lock.clone();
    lock.try_lock(LONG, Duration::ZERO).await.unwrap().unwrap();
    lock.close().await.unwrap();
    assert_eq!((clone.state(), world.owners.lock().places(1, "l")), (LockState::Closed, 0));
    assert!(clone.try_lock(LONG, Duration::ZERO).await.is_err());
    assert!(client.group(1).lock("l").is_ok());
}

/// An election that writes down what it is told.
fn elect(lock: Lock, lease: Duration) -> (AutoRenewalLock, Arc<Mutex<Vec<Leadership>>>) {
    let told = Arc::new(Mutex::new(Vec::new()));
    let election = AutoRenewalLock::start(lock, lease, {
        let told = told.clone();
        move |event| told.lock().push(event)
    });
    (election.unwrap(), told)
}

fn alternate(told: &[Leadership]) -> bool {
    told.iter().enumerate().all(|(at, event)| matches!(event, Leadership::Acquired(_)) == (at % 2 == 0))
}

#[tokio::test]
async fn leadership_is_kept_by_renewals_and_handed_over_by_stopping() {
    let (_world, nodes) = World::start(1, 1);
    let lease = Duration::from_secs(2);
    let (first, first_told) = elect(lock(&nodes).await, lease);
    until(|| first_told.lock().len() == 1).await;
    let (second, second_told) = elect(lock(&nodes).await, lease);
    tokio::time::sleep(lease * 2).await;
    assert_eq!((first_told.lock().len(), second_told.lock().len()), (1, 0));
    first.stop().await.unwrap();
    assert_eq!(first_told.lock().len(), 2);
    until(|| second_told.lock().len() == 1).await;
    second.stop().await.unwrap();
    assert!(alternate(&first_told.lock()) && alternate(&second_told.lock()));
}

#[tokio::test]
async fn leadership_that_was_lost_is_told_and_taken_again() {
    let (world, nodes) = World::start(1, 1);
    let (election, told) = elect(lock(&nodes).await, Duration::from_secs(1));
    until(|| told.lock().len() == 1).await;
    nodes[0].script(|_| Act::Fail(failure(Reason::GroupNotReady)));
    until(|| told.lock().len() == 2).await;
    assert_eq!(election.lock().state(), LockState::NotLocked);
    nodes[0].serve();
    until(|| told.lock().len() == 3).await;
    world.owners.lock().steal(1, "l");
    until(|| told.lock().len() >= 5).await;
    election.stop().await.unwrap();
    let told = told.lock();
    assert!(alternate(&told) && told.len() % 2 == 0, "{told:?}");
    assert_eq!(world.owners.lock().places(1, "l"), 0);
}
