//! Too little processor for all: four busy processes a core, a daemon under a quota. Readers may have to ask the daemon then,
//! and wait; nothing they read is wrong or lost.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::{Duration, Instant};

use nix::unistd::Pid;

use crate::shared::{KEYS, Watched, put_counter};
use crate::support::{SOON, whole_machine};
use crate::worker;

/// How long the processor is short.
const SHORT: Duration = Duration::from_secs(2);

/// Puts until `limit`, as an application would that has other things to do too; how many were acknowledged.
fn put_meanwhile(watched: &Watched, limit: Duration) -> usize {
    let client = watched.home.client();
    let began = Instant::now();
    let mut puts = 0;
    while began.elapsed() < limit {
        put_counter(&client, &watched.board, puts % KEYS).expect("the daemon serves, however slowly");
        puts += 1;
        std::thread::sleep(Duration::from_micros(500));
    }
    puts
}

struct Busy(Vec<Child>);

impl Drop for Busy {
    fn drop(&mut self) {
        for mut child in self.0.drain(..) {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// In a worker: takes what processor there is, and ends by itself if nobody ends it.
pub(crate) fn busy() {
    let began = Instant::now();
    while began.elapsed() < 2 * SHORT {
        std::hint::spin_loop();
    }
}

#[test]
fn nothing_is_wrong_or_lost_with_four_busy_processes_a_core() {
    let _alone = whole_machine();
    let (watched, daemon) = Watched::start();
    let cores = std::thread::available_parallelism().expect("Linux").get();
    let busy = Busy((0..4 * cores).map(|_| worker::spawn("busy", &watched.home.socket(), &[])).collect());
    let before = watched.shared_hits();
    let puts = put_meanwhile(&watched, SHORT);
    println!(
        "{puts} puts and {} shared hits beside {} busy processes",
        watched.shared_hits() - before,
        4 * cores
    );
    drop(busy);
    watched.wait_until_shared(SOON);
    daemon.stop();
    watched.end();
}

/// A group of processes with little processor; removed when dropped, when nobody is in it any more.
struct Quota {
    group: PathBuf,
    root: PathBuf,
}

impl Quota {
    /// A group that gets `share` of every period; `None`, and said why, where this machine lets us make none.
    fn of(share: Duration, period: Duration) -> Option<Quota> {
        let (share, period) = (share.as_micros(), period.as_micros());
        let v2 = Path::new("/sys/fs/cgroup");
        let v1 = v2.join("cpu");
        let has_cpu = fs::read_to_string(v2.join("cgroup.subtree_control"))
            .is_ok_and(|controllers| controllers.split_whitespace().any(|name| name == "cpu"));
        let root = if has_cpu { v2.to_owned() } else { v1 };
        let group = root.join(format!("kvd-test-{}", std::process::id()));
        if let Err(error) = fs::create_dir(&group) {
            eprintln!("skipped: no group with a quota can be made: {}: {error}", group.display());
            return None;
        }
        let quota = Quota { group, root };
        let settings = if has_cpu {
            vec![("cpu.max", format!("{share} {period}"))]
        } else {
            vec![("cpu.cfs_period_us", period.to_string()), ("cpu.cfs_quota_us", share.to_string())]
        };
        for (name, value) in settings {
            if let Err(error) = fs::write(quota.group.join(name), value) {
                eprintln!("skipped: no quota can be set: {name}: {error}");
                return None;
            }
        }
        Some(quota)
    }

    fn holds(&self, pid: Pid) {
        fs::write(self.group.join("cgroup.procs"), pid.to_string()).expect("our child, our group");
    }

    fn lets_go(&self, pid: Pid) {
        fs::write(self.root.join("cgroup.procs"), pid.to_string()).expect("our child");
    }

    /// How often its processes had to wait for the next period.
    fn throttled(&self) -> u64 {
        let stat = fs::read_to_string(self.group.join("cpu.stat")).expect("our group");
        let count = stat.lines().find_map(|line| line.strip_prefix("nr_throttled "));
        count.and_then(|count| count.trim().parse().ok()).expect("a group with a quota counts")
    }
}

impl Drop for Quota {
    fn drop(&mut self) {
        // A process that has just left or died may still be counted for a moment.
        let deadline = Instant::now() + Duration::from_secs(2);
        while fs::remove_dir(&self.group).is_err() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// With 10 ms of processor in a second its heartbeat is late again and again.
#[test]
fn nothing_is_wrong_or_lost_while_the_daemon_is_under_a_quota() {
    let Some(quota) = Quota::of(Duration::from_millis(10), Duration::from_secs(1)) else { return };
    let (watched, daemon) = Watched::start();
    let before = watched.shared_hits();
    quota.holds(daemon.pid());
    let puts = put_meanwhile(&watched, SHORT);
    let throttled = quota.throttled();
    println!("{puts} puts and {} shared hits, throttled {throttled} times", watched.shared_hits() - before);
    quota.lets_go(daemon.pid());
    assert!(throttled > 0, "the quota was never used up: this proves nothing");
    watched.wait_until_shared(SOON);
    let client = watched.home.client();
    (0..KEYS).for_each(|number| put_counter(&client, &watched.board, number).expect("the daemon serves"));
    daemon.stop();
    watched.end();
}
