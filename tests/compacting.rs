//! `kvd compact` beside writers, and beside kill -9.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::support::{Home, random, text};

const LONG: Duration = Duration::from_secs(3_600);

fn fill(home: &Home, items: usize) {
    let cache = home.client().cache("c");
    let all: Vec<_> = (0..items).map(|n| (format!("k{n:05}"), "v".repeat(500))).collect();
    for chunk in all.chunks(500) {
        cache.put_many(chunk.iter().map(|(key, value)| (key, value)), LONG).unwrap();
    }
}

#[test]
fn compaction_halves_a_half_empty_file_while_others_write() {
    let home = Home::configured("memory = \"128MiB\"\njournal_max = \"2MiB\"\n");
    let daemon = home.start();
    fill(&home, 40_000);
    let client = home.client();
    let keys: Vec<_> = (0..40_000).filter(|n| n % 2 == 0).map(|n| format!("k{n:05}")).collect();
    for chunk in keys.chunks(500) {
        client.cache("c").delete_many(chunk).unwrap();
    }
    crate::support::wait_for(Duration::from_secs(60), "the journal to be folded", || {
        let metrics = client.admin().stats().unwrap();
        metrics
            .iter()
            .find(|metric| metric.name == "kvd_journal_bytes")
            .filter(|metric| metric.value == 0.0)
            .map(drop)
    });
    let is_over = AtomicBool::new(false);
    let (output, mut waits) = std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let cache = home.client().cache("w");
            let mut waits = Vec::new();
            for n in 0.. {
                if is_over.load(Ordering::Relaxed) {
                    break;
                }
                let begin = Instant::now();
                cache.put("n", format!("{n}"), LONG).unwrap();
                waits.push(begin.elapsed());
            }
            waits
        });
        let output = home.kvd(&["compact", "--json"]);
        is_over.store(true, Ordering::Relaxed);
        (output, writer.join().unwrap())
    });
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let (before, after) = (json["bytes_before"].as_u64().unwrap(), json["bytes_after"].as_u64().unwrap());
    assert!(after * 2 <= before + before / 10, "{json}");
    waits.sort();
    let (count, p99, longest) = (waits.len(), waits[waits.len() * 99 / 100], waits[waits.len() - 1]);
    println!("PROMISE compact.pause {json}; {count} writes meanwhile, p99 {p99:?}, longest {longest:?} held");
    for n in [0, 1, 20_001, 39_998, 39_999] {
        assert_eq!(client.cache("c").contains(format!("k{n:05}")).unwrap(), n % 2 == 1, "k{n:05}");
    }
    assert!(daemon.stop().0.success());
    let dir = home.path().to_str().unwrap();
    assert_eq!(home.kvd(&["check", "--offline", "--dir", dir]).status.code(), Some(0));
}

#[test]
fn a_kill_at_any_point_of_a_compaction_leaves_one_whole_store() {
    let mut random = random();
    let rounds = std::env::var("KVD_ROUNDS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(8);
    let home =
        Home::configured("memory = \"64MiB\"\njournal_max = \"1MiB\"\n[default]\nrecover = \"keep\"\n");
    let mut daemon = home.start();
    fill(&home, 6_000);
    home.client().sync().unwrap();
    let (mut written, mut ended) = (0, 0);
    for round in 0..rounds {
        let client = home.client();
        let wait = Duration::from_millis(random.u64(1..1_200));
        let compacts = crate::support::kvd()
            .args(["compact"])
            .env("KVD_SOCKET", home.socket())
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .spawn();
        let mut compacts = compacts.expect("kvd was built");
        let end = Instant::now() + wait;
        while Instant::now() < end {
            client.cache("w").put(format!("{written}"), "acknowledged", LONG).unwrap();
            written += 1;
        }
        daemon.kill();
        ended += u32::from(compacts.wait().expect("our child").success());
        daemon = home.start();
        assert!(!home.path().join("store.redb.new").exists(), "a start removes the draft");
        let client = home.client();
        let all: Vec<String> = (0..written).map(|n| n.to_string()).collect();
        for some in all.chunks(1_000) {
            let found = client.cache("w").get_many(some).unwrap();
            let lost = some.iter().zip(found).find(|(_, value)| value.is_none());
            assert!(lost.is_none(), "round {round}: of {written} writes this is lost: {lost:?}");
        }
        for n in (0..6_000).step_by(97) {
            assert!(
                client.cache("c").contains(format!("k{n:05}")).unwrap(),
                "round {round}: k{n:05} is lost"
            );
        }
    }
    assert!(daemon.stop().0.success());
    let dir = home.path().to_str().unwrap();
    let checked = home.kvd(&["check", "--offline", "--dir", dir]);
    assert_eq!(checked.status.code(), Some(0), "{}", text(&checked.stderr));
    println!("PROMISE compact.kill {rounds} kills, {ended} of them after the end, {written} writes held");
}
