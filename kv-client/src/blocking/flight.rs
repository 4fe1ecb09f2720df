//! One load on its way, blocking: how callers of this process wait for it, and what it says to the daemon.
//!
//! Flown by `load`, which knows the caller's loader and types; here are bytes. Whoever leads owes those who wait an end.

use std::sync::Arc;
use std::time::Duration;

use kv_proto::Version;

use super::cache::Cache;
use super::road::Road;
use crate::answers::Entry;
use crate::error::{Error, Result};
use crate::load::OnBusy;
use crate::load::chain::Chain;
use crate::load::course::{
    Landing, Loaded, Patience, Progress, Served, Stage, Turn, loader_vanished, not_stored,
};
use crate::load::entry::LoadOptions;
use crate::load::glance::is_near_its_end;
use crate::lock::{Lock, Signal};
use crate::observe::{Event, Source};
use crate::ops::{self, Filling, Loan, Terms};

/// A load under way in this process.
#[derive(Debug, Default)]
pub(super) struct Flight {
    progress: Lock<Progress>,
    turned: Signal,
}

impl Flight {
    pub(super) fn show_stale(&self, stale: &Served) {
        self.progress.lock().stale = Some(stale.clone());
        self.turned.all();
    }

    pub(super) fn reach(&self, stage: Stage) {
        self.progress.lock().stage = stage;
        self.turned.all();
    }

    pub(super) fn land(&self, landing: Landing) {
        self.progress.lock().landing = Some(landing);
        self.turned.all();
    }

    /// How it ended, if it did.
    pub(super) fn landing(&self) -> Option<Landing> {
        self.progress.lock().landing.clone()
    }

    /// Waits for what `patience` waits for.
    pub(super) fn wait(&self, patience: &Patience) -> Turn {
        let mut progress = self.progress.lock();
        loop {
            match patience.turn(&progress) {
                Turn::Wait(until) => progress = self.turned.wait(progress, until),
                turn => return turn,
            }
        }
    }
}

/// Whoever leads a flight, and owes those who wait an end: also when its loader panics, or never runs.
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
        if self.flight.landing().is_none() {
            self.land(Landing::Failed(loader_vanished(self.cache.name(), &self.key)));
        }
    }
}

/// Everything one load needs, beside its loader. Owned, so that a thread of its own can fly it.
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
    /// From the wish for a lease to what those who wait are told. `run` loads: it gets what is stale, and its lease. `takes`:
    /// whether stored bytes are a value to this caller.
    pub(super) fn fly(
        &self,
        flight: &Flight,
        takes: impl Fn(&[u8]) -> bool,
        run: impl FnOnce(Option<Arc<[u8]>>, u64) -> Result<Loaded>,
    ) -> Landing {
        let (here, seat) = (self.cache.client.here(), &self.cache.seat);
        let asked = self.ask(self.except, self.wait);
        flight.reach(Stage::after(&asked));
        let (mut road, mut loan) = match asked {
            Ok(asked) => asked,
            Err(error) if error.is_outage() => return self.fly_alone(true, run),
            Err(error) => return Landing::Failed(error),
        };
        if let Loan::Hit(entry) = &loan
            && self.except.is_none()
            && !takes(&entry.value)
        {
            self.cache.client.give_back(road);
            (road, loan) = match self.ask(Some(entry.version), self.wait) {
                Ok(asked) => asked,
                Err(error) if error.is_outage() => return self.fly_alone(true, run),
                Err(error) => return Landing::Failed(error),
            };
        }
        match loan {
            Loan::Hit(entry) => {
                self.cache.client.give_back(road);
                if entry.is_stale() {
                    here.flights.is_elsewhere(seat.id(), &self.key);
                } else if self.chain.is_empty()
                    && is_near_its_end(self.options.refresh_ahead, entry.age, entry.left())
                {
                    return self.fly_ahead(flight, entry, run);
                }
                Landing::Value(Served::of_entry(entry, Source::Socket))
            }
            Loan::Leased { lease, stale } => {
                // Of another schema, say: it is not served to anybody.
                let stale = stale.filter(|entry| takes(&entry.value));
                let stale = stale.map(|entry| Served::of_entry(entry, Source::Socket));
                let bytes = stale.as_ref().map(|stale| Arc::clone(&stale.bytes));
                self.fly_with(road, lease, flight, stale, |lease| run(bytes, lease))
            }
            Loan::Busy if self.options.on_busy == OnBusy::Fail => {
                self.cache.client.give_back(road);
                Landing::Failed(Error::Timeout { waited: self.wait, maybe_applied: false })
            }
            Loan::Busy | Loan::Alone => {
                self.cache.client.give_back(road);
                self.fly_alone(false, run)
            }
        }
    }

    /// With a lease. `meanwhile` is served while it loads, and when it fails.
    pub(super) fn fly_with(
        &self,
        mut road: Road,
        lease: u64,
        flight: &Flight,
        meanwhile: Option<Served>,
        run: impl FnOnce(u64) -> Result<Loaded>,
    ) -> Landing {
        if let Some(meanwhile) = &meanwhile {
            flight.show_stale(meanwhile);
        }
        match run(lease) {
            Ok(loaded) => self.cache.store(road, lease, &loaded),
            Err(error) => {
                let throttle = if meanwhile.is_some() { self.options.throttle } else { Duration::ZERO };
                self.cache.abandon(&mut road, &[lease], throttle);
                self.cache.client.give_back(road);
                meanwhile.map_or(Landing::Failed(error), Landing::Value)
            }
        }
    }

    /// The daemon has it, but not for long: it is reloaded, if nobody else does.
    pub(super) fn fly_ahead(
        &self,
        flight: &Flight,
        entry: Entry,
        run: impl FnOnce(Option<Arc<[u8]>>, u64) -> Result<Loaded>,
    ) -> Landing {
        let asked = self.ask(Some(entry.version), Duration::ZERO);
        let there = Served::of_entry(entry, Source::Socket);
        match asked {
            Ok((road, Loan::Leased { lease, .. })) => {
                self.cache.seat.loads().refresh();
                self.fly_with(road, lease, flight, Some(there), |lease| run(None, lease))
            }
            Ok((road, Loan::Hit(_) | Loan::Busy | Loan::Alone)) => {
                self.cache.client.give_back(road);
                Landing::Value(there)
            }
            Err(_) => Landing::Value(there),
        }
    }

    pub(super) fn ask(&self, except: Option<Version>, wait: Duration) -> Result<(Road, Loan)> {
        let terms = Terms { wait, safe: self.options.lease };
        let within = self.answer_within;
        let (road, mut loans) =
            self.cache.ask_for_lease(&[(&self.key, except)], terms, within, &self.chain)?;
        match loans.pop() {
            Some(loan) if loans.is_empty() => Ok((road, loan)),
            Some(_) | None => Err(Error::invalid("the daemon answered a lease with another number of loans")),
        }
    }

    /// Without a lease: nothing is stored. While the daemon is away this process keeps it for itself.
    pub(super) fn fly_alone(
        &self,
        outage: bool,
        run: impl FnOnce(Option<Arc<[u8]>>, u64) -> Result<Loaded>,
    ) -> Landing {
        let (here, seat) = (self.cache.client.here(), &self.cache.seat);
        if outage && let Some(served) = here.outage.standby.get(seat.id(), &self.key) {
            return Landing::Value(served);
        }
        seat.loads().alone();
        let moment = here.outage.moment();
        match run(None, 0) {
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
    pub(super) fn ask_for_lease<K: AsRef<[u8]>>(
        &self,
        wanted: &[(K, Option<Version>)],
        terms: Terms,
        within: Duration,
        chain: &Chain,
    ) -> Result<(Road, Vec<Loan>)> {
        let call = ops::lease(self.name(), wanted, terms, &chain.holds())?;
        let settings = self.client.settings();
        let answers = self.client.here().outage.answers();
        let mut attempts = self.client.attempts_within(call.sending.repeat, within, terms.wait);
        let set_out = self.client.set_out(&call, &mut attempts);
        // The daemon answers before the wait is over, whatever others do.
        set_out
            .inspect_err(|error| self.client.note_silence(ops::Lane::Reads, answers, within, error))
            .inspect(|_| {
                self.seat.attach_if_wanted(settings, attempts.deadline());
            })
    }

    /// Fills, and gives the way back.
    pub(super) fn store(&self, mut road: Road, lease: u64, loaded: &Loaded) -> Landing {
        let served = loaded.served();
        let Some(put) = &loaded.put else {
            self.abandon(&mut road, &[lease], Duration::ZERO);
            self.client.give_back(road);
            return Landing::Value(served);
        };
        let filled = self.fill(&mut road, &[Filling { lease, value: &loaded.bytes, options: put }]);
        match filled {
            Ok(versions) => {
                self.client.give_back(road);
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

    pub(super) fn fill(&self, road: &mut Road, fillings: &[Filling<'_>]) -> Result<Vec<Option<Version>>> {
        self.on(road, &ops::fill(fillings)?)
    }

    /// One more request on a way.
    pub(super) fn on<A>(&self, road: &mut Road, call: &ops::Call<A>) -> Result<A> {
        let mut attempts = self.client.attempts(call.sending.repeat);
        road.exchange(call, &mut attempts).map_err(crate::retry::Failure::into_error)?
    }

    /// Best effort: a way that failed is closed, and the lease with it.
    pub(super) fn abandon(&self, road: &mut Road, leases: &[u64], throttle: Duration) {
        if let Err(error) = self.on(road, &ops::abandon(leases, throttle)) {
            tracing::debug!(%error, "a lease ends with its connection");
        }
    }
}
