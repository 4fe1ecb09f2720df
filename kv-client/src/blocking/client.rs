//! The blocking client's calls: a connection for each, and trying again.
//!
//! Called by applications, by [`Cache`] and [`Scan`](super::Scan). It never puts a connection back that has an answer
//! outstanding.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kv_proto::Version;
use kv_proto::wire::{Effect, Response, Scope};

use super::admin::Admin;
use super::cache::Cache;
use super::connection::Connection;
use super::crew::Crew;
use super::direct::{self, Direct};
use super::flight::Flight;
use super::road::Road;
use super::transaction::Transaction;
use crate::answers::{ClientStats, Committed};
use crate::batch::Batch;
use crate::error::{Error, Result};
use crate::fork::{Generation, Inherited};
use crate::load::chain::Chain;
use crate::load::flights::Flights;
use crate::lock::Lock;
use crate::observe::Event;
use crate::ops::{self, Call, Repeat, Sending, Wish};
use crate::options::{Builder, OnOutage, Settings};
use crate::outage::Outage;
use crate::retry::{Attempts, Failure, Step};
use crate::shared::{Seat, Seats};
use crate::transact::{Tries, is_worth_another_try, lock_wait};

/// How long a reader is held up at most, once a second, to tell what it read.
const TELL_WITHIN: Duration = Duration::from_millis(20);

/// A blocking client: cheap to clone, shared by threads, safe across `fork`.
///
/// ```
/// # let server = kvd::testing::server();
/// use std::time::Duration;
/// use kv_client::blocking::Client;
/// let client = Client::builder().socket(server.socket()).build()?;
/// let products = client.cache("product");
/// products.put("42", "rocket", Duration::from_secs(60))?;
/// assert_eq!(products.get("42")?.as_deref(), Some(&b"rocket"[..]));
/// # Ok::<(), kv_client::Error>(())
/// ```
#[derive(Clone)]
pub struct Client {
    shared: Arc<Shared>,
    op_timeout: Duration,
}

struct Shared {
    settings: Settings,
    pool: Generation<Pool>,
    seats: Seats,
    /// An engine of this process; then the pool stays empty.
    direct: Option<Arc<dyn Direct>>,
}

/// What one process has of the client: its connections, and the loads under way.
#[derive(Default)]
pub(super) struct Pool {
    // A stack: the connection used last is warm, those at the bottom go idle.
    idle: Lock<Vec<Connection>>,
    pub(super) outage: Arc<Outage>,
    pub(super) flights: Flights<Flight>,
    /// Runs loads in threads of their own.
    pub(super) crew: Crew,
}

impl Inherited for Pool {
    fn begin_anew(&self) -> Pool {
        // Closing the child's copies leaves the parent's streams as they are. Where another thread of the parent held
        // the lock at the fork, the copies stay open until exec or exit, which harms nobody.
        if let Some(mut idle) = self.idle.try_lock() {
            idle.clear();
        }
        Pool { outage: Arc::new(self.outage.begin_anew()), ..Pool::default() }
    }
}

impl Builder<Client> {
    /// Connects.
    ///
    /// # Errors
    /// [`Error::Unreachable`](crate::Error::Unreachable) lists each place tried and why not.
    pub fn build(self) -> Result<Client> {
        let client = self.build_lazy();
        client.ping()?;
        Ok(client)
    }

    /// Connects when it is first used: for a parent process that forks workers, and for programs that start before the
    /// daemon does.
    ///
    /// ```
    /// # let server = kvd::testing::server();
    /// let client = kv_client::blocking::Client::builder().socket(server.socket()).build_lazy();
    /// client.ping()?;
    /// # Ok::<(), kv_client::Error>(())
    /// ```
    #[must_use]
    pub fn build_lazy(self) -> Client {
        Client::of(self.settings, None)
    }
}

impl Client {
    /// Connects to the daemon of this user or host: `KVD_SOCKET`, else `$XDG_RUNTIME_DIR/kvd/kvd.sock`, else
    /// `/run/kvd/kvd.sock`.
    ///
    /// ```no_run
    /// let client = kv_client::blocking::Client::connect()?;
    /// # Ok::<(), kv_client::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Unreachable`](crate::Error::Unreachable) lists each place tried and why not.
    pub fn connect() -> Result<Client> {
        Client::builder().build()
    }

    /// Says more about the client before it connects.
    ///
    /// ```
    /// # let server = kvd::testing::server();
    /// let client = kv_client::blocking::Client::builder().socket(server.socket()).name("mailer").build()?;
    /// # Ok::<(), kv_client::Error>(())
    /// ```
    pub fn builder() -> Builder<Client> {
        Builder::new()
    }

    /// The same client, with another bound for the time a call takes. Connections are shared.
    ///
    /// ```
    /// # let server = kvd::testing::server();
    /// # let client = kv_client::blocking::Client::builder().socket(server.socket()).build()?;
    /// client.with_op_timeout(std::time::Duration::from_secs(30)).sync()?;
    /// # Ok::<(), kv_client::Error>(())
    /// ```
    #[must_use]
    pub fn with_op_timeout(&self, op_timeout: Duration) -> Client {
        Client { shared: Arc::clone(&self.shared), op_timeout }
    }

    /// A cache of this name. Nothing is sent; the first write creates it where the daemon allows that.
    ///
    /// ```
    /// # let server = kvd::testing::server();
    /// # let client = kv_client::blocking::Client::builder().socket(server.socket()).build()?;
    /// let products = client.cache("product");
    /// assert_eq!(products.name(), "product");
    /// # Ok::<(), kv_client::Error>(())
    /// ```
    #[must_use]
    pub fn cache(&self, name: &str) -> Cache {
        Cache::new(self.clone(), self.shared.seats.at(name))
    }

    /// Begins a batch: checks and writes that happen together or not at all.
    ///
    /// ```
    /// # let server = kvd::testing::server();
    /// # let client = kv_client::blocking::Client::builder().socket(server.socket()).build()?;
    /// client.batch().put("cart", "7", "rocket", None).delete("cart", "6").commit()?;
    /// # Ok::<(), kv_client::Error>(())
    /// ```
    pub fn batch(&self) -> Batch<Client> {
        Batch::new(self.clone())
    }

    /// Makes all items of all caches gone or stale.
    ///
    /// ```
    /// # let server = kvd::testing::server();
    /// # let client = kv_client::blocking::Client::builder().socket(server.socket()).build()?;
    /// client.cache("product").put("42", "rocket", None)?;
    /// client.clear_all(kv_client::Effect::Gone)?;
    /// assert_eq!(client.cache("product").get("42")?, None);
    /// # Ok::<(), kv_client::Error>(())
    /// ```
    ///
    /// # Errors
    /// See [`Error`](crate::Error).
    pub fn clear_all(&self, effect: Effect) -> Result<Version> {
        self.here().outage.standby.forget_all();
        self.invalidate(None, ops::clear(Scope::Everything, effect)?, None)
    }

    /// Makes the items with this tag gone or stale, in all caches.
    ///
    /// ```
    /// # let server = kvd::testing::server();
    /// # let client = kv_client::blocking::Client::builder().socket(server.socket()).build()?;
    /// use kv_client::{Effect, PutOptions, PutOutcome};
    /// let outcome = client.cache("page").put_with("/42", "<html>", &PutOptions::new().tag("sku:42"))?;
    /// assert!(matches!(outcome, PutOutcome::Written { .. }));
    /// client.clear_tag("sku:42", Effect::Gone)?;
    /// assert_eq!(client.cache("page").get("/42")?, None);
    /// # Ok::<(), kv_client::Error>(())
    /// ```
    ///
    /// # Errors
    /// See [`Error`](crate::Error).
    pub fn clear_tag(&self, tag: impl AsRef<[u8]>, effect: Effect) -> Result<Version> {
        self.here().outage.standby.forget_all();
        self.invalidate(None, ops::clear(Scope::Tag { cache: None, tag: tag.as_ref() }, effect)?, None)
    }

    /// Asks the daemon for a sign of life.
    ///
    /// ```
    /// # let server = kvd::testing::server();
    /// # let client = kv_client::blocking::Client::builder().socket(server.socket()).build()?;
    /// client.ping()?;
    /// # Ok::<(), kv_client::Error>(())
    /// ```
    ///
    /// # Errors
    /// See [`Error`](crate::Error).
    pub fn ping(&self) -> Result<()> {
        self.call(ops::ping())
    }

    /// Makes everything acknowledged so far durable, and waits for that.
    ///
    /// ```
    /// # let server = kvd::testing::server();
    /// # let client = kv_client::blocking::Client::builder().socket(server.socket()).build()?;
    /// client.cache("order").put("1001", "rocket", None)?;
    /// client.sync()?; // survives power loss from here on
    /// # Ok::<(), kv_client::Error>(())
    /// ```
    ///
    /// # Errors
    /// See [`Error`](crate::Error).
    pub fn sync(&self) -> Result<()> {
        self.call(ops::sync())
    }

    /// Begins a transaction: reads and writes in any caches that happen together or not at all. Where the daemon's locking mode
    /// is `database`, this waits for the others'. [`Client::transact`] tries again by itself.
    ///
    /// ```
    /// # let server = kvd::testing::server();
    /// # let client = kv_client::blocking::Client::builder().socket(server.socket()).build()?;
    /// let mut tx = client.begin()?;
    /// tx.put("stock", "42", "7", None)?;
    /// assert_eq!(client.cache("stock").get("42").ok().flatten(), None, "not before the commit");
    /// tx.commit()?;
    /// assert_eq!(client.cache("stock").get("42")?.as_deref(), Some(&b"7"[..]));
    /// # Ok::<(), kv_client::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`ErrorKind::Timeout`](crate::ErrorKind::Timeout) when the wait was too long; else see [`Error`](crate::Error).
    pub fn begin(&self) -> Result<Transaction> {
        let wait = lock_wait(self.op_timeout);
        self.begin_by(ops::begin(Wish { read_only: false, wait, first: 0, tries: 0 }))
    }

    /// Begins a transaction that only reads, all of one moment. It locks nothing; a read of what was changed since fails with
    /// [`ErrorKind::Conflict`](crate::ErrorKind::Conflict).
    ///
    /// ```
    /// # let server = kvd::testing::server();
    /// # let client = kv_client::blocking::Client::builder().socket(server.socket()).build()?;
    /// client.cache("price").put("42", "9.99", None)?;
    /// let mut snapshot = client.snapshot()?;
    /// client.cache("price").put("43", "1.99", None)?;
    /// assert_eq!(snapshot.get("price", "42")?.as_deref(), Some(&b"9.99"[..]));
    /// assert_eq!(snapshot.get("price", "43").unwrap_err().kind(), kv_client::ErrorKind::Conflict);
    /// # Ok::<(), kv_client::Error>(())
    /// ```
    ///
    /// # Errors
    /// See [`Error`](crate::Error).
    pub fn snapshot(&self) -> Result<Transaction> {
        let wait = lock_wait(self.op_timeout);
        self.begin_by(ops::begin(Wish { read_only: true, wait, first: 0, tries: 0 }))
    }

    /// Does `work` in a transaction and commits it; again from the beginning, after a short random pause, when others were in its
    /// way: [`ErrorKind::Conflict`](crate::ErrorKind::Conflict), `Deadlock`, `LeaseLost`, or a lost connection. No
    /// try begins after the operation timeout. `work` must have no effect but through the transaction.
    ///
    /// ```
    /// # let server = kvd::testing::server();
    /// # let client = kv_client::blocking::Client::builder().socket(server.socket()).build()?;
    /// client.cache("stock").put("42", "7", None)?;
    /// let left = client.transact(|tx| {
    ///     let stock = tx.get("stock", "42")?.unwrap_or_default();
    ///     let left = String::from_utf8_lossy(&stock).parse::<u32>().unwrap_or(0).saturating_sub(1);
    ///     tx.put("stock", "42", left.to_string(), None)?;
    ///     tx.put("order", "1001", "42", None)?;
    ///     Ok::<_, kv_client::Error>(left)
    /// })?;
    /// assert_eq!(left, 6);
    /// # Ok::<(), kv_client::Error>(())
    /// ```
    ///
    /// # Errors
    /// What `work` returned, after a rollback; or the last outcome, when the time is up. After a commit whose answer was lost,
    /// [`Error::maybe_applied`](crate::Error::maybe_applied) is true, and nothing was tried again.
    pub fn transact<T, E: From<Error>>(
        &self,
        mut work: impl FnMut(&mut Transaction) -> Result<T, E>,
    ) -> Result<T, E> {
        let mut tries = Tries::within(self.op_timeout);
        loop {
            let error = match self.begin_by(tries.begin(self.op_timeout)) {
                Ok(mut transaction) => {
                    tries.began(transaction.number());
                    let within = Chain::current().transacting(transaction.number()).enter();
                    let worked = work(&mut transaction);
                    drop(within);
                    match worked {
                        Ok(value) => match transaction.commit() {
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
                Some(pause) => std::thread::sleep(pause),
                None => return Err(error),
            }
        }
    }

    /// What this client has counted itself: how each cache is read, and how often that had to ask.
    ///
    /// ```
    /// # let server = kvd::testing::server();
    /// # let client = kv_client::blocking::Client::builder().socket(server.socket()).build()?;
    /// let products = client.cache("product");
    /// products.put("42", "rocket", None)?;
    /// products.get("42")?; // asks, and maps the cache's segment
    /// products.get("42")?; // needs nobody
    /// let stats = client.stats();
    /// assert!(stats.caches[0].path.is_shared());
    /// assert_eq!(stats.caches[0].shared_hits, 1);
    /// # Ok::<(), kv_client::Error>(())
    /// ```
    #[must_use]
    pub fn stats(&self) -> ClientStats {
        ClientStats { caches: self.shared.seats.stats() }
    }

    /// What the command line asks for.
    ///
    /// ```
    /// # let server = kvd::testing::server();
    /// # let client = kv_client::blocking::Client::builder().socket(server.socket()).build()?;
    /// assert!(!client.admin().stats()?.is_empty());
    /// # Ok::<(), kv_client::Error>(())
    /// ```
    #[must_use]
    pub fn admin(&self) -> Admin {
        Admin::new(self.clone())
    }

    pub(super) fn of_engine(settings: Settings, engine: Arc<dyn Direct>) -> Client {
        Client::of(settings, Some(engine))
    }

    fn of(settings: Settings, direct: Option<Arc<dyn Direct>>) -> Client {
        let op_timeout = settings.op_timeout;
        // An engine of this process has no segment to hand out.
        let settings = Settings { shared_memory: settings.shared_memory && direct.is_none(), ..settings };
        let shared =
            Shared { settings, pool: Generation::new(Pool::default()), seats: Seats::default(), direct };
        Client { shared: Arc::new(shared), op_timeout }
    }

    pub(super) fn call<T>(&self, call: Call<T>) -> Result<T> {
        self.call_with(&call.sending, None, call.read)
    }

    /// As `call_with`, for a read that shared memory could not answer: takes along what was read there, and maps the
    /// cache's segment afterwards if there is none.
    pub(super) fn ask<T>(
        &self,
        seat: &Seat,
        sending: &Sending,
        read: impl FnMut(Response<'_>) -> Result<T>,
    ) -> Result<T> {
        let (along, deadline) = (seat.report_along(), Instant::now() + self.op_timeout);
        let answer = self.call_with(sending, along.as_ref(), read)?;
        seat.attach_if_wanted(&self.shared.settings, deadline);
        Ok(answer)
    }

    /// Tells what was read without asking, on its own. It is worth little: when it cannot be told at once it is lost.
    pub(super) fn tell(&self, seat: &Seat) {
        if let Some(report) = seat.report() {
            let brief = self.with_op_timeout(TELL_WITHIN);
            let _ = brief.call_with(&report, None, |_| Ok(()));
        }
    }

    fn begin_by(&self, call: Call<u64>) -> Result<Transaction> {
        let mut attempts = self.attempts(call.sending.repeat);
        let (road, number) = self.set_out(&call, &mut attempts)?;
        Ok(Transaction::begun(self, road, number))
    }

    /// The first of several requests that belong together, and the way that the others take. A pooled connection may have been
    /// closed since, and then the next is tried.
    pub(super) fn set_out<T>(&self, call: &Call<T>, attempts: &mut Attempts) -> Result<(Road, T)> {
        let Shared { settings, pool, direct, .. } = &*self.shared;
        if let Some(engine) = direct {
            let mut road = Road::Direct(engine.session());
            let answer = road.exchange(call, attempts).map_err(Failure::into_error)?;
            return Ok((road, answer?));
        }
        let pool = pool.here();
        pool.outage.admit()?;
        loop {
            let (connection, pooled) = match pool.take() {
                Some(connection) => (connection, true),
                None => (pool.connect(settings, attempts)?, false),
            };
            let mut road = Road::Socket(connection);
            match road.exchange(call, attempts) {
                Ok(answer) => {
                    pool.outage.answered();
                    return match answer {
                        Ok(answer) => Ok((road, answer)),
                        Err(error) => {
                            self.give_back(road);
                            Err(error)
                        }
                    };
                }
                Err(Failure::NotSent(Error::Lost { .. })) if pooled => {}
                Err(failure @ (Failure::NotSent(Error::Lost { .. }) | Failure::Sent(Error::Lost { .. }))) => {
                    std::thread::sleep(attempts.lost(failure)?);
                }
                Err(failure) => return Err(failure.into_error()),
            }
        }
    }

    /// Takes back a way on which nothing is open.
    pub(super) fn give_back(&self, road: Road) {
        if let Some(connection) = road.into_connection() {
            self.shared.pool.here().give_back(connection, &self.shared.settings);
        }
    }

    pub(super) fn settings(&self) -> &Settings {
        &self.shared.settings
    }

    pub(super) fn op_timeout(&self) -> Duration {
        self.op_timeout
    }

    /// What this process has of the client.
    pub(super) fn here(&self) -> &Pool {
        self.shared.pool.here()
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
    pub(super) fn invalidate<T: Default>(
        &self,
        cache: Option<&str>,
        call: Call<T>,
        along: Option<&Sending>,
    ) -> Result<T> {
        let Shared { settings, .. } = &*self.shared;
        match self.call_with(&call.sending, along, call.read) {
            Err(error) if error.is_outage() && settings.on_outage == OnOutage::Miss => {
                self.here().outage.deliver_later(&call.sending.frame, cache, settings, &error);
                // A stopped daemon's memory is to be trusted as soon as it goes on, which may be before it has heard.
                self.shared.seats.detach(cache);
                Ok(T::default())
            }
            answer => answer,
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

    /// Sends a request, again where that is right, and reads its answer while it is still in the connection's buffer.
    /// `along` goes in front of it in the same write.
    pub(super) fn call_with<T>(
        &self,
        sending: &Sending,
        mut along: Option<&Sending>,
        mut read: impl FnMut(Response<'_>) -> Result<T>,
    ) -> Result<T> {
        let Shared { settings, pool, direct, .. } = &*self.shared;
        if let Some(engine) = direct {
            let mut attempts = Attempts::new(settings, self.op_timeout, sending.repeat);
            let engine =
                |request: &[u8], answer: &mut Vec<u8>, deadline| engine.call(request, answer, deadline);
            return direct::call(engine, sending, &mut attempts, read);
        }
        let pool = pool.here();
        pool.outage.admit()?;
        let answers = pool.outage.answers();
        let mut attempts = Attempts::new(settings, self.op_timeout, sending.repeat);
        loop {
            let (mut connection, pooled) = match pool.take() {
                Some(connection) => (connection, true),
                None => (pool.connect(settings, &mut attempts)?, false),
            };
            let frame = match connection.exchange(sending, along.take(), &attempts) {
                Ok(frame) => frame,
                // The daemon has gone since: so have the other connections to it. At most the pool's number of times.
                Err(Failure::NotSent(Error::Lost { .. })) if pooled => continue,
                Err(Failure::NotSent(error @ Error::TooLarge { .. })) => {
                    pool.give_back(connection, settings);
                    return Err(error);
                }
                Err(failure) => {
                    drop(connection);
                    let pause = attempts.lost(failure).inspect_err(|error| {
                        self.note_silence(sending.lane, answers, self.op_timeout, error)
                    })?;
                    std::thread::sleep(pause);
                    continue;
                }
            };
            pool.outage.answered();
            match attempts.answered(connection.answer(frame), &mut read) {
                Step::Done(result) => {
                    pool.give_back(connection, settings);
                    return result;
                }
                Step::Again(pause) => {
                    pool.give_back(connection, settings);
                    std::thread::sleep(pause);
                }
                Step::Broken(error) => return Err(error),
            }
        }
    }
}

impl Client {
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
}

impl Pool {
    fn take(&self) -> Option<Connection> {
        self.idle.lock().pop()
    }

    fn connect(&self, settings: &Settings, attempts: &mut Attempts) -> Result<Connection> {
        loop {
            match Connection::open(settings, attempts.connect_deadline()) {
                Ok(connection) => {
                    self.outage.over(settings);
                    return Ok(connection);
                }
                Err(error) if attempts.is_too_brief_for(settings, &error) => {
                    return Err(attempts.timed_out(false));
                }
                Err(error) => {
                    let pause = attempts.not_connected(error, &self.outage).inspect_err(|error| {
                        if matches!(error, Error::Unreachable { .. }) && self.outage.was_there() {
                            self.outage.open(settings, error);
                        }
                    })?;
                    std::thread::sleep(pause);
                }
            }
        }
    }

    fn give_back(&self, connection: Connection, settings: &Settings) {
        if !connection.is_sound() {
            return;
        }
        let mut idle = self.idle.lock();
        if idle.len() < settings.idle_connections_max {
            idle.push(connection);
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
    pub fn commit(self) -> Result<Committed> {
        let call = ops::commit(&self.data)?;
        self.client.call(call)
    }
}
