//! Loading many keys at once, blocking: what is there is read as of one moment, and the loader gets all that is missing.
//!
//! The leases of all missing keys are taken without waiting, so that nobody holds some while it waits for others; only
//! when the own ones are filled, those that others load are waited for. Called by applications.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use kv_proto::limits::{COMMIT_BYTES_MAX, GET_MANY_KEYS_MAX};
use kv_proto::wire::ErrorKind;

use super::cache::Cache;
use super::road::Road;
use crate::codec::Codec;
use crate::error::{Error, Result};
use crate::load::chain::Chain;
use crate::load::course::{Loaded, Served, loader_failed, not_stored};
use crate::load::entry::LoadOptions;
use crate::load::missing::Many;
use crate::load::{EntryBuilder, Missing};
use crate::observe::{Event, Source};
use crate::ops::{self, Filling, Loan, Terms};
use crate::options::PutOptions;
use crate::transact::lock_wait;
use crate::typed::Typed;

/// What loaders may fail with.
type AnyError = Box<dyn std::error::Error + Send + Sync>;

impl Cache {
    /// Says what wants to be known of many keys before they are loaded; ended by
    /// [`get_or_load_many`](EntryBuilder::get_or_load_many).
    pub fn entries(&self) -> EntryBuilder<Cache, Vec<u8>> {
        EntryBuilder::new(self.clone(), Codec::plain(), b"")
    }

    /// The values of many keys in their order; the loader gets those that are missing, all at once, and says what it
    /// [found](Missing::found). It is called again only for keys whose load by somebody else came to nothing. `None`: there is
    /// none.
    ///
    /// # Errors
    /// As [`Cache::get_or_load`].
    pub fn get_or_load_many<K: AsRef<[u8]>, E: Into<AnyError>>(
        &self,
        keys: &[K],
        ttl: impl Into<Option<Duration>>,
        loader: impl FnMut(&Missing<Vec<u8>>) -> Result<(), E>,
    ) -> Result<Vec<Option<Vec<u8>>>> {
        self.entries().ttl(ttl).get_or_load_many(keys, loader)
    }
}

impl<T> Typed<Cache, T> {
    /// As [`Cache::entries`].
    pub fn entries(&self) -> EntryBuilder<Cache, T> {
        let options = self.options();
        EntryBuilder { options, ..EntryBuilder::new(self.cache.clone(), self.codec, b"") }
    }

    /// As [`Cache::get_or_load_many`].
    ///
    /// # Errors
    /// As [`Cache::get_or_load`].
    pub fn get_or_load_many<K: AsRef<[u8]>, E: Into<AnyError>>(
        &self,
        keys: &[K],
        ttl: impl Into<Option<Duration>>,
        loader: impl FnMut(&Missing<T>) -> Result<(), E>,
    ) -> Result<Vec<Option<T>>> {
        let entries = self.entries();
        let ttl = ttl.into().or(entries.options.put.ttl);
        entries.ttl(ttl).get_or_load_many(keys, loader)
    }
}

impl<T> EntryBuilder<Cache, T> {
    /// As [`Cache::get_or_load_many`], with everything that was said of the entries. Timeouts, refreshing ahead and `cache_if` are for
    /// single keys.
    ///
    /// # Errors
    /// As [`Cache::get_or_load`].
    pub fn get_or_load_many<K: AsRef<[u8]>, E: Into<AnyError>>(
        self,
        keys: &[K],
        mut loader: impl FnMut(&Missing<T>) -> Result<(), E>,
    ) -> Result<Vec<Option<T>>> {
        let EntryBuilder { cache, codec, options, cache_if, .. } = self;
        options.check_for_many(cache_if.is_some())?;
        let mut load = LoadMany {
            cache: &cache,
            codec,
            options: &options,
            many: Many::new(keys),
            chain: Chain::current(),
        };
        load.read()?;
        let open = load.many.open();
        for at in &open {
            load.chain.check(cache.name(), &load.many.keys[*at])?;
        }
        for some in open.chunks(GET_MANY_KEYS_MAX) {
            load.load(some, &mut loader)?;
        }
        let again = |value: &T| cache.looker(codec, true).take(&codec.encode(value).ok()?).flatten();
        Ok(load.many.into_values(again))
    }
}

/// A `get_or_load_many` under way.
struct LoadMany<'a, T> {
    cache: &'a Cache,
    codec: Codec<T>,
    options: &'a LoadOptions,
    many: Many<T>,
    chain: Chain,
}

/// Keys that this process loads, each with its lease; 0: it has none.
type Own = Vec<(usize, u64)>;

impl<T> LoadMany<'_, T> {
    /// What is there, of one moment.
    fn read(&mut self) -> Result<()> {
        let values = match self.cache.get_many(&self.many.keys) {
            Ok(values) => values,
            // What is loaded makes it.
            Err(error) if error.kind() == ErrorKind::UnknownCache => return Ok(()),
            Err(error) => return Err(error),
        };
        let looker = self.cache.looker(self.codec, true);
        for (at, bytes) in values.iter().enumerate() {
            let Some(bytes) = bytes else { continue };
            match looker.take(bytes) {
                Some(value) => self.many.set(at, value),
                None => {
                    let there = self.cache.describe(&self.many.keys[at])?;
                    self.many.except[at] = there.map(|entry| entry.version);
                }
            }
        }
        Ok(())
    }

    /// What is served of a key, if the caller takes it.
    fn serve(&mut self, at: usize, served: &Served) -> bool {
        let looker = self.cache.looker(self.codec, true);
        let Some(value) = looker.take(&served.bytes) else { return false };
        looker.hit(served.source, served.is_stale);
        served.note(self.cache.scope.as_ref());
        self.many.set(at, value);
        true
    }

    fn load<E: Into<AnyError>>(
        &mut self,
        some: &[usize],
        loader: &mut impl FnMut(&Missing<T>) -> Result<(), E>,
    ) -> Result<()> {
        let mut stale = HashMap::new();
        let (mut road, mut own, mut busy) = match self.take_leases(some, &mut stale) {
            Ok(taken) => taken,
            Err(error) if error.is_outage() => return self.load_alone(some, loader),
            Err(error) => return Err(error),
        };
        self.run(&mut road, &own, &stale, loader)?;
        // Now that it holds nothing, it waits for what others load.
        own.clear();
        let wait = lock_wait(self.cache.client.op_timeout());
        let until = Instant::now() + self.options.wait.unwrap_or(wait).min(wait);
        for at in busy.drain(..) {
            if let Some(lease) = self.wait_for(&mut road, at, &own, until)? {
                own.push((at, lease));
            }
        }
        self.run(&mut road, &own, &stale, loader)?;
        self.cache.client.give_back(road);
        Ok(())
    }

    /// The leases that are to be had at once, and the keys that others load.
    fn take_leases(
        &mut self,
        some: &[usize],
        stale: &mut HashMap<usize, Served>,
    ) -> Result<(Road, Own, Vec<usize>)> {
        let terms = Terms { wait: Duration::ZERO, safe: self.options.lease };
        let within = self.cache.client.op_timeout();
        let wanted = |rest: &[usize], many: &Many<T>| -> Vec<_> {
            rest.iter().map(|&at| (many.keys[at].clone(), many.except[at])).collect()
        };
        let (mut road, mut loans) =
            self.cache.ask_for_lease(&wanted(some, &self.many), terms, within, &self.chain)?;
        let (mut own, mut busy, mut done) = (Own::new(), Vec::new(), 0);
        loop {
            if loans.is_empty() || loans.len() > some.len() - done {
                return Err(Error::invalid("the daemon answered a lease with another number of loans"));
            }
            for loan in loans {
                let at = some[done];
                done += 1;
                match loan {
                    Loan::Hit(entry) => {
                        if !self.serve(at, &Served::of_entry(entry, Source::Socket)) {
                            own.push((at, 0));
                        }
                    }
                    Loan::Leased { lease, stale: old } => {
                        own.push((at, lease));
                        stale.extend(old.map(|entry| (at, Served::of_entry(entry, Source::Socket))));
                    }
                    Loan::Busy => busy.push(at),
                    Loan::Alone => own.push((at, 0)),
                }
            }
            if done == some.len() {
                return Ok((road, own, busy));
            }
            let call = ops::lease(
                self.cache.name(),
                &wanted(&some[done..], &self.many),
                terms,
                &self.chain.holds(),
            )?;
            loans = self.cache.on(&mut road, &call)?;
        }
    }

    /// Waits for somebody else's load of a key; the lease if it came to nothing, 0: it has to be loaded without.
    fn wait_for(&mut self, road: &mut Road, at: usize, own: &Own, until: Instant) -> Result<Option<u64>> {
        let wait = until.saturating_duration_since(Instant::now());
        let terms = Terms { wait, safe: self.options.lease };
        let holds: Vec<u64> =
            self.chain.holds().into_iter().chain(own.iter().map(|own| own.1).filter(|n| *n > 0)).collect();
        let call =
            ops::lease(self.cache.name(), &[(&self.many.keys[at], self.many.except[at])], terms, &holds)?;
        let loans = match self.cache.on(road, &call) {
            Ok(loans) => loans,
            Err(error) if error.is_outage() => return Ok(Some(0)),
            Err(error) => return Err(error),
        };
        match loans.into_iter().next() {
            Some(Loan::Hit(entry)) => {
                self.cache.seat.loads().coalesced();
                let is_served = self.serve(at, &Served::of_entry(entry, Source::Socket));
                Ok((!is_served).then_some(0))
            }
            Some(Loan::Leased { lease, .. }) => Ok(Some(lease)),
            Some(Loan::Busy) if self.options.on_busy == crate::load::OnBusy::Fail => {
                Err(Error::Timeout { waited: terms.wait, maybe_applied: false })
            }
            Some(Loan::Busy | Loan::Alone) | None => Ok(Some(0)),
        }
    }

    /// Runs the loader over those that are this process's, and fills.
    fn run<E: Into<AnyError>>(
        &mut self,
        road: &mut Road,
        own: &Own,
        stale: &HashMap<usize, Served>,
        loader: &mut impl FnMut(&Missing<T>) -> Result<(), E>,
    ) -> Result<()> {
        if own.is_empty() {
            return Ok(());
        }
        let leases: Vec<u64> = own.iter().map(|own| own.1).filter(|lease| *lease > 0).collect();
        let loaded = match self.call(own, loader) {
            Ok(loaded) => loaded,
            Err(error) => {
                let throttle = if stale.is_empty() { Duration::ZERO } else { self.options.throttle };
                self.cache.abandon(road, &leases, throttle);
                for (at, _) in own {
                    if !stale.get(at).is_some_and(|served| self.serve(*at, served)) {
                        return Err(error);
                    }
                }
                return Ok(());
            }
        };
        let mut fills: Vec<(u64, Loaded)> = Vec::new();
        let mut not_filled: Vec<u64> = Vec::new();
        for ((at, lease), (value, loaded)) in own.iter().zip(loaded) {
            if let Some(loaded) = &loaded {
                loaded.served().note(self.cache.scope.as_ref());
            }
            self.many.set(*at, value);
            match loaded {
                Some(loaded) if *lease > 0 && loaded.put.is_some() => fills.push((*lease, loaded)),
                Some(_) | None if *lease > 0 => not_filled.push(*lease),
                Some(_) | None => self.cache.seat.loads().alone(),
            }
        }
        if !not_filled.is_empty() {
            self.cache.abandon(road, &not_filled, Duration::ZERO);
        }
        self.fill(road, &fills);
        Ok(())
    }

    /// Stores what was loaded, as much at once as a request may have. What cannot be stored is there all the same.
    fn fill(&self, road: &mut Road, fills: &[(u64, Loaded)]) {
        let mut rest = fills;
        while !rest.is_empty() {
            let mut bytes = 0;
            let fits = |fill: &&(u64, Loaded)| {
                bytes += fill.1.bytes.len() + 512;
                bytes <= COMMIT_BYTES_MAX
            };
            let count = rest.iter().take_while(fits).count().max(1);
            let (some, later) = rest.split_at(count);
            rest = later;
            let filling = |(lease, loaded): &(u64, Loaded)| {
                (*lease, loaded.bytes.clone(), loaded.put.clone().unwrap_or_default())
            };
            let owned: Vec<(u64, Vec<u8>, PutOptions)> = some.iter().map(filling).collect();
            let fillings: Vec<_> = owned
                .iter()
                .map(|(lease, value, options)| Filling { lease: *lease, value, options })
                .collect();
            match self.cache.fill(road, &fillings) {
                Ok(versions) => {
                    for _ in versions.iter().filter(|version| version.is_none()) {
                        self.cache.seat.loads().lease_lost();
                        let event = Event::LeaseLost { cache: self.cache.name() };
                        self.cache.client.settings().observer.observe(&event);
                    }
                }
                // Nothing of it was stored. One that cannot be must not take the others along.
                Err(error) if some.len() > 1 && !error.is_outage() => {
                    for one in some {
                        self.fill(road, std::slice::from_ref(one));
                    }
                }
                Err(error) => {
                    let leases: Vec<u64> = some.iter().map(|(lease, _)| *lease).collect();
                    for _ in &leases {
                        not_stored(&self.cache.seat, self.cache.client.settings(), &error);
                    }
                    self.cache.abandon(road, &leases, Duration::ZERO);
                }
            }
        }
    }

    /// The loader itself, with all that happens around it.
    fn call<E: Into<AnyError>>(
        &self,
        own: &Own,
        loader: &mut impl FnMut(&Missing<T>) -> Result<(), E>,
    ) -> Result<Vec<(Option<T>, Option<Loaded>)>> {
        let name = self.cache.name();
        let missing =
            Missing::new(own.iter().map(|(at, _)| self.many.keys[*at].clone()).collect(), self.codec);
        let within = self
            .chain
            .clone()
            .loading(name, own.iter().map(|(at, lease)| (&self.many.keys[*at][..], *lease)));
        let began = Instant::now();
        let entered = within.enter();
        let said = loader(&missing);
        drop(entered);
        let (took, ok) = (began.elapsed(), said.is_ok());
        self.cache.seat.loads().loaded(ok);
        self.cache.client.settings().observer.observe(&Event::Loaded { cache: name, took, ok });
        said.map_err(|error| {
            let what = format!("{} keys", own.len());
            loader_failed(name, what.as_bytes(), error.into().into())
        })?;
        missing.conclude(self.options, took)
    }

    /// With the daemon away: what this process has kept, and the loader for the rest.
    fn load_alone<E: Into<AnyError>>(
        &mut self,
        some: &[usize],
        loader: &mut impl FnMut(&Missing<T>) -> Result<(), E>,
    ) -> Result<()> {
        let (here, seat) = (self.cache.client.here(), self.cache.seat.id());
        let mut own = Own::new();
        for &at in some {
            let kept = here.outage.standby.get(seat, &self.many.keys[at]);
            if !kept.is_some_and(|served| self.serve(at, &served)) {
                own.push((at, 0));
            }
        }
        if own.is_empty() {
            return Ok(());
        }
        let moment = here.outage.moment();
        for ((at, _), (value, loaded)) in own.iter().zip(self.call(&own, loader)?) {
            if let Some(loaded) = loaded.filter(|loaded| loaded.put.is_some()) {
                here.outage.keep(moment, seat, &self.many.keys[*at], &loaded.served());
            }
            self.cache.seat.loads().alone();
            self.many.set(*at, value);
        }
        Ok(())
    }
}
