//! The commands on what a client owns: ttl, keep-alive, owned, drop-owner.

use crate::args::{KeepAliveArgs, OwnedArgs, TtlArgs};
use crate::context::Context;
use crate::fault::{Exit, Fault};
use crate::kv_report::{Done, Listing};
use crate::output::{self, Report, count};
use dtkv_client::v1::Code;
use dtkv_client::{ListOptions, Owned};
use serde::Serialize;

/// A change of everything that a client owns.
#[derive(Serialize)]
struct Changed {
    owner: String,
    count: u32,
    index: u64,
    #[serde(skip)]
    what: &'static str,
}

impl Changed {
    fn new(owner: [u8; 16], owned: Owned, what: &'static str) -> Changed {
        Changed { owner: output::hex(&owner), count: owned.count, index: owned.index, what }
    }
}

impl Report for Changed {
    fn text(&self) -> String {
        format!("{} {} (index {})\n", count(self.count as usize, "node"), self.what, self.index)
    }
}

pub async fn ttl(context: &Context, args: TtlArgs) -> Result<Exit, Fault> {
    context.named_owner()?;
    let renewed = context.guarded(&args.guarded).update_ttl(&args.key, args.ttl).await?;
    context.print(&Done::new(&args.key, "renewed", Code::Success, renewed.index))?;
    Ok(Exit::Done)
}

pub async fn keep_alive(context: &Context, args: KeepAliveArgs) -> Result<Exit, Fault> {
    let owner = context.named_owner()?;
    let group = context.group();
    loop {
        let begun = tokio::time::Instant::now();
        let renewed = group.keep_alive().await;
        // Repeated, it survives what the next time may mend.
        let owned = match (renewed, args.every) {
            (Ok(owned), _) => owned,
            (Err(error), Some(every)) => {
                eprintln!("dtkv: {error}");
                tokio::time::sleep_until(begun + every).await;
                continue;
            }
            (Err(error), None) => return Err(error.into()),
        };
        context.print(&Changed::new(owner, owned, "renewed"))?;
        match args.every {
            None => return Ok(if owned.count == 0 { Exit::Refused } else { Exit::Done }),
            Some(every) => {
                tokio::select! {
                    () = tokio::time::sleep_until(begun + every) => {}
                    _ = tokio::signal::ctrl_c() => return Ok(Exit::Done),
                }
            }
        }
    }
}

pub async fn drop_owner(context: &Context) -> Result<Exit, Fault> {
    let owner = context.named_owner()?;
    let owned = context.group().drop_owner().await?;
    context.print(&Changed::new(owner, owned, "removed"))?;
    Ok(Exit::Done)
}

pub async fn owned(context: &Context, args: OwnedArgs) -> Result<Exit, Fault> {
    let owner = args.id.map_or_else(|| context.named_owner(), |id| Ok(id.0))?;
    let group = context.group();
    let mut listing = Listing { long: args.long, keys_only: args.keys_only, ..Listing::default() };
    let mut options = ListOptions { keys_only: args.keys_only, ..ListOptions::default() };
    loop {
        let page = group.owned(owner, options.clone()).await?;
        (listing.index, listing.lag_ms) = (page.index, page.lag_ms);
        listing.nodes.extend(page.nodes.into_iter().map(Into::into));
        options.continuation = page.continuation;
        if options.continuation.is_none() {
            break;
        }
    }
    context.print(&listing)?;
    Ok(Exit::Done)
}
