//! `kvd dump` and `kvd load`: what goes out comes back, bad lines are named, and Berkeley DB's dumps are read.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use kv_client::blocking::{Cache, Client};
use kv_client::{Life, PutOptions, Ttl};

use crate::support::{Home, kvd, random, text};

const LONG: Duration = Duration::from_secs(3_600);

/// Runs `kvd ARGS` with this standard input.
fn feed(home: &Home, args: &[&str], input: &[u8]) -> Output {
    let mut child = kvd()
        .args(args)
        .env("KVD_SOCKET", home.socket())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("kvd was built");
    // Who has seen a bad line reads no more.
    let _ = child.stdin.take().expect("piped").write_all(input);
    child.wait_with_output().expect("our child")
}

/// All that matters of the items of a cache, stale ones included.
fn items(client: &Client, cache: &str) -> BTreeMap<Vec<u8>, (Vec<u8>, bool, Vec<Vec<u8>>, Duration)> {
    let pages = client.cache(cache).scan("").stale().values().map(|page| page.unwrap().items);
    pages
        .flatten()
        .map(|(key, entry)| {
            let is_stale = matches!(entry.life(), Life::Stale);
            (key, (entry.value, is_stale, entry.tags, entry.stale_for))
        })
        .collect()
}

fn fill(cache: &Cache, random: &mut fastrand::Rng) {
    for n in 0..600 {
        let value: Vec<u8> = (0..random.usize(..60)).map(|_| random.u8(..)).collect();
        let mut options = PutOptions::new().stale_for(LONG).tag("t\u{e4}g");
        if n % 2 == 0 {
            options = options.ttl(LONG).tag([0xff, 0xfe]);
        }
        cache.put_with(format!("k{n:03}"), value, options).unwrap();
    }
    let every_byte: Vec<u8> = (0..=255).collect();
    cache.put(&every_byte, "all bytes", None).unwrap();
    cache.put("large", vec![b'x'; 900_000], LONG).unwrap();
    cache.expire("k001", Ttl::Stale).unwrap();
    cache.expire("k002", Ttl::After(Duration::from_millis(1))).unwrap();
}

#[test]
fn a_dump_comes_back_as_it_went_with_lives_tags_and_staleness() {
    let mut random = random();
    let toml = "memory = \"64MiB\"\n[caches.quick]\ndurability = \"memory\"\n[caches.disk]\nttl = \"5m\"\n";
    let home = Home::configured(toml);
    let daemon = home.start();
    let client = home.client();
    ["quick", "disk"].iter().for_each(|name| fill(&client.cache(name), &mut random));
    std::thread::sleep(Duration::from_millis(5));
    let file = home.path().join("all.jsonl");
    let file_name = file.to_str().unwrap();
    let dumped = home.kvd(&["dump", "--output", file_name]);
    assert_eq!(text(&dumped.stdout), format!("1204 items in {file_name}\n"), "{}", text(&dumped.stderr));
    let to_stdout = home.kvd(&["dump", "quick", "disk"]);
    assert_eq!(text(&to_stdout.stdout).lines().count(), 1_205);
    let other = Home::configured(toml);
    let _other_daemon = other.start();
    let loaded = other.kvd(&["load", file_name]);
    assert_eq!(
        text(&loaded.stdout),
        "1204 items put, 0 were there already, 0 expired, 0 bad\n",
        "{}",
        text(&loaded.stderr)
    );
    for cache in ["quick", "disk"] {
        let (mut was, mut is) = (items(&client, cache), items(&other.client(), cache));
        // What is past its life keeps only what is left of its stale life.
        for of in [&mut was, &mut is] {
            assert!(of[&b"k002"[..]].1 && of[&b"k001"[..]].1);
            of.get_mut(&b"k002"[..]).unwrap().3 = Duration::ZERO;
        }
        assert_eq!(was, is, "{cache}");
        let entry = |client: &Client, key: &str| client.cache(cache).get_entry(key).unwrap().unwrap();
        let (was, is) =
            (entry(&client, "k000").expires().unwrap(), entry(&other.client(), "k000").expires().unwrap());
        let apart = was.duration_since(is).unwrap_or_else(|error| error.duration());
        assert!(apart < Duration::from_millis(500), "the end of its life moved by {apart:?}");
        assert!(other.client().cache(cache).get_entry([0_u8].as_slice()).unwrap().is_none());
    }
    let never = other.client().cache("quick").get_entry("k003").unwrap().unwrap();
    assert_eq!(never.life(), Life::Forever);

    // Running it again changes nothing; --replace puts all again.
    other.client().cache("disk").put("k000", "newer", LONG).unwrap();
    other.client().cache("disk").delete("k004").unwrap();
    let again = other.kvd(&["load", file_name]);
    assert_eq!(text(&again.stdout), "1 items put, 1203 were there already, 0 expired, 0 bad\n");
    assert_eq!(other.client().cache("disk").get("k000").unwrap().as_deref(), Some(&b"newer"[..]));
    let again = other.kvd(&["load", file_name, "--replace", "--json"]);
    assert!(text(&again.stdout).contains("\"put\":1204"), "{}", text(&again.stdout));
    assert_ne!(other.client().cache("disk").get("k000").unwrap().as_deref(), Some(&b"newer"[..]));

    // The same without a daemon.
    assert!(daemon.stop().0.success());
    let dir = home.path().to_str().unwrap().to_owned();
    let config = home.path().join("kvd.toml");
    let config = config.to_str().unwrap();
    let offline = home.kvd(&["dump", "disk", "--offline", "--dir", &dir, "--config", config]);
    assert_eq!(text(&offline.stdout).lines().count(), 603, "{}", text(&offline.stderr));
}

#[test]
fn bad_lines_are_named_and_nothing_of_them_is_put() {
    let home = Home::new();
    let _daemon = home.start();
    let client = home.client();
    let lines = "{\"kvd_dump\":1}\n\
        {\"cache\":\"c\",\"key\":\"a\",\"value\":\"1\"}\n\
        {\"cache\":\"c\",\"key\":\"\",\"value\":\"1\"}\n\
        {\"cache\":\"c\",\"key\":\"b\",\"value\":\"1\",\"expires\":\"2020-01-01T00:00:00Z\"}\n\
        {\"cache\":\"NO\",\"key\":\"b\",\"value\":\"1\"}\n\
        nonsense\n\
        {\"cache\":\"c\",\"key\":\"d\",\"value\":\"4\",\"tags\":[\"1\",\"2\",\"3\",\"4\",\"5\",\"6\",\"7\",\"8\",\"9\"]}\n\
        {\"cache\":\"c\",\"key\":\"e\",\"value_base64\":\"/w==\"}\n";
    let output = feed(&home, &["load", "-", "--skip-bad"], lines.as_bytes());
    assert_eq!(output.status.code(), Some(2), "there is no file called -");
    let output = feed(&home, &["load"], lines.as_bytes());
    let err = text(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{err}");
    assert!(err.contains("standard input, line 3:") && err.contains("--skip-bad"), "{err}");
    let output = feed(&home, &["load", "--skip-bad", "--json"], lines.as_bytes());
    let err = text(&output.stderr);
    assert_eq!(output.status.code(), Some(3), "{err}");
    for (line, why) in
        [("line 3:", "key"), ("line 5:", "cache"), ("line 6:", "expected"), ("line 7:", "tags")]
    {
        assert!(err.lines().any(|said| said.contains(line) && said.contains(why)), "{line} {why}: {err}");
    }
    assert_eq!(text(&output.stdout).trim(), "{\"bad\":4,\"expired\":1,\"put\":1,\"there_already\":1}");
    assert_eq!(items(&client, "c").keys().map(|key| text(key)).collect::<Vec<_>>(), ["a", "e"]);
    for (input, why) in
        [("", "is empty"), ("VERSION=3\n", "--format db_dump"), ("{\"kvd_dump\":9}\n", "format 9")]
    {
        let output = feed(&home, &["load"], input.as_bytes());
        assert!(text(&output.stderr).contains(why), "{input:?}: {}", text(&output.stderr));
        assert_eq!(output.status.code(), Some(2));
    }
}

#[test]
fn a_dump_of_berkeley_db_is_read_by_hand_written_example() {
    let home = Home::new();
    let _daemon = home.start();
    let dump = "VERSION=3\nformat=print\ndatabase=carts\ntype=btree\ndb_pagesize=4096\nHEADER=END\n \
        user\\3a1\n two\\0alines \\5c\n plain key\n \nDATA=END\n\
        VERSION=3\nformat=bytevalue\ntype=hash\nh_nelem=2\nHEADER=END\n 00ff\n 6f6b\n \n 6e6f206b6579\nDATA=END\n";
    let output = feed(&home, &["load", "--format", "db_dump", "--cache", "cart"], dump.as_bytes());
    assert_eq!(output.status.code(), Some(2), "an empty key is no key here");
    assert!(text(&output.stderr).contains("line 20:"), "{}", text(&output.stderr));
    let args = ["load", "--format", "db_dump", "--cache", "cart", "--ttl", "1h", "--skip-bad", "--replace"];
    let output = feed(&home, &args, dump.as_bytes());
    assert_eq!(text(&output.stdout), "3 items put, 0 were there already, 0 expired, 1 bad\n");
    let cache = home.client().cache("cart");
    assert_eq!(cache.get("user:1").unwrap().as_deref(), Some(&b"two\nlines \\"[..]));
    assert_eq!(cache.get("plain key").unwrap().as_deref(), Some(&b""[..]));
    assert_eq!(cache.get([0, 255].as_slice()).unwrap().as_deref(), Some(&b"ok"[..]));
    assert!(matches!(cache.ttl("user:1").unwrap(), Some(Life::Left(left)) if left <= LONG));
    assert_eq!(
        feed(&home, &["load", "--format", "db_dump"], b"").status.code(),
        Some(2),
        "into which cache?"
    );
}

/// The tool under one of its names, or nothing.
fn tool(names: [&str; 2]) -> Option<String> {
    let runs = |name: &str| Command::new(name).arg("-V").output().is_ok_and(|output| output.status.success());
    names.into_iter().find(|name| runs(name)).map(str::to_owned)
}

#[test]
fn databases_made_by_berkeley_dbs_own_tools_are_read_back_equal() {
    let (Some(loads), Some(dumps)) = (tool(["db5.3_load", "db_load"]), tool(["db5.3_dump", "db_dump"]))
    else {
        println!("SKIPPED: db5.3_load and db5.3_dump are not installed (package db5.3-util)");
        return;
    };
    let mut random = random();
    let home = Home::new();
    let _daemon = home.start();
    for (kind, flags) in [("btree", &["-p"][..]), ("hash", &["-p"]), ("btree", &[]), ("hash", &[])] {
        let cache = format!("{kind}{}", flags.len());
        let mut expected = BTreeMap::new();
        for n in 0..3_000 {
            let mut key = format!("{n}:").into_bytes();
            key.extend((0..random.usize(..20)).map(|_| random.u8(..)));
            let value: Vec<u8> = (0..random.usize(..300)).map(|_| random.u8(..)).collect();
            expected.insert(key, value);
        }
        let database = home.path().join(format!("{cache}.db"));
        make(&loads, kind, &database, &expected);
        let dump = Command::new(&dumps).args(flags).arg(&database).output().unwrap();
        assert!(dump.status.success(), "{}", text(&dump.stderr));
        let output = feed(&home, &["load", "--format", "db_dump", "--cache", &cache], &dump.stdout);
        assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
        let found: BTreeMap<_, _> =
            items(&home.client(), &cache).into_iter().map(|(key, (value, ..))| (key, value)).collect();
        assert!(found == expected, "{kind} {flags:?}: {} of {} items", found.len(), expected.len());
    }
    println!("PROMISE dump.berkeley 4 databases of 3,000 items held");
}

fn make(loads: &str, kind: &str, database: &Path, items: &BTreeMap<Vec<u8>, Vec<u8>>) {
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let mut dump = format!("VERSION=3\nformat=bytevalue\ntype={kind}\nHEADER=END\n");
    for (key, value) in items {
        dump += &format!(" {}\n {}\n", hex(key), hex(value));
    }
    dump += "DATA=END\n";
    let mut child = Command::new(loads).arg(database).stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.take().expect("piped").write_all(dump.as_bytes()).unwrap();
    assert!(child.wait().unwrap().success());
}
