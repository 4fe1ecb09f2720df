//! Batches and transactions.

use kv_proto::limits::{COMMIT_BYTES_MAX, COMMIT_CHECKS_MAX, COMMIT_WRITES_MAX};
use kv_proto::wire::{self, Bytes, Condition, Durability, Expect, Request, Response};

use super::checks::{check_item, check_value};
use super::items::{lane_of, put_options};
use super::{Call, Lane, Repeat, read_done, unexpected};
use crate::answers::Committed;
use crate::batch::{BatchData, OwnedWrite};
use crate::error::{Error, Result};
use crate::options::PutOptions;

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
