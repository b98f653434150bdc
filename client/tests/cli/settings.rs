//! Where settings come from, and completions.

use super::{World, left};

#[test]
fn flags_win_over_environment_over_file() {
    let world = World::new();
    world.done("put k one");
    world.done("-g 2 put k two");
    let config = world.home.path().join("dtkv.toml");
    std::fs::write(&config, format!("endpoints = ['{}']\ngroup = 2\n", world.fake.address())).unwrap();
    let run = |line: &[&str], env: &[(&str, &str)]| {
        let mut command = world.bare(line);
        command.env("DTKV_CONFIG", &config).envs(env.iter().copied());
        left(command, b"").out
    };
    assert_eq!(run(&["get", "k"], &[]), "two\n");
    assert_eq!(run(&["get", "k"], &[("DTKV_GROUP", "1")]), "one\n");
    assert_eq!(run(&["get", "k", "-g", "2"], &[("DTKV_GROUP", "1")]), "two\n");
    assert!(run(&["get", "k"], &[("DTKV_OUTPUT", "json")]).starts_with('{'));
}

#[test]
fn file_in_the_home_directory_is_found() {
    let world = World::new();
    let folder = world.home.path().join(".config/dtkv");
    std::fs::create_dir_all(&folder).unwrap();
    let text = format!("endpoints = ['{}']\noutput = 'json'\n", world.fake.address());
    std::fs::write(folder.join("config.toml"), text).unwrap();
    let left = left(world.bare(&["put", "k", "v"]), b"");
    assert_eq!(left.json()["code"], "SUCCESS");
}

#[test]
fn mistakes_in_the_file_are_named() {
    let world = World::new();
    let config = world.home.path().join("bad.toml");
    std::fs::write(&config, "timeout = '5 days'\n").unwrap();
    let config = config.to_str().unwrap();
    let left = left(world.bare(&["--config", config, "get", "k"]), b"");
    assert_eq!(left.code, 2);
    assert!(left.err.contains("bad.toml") && left.err.contains("500ms"), "{left:?}");
}

#[test]
fn completions_are_made_for_every_shell() {
    let world = World::new();
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let left = left(world.bare(&["completions", shell]), b"");
        assert_eq!(left.code, 0);
        assert!(left.out.contains("add-learner") && left.out.contains("consistency"), "{shell}");
    }
}
