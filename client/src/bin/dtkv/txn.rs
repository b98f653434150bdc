//! `dtkv txn`: a transaction from a file or from standard input.

use crate::args::TxnArgs;
use crate::context::Context;
use crate::fault::{Exit, Fault};
use crate::kv_report::NodeView;
use crate::output::{Report, table};
use crate::txn_input::{Input, Item};
use dtkv_client::{OpAnswer, TxnDone};
use serde::Serialize;
use std::io::Read;

/// What a transaction came to.
#[derive(Serialize)]
struct Answer {
    succeeded: bool,
    index: u64,
    results: Vec<OpResult>,
}

#[derive(Serialize)]
struct OpResult {
    op: String,
    key: String,
    code: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    node: Option<NodeView>,
}

impl Answer {
    fn new(done: TxnDone, ops: Vec<Item>) -> Answer {
        let result = |(item, answer): (Item, OpAnswer)| {
            let code = answer.code().as_str_name();
            let node = match answer {
                OpAnswer::Node(node) => Some(node.into()),
                _ => None,
            };
            OpResult { op: item.verb, key: item.key, code, node }
        };
        let results = ops.into_iter().zip(done.results).map(result).collect();
        Answer { succeeded: done.succeeded, index: done.index, results }
    }
}

impl Report for Answer {
    fn text(&self) -> String {
        let held = if self.succeeded { "the conditions held" } else { "the conditions did not hold" };
        let head = format!("{held} (index {})\n", self.index);
        if self.results.is_empty() {
            return head;
        }
        let row = |result: &OpResult| {
            let value = result.node.as_ref().map(NodeView::summary).unwrap_or_default();
            [result.op.clone(), result.key.clone(), result.code.to_string(), value]
        };
        head + &table(&["OP", "KEY", "CODE", "VALUE"], &[], self.results.iter().map(row))
    }
}

pub async fn run(context: &Context, args: TxnArgs) -> Result<Exit, Fault> {
    let text = read(&args.file)?;
    let input = Input::parse(&text).map_err(|what| Fault::usage(format!("{}: {what}", args.file)))?;
    let mut txn = context.guarded(&args.guarded).txn();
    for compare in input.compares {
        txn = txn.when(compare);
    }
    for item in &input.then_ops {
        txn = txn.then(item.op.clone());
    }
    for item in &input.else_ops {
        txn = txn.or_else(item.op.clone());
    }
    let done = txn.commit().await?;
    let exit = if done.succeeded { Exit::Done } else { Exit::Refused };
    let ops = if done.succeeded { input.then_ops } else { input.else_ops };
    context.print(&Answer::new(done, ops))?;
    Ok(exit)
}

fn read(file: &str) -> Result<String, Fault> {
    let mut text = String::new();
    if file == "-" {
        std::io::stdin().read_to_string(&mut text)?;
        return Ok(text);
    }
    std::fs::read_to_string(file).map_err(|e| Fault::usage(format!("{file} can't be read: {e}")))
}
