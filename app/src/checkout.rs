//! Checkout: the order, the stock it takes and the event that tells of it, in one transaction; the page answers at once.
//!
//! From FMStocks 2000 ("Buy" publishes an event, subscribers on another tier do the rest) and "Building a Large-scale E-commerce Site with Apache and
//! mod_perl" (money and stock are decided by the database, whatever the pages showed). Pitfalls: reading the stock and then writing it, which
//! sells the last piece twice (one conditional `UPDATE` decides); publishing beside the transaction, so that an order has no event or an
//! event no order (the outbox is a table of the same database); locking toys in the order of the cart, which deadlocks two buyers (they
//! are sorted); a second click, which must not order twice: the form carries the order's id, and the cart is emptied here; and a price that
//! changed since the page was made: the form carries what its button said, and nobody is charged anything else.

use kvd::clock::Clock;
use sqlx::{Any, Row as _, Transaction};

use crate::catalogue::{Catalogue, ToyId};
use crate::faults::{Fault, retry};
use crate::orders::outbox::{Event, publish};
use crate::visitors::cookie::SessionId;
use crate::visitors::session::Sessions;

/// Who buys, as the form says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Buyer {
    pub(crate) name: String,
    pub(crate) email: String,
    pub(crate) card: String,
}

/// What became of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Outcome {
    Placed,
    /// Of these there are not enough.
    SoldOut(Vec<ToyId>),
    NothingInCart,
    /// It comes to so many cents, which is not what the buyer was told.
    Repriced(i64),
    /// There is such an order, and it is somebody else's.
    NotYours,
}

/// Orders what is in a cart. The same order again is [`Outcome::Placed`] again, and nothing else. `told`: what the buyer was told that it costs.
pub(crate) async fn place(
    sessions: &Sessions,
    catalogue: &Catalogue,
    clock: &Clock,
    id: &SessionId,
    order: &str,
    buyer: &Buyer,
    told: Option<i64>,
) -> Result<Outcome, Fault> {
    let (outcome, lines) = retry(async || {
        let mut change = sessions.begin(id).await?;
        if let Some(outcome) = known(&mut change.transaction, order, id).await? {
            return Ok((outcome, vec![]));
        }
        let lines = std::mem::take(&mut change.session.lines);
        if lines.is_empty() {
            return Ok((Outcome::NothingInCart, vec![]));
        }
        // A change that is dropped is rolled back.
        let sold_out = take_stock(&mut change.transaction, &lines).await?;
        if !sold_out.is_empty() {
            return Ok((Outcome::SoldOut(sold_out), vec![]));
        }
        let cents = write(&mut change.transaction, order, id, buyer, &lines, clock.wall_ms()).await?;
        if told.is_some_and(|told| told != cents) {
            return Ok((Outcome::Repriced(cents), lines));
        }
        change.finish().await?;
        Ok((Outcome::Placed, lines))
    })
    .await?;
    for (toy, _) in lines {
        // Nothing depends on it: what is shown is as old as its TTL at most.
        let is_repriced = matches!(outcome, Outcome::Repriced(_));
        let forgotten =
            if is_repriced { catalogue.forget_price(toy).await } else { catalogue.sold(toy).await };
        if let Err(fault) = forgotten {
            tracing::debug!(%fault, "an inventory or a price is shown a little longer");
        }
    }
    Ok(outcome)
}

/// What an order of this id that is there already means.
async fn known(
    transaction: &mut Transaction<'static, Any>,
    order: &str,
    id: &SessionId,
) -> Result<Option<Outcome>, sqlx::Error> {
    let row = sqlx::query("SELECT session FROM shop_order WHERE id = $1").bind(order);
    let Some(row) = row.fetch_optional(&mut **transaction).await? else { return Ok(None) };
    let whose: String = row.try_get(0)?;
    Ok(Some(if whose == id.as_str() { Outcome::Placed } else { Outcome::NotYours }))
}

/// Takes the pieces, sorted by toy; of which there are not enough.
async fn take_stock(
    transaction: &mut Transaction<'static, Any>,
    lines: &[(ToyId, i64)],
) -> Result<Vec<ToyId>, sqlx::Error> {
    let mut sold_out = Vec::new();
    for (toy, quantity) in lines {
        let take = "UPDATE inventory SET pieces = pieces - $2 WHERE toy = $1 AND pieces >= $2";
        let taken = sqlx::query(take).bind(toy.0).bind(*quantity).execute(&mut **transaction).await?;
        if taken.rows_affected() == 0 {
            sold_out.push(*toy);
        }
    }
    Ok(sold_out)
}

/// Writes the order down; what it comes to.
async fn write(
    transaction: &mut Transaction<'static, Any>,
    order: &str,
    id: &SessionId,
    buyer: &Buyer,
    lines: &[(ToyId, i64)],
    now_ms: i64,
) -> Result<i64, sqlx::Error> {
    let mut priced = Vec::with_capacity(lines.len());
    for (toy, quantity) in lines {
        let select =
            "SELECT toy.name, price.cents FROM toy JOIN price ON price.toy = toy.id WHERE toy.id = $1";
        let row = sqlx::query(select).bind(toy.0).fetch_one(&mut **transaction).await?;
        priced.push((toy, *quantity, row.try_get::<String, _>(0)?, row.try_get::<i64, _>(1)?));
    }
    let cents: i64 = priced.iter().map(|(_, quantity, _, cents)| quantity * cents).sum();
    sqlx::query(
        "INSERT INTO shop_order (id, session, name, email, card, cents, state, placed_ms) \
         VALUES ($1, $2, $3, $4, $5, $6, 'placed', $7)",
    )
    .bind(order)
    .bind(id.as_str())
    .bind(&buyer.name)
    .bind(&buyer.email)
    .bind(&buyer.card)
    .bind(cents)
    .bind(now_ms)
    .execute(&mut **transaction)
    .await?;
    for (toy, quantity, name, cents) in priced {
        sqlx::query(
            "INSERT INTO order_line (shop_order, toy, name, quantity, cents) VALUES ($1, $2, $3, $4, $5)",
        )
        .bind(order)
        .bind(toy.0)
        .bind(name)
        .bind(quantity)
        .bind(cents)
        .execute(&mut **transaction)
        .await?;
    }
    publish(transaction, Event::Placed, order, now_ms).await?;
    Ok(cents)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::TestShop;

    fn anna() -> Buyer {
        Buyer { name: "Anna".to_owned(), email: "anna@example.org".to_owned(), card: "4242".to_owned() }
    }

    /// Two workers, each with its own connections, race for the last piece again and again.
    #[tokio::test]
    async fn two_buyers_never_both_get_the_last_piece_in_a_thousand_races() {
        let shop = TestShop::open().await;
        let (client, clock) = (shop.client.clone(), shop.daemon.clock().clone());
        let place_of = shop.dir.path().join("shop.sqlite").display().to_string();
        let workers: Vec<(Sessions, Catalogue)> = (0..2)
            .map(|_| {
                let database = crate::database::Database::open(&place_of, &[]).unwrap();
                (Sessions::new(&client, database.clone(), clock.clone()), Catalogue::new(&client, database))
            })
            .collect();
        let ids: Vec<SessionId> = (0..2).map(|_| SessionId::random().unwrap()).collect();
        let database = &shop.shop.database;
        for race in 0..1_000 {
            sqlx::query("UPDATE inventory SET pieces = 1 WHERE toy = 7")
                .execute(database.primary())
                .await
                .unwrap();
            for (id, (sessions, _)) in ids.iter().zip(&workers) {
                sessions.change(id, |session| session.lines = vec![(ToyId(7), 1)]).await.unwrap();
            }
            let buy = async |at: usize| {
                let ((sessions, catalogue), order) = (&workers[at], format!("race-{race}-{at}"));
                place(sessions, catalogue, &clock, &ids[at], &order, &anna(), None).await.unwrap()
            };
            let (one, two) = tokio::join!(buy(0), buy(1));
            let is_placed = |outcome: &Outcome| *outcome == Outcome::Placed;
            assert!(is_placed(&one) != is_placed(&two), "race {race}: {one:?} {two:?}");
            let lost = if is_placed(&one) { two } else { one };
            assert_eq!(lost, Outcome::SoldOut(vec![ToyId(7)]));
        }
        let row = sqlx::query("SELECT COUNT(*) FROM shop_order").fetch_one(database.primary()).await.unwrap();
        assert_eq!(row.get::<i64, _>(0), 1_000);
    }
}
