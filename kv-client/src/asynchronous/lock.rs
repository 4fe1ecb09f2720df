//! Named locks across the processes of a host, async.
//!
//! A lock belongs to a connection of its own: it is free again when it is given back, when this process ends, however it does, and
//! when somebody else wants it after its time. Made by [`Client::lock`].

use kv_proto::segment::process_id;
use std::time::Duration;

use kv_proto::limits::LEASE_WAIT_MAX;

use super::client::Client;
use super::lanes::Turns;
use super::way::Way;
use crate::error::{Error, Result};
use crate::load::chain::{Chain, Held, InChain};
use crate::ops::{self, Call, Terms};
use crate::retry::Failure;
use crate::transact::lock_wait;

/// A named lock that this process holds; given back when dropped, by closing its connection.
#[must_use = "a lock that is dropped is given back"]
pub struct LockGuard {
    client: Client,
    /// `None` once it is lost, and while a request is under way: a future that is dropped then gives the lock back.
    way: Option<Way>,
    name: Box<str>,
    fence: u64,
    duration: Duration,
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
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), kv_client::Error> {
    /// # let server = kvd::testing::server();
    /// # let client = kv_client::Client::builder().socket(server.socket()).build().await?;
    /// use std::time::Duration;
    /// let lock = client.lock("nightly-report", Duration::from_secs(60)).await?;
    /// assert!(client.try_lock("nightly-report", Duration::from_secs(60)).await?.is_none());
    /// lock.unlock().await?;
    /// assert!(client.try_lock("nightly-report", Duration::from_secs(60)).await?.is_some());
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`ErrorKind::Timeout`](crate::ErrorKind::Timeout) names who has it; [`ErrorKind::Deadlock`](crate::ErrorKind::Deadlock)
    /// when whoever has it waits for this caller.
    pub async fn lock(&self, name: &str, duration: Duration) -> Result<LockGuard> {
        self.lock_within(name, duration, lock_wait(self.op_timeout())).await
    }

    /// As [`lock`](Client::lock), waiting up to `wait` for whoever has it, at most 60 s.
    ///
    /// # Errors
    /// As [`lock`](Client::lock).
    pub async fn lock_within(&self, name: &str, duration: Duration, wait: Duration) -> Result<LockGuard> {
        let wait = wait.min(LEASE_WAIT_MAX);
        let locked = self.take_lock(name, duration, wait).await?;
        locked.map_err(|holder| Error::lock_busy(name, wait, &holder))
    }

    /// Locks a name if nobody has it.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn try_lock(&self, name: &str, duration: Duration) -> Result<Option<LockGuard>> {
        Ok(self.take_lock(name, duration, Duration::ZERO).await?.ok())
    }

    async fn take_lock(
        &self,
        name: &str,
        duration: Duration,
        wait: Duration,
    ) -> Result<Result<LockGuard, String>> {
        let call = ops::lock(name, Terms { wait, safe: duration }, &Chain::current().holds())?;
        let mut attempts = self.attempts_within(call.sending.repeat, self.op_timeout(), wait);
        let (way, locked) = self.set_out(&call, &mut attempts, Turns::Waits).await?;
        Ok(match locked {
            Ok(fence) => {
                let process = process_id();
                Ok(LockGuard {
                    client: self.clone(),
                    way: Some(way),
                    name: name.into(),
                    fence,
                    duration,
                    process,
                })
            }
            Err(holder) => {
                self.give_back(way);
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

    /// Does `work` as the holder of this lock: what waits inside it for somebody who waits for this lock gets
    /// [`ErrorKind::Deadlock`](crate::ErrorKind::Deadlock), or loads by itself, instead of waiting for its deadline.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), kv_client::Error> {
    /// # let server = kvd::testing::server();
    /// # let client = kv_client::Client::builder().socket(server.socket()).build().await?;
    /// let second = std::time::Duration::from_secs(1);
    /// let lock = client.lock("report", second).await?;
    /// let again = lock.hold(client.lock("report", second)).await;
    /// assert_eq!(again.unwrap_err().kind(), kv_client::ErrorKind::Deadlock);
    /// # Ok(())
    /// # }
    /// ```
    pub async fn hold<T>(&self, work: impl Future<Output = T>) -> T {
        InChain::new(Chain::current().locking(self.fence, &Held::begin()), work).await
    }

    /// Keeps it for another `duration`, as it was locked with, from now.
    ///
    /// # Errors
    /// [`ErrorKind::LeaseLost`](crate::ErrorKind::LeaseLost) when somebody else has it by now: stop what it was for.
    pub async fn renew(&mut self) -> Result<()> {
        self.call(&ops::renew_lock(self.fence, self.duration)).await
    }

    /// Gives it back, as dropping it does, and says whether it was held to the end.
    ///
    /// # Errors
    /// [`ErrorKind::LeaseLost`](crate::ErrorKind::LeaseLost) when somebody else has it by now.
    pub async fn unlock(mut self) -> Result<()> {
        let unlocked = self.call(&ops::unlock(self.fence)).await;
        if let Some(way) = self.way.take_if(|_| unlocked.is_ok()) {
            self.client.give_back(way);
        }
        unlocked
    }

    async fn call(&mut self, call: &Call<()>) -> Result<()> {
        // What a child inherited is its parent's.
        let is_here = self.process == process_id();
        let Some(mut way) = self.way.take_if(|_| is_here) else { return Err(Error::lock_lost(&self.name)) };
        let mut attempts = self.client.attempts(call.sending.repeat);
        let answer = way.exchange(call, &mut attempts).await.map_err(Failure::into_error)?;
        self.way = Some(way);
        answer
    }
}

impl Drop for LockGuard {
    /// What a child inherited is its parent's: it is forgotten, because dropping it would take it off the epoll instance that
    /// both share.
    fn drop(&mut self) {
        if self.process != process_id() {
            std::mem::forget(self.way.take());
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
