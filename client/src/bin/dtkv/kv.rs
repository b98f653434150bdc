//! The commands on keys: put, get, ls, rm, mkdir, cas.

use crate::args::{CasArgs, GetArgs, LsArgs, MkdirArgs, PutArgs, RmArgs};
use crate::context::Context;
use crate::fault::{Exit, Fault};
use crate::kv_report::{Done, Listing, NodeReport, Read};
use crate::output;
use bytes::Bytes;
use dtkv_client::v1::Code;
use dtkv_client::{CasOutcome, Expect, ListOptions, MkdirOptions, New, PutOptions, RemoveOptions};
use std::io::Read as _;

pub async fn put(context: &Context, args: PutArgs) -> Result<Exit, Fault> {
    let value = value(&args.value, args.literal)?;
    let options = PutOptions { create_parents: args.create_parents, expect_index: args.if_index };
    let group = context.guarded(&args.guarded);
    let written = match args.ttl {
        Some(ttl) => group.put_temp_with(&args.key, &value, ttl, options).await?,
        None => group.put_with(&args.key, &value, options).await?,
    };
    let (code, what) = match written.created {
        true => (Code::Success, "created"),
        false => (Code::SuccessOverwrite, "replaced"),
    };
    let owner = args.ttl.map(|_| context.client.client_id());
    context.print(&Done::new(&args.key, what, code, written.index).owned_by(owner))?;
    Ok(Exit::Done)
}

pub async fn get(context: &Context, args: GetArgs) -> Result<Exit, Fault> {
    let reads = read_all(context, &args).await?;
    let missing = reads.iter().any(|read| read.node.is_none());
    if args.raw {
        for node in reads.iter().filter_map(|read| read.node.as_ref()) {
            output::write(node.value())?;
        }
    } else {
        context.print(&NodeReport { reads: &reads, meta: args.meta })?;
    }
    if context.is_for_people() {
        for read in reads.iter().filter(|read| read.node.is_none()) {
            eprintln!("dtkv: NOT_FOUND: no node has the key {}; check the key, or create it first", read.key);
        }
        note_hex(&reads, &args);
    }
    Ok(if missing { Exit::Refused } else { Exit::Done })
}

async fn read_all(context: &Context, args: &GetArgs) -> Result<Vec<Read>, Fault> {
    let group = context.group();
    if let [key] = args.keys.as_slice() {
        let answer = group.read(&key.0).await?;
        return Ok(vec![Read::new(&key.0, answer.index, answer.lag_ms, answer.node)]);
    }
    let answer = group.batch_get(args.keys.iter().map(|key| &key.0)).await?;
    let read = |(key, node): (&crate::args::Rooted, _)| Read::new(&key.0, answer.index, answer.lag_ms, node);
    Ok(args.keys.iter().zip(answer.nodes).map(read).collect())
}

fn note_hex(reads: &[Read], args: &GetArgs) {
    let is_hex = |read: &Read| {
        let value = read.node.as_ref().map(|node| node.value()).unwrap_or_default();
        std::str::from_utf8(value).is_err()
    };
    if !args.raw && reads.iter().any(is_hex) {
        eprintln!("dtkv: note: not UTF-8, shown as hex; --raw writes the bytes as they are");
    }
}

pub async fn ls(context: &Context, args: LsArgs) -> Result<Exit, Fault> {
    let group = context.group();
    let mut listing = Listing { long: args.long, keys_only: args.keys_only, ..Listing::default() };
    let mut options = ListOptions {
        limit: 0,
        keys_only: args.keys_only,
        recursive: args.recursive,
        continuation: args.continuation,
    };
    loop {
        options.limit = args.limit.map_or(0, |limit| limit - listing.nodes.len() as u32);
        let page = group.list(&args.dir.0, options.clone()).await?;
        listing.index = page.index;
        listing.lag_ms = page.lag_ms;
        listing.nodes.extend(page.nodes.into_iter().map(Into::into));
        options.continuation = page.continuation.clone();
        let is_full = args.limit.is_some_and(|limit| listing.nodes.len() as u32 >= limit);
        if is_full || page.continuation.is_none() {
            listing.continuation = page.continuation.as_deref().map(output::hex);
            break;
        }
    }
    context.print(&listing)?;
    if let (true, Some(token)) = (context.is_for_people(), &listing.continuation) {
        eprintln!("dtkv: there is more: add --continue {token}");
    }
    Ok(Exit::Done)
}

pub async fn rm(context: &Context, args: RmArgs) -> Result<Exit, Fault> {
    let group = context.guarded(&args.guarded);
    let options = RemoveOptions { recursive: args.recursive, expect_index: args.if_index };
    let mut exit = Exit::Done;
    for key in &args.keys {
        let removed = group.remove_with(key, options).await.map_err(|e| Fault::from(e).at(key))?;
        let (code, what) = match removed.existed {
            true => (Code::Success, "removed"),
            false => (Code::NotFound, "was not there"),
        };
        if !removed.existed && !args.force {
            exit = Exit::Refused;
        }
        context.print(&Done::new(key, what, code, removed.index))?;
    }
    Ok(exit)
}

pub async fn mkdir(context: &Context, args: MkdirArgs) -> Result<Exit, Fault> {
    let options = MkdirOptions { create_parents: args.create_parents };
    let group = context.guarded(&args.guarded);
    let made = match args.ttl {
        Some(ttl) => group.make_temp_dir_with(&args.key, ttl, options).await?,
        None => group.mkdir_with(&args.key, options).await?,
    };
    let (code, what) = match made.created {
        true => (Code::Success, "created"),
        false if args.ttl.is_some() => (Code::DirExists, "renewed"),
        false => (Code::DirExists, "was there already"),
    };
    let owner = args.ttl.map(|_| context.client.client_id());
    context.print(&Done::new(&args.key, what, code, made.index).owned_by(owner))?;
    Ok(Exit::Done)
}

pub async fn cas(context: &Context, args: CasArgs) -> Result<Exit, Fault> {
    let expected = args.expected.expect.as_deref().map(|text| value(text, args.literal)).transpose()?;
    let expect = match (&expected, args.expected.index) {
        (Some(bytes), _) => Expect::Value(bytes),
        (None, Some(index)) => Expect::Index(index),
        (None, None) => Expect::Absent,
    };
    let wanted = args.wanted.set.as_deref().map(|text| value(text, args.literal)).transpose()?;
    let new = wanted.as_deref().map_or(New::Delete, New::Value);
    let (done, exit) = match context.guarded(&args.guarded).compare_and_set(&args.key, expect, new).await? {
        CasOutcome::Swapped { index } => {
            let what = if wanted.is_some() { "set" } else { "deleted" };
            (Done::new(&args.key, what, Code::Success, index), Exit::Done)
        }
        CasOutcome::Mismatch { index } => {
            let what = "is not as expected, nothing changed";
            (Done::new(&args.key, what, Code::CasMismatch, index), Exit::Refused)
        }
    };
    context.print(&done)?;
    Ok(exit)
}

/// A value as it was given: text, `-` for standard input, `@FILE`.
fn value(text: &str, literal: bool) -> Result<Bytes, Fault> {
    match text.strip_prefix('@') {
        _ if literal => Ok(Bytes::copy_from_slice(text.as_bytes())),
        Some(path) => match std::fs::read(path) {
            Ok(bytes) => Ok(bytes.into()),
            Err(e) => Err(Fault::usage(format!(
                "{path} can't be read: {e}; --literal takes a value that begins with @ as it is"
            ))),
        },
        None if text == "-" => {
            let mut bytes = Vec::new();
            std::io::stdin().read_to_end(&mut bytes)?;
            Ok(bytes.into())
        }
        None => Ok(Bytes::copy_from_slice(text.as_bytes())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_come_from_the_line_or_a_file() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        std::io::Write::write_all(&mut file, &[0, 255]).unwrap();
        let at = format!("@{}", file.path().display());
        assert_eq!(value("abc", false).unwrap(), "abc");
        assert_eq!(value(&at, false).unwrap(), Bytes::from_static(&[0, 255]));
        assert_eq!(value("@x", true).unwrap(), "@x");
        assert_eq!(value("-", true).unwrap(), "-");
        assert_eq!(value("@/nowhere", false).unwrap_err().exit, Exit::Usage);
    }
}
