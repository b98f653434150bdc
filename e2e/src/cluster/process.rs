//! One node as a process of its own.

use super::place;
use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use std::fs::OpenOptions;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// The addresses of a node, all on loopback.
#[derive(Clone, Copy, Debug)]
pub struct Ports {
    /// Other nodes.
    pub peer: u16,
    /// Clients.
    pub client: u16,
    /// Metrics, health, status page.
    pub http: u16,
}

/// A node: its files, its ports, and its process while it runs.
#[derive(Debug)]
pub struct NodeProcess {
    /// Its id.
    pub id: u64,
    /// Its ports.
    pub ports: Ports,
    directory: PathBuf,
    child: Option<Child>,
    is_paused: bool,
}

impl NodeProcess {
    /// Prepares the files of a node and starts it.
    ///
    /// # Errors
    /// When its files or its process cannot be made.
    pub fn start(
        id: u64,
        ports: Ports,
        directory: PathBuf,
        settings: &[(String, String)],
    ) -> Result<NodeProcess> {
        std::fs::create_dir_all(&directory).with_context(|| format!("make {}", directory.display()))?;
        let mut node = NodeProcess { id, ports, directory, child: None, is_paused: false };
        std::fs::write(node.config_path(), node.config(settings)).context("write the configuration")?;
        node.restart()?;
        Ok(node)
    }

    /// host:port of the clients' listener.
    pub fn client_address(&self) -> String {
        format!("127.0.0.1:{}", self.ports.client)
    }

    /// host:port of the peers' listener.
    pub fn peer_address(&self) -> String {
        format!("127.0.0.1:{}", self.ports.peer)
    }

    /// host:port of the HTTP listener.
    pub fn http_address(&self) -> String {
        format!("127.0.0.1:{}", self.ports.http)
    }

    /// Where its output goes, over all its lives.
    pub fn log_path(&self) -> PathBuf {
        self.directory.join("node.log")
    }

    /// Where its data is.
    pub fn data_path(&self) -> PathBuf {
        self.directory.join("data")
    }

    fn config_path(&self) -> PathBuf {
        self.directory.join("dtkv.toml")
    }

    fn config(&self, settings: &[(String, String)]) -> String {
        let mut lines = vec![
            format!("node.id = {}", self.id),
            format!("node.data_dir = {:?}", self.data_path()),
            format!("listen.peer = {:?}", self.peer_address()),
            format!("listen.client = {:?}", self.client_address()),
            format!("listen.http = {:?}", self.http_address()),
        ];
        lines.extend(settings.iter().map(|(key, value)| format!("{key} = {value}")));
        lines.join("\n") + "\n"
    }

    /// Starts the process on the files that are there.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn restart(&mut self) -> Result<()> {
        if self.child.is_some() {
            bail!("n{} runs already", self.id);
        }
        let log =
            OpenOptions::new().create(true).append(true).open(self.log_path()).context("open the log")?;
        let mut command = Command::new(place::program("dtkv-node")?);
        command.arg("run").arg("--config").arg(self.config_path()).stdin(Stdio::null());
        command.stdout(log.try_clone()?).stderr(log);
        self.child = Some(command.spawn().context("start dtkv-node")?);
        Ok(())
    }

    /// Process id, while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// True from start to stop, also while paused.
    pub fn is_running(&self) -> bool {
        self.child.is_some()
    }

    /// Fails with the end of the log when the process ended by itself.
    ///
    /// # Errors
    /// When it did.
    pub fn check_alive(&mut self) -> Result<()> {
        let Some(child) = &mut self.child else { bail!("n{} does not run", self.id) };
        match child.try_wait().context("ask for the state of the process")? {
            None => Ok(()),
            Some(status) => {
                self.child = None;
                bail!("n{} ended by itself ({status}):\n{}", self.id, place::end_of_log(&self.log_path(), 30))
            }
        }
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        let pid = self.pid().with_context(|| format!("n{} does not run", self.id))?;
        let pid = Pid::from_raw(i32::try_from(pid)?).context("process id")?;
        kill_process(pid, signal).with_context(|| format!("signal to n{}", self.id))
    }

    /// kill -9, and waits until the process is gone.
    ///
    /// # Errors
    /// When it did not run.
    pub fn kill(&mut self) -> Result<()> {
        let Some(mut child) = self.child.take() else { bail!("n{} does not run", self.id) };
        self.is_paused = false;
        child.kill().context("kill -9")?;
        child.wait().context("wait for the killed process")?;
        Ok(())
    }

    /// SIGKILL without waiting, so that many nodes die at the same moment; follow with `kill`.
    ///
    /// # Errors
    /// When it did not run.
    pub fn kill_now(&self) -> Result<()> {
        self.signal(Signal::KILL)
    }

    /// SIGTERM, and waits until the process ended by itself.
    ///
    /// # Errors
    /// When it does not end within `within`; it is then killed.
    pub async fn terminate(&mut self, within: Duration) -> Result<ExitStatus> {
        self.signal(Signal::TERM)?;
        let deadline = Instant::now() + within;
        while Instant::now() < deadline {
            let Some(child) = &mut self.child else { bail!("n{} does not run", self.id) };
            if let Some(status) = child.try_wait()? {
                self.child = None;
                return Ok(status);
            }
            sleep(Duration::from_millis(10)).await;
        }
        let end = place::end_of_log(&self.log_path(), 30);
        self.kill()?;
        bail!("n{} did not stop within {within:?} of SIGTERM:\n{end}", self.id)
    }

    /// SIGSTOP: the process stands still, its connections stay open.
    ///
    /// # Errors
    /// When it does not run.
    pub fn pause(&mut self) -> Result<()> {
        self.is_paused = true;
        self.signal(Signal::STOP)
    }

    /// SIGCONT.
    ///
    /// # Errors
    /// When it does not run.
    pub fn resume(&mut self) -> Result<()> {
        self.is_paused = false;
        self.signal(Signal::CONT)
    }

    /// Loses the disk of a node that does not run.
    ///
    /// # Errors
    /// When it runs, or has no data.
    pub fn wipe(&self) -> Result<()> {
        if self.is_running() {
            bail!("n{} runs: stop it before its disk is lost", self.id);
        }
        std::fs::remove_dir_all(self.data_path()).context("remove the data directory")
    }

    /// The log so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    /// CPU time in ms, user and system, since the process began.
    ///
    /// # Errors
    /// When it does not run.
    pub fn cpu_ms(&self) -> Result<u64> {
        let stat = self.proc_file("stat")?;
        // The name in parentheses may hold blanks; user and system time are fields 14 and 15.
        let after_name = stat.rsplit_once(')').context("the form of /proc/PID/stat")?.1;
        let fields: Vec<&str> = after_name.split_whitespace().collect();
        let ticks = |at: usize| -> Result<u64> { Ok(fields.get(at).context("a field of stat")?.parse()?) };
        Ok((ticks(11)? + ticks(12)?) * 1000 / rustix::param::clock_ticks_per_second())
    }

    /// Resident memory in bytes.
    ///
    /// # Errors
    /// When it does not run.
    pub fn resident_bytes(&self) -> Result<u64> {
        let status = self.proc_file("status")?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("VmRSS")?;
        let kib: u64 = line.trim().trim_end_matches("kB").trim().parse()?;
        Ok(kib * 1024)
    }

    fn proc_file(&self, name: &str) -> Result<String> {
        let pid = self.pid().with_context(|| format!("n{} does not run", self.id))?;
        let path = format!("/proc/{pid}/{name}");
        std::fs::read_to_string(&path).with_context(|| path.clone())
    }

    /// Directory of everything that belongs to the node.
    pub fn directory(&self) -> &Path {
        &self.directory
    }
}

impl Drop for NodeProcess {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            // SIGKILL ends a paused process as well. It may be gone already.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
