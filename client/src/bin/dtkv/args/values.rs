//! Argument values with a syntax of their own.

use bytes::Bytes;
use clap::ValueEnum;
use dtkv_client::LockToken;
use dtkv_client::v1::Consistency;
use serde::{Deserialize, Deserializer};
use std::convert::Infallible;
use std::str::FromStr;
use std::time::Duration;

/// How answers are printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Layout {
    #[default]
    Table,
    Json,
}

/// How fresh reads must be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Freshness {
    /// Every write acknowledged before the read began is seen
    #[default]
    Linearizable,
    /// The same while clocks run at nearly the same rate; saves a round
    Lease,
    /// Whatever a replica has applied
    Stale,
}

impl From<Freshness> for Consistency {
    fn from(freshness: Freshness) -> Consistency {
        match freshness {
            Freshness::Linearizable => Consistency::Linearizable,
            Freshness::Lease => Consistency::Lease,
            Freshness::Stale => Consistency::Stale,
        }
    }
}

impl Freshness {
    /// The word that names it on the command line.
    pub fn word(self) -> &'static str {
        match self {
            Freshness::Linearizable => "linearizable",
            Freshness::Lease => "lease",
            Freshness::Stale => "stale",
        }
    }
}

/// A key that may also be the root, written as `.`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rooted(pub String);

impl FromStr for Rooted {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Rooted, Infallible> {
        Ok(Rooted(if text == "." { String::new() } else { text.to_string() }))
    }
}

/// Reads `500ms`, `5s`, `2m` or `1h`.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let seconds = match unit {
        "ms" => 0.001,
        "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        _ => return Err("write a number and a unit: 500ms, 5s, 2m, 1h".into()),
    };
    let number: f64 = number.parse().map_err(|_| format!("`{number}` is not a number"))?;
    Duration::try_from_secs_f64(number * seconds).map_err(|e| e.to_string())
}

/// A client's identity: 32 hex digits, dashes in between are fine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OwnerId(pub [u8; 16]);

impl FromStr for OwnerId {
    type Err = String;

    fn from_str(text: &str) -> Result<OwnerId, String> {
        let bytes = parse_hex(&text.replace('-', "")).ok();
        let id = bytes.and_then(|bytes| bytes.as_ref().try_into().ok());
        id.map(OwnerId).ok_or_else(|| "an owner is named by 32 hex digits".into())
    }
}

/// The grant of a lock that guards writes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuardBy(pub LockToken);

impl FromStr for GuardBy {
    type Err = String;

    fn from_str(text: &str) -> Result<GuardBy, String> {
        let token = text.rsplit_once(':').and_then(|(lock, token)| Some((lock, token.parse().ok()?)));
        let (lock, token) = token.ok_or("write the key of the lock, a colon and the fencing token")?;
        Ok(GuardBy(LockToken::new(lock, token)))
    }
}

/// For the configuration file: a duration in quotes.
pub fn deserialize_duration<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Duration>, D::Error> {
    let text = String::deserialize(from)?;
    parse_duration(&text).map(Some).map_err(serde::de::Error::custom)
}

/// Reads hex digits.
pub fn parse_hex(text: &str) -> Result<Bytes, String> {
    let bad = || "expected an even number of hex digits, as a listing with --limit printed them".to_string();
    if !text.len().is_multiple_of(2) || !text.is_ascii() {
        return Err(bad());
    }
    let byte = |at: usize| u8::from_str_radix(&text[at..at + 2], 16).map_err(|_| bad());
    (0..text.len()).step_by(2).map(byte).collect::<Result<Vec<u8>, String>>().map(Bytes::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_need_a_number_and_a_unit() {
        assert_eq!(parse_duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(parse_duration("1.5s"), Ok(Duration::from_millis(1500)));
        assert_eq!(parse_duration("2m"), Ok(Duration::from_secs(120)));
        assert_eq!(parse_duration("1h"), Ok(Duration::from_secs(3600)));
        for bad in ["", "5", "s", "5 s", "5d", "-1s", "1.2.3s"] {
            assert!(parse_duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn hex_tokens_are_read_or_refused() {
        assert_eq!(parse_hex("00ff61"), Ok(Bytes::from_static(&[0, 255, b'a'])));
        for bad in ["0", "zz", "é1"] {
            assert!(parse_hex(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn owners_and_guards_are_read_or_refused() {
        let id = "000102030405060708090a0b0c0d0e0f";
        let OwnerId(bytes) = id.parse().unwrap();
        assert_eq!((bytes[1], bytes[15]), (1, 15));
        assert_eq!("00010203-0405-0607-0809-0a0b0c0d0e0f".parse(), Ok(OwnerId(bytes)));
        assert!("00".parse::<OwnerId>().is_err() && "zz".repeat(16).parse::<OwnerId>().is_err());
        assert_eq!("a:b:7".parse(), Ok(GuardBy(LockToken::new("a:b", 7))));
        assert!("a".parse::<GuardBy>().is_err() && "a:x".parse::<GuardBy>().is_err());
    }

    #[test]
    fn dot_is_the_root() {
        assert_eq!(".".parse(), Ok(Rooted(String::new())));
        assert_eq!("a.b".parse(), Ok(Rooted("a.b".into())));
    }
}
