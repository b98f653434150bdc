//! How answers reach the terminal: a report renders itself as text for people, or as JSON.

use crate::args::Layout;
use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use serde::{Serialize, Serializer};
use std::io::{self, Write};

/// An answer that can be printed in both layouts.
pub trait Report: Serialize {
    /// For people. Lines end with a line end; empty = nothing to print.
    fn text(&self) -> String;
}

/// Prints a report to standard output.
pub fn print(report: &impl Report, layout: Layout) -> io::Result<()> {
    write(render(report, layout))
}

/// The report as it is printed.
pub fn render(report: &impl Report, layout: Layout) -> String {
    match layout {
        Layout::Table => report.text(),
        Layout::Json => match serde_json::to_string_pretty(report) {
            Ok(text) => text + "\n",
            Err(e) => format!("{{\"error\": \"{e}\"}}\n"),
        },
    }
}

/// Writes to standard output. A reader that went away (`dtkv ls | head`) is not an error.
pub fn write(text: impl AsRef<[u8]>) -> io::Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_ref()).and_then(|()| out.flush()) {
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => other,
    }
}

/// A table without borders: a header in capitals and columns, `right` names the numeric ones.
pub fn table<R>(header: &[&str], right: &[usize], rows: impl IntoIterator<Item = R>) -> String
where
    R: IntoIterator<Item = String>,
{
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(header.iter().copied());
    for row in rows {
        table.add_row(row);
    }
    for (at, column) in table.column_iter_mut().enumerate() {
        column.set_padding((0, 2));
        if right.contains(&at) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    lines_trimmed(&table.to_string())
}

/// Two columns: names and what they are.
pub fn pairs(rows: &[(&str, String)]) -> String {
    let width = rows.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    rows.iter().map(|(name, value)| format!("{name:width$}  {value}\n")).collect()
}

fn lines_trimmed(text: &str) -> String {
    text.lines().map(|line| line.trim_end().to_string() + "\n").collect()
}

/// Bytes as text if they are UTF-8 without control characters, else as `0x` and hex.
pub fn show(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) if !text.chars().any(is_unprintable) => text.to_string(),
        _ => format!("0x{}", hex(bytes)),
    }
}

/// As [`show`], on one line and cut to `width` characters.
pub fn show_short(bytes: &[u8], width: usize) -> String {
    let text = match std::str::from_utf8(bytes) {
        Ok(text) if !text.chars().any(is_unprintable) => text.replace(['\n', '\r', '\t'], " "),
        _ => format!("0x{}", hex(&bytes[..bytes.len().min(width)])),
    };
    if text.chars().count() <= width {
        return text;
    }
    text.chars().take(width.saturating_sub(1)).chain(['…']).collect()
}

fn is_unprintable(c: char) -> bool {
    c.is_control() && !matches!(c, '\n' | '\r' | '\t')
}

/// Hex digits of the bytes.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// JSON of bytes: a string if they are UTF-8, else `{"hex": ".."}`.
pub struct JsonBytes<'a>(pub &'a [u8]);

impl Serialize for JsonBytes<'_> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        match std::str::from_utf8(self.0) {
            Ok(text) => to.serialize_str(text),
            Err(_) => to.collect_map([("hex", hex(self.0))]),
        }
    }
}

/// For `#[serde(serialize_with)]` on bytes that may be absent.
pub fn json_bytes_option<S: Serializer>(bytes: &Option<bytes::Bytes>, to: S) -> Result<S::Ok, S::Error> {
    bytes.as_ref().map(|bytes| JsonBytes(bytes)).serialize(to)
}

/// `1.5 KiB`, `12 MiB`.
pub fn size(bytes: u64) -> String {
    let mut value = bytes as f64;
    for unit in ["B", "KiB", "MiB", "GiB"] {
        if value < 1024.0 {
            return if unit == "B" || value >= 100.0 {
                format!("{value:.0} {unit}")
            } else {
                format!("{value:.1} {unit}")
            };
        }
        value /= 1024.0;
    }
    format!("{value:.1} TiB")
}

/// `350 ms`, `12 s`, `3 h 05 m`, `4 d 02 h`.
pub fn age(ms: u64) -> String {
    let (s, m, h) = (ms / 1000, ms / 60_000, ms / 3_600_000);
    match ms {
        0..1_000 => format!("{ms} ms"),
        1_000..60_000 => format!("{s} s"),
        60_000..3_600_000 => format!("{m} m {:02} s", s % 60),
        3_600_000..86_400_000 => format!("{h} h {:02} m", m % 60),
        _ => format!("{} d {:02} h", h / 24, h % 24),
    }
}

/// A wall clock time in UTC, `2026-03-01 12:30:05.250`; `-` for 0.
pub fn time(ms: u64) -> String {
    if ms == 0 {
        return "-".into();
    }
    let (year, month, day) = civil((ms / 86_400_000) as i64);
    let (hour, minute, second) = (ms / 3_600_000 % 24, ms / 60_000 % 60, ms / 1000 % 60);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02}.{:03}", ms % 1000)
}

/// The proleptic Gregorian date of a day since 1970-01-01, by the era method: 400 years repeat.
fn civil(day: i64) -> (i64, i64, i64) {
    let shifted = day + 719_468;
    let (era, of_era) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let march_month = (5 * of_year + 2) / 153;
    let month = if march_month < 10 { march_month + 3 } else { march_month - 9 };
    let turned = i64::from(month <= 2);
    (year + era * 400 + turned, month, of_year - (153 * march_month + 2) / 5 + 1)
}

/// `1 replica`, `3 replicas`.
pub fn count(n: usize, noun: &str) -> String {
    count_of(n as u64, noun, &format!("{noun}s"))
}

/// As [`count`], for nouns with a plural of their own.
pub fn count_of(n: u64, one: &str, many: &str) -> String {
    format!("{n} {}", if n == 1 { one } else { many })
}

/// Node ids as `n1 n2 n3`; `-` for none.
pub fn nodes(ids: &[u64]) -> String {
    if ids.is_empty() {
        return "-".into();
    }
    ids.iter().map(|id| format!("n{id}")).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_text_when_they_can_be() {
        assert_eq!(show("grüße\n".as_bytes()), "grüße\n");
        assert_eq!(show(&[0xff, 0x00]), "0xff00");
        assert_eq!(show(b"\x1b[31m"), "0x1b5b33316d");
        assert_eq!(show_short(b"a\nb", 10), "a b");
        assert_eq!(show_short(b"abcdef", 4), "abc…");
        let json = |bytes| serde_json::to_string(&JsonBytes(bytes)).unwrap();
        assert_eq!(json(b"a"), "\"a\"");
        assert_eq!(json(&[0xff]), "{\"hex\":\"ff\"}");
    }

    #[test]
    fn times_ages_and_sizes_are_readable() {
        assert_eq!(time(0), "-");
        assert_eq!(time(1_709_210_096_007), "2024-02-29 12:34:56.007");
        assert_eq!(time(4_102_444_799_999), "2099-12-31 23:59:59.999");
        assert_eq!(
            [age(9), age(61_000), age(7_260_000), age(90_000_000)].join(", "),
            "9 ms, 1 m 01 s, 2 h 01 m, 1 d 01 h"
        );
        assert_eq!([size(12), size(1536), size(300 << 20)].join(", "), "12 B, 1.5 KiB, 300 MiB");
    }

    #[test]
    fn tables_have_no_borders_and_no_trailing_spaces() {
        let rows = [["a".to_string(), "1".into()], ["bcd".into(), "100".into()]];
        assert_eq!(table(&["KEY", "N"], &[1], rows), "KEY    N\na      1\nbcd  100\n");
    }
}
