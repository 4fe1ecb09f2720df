//! Migrations that only add, so that old and new workers run side by side on one database.
//!
//! From "E-Commerce with Django at Scale": never narrow a type, never rename (add, copy, remove much later), never drop in the release
//! that stops using it. The pitfall: a rolling deploy in which the workers that are not yet replaced meet a table they do not know.
//! A test reads every migration and refuses whatever is not an addition. Run by `import` and by the parent of the web workers.

use sqlx::{AnyConnection, Row as _};

use super::{Backend, Database};

/// Each once, in this order. What has been released is never changed, only added to.
const MIGRATIONS: [(i64, &str); 3] = [
    (1, include_str!("migrations/0001_shop.sql")),
    (2, include_str!("migrations/0002_bestsellers.sql")),
    (3, include_str!("migrations/0003_once.sql")),
];

/// Of the lock that keeps two processes from migrating at once. Any number will do, if nobody else takes it.
const LOCK: i64 = 0x6b76_6473_686f_7001;

/// Brings the database to what this program knows. Safe to do again, and by several at once.
pub(crate) async fn migrate(database: &Database) -> Result<(), sqlx::Error> {
    let mut transaction = database.begin().await?;
    if database.backend() == Backend::Postgres {
        // SQLite's transaction is exclusive already.
        sqlx::query("SELECT pg_advisory_xact_lock($1)").bind(LOCK).execute(&mut *transaction).await?;
    }
    sqlx::raw_sql("CREATE TABLE IF NOT EXISTS migration (number BIGINT PRIMARY KEY)")
        .execute(&mut *transaction)
        .await?;
    let done = done(&mut transaction).await?;
    for (number, statements) in MIGRATIONS.iter().filter(|(number, _)| *number > done) {
        sqlx::raw_sql(statements).execute(&mut *transaction).await?;
        let note = sqlx::query("INSERT INTO migration (number) VALUES ($1)").bind(*number);
        note.execute(&mut *transaction).await?;
        tracing::info!(number, "migrated");
    }
    transaction.commit().await
}

async fn done(connection: &mut AnyConnection) -> Result<i64, sqlx::Error> {
    let row = sqlx::query("SELECT COALESCE(MAX(number), 0) FROM migration").fetch_one(connection).await?;
    row.try_get(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is wrong with a statement, if it does more than add.
    fn objection(statement: &str) -> Option<&'static str> {
        let words = statement.to_uppercase().split_whitespace().collect::<Vec<_>>().join(" ");
        let adds_column = words.starts_with("ALTER TABLE ") && words.contains(" ADD COLUMN ");
        if words.is_empty() || words.starts_with("CREATE TABLE ") || words.starts_with("CREATE INDEX ") {
            None
        } else if !adds_column {
            Some("it is neither CREATE TABLE, CREATE INDEX nor ADD COLUMN")
        } else if words.contains(" NOT NULL") && !words.contains(" DEFAULT ") {
            Some("older workers insert without the new column: it needs a default, or to be nullable")
        } else {
            None
        }
    }

    #[test]
    fn every_migration_only_adds() {
        for (number, statements) in MIGRATIONS {
            for statement in statements.split(';') {
                assert_eq!(objection(statement), None, "migration {number}: {statement}");
            }
        }
        assert!(MIGRATIONS.windows(2).all(|pair| pair[0].0 < pair[1].0), "numbers grow");
    }

    #[test]
    fn what_would_break_a_rolling_deploy_is_refused() {
        for statement in [
            "DROP TABLE toy",
            "ALTER TABLE toy RENAME COLUMN name TO title",
            "ALTER TABLE toy DROP COLUMN text",
            "ALTER TABLE price ALTER COLUMN cents TYPE SMALLINT",
            "ALTER TABLE toy ADD COLUMN age BIGINT NOT NULL",
            "UPDATE toy SET name = ''",
        ] {
            assert!(objection(statement).is_some(), "{statement}");
        }
        assert_eq!(objection("ALTER TABLE toy ADD COLUMN age BIGINT"), None);
    }

    #[tokio::test]
    async fn an_older_worker_writes_on_after_the_newest_migration() {
        let dir = tempfile::tempdir().unwrap();
        let database = Database::open(&dir.path().join("shop.sqlite").display().to_string(), &[]).unwrap();
        let (first, second) = tokio::join!(migrate(&database), migrate(&database));
        first.unwrap();
        second.unwrap();
        // As release 1 wrote it.
        let insert = "INSERT INTO toy (id, name, category, text, picture) VALUES (1, 'Kite', 'outdoors', 'Flies.', 'k')";
        sqlx::query(insert).execute(database.primary()).await.unwrap();
        let row =
            sqlx::query("SELECT sold FROM toy WHERE id = 1").fetch_one(database.primary()).await.unwrap();
        assert_eq!(row.get::<i64, _>(0), 0);
    }
}
