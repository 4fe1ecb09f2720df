//! Changes as they happen, blocking: one connection that the daemon tells them on.

use std::time::{Duration, Instant};

use super::client::Client;
use crate::answers::Change;
use crate::error::Result;
use crate::ops;
use crate::retry::Attempts;

/// A stream of changes. Made by [`Client::watch`].
#[derive(Debug)]
#[must_use = "a watch that is dropped ends"]
pub struct Watch {
    client: Client,
    cache: Option<Box<str>>,
    prefix: Vec<u8>,
    connection: Option<super::Connection>,
    /// Came with others, and was not handed out yet.
    ahead: std::collections::VecDeque<Change>,
}

impl Client {
    /// The changes of a cache, or of all that this user may use, from now on; of keys that start so.
    ///
    /// ```
    /// # let server = kvd::testing::server();
    /// # let client = kv_client::blocking::Client::builder().socket(server.socket()).build()?;
    /// use std::time::Duration;
    /// use kv_client::Change;
    /// # client.cache("product").put("0", "x", None)?;
    /// let mut watch = client.watch(Some("product"), "4")?;
    /// client.cache("product").put("42", "rocket", None)?;
    /// let change = watch.next_within(Duration::from_secs(5))?;
    /// assert!(matches!(change, Some(Change::Put { key, .. }) if key == b"42"));
    /// # Ok::<(), kv_client::Error>(())
    /// ```
    ///
    /// # Errors
    /// See [`Error`](crate::Error).
    pub fn watch(&self, cache: Option<&str>, prefix: impl AsRef<[u8]>) -> Result<Watch> {
        let mut watch = Watch {
            client: self.clone(),
            cache: cache.map(Into::into),
            prefix: prefix.as_ref().to_vec(),
            connection: None,
            ahead: std::collections::VecDeque::new(),
        };
        watch.begin()?;
        Ok(watch)
    }
}

impl Watch {
    fn begin(&mut self) -> Result<()> {
        let call = ops::watch(self.cache.as_deref(), &self.prefix)?;
        let mut attempts: Attempts = self.client.attempts(call.sending.repeat);
        let (road, ()) = self.client.set_out(&call, &mut attempts)?;
        self.connection = road.into_connection();
        Ok(())
    }

    /// The next change, if one comes within `patience`. After a lost connection the next call connects again, and
    /// [`Change::Missed`] comes first.
    ///
    /// # Errors
    /// See [`Error`](crate::Error).
    pub fn next_within(&mut self, patience: Duration) -> Result<Option<Change>> {
        let deadline = crate::retry::deadline_after(patience);
        loop {
            if let Some(change) = self.ahead.pop_front() {
                return Ok(Some(change));
            }
            if self.connection.is_none() {
                self.begin()?;
                return Ok(Some(Change::Missed { at_least: 0 }));
            }
            if Instant::now() >= deadline {
                return Ok(None);
            }
            let Some(connection) = &mut self.connection else { continue };
            match connection.receive(deadline) {
                Ok(Some(frame)) => {
                    let changes = kv_proto::wire::decode(connection.answer(frame))
                        .map_err(|cause| crate::frames::not_ours(cause, false))
                        .and_then(ops::read_changes);
                    match changes {
                        Ok(changes) => self.ahead.extend(changes),
                        Err(error) => {
                            self.connection = None;
                            return Err(error);
                        }
                    }
                }
                Ok(None) => return Ok(None),
                Err(error) => {
                    self.connection = None;
                    return Err(error);
                }
            }
        }
    }
}
