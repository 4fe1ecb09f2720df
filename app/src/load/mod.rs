//! `app load`: an open crowd of visitors, who come when they come, however the shop does.

pub(crate) mod christmas;
mod layers;
mod shelf;
mod tally;
mod visitor;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};

use crate::catalogue::{Catalogue, ToyId};
use crate::chores;
use crate::cli::{Crowd, Failure, Load, Places};
use shelf::Shelf;
use tally::Tally;
use visitor::Visitor;

/// How often an editor changes a price.
const EDIT_EVERY: Duration = Duration::from_secs(10);

pub(crate) async fn run(options: &Load) -> Result<(), Failure> {
    let shelf = Arc::new(Shelf::of(&options.places.database()?, options.crowd.visitors_seed).await?);
    let tally = crowd(options.address, &options.places, &shelf, &options.crowd).await?;
    print(&tally, &options.crowd);
    Ok(())
}

/// Sends a crowd, with an editor at work beside it, until the last of it has left.
async fn crowd(
    address: SocketAddr,
    places: &Places,
    shelf: &Arc<Shelf>,
    crowd: &Crowd,
) -> Result<Tally, Failure> {
    let (tally, begin) = (Tally::new(), Instant::now());
    let mut random = fastrand::Rng::with_seed(crowd.visitors_seed);
    let mut visitors = JoinSet::new();
    let work = edit(places, shelf);
    let come = async {
        for number in 0..u64::from(crowd.sessions) * u64::from(crowd.seconds) {
            let at = begin + Duration::from_secs_f64(number as f64 / f64::from(crowd.sessions));
            sleep_until(at).await;
            let visitor = Visitor::new(address, Arc::clone(shelf), tally.clone(), random.u64(..));
            let orders = random.u8(0..100) < crowd.ordering;
            visitors.spawn(visitor.visit(at, orders));
            while visitors.try_join_next().is_some() {}
        }
        while visitors.join_next().await.is_some() {}
    };
    tokio::select! {
        () = come => Ok(tally),
        failure = work => Err(failure),
    }
}

/// Changes the price of the most wanted toy again and again.
async fn edit(places: &Places, shelf: &Shelf) -> Failure {
    let database = match places.database() {
        Ok(database) => database,
        Err(failure) => return failure,
    };
    let catalogue = Catalogue::new(&places.client("shop editor"), database.clone());
    for cents in (999..).step_by(10) {
        sleep(EDIT_EVERY).await;
        if let Err(failure) =
            chores::set_price(&database, &catalogue, ToyId(shelf.favourite()), cents % 5_000).await
        {
            tracing::warn!(%failure, "the editor could not change a price");
        }
    }
    Failure::NoSuchToy(shelf.favourite())
}

fn print(tally: &Tally, crowd: &Crowd) {
    let counted = tally.counted();
    let views = counted.all.len() as f64 / f64::from(crowd.seconds);
    say!(
        "{} sessions/s for {} s (seed {}): {views:.0} requests/s, {} orders, {} failures, {} throttled, {} sold out, {} refused",
        crowd.sessions,
        crowd.seconds,
        crowd.visitors_seed,
        counted.orders,
        counted.failures,
        counted.throttled,
        counted.sold_out,
        counted.refused
    );
    say!("{}", counted.table().trim_end());
}
