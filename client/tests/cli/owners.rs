//! Temporary nodes, locks and transactions.

use super::{Left, World};
use std::process::Child;
use std::time::{Duration, Instant};

const OWNER: &str = "000102030405060708090a0b0c0d0e0f";

#[test]
fn temporary_values_are_owned_renewed_and_dropped() {
    let world = World::new();
    let created = world.done(&format!("put node.a up --ttl 30s --owner {OWNER}"));
    assert_eq!(created, format!("node.a created (index 1, owner {OWNER})\n"));
    let json = world.run("put b 1 --ttl 1m -o json").json();
    assert_eq!(json["owner"].as_str().unwrap().len(), 32, "a random owner is named");
    let node = world.run("get node.a -o json").json();
    assert_eq!((&node["node"]["temp"], &node["node"]["owner"]), (&true.into(), &OWNER.into()));
    assert!(world.done("get node.a --meta").contains("expires in"));
    assert_eq!(world.done(&format!("ttl node.a 1m --owner {OWNER}")), "node.a renewed (index 3)\n");
    assert_eq!(world.done(&format!("keep-alive --owner {OWNER}")), "1 node renewed (index 4)\n");
    let owned = world.done(&format!("owned {OWNER}"));
    assert!(owned.starts_with("KEY     KIND") && owned.contains("node.a  value (59 s left)  up"), "{owned}");
    assert!(world.done(&format!("owned -l --owner {OWNER}")).contains(OWNER));
    assert_eq!(world.done(&format!("drop-owner --owner {OWNER}")), "1 node removed (index 5)\n");
    assert_eq!(world.run(&format!("keep-alive --owner {OWNER}")).code, 1, "nothing is left");
}

#[test]
fn commands_on_an_owner_need_one() {
    let world = World::new();
    for line in ["ttl a 30s", "keep-alive", "owned", "drop-owner"] {
        let left = world.run(line);
        assert!(left.code == 2 && left.err.contains("--owner"), "{line}: {left:?}");
    }
    assert_eq!(world.run("keep-alive --owner 12").code, 2);
    let shell = left_of(&world, &["shell"], "put a 1 --ttl 30s\nkeep-alive\nkeep-alive --owner 12\n");
    assert!(shell.out.contains("1 node renewed"), "the shell's lines share an owner: {shell:?}");
}

#[test]
fn index_and_guard_decide_about_writes() {
    let world = World::new();
    world.done("put a 1 --if-index 0");
    let refused = world.run("put a 2 --if-index 0");
    assert!(refused.code == 1 && refused.err.contains("CAS_MISMATCH"), "{refused:?}");
    world.done("put a 2 --if-index 1");
    assert_eq!(world.run("rm a --if-index 1").code, 1);
    for line in ["put a 3", "rm a", "mkdir b", "cas a --expect 2 --set 3", "txn", "batch"] {
        let words: Vec<&str> = line.split(' ').chain(["--guard", "l:7"]).collect();
        let input = if line == "batch" { "put a 3" } else { "then put a 3" };
        let left = left_of(&world, &words, input);
        assert!(left.code == 1 && left.err.contains("FENCED"), "{line}: {left:?}");
    }
    assert_eq!(world.run("put a 1 --guard l").code, 2);
}

#[test]
fn transactions_are_read_from_input_and_files() {
    let world = World::new();
    let text = "when absent a\nthen put a 1\nthen put b '2 3'\nelse get b\n";
    let done = left_of(&world, &["txn"], text);
    assert_eq!(done.code, 0, "{done:?}");
    assert_eq!(
        done.out,
        "the conditions held (index 1)\nOP   KEY  CODE     VALUE\nput  a    SUCCESS\nput  b    SUCCESS\n"
    );
    let file = world.home.path().join("t.json");
    std::fs::write(&file, r#"{"when": ["absent a"], "then": ["put a 1"], "else": ["get b"]}"#).unwrap();
    let missed = left_of(&world, &["txn", file.to_str().unwrap(), "-o", "json"], "");
    assert_eq!(missed.code, 1, "{missed:?}");
    let json = missed.json();
    assert_eq!((&json["succeeded"], &json["results"][0]["node"]["value"]), (&false.into(), &"2 3".into()));
    let wrong = left_of(&world, &["txn"], "then put a");
    assert!(wrong.code == 2 && wrong.err.contains("line 1"), "{wrong:?}");
}

fn left_of(world: &World, words: &[&str], input: &str) -> Left {
    world.run_with_input(words, input.as_bytes())
}

#[test]
fn command_runs_under_the_lock_and_its_exit_code_is_passed_on() {
    let world = World::new();
    let script = "test \"$DTKV_GUARD\" = \"l:$DTKV_FENCING_TOKEN\" && test $DTKV_LOCK = l && exit 7";
    let left = left_of(&world, &["lock", "l", "--", "sh", "-c", script], "");
    assert_eq!(left.code, 7, "{left:?}");
    assert_eq!(world.fake.owners(|owners| owners.places(0, "l")), 0, "it was given up");
    assert_eq!(world.run("lock l -- true").code, 0);
    assert_eq!(world.run("lock l -- /nowhere/at/all").code, 127);
    assert_eq!(world.run("lock l -- /").code, 126);
    assert_eq!(left_of(&world, &["lock", "l", "--", "sh", "-c", "kill -9 $$"], "").code, 137);
    assert_eq!(world.run("lock l").code, 2);
}

/// Starts a program that holds the lock until it is told to end.
fn hold(world: &World, words: &[&str]) -> Child {
    let mut command = world.bare(words);
    command.env("DTKV_ENDPOINTS", world.fake.address());
    let child = command.spawn().unwrap();
    wait_for(|| world.fake.owners(|owners| owners.token(0, b"l")) != 0);
    child
}

fn wait_for(what: impl Fn() -> bool) {
    let begun = Instant::now();
    while !what() {
        assert!(begun.elapsed() < Duration::from_secs(60));
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn lock_that_is_held_is_not_granted_in_time() {
    let world = World::new();
    let mut holder = hold(&world, &["lock", "l", "--", "sleep", "1000"]);
    let refused = world.run("lock l --wait 200ms -- touch /nowhere/never");
    assert!(refused.code == 124 && refused.err.contains("not granted"), "{refused:?}");
    let id = nix::unistd::Pid::from_raw(holder.id() as i32);
    nix::sys::signal::kill(id, nix::sys::signal::SIGTERM).unwrap();
    assert_eq!(holder.wait().unwrap().code(), Some(143), "the command got the signal");
    assert_eq!(world.fake.owners(|owners| owners.places(0, "l")), 0);
}

#[test]
fn command_is_stopped_when_the_lock_is_lost() {
    let world = World::new();
    let deaf = "trap '' TERM; exec sleep 1000";
    let line = ["lock", "l", "--hold", "1s", "--grace", "200ms", "--", "sh", "-c", deaf];
    let holder = hold(&world, &line);
    world.fake.owners(|owners| owners.steal(0, "l"));
    let output = holder.wait_with_output().unwrap();
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(123) && told.contains("was lost"), "{told}");
}
