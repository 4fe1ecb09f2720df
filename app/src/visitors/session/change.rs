//! Changes of a session: its row is locked, the cache is told that it is changing, the database commits, and the cache gets what it has.
//!
//! The pitfall, and what the mark is for: see the [sessions](super).

use kv_client::{PutOptions, Version};
use sqlx::{Any, Transaction};

use super::{Session, Sessions, TTL};
use crate::faults::{Fault, retry};
use crate::visitors::cookie::SessionId;
use crate::visitors::stored::{lock, write};

/// A change under way: the session's row is locked until it is committed or dropped.
pub(crate) struct Change {
    sessions: Sessions,
    id: SessionId,
    pub(crate) transaction: Transaction<'static, Any>,
    pub(crate) session: Session,
    /// What the row says was done to it last; see [`Sessions::change`].
    last_change: String,
}

/// A change that the database has and the cache has not.
#[must_use = "the cache is not told before `publish`"]
pub(super) struct Committed {
    sessions: Sessions,
    id: SessionId,
    session: Session,
    mark: Option<Version>,
}

impl Sessions {
    /// Changes a session: in the database, then in the cache. `change` may be called more than once, and counts once: the row keeps which
    /// change was its last, so that one whose commit was answered by silence is not made again, unless yet another came between.
    pub(crate) async fn change(
        &self,
        id: &SessionId,
        change: impl Fn(&mut Session),
    ) -> Result<Session, Fault> {
        self.change_once(id, SessionId::random()?.as_str(), change).await
    }

    pub(super) async fn change_once(
        &self,
        id: &SessionId,
        which: &str,
        change: impl Fn(&mut Session),
    ) -> Result<Session, Fault> {
        retry(async || {
            let mut begun = self.begin(id).await?;
            if begun.last_change != which {
                change(&mut begun.session);
                which.clone_into(&mut begun.last_change);
            }
            begun.finish().await
        })
        .await
    }

    /// Moves whoever signs in to a new session, with the cart and the orders, in one transaction. The same move again changes nothing.
    pub(crate) async fn sign_in(
        &self,
        old: &SessionId,
        new: &SessionId,
        name: &str,
        email: &str,
    ) -> Result<(), Fault> {
        retry(async || {
            let mut left = self.begin(old).await?;
            let (mut session, _) = lock(&mut left.transaction, new, self.clock.wall_ms()).await?;
            if session.version > 1 {
                // It is there already.
                return Ok(());
            }
            session.lines = std::mem::take(&mut left.session.lines);
            (session.name, session.email) = (name.to_owned(), email.to_owned());
            left.session = Session { version: left.session.version, ..Session::default() };
            write(&mut left.transaction, new, &session, "").await?;
            let orders = sqlx::query("UPDATE shop_order SET session = $2 WHERE session = $1");
            orders.bind(old.as_str()).bind(new.as_str()).execute(&mut *left.transaction).await?;
            // Nobody has seen the new one, so its place in the cache is empty: the first who reads it fills it.
            left.finish().await.map(drop)
        })
        .await
    }

    /// Begins a change that is part of more: a checkout.
    pub(crate) async fn begin(&self, id: &SessionId) -> Result<Change, Fault> {
        let mut transaction = self.database.begin().await?;
        let (session, last_change) = lock(&mut transaction, id, self.clock.wall_ms()).await?;
        Ok(Change { sessions: self.clone(), id: id.clone(), transaction, session, last_change })
    }
}

impl Change {
    /// Writes the session and commits, with whatever else the transaction did, and tells the cache. In a task of its own: whoever waits for
    /// it may be dropped, because his visitor has left, and nothing comes between a commit and what the cache is told of it.
    pub(crate) async fn finish(self) -> Result<Session, Fault> {
        let finished = tokio::spawn(async move { Ok(self.commit().await?.publish().await) });
        finished.await.unwrap_or(Err(Fault::Database(sqlx::Error::WorkerCrashed)))
    }

    pub(super) async fn commit(self) -> Result<Committed, Fault> {
        let Change { sessions, id, mut transaction, session, last_change } = self;
        write(&mut transaction, &id, &session, &last_change).await?;
        let mark = sessions.mark(&id, PutOptions::new()).await;
        transaction.commit().await?;
        Ok(Committed { sessions, id, session, mark })
    }
}

impl Committed {
    /// Tells the cache. Where the mark is gone, somebody may have put there what he read before the commit: readers are sent to the database
    /// once more.
    pub(super) async fn publish(self) -> Session {
        if !self.sessions.replace(&self.id, &self.session, self.mark).await
            && self.sessions.mark(&self.id, PutOptions::new()).await.is_none()
            && let Err(error) = self.sessions.kept.delete(self.id.as_str()).await
        {
            // While the daemon is away it is kept and delivered later; here it is there and refuses.
            tracing::error!(%error, "the cache may show an old session for up to {TTL:?}");
        }
        self.session
    }
}
