//! `/product/{id}`: one toy. What it was made of says how long the page may be kept, by browsers and by proxies.

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::Response;
use kv_client::Scope;

use super::{Shop, page};
use crate::catalogue::Visit;
use crate::database::ToyId;

/// How long a page is kept of which no part ever expires, in seconds.
const LIFE_S_MAX: u64 = 3_600;

pub(super) async fn show(State(shop): State<Shop>, Path(id): Path<String>) -> Response {
    let visit = Visit::default();
    let found = match parse(&id) {
        Some(id) => shop.catalogue.product(id, &visit).await,
        None => Ok(None),
    };
    match found {
        Ok(Some(product)) => page(StatusCode::OK, shop.pages.product(&product), &life(&visit.scope), &visit),
        Ok(None) => page(StatusCode::NOT_FOUND, shop.pages.not_found(), &life(&visit.scope), &visit),
        Err(error) => {
            tracing::error!(%error, %id, "a product cannot be shown");
            page(StatusCode::INTERNAL_SERVER_ERROR, shop.pages.failed(), "no-store", &visit)
        }
    }
}

/// A toy's number as we write it ourselves: `042` would be a second address of the same page.
fn parse(id: &str) -> Option<ToyId> {
    let number: u32 = id.parse().ok()?;
    (number.to_string() == id).then_some(ToyId(number))
}

/// `Cache-Control` of what was used: as short as the first of it to expire.
fn life(scope: &Scope) -> String {
    let age_s = scope.max_age().map_or(LIFE_S_MAX, |age| age.as_secs().min(LIFE_S_MAX));
    format!("public, max-age={age_s}, stale-while-revalidate={}", scope.stale_while_revalidate().as_secs())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_page_has_one_address() {
        assert_eq!(parse("42"), Some(ToyId(42)));
        for other in ["042", "+42", "42 ", "", "-1", "4294967296", "rocket"] {
            assert_eq!(parse(other), None, "{other:?}");
        }
    }

    #[test]
    fn a_page_lives_as_short_as_its_parts() {
        let scope = Scope::new();
        assert_eq!(life(&scope), "public, max-age=3600, stale-while-revalidate=0");
        scope.used(Some(Duration::from_millis(5_500)), Duration::from_secs(30), ["sku:42"]);
        scope.used(Some(Duration::from_secs(300)), Duration::from_secs(60), ["sku:42"]);
        assert_eq!(life(&scope), "public, max-age=5, stale-while-revalidate=30");
    }
}
