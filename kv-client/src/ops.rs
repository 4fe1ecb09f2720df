//! Every operation: how its request is built and its answer read. The only place in the client that names wire requests.
//!
//! Both clients call these and differ in how the bytes travel. Limits are checked here, before anything is sent.

use kv_proto::Version;
use kv_proto::limits::{
    CACHE_NAME_BYTES_MAX, COMMIT_BYTES_MAX, COMMIT_CHECKS_MAX, COMMIT_WRITES_MAX, KEY_BYTES_MAX,
    TAG_BYTES_MAX, TAGS_MAX, VALUE_BYTES_MAX,
};
use kv_proto::wire::{
    self, Bytes, Condition, Durability, Effect, Envelope, Expect, Request, Response, Scope, SlowOrder, Want,
    encode_into,
};

use crate::answers::{
    CacheInfo, Change, Checked, ClientInfo, Committed, Compacted, Compacting, Entry, Freshness, HotKey, Life,
    Metric, Page, PutOutcome, Reloaded, Restart, SlowLog, SlowRequest, Stopping, TransactionInfo,
    Transactions,
};
use crate::batch::{BatchData, OwnedWrite};
use crate::error::{Error, Result};
use crate::options::{Initial, PutOptions, Sliding, Ttl, life_ms, stretch_ms};
use crate::scanning::Cursor;

/// A request ready to be sent, and how to read its answer.
#[derive(Debug)]
pub(crate) struct Call<T> {
    pub(crate) sending: Sending,
    pub(crate) read: fn(Response<'_>) -> Result<T>,
}

/// A request ready to be sent.
#[derive(Debug)]
pub(crate) struct Sending {
    pub(crate) frame: Vec<u8>,
    /// The largest value in it, to be held against what the daemon takes.
    pub(crate) value_bytes: usize,
    /// Only the async client pipelines; the blocking one has a connection a call anyway.
    #[cfg_attr(not(feature = "tokio"), allow(dead_code))]
    pub(crate) lane: Lane,
    pub(crate) repeat: Repeat,
}

/// What a request may wait for in the daemon; those that may wait never share a connection with others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lane {
    /// For nothing.
    Reads,
    /// For a transaction, or for room.
    Writes,
    /// For the disk.
    Waits,
}

/// Whether a request may be sent again when its answer was lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Repeat {
    /// It changes nothing that a repetition would change again.
    Harmless,
    /// Its own version condition keeps a repetition from being applied twice, or over somebody's newer value. A
    /// repetition that is refused may mean that the first one was applied.
    Guarded,
    /// It may overwrite or remove what somebody wrote in between.
    Never,
}

impl<T> Call<T> {
    fn new(request: Request<'_>, lane: Lane, repeat: Repeat, read: fn(Response<'_>) -> Result<T>) -> Call<T> {
        Call::sized(request, 64, 0, lane, repeat, read)
    }

    fn sized(
        request: Request<'_>,
        frame_bytes: usize,
        value_bytes: usize,
        lane: Lane,
        repeat: Repeat,
        read: fn(Response<'_>) -> Result<T>,
    ) -> Call<T> {
        let mut frame = Vec::with_capacity(frame_bytes);
        encode_into(&mut frame, &Envelope { number: 0, request });
        Call { sending: Sending { frame, value_bytes, lane, repeat }, read }
    }
}

pub(crate) fn ping() -> Call<()> {
    Call::new(Request::Ping, Lane::Reads, Repeat::Harmless, read_done)
}

pub(crate) fn sync() -> Call<()> {
    Call::new(Request::Sync, Lane::Waits, Repeat::Harmless, read_done)
}

pub(crate) fn stats() -> Call<Vec<Metric>> {
    Call::new(Request::Stats, Lane::Reads, Repeat::Harmless, |response| match response {
        Response::Metrics(metrics) => Ok(metrics.iter().map(Metric::from_wire).collect()),
        other => Err(unexpected("stats", &other)),
    })
}

pub(crate) fn caches() -> Call<Vec<CacheInfo>> {
    Call::new(Request::Caches, Lane::Reads, Repeat::Harmless, |response| match response {
        Response::Caches(caches) => Ok(caches.iter().map(CacheInfo::from_wire).collect()),
        other => Err(unexpected("caches", &other)),
    })
}

/// The connections.
pub(crate) fn clients() -> Call<Vec<ClientInfo>> {
    Call::new(Request::Clients, Lane::Reads, Repeat::Harmless, |response| match response {
        Response::Clients(clients) => Ok(clients.iter().map(ClientInfo::from_wire).collect()),
        other => Err(unexpected("clients", &other)),
    })
}

/// Stops the daemon.
pub(crate) fn shutdown() -> Call<Stopping> {
    Call::new(Request::Shutdown, Lane::Reads, Repeat::Never, |response| match response {
        Response::Stopping { pid, lock } => Ok(Stopping { pid, lock: lock.into() }),
        other => Err(unexpected("shutdown", &other)),
    })
}

/// Lets the daemon read its configuration again.
pub(crate) fn reload() -> Call<Reloaded> {
    Call::new(Request::Reload, Lane::Waits, Repeat::Harmless, |response| match response {
        Response::Reloaded { applied, needs_restart } => {
            let owned = |lines: Vec<&str>| lines.into_iter().map(str::to_owned).collect();
            Ok(Reloaded { applied: owned(applied), needs_restart: owned(needs_restart) })
        }
        other => Err(unexpected("reload", &other)),
    })
}

/// Begins a restart in place.
pub(crate) fn restart(clear: &[&str]) -> Result<Call<u64>> {
    clear.iter().try_for_each(|cache| check_cache(cache))?;
    let request = Request::Restart { clear: clear.to_vec() };
    Ok(Call::new(request, Lane::Reads, Repeat::Never, |response| match response {
        Response::Restarting { number } => Ok(number),
        other => Err(unexpected("restart", &other)),
    }))
}

/// How the newest restart in place went.
pub(crate) fn last_restart() -> Call<Restart> {
    Call::new(Request::LastRestart, Lane::Reads, Repeat::Harmless, |response| match response {
        Response::Restarted(restart) => Ok(Restart::from_wire(&restart)),
        other => Err(unexpected("last restart", &other)),
    })
}

/// The descriptors of a cache's segment; they come beside the answer.
pub(crate) fn attach(cache: &str) -> Result<Sending> {
    check_cache(cache)?;
    Ok(Call::new(Request::Attach { cache }, Lane::Waits, Repeat::Harmless, read_done).sending)
}

/// What was read without asking.
pub(crate) struct SharedReads {
    pub(crate) segment: u64,
    pub(crate) hits: u64,
    pub(crate) misses: u64,
    pub(crate) places: Vec<u32>,
}

/// A report of reads. Sent twice it would count twice, so a lost one is lost.
pub(crate) fn hits(cache: &str, reads: SharedReads, socket_because: Option<&str>) -> Result<Sending> {
    check_cache(cache)?;
    let SharedReads { segment, hits, misses, places } = reads;
    let frame_bytes = 128 + 5 * places.len();
    let request = Request::Hits { cache, segment, hits, misses, places, socket_because };
    Ok(Call::sized(request, frame_bytes, 0, Lane::Reads, Repeat::Never, read_done).sending)
}

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

pub(crate) fn drop_cache(cache: &str) -> Result<Call<Version>> {
    check_cache(cache)?;
    Ok(Call::new(Request::Drop { cache }, Lane::Writes, Repeat::Never, read_written))
}

pub(crate) fn commit(batch: &BatchData) -> Result<Call<Committed>> {
    Error::check("commit", "checks", batch.checks.len(), COMMIT_CHECKS_MAX)?;
    Error::check("commit", "writes", batch.writes.len(), COMMIT_WRITES_MAX)?;
    let mut checks = Vec::with_capacity(batch.checks.len());
    for check in &batch.checks {
        check_item(&check.cache, &check.key)?;
        checks.push(wire::Check { cache: &check.cache, key: &check.key, expect: check.expect });
    }
    let mut writes = Vec::with_capacity(batch.writes.len());
    let mut bytes = 0;
    let mut value_bytes = 0;
    for write in &batch.writes {
        let (cache, key) = write.place();
        check_item(cache, key)?;
        bytes += key.len();
        writes.push(match write {
            OwnedWrite::Put { value, options, .. } => {
                check_value(value)?;
                bytes += value.len();
                value_bytes = value_bytes.max(value.len());
                wire::Write::Put { cache, key, value, options: put_options(options)? }
            }
            OwnedWrite::Expire { ttl, .. } => wire::Write::Expire { cache, key, expiry: ttl.to_wire()? },
            OwnedWrite::Delete { .. } => wire::Write::Delete { cache, key },
        });
    }
    if batch.writes.len() > 1 {
        Error::check("commit", "bytes of keys and values", bytes, COMMIT_BYTES_MAX)?;
    }
    let repeat = if guards_itself(batch) { Repeat::Guarded } else { Repeat::Never };
    let request = Request::Commit { checks, writes, durability: batch.durability };
    let room = 128 * (batch.writes.len() + batch.checks.len() + 1) + bytes;
    Ok(Call::sized(
        request,
        room,
        value_bytes,
        lane_of(batch.durability),
        repeat,
        |response| match response {
            Response::Committed { version, changed } => Ok(Committed { version, changed }),
            Response::Conflict { index, version } => Err(Error::Conflict { index, version }),
            other => Err(unexpected("commit", &other)),
        },
    ))
}

/// As `commit`, for those who only want to know how many writes found something to change.
pub(crate) fn commit_changed(batch: &BatchData) -> Result<Call<u32>> {
    let Call { sending, .. } = commit(batch)?;
    Ok(Call {
        sending,
        read: |response| match response {
            Response::Committed { changed, .. } => Ok(changed),
            Response::Conflict { index, version } => Err(Error::Conflict { index, version }),
            other => Err(unexpected("commit", &other)),
        },
    })
}

/// Whether the commit changes a version it insists on, so that it can never be applied twice.
fn guards_itself(batch: &BatchData) -> bool {
    let insists = |cache: &str, key: &[u8]| {
        batch
            .checks
            .iter()
            .any(|c| matches!(c.expect, Expect::Version(_)) && *c.cache == *cache && c.key == key)
    };
    batch.writes.iter().any(|write| {
        let conditional = matches!(
            write,
            OwnedWrite::Put { options: PutOptions { condition: Condition::IfVersion(_), .. }, .. }
        );
        let (cache, key) = write.place();
        conditional || insists(cache, key)
    })
}

/// How a transaction begins.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wish {
    pub(crate) read_only: bool,
    /// Longest wait for each lock.
    pub(crate) wait: std::time::Duration,
    /// The number of its first try; 0: this is the first.
    pub(crate) first: u64,
    /// How often it was tried before.
    pub(crate) tries: u32,
}

/// A connection that is lost takes the transaction along, so that beginning again harms nobody.
pub(crate) fn begin(wish: Wish) -> Call<u64> {
    let Wish { read_only, wait, first, tries } = wish;
    let wait_ms = u32::try_from(wait.as_millis()).unwrap_or(u32::MAX);
    let request = Request::Begin { read_only, wait_ms, first, tries };
    Call::new(request, Lane::Waits, Repeat::Harmless, |response| match response {
        Response::Begun { transaction } => Ok(transaction),
        other => Err(unexpected("begin", &other)),
    })
}

pub(crate) fn commit_transaction(transaction: u64, durability: Option<Durability>) -> Call<Committed> {
    let request = Request::CommitTransaction { transaction, durability };
    Call::new(request, Lane::Waits, Repeat::Never, |response| match response {
        Response::Committed { version, changed } => Ok(Committed { version, changed }),
        other => Err(unexpected("commit", &other)),
    })
}

/// Whether there was such a transaction.
pub(crate) fn rollback(transaction: u64) -> Call<bool> {
    Call::new(Request::Rollback { transaction }, Lane::Writes, Repeat::Harmless, |response| match response {
        Response::Done => Ok(true),
        Response::Missing => Ok(false),
        other => Err(unexpected("rollback", &other)),
    })
}

pub(crate) fn renew(transaction: u64) -> Call<()> {
    Call::new(Request::Renew { transaction }, Lane::Waits, Repeat::Never, read_done)
}

pub(crate) fn transactions() -> Call<Transactions> {
    Call::new(Request::Transactions, Lane::Reads, Repeat::Harmless, |response| match response {
        Response::Transactions { mode, transactions } => Ok(Transactions {
            mode: mode.to_owned(),
            transactions: transactions.iter().map(TransactionInfo::from_wire).collect(),
        }),
        other => Err(unexpected("transactions", &other)),
    })
}

/// What became of a wish for an item.
#[derive(Debug)]
pub(crate) enum Loan {
    /// The item, perhaps stale.
    Hit(Entry),
    /// The caller loads it.
    Leased { lease: u64, stale: Option<Entry> },
    /// Somebody else still loads it.
    Busy,
    /// The caller loads it for itself.
    Alone,
}

/// How long things last that are asked for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Terms {
    /// Longest wait for others.
    pub(crate) wait: std::time::Duration,
    /// How long it is safe from others then.
    pub(crate) safe: std::time::Duration,
}

fn ms(time: std::time::Duration) -> u32 {
    u32::try_from(time.as_millis()).unwrap_or(u32::MAX)
}

/// Items, or the leases to load them; each key with the version that will not do. The first of them are answered.
pub(crate) fn lease<K: AsRef<[u8]>>(
    cache: &str,
    keys: &[(K, Option<Version>)],
    terms: Terms,
    holds: &[u64],
) -> Result<Call<Vec<Loan>>> {
    for (key, _) in keys {
        check_item(cache, key.as_ref())?;
    }
    let bytes: usize = keys.iter().map(|(key, _)| key.as_ref().len() + 12).sum();
    let keys = keys.iter().map(|(key, except)| wire::Wanted { key: key.as_ref(), except: *except }).collect();
    let (wait_ms, lease_ms) = (ms(terms.wait), ms(terms.safe).max(1));
    let request = Request::Lease { cache, keys, wait_ms, lease_ms, holds: holds.to_vec() };
    // A connection that is lost takes its leases along.
    Ok(Call::sized(request, 64 + bytes, 0, Lane::Waits, Repeat::Harmless, |response| match response {
        Response::Loans(loans) => loans.iter().map(read_loan).collect(),
        other => Err(unexpected("a lease", &other)),
    }))
}

fn read_loan(loan: &wire::Loan<'_>) -> Result<Loan> {
    let entry = |item: &wire::Item<'_>| {
        Entry::from_wire(item).ok_or_else(|| without("a lease", "what is known about the item"))
    };
    Ok(match loan {
        wire::Loan::Hit(item) => Loan::Hit(entry(item)?),
        wire::Loan::Leased { lease, stale } => {
            Loan::Leased { lease: *lease, stale: stale.as_ref().map(entry).transpose()? }
        }
        wire::Loan::Busy => Loan::Busy,
        wire::Loan::Alone => Loan::Alone,
    })
}

/// What was loaded under a lease.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Filling<'a> {
    pub(crate) lease: u64,
    pub(crate) value: &'a [u8],
    pub(crate) options: &'a PutOptions,
}

/// Puts what was loaded; `None`: something newer has happened, or the lease is lost.
pub(crate) fn fill(fillings: &[Filling<'_>]) -> Result<Call<Vec<Option<Version>>>> {
    let mut bytes = 0;
    let mut value_bytes = 0;
    let mut fills = Vec::with_capacity(fillings.len());
    for filling in fillings {
        check_value(filling.value)?;
        bytes += 128 + filling.value.len();
        value_bytes = value_bytes.max(filling.value.len());
        fills.push(wire::Filling {
            lease: filling.lease,
            value: filling.value,
            options: put_options(filling.options)?,
        });
    }
    // It is lost with its lease.
    Ok(Call::sized(
        Request::Fill { fills },
        64 + bytes,
        value_bytes,
        Lane::Waits,
        Repeat::Never,
        |response| match response {
            Response::Filled(versions) => Ok(versions),
            other => Err(unexpected("a fill", &other)),
        },
    ))
}

/// Gives leases back; for `throttle` nobody reloads those of the keys that have something stale.
pub(crate) fn abandon(leases: &[u64], throttle: std::time::Duration) -> Call<()> {
    let request = Request::Abandon { leases: leases.to_vec(), retry_after_ms: ms(throttle) };
    Call::new(request, Lane::Waits, Repeat::Never, read_done)
}

/// The fence of a named lock, or who has it.
pub(crate) fn lock(
    name: &str,
    terms: Terms,
    holds: &[u64],
) -> Result<Call<std::result::Result<u64, String>>> {
    check_lock(name)?;
    let request = Request::Lock {
        name,
        lock_ms: ms(terms.safe).max(1),
        wait_ms: ms(terms.wait),
        holds: holds.to_vec(),
    };
    Ok(Call::new(request, Lane::Waits, Repeat::Harmless, |response| match response {
        Response::Locked { fence } => Ok(Ok(fence)),
        Response::Busy { holder } => Ok(Err(holder.to_owned())),
        other => Err(unexpected("lock", &other)),
    }))
}

pub(crate) fn renew_lock(fence: u64, safe: std::time::Duration) -> Call<()> {
    Call::new(Request::RenewLock { fence, lock_ms: ms(safe).max(1) }, Lane::Waits, Repeat::Never, read_done)
}

pub(crate) fn unlock(fence: u64) -> Call<()> {
    Call::new(Request::Unlock { fence }, Lane::Waits, Repeat::Never, read_done)
}

/// At most so many slow requests that took at least `longer_than`.
pub(crate) fn slow_log(
    order: SlowOrder,
    requests_max: u32,
    longer_than: std::time::Duration,
) -> Call<SlowLog> {
    let longer_than_us = u64::try_from(longer_than.as_micros()).unwrap_or(u64::MAX);
    let request = Request::SlowLog { order, requests_max, longer_than_us };
    Call::new(request, Lane::Reads, Repeat::Harmless, |response| match response {
        Response::SlowRequests { threshold_us, total, requests } => Ok(SlowLog {
            threshold: threshold_us.map(std::time::Duration::from_micros),
            total,
            requests: requests.iter().map(SlowRequest::from_wire).collect(),
        }),
        other => Err(unexpected("the slow log", &other)),
    })
}

pub(crate) fn hottest(cache: Option<&str>, keys_max: u32) -> Result<Call<Vec<HotKey>>> {
    cache.map_or(Ok(()), check_cache)?;
    let request = Request::Hottest { cache, keys_max };
    Ok(Call::new(request, Lane::Reads, Repeat::Harmless, |response| match response {
        Response::HotKeys(keys) => Ok(keys.iter().map(HotKey::from_wire).collect()),
        other => Err(unexpected("the hottest keys", &other)),
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

/// Begins a backup; what is read is its first part.
pub(crate) fn backup(memory: bool) -> Call<Vec<u8>> {
    Call::new(Request::Backup { memory }, Lane::Waits, Repeat::Harmless, |response| {
        Ok(read_part(response)?.unwrap_or_default())
    })
}

/// One of the answers to a `backup`; `None`: that was the last.
pub(crate) fn read_part(response: Response<'_>) -> Result<Option<Vec<u8>>> {
    match response {
        Response::Part { bytes } => Ok(Some(bytes.to_vec())),
        Response::Done => Ok(None),
        other => Err(unexpected("backup", &other)),
    }
}

/// Begins a compaction; what is read says how far it is.
pub(crate) fn compact() -> Call<Compacting> {
    Call::new(Request::Compact, Lane::Waits, Repeat::Never, read_compacting)
}

/// One of the answers to a `compact`.
pub(crate) fn read_compacting(response: Response<'_>) -> Result<Compacting> {
    match response {
        Response::Compacting { done, total } => Ok(Compacting::Progress { done, total }),
        Response::Compacted { bytes_before, bytes_after, pause_us } => {
            let pause = std::time::Duration::from_micros(pause_us);
            Ok(Compacting::Done(Compacted { bytes_before, bytes_after, pause }))
        }
        other => Err(unexpected("compact", &other)),
    }
}

pub(crate) fn check(samples: u32) -> Call<Checked> {
    Call::new(Request::Check { samples }, Lane::Waits, Repeat::Harmless, |response| match response {
        Response::Checked(found) => Ok(Checked {
            sequence: found.sequence,
            items: found.items,
            compared: found.compared,
            wrong: found.wrong.into_iter().map(str::to_owned).collect(),
        }),
        other => Err(unexpected("check", &other)),
    })
}

/// Many keys of one moment, inside a transaction: the values of the first of them.
pub(crate) fn get_many_inside<K: AsRef<[u8]>>(cache: &str, keys: &[K]) -> Result<Call<Vec<Option<Vec<u8>>>>> {
    for key in keys {
        check_item(cache, key.as_ref())?;
    }
    let keys = keys.iter().map(|key| Bytes(key.as_ref())).collect();
    let request = Request::GetMany { cache, keys, snapshot: None };
    Ok(Call::new(request, Lane::Waits, Repeat::Harmless, |response| match response {
        Response::Items { items, .. } => {
            Ok(items.into_iter().map(|item| item.map(|item| item.value.to_vec())).collect())
        }
        other => Err(unexpected("get_many", &other)),
    }))
}

fn lane_of(durability: Option<Durability>) -> Lane {
    if durability == Some(Durability::Durable) { Lane::Waits } else { Lane::Writes }
}

/// Whether items can be put so.
pub(crate) fn check_put_options(options: &PutOptions) -> Result<()> {
    put_options(options).map(drop)
}

fn put_options(options: &PutOptions) -> Result<wire::PutOptions<'_>> {
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

pub(crate) fn check_cache(cache: &str) -> Result<()> {
    let fits =
        |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'.' | b'_' | b'-');
    let starts = cache.bytes().next().is_some_and(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
    if starts && cache.len() <= CACHE_NAME_BYTES_MAX && cache.bytes().all(fits) {
        return Ok(());
    }
    Err(Error::Invalid {
        message: format!(
            "{cache:?} cannot name a cache: 1 to {CACHE_NAME_BYTES_MAX} of a-z 0-9 . _ -, the first a letter or digit"
        ),
    })
}

pub(crate) fn check_item(cache: &str, key: &[u8]) -> Result<()> {
    check_cache(cache)?;
    if key.is_empty() {
        return Err(Error::invalid("the key is empty"));
    }
    Error::check("key", "bytes", key.len(), KEY_BYTES_MAX)
}

fn check_lock(name: &str) -> Result<()> {
    if name.is_empty() {
        return Err(Error::invalid("the name of the lock is empty"));
    }
    Error::check("name of the lock", "bytes", name.len(), KEY_BYTES_MAX)
}

fn check_value(value: &[u8]) -> Result<()> {
    Error::check("value", "bytes", value.len(), VALUE_BYTES_MAX)
}

fn check_tag(tag: &[u8]) -> Result<()> {
    if tag.is_empty() {
        return Err(Error::invalid("a tag is empty"));
    }
    Error::check("tag", "bytes", tag.len(), TAG_BYTES_MAX)
}

fn read_done(response: Response<'_>) -> Result<()> {
    match response {
        Response::Done => Ok(()),
        other => Err(unexpected("a request without result", &other)),
    }
}

fn read_written(response: Response<'_>) -> Result<Version> {
    match response {
        Response::Written { version } => Ok(version),
        other => Err(unexpected("a write", &other)),
    }
}

fn read_written_or_missing(response: Response<'_>) -> Result<Option<Version>> {
    match response {
        Response::Written { version } => Ok(Some(version)),
        Response::Missing => Ok(None),
        other => Err(unexpected("a write", &other)),
    }
}

fn read_entry(response: Response<'_>) -> Result<Option<Entry>> {
    match response {
        Response::Item(item) => Entry::from_wire(&item)
            .map(Some)
            .ok_or_else(|| without("an entry", "what is known about the item")),
        Response::Missing => Ok(None),
        other => Err(unexpected("an entry", &other)),
    }
}

/// The error for an answer that does not belong to its request; the daemon's own errors pass through.
pub(crate) fn unexpected(asked: &str, response: &Response<'_>) -> Error {
    if let Response::Error(error) = response {
        return Error::from_wire(error);
    }
    let debug = format!("{response:?}");
    let name = debug.split([' ', '(', '{']).next().unwrap_or_default();
    Error::Protocol {
        message: format!("the daemon answered {asked} with {name}"),
        maybe_applied: true,
        source: None,
    }
}

fn without(asked: &str, what: &str) -> Error {
    Error::Protocol {
        message: format!("the answer to {asked} lacks {what}"),
        maybe_applied: false,
        source: None,
    }
}
