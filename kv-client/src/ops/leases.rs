//! Leases to load items, their fills, and named locks.

use kv_proto::Version;
use kv_proto::wire::{self, Request, Response};

use super::checks::{check_item, check_lock, check_value};
use super::items::put_options;
use super::{Call, Lane, Repeat, read_done, unexpected, without};
use crate::answers::Entry;
use crate::error::Result;
use crate::options::PutOptions;

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
