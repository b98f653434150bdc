//! `dtkv shell`: the same commands at a prompt.

use crate::args::Cli;
use crate::context::Context;
use crate::fault::{Exit, Fault};
use crate::settings::{Settings, home};
use crate::{run, words};
use clap::builder::Resettable;
use clap::{CommandFactory, FromArgMatches};
use rustyline::completion::Completer;
use rustyline::error::ReadlineError;
use rustyline::highlight::Highlighter;
use rustyline::hint::Hinter;
use rustyline::history::FileHistory;
use rustyline::validate::Validator;
use rustyline::{Editor, Helper};
use std::path::PathBuf;
use tokio::runtime::Runtime;

/// Lines kept in the history file.
const HISTORY_LINES_MAX: usize = 10_000;

/// Words that only the shell knows.
const WORDS: [&str; 4] = ["use", "help", "exit", "quit"];

/// What a line asks for.
#[derive(Debug)]
enum Line {
    Nothing,
    Use(u32),
    Help,
    Exit,
    Command(Box<Cli>),
    /// Help or an error, already worded by clap.
    Say(String),
}

pub fn run(runtime: &Runtime, settings: Settings) -> Result<Exit, Fault> {
    let mut context = runtime.block_on(Context::connect(settings))?;
    // What a line makes belongs to the shell, and the next line may renew it.
    context.settings.owner = Some(context.client.client_id());
    let mut editor = editor()?;
    if context.is_for_people() {
        eprintln!("Connected. `help` lists the commands, `use N` chooses a group, Ctrl-D leaves.");
    }
    let mut last = Exit::Done;
    loop {
        let line = match editor.readline(&prompt(&context.settings)) {
            Ok(line) => line,
            Err(ReadlineError::Interrupted) => continue,
            Err(ReadlineError::Eof) => break,
            Err(e) => return Err(Fault::failed(format!("the terminal can't be read: {e}"))),
        };
        // A history that can't be kept must not disturb the work.
        let _ = editor.add_history_entry(&line);
        match parse(&line) {
            Line::Nothing => {}
            Line::Exit => break,
            Line::Use(group) => context.settings.group = group,
            Line::Help => eprint!("{}", help()),
            Line::Say(text) => eprint!("{text}"),
            Line::Command(cli) => last = run::report(execute(runtime, &context, *cli)),
        }
    }
    save_history(&mut editor);
    Ok(last)
}

fn prompt(settings: &Settings) -> String {
    format!("dtkv g{}> ", settings.group)
}

fn execute(runtime: &Runtime, context: &Context, cli: Cli) -> Result<Exit, Fault> {
    let global = &cli.global;
    if !global.endpoints.is_empty() || global.config.is_some() || global.owner.is_some() {
        let advice = "a shell keeps its connection; leave it and start another one with -e or --owner";
        return Err(Fault::usage(advice));
    }
    let line = context.with(context.settings.with(&cli.global));
    runtime.block_on(async {
        tokio::select! {
            result = run::dispatch(&line, cli.command) => result,
            _ = tokio::signal::ctrl_c() => Err(Fault {
                exit: Exit::Unknown,
                message: "interrupted; a write that was on its way may still happen".into(),
            }),
        }
    })
}

/// The grammar of a line: that of the command line, without the program's name and without
/// environment, because `use` must win over DTKV_GROUP.
fn grammar() -> clap::Command {
    Cli::command()
        .no_binary_name(true)
        .mut_args(|arg| arg.env(Resettable::Reset))
        .disable_help_subcommand(true)
}

fn parse(line: &str) -> Line {
    let words = match words::split(line) {
        Ok(words) => words,
        Err(what) => return Line::Say(format!("dtkv: {what}\n")),
    };
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words.as_slice() {
        [] => Line::Nothing,
        ["exit" | "quit"] => Line::Exit,
        ["help" | "?"] => Line::Help,
        ["help", command @ ..] => parse_command(&[command, &["--help"]].concat()),
        ["use", group] => match group.trim_start_matches('g').parse() {
            Ok(group) => Line::Use(group),
            Err(_) => Line::Say(format!("dtkv: `{group}` is not a group id; for example: use 7\n")),
        },
        ["use", ..] => Line::Say("dtkv: use takes one group id; for example: use 7\n".into()),
        ["dtkv", words @ ..] if !words.is_empty() => parse_command(words),
        words => parse_command(words),
    }
}

fn parse_command(words: &[&str]) -> Line {
    match grammar().try_get_matches_from(words).and_then(|matches| Cli::from_arg_matches(&matches)) {
        Ok(cli) => Line::Command(Box::new(cli)),
        Err(e) => Line::Say(e.to_string()),
    }
}

fn help() -> String {
    let mut text = String::from("Commands (help COMMAND shows options and examples):\n");
    for (name, about) in commands() {
        text += &format!("  {name:12} {about}\n");
    }
    text += "  use N        Choose the group that keys belong to\n";
    text + "  exit         Leave (or Ctrl-D)\n"
}

fn commands() -> Vec<(String, String)> {
    let about = |command: &clap::Command| command.get_about().map(ToString::to_string).unwrap_or_default();
    Cli::command()
        .get_subcommands()
        .filter(|command| !matches!(command.get_name(), "shell" | "completions"))
        .map(|command| (command.get_name().to_string(), about(command)))
        .collect()
}

fn editor() -> Result<Editor<Words, FileHistory>, Fault> {
    let config =
        rustyline::Config::builder().max_history_size(HISTORY_LINES_MAX).map(|b| b.auto_add_history(false));
    let config = config.map_err(terminal)?.build();
    let mut editor = Editor::with_config(config).map_err(terminal)?;
    editor.set_helper(Some(Words));
    if let Some(path) = history_path() {
        // There is none before the first time.
        let _ = editor.load_history(&path);
    }
    Ok(editor)
}

fn terminal(e: ReadlineError) -> Fault {
    Fault::failed(format!("the terminal can't be used: {e}"))
}

fn save_history(editor: &mut Editor<Words, FileHistory>) {
    let Some(path) = history_path() else { return };
    let saved = path.parent().map_or(Ok(()), std::fs::create_dir_all).map_err(ReadlineError::Io);
    if let Err(e) = saved.and_then(|()| editor.save_history(&path)) {
        eprintln!("dtkv: note: the history could not be kept in {}: {e}", path.display());
    }
}

fn history_path() -> Option<PathBuf> {
    home().map(|home| home.join(".local/state/dtkv/history"))
}

/// Completes commands, subcommands and options.
struct Words;

impl Helper for Words {}
impl Highlighter for Words {}
impl Validator for Words {}
impl Hinter for Words {
    type Hint = String;
}

impl Completer for Words {
    type Candidate = String;

    fn complete(
        &self,
        line: &str,
        at: usize,
        _: &rustyline::Context<'_>,
    ) -> rustyline::Result<(usize, Vec<String>)> {
        Ok(complete(&line[..at]))
    }
}

/// Where the last word begins, and what it may become.
fn complete(line: &str) -> (usize, Vec<String>) {
    let start = line.rfind(char::is_whitespace).map_or(0, |at| at + 1);
    let (before, word) = line.split_at(start);
    let mut command = grammar();
    command.build();
    let mut depth = 0;
    for name in before.split_whitespace() {
        match command.find_subcommand(name) {
            Some(found) => (command, depth) = (found.clone(), depth + 1),
            None => break,
        }
    }
    let mut candidates: Vec<String> = command.get_subcommands().map(|c| c.get_name().to_string()).collect();
    if depth == 0 {
        candidates.retain(|name| !matches!(name.as_str(), "shell" | "completions"));
        candidates.extend(WORDS.map(String::from));
    }
    if word.starts_with('-') {
        candidates =
            command.get_arguments().filter_map(|a| a.get_long()).map(|long| format!("--{long}")).collect();
    }
    candidates.retain(|candidate| candidate.starts_with(word));
    if depth == 0 && !before.trim().is_empty() {
        candidates.clear();
    }
    candidates.sort();
    (start, candidates)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::Command;

    #[test]
    fn lines_are_commands_without_the_program_name() {
        let Line::Command(cli) = parse("put user.alice 'two words' -p -g 3") else { panic!() };
        assert_eq!(cli.global.group, Some(3));
        let Command::Put(args) = cli.command else { panic!() };
        assert_eq!(
            (args.key.as_str(), args.value.as_str(), args.create_parents),
            ("user.alice", "two words", true)
        );
        assert!(matches!(parse("dtkv get a"), Line::Command(_)));
    }

    #[test]
    fn shell_words_are_understood() {
        assert!(matches!(parse("use 7"), Line::Use(7)));
        assert!(matches!(parse("use g7"), Line::Use(7)));
        assert!(matches!(parse("use x"), Line::Say(_)));
        assert!(matches!(parse(" "), Line::Nothing));
        assert!(matches!(parse("quit"), Line::Exit));
        let Line::Say(text) = parse("help cas") else { panic!() };
        assert!(text.contains("dtkv cas leader --absent"), "{text}");
        let Line::Say(text) = parse("putt a b") else { panic!() };
        assert!(text.contains("putt"), "{text}");
    }

    #[test]
    fn words_are_completed() {
        assert_eq!(complete("mk"), (0, vec!["mkdir".to_string()]));
        assert_eq!(complete("group tr"), (6, vec!["transfer".to_string()]));
        assert_eq!(complete("us").1, ["use"]);
        assert!(complete("cas --del").1.contains(&"--delete".to_string()));
        assert!(complete("put some").1.is_empty());
        assert!(!complete("").1.contains(&"shell".to_string()));
    }
}
