//! Leases, named locks and watching as a session meets them, without a socket. What waits is awaited in the table of locks, never slept for.

use std::sync::Arc;
use std::time::{Duration, Instant};

use kv_proto::wire::{
    Effect, ErrorKind, Filling, Freshness, Item, Loan, PutOptions, Request, Response, Scope, Want, Wanted,
    decode,
};

use super::{Engine, Session};
use crate::clock::Clock;
use crate::config::Config;
use crate::txn::PartyKind;

/// Long enough for a busy machine, short enough to end a hung test.
const PATIENCE: Duration = Duration::from_secs(20);
/// A wait that is over only when somebody is woken.
const LONG_MS: u32 = 15_000;

struct House {
    _dir: tempfile::TempDir,
    engine: Arc<Engine>,
    clock: Clock,
}

fn house() -> House {
    house_with(|_| {})
}

fn house_with(change: impl FnOnce(&mut Config)) -> House {
    let dir = tempfile::tempdir().unwrap();
    let mut config = Config::in_dir(dir.path());
    config.memory_bytes = 32 << 20;
    config.default.memory_bytes = 4 << 20;
    config.journal_bytes_max = 16 << 20;
    change(&mut config);
    let clock = Clock::system();
    let engine = Engine::open(config, clock.clone()).unwrap();
    House { _dir: dir, engine, clock }
}

impl House {
    fn somebody(&self) -> Somebody {
        Somebody { engine: Arc::clone(&self.engine), session: Session::of_process() }
    }

    /// Until so many wait for leases or names.
    fn await_waiting(&self, count: usize) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let waiting = {
                let state = self.engine.lock();
                let waits = |kind| kind == PartyKind::Load || kind == PartyKind::Lock;
                state
                    .locks
                    .parties()
                    .filter(|(_, party)| waits(party.kind) && party.waits().is_some())
                    .count()
            };
            if waiting == count {
                return;
            }
            assert!(Instant::now() < deadline, "{waiting} wait, not {count}");
            std::thread::yield_now();
        }
    }

    /// Of all who hold or wait.
    fn numbers(&self) -> Vec<u64> {
        self.engine.lock().locks.parties().map(|(number, _)| number).collect()
    }

    fn counted(&self, name: &str) -> f64 {
        self.somebody().ask(Request::Stats, |response| match response {
            Response::Metrics(rows) => {
                rows.iter().filter(|row| row.name == name).map(|row| row.value).sum::<f64>()
            }
            other => panic!("{other:?}"),
        })
    }
}

/// A session and its calls.
struct Somebody {
    engine: Arc<Engine>,
    session: Session,
}

impl Drop for Somebody {
    fn drop(&mut self) {
        self.engine.leave(&mut self.session);
    }
}

/// A loan with the texts of its values.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Got {
    Hit(String, Freshness),
    Leased(u64, Option<String>),
    Busy,
    Alone,
}

fn text(item: &Item<'_>) -> String {
    String::from_utf8(item.value.to_vec()).unwrap()
}

fn fresh(value: &str) -> Got {
    Got::Hit(value.to_owned(), Freshness::Fresh)
}

fn stale(value: &str) -> Got {
    Got::Hit(value.to_owned(), Freshness::Stale)
}

impl Got {
    fn lease(self) -> u64 {
        match self {
            Got::Leased(lease, _) => lease,
            other => panic!("{other:?} is no lease"),
        }
    }
}

impl Somebody {
    fn ask<T>(&mut self, request: Request<'_>, read: impl FnOnce(Response<'_>) -> T) -> T {
        let mut answer = Vec::new();
        self.engine.apply(&mut self.session, &request, &mut answer);
        read(decode(&answer[4..]).unwrap())
    }

    fn lend(&mut self, keys: &[Wanted<'_>], wait_ms: u32, lease_ms: u32, holds: &[u64]) -> Vec<Got> {
        let (keys, holds) = (keys.to_vec(), holds.to_vec());
        self.ask(Request::Lease { cache: "c", keys, wait_ms, lease_ms, holds }, |response| match response {
            Response::Loans(loans) => loans.iter().map(got).collect(),
            other => panic!("{other:?}"),
        })
    }

    fn lease_for(&mut self, key: &str, wait_ms: u32, lease_ms: u32, holds: &[u64]) -> Got {
        let wanted = Wanted { key: key.as_bytes(), except: None };
        self.lend(&[wanted], wait_ms, lease_ms, holds).pop().unwrap()
    }

    fn lease(&mut self, key: &str, wait_ms: u32) -> Got {
        self.lease_for(key, wait_ms, 600_000, &[])
    }

    fn lease_except(&mut self, key: &str, version: u64) -> Got {
        let wanted = Wanted { key: key.as_bytes(), except: Some(version) };
        self.lend(&[wanted], 0, 600_000, &[]).pop().unwrap()
    }

    fn fill_with(
        &mut self,
        lease: u64,
        value: &str,
        options: PutOptions<'_>,
    ) -> Result<Option<u64>, ErrorKind> {
        let fills = vec![Filling { lease, value: value.as_bytes(), options }];
        self.ask(Request::Fill { fills }, |response| match response {
            Response::Filled(versions) => Ok(versions[0]),
            Response::Error(error) => Err(error.kind),
            other => panic!("{other:?}"),
        })
    }

    /// Whether it was taken.
    fn fill(&mut self, lease: u64, value: &str) -> bool {
        self.fill_with(lease, value, PutOptions::default()).unwrap().is_some()
    }

    fn abandon(&mut self, lease: u64, retry_after_ms: u32) {
        let request = Request::Abandon { leases: vec![lease], retry_after_ms };
        self.ask(request, |response| assert_eq!(response, Response::Done));
    }

    fn write(&mut self, request: Request<'_>) -> u64 {
        self.ask(request, |response| match response {
            Response::Written { version } => version,
            other => panic!("{other:?}"),
        })
    }

    fn put(&mut self, key: &str, value: &str) -> u64 {
        let options = PutOptions { ttl_ms: Some(1_000), stale_for_ms: 600_000, ..PutOptions::default() };
        self.write(Request::Put { cache: "c", key: key.as_bytes(), value: value.as_bytes(), options })
    }

    fn clear(&mut self, scope: Scope<'_>, effect: Effect) {
        self.write(Request::Clear { scope, effect });
    }

    fn get(&mut self, key: &str) -> Option<String> {
        let request = Request::Get { cache: "c", key: key.as_bytes(), sliding: None, want: Want::Value };
        self.ask(request, |response| match response {
            Response::Item(item) => Some(text(&item)),
            Response::Missing => None,
            other => panic!("{other:?}"),
        })
    }

    fn lock_for(
        &mut self,
        name: &str,
        lock_ms: u32,
        wait_ms: u32,
        holds: &[u64],
    ) -> Result<u64, (Option<ErrorKind>, String)> {
        let request = Request::Lock { name, lock_ms, wait_ms, holds: holds.to_vec() };
        self.ask(request, |response| match response {
            Response::Locked { fence } => Ok(fence),
            Response::Busy { holder } => Err((None, holder.to_owned())),
            Response::Error(error) => Err((Some(error.kind), error.message.to_owned())),
            other => panic!("{other:?}"),
        })
    }

    fn lock(&mut self, name: &str, wait_ms: u32) -> Result<u64, (Option<ErrorKind>, String)> {
        self.lock_for(name, 600_000, wait_ms, &[])
    }

    /// `Done`, `Missing`, or the kind of the error.
    fn say(&mut self, request: Request<'_>) -> String {
        self.ask(request, |response| match response {
            Response::Error(error) => format!("{:?}", error.kind),
            other => format!("{other:?}"),
        })
    }

    fn begin(&mut self) -> u64 {
        let request = Request::Begin { read_only: false, wait_ms: 5_000, first: 0, tries: 0 };
        self.ask(request, |response| match response {
            Response::Begun { transaction } => transaction,
            other => panic!("{other:?}"),
        })
    }
}

fn got(loan: &Loan<'_>) -> Got {
    match loan {
        Loan::Hit(item) => {
            let entry = item.entry.as_ref().expect("a hit comes with its entry");
            Got::Hit(text(item), entry.freshness)
        }
        Loan::Leased { lease, stale } => Got::Leased(*lease, stale.as_ref().map(text)),
        Loan::Busy => Got::Busy,
        Loan::Alone => Got::Alone,
    }
}

mod leases;
mod named;
mod storm;
mod warm;
mod watching;
