//! The workloads of `bench read` and its goals, nothing else.
//!
//! 100,000 keys as in `bench socket`. Not every combination: those that the goals name, and those that tell something.

use std::time::Duration;

use super::client::{Pick, ReadOp};
use super::hosts::Store;
use super::mechanisms::Mechanism;
use crate::report::{Bar, Figure, Goal};
use crate::socket::Length;

/// Puts a second of the writer, where there is one.
pub(super) const WRITER_PUTS_PER_S: f64 = 10_000.0;

/// One bar of a chart.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Reading {
    /// What tables call it.
    pub label: &'static str,
    /// What is read from.
    pub mechanism: Mechanism,
    /// The call.
    pub op: ReadOp,
    /// Which keys.
    pub pick: Pick,
    /// Processes that read.
    pub processes: usize,
    /// Whether another process writes meanwhile.
    pub writer: bool,
    /// Whether the items have two tags and a life.
    pub tagged: bool,
}

/// Readings that are compared.
#[derive(Debug, Clone)]
pub struct ReadWorkload {
    /// For example `1p`.
    pub name: &'static str,
    /// A sentence for a reader of the table.
    pub what: String,
    /// What is stored.
    pub store: Store,
    /// What runs in each round.
    pub readings: Vec<Reading>,
    /// Rounds.
    pub rounds: usize,
    /// Reading before it is counted.
    pub warm_up: Duration,
    /// Reading as fast as can be.
    pub rate: Duration,
    /// Timing each read.
    pub latency: Duration,
}

const fn goal(
    name: &'static str,
    workload: &'static str,
    over: &'static str,
    under: &'static str,
    bar: Bar,
) -> Goal {
    Goal { name, workload, figure: Figure::Rate, over, under, bar }
}

/// The goals. A ratio of times is that of the rates the other way round.
pub const GOALS: [Goal; 11] = [
    goal("read.1p.lmdb", "1p", "kvd", "lmdb", Bar::AtLeast(2.0)),
    goal("read.1p.moka", "1p", "kvd", "moka", Bar::AtLeast(1.5)),
    goal("read.1p.hashmap_time", "1p", "hashmap", "kvd", Bar::AtMost(1.05)),
    goal("read.1p.hashmap_time.64", "1p_64", "hashmap", "kvd", Bar::AtMost(1.05)),
    goal("read.1p.hashmap_time.4096", "1p_4096", "hashmap", "kvd", Bar::AtMost(1.15)),
    goal("read.8p.memcached", "8p", "kvd", "memcached", Bar::AtLeast(25.0)),
    goal("read.8p.redis", "8p", "kvd", "redis", Bar::AtLeast(25.0)),
    goal("read.2p.memcached", "2p", "kvd", "memcached", Bar::AtLeast(18.0)),
    Goal {
        name: "read.p999_writer",
        workload: "writer",
        figure: Figure::P999,
        over: "kvd+writer",
        under: "kvd",
        bar: Bar::AtMost(3.0),
    },
    goal("read.miss_time", "misses", "kvd", "kvd_miss", Bar::AtMost(0.5)),
    goal("read.many100", "many", "kvd_many100", "kvd", Bar::AtLeast(1.3)),
];

const ITEMS: Store = Store { keys: 100_000, value_bytes: 512, memory_mib: 256, fits: true };
const SMALL: Store = Store { value_bytes: 64, ..ITEMS };
const LARGE: Store = Store { value_bytes: 4_096, memory_mib: 1_024, ..ITEMS };
/// 16 MiB of memory, ten times as much on disk.
const DEEP: Store = Store { keys: 300_000, value_bytes: 512, memory_mib: 16, fits: false };

const KVD: Reading = Reading {
    label: "kvd",
    mechanism: Mechanism::Kvd,
    op: ReadOp::Get,
    pick: Pick::Uniform,
    processes: 1,
    writer: false,
    tagged: false,
};
const KVD_INTO: Reading = Reading { label: "kvd_into", op: ReadOp::Into, ..KVD };
const LMDB: Reading = Reading { label: "lmdb", mechanism: Mechanism::Lmdb, ..KVD };
const LMDB_HELD: Reading = Reading { label: "lmdb_held64", mechanism: Mechanism::LmdbHeld, ..KVD };
const BDB_CDS: Reading = Reading { label: "bdb_cds", mechanism: Mechanism::BdbCds, ..KVD };
const BDB_TDS: Reading = Reading { label: "bdb_tds", mechanism: Mechanism::BdbTds, ..KVD };
const MEMCACHED: Reading = Reading { label: "memcached", mechanism: Mechanism::Memcached, ..KVD };
const REDIS: Reading = Reading { label: "redis", mechanism: Mechanism::Redis, ..KVD };
const HASHMAP: Reading = Reading { label: "hashmap", mechanism: Mechanism::HashMap, ..KVD };
const HASHMAP_INTO: Reading = Reading { label: "hashmap_into", op: ReadOp::Into, ..HASHMAP };
const HASHBROWN: Reading = Reading { label: "hashbrown", mechanism: Mechanism::Hashbrown, ..KVD };
const MOKA: Reading = Reading { label: "moka", mechanism: Mechanism::Moka, ..KVD };
const QUICK_CACHE: Reading = Reading { label: "quick_cache", mechanism: Mechanism::QuickCache, ..KVD };

/// The name of a row is said here where it says more than the reading itself.
fn named(label: &'static str, reading: Reading) -> Reading {
    Reading { label, ..reading }
}

/// What takes long to fill, and what no goal names, is left to the whole run.
fn is_in_quick(reading: &Reading) -> bool {
    let takes_long = matches!(reading.mechanism, Mechanism::BdbCds | Mechanism::BdbTds | Mechanism::LmdbHeld);
    !takes_long && reading.op != ReadOp::Into
}

/// Everything that is run, in this order; neighbours share what is stored.
#[must_use]
pub fn all(length: Length) -> Vec<ReadWorkload> {
    let full = length == Length::Full;
    let work = |name, what: &str, store, rounds: usize, readings: Vec<Reading>| ReadWorkload {
        name,
        what: what.to_owned(),
        store,
        readings,
        // A second round where the goals are closest.
        rounds: if full { rounds } else { 1 + usize::from(name == "1p" || name == "writer") },
        warm_up: Duration::from_millis(if full { 250 } else { 80 }),
        rate: Duration::from_millis(if full { 500 } else { 120 }),
        latency: Duration::from_millis(if full { 300 } else { 80 }),
    };
    let with = |processes, readings: &[Reading]| -> Vec<Reading> {
        readings.iter().map(|&reading| Reading { processes, ..reading }).collect()
    };
    let zipf = [KVD, LMDB, HASHMAP, HASHBROWN, MOKA, QUICK_CACHE];
    let zipf = zipf.map(|reading| Reading { pick: Pick::Zipf(0.99), ..reading }).to_vec();
    let absent = |label, reading| Reading { label, pick: Pick::Absent, ..reading };
    let written = |label, reading| Reading { label, writer: true, ..reading };
    let many = |label, reading| Reading { label, op: ReadOp::Many(100), ..reading };
    let everybody = vec![
        KVD,
        KVD_INTO,
        LMDB,
        LMDB_HELD,
        BDB_CDS,
        BDB_TDS,
        HASHMAP,
        HASHMAP_INTO,
        HASHBROWN,
        MOKA,
        QUICK_CACHE,
        MEMCACHED,
        REDIS,
    ];
    let mut all = vec![
        work("1p", "1 process, uniform", ITEMS, 5, everybody),
        work(
            "8p",
            "8 processes, uniform",
            ITEMS,
            3,
            with(8, &[KVD, LMDB, BDB_CDS, HASHMAP, MEMCACHED, REDIS]),
        ),
        work("2p", "2 processes, uniform", ITEMS, 3, with(2, &[KVD, LMDB, HASHMAP, MEMCACHED, REDIS])),
        work(
            "writer",
            "1 process, uniform, alone and beside a process that puts 10,000 values a second",
            ITEMS,
            5,
            vec![
                KVD,
                written("kvd+writer", KVD),
                LMDB,
                written("lmdb+writer", LMDB),
                MEMCACHED,
                written("memcached+writer", MEMCACHED),
            ],
        ),
        work(
            "misses",
            "1 process, keys that are there and keys that are not",
            ITEMS,
            5,
            vec![KVD, absent("kvd_miss", KVD), absent("lmdb_miss", LMDB), absent("hashmap_miss", HASHMAP)],
        ),
        work(
            "many",
            "1 process, one key at a time and 100 at a time; latency of a call",
            ITEMS,
            5,
            vec![
                KVD,
                many("kvd_many100", KVD),
                many("hashmap_100", HASHMAP),
                many("memcached_many100", MEMCACHED),
                many("redis_many100", REDIS),
            ],
        ),
    ];
    if full {
        all.push(work("1p_zipf", "1 process, Zipf 0.99", ITEMS, 3, zipf));
        let tagged = Reading { label: "kvd_tagged", tagged: true, ..KVD };
        all.push(work(
            "tagged",
            "1 process, items with 2 tags and a life beside items without",
            ITEMS,
            3,
            vec![KVD, tagged],
        ));
    }
    all.push(work(
        "1p_64",
        "1 process, uniform, values of 64 bytes",
        SMALL,
        5,
        vec![KVD, KVD_INTO, HASHMAP, HASHBROWN, MOKA, LMDB],
    ));
    all.push(work(
        "1p_4096",
        "1 process, uniform, values of 4 KiB",
        LARGE,
        5,
        vec![KVD, KVD_INTO, HASHMAP, HASHMAP_INTO, LMDB],
    ));
    if full {
        all.push(work(
            "deep",
            "1 process, 16 MiB of memory and ten times as much on disk: keys that are not there, keys that are",
            DEEP,
            2,
            vec![absent("kvd_miss", KVD), named("kvd_hit", KVD)],
        ));
    }
    if !full {
        all.iter_mut().for_each(|workload| workload.readings.retain(is_in_quick));
    }
    all
}

#[cfg(test)]
mod tests {
    use super::{GOALS, all};
    use crate::socket::Length;

    #[test]
    fn every_goal_names_a_workload_and_two_of_its_readings() {
        for length in [Length::Quick, Length::Full] {
            let all = all(length);
            for goal in GOALS {
                let workload = all.iter().find(|workload| workload.name == goal.workload).expect(goal.name);
                for label in [goal.over, goal.under] {
                    let is_there = workload.readings.iter().any(|reading| reading.label == label);
                    assert!(is_there, "{}: {label}", goal.name);
                }
            }
        }
    }

    #[test]
    fn runs_end_in_the_time_that_is_promised() {
        for (length, seconds_max) in [(Length::Quick, 40.0), (Length::Full, 340.0)] {
            let seconds: f64 = all(length)
                .iter()
                .map(|workload| {
                    // Starting and filling a process takes as long again as a short run.
                    let run = workload.warm_up + workload.rate + workload.latency;
                    (run.as_secs_f64() + 0.25) * (workload.rounds * workload.readings.len()) as f64
                })
                .sum();
            assert!(seconds < seconds_max, "{length:?} takes {seconds} s");
        }
    }
}
