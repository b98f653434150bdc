//! The FORMAT file: which build can read the directory.

use super::EngineError;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

/// The data format that this build writes.
pub const FORMAT_VERSION: u32 = 1;

const FILE: &str = "FORMAT";
const PREFIX: &str = "dtkv data format ";

/// Brings a directory from one format to the next one.
type Upgrade = fn(&Path) -> io::Result<()>;

/// `UPGRADES[n]` brings format n + 1 to n + 2.
const UPGRADES: [Upgrade; FORMAT_VERSION as usize - 1] = [];

/// Checks the format, and upgrades an older one. True: the directory has none yet.
pub(super) fn check(path: &Path) -> Result<bool, EngineError> {
    check_with(path, &UPGRADES)
}

fn check_with(path: &Path, upgrades: &[Upgrade]) -> Result<bool, EngineError> {
    let known = upgrades.len() as u32 + 1;
    let Some(found) = read(path)? else {
        return Ok(true);
    };
    if found > known {
        return Err(EngineError::NewerFormat { path: path.to_owned(), found, known });
    }
    for (version, upgrade) in (1..).zip(upgrades).skip(found as usize - 1) {
        tracing::info!(path = %path.display(), from = version, to = version + 1, "upgrading the data format");
        upgrade(path).and_then(|()| write(path, version + 1)).map_err(|e| EngineError::io(path, e))?;
    }
    Ok(false)
}

fn read(path: &Path) -> Result<Option<u32>, EngineError> {
    let file = path.join(FILE);
    let text = match fs::read(&file) {
        Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(EngineError::io(&file, e)),
    };
    match text.strip_prefix(PREFIX).and_then(|v| v.trim_end().parse().ok()) {
        Some(version) if version > 0 => Ok(Some(version)),
        _ => Err(EngineError::BadFormat { file, found: text.chars().take(80).collect() }),
    }
}

/// Writes the format, whole or not at all.
pub(super) fn write(path: &Path, version: u32) -> io::Result<()> {
    let fresh = path.join("FORMAT.new");
    let mut file = File::create(&fresh)?;
    writeln!(file, "{PREFIX}{version}")?;
    file.sync_all()?;
    fs::rename(&fresh, path.join(FILE))?;
    sync_directory(path)
}

/// Makes new and renamed files of a directory durable.
pub(super) fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn directory() -> tempfile::TempDir {
        tempfile::tempdir().unwrap()
    }

    #[test]
    fn an_empty_directory_has_no_format_and_keeps_the_one_written() {
        let dir = directory();
        assert!(check(dir.path()).unwrap());
        write(dir.path(), FORMAT_VERSION).unwrap();
        assert!(!check(dir.path()).unwrap());
        assert_eq!(fs::read_to_string(dir.path().join(FILE)).unwrap(), "dtkv data format 1\n");
    }

    #[test]
    fn a_newer_format_is_refused() {
        let dir = directory();
        write(dir.path(), FORMAT_VERSION + 1).unwrap();
        let error = check(dir.path()).unwrap_err();
        assert!(matches!(error, EngineError::NewerFormat { found: 2, known: 1, .. }), "{error}");
        assert!(error.to_string().contains("run the newer build"));
    }

    #[test]
    fn an_older_format_is_upgraded_step_by_step() {
        let dir = directory();
        write(dir.path(), 1).unwrap();
        let first: Upgrade = |path| fs::write(path.join("steps"), "1");
        let second: Upgrade = |path| {
            let before = fs::read_to_string(path.join("steps"))?;
            fs::write(path.join("steps"), before + "2")
        };
        assert!(!check_with(dir.path(), &[first, second]).unwrap());
        assert_eq!(fs::read_to_string(dir.path().join("steps")).unwrap(), "12");
        assert_eq!(read(dir.path()).unwrap(), Some(3));
        assert!(!check_with(dir.path(), &[first, second]).unwrap());
        assert_eq!(fs::read_to_string(dir.path().join("steps")).unwrap(), "12");
    }

    #[test]
    fn a_failed_upgrade_stays_at_the_format_it_reached() {
        let dir = directory();
        write(dir.path(), 1).unwrap();
        let failing: Upgrade = |_| Err(io::Error::other("no space"));
        assert!(check_with(dir.path(), &[|_| Ok(()), failing]).is_err());
        assert_eq!(read(dir.path()).unwrap(), Some(2));
    }

    #[test]
    fn anything_else_in_the_file_is_refused() {
        for text in ["", "1", "dtkv data format", "dtkv data format x", "dtkv data format 0\n"] {
            let dir = directory();
            fs::write(dir.path().join(FILE), text).unwrap();
            assert!(matches!(check(dir.path()), Err(EngineError::BadFormat { .. })), "{text:?}");
        }
    }
}
