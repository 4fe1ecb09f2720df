//! Loads inside loads, across processes: nobody waits for himself, however long the way round.

use std::io::{BufReader, Write as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use kv_client::Client;

use crate::support::{Home, timed};
use crate::worker;

/// What each loader takes.
const LOAD: Duration = Duration::from_millis(100);
/// What may come on top of the loaders' own time.
const SLACK: Duration = Duration::from_millis(50);
/// Reads that have nothing to do with it, on the same client.
const UNRELATED: usize = 100;

/// A process with one async client that loads a key, and needs another one for that.
pub(crate) fn link() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let var = |name: &str| std::env::var(name).expect("a link is told its keys");
    runtime.block_on(load(var("KVD_KEY"), var("KVD_NEEDS")));
}

async fn load(key: String, needs: String) {
    let client = Client::connect().await.expect("the daemon serves");
    let products = client.cache("product");
    products.put("unrelated", "x", None).await.expect("the daemon serves");
    println!("READY");
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).expect("the parent writes a line");

    let (is_over, reads) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let readers: Vec<_> = (0..UNRELATED)
        .map(|_| {
            // Over the socket too: sliding reads are requests.
            let (products, is_over, reads) = (products.clone(), Arc::clone(&is_over), Arc::clone(&reads));
            let sliding = kv_client::Sliding { below: Duration::ZERO, ttl: Duration::from_secs(60) };
            tokio::spawn(async move {
                while !is_over.load(Ordering::Relaxed) {
                    products
                        .get_sliding("unrelated", sliding)
                        .await
                        .expect("it is there")
                        .expect("it is there");
                    reads.fetch_add(1, Ordering::Relaxed);
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            })
        })
        .collect();
    let began = Instant::now();
    let inner = products.clone();
    let loaded = products
        .get_or_load(&key, None, move |_fill| async move {
            tokio::time::sleep(LOAD).await;
            let needed = inner.get_or_load(&needs, None, |_fill| async {
                tokio::time::sleep(LOAD).await;
                Ok::<_, std::io::Error>(b"needed".to_vec())
            });
            let needed = needed.await?;
            Ok::<_, kv_client::Error>([&b"made of "[..], &needed].concat())
        })
        .await;
    let took = began.elapsed();
    is_over.store(true, Ordering::Relaxed);
    for reader in readers {
        reader.await.expect("reads go on");
    }
    let loaded = loaded.expect("a ring is no error");
    println!(
        "LOADED {} {} {}",
        String::from_utf8_lossy(&loaded).replace(' ', "-"),
        took.as_micros(),
        reads.load(Ordering::Relaxed)
    );
}

/// Processes that each load one key and need the next one's, round: how long the slowest took.
fn ring(home: &Home, name: &str, links: usize) -> Duration {
    let key = |number: usize| format!("{name}-{}", number % links);
    let mut children: Vec<_> = (0..links)
        .map(|number| {
            let vars = [("KVD_KEY", key(number)), ("KVD_NEEDS", key(number + 1))];
            let mut child = worker::spawn_told("link", &home.socket(), &vars);
            let stdin = child.stdin.take().expect("piped");
            let mut out = BufReader::new(child.stdout.take().expect("piped"));
            read_until(&mut out, "READY");
            (child, stdin, out)
        })
        .collect();
    for (_, stdin, _) in &mut children {
        writeln!(stdin, "go").expect("a link reads");
    }
    let mut slowest = Duration::ZERO;
    for (mut child, _stdin, mut out) in children {
        let line = read_until(&mut out, "LOADED");
        let words: Vec<_> = line.split(' ').collect();
        let [_, value, us, reads] = words[..] else { panic!("{line}") };
        assert!(value.starts_with("made-of-"), "{line}");
        assert!(reads.parse::<usize>().expect("a number") >= UNRELATED, "{line}: unrelated reads went on");
        slowest = slowest.max(Duration::from_micros(us.parse().expect("a number")));
        child.wait().expect("our child");
    }
    slowest
}

fn read_until(out: &mut impl std::io::BufRead, word: &str) -> String {
    let mut line = String::new();
    loop {
        line.clear();
        assert!(out.read_line(&mut line).expect("our child") > 0, "it ended before it said {word}");
        if let Some(at) = line.find(word) {
            return line[at..].trim_end().to_owned();
        }
    }
}

#[test]
fn processes_that_need_what_each_other_loads_end_within_their_loaders_time() {
    let _timed = timed();
    let home = Home::new();
    let _daemon = home.start();
    for (links, rounds) in [(2, 5), (3, 3)] {
        let mut best = Duration::MAX;
        for round in 0..rounds {
            let took = ring(&home, &format!("ring-{links}-{round}"), links);
            // Who waits for a load that itself waits has three loads before it; nobody waits for a deadline.
            assert!(took < LOAD * 10, "{links} links: {took:?}");
            best = best.min(took);
        }
        // Each runs its own loader and one inside it, side by side; the best of some rounds, because others use the machine.
        let limit = LOAD * 2 + SLACK + LOAD * u32::try_from(links - 2).expect("few");
        assert!(best < limit, "{links} links: at best {best:?}, of {limit:?}");
        println!(
            "PROMISE rings.{links} {rounds} rounds beside {UNRELATED} reads each, at best {best:?} of {limit:?} held"
        );
    }
}
