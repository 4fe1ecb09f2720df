//! Products, cache-aside: from kvd, or by a query that one worker of the host makes, however many miss together.
//!
//! From "Building a Large-scale E-commerce Site with Apache and mod_perl" (99 % of objects came from the cache) and "E-Commerce with Django at
//! Scale" (cache shared data objects once, build all pages from them). The pitfalls: a herd of workers that asks for the same cold object,
//! which `get_or_load` makes one query of; and a list of 24 products that makes 24 queries, which [`Catalogue::cards`] makes one a piece of.
//! That there is no such toy is remembered, too: whoever tries out numbers does not reach the database each time.

mod changes;
pub(crate) mod lists;
pub(crate) mod pieces;

use std::sync::Arc;
use std::time::Duration;

use kv_client::{Cache, Client, Typed};
use serde::{Deserialize, Serialize};

use crate::database::Database;
use crate::faults::Fault;
use crate::visit::Visit;
use lists::Lists;
use pieces::{Description, Inventory, Piece, Price};

/// So that pieces loaded together do not expire together.
const JITTER: f64 = 0.1;
/// A popular toy is reloaded in the last fifth of a piece's life, before anybody has to wait for it.
const REFRESH_AHEAD: f64 = 0.8;
/// How long a visitor waits for the database. The query goes on, and the next visitor finds its answer.
const LOAD_WITHIN: Duration = Duration::from_secs(3);

/// What the home page is cleared by, …
pub(crate) const HOME: &str = "home";
/// … and what pages of what was searched are.
pub(crate) const FOUND: &str = "search";

/// Which toy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub(crate) struct ToyId(pub(crate) i64);

impl ToyId {
    /// What everything that shows this toy is cleared by.
    pub(crate) fn tag(self) -> String {
        format!("sku:{}", self.0)
    }

    /// Which toy a tag is of.
    pub(crate) fn of_tag(tag: &[u8]) -> Option<ToyId> {
        number(tag.strip_prefix(b"sku:")?).map(ToyId)
    }
}

/// All of one toy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Product {
    pub(crate) id: ToyId,
    pub(crate) description: Description,
    pub(crate) price: Price,
    /// `None`: the database does not say just now, and a page without it is better than none.
    pub(crate) inventory: Option<Inventory>,
}

/// What a list shows of a toy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Card {
    pub(crate) id: ToyId,
    pub(crate) description: Description,
    pub(crate) price: Price,
}

/// The products of the shop. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Catalogue {
    client: Client,
    descriptions: Typed<Cache, Description>,
    prices: Typed<Cache, Price>,
    inventories: Typed<Cache, Inventory>,
    pub(crate) lists: Lists,
    database: Database,
}

impl Catalogue {
    pub(crate) fn new(client: &Client, database: Database) -> Catalogue {
        Catalogue {
            client: client.clone(),
            descriptions: cache_of(client),
            prices: cache_of(client),
            inventories: cache_of(client),
            lists: Lists::new(client, database.clone()),
            database,
        }
    }

    /// A toy, its pieces fetched together; `None`: there is none, or it is not for sale.
    pub(crate) async fn product(&self, id: ToyId, visit: &Visit) -> Result<Option<Arc<Product>>, Fault> {
        if let Some(product) = visit.remembered(id) {
            return Ok(Some(product));
        }
        let (description, price, inventory) = tokio::join!(
            self.piece(&self.descriptions, id, visit),
            self.piece(&self.prices, id, visit),
            self.piece(&self.inventories, id, visit),
        );
        let inventory = inventory.unwrap_or_else(|error| {
            tracing::warn!(%error, toy = id.0, "shown without its inventory");
            visit.scope.used::<&[u8]>(Some(Duration::from_secs(1)), Duration::ZERO, []);
            None
        });
        let Some((description, price)) = description?.zip(price?) else { return Ok(None) };
        let product = Arc::new(Product { id, description, price, inventory });
        visit.remember(&product);
        Ok(Some(product))
    }

    /// Many toys as lists show them, in the order asked for: one query a piece, however many of them are missing.
    pub(crate) async fn cards(&self, ids: &[ToyId], visit: &Visit) -> Result<Vec<Card>, Fault> {
        let (descriptions, prices) =
            tokio::try_join!(self.many(&self.descriptions, ids, visit), self.many(&self.prices, ids, visit))?;
        let both = descriptions.into_iter().zip(prices).zip(ids);
        let card = |((description, price), &id): ((Option<Description>, Option<Price>), &ToyId)| {
            Some(Card { id, description: description?, price: price? })
        };
        Ok(both.filter_map(card).collect())
    }

    /// One piece: from the cache, or by a query, which one worker of the host makes.
    async fn piece<T: Piece>(
        &self,
        cache: &Typed<Cache, T>,
        id: ToyId,
        visit: &Visit,
    ) -> kv_client::Result<Option<T>> {
        visit.asked(T::KIND, 1);
        let (replicas, loading) = (self.database.replicas().clone(), visit.clone());
        cache
            .in_scope(&visit.scope)
            .entry(id.0.to_string())
            .ttl(T::LIFE.ttl)
            .stale_for(T::LIFE.stale_for)
            .negative_ttl(T::LIFE.none)
            .jitter(JITTER)
            .refresh_ahead(REFRESH_AHEAD)
            .hard_timeout(LOAD_WITHIN)
            .tag(id.tag())
            .find_or_load(move |_fill| async move {
                loading.query();
                loading.loaded(T::KIND, 1);
                let rows = replicas.read(|pool| T::select(pool, vec![id.0])).await?;
                Ok::<_, sqlx::Error>(rows.into_iter().next().map(|(_, piece)| piece))
            })
            .await
    }

    /// One piece of many toys, in their order: from the cache, and one query for all that are missing.
    async fn many<T: Piece>(
        &self,
        cache: &Typed<Cache, T>,
        ids: &[ToyId],
        visit: &Visit,
    ) -> kv_client::Result<Vec<Option<T>>> {
        visit.asked(T::KIND, ids.len());
        let keys: Vec<String> = ids.iter().map(|id| id.0.to_string()).collect();
        cache
            .in_scope(&visit.scope)
            .entries()
            .ttl(T::LIFE.ttl)
            .stale_for(T::LIFE.stale_for)
            .negative_ttl(T::LIFE.none)
            .jitter(JITTER)
            .get_or_load_many(&keys, async |missing| {
                let ids: Vec<i64> = missing.keys().iter().filter_map(|key| number(key)).collect();
                visit.query();
                visit.loaded(T::KIND, ids.len());
                for (id, piece) in self.database.replicas().read(|pool| T::select(pool, ids.clone())).await? {
                    missing.found(id.to_string(), piece).add_tag(ToyId(id).tag());
                }
                Ok::<_, sqlx::Error>(())
            })
            .await
    }
}

fn cache_of<T: Piece>(client: &Client) -> Typed<Cache, T> {
    client.cache(T::KIND.name()).typed(T::SCHEMA)
}

fn number(key: &[u8]) -> Option<i64> {
    std::str::from_utf8(key).ok()?.parse().ok()
}
