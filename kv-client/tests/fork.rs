//! A client made before `fork` is used after it: the child connects anew, and its parent's stream is not touched; through
//! shared memory it reads on by the map it inherited.
//!
//! A program of its own, because it forks, by `daemon(3)`: the parent's half ends at once, the child goes on.

mod fake;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use fake::Fake;
use kv_client::blocking::Client;

const SOCKET: &str = "KVD_TEST_FORK_SOCKET";
const PART: &str = "KVD_TEST_FORK_PART";
const SOON: Duration = Duration::from_secs(20);
/// A child that has told what it read tells the next only a second later; less what its check needs.
const TELLS_NOTHING: Duration = Duration::from_millis(900);
const READS: u64 = 1_000;

fn main() {
    if let Some(socket) = std::env::var_os(SOCKET) {
        let client = Client::builder().socket(socket);
        return match std::env::var(PART).as_deref() {
            Ok("reads") => reading_child(&client.build().expect("the daemon is there")),
            Ok("transaction") => transacting_child(&client.build().expect("the daemon is there")),
            _ => child(client.shared_memory(false).build().expect("the daemon is there")),
        };
    }
    a_child_connects_anew();
    println!("test a_child_connects_anew ... ok");
    a_child_reads_on_through_the_map_it_inherited();
    println!("test a_child_reads_on_through_the_map_it_inherited ... ok");
    a_child_leaves_an_inherited_transaction_alone();
    println!("test a_child_leaves_an_inherited_transaction_alone ... ok");
    println!("\ntest result: ok. 3 passed; 0 failed");
}

/// Starts this program again, to fork; what it and its child said, when both are done.
fn run(socket: &Path, part: &str) -> String {
    let mut command = Command::new(std::env::current_exe().expect("this program has a path"));
    let output = command
        .env(PART, part)
        .env(SOCKET, socket)
        .stdin(Stdio::null())
        .output()
        .expect("this program starts again");
    let said = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    assert!(!said.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
    said
}

fn a_child_connects_anew() {
    let fake = Fake::start();
    assert_eq!(run(&fake.socket(), "puts"), "the child's own");
    assert_eq!(fake.value("product", "42").as_deref(), Some(&b"the child's own"[..]));
    // The parent's and the child's; with the parent's used by both there were one.
    assert_eq!(fake.welcomes(), 2);
}

fn child(client: Client) {
    let cache = client.cache("product");
    cache.put("42", "the parent's", None).expect("the parent puts");
    fork();
    cache.put("42", "the child's own", None).expect("the child puts");
    let value = cache.get("42").expect("the child gets").expect("it was put");
    println!("{}", String::from_utf8_lossy(&value));
}

fn a_child_reads_on_through_the_map_it_inherited() {
    let server = kvd::testing::server();
    let said = run(server.socket(), "reads");
    assert!(said.ends_with("told, and put the child's own"), "{said}");
    assert!(said.contains("without a connection") || said.contains("too slow to tell"), "{said}");
    let client = server.client();
    let value = client.cache("product").get("42").expect("the daemon serves");
    assert_eq!(value.as_deref(), Some(&b"the child's own"[..]));
    let metrics = client.admin().stats().expect("the daemon serves");
    let told = metrics.iter().filter(|metric| metric.name == "kvd_cache_hits_shared_total");
    let told: f64 = told.map(|metric| metric.value).sum();
    assert!(told >= READS as f64, "the daemon was told of {told} hits");
}

fn reading_child(client: &Client) {
    let cache = client.cache("product");
    cache.put("42", "the parent's", None).expect("the parent puts");
    let stats = || client.stats().caches.remove(0);
    let read = || assert_eq!(cache.get("42").expect("served").as_deref(), Some(&b"the parent's"[..]));
    until("a segment", || {
        read();
        stats().path.is_shared()
    });
    // Long enough after the last report that this takes one along.
    std::thread::sleep(Duration::from_millis(150));
    cache.put("42", "the parent's", None).expect("the parent puts");
    let told = Instant::now();
    fork();
    let (hits, inherited) = (stats().shared_hits, sockets());
    (0..READS).for_each(|_| read());
    assert_eq!(stats().shared_hits, hits + READS, "some reads asked the daemon");
    let has_connected = !sockets().is_subset(&inherited);
    if told.elapsed() < TELLS_NOTHING {
        assert!(!has_connected, "reading needed a connection");
        println!("read without a connection");
    } else {
        println!("too slow to tell");
    }
    until("the child's report", || {
        read();
        !sockets().is_subset(&inherited)
    });
    assert!(stats().path.is_shared());
    cache.put("42", "the child's own", None).expect("the child puts");
    let value = cache.get("42").expect("the child gets").expect("it was put");
    println!("told, and put {}", String::from_utf8_lossy(&value));
}

fn a_child_leaves_an_inherited_transaction_alone() {
    let server = kvd::testing::server();
    assert_eq!(run(server.socket(), "transaction"), "LeaseLost, then the child's own");
    let client = server.client();
    let value = client.cache("product").get("43").expect("the daemon serves");
    assert_eq!(value.as_deref(), Some(&b"the child's own"[..]));
    assert_eq!(
        client.cache("product").get("42").expect("the daemon serves"),
        None,
        "the transaction left no trace"
    );
}

fn transacting_child(client: &Client) {
    let mut open = client.begin().expect("a transaction");
    open.put("product", "42", "the parent's", None).expect("the parent puts");
    fork();
    let refused = open.commit().expect_err("it is the parent's").kind();
    // By a connection of its own, outside any transaction.
    let cache = client.cache("product");
    cache.put("43", "the child's own", None).expect("the child puts");
    let value = cache.get("43").expect("the child gets").expect("it was put");
    println!("{refused:?}, then {}", String::from_utf8_lossy(&value));
}

/// Standard output stays: its end tells the test that the child is done.
fn fork() {
    nix::unistd::daemon(true, true).expect("fork");
}

fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + SOON;
    while !is_so() {
        assert!(Instant::now() < deadline, "waited {SOON:?} for {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Names of the sockets this process has open.
fn sockets() -> BTreeSet<PathBuf> {
    let open = std::fs::read_dir("/proc/self/fd").expect("Linux");
    let links = open.filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok());
    links.filter(|link| link.to_string_lossy().starts_with("socket:")).collect()
}
