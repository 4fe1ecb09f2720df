//! A segment made by somebody hostile: whatever its words say, and however they change under it, a reader ends, without a panic
//! and without leaving its memory (every index is checked, so leaving it would be a panic).
//!
//! `KVD_SEED` replays a run, `KVD_ROUNDS` makes it longer.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use kv_proto::segment::{
    Backed, Control, Geometry, Life, Mark, Meta, NewItem, Outcome, Reader, SegmentState, Words, Writer,
};
use kv_proto::wire::Effect;
use kv_proto::{hash_key, limits, tag_slot};

const SEED: u64 = 42;
const NOW: i64 = 5_000;
const KEYS: u32 = 48;
/// A read is a few microseconds; one that loops without a bound is caught here, however slow the machine.
const READ_MAX: Duration = Duration::from_secs(20);

fn random() -> fastrand::Rng {
    let seed = std::env::var("KVD_SEED")
        .ok()
        .and_then(|seed| seed.parse().ok())
        .unwrap_or_else(|| fastrand::u64(..));
    println!("KVD_SEED={seed}");
    fastrand::Rng::with_seed(seed)
}

fn rounds(default: u32) -> u32 {
    std::env::var("KVD_ROUNDS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(default)
}

fn geometry() -> Geometry {
    Geometry::exact(8, 16, 512, 2_048)
}

/// A key that lies in the segment; some have a length of their own.
fn key(i: u32) -> Vec<u8> {
    [&i.to_le_bytes()[..], &vec![b'k'; (i % 5 * 3) as usize]].concat()
}

/// A segment with everything in it: lives, stale lives, tags, marks, clears of each kind, evicted and removed keys.
fn filled() -> Arc<Words> {
    let words = Words::heap(geometry().bytes() / 8);
    let mut writer = Writer::create(Arc::clone(&words), geometry(), SEED, Backed::Disk, 1);
    writer.complete(1);
    for version in 2..200 {
        let key = key(version as u32 % KEYS);
        let hash = hash_key(SEED, &key);
        let tags: [&[u8]; 3] = [b"red", b"a longer tag than red", b"x"];
        let item = NewItem {
            key: &key,
            value: &vec![version as u8; version as usize % 90],
            version,
            created: 4_000,
            expires: version.is_multiple_of(3).then_some(NOW + version as i64 - 100),
            stale_for_ms: version % 2 * 70,
            load_cost_ms: version as u32 % 4,
            stale: version.is_multiple_of(7),
            tags: &tags[..version as usize % 4],
        };
        match version % 11 {
            0 => writer.stage_remove(version, hash, &key),
            1 => writer.stage_mark(version, hash, &key, Mark::Ask),
            _ => assert!(writer.stage_put(version, hash, &item, NOW), "it is small"),
        }
        match version {
            50 => writer.stamp_all(version, Effect::Gone),
            100 => writer.stamp_all(version, Effect::Stale),
            150 => writer.stamp_tag(version, tag_slot(b"red"), Effect::Stale),
            160..162 => writer.stamp_prefix(version, &key, Effect::Stale).expect("two at most"),
            _ => {}
        }
        writer.publish(version);
    }
    words
}

fn live_control() -> Arc<Control> {
    let control = Control::private(1);
    control.heartbeat(NOW);
    control.commit(200);
    control
}

fn copy_of(words: &Words) -> Arc<Words> {
    let copy = Words::heap(words.len());
    (0..words.len()).for_each(|i| copy.store(i, words.load(i)));
    copy
}

/// A word as an attacker would choose it: anything, or nearly right, or at an edge.
fn hostile_word(was: u64, random: &mut fastrand::Rng) -> u64 {
    match random.u8(..8) {
        0 => random.u64(..),
        1 => was ^ 1 << random.u32(..64),
        2 => was.wrapping_add(random.u64(..5)).wrapping_sub(2),
        3 => [0, 1, u64::MAX, 1 << 62, 1 << 63, (1 << 46) - 1, i64::MAX as u64][random.usize(..7)],
        4 => was.rotate_left(random.u32(..64)),
        5 => was & random.u64(..),
        6 => random.u64(..4_096),
        _ => was | random.u64(..) & random.u64(..),
    }
}

/// Reads everything there is to read and looks at every byte of the answers.
fn read_all(reader: &Reader, random: &mut fastrand::Rng) -> usize {
    let begun = Instant::now();
    let mut hits = 0;
    let mut buffer = Vec::new();
    let mut check = |meta: &Meta, key: &[u8], buffer: &[u8]| {
        assert_eq!(meta.key(buffer), key);
        assert!(meta.value(buffer).len() <= limits::VALUE_BYTES_MAX);
        assert!(meta.tags(buffer).count() <= buffer.len());
        let _ = reader.verdict(&meta.life(), std::iter::once(random.u32(..)), key, NOW);
        hits += 1;
    };
    let keys: Vec<Vec<u8>> = (0..KEYS).map(key).chain([vec![7; limits::KEY_BYTES_MAX]]).collect();
    for key in &keys {
        if let Outcome::Hit(meta) = reader.get(reader.hash(key), key, NOW, &mut buffer) {
            check(&meta, key, &buffer);
        }
    }
    let wanted: Vec<(u64, &[u8])> = keys.iter().map(|key| (reader.hash(key), &key[..])).collect();
    for wanted in [&wanted[..], &wanted[..3], &wanted[5..6], &[]] {
        let mut found = Vec::new();
        if reader.get_many(wanted, NOW, &mut buffer, &mut found).is_ok() {
            assert_eq!(found.len(), wanted.len());
            for (meta, (_, key)) in found.iter().zip(wanted) {
                meta.iter().for_each(|meta| check(meta, key, &buffer));
            }
        }
    }
    let life =
        Life { version: random.u64(..), expires: Some(i64::MAX), stale_for_ms: u64::MAX, stale: false };
    let _ = reader.verdict(&life, 0..8, &keys[0], NOW);
    assert!(begun.elapsed() < READ_MAX, "reads took {:?}", begun.elapsed());
    hits
}

#[test]
fn a_reader_survives_changed_words() {
    let random = &mut random();
    let original = filled();
    let control = live_control();
    let mut hits = 0;
    let rounds = rounds(1_500);
    for _ in 0..rounds {
        let words = copy_of(&original);
        for _ in 0..1 << random.u32(..11) {
            // Beyond the sizes at the front: with wrong ones nobody attaches.
            let at = random.usize(16..words.len());
            words.store(at, hostile_word(words.load(at), random));
        }
        if random.bool() {
            // A segment that nobody would read proves little.
            words.store(16, 1);
        }
        let reader = Reader::attach(Arc::clone(&control), words).expect("the front is right");
        hits += read_all(&reader, random);
    }
    assert!(rounds < 1_500 || hits > 1_000, "{hits} hits: nothing was tested");
}

#[test]
fn a_reader_survives_nothing_but_noise() {
    let random = &mut random();
    let original = filled();
    let control = live_control();
    for _ in 0..rounds(300) {
        let words = copy_of(&original);
        for at in 17..words.len() {
            // Half of the words are zero, so that tails and stamps do not always say "start over".
            words.store(at, if random.bool() { 0 } else { hostile_word(random.u64(..), random) });
        }
        let reader = Reader::attach(Arc::clone(&control), words).expect("the front is right");
        read_all(&reader, random);
    }
}

#[test]
fn a_wrong_front_is_refused_or_harmless() {
    let random = &mut random();
    let original = filled();
    let control = live_control();
    let mut refused = 0;
    let rounds = rounds(3_000);
    for _ in 0..rounds {
        let words = copy_of(&original);
        for _ in 0..random.u32(1..3) {
            let at = random.usize(..16);
            words.store(at, hostile_word(words.load(at), random));
        }
        match Reader::attach(Arc::clone(&control), words) {
            Ok(reader) => {
                read_all(&reader, random);
            }
            Err(_) => refused += 1,
        }
    }
    assert!(rounds < 3_000 || refused > rounds / 4, "only {refused} of {rounds} refused");
    for len in [0, 1, 15, 16, 1_000, original.len() - 1] {
        let short = Words::heap(len);
        (0..len).for_each(|i| short.store(i, original.load(i)));
        assert!(Reader::attach(Arc::clone(&control), short).is_err(), "{len} words");
    }
}

#[test]
fn a_reader_survives_words_that_change_while_it_reads() {
    let random = &mut random();
    let original = filled();
    let control = live_control();
    let words = copy_of(&original);
    let reader = Reader::attach(Arc::clone(&control), Arc::clone(&words)).expect("the front is right");
    let done = AtomicBool::new(false);
    let seed = random.u64(..);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut random = fastrand::Rng::with_seed(seed);
            while !done.load(Ordering::Relaxed) {
                let at = random.usize(17..words.len());
                words.store(at, hostile_word(words.load(at), &mut random));
                // And back, so that there stays something to be read.
                let at = random.usize(17..words.len());
                (at..words.len().min(at + 8)).for_each(|i| words.store(i, original.load(i)));
                control.commit(random.u64(..400));
            }
        });
        for _ in 0..rounds(1_500) {
            read_all(&reader, random);
        }
        done.store(true, Ordering::Relaxed);
    });
}

#[test]
fn a_control_page_that_says_nonsense_sends_readers_to_the_daemon() {
    let random = &mut random();
    let control = live_control();
    let reader = Reader::attach(Arc::clone(&control), filled()).expect("the front is right");
    for _ in 0..rounds(300) {
        control.commit(hostile_word(200, random));
        control.heartbeat(hostile_word(NOW as u64, random) as i64);
        read_all(&reader, random);
    }
    control.commit(200);
    for (heartbeat, is_live) in
        [(NOW, true), (NOW - 500, true), (NOW - 501, false), (NOW + 1, false), (i64::MIN, false)]
    {
        control.heartbeat(heartbeat);
        assert_eq!(control.is_live(NOW), is_live, "heartbeat {heartbeat}");
    }
    control.heartbeat(NOW);
    control.set_state(SegmentState::Closed);
    assert!(!control.is_live(NOW));
}
