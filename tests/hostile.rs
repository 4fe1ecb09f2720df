//! Bad input: typed errors, bounded memory, and everybody else is served meanwhile.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use kv_client::{ErrorKind, PutOptions};
use kv_proto::limits;
use kv_proto::wire::{
    Bytes, Envelope, Hello, PROTOCOL_MAGIC, Request, Response, Welcome, decode, encode_into, split_frame,
};

use crate::support::{Daemon, Home, SOON, random, wait_for};

const LONG: Duration = Duration::from_secs(3_600);

fn hello(version: u16) -> Vec<u8> {
    let mut out = Vec::new();
    encode_into(&mut out, &Hello { magic: PROTOCOL_MAGIC, version, oldest: version, name: "hostile" });
    out
}

fn connect(home: &Home) -> UnixStream {
    let stream = UnixStream::connect(home.socket()).unwrap();
    stream.set_read_timeout(Some(SOON)).unwrap();
    stream.set_write_timeout(Some(SOON)).unwrap();
    stream
}

/// One frame's body; `None` when the daemon closed.
fn frame(stream: &mut UnixStream) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut byte = [0];
    loop {
        if let Some((body, _)) = split_frame(&bytes, 64 << 20).unwrap() {
            return Some(body.to_vec());
        }
        match stream.read(&mut byte) {
            Ok(0) | Err(_) => return None,
            Ok(_) => bytes.push(byte[0]),
        }
    }
}

fn greeted(home: &Home) -> UnixStream {
    let mut stream = connect(home);
    stream.write_all(&hello(1)).unwrap();
    let body = frame(&mut stream).expect("a welcome");
    assert!(matches!(decode::<Welcome<'_>>(&body).unwrap(), Welcome::Accepted { .. }));
    stream
}

/// Memory of its own, which is where buffers are: a cache's segment becomes resident in its own time, when it gets huge pages.
fn own_bytes(daemon: &Daemon) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", daemon.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1_024
}

#[test]
fn random_bytes_end_the_connection_and_nobody_else() {
    let home = Home::new();
    let daemon = home.start();
    let cache = home.client().cache("c");
    cache.put("k", "v", LONG).unwrap();
    let mut random = random();
    for round in 0..300 {
        let mut stream = if round % 2 == 0 { connect(&home) } else { greeted(&home) };
        let junk: Vec<u8> = (0..random.usize(1..2_000)).map(|_| random.u8(..)).collect();
        let _ = stream.write_all(&junk);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest);
        assert!(rest.len() < 16_384, "{} bytes for {} of junk", rest.len(), junk.len());
        assert_eq!(cache.get("k").unwrap().as_deref(), Some(&b"v"[..]));
    }
    drop(daemon);
}

#[test]
fn giant_lengths_are_refused_without_memory() {
    let home = Home::new();
    let daemon = home.start();
    let _warm = home.client().ping();
    let before = own_bytes(&daemon);
    for _ in 0..50 {
        let mut stream = greeted(&home);
        stream.write_all(&u32::MAX.to_le_bytes()).unwrap();
        let body = frame(&mut stream).expect("a typed refusal");
        let Response::Error(error) = decode(&body).unwrap() else { panic!("{body:?}") };
        assert!(matches!(error.kind, ErrorKind::TooLarge | ErrorKind::Protocol), "{error:?}");
        assert!(error.message.contains("4294967295"), "{}", error.message);
        assert!(frame(&mut stream).is_none(), "closed after it");
    }
    assert!(own_bytes(&daemon) < before + (16 << 20));
}

#[test]
fn wrong_protocol_versions_and_unknown_variants_are_told_so() {
    let home = Home::new();
    let _daemon = home.start();
    let mut stream = connect(&home);
    stream.write_all(&hello(99)).unwrap();
    let body = frame(&mut stream).expect("an answer");
    let Welcome::Refused(error) = decode(&body).unwrap() else { panic!("99 is not spoken yet") };
    assert!(error.kind == ErrorKind::Protocol && error.message.contains("99"), "{error:?}");

    let mut stream = greeted(&home);
    stream.write_all(&[3, 0, 0, 0, 0, 120, 0]).unwrap();
    let body = frame(&mut stream).expect("an answer");
    let Response::Error(error) = decode(&body).unwrap() else { panic!("variant 120 does not exist") };
    assert_eq!(error.kind, ErrorKind::Protocol);
}

#[test]
fn frame_cut_at_every_boundary_is_answered_once_it_is_whole() {
    let home = Home::new();
    let _daemon = home.start();
    let mut frame_bytes = Vec::new();
    let request = Request::Put { cache: "c", key: b"k", value: b"value", options: Default::default() };
    encode_into(&mut frame_bytes, &Envelope { number: 0, request });
    let mut stream = greeted(&home);
    for cut in 1..frame_bytes.len() {
        stream.write_all(&frame_bytes[..cut]).unwrap();
        stream.flush().unwrap();
        stream.write_all(&frame_bytes[cut..]).unwrap();
        let body = frame(&mut stream).expect("an answer");
        assert!(matches!(decode(&body).unwrap(), Response::Written { .. }), "cut at {cut}");
    }
}

#[test]
fn client_that_never_reads_is_cut_off_and_others_are_served() {
    let home = Home::new();
    let daemon = home.start();
    let cache = home.client().cache("c");
    cache.put("big", vec![1_u8; 512 << 10], LONG).unwrap();
    let before = own_bytes(&daemon);
    let mut stream = greeted(&home);
    let mut request = Vec::new();
    let get = Request::GetMany { cache: "c", keys: vec![Bytes(b"big"); 2], snapshot: None };
    encode_into(&mut request, &Envelope { number: 0, request: get });
    stream.set_write_timeout(Some(Duration::from_millis(200))).unwrap();
    let began = Instant::now();
    let mut peak = 0;
    // It goes on asking until the daemon stops reading, then until it is cut off.
    wait_for(limits::OUTPUT_STALL_MAX + SOON, "the flood to be cut off", || {
        peak = peak.max(own_bytes(&daemon));
        let answered = Instant::now();
        assert!(cache.get("big").unwrap().is_some());
        assert!(answered.elapsed() < Duration::from_secs(1), "others wait for it");
        match stream.write(&request) {
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => None,
            Ok(_) => None,
            Err(_) => Some(()),
        }
    });
    assert!(began.elapsed() < limits::OUTPUT_STALL_MAX + SOON);
    assert!(peak < before + (32 << 20), "{} MiB for one that does not read", (peak - before) >> 20);
}

#[test]
fn connections_beyond_the_limit_are_refused_and_the_rest_served() {
    let home = Home::configured("connections_max = 20\n");
    let _daemon = home.start();
    let client = home.client();
    client.cache("c").put("k", "v", LONG).unwrap();
    let streams: Vec<UnixStream> = (0..40).map(|_| connect(&home)).collect();
    let refused = streams
        .iter()
        .filter(|stream| {
            let mut stream = stream.try_clone().unwrap();
            let _ = stream.write_all(&hello(1));
            let body = frame(&mut stream);
            !body.is_some_and(|body| matches!(decode(&body), Ok(Welcome::Accepted { .. })))
        })
        .count();
    assert!((10..=21).contains(&refused), "{refused} of 40 refused at a limit of 20 and 8 for admin");
    assert_eq!(client.cache("c").get("k").unwrap().as_deref(), Some(&b"v"[..]));
    drop(streams);
    wait_for(SOON, "room again", || home.client().ping().ok());
}

#[test]
fn half_a_frame_is_not_waited_for_for_ever() {
    let home = Home::new();
    let _daemon = home.start();
    let mut stream = greeted(&home);
    stream.write_all(&[200, 0, 0, 0, 1, 2]).unwrap();
    let began = Instant::now();
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).unwrap();
    let took = began.elapsed();
    assert!(took >= limits::PARTIAL_FRAME_MAX - Duration::from_millis(100), "cut after {took:?}");
    assert!(took < limits::PARTIAL_FRAME_MAX + Duration::from_secs(5), "cut after {took:?}");
}

#[test]
fn bounds_of_the_input_are_named_and_nothing_is_lost() {
    let home = Home::new();
    let _daemon = home.start();
    let client = home.client();
    let cache = client.cache("c");
    cache.put("k", "v", LONG).unwrap();
    let version = cache.describe("k").unwrap().unwrap().version;
    for (error, word) in [
        (cache.put("k", vec![0; limits::VALUE_BYTES_DEFAULT + 1], LONG).unwrap_err(), "1048577"),
        (cache.put(vec![0; 1_025], "v", LONG).unwrap_err(), "1025"),
        (
            cache
                .put_with(
                    "k",
                    "v",
                    (0..9).fold(PutOptions::new(), |options: PutOptions, n: u8| options.tag(n.to_string())),
                )
                .unwrap_err(),
            "9",
        ),
        (cache.put_with("k", "v", PutOptions::new().tag("t".repeat(65))).unwrap_err(), "65"),
        (cache.put("k", "v", Duration::from_secs(200 * 366 * 24 * 3_600)).unwrap_err(), "ms"),
    ] {
        assert_eq!(error.kind(), ErrorKind::TooLarge, "{error}");
        assert!(error.to_string().contains(word), "{error}");
        assert!(!error.maybe_applied() && !error.is_retryable(), "{error}");
    }
    assert_eq!(cache.put("", "v", LONG).unwrap_err().kind(), ErrorKind::Invalid);
    assert_eq!(client.cache("No Name").put("k", "v", LONG).unwrap_err().kind(), ErrorKind::Invalid);
    assert_eq!(cache.describe("k").unwrap().unwrap().version, version);
}

#[test]
fn full_disk_refuses_what_it_must_and_recovers_by_itself() {
    let Some(disk) = SmallDisk::mount(96) else { return };
    let mut home = Home::new();
    home.keep_in(&disk.path);
    let _daemon = home.start();
    let client = home.client();
    let cache = client.cache("c");
    cache.put("old", "before", LONG).unwrap();
    cache.put_with("sure", "durable", PutOptions::new().ttl(LONG).durable()).unwrap();
    let ballast = disk.path.join("ballast");
    disk.fill(&ballast);
    // The write that meets the end of the disk may fail in the middle; from then on they are refused beforehand.
    let refused = wait_for(SOON, "durable writes to be refused", || {
        let durable = PutOptions::new().ttl(LONG).durable();
        cache
            .put_with("x", vec![1; 1 << 20], durable)
            .err()
            .filter(|error| error.kind() == ErrorKind::StoreFull)
    });
    assert!(!refused.maybe_applied());
    assert_eq!(cache.get("sure").unwrap().as_deref(), Some(&b"durable"[..]), "reads go on");
    std::fs::remove_file(&ballast).unwrap();
    wait_for(SOON, "writes to resume by themselves", || {
        cache.put_with("old", "after", PutOptions::new().ttl(LONG).durable()).ok()
    });
    assert_eq!(cache.get("old").unwrap().as_deref(), Some(&b"after"[..]), "no older value comes back");
}

/// A tmpfs of a few MiB; needs root.
struct SmallDisk {
    path: std::path::PathBuf,
    _dir: tempfile::TempDir,
}

impl SmallDisk {
    fn mount(mebibytes: u32) -> Option<SmallDisk> {
        let dir = tempfile::tempdir().unwrap();
        let options = format!("size={mebibytes}m,mode=700");
        let mounted = std::process::Command::new("mount")
            .args(["-t", "tmpfs", "-o", &options, "kvd-test"])
            .arg(dir.path())
            .output();
        match mounted {
            Ok(output) if output.status.success() => {
                Some(SmallDisk { path: dir.path().to_owned(), _dir: dir })
            }
            _ => {
                println!("skipped: a tmpfs cannot be mounted here");
                None
            }
        }
    }

    fn fill(&self, ballast: &std::path::Path) {
        let mut file = std::fs::File::create(ballast).unwrap();
        while file.write_all(&[0; 4_096]).is_ok() {}
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg("-l").arg(&self.path).output();
    }
}
