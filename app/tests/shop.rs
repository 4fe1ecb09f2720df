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
const SOON: Duration = Duration::from_secs(30);

/// A running shop with two workers; ended when dropped, and everything that it started with it.
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

fn app() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_app"));
    command.stdin(Stdio::null()).env("APP_LOG", "error");
    command
}

impl Shop {
    /// Workers alone, on a cache that is the test's.
    fn web(cache: &Path) -> Shop {
        let dir = tempfile::tempdir().expect("a temporary directory can be made");
        let import = app()
            .args(["import", "--toys", "100", "--data"])
            .arg(dir.path())
            .output()
            .expect("app was built");
        assert!(import.status.success(), "{import:?}");
        let mut command = app();
        command.args(["web", "--workers", "2", "--listen", "127.0.0.1:0", "--cache"]).arg(cache);
        Shop::open(command, dir)
    }

    /// Everything, kvd included.
    fn demo() -> Shop {
        let dir = tempfile::tempdir().expect("a temporary directory can be made");
        let mut command = app();
        command.args(["demo", "--workers", "2", "--toys", "100", "--listen", "127.0.0.1:0"]);
        Shop::open(command, dir)
    }

    fn open(mut command: Command, dir: TempDir) -> Shop {
        command.arg("--data").arg(dir.path());
        let mut parent = command.stdout(Stdio::piped()).spawn().expect("app was built");
        let mut line = String::new();
        let stdout = parent.stdout.take().expect("piped");
        BufReader::new(stdout).read_line(&mut line).expect("it says where it listens");
        let address = line.split_once("http://").and_then(|(_, rest)| rest.split_once('/'));
        let (address, _) = address.unwrap_or_else(|| panic!("no address in {line:?}"));
        Shop { address: address.parse().expect("an address"), parent, dir }
    }

    fn get(&self, path: &str) -> Answer {
        self.get_as(path, "")
    }

    fn get_as(&self, path: &str, cookie: &str) -> Answer {
        self.send(&format!(
            "GET {path} HTTP/1.1\r\nhost: {}\r\ncookie: {cookie}\r\nconnection: close\r\n\r\n",
            self.address
        ))
    }

    fn post_as(&self, path: &str, cookie: &str, form: &str) -> Answer {
        self.send(&format!(
            "POST {path} HTTP/1.1\r\nhost: {}\r\ncookie: {cookie}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{form}",
            self.address,
            form.len()
        ))
    }

    fn send(&self, request: &str) -> Answer {
        self.try_send(request).expect("it is answered")
    }

    /// `None`: whoever had taken it was killed.
    fn try_send(&self, request: &str) -> Option<Answer> {
        let mut stream = TcpStream::connect(self.address).expect("the parent listens");
        stream.set_read_timeout(Some(SOON)).expect("a socket takes a timeout");
        stream.write_all(request.as_bytes()).ok()?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).ok()?;
        // One answer is an image.
        let answer = String::from_utf8_lossy(&answer);
        let (head, body) = answer.split_once("\r\n\r\n")?;
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
        Some(Answer { status, head: head.to_owned(), body: body.to_owned() })
    }

    /// A cookie and the token of its forms.
    fn visitor(&self) -> (String, String) {
        let welcome = self.get("/welcome");
        let (_, cookie) = welcome.head.split_once("set-cookie: ").expect("whoever has none gets one");
        let cookie = cookie.split(';').next().expect("a pair").to_owned();
        let page = self.get_as("/account", &cookie);
        (cookie, page.between("name=\"token\" value=\"", "\""))
    }

    /// Processes that the parent started.
    fn children(&self) -> Vec<(u32, String)> {
        let parent = self.parent.id();
        let processes = std::fs::read_dir("/proc").expect("Linux").filter_map(|entry| {
            let id: u32 = entry.ok()?.file_name().to_str()?.parse().ok()?;
            let stat = std::fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
            let after = stat.rsplit_once(") ")?.1;
            let is_ours = after.split(' ').nth(1)? == parent.to_string() && !after.starts_with('Z');
            let line = std::fs::read_to_string(format!("/proc/{id}/cmdline")).ok()?;
            is_ours.then(|| (id, line.split('\0').nth(1).unwrap_or_default().to_owned()))
        });
        processes.collect()
    }

    fn child(&self, role: &str) -> u32 {
        wait_for(role, || self.children().into_iter().find(|(_, own)| own == role).map(|(id, _)| id))
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

    fn between(&self, before: &str, after: &str) -> String {
        let (_, rest) = self.body.split_once(before).unwrap_or_else(|| panic!("no {before} in {self:?}"));
        rest.split_once(after).expect("it ends").0.to_owned()
    }
}

fn pid(id: u32) -> Pid {
    Pid::from_raw(id.try_into().expect("pids are small"))
}

fn is_gone(id: u32) -> bool {
    // Somebody else's child by now, who may leave it lying about: dead is dead.
    let stat = std::fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
    stat.is_empty() || stat.contains(") Z ")
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
    let shop = Shop::web(daemon.socket());
    workers(&shop, 2);
    let answers: Vec<Answer> = thread::scope(|scope| {
        let crowd: Vec<_> = (0..200).map(|_| scope.spawn(|| shop.get("/product/7"))).collect();
        crowd.into_iter().map(|visitor| visitor.join().expect("visitors do not panic")).collect()
    });
    let queries: u32 = answers.iter().map(|answer| answer.said_of("queries")).sum();
    println!("200 requests of a cold product, {queries} queries");
    assert_eq!(queries, 3, "the description, the price and the inventory");
    for answer in &answers {
        assert_eq!((answer.status, &answer.body), (200, &answers[0].body));
    }
    assert!(shop.close().success());
}

#[test]
fn a_dead_worker_is_replaced_and_all_end_with_their_parent() {
    let daemon = kvd::testing::server();
    let shop = Shop::web(daemon.socket());
    let before = workers(&shop, 2);
    let dead = *before.first().expect("two answered");
    kill(pid(dead), Signal::SIGKILL).expect("it was there");
    // Until it is gone it may still take a request along.
    wait_for("it to be gone", || is_gone(dead).then_some(()));
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
fn killed_workers_take_nothing_but_their_own_requests_along() {
    let daemon = kvd::testing::server();
    let shop = Shop::web(daemon.socket());
    workers(&shop, 2);
    let (mut answered, mut lost) = (0, 0);
    for _ in 0..5 {
        let worker = shop.child("worker");
        kill(pid(worker), Signal::SIGKILL).expect("it was there");
        for toy in 1..=20 {
            match shop.try_send(&format!(
                "GET /product/{toy} HTTP/1.1\r\nhost: {}\r\nconnection: close\r\n\r\n",
                shop.address
            )) {
                Some(answer) => {
                    assert_eq!(answer.status, 200, "{answer:?}");
                    answered += 1;
                }
                None => lost += 1,
            }
        }
    }
    println!("{answered} answered, {lost} lost with their workers");
    assert!(lost <= 5, "{lost} lost");
}

#[test]
fn workers_do_not_outlive_a_parent_that_was_killed() {
    let daemon = kvd::testing::server();
    let mut shop = Shop::web(daemon.socket());
    let all = workers(&shop, 2);
    shop.parent.kill().expect("our child");
    shop.parent.wait().expect("our child");
    wait_for("the workers to end", || all.iter().all(|worker| is_gone(*worker)).then_some(()));
}

/// Somebody has sent half a request to each of them, and sends no more.
#[test]
fn half_a_request_keeps_no_worker_when_its_parent_was_killed() {
    let daemon = kvd::testing::server();
    let mut shop = Shop::web(daemon.socket());
    let all = workers(&shop, 2);
    let halves: Vec<TcpStream> = (0..8)
        .map(|_| {
            let mut stream = TcpStream::connect(shop.address).expect("the parent listens");
            stream.write_all(b"GET /product/1 HTTP/1.1\r\nhost: ").expect("a few bytes");
            stream
        })
        .collect();
    shop.parent.kill().expect("our child");
    shop.parent.wait().expect("our child");
    wait_for("the workers to end", || all.iter().all(|worker| is_gone(*worker)).then_some(()));
    drop(halves);
}

/// A new release has taken the program's place, or is about to.
#[test]
fn a_worker_is_replaced_when_the_program_is_not_where_it_was() {
    let (daemon, place) =
        (kvd::testing::server(), tempfile::tempdir().expect("a temporary directory can be made"));
    let program = place.path().join("app");
    // By another process: a child that some other test forks while we had it open to write would keep it from being run.
    let copied = Command::new("cp").arg(env!("CARGO_BIN_EXE_app")).arg(&program).status();
    assert!(copied.expect("cp is everywhere").success(), "app was built, and there is room");
    let dir = tempfile::tempdir().expect("a temporary directory can be made");
    let mut command = Command::new(&program);
    command.stdin(Stdio::null()).env("APP_LOG", "off").args([
        "web",
        "--workers",
        "1",
        "--listen",
        "127.0.0.1:0",
    ]);
    command.arg("--cache").arg(daemon.socket());
    let shop = Shop::open(command, dir);
    let before = shop.get("/product/1").said_of("worker");
    std::fs::remove_file(&program).expect("it is there");
    kill(pid(before), Signal::SIGKILL).expect("it was there");
    wait_for("it to be gone", || is_gone(before).then_some(()));
    assert_ne!(shop.get("/product/1").said_of("worker"), before);
    assert!(shop.close().success());
}

#[test]
fn the_shop_is_open_without_its_cache() {
    let nowhere = tempfile::tempdir().expect("a temporary directory can be made");
    let shop = Shop::web(&nowhere.path().join("kvd.sock"));
    let page = shop.get("/product/1");
    assert_eq!((page.status, page.said_of("queries")), (200, 3));
    let (cookie, token) = shop.visitor();
    for round in 1..=3 {
        let form = format!("token={token}&toy=7&quantity=1&action=add");
        assert_eq!(shop.post_as("/cart", &cookie, &form).status, 303);
        let cart = shop.get_as("/cart", &cookie).between("class=\"count\">", "<");
        assert_eq!(cart, round.to_string(), "whichever worker answers");
    }
    let health = shop.get("/healthz");
    assert_eq!((health.status, health.body.as_str()), (200, "open\n"));
    assert!(shop.close().success());
}

#[test]
fn a_demo_sells_loses_its_cache_and_leaves_nothing_behind() {
    let shop = Shop::demo();
    let (cookie, token) = shop.visitor();
    let add = format!("token={token}&toy=7&quantity=1&action=add");
    assert_eq!(shop.post_as("/cart", &cookie, &add).status, 303);
    let in_cart = |shop: &Shop| shop.get_as("/cart", &cookie).between("class=\"count\">", "<");

    let kvd = shop.child("kvd");
    kill(pid(kvd), Signal::SIGKILL).expect("it was there");
    for toy in 1..=10 {
        assert_eq!(shop.get(&format!("/product/{toy}")).status, 200);
    }
    assert_eq!(in_cart(&shop), "1", "no cart is lost");
    assert_eq!(shop.post_as("/cart", &cookie, &add).status, 303);
    assert_eq!(in_cart(&shop), "2");
    wait_for("kvd to be replaced", || (shop.child("kvd") != kvd).then_some(()));
    wait_for("pages to come from the cache again", || {
        (shop.get("/product/3").said_of("queries") == 0).then_some(())
    });
    assert_eq!(in_cart(&shop), "2");

    let orders = shop.child("orders");
    kill(pid(orders), Signal::SIGKILL).expect("it was there");
    let order = shop.get_as("/checkout", &cookie).between("name=\"order\" value=\"", "\"");
    let buy = format!("token={token}&order={order}&name=Anna&email=anna%40example.org&card=4242");
    let bought = shop.post_as("/checkout", &cookie, &buy);
    assert_eq!(bought.status, 303, "{bought:?}");
    let page = format!("/order/{order}");
    wait_for("the order to be paid", || shop.get_as(&page, &cookie).body.contains("is paid").then_some(()));
    let mail = shop.dir.path().join("mail").join(format!("{order}.paid.eml"));
    wait_for("the receipt", || mail.exists().then_some(()));

    let children: Vec<u32> = shop.children().into_iter().map(|(id, _)| id).collect();
    assert_eq!(children.len(), 5, "kvd, orders, refresh and two workers");
    assert!(shop.close().success());
    wait_for("all to end", || children.iter().all(|child| is_gone(*child)).then_some(()));
}
