//! `bench socket`: kvd beside memcached and Redis, over Unix sockets.
//!
//! The workloads and the goals, nothing else. 100,000 keys, values of 512 bytes, keys chosen uniformly: the hardest
//! case for the caches of the processor.

use std::time::Duration;

use crate::client::{Pace, Stop};
use crate::peers::Kind;
use crate::protocol::Op;
use crate::report::{Bar, Figure, Goal};
use crate::rounds::{Plan, Variant, Workload};

/// Writes that fill kvd's journal (64 MiB) ten times at 512 bytes of value, 16 of key and some 30 of record each.
pub const PUTS_JOURNAL_TEN_TIMES: u64 = 1_250_000;

/// How much time a run of everything takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Length {
    /// Within a minute: for a look. Writes are too few to fill the journal.
    Quick,
    /// Within about five minutes: for the record.
    Full,
}

/// The goals of the workloads.
pub const GOALS: [Goal; 7] = [
    Goal {
        name: "socket.get8.memcached",
        workload: "get8",
        figure: Figure::Rate,
        over: "kvd",
        under: "memcached",
        bar: Bar::AtLeast(1.35),
    },
    Goal {
        name: "socket.get8.redis",
        workload: "get8",
        figure: Figure::Rate,
        over: "kvd",
        under: "redis",
        bar: Bar::AtLeast(1.35),
    },
    Goal {
        name: "socket.put8.memcached",
        workload: "put8",
        figure: Figure::Rate,
        over: "kvd",
        under: "memcached",
        bar: Bar::AtLeast(1.1),
    },
    Goal {
        name: "socket.put8.redis",
        workload: "put8",
        figure: Figure::Rate,
        over: "kvd",
        under: "redis",
        bar: Bar::AtLeast(1.1),
    },
    Goal {
        name: "socket.multiget100x2.memcached",
        workload: "multiget100x2",
        figure: Figure::Rate,
        over: "kvd",
        under: "memcached",
        bar: Bar::AtLeast(1.0),
    },
    Goal {
        name: "socket.durable64.redis_always",
        workload: "durable64",
        figure: Figure::Rate,
        over: "kvd",
        under: "redis_always",
        bar: Bar::AtLeast(1.5),
    },
    Goal {
        name: "socket.durable64.own_single",
        workload: "durable64",
        figure: Figure::Rate,
        over: "kvd",
        under: "kvd_single",
        bar: Bar::AtLeast(10.0),
    },
];

/// Everything that is run, in this order.
#[must_use]
pub fn workloads(length: Length) -> Vec<Workload> {
    let full = length == Length::Full;
    let plan = |rounds, seconds: f64, quick_rounds, quick_seconds: f64| Plan {
        rounds: if full { rounds } else { quick_rounds },
        warm_up: Duration::from_millis(if full { 300 } else { 150 }),
        time: Duration::from_secs_f64(if full { seconds } else { quick_seconds }),
        stop: Stop::Time,
    };
    let mut all = vec![
        Workload {
            name: "get8",
            what: "8 processes, one get at a time".to_owned(),
            variants: everybody(8, Op::Get, Pace::Closed),
            plan: plan(5, 1.5, 3, 0.5),
        },
        Workload {
            name: "multiget100x2",
            what: "2 processes, 100 keys a request".to_owned(),
            variants: everybody(2, Op::GetMany(100), Pace::Closed),
            plan: plan(5, 1.2, 3, 0.5),
        },
        durable(plan(5, 2.0, 3, 0.7)),
        put8(full, plan(3, 30.0, 3, 0.8)),
        open_loop("get8_open20k", "get", Op::Get, 20_000.0, plan(2, 1.5, 1, 0.8)),
    ];
    if full {
        all.push(open_loop("put8_open10k", "put", Op::Put, 10_000.0, plan(2, 1.5, 1, 0.8)));
        for (name, clients) in [("get1", 1), ("get2", 2)] {
            all.push(Workload {
                name,
                what: format!("{clients} processes, one get at a time: mostly what waking a process costs"),
                variants: everybody(clients, Op::Get, Pace::Closed),
                plan: plan(2, 0.8, 1, 0.5),
            });
        }
    }
    all
}

fn put8(full: bool, timed: Plan) -> Workload {
    let (stop, what) = if full {
        let what = format!("8 processes, one put at a time, {PUTS_JOURNAL_TEN_TIMES} each run; kvd: behind");
        (Stop::Requests(PUTS_JOURNAL_TEN_TIMES), what)
    } else {
        (
            Stop::Time,
            "8 processes, one put at a time; kvd: behind; too short to fill its journal ten times".to_owned(),
        )
    };
    let warm_up = if full { Duration::ZERO } else { timed.warm_up };
    let plan = Plan { stop, warm_up, ..timed };
    Workload { name: "put8", what, variants: everybody(8, Op::Put, Pace::Closed), plan }
}

fn durable(plan: Plan) -> Workload {
    let variant = |label, kind, clients, op| Variant { label, kind, clients, op, pace: Pace::Closed };
    Workload {
        name: "durable64",
        what: "64 processes, one put at a time, each answered when it is on stable storage; kvd_single: 1 process".to_owned(),
        variants: vec![
            variant("kvd", Kind::Kvd, 64, Op::PutDurable),
            variant("redis_always", Kind::RedisAlways, 64, Op::PutDurable),
            variant("kvd_single", Kind::Kvd, 1, Op::PutDurable),
        ],
        plan,
    }
}

fn open_loop(name: &'static str, verb: &str, op: Op, rate: f64, plan: Plan) -> Workload {
    let what = format!(
        "8 processes, {rate:.0} {verb}s a second in all at random moments: latency from those moments"
    );
    Workload { name, what, variants: everybody(8, op, Pace::Open(rate)), plan }
}

fn everybody(clients: usize, op: Op, pace: Pace) -> Vec<Variant> {
    [Kind::Kvd, Kind::Memcached, Kind::Redis]
        .map(|kind| Variant { label: kind.name(), kind, clients, op, pace })
        .to_vec()
}

#[cfg(test)]
mod tests {
    use super::{GOALS, Length, workloads};

    #[test]
    fn every_goal_names_a_workload_and_two_of_its_variants() {
        for length in [Length::Quick, Length::Full] {
            let all = workloads(length);
            for goal in GOALS {
                let workload = all.iter().find(|workload| workload.name == goal.workload).expect(goal.name);
                for label in [goal.over, goal.under] {
                    assert!(
                        workload.variants.iter().any(|variant| variant.label == label),
                        "{}: {label}",
                        goal.name
                    );
                }
            }
        }
    }

    #[test]
    fn runs_end_in_the_time_that_is_promised() {
        for (length, seconds_max) in [(Length::Quick, 55.0), (Length::Full, 285.0)] {
            let seconds: f64 = workloads(length)
                .iter()
                .map(|workload| {
                    let plan = workload.plan;
                    // Peers were seen to take 86,000 to 117,000 puts a second.
                    let run_s = match plan.stop {
                        crate::client::Stop::Time => (plan.warm_up + plan.time).as_secs_f64() + 0.3,
                        crate::client::Stop::Requests(requests) => requests as f64 / 95_000.0,
                    };
                    run_s * (plan.rounds * workload.variants.len()) as f64 + 2.0
                })
                .sum();
            assert!(seconds < seconds_max, "{length:?} takes {seconds} s");
        }
    }
}
