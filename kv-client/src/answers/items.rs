//! Items, and what became of requests for them.

use std::time::{Duration, SystemTime};

use kv_proto::segment::{self, Meta};
use kv_proto::wire::{self, Effect, What};
use kv_proto::{BootMs, Version};

use crate::observe::Source;
use crate::shared::Parts;

/// Whether an item may be served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Freshness {
    /// It is in its life.
    Fresh,
    /// It is past its life, or was made stale, and is kept.
    Stale,
    /// It is in its life, and says that there is nothing to be had. Only typed caches know such.
    Negative,
}

impl From<wire::Freshness> for Freshness {
    fn from(freshness: wire::Freshness) -> Freshness {
        match freshness {
            wire::Freshness::Fresh => Freshness::Fresh,
            wire::Freshness::Stale => Freshness::Stale,
        }
    }
}

/// An item with all that is known about it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Entry {
    /// The value; empty in the answer to `describe` and in scans without values.
    pub value: Vec<u8>,
    /// Length of the value, also where it was not fetched.
    pub value_bytes: u32,
    /// The sequence that wrote it.
    pub version: Version,
    /// Fresh or stale, at the moment of the answer.
    pub freshness: Freshness,
    /// How long ago it was put.
    pub age: Duration,
    /// Milliseconds until it expires, negative when that is past; `None`: never.
    pub expires_in_ms: Option<i64>,
    /// How long after its expiry it may be served as stale.
    pub stale_for: Duration,
    /// What the value cost to make.
    pub load_cost: Duration,
    /// Its tags.
    pub tags: Vec<Vec<u8>>,
    /// Whether shared memory or the daemon answered.
    pub source: Source,
    /// When that was.
    pub seen: SystemTime,
}

impl Entry {
    /// When it was put.
    #[must_use]
    pub fn created(&self) -> SystemTime {
        self.seen - self.age
    }

    /// When it expires; `None`: never.
    #[must_use]
    pub fn expires(&self) -> Option<SystemTime> {
        let ms = self.expires_in_ms?;
        let far = Duration::from_millis(ms.unsigned_abs());
        if ms < 0 { self.seen.checked_sub(far) } else { self.seen.checked_add(far) }
    }

    /// Until when it may be served as stale; `None`: it never expires.
    #[must_use]
    pub fn stale_until(&self) -> Option<SystemTime> {
        self.expires()?.checked_add(self.stale_for)
    }

    pub(crate) fn is_stale(&self) -> bool {
        self.freshness == Freshness::Stale
    }

    /// What is left of its life; `None`: all there is.
    pub(crate) fn left(&self) -> Option<Duration> {
        self.expires_in_ms.map(|ms| Duration::from_millis(u64::try_from(ms).unwrap_or(0)))
    }

    /// How long it still lives, as of the answer.
    ///
    /// ```
    /// # let server = kvd::testing::server();
    /// # let client = kv_client::blocking::Client::builder().socket(server.socket()).build()?;
    /// use kv_client::Life;
    /// let cache = client.cache("product");
    /// cache.put("42", "rocket", std::time::Duration::from_secs(60))?;
    /// let entry = cache.get_entry("42")?.expect("just put");
    /// assert!(matches!(entry.life(), Life::Left(left) if left.as_secs() >= 59));
    /// # Ok::<(), kv_client::Error>(())
    /// ```
    #[must_use]
    pub fn life(&self) -> Life {
        if self.freshness == Freshness::Stale {
            return Life::Stale;
        }
        self.expires_in_ms
            .map_or(Life::Forever, |ms| Life::Left(Duration::from_millis(u64::try_from(ms).unwrap_or(0))))
    }

    pub(crate) fn from_wire(item: &wire::Item<'_>) -> Option<Entry> {
        let entry = item.entry.as_ref()?;
        Some(Entry {
            value: item.value.to_vec(),
            value_bytes: entry.value_bytes,
            version: item.version,
            freshness: entry.freshness.into(),
            age: Duration::from_millis(entry.age_ms),
            expires_in_ms: entry.expires_in_ms,
            stale_for: Duration::from_millis(entry.stale_for_ms),
            load_cost: Duration::from_millis(u64::from(entry.load_cost_ms)),
            tags: entry.tags.iter().map(|tag| tag.0.to_vec()).collect(),
            source: Source::Socket,
            seen: moment(),
        })
    }
}

impl Entry {
    /// An item read from shared memory at `now`.
    pub(crate) fn from_shared(meta: &Meta, buffer: &[u8], now: BootMs, parts: Parts) -> Option<Entry> {
        let freshness = match meta.freshness {
            segment::Freshness::Fresh => Freshness::Fresh,
            segment::Freshness::Stale => Freshness::Stale,
            segment::Freshness::Gone => return None,
        };
        let value = meta.value(buffer);
        Some(Entry {
            value: if parts == Parts::All { value.to_vec() } else { Vec::new() },
            value_bytes: u32::try_from(value.len()).unwrap_or(u32::MAX),
            version: meta.version,
            freshness,
            age: Duration::from_millis(u64::try_from(now.saturating_sub(meta.created)).unwrap_or(0)),
            expires_in_ms: meta.expires.map(|expires| expires.saturating_sub(now)),
            stale_for: Duration::from_millis(meta.stale_for_ms),
            load_cost: Duration::from_millis(u64::from(meta.load_cost_ms)),
            tags: meta.tags(buffer).map(<[u8]>::to_vec).collect(),
            source: Source::Shared,
            seen: moment(),
        })
    }
}

/// When an answer came, for those who want a date of what it says is so and so long from now. Nothing is decided by it.
#[allow(clippy::disallowed_methods, reason = "a client has no clock but the machine's")]
fn moment() -> SystemTime {
    SystemTime::now()
}

/// How long an item still lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Life {
    /// It does not expire.
    Forever,
    /// It expires after this.
    Left(Duration),
    /// It has expired, or was made stale, and is kept as stale.
    Stale,
}

/// What became of a put.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PutOutcome {
    /// Written, as this version.
    Written {
        /// The version.
        version: Version,
    },
    /// The condition did not hold.
    Refused {
        /// The version that is there, if any.
        version: Option<Version>,
    },
}

impl PutOutcome {
    /// Whether it was written.
    #[must_use]
    pub fn is_written(self) -> bool {
        matches!(self, PutOutcome::Written { .. })
    }

    /// The version that is there now: the one written, or the one that was in the way.
    #[must_use]
    pub fn version(self) -> Option<Version> {
        match self {
            PutOutcome::Written { version } => Some(version),
            PutOutcome::Refused { version } => version,
        }
    }
}

/// What became of a commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Committed {
    /// The version of all it wrote.
    pub version: Version,
    /// How many of its writes found something to change.
    pub changed: u32,
}

/// A page of a scan: one state of the cache.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Page {
    /// Keys in order, each with its item.
    pub items: Vec<(Vec<u8>, Entry)>,
    /// Where the next page begins; empty: this is the last one.
    pub cursor: Vec<u8>,
}

/// Something that happened to a watched cache.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Change {
    /// A key has a new item.
    Put {
        /// The cache.
        cache: String,
        /// The key.
        key: Vec<u8>,
        /// The item's version.
        version: Version,
        /// The length of its value.
        value_bytes: u32,
    },
    /// A key has no item any more: deleted, taken, or expired by hand. An expiry that comes by itself is not told.
    Removed {
        /// The cache.
        cache: String,
        /// The key.
        key: Vec<u8>,
        /// The sequence.
        version: Version,
    },
    /// Many items were made gone or stale at once.
    Cleared {
        /// The cache.
        cache: String,
        /// Which.
        scope: ClearedScope,
        /// What they are now.
        effect: Effect,
        /// The sequence.
        version: Version,
    },
    /// The cache is no more.
    Dropped {
        /// The cache.
        cache: String,
        /// The sequence.
        version: Version,
    },
    /// Changes were left out: this client did not keep up, or was not connected for a while.
    Missed {
        /// How many there were at least; 0: nobody knows.
        at_least: u64,
    },
}

/// What a clear covered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClearedScope {
    /// The whole cache.
    All,
    /// Keys that start so.
    Prefix(Vec<u8>),
    /// Items with this tag.
    Tag(Vec<u8>),
}

impl Change {
    pub(crate) fn from_wire(change: &wire::Change<'_>) -> Change {
        let (cache, version) = (change.cache.to_owned(), change.version);
        let cleared =
            |scope, effect| Change::Cleared { cache: change.cache.to_owned(), scope, effect, version };
        match change.what {
            What::Put { key, value_bytes } => Change::Put { cache, key: key.to_vec(), version, value_bytes },
            What::Removed { key } => Change::Removed { cache, key: key.to_vec(), version },
            What::Cleared { effect } => cleared(ClearedScope::All, effect),
            What::ClearedPrefix { prefix, effect } => cleared(ClearedScope::Prefix(prefix.to_vec()), effect),
            What::ClearedTag { tag, effect } => cleared(ClearedScope::Tag(tag.to_vec()), effect),
            What::Dropped => Change::Dropped { cache, version },
        }
    }
}
