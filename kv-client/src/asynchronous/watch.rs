//! Changes as they happen, async: one connection that the daemon tells them on.

use kv_proto::segment::process_id;
use std::collections::VecDeque;

use super::client::Client;
use super::lanes::Turns;
use super::link::read_frame;
use super::way::Way;
use crate::answers::Change;
use crate::error::Result;
use crate::ops;

/// A stream of changes. Made by [`Client::watch`].
#[must_use = "a watch that is dropped ends"]
pub struct Watch {
    client: Client,
    cache: Option<Box<str>>,
    prefix: Vec<u8>,
    way: Option<Way>,
    /// Whose `way` is.
    process: u32,
    /// Came with others, and was not handed out yet.
    ahead: VecDeque<Change>,
}

impl Client {
    /// The changes of a cache, or of all that this user may use, from now on; of keys that start so.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), kv_client::Error> {
    /// # let server = kvd::testing::server();
    /// # let client = kv_client::Client::builder().socket(server.socket()).build().await?;
    /// use kv_client::Change;
    /// # client.cache("product").put("0", "x", None).await?;
    /// let mut watch = client.watch(Some("product"), "4").await?;
    /// client.cache("product").put("42", "rocket", None).await?;
    /// assert!(matches!(watch.next().await?, Change::Put { key, .. } if key == b"42"));
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// See [`Error`](crate::Error).
    pub async fn watch(&self, cache: Option<&str>, prefix: impl AsRef<[u8]>) -> Result<Watch> {
        let mut watch = Watch {
            client: self.clone(),
            cache: cache.map(Into::into),
            prefix: prefix.as_ref().to_vec(),
            way: None,
            process: process_id(),
            ahead: VecDeque::new(),
        };
        watch.begin().await?;
        Ok(watch)
    }
}

impl Watch {
    async fn begin(&mut self) -> Result<()> {
        let call = ops::watch(self.cache.as_deref(), &self.prefix)?;
        let mut attempts = self.client.attempts(call.sending.repeat);
        let (way, ()) = self.client.set_out(&call, &mut attempts, Turns::Waits).await?;
        (self.way, self.process) = (Some(way), process_id());
        Ok(())
    }

    /// The next change. May be dropped and asked for again at any time: nothing is lost. After a lost connection the next call
    /// connects again, and [`Change::Missed`] comes first.
    ///
    /// # Errors
    /// See [`Error`](crate::Error).
    pub async fn next(&mut self) -> Result<Change> {
        loop {
            if let Some(change) = self.ahead.pop_front() {
                return Ok(change);
            }
            self.leave_inherited();
            let Some(way) = &mut self.way else {
                self.begin().await?;
                return Ok(Change::Missed { at_least: 0 });
            };
            let link = way.link();
            let changes = match read_frame(&mut link.stream, &mut link.inbox).await {
                Ok(frame) => kv_proto::wire::decode(link.inbox.frame(frame))
                    .map_err(|cause| crate::frames::not_ours(cause, false))
                    .and_then(ops::read_changes),
                Err(broken) => Err(broken.error(false)),
            };
            match changes {
                Ok(changes) => self.ahead.extend(changes),
                Err(error) => {
                    self.way = None;
                    return Err(error);
                }
            }
        }
    }
}

impl Watch {
    /// What a child inherited is its parent's: it is forgotten, because dropping it would take it off the epoll instance that
    /// both share.
    fn leave_inherited(&mut self) {
        if self.process != process_id() {
            std::mem::forget(self.way.take());
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.leave_inherited();
    }
}

impl std::fmt::Debug for Watch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Watch").field("cache", &self.cache).finish_non_exhaustive()
    }
}
