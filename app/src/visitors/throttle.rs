//! Throttling: so many requests a minute and visitor, then `429` until the minute is over.
//!
//! From "Building a Large-scale E-commerce Site with Apache and mod_perl", which counted accesses of a visitor in compact logs: limits a period,
//! and no trust in the client. Here one counter a visitor in kvd, shared by all workers, made by its first `increment` with the period as its
//! life, so that it removes itself. The pitfall: counting where the visitor chooses who he is. Who has no session counts by address, and
//! a new session for each request therefore does not help. With kvd away nobody is throttled: the shop stays open.
//!
//! Two things it does not do. Who first fetches many sessions, as many as his address may, has a full limit with each of them afterwards. And an
//! address is whoever connects: behind a proxy that is the proxy, for all who have no session, so `--throttle-address` is then a limit of the
//! whole shop, and limits by address are the proxy's to set.

use std::time::Duration;

use kv_client::{Cache, Client, Initial, Life};

/// The period that is counted over.
const PERIOD: Duration = Duration::from_secs(60);

/// Requests a visitor may make in a minute.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Limits {
    /// With a session.
    pub(crate) session: i64,
    /// All without one, of one address: a school may share it.
    pub(crate) address: i64,
}

/// Whose request it is.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Whose<'a> {
    Session(&'a str),
    Address(std::net::IpAddr),
}

/// Counts and refuses. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Throttle {
    counters: Cache,
    limits: Limits,
}

impl Throttle {
    pub(crate) fn new(client: &Client, limits: Limits) -> Throttle {
        Throttle { counters: client.cache("throttle"), limits }
    }

    /// Counts a request; how long to wait if it is one too many.
    pub(crate) async fn admit(&self, whose: Whose<'_>) -> Result<(), Duration> {
        let (key, limit) = match whose {
            Whose::Session(id) => (format!("session:{id}"), self.limits.session),
            Whose::Address(ip) => (format!("address:{ip}"), self.limits.address),
        };
        match self.counters.increment(&key, 1, Initial::value(1).ttl(PERIOD)).await {
            Ok(count) if count > limit => {
                let left = match self.counters.ttl(&key).await {
                    Ok(Some(Life::Left(left))) => left,
                    _ => PERIOD,
                };
                Err(left)
            }
            Ok(_) => Ok(()),
            Err(error) => {
                tracing::debug!(%error, "nobody is throttled: the counters do not answer");
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_too_many_waits_and_others_do_not() {
        let server = kvd::testing::server();
        let client = Client::builder().socket(server.socket()).build().await.unwrap();
        let throttle = Throttle::new(&client, Limits { session: 10, address: 3 });
        for _ in 0..10 {
            throttle.admit(Whose::Session("a")).await.unwrap();
        }
        for _ in 0..90 {
            let wait = throttle.admit(Whose::Session("a")).await.unwrap_err();
            assert!(wait <= PERIOD && wait > PERIOD / 2, "{wait:?}");
        }
        throttle.admit(Whose::Session("b")).await.unwrap();
        let school = Whose::Address([192, 0, 2, 1].into());
        for _ in 0..3 {
            throttle.admit(school).await.unwrap();
        }
        throttle.admit(school).await.unwrap_err();
        server.clock().advance(PERIOD);
        throttle.admit(Whose::Session("a")).await.unwrap();
        throttle.admit(school).await.unwrap();
    }

    #[tokio::test]
    async fn nobody_is_throttled_without_counters() {
        let client = Client::builder().socket("/nowhere/kvd.sock").build_lazy();
        let throttle = Throttle::new(&client, Limits { session: 1, address: 1 });
        for _ in 0..5 {
            throttle.admit(Whose::Session("a")).await.unwrap();
        }
    }
}
