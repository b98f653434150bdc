//! The command line against a cluster of three, as scripts use it: output and exit codes.

use anyhow::{Context, Result, ensure};
use dtkv_e2e::cluster::{Cluster, ClusterOptions, place, run_program};
use serde_json::Value;

/// Arguments, standard input, exit code, and something that the output must hold.
type Step = (&'static [&'static str], &'static str, i32, &'static str);

const STEPS: &[Step] = &[
    (&["mkdir", "user"], "", 0, ""),
    (&["mkdir", "user"], "", 0, ""),
    (&["put", "user.alice", "hello"], "", 0, ""),
    (&["put", "user.bob", "-"], "from stdin", 0, ""),
    (&["get", "user.alice"], "", 0, "hello"),
    (&["get", "user.bob", "--raw"], "", 0, "from stdin"),
    (&["get", "user.alice", "--meta"], "", 0, "hello"),
    (&["get", "user.nobody"], "", 1, ""),
    (&["watch", "user.alice", "-n", "1"], "", 0, "value      hello"),
    (&["watch", "user", "-n", "1", "-o", "json"], "", 0, "\"directory\""),
    (&["watch", ".", "--events", "--from", "1", "-n", "2"], "", 0, "user.alice  hello"),
    (&["watch", "user", "-n", "1", "--kinds", "put"], "", 2, "--events"),
    (&["put", "no.parent", "x"], "", 1, "PARENT_DIR_NOT_EXISTS"),
    (&["put", "-p", "app.db.url", "there"], "", 0, ""),
    (&["put", "user", "x"], "", 1, "DIR_EXISTS"),
    (&["put", "bad..key", "x"], "", 1, "INVALID_KEY"),
    (&["ls"], "", 0, "app"),
    (&["ls", "user"], "", 0, "alice"),
    (&["ls", "-r"], "", 0, "app.db.url"),
    (&["ls", "user.alice"], "", 1, "PARENT_NOT_DIR"),
    (&["cas", "lead", "--absent", "--set", "n1"], "", 0, ""),
    (&["cas", "lead", "--absent", "--set", "n2"], "", 1, ""),
    (&["cas", "lead", "--expect", "n1", "--set", "n2"], "", 0, ""),
    (&["get", "lead"], "", 0, "n2"),
    (&["cas", "lead", "--expect", "n2", "--delete"], "", 0, ""),
    (&["batch"], "put b1 1\nput b2 2\nrm b1\n# a comment\n", 0, ""),
    (&["batch"], "put no.parent 1\n", 1, "PARENT_DIR_NOT_EXISTS"),
    (&["get", "b2"], "", 0, "2"),
    (&["rm", "user"], "", 1, "HAS_CHILDREN"),
    (&["rm", "user.alice"], "", 0, ""),
    (&["rm", "user.alice"], "", 1, ""),
    (&["rm", "-f", "user.alice"], "", 0, ""),
    (&["rm", "-r", "user"], "", 0, ""),
    (&["groups"], "", 0, ""),
    (&["nodes"], "", 0, ""),
    (&["status"], "", 0, ""),
    (&["limits"], "", 0, "1024"),
    (&["digest"], "", 0, ""),
    (&["group", "create", "9", "--members", "1,2,3"], "", 0, ""),
    (&["group", "members", "9"], "", 0, ""),
    (&["-g", "9", "put", "key", "value"], "", 0, ""),
    (&["-g", "9", "get", "key"], "", 0, "value"),
    (&["group", "transfer", "9", "--to", "2"], "", 0, ""),
    (&["group", "transfer", "9", "--to", "3"], "", 0, ""),
    (&["group", "destroy", "9", "--confirm", "not-this-cluster"], "", 2, ""),
    (&["-g", "9", "--timeout", "500ms", "get", "unknown"], "", 1, ""),
    (&["-g", "77", "--timeout", "500ms", "get", "key"], "", 3, ""),
    (&["node", "drain", "3"], "", 0, ""),
    (&["node", "undrain", "3"], "", 0, ""),
    (&["shell"], "mkdir s\nput s.k v\nget s.k\nuse 2\nput s v2\nget s\nexit\n", 0, "v2"),
    (&["completions", "bash"], "", 0, "dtkv"),
    (&["nonsense"], "", 2, "nonsense"),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_command_says_what_it_did_and_exits_accordingly() -> Result<()> {
    let cluster = Cluster::start("command-line", ClusterOptions::new(3, 2)).await?;
    let mut wrong = Vec::new();
    for (arguments, input, code, word) in STEPS {
        let arguments: Vec<&str> = match arguments.contains(&"-g") {
            true => arguments.to_vec(),
            false => ["-g", "1"].iter().chain(arguments.iter()).copied().collect(),
        };
        let output = cluster.dtkv_with_input(&arguments, input).await?;
        let all = format!("{}{}", output.stdout, output.stderr);
        if output.code != Some(*code) || !all.contains(word) {
            wrong.push(format!("dtkv {arguments:?}: {:?}, not {code} and {word:?}\n{all}", output.code));
        }
    }
    ensure!(wrong.is_empty(), "{} of {} steps:\n{}", wrong.len(), STEPS.len(), wrong.join("\n"));
    let destroyed = cluster.dtkv(&["group", "destroy", "9", "--confirm", cluster.cluster_id()]).await?;
    destroyed.success().context("destroy a group")?;
    for _ in 0..2 {
        cluster.dtkv(&["group", "create", "9", "--members", "1,2,3"]).await?.success().context("again")?;
    }
    let gone = cluster.dtkv(&["-g", "9", "get", "key"]).await?;
    ensure!(gone.code == Some(1), "the new group has the old one's key: {gone:?}");
    cluster.finish()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn output_for_programs_is_json() -> Result<()> {
    let cluster = Cluster::start("command-line-json", ClusterOptions::new(3, 2)).await?;
    cluster.dtkv(&["-g", "1", "put", "key", "value"]).await?.success()?;
    for arguments in [
        &["get", "key"][..],
        &["put", "key", "value"],
        &["ls"],
        &["groups"],
        &["nodes"],
        &["status"],
        &["limits"],
        &["digest", "1", "2"],
        &["group", "members", "1"],
    ] {
        let all: Vec<&str> = ["-g", "1", "-o", "json"].iter().chain(arguments).copied().collect();
        let stdout = cluster.dtkv(&all).await?.success().with_context(|| format!("{arguments:?}"))?;
        let parsed: Result<Vec<Value>, _> =
            serde_json::Deserializer::from_str(&stdout).into_iter::<Value>().collect();
        let parsed = parsed.with_context(|| format!("{arguments:?} printed {stdout}"))?;
        ensure!(!parsed.is_empty(), "{arguments:?} printed nothing");
    }
    cluster.finish()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cluster_init_makes_a_cluster_of_started_nodes_and_can_be_repeated() -> Result<()> {
    let cluster = Cluster::start("command-line-init", ClusterOptions::new(3, 0)).await?;
    for _ in 0..2 {
        cluster.dtkv(&["cluster", "init", "--groups", "5", "--replicas", "3"]).await?.success()?;
    }
    let groups = cluster.client().admin().groups().await?.groups;
    ensure!(groups.len() == 5 && groups.iter().all(|group| group.voters.len() == 3), "{groups:?}");
    for node in cluster.node_ids() {
        let led = cluster.groups_led_by(node).await?.len();
        ensure!(led <= 3, "n{node} leads {led} of 5 groups");
    }
    cluster.dtkv(&["-g", "5", "put", "key", "value"]).await?.success()?;
    cluster.finish()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_cluster_the_command_line_says_so() -> Result<()> {
    let port = place::free_ports(1)?[0];
    let endpoint = format!("127.0.0.1:{port}");
    let arguments = ["-e", &endpoint, "--timeout", "1s", "-g", "1", "put", "key", "value"];
    let output = run_program(&place::program("dtkv")?, &arguments, "").await?;
    ensure!(output.code == Some(3), "{output:?}");
    ensure!(output.stderr.contains(&endpoint), "the message does not name the endpoint: {output:?}");
    Ok(())
}
