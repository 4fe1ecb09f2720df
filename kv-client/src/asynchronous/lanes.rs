//! What one process has of the async client: the connections that requests share, those they have alone, and whose turn it is.
//!
//! Used by the client's calls.

use std::sync::Arc;

use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout_at};

use super::flight::Flight;
use super::link::Link;
use super::pipe::Lane;
use crate::error::{Error, Result};
use crate::fork::Inherited;
use crate::limits::{LOADS_MAX, WAITING_CONNECTIONS_MAX};
use crate::load::flights::Flights;
use crate::lock::Lock;
use crate::ops::Sending;
use crate::options::Settings;
use crate::outage::Outage;
use crate::retry::{Attempts, Failure};

/// What one process has of the client: its connections, and the loads under way.
pub(super) struct Lanes {
    pub(super) reads: Lane,
    pub(super) writes: Lane,
    /// Turns for requests that may wait, and the connections nobody uses just now.
    pub(super) waits: Arc<Semaphore>,
    /// Turns for loads. Others, because a loader may itself make requests that wait.
    pub(super) loads: Arc<Semaphore>,
    pub(super) idle: Lock<Vec<Link>>,
    pub(super) outage: Arc<Outage>,
    pub(super) flights: Flights<Flight>,
}

impl Default for Lanes {
    fn default() -> Lanes {
        Lanes {
            reads: Lane::default(),
            writes: Lane::default(),
            waits: Arc::new(Semaphore::new(WAITING_CONNECTIONS_MAX)),
            loads: Arc::new(Semaphore::new(LOADS_MAX)),
            idle: Lock::default(),
            outage: Arc::default(),
            flights: Flights::default(),
        }
    }
}

impl Inherited for Lanes {
    /// The parent's streams are left alone: they hang on its runtime.
    fn begin_anew(&self) -> Lanes {
        Lanes { outage: Arc::new(self.outage.begin_anew()), ..Lanes::default() }
    }
}

/// Whose turns a way takes one of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Turns {
    /// Transactions, locks, durable writes.
    Waits,
    /// Loads.
    Loads,
}

impl Lanes {
    pub(super) async fn pipelined(
        &self,
        lane: &Lane,
        settings: &Settings,
        sending: &Sending,
        attempts: &mut Attempts,
    ) -> Result<Result<Vec<u8>, Failure>> {
        let pipe = lane.pipe(settings, &self.outage, attempts).await?;
        Ok(pipe.exchange(sending, attempts).await)
    }

    pub(super) fn give_back(&self, link: Link, settings: &Settings) {
        if !link.is_sound() {
            return;
        }
        let mut idle = self.idle.lock();
        if idle.len() < settings.idle_connections_max {
            idle.push(link);
        }
    }

    /// With a connection to itself, for requests that may wait for the disk. If the future is dropped, the connection is
    /// closed: nobody else gets the answer.
    pub(super) async fn alone(
        &self,
        settings: &Settings,
        sending: &Sending,
        attempts: &mut Attempts,
    ) -> Result<Result<Vec<u8>, Failure>> {
        let turn = timeout_at(attempts.deadline().into(), self.waits.acquire()).await;
        let _turn =
            turn.map_err(|_elapsed| attempts.timed_out(false))?.expect("the semaphore is never closed");
        loop {
            let idle = self.idle.lock().pop();
            let pooled = idle.is_some();
            let mut link = match idle {
                Some(link) => link,
                None => connect(settings, &self.outage, attempts).await?,
            };
            match link.exchange(sending, attempts).await {
                Ok(frame) => {
                    let body = link.inbox.frame(frame).to_vec();
                    self.give_back(link, settings);
                    return Ok(Ok(body));
                }
                // The daemon has gone since: so have the other connections to it. At most the pool's number of times.
                Err(Failure::NotSent(Error::Lost { .. })) if pooled => {}
                Err(failure) => return Ok(Err(failure)),
            }
        }
    }
}

/// Connects, again while that is right.
pub(super) async fn connect(
    settings: &Settings,
    outage: &Arc<Outage>,
    attempts: &mut Attempts,
) -> Result<Link> {
    loop {
        match Link::open(settings, attempts.connect_deadline()).await {
            Ok(link) => {
                outage.over(settings);
                return Ok(link);
            }
            Err(error) if attempts.is_too_brief_for(settings, &error) => {
                return Err(attempts.timed_out(false));
            }
            Err(error) => {
                let pause = attempts.not_connected(error, outage).inspect_err(|error| {
                    if matches!(error, Error::Unreachable { .. }) && outage.was_there() {
                        outage.open(settings, error);
                    }
                })?;
                sleep(pause).await;
            }
        }
    }
}
