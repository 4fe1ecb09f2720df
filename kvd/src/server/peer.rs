//! Who is calling, asked of the kernel before the first byte is read.
//!
//! `accept` calls it. The answer is what the peer was when it connected; a process id is a label only, it may have been
//! used again since.

use std::collections::{BTreeSet, HashMap};
use std::ffi::CString;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use nix::unistd::{Gid, Uid, User, geteuid, getgrouplist};

use crate::config::{Access, Config};
use crate::engine::Caller;

/// How long an answer of the user database is believed; it may come over a network.
const GROUPS_BELIEVED: Duration = Duration::from_secs(60);
/// Users remembered at once. Beyond: all are forgotten and asked for again.
const GROUPS_REMEMBERED_MAX: usize = 1_024;

/// The kernel's word about a peer.
#[derive(Debug, Clone, Copy)]
pub(super) struct Credentials {
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) pid: i32,
}

impl Credentials {
    pub(super) fn of(stream: &UnixStream) -> nix::Result<Credentials> {
        let peer = getsockopt(stream, PeerCredentials)?;
        Ok(Credentials { uid: peer.uid(), gid: peer.gid(), pid: peer.pid() })
    }

    /// What the engine is told about who is behind a connection.
    pub(super) fn caller(&self, id: u64, name: String, config: &Config) -> Caller {
        let is_admin = is_admin(self.uid, geteuid().as_raw());
        let uses_all_caches = is_admin || !config.lists_users_by_cache();
        let mut groups = BTreeSet::new();
        if !uses_all_caches {
            groups.insert(self.gid);
            groups.extend(supplementary_groups(self).iter().map(|gid| gid.as_raw()));
        }
        Caller { id, name, uid: self.uid, pid: self.pid.unsigned_abs(), groups, is_admin, uses_all_caches }
    }
}

/// Decides who may come in.
#[derive(Debug)]
pub(super) struct Doorkeeper {
    own_uid: u32,
    access: Arc<Access>,
    by_group: HashMap<u32, (Instant, bool)>,
}

impl Doorkeeper {
    pub(super) fn new(access: Arc<Access>) -> Doorkeeper {
        Doorkeeper { own_uid: geteuid().as_raw(), access, by_group: HashMap::new() }
    }

    /// Follows a list that was replaced.
    pub(super) fn renew(&mut self, access: &Arc<Access>) {
        if !Arc::ptr_eq(&self.access, access) {
            *self = Doorkeeper::new(Arc::clone(access));
        }
    }

    /// The daemon's own user and root.
    pub(super) fn is_admin(&self, peer: &Credentials) -> bool {
        is_admin(peer.uid, self.own_uid)
    }

    pub(super) fn admits(&mut self, peer: &Credentials, now: Instant) -> bool {
        self.is_admin(peer)
            || self.access.users.contains(&peer.uid)
            || self.access.groups.contains(&peer.gid)
            || (!self.access.groups.is_empty() && self.admits_by_group(peer, now))
    }

    fn admits_by_group(&mut self, peer: &Credentials, now: Instant) -> bool {
        if let Some((asked, admitted)) = self.by_group.get(&peer.uid)
            && now.duration_since(*asked) < GROUPS_BELIEVED
        {
            return *admitted;
        }
        let admitted =
            supplementary_groups(peer).iter().any(|gid| self.access.groups.contains(&gid.as_raw()));
        if self.by_group.len() >= GROUPS_REMEMBERED_MAX {
            self.by_group.clear();
        }
        self.by_group.insert(peer.uid, (now, admitted));
        admitted
    }
}

fn is_admin(uid: u32, own_uid: u32) -> bool {
    uid == own_uid || uid == 0
}

/// The groups the user database gives to the peer's user; none when it does not know that user or cannot be asked.
fn supplementary_groups(peer: &Credentials) -> Vec<Gid> {
    let Ok(Some(user)) = User::from_uid(Uid::from_raw(peer.uid)) else { return Vec::new() };
    let Ok(name) = CString::new(user.name) else { return Vec::new() };
    getgrouplist(&name, Gid::from_raw(peer.gid)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn somebody(uid: u32, gid: u32) -> Credentials {
        Credentials { uid, gid, pid: 1 }
    }

    #[test]
    fn the_kernel_names_this_process() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let peer = Credentials::of(&ours).unwrap();
        assert_eq!((peer.uid, peer.pid), (geteuid().as_raw(), std::process::id().cast_signed()));
        assert!(Doorkeeper::new(Arc::default()).is_admin(&peer));
    }

    #[test]
    fn strangers_stay_outside() {
        let now = Instant::now();
        let mut private = Doorkeeper::new(Arc::default());
        assert!(private.admits(&somebody(0, 0), now));
        assert!(!private.admits(&somebody(4_242, 4_242), now));
        let access = Access { users: [4_242].into(), groups: [77].into() };
        let mut open = Doorkeeper::new(Arc::new(access));
        assert!(open.admits(&somebody(4_242, 1), now));
        assert!(open.admits(&somebody(5_000, 77), now));
        assert!(!open.admits(&somebody(5_000, 78), now));
        assert!(!open.is_admin(&somebody(4_242, 1)));
    }

    #[test]
    fn an_answer_about_groups_is_believed_for_a_while() {
        let mut door = Doorkeeper::new(Arc::new(Access { users: [].into(), groups: [77].into() }));
        let asked = Instant::now();
        door.by_group.insert(6_000, (asked, true));
        assert!(door.admits(&somebody(6_000, 1), asked + GROUPS_BELIEVED / 2));
        assert!(
            !door.admits(&somebody(6_000, 1), asked + GROUPS_BELIEVED),
            "asked again: there is no such user"
        );
    }
}
