//! From an outbox to the next response of its stream.

use super::{CatchUp, Mode, OutboxOptions, State, bit, compacted, queued_bytes};
use crate::ids::GroupId;
use crate::watch::ancestors;
use crate::watch::history::Batch;
use crate::watch::pack::{pack_event, pack_state};
use dtkv_client::v1;
use rustc_hash::FxHashMap;
use std::sync::Arc;

/// Deliveries are packed into one response until it is this large.
const RESPONSE_BYTES: u64 = 128 << 10;
/// Registrations and ends told in one response.
const NEWS_MAX: usize = 4096;
/// Entries of history that are read in one go.
const SCANNED_AT_ONCE: usize = 256;
/// Times this, before others get a turn.
const SCANS_MAX: usize = 8;

/// Deliveries under construction.
struct Packed {
    bytes: Vec<u8>,
    deliveries: u64,
    bytes_max: u64,
}

impl Packed {
    fn is_full(&self) -> bool {
        self.bytes.len() as u64 >= self.bytes_max
    }
}

impl State {
    /// None when there is nothing to say; true when there is more to be looked for.
    pub(super) fn build(&mut self, options: &OutboxOptions) -> (Option<v1::WatchResponse>, bool) {
        let mut response = v1::WatchResponse::default();
        let mut is_due = std::mem::take(&mut self.is_progress_due);
        if !self.is_opened {
            self.is_opened = true;
            is_due = true;
            response.opened = Some(v1::WatchOpened {
                progress_interval_ms: options.progress_interval.as_millis() as u32,
                window_bytes: options.window_bytes,
                watches_max: u32::try_from(options.watches_max).unwrap_or(u32::MAX),
            });
        }
        response.created = take_some(&mut self.created);
        let mut again = false;
        let room = (self.acknowledged_bytes + options.window_bytes).saturating_sub(self.sent_bytes);
        if room > 0 {
            let bytes_max = room.min(RESPONSE_BYTES);
            let mut packed = Packed { bytes: Vec::new(), deliveries: 0, bytes_max };
            self.pack_states(&mut packed);
            self.pack_queue(&mut packed);
            again = self.pack_history(&mut packed);
            self.count(&packed);
            response.bytes = u32::try_from(packed.bytes.len()).unwrap_or(u32::MAX);
            self.sent_bytes += u64::from(response.bytes);
            response.deliveries = packed.bytes.into();
        }
        response.ended = take_some(&mut self.ended);
        if is_due {
            response.progress = self.progress();
        }
        let says_something = is_due
            || !(response.created.is_empty() && response.deliveries.is_empty() && response.ended.is_empty());
        (says_something.then_some(response), again)
    }

    fn pack_states(&mut self, packed: &mut Packed) {
        while !packed.is_full() {
            let Some(id) = self.marked.pop_front() else { break };
            let Some(watch) = self.watches.get_mut(&id) else { continue };
            let Mode::State { known, is_marked } = &mut watch.mode else { continue };
            *is_marked = false;
            let state = watch.source.state(&watch.key);
            if known.is_some_and(|known| state.index <= known) {
                continue;
            }
            *known = Some(state.index);
            pack_state(&state, watch.keys_only, id, &mut packed.bytes);
            packed.deliveries += 1;
        }
    }

    /// The counters are those of the node: any hub has them.
    fn count(&self, packed: &Packed) {
        if let (Some(watch), true) = (self.watches.values().next(), packed.deliveries > 0) {
            watch.hub.metrics().deliveries.inc_by(packed.deliveries);
            watch.hub.metrics().bytes.inc_by(packed.bytes.len() as u64);
        }
    }

    /// One delivery for all watches that wait for the same event, one behind the other.
    fn pack_queue(&mut self, packed: &mut Packed) {
        let mut ids = Vec::new();
        while !packed.is_full() {
            let Some(first) = self.queue.pop_front() else { break };
            self.queue_bytes -= queued_bytes(&first.batch, first.at);
            let Some(keys_only) = self.watches.get(&first.id).map(|watch| watch.keys_only) else { continue };
            ids.clear();
            ids.push(first.id);
            while let Some(next) = self.queue.front() {
                let is_same = Arc::ptr_eq(&next.batch, &first.batch) && next.at == first.at;
                match self.watches.get(&next.id) {
                    Some(watch) if is_same && watch.keys_only == keys_only => ids.push(next.id),
                    None if is_same => {}
                    _ => break,
                }
                self.queue_bytes -= queued_bytes(&next.batch, next.at);
                self.queue.pop_front();
            }
            let event = &first.batch.events[first.at as usize];
            pack_event(&first.batch, event, keys_only, &ids, &mut packed.bytes);
            packed.deliveries += 1;
        }
    }

    /// Goes on reading history for the watches that catch up; true when there is more to read.
    fn pack_history(&mut self, packed: &mut Packed) -> bool {
        // What is queued comes first: it is older.
        if self.catching_up.is_empty() || !self.queue.is_empty() {
            return false;
        }
        let mut unfinished = FxHashMap::default();
        for (group, mut catch_up) in std::mem::take(&mut self.catching_up) {
            if !self.scan(&mut catch_up, packed) {
                unfinished.insert(group, catch_up);
            }
        }
        self.catching_up = unfinished;
        !self.catching_up.is_empty()
    }

    /// True when the watches are live.
    fn scan(&mut self, catch_up: &mut CatchUp, packed: &mut Packed) -> bool {
        for _ in 0..SCANS_MAX {
            if packed.is_full() {
                return false;
            }
            let batches = match catch_up.hub.read(catch_up.cursor, SCANNED_AT_ONCE) {
                Ok(batches) => batches,
                Err(gone) => {
                    self.cut(catch_up, gone.oldest);
                    continue;
                }
            };
            for batch in &batches {
                if packed.is_full() {
                    return false;
                }
                self.pack_batch(catch_up, batch, packed);
                catch_up.cursor = batch.index + 1;
            }
            if batches.is_empty() && catch_up.hub.dispatching() < catch_up.cursor {
                self.go_live(catch_up);
                return true;
            }
        }
        false
    }

    fn pack_batch(&mut self, catch_up: &CatchUp, batch: &Batch, packed: &mut Packed) {
        let mut ids: [Vec<u32>; 2] = Default::default();
        let mut taken = Vec::new();
        for event in &batch.events {
            ids.iter_mut().for_each(Vec::clear);
            for id in ancestors(&event.key).filter_map(|key| catch_up.by_key.get(key)).flatten() {
                let Some(watch) = self.watches.get(id) else { continue };
                let Mode::Events { next, kinds, .. } = watch.mode else { continue };
                if batch.index >= next && kinds & bit(event.kind as i32) != 0 {
                    ids[usize::from(watch.keys_only)].push(*id);
                    taken.push(*id);
                }
            }
            for (keys_only, ids) in [false, true].into_iter().zip(&ids) {
                if !ids.is_empty() {
                    pack_event(batch, event, keys_only, ids, &mut packed.bytes);
                    packed.deliveries += 1;
                }
            }
        }
        // Only now: the entry may have more events for the same watch.
        for id in taken {
            if let Some(Mode::Events { next, .. }) = self.watches.get_mut(&id).map(|watch| &mut watch.mode) {
                *next = batch.index + 1;
            }
        }
    }

    /// Ends the watches that need history below `oldest`; the others go on there.
    fn cut(&mut self, catch_up: &mut CatchUp, oldest: u64) {
        for ids in catch_up.by_key.values_mut() {
            ids.retain(|id| {
                let Some(watch) = self.watches.get(id) else { return false };
                let is_lost = matches!(watch.mode, Mode::Events { next, .. } if next < oldest);
                if is_lost && let Some(watch) = self.watches.remove(id) {
                    watch.hub.metrics().compacted.inc();
                    self.ended.push(compacted(*id, oldest));
                    self.orphans.push((*id, watch));
                }
                !is_lost
            });
        }
        catch_up.by_key.retain(|_, ids| !ids.is_empty());
        catch_up.cursor = catch_up.cursor.max(oldest);
    }

    fn go_live(&mut self, catch_up: &CatchUp) {
        for id in catch_up.by_key.values().flatten() {
            let Some(watch) = self.watches.get_mut(id) else { continue };
            if let Mode::Events { next, is_live, .. } = &mut watch.mode {
                *is_live = true;
                *next = (*next).max(catch_up.cursor);
            }
        }
    }

    /// How far each group is, once everything before that has been sent.
    fn progress(&self) -> Vec<v1::WatchProgress> {
        if !self.queue.is_empty() {
            return Vec::new();
        }
        let mut groups: FxHashMap<GroupId, v1::WatchProgress> = FxHashMap::default();
        for watch in self.watches.values() {
            let group = watch.hub.group();
            groups.entry(group).or_insert_with(|| {
                let catching_up = self.catching_up.get(&group);
                let index = match catching_up {
                    Some(catch_up) => catch_up.cursor.saturating_sub(1).min(watch.hub.completed()),
                    None => watch.hub.completed(),
                };
                let lag_ms = u64::try_from(watch.source.lag().as_millis()).unwrap_or(u64::MAX);
                v1::WatchProgress { group_id: group.0, index, lag_ms }
            });
        }
        groups.into_values().collect()
    }
}

fn take_some<T>(news: &mut Vec<T>) -> Vec<T> {
    if news.len() <= NEWS_MAX {
        return std::mem::take(news);
    }
    news.drain(..NEWS_MAX).collect()
}
