//! What a request says, once it is believed: which of our names it calls us by, whose cookie it carries, what its form holds.
//!
//! From "Fault tolerant EJB interceptor" and its site (a cache in front must see the original `Host`). The pitfall: a `Host` header that is taken as it
//! comes ends up in cached pages and their keys. Only the names that this shop was told are its own.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use axum::body::to_bytes;
use axum::extract::Request;
use axum::http::{HeaderMap, HeaderName, Method, StatusCode, header};
use tokio::time::timeout;

use super::Shop;
use crate::visitors::cookie::{self, Believed};

/// Longest form. Beyond: `413`.
const FORM_BYTES_MAX: usize = 16 << 10;
/// How long a form may take to arrive. Beyond: `408`.
const FORM_WITHIN: Duration = Duration::from_secs(5);

/// A request.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) method: Method,
    pub(super) path: String,
    pub(super) query: Option<String>,
    /// One of ours.
    pub(super) host: String,
    pub(super) peer: IpAddr,
    pub(super) session: Option<Believed>,
    pub(super) origin: Option<String>,
    pub(super) if_none_match: Option<String>,
    pub(super) if_modified_since: Option<String>,
    form: Vec<(String, String)>,
}

impl Asked {
    /// What it says; or what it is refused with.
    pub(super) async fn of(shop: &Shop, peer: SocketAddr, request: Request) -> Result<Asked, StatusCode> {
        let (head, body) = request.into_parts();
        let text = |name: HeaderName| text(&head.headers, &name).map(str::to_owned);
        let host = text(header::HOST).unwrap_or_default().to_ascii_lowercase();
        if !shop.hosts.contains(&host) {
            return Err(StatusCode::MISDIRECTED_REQUEST);
        }
        let form = if head.method == Method::POST {
            let bytes = timeout(FORM_WITHIN, to_bytes(body, FORM_BYTES_MAX)).await;
            let bytes = bytes.map_err(|_elapsed| StatusCode::REQUEST_TIMEOUT)?;
            let bytes = bytes.map_err(|_too_long| StatusCode::PAYLOAD_TOO_LARGE)?;
            let form: Vec<(String, String)> = form_urlencoded::parse(&bytes).into_owned().collect();
            // No field of ours has more than one line, and PostgreSQL takes no text with a NUL.
            let is_text = |text: &str| !text.contains(char::is_control);
            if !form.iter().all(|(name, value)| is_text(name) && is_text(value)) {
                return Err(StatusCode::BAD_REQUEST);
            }
            form
        } else {
            Vec::new()
        };
        let session = cookie(&head.headers).and_then(|value| shop.keys.believe(value, shop.clock.wall_ms()));
        Ok(Asked {
            path: head.uri.path().to_owned(),
            query: head.uri.query().map(str::to_owned),
            peer: peer.ip(),
            origin: text(header::ORIGIN),
            if_none_match: text(header::IF_NONE_MATCH),
            if_modified_since: text(header::IF_MODIFIED_SINCE),
            method: head.method,
            host,
            session,
            form,
        })
    }

    /// A field of the form.
    pub(super) fn field(&self, name: &str) -> Option<&str> {
        self.form.iter().find(|(own, _)| own == name).map(|(_, value)| value.as_str())
    }

    /// All fields but the token.
    pub(super) fn fields(&self) -> impl Iterator<Item = &(String, String)> {
        self.form.iter().filter(|(name, _)| name != "token")
    }
}

fn text<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

/// Our cookie among those that were sent.
fn cookie(headers: &HeaderMap) -> Option<&str> {
    headers.get_all(header::COOKIE).iter().filter_map(|value| value.to_str().ok()).find_map(|line| {
        line.split(';').find_map(|pair| {
            let (name, value) = pair.split_once('=')?;
            (name.trim() == cookie::NAME).then_some(value.trim())
        })
    })
}
