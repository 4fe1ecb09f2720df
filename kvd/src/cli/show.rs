//! How keys, values and tables look to a person, and to a script that asked for JSON.
//!
//! Text is shown as it is. Anything a terminal could take for a command, and whatever is not UTF-8, is escaped, so that
//! a hostile key can neither hide nor repaint the screen.

use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use kv_client::{Durability, Entry, Freshness};
use serde_json::{Value, json};

/// Bytes as text: unchanged when they are plain text (line breaks and tabs included), else escaped throughout.
pub(super) fn value(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) if !text.chars().any(|c| c.is_control() && c != '\n' && c != '\t') => text.to_owned(),
        Ok(_) | Err(_) => escape(bytes),
    }
}

/// Bytes on one line: text as it is, but backslash, control characters and what is not UTF-8 escaped.
pub(super) fn escape(bytes: &[u8]) -> String {
    let mut shown = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '\\' => shown.push_str("\\\\"),
                '\n' => shown.push_str("\\n"),
                '\r' => shown.push_str("\\r"),
                '\t' => shown.push_str("\\t"),
                c if c.is_control() => {
                    c.encode_utf8(&mut [0; 4]).bytes().for_each(|b| shown.push_str(&format!("\\x{b:02x}")));
                }
                c => shown.push(c),
            }
        }
        chunk.invalid().iter().for_each(|b| shown.push_str(&format!("\\x{b:02x}")));
    }
    shown
}

/// What [`escape`] made, made undone.
pub(super) fn unescape(text: &[u8]) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((first, after)) = rest.split_first() {
        rest = after;
        if *first != b'\\' {
            bytes.push(*first);
            continue;
        }
        let (byte, taken) = match rest {
            [b'\\', ..] => (b'\\', 1),
            [b'n', ..] => (b'\n', 1),
            [b'r', ..] => (b'\r', 1),
            [b't', ..] => (b'\t', 1),
            [b'x', high, low, ..] => (hex_byte(*high, *low)?, 3),
            [..] => return Err("escapes are \\\\ \\n \\r \\t and \\xHH".to_owned()),
        };
        bytes.push(byte);
        rest = &rest[taken..];
    }
    Ok(bytes)
}

fn hex_byte(high: u8, low: u8) -> Result<u8, String> {
    let digit = |d: u8| {
        char::from(d).to_digit(16).ok_or_else(|| format!("\\x{}{} is not \\xHH", high as char, low as char))
    };
    Ok(u8::try_from(digit(high)? * 16 + digit(low)?).expect("two hex digits"))
}

/// Bytes in JSON: under `name` as a string when they are UTF-8, else under `name_hex`.
pub(super) fn put_bytes(object: &mut serde_json::Map<String, Value>, name: &str, bytes: &[u8]) {
    match std::str::from_utf8(bytes) {
        Ok(text) => object.insert(name.to_owned(), json!(text)),
        Err(_) => {
            let hex: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
            object.insert(format!("{name}_hex"), json!(hex))
        }
    };
}

/// What is known about an item, in JSON, without its value.
pub(super) fn entry_json(key: &[u8], entry: &Entry) -> serde_json::Map<String, Value> {
    let mut object = serde_json::Map::new();
    put_bytes(&mut object, "key", key);
    let tags: Vec<String> = entry.tags.iter().map(|tag| escape(tag)).collect();
    for (name, value) in [
        ("version", json!(entry.version)),
        ("state", json!(freshness(entry.freshness))),
        ("value_bytes", json!(entry.value_bytes)),
        ("age_ms", json!(u64::try_from(entry.age.as_millis()).unwrap_or(u64::MAX))),
        ("expires_in_ms", json!(entry.expires_in_ms)),
        ("stale_for_ms", json!(u64::try_from(entry.stale_for.as_millis()).unwrap_or(u64::MAX))),
        ("load_cost_ms", json!(u64::try_from(entry.load_cost.as_millis()).unwrap_or(u64::MAX))),
        ("tags", json!(tags)),
    ] {
        object.insert(name.to_owned(), value);
    }
    object
}

/// In a word.
pub(super) fn freshness(freshness: Freshness) -> &'static str {
    match freshness {
        Freshness::Fresh => "fresh",
        Freshness::Stale => "stale",
        Freshness::Negative => "known not to be there",
    }
}

/// In a word, as the configuration has it.
pub(super) fn durability(durability: Durability) -> &'static str {
    match durability {
        Durability::Memory => "memory",
        Durability::Behind => "behind",
        Durability::Durable => "durable",
    }
}

/// Remaining life, as a person reads it.
pub(super) fn expires_in(ms: Option<i64>) -> String {
    use std::time::Duration;
    match ms {
        None => "never".to_owned(),
        Some(ms) if ms < 0 => {
            format!("{} ago", kvd::units::show_duration(Duration::from_millis(ms.unsigned_abs())))
        }
        Some(ms) => kvd::units::show_duration(Duration::from_millis(ms.unsigned_abs())),
    }
}

/// A table without lines, for terminals and for `awk`.
pub(super) struct Rows(Table);

impl Rows {
    pub(super) fn new<const N: usize>(header: [&str; N]) -> Rows {
        let mut table = Table::new();
        table
            .load_style(presets::NOTHING)
            .set_content_arrangement(ContentArrangement::Disabled)
            .set_header(header);
        Rows(table)
    }

    pub(super) fn add<const N: usize>(&mut self, row: [String; N]) {
        self.0.add_row(row);
    }
}

impl std::fmt::Display for Rows {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let table = self.0.to_string();
        // Every cell is padded on both sides; at the edges that is only in the way.
        let lines: Vec<&str> =
            table.lines().map(|line| line.strip_prefix(' ').unwrap_or(line).trim_end()).collect();
        f.write_str(&lines.join("\n"))
    }
}

/// A table whose first column is text and whose others are numbers, which stand under each other.
pub(super) struct Numbers(Rows);

impl Numbers {
    pub(super) fn new<const N: usize>(header: [&str; N]) -> Numbers {
        let mut rows = Rows::new(header);
        rows.0.column_iter_mut().skip(1).for_each(|column| column.set_cell_alignment(CellAlignment::Right));
        Numbers(rows)
    }

    pub(super) fn add<const N: usize>(&mut self, row: [String; N]) {
        self.0.add(row);
    }
}

impl std::fmt::Display for Numbers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// A moment in UTC, to the millisecond.
pub(super) fn time(at: std::time::SystemTime) -> String {
    humantime::format_rfc3339_millis(at).to_string()
}

/// The beginning of a key on one line, at most so many characters; … stands for the rest.
pub(super) fn key_within(key: &[u8], chars_max: usize) -> String {
    let shown = escape(key);
    if shown.chars().count() <= chars_max {
        return shown;
    }
    shown.chars().take(chars_max.saturating_sub(1)).chain(['…']).collect()
}

/// A time without what is below a second.
pub(super) fn whole_seconds(time: std::time::Duration) -> String {
    match time.as_secs() {
        0 => "0s".to_owned(),
        seconds => kvd::units::show_duration(std::time::Duration::from_secs(seconds)),
    }
}

/// A number in at most six characters: whole below 100,000, else in thousands, millions …
pub(super) fn count(value: f64) -> String {
    if value < 0.0 {
        return format!("-{}", count(-value));
    }
    if value < 100_000.0 {
        return if value.fract() == 0.0 || value >= 100.0 {
            format!("{value:.0}")
        } else {
            format!("{value:.1}")
        };
    }
    for (unit, name) in [(1e3, "k"), (1e6, "M"), (1e9, "G"), (1e12, "T")] {
        let scaled = value / unit;
        if scaled < 10.0 {
            return format!("{scaled:.2}{name}");
        }
        if scaled < 100.0 {
            return format!("{scaled:.1}{name}");
        }
        if scaled < 1_000.0 {
            return format!("{scaled:.0}{name}");
        }
    }
    format!("{value:.1e}")
}

/// A latency in the unit that fits.
pub(super) fn seconds(seconds: f64) -> String {
    match seconds {
        s if s < 1e-3 => format!("{:.1} µs", s * 1e6),
        s if s < 1.0 => format!("{:.2} ms", s * 1e3),
        s => format!("{s:.2} s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_latencies_are_shown_in_the_unit_that_fits() {
        assert_eq!(seconds(0.000_001_25), "1.2 µs");
        assert_eq!(seconds(0.0025), "2.50 ms");
        assert_eq!(seconds(3.0), "3.00 s");
        for (value, shown) in [
            (0.0, "0"),
            (0.5, "0.5"),
            (123.4, "123"),
            (99_999.0, "99999"),
            (123_456.0, "123k"),
            (1_234_567.0, "1.23M"),
            (12_345_678.0, "12.3M"),
            (5e9, "5.00G"),
            (2e15, "2.0e15"),
            (-3.0, "-3"),
        ] {
            assert_eq!(count(value), shown);
        }
    }

    #[test]
    fn text_is_shown_as_it_is_and_the_rest_is_escaped() {
        assert_eq!(value("grüße\n\tline 2".as_bytes()), "grüße\n\tline 2");
        assert_eq!(value(b"a\x1b[2J"), "a\\x1b[2J");
        assert_eq!(value(b"\xff\x00ok"), "\\xff\\x00ok");
        assert_eq!(escape(b"one\ntwo\\"), "one\\ntwo\\\\");
    }

    #[test]
    fn every_byte_string_survives_escaping() {
        let seed =
            std::env::var("KVD_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or_else(|| fastrand::u64(..));
        println!("KVD_SEED={seed}");
        let mut random = fastrand::Rng::with_seed(seed);
        for _ in 0..2_000 {
            let bytes: Vec<u8> = (0..random.usize(..40)).map(|_| random.u8(..)).collect();
            let shown = escape(&bytes);
            assert!(!shown.chars().any(char::is_control), "{shown:?}");
            assert_eq!(unescape(shown.as_bytes()).unwrap(), bytes);
        }
        for bad in [&b"\\"[..], b"\\q", b"\\x1", b"\\xzz"] {
            assert!(unescape(bad).is_err());
        }
    }
}
