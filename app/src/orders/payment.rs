//! The payment stand-in: somebody else's service, with a ledger of its own, that can be slow, away, or say no.
//!
//! From FMStocks 2000, where a subscriber verifies funds and takes the money. The pitfall: a request that is repeated because its answer was lost
//! takes the money twice. So a charge carries a key, the order's id; the ledger keeps what it answered, and the same key gets the same
//! answer and moves no money. The ledger is a database of its own, as a real service's is, and is the judge in the tests.

use std::path::Path;
use std::time::Duration;

use sqlx::Row as _;
use tokio::time::sleep;

use crate::database::Database;
use crate::faults::Fault;

/// Cards that end so are refused.
pub(crate) const REFUSED: &str = "0002";

/// How well the service does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Mood {
    /// Before each answer.
    pub(crate) slow: Duration,
    /// Of a hundred requests so many are answered by an error, half of them after the money was moved.
    pub(crate) away_percent: u8,
}

/// What it says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    Charged,
    Refused,
}

/// The service. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Payment {
    ledger: Database,
    mood: Mood,
}

impl Payment {
    /// Opens the ledger, or begins one.
    pub(crate) async fn open(file: &Path, mood: Mood) -> Result<Payment, Fault> {
        let ledger = Database::open(&file.display().to_string(), &[])?;
        sqlx::raw_sql(
            "CREATE TABLE IF NOT EXISTS answer (key TEXT PRIMARY KEY, verdict TEXT NOT NULL, requests BIGINT NOT NULL); \
             CREATE TABLE IF NOT EXISTS movement (key TEXT NOT NULL, cents BIGINT NOT NULL)",
        )
        .execute(ledger.primary())
        .await?;
        Ok(Payment { ledger, mood })
    }

    /// Moves money, once a key.
    pub(crate) async fn charge(&self, key: &str, card: &str, cents: i64) -> Result<Verdict, Fault> {
        sleep(self.mood.slow).await;
        let away = || Fault::Io { what: "payment", source: std::io::ErrorKind::TimedOut.into() };
        let is_away = fastrand::u8(0..100) < self.mood.away_percent;
        if is_away && fastrand::bool() {
            return Err(away());
        }
        let mut transaction = self.ledger.begin().await?;
        let verdict = if card.ends_with(REFUSED) { "refused" } else { "charged" };
        let first = sqlx::query(
            "INSERT INTO answer (key, verdict, requests) VALUES ($1, $2, 1) ON CONFLICT DO NOTHING",
        )
        .bind(key)
        .bind(verdict)
        .execute(&mut *transaction)
        .await?;
        if first.rows_affected() == 0 {
            let again = sqlx::query("UPDATE answer SET requests = requests + 1 WHERE key = $1").bind(key);
            again.execute(&mut *transaction).await?;
        } else if verdict == "charged" {
            let movement =
                sqlx::query("INSERT INTO movement (key, cents) VALUES ($1, $2)").bind(key).bind(cents);
            movement.execute(&mut *transaction).await?;
        }
        let row = sqlx::query("SELECT verdict FROM answer WHERE key = $1")
            .bind(key)
            .fetch_one(&mut *transaction)
            .await?;
        let verdict: String = row.try_get(0)?;
        transaction.commit().await?;
        if is_away {
            return Err(away());
        }
        Ok(if verdict == "charged" { Verdict::Charged } else { Verdict::Refused })
    }

    /// How often money was moved, and how much, over all: what the judge says.
    pub(crate) async fn movements(&self) -> Result<(i64, i64), Fault> {
        // A sum of integers is not one for PostgreSQL, without the cast.
        let sum = "SELECT COUNT(*), CAST(COALESCE(SUM(cents), 0) AS BIGINT) FROM movement";
        let row = sqlx::query(sum).fetch_one(self.ledger.primary()).await?;
        Ok((row.try_get(0)?, row.try_get(1)?))
    }
}
