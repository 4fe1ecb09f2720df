//! The outbox: events in the database, written with what they tell of, and handed to each subscriber at least once.
//!
//! From FMStocks 2000: "Buy" publishes an event, queued subscribers do the rest, and more of them are added without touching the publisher. The
//! pitfalls: an event that is sent beside its transaction is lost, or tells of what never happened; and a queue that forgets a message
//! when it hands it out loses it with the process that took it. Here a claim is a row that ends by itself: any number of processes
//! share the work, and what one of them died over is claimed again. A process that was slow and not dead finds that out by the number of
//! its try, which the next claim has raised: what it then writes, it does not write. What it has *sent* by then, it has sent: a subscriber
//! that sends must bear being told twice.

use std::time::Duration;

use kvd::clock::Clock;
use sqlx::{Any, Row as _, Transaction};

use crate::database::Database;

/// How long a claim holds; a process that dies delays its event by as much.
pub(crate) const CLAIM_FOR: Duration = Duration::from_secs(10);
/// How long a subscriber may take over one event. Each is claimed just before it is delivered, so nobody works on a claim that is over.
pub(super) const DELIVER_WITHIN: Duration = Duration::from_secs(8);
const _: () = assert!(DELIVER_WITHIN.as_millis() < CLAIM_FOR.as_millis());
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
    pub(crate) const ALL: [Event; 3] = [Event::Placed, Event::Paid, Event::Refused];

    pub(crate) const fn name(self) -> &'static str {
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

/// Some of the events of a kind that a subscriber has not had and nobody has claimed: their ids, the oldest first.
pub(crate) async fn open(
    database: &Database,
    clock: &Clock,
    subscriber: &'static str,
    event: Event,
) -> Result<Vec<String>, sqlx::Error> {
    let open = sqlx::query(
        "SELECT outbox.id FROM outbox LEFT JOIN delivery \
         ON delivery.event = outbox.id AND delivery.subscriber = $1 WHERE outbox.kind = $2 AND (delivery.event IS NULL \
         OR (delivery.is_done = 0 AND delivery.claimed_until_ms < $3)) ORDER BY outbox.written_ms LIMIT $4",
    );
    let open = open.bind(subscriber).bind(event.name()).bind(clock.wall_ms()).bind(EVENTS_MAX);
    open.fetch_all(database.primary()).await?.iter().map(|row| row.try_get(0)).collect()
}

/// Claims one of them, if nobody was faster.
pub(crate) async fn claim(
    database: &Database,
    clock: &Clock,
    subscriber: &'static str,
    id: &str,
) -> Result<Option<Claimed>, sqlx::Error> {
    let now_ms = clock.wall_ms();
    let taken = sqlx::query(
        "INSERT INTO delivery (event, subscriber, is_done, claimed_until_ms, tries) VALUES ($1, $2, 0, $3, 1) \
         ON CONFLICT (event, subscriber) DO UPDATE SET claimed_until_ms = excluded.claimed_until_ms, \
         tries = delivery.tries + 1 WHERE delivery.is_done = 0 AND delivery.claimed_until_ms < $4 \
         RETURNING tries, (SELECT shop_order FROM outbox WHERE outbox.id = $1)",
    )
    .bind(id)
    .bind(subscriber)
    .bind(now_ms + i64::try_from(CLAIM_FOR.as_millis()).unwrap_or(i64::MAX))
    .bind(now_ms)
    .fetch_optional(database.primary())
    .await?;
    let Some(row) = taken else { return Ok(None) };
    Ok(Some(Claimed { id: id.to_owned(), order: row.try_get(1)?, subscriber, tries: row.try_get(0)? }))
}

impl Claimed {
    /// It is delivered, with everything else that this transaction does; `false`: it is not this process's any more, and the transaction must
    /// not be committed. So this comes first.
    pub(crate) async fn done(
        &self,
        transaction: &mut Transaction<'static, Any>,
    ) -> Result<bool, sqlx::Error> {
        let done = sqlx::query(
            "UPDATE delivery SET is_done = 1 WHERE event = $1 AND subscriber = $2 AND is_done = 0 AND tries = $3",
        );
        let done = done.bind(&self.id).bind(self.subscriber).bind(self.tries);
        Ok(done.execute(&mut **transaction).await?.rows_affected() == 1)
    }

    /// It could not be delivered; it is claimed again after a pause that grows.
    pub(crate) async fn failed(&self, database: &Database, clock: &Clock) -> Result<(), sqlx::Error> {
        let pause =
            Duration::from_millis(100) * 2_u32.pow(u32::try_from(self.tries.clamp(0, 10)).unwrap_or(10));
        let pause_ms = i64::try_from(pause.min(AGAIN_AFTER_MAX).as_millis()).unwrap_or(i64::MAX);
        sqlx::query(
            "UPDATE delivery SET claimed_until_ms = $3 WHERE event = $1 AND subscriber = $2 AND is_done = 0 AND tries = $4",
        )
        .bind(&self.id)
        .bind(self.subscriber)
        .bind(clock.wall_ms() + pause_ms)
        .bind(self.tries)
        .execute(database.primary())
        .await?;
        Ok(())
    }
}
