//! The SQL that everything comes from: SQLite, in WAL mode, so that readers of many processes never wait for a writer.
//!
//! Called by `catalogue` for what is not cached, and by the parent process once, to make and fill it. It knows nothing of caches
//! or pages.

use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use sqlx::SqlitePool;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};

/// Connections of one worker. Beyond: queries wait for one, up to [`CONNECTION_WITHIN`], and fail then.
const CONNECTIONS_MAX: u32 = 4;
/// See [`CONNECTIONS_MAX`].
const CONNECTION_WITHIN: Duration = Duration::from_secs(2);
/// How long a statement waits for another process that writes.
const WRITER_WITHIN: Duration = Duration::from_secs(5);
/// Toys in a new shop.
const TOYS: u32 = 100;

/// Which toy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ToyId(pub(crate) u32);

/// What a toy is. Changes when somebody writes a better text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Description {
    pub(crate) name: String,
    pub(crate) theme: String,
    pub(crate) text: String,
    /// Of one character.
    pub(crate) picture: String,
}

/// What it costs. Changes with every sale.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Price {
    pub(crate) cents: u32,
}

/// How many there are. Changes with every order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Inventory {
    pub(crate) pieces: u32,
}

/// A worker's connections. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Database(SqlitePool);

impl Database {
    /// Makes the database where there is none, and the toys that are missing. Safe to do again.
    pub(crate) async fn create(file: &Path) -> Result<(), sqlx::Error> {
        let Database(pool) = Database::connect(options(file).create_if_missing(true)).await?;
        let mut transaction = pool.begin().await?;
        sqlx::raw_sql(include_str!("schema.sql")).execute(&mut *transaction).await?;
        for toy in (1..=TOYS).map(generated) {
            let Description { name, theme, text, picture } = toy.description;
            sqlx::query("INSERT OR IGNORE INTO toy (id, name, theme, text, picture) VALUES (?, ?, ?, ?, ?)")
                .bind(toy.id.0)
                .bind(name)
                .bind(theme)
                .bind(text)
                .bind(picture)
                .execute(&mut *transaction)
                .await?;
            sqlx::query("INSERT OR IGNORE INTO price (toy, cents) VALUES (?, ?)")
                .bind(toy.id.0)
                .bind(toy.price.cents)
                .execute(&mut *transaction)
                .await?;
            sqlx::query("INSERT OR IGNORE INTO inventory (toy, pieces) VALUES (?, ?)")
                .bind(toy.id.0)
                .bind(toy.inventory.pieces)
                .execute(&mut *transaction)
                .await?;
        }
        transaction.commit().await?;
        pool.close().await;
        Ok(())
    }

    /// Opens what the parent made.
    pub(crate) async fn open(file: &Path) -> Result<Database, sqlx::Error> {
        Database::connect(options(file)).await
    }

    async fn connect(options: SqliteConnectOptions) -> Result<Database, sqlx::Error> {
        let pool =
            SqlitePoolOptions::new().max_connections(CONNECTIONS_MAX).acquire_timeout(CONNECTION_WITHIN);
        pool.connect_with(options).await.map(Database)
    }

    pub(crate) async fn description(self, id: ToyId) -> Result<Option<Description>, sqlx::Error> {
        let row = sqlx::query_as("SELECT name, theme, text, picture FROM toy WHERE id = ?").bind(id.0);
        let row: Option<(String, String, String, String)> = row.fetch_optional(&self.0).await?;
        Ok(row.map(|(name, theme, text, picture)| Description { name, theme, text, picture }))
    }

    pub(crate) async fn price(self, id: ToyId) -> Result<Option<Price>, sqlx::Error> {
        let row = sqlx::query_as("SELECT cents FROM price WHERE toy = ?").bind(id.0);
        let row: Option<(u32,)> = row.fetch_optional(&self.0).await?;
        Ok(row.map(|(cents,)| Price { cents }))
    }

    pub(crate) async fn inventory(self, id: ToyId) -> Result<Option<Inventory>, sqlx::Error> {
        let row = sqlx::query_as("SELECT pieces FROM inventory WHERE toy = ?").bind(id.0);
        let row: Option<(u32,)> = row.fetch_optional(&self.0).await?;
        Ok(row.map(|(pieces,)| Inventory { pieces }))
    }
}

fn options(file: &Path) -> SqliteConnectOptions {
    SqliteConnectOptions::new()
        .filename(file)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Normal)
        .foreign_keys(true)
        .busy_timeout(WRITER_WITHIN)
}

/// A toy that was made up.
struct Generated {
    id: ToyId,
    description: Description,
    price: Price,
    inventory: Inventory,
}

/// The toy of a number: always the same, so that seeding again changes nothing.
fn generated(number: u32) -> Generated {
    const ADJECTIVES: [&str; 10] = [
        "Brave",
        "Clockwork",
        "Giant",
        "Glowing",
        "Little",
        "Magnetic",
        "Musical",
        "Painted",
        "Secret",
        "Wooden",
    ];
    const THINGS: [(&str, &str, &str); 10] = [
        ("Rocket", "space", "🚀"),
        ("Bear", "animals", "🧸"),
        ("Kite", "outdoors", "🪁"),
        ("Castle", "knights", "🏰"),
        ("Train", "vehicles", "🚂"),
        ("Robot", "space", "🤖"),
        ("Dragon", "knights", "🐉"),
        ("Sailing Boat", "vehicles", "⛵"),
        ("Drum", "music", "🥁"),
        ("Puzzle", "games", "🧩"),
    ];
    let at = number as usize - 1;
    let (thing, theme, picture) = THINGS[at % THINGS.len()];
    let name = format!("{} {thing}", ADJECTIVES[at / THINGS.len() % ADJECTIVES.len()]);
    let text = format!(
        "The {name} has been loved to pieces by every child who tested it, and put together again. \
         For hands of {} years and older; batteries are not needed, an afternoon is.",
        3 + number % 6
    );
    Generated {
        id: ToyId(number),
        description: Description { name, theme: theme.to_owned(), text, picture: picture.to_owned() },
        price: Price { cents: 499 + number * 7919 % 90 * 100 },
        inventory: Inventory { pieces: number * 31 % 23 },
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn no_two_toys_of_a_new_shop_are_called_the_same() {
        let names: BTreeSet<String> = (1..=TOYS).map(|number| generated(number).description.name).collect();
        assert_eq!(names.len(), TOYS as usize);
    }
}
