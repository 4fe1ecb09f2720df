//! A backup as it comes, blocking: the daemon sends it part by part on a connection of its own.

use std::time::Duration;

use super::client::Client;
use crate::error::{Error, Result};
use crate::ops;

/// The bytes of a backup, part by part. Made by [`Admin::backup`](super::Admin::backup); dropping it ends it.
#[derive(Debug)]
#[must_use = "a backup that is dropped ends"]
pub struct Backup {
    connection: Option<super::Connection>,
    patience: Duration,
}

impl Backup {
    pub(super) fn begin(client: &Client, patience: Duration, memory: bool) -> Result<Backup> {
        let call = ops::backup(memory);
        let mut attempts = client.attempts(call.sending.repeat);
        let (road, _empty) = client.set_out(&call, &mut attempts)?;
        Ok(Backup { connection: road.into_connection(), patience })
    }

    /// The next bytes, perhaps none yet; `None` behind the last. Only then is it whole.
    ///
    /// # Errors
    /// See [`Error`](crate::Error). After an error there is nothing more.
    pub fn next_part(&mut self) -> Result<Option<Vec<u8>>> {
        let Some(mut connection) = self.connection.take() else { return Ok(None) };
        let frame = connection.receive(crate::retry::deadline_after(self.patience))?;
        let frame = frame.ok_or_else(|| Error::lost(false, std::io::ErrorKind::TimedOut))?;
        let part = kv_proto::wire::decode(connection.answer(frame))
            .map_err(|cause| crate::frames::not_ours(cause, false))
            .and_then(ops::read_part)?;
        if part.is_some() {
            self.connection = Some(connection);
        }
        Ok(part)
    }
}
