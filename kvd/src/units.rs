//! Sizes and durations as people write them, for the configuration and the command line.
//!
//! Must never guess: what is not plainly a number with a known unit is an error that shows what would be right.

use std::time::Duration;

/// Reads a size: `4096`, `256MiB`, `1g`, `1.5GiB`, `100 MB`.
///
/// `KiB`, `MiB` … and the bare letters `k`, `m`, `g`, `t` count by 1,024, as systemd, memcached and every `-m` flag of
/// the field do; `kB`, `MB` … count by 1,000, as disks are sold.
///
/// # Errors
/// A sentence that shows what a size looks like.
///
/// ```
/// assert_eq!(kvd::units::parse_bytes("256MiB"), Ok(256 << 20));
/// assert!(kvd::units::parse_bytes("lots").is_err());
/// ```
pub fn parse_bytes(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let number_end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(number_end);
    let unit = unit.trim();
    let Some(factor) = unit_bytes(unit) else {
        return Err(format!("unknown unit {unit:?}: write a size as 4096, 512KiB, 256MiB or 1g"));
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
    let bad = || format!("{number:?} is not a number: write a size as 4096, 512KiB, 256MiB or 1g");
    let whole: u64 = whole.parse().map_err(|_| bad())?;
    if fraction.len() > 6 || fraction.is_empty() {
        return Err(bad());
    }
    let fraction_scale = 10_u64.pow(u32::try_from(fraction.len()).expect("at most six digits"));
    let fraction: u64 = fraction.parse().map_err(|_| bad())?;
    let bytes = u128::from(whole) * u128::from(factor)
        + u128::from(fraction) * u128::from(factor) / u128::from(fraction_scale);
    u64::try_from(bytes).map_err(|_| format!("{text} is more bytes than a 64-bit number holds"))
}

fn unit_bytes(unit: &str) -> Option<u64> {
    Some(match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kib" => 1 << 10,
        "m" | "mib" => 1 << 20,
        "g" | "gib" => 1 << 30,
        "t" | "tib" => 1 << 40,
        "kb" => 1_000,
        "mb" => 1_000_000,
        "gb" => 1_000_000_000,
        "tb" => 1_000_000_000_000,
        _ => return None,
    })
}

/// Shows a size: exact where a unit divides it (`256 MiB`), else with one decimal (`1.3 GiB`).
#[must_use]
pub fn show_bytes(bytes: u64) -> String {
    const UNITS: [(&str, u32); 4] = [("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)];
    for (name, shift) in UNITS {
        let unit = 1_u64 << shift;
        if bytes >= unit {
            let tenths = (bytes % unit) * 10 / unit;
            let exact = bytes.is_multiple_of(unit);
            return if exact {
                format!("{} {name}", bytes >> shift)
            } else {
                format!("{}.{tenths} {name}", bytes >> shift)
            };
        }
    }
    format!("{bytes} bytes")
}

/// Reads a duration: `250ms`, `90s`, `5m`, `1h30m`, `2d`; `0` needs no unit.
///
/// # Errors
/// A sentence that shows what a duration looks like.
///
/// ```
/// use std::time::Duration;
/// assert_eq!(kvd::units::parse_duration("1h30m"), Ok(Duration::from_secs(5_400)));
/// assert!(kvd::units::parse_duration("90").unwrap_err().contains("unit"));
/// ```
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let text = text.trim();
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) {
        return Err(format!("{text:?} has no unit: write {text}s, {text}m or {text}ms"));
    }
    humantime::parse_duration(text)
        .map_err(|e| format!("{text:?}: {e}; write a duration as 250ms, 90s, 5m or 1h30m"))
}

/// Shows a duration as [`parse_duration`] reads it, in at most its two largest units.
#[must_use]
pub fn show_duration(duration: Duration) -> String {
    let ms = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let (large, small) = match ms {
        0..1_000 => return format!("{ms}ms"),
        1_000..60_000 => ((1_000, "s"), (1, "ms")),
        60_000..3_600_000 => ((60_000, "m"), (1_000, "s")),
        3_600_000..86_400_000 => ((3_600_000, "h"), (60_000, "m")),
        86_400_000.. => ((86_400_000, "d"), (3_600_000, "h")),
    };
    let (count, rest) = (ms / large.0, ms % large.0 / small.0);
    if rest == 0 { format!("{count}{}", large.1) } else { format!("{count}{}{rest}{}", large.1, small.1) }
}

/// The longest beginning of `text` that has at most `bytes_max` bytes and ends at a character.
pub(crate) fn cut_text(text: &str, bytes_max: usize) -> &str {
    let end = (0..=bytes_max.min(text.len())).rev().find(|at| text.is_char_boundary(*at));
    &text[..end.unwrap_or(0)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_read_as_people_write_them() {
        for (text, bytes) in [
            ("0", 0),
            ("4096", 4_096),
            ("1k", 1_024),
            ("256MiB", 256 << 20),
            ("256 MiB", 256 << 20),
            ("1g", 1 << 30),
            ("1.5GiB", 3 << 29),
            ("100MB", 100_000_000),
            ("2T", 2 << 40),
        ] {
            assert_eq!(parse_bytes(text), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn sizes_that_are_none_are_refused() {
        for text in
            ["", "lots", "MiB", "-1", "1..5g", "1.g", "3 apples", "99999999999999999999", "99999999999t"]
        {
            assert!(parse_bytes(text).is_err(), "{text}");
        }
    }

    #[test]
    fn sizes_show_in_their_largest_unit() {
        assert_eq!(show_bytes(12), "12 bytes");
        assert_eq!(show_bytes(256 << 20), "256 MiB");
        assert_eq!(show_bytes((1 << 30) + (1 << 28)), "1.2 GiB");
    }

    #[test]
    fn durations_need_a_unit_and_come_back_as_shown() {
        assert_eq!(parse_duration("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(parse_duration("0"), Ok(Duration::ZERO));
        assert!(parse_duration("90").unwrap_err().contains("90s"));
        assert!(parse_duration("soon").is_err());
        for text in ["250ms", "90s", "1m30s", "5m", "1h30m", "2d", "2d5h", "1s500ms"] {
            let shown = show_duration(parse_duration(text).unwrap());
            assert_eq!(parse_duration(&shown), parse_duration(text), "{text} {shown}");
        }
    }
}
