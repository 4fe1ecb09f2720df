//! A product page made of cached parts: `cargo run --example web`, or `-- --serve` to look at it in a browser.
//!
//! Every part lives as long as it may: the text for an hour, the price for a minute, the stock for two seconds. The page's
//! own `Cache-Control` follows from what went into it, and one tag takes all parts of a toy back.

#![forbid(unsafe_code)]

use std::convert::Infallible;
use std::error::Error;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use axum::extract::{Path, State};
use axum::http::{StatusCode, header};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::get;
use kv_client::{Cache, Client, Effect, SchemaVersion, Scope, Typed};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

/// What a handler needs. Caches are made once: they are names, and cheap to clone.
#[derive(Clone)]
struct Shop {
    texts: Typed<Cache, String>,
    prices: Typed<Cache, u32>,
    stock: Typed<Cache, u32>,
    database: Database,
}

async fn product(State(shop): State<Shop>, Path(id): Path<u32>) -> Response {
    let scope = Scope::new();
    match shop.page(id, &scope).await {
        Ok(html) => ([(header::CACHE_CONTROL, cache_control(&scope))], Html(html)).into_response(),
        Err(error) => (StatusCode::SERVICE_UNAVAILABLE, error.to_string()).into_response(),
    }
}

impl Shop {
    /// The page, of three parts fetched together. `scope` learns what they were.
    async fn page(&self, id: u32, scope: &Scope) -> kv_client::Result<String> {
        let parts = tokio::try_join!(self.text(id, scope), self.price(id, scope), self.stock(id, scope));
        let (text, price, stock) = parts?;
        Ok(format!("<h1>{text}</h1><p>${}.{:02}, {stock} in stock</p>", price / 100, price % 100))
    }

    /// Hardly ever changes; a text of yesterday is better than none while the database is away.
    async fn text(&self, id: u32, scope: &Scope) -> kv_client::Result<String> {
        let entry = self.texts.in_scope(scope).entry(id.to_string()).tag(format!("sku:{id}"));
        let database = self.database.clone();
        let entry = entry.ttl(Duration::from_secs(3_600)).stale_for(Duration::from_secs(86_400));
        entry.get_or_load(move |_fill| database.text(id)).await
    }

    /// Reloaded before it expires, so that of a popular toy nobody ever waits for it.
    async fn price(&self, id: u32, scope: &Scope) -> kv_client::Result<u32> {
        let entry = self.prices.in_scope(scope).entry(id.to_string()).tag(format!("sku:{id}"));
        let database = self.database.clone();
        let entry = entry.ttl(Duration::from_secs(60)).refresh_ahead(0.8).stale_for(Duration::from_secs(60));
        entry.get_or_load(move |_fill| database.price(id)).await
    }

    /// Must be nearly true, so it is never served stale; and a page must not wait for ever.
    async fn stock(&self, id: u32, scope: &Scope) -> kv_client::Result<u32> {
        let entry = self.stock.in_scope(scope).entry(id.to_string()).tag(format!("sku:{id}"));
        let database = self.database.clone();
        let entry = entry.ttl(Duration::from_secs(2)).hard_timeout(Duration::from_secs(1));
        // The loader owns what it needs: when it is overtaken by the timeout it goes on in the background, and fills.
        entry.get_or_load(move |_fill| database.stock(id)).await
    }
}

/// The page may live as long as the first of its parts to expire.
fn cache_control(scope: &Scope) -> String {
    let age = scope.max_age().map_or(31_536_000, |age| age.as_secs());
    format!("public, max-age={age}, stale-while-revalidate={}", scope.stale_while_revalidate().as_secs())
}

/// Stands for a slow database, and counts what it is asked.
#[derive(Clone, Default)]
struct Database {
    queries: Arc<AtomicU32>,
    price_rises: Arc<AtomicU32>,
}

impl Database {
    async fn query<T>(&self, answer: T) -> Result<T, Infallible> {
        self.queries.fetch_add(1, Ordering::Relaxed);
        tokio::time::sleep(Duration::from_millis(100)).await;
        Ok(answer)
    }

    async fn text(self, id: u32) -> Result<String, Infallible> {
        self.query(format!("Rocket No. {id}")).await
    }

    async fn price(self, id: u32) -> Result<u32, Infallible> {
        self.query(999 + id * 100 + self.price_rises.load(Ordering::Relaxed) * 500).await
    }

    async fn stock(self, id: u32) -> Result<u32, Infallible> {
        self.query(id % 5).await
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    // A daemon of our own where there is none, so that the example runs by itself.
    let server = std::env::var_os("KVD_SOCKET").is_none().then(kvd::testing::server);
    let builder = server.iter().fold(Client::builder(), |builder, server| builder.socket(server.socket()));
    let client = builder.name("web example").build().await?;
    let database = Database::default();
    let shop = Shop {
        texts: client.cache("text").typed(SchemaVersion(1)).compressed(),
        prices: client.cache("price").typed(SchemaVersion(1)),
        stock: client.cache("stock").typed(SchemaVersion(1)),
        database: database.clone(),
    };
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    println!("http://{address}/product/42");
    let site =
        axum::serve(listener, axum::Router::new().route("/product/{id}", get(product)).with_state(shop));
    if std::env::args().any(|argument| argument == "--serve") {
        return Ok(site.await?);
    }
    tokio::spawn(site.into_future());

    let crowd: JoinSet<_> = (0..10).map(|_| visit(address)).collect();
    let pages = crowd.join_all().await.into_iter().collect::<Result<Vec<_>, _>>()?;
    println!("{}\n10 visitors at once: {} queries", pages[0], database.queries.swap(0, Ordering::Relaxed));

    database.price_rises.fetch_add(1, Ordering::Relaxed); // somebody changes the price, and says so
    client.clear_tag("sku:42", Effect::Gone).await?;
    let page = visit(address).await?;
    println!("{page}\nafter clearing sku:42: {} queries", database.queries.swap(0, Ordering::Relaxed));
    Ok(())
}

/// One visitor: what the page says about its life, and the page.
async fn visit(address: SocketAddr) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(b"GET /product/42 HTTP/1.1\r\nhost: shop\r\nconnection: close\r\n\r\n").await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    let head = answer.lines().find(|line| line.starts_with("cache-control")).unwrap_or(&answer);
    Ok(format!("{head}\n{}", answer.lines().last().unwrap_or_default()))
}
