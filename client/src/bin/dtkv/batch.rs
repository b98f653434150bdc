//! `dtkv batch`: many items, one log entry for many of them.

use crate::args::BatchArgs;
use crate::context::Context;
use crate::fault::{Exit, Fault};
use crate::output::{self, Report, count};
use crate::words;
use dtkv_client::limits::{BATCH_BYTES_MAX, check_key, check_value};
use dtkv_client::v1::Code;
use dtkv_client::{Group, PutOptions};
use serde::Serialize;
use std::io::{BufRead, BufReader};

/// One line of the input.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Item {
    line: usize,
    key: String,
    /// None = remove.
    value: Option<String>,
}

impl Item {
    fn parse(line: usize, text: &str) -> Result<Option<Item>, Fault> {
        let bad =
            |what: String| Fault::usage(format!("line {line}: {what}; write `put KEY VALUE` or `rm KEY`"));
        let words = words::split(text).map_err(bad)?;
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        match words.as_slice() {
            [] => Ok(None),
            ["put", key, value] => {
                Ok(Some(Item { line, key: key.to_string(), value: Some(value.to_string()) }))
            }
            ["rm", key] => Ok(Some(Item { line, key: key.to_string(), value: None })),
            ["put", ..] => {
                Err(bad(format!("put takes a key and a value, not {}", count(words.len() - 1, "word"))))
            }
            ["rm", ..] => Err(bad(format!("rm takes one key, not {}", count(words.len() - 1, "word")))),
            [verb, ..] => Err(bad(format!("`{verb}` is not known here"))),
        }
    }

    fn verb(&self) -> &'static str {
        if self.value.is_some() { "put" } else { "rm" }
    }

    fn bytes(&self) -> usize {
        self.key.len() + self.value.as_ref().map_or(0, String::len)
    }

    /// The refusal that needs no node.
    fn check(&self) -> Result<(), Code> {
        check_key(self.key.as_bytes())?;
        self.value.as_ref().map_or(Ok(()), |value| check_value(value.as_bytes()))
    }
}

/// Gathers neighbours of one kind up to the limits of a log entry.
struct Entries<L> {
    lines: L,
    line: usize,
    items_max: usize,
    next: Option<Item>,
}

impl<L: Iterator<Item = std::io::Result<String>>> Entries<L> {
    fn new(lines: L, items_max: usize) -> Entries<L> {
        Entries { lines, line: 0, items_max, next: None }
    }

    fn item(&mut self) -> Result<Option<Item>, Fault> {
        if let Some(item) = self.next.take() {
            return Ok(Some(item));
        }
        for text in self.lines.by_ref() {
            self.line += 1;
            if let Some(item) = Item::parse(self.line, &text?)? {
                return Ok(Some(item));
            }
        }
        Ok(None)
    }

    /// The items of the next log entry; empty at the end.
    fn entry(&mut self) -> Result<Vec<Item>, Fault> {
        let mut entry: Vec<Item> = Vec::new();
        let mut bytes = 0;
        while let Some(item) = self.item()? {
            bytes += item.bytes();
            let fits = entry.first().is_none_or(|first| {
                first.verb() == item.verb() && entry.len() < self.items_max && bytes <= BATCH_BYTES_MAX
            });
            if !fits {
                self.next = Some(item);
                break;
            }
            entry.push(item);
        }
        Ok(entry)
    }
}

/// What came of one log entry.
#[derive(Serialize)]
struct Answer {
    /// None when no item was fit to be sent.
    index: Option<u64>,
    items: Vec<ItemAnswer>,
    #[serde(skip)]
    quiet: bool,
}

#[derive(Serialize)]
struct ItemAnswer {
    line: usize,
    op: &'static str,
    key: String,
    code: &'static str,
    #[serde(skip)]
    done: bool,
}

impl Report for Answer {
    fn text(&self) -> String {
        let row =
            |item: &ItemAnswer| format!("{:>6}  {:3}  {:24}  {}\n", item.line, item.op, item.code, item.key);
        self.items.iter().filter(|item| !(self.quiet && item.done)).map(row).collect()
    }
}

#[derive(Default)]
struct Totals {
    items: usize,
    entries: usize,
    refused: usize,
}

pub async fn run(context: &Context, args: BatchArgs) -> Result<Exit, Fault> {
    let mut entries = Entries::new(open(&args.file)?, args.items as usize);
    let mut totals = Totals::default();
    loop {
        let entry = entries.entry().map_err(|fault| told(fault, &totals))?;
        if entry.is_empty() {
            break;
        }
        let answer = send(&context.guarded(&args.guarded), entry, &args)
            .await
            .map_err(|fault| told(fault, &totals))?;
        totals.items += answer.items.len();
        totals.entries += usize::from(answer.index.is_some());
        totals.refused += answer.items.iter().filter(|item| !item.done).count();
        context.print(&answer)?;
        if args.stop_on_refusal && totals.refused > 0 {
            break;
        }
    }
    if context.is_for_people() {
        output::write(summary(&totals))?;
    }
    Ok(if totals.refused > 0 { Exit::Refused } else { Exit::Done })
}

fn summary(totals: &Totals) -> String {
    let entries = output::count_of(totals.entries as u64, "log entry", "log entries");
    format!("{} in {entries}, {} refused\n", count(totals.items, "item"), totals.refused)
}

/// A failure in the middle says what is done already.
fn told(fault: Fault, totals: &Totals) -> Fault {
    let message = format!("{}\nBefore that, {}", fault.message, summary(totals).trim_end());
    if totals.items == 0 { fault } else { Fault { message, ..fault } }
}

fn open(file: &str) -> Result<Box<dyn Iterator<Item = std::io::Result<String>>>, Fault> {
    if file == "-" {
        return Ok(Box::new(std::io::stdin().lines()));
    }
    match std::fs::File::open(file) {
        Ok(file) => Ok(Box::new(BufReader::new(file).lines())),
        Err(e) => Err(Fault::usage(format!("{file} can't be read: {e}"))),
    }
}

/// Sends what is fit to be sent, and answers the rest here.
async fn send(group: &Group, entry: Vec<Item>, args: &BatchArgs) -> Result<Answer, Fault> {
    let mut codes: Vec<Code> = entry.iter().map(|item| item.check().err().unwrap_or(Code::Success)).collect();
    let fit: Vec<usize> = (0..entry.len()).filter(|&at| codes[at] == Code::Success).collect();
    let mut index = None;
    if !fit.is_empty() {
        let written = write(group, fit.iter().map(|&at| &entry[at]), args).await;
        let written = written.map_err(|e| Fault::from(e).at(place(&entry)))?;
        index = Some(written.index);
        for (&at, code) in fit.iter().zip(written.codes) {
            codes[at] = code;
        }
    }
    let items = entry.into_iter().zip(codes).map(|(item, code)| answer(item, code)).collect();
    Ok(Answer { index, items, quiet: args.quiet })
}

async fn write<'a>(
    group: &Group,
    items: impl Iterator<Item = &'a Item> + Clone,
    args: &BatchArgs,
) -> Result<dtkv_client::BatchWritten, dtkv_client::Error> {
    if items.clone().any(|item| item.value.is_none()) {
        return group.batch_remove(items.map(|item| &item.key)).await;
    }
    let options = PutOptions { create_parents: args.create_parents, expect_index: None };
    let pairs = items.filter_map(|item| item.value.as_ref().map(|value| (&item.key, value)));
    group.batch_put_with(pairs, options).await
}

fn answer(item: Item, code: Code) -> ItemAnswer {
    let done = matches!(code, Code::Success | Code::SuccessOverwrite);
    ItemAnswer { line: item.line, op: item.verb(), key: item.key, code: code.as_str_name(), done }
}

fn place(entry: &[Item]) -> String {
    match entry {
        [first, .., last] => format!("lines {} to {}", first.line, last.line),
        [only] => format!("line {}", only.line),
        [] => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries(text: &str, items_max: usize) -> Vec<Vec<usize>> {
        let mut entries = Entries::new(text.lines().map(|line| Ok(line.to_string())), items_max);
        let next = || entries.entry().unwrap();
        let numbers = |entry: Vec<Item>| entry.iter().map(|item| item.line).collect();
        std::iter::repeat_with(next).take_while(|entry| !entry.is_empty()).map(numbers).collect()
    }

    #[test]
    fn neighbours_of_one_kind_share_a_log_entry() {
        let text = "put a 1\n# c\nput b 2\nrm a\n\nrm b\nput c 3";
        assert_eq!(entries(text, 1024), [vec![1, 3], vec![4, 6], vec![7]]);
        assert_eq!(entries("rm a\nrm b\nrm c", 2), [vec![1, 2], vec![3]]);
    }

    #[test]
    fn entries_stay_below_the_byte_limit() {
        let line = format!("put a {}\n", "x".repeat(1 << 20));
        assert_eq!(entries(&line.repeat(5), 1024), [vec![1, 2, 3], vec![4, 5]]);
    }

    #[test]
    fn bad_lines_are_named() {
        for (text, what) in
            [("puy a b", "puy"), ("put a", "1 word"), ("rm a b", "2 words"), ("put 'a", "closed")]
        {
            let fault = Item::parse(7, text).unwrap_err();
            assert!(fault.message.contains("line 7") && fault.message.contains(what), "{fault}");
            assert_eq!(fault.exit, Exit::Usage);
        }
    }

    #[test]
    fn items_that_need_no_node_are_refused_here() {
        let item = |text| Item::parse(1, text).unwrap().unwrap();
        assert_eq!(item("put a..b 1").check(), Err(Code::InvalidKey));
        assert_eq!(item("put a ''").check(), Err(Code::InvalidValue));
        assert_eq!(item("rm a").check(), Ok(()));
    }

    #[test]
    fn answers_are_lines_and_objects() {
        let items = vec![
            answer(Item { line: 3, key: "a".into(), value: Some("1".into()) }, Code::Success),
            answer(Item { line: 12, key: "b.c".into(), value: None }, Code::NotFound),
        ];
        let mut report = Answer { index: Some(9), items, quiet: false };
        let text = "     3  put  SUCCESS                   a\n    12  rm   NOT_FOUND                 b.c\n";
        assert_eq!(report.text(), text);
        report.quiet = true;
        assert_eq!(report.text(), "    12  rm   NOT_FOUND                 b.c\n");
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!(json["index"], 9);
        assert_eq!(json["items"][1]["code"], "NOT_FOUND");
    }
}
