//! What each layer buys: the same page from the page cache, from cached objects, and from the database.
//!
//! The sources say about ten times each: eToys for a page from the cache against one that is generated, and for an object from the cache against the
//! database. Measured in this process, one at a time, beside an idle shop.

use kv_client::{Client, Effect};
use tokio::time::Instant;

use crate::catalogue::ToyId;
use crate::catalogue::pieces::{Description, Piece as _};
use crate::faults::Fault;
use crate::pages::address::Address;
use crate::pages::two_pass::Visitor;
use crate::visit::{Kind, Visit};
use crate::web::{Shop, public};

/// Pages, or objects, of each kind that are timed.
const TIMES: i64 = 400;

/// Medians, in microseconds.
#[derive(Debug, Clone, Copy)]
pub(super) struct Layers {
    page_cached: f64,
    page_of_objects: f64,
    page_of_database: f64,
    object_cached: f64,
    object_of_database: f64,
}

pub(super) async fn measure(shop: &Shop, client: &Client, toys: i64) -> Result<Layers, Fault> {
    let host = shop.hosts[0].clone();
    let ids: Vec<ToyId> = (0..TIMES).map(|number| ToyId(1 + number % toys)).collect();
    let cache = client.cache(Kind::Description.name());
    let mut times: [Vec<f64>; 5] = Default::default();
    let us = |began: Instant| began.elapsed().as_secs_f64() * 1e6;
    for id in ids {
        let address = Address::Product(id);
        client.clear_tag(id.tag(), Effect::Gone).await?;
        let began = Instant::now();
        public::render(shop, &address, &Visit::default()).await?.first_pass.fill(&Visitor::default());
        times[2].push(us(began));
        let began = Instant::now();
        public::render(shop, &address, &Visit::default()).await?.first_pass.fill(&Visitor::default());
        times[1].push(us(began));
        public::page(shop, &host, &address, &Visit::default()).await?;
        let began = Instant::now();
        public::page(shop, &host, &address, &Visit::default()).await?.first_pass.fill(&Visitor::default());
        times[0].push(us(began));
        let began = Instant::now();
        drop(cache.get(id.0.to_string()).await?);
        times[3].push(us(began));
        let began = Instant::now();
        drop(shop.database.replicas().read(|pool| Description::select(pool, vec![id.0])).await?);
        times[4].push(us(began));
    }
    let [page_cached, page_of_objects, page_of_database, object_cached, object_of_database] =
        times.map(median);
    Ok(Layers { page_cached, page_of_objects, page_of_database, object_cached, object_of_database })
}

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times.get(times.len() / 2).copied().unwrap_or(0.0)
}

impl Layers {
    pub(super) fn table(&self) -> String {
        let line =
            |name: &str, us: f64, against: f64| format!("  {name:<34} {us:>9.1} {:>9.1}\n", against / us);
        let page = self.page_of_database;
        format!(
            "  {:<34} {:>9} {:>9}\n{}{}{}{}{}",
            "what each layer buys",
            "median µs",
            "times",
            line("page from the database", page, page),
            line("page from cached objects", self.page_of_objects, page),
            line("page from the page cache", self.page_cached, page),
            line("object from the database", self.object_of_database, self.object_of_database),
            line("object from kvd", self.object_cached, self.object_of_database),
        )
    }
}
