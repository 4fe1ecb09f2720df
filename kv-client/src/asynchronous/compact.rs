//! A compaction as it goes, async: the daemon says how far it is on a connection of its own.

use std::time::Duration;

use super::client::Client;
use super::lanes::Turns;
use super::link::read_frame;
use crate::answers::{Compacted, Compacting};
use crate::error::{Error, Result};
use crate::ops;

pub(super) async fn compact(
    client: &Client,
    patience: Duration,
    mut progress: impl FnMut(u64, u64),
) -> Result<Compacted> {
    let call = ops::compact();
    let mut attempts = client.attempts(call.sending.repeat);
    let (mut way, _begun) = client.set_out(&call, &mut attempts, Turns::Waits).await?;
    loop {
        let link = way.link();
        let read = tokio::time::timeout(patience, read_frame(&mut link.stream, &mut link.inbox)).await;
        let frame = read
            .map_err(|_elapsed| Error::lost(true, std::io::ErrorKind::TimedOut))?
            .map_err(|broken| broken.error(true))?;
        let heard = kv_proto::wire::decode(link.inbox.frame(frame))
            .map_err(|cause| crate::frames::not_ours(cause, true))
            .and_then(ops::read_compacting)?;
        match heard {
            Compacting::Progress { done, total } => progress(done, total),
            Compacting::Done(compacted) => return Ok(compacted),
        }
    }
}
