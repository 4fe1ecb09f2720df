//! The refresher: what is looked at is loaded again before it expires, and the search index is rebuilt.
//!
//! From "E-Commerce with Django at Scale": refresh the hot shared objects on a schedule, in layers: an object once, for all the pages that use it. The
//! pitfalls: warming everything, or what keeps itself warm, so only toys count whose *page* somebody made lately, which a refresher
//! never does; and writing over what somebody has just cleared, so an object is first said to be stale and then loaded under a
//! lease, which an invalidation takes away. Meanwhile its readers are served the old one. All that is due is one query a piece.

use std::collections::HashMap;
use std::time::Duration;

use kv_client::{Client, Life};
use sqlx::Row as _;
use tokio::time::{Instant, interval, sleep, timeout};

use crate::catalogue::pieces::{Description, Inventory, Piece, Price};
use crate::catalogue::{Catalogue, ToyId};
use crate::cli::Failure;
use crate::database::Database;
use crate::faults::{Fault, retry};
use crate::search::Search;
use crate::visit::Kind;

/// How often what is about to expire is looked for.
const EVERY: Duration = Duration::from_secs(2);
/// How long one round may take. Beyond: the next one goes on.
const ROUND_WITHIN: Duration = Duration::from_secs(60);
/// Objects with less than this part of their life left are loaded again: one over so much.
const LEFT: u32 = 3;
/// A toy whose page nobody made for so long is not in use any more.
const IN_USE_FOR: Duration = Duration::from_secs(300);
/// How often the search index is rebuilt, and how long that may take.
const INDEX_EVERY: Duration = Duration::from_secs(60);

/// Refreshes until it is dropped.
pub(crate) struct Refresher {
    pub(crate) client: Client,
    pub(crate) catalogue: Catalogue,
    pub(crate) database: Database,
    pub(crate) search: Search,
    /// Most toys that are kept warm.
    pub(crate) toys_max: usize,
}

/// Toys in use, and when their pages were last there.
type InUse = HashMap<ToyId, Instant>;

impl Refresher {
    pub(crate) async fn run(&self) -> Result<(), Failure> {
        tokio::join!(self.warm(), self.index());
        Ok(())
    }

    async fn warm(&self) {
        let mut in_use = self.bestsellers().await.unwrap_or_default();
        loop {
            match timeout(ROUND_WITHIN, self.round(&mut in_use)).await {
                Ok(Ok(_)) => {}
                Ok(Err(fault)) => tracing::debug!(%fault, "nothing is refreshed"),
                Err(_elapsed) => tracing::warn!("what was to be refreshed was not within {ROUND_WITHIN:?}"),
            }
            sleep(EVERY).await;
        }
    }

    /// Looks what is in use, and loads again what is due; how many objects that was.
    async fn round(&self, in_use: &mut InUse) -> Result<usize, Fault> {
        self.note(in_use).await?;
        let ids: Vec<ToyId> = in_use.keys().copied().collect();
        Ok(self.refresh::<Description>(&ids).await?
            + self.refresh::<Price>(&ids).await?
            + self.refresh::<Inventory>(&ids).await?)
    }

    async fn index(&self) {
        let mut ticks = interval(INDEX_EVERY);
        loop {
            ticks.tick().await;
            match timeout(INDEX_EVERY, self.search.build(&self.database)).await {
                Err(_elapsed) => tracing::warn!("the search index was not rebuilt within {INDEX_EVERY:?}"),
                Ok(Ok(toys)) => tracing::debug!(toys, "the search index is rebuilt"),
                Ok(Err(fault)) => tracing::warn!(%fault, "the search index stays as it is"),
            }
        }
    }

    /// What is warm when the shop opens, before anybody has looked at anything.
    async fn bestsellers(&self) -> Result<InUse, Fault> {
        let most = i64::try_from(self.toys_max).unwrap_or(i64::MAX);
        let query = "SELECT id FROM toy ORDER BY sold DESC, id LIMIT $1";
        let rows = retry(async || {
            let read = async |pool| sqlx::query(query).bind(most).fetch_all(&pool).await;
            Ok(self.database.replicas().read(read).await?)
        });
        let rows = rows.await?;
        rows.iter().map(|row| Ok((ToyId(row.try_get(0)?), Instant::now()))).collect()
    }

    /// The toys that have a page now: each is tagged with its toy.
    async fn note(&self, in_use: &mut InUse) -> Result<(), Fault> {
        let now = Instant::now();
        let mut pages = self.client.cache(Kind::Page.name()).scan("");
        while let Some(page) = pages.next_page().await? {
            let tags = page.items.iter().flat_map(|(_, entry)| &entry.tags);
            in_use.extend(tags.filter_map(|tag| ToyId::of_tag(tag)).map(|id| (id, now)));
        }
        in_use.retain(|_, last| now.duration_since(*last) < IN_USE_FOR);
        if in_use.len() > self.toys_max {
            let mut lasts: Vec<Instant> = in_use.values().copied().collect();
            lasts.sort_unstable_by(|one, other| other.cmp(one));
            let oldest = lasts[self.toys_max];
            in_use.retain(|_, last| *last > oldest);
        }
        Ok(())
    }

    /// Loads again what of one kind is about to expire; how much that was.
    async fn refresh<T: Piece>(&self, ids: &[ToyId]) -> Result<usize, Fault> {
        let cache = self.client.cache(T::KIND.name());
        let mut due = Vec::new();
        for id in ids {
            let enough = T::LIFE.ttl / LEFT;
            let left = cache.ttl(id.0.to_string()).await?;
            // One that is not there was cleared, or never loaded.
            if !matches!(left, Some(Life::Left(left)) if left >= enough) {
                due.push(*id);
            }
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
            toys_max: 10,
        };
        let mut in_use = InUse::new();
        for id in 1..=5 {
            shop.get(&format!("/product/{id}"), None).await;
        }
        let look = async |ids: std::ops::RangeInclusive<i64>| {
            let visit = Visit::default();
            for id in ids {
                shop.shop.catalogue.product(ToyId(id), &visit).await.unwrap().unwrap();
            }
            visit.queries()
        };
        assert_eq!((look(1..=5).await, look(6..=7).await), (0, 6));
        assert_eq!(refresher.round(&mut in_use).await.unwrap(), 0, "their lives have just begun");
        assert_eq!(refresher.bestsellers().await.unwrap().len(), 10);
        shop.daemon.clock().advance(Inventory::LIFE.ttl * 3 / 4);
        assert_eq!(refresher.round(&mut in_use).await.unwrap(), 5, "the inventories that pages were made of");
        shop.daemon.clock().advance(Inventory::LIFE.ttl / 2);
        assert_eq!(look(1..=5).await, 0, "their first lives are over, and nobody waits");
        assert_eq!(look(6..=7).await, 2, "nobody made their pages");
    }

    /// A price is changed while the refresher loads the old one, at each point of the way.
    #[tokio::test]
    async fn a_change_wins_over_the_refresher() {
        let shop = TestShop::open().await;
        let (catalogue, database) = (&shop.shop.catalogue, &shop.shop.database);
        let id = ToyId(1);
        for cents in 1..=50 {
            catalogue.product(id, &Visit::default()).await.unwrap();
            let rewarmed = async {
                for _ in 0..cents {
                    tokio::task::yield_now().await;
                }
                catalogue.rewarm::<Price>(&[id]).await
            };
            let (rewarmed, changed) =
                tokio::join!(rewarmed, crate::chores::set_price(database, catalogue, id, cents));
            rewarmed.unwrap();
            changed.unwrap();
            let product = catalogue.product(id, &Visit::default()).await.unwrap().unwrap();
            assert_eq!(product.price.cents, cents);
        }
    }
}
