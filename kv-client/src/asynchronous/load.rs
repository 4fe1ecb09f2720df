//! Loading what is not there, async: a loader runs in a task of its own, whoever goes on waiting for it.
//!
//! So a caller that is dropped harms nobody: the load goes on, fills, and gives its lease back. One task of a process leads a load, those that
//! want the same key meanwhile wait for it; the daemon sees to it that one process loads. A load inside a load waits in the
//! daemon alone, which knows who waits for whom. Called by applications through [`Cache`] and [`EntryBuilder`].

use std::sync::Arc;
use std::time::{Duration, Instant};

use kv_proto::Version;
use kv_proto::limits::LEASE_WAIT_MAX;
use kv_proto::wire::ErrorKind;
use tracing::Instrument as _;

use super::cache::Cache;
use super::flight::{Course, Flight, Lead, Run};
use crate::codec::{Codec, Decoded};
use crate::error::{Error, Result};
use crate::limits::OVERTAKEN_MAX;
use crate::load::chain::{Chain, InChain};
use crate::load::course::{Patience, Served, Turn, conclude, decode, last_answer_within, loader_failed};
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
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), kv_client::Error> {
    /// # let server = kvd::testing::server();
    /// # let client = kv_client::Client::builder().socket(server.socket()).build().await?;
    /// use std::time::Duration;
    /// let html = client
    ///     .cache("page")
    ///     .entry("/product/42")
    ///     .ttl(Duration::from_secs(60))
    ///     .stale_for(Duration::from_secs(600))
    ///     .soft_timeout(Duration::from_millis(50))
    ///     .hard_timeout(Duration::from_secs(2))
    ///     .tag("sku:42")
    ///     .get_or_load(|_fill| async { Ok::<_, kv_client::Error>(b"<h1>rocket</h1>".to_vec()) })
    ///     .await?;
    /// assert_eq!(html, b"<h1>rocket</h1>");
    /// # Ok(())
    /// # }
    /// ```
    pub fn entry(&self, key: impl AsRef<[u8]>) -> EntryBuilder<Cache, Vec<u8>> {
        EntryBuilder::new(self.clone(), Codec::plain(), key.as_ref())
    }

    /// The value of a key; if it is not there, what the loader makes of it, stored with this life. Of all processes of the
    /// host that miss at once one loads, and the others get its value.
    ///
    /// While the daemon is away the loader runs, once a key and process. The loader runs in a task of its own, and to its end
    /// also when this future is dropped.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), kv_client::Error> {
    /// # let server = kvd::testing::server();
    /// # let client = kv_client::Client::builder().socket(server.socket()).build().await?;
    /// use std::time::Duration;
    /// let products = client.cache("product");
    /// let load = |_| async { Ok::<_, std::io::Error>(b"rocket".to_vec()) }; // ask the database
    /// assert_eq!(products.get_or_load("42", Duration::from_secs(300), load).await?, b"rocket");
    /// assert_eq!(products.get("42").await?.as_deref(), Some(&b"rocket"[..]));
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Error::Loader`] when the loader failed and nothing stale could be served instead;
    /// [`ErrorKind::Deadlock`](crate::ErrorKind::Deadlock) when the loader comes back to a key that it is loading; see also [`Error`].
    pub async fn get_or_load<E, F>(
        &self,
        key: impl AsRef<[u8]>,
        ttl: impl Into<Option<Duration>>,
        loader: impl FnOnce(Fill<Vec<u8>>) -> F + Send + 'static,
    ) -> Result<Vec<u8>>
    where
        E: Into<AnyError> + 'static,
        F: Future<Output = Result<Vec<u8>, E>> + Send + 'static,
    {
        self.load_as(Codec::plain(), key.as_ref(), ttl.into(), loader).await
    }

    /// As `get_or_load`, of any type. What is there needs no entry.
    #[inline]
    pub(super) async fn load_as<T: 'static, E, F>(
        &self,
        codec: Codec<T>,
        key: &[u8],
        ttl: Option<Duration>,
        loader: impl FnOnce(Fill<T>) -> F + Send + 'static,
    ) -> Result<T>
    where
        E: Into<AnyError> + 'static,
        F: Future<Output = Result<T, E>> + Send + 'static,
    {
        let glance = self.glance(&self.looker(codec, false), key, None);
        if let Glance::There { value: Some(value), refresh: None } = glance {
            return Ok(value);
        }
        let options = LoadOptions::with_ttl(ttl);
        let entry = EntryBuilder { cache: self.clone(), codec, key: key.to_vec(), options, cache_if: None };
        there(entry.resolve(false, glance, |fill| some(loader(fill))).await?)
    }

    #[inline]
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

async fn some<T, E>(value: impl Future<Output = Result<T, E>>) -> Result<Option<T>, E> {
    value.await.map(Some)
}

impl<T: 'static> EntryBuilder<Cache, T> {
    /// The value; if it is not there, what the loader makes of it, which is stored.
    ///
    /// A stale value is served while it is reloaded, by this process or another one; see
    /// [`soft_timeout`](EntryBuilder::soft_timeout) for waiting a little.
    ///
    /// # Errors
    /// As [`Cache::get_or_load`]; [`ErrorKind::Timeout`](crate::ErrorKind::Timeout) after the hard timeout; and
    /// [`Error::Invalid`] for options that make no sense together.
    pub async fn get_or_load<E, F>(self, loader: impl FnOnce(Fill<T>) -> F + Send + 'static) -> Result<T>
    where
        E: Into<AnyError> + 'static,
        F: Future<Output = Result<T, E>> + Send + 'static,
    {
        let glance =
            self.cache.glance(&self.cache.looker(self.codec, false), &self.key, self.options.refresh_ahead);
        there(self.resolve(false, glance, |fill| some(loader(fill))).await?)
    }

    /// As [`get_or_load`](EntryBuilder::get_or_load), for what there may be none of: "there is none" is remembered for
    /// [`negative_ttl`](EntryBuilder::negative_ttl). For typed caches.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), kv_client::Error> {
    /// # let server = kvd::testing::server();
    /// # let client = kv_client::Client::builder().socket(server.socket()).build().await?;
    /// use std::time::Duration;
    /// let products = client.cache("product").typed::<String>(kv_client::SchemaVersion(1));
    /// for answer in [Ok(None), Err("it is not asked again")] {
    ///     let entry = products.entry("no-such-thing").negative_ttl(Duration::from_secs(5));
    ///     assert_eq!(entry.find_or_load(move |_fill| async move { answer }).await?, None);
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`Cache::get_or_load`].
    pub async fn find_or_load<E, F>(
        self,
        loader: impl FnOnce(Fill<T>) -> F + Send + 'static,
    ) -> Result<Option<T>>
    where
        E: Into<AnyError> + 'static,
        F: Future<Output = Result<Option<T>, E>> + Send + 'static,
    {
        self.codec.check_negatives()?;
        let glance =
            self.cache.glance(&self.cache.looker(self.codec, true), &self.key, self.options.refresh_ahead);
        self.resolve(true, glance, loader).await
    }

    /// Loads although the value is there, and stores it; callers that do so at once share one load.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), kv_client::Error> {
    /// # let server = kvd::testing::server();
    /// # let client = kv_client::Client::builder().socket(server.socket()).build().await?;
    /// let products = client.cache("product");
    /// products.put("42", "rocket", None).await?;
    /// let load = |_fill| async { Ok::<_, std::io::Error>(b"comet".to_vec()) };
    /// assert_eq!(products.entry("42").refresh(load).await?, b"comet");
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`Cache::get_or_load`].
    pub async fn refresh<E, F>(self, loader: impl FnOnce(Fill<T>) -> F + Send + 'static) -> Result<T>
    where
        E: Into<AnyError> + 'static,
        F: Future<Output = Result<T, E>> + Send + 'static,
    {
        let seen = match self.cache.describe(&self.key).await {
            // What is loaded makes it.
            Err(error) if error.kind() == ErrorKind::UnknownCache => None,
            seen => seen?,
        };
        let except = seen.map(|entry| entry.version);
        let glance = Glance::Load { stale: None, except };
        there(self.resolve(false, glance, |fill| some(loader(fill))).await?)
    }

    async fn resolve<E, F>(
        self,
        takes_negatives: bool,
        glance: Glance<T>,
        loader: impl FnOnce(Fill<T>) -> F + Send + 'static,
    ) -> Result<Option<T>>
    where
        E: Into<AnyError> + 'static,
        F: Future<Output = Result<Option<T>, E>> + Send + 'static,
    {
        let EntryBuilder { cache, codec, key, options, cache_if } = self;
        let chain = Chain::current();
        let refresh = match glance {
            Glance::There { value, refresh: None } => return Ok(value),
            Glance::There { value, refresh: Some(version) } => Ok((value, version)),
            Glance::Load { stale, except } => {
                options.check()?;
                chain.check(cache.name(), &key)?;
                Err((stale, except))
            }
        };
        let run = runner(&cache, codec, &key, &options, chain.clone(), cache_if, loader);
        let load = Load { cache: &cache, codec, key: &key, options: &options, takes_negatives, chain };
        match refresh {
            Ok((value, version)) => {
                load.refresh_ahead(version, run);
                Ok(value)
            }
            Err((stale, except)) => load.load(stale, except, run).await,
        }
    }
}

/// The caller's loader, with all that happens around it.
fn runner<T: 'static, E, F>(
    cache: &Cache,
    codec: Codec<T>,
    key: &[u8],
    options: &LoadOptions,
    chain: Chain,
    cache_if: Option<Box<dyn FnOnce(&T) -> bool + Send>>,
    loader: impl FnOnce(Fill<T>) -> F + Send + 'static,
) -> Run
where
    E: Into<AnyError>,
    F: Future<Output = Result<Option<T>, E>> + Send + 'static,
{
    let (cache, key, options) = (cache.clone(), key.to_vec(), options.clone());
    Box::new(move |stale, lease| {
        let fill = Fill::new(codec, stale);
        let span = tracing::debug_span!("load", cache = cache.name());
        let within = chain.loading(cache.name(), [(&key[..], lease)]);
        let future = async move {
            let began = Instant::now();
            let loaded = InChain::new(within, loader(fill.clone())).await;
            let (took, ok) = (began.elapsed(), loaded.is_ok());
            cache.seat.loads().loaded(ok);
            cache.client.settings().observer.observe(&Event::Loaded { cache: cache.name(), took, ok });
            let value = loaded.map_err(|error| loader_failed(cache.name(), &key, Arc::from(error.into())))?;
            let keep = match (cache_if, &value) {
                (Some(keep), Some(value)) => keep(value),
                (Some(_), None) | (None, _) => true,
            };
            conclude(value.as_ref(), &fill, codec, &options, keep, took)
        };
        Box::pin(future.instrument(span))
    })
}

/// A load as its parts.
struct Load<'a, T> {
    cache: &'a Cache,
    codec: Codec<T>,
    key: &'a [u8],
    options: &'a LoadOptions,
    takes_negatives: bool,
    chain: Chain,
}

impl<T: 'static> Load<'_, T> {
    fn looker(&self) -> Looker<'_, T> {
        self.cache.looker(self.codec, self.takes_negatives)
    }

    fn wait(&self) -> Duration {
        self.options.wait.unwrap_or_else(|| lock_wait(self.cache.client.op_timeout())).min(LEASE_WAIT_MAX)
    }

    /// A value for this caller; `None`: it does not take it.
    fn serve(&self, served: &Served) -> Option<Option<T>> {
        let value = self.looker().take(&served.bytes)?;
        self.looker().hit(served.source, served.is_stale);
        served.note(self.cache.scope.as_ref());
        Some(value)
    }

    fn under_way(&self) -> bool {
        self.cache.client.here().flights.is_under_way(self.cache.seat.id(), self.key)
    }

    /// Leads a load of the key, or finds whom to wait for. Who is in the middle of something waits in the daemon alone.
    fn board(&self) -> Result<Lead, Arc<Flight>> {
        let lead = |flight| Lead { cache: self.cache.clone(), key: self.key.to_vec(), flight };
        if !self.chain.is_empty() {
            return Ok(lead(Arc::default()));
        }
        let flights = &self.cache.client.here().flights;
        match flights.board(self.cache.seat.id(), self.key, Flight::default) {
            Boarded::Joined(flight) => Err(flight),
            Boarded::Led(flight) => Ok(lead(flight)),
        }
    }

    /// Flies in a task of its own.
    fn set_off(
        &self,
        lead: Lead,
        except: Option<Version>,
        wait: Duration,
        answer_within: Duration,
        run: Run,
    ) {
        let course = Course {
            cache: self.cache.clone(),
            key: self.key.to_vec(),
            options: self.options.clone(),
            except,
            chain: self.chain.clone(),
            wait,
            answer_within,
        };
        let (codec, takes_negatives, cache) = (self.codec, self.takes_negatives, self.cache.clone());
        let takes = move |bytes: &[u8]| match decode(codec, bytes, &cache.seat, cache.client.settings()) {
            Some(Decoded::Value(_)) => true,
            Some(Decoded::Negative) => takes_negatives,
            None => false,
        };
        tokio::spawn(async move {
            let landing = course.fly(&lead.flight, takes, run).await;
            lead.land(landing);
        });
    }

    /// Reloads what is there and will do, beside its caller; not if others do.
    fn refresh_ahead(&self, version: Version, run: Run) {
        if self.under_way() || !self.chain.is_empty() {
            return;
        }
        if let Ok(lead) = self.board() {
            self.cache.seat.loads().refresh();
            self.set_off(lead, Some(version), Duration::ZERO, self.cache.client.op_timeout(), run);
        }
    }

    /// Loads, or waits for who does.
    async fn load(&self, stale: Option<Served>, except: Option<Version>, run: Run) -> Result<Option<T>> {
        let value = self.load_any(stale, except, run).await?;
        value.ok_or_else(|| {
            let (key, name) = (self.key.escape_ascii(), self.cache.name());
            Error::Codec { message: format!("key {key} of cache {name} is no value of this type") }
        })
    }

    /// A value that the caller takes, or `None`.
    async fn load_any(
        &self,
        mut stale: Option<Served>,
        mut except: Option<Version>,
        run: Run,
    ) -> Result<Option<Option<T>>> {
        let (here, wait) = (self.cache.client.here(), self.wait());
        let until = Instant::now() + wait;
        let left = || until.saturating_duration_since(Instant::now());
        let gave_up = |leads: bool| {
            let waited = self.options.hard_timeout.filter(|hard| leads || *hard < wait).unwrap_or(wait);
            Error::Timeout { waited, maybe_applied: false }
        };
        let mut run = Some(run);
        let mut overtaken = 0;
        loop {
            if let Some(served) = stale.as_ref().filter(|_| self.under_way()) {
                return Ok(self.serve(served));
            }
            if here.outage.is_open()
                && let Some(served) = here.outage.standby.get(self.cache.seat.id(), self.key)
                && let Some(value) = self.serve(&served)
            {
                return Ok(Some(value));
            }
            let (leads, flight) = match self.board() {
                Err(flight) => {
                    self.cache.seat.loads().coalesced();
                    let event = Event::Coalesced { cache: self.cache.name() };
                    self.cache.client.settings().observer.observe(&event);
                    (false, flight)
                }
                Ok(lead) => {
                    let flight = Arc::clone(&lead.flight);
                    self.set_off(
                        lead,
                        except,
                        left(),
                        self.cache.client.op_timeout(),
                        run.take().expect("who has led does not come back here"),
                    );
                    (true, flight)
                }
            };
            let patience = Patience::new(leads, stale.take(), self.options, left());
            match flight.wait(&patience).await {
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
                Turn::GiveUp | Turn::Wait(_) => {
                    let may_load = !leads && !patience.has_run_out() && self.options.on_busy == OnBusy::Load;
                    let own = run.take().filter(|_| may_load);
                    let Some(run) = own else { return Err(gave_up(leads)) };
                    return self.load_for_itself(except, run).await;
                }
            }
        }
    }

    /// After a wait in vain: it loads for itself, unless the lease is free by now.
    async fn load_for_itself(&self, except: Option<Version>, run: Run) -> Result<Option<Option<T>>> {
        let flight = Arc::<Flight>::default();
        let lead = Lead { cache: self.cache.clone(), key: self.key.to_vec(), flight: Arc::clone(&flight) };
        // What is left of a call's time does for the question.
        let within = last_answer_within(self.cache.client.op_timeout(), self.wait());
        self.set_off(lead, except, Duration::ZERO, within, run);
        match flight.wait(&Patience::new(true, None, self.options, Duration::ZERO)).await {
            Turn::Take(served) | Turn::LookAgain(served) => Ok(self.serve(&served)),
            Turn::Fail(error) => Err(error),
            Turn::GiveUp | Turn::Wait(_) => {
                let waited = self.options.hard_timeout.unwrap_or_else(|| self.wait());
                Err(Error::Timeout { waited, maybe_applied: false })
            }
        }
    }
}
