//! Sessions and carts: to the database first, then to the cache; read from the cache, and rebuilt from the database when that is gone.
//!
//! From "Building a Large-scale E-commerce Site with Apache and mod_perl" (data in cache and database, after a failover simply fetched again) and
//! FMStocks 2000 (every cart action goes to the database, so that no failure above it loses a cart). The pitfall is theirs: a cache that is
//! written beside its database shows another cart than the database has, for as long as it likes, once a process dies between the
//! two writes or two of them arrive in the other order. So before a change commits, while the session's row is locked, the cache is told that
//! it [is changing](Kept::Changing); readers then ask the database, and nothing but what was read or written under *that* mark takes
//! its place. A worker that dies leaves the mark, which is over soon. The loads of `kv_client` are not used here, because they are
//! served from each process's own memory while kvd is away, which is right for products and wrong for carts.

mod change;
#[cfg(test)]
mod tests;

use std::time::Duration;

use kv_client::{Cache, Client, ErrorKind, PutOptions, PutOutcome, SchemaVersion, Typed, Version};
use kvd::clock::Clock;
use serde::{Deserialize, Serialize};

use super::cookie::SessionId;
use super::stored::select;
use crate::catalogue::ToyId;
use crate::database::Database;
use crate::faults::{Fault, retry};
use crate::visit::{Kind, Visit};

/// How long a session is kept in the cache. The database keeps it until `clean`.
const TTL: Duration = Duration::from_secs(3_600);
/// How long readers go to the database after a worker died in a change. Longer than a change can take.
const CHANGING_TTL: Duration = Duration::from_secs(15);

/// What the shop knows of a visitor.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Session {
    /// Counts the changes; 0: nothing was written yet.
    pub(crate) version: i64,
    pub(crate) name: String,
    pub(crate) email: String,
    /// What is in the cart, and how often, by toy.
    pub(crate) lines: Vec<(ToyId, i64)>,
}

impl Session {
    /// Whether there is nothing in it that somebody could misuse.
    pub(crate) fn is_empty(&self) -> bool {
        self.lines.is_empty() && self.name.is_empty() && self.email.is_empty()
    }

    /// Pieces in the cart.
    pub(crate) fn in_cart(&self) -> i64 {
        self.lines.iter().map(|(_, quantity)| quantity).sum()
    }
}

/// What the cache has of a session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
enum Kept {
    /// The database knows.
    Changing,
    Is(Session),
}

/// All sessions. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Sessions {
    kept: Typed<Cache, Kept>,
    database: Database,
    clock: Clock,
}

impl Sessions {
    pub(crate) fn new(client: &Client, database: Database, clock: Clock) -> Sessions {
        Sessions { kept: client.cache(Kind::Session.name()).typed(SchemaVersion(1)), database, clock }
    }

    /// What is known of a visitor: an empty session if nothing is.
    pub(crate) async fn read(&self, id: &SessionId, visit: &Visit) -> Result<Session, Fault> {
        visit.asked(Kind::Session, 1);
        let kept = match self.kept.get(id.as_str()).await {
            // What is put first makes it.
            Err(error) if error.kind() == ErrorKind::UnknownCache => None,
            Err(error) => {
                tracing::warn!(%error, "a session is read from the database");
                Some(Kept::Changing)
            }
            Ok(kept) => kept,
        };
        let mark = match kept {
            Some(Kept::Is(session)) => return Ok(session),
            Some(Kept::Changing) => None,
            None => self.mark(id, PutOptions::new().if_absent()).await,
        };
        visit.loaded(Kind::Session, 1);
        visit.query();
        let session = retry(async || {
            let mut connection = self.database.primary().acquire().await?;
            Ok(select(&mut connection, id).await?)
        })
        .await?;
        self.replace(id, &session, mark).await;
        Ok(session)
    }

    /// Forgets copies of sessions that are not there any more.
    pub(crate) async fn forget(&self, ids: &[String]) -> Result<(), Fault> {
        self.kept.bytes().delete_many(ids).await?;
        Ok(())
    }

    /// Says that the database knows; the mark's version, or `None` where the cache did not take it.
    async fn mark(&self, id: &SessionId, options: PutOptions) -> Option<Version> {
        match self.kept.put_with(id.as_str(), &Kept::Changing, options.ttl(CHANGING_TTL)).await {
            Ok(PutOutcome::Written { version }) => Some(version),
            Ok(PutOutcome::Refused { .. }) => None,
            Err(error) => {
                tracing::debug!(%error, "a session's change is not announced");
                None
            }
        }
    }

    /// Puts a session in its mark's place, if that is still there; whether it was.
    async fn replace(&self, id: &SessionId, session: &Session, mark: Option<Version>) -> bool {
        let Some(mark) = mark else { return false };
        let options = PutOptions::new().ttl(TTL).if_version(mark);
        match self.kept.put_with(id.as_str(), &Kept::Is(session.clone()), options).await {
            Ok(PutOutcome::Written { .. }) => true,
            Ok(PutOutcome::Refused { .. }) => false,
            Err(error) => {
                tracing::debug!(%error, "a session is not cached; its mark is over soon");
                false
            }
        }
    }
}
