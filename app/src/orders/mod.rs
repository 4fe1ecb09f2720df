//! The order processor: delivers the outbox's events to those who subscribe to them.
//!
//! From FMStocks 2000: the heavy tier is another process, so that the store stays quick, and can be several. Each subscriber says what it listens to
//! and does one thing; what it changes and that it is done are one transaction. The pitfall: a publisher that waits for its subscribers.
//! `checkout` knows none of them: a new one is one more line of [`Subscriber`], and gets the events that are there already, too.

pub(crate) mod audit;
mod letters;
pub(crate) mod mail;
mod order;
pub(crate) mod outbox;
pub(crate) mod payment;
#[cfg(test)]
mod tests;

use std::time::Duration;

use kvd::clock::Clock;
use tokio::time::{sleep, timeout};

use crate::database::Database;
use crate::faults::{Fault, retry};
use letters::{receipt, refusal};
use mail::Mail;
pub(crate) use order::{Order, order};
use order::{count_sold, settle};
use outbox::{Claimed, DELIVER_WITHIN, Event, claim, open};
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
