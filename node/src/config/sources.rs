//! Where settings come from, and what was wrong with them.

use super::value::shown;
use super::{Config, SETTINGS, Setting};
use std::collections::HashMap;
use std::fmt;
use std::path::Path;
use toml::Value;

/// One thing wrong with the configuration.
#[derive(Clone, Debug, PartialEq)]
pub struct Fault {
    /// The key and its value, and where it was set.
    pub subject: String,
    /// The rule that it breaks, and what to do.
    pub problem: String,
}

/// Everything wrong with the configuration.
#[derive(Clone, Debug, PartialEq)]
pub struct Faults(pub Vec<Fault>);

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let n = self.0.len();
        write!(f, "the configuration has {n} fault{}:", if n == 1 { "" } else { "s" })?;
        self.0.iter().try_for_each(|fault| write!(f, "\n  {}: {}", fault.subject, fault.problem))
    }
}

impl std::error::Error for Faults {}

/// Settings as they were found, the weakest source first.
#[derive(Default)]
pub struct Sources {
    found: Vec<Found>,
    faults: Vec<Fault>,
}

struct Found {
    name: String,
    value: Value,
    origin: String,
}

impl Sources {
    /// A file's text, and its name for messages.
    pub fn file(&mut self, name: &str, text: &str) {
        match text.parse::<toml::Table>() {
            Ok(table) => self.table(name, table),
            Err(error) => self.fault(name, error.to_string().trim_end().replace('\n', "\n    ")),
        }
    }

    /// A file.
    pub fn path(&mut self, path: &Path) {
        let name = path.display().to_string();
        match std::fs::read_to_string(path) {
            Ok(text) => self.file(&name, &text),
            Err(error) => self.fault(&name, format!("cannot be read: {error}")),
        }
    }

    fn table(&mut self, origin: &str, table: toml::Table) {
        for (section, value) in table {
            match value {
                Value::Table(settings) => {
                    for (key, value) in settings {
                        self.add(format!("{section}.{key}"), value, origin.to_owned());
                    }
                }
                _ => self.fault(&format!("{section} ({origin})"), unknown("setting", &section)),
            }
        }
    }

    /// Environment variables; those that name no section of ours are left alone.
    pub fn environment(&mut self, variables: impl IntoIterator<Item = (String, String)>) {
        let by_variable: HashMap<String, &Setting> = SETTINGS.iter().map(|s| (s.variable(), s)).collect();
        for (variable, value) in variables {
            match by_variable.get(&variable) {
                Some(setting) => {
                    self.add(setting.name(), Value::String(value), format!("environment {variable}"));
                }
                None if looks_like_a_setting(&variable) => {
                    let close = closest(&variable, by_variable.keys().map(String::as_str));
                    self.fault(
                        &format!("environment {variable}"),
                        format!("no such setting{}", suggestion(close)),
                    );
                }
                None => {}
            }
        }
    }

    /// A flag: `section.key=value`.
    pub fn flag(&mut self, assignment: &str) {
        match assignment.split_once('=') {
            Some((name, value)) => {
                self.add(name.trim().to_owned(), Value::String(value.to_owned()), "--set".to_owned());
            }
            None => self.fault(&format!("--set {assignment}"), "expected section.key=value".to_owned()),
        }
    }

    fn add(&mut self, name: String, value: Value, origin: String) {
        self.found.push(Found { name, value, origin });
    }

    fn fault(&mut self, subject: &str, problem: String) {
        self.faults.push(Fault { subject: subject.to_owned(), problem });
    }

    /// The configuration.
    ///
    /// # Errors
    /// Everything that is wrong with it, at once.
    pub fn load(self) -> Result<Config, Faults> {
        let mut config = Config::default();
        let mut faults = self.faults;
        let mut subjects = HashMap::new();
        for Found { name, value, origin } in self.found {
            let subject = format!("{name} = {} ({origin})", shown(&value));
            let set = match SETTINGS.iter().find(|setting| setting.name() == name) {
                Some(setting) => (setting.set)(&mut config, &value),
                None => Err(unknown("setting", &name)),
            };
            match set {
                Ok(()) => drop(subjects.insert(name, subject)),
                Err(problem) => faults.push(Fault { subject, problem }),
            }
        }
        for (name, problem) in config.validate() {
            let subject = subjects.get(name).cloned().unwrap_or_else(|| name.to_owned());
            faults.push(Fault { subject, problem });
        }
        if faults.is_empty() { Ok(config) } else { Err(Faults(faults)) }
    }
}

/// Whether a variable was meant for us: it begins with the name of a section. Kubernetes sets
/// `DTKV_NODE_SERVICE_HOST` and the like for a service named `dtkv-node`; those are not.
fn looks_like_a_setting(variable: &str) -> bool {
    let of_a_section =
        |setting: &Setting| variable.starts_with(&format!("DTKV_{}_", setting.section.to_ascii_uppercase()));
    let of_a_service =
        ["_SERVICE_HOST", "_SERVICE_PORT", "_PORT_"].iter().any(|part| variable.contains(part))
            || variable.ends_with("_PORT");
    !of_a_service && SETTINGS.iter().any(of_a_section)
}

fn unknown(what: &str, name: &str) -> String {
    let names: Vec<String> = SETTINGS.iter().map(Setting::name).collect();
    format!("no such {what}{}", suggestion(closest(name, names.iter().map(String::as_str))))
}

fn suggestion(close: Option<String>) -> String {
    match close {
        Some(name) => format!("; did you mean {name}?"),
        None => "; `dtkv-node config --print-default` shows all of them".to_owned(),
    }
}

/// The known name nearest to `name`, if any is near.
fn closest<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Option<String> {
    let near = known.map(|candidate| (distance(name, candidate), candidate)).min();
    near.filter(|(distance, _)| *distance <= name.len() / 3).map(|(_, candidate)| candidate.to_owned())
}

/// Edit distance.
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.bytes().enumerate() {
            let replaced = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn edit_distance_counts_insertions_deletions_and_replacements() {
        for (a, b, expected) in
            [("", "abc", 3), ("abc", "abc", 0), ("format", "fromat", 2), ("kitten", "sitting", 3)]
        {
            assert_eq!(distance(a, b), expected, "{a} {b}");
        }
    }

    #[test]
    fn nothing_near_gives_no_suggestion() {
        assert_eq!(closest("zzzzzz", ["raft.park_after_ms"].into_iter()), None);
    }
}
