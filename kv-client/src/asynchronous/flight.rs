//! One load on its way, async: how callers of this process wait for it, and what it says to the daemon.
//!
//! Flown by `load` in a task of its own, which knows the caller's loader and types; here are bytes. Whoever leads owes those
//! who wait an end.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use kv_proto::Version;
use tokio::sync::watch;
use tokio::time::timeout_at;

use super::cache::Cache;
use super::lanes::Turns;
use super::way::Way;
use crate::answers::Entry;
use crate::error::{Error, Result};
use crate::load::OnBusy;
use crate::load::chain::Chain;
use crate::load::course::{
    Landing, Loaded, Patience, Progress, Served, Stage, Turn, loader_vanished, not_stored,
};
use crate::load::entry::LoadOptions;
use crate::load::glance::is_near_its_end;
use crate::observe::{Event, Source};
use crate::ops::{self, Filling, Loan, Terms};
use crate::retry::Failure;

/// The caller's loader with all that happens around it: it gets what is stale, and its lease.
pub(super) type Run = Box<dyn FnOnce(Option<Arc<[u8]>>, u64) -> Running + Send>;
pub(super) type Running = Pin<Box<dyn Future<Output = Result<Loaded>> + Send>>;

/// A load under way in this process.
#[derive(Debug)]
pub(super) struct Flight(watch::Sender<Progress>);

impl Default for Flight {
    fn default() -> Flight {
        Flight(watch::Sender::new(Progress::default()))
    }
}

impl Flight {
    pub(super) fn show_stale(&self, stale: &Served) {
        self.0.send_modify(|progress| progress.stale = Some(stale.clone()));
    }

    pub(super) fn reach(&self, stage: Stage) {
        self.0.send_modify(|progress| progress.stage = stage);
    }

    pub(super) fn land(&self, landing: Landing) {
        self.0.send_modify(|progress| progress.landing = Some(landing));
    }

    pub(super) fn is_landed(&self) -> bool {
        self.0.borrow().landing.is_some()
    }

    /// Waits for what `patience` waits for.
    pub(super) async fn wait(&self, patience: &Patience) -> Turn {
        let mut progress = self.0.subscribe();
        loop {
            let turn = patience.turn(&progress.borrow_and_update());
            // The sender lives as long as the flight, which is held here.
            match turn {
                Turn::Wait(None) => drop(progress.changed().await),
                Turn::Wait(Some(until)) => drop(timeout_at(until.into(), progress.changed()).await),
                turn => return turn,
            }
        }
    }
}

/// Whoever leads a flight, and owes those who wait an end: also when its loader panics, or its runtime ends.
pub(super) struct Lead {
    pub(super) cache: Cache,
    pub(super) key: Vec<u8>,
    pub(super) flight: Arc<Flight>,
}

impl Lead {
    /// Nobody comes aboard any more before anybody is told: who comes after the end, and after whatever its caller does
    /// then, begins anew.
    pub(super) fn land(&self, landing: Landing) {
        self.cache.client.here().flights.land(self.cache.seat.id(), &self.key, &self.flight);
        self.flight.land(landing);
    }
}

impl Drop for Lead {
    fn drop(&mut self) {
        if !self.flight.is_landed() {
            self.land(Landing::Failed(loader_vanished(self.cache.name(), &self.key)));
        }
    }
}

/// Everything one load needs, beside its loader.
pub(super) struct Course {
    pub(super) cache: Cache,
    pub(super) key: Vec<u8>,
    pub(super) options: LoadOptions,
    pub(super) except: Option<Version>,
    pub(super) chain: Chain,
    /// Longest wait for another process.
    pub(super) wait: Duration,
    /// By when the daemon answers at the latest, beside that wait.
    pub(super) answer_within: Duration,
}

impl Course {
    /// From the wish for a lease to what those who wait are told. `takes`: whether stored bytes are a value to this caller.
    pub(super) async fn fly(&self, flight: &Flight, takes: impl Fn(&[u8]) -> bool, run: Run) -> Landing {
        let (client, seat) = (&self.cache.client, &self.cache.seat);
        if !self.chain.is_empty() && !client.has_turn_for_load() {
            return self.fly_alone(false, run).await;
        }
        let asked = self.ask(self.except, self.wait).await;
        flight.reach(Stage::after(&asked));
        let (mut way, mut loan) = match asked {
            Ok(asked) => asked,
            Err(error) if error.is_outage() => return self.fly_alone(true, run).await,
            Err(error) => return Landing::Failed(error),
        };
        if let Loan::Hit(entry) = &loan
            && self.except.is_none()
            && !takes(&entry.value)
        {
            client.give_back(way);
            (way, loan) = match self.ask(Some(entry.version), self.wait).await {
                Ok(asked) => asked,
                Err(error) if error.is_outage() => return self.fly_alone(true, run).await,
                Err(error) => return Landing::Failed(error),
            };
        }
        match loan {
            Loan::Hit(entry) => {
                client.give_back(way);
                if entry.is_stale() {
                    client.here().flights.is_elsewhere(seat.id(), &self.key);
                } else if self.chain.is_empty()
                    && is_near_its_end(self.options.refresh_ahead, entry.age, entry.left())
                {
                    return self.fly_ahead(flight, entry, run).await;
                }
                Landing::Value(Served::of_entry(entry, Source::Socket))
            }
            Loan::Leased { lease, stale } => {
                // Of another schema, say: it is not served to anybody.
                let stale = stale.filter(|entry| takes(&entry.value));
                let stale = stale.map(|entry| Served::of_entry(entry, Source::Socket));
                let bytes = stale.as_ref().map(|stale| Arc::clone(&stale.bytes));
                self.fly_with(way, lease, flight, stale, |lease| run(bytes, lease)).await
            }
            Loan::Busy if self.options.on_busy == OnBusy::Fail => {
                client.give_back(way);
                Landing::Failed(Error::Timeout { waited: self.wait, maybe_applied: false })
            }
            Loan::Busy | Loan::Alone => {
                client.give_back(way);
                self.fly_alone(false, run).await
            }
        }
    }

    /// With a lease. `meanwhile` is served while it loads, and when it fails.
    pub(super) async fn fly_with(
        &self,
        mut way: Way,
        lease: u64,
        flight: &Flight,
        meanwhile: Option<Served>,
        run: impl FnOnce(u64) -> Running,
    ) -> Landing {
        if let Some(meanwhile) = &meanwhile {
            flight.show_stale(meanwhile);
        }
        match run(lease).await {
            Ok(loaded) => self.cache.store(way, lease, &loaded).await,
            Err(error) => {
                let throttle = if meanwhile.is_some() { self.options.throttle } else { Duration::ZERO };
                self.cache.abandon(&mut way, &[lease], throttle).await;
                self.cache.client.give_back(way);
                meanwhile.map_or(Landing::Failed(error), Landing::Value)
            }
        }
    }

    /// The daemon has it, but not for long: it is reloaded, if nobody else does.
    pub(super) async fn fly_ahead(&self, flight: &Flight, entry: Entry, run: Run) -> Landing {
        let asked = self.ask(Some(entry.version), Duration::ZERO).await;
        let there = Served::of_entry(entry, Source::Socket);
        match asked {
            Ok((way, Loan::Leased { lease, .. })) => {
                self.cache.seat.loads().refresh();
                self.fly_with(way, lease, flight, Some(there), |lease| run(None, lease)).await
            }
            Ok((way, Loan::Hit(_) | Loan::Busy | Loan::Alone)) => {
                self.cache.client.give_back(way);
                Landing::Value(there)
            }
            Err(_) => Landing::Value(there),
        }
    }

    pub(super) async fn ask(&self, except: Option<Version>, wait: Duration) -> Result<(Way, Loan)> {
        let terms = Terms { wait, safe: self.options.lease };
        let within = self.answer_within;
        let (way, mut loans) =
            self.cache.ask_for_lease(&[(&self.key, except)], terms, within, &self.chain).await?;
        match loans.pop() {
            Some(loan) if loans.is_empty() => Ok((way, loan)),
            Some(_) | None => Err(Error::invalid("the daemon answered a lease with another number of loans")),
        }
    }

    /// Without a lease: nothing is stored. While the daemon is away this process keeps it for itself.
    pub(super) async fn fly_alone(&self, outage: bool, run: Run) -> Landing {
        let (here, seat) = (self.cache.client.here(), &self.cache.seat);
        if outage && let Some(served) = here.outage.standby.get(seat.id(), &self.key) {
            return Landing::Value(served);
        }
        seat.loads().alone();
        let moment = here.outage.moment();
        match run(None, 0).await {
            Ok(loaded) => {
                let served = loaded.served();
                if outage && loaded.put.is_some() {
                    here.outage.keep(moment, seat.id(), &self.key, &served);
                }
                // Without a lease nobody but this process tells what happened meanwhile.
                if !here.outage.is_overtaken(moment) {
                    Landing::Value(served)
                } else {
                    Landing::Overtaken(served)
                }
            }
            Err(error) => Landing::Failed(error),
        }
    }
}

impl Cache {
    /// Asks for items, or for the leases to load them, on a way of its own.
    pub(super) async fn ask_for_lease<K: AsRef<[u8]>>(
        &self,
        wanted: &[(K, Option<Version>)],
        terms: Terms,
        within: Duration,
        chain: &Chain,
    ) -> Result<(Way, Vec<Loan>)> {
        let call = ops::lease(self.name(), wanted, terms, &chain.holds())?;
        let mut attempts = self.client.attempts_within(call.sending.repeat, within, terms.wait);
        // Waiting for one's turn says nothing about the daemon.
        let turn = self.client.turn(Turns::Loads, &attempts).await?;
        let answers = self.client.here().outage.answers();
        let set_out = self.client.set_out_in(&call, &mut attempts, turn).await;
        match &set_out {
            Ok(_) => self.client.attach_if_wanted(&self.seat),
            // The daemon answers before the wait is over, whatever others do.
            Err(error) => self.client.note_silence(ops::Lane::Reads, answers, within, error),
        }
        set_out
    }

    /// Fills, and gives the way back.
    pub(super) async fn store(&self, mut way: Way, lease: u64, loaded: &Loaded) -> Landing {
        let served = loaded.served();
        let Some(put) = &loaded.put else {
            self.abandon(&mut way, &[lease], Duration::ZERO).await;
            self.client.give_back(way);
            return Landing::Value(served);
        };
        match self.fill(&mut way, &[Filling { lease, value: &loaded.bytes, options: put }]).await {
            Ok(versions) => {
                self.client.give_back(way);
                if versions.first().is_some_and(Option::is_some) {
                    return Landing::Value(served);
                }
                self.seat.loads().lease_lost();
                self.client.settings().observer.observe(&Event::LeaseLost { cache: self.name() });
                Landing::Overtaken(served)
            }
            // The value is there all the same; closing the connection gives the lease back.
            Err(error) => {
                not_stored(&self.seat, self.client.settings(), &error);
                Landing::Value(served)
            }
        }
    }

    pub(super) async fn fill(&self, way: &mut Way, fillings: &[Filling<'_>]) -> Result<Vec<Option<Version>>> {
        self.on(way, &ops::fill(fillings)?).await
    }

    /// One more request on a way.
    pub(super) async fn on<A>(&self, way: &mut Way, call: &ops::Call<A>) -> Result<A> {
        let mut attempts = self.client.attempts(call.sending.repeat);
        way.exchange(call, &mut attempts).await.map_err(Failure::into_error)?
    }

    /// Best effort: a way that failed is closed, and the lease with it.
    pub(super) async fn abandon(&self, way: &mut Way, leases: &[u64], throttle: Duration) {
        if let Err(error) = self.on(way, &ops::abandon(leases, throttle)).await {
            tracing::debug!(%error, "a lease ends with its connection");
        }
    }
}
