//! A way to the daemon for requests that belong together: a connection of its own, and the turn that it takes.
//!
//! Taken by transactions, loads and locks. Dropping it closes the connection, which ends what was begun on it; it goes back
//! to the pool only with nothing open.

use tokio::sync::OwnedSemaphorePermit;

use super::link::Link;
use crate::error::Result;
use crate::ops::Call;
use crate::retry::{Attempts, Failure};

pub(super) struct Way {
    link: Link,
    #[expect(dead_code, reason = "given back when dropped")]
    turn: OwnedSemaphorePermit,
}

impl Way {
    pub(super) fn new(link: Link, turn: OwnedSemaphorePermit) -> Way {
        Way { link, turn }
    }

    /// For what comes by itself.
    pub(super) fn link(&mut self) -> &mut Link {
        &mut self.link
    }

    pub(super) fn into_link(self) -> Link {
        self.link
    }

    /// One request and its answer; again while the daemon asks for it and the deadline allows. The link knows when an answer is
    /// outstanding, also because a future was dropped half-way.
    pub(super) async fn exchange<T>(
        &mut self,
        call: &Call<T>,
        attempts: &mut Attempts,
    ) -> Result<Result<T>, Failure> {
        self.link.converse(call, attempts).await
    }
}
