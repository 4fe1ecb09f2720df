//! The best that any cache could have done with the same requests, lives and room.
//!
//! Computed by the conductor from the recorded requests, in the order and at the times they really happened. Without a bound:
//! an object is loaded when it is asked for the first time, and again when it is asked for after its life. With a bound: the
//! same, under Belady's rule, which knows the future: the room goes to the objects asked for soonest while they live; one that
//! will not be asked for again in its life is not kept at all.

use std::collections::{BinaryHeap, HashMap};
use std::path::Path;

use super::moment::TICK;
use super::worker::{RECORD_HIT, lane_record};
use super::{Failure, objects};

/// One request as it happened, in ticks since the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Happened {
    pub(super) begun: u32,
    /// Its thread's next one began: by then a loaded row was cached.
    pub(super) done: u32,
    pub(super) object: u32,
    pub(super) hit: bool,
}

/// All requests, in the order of their beginning.
pub(super) fn recorded(shares: &[Vec<u32>], records: &Path) -> Result<Vec<Happened>, Failure> {
    let mut all = Vec::with_capacity(shares.iter().map(Vec::len).sum());
    for (lane, share) in shares.iter().enumerate() {
        let path = lane_record(records, lane);
        let bytes = std::fs::read(&path).map_err(Failure::io(format!("reading {}", path.display())))?;
        let words: Vec<u32> = bytes.as_chunks::<4>().0.iter().map(|word| u32::from_le_bytes(*word)).collect();
        if words.len() != share.len() + 1 {
            return Err(Failure::Plain(format!(
                "{} has {} of {} requests",
                path.display(),
                words.len(),
                share.len()
            )));
        }
        all.extend(words.windows(2).zip(share).map(|(pair, object)| Happened {
            begun: pair[0] >> 1,
            done: pair[1] >> 1,
            object: *object,
            hit: pair[0] & RECORD_HIT != 0,
        }));
    }
    all.sort_unstable();
    Ok(all)
}

/// Hits of a cache that has room for everything.
pub(super) fn hits_unbounded(requests: &[Happened], time_scale: u32) -> u64 {
    let mut ends = HashMap::new();
    let mut hits = 0;
    for request in requests {
        match ends.get(&request.object) {
            Some(end) if u64::from(request.begun) < *end => hits += 1,
            _ => {
                ends.insert(request.object, end_of(request, time_scale));
            }
        }
    }
    hits
}

/// Hits under Belady's rule of a cache that has room for so many objects.
pub(super) fn hits_belady(requests: &[Happened], time_scale: u32, room: usize) -> u64 {
    let nexts = next_uses(requests);
    // What is kept: when it is asked for next, and when its life ends.
    let mut kept: HashMap<u32, (u32, u64)> = HashMap::new();
    // Next uses, the farthest first. Entries that are no longer true are skipped when they come up.
    let mut farthest: BinaryHeap<(u32, u32)> = BinaryHeap::new();
    let mut hits = 0;
    for (request, next) in requests.iter().zip(nexts) {
        let end = match kept.get(&request.object) {
            Some((_, end)) if u64::from(request.begun) < *end => {
                hits += 1;
                *end
            }
            _ => end_of(request, time_scale),
        };
        let useful = requests.get(next as usize).is_some_and(|next| u64::from(next.begun) < end);
        if !useful {
            kept.remove(&request.object);
            continue;
        }
        kept.insert(request.object, (next, end));
        farthest.push((next, request.object));
        while kept.len() > room {
            let (next, object) = farthest.pop().expect("whatever is kept is on the heap");
            if kept.get(&object).is_some_and(|(true_next, _)| *true_next == next) {
                kept.remove(&object);
            }
        }
    }
    hits
}

/// When a row loaded by this request is no longer alive, in ticks.
fn end_of(request: &Happened, time_scale: u32) -> u64 {
    let ttl = objects::ttl(request.object, time_scale);
    u64::from(request.done) + u64::try_from(ttl.as_nanos() / TICK.as_nanos()).unwrap_or(u64::MAX / 2)
}

/// For each request the index of the next one for the same object; `u32::MAX`: none.
fn next_uses(requests: &[Happened]) -> Vec<u32> {
    let mut nexts = vec![u32::MAX; requests.len()];
    let mut later = HashMap::new();
    for (index, request) in requests.iter().enumerate().rev() {
        let index_u32 = u32::try_from(index).expect("a workload is bounded far below 4 billion");
        nexts[index] = later.insert(request.object, index_u32).unwrap_or(u32::MAX);
    }
    nexts
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One request a tick, each done within it; the type of the objects lives a day.
    fn trace(objects: &[u32]) -> Vec<Happened> {
        let happened = |(n, object): (usize, &u32)| Happened {
            begun: n as u32,
            done: n as u32,
            object: object | (objects::DESCRIPTION << 27),
            hit: false,
        };
        objects.iter().enumerate().map(happened).collect()
    }

    #[test]
    fn without_a_bound_only_the_first_time_and_the_end_of_a_life_miss() {
        assert_eq!(hits_unbounded(&trace(&[1, 2, 1, 2, 3, 1]), 1), 3);
        // A life of one tick: `1 / 8` ms is less than the least life, a millisecond, of 8 ticks.
        let far_apart = trace(&[1, 2, 2, 2, 2, 2, 2, 2, 2, 1]);
        assert_eq!(hits_unbounded(&far_apart, u32::MAX), 7);
        assert_eq!(hits_belady(&far_apart, u32::MAX, 9), 7);
    }

    #[test]
    fn belady_keeps_what_is_asked_for_soonest() {
        // Room for one: 1 is kept over 2 and 3, which come once.
        assert_eq!(hits_belady(&trace(&[1, 2, 1, 3, 1]), 1, 1), 2);
        // Room for one, two that alternate in pairs.
        assert_eq!(hits_belady(&trace(&[1, 1, 2, 2, 1, 2]), 1, 1), 3);
    }

    #[test]
    fn with_room_for_everything_belady_is_no_better_than_no_bound() {
        let mut random = fastrand::Rng::with_seed(1);
        let objects: Vec<u32> = (0..2_000).map(|_| random.u32(0..200)).collect();
        let requests = trace(&objects);
        assert_eq!(hits_belady(&requests, 1, 200), hits_unbounded(&requests, 1));
        let some: Vec<u64> =
            [1, 10, 50, 100, 200].iter().map(|room| hits_belady(&requests, 1, *room)).collect();
        assert!(some.is_sorted(), "{some:?}");
    }
}
