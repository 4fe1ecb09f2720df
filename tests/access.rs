//! Who may do what: every verb, user and cache, each by its own process.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use kv_client::blocking::{Cache, Client};
use kv_client::{Effect, ErrorKind, Initial, Result, Rights, Sliding, Ttl};

use crate::shared::{path_of, public_copy, run_role, var};
use crate::support::{Daemon, Home, SOON, kvd, text};

const CACHES: [&str; 3] = ["common", "own", "closed"];

/// A user, its primary group, and what it may do in each of [`CACHES`] and with the daemon.
struct User {
    uid: u32,
    gid: u32,
    rights: [Rights; 3],
    is_admin: bool,
}

const CONFIG: &str = "\
[access]
users = [\"4242\", \"4243:read\", \"4244:read+scan\", \"4245:write+delete\", \"4246:admin\", \"4249:clear\"]
groups = [\"5000:scan\"]
[caches.common]
memory = \"4MiB\"
[caches.own]
memory = \"4MiB\"
users = [\"4242:read+scan\", \"4245:clear+read\", \"4248\"]
groups = [\"5000\"]
[caches.closed]
memory = \"4MiB\"
users = [\"4999\"]
";

fn users() -> Vec<User> {
    let none = Rights::empty();
    let user = |uid, gid, rights| User { uid, gid, rights, is_admin: false };
    vec![
        user(4_242, 4_242, [Rights::CACHE, Rights::READ | Rights::SCAN, none]),
        user(4_243, 4_243, [Rights::READ, none, none]),
        user(4_244, 4_244, [Rights::READ | Rights::SCAN, none, none]),
        user(4_245, 4_245, [Rights::WRITE | Rights::DELETE, Rights::CLEAR | Rights::READ, none]),
        User { is_admin: true, ..user(4_246, 4_246, [Rights::CACHE; 3]) },
        // By its group alone.
        user(4_247, 5_000, [Rights::SCAN, Rights::CACHE, none]),
        user(4_249, 4_249, [Rights::CLEAR, none, none]),
    ]
}

/// What each operation on a cache needs.
fn operations() -> Vec<(&'static str, Rights)> {
    vec![
        ("get", Rights::READ),
        ("get_many", Rights::READ),
        ("describe", Rights::READ),
        ("get_sliding", Rights::READ | Rights::WRITE),
        ("get_or_load", Rights::READ | Rights::WRITE),
        ("put", Rights::WRITE),
        ("increment", Rights::READ | Rights::WRITE),
        ("expire", Rights::WRITE),
        ("expire_now", Rights::DELETE),
        ("batch_expire_now", Rights::DELETE),
        ("delete", Rights::DELETE),
        ("take", Rights::READ | Rights::DELETE),
        ("batch", Rights::WRITE | Rights::DELETE),
        ("transact", Rights::READ | Rights::WRITE),
        ("scan", Rights::SCAN),
        ("scan_values", Rights::SCAN | Rights::READ),
        ("hottest", Rights::SCAN),
        ("watch", Rights::SCAN),
        ("clear", Rights::CLEAR),
        ("clear_tag", Rights::CLEAR),
        ("clear_prefix", Rights::CLEAR),
    ]
}

fn attempt(client: &Client, cache: &Cache, operation: &str) -> Result<()> {
    let ttl = Duration::from_secs(60);
    match operation {
        "get" => cache.get("k").map(drop),
        "get_many" => cache.get_many(&["k", "l"]).map(drop),
        "describe" => cache.describe("k").map(drop),
        "get_sliding" => cache.get_sliding("k", Sliding { below: ttl, ttl }).map(drop),
        "get_or_load" => {
            // Nobody else has loaded it.
            let key = format!("none-{}", std::process::id());
            cache.get_or_load(key, None, |_| Ok::<_, std::io::Error>(b"v".to_vec())).map(drop)
        }
        "put" => cache.put("k", "v", None).map(drop),
        "increment" => cache.increment("n", 1, Initial::value(0)).map(drop),
        "expire" => cache.expire("k", Ttl::After(ttl)).map(drop),
        "expire_now" => cache.expire("d", Ttl::Now).map(drop),
        "batch_expire_now" => client.batch().expire(cache.name(), "d", Ttl::Now).commit().map(drop),
        "delete" => cache.delete("d").map(drop),
        "take" => cache.take("t").map(drop),
        "batch" => {
            client.batch().put(cache.name(), "k", "v", None).delete(cache.name(), "d").commit().map(drop)
        }
        "transact" => client.transact(|tx| {
            tx.get(cache.name(), "k")?;
            tx.put(cache.name(), "k", "v", None).map(drop)
        }),
        "scan" => cache.scan("").next_page().map(drop),
        "scan_values" => cache.scan("").values().next_page().map(drop),
        "hottest" => client.admin().hottest(Some(cache.name()), 10).map(drop),
        "watch" => client.watch(Some(cache.name()), "").map(drop),
        "clear" => cache.clear(Effect::Stale).map(drop),
        "clear_tag" => cache.clear_tag("t", Effect::Gone).map(drop),
        "clear_prefix" => cache.clear_prefix("p", Effect::Gone).map(drop),
        other => panic!("nobody knows the operation {other}"),
    }
}

/// In a worker of some user: tries everything, and says line by line what it was let do.
pub(crate) fn attempter() {
    let client = Client::builder().socket(var("KVD_SOCKET")).build().expect("the access list admits us");
    let say = |what: &str, result: Result<()>| match result {
        Ok(()) => println!("MAY {what} yes"),
        Err(error) if error.kind() == ErrorKind::Denied => println!("MAY {what} no: {error}"),
        Err(error) => panic!("{what}: {error}"),
    };
    for name in CACHES {
        let cache = client.cache(name);
        for (operation, _) in operations() {
            say(&format!("{name}.{operation}"), attempt(&client, &cache, operation));
        }
        println!("MAY {name}.shared {}", if path_of(&client, name).is_shared() { "yes" } else { "no" });
    }
    let admin = client.admin();
    // Who may change nothing keeps nobody waiting.
    say("begin", client.begin().and_then(kv_client::blocking::Transaction::rollback));
    say("lock", client.lock("name", Duration::from_secs(5)).and_then(kv_client::blocking::LockGuard::unlock));
    say("clear_all", client.clear_all(Effect::Stale).map(drop));
    say("check", admin.check(10).map(drop));
    say("last_restart", admin.last_restart().map(drop));
    say("access_of_others", admin.access(Some(4_999)).map(drop));
    say("roll_back", admin.roll_back(1).map(drop));
    for cache in admin.access(None).expect("anybody may ask about itself").caches {
        println!("RIGHTS {} {}", cache.cache, cache.rights.bits());
    }
}

fn started() -> (Home, Daemon) {
    let home = Home::configured(CONFIG);
    let daemon = home.start();
    let client = home.client();
    for name in CACHES {
        client.cache(name).put("k", "v", None).unwrap();
    }
    (home, daemon)
}

#[test]
fn each_user_may_do_what_the_lists_say_in_each_cache_and_nothing_else() {
    let (home, _daemon) = started();
    let Some(binary) = public_copy(home.path()) else { return };
    let mut cells = 0;
    for user in users() {
        let User { uid, gid, rights, is_admin } = user;
        let mut command = Command::new(&binary);
        command.uid(uid).gid(gid).current_dir("/");
        let said = run_role("attempter", command, &home.socket());
        let told = |kind: &str| -> BTreeMap<String, String> {
            // The harness begins the first line.
            let lines = said.lines().filter_map(|line| line.split_once(kind)?.1.split_once(' '));
            lines.map(|(what, answer)| (what.to_owned(), answer.to_owned())).collect()
        };
        let (may, shown) = (told("MAY "), told("RIGHTS "));
        let mut check = |what: &str, expected: bool| {
            let answer = may.get(what).unwrap_or_else(|| panic!("{uid} did not get to {what}: {said}"));
            assert_eq!(answer == "yes", expected, "user {uid}, {what}: {answer}");
            assert!(
                expected || answer == "no" || answer.contains(&uid.to_string()) || answer.contains("admin")
            );
            cells += 1;
        };
        for (name, rights) in CACHES.into_iter().zip(rights) {
            for (operation, needed) in operations() {
                check(&format!("{name}.{operation}"), rights.contains(needed));
            }
            // The memory has every key in it.
            check(&format!("{name}.shared"), rights.contains(Rights::READ | Rights::SCAN));
            let rights = if is_admin { Rights::all() } else { rights };
            assert_eq!(shown[name], rights.bits().to_string(), "user {uid}, cache {name}");
        }
        let may_change = rights.iter().any(|rights| rights.intersects(Rights::WRITE | Rights::DELETE));
        check("begin", may_change);
        check("lock", may_change);
        check("clear_all", is_admin);
        for what in ["check", "last_restart", "access_of_others", "roll_back"] {
            check(what, is_admin);
        }
    }
    println!("{cells} cells");
}

/// In a worker of a user whom no list names: says nothing, and is sent away all the same.
pub(crate) fn foreigner() {
    let mut stream = match UnixStream::connect(var("KVD_SOCKET")) {
        Ok(stream) => stream,
        Err(error) => return println!("FOREIGN {:?}", error.kind()),
    };
    stream.set_read_timeout(Some(SOON)).unwrap();
    let mut answer = Vec::new();
    let ended = stream.read_to_end(&mut answer).map_err(|error| error.kind());
    println!("FOREIGN {ended:?} {}", answer.len());
}

#[test]
fn foreign_users_are_refused_before_a_byte_is_read() {
    let (home, daemon) = started();
    let Some(binary) = public_copy(home.path()) else { return };
    // Listed by a cache, and by nobody who lets it in.
    let stranger = |socket: &Path| {
        let mut command = Command::new(&binary);
        command.uid(4_248).gid(4_248).current_dir("/");
        run_role("foreigner", command, socket)
    };
    let said = stranger(&home.socket());
    assert!(said.contains("FOREIGN Ok(0) 0"), "{said}");
    let (_, log) = daemon.stop();
    assert!(log.contains("this user may not use this daemon") && log.contains("4248"), "{log}");
    // Where nobody is listed, the file itself is closed to it.
    let private = Home::new();
    std::fs::set_permissions(private.path(), std::os::unix::fs::PermissionsExt::from_mode(0o711)).unwrap();
    let _daemon = private.start();
    let said = stranger(&private.socket());
    assert!(said.contains("FOREIGN PermissionDenied"), "{said}");
}

#[test]
fn kvd_access_shows_what_a_user_may_do() {
    let (home, _daemon) = started();
    let run = |args: &[&str]| {
        let output = kvd().args(args).arg("--socket").arg(home.socket()).output().unwrap();
        (output.status.code(), text(&output.stdout), text(&output.stderr))
    };
    let (code, table, _) = run(&["access", "--user", "4245"]);
    assert_eq!(code, Some(0));
    let row = |cache: &str| table.lines().find(|line| line.starts_with(cache)).unwrap().split_whitespace();
    assert!(
        table.starts_with("user 4245 may connect, and write+delete where a cache has no list"),
        "{table}"
    );
    assert_eq!(row("common").collect::<Vec<_>>(), ["common", "-", "yes", "yes", "-", "-", "[access]"]);
    assert_eq!(row("own").collect::<Vec<_>>(), ["own", "yes", "-", "-", "-", "yes", "its", "own", "list"]);
    let (_, said, _) = run(&["access", "--user", "4248"]);
    assert!(said.contains("may not connect"), "{said}");
    let (_, json, _) = run(&["access", "--json"]);
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["rights"].as_array().unwrap().len(), Rights::VERBS.len());
    let (code, _, error) = run(&["access", "--user", "no such user"]);
    assert!(code == Some(2) && error.contains("this machine has no user"), "{error}");
}

/// A session that was begun under other rights must not keep them.
#[test]
fn a_reload_takes_rights_away_from_who_is_connected() {
    let (home, daemon) = started();
    let Some(binary) = public_copy(home.path()) else { return };
    let mut command = Command::new(&binary);
    let fewer = CONFIG.replace("\"4244:read+scan\"", "\"4244:scan\"");
    command.uid(4_244).gid(4_244).current_dir("/");
    let socket = home.socket();
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| run_role("reader-meanwhile", command, &socket));
        let client = home.client();
        crate::support::wait_for(SOON, "the reader to come", || {
            client.admin().clients().unwrap().iter().any(|client| client.uid == 4_244).then_some(())
        });
        std::fs::write(home.path().join("kvd.toml"), fewer).unwrap();
        let reloaded = client.admin().reload().unwrap();
        assert!(reloaded.applied.iter().any(|line| line.contains("4244:scan")), "{reloaded:?}");
        assert!(reloaded.needs_restart.iter().any(|line| line.contains("memory")), "{reloaded:?}");
        let said = reader.join().unwrap();
        assert!(said.contains("MEANWHILE user 4244 may not read in cache common"), "{said}");
    });
    drop(daemon);
}

/// In a worker: reads over the socket until it is refused.
pub(crate) fn reader_meanwhile() {
    let client = Client::builder().socket(var("KVD_SOCKET")).shared_memory(false).build().expect("admitted");
    let until = std::time::Instant::now() + SOON;
    while std::time::Instant::now() < until {
        if let Err(error) = client.cache("common").get("k") {
            return println!("MEANWHILE {error}");
        }
    }
    println!("MEANWHILE never refused");
}
