//! The refresher: what is used most is loaded again before it expires, and the search index is rebuilt.
//!
//! From "E-Commerce with Django at Scale": refresh the hot shared objects on a schedule, in layers: an object once, for all the pages that use it. The
//! pitfalls: warming everything, which costs the database what the cache saved it, so kvd is asked what its readers read most; and writing
//! over what somebody has just cleared, so an object is first said to be stale and then loaded under a lease, which an invalidation
//! takes away. Meanwhile its readers are served the old one.

use std::time::Duration;

use kv_client::{Client, Life};
use tokio::time::{interval, sleep};

use crate::catalogue::pieces::{Description, Inventory, Piece, Price};
use crate::catalogue::{Catalogue, ToyId};
use crate::cli::Failure;
use crate::database::Database;
use crate::faults::Fault;
use crate::search::Search;

/// How often what is about to expire is looked for.
const EVERY: Duration = Duration::from_secs(2);
/// Objects with less than this part of their life left are loaded again: one over so much.
const LEFT: u32 = 3;
/// How often the search index is rebuilt.
const INDEX_EVERY: Duration = Duration::from_secs(60);

/// Refreshes until it is dropped.
pub(crate) struct Refresher {
    pub(crate) client: Client,
    pub(crate) catalogue: Catalogue,
    pub(crate) database: Database,
    pub(crate) search: Search,
    pub(crate) objects: u32,
}

impl Refresher {
    pub(crate) async fn run(&self) -> Result<(), Failure> {
        tokio::join!(self.warm(), self.index());
        Ok(())
    }

    async fn warm(&self) {
        loop {
            let round = async {
                self.refresh::<Description>().await?;
                self.refresh::<Price>().await?;
                self.refresh::<Inventory>().await
            };
            if let Err(fault) = round.await {
                tracing::debug!(%fault, "nothing is refreshed");
            }
            sleep(EVERY).await;
        }
    }

    async fn index(&self) {
        let mut ticks = interval(INDEX_EVERY);
        loop {
            ticks.tick().await;
            match self.search.build(&self.database).await {
                Ok(toys) => tracing::debug!(toys, "the search index is rebuilt"),
                Err(fault) => tracing::warn!(%fault, "the search index stays as it is"),
            }
        }
    }

    /// Of one kind: what is read most and about to expire; how much that was.
    async fn refresh<T: Piece>(&self) -> Result<usize, Fault> {
        let hottest = self.client.admin().hottest(Some(T::KIND.name()), self.objects).await?;
        let cache = self.client.cache(T::KIND.name());
        let mut due = Vec::new();
        for hot in hottest {
            let left = cache.ttl(&hot.key).await?;
            let is_due = matches!(left, Some(Life::Left(left)) if left < T::LIFE.ttl / LEFT);
            let id = std::str::from_utf8(&hot.key).ok().and_then(|key| key.parse().ok());
            due.extend(id.filter(|_| is_due).map(ToyId));
        }
        self.catalogue.rewarm::<T>(&due).await?;
        Ok(due.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::TestShop;
    use crate::visit::Visit;

    #[tokio::test]
    async fn what_is_used_is_warm_and_nothing_else_is_loaded() {
        let shop = TestShop::open().await;
        let refresher = Refresher {
            client: shop.client.clone(),
            catalogue: shop.shop.catalogue.clone(),
            database: shop.shop.database.clone(),
            search: shop.shop.search.clone(),
            objects: 10,
        };
        let ids: Vec<ToyId> = (1..=5).map(ToyId).collect();
        let look = async || {
            let visit = Visit::default();
            for id in &ids {
                shop.shop.catalogue.product(*id, &visit).await.unwrap().unwrap();
            }
            visit.queries()
        };
        assert_eq!(look().await, 15);
        assert_eq!(look().await, 0);
        shop.daemon.clock().advance(Inventory::LIFE.ttl * 3 / 4);
        // The daemon counts what was read when it is told of it, a moment later.
        let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
        let mut refreshed = 0;
        while refreshed < 5 {
            for id in &ids {
                shop.client.cache("inventory").get(id.0.to_string()).await.unwrap();
            }
            refreshed += refresher.refresh::<Inventory>().await.unwrap();
            assert!(tokio::time::Instant::now() < deadline, "{refreshed} refreshed");
        }
        assert_eq!(refresher.refresh::<Description>().await.unwrap(), 0, "their lives have just begun");
        shop.daemon.clock().advance(Inventory::LIFE.ttl / 2);
        assert_eq!(look().await, 0, "their first lives are over, and nobody waits");
    }
}
