//! Who may do what: what each request needs, and what its caller has.
//!
//! `apply` asks before it does anything, for every request of a connection.

use kv_proto::wire::{
    AccessReport, CacheRights, ErrorKind, Expiry, Request, Response, Rights, Scope, Write, encode_into,
};

use super::clients::Caller;
use super::{Engine, Failure, Session};
use crate::config::Access;
use crate::store::CacheId;
use crate::users;

impl Caller {
    /// What it may do with a cache that has this list: the cache's counts, else the host's.
    pub(super) fn rights_on(&self, access: &Access) -> Rights {
        if self.rights.contains(Rights::ADMIN) {
            return Rights::all();
        }
        if access.is_private() { self.rights } else { access.rights(self.uid, &self.groups) }
    }
}

impl Engine {
    /// Refuses a request that needs what its caller may not do.
    pub(super) fn check_access(&self, session: &Session, request: &Request<'_>) -> Result<(), Failure> {
        let Some(caller) = session.caller() else { return Ok(()) };
        if caller.rights.contains(Rights::ADMIN) {
            return Ok(());
        }
        let check = |name: &str, access: &Access, needed: Rights| {
            let missing = needed - caller.rights_on(access);
            if missing.is_empty() {
                return Ok(());
            }
            let uid = caller.uid;
            let message =
                format!("user {uid} may not {missing} in cache {name}: `kvd access` shows what it may do");
            Err(Failure::new(ErrorKind::Denied, message))
        };
        let caches = self.caches.load();
        match needs(request) {
            Needs::Nothing => Ok(()),
            Needs::Admin(what) => {
                let message =
                    format!("{what} is for the daemon's own user, root and who has `admin` under [access]");
                Err(Failure::new(ErrorKind::Denied, message))
            }
            Needs::ToChange => {
                let may_change = |rights: Rights| rights.intersects(Rights::WRITE | Rights::DELETE);
                if may_change(caller.rights)
                    || caches.values().any(|cache| may_change(caller.rights_on(&cache.config.access)))
                {
                    return Ok(());
                }
                let message = format!(
                    "user {} may change nothing, and so lock nothing: `kvd access` shows what it may do",
                    caller.uid
                );
                Err(Failure::new(ErrorKind::Denied, message))
            }
            Needs::All(rights) => {
                caches.values().try_for_each(|cache| check(&cache.name, &cache.config.access, rights))
            }
            Needs::Of(named) => named.into_iter().try_for_each(|(name, rights)| match caches.get(name) {
                Some(cache) => check(name, &cache.config.access, rights),
                // What is not there yet would be made like this.
                None => check(name, &self.adjustable.load().default.access, rights),
            }),
        }
    }

    /// Whether the session's user may know which keys a cache has.
    pub(super) fn may_scan(&self, session: &Session, cache: CacheId) -> bool {
        let Some(caller) = session.caller() else { return true };
        caller.rights.contains(Rights::ADMIN)
            || self
                .cache_by_id(cache)
                .is_some_and(|cache| caller.rights_on(&cache.config.access).contains(Rights::SCAN))
    }

    /// Answers `access`.
    pub(super) fn tell_access(
        &self,
        session: &Session,
        uid: Option<u32>,
        out: &mut Vec<u8>,
    ) -> Result<(), Failure> {
        let other;
        let asked = match (session.caller(), uid) {
            (Some(caller), None) => caller,
            (Some(caller), Some(uid)) if uid == caller.uid => caller,
            (Some(caller), Some(uid)) if !caller.rights.contains(Rights::ADMIN) => {
                let message = format!("user {} may ask what it may do itself, not user {uid}", caller.uid);
                return Err(Failure::new(ErrorKind::Denied, message));
            }
            (_, uid) => {
                other = self.anybody(uid.unwrap_or_else(|| session.uid()));
                &other
            }
        };
        // Who may not connect may do nothing, whatever a cache says.
        let rights_on = |access: &Access| match asked.rights.is_empty() {
            true => Rights::empty(),
            false => asked.rights_on(access),
        };
        let caches = self.caches.load();
        let caches = caches.values().map(|cache| CacheRights {
            cache: &cache.name,
            is_listed: !cache.config.access.is_private(),
            rights: rights_on(&cache.config.access),
        });
        let mut caches: Vec<_> = caches.collect();
        caches.sort_by_key(|cache| cache.cache);
        let groups = asked.groups.iter().copied().collect();
        let of_new = rights_on(&self.adjustable.load().default.access);
        let report = AccessReport { uid: asked.uid, groups, rights: asked.rights, of_new, caches };
        encode_into(out, &Response::Access(report));
        Ok(())
    }

    /// A user as if it connected now.
    fn anybody(&self, uid: u32) -> Caller {
        if users::is_owner(uid) {
            return Caller { uid, rights: Rights::all(), ..Caller::default() };
        }
        let groups = users::groups(uid);
        let rights = self.adjustable.load().access.rights(uid, &groups);
        Caller { uid, groups, rights, ..Caller::default() }
    }
}

/// What a request needs.
enum Needs<'a> {
    /// Nothing, or it leaves out itself what the caller may not see.
    Nothing,
    /// `Rights::ADMIN`, for this.
    Admin(&'static str),
    /// These in each cache there is.
    All(Rights),
    /// These in these caches.
    Of(Vec<(&'a str, Rights)>),
    /// To change something anywhere: it may keep others waiting.
    ToChange,
}

/// Ending an item's life is deleting it.
fn to_expire(expiry: Expiry) -> Rights {
    match expiry {
        Expiry::Now => Rights::DELETE,
        Expiry::After(_) | Expiry::Never | Expiry::Stale => Rights::WRITE,
    }
}

fn needs<'a>(request: &Request<'a>) -> Needs<'a> {
    let of = |cache: &'a str, rights| Needs::Of(vec![(cache, rights)]);
    match request {
        // It may change the life.
        Request::Get { cache, sliding: Some(_), .. } => of(cache, Rights::READ | Rights::WRITE),
        Request::Get { cache, sliding: None, .. }
        | Request::GetMany { cache, .. }
        | Request::Describe { cache, .. }
        | Request::Hits { cache, .. } => of(cache, Rights::READ),
        Request::Scan { cache, values, .. } | Request::ScanAll { cache, values, .. } => {
            of(cache, if *values { Rights::SCAN | Rights::READ } else { Rights::SCAN })
        }
        // The memory says which keys there are.
        Request::Attach { cache } => of(cache, Rights::READ | Rights::SCAN),
        Request::Put { cache, .. } => of(cache, Rights::WRITE),
        Request::Expire { cache, expiry, .. } => of(cache, to_expire(*expiry)),
        // It tells the value.
        Request::Increment { cache, .. } => of(cache, Rights::READ | Rights::WRITE),
        Request::Delete { cache, .. } => of(cache, Rights::DELETE),
        Request::Take { cache, .. } => of(cache, Rights::READ | Rights::DELETE),
        // Who gets the lease stores what it loads.
        Request::Lease { cache, .. } => of(cache, Rights::READ | Rights::WRITE),
        Request::Drop { cache } | Request::ClearVersions { cache, .. } => of(cache, Rights::CLEAR),
        Request::Watch { cache: Some(cache), .. } | Request::Hottest { cache: Some(cache), .. } => {
            of(cache, Rights::SCAN)
        }
        Request::Commit { checks, writes, .. } => {
            let written = writes.iter().map(|write| match write {
                Write::Put { cache, .. } => (*cache, Rights::WRITE),
                Write::Expire { cache, expiry, .. } => (*cache, to_expire(*expiry)),
                Write::Delete { cache, .. } => (*cache, Rights::DELETE),
            });
            Needs::Of(checks.iter().map(|check| (check.cache, Rights::READ)).chain(written).collect())
        }
        Request::Clear { scope, .. } => match scope {
            Scope::Cache(cache) | Scope::Prefix { cache, .. } | Scope::Tag { cache: Some(cache), .. } => {
                of(cache, Rights::CLEAR)
            }
            Scope::Everything | Scope::Tag { cache: None, .. } => Needs::All(Rights::CLEAR),
        },
        Request::Begin { read_only: false, .. } | Request::Lock { .. } => Needs::ToChange,
        Request::Backup { .. } => Needs::Admin("a backup"),
        Request::Check { .. } => Needs::Admin("a check"),
        Request::Compact => Needs::Admin("a compaction"),
        Request::Shutdown => Needs::Admin("stopping the daemon"),
        Request::Reload => Needs::Admin("reloading the configuration"),
        Request::Restart { .. } => Needs::Admin("a restart"),
        Request::LastRestart => Needs::Admin("asking about restarts"),
        Request::Ping
        | Request::Stats
        | Request::Caches
        | Request::Sync
        | Request::Clients
        | Request::Access { .. }
        | Request::Begin { read_only: true, .. }
        | Request::CommitTransaction { .. }
        // That of another connection is for admins; it looks itself.
        | Request::Rollback { .. }
        | Request::Renew { .. }
        | Request::Transactions
        // By right of leases, which were granted to who may write to the cache.
        | Request::Fill { .. }
        | Request::Abandon { .. }
        | Request::RenewLock { .. }
        | Request::Unlock { .. }
        // Each leaves out what the caller may not see.
        | Request::Watch { cache: None, .. }
        | Request::Hottest { cache: None, .. }
        | Request::SlowLog { .. } => Needs::Nothing,
    }
}
