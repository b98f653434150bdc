//! The text of a transaction: conditions and operations, one a line, or JSON.

use crate::args::parse_duration;
use crate::words;
use dtkv_client::{Compare, Expect, New, Relation, TxnOp};
use serde::Deserialize;

/// A transaction as it was read.
#[derive(Debug, Default, PartialEq)]
pub struct Input {
    pub compares: Vec<Compare>,
    pub then_ops: Vec<Item>,
    pub else_ops: Vec<Item>,
}

/// An operation, and the words for it in the report.
#[derive(Clone, Debug, PartialEq)]
pub struct Item {
    pub verb: String,
    pub key: String,
    pub op: TxnOp,
}

/// The JSON form: each item is a line of words, or the words.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Json {
    #[serde(default)]
    when: Vec<Words>,
    #[serde(default)]
    then: Vec<Words>,
    #[serde(default, rename = "else")]
    or_else: Vec<Words>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Words {
    Line(String),
    Words(Vec<String>),
}

impl Words {
    fn split(self) -> Result<Vec<String>, String> {
        match self {
            Words::Line(line) => words::split(&line),
            Words::Words(words) => Ok(words),
        }
    }
}

impl Input {
    /// Reads either form; the message of a refusal names the place.
    pub fn parse(text: &str) -> Result<Input, String> {
        if text.trim_start().starts_with('{') { Input::parse_json(text) } else { Input::parse_lines(text) }
    }

    fn parse_lines(text: &str) -> Result<Input, String> {
        let mut input = Input::default();
        for (at, line) in text.lines().enumerate() {
            let place = |what: String| format!("line {}: {what}", at + 1);
            let words = words::split(line).map_err(place)?;
            let words: Vec<&str> = words.iter().map(String::as_str).collect();
            match words.as_slice() {
                [] => Ok(()),
                ["when", words @ ..] => compare(words).map(|compare| input.compares.push(compare)),
                ["then", words @ ..] => item(words).map(|item| input.then_ops.push(item)),
                ["else", words @ ..] => item(words).map(|item| input.else_ops.push(item)),
                [word, ..] => Err(format!("a line begins with when, then or else, not with `{word}`")),
            }
            .map_err(place)?;
        }
        Ok(input)
    }

    fn parse_json(text: &str) -> Result<Input, String> {
        let json: Json = serde_json::from_str(text).map_err(|e| format!("not valid: {e}"))?;
        let mut input = Input::default();
        for words in json.when {
            input.compares.push(with_words(words, "when", compare)?);
        }
        for words in json.then {
            input.then_ops.push(with_words(words, "then", item)?);
        }
        for words in json.or_else {
            input.else_ops.push(with_words(words, "else", item)?);
        }
        Ok(input)
    }
}

fn with_words<T>(
    words: Words,
    place: &str,
    read: impl FnOnce(&[&str]) -> Result<T, String>,
) -> Result<T, String> {
    let words = words.split().map_err(|what| format!("{place}: {what}"))?;
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    read(&words).map_err(|what| format!("{place} {}: {what}", words.join(" ")))
}

fn compare(words: &[&str]) -> Result<Compare, String> {
    match words {
        ["absent", key] => Ok(Compare::absent(key)),
        ["exists", key] => Ok(Compare::exists(key)),
        ["value", key, sign, value] => Ok(Compare::value(key, relation(sign)?, value)),
        ["index", key, sign, value] => Ok(Compare::update_index(key, relation(sign)?, number(value)?)),
        ["created", key, sign, value] => Ok(Compare::create_index(key, relation(sign)?, number(value)?)),
        ["token", key, sign, value] => Ok(Compare::lock_token(key, relation(sign)?, number(value)?)),
        _ => Err("write absent KEY, exists KEY, or value, index, created or token with KEY == WHAT".into()),
    }
}

fn relation(sign: &str) -> Result<Relation, String> {
    match sign {
        "==" | "=" => Ok(Relation::Equal),
        "!=" => Ok(Relation::NotEqual),
        "<" => Ok(Relation::Less),
        ">" => Ok(Relation::Greater),
        _ => Err(format!("`{sign}` does not compare; write ==, !=, < or >")),
    }
}

fn number(text: &str) -> Result<u64, String> {
    text.parse().map_err(|_| format!("`{text}` is not a number"))
}

/// Options that follow the words of an operation.
#[derive(Default)]
struct Options<'a> {
    words: Vec<&'a str>,
    create_parents: bool,
    recursive: bool,
    absent: bool,
    delete: bool,
    ttl: Option<&'a str>,
    if_index: Option<&'a str>,
}

impl<'a> Options<'a> {
    fn read(words: &[&'a str]) -> Result<Options<'a>, String> {
        let mut options = Options::default();
        let mut words = words.iter().copied();
        let mut takes_options = true;
        while let Some(word) = words.next() {
            let mut value = || words.next().ok_or_else(|| format!("{word} takes a value"));
            match word {
                _ if !takes_options => options.words.push(word),
                "--" => takes_options = false,
                "-p" | "--create-parents" => options.create_parents = true,
                "-r" | "--recursive" => options.recursive = true,
                "--absent" => options.absent = true,
                "--delete" => options.delete = true,
                "--ttl" => options.ttl = Some(value()?),
                "--if-index" => options.if_index = Some(value()?),
                _ => options.words.push(word),
            }
        }
        Ok(options)
    }

    fn is_plain(&self) -> bool {
        let none = self.ttl.is_none() && self.if_index.is_none();
        none && !(self.create_parents || self.recursive || self.absent || self.delete)
    }

    fn apply(&self, mut op: TxnOp) -> Result<TxnOp, String> {
        if let Some(ttl) = self.ttl {
            op = op.ttl(parse_duration(ttl)?);
        }
        if let Some(index) = self.if_index {
            op = op.expect_index(number(index)?);
        }
        if self.create_parents {
            op = op.create_parents();
        }
        Ok(if self.recursive { op.recursive() } else { op })
    }
}

fn item(words: &[&str]) -> Result<Item, String> {
    let [verb, rest @ ..] = words else { return Err("an operation is missing".into()) };
    let options = Options::read(rest)?;
    let op = operation(verb, &options)?;
    Ok(Item { verb: verb.to_string(), key: options.words[0].to_string(), op })
}

fn operation(verb: &str, options: &Options<'_>) -> Result<TxnOp, String> {
    let usage = |what: &str| Err(format!("write {what}"));
    let no_cas = !options.absent && !options.delete;
    match (verb, options.words.as_slice()) {
        ("put", [key, value]) if no_cas && !options.recursive => options.apply(TxnOp::put(key, value)),
        ("put", _) => usage("put KEY VALUE [-p] [--ttl TIME] [--if-index N]"),
        ("mkdir", [key]) if no_cas && !options.recursive && options.if_index.is_none() => {
            options.apply(TxnOp::mkdir(key))
        }
        ("mkdir", _) => usage("mkdir KEY [-p] [--ttl TIME]"),
        ("rm", [key]) if no_cas && !options.create_parents && options.ttl.is_none() => {
            options.apply(TxnOp::remove(key))
        }
        ("rm", _) => usage("rm KEY [-r] [--if-index N]"),
        ("get", [key]) if options.is_plain() => Ok(TxnOp::get(key)),
        ("get", _) => usage("get KEY"),
        ("ttl", [key, ttl]) if options.is_plain() => Ok(TxnOp::update_ttl(key, parse_duration(ttl)?)),
        ("ttl", _) => usage("ttl KEY TIME"),
        ("cas", words) => compare_and_set(words, options),
        _ => Err(format!("`{verb}` is no operation; there are put, mkdir, rm, ttl, get and cas")),
    }
}

fn compare_and_set(words: &[&str], options: &Options<'_>) -> Result<TxnOp, String> {
    let (key, expect, new) = match (words, options.absent, options.delete) {
        ([key, expect, new], false, false) => {
            (key, Expect::Value(expect.as_bytes()), New::Value(new.as_bytes()))
        }
        ([key, new], true, false) => (key, Expect::Absent, New::Value(new.as_bytes())),
        ([key, expect], false, true) => (key, Expect::Value(expect.as_bytes()), New::Delete),
        _ => return Err("write cas KEY EXPECTED NEW; --absent stands for EXPECTED, --delete for NEW".into()),
    };
    Ok(TxnOp::compare_and_set(key, expect, new))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    const TEXT: &str = "\
# takes over
when value app.leader == 'node 1'
when index app.epoch > 7
when absent app.lock
then put app.leader node-2 --ttl 30s -p
then rm app.old -r
then cas app.n 1 --delete
else get app.leader
";

    #[test]
    fn lines_are_conditions_and_operations() {
        let input = Input::parse(TEXT).unwrap();
        let compares = [
            Compare::value("app.leader", Relation::Equal, "node 1"),
            Compare::update_index("app.epoch", Relation::Greater, 7),
            Compare::absent("app.lock"),
        ];
        assert_eq!(input.compares, compares);
        let put = TxnOp::put("app.leader", "node-2").ttl(Duration::from_secs(30)).create_parents();
        assert_eq!(input.then_ops[0].op, put);
        assert_eq!(input.then_ops[1].op, TxnOp::remove("app.old").recursive());
        let cas = TxnOp::compare_and_set("app.n", Expect::Value(b"1"), New::Delete);
        assert_eq!(input.then_ops[2].op, cas);
        assert_eq!((input.else_ops.len(), input.else_ops[0].verb.as_str()), (1, "get"));
    }

    #[test]
    fn json_says_the_same() {
        let json = r#"{"when": ["absent a", ["value", "b", "!=", "x y"]],
                       "then": [["put", "a", "--", "-p"]], "else": ["get a"]}"#;
        let lines = "when absent a\nwhen value b != 'x y'\nthen put a -- -p\nelse get a";
        assert_eq!(Input::parse(json), Input::parse(lines));
        assert!(Input::parse(lines).is_ok());
    }

    #[test]
    fn mistakes_are_named_with_their_place() {
        let cases = [
            ("then put a", "line 1: write put KEY VALUE"),
            ("\nwhen index a == x", "line 2: `x` is not a number"),
            ("when value a ~ b", "`~` does not compare"),
            ("whenn absent a", "not with `whenn`"),
            ("then dance a", "`dance` is no operation"),
            ("then get a -p", "write get KEY"),
            ("then put a 1 --ttl", "--ttl takes a value"),
            ("then", "an operation is missing"),
            ("{\"when\": [\"absent\"]}", "when absent: write absent KEY"),
            ("{\"whem\": []}", "not valid"),
        ];
        for (text, wanted) in cases {
            let what = Input::parse(text).unwrap_err();
            assert!(what.contains(wanted), "{text}: {what}");
        }
    }
}
