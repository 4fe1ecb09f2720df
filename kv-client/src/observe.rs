//! What a client tells whoever wants to know: events, as they happen.
//!
//! An [`Observer`] is called in the thread where it happens, so it must be quick and must not call the client. Keys are not
//! told: they may be somebody's session. With the feature `metrics` there is one that counts into the `metrics` crate.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::error::Error;

/// Something that happened in a client.
#[derive(Debug)]
#[non_exhaustive]
pub enum Event<'a> {
    /// A `get_or_load` was answered without loading.
    Hit {
        /// The cache.
        cache: &'a str,
        /// From where.
        source: Source,
        /// It was past its life.
        stale: bool,
    },
    /// A loader ended.
    Loaded {
        /// The cache.
        cache: &'a str,
        /// How long it took.
        took: Duration,
        /// Whether it gave a value.
        ok: bool,
    },
    /// What was loaded was not stored, because something newer happened to the key, or the lease was lost.
    LeaseLost {
        /// The cache.
        cache: &'a str,
    },
    /// What was loaded could not be stored: it is too large, has too many tags, or the daemon failed. Its caller has got it,
    /// and the next one will load it again.
    NotStored {
        /// The cache.
        cache: &'a str,
        /// Why.
        because: &'a Error,
    },
    /// A caller got what another one loaded.
    Coalesced {
        /// The cache.
        cache: &'a str,
    },
    /// A read missed because the daemon is away.
    OutageMiss {
        /// The cache.
        cache: &'a str,
    },
    /// A stored value was of another schema version, or could not be decoded; it counts as a miss.
    Undecodable {
        /// The cache.
        cache: &'a str,
    },
    /// The daemon is away, and calls fail at once from here on.
    OutageBegan {
        /// What the last one that waited got.
        because: &'a Error,
    },
    /// It is back.
    OutageOver {
        /// How long it was away for this process.
        after: Duration,
    },
}

/// Where a value came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Source {
    /// Shared memory: no request.
    Shared,
    /// The daemon, by a request.
    Socket,
    /// The caller's own loader.
    Loader,
    /// This process's own memory, while the daemon is away.
    Standby,
}

impl Source {
    /// Its label in metrics.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Source::Shared => "shared",
            Source::Socket => "socket",
            Source::Loader => "loader",
            Source::Standby => "standby",
        }
    }
}

/// Is told what happens in a client.
///
/// ```
/// # let server = kvd::testing::server();
/// use std::sync::Arc;
/// use std::sync::atomic::{AtomicU64, Ordering};
/// use kv_client::{Event, Observer, blocking::Client};
///
/// #[derive(Default)]
/// struct Loads(AtomicU64);
/// impl Observer for Loads {
///     fn observe(&self, event: &Event<'_>) {
///         if let Event::Loaded { .. } = event {
///             self.0.fetch_add(1, Ordering::Relaxed);
///         }
///     }
/// }
///
/// let loads = Arc::new(Loads::default());
/// let client = Client::builder().socket(server.socket()).observer(Arc::clone(&loads)).build()?;
/// client.cache("product").get_or_load("42", None, |_fill| Ok::<_, kv_client::Error>(b"rocket".to_vec()))?;
/// assert_eq!(loads.0.load(Ordering::Relaxed), 1);
/// # Ok::<(), kv_client::Error>(())
/// ```
pub trait Observer: Send + Sync {
    /// Something happened. Must return soon, and must not call the client.
    fn observe(&self, event: &Event<'_>);
}

impl<O: Observer + ?Sized> Observer for Arc<O> {
    fn observe(&self, event: &Event<'_>) {
        (**self).observe(event);
    }
}

/// The observer of a client, if it has one.
#[derive(Clone, Default)]
pub(crate) struct Observed(Option<Arc<dyn Observer>>);

impl Observed {
    pub(crate) fn by(observer: impl Observer + 'static) -> Observed {
        Observed(Some(Arc::new(observer)))
    }

    #[inline]
    pub(crate) fn observe(&self, event: &Event<'_>) {
        if let Some(observer) = &self.0 {
            observer.observe(event);
        }
    }
}

impl fmt::Debug for Observed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "an observer" } else { "nobody" })
    }
}

/// Counts into the `metrics` crate, whatever recorder the application has installed:
/// `kv_client_hits_total{cache,source,stale}`, `kv_client_loads_total{cache,outcome}`, `kv_client_load_seconds{cache}`,
/// `kv_client_leases_lost_total{cache}`, `kv_client_not_stored_total{cache}`, `kv_client_coalesced_total{cache}`, `kv_client_outage_misses_total{cache}`,
/// `kv_client_undecodable_total{cache}`, `kv_client_outages_total`, `kv_client_daemon_away`.
///
/// ```
/// # let server = kvd::testing::server();
/// let client = kv_client::blocking::Client::builder()
///     .socket(server.socket())
///     .observer(kv_client::MetricsObserver)
///     .build()?;
/// # Ok::<(), kv_client::Error>(())
/// ```
#[cfg(feature = "metrics")]
#[derive(Debug, Clone, Copy, Default)]
pub struct MetricsObserver;

#[cfg(feature = "metrics")]
impl Observer for MetricsObserver {
    fn observe(&self, event: &Event<'_>) {
        use metrics::{counter, gauge, histogram};
        let name = |cache: &str| cache.to_owned();
        match event {
            Event::Hit { cache, source, stale } => {
                let stale = if *stale { "true" } else { "false" };
                counter!("kv_client_hits_total", "cache" => name(cache), "source" => source.label(), "stale" => stale)
                    .increment(1);
            }
            Event::Loaded { cache, took, ok } => {
                let outcome = if *ok { "loaded" } else { "failed" };
                counter!("kv_client_loads_total", "cache" => name(cache), "outcome" => outcome).increment(1);
                histogram!("kv_client_load_seconds", "cache" => name(cache)).record(took.as_secs_f64());
            }
            Event::LeaseLost { cache } => {
                counter!("kv_client_leases_lost_total", "cache" => name(cache)).increment(1);
            }
            Event::NotStored { cache, .. } => {
                counter!("kv_client_not_stored_total", "cache" => name(cache)).increment(1);
            }
            Event::Coalesced { cache } => {
                counter!("kv_client_coalesced_total", "cache" => name(cache)).increment(1);
            }
            Event::OutageMiss { cache } => {
                counter!("kv_client_outage_misses_total", "cache" => name(cache)).increment(1);
            }
            Event::Undecodable { cache } => {
                counter!("kv_client_undecodable_total", "cache" => name(cache)).increment(1);
            }
            Event::OutageBegan { .. } => {
                counter!("kv_client_outages_total").increment(1);
                gauge!("kv_client_daemon_away").set(1.0);
            }
            Event::OutageOver { .. } => gauge!("kv_client_daemon_away").set(0.0),
        }
    }
}
