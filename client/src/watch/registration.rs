//! One watch at the store, and those in this client who share it.

use super::cursor::Cursor;
use super::inbox::{EventInbox, StateInbox};
use super::{Change, Event, EventKind, Presence, State};
use crate::channel::Address;
use crate::error::Error;
use crate::packed::delivery::{Delivery, DeliveryKind};
use crate::v1;
use bytes::Bytes;
use std::sync::Arc;

/// What is watched, and how.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Spec {
    pub group: u32,
    pub key: Bytes,
    pub keys_only: bool,
    /// Numbers of the kinds; empty = all.
    pub kinds: Vec<i32>,
}

/// Where a registration is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// It waits for a node.
    Nowhere,
    /// Sent to this node under this watch id; the node has answered or not.
    At { address: Address, watch_id: u32, is_created: bool },
    /// The present state is being read, because history is gone.
    Resyncing,
}

/// Who is told, and how far they are.
pub(super) enum Audience {
    State { last: Option<State>, inboxes: Vec<Arc<StateInbox>> },
    Events { cursor: Cursor, inboxes: Vec<Arc<EventInbox>> },
}

pub(super) struct Registration {
    pub spec: Spec,
    pub place: Place,
    pub audience: Audience,
    /// Replicas whose history does not reach back far enough.
    pub too_short: Vec<Address>,
}

/// A delivery in the form that it is told in, made once for all who are told.
pub(super) enum Told {
    State(State),
    Event(Change),
}

impl Told {
    /// Key and value are copied, so that what waits somewhere does not keep a whole response.
    pub fn of(delivery: &Delivery<'_>) -> Told {
        let bytes = Bytes::from([delivery.key, delivery.value].concat());
        let value = bytes.slice(delivery.key.len()..);
        let kind = match delivery.kind {
            DeliveryKind::StateNotExists => return Told::state(delivery, Presence::NotExists),
            DeliveryKind::StateValue => return Told::state(delivery, Presence::Value(value)),
            DeliveryKind::StateDirectory => return Told::state(delivery, Presence::Directory),
            DeliveryKind::Put => EventKind::Put,
            DeliveryKind::Remove => EventKind::Remove,
            DeliveryKind::Expire => EventKind::Expire,
            DeliveryKind::Mkdir => EventKind::Mkdir,
        };
        Told::Event(Change::Event(Event {
            kind,
            key: bytes.slice(..delivery.key.len()),
            // Values have at least one byte.
            value: (!value.is_empty()).then_some(value),
            dir: delivery.dir,
            index: delivery.index,
            time_ms: delivery.time_ms,
            prev_index: delivery.prev_index,
        }))
    }

    fn state(delivery: &Delivery<'_>, presence: Presence) -> Told {
        Told::State(State { index: delivery.index, presence })
    }
}

impl Registration {
    /// What to ask a node for.
    pub fn create(&mut self, watch_id: u32) -> v1::WatchCreate {
        let (mode, index) = match &mut self.audience {
            Audience::State { last, .. } => (v1::WatchMode::WatchState, last.as_ref().map(|last| last.index)),
            Audience::Events { cursor, .. } => (v1::WatchMode::WatchEvents, cursor.register()),
        };
        v1::WatchCreate {
            watch_id,
            group_id: self.spec.group,
            key: self.spec.key.clone(),
            mode: mode.into(),
            index,
            keys_only: self.spec.keys_only,
            kinds: self.spec.kinds.clone(),
        }
    }

    /// A node tells everything after this index.
    pub fn created(&mut self, applied: u64) {
        if let Place::At { is_created, .. } = &mut self.place {
            *is_created = true;
        }
        if let Audience::Events { cursor, inboxes } = &mut self.audience {
            cursor.registered(applied);
            inboxes.iter().for_each(|inbox| inbox.begun(applied));
        }
    }

    /// Tells those who share the watch. Answers the inboxes that have no room.
    pub fn tell(&mut self, told: &Told) -> Vec<Arc<EventInbox>> {
        match (&mut self.audience, told) {
            (Audience::State { last, inboxes }, Told::State(state)) => {
                if last.as_ref().is_none_or(|last| state.index > last.index) {
                    *last = Some(state.clone());
                    inboxes.iter().for_each(|inbox| inbox.put(state));
                }
                Vec::new()
            }
            (Audience::Events { cursor, inboxes }, Told::Event(change @ Change::Event(event))) => {
                let before = *cursor;
                if !cursor.take(event.index) {
                    return Vec::new();
                }
                inboxes.extract_if(.., |inbox| !inbox.put(change, before)).collect()
            }
            _ => Vec::new(),
        }
    }

    /// Events are missing; this is what is there instead.
    pub fn resynced(&mut self, index: u64, change: &Change) -> Vec<Arc<EventInbox>> {
        let Audience::Events { cursor, inboxes } = &mut self.audience else { return Vec::new() };
        let before = *cursor;
        *cursor = Cursor::new(Some(index + 1));
        self.too_short.clear();
        inboxes.extract_if(.., |inbox| !inbox.put(change, before)).collect()
    }

    /// Every event up to this index has been told.
    pub fn passed(&mut self, index: u64) {
        let is_created = matches!(self.place, Place::At { is_created: true, .. });
        if let (Audience::Events { cursor, .. }, true) = (&mut self.audience, is_created) {
            cursor.passed(index);
        }
    }

    pub fn has_nobody(&self) -> bool {
        match &self.audience {
            Audience::State { inboxes, .. } => inboxes.is_empty(),
            Audience::Events { inboxes, .. } => inboxes.is_empty(),
        }
    }

    pub fn remove(&mut self, inbox: u64) {
        match &mut self.audience {
            Audience::State { inboxes, .. } => inboxes.retain(|known| known.id != inbox),
            Audience::Events { inboxes, .. } => inboxes.retain(|known| known.id != inbox),
        }
    }

    pub fn inbox_ids(&self) -> Vec<u64> {
        match &self.audience {
            Audience::State { inboxes, .. } => inboxes.iter().map(|inbox| inbox.id).collect(),
            Audience::Events { inboxes, .. } => inboxes.iter().map(|inbox| inbox.id).collect(),
        }
    }

    /// Nobody can serve it.
    pub fn fail(&self, error: &Error) {
        match &self.audience {
            Audience::State { inboxes, .. } => inboxes.iter().for_each(|inbox| inbox.fail(error.clone())),
            Audience::Events { inboxes, .. } => inboxes.iter().for_each(|inbox| inbox.fail(error.clone())),
        }
    }
}
