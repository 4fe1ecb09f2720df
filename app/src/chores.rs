//! What is done now and then: cleaning up, purging a page, changing a price.
//!
//! From FMStocks 2000 (a nightly routine removes old carts) and "Building a Large-scale E-commerce Site with Apache and mod_perl" (a hook deletes the cached
//! copy of one URL in an emergency). The pitfall of purging by hand: the page goes, and is made again of the same old objects. So a changed
//! toy is cleared by its tag, objects and pages together, and `purge` is for the page alone.

use std::time::Duration;

use kv_client::Client;
use kvd::clock::Clock;
use sqlx::Row as _;

use crate::catalogue::{Catalogue, ToyId};
use crate::cli::Failure;
use crate::database::Database;
use crate::faults::{Fault, retry};
use crate::orders::subscribers;
use crate::pages::address::Address;
use crate::pages::cache::PageCache;

/// Rows that one transaction removes, so that nobody waits long for it.
const ROWS_MAX: i64 = 500;

/// What was removed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Cleaned {
    pub(crate) sessions: u64,
    pub(crate) events: u64,
}

/// Removes sessions and carts that nobody touched for so long, and events that everybody has had.
pub(crate) async fn clean(database: &Database, clock: &Clock, age: Duration) -> Result<Cleaned, Fault> {
    let before_ms = clock.wall_ms() - i64::try_from(age.as_millis()).unwrap_or(i64::MAX);
    let old = "SELECT id FROM session WHERE changed_ms < $1 ORDER BY changed_ms LIMIT $2";
    let had = "SELECT outbox.id, outbox.kind, COUNT(*) FROM outbox JOIN delivery ON delivery.event = outbox.id \
               AND delivery.is_done = 1 WHERE outbox.written_ms < $1 GROUP BY outbox.id, outbox.kind LIMIT $2";
    let statements = ["DELETE FROM cart_line WHERE session IN", "DELETE FROM session WHERE id IN"]
        .map(|delete| format!("{delete} ({old})"));
    let sessions = chunks(database, before_ms, &statements).await?;
    // An event that somebody has not had stays, however old it is.
    let events = retry(async || {
        let mut transaction = database.begin().await?;
        let rows = sqlx::query(had).bind(before_ms).bind(ROWS_MAX).fetch_all(&mut *transaction).await?;
        let mut removed = 0;
        for row in &rows {
            let (id, kind, had): (String, String, i64) = (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
            if had < subscribers(&kind) {
                continue;
            }
            for statement in ["DELETE FROM delivery WHERE event = $1", "DELETE FROM outbox WHERE id = $1"] {
                sqlx::query(statement).bind(&id).execute(&mut *transaction).await?;
            }
            removed += 1;
        }
        transaction.commit().await?;
        Ok(removed)
    });
    Ok(Cleaned { sessions, events: events.await? })
}

/// Deletes in transactions of bounded size; what the last statement removed in all.
async fn chunks(database: &Database, before_ms: i64, statements: &[String]) -> Result<u64, Fault> {
    let mut removed = 0;
    loop {
        let some = retry(async || {
            let (mut transaction, mut some) = (database.begin().await?, 0);
            for statement in statements {
                let delete = sqlx::query(statement).bind(before_ms).bind(ROWS_MAX);
                some = delete.execute(&mut *transaction).await?.rows_affected();
            }
            transaction.commit().await?;
            Ok(some)
        });
        match some.await? {
            0 => return Ok(removed),
            some => removed += some,
        }
    }
}

/// Deletes the cached copy of one page; whether there was one.
pub(crate) async fn purge(client: &Client, url: &str) -> Result<bool, Failure> {
    let no_page = || Failure::NoSuchPage { url: url.to_owned() };
    let rest = url.strip_prefix("http://").or_else(|| url.strip_prefix("https://")).ok_or_else(no_page)?;
    let (host, path) = rest.find('/').map_or((rest, "/"), |at| rest.split_at(at));
    let (path, query) = path.split_once('?').map_or((path, None), |(path, query)| (path, Some(query)));
    let address = Address::parse(path, query).ok_or_else(no_page)?;
    Ok(PageCache::new(client, Clock::system()).purge(&host.to_ascii_lowercase(), &address).await?)
}

/// Sets what a toy costs: the database first, then the cache, and whatever shows the old price is gone.
pub(crate) async fn set_price(
    database: &Database,
    catalogue: &Catalogue,
    toy: ToyId,
    cents: i64,
) -> Result<(), Failure> {
    let category = retry(async || {
        let mut transaction = database.begin().await?;
        let set = sqlx::query("UPDATE price SET cents = $2 WHERE toy = $1").bind(toy.0).bind(cents);
        set.execute(&mut *transaction).await?;
        let category = sqlx::query("SELECT category FROM toy WHERE id = $1").bind(toy.0);
        let category =
            category.fetch_optional(&mut *transaction).await?.map(|row| row.try_get::<String, _>(0));
        transaction.commit().await?;
        Ok(category.transpose()?)
    });
    let category = category.await?.ok_or(Failure::NoSuchToy(toy.0))?;
    Ok(catalogue.repriced(toy, &category, cents).await?)
}
