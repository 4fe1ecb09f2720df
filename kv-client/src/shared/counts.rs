//! What is counted of loads, by cache. Exact; one add each.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::answers::Loads;
use crate::observe::Source;

macro_rules! counts {
    ($($name:ident),+ $(,)?) => {
        /// Of one cache.
        #[derive(Debug, Default)]
        pub(crate) struct LoadCounts { $($name: AtomicU64),+ }

        impl LoadCounts {
            pub(super) fn read(&self) -> Loads {
                Loads { $($name: self.$name.load(Ordering::Relaxed)),+ }
            }
        }
    };
}

counts! {
    hits_socket, hits_standby, hits_negative, stale_served, loads, loads_failed, refreshes, coalesced,
    leases_lost, not_stored, loads_alone, outage_misses, undecodable,
}

fn add(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

impl LoadCounts {
    pub(crate) fn hit(&self, source: Source, is_stale: bool) {
        match source {
            Source::Socket => add(&self.hits_socket),
            Source::Standby => add(&self.hits_standby),
            // Counted by the record of reads.
            Source::Shared => {}
            // Counted as a load.
            Source::Loader => return,
        }
        if is_stale {
            add(&self.stale_served);
        }
    }

    pub(crate) fn negative(&self) {
        add(&self.hits_negative);
    }

    pub(crate) fn loaded(&self, ok: bool) {
        add(&self.loads);
        if !ok {
            add(&self.loads_failed);
        }
    }

    pub(crate) fn refresh(&self) {
        add(&self.refreshes);
    }

    pub(crate) fn coalesced(&self) {
        add(&self.coalesced);
    }

    pub(crate) fn lease_lost(&self) {
        add(&self.leases_lost);
    }

    pub(crate) fn not_stored(&self) {
        add(&self.not_stored);
    }

    pub(crate) fn alone(&self) {
        add(&self.loads_alone);
    }

    pub(crate) fn outage_miss(&self) {
        add(&self.outage_misses);
    }

    pub(crate) fn undecodable(&self) {
        add(&self.undecodable);
    }
}
