//! What callers choose: how a client connects and retries, how an item is put.
//!
//! Used by applications and by both clients. Nothing here does I/O.

use std::marker::PhantomData;
use std::path::PathBuf;
use std::time::Duration;

use kv_proto::Version;
use kv_proto::wire::{Condition, Durability, Expiry};

use crate::limits;
use crate::observe::{Observed, Observer};

/// How a client tries again by itself. What it may try again is not a matter of policy: see the crate's documentation.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RetryPolicy {
    /// Most times one call is sent; 1: never again.
    pub sends_max: u32,
    /// First pause before a repetition. It doubles each time, and a random part of it is left out, so that the workers
    /// of a host do not come back together.
    pub pause_first: Duration,
    /// Longest pause.
    pub pause_max: Duration,
}

impl Default for RetryPolicy {
    fn default() -> RetryPolicy {
        RetryPolicy {
            sends_max: 5,
            pause_first: Duration::from_millis(5),
            pause_max: Duration::from_millis(200),
        }
    }
}

impl RetryPolicy {
    /// Every call is sent at most once.
    ///
    /// ```
    /// assert_eq!(kv_client::RetryPolicy::never().sends_max, 1);
    /// ```
    #[must_use]
    pub fn never() -> RetryPolicy {
        RetryPolicy { sends_max: 1, ..RetryPolicy::default() }
    }
}

/// What a [`Builder`] has collected.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    pub(crate) socket: Option<PathBuf>,
    pub(crate) name: String,
    pub(crate) connect_timeout: Duration,
    pub(crate) op_timeout: Duration,
    pub(crate) retry: RetryPolicy,
    pub(crate) restart_grace: Duration,
    pub(crate) idle_connections_max: usize,
    pub(crate) shared_memory: bool,
    pub(crate) on_outage: OnOutage,
    pub(crate) observer: Observed,
}

/// What calls answer while the daemon is away.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnOutage {
    /// Reads miss. `delete`, `expire` and `clear` are kept and delivered when it is back, and answer as if there had been
    /// nothing; other writes report.
    #[default]
    Miss,
    /// Everything reports.
    Error,
}

/// Makes a client: `Builder<blocking::Client>` the blocking one, `Builder<Client>` the async one.
///
/// ```
/// # use std::time::Duration;
/// # let server = kvd::testing::server();
/// use kv_client::{OnOutage, RetryPolicy, blocking::Client};
/// let client = Client::builder()
///     .socket(server.socket())
///     .name("storefront")
///     .connect_timeout(Duration::from_millis(500))
///     .op_timeout(Duration::from_secs(2))
///     .restart_grace(Duration::from_secs(3))
///     .retry(RetryPolicy { sends_max: 3, ..RetryPolicy::default() })
///     .idle_connections_max(4)
///     .shared_memory(true)
///     .on_outage(OnOutage::Error)
///     .build()?;
/// client.ping()?;
/// # Ok::<(), kv_client::Error>(())
/// ```
#[derive(Debug, Clone)]
#[must_use = "a builder does nothing until `build` or `build_lazy`"]
pub struct Builder<C> {
    pub(crate) settings: Settings,
    makes: PhantomData<fn() -> C>,
}

impl<C> Builder<C> {
    pub(crate) fn new() -> Builder<C> {
        let program = std::env::args_os().next().map(PathBuf::from);
        let name = program
            .as_deref()
            .and_then(|path| path.file_name())
            .map(|name| name.to_string_lossy().into_owned());
        let settings = Settings {
            socket: None,
            name: name.unwrap_or_default(),
            connect_timeout: limits::CONNECT_TIMEOUT_DEFAULT,
            op_timeout: limits::OP_TIMEOUT_DEFAULT,
            retry: RetryPolicy::default(),
            restart_grace: limits::RESTART_GRACE_DEFAULT,
            idle_connections_max: limits::IDLE_CONNECTIONS_MAX,
            shared_memory: true,
            on_outage: OnOutage::Miss,
            observer: Observed::default(),
        };
        Builder { settings, makes: PhantomData }
    }

    /// The daemon's socket. Without it: `KVD_SOCKET`, then [`places::search`](crate::places::search).
    pub fn socket(mut self, path: impl Into<PathBuf>) -> Self {
        self.settings.socket = Some(path.into());
        self
    }

    /// What `kvd clients` shows, cut to 64 bytes. Without it: the program's name.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.settings.name = name.into();
        self
    }

    /// How long one attempt to connect may take, hello included; 1 s unless said.
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.settings.connect_timeout = timeout;
        self
    }

    /// How long a call may take altogether, reconnecting and repeating included; 5 s unless said.
    pub fn op_timeout(mut self, timeout: Duration) -> Self {
        self.settings.op_timeout = timeout;
        self
    }

    /// How the client tries again by itself.
    pub fn retry(mut self, policy: RetryPolicy) -> Self {
        self.settings.retry = policy;
        self
    }

    /// How long calls wait for a daemon that was there and is coming back, counted from when its absence was noticed; 2 s
    /// unless said. After that calls fail at once until it is back.
    pub fn restart_grace(mut self, grace: Duration) -> Self {
        self.settings.restart_grace = grace;
        self
    }

    /// Whether caches are read through shared memory where the daemon allows it; yes unless said.
    pub fn shared_memory(mut self, shared: bool) -> Self {
        self.settings.shared_memory = shared;
        self
    }

    /// What calls answer while the daemon is away; [`OnOutage::Miss`] unless said.
    pub fn on_outage(mut self, on_outage: OnOutage) -> Self {
        self.settings.on_outage = on_outage;
        self
    }

    /// Who is told what happens.
    pub fn observer(mut self, observer: impl Observer + 'static) -> Self {
        self.settings.observer = Observed::by(observer);
        self
    }

    /// How many unused connections a client keeps; 32 unless said.
    pub fn idle_connections_max(mut self, connections: usize) -> Self {
        self.settings.idle_connections_max = connections;
        self
    }
}

/// How an item is put.
///
/// ```
/// # let server = kvd::testing::server();
/// # let client = kv_client::blocking::Client::builder().socket(server.socket()).build()?;
/// use std::time::Duration;
/// use kv_client::{PutOptions, PutOutcome};
/// let options = PutOptions::new()
///     .ttl(Duration::from_secs(300))
///     .jitter(0.1)
///     .stale_for(Duration::from_secs(60))
///     .load_cost(Duration::from_millis(12))
///     .tag("sku:42")
///     .tag("theme:space")
///     .if_absent();
/// let outcome = client.cache("product").put_with("42", "rocket", &options)?;
/// assert!(matches!(outcome, PutOutcome::Written { .. }));
/// # Ok::<(), kv_client::Error>(())
/// ```
#[derive(Debug, Clone, Default, PartialEq)]
pub struct PutOptions {
    pub(crate) ttl: Option<Duration>,
    pub(crate) stale_for: Duration,
    pub(crate) load_cost: Duration,
    pub(crate) tags: Vec<Vec<u8>>,
    pub(crate) durability: Option<Durability>,
    pub(crate) condition: Condition,
    pub(crate) jitter: f64,
}

impl PutOptions {
    /// The cache's default life and durability, no tags, unconditional.
    #[must_use]
    pub fn new() -> PutOptions {
        PutOptions::default()
    }

    /// How long it lives. Without it: the cache's default.
    #[must_use]
    pub fn ttl(mut self, ttl: Duration) -> PutOptions {
        self.ttl = Some(ttl);
        self
    }

    /// How long after its expiry it may be served as stale.
    #[must_use]
    pub fn stale_for(mut self, stale_for: Duration) -> PutOptions {
        self.stale_for = stale_for;
        self
    }

    /// What the value cost to make; kept with the item.
    #[must_use]
    pub fn load_cost(mut self, cost: Duration) -> PutOptions {
        self.load_cost = cost;
        self
    }

    /// One more tag to clear it by; at most 8, each up to 64 bytes.
    #[must_use]
    pub fn tag(mut self, tag: impl AsRef<[u8]>) -> PutOptions {
        self.tags.push(tag.as_ref().to_vec());
        self
    }

    /// What the write must outlive before it is acknowledged. Without it: the cache's durability.
    #[must_use]
    pub fn durability(mut self, durability: Durability) -> PutOptions {
        self.durability = Some(durability);
        self
    }

    /// Acknowledged only when it survives power loss.
    #[must_use]
    pub fn durable(self) -> PutOptions {
        self.durability(Durability::Durable)
    }

    /// Only if there is no item; a stale one counts as present.
    #[must_use]
    pub fn if_absent(mut self) -> PutOptions {
        self.condition = Condition::IfAbsent;
        self
    }

    /// Only if the item still has exactly this version.
    #[must_use]
    pub fn if_version(mut self, version: Version) -> PutOptions {
        self.condition = Condition::IfVersion(version);
        self
    }

    /// Shortens the life by a random part of up to this fraction (0.1: lives of 90 to 100 %), so that items put together
    /// do not expire together.
    #[must_use]
    pub fn jitter(mut self, fraction: f64) -> PutOptions {
        self.jitter = fraction;
        self
    }
}

/// A new life for an item.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ttl {
    /// Expires this long from now; its stale life stays as it was.
    After(Duration),
    /// Never expires, or at the cache's longest if it has one.
    Never,
    /// Gone at once.
    Now,
    /// Kept, but stale from now on, until its own expiry and stale life end.
    Stale,
}

impl Ttl {
    pub(crate) fn to_wire(self) -> crate::Result<Expiry> {
        Ok(match self {
            Ttl::After(ttl) => Expiry::After(life_ms(ttl)?),
            Ttl::Never => Expiry::Never,
            Ttl::Now => Expiry::Now,
            Ttl::Stale => Expiry::Stale,
        })
    }
}

/// What `increment` makes where there is nothing yet: the counter begins at `value`, *instead of* adding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Initial {
    /// The first value.
    pub value: i64,
    /// The counter's life, counted from its creation; `None`: the cache's default.
    pub ttl: Option<Duration>,
    /// `None`: the cache's. Holds for every increment, also of a counter that is there.
    pub durability: Option<Durability>,
}

impl Initial {
    /// Begins at `value`, with the cache's default life.
    ///
    /// ```
    /// let initial = kv_client::Initial::value(1).ttl(std::time::Duration::from_secs(60));
    /// assert_eq!(initial.value, 1);
    /// ```
    #[must_use]
    pub fn value(value: i64) -> Initial {
        Initial { value, ttl: None, durability: None }
    }

    /// The counter's life, counted from its creation.
    #[must_use]
    pub fn ttl(mut self, ttl: Duration) -> Initial {
        self.ttl = Some(ttl);
        self
    }

    /// Each increment is acknowledged only when it survives power loss.
    #[must_use]
    pub fn durable(mut self) -> Initial {
        self.durability = Some(Durability::Durable);
        self
    }
}

/// When a sliding read extends an item.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sliding {
    /// Extended if less than this is left.
    pub below: Duration,
    /// The new life, from now.
    pub ttl: Duration,
}

/// A life in milliseconds: what is not zero stays so, and what is too long or zero is an error.
pub(crate) fn life_ms(life: Duration) -> crate::Result<u64> {
    if life.is_zero() {
        return Err(crate::Error::invalid(
            "a time to live of 0; to remove an item use delete, or expire with Ttl::Now",
        ));
    }
    stretch_ms("time to live", life)
}

pub(crate) fn stretch_ms(what: &'static str, stretch: Duration) -> crate::Result<u64> {
    let limit = kv_proto::limits::TTL_MS_MAX;
    let ms = u64::try_from(stretch.as_millis()).unwrap_or(u64::MAX);
    if ms > limit {
        return Err(crate::Error::TooLarge { what, amount: ms, unit: "ms", limit });
    }
    Ok(if stretch.is_zero() { 0 } else { ms.max(1) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lives_are_cut_to_milliseconds_but_never_to_nothing() {
        assert_eq!(life_ms(Duration::from_micros(1)).unwrap(), 1);
        assert_eq!(life_ms(Duration::from_micros(2_900)).unwrap(), 2);
        assert!(life_ms(Duration::ZERO).is_err());
        assert!(life_ms(Duration::MAX).is_err());
    }
}
