//! Read replicas: reads that may be slightly old go round robin, and a replica that fails never shows.
//!
//! From "E-Commerce with Django at Scale": replicas are cheap scaling, but one that goes away must not take pages along. Whoever fails
//! to connect or breaks off is taken out at once and tried again later; the next one is asked, the primary as last resort. The
//! pitfall: waiting for a dead server's TCP time-out in every request, which is why connecting has a short deadline and why a
//! failed one is not asked again before [`OUT_FOR`] has passed, and then by one request: the others do not wait to see whether it is back.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use sqlx::AnyPool;
use tokio::time::timeout;

use crate::faults;

/// How long a failed replica is left alone.
const OUT_FOR: Duration = Duration::from_secs(2);
/// How long one may take to answer before the next is asked.
const ANSWER_WITHIN: Duration = Duration::from_secs(1);

/// Whom to ask for what may be slightly old. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Replicas(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    replicas: Vec<Replica>,
    primary: AnyPool,
    turn: AtomicUsize,
    since: Instant,
}

#[derive(Debug)]
struct Replica {
    pool: AnyPool,
    /// Milliseconds since `Inner::since` until which it is not asked; 0: it answers.
    out_until_ms: AtomicU64,
    #[cfg(test)]
    answers: AtomicU64,
}

impl Replicas {
    pub(super) fn new(pools: Vec<AnyPool>, primary: AnyPool) -> Replicas {
        let replica = |pool| Replica {
            pool,
            out_until_ms: AtomicU64::new(0),
            #[cfg(test)]
            answers: AtomicU64::new(0),
        };
        let replicas = pools.into_iter().map(replica).collect();
        Replicas(Arc::new(Inner { replicas, primary, turn: AtomicUsize::new(0), since: Instant::now() }))
    }

    /// Asks one replica, another if it is away, at last the primary. A query that is wrong is wrong everywhere: it fails at once.
    pub(crate) async fn read<T, F>(&self, query: impl Fn(AnyPool) -> F) -> Result<T, sqlx::Error>
    where
        F: Future<Output = Result<T, sqlx::Error>>,
    {
        let Inner { replicas, primary, turn, .. } = &*self.0;
        let first = turn.fetch_add(1, Ordering::Relaxed);
        for nth in 0..replicas.len() {
            let replica = &replicas[(first.wrapping_add(nth)) % replicas.len()];
            if !self.may_ask(replica) {
                continue;
            }
            match timeout(ANSWER_WITHIN, query(replica.pool.clone())).await {
                Ok(Err(error)) if faults::is_connection_lost(&error) => self.take_out(replica, &error),
                Err(_elapsed) => self.take_out(replica, &sqlx::Error::PoolTimedOut),
                Ok(answer) => {
                    replica.out_until_ms.store(0, Ordering::Relaxed);
                    #[cfg(test)]
                    replica.answers.fetch_add(1, Ordering::Relaxed);
                    return answer;
                }
            }
        }
        query(primary.clone()).await
    }

    /// Whether it answers, as far as is known; or whether it is this request that finds out.
    fn may_ask(&self, replica: &Replica) -> bool {
        let until = replica.out_until_ms.load(Ordering::Relaxed);
        if until == 0 {
            return true;
        }
        let next = self.now_ms() + millis(OUT_FOR);
        let is_over = until <= self.now_ms();
        is_over
            && replica
                .out_until_ms
                .compare_exchange(until, next, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok()
    }

    fn take_out(&self, replica: &Replica, error: &sqlx::Error) {
        replica.out_until_ms.store(self.now_ms() + millis(OUT_FOR), Ordering::Relaxed);
        tracing::warn!(%error, "a replica is taken out for {OUT_FOR:?}");
    }

    fn now_ms(&self) -> u64 {
        millis(self.0.since.elapsed())
    }

    /// How often each replica has answered.
    #[cfg(test)]
    pub(crate) fn answers(&self) -> Vec<u64> {
        self.0.replicas.iter().map(|replica| replica.answers.load(Ordering::Relaxed)).collect()
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use sqlx::Row as _;

    use super::super::Database;
    use super::*;

    async fn with_a_name(dir: &std::path::Path, name: &str) -> String {
        let file = dir.join(format!("{name}.sqlite")).display().to_string();
        let database = Database::open(&file, &[]).unwrap();
        let statement = format!("CREATE TABLE who (name TEXT NOT NULL); INSERT INTO who VALUES ('{name}')");
        sqlx::raw_sql(&statement).execute(database.primary()).await.unwrap();
        file
    }

    async fn who(database: &Database) -> String {
        let answer =
            database.replicas().read(async |pool| sqlx::query("SELECT name FROM who").fetch_one(&pool).await);
        answer.await.unwrap().get(0)
    }

    #[tokio::test]
    async fn replicas_take_turns_and_one_that_is_away_never_shows() {
        let dir = tempfile::tempdir().unwrap();
        let primary = with_a_name(dir.path(), "primary").await;
        let (one, two) = (with_a_name(dir.path(), "one").await, with_a_name(dir.path(), "two").await);
        let away = format!("sqlite://{}/nowhere/none.sqlite?mode=rw", dir.path().display());
        let database = Database::open(&primary, &[one, away.clone(), two]).unwrap();
        let mut seen = std::collections::BTreeMap::<String, u32>::new();
        for _ in 0..30 {
            *seen.entry(who(&database).await).or_default() += 1;
        }
        assert_eq!(seen.keys().collect::<Vec<_>>(), ["one", "two"]);
        assert!(seen.values().all(|count| *count >= 10), "{seen:?}");
        assert_eq!(database.replicas().answers()[1], 0);

        let alone = Database::open(&primary, &[away]).unwrap();
        assert_eq!(who(&alone).await, "primary", "the last resort");
    }

    #[tokio::test]
    async fn one_request_finds_out_whether_a_replica_is_back() {
        let dir = tempfile::tempdir().unwrap();
        let primary = with_a_name(dir.path(), "primary").await;
        let one = with_a_name(dir.path(), "one").await;
        let database = Database::open(&primary, &[one]).unwrap();
        let (replicas, replica) = (database.replicas(), &database.replicas().0.replicas[0]);
        replicas.take_out(replica, &sqlx::Error::PoolTimedOut);
        assert_eq!(who(&database).await, "primary");
        // Its time is over. The clock began with the replicas, so it is past its first millisecond soon.
        replica.out_until_ms.store(1, Ordering::Relaxed);
        while replicas.now_ms() < 1 {
            tokio::task::yield_now().await;
        }
        assert!(replicas.may_ask(replica));
        assert!(!replicas.may_ask(replica), "one asks already");
        replica.out_until_ms.store(1, Ordering::Relaxed);
        assert_eq!(who(&database).await, "one");
        assert!(replicas.may_ask(replica) && replicas.may_ask(replica), "it has answered");
    }

    #[tokio::test]
    async fn a_wrong_query_is_not_taken_for_a_dead_replica() {
        let dir = tempfile::tempdir().unwrap();
        let primary = with_a_name(dir.path(), "primary").await;
        let one = with_a_name(dir.path(), "one").await;
        let database = Database::open(&primary, &[one]).unwrap();
        let wrong = database
            .replicas()
            .read(async |pool| sqlx::query("SELECT shoe_size FROM who").fetch_one(&pool).await);
        assert!(wrong.await.is_err());
        assert_eq!(who(&database).await, "one");
    }
}
