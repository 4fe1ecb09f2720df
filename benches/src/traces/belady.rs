//! The best that could be had: Belady's rule, which knows the future.
//!
//! Called by [`super::candidates`]. Room goes to what is asked for soonest while it lives; what will not be asked for again
//! in its life is not kept. Exact for objects of one size; of mixed sizes it is an approximation (the true optimum is a
//! hard problem), and a cache that prefers small objects may pass it. `kvd demo` counts the same from what its workers recorded.

use std::collections::BinaryHeap;

use super::sources::Source;

const NEVER: u32 = u32::MAX;

/// For each access the index of the next one to the same object; `u32::MAX`: there is none.
#[must_use]
pub fn next_uses(accesses: &[u32]) -> Vec<u32> {
    let objects = accesses.iter().max().map_or(0, |&object| object as usize + 1);
    let mut later = vec![NEVER; objects];
    let mut nexts = vec![NEVER; accesses.len()];
    for (i, &object) in accesses.iter().enumerate().rev() {
        nexts[i] = std::mem::replace(&mut later[object as usize], i as u32);
    }
    nexts
}

/// Hits of a cache of so many bytes.
#[must_use]
pub fn hits(source: &Source, nexts: &[u32], budget_bytes: u64) -> u64 {
    // When a kept object is asked for next, and when its life ends.
    let mut kept: Vec<Option<(u32, u64)>> = vec![None; source.objects.len()];
    // Next uses, the farthest first. An entry that is no longer true is skipped when it comes up.
    let mut farthest: BinaryHeap<(u32, u32)> = BinaryHeap::new();
    let mut used_bytes = 0;
    let mut hits = 0;
    for (now, (&number, &next)) in source.accesses.iter().zip(nexts).enumerate() {
        let object = source.objects[number as usize];
        let weight = u64::from(object.bytes);
        let was = kept[number as usize].take();
        used_bytes -= was.map_or(0, |_| weight);
        let end = match was {
            Some((_, end)) if (now as u64) < end => {
                hits += 1;
                end
            }
            Some(_) | None => object.life.map_or(u64::MAX, |life| now as u64 + life),
        };
        if next == NEVER || u64::from(next) >= end {
            continue;
        }
        kept[number as usize] = Some((next, end));
        used_bytes += weight;
        farthest.push((next, number));
        while used_bytes > budget_bytes {
            let (next, number) = farthest.pop().expect("whatever is kept is on the heap");
            if kept[number as usize].is_some_and(|(true_next, _)| true_next == next) {
                kept[number as usize] = None;
                used_bytes -= u64::from(source.objects[number as usize].bytes);
            }
        }
    }
    hits
}

#[cfg(test)]
mod tests {
    use super::super::sources::Object;
    use super::*;

    fn hits_of(accesses: &[u32], life: Option<u64>, bytes: &[u32], budget_bytes: u64) -> u64 {
        let objects = bytes.iter().map(|&bytes| Object { bytes, life }).collect();
        let source = Source { name: "zipf", what: String::new(), accesses: accesses.to_vec(), objects };
        hits(&source, &next_uses(accesses), budget_bytes)
    }

    #[test]
    fn what_is_asked_for_soonest_is_kept() {
        assert_eq!(next_uses(&[5, 1, 5]), [2, NEVER, NEVER]);
        // Room for one: 0 is kept over 1 and 2, which come once.
        assert_eq!(hits_of(&[0, 1, 0, 2, 0], None, &[8; 3], 8), 2);
        // The textbook's example, room for three, has 9 faults when every object must be kept for a moment; here 4 and 1
        // are not, and it is one fewer.
        let textbook = [7, 0, 1, 2, 0, 3, 0, 4, 2, 3, 0, 3, 2, 1, 2, 0, 1, 7, 0, 1];
        assert_eq!(hits_of(&textbook, None, &[8; 8], 24), 12);
    }

    #[test]
    fn what_is_dead_by_then_is_not_kept() {
        assert_eq!(hits_of(&[0, 1, 0, 0], Some(2), &[8; 2], 80), 1);
        assert_eq!(hits_of(&[0, 1, 0, 0], Some(3), &[8; 2], 80), 1);
        assert_eq!(hits_of(&[0, 1, 0, 0], Some(4), &[8; 2], 80), 2);
    }

    #[test]
    fn what_is_larger_than_the_room_is_not_kept() {
        assert_eq!(hits_of(&[0, 1, 0, 1], None, &[8, 80], 16), 1);
    }

    #[test]
    fn more_room_never_harms() {
        let mut random = fastrand::Rng::with_seed(1);
        let accesses: Vec<u32> = (0..2_000).map(|_| random.u32(0..200)).collect();
        let hits: Vec<u64> =
            [1, 10, 50, 100, 200].iter().map(|room| hits_of(&accesses, None, &[8; 200], room * 8)).collect();
        assert!(hits.is_sorted(), "{hits:?}");
        assert_eq!(hits[4], 1_800, "with room for all only first times miss");
    }
}
