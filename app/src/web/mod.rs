//! The shop's web server: one worker's half of it.
//!
//! Called by `prefork` with the inherited socket. [`front`] is the one handler at the top: it finds out who asks what, lets the page's
//! own module answer, counts it, and turns whatever went wrong into one log line and a page that a person can read. From "Building a
//! Large-scale E-commerce Site with Apache and mod_perl"; the pitfall is a handler in each place that can fail, each forgetting something
//! else. What a request began and did not commit is rolled back by being dropped.

mod answers;
mod asked;
mod connections;
mod forms;
mod private;
pub(crate) mod public;
pub(crate) mod status;
#[cfg(test)]
mod tests;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{ConnectInfo, Request, State};
use axum::http::{Method, StatusCode};
use axum::response::Response;
use kv_client::Client;
use kvd::clock::Clock;
use tokio::net::TcpListener;
use tokio::time::{Instant, timeout};

use crate::catalogue::Catalogue;
use crate::cli::{Failure, Serving};
use crate::database::Database;
use crate::faults::Fault;
use crate::metrics::{Metrics, Route};
use crate::pages::Templates;
use crate::pages::address::Address;
use crate::pages::cache::PageCache;
use crate::search::Search;
use crate::visit::Visit;
use crate::visitors::cookie::Keys;
use crate::visitors::session::Sessions;
use crate::visitors::throttle::{Throttle, Whose};
use asked::Asked;
use connections::Bounds;

/// How long a visitor waits for a page. Beyond: the friendly page, and what was begun is rolled back.
const ANSWER_WITHIN: Duration = Duration::from_secs(15);

/// What handlers need. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Shop {
    pub(crate) database: Database,
    pub(crate) catalogue: Catalogue,
    pub(crate) search: Search,
    pub(crate) templates: Arc<Templates>,
    pub(crate) pages: PageCache,
    pub(crate) keys: Arc<Keys>,
    pub(crate) sessions: Sessions,
    pub(crate) throttle: Throttle,
    pub(crate) metrics: Arc<Metrics>,
    /// Names that this shop goes by, with their ports.
    pub(crate) hosts: Arc<Vec<String>>,
    pub(crate) clock: Clock,
}

impl Shop {
    pub(crate) fn open(options: &Serving, client: &Client, hosts: Vec<String>) -> Result<Shop, Failure> {
        let (database, clock) = (options.places.database()?, Clock::system());
        let metrics = Metrics::new(client, options.slot, options.workers);
        Ok(Shop {
            catalogue: Catalogue::new(client, database.clone()),
            search: Search::open(&options.places.index())?,
            templates: Arc::new(Templates::new()?),
            pages: PageCache::new(client, clock.clone()),
            keys: Arc::new(Keys::of_file(&options.places.keys())?),
            sessions: Sessions::new(client, database.clone(), clock.clone()),
            throttle: Throttle::new(client, options.limits()),
            metrics: Arc::new(metrics),
            hosts: Arc::new(hosts),
            database,
            clock,
        })
    }
}

/// Serves until `told` ends, and finishes what was begun.
pub(crate) async fn serve(
    listener: TcpListener,
    options: &Serving,
    told: impl Future<Output = ()>,
) -> Result<(), Failure> {
    let address = listener.local_addr().map_err(Failure::NoListener)?;
    let client = options.places.client(&format!("shop worker {}", options.slot));
    let shop = Shop::open(options, &client, hosts(address, &options.hosts))?;
    let publishing = tokio::spawn(Arc::clone(&shop.metrics).publish());
    connections::serve(listener, router(shop), Bounds::of_process(), told).await;
    publishing.abort();
    Ok(())
}

/// What the shop may be called: where it listens, and what it was told.
fn hosts(address: SocketAddr, more: &[String]) -> Vec<String> {
    let port = address.port();
    [address.to_string(), format!("localhost:{port}"), format!("127.0.0.1:{port}")]
        .into_iter()
        .chain(more.iter().cloned())
        .collect()
}

pub(crate) fn router(shop: Shop) -> Router {
    Router::new().fallback(front).with_state(shop)
}

async fn front(
    State(shop): State<Shop>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    request: Request,
) -> Response {
    let (began, visit) = (Instant::now(), Visit::default());
    let what = format!("{} {}", request.method(), request.uri().path());
    let mut route = Route::Other;
    let answered = timeout(ANSWER_WITHIN, answer(&shop, peer, request, &visit, &mut route)).await;
    let response =
        answered.unwrap_or(Err(Fault::Database(sqlx::Error::PoolTimedOut))).unwrap_or_else(|fault| {
            tracing::error!(%fault, what, "a request failed");
            answers::failed(&shop)
        });
    shop.metrics.record(route, began.elapsed(), &visit, response.status());
    answers::timed(response, &visit)
}

async fn answer(
    shop: &Shop,
    peer: SocketAddr,
    request: Request,
    visit: &Visit,
    route: &mut Route,
) -> Result<Response, Fault> {
    // For balancers and scrapers, whatever they call us.
    match request.uri().path() {
        "/healthz" => return Ok(answers::health()),
        "/metrics" => return Ok(status::metrics(shop).await),
        "/shop.css" => return Ok(answers::style()),
        _ => {}
    }
    let asked = match Asked::of(shop, peer, request).await {
        Ok(asked) => asked,
        Err(refused) => return Ok(answers::refused(shop, refused)),
    };
    let whose = match &asked.session {
        Some(believed) => Whose::Session(believed.id.as_str()),
        None => Whose::Address(asked.peer),
    };
    if let Err(wait) = shop.throttle.admit(whose).await {
        shop.metrics.throttled();
        return Ok(answers::throttled(shop, wait));
    }
    if asked.method == Method::POST {
        *route = Route::Form;
        return forms::submit(shop, &asked, visit).await;
    }
    if asked.method != Method::GET && asked.method != Method::HEAD {
        return Ok(answers::refused(shop, StatusCode::METHOD_NOT_ALLOWED));
    }
    if let Some(address) = Address::parse(&asked.path, asked.query.as_deref()) {
        *route = Route::of(&address);
        return public::show(shop, &asked, address, visit).await;
    }
    *route = Route::Private;
    let segments: Vec<&str> = asked.path.trim_start_matches('/').split('/').collect();
    match segments[..] {
        ["welcome"] => private::welcome(shop, &asked),
        ["cart"] => private::cart(shop, &asked, visit).await,
        ["checkout"] => private::checkout(shop, &asked, visit).await,
        ["account"] => private::account(shop, &asked, visit).await,
        ["order", id] => private::order(shop, &asked, id, visit).await,
        ["status"] => status::page(shop, &asked, visit).await,
        _ => {
            *route = Route::Other;
            public::nowhere(shop, &asked, visit).await
        }
    }
}
