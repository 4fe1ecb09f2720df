//! Named locks across the processes of a host, blocking.
//!
//! A lock belongs to a connection of its own: it is free again when it is given back, when this process ends, however it does, and
//! when somebody else wants it after its time. Made by [`Client::lock`]; loads and locks further down the call stack
//! tell the daemon that this thread holds it, so that nobody waits in a ring.

use kv_proto::segment::process_id;
use std::time::Duration;

use kv_proto::limits::LEASE_WAIT_MAX;

use super::client::Client;
use super::road::Road;
use crate::error::{Error, Result};
use crate::load::chain::{Chain, Held};
use crate::ops::{self, Call, Terms};
use crate::retry::{Attempts, Failure};
use crate::transact::lock_wait;

/// A named lock that this process holds; given back when dropped.
#[must_use = "a lock that is dropped is given back"]
pub struct LockGuard {
    client: Client,
    /// `None` once it is lost.
    road: Option<Road>,
    name: Box<str>,
    fence: u64,
    duration: Duration,
    /// What this thread, or the one that locked, says of it to those it asks for others.
    held: Held,
    process: u32,
}

impl Client {
    /// Locks a name for this process, waiting up to the operation timeout for whoever has it. After `duration` the lock is no
    /// longer safe: the next who wants it gets it, unless it is [renewed](LockGuard::renew).
    ///
    /// For jobs that one process of the host should do at a time. What must not be done by a holder that has lost the lock without
    /// noticing (it was stopped, its clock stood still) is to be guarded by [`LockGuard::fence`].
    ///
    /// ```
    /// # let server = kvd::testing::server();
    /// # let client = kv_client::blocking::Client::builder().socket(server.socket()).build()?;
    /// use std::time::Duration;
    /// let lock = client.lock("nightly-report", Duration::from_secs(60))?;
    /// assert!(client.try_lock("nightly-report", Duration::from_secs(60))?.is_none());
    /// lock.unlock()?;
    /// assert!(client.try_lock("nightly-report", Duration::from_secs(60))?.is_some());
    /// # Ok::<(), kv_client::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`ErrorKind::Timeout`](crate::ErrorKind::Timeout) names who has it; [`ErrorKind::Deadlock`](crate::ErrorKind::Deadlock)
    /// when whoever has it waits for this caller.
    pub fn lock(&self, name: &str, duration: Duration) -> Result<LockGuard> {
        self.lock_within(name, duration, lock_wait(self.op_timeout()))
    }

    /// As [`lock`](Client::lock), waiting up to `wait` for whoever has it, at most 60 s.
    ///
    /// # Errors
    /// As [`lock`](Client::lock).
    pub fn lock_within(&self, name: &str, duration: Duration, wait: Duration) -> Result<LockGuard> {
        let wait = wait.min(LEASE_WAIT_MAX);
        let locked = self.take_lock(name, duration, wait)?;
        locked.map_err(|holder| Error::lock_busy(name, wait, &holder))
    }

    /// Locks a name if nobody has it.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn try_lock(&self, name: &str, duration: Duration) -> Result<Option<LockGuard>> {
        Ok(self.take_lock(name, duration, Duration::ZERO)?.ok())
    }

    fn take_lock(&self, name: &str, duration: Duration, wait: Duration) -> Result<Result<LockGuard, String>> {
        let chain = Chain::current();
        let call = ops::lock(name, Terms { wait, safe: duration }, &chain.holds())?;
        let mut attempts = self.attempts_within(call.sending.repeat, self.op_timeout(), wait);
        let (road, locked) = self.set_out(&call, &mut attempts)?;
        Ok(match locked {
            Ok(fence) => {
                let (held, process) = (Held::begin(), process_id());
                chain.locking(fence, &held).set();
                let (client, road, name) = (self.clone(), Some(road), name.into());
                Ok(LockGuard { client, road, name, fence, duration, held, process })
            }
            Err(holder) => {
                self.give_back(road);
                Err(holder)
            }
        })
    }
}

impl LockGuard {
    /// A number that grows with every locking of anything: whoever guards something by this lock can refuse what comes with a
    /// smaller one than it has seen.
    #[must_use]
    pub fn fence(&self) -> u64 {
        self.fence
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Keeps it for another `duration`, as it was locked with, from now.
    ///
    /// ```
    /// # let server = kvd::testing::server();
    /// # let client = kv_client::blocking::Client::builder().socket(server.socket()).build()?;
    /// let mut lock = client.lock("nightly-report", std::time::Duration::from_secs(60))?;
    /// for _chapter in 0..3 {
    ///     lock.renew()?;
    /// }
    /// # Ok::<(), kv_client::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`ErrorKind::LeaseLost`](crate::ErrorKind::LeaseLost) when somebody else has it by now: stop what it was for.
    pub fn renew(&mut self) -> Result<()> {
        self.call(&ops::renew_lock(self.fence, self.duration))
    }

    /// Gives it back, as dropping it does, and says whether it was held to the end.
    ///
    /// # Errors
    /// [`ErrorKind::LeaseLost`](crate::ErrorKind::LeaseLost) when somebody else has it by now.
    pub fn unlock(mut self) -> Result<()> {
        self.give_back()
    }

    fn give_back(&mut self) -> Result<()> {
        let unlocked = self.call(&ops::unlock(self.fence));
        if let Some(road) = self.road.take_if(|_| unlocked.is_ok()) {
            self.client.give_back(road);
        }
        unlocked
    }

    fn call(&mut self, call: &Call<()>) -> Result<()> {
        // What a child inherited is its parent's.
        let is_here = self.process == process_id();
        let Some(road) = self.road.as_mut().filter(|_| is_here) else {
            return Err(Error::lock_lost(&self.name));
        };
        let mut attempts: Attempts = self.client.attempts(call.sending.repeat);
        road.exchange(call, &mut attempts).map_err(Failure::into_error).unwrap_or_else(|error| {
            self.road = None;
            Err(error)
        })
    }
}

impl Drop for LockGuard {
    fn drop(&mut self) {
        self.held.end();
        if self.road.is_some() && self.process == process_id() {
            // If it cannot be said, closing the connection says it.
            let _ = self.give_back();
        }
    }
}

impl std::fmt::Debug for LockGuard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LockGuard")
            .field("name", &self.name)
            .field("fence", &self.fence)
            .finish_non_exhaustive()
    }
}
