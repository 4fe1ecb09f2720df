//! The daemon itself: its figures, its life, its files.

use kv_proto::Version;
use kv_proto::wire::{Request, Response, SlowOrder};

use super::checks::check_cache;
use super::{Call, Lane, Repeat, read_done, read_written, unexpected};
use crate::answers::{
    AccessReport, CacheInfo, Checked, ClientInfo, Compacted, Compacting, HotKey, Metric, Reloaded, Restart,
    SlowLog, SlowRequest, Stopping, TransactionInfo, Transactions,
};
use crate::error::Result;

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

/// What a user may do.
pub(crate) fn access(uid: Option<u32>) -> Call<AccessReport> {
    Call::new(Request::Access { uid }, Lane::Reads, Repeat::Harmless, |response| match response {
        Response::Access(report) => Ok(AccessReport::from_wire(&report)),
        other => Err(unexpected("access", &other)),
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

pub(crate) fn drop_cache(cache: &str) -> Result<Call<Version>> {
    check_cache(cache)?;
    Ok(Call::new(Request::Drop { cache }, Lane::Writes, Repeat::Never, read_written))
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
