//! Orders under processors that die, as futures that are dropped where they wait: judged by the payment stand-in's own ledger.

use std::sync::Arc;

use sqlx::Row as _;

use super::*;
use crate::catalogue::ToyId;
use crate::checkout::{Buyer, Outcome, place};
use crate::testing::TestShop;
use crate::visitors::cookie::SessionId;
use payment::Mood;

async fn processor(shop: &TestShop, mood: Mood) -> Processor {
    Processor {
        database: shop.shop.database.clone(),
        clock: shop.daemon.clock().clone(),
        payment: Payment::open(&shop.dir.path().join("payments.sqlite"), mood).await.unwrap(),
        mail: Mail::open(None, shop.dir.path().join("mail")).unwrap(),
    }
}

/// Places an order for two pieces of one toy.
async fn ordered(shop: &TestShop, number: usize, card: &str) {
    let id = SessionId::random().unwrap();
    let toy = ToyId(1 + i64::try_from(number % 20).unwrap());
    shop.shop.sessions.change(&id, |session| session.set(toy, 2)).await.unwrap();
    let buyer =
        Buyer { name: "Anna".to_owned(), email: "anna@example.org".to_owned(), card: card.to_owned() };
    let (order, shop) = (format!("order-{number}"), &shop.shop);
    let placed =
        place(&shop.sessions, &shop.catalogue, &shop.clock, &id, &order, &buyer, None).await.unwrap();
    assert_eq!(placed, Outcome::Placed);
}

async fn number(shop: &TestShop, query: &str) -> i64 {
    sqlx::query(query).fetch_one(shop.shop.database.primary()).await.unwrap().get(0)
}

fn letters(shop: &TestShop) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(shop.dir.path().join("mail"))
        .unwrap()
        .map(|file| file.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.ends_with(".eml"))
        .collect();
    names.sort();
    names
}

#[tokio::test]
async fn a_refused_payment_returns_the_stock_and_mails_the_customer() {
    let shop = TestShop::open().await;
    sqlx::query("UPDATE inventory SET pieces = 100").execute(shop.shop.database.primary()).await.unwrap();
    ordered(&shop, 1, "0002").await;
    ordered(&shop, 2, "4242").await;
    assert_eq!(number(&shop, "SELECT SUM(100 - pieces) FROM inventory").await, 4);
    let processor = processor(&shop, Mood::default()).await;
    while processor.round().await.unwrap() > 0 {}
    assert_eq!(number(&shop, "SELECT SUM(100 - pieces) FROM inventory").await, 2);
    assert_eq!(number(&shop, "SELECT SUM(sold) FROM toy").await, 2);
    assert_eq!(letters(&shop), ["order-1.refused.eml", "order-2.paid.eml"]);
    let text = std::fs::read_to_string(shop.dir.path().join("mail/order-1.refused.eml")).unwrap();
    assert!(text.contains("To: Anna <anna@example.org>") && text.contains("Nothing was charged"), "{text}");
    assert_eq!(processor.payment.movements().await.unwrap().0, 1);
}

/// Processors are dropped at any moment, and payments fail before and after the money has moved.
#[tokio::test]
async fn processors_dropped_in_the_middle_charge_every_order_once() {
    const ORDERS: usize = 40;
    let seed = std::env::var("KVD_SEED")
        .ok()
        .and_then(|seed| seed.parse().ok())
        .unwrap_or_else(|| fastrand::u64(..));
    println!("KVD_SEED={seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let shop = TestShop::open().await;
    sqlx::query("UPDATE inventory SET pieces = 1000").execute(shop.shop.database.primary()).await.unwrap();
    for order in 0..ORDERS {
        ordered(&shop, order, if order % 10 == 0 { "0002" } else { "4242" }).await;
    }
    let processor = Arc::new(processor(&shop, Mood { away_percent: 20, ..Mood::default() }).await);
    let mut deaths = 0;
    let deadline = tokio::time::Instant::now() + Duration::from_secs(40);
    loop {
        let crew: Vec<_> = (0..2)
            .map(|_| {
                let processor = Arc::clone(&processor);
                tokio::spawn(async move { processor.round().await })
            })
            .collect();
        for mut one in crew {
            // A future that is dropped where it waits is what a killed process leaves behind: whatever was sent so far.
            // From 128 us to 131 ms; the first is too short on any machine.
            let life = Duration::from_micros(1 << if deaths == 0 { 7 } else { random.u32(7..18) });
            if tokio::time::timeout(life, &mut one).await.is_err() {
                one.abort();
                deaths += 1;
                let _ = one.await;
            }
        }
        // What the dead had claimed is open again.
        shop.daemon.clock().advance(outbox::CLAIM_FOR + Duration::from_secs(120));
        let open = "SELECT COUNT(*) FROM shop_order WHERE state = 'placed'";
        if number(&shop, open).await == 0 && processor.round().await.unwrap() == 0 {
            break;
        }
        assert!(tokio::time::Instant::now() < deadline, "{} orders are open", number(&shop, open).await);
    }
    let paid = number(&shop, "SELECT COUNT(*) FROM shop_order WHERE state = 'paid'").await;
    let sum = number(&shop, "SELECT CAST(SUM(cents) AS BIGINT) FROM shop_order WHERE state = 'paid'").await;
    println!("{deaths} deaths, {paid} paid");
    assert_eq!(paid, 36);
    let audit = audit::Audit::of(&processor.database, &processor.payment).await.unwrap();
    assert_eq!(audit, audit::Audit { open: 0, paid: (paid, sum), charged: (paid, sum) });
    assert!(audit.is_right());
    assert_eq!(letters(&shop).len(), ORDERS);
    assert_eq!(number(&shop, "SELECT SUM(1000 - pieces) FROM inventory").await, 2 * paid);
    assert_eq!(number(&shop, "SELECT SUM(sold) FROM toy").await, 2 * paid);
    assert!(deaths > 0, "nobody died: the test tests nothing");
}

/// Two have the same event: one was so slow that its claim was over, and goes on when the other has finished.
#[tokio::test]
async fn whoever_was_too_slow_writes_nothing() {
    let shop = TestShop::open().await;
    sqlx::query("UPDATE inventory SET pieces = 100").execute(shop.shop.database.primary()).await.unwrap();
    ordered(&shop, 1, "4242").await;
    let processor = processor(&shop, Mood::default()).await;
    let (database, clock) = (&processor.database, &processor.clock);
    let claimed = async |id: &str, subscriber: Subscriber| {
        let slow = claim(database, clock, subscriber.name(), id).await.unwrap().unwrap();
        assert_eq!(claim(database, clock, subscriber.name(), id).await.unwrap(), None, "it is claimed");
        shop.daemon.clock().advance(outbox::CLAIM_FOR + Duration::from_secs(1));
        slow
    };
    let slow = claimed("order-1.placed", Subscriber::Payment).await;
    let quick = claim(database, clock, "payment", "order-1.placed").await.unwrap().unwrap();
    slow.failed(database, clock).await.unwrap();
    assert_eq!(open(database, clock, "payment", Event::Placed).await.unwrap(), [""; 0], "not the slow one's");
    processor.deliver(Subscriber::Payment, &quick).await.unwrap();
    let slow = claimed("order-1.paid", Subscriber::Bestsellers).await;
    while processor.round().await.unwrap() > 0 {}
    processor.deliver(Subscriber::Bestsellers, &slow).await.unwrap();
    assert_eq!(number(&shop, "SELECT SUM(sold) FROM toy").await, 2, "two pieces were sold, and counted once");
}

#[tokio::test]
async fn events_that_everybody_has_had_are_cleaned_and_none_else() {
    let shop = TestShop::open().await;
    sqlx::query("UPDATE inventory SET pieces = 100").execute(shop.shop.database.primary()).await.unwrap();
    for order in 0..3 {
        ordered(&shop, order, "4242").await;
    }
    let processor = processor(&shop, Mood::default()).await;
    const DAY: Duration = Duration::from_secs(86_400);
    let clean = async || {
        crate::chores::clean(&shop.shop.database, &shop.shop.sessions, shop.daemon.clock(), DAY)
            .await
            .unwrap()
    };
    shop.daemon.clock().advance(Duration::from_secs(2 * 86_400));
    let cleaned = clean().await;
    assert_eq!((cleaned.sessions, cleaned.events), (3, 0), "carts are old, events were not delivered");
    while processor.round().await.unwrap() > 0 {}
    shop.daemon.clock().advance(Duration::from_secs(2 * 86_400));
    // More than one transaction removes.
    for statement in [
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 1200) INSERT INTO outbox \
         SELECT 'many-' || i, 'refused', 'order-0', 0 FROM n",
        "INSERT INTO delivery SELECT id, 'refusal', 1, 0, 1 FROM outbox WHERE kind = 'refused'",
    ] {
        sqlx::query(statement).execute(shop.shop.database.primary()).await.unwrap();
    }
    assert_eq!(clean().await.events, 1_206);
    assert_eq!(number(&shop, "SELECT COUNT(*) FROM shop_order").await, 3);
    while processor.round().await.unwrap() > 0 {}
    assert_eq!(letters(&shop).len(), 3, "nothing is delivered again");
}
