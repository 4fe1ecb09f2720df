//! An item outside any segment: what is there now, and what shall be.

use std::borrow::Cow;

use kv_proto::segment::{Freshness, Life, Meta};
use kv_proto::wire::{self, Expiry, PutOptions};
use kv_proto::{BootMs, Version, limits};

use serde::{Deserialize, Serialize};

use super::error::Failure;
use crate::config::CacheConfig;
use crate::store::RecordView;

/// An item as it is, copied out of where it stood.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Current {
    pub(crate) version: Version,
    pub(crate) created: BootMs,
    pub(crate) expires: Option<BootMs>,
    pub(crate) stale_for_ms: u64,
    pub(crate) load_cost_ms: u32,
    /// Made stale by `expire`; kept with the item, unlike staleness by a clear.
    pub(crate) stale: bool,
    pub(crate) tags: Vec<Box<[u8]>>,
    #[serde(with = "serde_bytes")]
    pub(crate) value: Vec<u8>,
}

impl Current {
    pub(crate) fn from_segment(meta: &Meta, buffer: &[u8]) -> Current {
        Current {
            version: meta.version,
            created: meta.created,
            expires: meta.expires,
            stale_for_ms: meta.stale_for_ms,
            load_cost_ms: meta.load_cost_ms,
            stale: meta.stale,
            tags: meta.tags(buffer).map(Into::into).collect(),
            value: meta.value(buffer).to_vec(),
        }
    }

    pub(crate) fn from_store(view: &RecordView<'_>) -> Current {
        Current {
            version: view.version,
            created: view.created,
            expires: view.expires,
            stale_for_ms: view.stale_for_ms,
            load_cost_ms: view.load_cost_ms,
            stale: view.stale,
            tags: view.tags.iter().map(|tag| (*tag).into()).collect(),
            value: view.value.to_vec(),
        }
    }

    /// The slots of its tags.
    pub(crate) fn tag_slots(&self) -> impl Iterator<Item = u32> + Clone {
        self.tags.iter().map(|tag| kv_proto::tag_slot(tag))
    }

    /// Past its expiry, and perhaps in its stale life.
    pub(crate) fn is_expired(&self, now: BootMs) -> bool {
        self.expires.is_some_and(|expires| now >= expires)
    }

    /// Fresh or stale, for an item that is there and whose clears were noted in itself.
    pub(crate) fn freshness(&self, now: BootMs) -> wire::Freshness {
        if self.stale || self.is_expired(now) { wire::Freshness::Stale } else { wire::Freshness::Fresh }
    }

    /// What decides whether it lives.
    pub(crate) fn life(&self) -> Life {
        Life {
            version: self.version,
            expires: self.expires,
            stale_for_ms: self.stale_for_ms,
            stale: self.stale,
        }
    }

    /// The answer that carries this item.
    pub(crate) fn to_wire(&self, freshness: wire::Freshness, now: BootMs, want: Shape) -> wire::Item<'_> {
        let entry = (want != Shape::Value).then(|| wire::Entry {
            freshness,
            value_bytes: self.value.len() as u32,
            age_ms: now.saturating_sub(self.created).max(0) as u64,
            expires_in_ms: self.expires.map(|expires| expires.saturating_sub(now)),
            stale_for_ms: self.stale_for_ms,
            load_cost_ms: self.load_cost_ms,
            tags: self.tags.iter().map(|tag| wire::Bytes(tag)).collect(),
        });
        let value = if want == Shape::Description { &[][..] } else { &self.value };
        wire::Item { value, version: self.version, entry }
    }
}

/// Which parts of an item an answer carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shape {
    /// The value alone, of fresh items.
    Value,
    /// The value and everything about it, of stale items too.
    Entry,
    /// Everything but the value, of stale items too.
    Description,
}

/// An item to be written; its version is that of the commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Draft<'a> {
    pub(crate) value: Cow<'a, [u8]>,
    pub(crate) created: BootMs,
    pub(crate) expires: Option<BootMs>,
    pub(crate) stale_for_ms: u64,
    pub(crate) load_cost_ms: u32,
    pub(crate) stale: bool,
    pub(crate) tags: Vec<Cow<'a, [u8]>>,
}

impl<'a> Draft<'a> {
    pub(crate) fn put(
        value: &'a [u8],
        options: &PutOptions<'a>,
        config: &CacheConfig,
        now: BootMs,
    ) -> Draft<'a> {
        Draft {
            value: Cow::Borrowed(value),
            created: now,
            expires: expires_at(options.ttl_ms.or(config.ttl_default_ms), config, now),
            stale_for_ms: options.stale_for_ms,
            load_cost_ms: options.load_cost_ms,
            stale: false,
            tags: options.tags.iter().map(|tag| Cow::Borrowed(tag.0)).collect(),
        }
    }

    /// The same item again, for a change of its life or its number.
    pub(crate) fn again(item: &Current) -> Draft<'static> {
        Draft {
            value: Cow::Owned(item.value.clone()),
            created: item.created,
            expires: item.expires,
            stale_for_ms: item.stale_for_ms,
            load_cost_ms: item.load_cost_ms,
            stale: item.stale,
            tags: item.tags.iter().map(|tag| Cow::Owned(tag.to_vec())).collect(),
        }
    }

    /// Gives it another life; `false`: it shall be gone.
    pub(crate) fn expire(&mut self, expiry: Expiry, config: &CacheConfig, now: BootMs) -> bool {
        match expiry {
            Expiry::After(ttl_ms) => self.live(expires_at(Some(ttl_ms), config, now), now),
            Expiry::Never => self.live(expires_at(None, config, now), now),
            Expiry::Stale => self.stale = true,
            Expiry::Now => return false,
        }
        true
    }

    fn live(&mut self, expires: Option<BootMs>, now: BootMs) {
        self.expires = expires;
        // The life counts from now: on disk what remains of it is held to its length.
        self.created = now;
    }

    pub(crate) fn bytes(&self) -> usize {
        self.value.len() + self.tags.iter().map(|tag| tag.len() + 2).sum::<usize>()
    }
}

/// When an item put now expires: never later than the cache's longest life.
fn expires_at(ttl_ms: Option<u64>, config: &CacheConfig, now: BootMs) -> Option<BootMs> {
    let ttl_ms = match (ttl_ms, config.ttl_max_ms) {
        (Some(ttl_ms), Some(max)) => Some(ttl_ms.min(max)),
        (ttl_ms, max) => ttl_ms.or(max),
    }?;
    Some(now.saturating_add_unsigned(ttl_ms))
}

/// As the wire says it; `None`: gone.
pub(crate) fn freshness_on_wire(freshness: Freshness) -> Option<wire::Freshness> {
    match freshness {
        Freshness::Fresh => Some(wire::Freshness::Fresh),
        Freshness::Stale => Some(wire::Freshness::Stale),
        Freshness::Gone => None,
    }
}

/// Checks a key against its bounds.
pub(crate) fn check_key(key: &[u8]) -> Result<(), Failure> {
    match key.len() {
        0 => Err(Failure::invalid(format!("key is empty; keys have 1 to {} bytes", limits::KEY_BYTES_MAX))),
        bytes if bytes > limits::KEY_BYTES_MAX => {
            Err(Failure::too_large("key", bytes, limits::KEY_BYTES_MAX))
        }
        _ => Ok(()),
    }
}

/// Checks a value and its options against their bounds.
pub(crate) fn check_put(
    value: &[u8],
    options: &PutOptions<'_>,
    value_bytes_max: usize,
) -> Result<(), Failure> {
    if value.len() > value_bytes_max {
        return Err(Failure::too_large("value", value.len(), value_bytes_max));
    }
    if options.tags.len() > limits::TAGS_MAX {
        return Err(Failure::too_many("tags", options.tags.len(), limits::TAGS_MAX));
    }
    for tag in &options.tags {
        check_tag(tag.0)?;
    }
    if let Some(ttl_ms) = options.ttl_ms {
        check_ttl("ttl", ttl_ms)?;
    }
    if options.stale_for_ms > limits::TTL_MS_MAX {
        return Err(too_long("stale life", options.stale_for_ms));
    }
    Ok(())
}

pub(crate) fn check_tag(tag: &[u8]) -> Result<(), Failure> {
    match tag.len() {
        0 => Err(Failure::invalid(format!("tag is empty; tags have 1 to {} bytes", limits::TAG_BYTES_MAX))),
        bytes if bytes > limits::TAG_BYTES_MAX => {
            Err(Failure::too_large("tag", bytes, limits::TAG_BYTES_MAX))
        }
        _ => Ok(()),
    }
}

pub(crate) fn check_ttl(what: &str, ttl_ms: u64) -> Result<(), Failure> {
    match ttl_ms {
        0 => {
            Err(Failure::invalid(format!("{what} is 0 ms; to be rid of an item, delete it or expire it now")))
        }
        ms if ms > limits::TTL_MS_MAX => Err(too_long(what, ms)),
        _ => Ok(()),
    }
}

fn too_long(what: &str, ms: u64) -> Failure {
    Failure::new(
        kv_proto::wire::ErrorKind::TooLarge,
        format!("{what} is {ms} ms, limit is {} (100 years)", limits::TTL_MS_MAX),
    )
}
