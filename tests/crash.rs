//! kill -9 in a storm of writes: nothing acknowledged is lost, nothing acknowledged is undone, numbers never repeat.
//!
//! `KVD_ROUNDS` sets how often the daemon is killed (20 by default; `scripts/soak crash` does 200).
//! kill -9 never loses the page cache: what power loss does is tested on a simulated disk, beside the store.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use kv_client::blocking::Client;
use kv_client::{Effect, OnOutage, PutOptions, Ttl};

use crate::support::{Home, SOON, random, wait_for};
use crate::worker;

const WORKERS: usize = 8;
const KEYS_A_WORKER: u64 = 64;

#[test]
fn acknowledged_changes_survive_kill_minus_nine() {
    let rounds: u32 = std::env::var("KVD_ROUNDS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(20);
    let mut random = random();
    // A journal of 256 KiB folds all the time, so that older versions stand in the tree.
    let home = Home::configured(
        "memory = \"16MiB\"\njournal_max = \"1MiB\"\n[default]\nmemory = \"4MiB\"\nrecover = \"keep\"\n\
         [caches.storm]\nmemory = \"1MiB\"\nrecover = \"keep\"\n",
    );
    let mut daemon = home.start();
    let stop = home.path().join("stop");
    let workers: Vec<_> = (0..WORKERS)
        .map(|number| {
            let vars = [
                ("KVD_WORKER", number.to_string()),
                ("KVD_SEED", random.u64(..).to_string()),
                ("KVD_STOP", stop.display().to_string()),
            ];
            worker::spawn("storm", &home.socket(), &vars)
        })
        .collect();
    for _ in 0..rounds {
        std::thread::sleep(Duration::from_millis(random.u64(100..400)));
        daemon.kill();
        let began = Instant::now();
        daemon = home.start();
        assert!(began.elapsed() < SOON, "the open after a kill took {:?}", began.elapsed());
        wait_for(SOON, "writes to be taken again", || {
            home.client().cache("probe").put("alive", "1", Duration::from_secs(60)).ok()
        });
    }
    std::fs::write(&stop, "").expect("the directory is ours");
    let mut acknowledged = 0_u64;
    for worker in workers {
        let output = worker.wait_with_output().expect("our child");
        let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{stdout}\n{}", String::from_utf8_lossy(&output.stderr));
        let line = stdout
            .split("ACKNOWLEDGED ")
            .nth(1)
            .and_then(|rest| rest.lines().next())
            .expect("a worker counts");
        acknowledged += line.trim().parse::<u64>().expect("a number");
    }
    assert!(
        acknowledged > u64::from(rounds) * 50,
        "only {acknowledged} changes in {rounds} rounds: no storm"
    );
    println!("PROMISE crash.acknowledged_survive {acknowledged} changes, {rounds} kills held");
}

/// `KVD_ITEMS` sets how many items there are (50,000 by default; `scripts/soak reopen` takes a million).
#[test]
fn first_reads_after_a_kill_are_hits_and_none_is_a_false_miss() {
    let items: u32 = std::env::var("KVD_ITEMS").ok().and_then(|items| items.parse().ok()).unwrap_or(50_000);
    let mut random = random();
    let home =
        Home::configured("memory = \"256MiB\"\n[caches.many]\nmemory = \"192MiB\"\nrecover = \"keep\"\n");
    let daemon = home.start();
    let value = |n: u32| format!("value of {n:08} {}", "x".repeat(80));
    let numbers: Vec<u32> = (0..items).collect();
    let cache = home.client().cache("many");
    for chunk in numbers.chunks(1_000) {
        let pairs = chunk.iter().map(|n| (format!("key:{n:08}"), value(*n)));
        cache.put_many(pairs, Duration::from_secs(3_600)).expect("the daemon serves");
    }
    daemon.kill();
    let began = Instant::now();
    let _daemon = home.start();
    let cache = home.client().cache("many");
    let mut check = |cache: &kv_client::blocking::Cache| {
        let n = random.u32(..items);
        let found = cache.get(format!("key:{n:08}")).expect("reads are served at once");
        assert_eq!(
            found.map(|found| String::from_utf8_lossy(&found).into_owned()),
            Some(value(n)),
            "a false miss"
        );
    };
    check(&cache);
    let first = began.elapsed();
    (0..20_000).for_each(|_| check(&cache));
    println!(
        "PROMISE reopen.first_hit {} ms with {items} items, 20000 random reads, 0 false misses",
        first.as_millis()
    );
    if !cfg!(debug_assertions) {
        assert!(first < Duration::from_secs(1), "the first hit took {first:?}");
    }
}

/// What a key may hold: after an answer that was lost, either of two states.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Known {
    sure: Option<String>,
    maybe: Vec<Option<String>>,
}

/// Changes keys of its own, believes only answers, and checks all of them after every lost connection.
pub(crate) fn storm_worker() {
    let var = |name: &str| std::env::var(name).unwrap_or_else(|_| panic!("a worker is given {name}"));
    let number: u64 = var("KVD_WORKER").parse().expect("a number");
    let mut random = fastrand::Rng::with_seed(var("KVD_SEED").parse().expect("a number"));
    let stop = std::path::PathBuf::from(var("KVD_STOP"));
    let client = Client::builder()
        .socket(var("KVD_SOCKET"))
        .op_timeout(Duration::from_secs(10))
        .restart_grace(Duration::from_secs(10))
        // It must know which answers it has got.
        .on_outage(OnOutage::Error)
        .build_lazy();
    let mut storm = Storm { client, number, known: HashMap::new(), version: 0, acknowledged: 0, writes: 0 };
    while !stop.exists() {
        if !storm.step(&mut random) {
            storm.check();
        }
    }
    storm.check();
    println!("ACKNOWLEDGED {}", storm.acknowledged);
}

struct Storm {
    client: Client,
    number: u64,
    known: HashMap<String, Known>,
    version: u64,
    acknowledged: u64,
    writes: u64,
}

impl Storm {
    /// One change; `false` when its answer was lost.
    fn step(&mut self, random: &mut fastrand::Rng) -> bool {
        let cache = self.client.cache("storm");
        let key = format!("{}:{}", self.number, random.u64(..KEYS_A_WORKER));
        self.writes += 1;
        let value = format!("{}-{}-{}", self.number, self.writes, "x".repeat(random.usize(..400)));
        let long = Duration::from_secs(3_600);
        let tag = format!("w{}", self.number);
        match random.u32(..100) {
            0..60 => {
                let options = PutOptions::new().ttl(long).tag(&tag);
                let answer = cache.put_with(&key, &value, options).map(|outcome| outcome.version());
                self.note(vec![key], Some(value), answer)
            }
            60..75 => {
                let answer = cache.delete(&key).map(|_| None);
                self.note(vec![key], None, answer)
            }
            75..82 => {
                let answer = cache.expire(&key, Ttl::Now);
                self.note(vec![key], None, answer)
            }
            82..90 => {
                let other = format!("{}:{}", self.number, random.u64(..KEYS_A_WORKER));
                let mut batch = self.client.batch();
                for key in [&key, &other] {
                    batch = batch.put("storm", key, &value, long);
                }
                let answer = batch.commit().map(|committed| Some(committed.version));
                self.note(vec![key, other], Some(value), answer)
            }
            90..96 => {
                let answer = cache.expire(&key, Ttl::Never);
                let same = self.known.get(&key).and_then(|known| known.sure.clone());
                self.note(vec![key], same, answer)
            }
            96..98 => {
                let answer = cache.clear_prefix(format!("{}:", self.number), Effect::Gone).map(Some);
                self.note(self.known.keys().cloned().collect(), None, answer)
            }
            _ => {
                // Clears what carries the tag: everything put alone; batches have no tag, so put those anew first.
                let keys: Vec<String> = self.known.keys().cloned().collect();
                let answer = cache.delete_many(&keys).map(|_| None);
                self.note(keys, None, answer)
            }
        }
    }

    /// Books a change of `keys` to `value` as its answer says.
    fn note(
        &mut self,
        keys: Vec<String>,
        value: Option<String>,
        answer: kv_client::Result<Option<u64>>,
    ) -> bool {
        match answer {
            Ok(version) => {
                self.acknowledged += 1;
                if let Some(version) = version {
                    assert!(version > self.version, "sequence {version} after {}", self.version);
                    self.version = version;
                }
                for key in keys {
                    self.known.insert(key, Known { sure: value.clone(), maybe: Vec::new() });
                }
                true
            }
            Err(error) => {
                assert!(error.maybe_applied() || error.is_retryable(), "{error}");
                for key in keys {
                    let known = self.known.entry(key).or_insert(Known { sure: None, maybe: Vec::new() });
                    known.maybe.push(value.clone());
                }
                false
            }
        }
    }

    /// Reads every key back: it holds what was acknowledged, or what an unanswered change would have made of it.
    fn check(&mut self) {
        let cache = self.client.cache("storm");
        let deadline = Instant::now() + SOON;
        let mut keys: Vec<String> = self.known.keys().cloned().collect();
        keys.sort();
        while let Some(key) = keys.last() {
            match cache.get(key) {
                Ok(found) => {
                    let found = found.map(|bytes| String::from_utf8(bytes).expect("our values are text"));
                    let known = self.known.get_mut(key).expect("taken from there");
                    let possible = found == known.sure || known.maybe.contains(&found);
                    assert!(possible, "key {key} is {found:?}, was {known:?}");
                    *known = Known { sure: found, maybe: Vec::new() };
                    keys.pop();
                }
                Err(error) => {
                    assert!(error.is_retryable(), "{error}");
                    assert!(Instant::now() < deadline, "no read for {SOON:?}: {error}");
                }
            }
        }
    }
}
