//! A toy store, small but real: the first user of kvd's client, and a place to read how each technique is done.
//!
//! Each technique is a module; `docs/STOREFRONT.md` is the tour. This file chooses what the process is; it must not know how any of it
//! is done.

#![forbid(unsafe_code)]

/// Says something to whoever reads our output; if nobody does any more, that is no reason to end.
macro_rules! say {
    ($($said:tt)*) => {{
        use std::io::Write as _;
        let _ = writeln!(std::io::stdout(), $($said)*);
    }};
}

mod catalogue;
mod checkout;
mod chores;
mod cli;
mod counts;
mod daemon;
mod database;
mod demo;
mod faults;
mod import;
mod load;
mod metrics;
mod orders;
mod pages;
mod prefork;
mod refresh;
mod search;
mod staff;
#[cfg(test)]
mod testing;
mod visit;
mod visitors;
mod web;

use std::io::IsTerminal as _;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser as _;
use kvd::clock::Clock;
use tracing_subscriber::EnvFilter;

use catalogue::{Catalogue, ToyId};
use cli::{Cli, Command, Failure, Import, Places};
use database::migrations::migrate;
use faults::Fault;
use orders::Processor;
use orders::audit::Audit;
use orders::mail::Mail;
use orders::payment::{Mood, Payment};
use search::Search;
use visitors::cookie::Keys;
use visitors::session::Sessions;

fn main() -> ExitCode {
    let filter = EnvFilter::try_from_env("APP_LOG").unwrap_or_else(|_| EnvFilter::new("warn,app=info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
    match run(Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("app: {failure}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<(), Failure> {
    // One thread a process: a shop that wants more hands starts more workers. And a process is told of its parent's death when the
    // thread ends that started it, so in the parent that has to be this one.
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Failure::Runtime)?;
    runtime.block_on(async {
        match command {
            Command::Demo(options) => demo::run(&options).await,
            Command::Christmas(options) => load::christmas::run(&options).await,
            Command::Load(options) => load::run(&options).await,
            Command::Web(options) => prefork::lead(&options).await,
            Command::Worker(options) => prefork::work(&options).await,
            Command::Kvd(options) => daemon::serve(&options).await,
            Command::Orders(options) => process_orders(&options).await,
            Command::Refresh(options) => keep_warm(&options).await,
            Command::Import(options) => fill(&options).await,
            Command::Clean(options) => {
                let (age, clock) = (Duration::from_secs(86_400) * options.days, Clock::system());
                let database = options.places.database()?;
                let client = options.places.client("shop cleaner");
                let sessions = Sessions::new(&client, database.clone(), clock.clone());
                let cleaned = chores::clean(&database, &sessions, &clock, age).await?;
                say!("removed {} sessions and {} events", cleaned.sessions, cleaned.events);
                Ok(())
            }
            Command::Audit { places } => {
                let payment = Payment::open(&places.ledger(), Mood::default()).await?;
                let audit = Audit::of(&places.database()?, &payment).await?;
                let Audit { open, paid, charged } = audit;
                say!(
                    "{open} orders open; {} paid, {} cents; {} charged, {} cents",
                    paid.0,
                    paid.1,
                    charged.0,
                    charged.1
                );
                if audit.is_right() { Ok(()) } else { Err(Failure::Audit) }
            }
            Command::Purge(options) => {
                let was_there = chores::purge(&options.places.client("shop purge"), &options.url).await?;
                say!("{}", if was_there { "purged" } else { "it was not cached" });
                Ok(())
            }
            Command::Price(options) => {
                let database = options.places.database()?;
                let catalogue = Catalogue::new(&options.places.client("shop editor"), database.clone());
                chores::set_price(&database, &catalogue, ToyId(options.toy), options.cents).await
            }
            Command::RotateKeys { places } => {
                Keys::of_file(&places.keys())?.rotate()?;
                Ok(())
            }
        }
    })
}

async fn process_orders(options: &cli::Orders) -> Result<(), Failure> {
    let (places, told) = (&options.places, staff::told_to_end()?);
    options.parent.map_or(Ok(()), staff::end_with_parent)?;
    let processor = Processor {
        database: places.database()?,
        clock: Clock::system(),
        payment: Payment::open(&places.ledger(), options.mood()).await?,
        mail: Mail::open(options.smtp.as_deref(), places.mail())?,
    };
    tokio::select! {
        () = processor.run() => (),
        () = told => (),
    }
    Ok(())
}

async fn keep_warm(options: &cli::Refresh) -> Result<(), Failure> {
    let (places, told) = (&options.places, staff::told_to_end()?);
    options.parent.map_or(Ok(()), staff::end_with_parent)?;
    let (database, client) = (places.database()?, places.client("shop refresh"));
    let refresher = refresh::Refresher {
        catalogue: Catalogue::new(&client, database.clone()),
        search: Search::open(&places.index())?,
        toys_max: options.toys_max,
        database,
        client,
    };
    tokio::select! {
        done = refresher.run() => done,
        () = told => Ok(()),
    }
}

async fn fill(options: &Import) -> Result<(), Failure> {
    let toys = fill_from(&options.toys, &options.places).await?;
    let catalogue = Catalogue::new(&options.places.client("shop import"), options.places.database()?);
    if let Err(fault) = catalogue.forget_all().await {
        tracing::warn!(%fault, "an open shop may show the old catalogue until it expires");
    }
    say!("{toys} toys");
    Ok(())
}

/// Makes the database, fills it, and builds the search index; how many toys there are.
async fn fill_from(toys: &cli::Toys, places: &Places) -> Result<usize, Failure> {
    let database = places.database()?;
    migrate(&database).await.map_err(Fault::from)?;
    let source = match &toys.catalogue {
        Some(file) => import::Source::File(file),
        None => import::Source::Generated { toys: toys.toys, seed: toys.seed },
    };
    import::import(&database, source).await?;
    Ok(Search::open(&places.index())?.build(&database).await?)
}
