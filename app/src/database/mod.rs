//! The SQL that everything comes from, and that everything is written to before any cache: SQLite, or PostgreSQL by URL.
//!
//! One schema and one text of each statement for both: `BIGINT` and `TEXT` only, numbered parameters, no generated keys. SQLite runs
//! in WAL mode, so that the readers of many processes never wait for a writer. Reads that may be slightly old go through
//! [`replicas`]; everything that decides something goes to the primary. It knows nothing of caches or pages.

pub(crate) mod migrations;
pub(crate) mod replicas;

use std::sync::Once;
use std::time::Duration;

use sqlx::any::AnyPoolOptions;
use sqlx::{Any, AnyPool, Executor as _, Transaction};

use replicas::Replicas;

/// Connections of one process to one server. Beyond: queries wait for one, up to [`CONNECTION_WITHIN`], and fail then.
const CONNECTIONS_MAX: u32 = 4;
/// See [`CONNECTIONS_MAX`]. Short, because a server that is gone must not show: somebody else is asked then.
const CONNECTION_WITHIN: Duration = Duration::from_secs(2);
/// Said to each SQLite connection. `synchronous = NORMAL` loses nothing when a process dies; power loss may cost the last commits.
const SQLITE: &str = "PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL; PRAGMA busy_timeout = 5000; \
                      PRAGMA foreign_keys = ON";
/// Said to each PostgreSQL connection: I wait for nobody for ever.
const POSTGRES: &str = "SET statement_timeout = '5s'; SET lock_timeout = '3s'";

/// Whose SQL it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Backend {
    Sqlite,
    Postgres,
}

/// A process's connections. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Database {
    primary: AnyPool,
    replicas: Replicas,
    backend: Backend,
}

impl Database {
    /// `place`: a file, or a `sqlite:` or `postgres:` URL; `replicas`: more of them. Connects when first asked.
    pub(crate) fn open(place: &str, replicas: &[String]) -> Result<Database, sqlx::Error> {
        let primary = pool(place)?;
        let replicas = replicas.iter().map(|place| pool(place)).collect::<Result<Vec<_>, _>>()?;
        let backend = if place.starts_with("postgres") { Backend::Postgres } else { Backend::Sqlite };
        Ok(Database { replicas: Replicas::new(replicas, primary.clone()), primary, backend })
    }

    pub(crate) fn backend(&self) -> Backend {
        self.backend
    }

    /// For what must be the newest.
    pub(crate) fn primary(&self) -> &AnyPool {
        &self.primary
    }

    /// For what may be slightly old.
    pub(crate) fn replicas(&self) -> &Replicas {
        &self.replicas
    }

    /// A transaction that will write. SQLite is told so at once: one that begins to read and then wants to write fails as soon as
    /// somebody else has written, however patient it is.
    ///
    /// In a task of its own: a caller that is dropped while the transaction begins, because its visitor has left, would otherwise give
    /// back a connection that has begun it, which nobody ends and which locks everybody out. So it is made, dropped, and rolled back.
    pub(crate) async fn begin(&self) -> Result<Transaction<'static, Any>, sqlx::Error> {
        let (pool, backend) = (self.primary.clone(), self.backend);
        let begun = tokio::spawn(async move {
            match backend {
                Backend::Sqlite => pool.begin_with("BEGIN IMMEDIATE").await,
                Backend::Postgres => pool.begin().await,
            }
        });
        begun.await.unwrap_or(Err(sqlx::Error::WorkerCrashed))
    }
}

fn pool(place: &str) -> Result<AnyPool, sqlx::Error> {
    static DRIVERS: Once = Once::new();
    DRIVERS.call_once(sqlx::any::install_default_drivers);
    let url = if place.contains("://") || place.starts_with("sqlite:") {
        place.to_owned()
    } else {
        format!("sqlite://{place}?mode=rwc")
    };
    AnyPoolOptions::new()
        .max_connections(CONNECTIONS_MAX)
        .acquire_timeout(CONNECTION_WITHIN)
        .test_before_acquire(false)
        .after_connect(|connection, _| {
            Box::pin(async move {
                let say = if connection.backend_name() == "SQLite" { SQLITE } else { POSTGRES };
                connection.execute(sqlx::raw_sql(say)).await.map(drop)
            })
        })
        .connect_lazy(&url)
}

/// `$1, $2, …` for as many values as there are, beginning at `first`.
pub(crate) fn parameters(first: usize, count: usize) -> String {
    (first..first + count).map(|number| format!("${number}")).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Callers are dropped at every point at which beginning a transaction waits.
    #[tokio::test]
    async fn a_caller_that_leaves_while_a_transaction_begins_locks_nobody_out() {
        let dir = tempfile::tempdir().unwrap();
        let database = Database::open(&dir.path().join("shop.sqlite").display().to_string(), &[]).unwrap();
        sqlx::raw_sql("CREATE TABLE t (n BIGINT NOT NULL)").execute(database.primary()).await.unwrap();
        for left in 0..200 {
            let impatient = tokio::time::timeout(Duration::from_micros(left * 5), database.begin()).await;
            drop(impatient);
        }
        for _ in 0..8 {
            let mut transaction = database.begin().await.unwrap();
            sqlx::query("INSERT INTO t VALUES (1)").execute(&mut *transaction).await.unwrap();
            transaction.commit().await.unwrap();
        }
    }
}
