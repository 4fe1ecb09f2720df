//! How a caller says what it wants of a key: the builder that `entry(key)` begins.
//!
//! Called by applications; both clients end it with `get_or_load` and its kin. It checks that the options make sense together
//! and sends nothing.

use std::time::Duration;

use crate::codec::Codec;
use crate::error::{Error, Result};
use crate::limits::{LEASE_DEFAULT, THROTTLE_DEFAULT};
use crate::options::PutOptions;
use kv_proto::wire::Durability;

/// What a caller does that waited in vain for somebody else's load.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnBusy {
    /// It loads the value for itself; nothing is stored.
    #[default]
    Load,
    /// It fails with [`ErrorKind::Timeout`](crate::ErrorKind::Timeout).
    Fail,
}

/// How a value is got: from the cache, or by a loader. Begun by `entry(key)` of a cache of either client.
///
/// ```
/// # let server = kvd::testing::server();
/// # let client = kv_client::blocking::Client::builder().socket(server.socket()).build()?;
/// use std::time::Duration;
/// let products = client.cache("product").typed::<String>(kv_client::SchemaVersion(1));
/// let name = products
///     .entry("42")
///     .ttl(Duration::from_secs(300))
///     .stale_for(Duration::from_secs(3_600)) // better than nothing while the database is away
///     .refresh_ahead(0.9)                    // reloaded on the first read of its last tenth
///     .jitter(0.1)                           // so that what was loaded together does not expire together
///     .tag("sku:42")
///     .get_or_load(|_fill| Ok::<_, std::io::Error>("rocket".to_owned()))?;
/// assert_eq!(name, "rocket");
/// # Ok::<(), kv_client::Error>(())
/// ```
#[must_use = "an entry does nothing until `get_or_load`"]
pub struct EntryBuilder<C, T> {
    pub(crate) cache: C,
    pub(crate) codec: Codec<T>,
    pub(crate) key: Vec<u8>,
    pub(crate) options: LoadOptions,
    pub(crate) cache_if: Option<Box<dyn FnOnce(&T) -> bool + Send>>,
}

/// What an [`EntryBuilder`] has collected.
#[derive(Debug, Clone)]
pub(crate) struct LoadOptions {
    pub(crate) put: PutOptions,
    pub(crate) negative_ttl: Option<Duration>,
    pub(crate) refresh_ahead: Option<f64>,
    pub(crate) soft_timeout: Option<Duration>,
    pub(crate) hard_timeout: Option<Duration>,
    pub(crate) wait: Option<Duration>,
    pub(crate) lease: Duration,
    pub(crate) throttle: Duration,
    pub(crate) on_busy: OnBusy,
}

impl LoadOptions {
    pub(crate) fn with_ttl(ttl: Option<Duration>) -> LoadOptions {
        LoadOptions {
            put: PutOptions { ttl, ..PutOptions::default() },
            negative_ttl: None,
            refresh_ahead: None,
            soft_timeout: None,
            hard_timeout: None,
            wait: None,
            lease: LEASE_DEFAULT,
            throttle: THROTTLE_DEFAULT,
            on_busy: OnBusy::Load,
        }
    }

    /// Options that make no sense, or not together, with both named.
    pub(crate) fn check(&self) -> Result<()> {
        // What no daemon would take is said before anything is loaded, not when it cannot be stored.
        crate::ops::check_put_options(&self.put)?;
        self.negative_ttl.map_or(Ok(0), crate::options::life_ms)?;
        let refuse = |message: String| Err(Error::invalid(message));
        if let Some(fraction) = self.refresh_ahead {
            if !(fraction > 0.0 && fraction < 1.0) {
                return refuse(format!("refresh_ahead is {fraction}, it must be above 0 and below 1"));
            }
            if let Some(ttl) = self.put.ttl.filter(|ttl| *ttl < Duration::from_millis(10)) {
                return refuse(format!(
                    "refresh_ahead makes no sense with a ttl of {ttl:?}: it would be over before the reload"
                ));
            }
        }
        if let (Some(negative), Some(ttl)) = (self.negative_ttl, self.put.ttl)
            && negative > ttl
        {
            return refuse(format!("negative_ttl {negative:?} is longer than the ttl {ttl:?}"));
        }
        if let Some(soft) = self.soft_timeout {
            if self.put.stale_for.is_zero() {
                return refuse(format!(
                    "soft_timeout {soft:?} needs stale_for: there would be nothing to serve meanwhile"
                ));
            }
            if let Some(hard) = self.hard_timeout.filter(|hard| soft >= *hard) {
                return refuse(format!("soft_timeout {soft:?} is not shorter than hard_timeout {hard:?}"));
            }
        }
        if let Some(hard) = self.hard_timeout.filter(|hard| *hard > self.lease) {
            return refuse(format!(
                "hard_timeout {hard:?} is longer than the lease {:?}: others would load meanwhile",
                self.lease
            ));
        }
        if self.lease.is_zero() {
            return refuse("a lease of 0: the loader would lose it before it began".to_owned());
        }
        Ok(())
    }
}

impl LoadOptions {
    /// As `check`, for many keys at once, which know less.
    pub(crate) fn check_for_many(&self, has_condition: bool) -> Result<()> {
        let what = [
            (self.refresh_ahead.is_some(), "refresh_ahead"),
            (self.soft_timeout.is_some(), "soft_timeout"),
            (self.hard_timeout.is_some(), "hard_timeout"),
            (has_condition, "cache_if"),
        ];
        if let Some((_, what)) = what.iter().find(|(is_said, _)| *is_said) {
            return Err(Error::invalid(format!(
                "{what} is for single keys, get_or_load_many does not know it"
            )));
        }
        self.check()
    }
}

impl<C, T> EntryBuilder<C, T> {
    pub(crate) fn new(cache: C, codec: Codec<T>, key: &[u8]) -> EntryBuilder<C, T> {
        EntryBuilder { cache, codec, key: key.to_vec(), options: LoadOptions::with_ttl(None), cache_if: None }
    }

    /// How long what is loaded lives. Without it: the cache's default.
    pub fn ttl(mut self, ttl: impl Into<Option<Duration>>) -> Self {
        self.options.put.ttl = ttl.into();
        self
    }

    /// How long after its expiry it may be served as stale: while it is reloaded, and when its loader fails.
    pub fn stale_for(mut self, stale_for: Duration) -> Self {
        self.options.put.stale_for = stale_for;
        self
    }

    /// Shortens the life by a random part of up to this fraction, so that what was loaded together does not expire
    /// together.
    pub fn jitter(mut self, fraction: f64) -> Self {
        self.options.put.jitter = fraction;
        self
    }

    /// One more tag to clear it by; at most 8, each up to 64 bytes.
    pub fn tag(mut self, tag: impl AsRef<[u8]>) -> Self {
        self.options.put.tags.push(tag.as_ref().to_vec());
        self
    }

    /// More tags.
    pub fn tags<G: AsRef<[u8]>>(mut self, tags: impl IntoIterator<Item = G>) -> Self {
        self.options.put.tags.extend(tags.into_iter().map(|tag| tag.as_ref().to_vec()));
        self
    }

    /// What the fill must outlive before it is acknowledged. Without it: the cache's durability.
    pub fn durability(mut self, durability: Durability) -> Self {
        self.options.put.durability = Some(durability);
        self
    }

    /// Reloads when somebody reads it after this fraction of its life (0.9: in the last tenth); one reader reloads, nobody
    /// waits longer for it. What nobody reads is not reloaded.
    pub fn refresh_ahead(mut self, fraction: f64) -> Self {
        self.options.refresh_ahead = Some(fraction);
        self
    }

    /// While there is a stale value: how long the first reader waits for the fresh one before it is served the stale one. Without it:
    /// not at all. The loader goes on in the background and fills.
    pub fn soft_timeout(mut self, timeout: Duration) -> Self {
        self.options.soft_timeout = Some(timeout);
        self
    }

    /// How long anybody waits for the loader. In the blocking client for
    /// [`get_or_load_detached`](EntryBuilder::get_or_load_detached) only: a loader in the caller's own thread cannot be left. After that the call fails with [`ErrorKind::Timeout`](crate::ErrorKind::Timeout), or is
    /// served the stale value; the loader goes on in the background and fills.
    pub fn hard_timeout(mut self, timeout: Duration) -> Self {
        self.options.hard_timeout = Some(timeout);
        self
    }

    /// How long a caller waits for somebody else's load, at most 60 s. Without it: the client's `op_timeout`.
    pub fn wait(mut self, wait: Duration) -> Self {
        self.options.wait = Some(wait);
        self
    }

    /// What happens when that wait was in vain.
    pub fn on_busy(mut self, on_busy: OnBusy) -> Self {
        self.options.on_busy = on_busy;
        self
    }

    /// How long the loader may take before others may load instead, at most 10 min; 10 s unless said. Its own fill is refused
    /// then.
    pub fn lease(mut self, lease: Duration) -> Self {
        self.options.lease = lease;
        self
    }

    /// How long the stale value is served after its loader failed before anybody tries again; 1 s unless said.
    pub fn throttle(mut self, throttle: Duration) -> Self {
        self.options.throttle = throttle;
        self
    }

    /// How long "there is none" is remembered, for [`find_or_load`](EntryBuilder::find_or_load). Without it: not at all.
    pub fn negative_ttl(mut self, ttl: Duration) -> Self {
        self.options.negative_ttl = Some(ttl);
        self
    }

    /// Stores a loaded value only if this says so. The caller gets it in any case.
    pub fn cache_if(mut self, keep: impl FnOnce(&T) -> bool + Send + 'static) -> Self {
        self.cache_if = Some(Box::new(keep));
        self
    }
}

impl<C: std::fmt::Debug, T> std::fmt::Debug for EntryBuilder<C, T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Not the key: it may be somebody's session.
        f.debug_struct("EntryBuilder")
            .field("cache", &self.cache)
            .field("options", &self.options)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options() -> LoadOptions {
        LoadOptions::with_ttl(Some(Duration::from_secs(60)))
    }

    #[test]
    fn options_that_make_no_sense_together_are_said_by_name() {
        let ms = Duration::from_millis;
        let cases = [
            (LoadOptions { refresh_ahead: Some(1.5), ..options() }, "refresh_ahead is 1.5"),
            (
                LoadOptions { refresh_ahead: Some(0.9), ..LoadOptions::with_ttl(Some(ms(1))) },
                "refresh_ahead makes no sense with a ttl of 1ms",
            ),
            (LoadOptions { negative_ttl: Some(ms(61_000)), ..options() }, "negative_ttl 61s"),
            (LoadOptions { soft_timeout: Some(ms(5)), ..options() }, "soft_timeout 5ms needs stale_for"),
            (
                LoadOptions { hard_timeout: Some(ms(60_000)), ..options() },
                "hard_timeout 60s is longer than the lease",
            ),
            (LoadOptions { lease: Duration::ZERO, ..options() }, "a lease of 0"),
            (LoadOptions::with_ttl(Some(ms(0))), "a time to live of 0"),
            (LoadOptions { negative_ttl: Some(ms(0)), ..options() }, "a time to live of 0"),
            (LoadOptions { put: crate::PutOptions::new().jitter(5.0), ..options() }, "jitter is 5"),
            (
                LoadOptions {
                    put: (0..9).fold(crate::PutOptions::new(), |put, n| put.tag([n])),
                    ..options()
                },
                "item is 9 tags, limit is 8",
            ),
        ];
        for (options, says) in cases {
            let error = options.check().unwrap_err();
            assert!(error.to_string().contains(says), "{error}");
        }
        let mut both = LoadOptions { soft_timeout: Some(ms(9)), hard_timeout: Some(ms(8)), ..options() };
        both.put.stale_for = ms(1);
        assert!(both.check().unwrap_err().to_string().contains("not shorter than hard_timeout"));
        assert!(options().check().is_ok());
    }
}
