//! Time across boots: items keep boot time for this boot and wall time for later ones.
//!
//! Called when an item is written (`stamp`) and when one is read (`life`). The offset between wall and boot time is fixed at
//! the first start in a boot, so an item from an earlier boot has one expiry however often the daemon restarts or the wall
//! clock steps. It must never let an item live longer than its own time to live.

use std::collections::BTreeMap;

use kv_proto::BootMs;
use serde::{Deserialize, Serialize};

use crate::clock::Clock;

/// A boot of the machine in which the store was open.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Boot {
    /// The kernel's name for it.
    pub(super) id: String,
    /// Wall minus boot time at the first start in it.
    pub(super) offset_ms: i64,
    /// Boot time of that first start.
    pub(super) first_start: BootMs,
}

/// The life of an item as stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Life {
    /// Expiry in boot time of the boot that wrote it.
    pub(super) expires_boot: BootMs,
    /// Expiry in wall time.
    pub(super) expires_wall: i64,
    /// What was left of its life when it was written.
    pub(super) ttl_ms: u64,
}

/// The boots known, and which one this is. Never changes while a store is open.
#[derive(Debug)]
pub(super) struct Boots {
    pub(super) current: u32,
    known: BTreeMap<u32, Boot>,
    clock: Clock,
}

impl Boots {
    /// Finds this boot among those recorded, or adds it. `last_alive` is the newest boot time stamped by a run of the last
    /// recorded boot: a clock that shows less is not the same clock, whatever the name says.
    pub(super) fn find(mut known: BTreeMap<u32, Boot>, clock: &Clock, last_alive: BootMs) -> (Boots, bool) {
        let id = clock.boot_id();
        let now = clock.now();
        let last = known.last_key_value().map(|(number, boot)| (*number, boot.id == id && now >= last_alive));
        let (current, is_new) = match last {
            Some((number, true)) => (number, false),
            Some((number, false)) => (number + 1, true),
            None => (1, true),
        };
        if is_new {
            known.insert(current, Boot { id, offset_ms: clock.wall_ms() - now, first_start: now });
        }
        (Boots { current, known, clock: clock.clone() }, is_new)
    }

    pub(super) fn this(&self) -> &Boot {
        &self.known[&self.current]
    }

    /// The life to store for an item that expires at `expires`.
    pub(super) fn stamp(&self, expires: BootMs) -> Life {
        let now = self.clock.now();
        let left = expires.saturating_sub(now);
        Life {
            expires_boot: expires,
            expires_wall: self.clock.wall_ms().saturating_add(left),
            ttl_ms: u64::try_from(left).unwrap_or(0),
        }
    }

    /// Creation and expiry in this boot's time of an item written in boot number `boot`.
    pub(super) fn life(&self, boot: u32, created: BootMs, life: Option<Life>) -> (BootMs, Option<BootMs>) {
        if boot == self.current {
            return (created, life.map(|life| life.expires_boot));
        }
        let this = self.this();
        let expires = life.map(|life| {
            let by_wall = life.expires_wall.saturating_sub(this.offset_ms);
            let by_ttl = this.first_start.saturating_add_unsigned(life.ttl_ms);
            by_wall.min(by_ttl)
        });
        let by_wall = match self.known.get(&boot) {
            Some(then) => created.saturating_add(then.offset_ms).saturating_sub(this.offset_ms),
            None => this.first_start,
        };
        (by_wall.min(this.first_start), expires)
    }

    #[cfg(test)]
    pub(super) fn for_test(clock: &Clock, current: u32, known: &[(u32, Boot)]) -> Boots {
        Boots { current, known: known.iter().cloned().collect(), clock: clock.clone() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn boot(id: &str, offset_ms: i64, first_start: BootMs) -> Boot {
        Boot { id: id.to_owned(), offset_ms, first_start }
    }

    #[test]
    fn same_boot_is_exact_whatever_the_wall_clock_did() {
        let clock = Clock::system();
        let (boots, is_new) = Boots::find(BTreeMap::new(), &clock, 0);
        assert!(is_new);
        let expires = clock.now() + 5_000;
        let life = boots.stamp(expires);
        clock.step_wall(3_600_000);
        assert_eq!(boots.life(boots.current, 7, Some(life)), (7, Some(expires)));
    }

    #[test]
    fn another_boot_follows_the_wall_and_never_exceeds_the_ttl() {
        let clock = Clock::system();
        let boots =
            Boots::for_test(&clock, 2, &[(1, boot("a", 1_000_000, 0)), (2, boot("b", 2_000_000, 50))]);
        // Written in boot 1 at boot time 500 (wall 1,000,500) with 2,000,000 ms to live.
        let life = Life { expires_boot: 2_000_500, expires_wall: 3_000_500, ttl_ms: 2_000_000 };
        assert_eq!(boots.life(1, 500, Some(life)), (500 + 1_000_000 - 2_000_000, Some(1_000_500)));
        // The wall clock went backwards between the boots: capped.
        let life = Life { expires_boot: 2_000_500, expires_wall: 9_000_500, ttl_ms: 2_000_000 };
        assert_eq!(boots.life(1, 500, Some(life)).1, Some(2_000_050));
    }

    #[test]
    fn a_clock_behind_the_last_sign_of_life_is_another_boot() {
        let clock = Clock::system();
        let known = BTreeMap::from([(4, boot(&clock.boot_id(), 0, 0))]);
        assert_eq!(Boots::find(known.clone(), &clock, clock.now() - 1).0.current, 4);
        assert_eq!(Boots::find(known, &clock, clock.now() + 60_000).0.current, 5);
    }
}
