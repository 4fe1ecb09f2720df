//! When a miss in memory is a miss.

use std::collections::HashSet;

use kv_proto::segment::Geometry;

use super::house;

#[test]
fn what_was_enumerated_into_another_segment_makes_none_complete() {
    let house = house();
    house.somebody().put("a", "1");
    let cache = house.engine.caches.load().values().next().cloned().expect("it was made by the put");
    let is_complete = || house.engine.lock().memory_ref(&cache).writer.is_complete();
    assert!(is_complete(), "there was nothing on disk when it was made");
    // An enumeration begins, and before it ends a larger segment takes the place of the one it fills.
    let begun_in = cache.view.load().segment;
    house
        .engine
        .supersede(&cache, Geometry::new(cache.config.memory_bytes, 10_000))
        .expect("there is memory");
    house.engine.complete(&cache, begun_in);
    assert!(!is_complete(), "what lay only on disk has no mark in the new segment");
    house.engine.enumerate(&cache, &mut HashSet::new());
    assert!(is_complete());
}
