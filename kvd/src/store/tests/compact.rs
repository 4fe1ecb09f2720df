//! Compaction: the file gets smaller while writes go on, and nothing is lost whatever happens meanwhile.

use super::*;
use crate::store::compact::CompactionNews;

fn outcome(news: &mpsc::Receiver<CompactionNews>, soon: Instant) -> CompactionNews {
    loop {
        let left = soon.saturating_duration_since(Instant::now());
        match news.recv_timeout(left).expect("a compaction ends") {
            CompactionNews::Progress { .. } => {}
            end => return end,
        }
    }
}

#[test]
fn a_half_empty_file_is_halved_while_writers_go_on_and_hardly_wait() {
    let dir = tempfile::tempdir().unwrap();
    let mut options = options(dir.path());
    options.pending_bytes = 4 << 20;
    options.redb_cache_bytes = 16 << 20;
    options.journal_bytes_max = 2 << 20;
    let (store, recovered) = Store::open(options.clone(), Clock::system(), Disk::Files).unwrap();
    let mut sequence = recovered.sequence_first;
    let items = 40_000;
    for n in 0..items {
        sequence += 1;
        put(&store, sequence, 1, &format!("k{:05}", n * 7_919 % items), &"v".repeat(400));
    }
    for n in (0..items).filter(|n| n % 2 == 0) {
        sequence += 1;
        commit(
            &store,
            sequence,
            Durability::Behind,
            &[Change::Delete { cache: 1, key: format!("k{n:05}").as_bytes() }],
        );
    }
    while store.stats().journal_bytes > 0 {
        std::thread::sleep(Duration::from_millis(20));
    }
    let before = store.stats().file_bytes;
    let news = store.compact();
    // Durable writes all the while, each of which waits for the flush thread.
    let mut waits = Vec::new();
    let mut number = 0;
    let end = loop {
        let begin = Instant::now();
        number += 1;
        sequence += 1;
        let record = put(&store, sequence, 2, &format!("w{number}"), "while");
        store.wait_durable(record, soon()).unwrap();
        waits.push(begin.elapsed());
        match news.try_recv() {
            Ok(CompactionNews::Progress { .. }) | Err(mpsc::TryRecvError::Empty) => {}
            Ok(end) => break end,
            Err(error) => panic!("{error}"),
        }
    };
    let CompactionNews::Done { bytes_before, bytes_after, pause, old } = end else { panic!("{end:?}") };
    drop(old);
    waits.sort();
    let longest = *waits.last().unwrap();
    println!(
        "{before} before, {bytes_before} at its begin, {bytes_after} after; {} durable writes meanwhile, p50 {:?}, longest {longest:?}; longest step {pause:?}",
        waits.len(),
        waits[waits.len() / 2]
    );
    assert!(bytes_after * 2 <= bytes_before + bytes_before / 20, "{bytes_before} became {bytes_after}");
    sequence += 1;
    put(&store, sequence, 2, "after", "x");
    let check = |store: &Store| {
        for n in 0..items {
            assert_eq!(get(store, 1, &format!("k{n:05}")).is_some(), n % 2 == 1, "k{n:05}");
        }
        for n in 1..=number {
            assert_eq!(get(store, 2, &format!("w{n}")).as_deref(), Some("while"), "w{n}");
        }
        assert_eq!(get(store, 2, "after").as_deref(), Some("x"));
    };
    check(&store);
    store.close(soon()).unwrap();
    drop(store);
    let verified = verify(&options, |_, _| {}).unwrap();
    assert_eq!(verified.wrong, Vec::<String>::new());
    let (store, recovered) = Store::open(options, Clock::system(), Disk::Files).unwrap();
    assert!(recovered.report.clean, "{}", recovered.report);
    check(&store);
}

#[test]
fn a_compaction_without_room_or_beside_another_is_refused_and_says_why() {
    let dir = tempfile::tempdir().unwrap();
    let mut options = options(dir.path());
    options.headroom_bytes = 0;
    let disk = crate::store::sim::SimDisk::new(1);
    let (store, recovered, mut flusher) =
        Store::open_by_hand(options, &Clock::system(), Disk::Sim(disk.clone())).unwrap();
    put(&store, recovered.sequence_first, 1, "k", "v");
    let (first, second) = (store.compact(), store.compact());
    flusher.compact_some().unwrap();
    let CompactionNews::Failed(why) = outcome(&second, soon()) else { panic!("two at once") };
    assert!(why.contains("under way already"), "{why}");
    for _ in 0..20 {
        flusher.compact_some().unwrap();
    }
    assert!(matches!(outcome(&first, soon()), CompactionNews::Done { .. }));
    assert_eq!(get(&store, 1, "k").as_deref(), Some("v"));
    disk.set_free_bytes(1_000);
    let news = store.compact();
    flusher.compact_some().unwrap();
    let CompactionNews::Failed(why) = outcome(&news, soon()) else { panic!("no room") };
    assert!(why.contains("1000 are free"), "{why}");
}
