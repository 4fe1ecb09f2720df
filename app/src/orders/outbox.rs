//! The outbox: events in the database, written with what they tell of, and handed to each subscriber at least once.
//!
//! From FMStocks 2000: "Buy" publishes an event, queued subscribers do the rest, and more of them are added without touching the publisher. The
//! pitfalls: an event that is sent beside its transaction is lost, or tells of what never happened; and a queue that forgets a message
//! when it hands it out loses it with the process that took it. Here a claim is a row that ends by itself: any number of processes
//! share the work, and what one of them died over is claimed again. So a subscriber must bear being told twice.

use std::time::Duration;

use kvd::clock::Clock;
use sqlx::{Any, Row as _, Transaction};

use crate::database::Database;

/// How long a claim holds. Longer than any subscriber takes; a process that dies delays its event by as much.
pub(crate) const CLAIM_FOR: Duration = Duration::from_secs(10);
/// Events looked at in one go.
const EVENTS_MAX: i64 = 32;
/// Longest pause before an event that failed is delivered again.
const AGAIN_AFTER_MAX: Duration = Duration::from_secs(60);

/// What happened to an order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Event {
    Placed,
    Paid,
    Refused,
}

impl Event {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Event::Placed => "placed",
            Event::Paid => "paid",
            Event::Refused => "refused",
        }
    }
}

/// Tells of an order, with everything else that this transaction does. The same event of an order is one.
pub(crate) async fn publish(
    transaction: &mut Transaction<'static, Any>,
    event: Event,
    order: &str,
    now_ms: i64,
) -> Result<(), sqlx::Error> {
    sqlx::query(
        "INSERT INTO outbox (id, kind, shop_order, written_ms) VALUES ($1, $2, $3, $4) ON CONFLICT (id) DO NOTHING",
    )
    .bind(format!("{order}.{}", event.name()))
    .bind(event.name())
    .bind(order)
    .bind(now_ms)
    .execute(&mut **transaction)
    .await?;
    Ok(())
}

/// An event that this process may deliver until its claim is over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Claimed {
    pub(crate) id: String,
    pub(crate) order: String,
    subscriber: &'static str,
    tries: i64,
}

/// Claims some of the events of a kind that a subscriber has not had.
pub(crate) async fn claim(
    database: &Database,
    clock: &Clock,
    subscriber: &'static str,
    event: Event,
) -> Result<Vec<Claimed>, sqlx::Error> {
    let now_ms = clock.wall_ms();
    let open = sqlx::query(
        "SELECT outbox.id, outbox.shop_order, COALESCE(delivery.tries, 0) FROM outbox LEFT JOIN delivery \
         ON delivery.event = outbox.id AND delivery.subscriber = $1 WHERE outbox.kind = $2 AND (delivery.event IS NULL \
         OR (delivery.is_done = 0 AND delivery.claimed_until_ms < $3)) ORDER BY outbox.written_ms LIMIT $4",
    );
    let open = open.bind(subscriber).bind(event.name()).bind(now_ms).bind(EVENTS_MAX);
    let mut claimed = Vec::new();
    for row in open.fetch_all(database.primary()).await? {
        let (id, order, tries): (String, String, i64) = (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
        let taken = sqlx::query(
            "INSERT INTO delivery (event, subscriber, is_done, claimed_until_ms, tries) VALUES ($1, $2, 0, $3, 1) \
             ON CONFLICT (event, subscriber) DO UPDATE SET claimed_until_ms = excluded.claimed_until_ms, \
             tries = delivery.tries + 1 WHERE delivery.is_done = 0 AND delivery.claimed_until_ms < $4",
        )
        .bind(&id)
        .bind(subscriber)
        .bind(now_ms + i64::try_from(CLAIM_FOR.as_millis()).unwrap_or(i64::MAX))
        .bind(now_ms)
        .execute(database.primary())
        .await?;
        if taken.rows_affected() == 1 {
            claimed.push(Claimed { id, order, subscriber, tries: tries + 1 });
        }
    }
    Ok(claimed)
}

impl Claimed {
    /// It is delivered, with everything else that this transaction does.
    pub(crate) async fn done(&self, transaction: &mut Transaction<'static, Any>) -> Result<(), sqlx::Error> {
        sqlx::query("UPDATE delivery SET is_done = 1 WHERE event = $1 AND subscriber = $2")
            .bind(&self.id)
            .bind(self.subscriber)
            .execute(&mut **transaction)
            .await?;
        Ok(())
    }

    /// It could not be delivered; it is claimed again after a pause that grows.
    pub(crate) async fn failed(&self, database: &Database, clock: &Clock) -> Result<(), sqlx::Error> {
        let pause =
            Duration::from_millis(100) * 2_u32.pow(u32::try_from(self.tries.clamp(0, 10)).unwrap_or(10));
        let pause_ms = i64::try_from(pause.min(AGAIN_AFTER_MAX).as_millis()).unwrap_or(i64::MAX);
        sqlx::query(
            "UPDATE delivery SET claimed_until_ms = $3 WHERE event = $1 AND subscriber = $2 AND is_done = 0",
        )
        .bind(&self.id)
        .bind(self.subscriber)
        .bind(clock.wall_ms() + pause_ms)
        .execute(database.primary())
        .await?;
        Ok(())
    }
}
