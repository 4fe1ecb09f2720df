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
struct Committed {
    sessions: Sessions,
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

    /// Changes a session: in the database, then in the cache. `change` may be called more than once, and counts once: the row keeps which
    /// change was its last, so that one whose commit was answered by silence is not made again, unless yet another came between.
    pub(crate) async fn change(
        &self,
        id: &SessionId,
        change: impl Fn(&mut Session),
    ) -> Result<Session, Fault> {
        self.change_once(id, SessionId::random()?.as_str(), change).await
    }

    async fn change_once(
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

impl Change {
    /// Writes the session and commits, with whatever else the transaction did, and tells the cache. In a task of its own: whoever waits for
    /// it may be dropped, because his visitor has left, and nothing comes between a commit and what the cache is told of it.
    pub(crate) async fn finish(self) -> Result<Session, Fault> {
        let finished = tokio::spawn(async move { Ok(self.commit().await?.publish().await) });
        finished.await.unwrap_or(Err(Fault::Database(sqlx::Error::WorkerCrashed)))
    }

    async fn commit(self) -> Result<Committed, Fault> {
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
    async fn publish(self) -> Session {
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

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt as _;

    use rustix::process::{Signal, getpid, kill_process};
    use tokio::process::Command;

    use super::*;
    use crate::cli::Places;
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

    /// A worker of the test below, in a process of its own: told a cart and what to put there, it commits, and is killed before the
    /// cache hears of it.
    #[tokio::test]
    async fn worker_that_is_killed() {
        let Ok(told) = std::env::var("SHOP_KILLED") else { return };
        let [data, socket, id, toy, count] = told.split('\n').collect::<Vec<_>>()[..] else {
            panic!("{told}")
        };
        let places =
            Places { data: data.into(), database: None, replicas: vec![], cache: Some(socket.into()) };
        let sessions = Sessions::new(&places.client("killed"), places.database().unwrap(), Clock::system());
        let mut change = sessions.begin(&SessionId::of_text(id)).await.unwrap();
        change.session.set(ToyId(toy.parse().unwrap()), count.parse().unwrap());
        let _committed = change.commit().await.unwrap();
        kill_process(getpid(), Signal::KILL).unwrap();
    }

    /// Workers die where it hurts: the database has the change, and nobody told the cache.
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
            let (data, socket) = (shop.dir.path().display(), shop.daemon.socket().display());
            let (toy, count) = (1 + death % 200, 1 + death % 9);
            let told = format!("{data}\n{socket}\n{}\n{toy}\n{count}", id.as_str());
            let mut worker = Command::new(std::env::current_exe().unwrap());
            worker.args(["--exact", "visitors::session::tests::worker_that_is_killed", "--nocapture"]);
            let ended = worker.env("SHOP_KILLED", told).output().await.unwrap();
            assert_eq!(ended.status.signal(), Some(9), "{}", String::from_utf8_lossy(&ended.stderr));
            let kept = row(sessions, id).await;
            assert!(kept.lines.contains(&(ToyId(toy), count)), "death {death}: it did not commit");
            assert_eq!(shown(sessions, id).await.0, kept, "death {death}");
        }
        shop.daemon.clock().advance(CHANGING_TTL);
        for id in &ids {
            assert_eq!(shown(sessions, id).await.0, row(sessions, id).await);
            assert_eq!(shown(sessions, id).await.1, 0, "its mark is over, and it is cached again");
        }
    }

    /// The answer to a commit is lost, and the change is tried again.
    #[tokio::test]
    async fn a_change_that_is_made_again_counts_once() {
        let shop = TestShop::open().await;
        let (sessions, id) = (&shop.shop.sessions, SessionId::random().unwrap());
        for which in ["one", "one", "two"] {
            let more = |session: &mut Session| session.add(ToyId(7), 1);
            sessions.change_once(&id, which, more).await.unwrap();
        }
        assert_eq!(shown(sessions, &id).await.0.in_cart(), 2);
    }

    /// Its visitor leaves at any moment: what the database has, the cache has soon.
    #[tokio::test]
    async fn a_change_whose_visitor_left_is_told_to_the_cache() {
        let shop = TestShop::open().await;
        let (sessions, id) = (&shop.shop.sessions, SessionId::random().unwrap());
        for left in 0..100 {
            let change = sessions.change(&id, |session| session.add(ToyId(1 + left % 40), 1));
            let patience = Duration::from_micros(u64::try_from(left).unwrap() * 30);
            drop(tokio::time::timeout(patience, change).await);
            let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
            while shown(sessions, &id).await.1 > 0 {
                assert!(tokio::time::Instant::now() < deadline, "nobody told the cache after {patience:?}");
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
    }

    #[tokio::test]
    async fn a_mark_that_was_lost_in_the_commit_leaves_nothing_old_behind() {
        let shop = TestShop::open().await;
        let (sessions, id) = (&shop.shop.sessions, SessionId::random().unwrap());
        let mut change = sessions.begin(&id).await.unwrap();
        change.session.set(ToyId(7), 3);
        let committed = change.commit().await.unwrap();
        // The mark is over, and somebody who had read the row before the commit puts it only now.
        sessions.kept.put(id.as_str(), &Kept::Is(Session::default()), TTL).await.unwrap();
        committed.publish().await;
        assert_eq!(shown(sessions, &id).await.0, row(sessions, &id).await);
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
