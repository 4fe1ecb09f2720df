//! A shop inside a test: a database with two hundred toys, a daemon whose clock the test moves, and requests that need no socket.

use std::net::SocketAddr;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::ConnectInfo;
use axum::http::{HeaderMap, Request, StatusCode, header};
use kv_client::Client;
use kvd::testing::TestServer;
use tempfile::TempDir;
use tower::ServiceExt as _;

use crate::cli::{Places, Serving};
use crate::database::migrations::migrate;
use crate::import::{Source, import};
use crate::pages::cache::PageCache;
use crate::visitors::session::Sessions;
use crate::web::{Shop, router};

/// What the shop is called in tests.
pub(crate) const HOST: &str = "shop.test";
/// Toys of it.
const TOYS: usize = 200;

pub(crate) struct TestShop {
    pub(crate) shop: Shop,
    pub(crate) client: Client,
    pub(crate) daemon: TestServer,
    router: Router,
    pub(crate) dir: TempDir,
}

/// What a request was answered.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: String,
}

impl Answer {
    pub(crate) fn header(&self, name: header::HeaderName) -> &str {
        self.headers.get(&name).map_or("", |value| value.to_str().expect("ours are ASCII"))
    }

    /// Database queries that it took.
    pub(crate) fn queries(&self) -> u32 {
        let timing = self.headers["server-timing"].to_str().expect("ours are ASCII");
        let (_, rest) = timing.split_once("queries;desc=\"").expect("every page says it");
        rest.trim_end_matches('"').parse().expect("a number")
    }

    /// The cookie that it gave, as it is sent back.
    pub(crate) fn cookie(&self) -> Option<String> {
        let (pair, _) = self.headers.get(header::SET_COOKIE)?.to_str().ok()?.split_once(';')?;
        Some(pair.to_owned())
    }

    /// The token of its forms.
    pub(crate) fn token(&self) -> Option<&str> {
        let (_, rest) = self.body.split_once("name=\"token\" value=\"")?;
        rest.split_once('"').map(|(token, _)| token)
    }
}

impl TestShop {
    pub(crate) async fn open() -> TestShop {
        TestShop::open_with(1_000_000).await
    }

    /// With a throttle for visitors with and without a session.
    pub(crate) async fn open_with(throttle: i64) -> TestShop {
        let dir = tempfile::tempdir().expect("a temporary directory can be made");
        let daemon = kvd::testing::server();
        let cache = Some(daemon.socket().to_owned());
        let places = Places { data: dir.path().to_owned(), database: None, replicas: vec![], cache };
        let database = places.database().expect("a file can be made");
        migrate(&database).await.expect("a new database can be migrated");
        import(&database, Source::Generated { toys: TOYS, seed: 1 }).await.expect("toys can be made up");
        let serving =
            Serving { slot: 0, workers: 1, hosts: vec![], throttle, throttle_address: throttle, places };
        let client = serving.places.client("test");
        let mut shop = Shop::open(&serving, &client, vec![HOST.to_owned()]).expect("a shop can be opened");
        // One clock for all: what expires, what is old, and what a page says of its age.
        let clock = daemon.clock().clone();
        shop.pages = PageCache::new(&client, clock.clone());
        shop.sessions = Sessions::new(&client, database.clone(), clock.clone());
        shop.clock = clock;
        shop.search.build(&database).await.expect("an index can be built");
        TestShop { router: router(shop.clone()), shop, client, daemon, dir }
    }

    pub(crate) async fn send(&self, request: Request<Body>) -> Answer {
        let mut request = request;
        request.extensions_mut().insert(ConnectInfo(SocketAddr::from(([192, 0, 2, 1], 4_711))));
        request.headers_mut().entry(header::HOST).or_insert(header::HeaderValue::from_static(HOST));
        let response = self.router.clone().oneshot(request).await.expect("it is infallible");
        let (head, body) = response.into_parts();
        let body = to_bytes(body, 1 << 20).await.expect("pages are small");
        let body = String::from_utf8_lossy(&body).into_owned();
        Answer { status: head.status, headers: head.headers, body }
    }

    pub(crate) async fn get(&self, path: &str, cookie: Option<&str>) -> Answer {
        let request =
            cookie.iter().fold(Request::get(path), |request, cookie| request.header("cookie", *cookie));
        self.send(request.body(Body::empty()).expect("a request")).await
    }

    pub(crate) async fn post(&self, path: &str, cookie: Option<&str>, fields: &[(&str, &str)]) -> Answer {
        let form = form_urlencoded::Serializer::new(String::new()).extend_pairs(fields).finish();
        let request =
            cookie.iter().fold(Request::post(path), |request, cookie| request.header("cookie", *cookie));
        self.send(request.body(Body::from(form)).expect("a request")).await
    }

    /// A new visitor's cookie and token.
    pub(crate) async fn visitor(&self) -> (String, String) {
        let cookie = self.get("/welcome", None).await.cookie().expect("whoever has none gets one");
        let page = self.get("/account", Some(&cookie)).await;
        let token = page.token().expect("a private page has one").to_owned();
        (cookie, token)
    }
}
