//! An item as a line of JSON, for other tools: what `dump` writes and `load` reads.
//!
//! ```text
//! {"kvd_dump":1,"created":"2026-11-25T12:00:00.000Z"}
//! {"cache":"product","key":"42","value":"rocket","version":7,"expires":"2026-11-25T12:05:00.000Z","tags":["sku:42"]}
//! ```
//!
//! Bytes stand as a string when they are UTF-8, else under the same name with `_base64`. What is not there is as nobody
//! said: no `expires` means for ever.

use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use kv_client::{Entry, Freshness};
use serde::{Deserialize, Serialize};

/// The format of a dump; a newer one is refused.
const FORMAT: u32 = 1;

/// The first line.
#[derive(Debug, Serialize, Deserialize)]
struct Header {
    kvd_dump: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    created: Option<String>,
}

/// A line as it stands.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    cache: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    key: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    key_base64: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    value: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    value_base64: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    version: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    expires: Option<String>,
    #[serde(default, skip_serializing_if = "is_zero")]
    stale_for_ms: u64,
    #[serde(default, skip_serializing_if = "is_zero")]
    load_cost_ms: u64,
    /// Made stale before its expiry.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    stale: bool,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    tags: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    tags_base64: Vec<String>,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// An item to be put.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Item {
    pub(super) cache: String,
    pub(super) key: Vec<u8>,
    pub(super) value: Vec<u8>,
    /// `None`: never.
    pub(super) expires: Option<SystemTime>,
    pub(super) stale_for: Duration,
    pub(super) load_cost: Duration,
    /// Made stale before its expiry.
    pub(super) stale: bool,
    pub(super) tags: Vec<Vec<u8>>,
}

/// The first line of a dump.
pub(super) fn header(now: SystemTime) -> String {
    let created = Some(humantime::format_rfc3339_millis(now).to_string());
    serde_json::to_string(&Header { kvd_dump: FORMAT, created }).expect("a header is plain")
}

/// Whether a first line is a header of a dump that can be read.
pub(super) fn check_header(line: &[u8]) -> Result<(), String> {
    match serde_json::from_slice::<Header>(line) {
        Ok(Header { kvd_dump, .. }) if kvd_dump <= FORMAT => Ok(()),
        Ok(Header { kvd_dump, .. }) => {
            Err(format!("dump format {kvd_dump}, this kvd knows up to {FORMAT}: load it with the newer one"))
        }
        Err(_) => {
            Err("a dump of `kvd dump` begins with {\"kvd_dump\":1}; for Berkeley DB's say --format db_dump"
                .to_owned())
        }
    }
}

/// The line of an item.
pub(super) fn to_line(cache: &str, key: &[u8], entry: &Entry) -> String {
    let ms = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let mut line = Line {
        cache: cache.to_owned(),
        version: Some(entry.version),
        expires: entry.expires().map(|at| humantime::format_rfc3339_millis(at).to_string()),
        stale_for_ms: ms(entry.stale_for),
        load_cost_ms: ms(entry.load_cost),
        stale: entry.freshness == Freshness::Stale && entry.expires_in_ms.is_none_or(|left| left > 0),
        ..Line::default()
    };
    (line.key, line.key_base64) = text_or_base64(key);
    (line.value, line.value_base64) = text_or_base64(&entry.value);
    if entry.tags.iter().all(|tag| std::str::from_utf8(tag).is_ok()) {
        line.tags = entry.tags.iter().map(|tag| String::from_utf8_lossy(tag).into_owned()).collect();
    } else {
        line.tags_base64 = entry.tags.iter().map(|tag| BASE64_STANDARD.encode(tag)).collect();
    }
    serde_json::to_string(&line).expect("a line is plain")
}

fn text_or_base64(bytes: &[u8]) -> (Option<String>, Option<String>) {
    match std::str::from_utf8(bytes) {
        Ok(text) => (Some(text.to_owned()), None),
        Err(_) => (None, Some(BASE64_STANDARD.encode(bytes))),
    }
}

/// The item of a line, or why it is none.
pub(super) fn from_line(line: &[u8]) -> Result<Item, String> {
    let line: Line = serde_json::from_slice(line).map_err(|error| error.to_string())?;
    let key = bytes_of("key", line.key, line.key_base64)?;
    let value = bytes_of("value", line.value, line.value_base64)?;
    let expires = match line.expires {
        None => None,
        Some(text) => Some(
            humantime::parse_rfc3339(&text)
                .map_err(|error| format!("expires {text:?}: {error}; write 2026-11-25T12:00:00Z"))?,
        ),
    };
    let mut tags: Vec<Vec<u8>> = line.tags.into_iter().map(String::into_bytes).collect();
    for tag in &line.tags_base64 {
        tags.push(BASE64_STANDARD.decode(tag).map_err(|error| format!("tags_base64: {error}"))?);
    }
    Ok(Item {
        cache: line.cache,
        key,
        value,
        expires,
        stale_for: Duration::from_millis(line.stale_for_ms),
        load_cost: Duration::from_millis(line.load_cost_ms),
        stale: line.stale,
        tags,
    })
}

fn bytes_of(name: &str, text: Option<String>, base64: Option<String>) -> Result<Vec<u8>, String> {
    match (text, base64) {
        (Some(text), None) => Ok(text.into_bytes()),
        (None, Some(base64)) => {
            BASE64_STANDARD.decode(base64).map_err(|error| format!("{name}_base64: {error}"))
        }
        (None, None) => Err(format!("neither {name} nor {name}_base64")),
        (Some(_), Some(_)) => Err(format!("both {name} and {name}_base64")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bad_lines_say_why() {
        for (line, why) in [
            ("{}", "cache"),
            ("{\"cache\":\"c\",\"value\":\"v\"}", "neither key"),
            ("{\"cache\":\"c\",\"key\":\"k\",\"key_base64\":\"aw==\",\"value\":\"v\"}", "both key"),
            ("{\"cache\":\"c\",\"key\":\"k\",\"value_base64\":\"!\"}", "value_base64"),
            ("{\"cache\":\"c\",\"key\":\"k\",\"value\":\"v\",\"expires\":\"soon\"}", "expires"),
            ("{\"cache\":\"c\",\"key\":\"k\",\"value\":\"v\",\"ttl\":5}", "unknown field `ttl`"),
            ("garbage", "expected"),
        ] {
            let error = from_line(line.as_bytes()).unwrap_err();
            assert!(error.contains(why), "{line}: {error}");
        }
    }

    #[test]
    fn a_newer_dump_is_refused_and_ours_is_read() {
        assert_eq!(check_header(header(SystemTime::UNIX_EPOCH).as_bytes()), Ok(()));
        assert!(check_header(b"{\"kvd_dump\":2}").unwrap_err().contains("format 2"));
        assert!(check_header(b"VERSION=3").unwrap_err().contains("--format db_dump"));
    }
}
