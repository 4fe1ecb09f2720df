//! Reading through shared memory: what it costs, what a reader may rely on, and what happens to it when the daemon is
//! killed, stopped, replaced, or may not share.

use std::fs::File;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::Arc;
use std::time::{Duration, Instant};

use kv_client::blocking::Client;
use kv_client::{Fallbacks, ReadPath};
use kv_proto::segment::Words;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
};

use crate::support::{Home, SOON, kvd, random, text, timed, wait_for, whole_machine};
use crate::worker;

/// The longest that anybody may read the memory of a daemon that is dead or stopped.
const BOUND: Duration = Duration::from_millis(500);
/// What the machine may add to a wait by being busy.
const SLACK: Duration = Duration::from_millis(400);
pub(crate) const KEYS: usize = 64;

/// Words that the processes of a test share: by key the newest acknowledged counter, then what a watcher tells.
const SHARED_HITS: usize = KEYS;
const READS: usize = KEYS + 1;
const STOP: usize = KEYS + 2;
const IS_SHARED: usize = KEYS + 3;
const LAPPED: usize = KEYS + 4;
const BOARD_WORDS: usize = KEYS + 8;

pub(crate) fn board(path: &Path, create: bool) -> Arc<Words> {
    let file = File::options().read(true).write(true).create(create).truncate(create).open(path);
    let file = file.expect("the directory is ours");
    if create {
        file.set_len(8 * BOARD_WORDS as u64).expect("there is room");
    }
    Words::map_file(&file, 8 * BOARD_WORDS).expect("it is a file of that length")
}

pub(crate) fn var(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("a worker is given {name}"))
}

pub(crate) fn key(number: usize) -> String {
    format!("key:{number}")
}

/// Puts counters that only grow, and notes each as soon as it is acknowledged.
pub(crate) fn put_counter(client: &Client, board: &Words, number: usize) -> kv_client::Result<()> {
    let next = board.load(number) + 1;
    client.cache("hot").put(key(number), next.to_string(), None)?;
    board.store(number, next);
    Ok(())
}

pub(crate) fn counter(value: &[u8]) -> u64 {
    std::str::from_utf8(value).ok().and_then(|text| text.parse().ok()).expect("a counter was put")
}

pub(crate) fn path_of(client: &Client, cache: &str) -> ReadPath {
    let stats = client.stats();
    stats.caches.iter().find(|stats| stats.name == cache).expect("it was asked for").path.clone()
}

/// Reads `name` until it is read through shared memory.
pub(crate) fn attach(client: &Client, name: &str) {
    let cache = client.cache(name);
    wait_for(SOON, "a segment", || {
        cache.get("nothing").expect("the daemon serves");
        path_of(client, name).is_shared().then_some(())
    });
}

// ---- what a read costs -------------------------------------------------------------------------------------------

/// `KVD_READS` sets how many hits and how many misses (200,000 by default).
#[test]
fn hits_and_misses_make_no_system_call_while_the_keys_are_overwritten() {
    let _alone = whole_machine();
    // Where nobody gets a processor for long, the daemon's heart stands still too, and readers rightly ask: no other test may
    // take it, and such a try does not count.
    let mut said = String::new();
    for _ in 0..5 {
        match read_quietly() {
            Ok(()) => return,
            Err((failure, longest_wait)) if longest_wait > BOUND / 2 => said = failure,
            Err((failure, longest_wait)) => {
                panic!("{failure} (longest wait for a processor: {longest_wait:?})")
            }
        }
    }
    panic!("this machine is too busy: {said}");
}

/// The failure, and how long this process had to wait for a processor at most.
fn read_quietly() -> Result<(), (String, Duration)> {
    let home = Home::with(&["--memory", "32MiB"]);
    let daemon = home.start();
    let board_path = home.path().join("board");
    let board = board(&board_path, true);
    let client = home.client();
    (0..KEYS).for_each(|number| put_counter(&client, &board, number).expect("the daemon serves"));
    let vars = [("KVD_BOARD", board_path.display().to_string())];
    let preempted_before = times_preempted(daemon.pid());
    let mut reader = worker::spawn("quiet", &home.socket(), &vars);
    let pid = reader.id();
    let anonymous = || {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        // A process that has ended has none.
        let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap_or("0 kB");
        line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") << 10
    };
    wait_for(SOON, "the reader to be quiet", || (board.load(IS_SHARED) == 1).then_some(()));
    let before = anonymous();
    let mut number = 0;
    let began = Instant::now();
    let (mut last, mut longest_wait) = (began, Duration::ZERO);
    while board.load(STOP) == 0 && began.elapsed() < SOON * 5 {
        if reader.try_wait().expect("our child").is_some() {
            break;
        }
        put_counter(&client, &board, number % KEYS).expect("the daemon serves");
        number += 1;
        std::thread::sleep(Duration::from_micros(900));
        longest_wait = longest_wait.max(last.elapsed());
        last = Instant::now();
    }
    let grown = anonymous().saturating_sub(before);
    board.store(READS, 1);
    let output = reader.wait_with_output().expect("our child");
    let failed = |failure: String| Err((failure, longest_wait));
    if !output.status.success() {
        return failed(format!("{}: {}{}", output.status, text(&output.stdout), text(&output.stderr)));
    }
    assert!(number > 100, "only {number} writes meanwhile");
    // A daemon that is interrupted between a slot and the commit that makes it count lets readers ask; most interruptions are
    // counted.
    let (lapped, preempted) =
        (board.load(LAPPED), times_preempted(daemon.pid()).saturating_sub(preempted_before));
    if lapped > preempted + number as u64 / 100 {
        return failed(format!(
            "{lapped} reads asked in {number} writes, the daemon was preempted {preempted} times"
        ));
    }
    assert!(grown < 8 << 20, "the reader's private memory grew by {grown} bytes");
    let stats = text(&home.kvd(&["stats"]).stdout);
    let told = stats.lines().find(|line| line.starts_with("hits ")).map_or(0, |line| {
        line.split_whitespace().nth(1).and_then(|count| count.parse::<u64>().ok()).expect("a number")
    });
    let seconds = began.elapsed().as_secs() + 2;
    assert!(told <= seconds, "{told} reports of hits in {seconds} s");
    Ok(())
}

/// How often the threads of a process had to leave their processor to others, or the whole machine did (in its ticks).
fn times_preempted(pid: Pid) -> u64 {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).expect("the daemon runs");
    let of_task = |task: std::fs::DirEntry| {
        let status = std::fs::read_to_string(task.path().join("status")).unwrap_or_default();
        let count = status.lines().find_map(|line| line.strip_prefix("nonvoluntary_ctxt_switches:"));
        count.map_or(0, |count| count.trim().parse::<u64>().expect("a number"))
    };
    let stat = std::fs::read_to_string("/proc/stat").expect("Linux");
    let stolen = stat.split_whitespace().nth(8).map_or(0, |ticks| ticks.parse::<u64>().expect("a number"));
    tasks.flatten().map(of_task).sum::<u64>() + stolen
}

/// Reads with every system call forbidden but those of the reports, which are bounded by time.
pub(crate) fn quiet_reader() {
    let board = board(Path::new(&var("KVD_BOARD")), false);
    let reads: u64 = std::env::var("KVD_READS").ok().and_then(|reads| reads.parse().ok()).unwrap_or(200_000);
    let client = Client::builder().socket(var("KVD_SOCKET")).build().expect("the daemon serves");
    attach(&client, "hot");
    let cache = client.cache("hot");
    let mut value = Vec::with_capacity(4_096);
    // A report or two: what they need of the heap is there then.
    let warm = Instant::now();
    while warm.elapsed() < Duration::from_millis(1_200) {
        (0..KEYS).for_each(|number| assert!(cache.get_into(key(number), &mut value).expect("shared")));
    }
    let fallbacks_before = client.stats().caches[0].fallbacks;
    let keys: Vec<String> = (0..KEYS).map(key).collect();
    let absent: Vec<String> = (0..KEYS).map(|number| format!("absent:{number}")).collect();
    // The usual message asks for the thread's number, which is forbidden from here on: nobody would see what failed.
    std::panic::set_hook(Box::new(|failure| eprintln!("{failure}")));
    forbid_all_but(&[
        libc::SYS_sendto,
        libc::SYS_recvfrom,
        // A report that takes too long is given up with its connection; the next has a new one.
        libc::SYS_fcntl,
        libc::SYS_close,
        libc::SYS_socket,
        libc::SYS_connect,
        libc::SYS_read,
        libc::SYS_setsockopt,
        libc::SYS_getpid,
        libc::SYS_brk,
        libc::SYS_write,
        libc::SYS_exit_group,
        libc::SYS_sigaltstack,
        libc::SYS_munmap,
        libc::SYS_madvise,
        libc::SYS_exit,
        libc::SYS_futex,
        libc::SYS_rt_sigprocmask,
    ]);
    board.store(IS_SHARED, 1);
    let began = Instant::now();
    let mut done = 0;
    // At least so long that the writer comes round all keys.
    while done < reads || began.elapsed() < Duration::from_secs(1) {
        let number = done as usize % KEYS;
        done += 1;
        let floor = board.load(number);
        assert!(cache.get_into(&keys[number], &mut value).expect("shared"), "a false miss");
        let read = counter(&value);
        assert!(read >= floor, "older than acknowledged: {floor} was, {read} was read");
        assert!(!cache.get_into(&absent[number], &mut value).expect("shared"), "a false hit");
    }
    let fallbacks = client.stats().caches[0].fallbacks;
    board.store(LAPPED, fallbacks.lapped - fallbacks_before.lapped);
    let but_for_laps = |mut fallbacks: Fallbacks| {
        fallbacks.lapped = 0;
        fallbacks
    };
    assert_eq!(but_for_laps(fallbacks), but_for_laps(fallbacks_before), "some reads asked the daemon");
    board.store(STOP, 1);
    // The test looks at our memory before we go.
    let done = Instant::now();
    while board.load(READS) == 0 && done.elapsed() < SOON {
        std::hint::spin_loop();
    }
}

fn forbid_all_but(allowed: &[i64]) {
    let rules = allowed.iter().map(|call| (*call, Vec::new())).collect();
    apply(rules, SeccompAction::KillProcess, SeccompAction::Allow);
}

fn apply(
    rules: std::collections::BTreeMap<i64, Vec<SeccompRule>>,
    otherwise: SeccompAction,
    on_match: SeccompAction,
) {
    let arch = std::env::consts::ARCH.try_into().expect("an architecture with seccomp");
    let filter = SeccompFilter::new(rules, otherwise, on_match, arch).expect("a filter");
    let program: BpfProgram = filter.try_into().expect("a short filter");
    seccompiler::apply_filter(&program).expect("every process may give up calls");
}

// ---- the daemon goes away ----------------------------------------------------------------------------------------

/// Reads one key after the other for ever, checks each against what was acknowledged before, and tells how it fares.
pub(crate) fn watcher() {
    let board = board(Path::new(&var("KVD_BOARD")), false);
    let client = Client::builder()
        .socket(var("KVD_SOCKET"))
        .op_timeout(Duration::from_millis(300))
        .restart_grace(Duration::ZERO)
        // A miss must mean that the item is lost, not that nobody could be asked.
        .on_outage(kv_client::OnOutage::Error)
        .build_lazy();
    let cache = client.cache("hot");
    let mut newest = [0; KEYS];
    let mut value = Vec::new();
    let mut reads = 0_u64;
    while board.load(STOP) == 0 {
        let number = fastrand::usize(..KEYS);
        let floor = board.load(number).max(newest[number]);
        match cache.get_into(key(number), &mut value) {
            Ok(true) => {
                let read = counter(&value);
                assert!(read >= floor, "key {number}: {floor} was acknowledged or read, now {read} was read");
                newest[number] = read;
            }
            Ok(false) => assert_eq!(floor, 0, "key {number} is lost"),
            // The daemon is away: that is what this is about.
            Err(_) => std::thread::sleep(Duration::from_millis(5)),
        }
        reads += 1;
        if reads.is_multiple_of(16) || value.is_empty() {
            let stats = &client.stats().caches[0];
            board.store(SHARED_HITS, stats.shared_hits);
            board.store(IS_SHARED, u64::from(stats.path.is_shared()));
            board.store(READS, reads);
        }
    }
}

/// A daemon with counters in it, and a watcher that reads them through shared memory.
pub(crate) struct Watched {
    pub(crate) home: Home,
    pub(crate) board: Arc<Words>,
    watcher: Option<Child>,
}

impl Watched {
    pub(crate) fn start() -> (Watched, crate::support::Daemon) {
        let home = Home::configured(
            "memory = \"32MiB\"\n[default]\nmemory = \"8MiB\"\n[caches.hot]\nmemory = \"8MiB\"\nrecover = \"keep\"\n",
        );
        let daemon = home.start();
        let board_path = home.path().join("board");
        let board = board(&board_path, true);
        let client = home.client();
        (0..KEYS).for_each(|number| put_counter(&client, &board, number).expect("the daemon serves"));
        let vars = [("KVD_BOARD", board_path.display().to_string())];
        let watcher = Some(worker::spawn("watcher", &home.socket(), &vars));
        let watched = Watched { home, board, watcher };
        watched.wait_until_shared(SOON);
        (watched, daemon)
    }

    pub(crate) fn shared_hits(&self) -> u64 {
        self.board.load(SHARED_HITS)
    }

    /// Waits until the watcher reads through shared memory again; how long that took.
    pub(crate) fn wait_until_shared(&self, limit: Duration) -> Duration {
        let began = Instant::now();
        let before = self.shared_hits();
        wait_for(limit, "shared reads", || (self.shared_hits() > before).then_some(()));
        began.elapsed()
    }

    pub(crate) fn end(mut self) {
        self.board.store(STOP, 1);
        let output = self.watcher.take().expect("ended once").wait_with_output().expect("our child");
        assert!(output.status.success(), "{}{}", text(&output.stdout), text(&output.stderr));
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.board.store(STOP, 1);
        if let Some(mut watcher) = self.watcher.take() {
            let _ = watcher.kill();
            let _ = watcher.wait();
        }
    }
}

#[test]
fn nobody_reads_a_dead_daemon_behind_a_newer_write() {
    let _timed = timed();
    let mut random = random();
    let (watched, mut daemon) = Watched::start();
    for _ in 0..5 {
        let client = watched.home.client();
        (0..200).for_each(|n| put_counter(&client, &watched.board, n % KEYS).expect("the daemon serves"));
        daemon.kill();
        std::thread::sleep(Duration::from_millis(random.u64(..200)));
        daemon = watched.home.start();
        let client = watched.home.client();
        // The first of these waits until no reader can still trust the dead daemon's memory.
        (0..KEYS).for_each(|number| put_counter(&client, &watched.board, number).expect("the daemon serves"));
        let took = watched.wait_until_shared(SOON);
        assert!(took < Duration::from_secs(1) + SLACK, "shared reads came back after {took:?}");
    }
    daemon.stop();
    watched.end();
}

#[test]
fn a_stopped_daemon_is_left_within_the_bound_and_found_again() {
    let _timed = timed();
    let seconds: u64 = if cfg!(debug_assertions) { 2 } else { 5 };
    let (watched, daemon) = Watched::start();
    daemon.signal(Signal::SIGSTOP);
    std::thread::sleep(BOUND + SLACK);
    let at_bound = watched.shared_hits();
    std::thread::sleep(Duration::from_secs(seconds) - BOUND);
    assert_eq!(watched.shared_hits(), at_bound, "the memory of a stopped daemon was read beyond the bound");
    daemon.signal(Signal::SIGCONT);
    let took = watched.wait_until_shared(SOON);
    assert!(took < Duration::from_secs(1) + SLACK, "shared reads came back after {took:?}");
    let client = watched.home.client();
    (0..200).for_each(|n| put_counter(&client, &watched.board, n % KEYS).expect("the daemon serves"));
    daemon.stop();
    watched.end();
}

#[test]
fn a_clean_restart_is_followed_at_once() {
    let _timed = timed();
    let (watched, daemon) = Watched::start();
    let (status, log) = daemon.stop();
    assert!(status.success(), "{log}");
    let after_stop = watched.shared_hits();
    let daemon = watched.home.start();
    let took = watched.wait_until_shared(SOON);
    assert!(took < Duration::from_secs(1) + SLACK, "shared reads came back after {took:?}");
    assert!(watched.shared_hits() > after_stop);
    daemon.stop();
    watched.end();
}

#[test]
fn a_replaced_segment_is_left_for_its_successor() {
    let server = kvd::testing::server_with(|config| {
        config.default.memory_bytes = 1 << 20;
        config.default.durability = kv_client::Durability::Memory;
        config.default.disk_bytes_max = 0;
    });
    let client = server.client();
    let cache = client.cache("small");
    cache.put("kept", "0", None).expect("the daemon serves");
    attach(&client, "small");
    // Items far smaller than planned for: the index is too small for what the rings hold.
    let direct = server.direct();
    let mut round = 0_u64;
    wait_for(SOON, "a segment to be replaced", || {
        round += 1;
        let tiny = (0..1_000).map(|n| (format!("{}", (round * 1_000 + n) % 30_000), "x"));
        direct.cache("small").put_many(tiny, None).expect("the engine is there");
        direct.cache("small").put("kept", round.to_string(), None).expect("the engine is there");
        let read = cache.get("kept").expect("the daemon serves").expect("it was just put");
        assert_eq!(counter(&read), round, "older than acknowledged");
        (client.stats().caches[0].fallbacks.not_live > 0).then_some(())
    });
    attach(&client, "small");
    assert_eq!(counter(&cache.get("kept").unwrap().unwrap()), round);
}

// ---- where memory is not shared ----------------------------------------------------------------------------------

#[test]
fn a_cache_that_is_not_shared_is_read_by_socket_and_says_why() {
    let home = Home::configured("[caches.private]\nmemory = \"4MiB\"\nshared = false\n");
    let _daemon = home.start();
    let client = Client::builder().socket(home.socket()).name("asker").build().unwrap();
    let cache = client.cache("private");
    cache.put("k", "v", None).unwrap();
    assert_eq!(cache.get("k").unwrap().as_deref(), Some(&b"v"[..]));
    let ReadPath::Socket { because } = path_of(&client, "private") else { panic!("shared all the same") };
    assert!(because.contains("shared = false"), "{because}");
    // The next request takes it along.
    wait_for(SOON, "the daemon to know", || {
        cache.get("k").unwrap();
        let listed = text(&home.kvd(&["clients"]).stdout);
        let line = listed.lines().find(|line| line.contains("asker"))?.to_owned();
        (line.contains("socket: ") && line.contains("shared = false")).then_some(())
    });
}

#[test]
fn a_client_may_refuse_shared_memory_itself() {
    let server = kvd::testing::server();
    let client = Client::builder().socket(server.socket()).shared_memory(false).build().unwrap();
    let cache = client.cache("c");
    cache.put("k", "v", None).unwrap();
    (0..3).for_each(|_| assert_eq!(cache.get("k").unwrap().as_deref(), Some(&b"v"[..])));
    assert!(!path_of(&client, "c").is_shared());
    assert_eq!(client.stats().caches[0].fallbacks.not_attached, 3);
}

#[test]
fn clients_are_listed_with_their_path_and_what_they_read() {
    let home = Home::new();
    let _daemon = home.start();
    let client = Client::builder().socket(home.socket()).name("reader").build().unwrap();
    client.cache("c").put("k", "v", None).unwrap();
    attach(&client, "c");
    (0..1_000).for_each(|_| assert!(client.cache("c").contains("k").unwrap()));
    wait_for(SOON, "the report", || {
        client.cache("c").get_entry("k").unwrap();
        let clients = client.admin().clients().unwrap();
        let ours = clients.iter().find(|listed| listed.name == "reader").expect("we are connected");
        let (_, reads, path) = ours.paths.iter().find(|(cache, ..)| cache == "c")?;
        assert!(path.is_shared());
        assert_eq!(ours.pid, std::process::id());
        (*reads >= 1_000).then_some(())
    });
    let metrics = client.admin().stats().unwrap();
    let shared = metrics.iter().find(|metric| metric.name == "kvd_cache_hits_shared_total").unwrap();
    assert!(shared.value >= 1_000.0);
}

/// What is read only through shared memory is known to the daemon, and stays in memory.
#[test]
fn shared_hits_keep_items_in_memory() {
    let server = kvd::testing::server_with(|config| {
        config.default.memory_bytes = 1 << 20;
        config.default.durability = kv_client::Durability::Memory;
        config.default.disk_bytes_max = 0;
    });
    let client = server.client();
    let cache = client.cache("c");
    let value = vec![7; 500];
    let hot: Vec<String> = (0..100).map(|n| format!("hot:{n}")).collect();
    cache.put_many(hot.iter().map(|key| (key, &value)), None).unwrap();
    attach(&client, "c");
    for round in 0..300 {
        hot.iter().for_each(|key| drop(cache.get(key).unwrap()));
        // The puts take along what was read.
        wait_for(SOON, "time for a report", || {
            (round % 10 != 0 || client.stats().caches[0].path.is_shared()).then_some(())
        });
        std::thread::sleep(Duration::from_millis(if round % 10 == 0 { 110 } else { 0 }));
        cache.put_many((0..20).map(|n| (format!("once:{round}:{n}"), &value)), None).unwrap();
    }
    let kept = hot.iter().filter(|key| cache.contains(key).unwrap()).count();
    assert!(kept >= 95, "only {kept} of 100 items that are read all the time are still there");
}

// ---- old kernels, other users, containers ------------------------------------------------------------------------

/// Refuses what the named kernels refuse, then becomes `kvd serve`.
pub(crate) fn on_an_old_kernel() {
    let refuse = |calls: &[(i64, Option<(u8, u64)>)], errno: i32| {
        let rules = calls.iter().map(|(call, argument)| {
            let rule = argument.map(|(index, mask)| {
                let is_set = SeccompCmpOp::MaskedEq(mask);
                let condition = SeccompCondition::new(index, SeccompCmpArgLen::Dword, is_set, mask);
                SeccompRule::new(vec![condition.expect("an argument")]).expect("a rule")
            });
            (*call, rule.into_iter().collect())
        });
        apply(rules.collect(), SeccompAction::Allow, SeccompAction::Errno(errno as u32));
    };
    const MFD_NOEXEC_SEAL: u64 = 8;
    // Other options have some of these bits; none has all.
    const SO_PASSRIGHTS: u64 = 83;
    match var("KVD_REFUSED").as_str() {
        "noexec" => refuse(&[(libc::SYS_memfd_create, Some((1, MFD_NOEXEC_SEAL)))], libc::EINVAL),
        "populate" => {
            let advice = u64::try_from(libc::MADV_POPULATE_READ).expect("22");
            let condition = SeccompCondition::new(2, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, advice);
            let rule = SeccompRule::new(vec![condition.expect("an argument")]).expect("a rule");
            let rules = [(libc::SYS_madvise, vec![rule])].into();
            apply(rules, SeccompAction::Allow, SeccompAction::Errno(libc::EINVAL as u32));
        }
        "passrights" => refuse(&[(libc::SYS_setsockopt, Some((2, SO_PASSRIGHTS)))], libc::ENOPROTOOPT),
        "memfd" => refuse(&[(libc::SYS_memfd_create, None)], libc::ENOSYS),
        other => panic!("nobody knows how {other} is refused"),
    }
    let error = match var("KVD_BECOMES").as_str() {
        "daemon" => kvd().args(["serve", "--dir", &var("KVD_HOME")]).exec(),
        _ => return read_shared_once(),
    };
    panic!("kvd serve: {error}");
}

/// In a worker: one cache is attached and read.
fn read_shared_once() {
    let client = Client::builder().socket(var("KVD_SOCKET")).build().expect("the daemon serves");
    attach(&client, "c");
    assert_eq!(client.cache("c").get("k").expect("shared").as_deref(), Some(&b"v"[..]));
    println!("read shared");
}

fn old_daemon(home: &Home, refused: &str) -> Child {
    let vars = [
        ("KVD_REFUSED", refused.to_owned()),
        ("KVD_BECOMES", "daemon".to_owned()),
        ("KVD_HOME", home.path().display().to_string()),
    ];
    let child = worker::spawn("old-kernel", &home.socket(), &vars);
    wait_for(SOON, "the daemon", || Client::builder().socket(home.socket()).build().ok());
    child
}

fn end(mut daemon: Child) -> String {
    kill(Pid::from_raw(daemon.id().cast_signed()), Signal::SIGTERM).expect("our child");
    let output = {
        wait_for(SOON, "the daemon's end", || daemon.try_wait().expect("our child"));
        daemon.wait_with_output().expect("our child")
    };
    text(&output.stdout) + &text(&output.stderr)
}

#[test]
fn kernels_without_the_newer_calls_share_all_the_same() {
    for refused in ["noexec", "populate", "passrights"] {
        let home = Home::new();
        let daemon = old_daemon(&home, refused);
        home.client().cache("c").put("k", "v", None).unwrap();
        let vars = [("KVD_REFUSED", refused.to_owned()), ("KVD_BECOMES", "reader".to_owned())];
        let output = worker::spawn("old-kernel", &home.socket(), &vars).wait_with_output().unwrap();
        assert!(text(&output.stdout).contains("read shared"), "{refused}: {}", text(&output.stderr));
        end(daemon);
    }
}

#[test]
fn without_sealed_memory_everything_goes_by_socket_and_is_said() {
    let home = Home::new();
    let daemon = old_daemon(&home, "memfd");
    let client = home.client();
    let cache = client.cache("c");
    cache.put("k", "v", None).unwrap();
    assert_eq!(cache.get("k").unwrap().as_deref(), Some(&b"v"[..]));
    let ReadPath::Socket { because } = path_of(&client, "c") else { panic!("shared all the same") };
    assert!(because.contains("sealed memory"), "{because}");
    let said = end(daemon);
    assert!(said.contains("sealed memory"), "{said}");
}

/// This test binary where any user may start it; `None` where that cannot be.
pub(crate) fn public_copy(dir: &Path) -> Option<PathBuf> {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: only root can start a process of another user");
        return None;
    }
    std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o711)).expect("the directory is ours");
    let copy = dir.join("worker");
    // By another process: a child that some other test forks while we had it open to write would keep it from being run.
    let exe = std::env::current_exe().expect("this test binary has a path");
    let copied = Command::new("cp").arg(exe).arg(&copy).status().expect("cp is everywhere");
    assert!(copied.success(), "there is no room");
    std::fs::set_permissions(&copy, std::fs::Permissions::from_mode(0o755)).expect("the file is ours");
    Some(copy)
}

pub(crate) fn run_role(role: &str, mut command: Command, socket: &Path) -> String {
    let output = command
        .args(["worker::process", "--exact", "--nocapture", "--test-threads=1"])
        .env("KVD_TEST_ROLE", role)
        .env("KVD_SOCKET", socket)
        .output()
        .expect("it was started");
    text(&output.stdout) + &text(&output.stderr)
}

/// In a worker of another user: reads `open`, and is told that `closed` is not for it.
pub(crate) fn reader() {
    let client = Client::builder().socket(var("KVD_SOCKET")).build().expect("the access list admits us");
    attach(&client, "open");
    assert_eq!(client.cache("open").get("k").expect("shared").as_deref(), Some(&b"v"[..]));
    println!("read shared");
    let refused = client.cache("closed").get("k");
    println!("closed: {}", refused.expect_err("we are not on its list"));
}

#[test]
fn another_user_reads_shared_where_the_lists_allow_it_and_nothing_else() {
    let home = Home::configured(
        "[access]\nusers = [\"4242\"]\n[caches.open]\nmemory = \"4MiB\"\nusers = [\"4242\"]\n\
         [caches.closed]\nmemory = \"4MiB\"\nusers = [\"4243\"]\n",
    );
    let Some(binary) = public_copy(home.path()) else { return };
    let _daemon = home.start();
    home.client().cache("open").put("k", "v", None).unwrap();
    home.client().cache("closed").put("k", "v", None).unwrap();
    let mut command = Command::new(binary);
    command.uid(4_242).gid(4_242).current_dir("/");
    let said = run_role("reader", command, &home.socket());
    assert!(said.contains("read shared"), "{said}");
    assert!(said.contains("user 4242 may not read in cache closed"), "{said}");
}

#[test]
fn a_worker_in_another_mount_namespace_reads_shared() {
    let home = Home::configured(
        "[caches.open]\nmemory = \"4MiB\"\n[caches.closed]\nmemory = \"4MiB\"\nusers = [\"1\"]\n",
    );
    let _daemon = home.start();
    home.client().cache("open").put("k", "v", None).unwrap();
    let elsewhere = tempfile::tempdir().unwrap();
    let mut command = Command::new("unshare");
    command.args(["--mount", "--", "sh", "-c", "mount --bind \"$0\" \"$1\" && shift && exec \"$@\""]);
    command.arg(home.path()).arg(elsewhere.path()).arg(std::env::current_exe().unwrap());
    let mut probe = Command::new("unshare");
    let can =
        probe.args(["--mount", "--", "mount", "--bind"]).arg(home.path()).arg(elsewhere.path()).status();
    if !can.is_ok_and(|status| status.success()) {
        eprintln!("skipped: no mount namespace may be made here");
        return;
    }
    let output = command
        .args(["worker::process", "--exact", "--nocapture", "--test-threads=1"])
        .env("KVD_TEST_ROLE", "container")
        .env("KVD_SOCKET", elsewhere.path().join("kvd.sock"))
        .output()
        .unwrap();
    assert!(text(&output.stdout).contains("read shared"), "{}", text(&output.stderr));
}

/// In a worker behind a bind mount.
pub(crate) fn in_a_container() {
    let client = Client::builder().socket(var("KVD_SOCKET")).build().expect("the directory is mounted here");
    attach(&client, "open");
    assert_eq!(client.cache("open").get("k").expect("shared").as_deref(), Some(&b"v"[..]));
    println!("read shared");
}
