//! The shop from outside: real processes, a real daemon, and requests as a browser makes them.

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

/// Longest wait for anything that should happen soon.
const SOON: Duration = Duration::from_secs(20);

/// A running shop with two workers; killed when dropped, and its workers with it.
struct Shop {
    parent: Child,
    address: SocketAddr,
    dir: TempDir,
}

/// What a request was answered.
#[derive(Debug)]
struct Answer {
    status: u16,
    head: String,
    body: String,
}

impl Shop {
    fn open(cache: &Path) -> Shop {
        let dir = tempfile::tempdir().expect("a temporary directory can be made");
        let mut command = Command::new(env!("CARGO_BIN_EXE_app"));
        command.args(["web", "--workers", "2", "--listen", "127.0.0.1:0", "--database"]);
        command.arg(dir.path().join("shop.sqlite")).arg("--cache").arg(cache);
        let mut parent = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().expect("app was built");
        let mut line = String::new();
        let stdout = parent.stdout.take().expect("piped");
        BufReader::new(stdout).read_line(&mut line).expect("it says where it listens");
        let address = line.split_once("http://").and_then(|(_, rest)| rest.split_once('/'));
        let (address, _) = address.unwrap_or_else(|| panic!("no address in {line:?}"));
        Shop { parent, address: address.parse().expect("an address"), dir }
    }

    fn get(&self, path: &str) -> Answer {
        let mut stream = TcpStream::connect(self.address).expect("the parent listens");
        stream.set_read_timeout(Some(SOON)).expect("a socket takes a timeout");
        let request = format!("GET {path} HTTP/1.1\r\nhost: {}\r\nconnection: close\r\n\r\n", self.address);
        stream.write_all(request.as_bytes()).expect("it is taken");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("it is answered");
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no head in {answer:?}"));
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
        Answer { status, head: head.to_lowercase(), body: body.to_owned() }
    }

    /// TERM, and wait.
    fn close(mut self) -> ExitStatus {
        kill(pid(self.parent.id()), Signal::SIGTERM).expect("our child is there");
        wait_for("the shop to close", || self.parent.try_wait().expect("our child"))
    }
}

impl Drop for Shop {
    fn drop(&mut self) {
        let _ = self.parent.kill();
        let _ = self.parent.wait();
    }
}

impl Answer {
    /// What `server-timing` says of a name.
    fn said_of(&self, name: &str) -> u32 {
        let (_, rest) = self.head.split_once(&format!("{name};desc=\"")).expect("every page says it");
        rest.split_once('"').and_then(|(number, _)| number.parse().ok()).expect("a number")
    }

    fn has(&self, line: &str) -> bool {
        self.head.lines().any(|own| own.starts_with(line))
    }
}

fn pid(id: u32) -> Pid {
    Pid::from_raw(id.try_into().expect("pids are small"))
}

fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + SOON;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "waited {SOON:?} for {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// Asks until so many workers have answered.
fn workers(shop: &Shop, count: usize) -> BTreeSet<u32> {
    let mut seen = BTreeSet::new();
    wait_for("workers to answer", || {
        seen.insert(shop.get("/product/1").said_of("worker"));
        (seen.len() >= count).then(|| seen.clone())
    })
}

#[test]
fn a_crowd_costs_one_query_a_piece_whichever_worker_answers() {
    let daemon = kvd::testing::server();
    let shop = Shop::open(daemon.socket());
    workers(&shop, 2);
    let answers: Vec<Answer> = thread::scope(|scope| {
        let crowd: Vec<_> = (0..20).map(|_| scope.spawn(|| shop.get("/product/7"))).collect();
        crowd.into_iter().map(|visitor| visitor.join().expect("visitors do not panic")).collect()
    });
    let queries: u32 = answers.iter().map(|answer| answer.said_of("queries")).sum();
    assert_eq!(queries, 3, "the description, the price and the inventory");
    for answer in &answers {
        assert_eq!((answer.status, &answer.body), (200, &answers[0].body));
        assert!(
            answer.has("cache-control: public, max-age=") && answer.has("content-type: text/html"),
            "{answer:?}"
        );
    }
    assert!(answers[0].body.contains("<h1>Brave Dragon</h1>"), "{:?}", answers[0]);
    assert!(shop.close().success());
}

#[test]
fn a_dead_worker_is_replaced_and_all_end_with_their_parent() {
    let daemon = kvd::testing::server();
    let shop = Shop::open(daemon.socket());
    let before = workers(&shop, 2);
    let dead = *before.first().expect("two answered");
    kill(pid(dead), Signal::SIGKILL).expect("it was there");
    assert_eq!(shop.get("/product/1").status, 200);
    let new = wait_for("the replacement to answer", || {
        let worker = shop.get("/product/1").said_of("worker");
        (!before.contains(&worker)).then_some(worker)
    });
    assert!(shop.close().success());
    for worker in before.into_iter().chain([new]) {
        assert_eq!(kill(pid(worker), None), Err(Errno::ESRCH), "worker {worker} is still there");
    }
}

#[test]
fn workers_do_not_outlive_a_parent_that_was_killed() {
    let daemon = kvd::testing::server();
    let mut shop = Shop::open(daemon.socket());
    let all = workers(&shop, 2);
    shop.parent.kill().expect("our child");
    shop.parent.wait().expect("our child");
    // Somebody else's children by now, who may leave them lying about: dead is dead.
    let is_gone = |worker: &u32| {
        let stat = std::fs::read_to_string(format!("/proc/{worker}/stat")).unwrap_or_default();
        stat.is_empty() || stat.contains(") Z ")
    };
    wait_for("the workers to end", || all.iter().all(is_gone).then_some(()));
}

#[test]
fn a_toy_that_is_not_there_is_looked_for_once() {
    let daemon = kvd::testing::server();
    let shop = Shop::open(daemon.socket());
    let first = shop.get("/product/100000");
    assert_eq!((first.status, first.said_of("queries")), (404, 3));
    let again = shop.get("/product/100000");
    assert_eq!((again.status, again.said_of("queries")), (404, 0));
    assert!(
        again.body.contains("There is no such toy") && again.has("cache-control: public, max-age="),
        "{again:?}"
    );
    for nowhere in ["/product/rocket", "/product/007", "/cart"] {
        let answer = shop.get(nowhere);
        assert_eq!((answer.status, answer.said_of("queries")), (404, 0), "{nowhere}");
    }
    assert!(shop.close().success());
}

#[test]
fn the_shop_is_open_without_its_cache() {
    let nowhere = tempfile::tempdir().expect("a temporary directory can be made");
    let shop = Shop::open(&nowhere.path().join("kvd.sock"));
    let page = shop.get("/product/1");
    assert_eq!((page.status, page.said_of("queries")), (200, 3));
    let health = shop.get("/healthz");
    assert_eq!((health.status, health.body.as_str()), (200, "open\n"));
    assert!(shop.close().success());
}

#[test]
fn a_database_that_fails_is_a_page_that_nobody_keeps() {
    let daemon = kvd::testing::server();
    let shop = Shop::open(daemon.socket());
    let file = shop.dir.path().join("shop.sqlite");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let options = sqlx::sqlite::SqliteConnectOptions::new().filename(file);
        let pool = sqlx::SqlitePool::connect_with(options).await.expect("the shop made it");
        sqlx::query("ALTER TABLE price RENAME TO mislaid").execute(&pool).await.expect("it is ours to break");
        pool.close().await;
    });
    let page = shop.get("/product/50");
    assert_eq!(page.status, 500);
    assert!(page.has("cache-control: no-store") && page.body.contains("A piece is missing"), "{page:?}");
    assert!(!page.body.contains("price"), "visitors learn nothing of our tables: {page:?}");
    assert!(shop.close().success());
}
