//! A backup as it comes, async: the daemon sends it part by part on a connection of its own.

use super::client::Client;
use super::lanes::Turns;
use super::link::read_frame;
use super::way::Way;
use crate::error::{Error, Result};
use crate::ops;

/// The bytes of a backup, part by part. Made by [`Admin::backup`](super::Admin::backup); dropping it ends it.
#[must_use = "a backup that is dropped ends"]
pub struct Backup {
    way: Option<Way>,
    patience: std::time::Duration,
}

impl Backup {
    pub(super) async fn begin(
        client: &Client,
        patience: std::time::Duration,
        memory: bool,
    ) -> Result<Backup> {
        let call = ops::backup(memory);
        let mut attempts = client.attempts(call.sending.repeat);
        let (way, _empty) = client.set_out(&call, &mut attempts, Turns::Waits).await?;
        Ok(Backup { way: Some(way), patience })
    }

    /// The next bytes, perhaps none yet; `None` behind the last. Only then is it whole.
    ///
    /// # Errors
    /// See [`Error`](crate::Error). After an error there is nothing more.
    pub async fn next_part(&mut self) -> Result<Option<Vec<u8>>> {
        let Some(mut way) = self.way.take() else { return Ok(None) };
        let link = way.link();
        let read = tokio::time::timeout(self.patience, read_frame(&mut link.stream, &mut link.inbox)).await;
        let frame = read
            .map_err(|_elapsed| Error::lost(false, std::io::ErrorKind::TimedOut))?
            .map_err(|broken| broken.error(false))?;
        let part = kv_proto::wire::decode(link.inbox.frame(frame))
            .map_err(|cause| crate::frames::not_ours(cause, false))
            .and_then(ops::read_part)?;
        if part.is_some() {
            self.way = Some(way);
        }
        Ok(part)
    }
}

impl std::fmt::Debug for Backup {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Backup").finish_non_exhaustive()
    }
}
