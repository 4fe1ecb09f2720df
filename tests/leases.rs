//! Leases to load, between processes: whoever dies with one leaves it to the next at once.

use std::io::BufRead as _;
use std::process::Command;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::raw::{Loan, Raw};
use crate::support::{Home, timed};
use crate::worker;

/// Longer than any wait here.
const LONG_MS: u32 = 60_000;

/// A process that gets a lease and a named lock, says so, and goes silent; its sibling keeps the socket open.
pub(crate) fn loader() {
    let socket = std::env::var_os("KVD_SOCKET").expect("a worker is told");
    let raw = Raw::at(socket.as_ref());
    assert!(matches!(raw.lease("product", "k", 0), Loan::Leased(_)));
    raw.lock("report", 0).expect("it is free");
    raw.let_children_inherit();
    let mut sibling = Command::new("sleep").arg("30").spawn().expect("there is a sleep");
    println!("HOLDS");
    // Until it is killed.
    sibling.wait().expect("our child");
}

#[test]
fn the_lease_and_lock_of_a_killed_loader_are_the_next_ones_at_once_though_its_sibling_keeps_the_socket() {
    let _timed = timed();
    let home = Home::new();
    let _daemon = home.start();
    let mut child = worker::spawn("loader", &home.socket(), &[]);
    let mut out = std::io::BufReader::new(child.stdout.take().expect("piped"));
    let mut line = String::new();
    while !line.contains("HOLDS") {
        line.clear();
        assert!(out.read_line(&mut line).expect("our child") > 0, "it ended before it had its lease");
    }
    let next = Raw::connect(&home);
    assert_eq!(next.lease("product", "k", 0), Loan::Busy);
    let holder = next.lock("report", 0).unwrap_err();
    assert!(holder.contains(&format!("pid {}", child.id())), "{holder}");
    kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGKILL).expect("our child");
    let began = Instant::now();
    assert!(matches!(next.lease("product", "k", LONG_MS), Loan::Leased(_)));
    next.lock("report", LONG_MS).expect("its holder is dead");
    let took = began.elapsed();
    assert!(took < Duration::from_millis(500), "{took:?}");
    child.wait().expect("our child");
}

#[test]
fn of_many_connections_that_miss_together_one_loads_and_all_have_its_value() {
    const ASKERS: usize = 32;
    let home = Home::new();
    let _daemon = home.start();
    let start = std::sync::Barrier::new(ASKERS);
    let loads: usize = std::thread::scope(|scope| {
        let ask = || {
            let raw = Raw::connect(&home);
            start.wait();
            match raw.lease("product", "k", LONG_MS) {
                Loan::Leased(lease) => {
                    assert!(raw.fill(lease, "loaded once"));
                    1
                }
                Loan::Hit(value) => {
                    assert_eq!(value, "loaded once");
                    0
                }
                other => panic!("{other:?}"),
            }
        };
        let askers: Vec<_> = (0..ASKERS).map(|_| scope.spawn(ask)).collect();
        askers.into_iter().map(|asker| asker.join().unwrap()).sum()
    });
    assert_eq!(loads, 1);
}
