//! Crashes between any two writes of the disk: power loss, kills, and both again inside recovery.
//!
//! A run writes random commits and lets the flush thread's work happen step by step, until the power goes (or the process is
//! killed) at a random write. What is found afterwards must be the state after some commit: after a kill the last one, after a
//! power loss not before the last one acknowledged as durable. Then the run goes on upon what was found, with another history.

use std::collections::BTreeMap;

use super::basic::{fold_all, sweep_all};
use super::*;
use crate::store::sim::SimDisk;
use kv_proto::wire::Effect;

type State = BTreeMap<(CacheId, Vec<u8>), Vec<u8>>;

/// One history: the state after every record of the log.
struct Model {
    /// By record number.
    states: BTreeMap<LogNumber, State>,
    durable: LogNumber,
    sequence: Version,
    /// Every clear of this history: what the sweep judges by.
    clears: Arc<Mutex<Vec<CacheStamps>>>,
}

fn key_of(random: &mut fastrand::Rng) -> Vec<u8> {
    format!("{}{}", ["a", "b", "ab"][random.usize(..3)], random.u8(..9)).into_bytes()
}

/// A random commit, applied to the store and to the model.
fn write(store: &Store, model: &mut Model, random: &mut fastrand::Rng) -> LogNumber {
    model.sequence += random.u64(1..4);
    let sequence = model.sequence;
    let mut state = model.states.last_key_value().map(|(_, state)| state.clone()).unwrap_or_default();
    let mut buffers = Vec::new();
    for _ in 0..[1, 1, 1, 3, 8][random.usize(..5)] {
        let bytes = [16, 16, 16, 300, 5_000][random.usize(..5)];
        let mut value = format!("{sequence:020}").into_bytes();
        value.resize(bytes.max(20), b'.');
        buffers.push((random.u32(1..3), key_of(random), value, random.u8(..10)));
    }
    let clear_prefix = &buffers[0].1[..1];
    let mut changes = Vec::new();
    for (cache, key, value, kind) in &buffers {
        match kind {
            0..=6 => {
                changes.push(Change::Put { cache: *cache, key, item: item(sequence, value) });
                state.insert((*cache, key.clone()), value.clone());
            }
            7 | 8 => {
                changes.push(Change::Delete { cache: *cache, key });
                state.remove(&(*cache, key.clone()));
            }
            _clear => {}
        }
    }
    if buffers[0].3 == 9 {
        // Alone, because items of the same sequence are not older than it.
        changes.clear();
        state = model.states.last_key_value().map(|(_, state)| state.clone()).unwrap_or_default();
        let cache = buffers[0].0;
        let scope = if random.bool() { Scope::All } else { Scope::Prefix(clear_prefix) };
        changes.push(Change::Clear { cache, scope, effect: Effect::Gone });
        state.retain(|(of, key), _| *of != cache || (scope != Scope::All && !key.starts_with(clear_prefix)));
        let mut stamps = CacheStamps { cache, ..CacheStamps::default() };
        match scope {
            Scope::Prefix(prefix) => stamps.prefixes.push((prefix.to_vec(), sequence, 0)),
            Scope::All | Scope::Tag(_) => stamps.clear = sequence,
        }
        model.clears.lock().push(stamps);
    }
    let number = commit(store, sequence, Durability::Durable, &changes);
    model.states.insert(number, state);
    number
}

fn is_cleared(stamps: &[CacheStamps], cache: CacheId, key: &[u8], version: Version) -> bool {
    stamps.iter().filter(|stamps| stamps.cache == cache).any(|stamps| {
        let prefixes = || stamps.prefixes.iter().filter(|(prefix, ..)| key.starts_with(prefix));
        version < stamps.clear || prefixes().any(|(_, gone, _)| version < *gone)
    })
}

fn found(store: &Store, stamps: &[CacheStamps]) -> Result<State, String> {
    let mut state = State::new();
    let mut after = None;
    loop {
        let step = store.enumerate(after.as_ref(), 64).map_err(|error| error.to_string())?;
        for at in &step.keys {
            let item = store.read(at.cache, &at.key).map_err(|error| error.to_string())?;
            let item = item.ok_or("an enumerated key is not there")?;
            if !is_cleared(stamps, at.cache, &at.key, item.view().version) {
                state.insert((at.cache, at.key.clone()), item.view().value.to_vec());
            }
        }
        after = step.next;
        if after.is_none() {
            return Ok(state);
        }
    }
}

#[derive(Clone, Copy, PartialEq, Debug)]
enum End {
    Power,
    Kill,
}

fn judge_with(stamps: Arc<Mutex<Vec<CacheStamps>>>) -> Hooks {
    Hooks {
        judge: Box::new(move |cache, key, view| {
            if is_cleared(&stamps.lock(), cache, key, view.version) {
                Judgement::Drop
            } else {
                Judgement::Keep
            }
        }),
        evict: Box::new(|_, _, _| false),
        evicted: Box::new(|_, _, _| {}),
        swept: Box::new(|_| {}),
        rewrite: Box::new(|_| {}),
    }
}

/// Works until the disk is off, or the steps are done.
fn work(store: &Store, flusher: &mut Flusher, disk: &SimDisk, model: &mut Model, random: &mut fastrand::Rng) {
    for _ in 0..random.usize(5..60) {
        if disk.is_off() {
            return;
        }
        let head = store.shared.log.lock().head.number;
        match random.u8(..22) {
            // A compaction goes its way between all the rest.
            20 | 21 => {
                if random.u8(..6) == 0 {
                    drop(store.compact());
                }
                if flusher.compact_some().is_err() {
                    return;
                }
            }
            0..=10 => {
                write(store, model, random);
            }
            11..=14 => {
                if flusher.flush(head).is_err() {
                    return;
                }
                model.durable = model.durable.max(store.shared.done.lock().durable);
            }
            15 | 16 => {
                if flusher.fold.is_none() && flusher.freezing.is_none() {
                    flusher.freeze();
                } else if let Some(upto) = flusher.freezing {
                    if flusher.flush_upto(upto).is_err() {
                        return;
                    }
                    flusher.begin_fold();
                }
            }
            17 => {
                if flusher.fold_chunk().is_err() {
                    return;
                }
            }
            18 => {
                if !flusher.is_sweeping() {
                    flusher.begin_pass(Instant::now());
                }
                if flusher.sweep_chunk().is_err() {
                    return;
                }
            }
            _write_back => disk.write_back(8),
        }
        model.durable = model.durable.max(store.shared.done.lock().durable);
    }
}

/// One seed: several crashes in a row. Gives the number of crashes, or what was violated.
fn run(seed: u64, sync_lies: bool) -> Result<u64, String> {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut disk = SimDisk::new(seed);
    if sync_lies {
        disk.set_sync_lies();
    }
    let mut model = Model {
        states: BTreeMap::from([(0, State::new())]),
        durable: 0,
        sequence: 0,
        clears: Arc::default(),
    };
    let mut crashes = 0;
    let mut end = End::Kill;
    for round in 0..5 {
        // A crash inside recovery, sometimes several.
        let (store, recovered, mut flusher) = loop {
            if random.u8(..3) == 0 {
                disk.cut_after(Some(random.u64(..40)));
            }
            match Store::open_by_hand(options("sim"), &Clock::system(), Disk::Sim(disk.clone())) {
                Ok(opened) if !disk.is_off() => break opened,
                Ok(opened) => drop(opened),
                Err(_error) if disk.is_off() => {}
                Err(error) => return Err(format!("seed {seed}, round {round}: open after {end:?}: {error}")),
            }
            crashes += 1;
            (disk, end) =
                if random.bool() { (disk.after_kill(), end) } else { (disk.after_power_loss(), End::Power) };
        };
        disk.cut_after(None);
        verify(&store, &recovered, &mut model, end)
            .map_err(|what| format!("seed {seed}, round {round}: {what}"))?;
        model.sequence = recovered.sequence_first;
        *model.clears.lock() = recovered.stamps.clone();
        store.set_hooks(judge_with(model.clears.clone()));
        disk.cut_after(Some(random.u64(..400)));
        for _ in 0..3 {
            work(&store, &mut flusher, &disk, &mut model, &mut random);
        }
        if random.u8(..8) == 0 && !disk.is_off() {
            disk.cut_after(None);
            let head = store.shared.log.lock().head.number;
            if flusher.flush_upto(head).is_ok() && flusher.freezing.is_none() && flusher.fold.is_none() {
                fold_all(&mut flusher);
                sweep_all(&mut flusher);
                model.durable = head;
            }
        }
        end = if random.bool() { End::Kill } else { End::Power };
        disk = if end == End::Kill { disk.after_kill() } else { disk.after_power_loss() };
        crashes += 1;
        drop((store, flusher));
    }
    Ok(crashes)
}

/// What was found is the state after one commit, and no acknowledged one is missing.
fn verify(store: &Store, recovered: &Recovered, model: &mut Model, end: End) -> Result<(), String> {
    let number = store.shared.log.lock().head.number;
    let newest = *model.states.last_key_value().expect("there is the empty state").0;
    if number > newest {
        return Err(format!("record {number} was recovered, only {newest} were written"));
    }
    if end == End::Kill && number != newest {
        return Err(format!("a kill lost records: {number} of {newest}"));
    }
    if number < model.durable {
        return Err(format!("record {} was durable, only {number} were recovered", model.durable));
    }
    if recovered.sequence_first <= model.sequence {
        return Err(format!(
            "sequence {} was given out, the next run begins at {}",
            model.sequence, recovered.sequence_first
        ));
    }
    let expected =
        model.states.range(..=number).next_back().map(|(_, state)| state.clone()).unwrap_or_default();
    let found = found(store, &recovered.stamps)?;
    if found != expected {
        let all: std::collections::BTreeSet<_> = found.keys().chain(expected.keys()).collect();
        let text =
            |value: Option<&Vec<u8>>| value.map(|value| String::from_utf8_lossy(&value[..20]).into_owned());
        let differ = all.iter().filter(|key| found.get(key) != expected.get(key)).map(|key| {
            let (found, expected) = (text(found.get(key)), text(expected.get(key)));
            format!("{}/{}: found {found:?}, expected {expected:?}", key.0, String::from_utf8_lossy(&key.1))
        });
        let differ = differ.collect::<Vec<_>>().join("; ");
        return Err(format!("after {end:?} at record {number} of {newest}: {differ}"));
    }
    model.states.split_off(&(number + 1));
    model.states.insert(number, expected);
    model.durable = number;
    Ok(())
}

fn seed_base() -> u64 {
    std::env::var("KVD_SEED")
        .ok()
        .and_then(|seed| seed.parse().ok())
        .unwrap_or_else(|| fastrand::u64(..1 << 40))
}

#[test]
fn a_thousand_crashes_leave_the_state_of_some_commit_and_lose_nothing_durable() {
    let base = seed_base();
    println!("KVD_SEED={base}");
    let mut crashes = 0;
    let mut seed = base;
    let wanted =
        std::env::var("KVD_CRASH_POINTS").ok().and_then(|points| points.parse().ok()).unwrap_or(1_200);
    while crashes < wanted {
        crashes += run(seed, false).unwrap_or_else(|what| panic!("{what} (replay: KVD_SEED={seed})"));
        seed += 1;
    }
    println!("PROMISE power.state_of_a_commit {crashes} crash points of {} seeds held", seed - base);
}

#[test]
fn a_disk_that_does_not_sync_is_found_out() {
    let base = seed_base();
    println!("KVD_SEED={base}");
    // Opening may fail in any way, or find what must not be; redb may even stop by a panic.
    let is_caught = |seed| std::panic::catch_unwind(|| run(seed, true).is_err()).unwrap_or(true);
    assert!((base..base + 20).any(is_caught), "twenty runs did not notice that nothing is synced");
}

fn open_sim(disk: &SimDisk) -> (Arc<Store>, Recovered, Flusher) {
    Store::open_by_hand(options("sim"), &Clock::system(), Disk::Sim(disk.clone())).expect("opens")
}

#[test]
fn records_of_an_earlier_history_are_never_replayed_after_a_later_one() {
    // Power is lost with a gap: the first pending record did not reach the disk, the second did. The next run writes the very
    // same bytes in the first one's place and is killed. What follows them on disk is of the earlier history.
    let mut gaps = 0;
    for seed in 0..200 {
        let disk = SimDisk::new(seed);
        let (store, recovered, flusher) = open_sim(&disk);
        let sequence = recovered.sequence_first;
        let value = "v".repeat(5_000);
        put(&store, sequence, 1, "first", &value);
        put(&store, sequence + 1, 1, "second", &value);
        put(&store, sequence + 2, 1, "third", &value);
        disk.write_back(seed as usize % 40);
        drop((store, flusher));
        let disk = disk.after_power_loss();
        let (store, recovered, flusher) = open_sim(&disk);
        if recovered.report.pending_records > 0 {
            continue;
        }
        gaps += 1;
        put(&store, sequence, 1, "first", &value);
        drop((store, flusher));
        let (store, recovered, _flusher) = open_sim(&disk.after_kill());
        assert_eq!(recovered.report.pending_records, 1, "seed {seed}");
        assert_eq!(get(&store, 1, "first"), Some(value));
        assert_eq!(get(&store, 1, "second"), None, "seed {seed}");
    }
    assert!(gaps > 20, "only {gaps} of 200 power losses left a gap");
}

#[test]
fn a_removal_by_the_sweep_never_outlives_the_clear_it_was_judged_by() {
    for seed in 0..20 {
        let disk = SimDisk::new(seed);
        let (store, recovered, mut flusher) = open_sim(&disk);
        let sequence = recovered.sequence_first;
        put(&store, sequence, 1, "k", "v");
        fold_all(&mut flusher);
        let clear = Change::Clear { cache: 1, scope: Scope::All, effect: Effect::Gone };
        commit(&store, sequence + 1, Durability::Behind, &[clear]);
        let stamps = CacheStamps { cache: 1, clear: sequence + 1, ..CacheStamps::default() };
        store.set_hooks(judge_with(Arc::new(Mutex::new(vec![stamps]))));
        sweep_all(&mut flusher);
        drop((store, flusher));
        let (store, recovered, _flusher) = open_sim(&disk.after_power_loss());
        let has_clear = recovered.stamps.iter().any(|stamps| stamps.clear == sequence + 1);
        let has_item = store.read(1, b"k").unwrap().is_some();
        assert!(has_clear || has_item, "seed {seed}: the item is gone and the clear was never made");
    }
}

#[test]
fn an_evicted_item_does_not_come_back_after_its_key_was_forgotten() {
    for seed in 0..20 {
        let disk = SimDisk::new(seed);
        let (store, recovered, mut flusher) = open_sim(&disk);
        for i in 0..300 {
            put(&store, recovered.sequence_first + i, 1, &format!("k{i:03}"), &"v".repeat(50));
        }
        // The first fold is on stable storage; of the second one only a part is, when items are evicted.
        fold_all(&mut flusher);
        for i in 0..100 {
            put(&store, recovered.sequence_first + 300 + i, 1, &format!("k{i:03}"), &"w".repeat(50));
        }
        flusher.freeze();
        let upto = flusher.freezing.unwrap();
        flusher.flush_upto(upto).unwrap();
        flusher.begin_fold();
        flusher.fold_chunk().unwrap();
        flusher.fold_chunk().unwrap();
        let gone = Arc::new(Mutex::new(Vec::new()));
        let seen = gone.clone();
        let mut hooks = judge_with(Arc::default());
        hooks.evict = Box::new(|_, _, _| true);
        hooks.evicted = Box::new(move |_, key, _| seen.lock().push(key.to_vec()));
        store.set_hooks(hooks);
        store.set_disk_bytes_max(1, Some(10_000));
        for _ in 0..10 {
            flusher.evict_chunk().unwrap();
        }
        assert!(!gone.lock().is_empty());
        drop((store, flusher));
        for disk in [disk.after_power_loss(), disk.after_kill()] {
            let (store, _, _flusher) = open_sim(&disk);
            for key in gone.lock().iter() {
                assert!(store.read(1, key).unwrap().is_none(), "seed {seed}");
            }
        }
    }
}
