//! A client made before `fork` is used after it: the child connects anew, and its parent's stream is not touched; through
//! shared memory it reads on by the map it inherited.
//!
//! A program of its own, because it forks: by `daemon(3)`, where the parent's half ends at once and the child goes on, or into
//! children that work beside their parent.

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
        let client = Client::builder().socket(&socket);
        return match std::env::var(PART).as_deref() {
            Ok("reads") => reading_child(&client.build().expect("the daemon is there")),
            Ok("transaction") => transacting_child(&client.build().expect("the daemon is there")),
            Ok("crowd") => crowd(&client.shared_memory(false).build().expect("the daemon is there"), &socket),
            Ok("middle") => in_the_middle(&client.shared_memory(false).build().expect("the daemon is there")),
            _ => child(client.shared_memory(false).build().expect("the daemon is there")),
        };
    }
    a_child_connects_anew();
    println!("test a_child_connects_anew ... ok");
    a_child_reads_on_through_the_map_it_inherited();
    println!("test a_child_reads_on_through_the_map_it_inherited ... ok");
    a_child_leaves_an_inherited_transaction_alone();
    println!("test a_child_leaves_an_inherited_transaction_alone ... ok");
    semantic_08_eight_children_and_their_parent_mix_up_no_stream();
    println!("test semantic_08_eight_children_and_their_parent_mix_up_no_stream ... ok");
    semantic_08_a_child_made_in_the_middle_of_a_load_or_watch_leaves_it_to_its_parent();
    println!("test semantic_08_a_child_made_in_the_middle_of_a_load_or_watch_leaves_it_to_its_parent ... ok");
    println!("\ntest result: ok. 5 passed; 0 failed");
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

/// A child beside its parent, which gets to know how it ended.
#[allow(
    unsafe_code,
    reason = "there is no other way to have a child beside its parent that inherits a client"
)]
#[allow(clippy::disallowed_methods, reason = "a child must not drop what its parent's threads work with")]
fn child_that(works: impl FnOnce()) -> nix::unistd::Pid {
    // SAFETY: the child uses the clients, the allocator, and threads of its own, all of which this test is about; glibc's
    // allocator is usable after fork, and no other thread of this program prints.
    let forked = unsafe { nix::unistd::fork() };
    match forked.expect("fork") {
        nix::unistd::ForkResult::Parent { child } => child,
        nix::unistd::ForkResult::Child => {
            let worked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(works));
            std::process::exit(i32::from(worked.is_err()))
        }
    }
}

fn await_child(child: nix::unistd::Pid) {
    let ended = nix::sys::wait::waitpid(child, None).expect("it is ours");
    assert!(matches!(ended, nix::sys::wait::WaitStatus::Exited(_, 0)), "{ended:?}");
}

fn semantic_08_eight_children_and_their_parent_mix_up_no_stream() {
    let server = kvd::testing::server();
    assert_eq!(run(server.socket(), "crowd"), "all have got their own");
    let cache = server.client().cache("crowd");
    for writer in 0..=CHILDREN {
        for round in 0..ROUNDS {
            for way in ["blocking", "async"] {
                let key = format!("{way}:{writer}:{round}");
                let value = cache.get(&key).expect("served").expect("it was put");
                assert_eq!(String::from_utf8_lossy(&value), format!("{key} by {writer}"));
            }
        }
    }
    let held = server.direct().admin().transactions().expect("served").transactions;
    assert!(held.is_empty(), "{held:?}");
}

const CHILDREN: usize = 8;
const ROUNDS: usize = 40;

fn crowd(client: &Client, socket: &std::ffi::OsStr) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    let runtime = runtime.expect("a runtime");
    let asynchronous = kv_client::Client::builder().socket(socket).shared_memory(false);
    let asynchronous = runtime.block_on(asynchronous.build()).expect("the daemon is there");
    // Both have streams open, with something read from each.
    client.cache("crowd").put("first", "v", None).expect("the parent puts");
    runtime.block_on(asynchronous.cache("crowd").get("first")).expect("the parent gets");
    let children: Vec<_> = (0..CHILDREN)
        .map(|writer| {
            child_that(|| {
                let own = tokio::runtime::Builder::new_current_thread().enable_all().build();
                work(writer, client, &asynchronous, &own.expect("a runtime"));
            })
        })
        .collect();
    work(CHILDREN, client, &asynchronous, &runtime);
    children.into_iter().for_each(await_child);
    work(CHILDREN, client, &asynchronous, &runtime);
    println!("all have got their own");
}

/// Each value carries its key and who wrote it; what is loaded carries its key.
fn work(writer: usize, client: &Client, asynchronous: &kv_client::Client, runtime: &tokio::runtime::Runtime) {
    let (cache, tasks) = (client.cache("crowd"), asynchronous.cache("crowd"));
    for round in 0..ROUNDS {
        let key = format!("blocking:{writer}:{round}");
        let value = format!("{key} by {writer}");
        cache.put(&key, &value, None).expect("put");
        assert_eq!(cache.get(&key).expect("get"), Some(value.into_bytes()));
        let loaded = cache.get_or_load(format!("load:{round}"), None, |_| {
            Ok::<_, std::convert::Infallible>(format!("load:{round} by {writer}").into_bytes())
        });
        assert!(loaded.expect("load").starts_with(format!("load:{round} by ").as_bytes()));
        runtime.block_on(async {
            let key = format!("async:{writer}:{round}");
            let value = format!("{key} by {writer}");
            tasks.put(&key, &value, None).await.expect("put");
            assert_eq!(tasks.get(&key).await.expect("get"), Some(value.into_bytes()));
            let load = move |_| async move {
                Ok::<_, std::convert::Infallible>(format!("task:{round} by {writer}").into_bytes())
            };
            let loaded = tasks.get_or_load(format!("task:{round}"), None, load).await.expect("load");
            assert!(loaded.starts_with(format!("task:{round} by ").as_bytes()));
        });
    }
}

fn semantic_08_a_child_made_in_the_middle_of_a_load_or_watch_leaves_it_to_its_parent() {
    let server = kvd::testing::server();
    assert_eq!(run(server.socket(), "middle"), "the parent's, watched");
}

fn in_the_middle(client: &Client) {
    let cache = client.cache("product");
    cache.put("x", "v", None).expect("the parent puts");
    let mut watch = client.watch(Some("product"), "k").expect("a watch");
    let parent = std::process::id();
    let loaded = cache.get_or_load("k", None, |_| {
        // The child goes on from here, too: it fills on the stream that it inherited, if it is let.
        let child = child_that(|| {});
        await_child(child);
        #[allow(unsafe_code, reason = "as above")]
        // SAFETY: as above.
        let forked = unsafe { nix::unistd::fork() };
        match forked.expect("fork") {
            nix::unistd::ForkResult::Child => Ok::<_, std::convert::Infallible>(b"the child's".to_vec()),
            nix::unistd::ForkResult::Parent { child } => {
                await_child(child);
                Ok(b"the parent's".to_vec())
            }
        }
    });
    if std::process::id() != parent {
        let own = loaded.expect("it has what it loaded") == b"the child's";
        let missed = watch.next_within(Duration::from_millis(1));
        let is_told = missed.is_err() || matches!(missed, Ok(Some(kv_client::Change::Missed { .. })));
        #[allow(clippy::disallowed_methods, reason = "the parent reads how it ended")]
        std::process::exit(i32::from(!(own && is_told)));
    }
    assert_eq!(loaded.expect("loaded"), b"the parent's");
    assert_eq!(cache.get("k").expect("get").as_deref(), Some(&b"the parent's"[..]), "it was stored");
    let change = watch.next_within(SOON).expect("the watch goes on");
    let is_it = matches!(change, Some(kv_client::Change::Put { ref key, .. }) if key == b"k");
    assert!(is_it, "{change:?}");
    println!("the parent's, watched");
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
