//! The shop's web server: one worker's half of it. `product` answers, `pages` writes the HTML.
//!
//! Called by `prefork` with the inherited socket. Every request ends with a page that a person can read, whatever happened.

mod pages;
mod product;

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::get;
use kv_client::Client;
use tokio::net::TcpListener;

use crate::catalogue::{Catalogue, Visit};
use crate::cli::{Failure, Places};
use crate::database::Database;
use pages::Pages;

/// Nothing of ours needs scripts, frames or strangers, so nobody else's gets in.
const SECURITY: [(HeaderName, &str); 2] = [
    (
        header::CONTENT_SECURITY_POLICY,
        "default-src 'none'; style-src 'self'; base-uri 'none'; form-action 'self'",
    ),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
];
const STYLE: &str = include_str!("../../templates/shop.css");

/// What handlers need. Cheap to clone.
#[derive(Debug, Clone)]
struct Shop {
    catalogue: Catalogue,
    pages: Arc<Pages>,
}

/// Serves until `told` ends, and then what was begun.
pub(crate) async fn serve(
    listener: TcpListener,
    places: &Places,
    told: impl Future<Output = ()> + Send + 'static,
) -> Result<(), Failure> {
    let file = &places.database;
    let database = Database::open(file).await;
    let database = database.map_err(|source| Failure::Database { file: file.clone(), source })?;
    // Lazily: the shop opens without its cache, only slower.
    let client = places.cache.iter().fold(Client::builder(), |builder, socket| builder.socket(socket));
    let client = client.name(format!("shop worker {}", std::process::id())).build_lazy();
    let shop = Shop { catalogue: Catalogue::new(&client, database), pages: Arc::new(Pages::new()?) };
    axum::serve(listener, router(shop)).with_graceful_shutdown(told).await.map_err(Failure::Serve)
}

fn router(shop: Shop) -> Router {
    Router::new()
        .route("/product/{id}", get(product::show))
        .route("/shop.css", get(style))
        .route("/healthz", get(health))
        .fallback(nowhere)
        .with_state(shop)
}

/// Whether this worker answers. Not whether kvd does: the shop is open without it.
async fn health() -> impl IntoResponse {
    ([(header::CACHE_CONTROL, "no-store")], "open\n")
}

async fn style() -> impl IntoResponse {
    (
        [(header::CONTENT_TYPE, "text/css; charset=utf-8"), (header::CACHE_CONTROL, "public, max-age=3600")],
        STYLE,
    )
}

async fn nowhere(State(shop): State<Shop>) -> Response {
    page(StatusCode::NOT_FOUND, shop.pages.not_found(), "public, max-age=60", &Visit::default())
}

/// A page, and how long others may keep it. A page that cannot be written is a failure, too, and still answered.
fn page(status: StatusCode, html: Result<String, minijinja::Error>, life: &str, visit: &Visit) -> Response {
    let (status, html, life) = match html {
        Ok(html) => (status, html, life),
        Err(error) => {
            tracing::error!(%error, "a page cannot be written");
            let sorry = "<!doctype html><title>Sorry</title><h1>Sorry, something broke.</h1>".to_owned();
            (StatusCode::INTERNAL_SERVER_ERROR, sorry, "no-store")
        }
    };
    // For whoever looks with a browser's tools: which process answered, and what it asked of the database.
    let timing = format!("worker;desc=\"{}\", queries;desc=\"{}\"", std::process::id(), visit.queries());
    let own = [(header::CACHE_CONTROL, life.to_owned()), (HeaderName::from_static("server-timing"), timing)];
    let mut response =
        (status, SECURITY.map(|(name, value)| (name, HeaderValue::from_static(value))), own, Html(html))
            .into_response();
    if status == StatusCode::INTERNAL_SERVER_ERROR {
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("5"));
    }
    response
}
