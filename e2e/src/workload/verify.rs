//! What the clients were told, held against what is there in the end and against the checker.

use super::{Records, Shared, client};
use crate::checker;
use crate::history::{Action, Answer, History, Operation};
use anyhow::{Context, Result, bail, ensure};
use dtkv_client::{Client, Group, ListOptions};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// A client number that no worker has, for the reads at the end.
const VERIFIER: u32 = u32::MAX;

/// Everything that the clients of a workload were told.
pub struct Verdict {
    shared: Arc<Shared>,
}

impl Verdict {
    pub(super) fn new(shared: Arc<Shared>) -> Verdict {
        Verdict { shared }
    }

    /// The history of one group.
    pub fn history(&self, group: u32) -> History {
        self.shared.records[&group].lock().history.clone()
    }

    /// Operations of unknown outcome.
    pub fn unknown(&self) -> usize {
        let of = |records: &Records| records.history.unknown() + records.insert_unknown.len();
        self.shared.records.values().map(|records| of(&records.lock())).sum()
    }

    /// Operations that failed and definitely did not happen.
    pub fn definite_failures(&self) -> u64 {
        self.shared.definite_failures.load(Ordering::Relaxed)
    }

    /// The failures by their text.
    pub fn failures(&self) -> BTreeMap<String, u64> {
        self.shared.last_failures.lock().clone()
    }

    /// The longest time in which a group answered nothing, in ms.
    pub fn longest_stall_ms(&self) -> u64 {
        let stalls = self.shared.records.values().map(|records| records.lock().history.longest_stall_ms());
        stalls.max().unwrap_or(0)
    }

    /// Reads every key once more, looks for every acknowledged insert, and runs the checker.
    ///
    /// # Errors
    /// When an acknowledged write is missing, something is there that nobody wrote, or a history is
    /// not linearizable.
    pub async fn verify(&self, client: &Client) -> Result<()> {
        for (&id, records) in &self.shared.records {
            let group = client.group(id).with_timeout(Duration::from_secs(20));
            self.read_all(&group).await.with_context(|| format!("last reads of g{id}"))?;
            let inserts =
                check_inserts(&group, records).await.with_context(|| format!("inserts of g{id}"))?;
            let history = self.history(id);
            let writes = history.acknowledged_writes() + inserts;
            let summary = checker::check(&history).with_context(|| format!("history of g{id}"))?;
            println!("g{id}: {writes} acknowledged writes, none missing; {summary}");
        }
        println!("{} definite failures, {} unknown outcomes", self.definite_failures(), self.unknown());
        Ok(())
    }

    async fn read_all(&self, group: &Group) -> Result<()> {
        for key in 0..self.shared.options.keys {
            let invoked_ns = self.shared.now_ns();
            let (index, outcome) = client::perform(group, key, Action::Get, 0).await??;
            let answer = Some(Answer { at_ns: self.shared.now_ns(), index: Some(index), outcome });
            let read = Operation { client: VERIFIER, key, action: Action::Get, invoked_ns, answer };
            self.shared.record(group.id(), read);
        }
        Ok(())
    }
}

/// Every acknowledged insert is there, and nothing else but those of unknown outcome.
async fn check_inserts(group: &Group, records: &parking_lot::Mutex<Records>) -> Result<usize> {
    let mut there: BTreeSet<String> = BTreeSet::new();
    let mut options = ListOptions { keys_only: true, ..ListOptions::default() };
    loop {
        let page = group.list(client::INSERTS, options.clone()).await?;
        there.extend(page.nodes.iter().map(|node| String::from_utf8_lossy(&node.key).into_owned()));
        match page.continuation {
            Some(continuation) => options.continuation = Some(continuation),
            None => break,
        }
    }
    let records = records.lock();
    let missing: Vec<&String> = records.inserted.iter().filter(|key| !there.remove(*key)).collect();
    ensure!(missing.is_empty(), "{} acknowledged writes are missing: {:?}", missing.len(), missing.first());
    for key in &records.insert_unknown {
        there.remove(key);
    }
    if let Some(key) = there.first() {
        bail!("{} keys are there that nobody wrote, {key} for one", there.len());
    }
    Ok(records.inserted.len())
}
