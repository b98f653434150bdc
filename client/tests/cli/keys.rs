//! Commands on keys, batches and the shell.

use super::fake::failure;
use super::{World, left};
use dtkv_client::v1::failure::Reason;

#[test]
fn values_are_written_read_listed_and_removed() {
    let world = World::new();
    assert_eq!(world.done("mkdir user"), "user created (index 1)\n");
    assert_eq!(world.done("mkdir user"), "user was there already (index 2)\n");
    assert_eq!(world.done("put user.alice hello"), "user.alice created (index 3)\n");
    assert_eq!(world.done("put user.alice world"), "user.alice replaced (index 4)\n");
    assert_eq!(world.done("get user.alice"), "world\n");
    assert_eq!(
        world.done("get user.alice user"),
        "KEY         VALUE\nuser.alice  world\nuser        (1 child)\n"
    );
    assert_eq!(world.done("ls"), "KEY   KIND  VALUE\nuser  dir   (1 child)\n");
    assert_eq!(world.done("ls user -k"), "user.alice\n");
    assert_eq!(world.done("rm user.alice"), "user.alice removed (index 5)\n");
    assert_eq!(world.done("ls user"), "");
}

#[test]
fn answers_are_json_for_programs() {
    let world = World::new();
    let json = |line: &str| world.run(&format!("{line} -o json")).json();
    assert_eq!(json("put -p a.b 1"), serde_json::json!({ "key": "a.b", "code": "SUCCESS", "index": 1 }));
    let read = json("get a.b");
    assert_eq!((&read["code"], &read["node"]["value"]), (&"SUCCESS".into(), &"1".into()));
    assert_eq!(read["node"]["create_index"], 1);
    assert_eq!(json("ls a")["nodes"][0]["key"], "a.b");
    let missing = world.run("get nothing -o json");
    assert_eq!(
        (missing.code, missing.json()["code"].as_str(), missing.err.as_str()),
        (1, Some("NOT_FOUND"), "")
    );
}

#[test]
fn what_the_store_says_no_to_is_exit_code_1() {
    let world = World::new();
    world.done("put a 1");
    let missing = world.run("get b");
    assert_eq!((missing.code, missing.out.as_str()), (1, ""));
    assert!(missing.err.contains("NOT_FOUND"), "{missing:?}");
    assert_eq!(world.run("rm b").code, 1);
    assert_eq!(world.run("rm -f b").code, 0);
    let refused = world.run("put a.b 1");
    assert_eq!(refused.code, 1);
    assert!(refused.err.starts_with("dtkv: PARENT_NOT_DIR: "), "{refused:?}");
    let refused = world.run("put x.y 1");
    assert!(refused.err.starts_with("dtkv: PARENT_DIR_NOT_EXISTS: "), "{refused:?}");
    world.done("put -p x.y 1");
    let refused = world.run("rm x");
    assert!(refused.code == 1 && refused.err.contains("HAS_CHILDREN"), "{refused:?}");
    assert_eq!(world.done("rm -r x"), "x removed (index 8)\n");
}

#[test]
fn compare_and_set_tells_mismatch_from_success() {
    let world = World::new();
    assert_eq!(world.done("cas k --absent --set 1"), "k set (index 1)\n");
    let mismatch = world.run("cas k --absent --set 2");
    assert_eq!(
        (mismatch.code, mismatch.out.as_str()),
        (1, "k is not as expected, nothing changed (index 2)\n")
    );
    assert_eq!(world.done("cas k --expect 1 --set 2"), "k set (index 3)\n");
    assert_eq!(world.run("cas k --index 1 --delete").code, 1);
    assert_eq!(world.done("cas k --index 3 --delete"), "k deleted (index 5)\n");
    assert_eq!(world.run("cas k --absent --set 1 -o json").json()["code"], "SUCCESS");
}

#[test]
fn any_bytes_go_in_and_out() {
    let world = World::new();
    assert_eq!(world.run_with_input(&["put", "blob", "-"], &[0, 255, 10]).code, 0);
    let shown = world.run("get blob");
    assert_eq!(shown.out, "0x00ff0a\n");
    assert!(shown.err.contains("--raw"), "{shown:?}");
    assert_eq!(world.run("get blob -o json").json()["node"]["value"]["hex"], "00ff0a");
    let mut raw = world.bare(&["get", "blob", "--raw"]);
    let output = raw.env("DTKV_ENDPOINTS", world.fake.address()).output().unwrap();
    assert_eq!(output.stdout, [0, 255, 10]);
}

#[test]
fn listings_go_over_pages_or_stop_at_the_limit() {
    let world = World::new();
    for n in 0..7 {
        world.done(&format!("put -p dir.k{n} {n}"));
    }
    assert_eq!(world.done("ls dir --keys-only").lines().count(), 7);
    let cut = world.run("ls dir -k -n 5");
    assert_eq!(cut.out.lines().count(), 5);
    let token = cut.err.split_whitespace().last().unwrap();
    assert_eq!(world.done(&format!("ls dir -k --continue {token}")), "dir.k5\ndir.k6\n");
    assert_eq!(world.run("ls dir.k1").code, 1);
    assert_eq!(world.run("ls nowhere").code, 1);
}

#[test]
fn batches_show_a_code_for_each_item() {
    let world = World::new();
    let input = b"put a 1\nput a..b 2\nput 'c' \"two words\"\n# comment\nrm a\nrm zz\n";
    let left = world.run_with_input(&["batch"], input);
    let wanted = "     1  put  SUCCESS                   a
     2  put  INVALID_KEY               a..b
     3  put  SUCCESS                   c
     5  rm   SUCCESS                   a
     6  rm   NOT_FOUND                 zz
5 items in 2 log entries, 2 refused
";
    assert_eq!((left.code, left.out.as_str()), (1, wanted));
    assert_eq!(world.done("get c"), "two words\n");
    let bad = world.run_with_input(&["batch", "-q"], b"put d 1\nrm d\nfoo\n");
    assert_eq!(bad.code, 2);
    assert!(bad.err.contains("line 3") && bad.err.contains("1 item in 1 log entry"), "{bad:?}");
}

#[test]
fn large_batches_go_through_as_well() {
    let world = World::new();
    let lines: String = (0..2000).map(|n| format!("put k{n} {}\n", "x".repeat(100))).collect();
    let left = world.run_with_input(&["batch", "-q"], lines.as_bytes());
    assert_eq!((left.code, left.out.as_str()), (0, "2000 items in 2 log entries, 0 refused\n"), "{left:?}");
}

#[test]
fn groups_are_separate() {
    let world = World::new();
    world.done("put k one");
    world.done("-g 2 put k two");
    assert_eq!(world.done("get k"), "one\n");
    assert_eq!(world.done("get k -g 2"), "two\n");
}

#[test]
fn unknown_outcome_and_definite_failure_have_their_exit_codes() {
    let world = World::new();
    world.fake.fail_writes(failure(Reason::Timeout, true));
    let unknown = world.run("put k 1 --timeout 1s");
    assert_eq!(unknown.code, 4, "{unknown:?}");
    assert!(unknown.err.contains("outcome is unknown"), "{unknown:?}");
    world.fake.fail_writes(failure(Reason::Precondition, false));
    let definite = world.run("put k 1 --timeout 1s");
    assert_eq!(definite.code, 3, "{definite:?}");
    assert_eq!(world.run("get k").code, 1);
}

#[test]
fn nothing_that_listens_is_a_definite_failure_with_advice() {
    let world = World::new();
    let left = left(world.bare(&["-e", "127.0.0.1:1", "--timeout", "300ms", "get", "k"]), b"");
    assert_eq!(left.code, 3, "{left:?}");
    assert!(left.err.contains("127.0.0.1:1") && left.err.contains("--endpoints"), "{left:?}");
}

#[test]
fn bad_command_lines_are_exit_code_2() {
    let world = World::new();
    for line in ["", "putt a b", "put a", "get a --consistency sometimes", "cas k --set 1", "put a @/nowhere"]
    {
        let left = world.run(line);
        assert_eq!(left.code, 2, "{line}: {left:?}");
        assert!(!left.err.is_empty());
    }
    let left = world.run("--help");
    assert!(left.code == 0 && left.out.contains("Exit codes:"), "{left:?}");
}

#[test]
fn shell_runs_lines_and_keeps_its_group() {
    let world = World::new();
    let input =
        b"put k 'two words'\nget k\nuse 2\nput k other\nget k\nget nothing\nbogus\nget k -g 1\nexit\n";
    let left = world.run_with_input(&["shell"], input);
    let answers = "k created (index 1)\ntwo words\nk created (index 1)\nother\ntwo words\n";
    assert_eq!(left.out.replace("dtkv g1> ", "").replace("dtkv g2> ", ""), answers, "{left:?}");
    assert!(left.err.contains("NOT_FOUND") && left.err.contains("bogus"), "{left:?}");
    assert_eq!(left.code, 0);
    assert!(world.home.path().join(".local/state/dtkv/history").exists());
}
