//! The only `match` over requests.

use kv_proto::wire::{Request, Response, Want, encode_into};

use super::attach::{Handed, SharedReads};
use super::error::Failure;
use super::item::{Shape, check_key};
use super::lease::Terms;
use super::scan::Wanted;
use super::transaction::Wish;
use super::write::{Durable, Step};
use super::{Engine, Session};

/// How a request ended; its answer stands in the output.
pub struct Applied {
    /// Wait for this before the answer goes out.
    pub durable: Durable,
    /// The answer is an error of this kind.
    pub failure: Option<kv_proto::wire::ErrorKind>,
    /// Goes to the client with the answer.
    pub handed: Option<Handed>,
}

impl Engine {
    /// Applies one request and appends exactly one answer frame to `out`. Never waits for a sync.
    pub fn apply(&self, session: &mut Session, request: &Request<'_>, out: &mut Vec<u8>) -> Applied {
        let start = out.len();
        match self.dispatch(session, request, out) {
            Ok(durable) => Applied { durable, failure: None, handed: session.handed.take() },
            Err(failure) => {
                out.truncate(start);
                encode_into(out, &Response::Error(failure.to_wire()));
                Applied { durable: None, failure: Some(failure.kind), handed: None }
            }
        }
    }

    fn dispatch(
        &self,
        session: &mut Session,
        request: &Request<'_>,
        out: &mut Vec<u8>,
    ) -> Result<Durable, Failure> {
        session.asked(self.clock.beat_ms());
        self.check_access(session, request)?;
        if session.transaction.is_some() && !is_apart(request) {
            let done = self.heard(session).and_then(|()| self.execute(session, request, out));
            self.rest(session, &done);
            return done;
        }
        self.execute(session, request, out)
    }

    fn execute(
        &self,
        session: &mut Session,
        request: &Request<'_>,
        out: &mut Vec<u8>,
    ) -> Result<Durable, Failure> {
        match request {
            Request::Ping => encode_into(out, &Response::Done),
            Request::Get { cache, key, sliding, want } => {
                check_key(key)?;
                let cache = self.cache(cache)?;
                let shape = match want {
                    Want::Value => Shape::Value,
                    Want::Entry => Shape::Entry,
                };
                match sliding {
                    None => self.get(session, &cache, key, shape, out)?,
                    Some(sliding) => return self.get_sliding(session, &cache, key, *sliding, shape, out),
                }
            }
            Request::GetMany { cache, keys, snapshot } => {
                keys.iter().try_for_each(|key| check_key(key.0))?;
                self.get_many(session, &self.cache(cache)?, keys, *snapshot, out)?;
            }
            Request::Describe { cache, key } => {
                check_key(key)?;
                self.get(session, &self.cache(cache)?, key, Shape::Description, out)?;
            }
            Request::Scan { cache, prefix, cursor, keys_max, values } => {
                let wanted = Wanted { prefix, cursor, keys_max: *keys_max, values: *values, stale: false };
                self.scan(session, &self.cache(cache)?, wanted, out)?;
            }
            Request::ScanAll { cache, prefix, cursor, keys_max, values } => {
                session.must_be_outside("a scan of stale items")?;
                let wanted = Wanted { prefix, cursor, keys_max: *keys_max, values: *values, stale: true };
                self.scan(session, &self.cache(cache)?, wanted, out)?;
            }
            Request::ClearVersions { cache, items, effect } => {
                return self.clear_versions(session, &self.cache(cache)?, items, *effect, out);
            }
            Request::Put { cache, key, value, options } => {
                return self.put(session, &self.cache_for_writing(cache)?, key, value, options, out);
            }
            Request::Expire { cache, key, expiry } => {
                return self.expire(session, &self.cache(cache)?, key, *expiry, out);
            }
            Request::Delete { cache, key } => return self.delete(session, &self.cache(cache)?, key, out),
            Request::Take { cache, key } => return self.take(session, &self.cache(cache)?, key, out),
            Request::Increment { cache, key, by, initial, ttl_ms, durability } => {
                let step = Step { by: *by, initial: *initial, ttl_ms: *ttl_ms };
                return self.increment(session, &self.cache_for_writing(cache)?, key, step, *durability, out);
            }
            Request::Commit { checks, writes, durability } => {
                return self.commit(session, checks, writes, *durability, out);
            }
            Request::Clear { scope, effect } => return self.clear(session, *scope, *effect, out),
            Request::Drop { cache } => return self.drop_cache(session, cache, out),
            Request::Stats => self.stats(out),
            Request::Caches => self.list_caches(out),
            Request::Sync => {
                session.must_be_outside("a sync")?;
                encode_into(out, &Response::Done);
                return Ok(Some(self.store.head()));
            }
            Request::Attach { cache } => session.handed = Some(self.attach(&*self.cache(cache)?, out)?),
            Request::Hits { cache, segment, hits, misses, places, socket_because } => {
                let (segment, hits, misses) = (*segment, *hits, *misses);
                let reads = SharedReads { segment, hits, misses, places };
                self.hear(session, &*self.cache(cache)?, &reads, *socket_because);
                encode_into(out, &Response::Done);
            }
            Request::Clients => self.list_clients(out),
            Request::Begin { read_only, wait_ms, first, tries } => {
                let wish = Wish { read_only: *read_only, wait_ms: *wait_ms, first: *first, tries: *tries };
                self.begin(session, wish, out)?;
            }
            Request::CommitTransaction { transaction, durability } => {
                return self.commit_transaction(session, *transaction, *durability, out);
            }
            Request::Rollback { transaction } => self.roll_back(session, *transaction, out)?,
            Request::Renew { transaction } => self.renew(session, *transaction, out)?,
            Request::Transactions => self.list_transactions(session, out),
            Request::Lease { cache, keys, wait_ms, lease_ms, holds } => {
                let terms = Terms { wait_ms: *wait_ms, life_ms: *lease_ms, holds };
                self.lend(session, cache, keys, terms, out)?;
            }
            Request::Fill { fills } => return self.fill(session, fills, out),
            Request::Abandon { leases, retry_after_ms } => {
                self.abandon(session, leases, *retry_after_ms, out)?;
            }
            Request::Lock { name, lock_ms, wait_ms, holds } => {
                let terms = Terms { wait_ms: *wait_ms, life_ms: *lock_ms, holds };
                self.lock_name(session, name, terms, out)?;
            }
            Request::RenewLock { fence, lock_ms } => self.renew_lock(session, *fence, *lock_ms, out)?,
            Request::Unlock { fence } => self.unlock(session, *fence, out)?,
            Request::Backup { memory } => self.back_up(session, *memory, out)?,
            Request::Compact => self.compact(session, out)?,
            Request::Check { samples } => self.check(session, *samples, out)?,
            Request::Watch { cache, prefix } => self.watch(session, *cache, prefix, out)?,
            Request::SlowLog { order, requests_max, longer_than_us } => {
                self.list_slow(session, *order, *requests_max, *longer_than_us, out);
            }
            Request::Hottest { cache, keys_max } => self.hottest(session, *cache, *keys_max, out)?,
            Request::Shutdown => self.shut_down(out)?,
            Request::Reload => self.reload(session, out)?,
            Request::Restart { clear } => self.restart(clear, out)?,
            Request::LastRestart => self.last_restart(out),
            Request::Access { uid } => self.tell_access(session, *uid, out)?,
        }
        Ok(None)
    }
}

/// Whether it is about the transaction itself, or gives back what has nothing to do with it, rather than a part of it.
fn is_apart(request: &Request<'_>) -> bool {
    matches!(
        request,
        Request::Begin { .. }
            | Request::CommitTransaction { .. }
            | Request::Rollback { .. }
            | Request::Abandon { .. }
            | Request::RenewLock { .. }
            | Request::Unlock { .. }
    )
}
