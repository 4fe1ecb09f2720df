//! A way to the daemon for requests that belong together: a connection of its own, and the turn that it takes.
//!
//! Taken by transactions, loads and locks. Dropping it closes the connection, which ends what was begun on it; it goes back
//! to the pool only with nothing open.

use tokio::sync::OwnedSemaphorePermit;

use super::link::Link;
use crate::error::{Error, Result};
use crate::ops::Call;
use crate::retry::{Attempts, Failure};

pub(super) struct Way {
    link: Link,
    /// An exchange on it failed, or was dropped half-way: there may be an answer outstanding, and it must not be used again.
    is_broken: bool,
    #[expect(dead_code, reason = "given back when dropped")]
    turn: OwnedSemaphorePermit,
}

impl Way {
    pub(super) fn new(link: Link, turn: OwnedSemaphorePermit) -> Way {
        Way { link, is_broken: false, turn }
    }

    /// For what comes by itself.
    pub(super) fn link(&mut self) -> &mut Link {
        &mut self.link
    }

    /// The connection, if it may be used again.
    pub(super) fn into_link(self) -> Option<Link> {
        (!self.is_broken).then_some(self.link)
    }

    /// One request and its answer; again while the daemon asks for it and the deadline allows.
    pub(super) async fn exchange<T>(
        &mut self,
        call: &Call<T>,
        attempts: &mut Attempts,
    ) -> Result<Result<T>, Failure> {
        if std::mem::replace(&mut self.is_broken, true) {
            return Err(Failure::NotSent(Error::lost(false, std::io::ErrorKind::BrokenPipe)));
        }
        let exchanged = self.link.converse(call, attempts).await;
        // What is too large was not sent.
        self.is_broken = matches!(&exchanged, Err(failure) if !matches!(failure, Failure::NotSent(Error::TooLarge { .. })));
        exchanged
    }
}
