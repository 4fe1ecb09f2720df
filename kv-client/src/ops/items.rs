//! Items: reads, writes, clears, scans, and hearing of changes.

use kv_proto::Version;
use kv_proto::limits::{COMMIT_CHECKS_MAX, KEY_BYTES_MAX, TAGS_MAX};
use kv_proto::wire::{self, Bytes, Condition, Durability, Effect, Request, Response, Scope, Want};

use super::checks::{check_cache, check_item, check_tag, check_value};
use super::{
    Call, Lane, Repeat, Sending, read_done, read_entry, read_written, read_written_or_missing, unexpected,
    without,
};
use crate::answers::{Change, Entry, Freshness, Life, Page, PutOutcome};
use crate::error::{Error, Result};
use crate::options::{Initial, PutOptions, Sliding, Ttl, life_ms, stretch_ms};
use crate::scanning::Cursor;

pub(crate) fn get(cache: &str, key: &[u8], sliding: Option<Sliding>) -> Result<Call<Option<Vec<u8>>>> {
    let sending = get_sending(cache, key, sliding)?;
    Ok(Call { sending, read: |response| read_value(response, |value| value.to_vec()) })
}

/// The request of a `get` for callers who take the value out of the answer themselves, by [`read_value`].
pub(crate) fn get_sending(cache: &str, key: &[u8], sliding: Option<Sliding>) -> Result<Sending> {
    check_item(cache, key)?;
    let sliding = match sliding {
        Some(sliding) => Some(wire::Sliding {
            below_ms: stretch_ms("remaining life", sliding.below)?,
            ttl_ms: life_ms(sliding.ttl)?,
        }),
        None => None,
    };
    let request = Request::Get { cache, key, sliding, want: Want::Value };
    // A repeated extension only extends again.
    Ok(Call::new(request, Lane::Reads, Repeat::Harmless, read_done).sending)
}

pub(crate) fn read_value<T>(response: Response<'_>, take: impl FnOnce(&[u8]) -> T) -> Result<Option<T>> {
    match response {
        Response::Item(item) => Ok(Some(take(item.value))),
        Response::Missing => Ok(None),
        other => Err(unexpected("get", &other)),
    }
}

pub(crate) fn get_entry(cache: &str, key: &[u8]) -> Result<Call<Option<Entry>>> {
    check_item(cache, key)?;
    let request = Request::Get { cache, key, sliding: None, want: Want::Entry };
    Ok(Call::new(request, Lane::Reads, Repeat::Harmless, read_entry))
}

pub(crate) fn describe(cache: &str, key: &[u8]) -> Result<Call<Option<Entry>>> {
    check_item(cache, key)?;
    Ok(Call::new(Request::Describe { cache, key }, Lane::Reads, Repeat::Harmless, read_entry))
}

pub(crate) fn contains(cache: &str, key: &[u8]) -> Result<Call<bool>> {
    let Call { sending, .. } = describe(cache, key)?;
    Ok(Call {
        sending,
        read: |response| Ok(read_entry(response)?.is_some_and(|e| e.freshness == Freshness::Fresh)),
    })
}

pub(crate) fn ttl(cache: &str, key: &[u8]) -> Result<Call<Option<Life>>> {
    let Call { sending, .. } = describe(cache, key)?;
    Ok(Call { sending, read: |response| Ok(read_entry(response)?.map(|entry| entry.life())) })
}

pub(crate) fn scan_page(scan: &Cursor) -> Result<Call<Page>> {
    check_cache(&scan.cache)?;
    Error::check("prefix", "bytes", scan.prefix.len(), KEY_BYTES_MAX)?;
    let Cursor { cache, prefix, at: cursor, keys_max, values, stale, .. } = scan;
    let (keys_max, values) = ((*keys_max).max(1), *values);
    let request = if *stale {
        Request::ScanAll { cache, prefix, cursor, keys_max, values }
    } else {
        Request::Scan { cache, prefix, cursor, keys_max, values }
    };
    Ok(Call::new(request, Lane::Reads, Repeat::Harmless, |response| match response {
        Response::Page { items, cursor } => {
            let items: Option<Vec<_>> =
                items.iter().map(|row| Some((row.key.to_vec(), Entry::from_wire(&row.item)?))).collect();
            let items = items.ok_or_else(|| without("scan", "what is known about each item"))?;
            Ok(Page { items, cursor: cursor.to_vec() })
        }
        other => Err(unexpected("scan", &other)),
    }))
}

pub(crate) fn put(cache: &str, key: &[u8], value: &[u8], options: &PutOptions) -> Result<Call<PutOutcome>> {
    check_item(cache, key)?;
    check_value(value)?;
    let repeat = match options.condition {
        Condition::IfVersion(_) => Repeat::Guarded,
        // Absent again may mean: put by us, and deleted by somebody since.
        Condition::IfAbsent | Condition::Always => Repeat::Never,
    };
    let lane = lane_of(options.durability);
    let request = Request::Put { cache, key, value, options: put_options(options)? };
    Ok(Call::sized(request, 128 + key.len() + value.len(), value.len(), lane, repeat, |response| {
        match response {
            Response::Written { version } => Ok(PutOutcome::Written { version }),
            Response::Refused { version } => Ok(PutOutcome::Refused { version }),
            other => Err(unexpected("put", &other)),
        }
    }))
}

/// A put without condition.
pub(crate) fn put_always(
    cache: &str,
    key: &[u8],
    value: &[u8],
    options: &PutOptions,
) -> Result<Call<Version>> {
    let Call { sending, .. } = put(cache, key, value, options)?;
    Ok(Call { sending, read: read_written })
}

pub(crate) fn expire(cache: &str, key: &[u8], ttl: Ttl) -> Result<Call<Option<Version>>> {
    check_item(cache, key)?;
    let request = Request::Expire { cache, key, expiry: ttl.to_wire()? };
    Ok(Call::new(request, Lane::Writes, Repeat::Never, read_written_or_missing))
}

pub(crate) fn delete(cache: &str, key: &[u8]) -> Result<Call<bool>> {
    check_item(cache, key)?;
    Ok(Call::new(Request::Delete { cache, key }, Lane::Writes, Repeat::Never, |response| {
        Ok(read_written_or_missing(response)?.is_some())
    }))
}

pub(crate) fn take(cache: &str, key: &[u8]) -> Result<Call<Option<Vec<u8>>>> {
    check_item(cache, key)?;
    Ok(Call::new(Request::Take { cache, key }, Lane::Writes, Repeat::Never, |response| {
        read_value(response, |value| value.to_vec())
    }))
}

pub(crate) fn increment(cache: &str, key: &[u8], by: i64, initial: Initial) -> Result<Call<i64>> {
    check_item(cache, key)?;
    let ttl_ms = initial.ttl.map(life_ms).transpose()?;
    let request =
        Request::Increment { cache, key, by, initial: initial.value, ttl_ms, durability: initial.durability };
    Ok(Call::new(request, lane_of(initial.durability), Repeat::Never, |response| match response {
        Response::Counter { value, .. } => Ok(value),
        other => Err(unexpected("increment", &other)),
    }))
}

pub(crate) fn clear(scope: Scope<'_>, effect: Effect) -> Result<Call<Version>> {
    match scope {
        Scope::Everything => {}
        Scope::Cache(cache) => check_cache(cache)?,
        Scope::Tag { cache, tag } => {
            cache.map_or(Ok(()), check_cache)?;
            check_tag(tag)?;
        }
        Scope::Prefix { cache, prefix } => {
            check_cache(cache)?;
            Error::check("prefix", "bytes", prefix.len(), KEY_BYTES_MAX)?;
        }
    }
    Ok(Call::new(Request::Clear { scope, effect }, Lane::Writes, Repeat::Never, read_written))
}

/// Each item only if it still has its version. A repetition finds other versions, and nothing to do.
pub(crate) fn clear_versions<K: AsRef<[u8]>>(
    cache: &str,
    items: &[(K, Version)],
    effect: Effect,
) -> Result<Call<u32>> {
    Error::check("clear", "items", items.len(), COMMIT_CHECKS_MAX)?;
    for (key, _) in items {
        check_item(cache, key.as_ref())?;
    }
    let items = items.iter().map(|(key, version)| wire::Versioned { key: key.as_ref(), version: *version });
    let request = Request::ClearVersions { cache, items: items.collect(), effect };
    Ok(Call::new(request, Lane::Writes, Repeat::Harmless, |response| match response {
        Response::Committed { changed, .. } => Ok(changed),
        other => Err(unexpected("clear_versions", &other)),
    }))
}

pub(crate) fn watch(cache: Option<&str>, prefix: &[u8]) -> Result<Call<()>> {
    cache.map_or(Ok(()), check_cache)?;
    Error::check("prefix", "bytes", prefix.len(), KEY_BYTES_MAX)?;
    Ok(Call::new(
        Request::Watch { cache, prefix },
        Lane::Waits,
        Repeat::Harmless,
        |response| match response {
            Response::Watching => Ok(()),
            other => Err(unexpected("watch", &other)),
        },
    ))
}

/// One of the answers that follow a `watch`.
pub(crate) fn read_changes(response: Response<'_>) -> Result<Vec<Change>> {
    match response {
        Response::Changes { changes, missed } => {
            let gap = (missed > 0).then_some(Change::Missed { at_least: missed });
            Ok(gap.into_iter().chain(changes.iter().map(Change::from_wire)).collect())
        }
        other => Err(unexpected("watch", &other)),
    }
}

pub(super) fn lane_of(durability: Option<Durability>) -> Lane {
    if durability == Some(Durability::Durable) { Lane::Waits } else { Lane::Writes }
}

/// Whether items can be put so.
pub(crate) fn check_put_options(options: &PutOptions) -> Result<()> {
    put_options(options).map(drop)
}

pub(super) fn put_options(options: &PutOptions) -> Result<wire::PutOptions<'_>> {
    Error::check("item", "tags", options.tags.len(), TAGS_MAX)?;
    options.tags.iter().try_for_each(|tag| check_tag(tag))?;
    if !(0.0..=1.0).contains(&options.jitter) {
        return Err(Error::invalid(format!("jitter is {}, it must be within 0 and 1", options.jitter)));
    }
    let ttl = options.ttl.map(|ttl| if options.jitter > 0.0 { jittered(ttl, options.jitter) } else { ttl });
    Ok(wire::PutOptions {
        ttl_ms: ttl.map(life_ms).transpose()?,
        stale_for_ms: stretch_ms("stale life", options.stale_for)?,
        load_cost_ms: u32::try_from(options.load_cost.as_millis()).unwrap_or(u32::MAX),
        tags: options.tags.iter().map(|tag| Bytes(tag)).collect(),
        durability: options.durability,
        condition: options.condition,
    })
}

fn jittered(ttl: std::time::Duration, fraction: f64) -> std::time::Duration {
    // A life that was not zero stays so.
    ttl.mul_f64(1.0 - fraction * fastrand::f64()).max(ttl.min(std::time::Duration::from_millis(1)))
}
