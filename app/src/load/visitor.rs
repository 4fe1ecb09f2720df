//! One visitor: a connection, a cookie, twelve views at the times they are due, and now and then an order.
//!
//! From "Building a Large-scale E-commerce Site with Apache and mod_perl" (2.5 M views and 200 k sessions an hour, one in ten orders). The pitfall is
//! coordinated omission: a visitor who waits for a slow page and clicks later hides from the figures what he suffered. Each view is
//! due at a time that nobody delays, and what counts is how long after that the answer was there.

use std::net::SocketAddr;
use std::time::Duration;

use http_body_util::{BodyExt as _, Full};
use hyper::body::Bytes;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::{Method, Request, StatusCode, header};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep_until, timeout};

use super::shelf::Shelf;
use super::tally::{Kind, Tally};

/// Views of a session.
pub(super) const VIEWS: u32 = 12;
/// Between two views of a session.
const THINK: Duration = Duration::from_secs(1);
/// How long a visitor waits for a page before he gives up.
const PATIENCE: Duration = Duration::from_secs(10);
/// Of a hundred sessions that do not order so many put something into their cart all the same.
const CART_PERCENT: u8 = 20;

/// A visitor who is about to come.
pub(super) struct Visitor {
    address: SocketAddr,
    shelf: std::sync::Arc<Shelf>,
    tally: Tally,
    random: fastrand::Rng,
    connection: Option<SendRequest<Full<Bytes>>>,
    cookie: Option<String>,
    token: String,
}

impl Visitor {
    pub(super) fn new(address: SocketAddr, shelf: std::sync::Arc<Shelf>, tally: Tally, seed: u64) -> Visitor {
        let random = fastrand::Rng::with_seed(seed);
        Visitor { address, shelf, tally, random, connection: None, cookie: None, token: String::new() }
    }

    /// Comes at a time, looks at twelve pages, and leaves.
    pub(super) async fn visit(mut self, at: Instant, orders: bool) {
        let fills_cart = orders || self.random.u8(0..100) < CART_PERCENT;
        for view in 0..VIEWS {
            let due = at + THINK * view;
            sleep_until(due).await;
            match (view, orders) {
                (0, _) => self.land(due).await,
                (6, _) if fills_cart => self.add(due).await,
                (7, _) if fills_cart => self.get(Kind::Cart, "/cart", due).await,
                (8, true) => self.order(due).await,
                _ => self.look(due).await,
            }
        }
    }

    /// The first page, and the image on it that brings a session.
    async fn land(&mut self, due: Instant) {
        if self.random.bool() {
            self.get(Kind::Home, "/", due).await;
        } else {
            let path = self.product();
            self.get(Kind::Product, &path, due).await;
        }
        self.get(Kind::Welcome, "/welcome", Instant::now()).await;
    }

    async fn look(&mut self, due: Instant) {
        match self.random.u8(0..100) {
            0..60 => {
                let path = self.product();
                self.get(Kind::Product, &path, due).await;
            }
            60..75 => {
                let path = format!("/category/{}", self.shelf.category(&mut self.random));
                self.get(Kind::Category, &path, due).await;
            }
            75..90 => {
                let word = self.shelf.word(&mut self.random);
                let query = form_urlencoded::Serializer::new(String::new()).append_pair("q", word).finish();
                self.get(Kind::Search, &format!("/search?{query}"), due).await;
            }
            _ => self.get(Kind::Home, "/", due).await,
        }
    }

    /// A product, and into the cart with it.
    async fn add(&mut self, due: Instant) {
        let toy = self.shelf.toy(&mut self.random).to_string();
        self.get(Kind::Product, &format!("/product/{toy}"), due).await;
        let fields = [("toy", toy.as_str()), ("quantity", "1"), ("action", "add")];
        self.post(Kind::Add, "/cart", &fields, Instant::now()).await;
    }

    /// Checkout and buying; the page that thanks is the next view.
    async fn order(&mut self, due: Instant) {
        let Some(page) = self.send(Kind::Checkout, Method::GET, "/checkout", Bytes::new(), due).await else {
            return;
        };
        let Some(order) = between(&page, "name=\"order\" value=\"", "\"").map(str::to_owned) else { return };
        let cents = between(&page, "name=\"cents\" value=\"", "\"").unwrap_or_default().to_owned();
        let fields = [
            ("order", order.as_str()),
            ("cents", cents.as_str()),
            ("name", "A visitor"),
            ("email", "visitor@example.org"),
            ("card", "4242"),
        ];
        self.post(Kind::Buy, "/checkout", &fields, Instant::now()).await;
        self.get(Kind::Order, &format!("/order/{order}"), Instant::now()).await;
    }

    fn product(&mut self) -> String {
        format!("/product/{}", self.shelf.toy(&mut self.random))
    }

    async fn get(&mut self, kind: Kind, path: &str, due: Instant) {
        self.send(kind, Method::GET, path, Bytes::new(), due).await;
    }

    async fn post(&mut self, kind: Kind, path: &str, fields: &[(&str, &str)], due: Instant) {
        let token = std::mem::take(&mut self.token);
        let mut fields = fields.to_vec();
        fields.push(("token", &token));
        let body = Bytes::from(form_urlencoded::Serializer::new(String::new()).extend_pairs(fields).finish());
        self.token = token;
        self.send(kind, Method::POST, path, body, due).await;
    }

    /// Sends a request and counts it; the page, if one came.
    async fn send(
        &mut self,
        kind: Kind,
        method: Method,
        path: &str,
        body: Bytes,
        due: Instant,
    ) -> Option<String> {
        let answered = timeout(PATIENCE, self.exchange(method, path, body)).await;
        let answer = answered.unwrap_or(None);
        self.tally.note(kind, due.elapsed(), answer.as_ref().map(|(status, _)| *status));
        if answer.is_none() {
            self.connection = None;
        }
        let (_, page) = answer?;
        if let Some(token) = between(&page, "name=\"token\" value=\"", "\"") {
            token.clone_into(&mut self.token);
        }
        Some(page)
    }

    async fn exchange(&mut self, method: Method, path: &str, body: Bytes) -> Option<(StatusCode, String)> {
        let is_form = method == Method::POST;
        let mut request =
            Request::builder().method(method).uri(path).header(header::HOST, self.address.to_string());
        if let Some(cookie) = &self.cookie {
            request = request.header(header::COOKIE, cookie);
        }
        if is_form {
            request = request.header(header::CONTENT_TYPE, "application/x-www-form-urlencoded");
        }
        let request = request.body(Full::new(body)).ok()?;
        let response = self.connect().await?.send_request(request).await.ok()?;
        let (head, body) = response.into_parts();
        let given = head.headers.get(header::SET_COOKIE).and_then(|value| value.to_str().ok());
        if let Some((cookie, _)) = given.and_then(|cookie| cookie.split_once(';')) {
            self.cookie = Some(cookie.to_owned());
        }
        let page = body.collect().await.ok()?.to_bytes();
        Some((head.status, String::from_utf8_lossy(&page).into_owned()))
    }

    async fn connect(&mut self) -> Option<&mut SendRequest<Full<Bytes>>> {
        let is_open = match &mut self.connection {
            Some(connection) => connection.ready().await.is_ok(),
            None => false,
        };
        if !is_open {
            let stream = TcpStream::connect(self.address).await.ok()?;
            stream.set_nodelay(true).ok()?;
            let (connection, driver) = handshake(TokioIo::new(stream)).await.ok()?;
            drop(tokio::spawn(driver));
            self.connection = Some(connection);
        }
        self.connection.as_mut()
    }
}

fn between<'a>(text: &'a str, before: &str, after: &str) -> Option<&'a str> {
    let (_, rest) = text.split_once(before)?;
    rest.split_once(after).map(|(inside, _)| inside)
}
