//! What is done now and then: cleaning up, purging a page, changing a price.
//!
//! From FMStocks 2000 (a nightly routine removes old carts) and "Building a Large-scale E-commerce Site with Apache and mod_perl" (a hook deletes the cached
//! copy of one URL in an emergency). The pitfall of purging by hand: the page goes, and is made again of the same old objects. So a changed
//! toy is cleared by its tag, objects and pages together, and `purge` is for the page alone.

use std::time::Duration;

use kv_client::Client;
use kvd::clock::Clock;
use sqlx::{Any, Row as _, Transaction};

use crate::catalogue::{Catalogue, ToyId};
use crate::cli::Failure;
use crate::database::{Database, parameters};
use crate::faults::{Fault, retry};
use crate::orders::outbox::Event;
use crate::orders::subscribers;
use crate::pages::address::Address;
use crate::pages::cache::PageCache;
use crate::visitors::session::Sessions;

/// Rows that one transaction removes, so that nobody waits long for it.
const ROWS_MAX: i64 = 500;

/// What was removed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Cleaned {
    pub(crate) sessions: u64,
    pub(crate) events: u64,
}

/// Removes sessions and carts that nobody changed for so long, and events that everybody has had.
pub(crate) async fn clean(
    database: &Database,
    sessions: &Sessions,
    clock: &Clock,
    age: Duration,
) -> Result<Cleaned, Fault> {
    let before_ms = clock.wall_ms() - i64::try_from(age.as_millis()).unwrap_or(i64::MAX);
    let mut cleaned = Cleaned::default();
    loop {
        let ids = retry(|| old_sessions(database, before_ms)).await?;
        if ids.is_empty() {
            break;
        }
        cleaned.sessions += ids.len() as u64;
        if let Err(fault) = sessions.forget(&ids).await {
            tracing::debug!(%fault, "carts that are gone may be shown until their copies expire");
        }
    }
    for event in Event::ALL {
        loop {
            match retry(|| had_events(database, event, before_ms)).await? {
                0 => break,
                some => cleaned.events += some,
            }
        }
    }
    Ok(cleaned)
}

/// Removes some sessions; which. They are locked before their carts go, so that nobody fills one meanwhile.
async fn old_sessions(database: &Database, before_ms: i64) -> Result<Vec<String>, Fault> {
    let mut transaction = database.begin().await?;
    let lock = "UPDATE session SET changed_ms = changed_ms WHERE changed_ms < $1 AND id IN \
                (SELECT id FROM session WHERE changed_ms < $1 ORDER BY changed_ms LIMIT $2) RETURNING id";
    let rows = sqlx::query(lock).bind(before_ms).bind(ROWS_MAX).fetch_all(&mut *transaction).await?;
    let ids = rows.iter().map(|row| row.try_get(0)).collect::<Result<Vec<String>, _>>()?;
    for delete in ["DELETE FROM cart_line WHERE session IN", "DELETE FROM session WHERE id IN"] {
        delete_all(&mut transaction, delete, &ids).await?;
    }
    transaction.commit().await?;
    Ok(ids)
}

/// Removes some events of a kind that all its subscribers have had; how many. One that somebody has not had stays, however old it is.
async fn had_events(database: &Database, event: Event, before_ms: i64) -> Result<u64, Fault> {
    let mut transaction = database.begin().await?;
    let had = "SELECT outbox.id FROM outbox JOIN delivery ON delivery.event = outbox.id AND delivery.is_done = 1 \
               WHERE outbox.kind = $1 AND outbox.written_ms < $2 GROUP BY outbox.id HAVING COUNT(*) >= $3 LIMIT $4";
    let had = sqlx::query(had).bind(event.name()).bind(before_ms).bind(subscribers(event)).bind(ROWS_MAX);
    let rows = had.fetch_all(&mut *transaction).await?;
    let ids = rows.iter().map(|row| row.try_get(0)).collect::<Result<Vec<String>, _>>()?;
    for delete in ["DELETE FROM delivery WHERE event IN", "DELETE FROM outbox WHERE id IN"] {
        delete_all(&mut transaction, delete, &ids).await?;
    }
    transaction.commit().await?;
    Ok(ids.len() as u64)
}

async fn delete_all(
    transaction: &mut Transaction<'static, Any>,
    delete: &str,
    ids: &[String],
) -> Result<(), sqlx::Error> {
    if ids.is_empty() {
        return Ok(());
    }
    let statement = format!("{delete} ({})", parameters(1, ids.len()));
    ids.iter().fold(sqlx::query(&statement), |query, id| query.bind(id)).execute(&mut **transaction).await?;
    Ok(())
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
