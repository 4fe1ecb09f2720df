//! What becomes of cached products when the database changes: each change takes away, or replaces, exactly what shows it.
//!
//! From "Building a Large-scale E-commerce Site with Apache and mod_perl" (its caches were expired by whoever changed the data) and "E-Commerce
//! with Django at Scale" (warmed in layers). The pitfall: an object that is taken away and read again from a replica that has not heard.

use kv_client::{Effect, ErrorKind, PutOptions, Ttl};

use super::lists;
use super::pieces::{Piece, Price};
use super::{Catalogue, FOUND, HOME, ToyId, cache_of};
use crate::faults::Fault;
use crate::visit::{Kind, Visit};

/// Objects that are said to be stale before they are loaded together: few, so that they are stale for milliseconds.
const REWARMED_TOGETHER: usize = 250;

impl Catalogue {
    /// Loads again what is about to expire: stale at once, so that its readers go on with it while one query is made for all.
    pub(crate) async fn rewarm<T: Piece>(&self, ids: &[ToyId]) -> Result<(), Fault> {
        let cache = cache_of::<T>(&self.client);
        for some in ids.chunks(REWARMED_TOGETHER) {
            for id in some {
                cache.expire(id.0.to_string(), Ttl::Stale).await?;
            }
            self.many(&cache, some, &Visit::default()).await?;
        }
        Ok(())
    }

    /// Somebody has changed what a toy costs: the new price, which the primary said, takes the old one's place at once, because a replica that lags
    /// would say the old one again; and whatever shows it is gone: its page, the home page, searches, its category's lists and pages. Only
    /// where a list sorted by price has it may be as old as the replica that is asked, for as long as a list lives.
    pub(crate) async fn repriced(&self, id: ToyId, category: &str, cents: i64) -> Result<(), Fault> {
        let life = PutOptions::new().ttl(Price::LIFE.ttl).stale_for(Price::LIFE.stale_for).tag(id.tag());
        self.prices.put_with(id.0.to_string(), &Price { cents }, life).await?;
        let pages = self.client.cache(Kind::Page.name());
        for tag in [id.tag(), HOME.to_owned(), FOUND.to_owned()] {
            match pages.clear_tag(tag, Effect::Gone).await {
                // Nobody has made a page yet.
                Err(error) if error.kind() == ErrorKind::UnknownCache => {}
                cleared => drop(cleared?),
            }
        }
        self.client.clear_tag(lists::tag(category), Effect::Gone).await?;
        Ok(())
    }

    /// All toys may have changed: nothing that shows one is left.
    pub(crate) async fn forget_all(&self) -> Result<(), Fault> {
        for kind in [Kind::Description, Kind::Price, Kind::Inventory, Kind::List, Kind::Page] {
            match self.client.cache(kind.name()).clear(Effect::Gone).await {
                // Nothing was ever kept there.
                Err(error) if error.kind() == ErrorKind::UnknownCache => {}
                cleared => drop(cleared?),
            }
        }
        Ok(())
    }

    /// A price turned out to be another: the next who looks asks the database.
    pub(crate) async fn forget_price(&self, id: ToyId) -> Result<(), Fault> {
        self.prices.delete(id.0.to_string()).await?;
        Ok(())
    }

    /// A toy's inventory has changed: the next who looks sees it. Pages that show it live as short as it would have.
    pub(crate) async fn sold(&self, id: ToyId) -> Result<(), Fault> {
        self.inventories.delete(id.0.to_string()).await?;
        Ok(())
    }
}
