//! Sessions and carts: to the database first, then to the cache; read from the cache, and rebuilt from the database when that is gone.
//!
//! From "Building a Large-scale E-commerce Site with Apache and mod_perl" (data in cache and database, after a failover simply fetched again) and
//! FMStocks 2000 (every cart action goes to the database, so that no failure above it loses a cart). The pitfall is theirs: a cache that is
//! written beside its database shows another cart than the database has, for as long as it likes, once a process dies between the
//! two writes or two of them arrive in the other order. So before a change commits, while the session's row is locked, the cache is told that
//! it [is changing](Kept::Changing); readers then ask the database, and nothing but what was read or written under *that* mark takes
//! its place. A worker that dies leaves the mark, which is over soon. The loads of `kv_client` are not used here, because they are
//! served from each process's own memory while kvd is away, which is right for products and wrong for carts.

use std::time::Duration;

use kv_client::{Cache, Client, ErrorKind, PutOptions, PutOutcome, SchemaVersion, Typed, Version};
use kvd::clock::Clock;
use serde::{Deserialize, Serialize};
use sqlx::{Any, Transaction};

use super::cookie::SessionId;
use super::stored::{lock, select, write};
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

/// A change under way: the session's row is locked until it is committed or dropped.
pub(crate) struct Change<'a> {
    sessions: &'a Sessions,
    id: SessionId,
    pub(crate) transaction: Transaction<'static, Any>,
    pub(crate) session: Session,
}

/// A change that the database has and the cache has not.
#[must_use = "the cache is not told before `publish`"]
pub(crate) struct Committed<'a> {
    sessions: &'a Sessions,
    id: SessionId,
    session: Session,
    mark: Option<Version>,
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

    /// Changes a session: in the database, then in the cache. `change` may be called more than once.
    pub(crate) async fn change(
        &self,
        id: &SessionId,
        change: impl Fn(&mut Session),
    ) -> Result<Session, Fault> {
        let committed = retry(async || {
            let mut begun = self.begin(id).await?;
            change(&mut begun.session);
            begun.commit().await
        });
        Ok(committed.await?.publish().await)
    }

    /// Begins a change that is part of more: a checkout.
    pub(crate) async fn begin(&self, id: &SessionId) -> Result<Change<'_>, Fault> {
        let mut transaction = self.database.begin().await?;
        lock(&mut transaction, id, self.clock.wall_ms()).await?;
        let session = select(&mut transaction, id).await?;
        Ok(Change { sessions: self, id: id.clone(), transaction, session })
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

    /// Puts a session in its mark's place, if that is still there.
    async fn replace(&self, id: &SessionId, session: &Session, mark: Option<Version>) {
        let Some(mark) = mark else { return };
        let options = PutOptions::new().ttl(TTL).if_version(mark);
        if let Err(error) = self.kept.put_with(id.as_str(), &Kept::Is(session.clone()), options).await {
            tracing::debug!(%error, "a session is not cached; its mark is over soon");
        }
    }
}

impl<'a> Change<'a> {
    /// Writes the session and commits, with whatever else the transaction did.
    pub(crate) async fn commit(self) -> Result<Committed<'a>, Fault> {
        let Change { sessions, id, mut transaction, session } = self;
        write(&mut transaction, &id, &session).await?;
        let mark = sessions.mark(&id, PutOptions::new()).await;
        transaction.commit().await?;
        Ok(Committed { sessions, id, session, mark })
    }
}

impl Committed<'_> {
    /// Tells the cache.
    pub(crate) async fn publish(self) -> Session {
        if self.mark.is_some() {
            self.sessions.replace(&self.id, &self.session, self.mark).await;
        } else if let Err(error) = self.sessions.kept.delete(self.id.as_str()).await {
            // While the daemon is away it is kept and delivered later; here it is there and refuses.
            tracing::error!(%error, "the cache may show an old session for up to {TTL:?}");
        }
        self.session
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::TestShop;

    async fn shown(sessions: &Sessions, id: &SessionId) -> (Session, u32) {
        let visit = Visit::default();
        let session = sessions.read(id, &visit).await.unwrap();
        (session, visit.queries())
    }

    async fn row(sessions: &Sessions, id: &SessionId) -> Session {
        let mut connection = sessions.database.primary().acquire().await.unwrap();
        select(&mut connection, id).await.unwrap()
    }

    #[tokio::test]
    async fn a_cart_is_read_from_the_cache_and_rebuilt_from_the_database() {
        let shop = TestShop::open().await;
        let (sessions, id) = (&shop.shop.sessions, SessionId::random().unwrap());
        assert_eq!(shown(sessions, &id).await, (Session::default(), 1));
        assert_eq!(shown(sessions, &id).await.1, 0, "that there is nothing is known, too");
        let changed = sessions.change(&id, |session| session.add(ToyId(7), 2)).await.unwrap();
        assert_eq!(changed.lines, [(ToyId(7), 2)]);
        assert_eq!(shown(sessions, &id).await, (changed.clone(), 0));
        shop.client.cache("session").clear(kv_client::Effect::Gone).await.unwrap();
        assert_eq!(shown(sessions, &id).await, (changed.clone(), 1));
        assert_eq!(shown(sessions, &id).await, (changed, 0));
    }

    /// The worker dies where it hurts: the database has the change, and nobody told the cache.
    #[tokio::test]
    async fn killed_a_thousand_times_between_commit_and_cache_no_cart_differs() {
        let shop = TestShop::open().await;
        let sessions = &shop.shop.sessions;
        let ids: Vec<SessionId> = (0..50).map(|_| SessionId::random().unwrap()).collect();
        for death in 0..1_000_i64 {
            let id = &ids[usize::try_from(death).unwrap() % ids.len()];
            if death % 3 == 0 {
                // So that there is something old to be shown.
                shown(sessions, id).await;
            }
            let mut change = sessions.begin(id).await.unwrap();
            change.session.set(ToyId(1 + death % 200), 1 + death % 9);
            drop(change.commit().await.unwrap());
            assert_eq!(shown(sessions, id).await.0, row(sessions, id).await, "death {death}");
        }
        shop.daemon.clock().advance(CHANGING_TTL);
        for id in &ids {
            assert_eq!(shown(sessions, id).await.0, row(sessions, id).await);
            assert_eq!(shown(sessions, id).await.1, 0, "its mark is over, and it is cached again");
        }
    }

    #[tokio::test]
    async fn changes_that_meet_all_count_and_the_last_is_shown() {
        let shop = TestShop::open().await;
        let (sessions, id) = (shop.shop.sessions.clone(), SessionId::random().unwrap());
        let other =
            crate::database::Database::open(&shop.dir.path().join("shop.sqlite").display().to_string(), &[])
                .unwrap();
        let other = Sessions::new(&shop.client, other, shop.daemon.clock().clone());
        let tasks: Vec<_> = (0..40)
            .map(|at| {
                let (sessions, id) = (if at % 2 == 0 { sessions.clone() } else { other.clone() }, id.clone());
                tokio::spawn(async move {
                    sessions.change(&id, |session| session.add(ToyId(7), 1)).await.unwrap();
                    sessions.read(&id, &Visit::default()).await.unwrap()
                })
            })
            .collect();
        for task in tasks {
            task.await.unwrap();
        }
        let last = shown(&sessions, &id).await.0;
        assert_eq!((last.version, last.in_cart()), (40, 40));
        assert_eq!(last, row(&sessions, &id).await);
    }

    #[tokio::test]
    async fn without_a_cache_carts_are_the_databases() {
        let shop = TestShop::open().await;
        let away = Client::builder().socket("/nowhere/kvd.sock").build_lazy();
        let workers: Vec<Sessions> = (0..2)
            .map(|_| Sessions::new(&away, shop.shop.database.clone(), shop.daemon.clock().clone()))
            .collect();
        let id = SessionId::random().unwrap();
        for round in 1..=5 {
            workers[0].change(&id, |session| session.add(ToyId(7), 1)).await.unwrap();
            assert_eq!(shown(&workers[1], &id).await.0.in_cart(), round, "another worker shows it at once");
        }
    }

    #[tokio::test]
    async fn a_change_that_is_dropped_never_was() {
        let shop = TestShop::open().await;
        let (sessions, id) = (&shop.shop.sessions, SessionId::random().unwrap());
        sessions.change(&id, |session| session.add(ToyId(7), 2)).await.unwrap();
        let mut change = sessions.begin(&id).await.unwrap();
        change.session.set(ToyId(7), 0);
        drop(change);
        assert_eq!(shown(sessions, &id).await.0.lines, [(ToyId(7), 2)]);
        assert_eq!(row(sessions, &id).await.version, 1);
    }
}
