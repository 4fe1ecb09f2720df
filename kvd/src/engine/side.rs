//! The side store: values of a `memory` cache that are too large for its rings.
//!
//! A value over a sixteenth of its ring would leave the ring too few others, so it stands here, in the daemon's own
//! memory and inside the cache's budget; its index slot is an *ask mark*. Used under the engine's mutex only.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use super::item::Current;

/// Large values, first in first out.
pub(crate) struct SideStore {
    items: HashMap<Box<[u8]>, (u64, Arc<Current>)>,
    /// Keys in the order they came, with the version that put them there; superseded ones are skipped when met.
    order: VecDeque<(Box<[u8]>, u64, u64)>,
    bytes: u64,
    bytes_max: u64,
}

impl SideStore {
    pub(crate) fn new(bytes_max: u64) -> SideStore {
        SideStore { items: HashMap::new(), order: VecDeque::new(), bytes: 0, bytes_max }
    }

    pub(crate) fn bytes_max(&self) -> u64 {
        self.bytes_max
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(crate) fn get(&self, key: &[u8]) -> Option<Arc<Current>> {
        self.items.get(key).map(|(_, item)| Arc::clone(item))
    }

    /// The item of this hash and its key. For walks of the index, whose marks know hashes only.
    pub(crate) fn by_hash(&self, hash: u64) -> Option<(&[u8], Arc<Current>)> {
        let found = self.items.iter().find(|(_, (own, _))| *own == hash);
        found.map(|(key, (_, item))| (&**key, Arc::clone(item)))
    }

    /// What is there, oldest first.
    pub(crate) fn in_order(&self) -> impl Iterator<Item = (&[u8], u64, Arc<Current>)> {
        let there = |(key, hash, version): &'_ (Box<[u8]>, u64, u64)| {
            let (_, item) = self.items.get(key).filter(|(_, item)| item.version == *version)?;
            Some((*hash, Arc::clone(item)))
        };
        self.order.iter().filter_map(move |entry| there(entry).map(|(hash, item)| (&*entry.0, hash, item)))
    }

    pub(crate) fn remove(&mut self, key: &[u8]) {
        if let Some((_, item)) = self.items.remove(key) {
            self.bytes -= cost(key, &item);
        }
        while self.order.front().is_some_and(|(key, _, version)| !self.holds(key, *version)) {
            self.order.pop_front();
        }
    }

    /// Puts an item of at most `bytes_max`; the (key, hash) of those that had to go are handed to `evicted`.
    pub(crate) fn put(
        &mut self,
        key: &[u8],
        hash: u64,
        item: Arc<Current>,
        mut evicted: impl FnMut(&[u8], u64),
    ) {
        self.remove(key);
        let bytes = cost(key, &item);
        while self.bytes + bytes > self.bytes_max {
            let Some((old, old_hash, version)) = self.order.pop_front() else { break };
            if self.holds(&old, version) {
                self.remove(&old);
                evicted(&old, old_hash);
            }
        }
        self.bytes += bytes;
        self.order.push_back((key.into(), hash, item.version));
        self.items.insert(key.into(), (hash, item));
    }

    pub(crate) fn clear(&mut self) {
        *self = SideStore::new(self.bytes_max);
    }

    fn holds(&self, key: &[u8], version: u64) -> bool {
        self.items.get(key).is_some_and(|(_, item)| item.version == version)
    }
}

fn cost(key: &[u8], item: &Current) -> u64 {
    (key.len() * 2 + item.value.len() + 256) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item(version: u64, bytes: usize) -> Arc<Current> {
        Arc::new(Current { version, value: vec![7; bytes], ..Current::default() })
    }

    #[test]
    fn oldest_leaves_when_the_budget_is_reached() {
        let mut side = SideStore::new(3_000);
        let mut gone = Vec::new();
        for version in 1..=4_u64 {
            side.put(&[version as u8], version, item(version, 700), |key, hash| {
                gone.push((key.to_vec(), hash))
            });
        }
        assert_eq!(gone, vec![(vec![1], 1)]);
        assert!(side.get(&[1]).is_none() && side.get(&[4]).is_some());
        assert!(side.bytes() <= 3_000);
    }

    #[test]
    fn overwriting_does_not_leave_the_old_bytes_counted() {
        let mut side = SideStore::new(3_000);
        for version in 1..=100 {
            side.put(b"k", 1, item(version, 700), |_, _| panic!("nothing else is there to evict"));
        }
        assert_eq!(side.bytes(), cost(b"k", &item(1, 700)));
        side.remove(b"k");
        assert_eq!(side.bytes(), 0);
        assert!(side.order.is_empty());
    }
}
