//! A way to the daemon for requests that belong together: a connection of its own, or a session with an engine of this process.
//!
//! Taken by transactions, loads, locks and watches. Dropping it ends what was begun on it; it goes back to the pool only with
//! nothing open. One whose answer never came does not.

use kv_proto::wire::Response;

use super::connection::Connection;
use super::direct::{self, DirectSession};
use crate::error::Result;
use crate::ops::Call;
use crate::retry::{Attempts, Failure, Step};

/// How requests travel that belong together.
pub(super) enum Road {
    Socket(Connection),
    Direct(Box<dyn DirectSession>),
}

impl Road {
    /// The connection, for the pool.
    pub(super) fn into_connection(self) -> Option<Connection> {
        match self {
            Road::Socket(connection) => Some(connection),
            Road::Direct(_) => None,
        }
    }

    /// One request and its answer; again while the daemon asks for it and the deadline allows.
    pub(super) fn exchange<T>(
        &mut self,
        call: &Call<T>,
        attempts: &mut Attempts,
    ) -> Result<Result<T>, Failure> {
        match self {
            Road::Direct(session) => {
                let engine =
                    |request: &[u8], answer: &mut Vec<u8>, deadline| session.call(request, answer, deadline);
                Ok(direct::call(engine, &call.sending, attempts, call.read))
            }
            Road::Socket(connection) => loop {
                let frame = connection.exchange(&call.sending, None, attempts)?;
                let mut read = |response: Response<'_>| (call.read)(response);
                match attempts.answered(connection.answer(frame), &mut read) {
                    Step::Done(answer) => return Ok(answer),
                    Step::Again(pause) => std::thread::sleep(pause),
                    Step::Broken(error) => {
                        connection.spoil();
                        return Err(Failure::Sent(error));
                    }
                }
            },
        }
    }
}
