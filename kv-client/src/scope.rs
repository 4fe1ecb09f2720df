//! What a page was made of: the shortest life and all tags of what was read for it.
//!
//! "Cacheability bubbles up" (Drupal): a page may live as long as the first of its parts to expire, and goes when any of their
//! tags is cleared. Reads through a cache that is [in the scope](crate::blocking::Cache::in_scope) are recorded. No thread-local
//! state: a scope is handed on like any other value.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::answers::Entry;
use crate::lock::Lock;

/// Records what the reads in it used. Cheap to clone; clones record into the same. A key that is not there counts as used up:
/// what is made without it may be kept for no time. (To remember that there is none, load it by `find_or_load`.)
///
/// ```
/// # let server = kvd::testing::server();
/// # let client = kv_client::blocking::Client::builder().socket(server.socket()).build()?;
/// use std::time::Duration;
/// use kv_client::{PutOptions, Scope};
/// client.cache("price").put_with("42", "9.99", PutOptions::new().ttl(Duration::from_secs(30)).tag("sku:42"))?;
/// client.cache("text").put_with("42", "A rocket.", PutOptions::new().ttl(Duration::from_secs(600)).tag("texts"))?;
///
/// let scope = Scope::new();
/// client.cache("price").in_scope(&scope).get("42")?;
/// client.cache("text").in_scope(&scope).get("42")?;
/// assert!(scope.max_age().is_some_and(|age| age <= Duration::from_secs(30)));
/// assert_eq!(scope.tags(), ["sku:42", "texts"].map(|tag| tag.as_bytes().to_vec()));
/// # Ok::<(), kv_client::Error>(())
/// ```
#[derive(Debug, Clone, Default)]
pub struct Scope(Arc<Lock<Used>>);

#[derive(Debug, Clone, Default)]
struct Used {
    expires: Option<Instant>,
    stale_for: Option<Duration>,
    tags: BTreeSet<Vec<u8>>,
}

impl Used {
    fn add(&mut self, expires: Option<Instant>, stale_for: Option<Duration>) {
        self.expires = [self.expires, expires].into_iter().flatten().min();
        self.stale_for = [self.stale_for, stale_for].into_iter().flatten().min();
    }
}

impl Scope {
    /// Nothing used yet.
    #[must_use]
    pub fn new() -> Scope {
        Scope::default()
    }

    /// When the first of what was used expires; `None`: nothing used does.
    #[must_use]
    pub fn expires(&self) -> Option<Instant> {
        self.0.lock().expires
    }

    /// How long what is made of it may live from now: `Cache-Control: max-age`. Zero when something stale was used; `None`: for
    /// ever.
    #[must_use]
    pub fn max_age(&self) -> Option<Duration> {
        self.expires().map(|expires| expires.saturating_duration_since(Instant::now()))
    }

    /// How long after that it may be served as stale: the shortest of what was used. Zero when nothing was used.
    #[must_use]
    pub fn stale_while_revalidate(&self) -> Duration {
        self.0.lock().stale_for.unwrap_or_default()
    }

    /// All tags of what was used, in order, each once. An item takes at most eight.
    #[must_use]
    pub fn tags(&self) -> Vec<Vec<u8>> {
        self.0.lock().tags.iter().cloned().collect()
    }

    /// Takes in what another scope used, for a page made of parts: the shorter lives, and the tags of both.
    ///
    /// ```
    /// use kv_client::Scope;
    /// let (page, part) = (Scope::new(), Scope::new());
    /// part.used(Some(std::time::Duration::from_secs(30)), std::time::Duration::ZERO, ["sku:42"]);
    /// page.merge(&part);
    /// assert_eq!(page.tags(), [b"sku:42"]);
    /// ```
    pub fn merge(&self, other: &Scope) {
        if Arc::ptr_eq(&self.0, &other.0) {
            return;
        }
        let other = other.0.lock().clone();
        let mut used = self.0.lock();
        used.add(other.expires, other.stale_for);
        used.tags.extend(other.tags);
    }

    /// Records an item that was read, or that there was none: what is made without it must not outlive its coming.
    pub(crate) fn read(&self, entry: Option<&Entry>) {
        match entry {
            Some(entry) if !entry.is_stale() => self.used(entry.left(), entry.stale_for, &entry.tags),
            Some(entry) => self.used(Some(Duration::ZERO), entry.stale_for, &entry.tags),
            None => self.used::<&[u8]>(Some(Duration::ZERO), Duration::ZERO, []),
        }
    }

    /// Records something that did not come from a cache: how long it lives from now (`None`: for ever), how long it may be served as
    /// stale after that, and its tags.
    pub fn used<G: AsRef<[u8]>>(
        &self,
        lives_for: Option<Duration>,
        stale_for: Duration,
        tags: impl IntoIterator<Item = G>,
    ) {
        let expires = lives_for.and_then(|left| Instant::now().checked_add(left));
        let mut used = self.0.lock();
        used.add(expires, Some(stale_for));
        used.tags.extend(tags.into_iter().map(|tag| tag.as_ref().to_vec()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shortest_lives_and_all_tags_count() {
        let scope = Scope::new();
        assert_eq!((scope.max_age(), scope.stale_while_revalidate()), (None, Duration::ZERO));
        scope.used(Some(Duration::from_secs(60)), Duration::from_secs(9), ["b"]);
        scope.used(None, Duration::from_secs(5), ["a"]);
        scope.used(Some(Duration::from_secs(600)), Duration::from_secs(7), ["b"]);
        assert!(
            scope
                .max_age()
                .is_some_and(|age| age <= Duration::from_secs(60) && age > Duration::from_secs(50))
        );
        assert_eq!(scope.stale_while_revalidate(), Duration::from_secs(5));
        assert_eq!(scope.tags(), [b"a", b"b"]);
    }

    #[test]
    fn a_scope_merged_with_itself_stays_as_it_is() {
        let scope = Scope::new();
        scope.used(None, Duration::ZERO, ["a"]);
        scope.merge(&scope.clone());
        assert_eq!(scope.tags(), [b"a"]);
    }
}
