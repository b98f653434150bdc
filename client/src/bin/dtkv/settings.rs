//! What holds for one command: flags over environment over file over defaults.

use crate::args::{Freshness, Global, Layout};
use crate::fault::Fault;
use serde::Deserialize;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The configuration file. Everything in it is optional.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct File {
    #[serde(default)]
    endpoints: Vec<String>,
    group: Option<u32>,
    #[serde(default, deserialize_with = "crate::args::deserialize_duration")]
    timeout: Option<Duration>,
    consistency: Option<Freshness>,
    output: Option<Layout>,
}

impl File {
    /// Reads the file. A missing one is fine unless the user named it.
    pub fn load(named: Option<&Path>, home: Option<&Path>) -> Result<File, Fault> {
        let default = home.map(|home| home.join(".config/dtkv/config.toml"));
        let Some(path) = named.map(Path::to_path_buf).or(default) else { return Ok(File::default()) };
        match std::fs::read_to_string(&path) {
            Ok(text) => File::parse(&text, &path),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound && named.is_none() => Ok(File::default()),
            Err(e) => Err(Fault::usage(format!(
                "configuration file {} can't be read: {e}; name another one with --config",
                path.display()
            ))),
        }
    }

    fn parse(text: &str, path: &Path) -> Result<File, Fault> {
        toml::from_str(text).map_err(|e| {
            let what = e.to_string();
            Fault::usage(format!("configuration file {} is not valid:\n{}", path.display(), what.trim_end()))
        })
    }
}

/// What holds for one command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    pub endpoints: Vec<String>,
    pub group: u32,
    pub timeout: Duration,
    pub freshness: Freshness,
    pub layout: Layout,
    /// Identity of the client; None = a random one.
    pub owner: Option<[u8; 16]>,
}

impl Settings {
    /// Flags and environment (clap has merged these two already) over the file over defaults.
    pub fn resolve(global: &Global, file: File) -> Settings {
        let defaults = Settings {
            endpoints: if file.endpoints.is_empty() { vec!["127.0.0.1:9332".into()] } else { file.endpoints },
            group: file.group.unwrap_or(1),
            timeout: file.timeout.unwrap_or(Duration::from_secs(5)),
            freshness: file.consistency.unwrap_or_default(),
            layout: file.output.unwrap_or_default(),
            owner: None,
        };
        defaults.with(global)
    }

    /// These settings, with what the flags say on top.
    pub fn with(&self, global: &Global) -> Settings {
        let endpoints = if global.endpoints.is_empty() { &self.endpoints } else { &global.endpoints };
        Settings {
            endpoints: endpoints.clone(),
            group: global.group.unwrap_or(self.group),
            timeout: global.timeout.unwrap_or(self.timeout),
            freshness: global.consistency.unwrap_or(self.freshness),
            layout: global.output.unwrap_or(self.layout),
            owner: global.owner.map(|id| id.0).or(self.owner),
        }
    }
}

/// The user's home directory.
pub fn home() -> Option<PathBuf> {
    std::env::home_dir().filter(|home| !home.as_os_str().is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str =
        "endpoints = ['a:1', 'b:1']\ngroup = 4\ntimeout = '2s'\nconsistency = 'stale'\noutput = 'json'";

    fn file() -> File {
        File::parse(TEXT, Path::new("config.toml")).unwrap()
    }

    #[test]
    fn file_wins_over_defaults() {
        let settings = Settings::resolve(&Global::default(), file());
        assert_eq!(settings.endpoints, ["a:1", "b:1"]);
        assert_eq!((settings.group, settings.timeout), (4, Duration::from_secs(2)));
        assert_eq!((settings.freshness, settings.layout), (Freshness::Stale, Layout::Json));
    }

    #[test]
    fn flags_win_over_file() {
        let global = Global { endpoints: vec!["c:1".into()], group: Some(9), ..Global::default() };
        let settings = Settings::resolve(&global, file());
        assert_eq!((settings.endpoints, settings.group), (vec!["c:1".to_string()], 9));
        assert_eq!(settings.timeout, Duration::from_secs(2));
    }

    #[test]
    fn unknown_word_in_the_file_is_named() {
        let fault = File::parse("grup = 4", Path::new("/x/config.toml")).unwrap_err();
        assert!(fault.message.contains("/x/config.toml") && fault.message.contains("grup"), "{fault}");
        assert_eq!(fault.exit, crate::fault::Exit::Usage);
    }

    #[test]
    fn missing_file_is_an_error_only_when_named() {
        let nowhere = Path::new("/nowhere/config.toml");
        assert!(File::load(Some(nowhere), None).is_err());
        assert!(File::load(None, Some(Path::new("/nowhere"))).is_ok());
    }
}
