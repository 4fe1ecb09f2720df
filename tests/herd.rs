//! Many processes that miss the same key at once: one of them loads, and when it is killed, one more.

use std::collections::HashMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use kv_client::blocking::Client;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::support::{Home, SOON, random, wait_for, whole_machine};
use crate::worker;

/// Processes of the herd.
const HERD: usize = 200;
/// How long a loader's lease is safe, and so the longest that anybody waits.
const LEASE: Duration = Duration::from_secs(10);
/// What a loader takes.
const LOAD: Duration = Duration::from_millis(30);

/// A process that loads what it is told to, and says what it got and how long that took.
pub(crate) fn member() {
    let client = Client::builder().name("herd").op_timeout(LEASE * 2).build().expect("the daemon serves");
    let loads = PathBuf::from(std::env::var_os("KVD_LOADS").expect("a member is told where loads are noted"));
    let cache = client.cache("cold");
    println!("READY");
    for line in std::io::stdin().lines() {
        let key = line.expect("the parent writes lines");
        let began = Instant::now();
        let value = cache
            .entry(&key)
            .ttl(Duration::from_secs(60))
            .lease(LEASE)
            .wait(LEASE)
            .get_or_load(|_fill| {
                note(&loads, &key)?;
                std::thread::sleep(LOAD);
                Ok::<_, std::io::Error>(format!("{key}-by-{}", std::process::id()).into_bytes())
            })
            .expect("a value");
        println!("GOT {key} {} {}", String::from_utf8_lossy(&value), began.elapsed().as_micros());
    }
}

/// Notes a loader that begins: one short line, appended whole.
fn note(loads: &Path, key: &str) -> std::io::Result<()> {
    let mut file = std::fs::OpenOptions::new().append(true).create(true).open(loads)?;
    file.write_all(format!("{key} {}\n", std::process::id()).as_bytes())
}

/// Those whose loaders began for a key.
fn loaders(loads: &Path, key: &str) -> Vec<i32> {
    let text = std::fs::read_to_string(loads).unwrap_or_default();
    let of_key = |line: &str| line.strip_prefix(key)?.strip_prefix(' ')?.parse().ok();
    text.lines().filter_map(of_key).collect()
}

struct Got {
    key: String,
    value: String,
    waited: Duration,
}

struct Herd {
    home: Home,
    loads: PathBuf,
    members: HashMap<u32, (Child, ChildStdin)>,
    said: Receiver<Option<Got>>,
    say: Sender<Option<Got>>,
}

impl Herd {
    fn gather(home: Home) -> Herd {
        let (say, said) = channel();
        let loads = home.path().join("loads");
        let mut herd = Herd { home, loads, members: HashMap::new(), said, say };
        (0..HERD).for_each(|_| herd.add());
        (0..HERD).for_each(|_| herd.await_ready());
        herd
    }

    fn add(&mut self) {
        let vars = [("KVD_LOADS", self.loads.display().to_string())];
        let mut child = worker::spawn_told("herd", &self.home.socket(), &vars);
        let stdin = child.stdin.take().expect("piped");
        let out = BufReader::new(child.stdout.take().expect("piped"));
        let say = self.say.clone();
        std::thread::spawn(move || {
            for line in out.lines().map_while(Result::ok) {
                let words: Vec<_> = line.split(' ').collect();
                let said = match words[..] {
                    // The test harness says something before it.
                    [.., "READY"] => None,
                    ["GOT", key, value, us] => Some(Got {
                        key: key.to_owned(),
                        value: value.to_owned(),
                        waited: Duration::from_micros(us.parse().expect("a number")),
                    }),
                    _ => continue,
                };
                if say.send(said).is_err() {
                    return;
                }
            }
        });
        self.members.insert(child.id(), (child, stdin));
    }

    fn await_ready(&self) {
        assert!(self.said.recv_timeout(SOON * 3).expect("a member is ready in time").is_none());
    }

    /// Lets all miss a key at once.
    fn stampede(&mut self, key: &str) {
        for (_, stdin) in self.members.values_mut() {
            writeln!(stdin, "{key}").expect("a member reads");
        }
    }

    /// What all of them got, the dead aside.
    fn answers(&self, key: &str, count: usize) -> (Duration, HashMap<String, usize>) {
        let (mut longest, mut values) = (Duration::ZERO, HashMap::new());
        for _ in 0..count {
            let got = self.said.recv_timeout(LEASE * 2).expect("everybody gets a value in time");
            let got = got.expect("nobody begins now");
            assert_eq!(got.key, key);
            longest = longest.max(got.waited);
            *values.entry(got.value).or_default() += 1;
        }
        (longest, values)
    }
}

impl Drop for Herd {
    fn drop(&mut self) {
        for (_, (mut child, stdin)) in self.members.drain() {
            drop(stdin);
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn count(variable: &str, default: usize) -> usize {
    std::env::var(variable).ok().and_then(|count| count.parse().ok()).unwrap_or(default)
}

/// `KVD_HERDS` sets how many times (20 by default; `scripts/soak herd` takes 1,000), `KVD_HERD_KILLS` how many of more
/// rounds have their winner killed at a random moment (5; 100).
#[test]
fn two_hundred_processes_that_miss_a_key_together_load_it_once() {
    let _whole = whole_machine();
    let home = Home::new();
    let _daemon = home.start();
    let mut random = random();
    let mut herd = Herd::gather(home);
    let (rounds, kills) = (count("KVD_HERDS", 20), count("KVD_HERD_KILLS", 5));
    let mut longest = Duration::ZERO;
    for round in 0..rounds {
        let key = format!("round-{round}");
        herd.stampede(&key);
        let (waited, values) = herd.answers(&key, HERD);
        let ran = loaders(&herd.loads, &key);
        assert_eq!(ran.len(), 1, "{key}: loaders of {ran:?}, values {values:?}");
        assert_eq!(values.len(), 1, "{key}: {values:?}");
        longest = longest.max(waited);
    }
    println!(
        "PROMISE herd.one_loader {rounds} rounds of {HERD} processes, longest wait {longest:?} for a load of {LOAD:?} held"
    );
    let (mut longest, mut twice) = (Duration::ZERO, 0);
    for round in 0..kills {
        let key = format!("kill-{round}");
        herd.stampede(&key);
        let winner = wait_for(SOON, "somebody to load", || loaders(&herd.loads, &key).first().copied());
        std::thread::sleep(Duration::from_micros(random.u64(0..LOAD.as_micros() as u64)));
        kill(Pid::from_raw(winner), Signal::SIGKILL).expect("our child");
        let (mut child, _) = herd.members.remove(&winner.cast_unsigned()).expect("the winner is of the herd");
        child.wait().expect("our child");
        // The winner may have got its value out before it died.
        let (waited, values) = herd.answers(&key, HERD - 1);
        let early = herd.said.recv_timeout(Duration::from_millis(50)).ok().flatten();
        assert!(early.is_none_or(|got| got.key == key));
        let ran = loaders(&herd.loads, &key);
        assert!(ran.len() <= 2, "{key}: loaders of {ran:?}, values {values:?}");
        assert!(waited < LEASE, "{key}: somebody waited {waited:?}");
        longest = longest.max(waited);
        twice += ran.len() - 1;
        herd.add();
        herd.await_ready();
    }
    println!(
        "PROMISE herd.killed_winner {kills} winners killed, {twice} loaded once more, longest wait {longest:?} of {LEASE:?} held"
    );
}
