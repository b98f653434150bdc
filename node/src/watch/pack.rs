//! Events and states in the layout of the contract.

use crate::tree::{Event, EventKind};
use crate::watch::history::Batch;
use crate::watch::{KeyState, Presence};
use dtkv_client::packed::delivery::{Delivery, DeliveryKind};

fn delivery_kind(kind: EventKind) -> DeliveryKind {
    match kind {
        EventKind::Put => DeliveryKind::Put,
        EventKind::Remove => DeliveryKind::Remove,
        EventKind::Expire => DeliveryKind::Expire,
        EventKind::Mkdir => DeliveryKind::Mkdir,
    }
}

/// Appends an event for these watches.
pub(super) fn pack_event(batch: &Batch, event: &Event, keys_only: bool, watches: &[u32], out: &mut Vec<u8>) {
    let value = event.value.as_deref().filter(|_| !keys_only).unwrap_or_default();
    let delivery = Delivery {
        kind: delivery_kind(event.kind),
        dir: event.dir,
        index: batch.index,
        time_ms: batch.time_ms,
        prev_index: event.prev_index,
        key: &event.key,
        value,
    };
    delivery.pack(watches, out);
}

/// Appends a state for a watch.
pub(super) fn pack_state(state: &KeyState, keys_only: bool, watch: u32, out: &mut Vec<u8>) {
    let (kind, value) = match &state.presence {
        Presence::NotExists => (DeliveryKind::StateNotExists, &[][..]),
        Presence::Value(value) => (DeliveryKind::StateValue, &value[..]),
        Presence::Directory => (DeliveryKind::StateDirectory, &[][..]),
    };
    let delivery = Delivery {
        kind,
        dir: kind == DeliveryKind::StateDirectory,
        index: state.index,
        time_ms: 0,
        prev_index: 0,
        key: b"",
        value: if keys_only { b"" } else { value },
    };
    delivery.pack(&[watch], out);
}
