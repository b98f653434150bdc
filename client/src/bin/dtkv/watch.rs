//! `dtkv watch`: prints states or events as they come, one a line.

use crate::args::{Layout, WatchArgs, WatchKind};
use crate::context::Context;
use crate::fault::{Exit, Fault};
use crate::output::{self, JsonBytes, count, show};
use dtkv_client::{
    Change, Event, EventKind, EventWatch, Presence, Resync, State, StateWatch, StateWatchOptions,
};
use serde_json::{Value, json};

impl From<WatchKind> for EventKind {
    fn from(kind: WatchKind) -> EventKind {
        match kind {
            WatchKind::Put => EventKind::Put,
            WatchKind::Remove => EventKind::Remove,
            WatchKind::Expire => EventKind::Expire,
            WatchKind::Mkdir => EventKind::Mkdir,
        }
    }
}

pub async fn run(context: &Context, args: WatchArgs) -> Result<Exit, Fault> {
    let group = context.group();
    let wanted = args.count.unwrap_or(u64::MAX);
    if args.events {
        let mut builder = group.watch_events(&args.key.0).kinds(args.kinds.iter().copied().map(Into::into));
        if let Some(index) = args.from {
            builder = builder.from(index);
        }
        if args.keys_only {
            builder = builder.keys_only();
        }
        events(context, builder.start(), wanted).await
    } else {
        let options = StateWatchOptions { keys_only: args.keys_only, known_index: args.from };
        states(context, group.watch_with(&args.key.0, options), wanted).await
    }
}

async fn states(context: &Context, mut watch: StateWatch, wanted: u64) -> Result<Exit, Fault> {
    for _ in 0..wanted {
        let state = watch.next().await?;
        match context.settings.layout {
            Layout::Table => output::write(state_line(&state))?,
            Layout::Json => output::write(format!("{}\n", state_json(&state)))?,
        }
    }
    Ok(Exit::Done)
}

async fn events(context: &Context, mut watch: EventWatch, wanted: u64) -> Result<Exit, Fault> {
    for _ in 0..wanted {
        let change = watch.next().await?;
        match (context.settings.layout, &change) {
            (Layout::Table, Change::Event(event)) => output::write(event_line(event))?,
            (Layout::Table, Change::Resynced(resync)) => output::write(resync_lines(resync))?,
            (Layout::Json, Change::Event(event)) => output::write(format!("{}\n", event_json(event)))?,
            (Layout::Json, Change::Resynced(resync)) => output::write(format!("{}\n", resync_json(resync)))?,
        }
    }
    Ok(Exit::Done)
}

fn state_line(state: &State) -> String {
    match &state.presence {
        Presence::NotExists => format!("{:>10}  does not exist\n", state.index),
        Presence::Directory => format!("{:>10}  directory\n", state.index),
        Presence::Value(value) => format!("{:>10}  value      {}\n", state.index, show(value)),
    }
}

fn word(kind: EventKind) -> &'static str {
    match kind {
        EventKind::Put => "put",
        EventKind::Remove => "remove",
        EventKind::Expire => "expire",
        EventKind::Mkdir => "mkdir",
    }
}

fn event_line(event: &Event) -> String {
    let (time, what, key) = (output::time(event.time_ms), word(event.kind), show(&event.key));
    let line = match &event.value {
        Some(value) => format!("{:>10}  {time}  {what:<6}  {key}  {}", event.index, show(value)),
        None => format!("{:>10}  {time}  {what:<6}  {key}", event.index),
    };
    line + "\n"
}

fn resync_lines(resync: &Resync) -> String {
    let mut lines = format!(
        "{:>10}  history is gone; what is there now: {}\n",
        resync.index,
        count(resync.nodes.len(), "node")
    );
    for node in &resync.nodes {
        let value = node.value.as_ref().map(|value| format!("  {}", show(value))).unwrap_or_default();
        lines += &format!("{:>10}  is there  {}{value}\n", node.update_index, show(&node.key));
    }
    lines
}

fn bytes(bytes: &[u8]) -> Value {
    serde_json::to_value(JsonBytes(bytes)).unwrap_or_default()
}

fn state_json(state: &State) -> Value {
    let (what, value) = match &state.presence {
        Presence::NotExists => ("not_exists", None),
        Presence::Directory => ("directory", None),
        Presence::Value(value) => ("value", Some(bytes(value))),
    };
    json!({"index": state.index, "state": what, "value": value})
}

fn event_json(event: &Event) -> Value {
    json!({
        "index": event.index,
        "time_ms": event.time_ms,
        "event": word(event.kind),
        "key": bytes(&event.key),
        "value": event.value.as_ref().map(|value| bytes(value)),
        "dir": event.dir,
        "prev_index": event.prev_index,
    })
}

fn resync_json(resync: &Resync) -> Value {
    let node = |node: &dtkv_client::Node| {
        let value = node.value.as_ref().map(|value| bytes(value));
        json!({"key": bytes(&node.key), "value": value, "dir": node.dir, "update_index": node.update_index})
    };
    json!({"index": resync.index, "event": "resynced", "nodes": resync.nodes.iter().map(node).collect::<Vec<_>>()})
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put() -> Event {
        Event {
            kind: EventKind::Put,
            key: "a.b".into(),
            value: Some("v".into()),
            dir: false,
            index: 42,
            time_ms: 1000,
            prev_index: 7,
        }
    }

    #[test]
    fn lines_say_index_time_kind_key_and_value() {
        assert_eq!(event_line(&put()), "        42  1970-01-01 00:00:01.000  put     a.b  v\n");
        let gone = State { index: 5, presence: Presence::NotExists };
        assert_eq!(state_line(&gone), "         5  does not exist\n");
    }

    #[test]
    fn json_is_one_object_a_line() {
        let line = event_json(&put()).to_string();
        assert!(!line.contains('\n'));
        let read: Value = serde_json::from_str(&line).unwrap();
        assert_eq!(
            (&read["event"], &read["key"], &read["prev_index"]),
            (&json!("put"), &json!("a.b"), &json!(7))
        );
        let state = state_json(&State { index: 1, presence: Presence::Value(vec![255].into()) });
        assert_eq!(state["value"], json!({"hex": "ff"}));
    }
}
