//! What a loader sees and may say: the stale value, and how what it loads is to be stored.

use std::sync::Arc;
use std::time::Duration;

use crate::codec::{Codec, Decoded};
use crate::lock::Lock;

/// A loader's view of the item it loads. Cheap to clone; what it is told counts when the loader returns.
///
/// ```
/// # let server = kvd::testing::server();
/// # let client = kv_client::blocking::Client::builder().socket(server.socket()).build()?;
/// use std::time::Duration;
/// let pages = client.cache("page");
/// pages.get_or_load("/product/42", None, |fill| {
///     let (html, category) = ("<h1>rocket</h1>", "space");
///     fill.set_ttl(Duration::from_secs(30)); // known only now
///     fill.add_tag(format!("category:{category}"));
///     Ok::<_, kv_client::Error>(html.as_bytes().to_vec())
/// })?;
/// client.clear_tag("category:space", kv_client::Effect::Gone)?;
/// assert_eq!(pages.get("/product/42")?, None);
/// # Ok::<(), kv_client::Error>(())
/// ```
#[derive(Debug)]
pub struct Fill<T> {
    codec: Codec<T>,
    stale: Option<Arc<[u8]>>,
    said: Arc<Lock<Said>>,
}

/// What a loader has said.
#[derive(Debug, Clone, Default)]
pub(crate) struct Said {
    pub(crate) ttl: Option<Duration>,
    pub(crate) stale_for: Option<Duration>,
    pub(crate) tags: Vec<Vec<u8>>,
    pub(crate) do_not_store: bool,
}

impl<T> Clone for Fill<T> {
    fn clone(&self) -> Fill<T> {
        Fill { codec: self.codec, stale: self.stale.clone(), said: Arc::clone(&self.said) }
    }
}

impl<T> Fill<T> {
    pub(crate) fn new(codec: Codec<T>, stale: Option<Arc<[u8]>>) -> Fill<T> {
        Fill { codec, stale, said: Arc::default() }
    }

    pub(crate) fn said(&self) -> Said {
        self.said.lock().clone()
    }

    /// The value that was there, past its life but kept.
    #[must_use]
    pub fn stale(&self) -> Option<T> {
        match self.codec.decode(self.stale.as_deref()?)? {
            Decoded::Value(value) => Some(value),
            Decoded::Negative => None,
        }
    }

    /// The stale value again, for a loader that found out that it is still right (an `ETag`, an update time): return it,
    /// and it lives anew. `None`: there is none, and something has to be loaded.
    ///
    /// ```
    /// # let server = kvd::testing::server();
    /// # let client = kv_client::blocking::Client::builder().socket(server.socket()).build()?;
    /// # use std::time::Duration;
    /// let feeds = client.cache("feed");
    /// # feeds.put_with("news", "old", kv_client::PutOptions::new().ttl(Duration::from_secs(9)).stale_for(Duration::from_secs(90)))?;
    /// # feeds.expire("news", kv_client::Ttl::Stale)?;
    /// # fn fetch_unless_changed() -> Option<Vec<u8>> { None }
    /// # fn fetch() -> Vec<u8> { unreachable!() }
    /// let feed = feeds.get_or_load("news", Duration::from_secs(60), |fill| {
    ///     let feed = fetch_unless_changed().or_else(|| fill.not_modified()).unwrap_or_else(fetch);
    ///     Ok::<_, kv_client::Error>(feed)
    /// })?;
    /// assert_eq!(feed, b"old");
    /// # Ok::<(), kv_client::Error>(())
    /// ```
    #[must_use]
    pub fn not_modified(&self) -> Option<T> {
        self.stale()
    }

    /// How long it lives, instead of what the caller said.
    pub fn set_ttl(&self, ttl: Duration) {
        self.said.lock().ttl = Some(ttl);
    }

    /// How long after its expiry it may be served as stale, instead of what the caller said.
    pub fn set_stale_for(&self, stale_for: Duration) {
        self.said.lock().stale_for = Some(stale_for);
    }

    /// One more tag to clear it by.
    pub fn add_tag(&self, tag: impl AsRef<[u8]>) {
        self.said.lock().tags.push(tag.as_ref().to_vec());
    }

    /// The value is for those who wait for it now, and not kept.
    pub fn do_not_store(&self) {
        self.said.lock().do_not_store = true;
    }
}
