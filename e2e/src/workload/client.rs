//! One client: one operation after the other, each recorded.

use super::Shared;
use crate::history::{Action, Answer, Key, Operation, Outcome, Value};
use anyhow::{Context, Result, bail};
use dtkv_client::v1::Consistency;
use dtkv_client::{CasOutcome, Client, Error, ErrorKind, Expect, Group, New};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Directory of the keys that the checker sees.
pub const REGISTERS: &str = "register";
/// Directory of the keys that are written once.
pub const INSERTS: &str = "insert";

/// Name of a key of the checker.
pub fn register(key: Key) -> String {
    format!("{REGISTERS}.{key:04}")
}

const DIGITS: usize = 20;

/// The bytes that stand for a value: its number, filled up to the wanted size.
fn to_bytes(value: Value, bytes: usize) -> Vec<u8> {
    let mut text = format!("{value:0DIGITS$}").into_bytes();
    text.resize(bytes.max(DIGITS), b'.');
    text
}

/// The number that a reader saw.
///
/// # Errors
/// When nobody can have written these bytes.
pub fn from_bytes(bytes: &[u8]) -> Result<Value> {
    let digits = bytes.get(..DIGITS).context("a value that is too short")?;
    std::str::from_utf8(digits).ok().and_then(|text| text.parse().ok()).context("a value without a number")
}

/// A client of one group.
struct Worker {
    shared: Arc<Shared>,
    group: Group,
    number: u32,
    rng: SmallRng,
    /// What it saw last of each key.
    seen: HashMap<Key, Option<Value>>,
    inserts: u64,
}

/// Works until it is told to stop.
pub async fn run(shared: Arc<Shared>, client: Client, group: u32, number: u32) -> Result<()> {
    let by_lease = shared.options.lease_reads && number.is_multiple_of(2);
    let consistency = if by_lease { Consistency::Lease } else { Consistency::Linearizable };
    let group = client.group(group).with_timeout(shared.options.timeout).with_consistency(consistency);
    let rng = SmallRng::seed_from_u64(u64::from(group.id()) << 32 | u64::from(number));
    let mut worker = Worker { shared, group, number, rng, seen: HashMap::new(), inserts: 0 };
    while !worker.shared.stop.load(Ordering::Relaxed) {
        match worker.rng.random_range(0..5) {
            0 => worker.insert().await?,
            _ => worker.operate().await?,
        }
        tokio::time::sleep(worker.shared.options.pause).await;
    }
    Ok(())
}

impl Worker {
    async fn operate(&mut self) -> Result<()> {
        let key = self.rng.random_range(0..self.shared.options.keys);
        let action = self.choose(key);
        let invoked_ns = self.shared.now_ns();
        let result = perform(&self.group, key, action, self.shared.options.value_bytes).await;
        let at_ns = self.shared.now_ns();
        let answer = match result {
            Ok(Ok((index, outcome))) => Some(Answer { at_ns, index: Some(index), outcome }),
            Ok(Err(error)) if self.definitely_failed(&error)? => return Ok(()),
            Ok(Err(_)) => None,
            Err(error) => return Err(error.context(format!("{action:?} of key {key}"))),
        };
        self.shared.acknowledged.fetch_add(u64::from(answer.is_some()), Ordering::Relaxed);
        self.remember(key, action, answer);
        let operation = Operation { client: self.number, key, action, invoked_ns, answer };
        self.shared.record(self.group.id(), operation);
        Ok(())
    }

    fn choose(&mut self, key: Key) -> Action {
        let value = self.shared.next_value.fetch_add(1, Ordering::Relaxed);
        let seen = self.seen.get(&key).copied().flatten();
        match self.rng.random_range(0..10) {
            0..4 => Action::Get,
            4..7 => Action::Put(value),
            7 => Action::Remove,
            8 => Action::CompareAndSet { expect: seen, new: Some(value) },
            _ if seen.is_some() => Action::CompareAndSet { expect: seen, new: None },
            _ => Action::Get,
        }
    }

    fn remember(&mut self, key: Key, action: Action, answer: Option<Answer>) {
        match answer.map(|answer| answer.outcome) {
            Some(Outcome::Read { value, .. }) => self.seen.insert(key, value),
            Some(Outcome::Put { .. } | Outcome::CompareAndSet { swapped: true }) => {
                self.seen.insert(key, action.written())
            }
            _ => self.seen.remove(&key),
        };
    }

    /// Writes a key that nobody else writes, once.
    async fn insert(&mut self) -> Result<()> {
        let key = format!("{INSERTS}.{:02}-{:08}", self.number, self.inserts);
        self.inserts += 1;
        let result = self.group.put(&key, &key).await;
        match result {
            Ok(written) if written.created => {
                self.shared.acknowledged.fetch_add(1, Ordering::Relaxed);
                self.shared.records[&self.group.id()].lock().inserted.push(key);
            }
            Ok(_) => bail!("{key} was written once, and the put says that it was there before"),
            Err(error) if self.definitely_failed(&error)? => {}
            Err(_) => self.shared.records[&self.group.id()].lock().insert_unknown.push(key),
        }
        Ok(())
    }

    /// True when the operation did not happen. Refusals are not expected here at all.
    fn definitely_failed(&self, error: &Error) -> Result<bool> {
        match error.kind() {
            ErrorKind::Refused(_) | ErrorKind::InvalidRequest => {
                bail!("an operation without fault was refused: {error}")
            }
            kind => {
                let name = format!("{:?} {:?}: {}", kind, error.reason(), error.message());
                *self.shared.last_failures.lock().entry(name).or_default() += 1;
                let definite = kind == ErrorKind::DidNotHappen;
                self.shared.definite_failures.fetch_add(u64::from(definite), Ordering::Relaxed);
                Ok(definite)
            }
        }
    }
}

type Told = Result<(u64, Outcome), Error>;

/// One operation. The outer error is an answer that cannot be.
pub async fn perform(group: &Group, key: Key, action: Action, value_bytes: usize) -> Result<Told> {
    let name = register(key);
    Ok(match action {
        Action::Get => return read(group, &name).await,
        Action::Put(value) => {
            let written = group.put(&name, to_bytes(value, value_bytes)).await;
            written.map(|w| (w.index, Outcome::Put { created: w.created }))
        }
        Action::Remove => {
            group.remove(&name).await.map(|r| (r.index, Outcome::Removed { existed: r.existed }))
        }
        Action::CompareAndSet { expect, new } => {
            let expect = expect.map(|value| to_bytes(value, value_bytes));
            let new = new.map(|value| to_bytes(value, value_bytes));
            let expect = expect.as_deref().map_or(Expect::Absent, Expect::Value);
            let new = new.as_deref().map_or(New::Delete, New::Value);
            group.compare_and_set(&name, expect, new).await.map(|outcome| match outcome {
                CasOutcome::Swapped { index } => (index, Outcome::CompareAndSet { swapped: true }),
                CasOutcome::Mismatch { index } => (index, Outcome::CompareAndSet { swapped: false }),
            })
        }
    })
}

async fn read(group: &Group, name: &str) -> Result<Told> {
    let answer = match group.read(name).await {
        Ok(answer) => answer,
        Err(error) => return Ok(Err(error)),
    };
    let update_index = answer.node.as_ref().map(|node| node.update_index);
    let bytes = answer.node.and_then(|node| node.value);
    let value = bytes.map(|bytes| from_bytes(&bytes)).transpose()?;
    Ok(Ok((answer.index, Outcome::Read { value, update_index })))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_read_back_as_their_number() {
        for bytes in [0, 20, 64] {
            assert_eq!(from_bytes(&to_bytes(17, bytes)).expect("a value"), 17);
        }
        assert!(from_bytes(b"17").is_err());
        assert!(from_bytes(&[b'x'; 40]).is_err());
    }
}
