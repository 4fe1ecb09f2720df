//! Fills the database: from a file of real toy sets, or with toys that are made up.
//!
//! Called by `app import` and `app demo`. Importing again changes descriptions and prices and leaves the stock alone, which orders have
//! changed since. All of it is one transaction: visitors see the old catalogue or the new one.

mod generated;
mod legosets;

use std::path::Path;

use sqlx::{Any, Transaction};

use crate::cli::Failure;
use crate::database::{Database, parameters};
use crate::faults::Fault;

pub(crate) use generated::generated;

/// Rows of one statement. SQLite takes 32,766 parameters, PostgreSQL 65,535.
const ROWS: usize = 500;
/// Most toys of one import. Beyond: refused, with the limit named.
pub(crate) const TOYS_MAX: usize = 1_000_000;

/// One toy to be imported.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Toy {
    pub(crate) id: i64,
    pub(crate) name: String,
    pub(crate) category: String,
    pub(crate) text: String,
    pub(crate) picture: &'static str,
    pub(crate) cents: i64,
    pub(crate) pieces: i64,
}

/// What there is to import.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Source<'a> {
    File(&'a Path),
    Generated { toys: usize, seed: u64 },
}

/// Reads or makes the toys, and writes them; how many.
pub(crate) async fn import(database: &Database, source: Source<'_>) -> Result<usize, Failure> {
    let toys = match source {
        Source::File(file) => legosets::read(file)
            .map_err(|source| Failure::Catalogue { file: file.to_owned(), message: source.to_string() })?,
        Source::Generated { toys, seed } => generated(toys, seed),
    };
    if toys.len() > TOYS_MAX {
        return Err(Failure::TooManyToys { toys: toys.len(), limit: TOYS_MAX });
    }
    write(database, &toys).await?;
    Ok(toys.len())
}

/// Whether there is anything to sell. A database that was never migrated has nothing.
pub(crate) async fn has_toys(database: &Database) -> Result<bool, Fault> {
    crate::database::migrations::migrate(database).await?;
    let toy = sqlx::query("SELECT id FROM toy LIMIT 1").fetch_optional(database.primary()).await?;
    Ok(toy.is_some())
}

async fn write(database: &Database, toys: &[Toy]) -> Result<(), Fault> {
    let mut transaction = database.begin().await?;
    for some in toys.chunks(ROWS) {
        write_some(&mut transaction, some).await?;
    }
    transaction.commit().await?;
    Ok(())
}

async fn write_some(transaction: &mut Transaction<'static, Any>, toys: &[Toy]) -> Result<(), sqlx::Error> {
    let rows = |columns: usize| {
        let row = |at: usize| format!("({})", parameters(1 + at * columns, columns));
        (0..toys.len()).map(row).collect::<Vec<_>>().join(", ")
    };
    let statement = format!(
        "INSERT INTO toy (id, name, category, text, picture) VALUES {} ON CONFLICT (id) DO UPDATE SET \
         name = excluded.name, category = excluded.category, text = excluded.text, picture = excluded.picture",
        rows(5)
    );
    let query = toys.iter().fold(sqlx::query(&statement), |query, toy| {
        query.bind(toy.id).bind(&toy.name).bind(&toy.category).bind(&toy.text).bind(toy.picture)
    });
    query.execute(&mut **transaction).await?;
    let statement = format!(
        "INSERT INTO price (toy, cents) VALUES {} ON CONFLICT (toy) DO UPDATE SET cents = excluded.cents",
        rows(2)
    );
    let query = toys.iter().fold(sqlx::query(&statement), |query, toy| query.bind(toy.id).bind(toy.cents));
    query.execute(&mut **transaction).await?;
    let statement =
        format!("INSERT INTO inventory (toy, pieces) VALUES {} ON CONFLICT (toy) DO NOTHING", rows(2));
    let query = toys.iter().fold(sqlx::query(&statement), |query, toy| query.bind(toy.id).bind(toy.pieces));
    query.execute(&mut **transaction).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use sqlx::Row as _;

    use super::*;
    use crate::database::migrations::migrate;

    async fn one(database: &Database, query: &str) -> i64 {
        sqlx::query(query).fetch_one(database.primary()).await.unwrap().get(0)
    }

    #[tokio::test]
    async fn importing_again_changes_prices_and_leaves_the_stock_alone() {
        let dir = tempfile::tempdir().unwrap();
        let database = Database::open(&dir.path().join("shop.sqlite").display().to_string(), &[]).unwrap();
        migrate(&database).await.unwrap();
        let toys = Source::Generated { toys: 1_200, seed: 7 };
        assert_eq!(import(&database, toys).await.unwrap(), 1_200);
        for change in
            ["UPDATE inventory SET pieces = 77 WHERE toy = 5", "UPDATE price SET cents = 1 WHERE toy = 5"]
        {
            sqlx::query(change).execute(database.primary()).await.unwrap();
        }
        import(&database, toys).await.unwrap();
        assert_eq!(one(&database, "SELECT COUNT(*) FROM toy").await, 1_200);
        assert_eq!(one(&database, "SELECT pieces FROM inventory WHERE toy = 5").await, 77);
        assert_ne!(one(&database, "SELECT cents FROM price WHERE toy = 5").await, 1);
    }

    #[tokio::test]
    async fn the_real_catalogue_is_imported_whole() {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/data/legosets.csv");
        if !file.exists() {
            println!("skipped: {} is not there", file.display());
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let database = Database::open(&dir.path().join("shop.sqlite").display().to_string(), &[]).unwrap();
        migrate(&database).await.unwrap();
        assert_eq!(import(&database, Source::File(&file)).await.unwrap(), 6_172);
        assert_eq!(one(&database, "SELECT COUNT(DISTINCT category) FROM toy").await, 115);
        assert_eq!(one(&database, "SELECT COUNT(*) FROM price WHERE cents < 99").await, 0);
    }
}
