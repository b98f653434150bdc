//! The types that a setting can have, and how each is read and shown.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;
use toml::Value;

/// A type of setting. Values of the environment and of flags arrive as strings.
pub(super) trait SettingValue: Sized {
    /// Reads it.
    fn read(value: &Value) -> Result<Self, String>;
    /// As it stands in a file; `None` when it is not given.
    fn show(&self) -> Option<String>;
}

/// When a write counts as stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// On disk.
    Fsync,
    /// Handed to the operating system.
    Os,
}

impl Durability {
    /// As it stands in a file.
    pub fn name(self) -> &'static str {
        match self {
            Durability::Fsync => "fsync",
            Durability::Os => "os",
        }
    }
}

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// For collectors: one object a line.
    Json,
}

/// A number of bytes, written as a number or as "64MiB".
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteSize(pub usize);

impl ByteSize {
    /// This many bytes.
    pub const fn of(bytes: usize) -> ByteSize {
        ByteSize(bytes)
    }

    /// This many MiB.
    pub const fn mib(mib: usize) -> ByteSize {
        ByteSize(mib << 20)
    }
}

const UNITS: [(&str, usize); 4] = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("B", 1)];

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fits = |unit: &&(&str, usize)| self.0 >= unit.1 && self.0.is_multiple_of(unit.1);
        let (name, size) = UNITS.iter().find(fits).unwrap_or(&UNITS[3]);
        write!(f, "{}{name}", self.0 / size)
    }
}

impl FromStr for ByteSize {
    type Err = String;
    fn from_str(text: &str) -> Result<ByteSize, String> {
        let found = UNITS.iter().find_map(|(name, size)| Some((text.strip_suffix(name)?, *size)));
        let (digits, size) = found.unwrap_or((text, 1));
        let number = digits.trim().parse::<usize>().ok().and_then(|n| n.checked_mul(size));
        number.map(ByteSize).ok_or_else(|| "expected bytes, like 67108864 or \"64MiB\"".to_owned())
    }
}

fn whole_number<T: TryFrom<i64> + FromStr>(value: &Value) -> Result<T, String> {
    let number = match value {
        Value::Integer(number) => T::try_from(*number).ok(),
        Value::String(text) => text.replace('_', "").parse().ok(),
        _ => None,
    };
    number.ok_or_else(|| "expected a whole number, 0 or more".to_owned())
}

fn text(value: &Value) -> Result<&str, String> {
    value.as_str().ok_or_else(|| "expected a text in quotes".to_owned())
}

fn choice<T: Copy>(value: &Value, choices: &[(&str, T)]) -> Result<T, String> {
    let name = text(value)?;
    let found = choices.iter().find(|(choice, _)| *choice == name);
    let names: Vec<_> = choices.iter().map(|(choice, _)| format!("{choice:?}")).collect();
    found.map(|(_, value)| *value).ok_or_else(|| format!("expected {}", names.join(" or ")))
}

fn quoted(text: impl fmt::Display) -> Option<String> {
    Some(shown(&Value::String(text.to_string())))
}

/// A value as it stands in a file: texts, numbers and lists look the same in TOML and JSON.
pub(super) fn shown(value: &Value) -> String {
    serde_json::to_string(value).unwrap_or_default()
}

impl SettingValue for u64 {
    fn read(value: &Value) -> Result<u64, String> {
        whole_number(value)
    }
    fn show(&self) -> Option<String> {
        Some(self.to_string())
    }
}

impl SettingValue for u32 {
    fn read(value: &Value) -> Result<u32, String> {
        whole_number(value)
    }
    fn show(&self) -> Option<String> {
        Some(self.to_string())
    }
}

impl SettingValue for bool {
    fn read(value: &Value) -> Result<bool, String> {
        match value {
            Value::Boolean(flag) => Ok(*flag),
            Value::String(text) => text.parse().map_err(|_| "expected true or false".to_owned()),
            _ => Err("expected true or false".to_owned()),
        }
    }
    fn show(&self) -> Option<String> {
        Some(self.to_string())
    }
}

impl SettingValue for String {
    fn read(value: &Value) -> Result<String, String> {
        text(value).map(str::to_owned)
    }
    fn show(&self) -> Option<String> {
        quoted(self)
    }
}

impl SettingValue for PathBuf {
    fn read(value: &Value) -> Result<PathBuf, String> {
        text(value).map(PathBuf::from)
    }
    fn show(&self) -> Option<String> {
        quoted(self.display())
    }
}

impl SettingValue for SocketAddr {
    fn read(value: &Value) -> Result<SocketAddr, String> {
        text(value)?
            .parse()
            .map_err(|_| "expected IP:PORT, like \"127.0.0.1:9332\" or \"[::1]:9332\"".to_owned())
    }
    fn show(&self) -> Option<String> {
        quoted(self)
    }
}

impl SettingValue for ByteSize {
    fn read(value: &Value) -> Result<ByteSize, String> {
        match value {
            Value::String(text) => text.parse(),
            _ => whole_number::<u64>(value).map(|bytes| ByteSize(bytes as usize)),
        }
    }
    fn show(&self) -> Option<String> {
        quoted(self)
    }
}

impl SettingValue for Durability {
    fn read(value: &Value) -> Result<Durability, String> {
        choice(value, &[("fsync", Durability::Fsync), ("os", Durability::Os)])
    }
    fn show(&self) -> Option<String> {
        quoted(self.name())
    }
}

impl SettingValue for LogFormat {
    fn read(value: &Value) -> Result<LogFormat, String> {
        choice(value, &[("text", LogFormat::Text), ("json", LogFormat::Json)])
    }
    fn show(&self) -> Option<String> {
        quoted(if *self == LogFormat::Text { "text" } else { "json" })
    }
}

impl<T: SettingValue> SettingValue for Option<T> {
    fn read(value: &Value) -> Result<Option<T>, String> {
        if value.as_str() == Some("") { Ok(None) } else { T::read(value).map(Some) }
    }
    fn show(&self) -> Option<String> {
        self.as_ref().and_then(T::show)
    }
}

/// A list in a file, or texts separated by spaces.
impl SettingValue for Vec<String> {
    fn read(value: &Value) -> Result<Vec<String>, String> {
        match value {
            Value::Array(items) => items.iter().map(String::read).collect(),
            Value::String(text) => Ok(text.split_whitespace().map(str::to_owned).collect()),
            _ => Err("expected a list of texts".to_owned()),
        }
    }
    fn show(&self) -> Option<String> {
        let items: Vec<_> = self.iter().filter_map(SettingValue::show).collect();
        Some(format!("[{}]", items.join(", ")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn byte_sizes_are_read_and_shown_with_their_unit() {
        for (text, bytes) in
            [("64MiB", 64 << 20), ("1GiB", 1 << 30), ("1025", 1025), ("3 KiB", 3072), ("0", 0)]
        {
            let size: ByteSize = text.parse().expect("a size");
            assert_eq!(size, ByteSize(bytes));
            assert_eq!(size.to_string().parse(), Ok(size));
        }
        assert_eq!(ByteSize(1025).to_string(), "1025B");
        for bad in ["", "-1", "64MB", "MiB", "99999999999GiB"] {
            assert!(bad.parse::<ByteSize>().is_err(), "{bad}");
        }
    }

    #[test]
    fn values_of_the_wrong_type_say_what_is_expected() {
        let integer = Value::Integer(-1);
        assert_eq!(u64::read(&integer), Err("expected a whole number, 0 or more".to_owned()));
        assert_eq!(bool::read(&integer), Err("expected true or false".to_owned()));
        assert!(
            Durability::read(&Value::String("never".to_owned()))
                .is_err_and(|e| e.contains("\"fsync\" or \"os\""))
        );
        assert!(
            SocketAddr::read(&Value::String("localhost".to_owned())).is_err_and(|e| e.contains("IP:PORT"))
        );
    }
}
