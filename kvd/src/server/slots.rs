//! How many connections there may be, in all and by user.
//!
//! `accept` takes a slot before it spends a thread on a connection; the connection holds it until it ends.

use std::collections::HashMap;
use std::sync::Arc;

use kv_proto::limits::CONNECTIONS_ADMIN;
use nix::sys::resource::{Resource, getrlimit};
use parking_lot::Mutex;

use crate::config::Config;
use crate::metrics::RefusedFor;

/// Descriptors that are not for connections: the store, its temporary files, logs.
const DESCRIPTORS_RESERVED: usize = 64;

/// All slots of a server.
#[derive(Debug)]
pub(super) struct Slots {
    bounds: Mutex<Bounds>,
    used: Mutex<Used>,
}

#[derive(Debug, Clone, Copy)]
struct Bounds {
    total_max: usize,
    by_user_max: usize,
}

#[derive(Debug, Default)]
struct Used {
    total: usize,
    by_user: HashMap<u32, usize>,
}

/// One connection's slot, free again when dropped.
#[derive(Debug)]
pub(super) struct Slot {
    slots: Arc<Slots>,
    uid: u32,
}

impl Slots {
    pub(super) fn new(config: &Config) -> Arc<Slots> {
        Arc::new(Slots { bounds: Mutex::new(Bounds::of(config)), used: Mutex::default() })
    }

    /// Other bounds from now on; who has a slot keeps it.
    pub(super) fn adjust(&self, config: &Config) {
        *self.bounds.lock() = Bounds::of(config);
    }

    /// A slot for a connection of `uid`; an admin may have some beyond either limit, so that a full house can be
    /// looked at and emptied.
    pub(super) fn take(self: &Arc<Slots>, uid: u32, is_admin: bool) -> Result<Slot, RefusedFor> {
        let extra = if is_admin { CONNECTIONS_ADMIN } else { 0 };
        let Bounds { total_max, by_user_max } = *self.bounds.lock();
        let mut used = self.used.lock();
        if used.total >= total_max + extra {
            return Err(RefusedFor::Limit);
        }
        let of_user = used.by_user.entry(uid).or_default();
        if *of_user >= by_user_max + extra {
            return Err(RefusedFor::UserLimit);
        }
        *of_user += 1;
        used.total += 1;
        Ok(Slot { slots: Arc::clone(self), uid })
    }

    /// What a refused client is told.
    pub(super) fn refusal(&self, reason: RefusedFor, uid: u32) -> String {
        let Bounds { total_max, by_user_max: limit } = *self.bounds.lock();
        match reason {
            RefusedFor::Limit => format!("{total_max} connections are open, limit is connections_max"),
            RefusedFor::UserLimit => {
                format!("user {uid} has {limit} connections open, limit is connections_per_user_max")
            }
            RefusedFor::Denied => format!("user {uid} may not use this daemon"),
            RefusedFor::Resources => "the daemon is out of descriptors or threads".to_owned(),
        }
    }
}

impl Bounds {
    fn of(config: &Config) -> Bounds {
        let descriptors = getrlimit(Resource::RLIMIT_NOFILE).map_or(1_024, |(soft, _)| soft);
        let affordable = usize::try_from(descriptors)
            .unwrap_or(usize::MAX)
            .saturating_sub(DESCRIPTORS_RESERVED + CONNECTIONS_ADMIN)
            .max(1);
        if affordable < config.connections_max {
            let (wanted, limit) = (config.connections_max, affordable);
            tracing::warn!(
                "connections_max is {wanted}, but with {descriptors} descriptors it is {limit}: raise ulimit -n"
            );
        }
        Bounds {
            total_max: config.connections_max.min(affordable),
            by_user_max: config.connections_per_user_max,
        }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut used = self.slots.used.lock();
        used.total -= 1;
        if let Some(of_user) = used.by_user.get_mut(&self.uid) {
            *of_user -= 1;
            if *of_user == 0 {
                used.by_user.remove(&self.uid);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn admins_have_slots_beyond_a_full_house() {
        let mut config = Config::in_dir("x");
        config.connections_max = 3;
        config.connections_per_user_max = 2;
        let slots = Slots::new(&config);
        let mut held = vec![slots.take(1, false).unwrap(), slots.take(1, false).unwrap()];
        assert_eq!(slots.take(1, false).unwrap_err(), RefusedFor::UserLimit);
        held.push(slots.take(2, false).unwrap());
        assert_eq!(slots.take(3, false).unwrap_err(), RefusedFor::Limit);
        for _ in 0..CONNECTIONS_ADMIN {
            held.push(slots.take(0, true).unwrap());
        }
        assert_eq!(slots.take(0, true).unwrap_err(), RefusedFor::Limit);
        held.clear();
        slots.take(3, false).unwrap();
        assert_eq!(slots.used.lock().by_user.len(), 0, "users without connections are forgotten");
    }
}
