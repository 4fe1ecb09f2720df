//! Worker processes behind one listening socket: the parent opens it and every worker inherits it.
//!
//! From "Building a Large-scale E-commerce Site with Apache and mod_perl". A worker gets the socket as its standard input, as with FastCGI: descriptors are
//! then neither numbered nor trusted, which would be unsafe code. The pitfall: an accept by a parent that hands connections on, which makes
//! it the one process that must not die. The workers share nothing but the socket, the database and kvd; one that is killed takes its own
//! requests along and nobody else's.

use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd as _, OwnedFd};

use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::cli::{Failure, Serving, Toys, Web, Worker};
use crate::database::migrations::migrate;
use crate::faults::Fault;
use crate::import;
use crate::staff::{self, Job, told_to_end};
use crate::web;

/// Toys that are made up for a shop that has none.
const NEW_SHOP_TOYS: usize = 1_000;

/// The parent: until TERM or INT.
pub(crate) async fn lead(options: &Web) -> Result<(), Failure> {
    // Before there is a worker: from here on nobody ends without them.
    let told = told_to_end()?;
    if !import::has_toys(&options.places.database()?).await? {
        let toys = Toys { catalogue: None, toys: NEW_SHOP_TOYS, seed: 0 };
        crate::fill_from(&toys, &options.places).await?;
    }
    let (end, ending) = watch::channel(false);
    let (address, mut workers) = open(options, &ending).await?;
    say!("the shop is open at http://{address}/, {} workers", options.workers);
    told.await;
    // Whoever is not there to hear it has ended already.
    let _ = end.send(true);
    while workers.join_next().await.is_some() {}
    Ok(())
}

/// Listens, and keeps the workers until the end has begun.
pub(crate) async fn open(
    options: &Web,
    ending: &watch::Receiver<bool>,
) -> Result<(SocketAddr, JoinSet<()>), Failure> {
    let failed = |source| Failure::Listen { address: options.listen, source };
    let listener = TcpListener::bind(options.listen).map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    migrate(&options.places.database()?).await.map_err(Fault::from)?;
    let mut workers = JoinSet::new();
    for slot in 0..options.workers {
        let socket = OwnedFd::from(listener.try_clone().map_err(failed)?);
        let job = Job { role: "worker", arguments: arguments(options, slot), stdin: Some(socket) };
        workers.spawn(staff::keep(job, ending.clone()));
    }
    Ok((address, workers))
}

fn arguments(options: &Web, slot: u16) -> Vec<std::ffi::OsString> {
    let manners = &options.manners;
    let numbers = [
        ("--parent", std::process::id().to_string()),
        ("--slot", slot.to_string()),
        ("--workers", options.workers.to_string()),
        ("--throttle", manners.throttle.to_string()),
        ("--throttle-address", manners.throttle_address.to_string()),
    ];
    let mut arguments = vec!["worker".into()];
    arguments.extend(numbers.into_iter().flat_map(|(name, value)| [name.into(), value.into()]));
    arguments.extend(manners.hosts.iter().flat_map(|host| ["--host".into(), host.into()]));
    arguments.extend(options.places.arguments());
    arguments
}

/// A worker: until TERM or INT, and not longer than its parent.
pub(crate) async fn work(options: &Worker) -> Result<(), Failure> {
    let told = told_to_end()?;
    staff::end_with_parent(options.parent)?;
    web::serve(inherited().map_err(Failure::NoListener)?, &Serving::of(options), told).await
}

fn inherited() -> std::io::Result<tokio::net::TcpListener> {
    let listener = TcpListener::from(std::io::stdin().as_fd().try_clone_to_owned()?);
    listener.set_nonblocking(true)?;
    listener.local_addr()?; // fails if it is no socket
    tokio::net::TcpListener::from_std(listener)
}
