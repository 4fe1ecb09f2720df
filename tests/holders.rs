//! Those who hold what others want and die, stop, or fall silent: nobody waits for them longer than the stated bounds.

use std::collections::HashMap;
use std::process::Child;
use std::time::{Duration, Instant};

use kv_client::blocking::Client;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::support::{Home, SOON, random, timed, wait_for};
use crate::transactions::{MODES, serve};
use crate::worker;

/// A process that begins a transaction, writes, says so, and goes silent; or queues for one.
pub(crate) fn holder() {
    let client = Client::connect().expect("the daemon serves");
    let begins_only = std::env::var_os("KVD_BEGINS_ONLY").is_some();
    println!("QUEUES");
    let mut tx = client.begin().expect("a transaction");
    if begins_only {
        println!("HOLDS {}", tx.number());
        std::thread::sleep(SOON * 4);
    }
    tx.put("kept", "contended", "by the holder", None).expect("a write");
    println!("HOLDS {}", tx.number());
    if std::env::var_os("KVD_FORKS").is_some() {
        // A sibling that keeps the socket open when this process dies: it inherits the descriptor.
        let _sibling = std::process::Command::new("sleep").arg("30").spawn();
    }
    // Until it is killed or woken.
    wait_for(SOON * 6, "to be told to commit", || {
        std::env::var_os("KVD_GO").and_then(|go| std::fs::metadata(go).ok())
    });
    match tx.commit() {
        Ok(committed) => println!("COMMITTED {}", committed.version),
        Err(error) => println!("REFUSED {:?}", error.kind()),
    }
}

/// Starts a holder and waits until it says `word`.
fn hold(
    home: &Home,
    vars: &[(&str, String)],
    word: &str,
) -> (Child, std::io::BufReader<std::process::ChildStdout>) {
    use std::io::BufRead as _;
    let mut child = worker::spawn("holder", &home.socket(), vars);
    let mut out = std::io::BufReader::new(child.stdout.take().expect("piped"));
    let mut line = String::new();
    while !line.contains(word) {
        line.clear();
        assert!(out.read_line(&mut line).expect("our child") > 0, "the holder ended before it said {word}");
    }
    (child, out)
}

fn signal(child: &Child, signal: Signal) {
    kill(Pid::from_raw(child.id().cast_signed()), signal).expect("our child");
}

/// How long a plain put of the contended key takes.
fn put_time(client: &Client) -> Duration {
    let began = Instant::now();
    client.cache("kept").put("contended", "by the other", None).expect("it is not held up for ever");
    began.elapsed()
}

/// `KVD_HOLDERS` sets how many (8 by default, each way in each mode; `scripts/soak holders` takes 1,000 at random moments).
#[test]
fn a_dead_stopped_or_silent_holder_is_out_of_the_way_at_once() {
    let _timed = timed();
    let count: usize = std::env::var("KVD_HOLDERS").ok().and_then(|count| count.parse().ok()).unwrap_or(8);
    let mut random = random();
    let homes = ["database", "key"].map(serve);
    let clients = [0, 1].map(|mode| homes[mode].0.client());
    // A put before, so that a connection is open and the cache is mapped.
    for client in &clients {
        put_time(client);
    }
    let mut longest: HashMap<&str, Duration> = HashMap::new();
    for number in 0..count {
        let (home, client) = (&homes[number % 2].0, &clients[number % 2]);
        let how = ["killed", "killed, sibling alive", "stopped", "silent"][number / 2 % 4];
        let forks = [("KVD_FORKS", "1".to_owned())];
        let (mut child, _out) = hold(home, if how.contains("sibling") { &forks } else { &[] }, "HOLDS");
        std::thread::sleep(Duration::from_micros(random.u64(0..5_000)));
        match how {
            "stopped" => signal(&child, Signal::SIGSTOP),
            "silent" => {}
            _ => signal(&child, Signal::SIGKILL),
        }
        let took = put_time(client);
        // The bound of the daemon, and what a busy machine adds.
        assert!(took < Duration::from_millis(150), "{how}: {took:?}");
        let value = client.cache("kept").get("contended").unwrap();
        assert_eq!(value.as_deref(), Some(&b"by the other"[..]), "{how}: nothing of it is visible");
        let worst = longest.entry(how).or_default();
        *worst = took.max(*worst);
        let _ = child.kill();
        child.wait().expect("our child");
    }
    println!(
        "PROMISE holders.freed {count} holders, longest wait of a put by how they went: {longest:?} held"
    );
}

#[test]
fn a_woken_holder_commits_nothing() {
    let _timed = timed();
    for mode in MODES {
        let (home, _daemon) = serve(mode);
        let client = home.client();
        let go = home.path().join("go");
        let (mut child, mut out) = hold(&home, &[("KVD_GO", go.display().to_string())], "HOLDS");
        signal(&child, Signal::SIGSTOP);
        put_time(&client);
        if mode == "optimistic" {
            // Nobody waits for it there: its own life ends it.
            wait_for(SOON, "its life to end", || {
                client.admin().transactions().unwrap().transactions.is_empty().then_some(())
            });
        }
        std::fs::write(&go, "").unwrap();
        signal(&child, Signal::SIGCONT);
        let mut rest = String::new();
        std::io::Read::read_to_string(&mut out, &mut rest).unwrap();
        child.wait().unwrap();
        assert!(rest.contains("REFUSED LeaseLost"), "{mode}: {rest}");
        let value = client.cache("kept").get("contended").unwrap();
        assert_eq!(value.as_deref(), Some(&b"by the other"[..]), "{mode}");
    }
}

#[test]
fn eight_stopped_workers_hold_up_a_put_for_less_than_150_ms() {
    let _timed = timed();
    let (home, _daemon) = serve("database");
    let client = home.client();
    put_time(&client);
    // One inside, seven in the queue behind it or just granted; all stopped.
    let vars = [("KVD_BEGINS_ONLY", "1".to_owned())];
    let holders: Vec<_> = (0..8)
        .map(|i| {
            let held = hold(&home, if i == 0 { &[] } else { &vars }, if i == 0 { "HOLDS" } else { "QUEUES" });
            signal(&held.0, Signal::SIGSTOP);
            held
        })
        .collect();
    let mut times: Vec<Duration> = (0..20).map(|_| put_time(&client)).collect();
    times.sort();
    println!("puts beside eight stopped workers: median {:?}, longest {:?}", times[10], times[19]);
    assert!(times[19] < Duration::from_millis(150), "{times:?}");
    for (mut child, _) in holders {
        child.kill().unwrap();
        child.wait().unwrap();
    }
}

#[test]
fn a_holder_that_waits_itself_is_not_taken_for_silent() {
    let _timed = timed();
    let (home, _daemon) = serve("key");
    let client = home.client();
    let mut first = client.begin().unwrap();
    first.put("kept", "a", "1", None).unwrap();
    std::thread::scope(|scope| {
        // Holds b and waits for a, for longer than silence is borne; c waits for b meanwhile.
        let second = scope.spawn(|| {
            let mut tx = client.begin()?;
            tx.put("kept", "b", "1", None)?;
            tx.put("kept", "a", "2", None)?;
            tx.commit()
        });
        wait_for(SOON, "the second to wait", || waits(&client, 1));
        let third = scope.spawn(|| client.cache("kept").put("b", "3", None));
        wait_for(SOON, "the third to wait", || waits(&client, 2));
        let until = Instant::now() + Duration::from_millis(200);
        while Instant::now() < until {
            // Not silent, so nobody may take its lock.
            first.get("kept", "a").unwrap();
            std::thread::sleep(Duration::from_millis(10));
        }
        first.commit().unwrap();
        second.join().unwrap().expect("it was healthy all the time");
        third.join().unwrap().unwrap();
    });
}

fn waits(client: &Client, count: usize) -> Option<()> {
    let listed = client.admin().transactions().unwrap();
    (listed.transactions.iter().filter(|open| open.waits.is_some()).count() >= count).then_some(())
}
