//! What a group's log holds, and the part of it that is in memory.

use crate::group::raft::{Entry, LogId};
use openraft::entry::RaftEntry;
use openraft::vote::leader_id_std::CommittedLeaderId;
use std::collections::VecDeque;
use std::ops::Range;

/// An entry and the size of its record.
pub(super) type Sized = (Entry, usize);

/// The log of one group, from behind the purged part to its end. The newest entries are in
/// memory; of the older ones only term and size.
#[derive(Default)]
pub(super) struct Window {
    purged: Option<LogId>,
    /// Index of the first entry, if there is one.
    first: u64,
    /// Entries that are only on disk; they come first.
    evicted: VecDeque<Evicted>,
    /// The rest, without a hole.
    entries: VecDeque<Sized>,
    evicted_bytes: usize,
    entry_bytes: usize,
    truncations: u64,
}

#[derive(Clone, Copy)]
struct Evicted {
    term: u64,
    bytes: usize,
}

/// Where the answer to a read lies: first a range on the disk, then these entries.
pub(super) struct Plan {
    pub disk: Range<u64>,
    pub entries: Vec<Entry>,
    /// The plan holds as long as this does not change.
    pub truncations: u64,
}

impl Window {
    pub(super) fn new(purged: Option<LogId>) -> Window {
        Window { purged, first: purged.map_or(0, |id| id.index() + 1), ..Window::default() }
    }

    pub(super) fn purged(&self) -> Option<LogId> {
        self.purged
    }

    /// Index of the first entry, if there is one.
    pub(super) fn first_index(&self) -> u64 {
        self.first
    }

    fn first_in_memory(&self) -> u64 {
        self.first_index() + self.evicted.len() as u64
    }

    /// Index that the next entry gets.
    pub(super) fn next_index(&self) -> u64 {
        self.first_in_memory() + self.entries.len() as u64
    }

    /// The last entry, or the last purged one when there is none.
    pub(super) fn last(&self) -> Option<LogId> {
        let in_memory = self.entries.back().map(|(entry, _)| entry.log_id());
        let on_disk = || {
            let term = self.evicted.back()?.term;
            Some(LogId::new(CommittedLeaderId { term }, self.first_in_memory() - 1))
        };
        in_memory.or_else(on_disk).or(self.purged)
    }

    /// Bytes of all entries.
    pub(super) fn bytes(&self) -> u64 {
        (self.entry_bytes + self.evicted_bytes) as u64
    }

    /// Bytes of the entries in memory.
    pub(super) fn memory_bytes(&self) -> usize {
        self.entry_bytes
    }

    /// How often the log was cut.
    pub(super) fn truncations(&self) -> u64 {
        self.truncations
    }

    /// Whether the entry of this index can be added: the next one, and to a log that never held
    /// any, every one.
    pub(super) fn takes(&self, index: u64) -> bool {
        index == self.next_index() || self.last().is_none()
    }

    /// Adds an entry that the log takes.
    pub(super) fn push(&mut self, entry: Sized) {
        if self.last().is_none() {
            self.first = entry.0.index();
        }
        self.entry_bytes += entry.1;
        self.entries.push_back(entry);
    }

    /// Drops the entries from `from` on.
    pub(super) fn truncate(&mut self, from: u64) {
        let keep = |first: u64, count: usize| (from.saturating_sub(first) as usize).min(count);
        let in_memory = keep(self.first_in_memory(), self.entries.len());
        let on_disk = keep(self.first_index(), self.evicted.len());
        self.entry_bytes -= self.entries.drain(in_memory..).map(|(_, bytes)| bytes).sum::<usize>();
        self.evicted_bytes -= self.evicted.drain(on_disk..).map(|gone| gone.bytes).sum::<usize>();
        self.truncations += 1;
    }

    /// The last index, `upto` at most, up to which the log can go so that the newest `keep_bytes`
    /// stay. Looks only at what can go, and at one entry more.
    pub(super) fn purgeable(&self, upto: u64, keep_bytes: u64) -> u64 {
        let sizes = self.evicted.iter().map(|gone| gone.bytes).chain(self.entries.iter().map(|(_, b)| *b));
        let mut left = self.bytes();
        let goes = |bytes: &usize| {
            left = left.saturating_sub(*bytes as u64);
            left >= keep_bytes
        };
        let held_to = (upto + 1).saturating_sub(self.first) as usize;
        let count = sizes.take(held_to).take_while(goes).count() as u64;
        (self.first + count).saturating_sub(1)
    }

    /// Forgets everything up to this entry.
    pub(super) fn purge(&mut self, upto: LogId) {
        let count = (upto.index() + 1).saturating_sub(self.first_index()) as usize;
        let on_disk = count.min(self.evicted.len());
        let in_memory = (count - on_disk).min(self.entries.len());
        self.evicted_bytes -= self.evicted.drain(..on_disk).map(|gone| gone.bytes).sum::<usize>();
        self.entry_bytes -= self.entries.drain(..in_memory).map(|(_, bytes)| bytes).sum::<usize>();
        self.purged = Some(upto);
        self.first = upto.index() + 1;
    }

    /// Takes the oldest entries out of memory until no more than `bytes_max` are left there, but
    /// none behind `on_disk_to`. Gives them back, to be dropped outside of a lock.
    pub(super) fn evict(&mut self, bytes_max: usize, on_disk_to: u64) -> Vec<Sized> {
        let mut out = Vec::new();
        while self.entry_bytes > bytes_max && self.first_in_memory() <= on_disk_to {
            let Some((entry, bytes)) = self.entries.pop_front() else { break };
            self.entry_bytes -= bytes;
            self.evicted_bytes += bytes;
            self.evicted.push_back(Evicted { term: entry.log_id().committed_leader_id().term, bytes });
            out.push((entry, bytes));
        }
        out
    }

    /// How to read `from..to`: as many entries as fit into `bytes_max`, one at least.
    pub(super) fn plan(&self, from: u64, to: u64, bytes_max: usize) -> Plan {
        let (first, in_memory) = (self.first_index(), self.first_in_memory());
        let to = to.min(self.next_index());
        let from = from.max(first);
        let mut budget = Budget { left: bytes_max, spent: false };
        let mut disk = from..from;
        let mut entries = Vec::new();
        if from < to.min(in_memory) {
            let wanted = self.evicted.range((from - first) as usize..(to.min(in_memory) - first) as usize);
            disk.end += wanted.take_while(|gone| budget.take(gone.bytes)).count() as u64;
        }
        if disk.end >= in_memory && disk.end < to {
            let wanted = self.entries.range((disk.end - in_memory) as usize..(to - in_memory) as usize);
            let fit = wanted.take_while(|(_, bytes)| budget.take(*bytes));
            entries.extend(fit.map(|(entry, _)| entry.clone()));
        }
        Plan { disk, entries, truncations: self.truncations }
    }
}

/// Bytes that a read may still take; the first entry always fits.
struct Budget {
    left: usize,
    spent: bool,
}

impl Budget {
    fn take(&mut self, bytes: usize) -> bool {
        let fits = !self.spent || bytes <= self.left;
        self.spent = true;
        self.left = self.left.saturating_sub(bytes);
        fits
    }
}
