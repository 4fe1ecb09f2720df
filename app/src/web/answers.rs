//! Responses: who may keep them and how long, and what a browser may do with them.
//!
//! From "Building a Large-scale E-commerce Site with Apache and mod_perl" (a page's expiry goes out as `Expires`, `If-Modified-Since` is answered without the
//! page) and "E-Commerce with Django at Scale" (a page that is cached for a visitor is shown to another). So there are two kinds of answers
//! and nothing between them: [`public`], for everybody, without a cookie or token, and [`private`], `no-store`. The pitfall: one header that
//! depends on the visitor in a response that a proxy keeps. `Vary: Cookie` keeps those who have a session away from the public one.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::body::Body;
use axum::http::{HeaderName, HeaderValue, Response as HttpResponse, StatusCode, header};
use axum::response::Response;

use super::Shop;
use super::asked::Asked;
use crate::pages::cache::Page;
use crate::pages::two_pass::Visitor;
use crate::visit::Visit;
use crate::visitors::cookie::{self, SessionId};

/// Nothing of ours needs scripts, frames or strangers, so nobody else's gets in.
const SECURITY: [(HeaderName, &str); 3] = [
    (
        header::CONTENT_SECURITY_POLICY,
        "default-src 'none'; style-src 'self'; img-src 'self' data:; base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
    ),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::REFERRER_POLICY, "same-origin"),
];
const STYLE: &str = include_str!("../../templates/shop.css");
/// The smallest image there is: one transparent point.
const POINT: &[u8] =
    b"GIF89a\x01\0\x01\0\x80\0\0\0\0\0\0\0\0!\xf9\x04\x01\0\0\0\0,\0\0\0\0\x01\0\x01\0\0\x02\x02D\x01\0;";
/// How long a page is kept of which no part ever expires.
const AGE_MAX: Duration = Duration::from_secs(3_600);

/// A page for everybody, or that it has not changed.
pub(super) fn public(shop: &Shop, asked: &Asked, page: &Page, visit: &Visit) -> Response {
    let age_s = visit.scope.max_age().unwrap_or(AGE_MAX).min(AGE_MAX).as_secs();
    let life_ms = i64::try_from(age_s * 1_000).unwrap_or(0);
    let is_same = match &asked.if_none_match {
        Some(tags) => {
            tags.split(',').any(|tag| tag.trim().trim_start_matches("W/") == page.etag || tag.trim() == "*")
        }
        None => asked
            .if_modified_since
            .as_deref()
            .and_then(seconds)
            .is_some_and(|since| page.rendered_ms / 1_000 <= since),
    };
    let (status, body) = if is_same && page.status == 200 {
        (StatusCode::NOT_MODIFIED, Body::empty())
    } else {
        let status = StatusCode::from_u16(page.status).unwrap_or(StatusCode::OK);
        (status, Body::from(page.first_pass.fill(&Visitor::default())))
    };
    let mut response = html(status, body);
    let headers = response.headers_mut();
    let mut say =
        |name, value: String| headers.insert(name, HeaderValue::try_from(value).expect("digits and letters"));
    say(header::CACHE_CONTROL, format!("public, max-age={age_s}"));
    say(header::EXPIRES, date(shop.clock.wall_ms() + life_ms));
    // A date has seconds. In the second in which this page was made another may still take its place, of the same date: until that is over it
    // is said to be a second older than it is, and whoever asks by that date gets the page.
    let now_ms = shop.clock.wall_ms();
    let is_settled = page.rendered_ms / 1_000 < now_ms / 1_000;
    say(header::LAST_MODIFIED, date(page.rendered_ms - if is_settled { 0 } else { 1_000 }));
    say(header::ETAG, page.etag.clone());
    say(header::VARY, "Cookie".to_owned());
    response
}

/// A page for one visitor. `cookie`: a session to be given.
pub(super) fn private(shop: &Shop, page: &Page, visitor: &Visitor, cookie: Option<&SessionId>) -> Response {
    let status = StatusCode::from_u16(page.status).unwrap_or(StatusCode::OK);
    with_session(shop, no_store(html(status, Body::from(page.first_pass.fill(visitor)))), cookie)
}

/// On to another page, after a form.
pub(super) fn see_other(shop: &Shop, to: &str, cookie: Option<&SessionId>) -> Response {
    let mut response = no_store(html(StatusCode::SEE_OTHER, Body::empty()));
    response
        .headers_mut()
        .insert(header::LOCATION, HeaderValue::try_from(to).expect("addresses of ours are ASCII"));
    with_session(shop, response, cookie)
}

/// The image that brings a session to whoever came by a page without one.
pub(super) fn welcome(shop: &Shop, cookie: Option<&SessionId>) -> Response {
    let mut response = no_store(html(StatusCode::OK, Body::from(POINT)));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("image/gif"));
    with_session(shop, response, cookie)
}

fn with_session(shop: &Shop, mut response: Response, id: Option<&SessionId>) -> Response {
    if let Some(id) = id {
        let value = shop.keys.cookie(id, shop.clock.wall_ms());
        let (name, life_s) = (cookie::NAME, cookie::LIFE.as_secs());
        let cookie = format!("{name}={value}; Path=/; Max-Age={life_s}; HttpOnly; SameSite=Lax");
        response
            .headers_mut()
            .insert(header::SET_COOKIE, HeaderValue::try_from(cookie).expect("base64 and digits"));
    }
    response
}

/// Whether this worker answers. Not whether kvd does: the shop is open without it.
pub(super) fn health() -> Response {
    no_store(text("open\n".into()))
}

pub(super) fn style() -> Response {
    let mut response = text(STYLE.into());
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/css; charset=utf-8"));
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("public, max-age=3600"));
    response
}

/// A page that is not there just now.
pub(super) fn failed(shop: &Shop) -> Response {
    let words =
        "Something on our side does not answer just now. We know about it. Please try again in a moment.";
    let mut response = message(shop, StatusCode::INTERNAL_SERVER_ERROR, "A piece is missing", words);
    response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("5"));
    response
}

pub(super) fn throttled(shop: &Shop, wait: Duration) -> Response {
    let words = "You are faster than we can put toys on the shelf. Please wait a minute.";
    let mut response = message(shop, StatusCode::TOO_MANY_REQUESTS, "One at a time, please", words);
    response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(wait.as_secs().max(1)));
    response
}

pub(super) fn refused(shop: &Shop, status: StatusCode) -> Response {
    let words = format!("This request cannot be answered here: {status}.");
    message(shop, status, "Not like this", &words)
}

fn message(shop: &Shop, status: StatusCode, heading: &str, words: &str) -> Response {
    let content = minijinja::context! { title => heading, heading, text => words, picture => "🧩" };
    let page = shop
        .templates
        .render("message.html", content)
        .map(|page| page.fill(&Visitor { has_session: true, ..Visitor::default() }));
    let page = page.unwrap_or_else(|error| {
        tracing::error!(%error, "a page cannot be written");
        "<!doctype html><title>Sorry</title><h1>Sorry, something broke.</h1>".to_owned()
    });
    no_store(html(status, page.into()))
}

/// For whoever looks with a browser's tools: which process answered, and what it asked of the database.
pub(super) fn timed(mut response: Response, visit: &Visit) -> Response {
    let timing = format!("worker;desc=\"{}\", queries;desc=\"{}\"", std::process::id(), visit.queries());
    let timing = HeaderValue::try_from(timing).expect("digits");
    response.headers_mut().insert(HeaderName::from_static("server-timing"), timing);
    response
}

fn no_store(mut response: Response) -> Response {
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("private, no-store"));
    response
}

fn html(status: StatusCode, body: Body) -> Response {
    let mut response = HttpResponse::new(body);
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8"));
    headers.extend(SECURITY.map(|(name, value)| (name, HeaderValue::from_static(value))));
    response
}

pub(super) fn text(text: String) -> Response {
    let mut response = html(StatusCode::OK, Body::from(text));
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

fn date(ms: i64) -> String {
    httpdate::fmt_http_date(UNIX_EPOCH + Duration::from_millis(u64::try_from(ms).unwrap_or(0)))
}

fn seconds(date: &str) -> Option<i64> {
    let time: SystemTime = httpdate::parse_http_date(date).ok()?;
    i64::try_from(time.duration_since(UNIX_EPOCH).ok()?.as_secs()).ok()
}
