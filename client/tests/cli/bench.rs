//! The benchmark, briefly.

use super::World;
use super::fake::failure;
use dtkv_client::v1::failure::Reason;

/// As short as it goes.
const BRIEF: &str = "-d 300ms -w 100ms -k 50 -p 64 -q -o json";

#[test]
fn every_api_measures_puts_gets_and_mixes() {
    let world = World::new();
    for api in ["async", "await", "unary"] {
        for what in ["put", "get", "--mix 50", "put --rate 500 -c 2", "get --groups all"] {
            let left = world.run(&format!("bench {what} --api {api} {BRIEF}"));
            assert_eq!(left.code, 0, "{what} {api}: {left:?}");
            let json = left.json();
            assert_eq!(json["runs"][0]["failed"], 0, "{what} {api}: {json}");
            assert!(json["runs"][0]["succeeded"].as_u64().unwrap() > 50, "{what} {api}: {json}");
            assert!(json["runs"][0]["latency"]["p99_us"].as_f64().unwrap() > 0.0);
        }
    }
}

#[test]
fn open_loop_keeps_its_rate() {
    let world = World::new();
    let json = world.run("bench put --rate 1000 -d 1s -w 200ms -q -o json").json();
    let rate = json["ops_per_second"]["median"].as_f64().unwrap();
    assert!((800.0..1200.0).contains(&rate), "{json}");
}

#[test]
fn runs_are_repeated_and_shown_as_a_table() {
    let world = World::new();
    let left = world.run("bench put --runs 2 -d 1s -w 0s -p 8 -k 10");
    assert_eq!(left.code, 0, "{left:?}");
    assert!(left.out.contains("\nops/s: minimum "), "{left:?}");
    assert!(left.err.contains("run 2 "), "{left:?}");
}

#[test]
fn failures_are_counted_by_reason() {
    let world = World::new();
    world.done("mkdir bench");
    world.fake.fail_writes(failure(Reason::Timeout, true));
    let left = world.run(&format!("bench put --no-prefill --api unary {BRIEF} --groups 1"));
    // Even the directory can't be made.
    assert_eq!(left.code, 4, "{left:?}");
    let left = world.run(&format!("bench get -g 7 {BRIEF}"));
    assert_eq!(left.code, 3, "{left:?}");
}
