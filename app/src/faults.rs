//! Transient faults: a unit of work that met one is done again, from its beginning.
//!
//! From "Fault tolerant EJB interceptor" (S. Carrez): a stale object or a deadlock's victim is tried again at once, a lost connection
//! after a pause that grows, about ten tries, each counted; the same wrapper serves the database and kvd. Two pitfalls: retrying one
//! statement of a transaction that is already rolled back, so the *whole unit* is repeated; and a lost answer to a commit that
//! did happen, so every unit that is wrapped must be idempotent (a checkout carries its order's id).

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::{Instant, sleep};

/// Most tries of one unit of work.
const TRIES_MAX: u32 = 10;
/// No try begins later than this.
const WITHIN: Duration = Duration::from_secs(8);
/// Pause after a conflict or deadlock: up to this, twice as long each time …
const CONFLICT_PAUSE_FIRST: Duration = Duration::from_millis(2);
/// … and after a lost connection. Both random, so that those who met do not meet again.
const LOST_PAUSE_FIRST: Duration = Duration::from_millis(100);
/// Longest pause.
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// What ends a request or a job.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Fault {
    #[error("database: {0}")]
    Database(#[from] sqlx::Error),
    #[error("cache: {0}")]
    Cache(#[from] kv_client::Error),
    #[error("template: {0}")]
    Template(#[from] minijinja::Error),
    #[error("search index: {0}")]
    Search(#[from] tantivy::TantivyError),
    #[error("mail: {0}")]
    Mail(String),
    #[error("randomness: {0}")]
    Random(#[from] getrandom::Error),
    #[error("{what}: {source}")]
    Io { what: &'static str, source: std::io::Error },
}

/// Why doing it again may help.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Transient {
    /// Somebody else was faster, or it was the victim of a deadlock.
    Conflict,
    /// The server went away, or has no room.
    Lost,
}

/// Units of work that were repeated, by reason.
static CONFLICTS: AtomicU64 = AtomicU64::new(0);
static LOSSES: AtomicU64 = AtomicU64::new(0);

/// How often something was repeated in this process: after conflicts, and after lost connections.
pub(crate) fn retries() -> (u64, u64) {
    (CONFLICTS.load(Ordering::Relaxed), LOSSES.load(Ordering::Relaxed))
}

/// Does a unit of work until it succeeds or fails for good. It must be idempotent.
pub(crate) async fn retry<T, F>(unit: impl FnMut() -> F) -> Result<T, Fault>
where
    F: Future<Output = Result<T, Fault>>,
{
    retry_within(WITHIN, unit).await
}

async fn retry_within<T, F>(within: Duration, mut unit: impl FnMut() -> F) -> Result<T, Fault>
where
    F: Future<Output = Result<T, Fault>>,
{
    let deadline = Instant::now() + within;
    let mut tries = 1;
    loop {
        let fault = match unit().await {
            Ok(done) => return Ok(done),
            Err(fault) => fault,
        };
        let Some(transient) = fault.transient().filter(|_| tries < TRIES_MAX) else { return Err(fault) };
        let (count, first) = match transient {
            Transient::Conflict => (&CONFLICTS, CONFLICT_PAUSE_FIRST),
            Transient::Lost => (&LOSSES, LOST_PAUSE_FIRST),
        };
        let pause = (first * 2_u32.pow(tries - 1)).min(PAUSE_MAX).mul_f64(fastrand::f64());
        if Instant::now() + pause > deadline {
            return Err(fault);
        }
        tracing::debug!(%fault, tries, ?pause, "a unit of work is done again");
        count.fetch_add(1, Ordering::Relaxed);
        tries += 1;
        sleep(pause).await;
    }
}

impl Fault {
    /// Whether doing the whole unit again may help, and why.
    pub(crate) fn transient(&self) -> Option<Transient> {
        match self {
            Fault::Database(error) => transient(error),
            Fault::Cache(error) => match (error.loader_error::<sqlx::Error>(), error.loader_error::<Fault>())
            {
                (Some(error), _) => transient(error),
                (None, Some(fault)) => fault.transient(),
                (None, None) if !error.is_retryable() => None,
                (None, None) if error.is_outage() => Some(Transient::Lost),
                (None, None) => Some(Transient::Conflict),
            },
            Fault::Template(_) | Fault::Search(_) | Fault::Mail(_) | Fault::Random(_) | Fault::Io { .. } => {
                None
            }
        }
    }
}

fn transient(error: &sqlx::Error) -> Option<Transient> {
    // SQLite: busy, locked, and busy because of an old snapshot; PostgreSQL: serialization failure, deadlock, no lock in time.
    const CONFLICT: [&str; 7] = ["5", "6", "261", "517", "40001", "40P01", "55P03"];
    let code = error.as_database_error().and_then(|error| error.code());
    match code {
        Some(code) if CONFLICT.contains(&&*code) => Some(Transient::Conflict),
        _ => is_connection_lost(error).then_some(Transient::Lost),
    }
}

/// Whether the server is away, rather than the statement wrong.
pub(crate) fn is_connection_lost(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Io(_) | sqlx::Error::PoolTimedOut | sqlx::Error::Tls(_) => true,
        sqlx::Error::Database(error) => error.code().is_some_and(|code| {
            // PostgreSQL: connection exceptions, shutting down or starting, too many connections; SQLite: cannot open.
            code.starts_with("08") || code.starts_with("57P") || code == "53300" || code == "14"
        }),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;
    use crate::database::Database;

    fn lost() -> Fault {
        Fault::Database(sqlx::Error::Io(std::io::ErrorKind::ConnectionReset.into()))
    }

    #[tokio::test]
    async fn a_lost_connection_is_tried_again_and_not_for_ever() {
        let tries = Cell::new(0);
        let unit = async || {
            tries.set(tries.get() + 1);
            if tries.get() < 4 { Err(lost()) } else { Ok(tries.get()) }
        };
        assert_eq!(retry(unit).await.unwrap(), 4);
        let tries = Cell::new(0);
        let never = async || -> Result<(), Fault> {
            tries.set(tries.get() + 1);
            Err(lost())
        };
        assert!(retry_within(Duration::from_millis(500), never).await.is_err());
        assert!((2..=TRIES_MAX).contains(&tries.get()), "{} tries", tries.get());
    }

    #[tokio::test]
    async fn what_is_wrong_stays_wrong() {
        let tries = Cell::new(0);
        let wrong = async || -> Result<(), Fault> {
            tries.set(tries.get() + 1);
            Err(Fault::Database(sqlx::Error::RowNotFound))
        };
        assert!(retry(wrong).await.is_err());
        assert_eq!(tries.get(), 1);
    }

    #[tokio::test]
    async fn a_conflict_provoked_in_the_database_is_one() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("shop.sqlite").display().to_string();
        let (one, two) = (Database::open(&file, &[]).unwrap(), Database::open(&file, &[]).unwrap());
        sqlx::raw_sql("CREATE TABLE t (n BIGINT NOT NULL); INSERT INTO t VALUES (1)")
            .execute(one.primary())
            .await
            .unwrap();
        // Reads first, so that what it saw is old by the time it writes.
        let mut reader = one.primary().begin().await.unwrap();
        sqlx::query("SELECT n FROM t").fetch_one(&mut *reader).await.unwrap();
        sqlx::query("UPDATE t SET n = 2").execute(two.primary()).await.unwrap();
        let error = sqlx::query("UPDATE t SET n = 3").execute(&mut *reader).await.unwrap_err();
        assert_eq!(Fault::from(error).transient(), Some(Transient::Conflict));
    }
}
