//! The bytes of every variant, held still: a change here breaks daemons and clients in the field (invariant I8).
//!
//! `KVD_GOLDEN=print cargo test -p kv-proto --test golden -- --nocapture` prints the list after a variant was appended.

use kv_proto::wire::{
    AccessReport, Bytes, CacheInfo, CacheRights, Change, Check, Checked, ClientInfo, Condition, Durability,
    Effect, Entry, ErrorKind, Expect, Expiry, Filling, Freshness, Hello, HotKey, Item, Loan, Metric,
    PROTOCOL_MAGIC, PutOptions, ReadPath, Request, Response, Restart, RestartState, Rights, ScanItem, Scope,
    Sliding, SlowOrder, SlowRequest, TransactionInfo, Versioned, Want, Wanted, Welcome, What, WireError,
    Write,
};
use kv_proto::wire::{Envelope, FrameError, decode, encode_into, split_frame};
use serde::{Deserialize, Serialize};

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn bytes_of<T: Serialize>(message: &T) -> Vec<u8> {
    let mut out = Vec::new();
    encode_into(&mut out, message);
    out
}

fn unhex(text: &str) -> Vec<u8> {
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
}

/// Encodes to exactly `golden`, and back.
fn holds<'a, T: Serialize + Deserialize<'a> + PartialEq + std::fmt::Debug>(
    name: &str,
    message: &T,
    golden: &'a [u8],
) -> bool {
    let frame = bytes_of(message);
    if std::env::var_os("KVD_GOLDEN").is_some() {
        println!("    (\"{name}\", \"{}\"),", hex(&frame));
        return true;
    }
    if frame != golden {
        eprintln!("{name}: is {} and was {}", hex(&frame), hex(golden));
        return false;
    }
    let (body, rest) = split_frame(golden, 1 << 20).unwrap().unwrap();
    rest.is_empty() && decode::<T>(body).as_ref() == Ok(message)
}

fn options() -> PutOptions<'static> {
    PutOptions {
        ttl_ms: Some(1_000),
        stale_for_ms: 5,
        load_cost_ms: 6,
        tags: vec![Bytes(b"t1"), Bytes(b"t2")],
        durability: Some(Durability::Durable),
        condition: Condition::IfVersion(7),
    }
}

fn requests() -> Vec<(&'static str, Request<'static>)> {
    let (cache, key) = ("c", &b"k"[..]);
    let sliding = Some(Sliding { below_ms: 1, ttl_ms: 2 });
    let put = Write::Put { cache, key, value: b"v", options: PutOptions::default() };
    let writes = vec![put, Write::Expire { cache, key, expiry: Expiry::Never }, Write::Delete { cache, key }];
    let checks = vec![
        Check { cache, key, expect: Expect::Absent },
        Check { cache, key, expect: Expect::Version(300) },
    ];
    vec![
        ("ping", Request::Ping),
        ("get", Request::Get { cache, key, sliding: None, want: Want::Value }),
        ("get_sliding", Request::Get { cache, key, sliding, want: Want::Entry }),
        ("get_many", Request::GetMany { cache, keys: vec![Bytes(b"a"), Bytes(b"bc")], snapshot: Some(9) }),
        ("describe", Request::Describe { cache, key }),
        ("scan", Request::Scan { cache, prefix: b"p", cursor: b"q", keys_max: 10, values: true }),
        ("put", Request::Put { cache, key, value: b"v", options: PutOptions::default() }),
        ("put_options", Request::Put { cache, key, value: b"v", options: options() }),
        ("expire_after", Request::Expire { cache, key, expiry: Expiry::After(5) }),
        ("expire_never", Request::Expire { cache, key, expiry: Expiry::Never }),
        ("expire_now", Request::Expire { cache, key, expiry: Expiry::Now }),
        ("expire_stale", Request::Expire { cache, key, expiry: Expiry::Stale }),
        ("delete", Request::Delete { cache, key }),
        ("take", Request::Take { cache, key }),
        (
            "increment",
            Request::Increment { cache, key, by: -1, initial: 2, ttl_ms: Some(3), durability: None },
        ),
        ("commit", Request::Commit { checks, writes, durability: Some(Durability::Memory) }),
        ("clear_everything", Request::Clear { scope: Scope::Everything, effect: Effect::Gone }),
        ("clear_cache", Request::Clear { scope: Scope::Cache(cache), effect: Effect::Stale }),
        ("clear_tag", Request::Clear { scope: Scope::Tag { cache: None, tag: b"t" }, effect: Effect::Gone }),
        (
            "clear_prefix",
            Request::Clear { scope: Scope::Prefix { cache, prefix: b"p" }, effect: Effect::Gone },
        ),
        ("drop", Request::Drop { cache }),
        ("stats", Request::Stats),
        ("caches", Request::Caches),
        ("sync", Request::Sync),
        ("attach", Request::Attach { cache }),
        (
            "hits",
            Request::Hits {
                cache,
                segment: 300,
                hits: 5,
                misses: 6,
                places: vec![1, 300],
                socket_because: Some("w"),
            },
        ),
        ("clients", Request::Clients),
        ("begin", Request::Begin { read_only: false, wait_ms: 300, first: 400, tries: 2 }),
        (
            "commit_transaction",
            Request::CommitTransaction { transaction: 300, durability: Some(Durability::Durable) },
        ),
        ("rollback", Request::Rollback { transaction: 300 }),
        ("renew", Request::Renew { transaction: 300 }),
        ("transactions", Request::Transactions),
        (
            "lease",
            Request::Lease {
                cache,
                keys: vec![Wanted { key, except: None }, Wanted { key: b"bc", except: Some(300) }],
                wait_ms: 300,
                lease_ms: 400,
                holds: vec![1, 300],
            },
        ),
        ("fill", Request::Fill { fills: vec![Filling { lease: 300, value: b"v", options: options() }] }),
        ("abandon", Request::Abandon { leases: vec![1, 300], retry_after_ms: 400 }),
        ("lock", Request::Lock { name: "n", lock_ms: 300, wait_ms: 400, holds: vec![500] }),
        ("renew_lock", Request::RenewLock { fence: 300, lock_ms: 400 }),
        ("unlock", Request::Unlock { fence: 300 }),
        ("watch", Request::Watch { cache: Some(cache), prefix: b"p" }),
        ("watch_all", Request::Watch { cache: None, prefix: b"" }),
        ("slow_log", Request::SlowLog { order: SlowOrder::Slowest, requests_max: 300, longer_than_us: 400 }),
        ("hottest", Request::Hottest { cache: Some(cache), keys_max: 300 }),
        ("scan_all", Request::ScanAll { cache, prefix: b"p", cursor: b"q", keys_max: 10, values: true }),
        (
            "clear_versions",
            Request::ClearVersions {
                cache,
                items: vec![Versioned { key, version: 300 }],
                effect: Effect::Stale,
            },
        ),
        ("backup", Request::Backup { memory: true }),
        ("check", Request::Check { samples: 300 }),
        ("compact", Request::Compact),
        ("shutdown", Request::Shutdown),
        ("reload", Request::Reload),
        ("restart", Request::Restart { clear: vec!["c"] }),
        ("last_restart", Request::LastRestart),
        ("access", Request::Access { uid: Some(300) }),
    ]
}

fn item() -> Item<'static> {
    let entry = Entry {
        freshness: Freshness::Stale,
        value_bytes: 1,
        age_ms: 2,
        expires_in_ms: Some(-3),
        stale_for_ms: 4,
        load_cost_ms: 5,
        tags: vec![Bytes(b"t")],
    };
    Item { value: b"v", version: 300, entry: Some(entry) }
}

fn responses() -> Vec<(&'static str, Response<'static>)> {
    let plain = Item { value: b"v", version: 1, entry: None };
    let transaction = TransactionInfo {
        transaction: 300,
        client: 1,
        name: "n",
        pid: 2,
        kind: "k",
        open_ms: 3,
        quiet_ms: 4,
        held: 5,
        holds: vec![("s", Bytes(b"a"))],
        waits: Some(("x", Bytes(b"b"), 6)),
        behind: vec![7],
    };
    let info = CacheInfo {
        name: "c",
        declared: true,
        memory_bytes: 1,
        disk_bytes_max: 2,
        resident_items: 3,
        disk_bytes: 4,
        ttl_default_ms: None,
        ttl_max_ms: Some(5),
        durability: Durability::Behind,
    };
    let restart = Restart {
        number: 1,
        state: RestartState::Done,
        message: "m",
        pid: 300,
        paused_us: 2,
        took_ms: 3,
        items: 4,
        bytes: 5,
    };
    let error = WireError { kind: ErrorKind::TooLarge, message: "m", maybe_applied: true, retry_after_ms: 7 };
    let client = ClientInfo {
        id: 1,
        name: "n",
        uid: 2,
        pid: 3,
        connected_ms: 4,
        idle_ms: 5,
        requests: 6,
        paths: vec![ReadPath { cache: "c", shared_reads: 7, socket_because: None }],
    };
    let loans = vec![
        Loan::Hit(item()),
        Loan::Leased { lease: 300, stale: None },
        Loan::Leased { lease: 1, stale: Some(item()) },
        Loan::Busy,
        Loan::Alone,
    ];
    let what = [
        What::Put { key: b"k", value_bytes: 300 },
        What::Removed { key: b"k" },
        What::Cleared { effect: Effect::Stale },
        What::ClearedPrefix { prefix: b"p", effect: Effect::Gone },
        What::ClearedTag { tag: b"t", effect: Effect::Stale },
        What::Dropped,
    ];
    let slow = SlowRequest {
        operation: "get",
        cache: "c",
        key: Bytes(b"k"),
        key_bytes: 300,
        client: 4,
        name: "n",
        uid: 5,
        pid: 6,
        ended_ms: 7,
        took_us: 800,
        lock_us: 900,
        disk_us: 1_000,
        failure: Some("timeout"),
    };
    let changes = what.into_iter().map(|what| Change { version: 300, cache: "c", what }).collect();
    vec![
        ("done", Response::Done),
        ("missing", Response::Missing),
        ("item", Response::Item(item())),
        ("items", Response::Items { items: vec![Some(plain), None], snapshot: 300 }),
        ("moved", Response::Moved),
        ("page", Response::Page { items: vec![ScanItem { key: b"k", item: item() }], cursor: b"z" }),
        ("written", Response::Written { version: 300 }),
        ("refused", Response::Refused { version: Some(1) }),
        ("counter", Response::Counter { value: -5, version: 6 }),
        ("committed", Response::Committed { version: 1, changed: 2 }),
        ("conflict", Response::Conflict { index: 1, version: None }),
        ("metrics", Response::Metrics(vec![Metric { name: "n", labels: vec![("a", "b")], value: 1.5 }])),
        ("caches", Response::Caches(vec![info])),
        ("error", Response::Error(error)),
        ("attached", Response::Attached { segment: 300 }),
        ("clients", Response::Clients(vec![client])),
        ("begun", Response::Begun { transaction: 300 }),
        ("transactions", Response::Transactions { mode: "m", transactions: vec![transaction] }),
        ("loans", Response::Loans(loans)),
        ("filled", Response::Filled(vec![Some(300), None])),
        ("locked", Response::Locked { fence: 300 }),
        ("busy", Response::Busy { holder: "h" }),
        ("watching", Response::Watching),
        ("changes", Response::Changes { changes, missed: 300 }),
        (
            "slow_requests",
            Response::SlowRequests { threshold_us: Some(300), total: 400, requests: vec![slow] },
        ),
        (
            "hot_keys",
            Response::HotKeys(vec![HotKey { cache: "c", key: Bytes(b"k"), reads: 300, value_bytes: 400 }]),
        ),
        ("part", Response::Part { bytes: b"p" }),
        ("compacting", Response::Compacting { done: 300, total: 400 }),
        ("compacted", Response::Compacted { bytes_before: 300, bytes_after: 200, pause_us: 5 }),
        ("checked", Response::Checked(Checked { sequence: 300, items: 1, compared: 2, wrong: vec!["w"] })),
        ("stopping", Response::Stopping { pid: 300, lock: "l" }),
        ("reloaded", Response::Reloaded { applied: vec!["a"], needs_restart: vec!["n"] }),
        ("restarting", Response::Restarting { number: 300 }),
        ("restarted", Response::Restarted(restart)),
        (
            "access",
            Response::Access(AccessReport {
                uid: 300,
                groups: vec![5, 6],
                rights: Rights::READ | Rights::ADMIN,
                of_new: Rights::SCAN,
                caches: vec![CacheRights { cache: "c", is_listed: true, rights: Rights::CACHE }],
            }),
        ),
    ]
}

const GOLDEN: &[(&str, &str)] = &[
    // GOLDEN BEGIN
    ("request ping", "020000000000"),
    ("request get", "0800000000010163016b0000"),
    ("request get_sliding", "0a00000000010163016b01010201"),
    ("request get_many", "0c000000000201630201610262630109"),
    ("request describe", "0600000000030163016b"),
    ("request scan", "0a00000000040163017001710a01"),
    ("request put", "0e00000000050163016b0176000000000000"),
    ("request put_options", "1800000000050163016b017601e80705060202743102743201020207"),
    ("request expire_after", "0800000000060163016b0005"),
    ("request expire_never", "0700000000060163016b01"),
    ("request expire_now", "0700000000060163016b02"),
    ("request expire_stale", "0700000000060163016b03"),
    ("request delete", "0600000000070163016b"),
    ("request take", "0600000000080163016b"),
    ("request increment", "0b00000000090163016b0104010300"),
    (
        "request commit",
        "2a000000000a020163016b000163016b01ac0203000163016b0176000000000000010163016b01020163016b0100",
    ),
    ("request clear_everything", "04000000000b0000"),
    ("request clear_cache", "06000000000b01016301"),
    ("request clear_tag", "07000000000b0200017400"),
    ("request clear_prefix", "08000000000b030163017000"),
    ("request drop", "04000000000c0163"),
    ("request stats", "02000000000d"),
    ("request caches", "02000000000e"),
    ("request sync", "02000000000f"),
    ("request attach", "0400000000100163"),
    ("request hits", "0f00000000110163ac0205060201ac02010177"),
    ("request clients", "020000000012"),
    ("request begin", "08000000001300ac02900302"),
    ("request commit_transaction", "060000000014ac020102"),
    ("request rollback", "040000000015ac02"),
    ("request renew", "040000000016ac02"),
    ("request transactions", "020000000017"),
    ("request lease", "160000000018016302016b0002626301ac02ac0290030201ac02"),
    ("request fill", "17000000001901ac02017601e80705060202743102743201020207"),
    ("request abandon", "08000000001a0201ac029003"),
    ("request lock", "0b000000001b016eac02900301f403"),
    ("request renew_lock", "06000000001cac029003"),
    ("request unlock", "04000000001dac02"),
    ("request watch", "07000000001e0101630170"),
    ("request watch_all", "04000000001e0000"),
    ("request slow_log", "07000000001f01ac029003"),
    ("request hottest", "070000000020010163ac02"),
    ("request scan_all", "0a00000000210163017001710a01"),
    ("request clear_versions", "0a0000000022016301016bac0201"),
    ("request backup", "03000000002301"),
    ("request check", "040000000024ac02"),
    ("request compact", "020000000025"),
    ("request shutdown", "020000000026"),
    ("request reload", "020000000027"),
    ("request restart", "050000000028010163"),
    ("request last_restart", "020000000029"),
    ("request access", "05000000002a01ac02"),
    ("response done", "0100000000"),
    ("response missing", "0100000001"),
    ("response item", "10000000020176ac020101010201050405010174"),
    ("response items", "0a0000000302010176010000ac02"),
    ("response moved", "0100000004"),
    ("response page", "150000000501016b0176ac020101010201050405010174017a"),
    ("response written", "0300000006ac02"),
    ("response refused", "03000000070101"),
    ("response counter", "03000000080906"),
    ("response committed", "03000000090102"),
    ("response conflict", "030000000a0100"),
    ("response metrics", "110000000b01016e0101610162000000000000f83f"),
    ("response caches", "0d0000000c010163010102030400010501"),
    ("response error", "060000000d05016d0107"),
    ("response attached", "030000000eac02"),
    ("response clients", "0f0000000f0101016e02030405060101630700"),
    ("response begun", "0300000010ac02"),
    ("response transactions", "1c00000011016d01ac0201016e02016b03040501017301610101780162060107"),
    (
        "response loans",
        "2a0000001205000176ac02010101020105040501017401ac02000101010176ac0201010102010504050101740203",
    ),
    ("response filled", "06000000130201ac0200"),
    ("response locked", "0300000014ac02"),
    ("response busy", "03000000150168"),
    ("response watching", "0100000016"),
    (
        "response changes",
        "2f0000001706ac02016300016bac02ac02016301016bac0201630201ac02016303017000ac02016304017401ac02016305ac02",
    ),
    (
        "response slow_requests",
        "260000001801ac02900301036765740163016bac0204016e05060ea0068407e807010774696d656f7574",
    ),
    ("response hot_keys", "0a00000019010163016bac029003"),
    ("response part", "030000001a0170"),
    ("response compacting", "050000001cac029003"),
    ("response compacted", "060000001dac02c80105"),
    ("response checked", "080000001bac020102010177"),
    ("response stopping", "050000001eac02016c"),
    ("response reloaded", "070000001f01016101016e"),
    ("response restarting", "0300000020ac02"),
    ("response restarted", "0b000000210102016dac0202030405"),
    ("response access", "0d00000022ac020205062108010163011f"),
    ("hello", "09000000ebec918b030101016e"),
    ("welcome", "06000000000102030405"),
    // GOLDEN END
];

const ERROR_KINDS: &[ErrorKind] = &[
    ErrorKind::Timeout,
    ErrorKind::Unavailable,
    ErrorKind::Conflict,
    ErrorKind::Deadlock,
    ErrorKind::LeaseLost,
    ErrorKind::TooLarge,
    ErrorKind::Invalid,
    ErrorKind::Denied,
    ErrorKind::UnknownCache,
    ErrorKind::StoreFull,
    ErrorKind::StoreFailed,
    ErrorKind::Protocol,
    ErrorKind::Config,
    ErrorKind::Codec,
    ErrorKind::Loader,
];

fn golden(name: &str) -> Vec<u8> {
    let found = GOLDEN.iter().find(|(known, _)| *known == name);
    unhex(found.map_or("", |(_, bytes)| bytes))
}

#[test]
fn every_variant_keeps_its_bytes() {
    let mut broken = Vec::new();
    for (name, request) in requests() {
        let name = format!("request {name}");
        let bytes = golden(&name);
        if !holds(&name, &Envelope { number: 0, request }, &bytes) {
            broken.push(name);
        }
    }
    for (name, response) in responses() {
        let name = format!("response {name}");
        let bytes = golden(&name);
        if !holds(&name, &response, &bytes) {
            broken.push(name);
        }
    }
    let hello = Hello { magic: PROTOCOL_MAGIC, version: 1, oldest: 1, name: "n" };
    let bytes = golden("hello");
    if !holds("hello", &hello, &bytes) {
        broken.push("hello".into());
    }
    let welcome =
        Welcome::Accepted { version: 1, run_id: 2, client_id: 3, value_bytes_max: 4, frame_bytes_max: 5 };
    let bytes = golden("welcome");
    if !holds("welcome", &welcome, &bytes) {
        broken.push("welcome".into());
    }
    assert!(broken.is_empty(), "bytes changed: {broken:?}");
}

#[test]
fn error_kinds_keep_their_numbers() {
    for (number, kind) in ERROR_KINDS.iter().enumerate() {
        let body = &bytes_of(kind)[4..];
        assert_eq!(body, [number as u8], "{kind:?}");
    }
}

#[test]
fn every_cut_of_a_frame_is_no_frame_and_no_message() {
    for (name, request) in requests() {
        let frame = bytes_of(&Envelope { number: 0, request });
        for end in 0..frame.len() {
            assert_eq!(split_frame(&frame[..end], 1 << 20), Ok(None), "{name} cut at {end}");
        }
        let body = &frame[4..];
        for end in 0..body.len() {
            let cut = decode::<Envelope<'_>>(&body[..end]);
            assert!(matches!(cut, Err(FrameError::Malformed { .. })), "{name} cut at {end}: {cut:?}");
        }
        let mut longer = body.to_vec();
        longer.push(0);
        let trailing = decode::<Envelope<'_>>(&longer);
        assert_eq!(trailing, Err(FrameError::Trailing { bytes: longer.len(), trailing: 1 }), "{name}");
    }
}

#[test]
fn a_giant_length_is_refused_before_its_body_is_awaited() {
    let prefix = u32::MAX.to_le_bytes();
    let refused = split_frame(&prefix, 1_024);
    assert_eq!(refused, Err(FrameError::TooLong { bytes: u32::MAX as usize, limit: 1_024 }));
}

#[test]
fn an_unknown_variant_is_malformed() {
    for variant in [200_u8, 127, 99] {
        let frame = [0, variant, 0, 0, 0, 0];
        assert!(matches!(decode::<Envelope<'_>>(&frame), Err(FrameError::Malformed { .. })), "{variant}");
    }
}

#[test]
fn random_bytes_never_decode_to_more_than_they_are() {
    let seed = std::env::var("KVD_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(0x6b76_6431);
    println!("KVD_SEED={seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    for _ in 0..200_000 {
        let bytes: Vec<u8> = (0..random.usize(..64)).map(|_| random.u8(..)).collect();
        if let Ok(Envelope { request: Request::Commit { checks, writes, .. }, .. }) =
            decode::<Envelope<'_>>(&bytes)
        {
            assert!(checks.len() + writes.len() <= bytes.len());
        }
        let _ = decode::<Response<'_>>(&bytes);
    }
}
