//! A way to the daemon for requests that belong together: a connection of its own, or a session with an engine of this process.
//!
//! Taken by transactions, loads, locks and watches. Dropping it ends what was begun on it; it goes back to the pool only with
//! nothing open.

use kv_proto::wire::Response;

use super::connection::Connection;
use super::direct::{self, DirectSession};
use crate::error::{Error, Result};
use crate::ops::Call;
use crate::retry::{Attempts, Failure, Step};

/// How requests travel that belong together.
pub(super) struct Road {
    kind: Kind,
    /// An exchange on it failed: there may be an answer outstanding, and it must not be used again.
    is_broken: bool,
}

enum Kind {
    Socket(Connection),
    Direct(Box<dyn DirectSession>),
}

impl Road {
    pub(super) fn by_socket(connection: Connection) -> Road {
        Road { kind: Kind::Socket(connection), is_broken: false }
    }

    pub(super) fn direct(session: Box<dyn DirectSession>) -> Road {
        Road { kind: Kind::Direct(session), is_broken: false }
    }

    /// One request and its answer; again while the daemon asks for it and the deadline allows.
    pub(super) fn exchange<T>(
        &mut self,
        call: &Call<T>,
        attempts: &mut Attempts,
    ) -> Result<Result<T>, Failure> {
        if self.is_broken {
            return Err(Failure::NotSent(Error::lost(false, std::io::ErrorKind::BrokenPipe)));
        }
        let exchanged = self.kind.exchange(call, attempts);
        // What is too large was not sent.
        self.is_broken = matches!(&exchanged, Err(failure) if !matches!(failure, Failure::NotSent(Error::TooLarge { .. })));
        exchanged
    }

    /// The connection, if it may be used again.
    pub(super) fn into_connection(self) -> Option<Connection> {
        match self.kind {
            Kind::Socket(connection) => (!self.is_broken).then_some(connection),
            Kind::Direct(_) => None,
        }
    }
}

impl Kind {
    fn exchange<T>(&mut self, call: &Call<T>, attempts: &mut Attempts) -> Result<Result<T>, Failure> {
        match self {
            Kind::Direct(session) => {
                let engine =
                    |request: &[u8], answer: &mut Vec<u8>, deadline| session.call(request, answer, deadline);
                Ok(direct::call(engine, &call.sending, attempts, call.read))
            }
            Kind::Socket(connection) => loop {
                let frame = connection.exchange(&call.sending, None, attempts)?;
                let mut read = |response: Response<'_>| (call.read)(response);
                match attempts.answered(connection.answer(frame), &mut read) {
                    Step::Done(answer) => return Ok(answer),
                    Step::Again(pause) => std::thread::sleep(pause),
                    Step::Broken(error) => return Err(Failure::Sent(error)),
                }
            },
        }
    }
}
