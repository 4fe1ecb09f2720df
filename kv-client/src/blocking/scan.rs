//! Scanning a cache page by page, blocking.
//!
//! Made by [`Cache::scan`](super::Cache::scan). Each page is one state; between pages the cache may change, and no key
//! that was there all the time is missed or told twice.

use super::client::Client;
use crate::answers::Page;
use crate::error::Result;
use crate::ops;
use crate::scanning::Cursor;

/// A scan under way: an iterator of pages.
///
/// ```
/// # let server = kvd::testing::server();
/// # let client = kv_client::blocking::Client::builder().socket(server.socket()).build()?;
/// let products = client.cache("product");
/// products.put_many([("lego:1", "castle"), ("lego:2", "rocket"), ("other", "x")], None)?;
/// let mut found = Vec::new();
/// for page in products.scan("lego:").keys_max(1).values() {
///     found.extend(page?.items.into_iter().map(|(_, entry)| entry.value));
/// }
/// found.sort();
/// assert_eq!(found, [b"castle", b"rocket"]);
/// # Ok::<(), kv_client::Error>(())
/// ```
#[derive(Debug)]
#[must_use = "a scan does nothing until its pages are asked for"]
pub struct Scan {
    client: Client,
    cursor: Cursor,
}

impl Scan {
    pub(super) fn new(client: Client, cache: &str, prefix: &[u8]) -> Scan {
        Scan { client, cursor: Cursor::new(cache, prefix) }
    }

    /// At most this many keys a page; 1,024 unless said, and at most.
    pub fn keys_max(mut self, keys: u32) -> Scan {
        self.cursor.keys_max = keys;
        self
    }

    /// With the values, not only what is known about them.
    pub fn values(mut self) -> Scan {
        self.cursor.values = true;
        self
    }

    /// With stale items, not only fresh ones.
    pub fn stale(mut self) -> Scan {
        self.cursor.stale = true;
        self
    }

    /// Goes on behind a page that was read earlier: its `cursor`.
    pub fn after(mut self, cursor: impl Into<Vec<u8>>) -> Scan {
        self.cursor.go_on_at(cursor.into());
        self
    }

    /// The next page, `None` behind the last. It may be empty: a page is also bounded in time.
    ///
    /// ```
    /// # let server = kvd::testing::server();
    /// # let client = kv_client::blocking::Client::builder().socket(server.socket()).build()?;
    /// # client.cache("product").put("42", "rocket", None)?;
    /// let mut scan = client.cache("product").scan("");
    /// while let Some(page) = scan.next_page()? {
    ///     println!("{} keys", page.items.len());
    /// }
    /// # Ok::<(), kv_client::Error>(())
    /// ```
    ///
    /// # Errors
    /// See [`Error`](crate::Error). After an error the same page can be asked for again.
    pub fn next_page(&mut self) -> Result<Option<Page>> {
        if self.cursor.ended {
            return Ok(None);
        }
        let call = ops::scan_page(&self.cursor)?;
        let page = self.client.call(call)?;
        self.cursor.go_on_at(page.cursor.clone());
        Ok(Some(page))
    }
}

impl Iterator for Scan {
    type Item = Result<Page>;

    /// Ends after the first error, so that a loop over pages cannot run for ever while the daemon is away.
    fn next(&mut self) -> Option<Result<Page>> {
        let page = self.next_page().transpose();
        self.cursor.ended |= matches!(page, Some(Err(_)));
        page
    }
}
