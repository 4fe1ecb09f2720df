//! The shop by its requests, without processes: who may keep what, whose it is, and what is refused.

use axum::body::Body;
use axum::http::{Request, StatusCode, header};

use crate::catalogue::{Catalogue, ToyId};
use crate::chores;
use crate::database::{Database, parameters};
use crate::pages::dollars;
use crate::testing::{HOST, TestShop};
use crate::visit::Visit;

#[tokio::test]
async fn pages_for_everybody_can_be_kept_and_are_revalidated() {
    let shop = TestShop::open().await;
    for path in ["/", "/category/space", "/product/7", "/search?q=dragon"] {
        let made = shop.get(path, None).await;
        let by_date = Request::get(path).header("if-modified-since", made.header(header::LAST_MODIFIED));
        let by_date = shop.send(by_date.body(Body::empty()).unwrap()).await;
        assert_eq!(
            by_date.status,
            StatusCode::OK,
            "{path}: it may have changed in the second it was made in"
        );
        shop.daemon.clock().advance(std::time::Duration::from_secs(1));
        let page = shop.get(path, None).await;
        assert_eq!(page.status, StatusCode::OK, "{path}");
        let control = page.header(header::CACHE_CONTROL);
        let age = control.strip_prefix("public, max-age=").and_then(|age| age.parse::<u64>().ok());
        assert!(age.is_some_and(|age| age <= 60), "{path}: {control}");
        for name in [header::EXPIRES, header::LAST_MODIFIED, header::ETAG] {
            assert!(!page.header(name.clone()).is_empty(), "{path}: {name}");
        }
        assert_eq!(page.header(header::VARY), "Cookie");
        assert!(page.cookie().is_none() && page.token().is_none(), "{path}");
        let again = shop.get(path, None).await;
        assert_eq!((again.queries(), &again.body), (0, &page.body), "{path}");
        for (name, value) in [
            ("if-none-match", page.header(header::ETAG)),
            ("if-modified-since", page.header(header::LAST_MODIFIED)),
        ] {
            let request = Request::get(path).header(name, value).body(Body::empty()).unwrap();
            let answer = shop.send(request).await;
            assert_eq!(
                (answer.status, answer.body.as_str()),
                (StatusCode::NOT_MODIFIED, ""),
                "{path}: {name}"
            );
        }
        let other = Request::get(path).header("if-none-match", "\"other\"").body(Body::empty()).unwrap();
        assert_eq!(shop.send(other).await.status, StatusCode::OK);
    }
}

#[tokio::test]
async fn a_page_with_a_filled_hole_is_nobodys_but_the_visitors() {
    let shop = TestShop::open().await;
    let (anna, token) = shop.visitor().await;
    let fields = [("token", token.as_str()), ("name", "Anna"), ("email", "anna@example.org")];
    let anna =
        shop.post("/account", Some(&anna), &fields).await.cookie().expect("who signs in gets a new session");
    for path in ["/", "/product/7", "/search?q=dragon", "/cart", "/account", "/nowhere"] {
        let own = shop.get(path, Some(&anna)).await;
        assert_eq!(own.header(header::CACHE_CONTROL), "private, no-store", "{path}");
        assert!(own.body.contains("Hello, Anna") && own.header(header::ETAG).is_empty(), "{path}");
        let others = shop.get(path, None).await;
        assert!(!others.body.contains("Anna"), "{path}");
        let (bob, _) = shop.visitor().await;
        let bobs = shop.get(path, Some(&bob)).await;
        assert!(
            !bobs.body.contains("Anna") && (own.token().is_none() || own.token() != bobs.token()),
            "{path}"
        );
    }
    assert!(shop.get("/", None).await.header(header::CACHE_CONTROL).starts_with("public"));
}

#[tokio::test]
async fn hosts_and_parameters_that_nobody_knows_poison_nothing() {
    let shop = TestShop::open().await;
    let page = shop.get("/product/7", None).await;
    let from = |host: &str| Request::get("/product/7").header("host", host).body(Body::empty()).unwrap();
    for host in ["evil.example", "shop.test.evil", "", "shop.test:81"] {
        assert_eq!(shop.send(from(host)).await.status, StatusCode::MISDIRECTED_REQUEST, "{host:?}");
    }
    let forwarded =
        Request::get("/product/7").header("x-forwarded-host", "evil.example").body(Body::empty()).unwrap();
    assert_eq!(shop.send(forwarded).await.body, page.body);
    for path in ["/product/7?x=%3Cscript%3E", "/product/7?utm_source=a&page=9", "/product/7?"] {
        let same = shop.get(path, None).await;
        assert_eq!((same.queries(), &same.body), (0, &page.body), "{path}");
    }
    assert_eq!(shop.send(from("SHOP.TEST")).await.body, page.body);
}

#[tokio::test]
async fn templates_and_scripts_in_data_and_searches_are_text() {
    let shop = TestShop::open().await;
    let name = "{{ hole.token }}<script>alert(1)</script>{% raw %}\u{0}2";
    let change = format!("UPDATE toy SET name = {} WHERE id = 7", parameters(1, 1));
    let name_there = name.trim_end_matches("\u{0}2");
    sqlx::query(&change).bind(name_there).execute(shop.shop.database.primary()).await.unwrap();
    let (cookie, _) = shop.visitor().await;
    for cookie in [None, Some(cookie.as_str())] {
        let page = shop.get("/product/7", cookie).await;
        assert!(
            page.body
                .contains("<h1>{{ hole.token }}&lt;script&gt;alert(1)&lt;&#x2f;script&gt;{% raw %}</h1>"),
            "{}",
            page.body
        );
        assert!(!page.body.contains("<script"), "{}", page.body);
        for terms in
            ["%3Cscript%3Ealert(1)%3C/script%3E", "%22%3E%3Cscript%3E", "%7B%7B+hole.token+%7D%7D", "%002"]
        {
            let page = shop.get(&format!("/search?q={terms}"), cookie).await;
            assert_eq!(page.status, StatusCode::OK);
            assert!(!page.body.contains("<script"), "{}", page.body);
            assert_eq!(page.body.matches("name=\"token\"").count(), 0, "a search has no form of ours");
        }
    }
}

#[tokio::test]
async fn forms_without_our_token_change_nothing() {
    let shop = TestShop::open().await;
    let (anna, token) = shop.visitor().await;
    let (bob, _) = shop.visitor().await;
    let add = [("toy", "7"), ("quantity", "1"), ("action", "add")];
    let with = |token| [add.as_slice(), &[("token", token)]].concat();
    assert_eq!(shop.post("/cart", Some(&anna), &with(&token)).await.status, StatusCode::SEE_OTHER);
    for (cookie, fields) in [
        (Some(&anna), add.to_vec()),
        (Some(&anna), with("")),
        (Some(&anna), with("AAAA")),
        (Some(&bob), with(&token)),
        (None, with(&token)),
        (None, add.to_vec()),
    ] {
        let refused = shop.post("/cart", cookie.map(String::as_str), &fields).await;
        assert_eq!(refused.status, StatusCode::FORBIDDEN, "{fields:?}");
        assert_eq!(refused.header(header::CACHE_CONTROL), "private, no-store");
        assert!(refused.body.contains("Did you mean to do this?"), "{}", refused.body);
    }
    assert!(shop.get("/cart", Some(&anna)).await.body.contains("Cart <b class=\"count\">1</b>"));
    assert!(shop.get("/cart", Some(&bob)).await.body.contains("There is nothing in it yet"));
    // The first form of somebody who came by a page that is cached for everybody.
    let first = |origin: &str| {
        let request = Request::post("/cart").header("origin", origin);
        request.body(Body::from("toy=7&quantity=2&action=add")).unwrap()
    };
    let foreign = shop.send(first("http://evil.example")).await;
    assert_eq!(foreign.status, StatusCode::FORBIDDEN);
    assert_eq!(foreign.cookie(), None, "it would take the place of the one that the browser kept back");
    assert_eq!(foreign.token(), None, "and is asked to be sent again as a first form");
    let taken = shop.send(first(&format!("http://{HOST}"))).await;
    assert_eq!(taken.status, StatusCode::SEE_OTHER);
    let cookie = taken.cookie().expect("a session begins");
    assert!(shop.get("/cart", Some(&cookie)).await.body.contains("Cart <b class=\"count\">2</b>"));
}

#[tokio::test]
async fn whoever_has_no_session_is_not_looked_for() {
    let shop = TestShop::open().await;
    for path in ["/cart", "/checkout", "/account"] {
        let page = shop.get(path, None).await;
        assert_eq!((page.status, page.queries()), (StatusCode::OK, 0), "{path}");
        assert!(page.cookie().is_some(), "{path}");
    }
}

#[tokio::test]
async fn forged_expired_and_cut_cookies_are_strangers() {
    let shop = TestShop::open().await;
    let (cookie, token) = shop.visitor().await;
    let add = [("token", token.as_str()), ("toy", "7"), ("quantity", "1"), ("action", "add")];
    shop.post("/cart", Some(&cookie), &add).await;
    let is_known = async |cookie: &str| shop.get("/", Some(cookie)).await.body.contains("class=\"count\"");
    assert!(is_known(&cookie).await);
    let (name, value) = cookie.split_once('=').unwrap();
    let (text, mac) = value.rsplit_once('.').unwrap();
    let (id, until) = text.split_once('.').unwrap();
    let other = |text: &str| format!("{}{}", if text.starts_with('A') { 'B' } else { 'A' }, &text[1..]);
    for value in [
        value[..value.len() - 1].to_owned(),
        format!("{text}.{}", other(mac)),
        format!("{id}.{}.{mac}", until.parse::<i64>().unwrap() + 1),
        format!("{}.{until}.{mac}", other(id)),
        text.to_owned(),
        String::new(),
    ] {
        assert!(!is_known(&format!("{name}={value}")).await, "{value}");
        let page = shop.get("/", Some(&format!("{name}={value}"))).await;
        assert!(page.header(header::CACHE_CONTROL).starts_with("public"), "{value}");
    }
    assert!(is_known(&format!("other=x; {cookie}; more=y")).await, "among others");
    shop.daemon.clock().advance(crate::visitors::cookie::LIFE);
    assert!(!is_known(&cookie).await, "expired");
}

#[tokio::test]
async fn ten_times_the_rate_is_refused_and_a_minute_later_welcome() {
    let shop = TestShop::open_with(30).await;
    let (cookie, _) = shop.visitor().await;
    let mut refused = 0;
    for _ in 0..300 {
        let answer = shop.get("/product/7", Some(&cookie)).await;
        if answer.status == StatusCode::TOO_MANY_REQUESTS {
            refused += 1;
            let wait: u64 = answer.header(header::RETRY_AFTER).parse().unwrap();
            assert!((1..=60).contains(&wait), "{wait}");
            assert_eq!(answer.header(header::CACHE_CONTROL), "private, no-store");
        }
    }
    // One of the thirty was the page that showed the visitor his token.
    assert_eq!(refused, 271);
    assert_eq!(shop.get("/healthz", None).await.status, StatusCode::OK, "balancers are not visitors");
    shop.daemon.clock().advance(std::time::Duration::from_secs(60));
    assert_eq!(shop.get("/product/7", Some(&cookie)).await.status, StatusCode::OK);
}

#[tokio::test]
async fn two_hundred_at_a_cold_product_make_one_query_a_piece() {
    let shop = std::sync::Arc::new(TestShop::open().await);
    let crowd: Vec<_> = (0..200)
        .map(|_| {
            let shop = std::sync::Arc::clone(&shop);
            tokio::spawn(async move { shop.get("/product/42", None).await })
        })
        .collect();
    let mut queries = 0;
    for visitor in crowd {
        let answer = visitor.await.unwrap();
        assert_eq!(answer.status, StatusCode::OK);
        queries += answer.queries();
    }
    println!("200 requests, {queries} queries");
    assert_eq!(queries, 3, "the description, the price and the inventory");
}

#[tokio::test]
async fn a_list_of_many_cold_products_makes_one_query_a_piece() {
    let shop = TestShop::open().await;
    let page = shop.get("/category/space", None).await;
    assert_eq!((page.status, page.queries()), (StatusCode::OK, 4), "categories, ids, descriptions, prices");
    assert_eq!(page.body.matches("class=\"price\"").count(), 24);
    assert_eq!(
        shop.get("/category/space?sort=cheap", None).await.queries(),
        2 + 1,
        "ids; objects that were not on the other"
    );
}

#[tokio::test]
async fn a_changed_price_is_on_every_page_at_once() {
    let shop = TestShop::open().await;
    let paths = ["/", "/product/1", "/category/space", "/search?q=&category=space"];
    for path in paths {
        assert!(!shop.get(path, None).await.body.contains("$1234.56"), "{path}");
    }
    chores::set_price(&shop.shop.database, &shop.shop.catalogue, ToyId(1), 123_456).await.unwrap();
    for path in paths {
        assert!(shop.get(path, None).await.body.contains("$1234.56"), "{path}");
    }
    assert!(chores::set_price(&shop.shop.database, &shop.shop.catalogue, ToyId(9_999), 1).await.is_err());
}

/// The replica stands still: it will say the old price for ever.
#[tokio::test]
async fn a_changed_price_is_not_taken_from_a_replica_that_lags() {
    let shop = TestShop::open().await;
    let (primary, replica) = (shop.dir.path().join("shop.sqlite"), shop.dir.path().join("replica.sqlite"));
    let copy = format!("VACUUM INTO '{}'", replica.display());
    sqlx::raw_sql(&copy).execute(shop.shop.database.primary()).await.unwrap();
    let database = Database::open(&primary.display().to_string(), &[replica.display().to_string()]).unwrap();
    let catalogue = Catalogue::new(&shop.client, database.clone());
    let cents = async || {
        let product = catalogue.product(ToyId(1), &Visit::default()).await.unwrap().unwrap();
        product.price.cents
    };
    assert_ne!(cents().await, 123_456);
    chores::set_price(&database, &catalogue, ToyId(1), 123_456).await.unwrap();
    assert_eq!(cents().await, 123_456);
}

#[tokio::test]
async fn a_purged_page_is_rendered_again_of_the_same_objects() {
    let shop = TestShop::open().await;
    shop.get("/product/7", None).await;
    let url = format!("https://{HOST}/product/7?utm_source=x");
    assert!(chores::purge(&shop.client, &url).await.unwrap());
    assert!(!chores::purge(&shop.client, &url).await.unwrap());
    assert_eq!(shop.get("/product/7", None).await.queries(), 0);
    for nowhere in ["/product/7", "ftp://shop.test/", "http://shop.test/cart"] {
        assert!(chores::purge(&shop.client, nowhere).await.is_err(), "{nowhere}");
    }
}

#[tokio::test]
async fn a_toy_that_is_not_there_is_looked_for_once() {
    let shop = TestShop::open().await;
    let first = shop.get("/product/100000", None).await;
    assert_eq!((first.status, first.queries()), (StatusCode::NOT_FOUND, 3));
    let again = shop.get("/product/100000", None).await;
    assert_eq!((again.status, again.queries()), (StatusCode::NOT_FOUND, 0));
    assert!(again.body.contains("There is no such toy"), "{}", again.body);
    for nowhere in
        ["/product/rocket", "/product/007", "/order/x", "/category/none", "/category/space?page=99"]
    {
        assert_eq!(shop.get(nowhere, None).await.status, StatusCode::NOT_FOUND, "{nowhere}");
    }
    let made_up = shop.get("/product/rocket", None).await;
    let age = made_up.header(header::CACHE_CONTROL).strip_prefix("public, max-age=").unwrap();
    assert!(age.parse::<u64>().unwrap() <= 5, "{age}");
    let put = Request::put("/product/7").body(Body::empty()).unwrap();
    assert_eq!(shop.send(put).await.status, StatusCode::METHOD_NOT_ALLOWED);
    let elsewhere = shop.post("//evil.example/cart", None, &[("toy", "7")]).await;
    assert_eq!(elsewhere.status, StatusCode::NOT_FOUND, "no form of ours leads there: {}", elsewhere.body);
    let nul = shop.post("/account", None, &[("name", "Anna\0")]).await;
    assert_eq!(nul.status, StatusCode::BAD_REQUEST, "no database of ours is asked to keep it");
    let long = Request::post("/cart").body(Body::from("x".repeat(100_000))).unwrap();
    assert_eq!(shop.send(long).await.status, StatusCode::PAYLOAD_TOO_LARGE);
}

#[tokio::test]
async fn a_database_that_fails_is_a_page_that_nobody_keeps() {
    let shop = TestShop::open().await;
    let break_it = "ALTER TABLE price RENAME TO mislaid";
    sqlx::query(break_it).execute(shop.shop.database.primary()).await.unwrap();
    let page = shop.get("/product/50", None).await;
    assert_eq!(page.status, StatusCode::INTERNAL_SERVER_ERROR);
    assert_eq!(page.header(header::CACHE_CONTROL), "private, no-store");
    assert!(page.body.contains("A piece is missing"), "{}", page.body);
    assert!(
        !page.body.contains("mislaid") && !page.body.contains("SQL"),
        "visitors learn nothing of our tables: {}",
        page.body
    );
}

#[tokio::test]
async fn a_visitor_buys_what_is_in_the_cart_once() {
    let shop = TestShop::open().await;
    sqlx::query("UPDATE inventory SET pieces = 10").execute(shop.shop.database.primary()).await.unwrap();
    let (cookie, token) = shop.visitor().await;
    let fields = |more: &[(&'static str, &'static str)]| -> Vec<(String, String)> {
        more.iter()
            .chain(&[])
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .chain([("token".to_owned(), token.clone())])
            .collect()
    };
    let post = async |path: &str, fields: Vec<(String, String)>| {
        let fields: Vec<(&str, &str)> =
            fields.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        shop.post(path, Some(&cookie), &fields).await
    };
    post("/cart", fields(&[("toy", "7"), ("quantity", "2"), ("action", "add")])).await;
    post("/cart", fields(&[("toy", "8"), ("quantity", "1"), ("action", "add")])).await;
    post("/cart", fields(&[("toy", "7"), ("quantity", "3")])).await;
    let form = shop.get("/checkout", Some(&cookie)).await;
    let (_, order) = form.body.split_once("name=\"order\" value=\"").unwrap();
    let order = order.split_once('"').unwrap().0.to_owned();
    for email in ["", "nobody", "a\r\nb@example.org"] {
        let mut buy = fields(&[("name", "Anna"), ("card", "4242")]);
        buy.extend([("order".to_owned(), order.clone()), ("email".to_owned(), email.to_owned())]);
        assert_eq!(post("/checkout", buy).await.status, StatusCode::BAD_REQUEST, "{email:?}");
    }
    let mut buy = fields(&[("name", "Anna"), ("email", "anna@example.org"), ("card", "4242 4242 4242 4242")]);
    buy.push(("order".to_owned(), order.clone()));
    let (_, cents) = form.body.split_once("name=\"cents\" value=\"").unwrap();
    let cents: i64 = cents.split_once('"').unwrap().0.parse().unwrap();
    let told = |cents: i64| [buy.as_slice(), &[("cents".to_owned(), cents.to_string())]].concat();
    let dearer = post("/checkout", told(cents - 100)).await;
    assert_eq!(dearer.status, StatusCode::CONFLICT, "{}", dearer.body);
    assert!(dearer.body.contains(&dollars(cents)), "{}", dearer.body);
    let buy = told(cents);
    for _ in 0..2 {
        let bought = post("/checkout", buy.clone()).await;
        assert_eq!(
            bought.header(header::LOCATION),
            format!("/order/{order}"),
            "a second click changes nothing"
        );
    }
    let row = sqlx::query(
        "SELECT (SELECT COUNT(*) FROM shop_order), (SELECT pieces FROM inventory WHERE toy = 7), (SELECT COUNT(*) FROM outbox)",
    );
    let row = row.fetch_one(shop.shop.database.primary()).await.unwrap();
    let numbers: [i64; 3] = std::array::from_fn(|at| sqlx::Row::get(&row, at));
    assert_eq!(numbers, [1, 7, 1]);
    let page = shop.get(&format!("/order/{order}"), Some(&cookie)).await;
    assert!(page.body.contains("is taken") && page.body.contains("3 × "), "{}", page.body);
    let (other, _) = shop.visitor().await;
    assert_eq!(shop.get(&format!("/order/{order}"), Some(&other)).await.status, StatusCode::NOT_FOUND);
    let signed_in = post("/account", fields(&[("name", "Anna")])).await.cookie().unwrap();
    assert_eq!(shop.get(&format!("/order/{order}"), Some(&signed_in)).await.status, StatusCode::OK);
    assert_eq!(shop.get(&format!("/order/{order}"), Some(&cookie)).await.status, StatusCode::NOT_FOUND);
    assert!(shop.get("/cart", Some(&cookie)).await.body.contains("There is nothing in it yet"));
}

#[tokio::test]
async fn signing_in_twice_at_once_loses_no_cart() {
    let shop = TestShop::open().await;
    let (old, token) = shop.visitor().await;
    let add = [("token", token.as_str()), ("toy", "7"), ("quantity", "2"), ("action", "add")];
    shop.post("/cart", Some(&old), &add).await;
    let page = shop.get("/account", Some(&old)).await;
    let (_, form) = page.body.split_once("name=\"form\" value=\"").unwrap();
    let form = form.split_once('"').unwrap().0;
    let sign_in = [("token", token.as_str()), ("form", form), ("name", "Anna"), ("email", "")];
    let click = async || shop.post("/account", Some(&old), &sign_in).await.cookie().unwrap();
    let (one, two) = tokio::join!(click(), click());
    for new in [one, two, click().await] {
        let cart = shop.get("/cart", Some(&new)).await;
        assert!(
            cart.body.contains("Hello, Anna") && cart.body.contains("class=\"count\">2<"),
            "{}",
            cart.body
        );
    }
    assert!(shop.get("/cart", Some(&old)).await.body.contains("There is nothing in it yet"));
    // Whoever planted the old one knows its token, and not the form that was shown.
    let guess = [("token", token.as_str()), ("form", "guess"), ("name", "Eve"), ("email", "")];
    let eve = shop.post("/account", Some(&old), &guess).await.cookie().unwrap();
    assert!(shop.get("/cart", Some(&eve)).await.body.contains("There is nothing in it yet"));
}

#[tokio::test]
async fn the_shop_counts_what_it_does() {
    let shop = TestShop::open().await;
    for _ in 0..3 {
        shop.get("/product/7", None).await;
    }
    let metrics = shop.get("/metrics", None).await.body;
    for line in [
        "shop_request_seconds_count{route=\"product\"} 3",
        "shop_queries_total{route=\"product\"} 3",
        "shop_objects_asked_total{kind=\"page\"} 3",
        "shop_objects_loaded_total{kind=\"page\"} 1",
        "shop_objects_loaded_total{kind=\"inventory\"} 1",
    ] {
        assert!(metrics.contains(line), "{line} is missing in {metrics}");
    }
    let status = shop.get("/status", None).await;
    assert_eq!(status.header(header::CACHE_CONTROL), "private, no-store");
    assert!(status.body.contains("<svg") && status.body.contains("66.6 %"), "{}", status.body);
}
