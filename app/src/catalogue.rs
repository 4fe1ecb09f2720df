//! Cache-aside, in pieces: what a toy is, costs, and how many there are, each for as long as it may be out of date.
//!
//! A page needs all three and so lives as short as the shortest; but when that is over only one small query is made again, and by
//! one worker of the host. Called by `web`; asks `database` for what is not cached. That there is no such toy is remembered,
//! too: whoever tries out numbers does not reach the database each time.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use kv_client::{Cache, Client, SchemaVersion, Scope, Typed};

use crate::database::{Database, Description, Inventory, Price, ToyId};

/// How long a piece may be out of date.
#[derive(Debug, Clone, Copy)]
struct Life {
    ttl: Duration,
    /// After that: while it is reloaded, and while the database is away.
    stale_for: Duration,
    /// How long "there is none" is believed.
    none: Duration,
}

const DESCRIPTION: Life = Life {
    ttl: Duration::from_secs(3_600),
    stale_for: Duration::from_secs(86_400),
    none: Duration::from_secs(60),
};
const PRICE: Life = Life {
    ttl: Duration::from_secs(300),
    stale_for: Duration::from_secs(300),
    none: Duration::from_secs(60),
};
/// Enough to spare the database a crowd; checkout does not rely on it.
const INVENTORY: Life =
    Life { ttl: Duration::from_secs(5), stale_for: Duration::from_secs(30), none: Duration::from_secs(5) };
/// So that pieces loaded together do not expire together.
const JITTER: f64 = 0.1;
/// A popular toy is reloaded in the last fifth of a piece's life, before anybody has to wait for it.
const REFRESH_AHEAD: f64 = 0.8;
/// How long a visitor waits for the database. The query goes on, and the next visitor finds its answer.
const LOAD_WITHIN: Duration = Duration::from_secs(3);

/// All of one toy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Product {
    pub(crate) id: ToyId,
    pub(crate) description: Description,
    pub(crate) price: Price,
    pub(crate) inventory: Inventory,
}

/// What one request used: of the caches, which says how long its answer may be kept, and of the database.
#[derive(Debug, Default)]
pub(crate) struct Visit {
    pub(crate) scope: Scope,
    queries: Arc<AtomicU32>,
}

impl Visit {
    /// Queries made so far on behalf of this request.
    pub(crate) fn queries(&self) -> u32 {
        self.queries.load(Ordering::Relaxed)
    }
}

/// The products of the shop. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Catalogue {
    descriptions: Typed<Cache, Description>,
    prices: Typed<Cache, Price>,
    inventories: Typed<Cache, Inventory>,
    database: Database,
}

impl Catalogue {
    pub(crate) fn new(client: &Client, database: Database) -> Catalogue {
        Catalogue {
            descriptions: client.cache("description").typed(SchemaVersion(1)),
            prices: client.cache("price").typed(SchemaVersion(1)),
            inventories: client.cache("inventory").typed(SchemaVersion(1)),
            database,
        }
    }

    /// A toy, its pieces fetched together; `None`: there is none, or it is not for sale.
    pub(crate) async fn product(&self, id: ToyId, visit: &Visit) -> kv_client::Result<Option<Product>> {
        let (description, price, inventory) = tokio::try_join!(
            self.piece(&self.descriptions, DESCRIPTION, id, visit, Database::description),
            self.piece(&self.prices, PRICE, id, visit, Database::price),
            self.piece(&self.inventories, INVENTORY, id, visit, Database::inventory),
        )?;
        let Some((description, price)) = description.zip(price) else { return Ok(None) };
        let inventory = inventory.unwrap_or(Inventory { pieces: 0 });
        Ok(Some(Product { id, description, price, inventory }))
    }

    /// One piece: from the cache, or by `query`, which one worker of the host makes.
    async fn piece<T: 'static, F>(
        &self,
        cache: &Typed<Cache, T>,
        life: Life,
        id: ToyId,
        visit: &Visit,
        query: impl FnOnce(Database, ToyId) -> F + Send + 'static,
    ) -> kv_client::Result<Option<T>>
    where
        F: Future<Output = Result<Option<T>, sqlx::Error>> + Send + 'static,
    {
        let (database, queries) = (self.database.clone(), Arc::clone(&visit.queries));
        cache
            .in_scope(&visit.scope)
            .entry(id.0.to_string())
            .ttl(life.ttl)
            .stale_for(life.stale_for)
            .negative_ttl(life.none)
            .jitter(JITTER)
            .refresh_ahead(REFRESH_AHEAD)
            .hard_timeout(LOAD_WITHIN)
            .tag(format!("sku:{}", id.0))
            .find_or_load(move |_fill| {
                queries.fetch_add(1, Ordering::Relaxed);
                query(database, id)
            })
            .await
    }
}
