//! Serializability, by machine: processes run random transactions, and two independent checks look at the history.
//!
//! The first replays the history in the order of commit sequences and wants every read to see what the model holds. The second
//! knows no sequence: from the values alone it builds the graph of who must have come before whom ("Generalized Isolation Level
//! Definitions", Adya et al., 2000) and wants it to have no ring. `KVD_TRANSACTIONS` sets how many a mode (10,000 by default;
//! `scripts/soak txn` takes a million).

use std::collections::HashMap;
use std::fmt::Write as _;

use kv_client::blocking::Client;
use kv_client::{Error, PutOptions, PutOutcome};

use crate::support::{Home, random};
use crate::worker;

const PROCESSES: usize = 4;
const KEYS: u64 = 24;

/// One committed transaction: what it saw and what it wrote, by key. A value names who wrote it.
#[derive(Debug, Default)]
struct Entry {
    version: u64,
    reads: HashMap<u64, String>,
    writes: HashMap<u64, String>,
}

#[test]
fn random_transactions_are_serializable_in_every_mode() {
    let transactions: u64 =
        std::env::var("KVD_TRANSACTIONS").ok().and_then(|n| n.parse().ok()).unwrap_or(10_000);
    let mut random = random();
    for mode in ["database", "key", "optimistic"] {
        let home = Home::configured(&format!(
            "locking = \"{mode}\"\nmemory = \"16MiB\"\n[default]\nmemory = \"2MiB\"\n\
             [caches.fleeting]\nmemory = \"2MiB\"\ndurability = \"memory\"\n[caches.kept]\n"
        ));
        let daemon = home.start();
        // A put under a condition that does not hold is not counted: some one in a hundred.
        let each = (transactions + transactions / 8).div_ceil(PROCESSES as u64);
        let workers: Vec<_> = (0..PROCESSES)
            .map(|number| {
                let vars = [
                    ("KVD_WORKER", number.to_string()),
                    ("KVD_SEED", random.u64(..).to_string()),
                    ("KVD_TRANSACTIONS", each.to_string()),
                ];
                worker::spawn("historian", &home.socket(), &vars)
            })
            .collect();
        let mut history = Vec::new();
        for worker in workers {
            let output = worker.wait_with_output().expect("our child");
            let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
            assert!(output.status.success(), "{mode}: {stdout}\n{}", String::from_utf8_lossy(&output.stderr));
            history.extend(stdout.lines().filter_map(parse));
        }
        assert!(history.len() as u64 >= transactions, "{mode}: only {} were committed", history.len());
        replay(mode, &mut history);
        let edges = check_graph(mode, &history);
        println!("PROMISE serial.{mode} {} transactions, {edges} dependencies, no ring held", history.len());
        drop(daemon);
    }
}

/// In a worker process: random transactions, each printed once it is committed.
pub(crate) fn historian() {
    let var = |name: &str| std::env::var(name).expect("the test sets it").parse::<u64>().expect("a number");
    let (own, count) = (var("KVD_WORKER"), var("KVD_TRANSACTIONS"));
    let mut random = fastrand::Rng::with_seed(var("KVD_SEED"));
    let client = Client::connect().expect("the daemon serves");
    let mut out = String::new();
    for step in 0..count {
        let mut entry = Entry::default();
        let name = format!("{own}.{step}");
        // Now and then what is not a transaction over several requests, but has to be in the order all the same.
        let version = if random.u8(..) < 32 {
            plainly(&client, &mut random, &name, &mut entry)
        } else {
            interactively(&client, &mut random, &name, &mut entry)
        };
        if let Some(version) = version {
            entry.version = version;
            print_entry(&mut out, &entry);
        }
    }
    // Each line on its own, and none behind what the test harness has begun to print.
    println!("\n{out}");
}

/// Even keys are on disk, odd ones in memory only.
fn place(key: u64) -> (&'static str, String) {
    (if key.is_multiple_of(2) { "kept" } else { "fleeting" }, format!("k{key}"))
}

fn interactively(client: &Client, random: &mut fastrand::Rng, name: &str, entry: &mut Entry) -> Option<u64> {
    let keys: Vec<u64> = (0..random.usize(1..5)).map(|_| random.u64(0..KEYS)).collect();
    let writes = random.u8(..) < 200;
    let mut tries = 0;
    loop {
        *entry = Entry::default();
        let result = (|| {
            let mut tx = client.begin()?;
            for &key in &keys {
                let (cache, place) = place(key);
                let seen =
                    tx.get(cache, &place)?.map_or(String::new(), |value| String::from_utf8(value).unwrap());
                // Its own write is not what others have left.
                if !entry.writes.contains_key(&key) {
                    entry.reads.insert(key, seen);
                }
                if writes && random.u8(..) < 128 {
                    tx.put(cache, &place, name, None)?;
                    entry.writes.insert(key, name.to_owned());
                }
            }
            tx.commit()
        })();
        match result {
            Ok(committed) => return Some(committed.version),
            Err(error) if error.is_retryable() && tries < 1_000 => tries += 1,
            Err(error) => panic!("{name}: {error}"),
        }
    }
}

/// A put under the condition that the version that was read is still there.
fn plainly(client: &Client, random: &mut fastrand::Rng, name: &str, entry: &mut Entry) -> Option<u64> {
    let key = random.u64(0..KEYS);
    let (cache, place) = place(key);
    let cache = client.cache(cache);
    let found = match cache.get_entry(&place) {
        Ok(found) => found,
        Err(Error::Refused { kind: kv_client::ErrorKind::UnknownCache, .. }) => None,
        Err(error) => panic!("{name}: {error}"),
    };
    let options = match &found {
        Some(found) => PutOptions::new().if_version(found.version),
        None => PutOptions::new().if_absent(),
    };
    let seen = found.map_or(String::new(), |found| String::from_utf8(found.value).unwrap());
    match cache.put_with(&place, name, options).expect("a put is answered") {
        PutOutcome::Written { version } => {
            entry.reads.insert(key, seen);
            entry.writes.insert(key, name.to_owned());
            Some(version)
        }
        _ => None,
    }
}

fn print_entry(out: &mut String, entry: &Entry) {
    let list = |pairs: &HashMap<u64, String>| {
        pairs.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(",")
    };
    writeln!(out, "HISTORY {} r:{} w:{}", entry.version, list(&entry.reads), list(&entry.writes)).unwrap();
}

fn parse(line: &str) -> Option<Entry> {
    let mut parts = line.strip_prefix("HISTORY ")?.split(' ');
    let version = parts.next()?.parse().ok()?;
    let pairs = |text: &str| -> HashMap<u64, String> {
        let pairs = text.split(',').filter_map(|pair| pair.split_once('='));
        pairs.map(|(key, value)| (key.parse().expect("a key"), value.to_owned())).collect()
    };
    let reads = pairs(parts.next()?.strip_prefix("r:")?);
    let writes = pairs(parts.next()?.strip_prefix("w:")?);
    Some(Entry { version, reads, writes })
}

/// In the order of sequences every read sees the model. Those that wrote nothing carry the newest sequence that they saw.
fn replay(mode: &str, history: &mut [Entry]) {
    history.sort_by_key(|entry| (entry.version, entry.writes.is_empty()));
    let mut model: HashMap<u64, String> = HashMap::new();
    for entry in history {
        for (key, seen) in &entry.reads {
            let held = model.get(key).map_or("", String::as_str);
            assert_eq!(held, seen, "{mode}: key {key} at sequence {}", entry.version);
        }
        model.extend(entry.writes.iter().map(|(key, value)| (*key, value.clone())));
    }
}

/// The graph of dependencies, from values alone: every write here follows a read of the same key, so the values of a key form a
/// chain, and who wrote a value is unique.
fn check_graph(mode: &str, history: &[Entry]) -> usize {
    let mut writer: HashMap<(u64, &str), usize> = HashMap::new();
    // Who replaced a value.
    let mut next: HashMap<(u64, &str), usize> = HashMap::new();
    for (index, entry) in history.iter().enumerate() {
        for (key, value) in &entry.writes {
            assert_eq!(writer.insert((*key, value), index), None, "{mode}: two wrote {value}");
            let replaced = next.insert((*key, entry.reads[key].as_str()), index);
            assert_eq!(replaced, None, "{mode}: an update of key {key} was lost");
        }
    }
    let mut edges: Vec<Vec<usize>> = vec![Vec::new(); history.len()];
    for (index, entry) in history.iter().enumerate() {
        for (key, seen) in &entry.reads {
            if let Some(&before) = writer.get(&(*key, seen.as_str())) {
                edges[before].push(index);
            }
            if let Some(&after) = next.get(&(*key, seen.as_str())).filter(|&&after| after != index) {
                edges[index].push(after);
            }
        }
    }
    let count = edges.iter().map(Vec::len).sum();
    let mut before = vec![0_usize; history.len()];
    edges.iter().flatten().for_each(|&to| before[to] += 1);
    let mut ready: Vec<usize> = (0..history.len()).filter(|&index| before[index] == 0).collect();
    let mut ordered = 0;
    while let Some(index) = ready.pop() {
        ordered += 1;
        for &to in &edges[index] {
            before[to] -= 1;
            if before[to] == 0 {
                ready.push(to);
            }
        }
    }
    assert_eq!(ordered, history.len(), "{mode}: the rest must each have come before the others");
    count
}

#[test]
fn both_checks_find_a_lost_update_and_a_write_skew() {
    let finds = |history: fn() -> Vec<Entry>| {
        let replayed = std::panic::catch_unwind(move || replay("test", &mut history()));
        let drawn = std::panic::catch_unwind(move || check_graph("test", &history()));
        (replayed.is_err(), drawn.is_err())
    };
    fn pairs(list: &[(u64, &str)]) -> HashMap<u64, String> {
        list.iter().map(|(key, value)| (*key, (*value).to_owned())).collect()
    }
    let lost = || {
        vec![
            Entry { version: 1, reads: pairs(&[(1, "")]), writes: pairs(&[(1, "a")]) },
            Entry { version: 2, reads: pairs(&[(1, "")]), writes: pairs(&[(1, "b")]) },
        ]
    };
    assert_eq!(finds(lost), (true, true));
    let skew = || {
        vec![
            Entry { version: 1, reads: pairs(&[(1, ""), (2, "")]), writes: pairs(&[(1, "a")]) },
            Entry { version: 2, reads: pairs(&[(1, ""), (2, "")]), writes: pairs(&[(2, "b")]) },
        ]
    };
    assert_eq!(finds(skew), (true, true));
    let good = || {
        vec![
            Entry { version: 1, reads: pairs(&[(1, ""), (2, "")]), writes: pairs(&[(1, "a")]) },
            Entry { version: 2, reads: pairs(&[(1, "a"), (2, "")]), writes: pairs(&[(2, "b")]) },
        ]
    };
    assert_eq!(finds(good), (false, false));
}
