//! The async client's calls: which connection each takes, and trying again.
//!
//! Called by applications, by [`Cache`] and [`Scan`](super::Scan).

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use kv_proto::Version;
use kv_proto::wire::{Effect, Response, Scope};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{sleep, timeout_at};

use super::admin::Admin;
use super::cache::Cache;
use super::lanes::{Lanes, Turns, connect};
use super::transaction::Transaction;
use super::way::Way;
use crate::answers::{ClientStats, Committed};
use crate::batch::Batch;
use crate::error::{Error, Result};
use crate::fork::Generation;
use crate::load::chain::{Chain, InChain};
use crate::observe::Event;
use crate::ops::{self, Call, Repeat, Sending, Wish};
use crate::options::{Builder, OnOutage, Settings};
use crate::retry::{Attempts, Failure, Step};
use crate::shared::{Seat, Seats};
use crate::transact::{Tries, is_worth_another_try, lock_wait};

/// An async client: cheap to clone, shared by tasks, safe across `fork`. It needs a tokio runtime with I/O and time, and
/// its connections live on the runtime that first used them.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), kv_client::Error> {
/// # let server = kvd::testing::server();
/// use std::time::Duration;
/// use kv_client::Client;
/// let client = Client::builder().socket(server.socket()).build().await?;
/// let products = client.cache("product");
/// products.put("42", "rocket", Duration::from_secs(60)).await?;
/// assert_eq!(products.get("42").await?.as_deref(), Some(&b"rocket"[..]));
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Client {
    shared: Arc<Shared>,
    op_timeout: Duration,
}

struct Shared {
    settings: Settings,
    lanes: Generation<Lanes>,
    seats: Seats,
}

impl Builder<Client> {
    /// Connects.
    ///
    /// # Errors
    /// [`Error::Unreachable`](crate::Error::Unreachable) lists each place tried and why not.
    pub async fn build(self) -> Result<Client> {
        let client = self.build_lazy();
        client.ping().await?;
        Ok(client)
    }

    /// Connects when it is first used: for a parent process that forks workers, and for programs that start before the
    /// daemon does.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), kv_client::Error> {
    /// # let server = kvd::testing::server();
    /// let client = kv_client::Client::builder().socket(server.socket()).build_lazy();
    /// client.ping().await?;
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn build_lazy(self) -> Client {
        let op_timeout = self.settings.op_timeout;
        let shared = Shared {
            settings: self.settings,
            lanes: Generation::new(Lanes::default()),
            seats: Seats::default(),
        };
        Client { shared: Arc::new(shared), op_timeout }
    }
}

impl Client {
    /// Connects to the daemon of this user or host: `KVD_SOCKET`, else `$XDG_RUNTIME_DIR/kvd/kvd.sock`, else
    /// `/run/kvd/kvd.sock`.
    ///
    /// ```no_run
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), kv_client::Error> {
    /// let client = kv_client::Client::connect().await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Error::Unreachable`](crate::Error::Unreachable) lists each place tried and why not.
    pub async fn connect() -> Result<Client> {
        Client::builder().build().await
    }

    /// Says more about the client before it connects.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), kv_client::Error> {
    /// # let server = kvd::testing::server();
    /// let client = kv_client::Client::builder().socket(server.socket()).name("mailer").build().await?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn builder() -> Builder<Client> {
        Builder::new()
    }

    /// The same client, with another bound for the time a call takes. Connections are shared.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), kv_client::Error> {
    /// # let server = kvd::testing::server();
    /// # let client = kv_client::Client::builder().socket(server.socket()).build().await?;
    /// client.with_op_timeout(std::time::Duration::from_secs(30)).sync().await?;
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn with_op_timeout(&self, op_timeout: Duration) -> Client {
        Client { shared: Arc::clone(&self.shared), op_timeout }
    }

    /// A cache of this name. Nothing is sent; the first write creates it where the daemon allows that.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), kv_client::Error> {
    /// # let server = kvd::testing::server();
    /// # let client = kv_client::Client::builder().socket(server.socket()).build().await?;
    /// let products = client.cache("product");
    /// assert_eq!(products.name(), "product");
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn cache(&self, name: &str) -> Cache {
        Cache::new(self.clone(), self.shared.seats.at(name))
    }

    /// Begins a batch: checks and writes that happen together or not at all.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), kv_client::Error> {
    /// # let server = kvd::testing::server();
    /// # let client = kv_client::Client::builder().socket(server.socket()).build().await?;
    /// client.batch().put("cart", "7", "rocket", None).delete("cart", "6").commit().await?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn batch(&self) -> Batch<Client> {
        Batch::new(self.clone())
    }

    /// Makes all items of all caches gone or stale.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), kv_client::Error> {
    /// # let server = kvd::testing::server();
    /// # let client = kv_client::Client::builder().socket(server.socket()).build().await?;
    /// client.cache("product").put("42", "rocket", None).await?;
    /// client.clear_all(kv_client::Effect::Gone).await?;
    /// assert_eq!(client.cache("product").get("42").await?, None);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// See [`Error`](crate::Error).
    pub async fn clear_all(&self, effect: Effect) -> Result<Version> {
        self.here().outage.standby.forget_all();
        self.invalidate(None, ops::clear(Scope::Everything, effect)?).await
    }

    /// Makes the items with this tag gone or stale, in all caches.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), kv_client::Error> {
    /// # let server = kvd::testing::server();
    /// # let client = kv_client::Client::builder().socket(server.socket()).build().await?;
    /// use kv_client::{Effect, PutOptions, PutOutcome};
    /// let outcome = client.cache("page").put_with("/42", "<html>", &PutOptions::new().tag("sku:42")).await?;
    /// assert!(matches!(outcome, PutOutcome::Written { .. }));
    /// client.clear_tag("sku:42", Effect::Gone).await?;
    /// assert_eq!(client.cache("page").get("/42").await?, None);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// See [`Error`](crate::Error).
    pub async fn clear_tag(&self, tag: impl AsRef<[u8]>, effect: Effect) -> Result<Version> {
        self.here().outage.standby.forget_all();
        self.invalidate(None, ops::clear(Scope::Tag { cache: None, tag: tag.as_ref() }, effect)?).await
    }

    /// Asks the daemon for a sign of life.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), kv_client::Error> {
    /// # let server = kvd::testing::server();
    /// # let client = kv_client::Client::builder().socket(server.socket()).build().await?;
    /// client.ping().await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// See [`Error`](crate::Error).
    pub async fn ping(&self) -> Result<()> {
        self.call(ops::ping()).await
    }

    /// Makes everything acknowledged so far durable, and waits for that.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), kv_client::Error> {
    /// # let server = kvd::testing::server();
    /// # let client = kv_client::Client::builder().socket(server.socket()).build().await?;
    /// client.cache("order").put("1001", "rocket", None).await?;
    /// client.sync().await?; // survives power loss from here on
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// See [`Error`](crate::Error).
    pub async fn sync(&self) -> Result<()> {
        self.call(ops::sync()).await
    }

    /// Begins a transaction: reads and writes in any caches that happen together or not at all. Where the daemon's locking mode
    /// is `database`, this waits for the others'. [`Client::transact`] tries again by itself.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), kv_client::Error> {
    /// # let server = kvd::testing::server();
    /// # let client = kv_client::Client::builder().socket(server.socket()).build().await?;
    /// let mut tx = client.begin().await?;
    /// tx.put("stock", "42", "7", None).await?;
    /// assert_eq!(client.cache("stock").get("42").await.ok().flatten(), None, "not before the commit");
    /// tx.commit().await?;
    /// assert_eq!(client.cache("stock").get("42").await?.as_deref(), Some(&b"7"[..]));
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`ErrorKind::Timeout`](crate::ErrorKind::Timeout) when the wait was too long; else see [`Error`](crate::Error).
    pub async fn begin(&self) -> Result<Transaction> {
        let wait = lock_wait(self.op_timeout);
        self.begin_by(ops::begin(Wish { read_only: false, wait, first: 0, tries: 0 })).await
    }

    /// Begins a transaction that only reads, all of one moment. It locks nothing; a read of what was changed since fails with
    /// [`ErrorKind::Conflict`](crate::ErrorKind::Conflict).
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), kv_client::Error> {
    /// # let server = kvd::testing::server();
    /// # let client = kv_client::Client::builder().socket(server.socket()).build().await?;
    /// client.cache("price").put("42", "9.99", None).await?;
    /// let mut snapshot = client.snapshot().await?;
    /// client.cache("price").put("43", "1.99", None).await?;
    /// assert_eq!(snapshot.get("price", "42").await?.as_deref(), Some(&b"9.99"[..]));
    /// assert_eq!(snapshot.get("price", "43").await.unwrap_err().kind(), kv_client::ErrorKind::Conflict);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// See [`Error`](crate::Error).
    pub async fn snapshot(&self) -> Result<Transaction> {
        let wait = lock_wait(self.op_timeout);
        self.begin_by(ops::begin(Wish { read_only: true, wait, first: 0, tries: 0 })).await
    }

    /// Does `work` in a transaction and commits it; again from the beginning, after a short random pause, when others were in its
    /// way: [`ErrorKind::Conflict`](crate::ErrorKind::Conflict), `Deadlock`, `LeaseLost`, or a lost connection. No
    /// try begins after the operation timeout. `work` must have no effect but through the transaction.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), kv_client::Error> {
    /// # let server = kvd::testing::server();
    /// # let client = kv_client::Client::builder().socket(server.socket()).build().await?;
    /// client.cache("stock").put("42", "7", None).await?;
    /// let left = client.transact(async |tx| {
    ///     let stock = tx.get("stock", "42").await?.unwrap_or_default();
    ///     let left = String::from_utf8_lossy(&stock).parse::<u32>().unwrap_or(0).saturating_sub(1);
    ///     tx.put("stock", "42", left.to_string(), None).await?;
    ///     tx.put("order", "1001", "42", None).await?;
    ///     Ok::<_, kv_client::Error>(left)
    /// }).await?;
    /// assert_eq!(left, 6);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// What `work` returned, after a rollback; or the last outcome, when the time is up. After a commit whose answer was lost,
    /// [`Error::maybe_applied`](crate::Error::maybe_applied) is true, and nothing was tried again.
    pub async fn transact<T, E: From<Error>>(
        &self,
        mut work: impl AsyncFnMut(&mut Transaction) -> Result<T, E>,
    ) -> Result<T, E> {
        let mut tries = Tries::within(self.op_timeout);
        loop {
            let error = match self.begin_by(tries.begin(self.op_timeout)).await {
                Ok(mut transaction) => {
                    tries.began(transaction.number());
                    let within = Chain::current().transacting(transaction.number());
                    let worked = InChain::new(within, work(&mut transaction)).await;
                    match worked {
                        Ok(value) => match transaction.commit().await {
                            Ok(_) => return Ok(value),
                            Err(error) if !is_worth_another_try(&error) => return Err(error.into()),
                            Err(error) => error.into(),
                        },
                        Err(error) if !transaction.was_disturbed() => return Err(error),
                        // Dropped, and so rolled back.
                        Err(error) => error,
                    }
                }
                Err(error) if !is_worth_another_try(&error) => return Err(error.into()),
                Err(error) => error.into(),
            };
            match tries.again() {
                Some(pause) => sleep(pause).await,
                None => return Err(error),
            }
        }
    }

    /// What this client has counted itself: how each cache is read, and how often that had to ask.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), kv_client::Error> {
    /// # let server = kvd::testing::server();
    /// # let client = kv_client::Client::builder().socket(server.socket()).build().await?;
    /// let products = client.cache("product");
    /// products.put("42", "rocket", None).await?;
    /// assert!(products.get("42").await?.is_some());
    /// assert_eq!(client.stats().caches[0].name, "product");
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn stats(&self) -> ClientStats {
        ClientStats { caches: self.shared.seats.stats() }
    }

    /// What the command line asks for.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), kv_client::Error> {
    /// # let server = kvd::testing::server();
    /// # let client = kv_client::Client::builder().socket(server.socket()).build().await?;
    /// assert!(!client.admin().stats().await?.is_empty());
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn admin(&self) -> Admin {
        Admin::new(self.clone())
    }

    /// As `call_with`, for a read that shared memory could not answer: tells what was read there, and maps the cache's
    /// segment afterwards if there is none.
    pub(super) async fn ask<T>(
        &self,
        seat: &Arc<Seat>,
        sending: Sending,
        read: impl FnMut(Response<'_>) -> Result<T>,
    ) -> Result<T> {
        self.tell_along(seat);
        let answer = self.call_with(sending, read).await?;
        self.attach_if_wanted(seat);
        Ok(answer)
    }

    /// Tells what was read without asking, on its own.
    pub(super) fn tell(&self, seat: &Seat) {
        self.tell_now(seat.report());
    }

    /// Tells it in front of a request that is about to go the same way: one write takes both.
    pub(super) fn tell_along(&self, seat: &Seat) {
        self.tell_now(seat.report_along());
    }

    fn tell_now(&self, report: Option<Sending>) {
        if let Some(report) = report {
            let client = self.clone();
            // It is worth little: when it cannot be told it is lost.
            drop(tokio::spawn(async move { client.call_with(report, |_| Ok(())).await }));
        }
    }

    pub(super) async fn call<T>(&self, call: Call<T>) -> Result<T> {
        self.call_with(call.sending, call.read).await
    }

    async fn begin_by(&self, call: Call<u64>) -> Result<Transaction> {
        let mut attempts = self.attempts(call.sending.repeat);
        let (way, number) = self.set_out(&call, &mut attempts, Turns::Waits).await?;
        Ok(Transaction::begun(self, way, number))
    }

    /// The first of several requests that belong together, and the way that the others take. A pooled connection may have been
    /// closed since, and then the next is tried.
    pub(super) async fn set_out<T>(
        &self,
        call: &Call<T>,
        attempts: &mut Attempts,
        turns: Turns,
    ) -> Result<(Way, T)> {
        let turn = self.turn(turns, attempts).await?;
        self.set_out_in(call, attempts, turn).await
    }

    /// Waits for the right to have one more connection.
    pub(super) async fn turn(&self, turns: Turns, attempts: &Attempts) -> Result<OwnedSemaphorePermit> {
        let lanes = self.here();
        lanes.outage.admit()?;
        let turns = Arc::clone(match turns {
            Turns::Waits => &lanes.waits,
            Turns::Loads => &lanes.loads,
        });
        let turn = timeout_at(attempts.deadline().into(), turns.acquire_owned()).await;
        Ok(turn.map_err(|_elapsed| attempts.timed_out(false))?.expect("the semaphore is never closed"))
    }

    pub(super) async fn set_out_in<T>(
        &self,
        call: &Call<T>,
        attempts: &mut Attempts,
        turn: OwnedSemaphorePermit,
    ) -> Result<(Way, T)> {
        let Shared { settings, lanes, .. } = &*self.shared;
        let lanes = lanes.here();
        lanes.outage.admit()?;
        loop {
            let idle = lanes.idle.lock().pop();
            let pooled = idle.is_some();
            let mut link = match idle {
                Some(link) => link,
                None => connect(settings, &lanes.outage, attempts).await?,
            };
            match link.converse(call, attempts).await {
                Ok(answer) => {
                    lanes.outage.answered();
                    return match answer {
                        Ok(answer) => Ok((Way::new(link, turn), answer)),
                        Err(error) => {
                            lanes.give_back(link, settings);
                            Err(error)
                        }
                    };
                }
                Err(Failure::NotSent(Error::Lost { .. })) if pooled => {}
                Err(failure @ (Failure::NotSent(Error::Lost { .. }) | Failure::Sent(Error::Lost { .. }))) => {
                    sleep(attempts.lost(failure)?).await;
                }
                Err(failure) => return Err(failure.into_error()),
            }
        }
    }

    /// Whether a load inside a load need not wait for its turn: one that did might wait for itself.
    pub(super) fn has_turn_for_load(&self) -> bool {
        self.here().loads.available_permits() > 0
    }

    /// Takes back a way on which nothing is open.
    pub(super) fn give_back(&self, way: Way) {
        self.here().give_back(way.into_link(), &self.shared.settings);
    }

    pub(super) fn settings(&self) -> &Settings {
        &self.shared.settings
    }

    pub(super) fn op_timeout(&self) -> Duration {
        self.op_timeout
    }

    /// What this process has of the client.
    pub(super) fn here(&self) -> &Lanes {
        self.shared.lanes.here()
    }

    /// A read's answer: a miss instead of the error of a daemon that is away, where that is wanted.
    pub(super) fn forgive<T: Default>(&self, seat: &Seat, answer: Result<T>) -> Result<T> {
        match answer {
            Err(error) if error.is_outage() && self.shared.settings.on_outage == OnOutage::Miss => {
                seat.loads().outage_miss();
                self.shared.settings.observer.observe(&Event::OutageMiss { cache: seat.name() });
                Ok(T::default())
            }
            answer => answer,
        }
    }

    /// An invalidation: while the daemon is away it is kept and delivered later, where that is wanted. `cache`: the only one
    /// that it concerns.
    pub(super) async fn invalidate<T: Default>(&self, cache: Option<&str>, call: Call<T>) -> Result<T> {
        let Shared { settings, .. } = &*self.shared;
        let frame = call.sending.frame.clone();
        match self.call(call).await {
            Err(error) if error.is_outage() && settings.on_outage == OnOutage::Miss => {
                self.here().outage.deliver_later(&frame, cache, settings, &error);
                // A stopped daemon's memory is to be trusted as soon as it goes on, which may be before it has heard.
                self.shared.seats.detach(cache);
                Ok(T::default())
            }
            answer => answer,
        }
    }

    /// A request that waits for nothing was not answered `within` all its time: if nobody else was answered either, the daemon is as
    /// good as dead.
    pub(super) fn note_silence(&self, lane: ops::Lane, answers: u64, within: Duration, error: &Error) {
        let outage = &self.here().outage;
        let is_patient = within >= self.shared.settings.op_timeout;
        let is_timeout = matches!(error, Error::Timeout { .. });
        if lane == ops::Lane::Reads && is_timeout && is_patient && outage.is_silent_since(answers) {
            outage.open(&self.shared.settings, error);
        }
    }

    /// Maps the segment beside the caller, who goes on over the socket until it is there.
    pub(super) fn attach_if_wanted(&self, seat: &Arc<Seat>) {
        let shared = Arc::clone(&self.shared);
        if let Some(claim) = seat.claim(&shared.settings) {
            let seat = Arc::clone(seat);
            drop(tokio::task::spawn_blocking(move || seat.attach(&shared.settings, claim)));
        }
    }

    /// One request's tries, all on the connection of a transaction.
    pub(super) fn attempts(&self, repeat: Repeat) -> Attempts {
        Attempts::new(&self.shared.settings, self.op_timeout, repeat)
    }

    /// The same for a request that the daemon may let wait for others, for `wait`: its answer comes a little later.
    pub(super) fn attempts_within(&self, repeat: Repeat, within: Duration, wait: Duration) -> Attempts {
        Attempts::new(&self.shared.settings, within.max(wait + wait / 10), repeat)
    }

    /// Sends a request, again where that is right, and reads its answer.
    pub(super) async fn call_with<T>(
        &self,
        sending: Sending,
        mut read: impl FnMut(Response<'_>) -> Result<T>,
    ) -> Result<T> {
        let Shared { settings, lanes, .. } = &*self.shared;
        let lanes = lanes.here();
        lanes.outage.admit()?;
        let answers = lanes.outage.answers();
        let mut attempts = Attempts::new(settings, self.op_timeout, sending.repeat);
        loop {
            let exchanged = match sending.lane {
                ops::Lane::Reads => lanes.pipelined(&lanes.reads, settings, &sending, &mut attempts).await?,
                ops::Lane::Writes => {
                    lanes.pipelined(&lanes.writes, settings, &sending, &mut attempts).await?
                }
                ops::Lane::Waits => lanes.alone(settings, &sending, &mut attempts).await?,
            };
            let pause = match exchanged {
                Ok(body) => {
                    lanes.outage.answered();
                    match attempts.answered(&body, &mut read) {
                        Step::Done(result) => return result,
                        Step::Again(pause) => pause,
                        Step::Broken(error) => return Err(error),
                    }
                }
                Err(Failure::NotSent(error @ Error::TooLarge { .. })) => return Err(error),
                Err(failure) => {
                    let lost = attempts.lost(failure);
                    lost.inspect_err(|error| {
                        self.note_silence(sending.lane, answers, self.op_timeout, error)
                    })?
                }
            };
            sleep(pause).await;
        }
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client")
            .field("settings", &self.shared.settings)
            .field("op_timeout", &self.op_timeout)
            .finish()
    }
}

impl Batch<Client> {
    /// Applies everything, or nothing.
    ///
    /// # Errors
    /// [`Error::Conflict`](crate::Error::Conflict) names the first check that did not hold. A batch that insists on the
    /// version of something it writes is repeated after a lost connection; another one is not.
    pub async fn commit(self) -> Result<Committed> {
        let call = ops::commit(&self.data)?;
        self.client.call(call).await
    }
}
