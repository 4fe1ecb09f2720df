//! The shop's objects: what they are, how long they may be cached, what their rows look like.
//!
//! An object is a 32-bit number as in the traces: type in bits 27 to 31, id in 9 to 26, index in 0 to 8.

use std::fmt::Write as _;
use std::time::Duration;

/// Bytes of a row.
pub(super) const ROW_BYTES: usize = 512;
/// The cache.
pub(super) const CACHE: &str = "shop";

/// The types of the built-in workload; the traces use others, too.
pub(super) const INVENTORY: u32 = 17;
pub(super) const AVAILABILITY: u32 = 18;
pub(super) const CUSTOMER: u32 = 23;
pub(super) const DESCRIPTION: u32 = 9;

/// How long an object of a type may be cached, in the shop's time, and what it is called.
pub(super) fn life(object: u32) -> (&'static str, Duration) {
    let hours = |hours: u64| Duration::from_secs(hours * 3_600);
    match object >> 27 {
        INVENTORY => ("inventory", hours(1)),
        AVAILABILITY..=21 => ("availability", hours(4)),
        22..=26 => ("customer", hours(2)),
        _ => ("description", hours(24)),
    }
}

/// All lives there are, for the printed plan.
pub(super) fn lives() -> [(&'static str, Duration); 4] {
    [INVENTORY, AVAILABILITY, CUSTOMER, DESCRIPTION].map(|kind| life(kind << 27))
}

/// The life in our time.
pub(super) fn ttl(object: u32, time_scale: u32) -> Duration {
    (life(object).1 / time_scale).max(Duration::from_millis(1))
}

/// The object's key, into a text that is used again.
pub(super) fn key_into(object: u32, key: &mut String) {
    key.clear();
    write!(key, "{}:{}:{}", object >> 27, (object >> 9) & 0x3_ffff, object & 0x1ff)
        .expect("writing to a text does not fail");
}

/// The worker thread that serves an object: the same one always, as a balancer with sticky routes would choose. So two
/// workers never load the same object at once, and each knows what it may find.
pub(super) fn route(object: u32, lanes: u32) -> u32 {
    let mixed = u64::from(object).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (((mixed >> 32) * u64::from(lanes)) >> 32) as u32
}

/// The row of an object as the database gave it out the `stamp`-th time.
pub(super) fn row(object: u32, stamp: u32) -> [u8; ROW_BYTES] {
    let mut row = [(object ^ stamp) as u8; ROW_BYTES];
    row[..4].copy_from_slice(&object.to_le_bytes());
    row[4..8].copy_from_slice(&stamp.to_le_bytes());
    row
}

/// The stamp of a row, if it is a whole row of this object.
pub(super) fn stamp_of(object: u32, bytes: &[u8]) -> Option<u32> {
    let stamp = u32::from_le_bytes(*bytes.get(4..8)?.first_chunk()?);
    (bytes == row(object, stamp)).then_some(stamp)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_of_another_object_or_a_torn_one_is_not_taken() {
        let bytes = row(7, 3);
        assert_eq!(stamp_of(7, &bytes), Some(3));
        assert_eq!(stamp_of(8, &bytes), None);
        assert_eq!(stamp_of(7, &bytes[..100]), None);
        let mut torn = bytes;
        torn[ROW_BYTES - 1] ^= 1;
        assert_eq!(stamp_of(7, &torn), None);
    }

    #[test]
    fn every_route_is_taken() {
        let mut taken = [0; 16];
        (0..10_000).for_each(|object| taken[route(object << 9, 16) as usize] += 1);
        assert!(taken.iter().all(|n| (400..900).contains(n)), "{taken:?}");
    }
}
