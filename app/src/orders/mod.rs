//! The order processor: delivers the outbox's events to those who subscribe to them.
//!
//! From FMStocks 2000: the heavy tier is another process, so that the store stays quick, and can be several. Each subscriber says what it listens to
//! and does one thing; what it changes and that it is done are one transaction. The pitfall: a publisher that waits for its subscribers.
//! `checkout` knows none of them: a new one is one more line of [`Subscriber`], and gets the events that are there already, too.

pub(crate) mod audit;
mod letters;
pub(crate) mod mail;
pub(crate) mod outbox;
pub(crate) mod payment;
#[cfg(test)]
mod tests;

use std::time::Duration;

use kvd::clock::Clock;
use sqlx::{Any, Row as _, Transaction};
use tokio::time::{sleep, timeout};

use crate::database::Database;
use crate::faults::{Fault, retry};
use letters::{receipt, refusal};
use mail::Mail;
use outbox::{Claimed, DELIVER_WITHIN, Event, claim, open, publish};
use payment::{Payment, Verdict};

/// How long a processor rests when there was nothing to do.
const REST: Duration = Duration::from_millis(100);

/// Who is told of events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Subscriber {
    Payment,
    Receipt,
    Refusal,
    Bestsellers,
}

impl Subscriber {
    const ALL: [Subscriber; 4] =
        [Subscriber::Payment, Subscriber::Receipt, Subscriber::Refusal, Subscriber::Bestsellers];

    const fn name(self) -> &'static str {
        match self {
            Subscriber::Payment => "payment",
            Subscriber::Receipt => "receipt",
            Subscriber::Refusal => "refusal",
            Subscriber::Bestsellers => "bestsellers",
        }
    }

    const fn listens_to(self) -> Event {
        match self {
            Subscriber::Payment => Event::Placed,
            Subscriber::Receipt | Subscriber::Bestsellers => Event::Paid,
            Subscriber::Refusal => Event::Refused,
        }
    }
}

/// How many are told of a kind of event.
pub(crate) fn subscribers(event: Event) -> i64 {
    let listening = Subscriber::ALL.iter().filter(|subscriber| subscriber.listens_to() == event);
    i64::try_from(listening.count()).unwrap_or(i64::MAX)
}

/// An order as its letters and its payment need it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Order {
    pub(crate) session: String,
    pub(crate) name: String,
    pub(crate) email: String,
    card: String,
    pub(crate) cents: i64,
    pub(crate) state: String,
    /// Toy, name, quantity, cents.
    pub(crate) lines: Vec<(i64, String, i64, i64)>,
}

/// One processor. Any number of them may run.
#[derive(Debug, Clone)]
pub(crate) struct Processor {
    pub(crate) database: Database,
    pub(crate) clock: Clock,
    pub(crate) payment: Payment,
    pub(crate) mail: Mail,
}

impl Processor {
    /// Delivers until it is dropped.
    pub(crate) async fn run(&self) {
        loop {
            match self.round().await {
                Ok(0) => sleep(REST).await,
                Ok(_) => {}
                Err(fault) => {
                    tracing::error!(%fault, "events cannot be claimed");
                    sleep(REST * 10).await;
                }
            }
        }
    }

    /// Delivers what there is; how much that was.
    pub(crate) async fn round(&self) -> Result<usize, Fault> {
        let mut delivered = 0;
        for subscriber in Subscriber::ALL {
            let (database, clock, name) = (&self.database, &self.clock, subscriber.name());
            let open = retry(async || Ok(open(database, clock, name, subscriber.listens_to()).await?));
            for id in within(open).await? {
                let claimed = retry(async || Ok(claim(database, clock, name, &id).await?));
                let Some(event) = within(claimed).await? else { continue };
                match within(self.deliver(subscriber, &event)).await {
                    Ok(()) => delivered += 1,
                    Err(fault) => {
                        tracing::warn!(%fault, event = event.id, subscriber = name, "not delivered");
                        within(async { Ok(event.failed(database, clock).await?) }).await?;
                    }
                }
            }
        }
        Ok(delivered)
    }

    /// What is sent is sent once a claim; what is written is tried again.
    async fn deliver(&self, subscriber: Subscriber, event: &Claimed) -> Result<(), Fault> {
        let order = retry(async || Ok(order(&self.database, &event.order).await?)).await?;
        let order = order.ok_or(Fault::Database(sqlx::Error::RowNotFound))?;
        let verdict = match subscriber {
            Subscriber::Payment => Some(self.payment.charge(&event.order, &order.card, order.cents).await?),
            Subscriber::Receipt => {
                self.mail.send(receipt(event, &order)).await?;
                None
            }
            Subscriber::Refusal => {
                self.mail.send(refusal(event, &order)).await?;
                None
            }
            Subscriber::Bestsellers => None,
        };
        retry(|| self.write(subscriber, event, &order, verdict)).await
    }

    /// That it is delivered, and what follows from it. Nothing, if it is somebody else's by now.
    async fn write(
        &self,
        subscriber: Subscriber,
        event: &Claimed,
        order: &Order,
        verdict: Option<Verdict>,
    ) -> Result<(), Fault> {
        let mut transaction = self.database.begin().await?;
        if !event.done(&mut transaction).await? {
            tracing::debug!(event = event.id, subscriber = subscriber.name(), "delivered by somebody else");
            return Ok(());
        }
        match (subscriber, verdict) {
            (Subscriber::Bestsellers, _) => count_sold(&mut transaction, order).await?,
            (_, Some(verdict)) => {
                settle(&mut transaction, &event.order, order, verdict, self.clock.wall_ms()).await?;
            }
            (_, None) => {}
        }
        transaction.commit().await?;
        Ok(())
    }
}

/// A database, payment or mail server that does not answer holds nobody up for longer than a claim lasts.
async fn within<T>(work: impl Future<Output = Result<T, Fault>>) -> Result<T, Fault> {
    let late = |_elapsed| Err(Fault::Io { what: "orders", source: std::io::ErrorKind::TimedOut.into() });
    timeout(DELIVER_WITHIN, work).await.unwrap_or_else(late)
}

/// Writes down what became of the payment. An order that is settled stays as it is.
async fn settle(
    transaction: &mut Transaction<'static, Any>,
    id: &str,
    order: &Order,
    verdict: Verdict,
    now_ms: i64,
) -> Result<(), sqlx::Error> {
    let (state, event) = match verdict {
        Verdict::Charged => ("paid", Event::Paid),
        Verdict::Refused => ("refused", Event::Refused),
    };
    let settled = sqlx::query("UPDATE shop_order SET state = $2 WHERE id = $1 AND state = 'placed'")
        .bind(id)
        .bind(state)
        .execute(&mut **transaction)
        .await?;
    if settled.rows_affected() == 0 {
        return Ok(());
    }
    if verdict == Verdict::Refused {
        for (toy, _, quantity, _) in &order.lines {
            let back = sqlx::query("UPDATE inventory SET pieces = pieces + $2 WHERE toy = $1");
            back.bind(*toy).bind(*quantity).execute(&mut **transaction).await?;
        }
    }
    publish(transaction, event, id, now_ms).await
}

async fn count_sold(transaction: &mut Transaction<'static, Any>, order: &Order) -> Result<(), sqlx::Error> {
    for (toy, _, quantity, _) in &order.lines {
        let count = sqlx::query("UPDATE toy SET sold = sold + $2 WHERE id = $1");
        count.bind(*toy).bind(*quantity).execute(&mut **transaction).await?;
    }
    Ok(())
}

/// An order, from the database itself.
pub(crate) async fn order(database: &Database, id: &str) -> Result<Option<Order>, sqlx::Error> {
    let select = "SELECT session, name, email, card, cents, state FROM shop_order WHERE id = $1";
    let row = sqlx::query(select).bind(id).fetch_optional(database.primary()).await?;
    let Some(row) = row else { return Ok(None) };
    let select = "SELECT toy, name, quantity, cents FROM order_line WHERE shop_order = $1 ORDER BY toy";
    let lines = sqlx::query(select).bind(id).fetch_all(database.primary()).await?;
    let line =
        |row: &sqlx::any::AnyRow| Ok((row.try_get(0)?, row.try_get(1)?, row.try_get(2)?, row.try_get(3)?));
    Ok(Some(Order {
        session: row.try_get(0)?,
        name: row.try_get(1)?,
        email: row.try_get(2)?,
        card: row.try_get(3)?,
        cents: row.try_get(4)?,
        state: row.try_get(5)?,
        lines: lines.iter().map(line).collect::<Result<_, sqlx::Error>>()?,
    }))
}
