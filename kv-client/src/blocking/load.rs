//! Loading what is not there, blocking: the caller's own thread runs its loader.
//!
//! One thread of a process leads a load, those that want the same key meanwhile wait for it; the daemon sees to it that one
//! process loads. A load inside a load waits in the daemon alone, which knows who waits for whom. Called by applications
//! through [`Cache`] and [`EntryBuilder`].

use std::sync::Arc;
use std::time::{Duration, Instant};

use kv_proto::Version;
use kv_proto::limits::LEASE_WAIT_MAX;
use kv_proto::wire::ErrorKind;

use super::cache::Cache;
use super::crew::Place;
use super::flight::{Course, Flight, Lead};
use crate::codec::{Codec, Decoded};
use crate::error::{Error, Result};
use crate::limits::OVERTAKEN_MAX;
use crate::load::chain::Chain;
use crate::load::course::{
    Landing, Loaded, Patience, Served, Turn, conclude, decode, last_answer_within, loader_failed,
};
use crate::load::entry::LoadOptions;
use crate::load::flights::Boarded;
use crate::load::glance::{Glance, Looker};
use crate::load::{EntryBuilder, Fill, OnBusy};
use crate::observe::Event;
use crate::transact::lock_wait;

/// What loaders may fail with.
type AnyError = Box<dyn std::error::Error + Send + Sync>;

impl Cache {
    /// How this caller looks at a key.
    pub(super) fn looker<T>(&self, codec: Codec<T>, takes_negatives: bool) -> Looker<'_, T> {
        Looker {
            seat: &self.seat,
            settings: self.client.settings(),
            scope: self.scope.as_ref(),
            codec,
            takes_negatives,
        }
    }

    /// Says what wants to be known of a key before it is loaded.
    ///
    /// ```
    /// # let server = kvd::testing::server();
    /// # let client = kv_client::blocking::Client::builder().socket(server.socket()).build()?;
    /// use std::time::Duration;
    /// let html = client
    ///     .cache("page")
    ///     .entry("/product/42")
    ///     .ttl(Duration::from_secs(60))
    ///     .stale_for(Duration::from_secs(600))
    ///     .tag("sku:42")
    ///     .get_or_load(|_fill| Ok::<_, kv_client::Error>(b"<h1>rocket</h1>".to_vec()))?;
    /// assert_eq!(html, b"<h1>rocket</h1>");
    /// # Ok::<(), kv_client::Error>(())
    /// ```
    pub fn entry(&self, key: impl AsRef<[u8]>) -> EntryBuilder<Cache, Vec<u8>> {
        EntryBuilder::new(self.clone(), Codec::plain(), key.as_ref())
    }

    /// The value of a key; if it is not there, what the loader makes of it, stored with this life. Of all processes of the
    /// host that miss at once one loads, and the others get its value.
    ///
    /// While the daemon is away the loader runs, once a key and process.
    ///
    /// ```
    /// # let server = kvd::testing::server();
    /// # let client = kv_client::blocking::Client::builder().socket(server.socket()).build()?;
    /// use std::time::Duration;
    /// let products = client.cache("product");
    /// let load = |_: &_| Ok::<_, std::io::Error>(b"rocket".to_vec()); // ask the database
    /// assert_eq!(products.get_or_load("42", Duration::from_secs(300), load)?, b"rocket");
    /// assert_eq!(products.get("42")?.as_deref(), Some(&b"rocket"[..]));
    /// # Ok::<(), kv_client::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Loader`] when the loader failed and nothing stale could be served instead;
    /// [`ErrorKind::Deadlock`](crate::ErrorKind::Deadlock) when the loader comes back to a key that it is loading; see also [`Error`].
    pub fn get_or_load<E: Into<AnyError>>(
        &self,
        key: impl AsRef<[u8]>,
        ttl: impl Into<Option<Duration>>,
        loader: impl FnOnce(&Fill<Vec<u8>>) -> Result<Vec<u8>, E>,
    ) -> Result<Vec<u8>> {
        self.load_as(Codec::plain(), key.as_ref(), ttl.into(), loader)
    }

    /// As `get_or_load`, of any type. What is there needs no entry.
    #[inline(always)]
    pub(super) fn load_as<T, E: Into<AnyError>>(
        &self,
        codec: Codec<T>,
        key: &[u8],
        ttl: Option<Duration>,
        loader: impl FnOnce(&Fill<T>) -> Result<T, E>,
    ) -> Result<T> {
        let glance = self.glance(&self.looker(codec, false), key, None);
        if let Glance::There { value: Some(value), refresh: None } = glance {
            return Ok(value);
        }
        let options = LoadOptions::with_ttl(ttl);
        let entry = EntryBuilder { cache: self.clone(), codec, key: key.to_vec(), options, cache_if: None };
        there(entry.resolve(false, glance, |fill| loader(fill).map(Some))?)
    }

    #[inline(always)]
    pub(super) fn glance<T>(
        &self,
        looker: &Looker<'_, T>,
        key: &[u8],
        refresh_ahead: Option<f64>,
    ) -> Glance<T> {
        let mut is_due = false;
        let glance = looker.glance(key, refresh_ahead, &mut is_due);
        self.tell(is_due);
        glance
    }
}

/// For callers who do not take "there is none" for an answer, and so never get it.
fn there<T>(value: Option<T>) -> Result<T> {
    value.ok_or_else(|| Error::Codec { message: "the stored value says that there is none".to_owned() })
}

impl<T> EntryBuilder<Cache, T> {
    /// The value; if it is not there, what the loader makes of it, which is stored. The loader runs in this thread.
    ///
    /// A stale value is served while somebody else reloads; the first who finds it stale reloads it, before it goes on. See
    /// [`get_or_load_detached`](EntryBuilder::get_or_load_detached) for timeouts, and for not waiting.
    ///
    /// # Errors
    /// As [`Cache::get_or_load`], and [`Error::Invalid`] for options that make no sense together.
    pub fn get_or_load<E: Into<AnyError>>(self, loader: impl FnOnce(&Fill<T>) -> Result<T, E>) -> Result<T> {
        let glance =
            self.cache.glance(&self.cache.looker(self.codec, false), &self.key, self.options.refresh_ahead);
        there(self.resolve(false, glance, |fill| loader(fill).map(Some))?)
    }

    /// As [`get_or_load`](EntryBuilder::get_or_load), for what there may be none of: "there is none" is remembered for
    /// [`negative_ttl`](EntryBuilder::negative_ttl). For typed caches.
    ///
    /// ```
    /// # let server = kvd::testing::server();
    /// # let client = kv_client::blocking::Client::builder().socket(server.socket()).build()?;
    /// use std::time::Duration;
    /// let products = client.cache("product").typed::<String>(kv_client::SchemaVersion(1));
    /// let mut asked = 0;
    /// for _ in 0..2 {
    ///     let none = products.entry("no-such-thing").negative_ttl(Duration::from_secs(5)).find_or_load(|_fill| {
    ///         asked += 1;
    ///         Ok::<_, std::io::Error>(None)
    ///     })?;
    ///     assert_eq!(none, None);
    /// }
    /// assert_eq!(asked, 1);
    /// # Ok::<(), kv_client::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`Cache::get_or_load`].
    pub fn find_or_load<E: Into<AnyError>>(
        self,
        loader: impl FnOnce(&Fill<T>) -> Result<Option<T>, E>,
    ) -> Result<Option<T>> {
        self.codec.check_negatives()?;
        let glance =
            self.cache.glance(&self.cache.looker(self.codec, true), &self.key, self.options.refresh_ahead);
        self.resolve(true, glance, loader)
    }

    /// Loads although the value is there, and stores it; callers that do so at once share one load.
    ///
    /// ```
    /// # let server = kvd::testing::server();
    /// # let client = kv_client::blocking::Client::builder().socket(server.socket()).build()?;
    /// let products = client.cache("product");
    /// products.put("42", "rocket", None)?;
    /// let fresh = products.entry("42").refresh(|_fill| Ok::<_, std::io::Error>(b"comet".to_vec()))?;
    /// assert_eq!(fresh, b"comet");
    /// # Ok::<(), kv_client::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`Cache::get_or_load`].
    pub fn refresh<E: Into<AnyError>>(self, loader: impl FnOnce(&Fill<T>) -> Result<T, E>) -> Result<T> {
        let seen = match self.cache.describe(&self.key) {
            // What is loaded makes it.
            Err(error) if error.kind() == ErrorKind::UnknownCache => None,
            seen => seen?,
        };
        let except = seen.map(|entry| entry.version);
        there(self.resolve(false, Glance::Load { stale: None, except }, |fill| loader(fill).map(Some))?)
    }

    fn resolve<E: Into<AnyError>>(
        self,
        takes_negatives: bool,
        glance: Glance<T>,
        loader: impl FnOnce(&Fill<T>) -> Result<Option<T>, E>,
    ) -> Result<Option<T>> {
        if let Some(timeout) = self.options.soft_timeout.or(self.options.hard_timeout) {
            return Err(Error::invalid(format!(
                "a timeout of {timeout:?} for a loader that runs in the caller's thread; use get_or_load_detached"
            )));
        }
        let EntryBuilder { cache, codec, key, options, cache_if } = self;
        let load =
            Load { cache: &cache, codec, key: &key, options: &options, takes_negatives, is_detached: false };
        let run = runner(load, cache_if, |fill: Fill<T>| loader(&fill));
        let takes = |bytes: &[u8]| load.takes(bytes);
        load.resolve(glance, |course, flight| course.fly(flight, takes, run))
    }
}

impl<T: 'static> EntryBuilder<Cache, T> {
    /// As [`get_or_load`](EntryBuilder::get_or_load), with the loader in a thread of its own, at most 64 at once: timeouts hold, a stale value
    /// is served while it is reloaded, and a load ahead of the end holds up nobody. Beyond 64 a stale value is served without being
    /// reloaded; where there is none, the loader runs in the caller's thread.
    ///
    /// ```
    /// # let server = kvd::testing::server();
    /// # let client = kv_client::blocking::Client::builder().socket(server.socket()).build()?;
    /// use std::time::Duration;
    /// let page = client
    ///     .cache("page")
    ///     .entry("/")
    ///     .ttl(Duration::from_secs(60))
    ///     .hard_timeout(Duration::from_secs(2))
    ///     .get_or_load_detached(|_fill| Ok::<_, std::io::Error>(b"<h1>Toys</h1>".to_vec()))?;
    /// assert_eq!(page, b"<h1>Toys</h1>");
    /// # Ok::<(), kv_client::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`Cache::get_or_load`], and [`ErrorKind::Timeout`](crate::ErrorKind::Timeout) after the hard timeout.
    pub fn get_or_load_detached<E: Into<AnyError> + 'static>(
        self,
        loader: impl FnOnce(Fill<T>) -> Result<T, E> + Send + 'static,
    ) -> Result<T> {
        let EntryBuilder { cache, codec, key, options, cache_if } = self;
        let glance = cache.glance(&cache.looker(codec, false), &key, options.refresh_ahead);
        let run = Owned { cache: cache.clone(), codec, key: key.clone(), options: options.clone() };
        let load = Load { cache: &cache, codec, key: &key, options: &options, ..run.load() };
        let fly = move |course: Course, flight: &Flight| {
            let load = run.load();
            let run = runner(load, cache_if, move |fill| loader(fill).map(Some));
            course.fly(flight, |bytes| load.takes(bytes), run)
        };
        there(load.resolve_detached(glance, fly)?)
    }
}

/// A load as its parts, borrowed.
struct Load<'a, T> {
    cache: &'a Cache,
    codec: Codec<T>,
    key: &'a [u8],
    options: &'a LoadOptions,
    takes_negatives: bool,
    /// In a thread of its own.
    is_detached: bool,
}

impl<T> Clone for Load<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Load<'_, T> {}

/// The same, for a thread of its own.
struct Owned<T> {
    cache: Cache,
    codec: Codec<T>,
    key: Vec<u8>,
    options: LoadOptions,
}

impl<T> Owned<T> {
    fn load(&self) -> Load<'_, T> {
        let Owned { cache, codec, key, options } = self;
        Load { cache, codec: *codec, key, options, takes_negatives: false, is_detached: true }
    }
}

/// The caller's loader, with all that happens around it.
fn runner<'a, T, E: Into<AnyError>>(
    load: Load<'a, T>,
    cache_if: Option<Box<dyn FnOnce(&T) -> bool + Send>>,
    loader: impl FnOnce(Fill<T>) -> Result<Option<T>, E> + 'a,
) -> impl FnOnce(Option<Arc<[u8]>>, u64) -> Result<Loaded> + 'a
where
    T: 'a,
{
    move |stale, lease| {
        let name = load.cache.name();
        let fill = Fill::new(load.codec, stale);
        let _span = tracing::debug_span!("load", cache = name).entered();
        let within = Chain::current().loading(name, [(load.key, lease)]).enter();
        let began = Instant::now();
        let loaded = loader(fill.clone());
        drop(within);
        let took = began.elapsed();
        load.cache.seat.loads().loaded(loaded.is_ok());
        let ok = loaded.is_ok();
        load.cache.client.settings().observer.observe(&Event::Loaded { cache: name, took, ok });
        let value = loaded.map_err(|error| loader_failed(name, load.key, Arc::from(error.into())))?;
        let keep = match (cache_if, &value) {
            (Some(keep), Some(value)) => keep(value),
            (Some(_), None) | (None, _) => true,
        };
        conclude(value.as_ref(), &fill, load.codec, load.options, keep, took)
    }
}

/// Where a loader runs.
enum Room {
    /// In its caller's thread, as was asked for.
    Here,
    /// In a thread of its own.
    Elsewhere(Place),
    /// There are as many threads as may be: in its caller's, if that cannot do without.
    None,
}

impl<T> Load<'_, T> {
    fn looker(&self) -> Looker<'_, T> {
        self.cache.looker(self.codec, self.takes_negatives)
    }

    fn wait(&self) -> Duration {
        self.options.wait.unwrap_or_else(|| lock_wait(self.cache.client.op_timeout())).min(LEASE_WAIT_MAX)
    }

    fn course(&self, except: Option<Version>, chain: &Chain, wait: Duration) -> Course {
        let answer_within = self.cache.client.op_timeout();
        Course {
            cache: self.cache.clone(),
            key: self.key.to_vec(),
            options: self.options.clone(),
            except,
            chain: chain.clone(),
            wait,
            answer_within,
        }
    }

    /// After a wait in vain: what is left of a call's time does for the question whether the lease is free by now.
    fn last_course(&self, except: Option<Version>, chain: &Chain) -> Course {
        let answer_within = last_answer_within(self.cache.client.op_timeout(), self.wait());
        Course { answer_within, ..self.course(except, chain, Duration::ZERO) }
    }

    /// A value for this caller; `None`: it does not take it.
    fn serve(&self, served: &Served) -> Option<Option<T>> {
        let value = self.looker().take(&served.bytes)?;
        self.looker().hit(served.source, served.is_stale);
        served.note(self.cache.scope.as_ref());
        Some(value)
    }

    /// Where its loader will run. `is_awaited`: somebody waits for what it loads.
    fn room(&self, is_awaited: bool) -> Room {
        match self.is_detached.then(|| self.cache.client.here().crew.place(is_awaited)) {
            None => Room::Here,
            Some(Some(place)) => Room::Elsewhere(place),
            Some(None) => Room::None,
        }
    }

    fn under_way(&self) -> bool {
        self.cache.client.here().flights.is_under_way(self.cache.seat.id(), self.key)
    }

    /// Whether stored bytes are a value to this caller.
    fn takes(&self, bytes: &[u8]) -> bool {
        match decode(self.codec, bytes, &self.cache.seat, self.cache.client.settings()) {
            Some(Decoded::Value(_)) => true,
            Some(Decoded::Negative) => self.takes_negatives,
            None => false,
        }
    }

    /// Loads in this thread.
    fn resolve(&self, glance: Glance<T>, fly: impl FnOnce(&Course, &Flight) -> Landing) -> Result<Option<T>> {
        let mut fly = Some(fly);
        self.go(glance, |course, lead, _room| {
            let fly = fly.take().expect("a load is flown once");
            lead.land(fly(&course, &lead.flight));
        })
    }

    /// Loads in a thread of its own, while there are few of them.
    fn resolve_detached(
        &self,
        glance: Glance<T>,
        fly: impl FnOnce(Course, &Flight) -> Landing + Send + 'static,
    ) -> Result<Option<T>> {
        let mut fly = Some(fly);
        self.go(glance, |course, lead, room| {
            let fly = fly.take().expect("a load is flown once");
            let fly = move || {
                let _within = course.chain.clone().enter();
                lead.land(fly(course, &lead.flight));
            };
            match room {
                Room::Here | Room::None => fly(),
                // Where there is no thread, the lead goes with the closure, and says so to who waits.
                Room::Elsewhere(place) => place.run(fly).unwrap_or_else(|error| {
                    tracing::warn!(%error, "no thread for a load");
                }),
            }
        })
    }

    /// What both have in common. `set_off` flies a course, here or in another thread, and lands its lead.
    fn go(&self, glance: Glance<T>, mut set_off: impl FnMut(Course, Lead, Room)) -> Result<Option<T>> {
        let name = self.cache.name();
        match glance {
            Glance::There { value, refresh: None } => Ok(value),
            Glance::There { value, refresh: Some(version) } => {
                Ok(self.refresh_ahead(version, &mut set_off).unwrap_or(value))
            }
            Glance::Load { stale, except } => {
                self.options.check()?;
                let chain = Chain::current();
                chain.check(name, self.key)?;
                let loaded = self.load(stale, except, &chain, &mut set_off)?;
                loaded.ok_or_else(|| Error::Codec {
                    message: format!(
                        "key {} of cache {name} is no value of this type",
                        self.key.escape_ascii()
                    ),
                })
            }
        }
    }

    /// Reloads what is there and will do. `None`: others do, or it failed, or it is under way.
    fn refresh_ahead(
        &self,
        version: Version,
        set_off: &mut impl FnMut(Course, Lead, Room),
    ) -> Option<Option<T>> {
        let chain = Chain::current();
        if self.under_way() || !chain.is_empty() {
            return None;
        }
        let room = self.room(false);
        if matches!(room, Room::None) {
            return None;
        }
        let lead = self.board().ok()?;
        self.cache.seat.loads().refresh();
        let flight = Arc::clone(&lead.flight);
        set_off(self.course(Some(version), &chain, Duration::ZERO), lead, room);
        match flight.landing()? {
            Landing::Value(served) | Landing::Overtaken(served) => self.serve(&served),
            Landing::Failed(error) => {
                tracing::debug!(cache = self.cache.name(), %error, "a load ahead of the end failed");
                None
            }
        }
    }

    /// Leads a load of the key, or finds whom to wait for.
    fn board(&self) -> Result<Lead, Arc<Flight>> {
        let flights = &self.cache.client.here().flights;
        match flights.board(self.cache.seat.id(), self.key, Flight::default) {
            Boarded::Joined(flight) => Err(flight),
            Boarded::Led(flight) => Ok(self.lead(flight)),
        }
    }

    fn lead(&self, flight: Arc<Flight>) -> Lead {
        Lead { cache: self.cache.clone(), key: self.key.to_vec(), flight }
    }

    /// Loads, or waits for who does: a value that the caller takes, or `None`.
    fn load(
        &self,
        mut stale: Option<Served>,
        mut except: Option<Version>,
        chain: &Chain,
        set_off: &mut impl FnMut(Course, Lead, Room),
    ) -> Result<Option<Option<T>>> {
        let (here, wait) = (self.cache.client.here(), self.wait());
        let until = Instant::now() + wait;
        let gave_up = |leads: bool| {
            let waited = self.options.hard_timeout.filter(|hard| leads || *hard < wait).unwrap_or(wait);
            Error::Timeout { waited, maybe_applied: false }
        };
        let left = || until.saturating_duration_since(Instant::now());
        let mut overtaken = 0;
        loop {
            let room = self.room(stale.is_none() || self.options.soft_timeout.is_some());
            if let Some(served) = stale.as_ref().filter(|_| self.under_way() || matches!(room, Room::None)) {
                return Ok(self.serve(served));
            }
            if here.outage.is_open()
                && let Some(served) = here.outage.standby.get(self.cache.seat.id(), self.key)
                && let Some(value) = self.serve(&served)
            {
                return Ok(Some(value));
            }
            // Who is in the middle of something waits in the daemon alone.
            let boarded = if chain.is_empty() { self.board() } else { Ok(self.lead(Arc::default())) };
            let (leads, flight) = match boarded {
                Err(flight) => {
                    drop(room);
                    self.cache.seat.loads().coalesced();
                    let event = Event::Coalesced { cache: self.cache.name() };
                    self.cache.client.settings().observer.observe(&event);
                    (false, flight)
                }
                Ok(lead) => {
                    let flight = Arc::clone(&lead.flight);
                    set_off(self.course(except, chain, left()), lead, room);
                    (true, flight)
                }
            };
            let patience = Patience::new(leads, stale.take(), self.options, left());
            match flight.wait(&patience) {
                Turn::Take(served) => match self.serve(&served) {
                    // Of another schema, or "there is none": once more, without it.
                    None if !leads && except.is_none() => except = served.version,
                    value => return Ok(value),
                },
                Turn::LookAgain(served) => {
                    overtaken += 1;
                    if overtaken > OVERTAKEN_MAX {
                        return Ok(self.serve(&served));
                    }
                    match self.cache.glance(&self.looker(), self.key, self.options.refresh_ahead) {
                        Glance::There { value, .. } => return Ok(Some(value)),
                        Glance::Load { stale: again, except: other } => (stale, except) = (again, other),
                    }
                }
                Turn::Fail(error) => return Err(error),
                Turn::GiveUp | Turn::Wait(_)
                    if leads || patience.has_run_out() || self.options.on_busy == OnBusy::Fail =>
                {
                    return Err(gave_up(leads));
                }
                // In vain: it loads for itself.
                Turn::GiveUp | Turn::Wait(_) => {
                    let lead = self.lead(Arc::default());
                    let flight = Arc::clone(&lead.flight);
                    set_off(self.last_course(except, chain), lead, self.room(true));
                    return match flight.wait(&Patience::new(true, None, self.options, Duration::ZERO)) {
                        Turn::Take(served) | Turn::LookAgain(served) => Ok(self.serve(&served)),
                        Turn::Fail(error) => Err(error),
                        Turn::GiveUp | Turn::Wait(_) => Err(gave_up(true)),
                    };
                }
            }
        }
    }
}
