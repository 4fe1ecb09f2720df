//! The server as clients meet it, over a real socket in this process.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kv_proto::limits;
use kv_proto::wire::{
    Durability, Envelope, Hello, PROTOCOL_MAGIC, PROTOCOL_VERSION, PutOptions, Request, Response, Want,
    Wanted, Welcome, decode, encode_into,
};

use super::Server;
use crate::clock::Clock;
use crate::config::Config;
use crate::engine::Engine;
use crate::store::Disk;
use crate::store::sim::SimDisk;

/// Long enough for a busy machine, short enough to end a hung test.
const PATIENCE: Duration = Duration::from_secs(20);

struct Daemon {
    _dir: tempfile::TempDir,
    engine: Arc<Engine>,
    server: Server,
}

fn daemon(change: impl FnOnce(&mut Config)) -> Daemon {
    daemon_on(Disk::Files, change)
}

fn daemon_on(disk: Disk, change: impl FnOnce(&mut Config)) -> Daemon {
    let dir = tempfile::tempdir().unwrap();
    let mut config = Config::in_dir(dir.path());
    change(&mut config);
    let engine = Engine::open_on(config.clone(), Clock::system(), disk, Arc::default(), None).unwrap();
    let server = Server::start(Arc::clone(&engine), &config).unwrap();
    Daemon { _dir: dir, engine, server }
}

impl Daemon {
    fn connect(&self) -> Wire {
        let stream = UnixStream::connect(self.server.socket()).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Wire { stream }
    }

    fn client(&self) -> Wire {
        let mut wire = self.connect();
        let welcome = wire.greet(PROTOCOL_VERSION, PROTOCOL_VERSION);
        assert!(welcome.starts_with("Accepted"), "{welcome}");
        wire
    }

    fn metric(&self, name: &str, label: &str) -> f64 {
        let rows = self.engine.metrics().rows();
        rows.iter()
            .filter(|r| r.name == name && r.labels.iter().any(|(_, v)| v == label))
            .map(|r| r.value)
            .sum()
    }

    fn await_connections(&self, count: usize) {
        let deadline = Instant::now() + PATIENCE;
        while self.engine.metrics().connections() != count {
            assert!(Instant::now() < deadline, "{} connections", self.engine.metrics().connections());
            std::thread::yield_now();
        }
    }
}

struct Wire {
    stream: UnixStream,
}

impl Wire {
    fn greet(&mut self, version: u16, oldest: u16) -> String {
        let mut bytes = Vec::new();
        encode_into(&mut bytes, &Hello { magic: PROTOCOL_MAGIC, version, oldest, name: "test" });
        self.stream.write_all(&bytes).unwrap();
        let answer = self.frame();
        format!("{:?}", decode::<Welcome<'_>>(&answer).unwrap())
    }

    fn frame(&mut self) -> Vec<u8> {
        let mut prefix = [0; 4];
        self.stream.read_exact(&mut prefix).unwrap();
        let mut body = vec![0; u32::from_le_bytes(prefix) as usize];
        self.stream.read_exact(&mut body).unwrap();
        body
    }

    fn send(&mut self, requests: &[Request<'_>]) {
        self.stream.write_all(&frames(requests)).unwrap();
    }

    fn answer(&mut self) -> String {
        let body = self.frame();
        format!("{:?}", decode::<Response<'_>>(&body).unwrap())
    }

    fn ask(&mut self, request: Request<'_>) -> String {
        self.send(&[request]);
        self.answer()
    }

    fn is_closed(&mut self) -> bool {
        match self.stream.read(&mut [0; 64]) {
            Ok(count) => count == 0,
            Err(error) => error.kind() == std::io::ErrorKind::ConnectionReset,
        }
    }
}

fn frames(requests: &[Request<'_>]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for request in requests {
        encode_into(&mut bytes, &Envelope { number: 0, request: request.clone() });
    }
    bytes
}

fn put<'a>(cache: &'a str, key: &'a [u8], value: &'a [u8]) -> Request<'a> {
    Request::Put { cache, key, value, options: PutOptions::default() }
}

fn put_durable<'a>(cache: &'a str, key: &'a [u8], value: &'a [u8]) -> Request<'a> {
    let options = PutOptions { durability: Some(Durability::Durable), ..PutOptions::default() };
    Request::Put { cache, key, value, options }
}

fn get<'a>(cache: &'a str, key: &'a [u8]) -> Request<'a> {
    Request::Get { cache, key, sliding: None, want: Want::Value }
}

#[test]
fn requests_are_answered_in_order() {
    let daemon = daemon(|_| {});
    let mut wire = daemon.client();
    let value = vec![b'v'; 300_000];
    let mut requests = Vec::new();
    for _ in 0..50 {
        requests.extend([put("c", b"k", &value), get("c", b"k"), get("c", b"none")]);
    }
    let mut sender = Wire { stream: wire.stream.try_clone().unwrap() };
    std::thread::scope(|scope| {
        scope.spawn(|| sender.send(&requests));
        for _ in 0..50 {
            assert!(wire.answer().starts_with("Written"));
            assert!(wire.answer().starts_with("Item"));
            assert_eq!(wire.answer(), "Missing");
        }
    });
    assert_eq!(daemon.metric("kvd_requests_total", "get"), 100.0);
}

#[test]
fn frames_cut_at_every_boundary_are_put_together() {
    let daemon = daemon(|_| {});
    let mut wire = daemon.client();
    let bytes = frames(&[put("c", b"key", b"value"), get("c", b"key")]);
    for cut in 1..bytes.len() {
        wire.stream.write_all(&bytes[..cut]).unwrap();
        wire.stream.write_all(&bytes[cut..]).unwrap();
        assert!(wire.answer().starts_with("Written"));
        assert!(wire.answer().starts_with("Item"));
    }
}

#[test]
fn a_failed_disk_fails_the_durable_answers_of_the_batch_and_no_others() {
    let disk = SimDisk::new(1);
    // Nobody else's flush shall meet the failure.
    let daemon =
        daemon_on(Disk::Sim(disk.clone()), |config| config.flush_interval = Duration::from_secs(600));
    let mut wire = daemon.client();
    assert!(wire.ask(put_durable("c", b"a", b"1")).starts_with("Written"));
    disk.fail_next_sync();
    wire.send(&[put("c", b"a", b"2"), put_durable("c", b"b", b"3"), get("c", b"a")]);
    assert!(wire.answer().starts_with("Written"), "in the pending log, which is all it asked for");
    let failed = wire.answer();
    assert!(failed.contains("StoreFailed") && failed.contains("maybe_applied: true"), "{failed}");
    assert!(wire.answer().starts_with("Item"));
    let deadline = Instant::now() + PATIENCE;
    while !wire.ask(put_durable("c", b"b", b"3")).starts_with("Written") {
        assert!(Instant::now() < deadline, "the store does not come back");
    }
}

#[test]
fn wrong_versions_and_strangers_are_told_and_closed() {
    let daemon = daemon(|_| {});
    let mut newer = daemon.connect();
    assert!(newer.greet(900, 899).contains("the client speaks protocol 899 to 900"));
    assert!(newer.is_closed());
    let mut newer_but_kind = daemon.connect();
    assert!(newer_but_kind.greet(900, 1).starts_with("Accepted { version: 1"));

    for garbage in
        [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0; 64], &[255; 4_096], &[8, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8]]
    {
        let mut wire = daemon.connect();
        wire.stream.write_all(garbage).unwrap();
        let answer = wire.frame();
        let answer = format!("{:?}", decode::<Welcome<'_>>(&answer).unwrap());
        assert!(answer.contains("kind: Protocol"), "{answer}");
        assert!(wire.is_closed());
    }
    assert_eq!(daemon.metric("kvd_connections_cut_total", "protocol"), 5.0);
    assert!(daemon.client().ask(Request::Ping).starts_with("Done"), "others are served");
}

#[test]
fn bad_frames_get_a_typed_answer_after_the_good_ones() {
    let daemon = daemon(|_| {});
    for (bad, kind) in [
        (vec![3, 0, 0, 0, 0, 200, 1], "Protocol"),
        (vec![3, 0, 0, 0, 0, 0, 0], "Protocol"),
        (u32::MAX.to_le_bytes().to_vec(), "TooLarge"),
    ] {
        let mut wire = daemon.client();
        let mut bytes = frames(&[Request::Ping]);
        bytes.extend_from_slice(&bad);
        bytes.extend_from_slice(&[7; 100_000]);
        wire.stream.write_all(&bytes).unwrap();
        assert_eq!(wire.answer(), "Done");
        let answer = wire.answer();
        assert!(answer.contains(&format!("kind: {kind}")), "{answer}");
        assert!(wire.is_closed());
    }
}

#[test]
fn a_full_house_is_said_and_admins_still_get_in() {
    let daemon = daemon(|config| {
        config.connections_max = 2;
        config.connections_per_user_max = 2;
    });
    let mut held: Vec<Wire> = (0..2 + limits::CONNECTIONS_ADMIN).map(|_| daemon.client()).collect();
    let mut refused = daemon.connect();
    let answer = refused.frame();
    let answer = format!("{:?}", decode::<Welcome<'_>>(&answer).unwrap());
    assert!(answer.contains("Unavailable") && answer.contains("limit is connections_max"), "{answer}");
    refused.stream.write_all(b"late").expect("it is not closed before it could be read");
    assert!(refused.is_closed());
    assert_eq!(daemon.metric("kvd_connections_refused_total", "limit"), 1.0);
    assert_eq!(held[0].ask(Request::Ping), "Done");
    held.pop();
    daemon.await_connections(1 + limits::CONNECTIONS_ADMIN);
    held.push(daemon.client());
}

#[test]
fn idle_connections_are_closed_and_their_slots_freed() {
    let daemon = daemon(|config| config.idle_timeout = Some(Duration::from_millis(30)));
    let mut wire = daemon.client();
    assert_eq!(wire.ask(Request::Ping), "Done");
    assert!(wire.is_closed());
    daemon.await_connections(0);
    assert_eq!(daemon.metric("kvd_connections_cut_total", "idle"), 1.0);
}

#[test]
fn a_frame_that_is_never_completed_ends_the_connection() {
    let daemon = daemon(|_| {});
    let (mut half, mut silent) = (daemon.client(), daemon.connect());
    let begun = Instant::now();
    half.stream.write_all(&frames(&[Request::Ping])[..3]).unwrap();
    assert!(half.is_closed() && silent.is_closed());
    assert!(begun.elapsed() < limits::PARTIAL_FRAME_MAX * 2);
    daemon.await_connections(0);
    assert_eq!(daemon.metric("kvd_connections_cut_total", "partial_frame"), 2.0);
}

#[test]
fn a_client_that_never_reads_is_cut_off_and_holds_up_nobody() {
    let daemon = daemon(|_| {});
    let mut deaf = daemon.client();
    let value = vec![b'v'; 1 << 20];
    assert!(deaf.ask(put("c", b"k", &value)).starts_with("Written"));
    let requests = frames(&vec![get("c", b"k"); 1_000]);
    deaf.stream.write_all(&requests).unwrap();
    let begun = Instant::now();
    let mut other = daemon.client();
    while daemon.metric("kvd_connections_cut_total", "stalled") == 0.0 {
        let asked = Instant::now();
        assert_eq!(other.ask(Request::Ping), "Done");
        assert!(asked.elapsed() < limits::OUTPUT_STALL_MAX / 2);
        assert!(begun.elapsed() < limits::OUTPUT_STALL_MAX * 3 / 2);
        std::thread::park_timeout(Duration::from_millis(20));
    }
    daemon.await_connections(1);
}

#[test]
fn a_stop_answers_what_was_sent_and_removes_the_socket() {
    let daemon = daemon(|_| {});
    let mut busy: Vec<Wire> = (0..8).map(|_| daemon.client()).collect();
    let idle = daemon.client();
    for wire in &mut busy {
        wire.send(&vec![put("c", b"k", b"v"); 200]);
    }
    let socket = daemon.server.socket().to_owned();
    assert_eq!(daemon.server.stop(PATIENCE).cut, 0);
    assert!(!socket.exists());
    assert!(UnixStream::connect(&socket).is_err());
    for wire in &mut busy {
        for _ in 0..200 {
            assert!(wire.answer().starts_with("Written"));
        }
        assert!(wire.is_closed());
    }
    drop(idle);
    assert_eq!(daemon.engine.metrics().connections(), 0);
}

#[test]
fn a_stop_cuts_who_is_busy_at_the_deadline() {
    let daemon = daemon(|_| {});
    let mut deaf = daemon.client();
    let value = vec![b'v'; 1 << 20];
    assert!(deaf.ask(put("c", b"k", &value)).starts_with("Written"));
    deaf.send(&vec![get("c", b"k"); 100]);
    // The first answers have begun to come: the thread is in a write that nobody reads on.
    deaf.stream.read_exact(&mut [0; 1_000]).unwrap();
    let asked = Instant::now();
    let hurry = daemon.server.hurry();
    hurry.now();
    assert_eq!(daemon.server.stop(PATIENCE).cut, 1);
    assert!(asked.elapsed() < PATIENCE / 2);
}

#[test]
fn a_dropped_server_leaves_nothing_behind() {
    let Daemon { _dir: dir, engine, server } = daemon(|_| {});
    let socket = server.socket().to_owned();
    let stream = UnixStream::connect(&socket).unwrap();
    drop(server);
    assert!(!socket.exists());
    assert!((Wire { stream }).is_closed());
    let config = Config::in_dir(dir.path());
    Server::start(engine, &config).unwrap();
}

fn lease<'a>(key: &'a [u8], wait_ms: u32) -> Request<'a> {
    let keys = vec![Wanted { key, except: None }];
    Request::Lease { cache: "c", keys, wait_ms, lease_ms: 600_000, holds: vec![] }
}

#[test]
fn who_holds_a_lease_or_a_name_is_not_idle() {
    let daemon = daemon(|config| config.idle_timeout = Some(Duration::from_millis(30)));
    let mut holder = daemon.client();
    assert!(holder.ask(lease(b"k", 0)).starts_with("Loans([Leased"));
    for _ in 0..2 {
        assert!(daemon.client().is_closed(), "who holds nothing is");
    }
    let Some(fence) = holder
        .ask(Request::Lock { name: "n", lock_ms: 1, wait_ms: 0, holds: vec![] })
        .strip_prefix("Locked { fence: ")
        .and_then(|rest| rest.strip_suffix(" }")?.parse().ok())
    else {
        panic!("not locked")
    };
    assert!(daemon.client().is_closed());
    assert_eq!(holder.ask(Request::Unlock { fence }), "Done");
    let lost = holder.ask(Request::Abandon { leases: vec![1], retry_after_ms: 0 });
    assert_eq!(lost, "Done", "it still holds the other one");
    assert!(daemon.client().is_closed());
    assert_eq!(holder.ask(Request::Ping), "Done");
}

#[test]
fn a_lease_is_free_when_its_connection_ends_and_a_waiter_that_hangs_up_is_out_of_the_way() {
    let daemon = daemon(|_| {});
    let (mut holder, mut gone, mut next) = (daemon.client(), daemon.client(), daemon.client());
    assert!(holder.ask(lease(b"k", 0)).starts_with("Loans([Leased"));
    gone.send(&[lease(b"k", 60_000)]);
    next.send(&[lease(b"k", 60_000)]);
    drop(gone);
    daemon.await_connections(2);
    drop(holder);
    assert!(next.answer().starts_with("Loans([Leased"));
}

#[test]
fn a_watcher_is_sent_what_changes_and_ends_with_its_connection_or_the_daemon() {
    let daemon = daemon(|_| {});
    let (mut writer, mut watcher, mut other) = (daemon.client(), daemon.client(), daemon.client());
    let watch = Request::Watch { cache: None, prefix: b"" };
    // What comes behind it is not answered any more.
    watcher.send(&[watch.clone(), Request::Ping]);
    assert_eq!(watcher.answer(), "Watching");
    assert_eq!(other.ask(watch), "Watching");
    for _ in 0..3 {
        writer.ask(put("c", b"k", b"v"));
        let told = watcher.answer();
        assert!(told.starts_with("Changes { changes: [Change { version: "), "{told}");
        assert!(told.contains("Put") && told.contains("missed: 0"), "{told}");
    }
    drop(watcher);
    daemon.await_connections(2);
    assert_eq!(daemon.server.stop(PATIENCE).cut, 0);
    other.answer();
}

#[test]
fn random_bytes_never_stop_the_server() {
    let seed =
        std::env::var("KVD_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or_else(|| fastrand::u64(..));
    println!("KVD_SEED={seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let daemon = daemon(|_| {});
    for _ in 0..200 {
        let mut wire = daemon.client();
        let mut bytes = frames(&[put("c", b"key", b"value"), get("c", b"key"), Request::Stats]);
        for _ in 0..random.usize(1..8) {
            let at = random.usize(..bytes.len());
            bytes[at] = random.u8(..);
        }
        bytes.truncate(random.usize(1..=bytes.len()));
        // The daemon may have closed already.
        drop(wire.stream.write_all(&bytes));
    }
    assert_eq!(daemon.client().ask(Request::Ping), "Done");
    daemon.await_connections(0);
}
