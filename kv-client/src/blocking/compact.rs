//! A compaction as it goes, blocking: the daemon says how far it is on a connection of its own.

use std::time::Duration;

use super::client::Client;
use crate::answers::{Compacted, Compacting};
use crate::error::{Error, Result};
use crate::ops;

pub(super) fn compact(
    client: &Client,
    patience: Duration,
    mut progress: impl FnMut(u64, u64),
) -> Result<Compacted> {
    let call = ops::compact();
    let mut attempts = client.attempts(call.sending.repeat);
    let (road, _begun) = client.set_out(&call, &mut attempts)?;
    let lost = |kind| Error::lost(true, kind);
    let mut connection = road.into_connection().ok_or_else(|| lost(std::io::ErrorKind::NotConnected))?;
    loop {
        let frame = connection.receive(crate::retry::deadline_after(patience))?;
        let frame = frame.ok_or_else(|| lost(std::io::ErrorKind::TimedOut))?;
        let heard = kv_proto::wire::decode(connection.answer(frame))
            .map_err(|cause| crate::frames::not_ours(cause, true))
            .and_then(ops::read_compacting)?;
        match heard {
            Compacting::Progress { done, total } => progress(done, total),
            Compacting::Done(compacted) => return Ok(compacted),
        }
    }
}
