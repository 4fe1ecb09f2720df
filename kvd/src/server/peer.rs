//! Who is calling, asked of the kernel before the first byte is read.
//!
//! `accept` calls it. The answer is what the peer was when it connected; a process id is a label only, it may have been
//! used again since.

use std::collections::{BTreeSet, HashMap};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kv_proto::wire::Rights;
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};

use crate::config::{Access, Config};
use crate::engine::Caller;
use crate::users;

/// How long an answer of the user database is believed; it may come over a network.
const GROUPS_BELIEVED: Duration = Duration::from_secs(60);
/// Users remembered at once. Beyond: all are forgotten and asked for again.
const GROUPS_REMEMBERED_MAX: usize = 1_024;

/// The kernel's word about a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
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
}

/// Who may come in, and what for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Guest {
    pub(super) peer: Credentials,
    rights: Rights,
    /// The groups of its user, where any list names groups.
    groups: BTreeSet<u32>,
}

impl Guest {
    pub(super) fn is_admin(&self) -> bool {
        self.rights.contains(Rights::ADMIN)
    }

    /// What the engine is told about who is behind a connection.
    pub(super) fn caller(self, id: u64, name: String) -> Caller {
        let Guest { peer, rights, groups } = self;
        Caller { id, name, uid: peer.uid, pid: peer.pid.unsigned_abs(), groups, rights }
    }
}

/// Who may come in.
#[derive(Debug)]
pub(super) struct List {
    access: Access,
    /// Whether any list names groups.
    asks_groups: bool,
}

impl List {
    pub(super) fn of(config: &Config) -> List {
        List { access: config.access.clone(), asks_groups: config.lists_groups() }
    }

    /// As the one that follows `old`: caches that are there may still name groups that its configuration does not.
    pub(super) fn after(self, old: &List) -> List {
        List { asks_groups: self.asks_groups || old.asks_groups, ..self }
    }
}

/// Decides who may come in.
#[derive(Debug)]
pub(super) struct Doorkeeper {
    list: Arc<List>,
    groups: HashMap<u32, (Instant, BTreeSet<u32>)>,
}

impl Doorkeeper {
    pub(super) fn new(list: Arc<List>) -> Doorkeeper {
        Doorkeeper { list, groups: HashMap::new() }
    }

    /// Follows a list that was replaced.
    pub(super) fn renew(&mut self, list: &Arc<List>) {
        if !Arc::ptr_eq(&self.list, list) {
            *self = Doorkeeper::new(Arc::clone(list));
        }
    }

    /// What the peer may do; `None`: it may not come in.
    pub(super) fn admit(&mut self, peer: &Credentials, now: Instant) -> Option<Guest> {
        if users::is_owner(peer.uid) {
            return Some(Guest { peer: *peer, rights: Rights::all(), groups: BTreeSet::new() });
        }
        let groups = if self.list.asks_groups { self.groups(peer, now) } else { BTreeSet::new() };
        let rights = self.list.access.rights(peer.uid, &groups);
        (!rights.is_empty()).then_some(Guest { peer: *peer, rights, groups })
    }

    fn groups(&mut self, peer: &Credentials, now: Instant) -> BTreeSet<u32> {
        let mut groups = match self.groups.get(&peer.uid) {
            Some((asked, groups)) if now.duration_since(*asked) < GROUPS_BELIEVED => groups.clone(),
            Some(_) | None => {
                let groups = users::groups(peer.uid);
                if self.groups.len() >= GROUPS_REMEMBERED_MAX {
                    self.groups.clear();
                }
                self.groups.insert(peer.uid, (now, groups.clone()));
                groups
            }
        };
        groups.insert(peer.gid);
        groups
    }
}

#[cfg(test)]
mod tests {
    use nix::unistd::geteuid;

    use super::*;

    fn somebody(uid: u32, gid: u32) -> Credentials {
        Credentials { uid, gid, pid: 1 }
    }

    fn door(access: Access) -> Doorkeeper {
        let asks_groups = !access.groups.is_empty();
        Doorkeeper::new(Arc::new(List { access, asks_groups }))
    }

    fn rights(door: &mut Doorkeeper, uid: u32, gid: u32) -> Option<Rights> {
        door.admit(&somebody(uid, gid), Instant::now()).map(|guest| guest.rights)
    }

    #[test]
    fn the_kernel_names_this_process() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let peer = Credentials::of(&ours).unwrap();
        assert_eq!((peer.uid, peer.pid), (geteuid().as_raw(), std::process::id().cast_signed()));
        assert!(door(Access::default()).admit(&peer, Instant::now()).unwrap().is_admin());
    }

    #[test]
    fn strangers_stay_outside() {
        let mut private = door(Access::default());
        assert_eq!(rights(&mut private, 0, 0), Some(Rights::all()));
        assert_eq!(rights(&mut private, 4_242, 4_242), None);
        let users = [(4_242, Rights::CACHE), (4_243, Rights::READ)].into();
        let mut open = door(Access { users, groups: [(77, Rights::WRITE)].into() });
        assert_eq!(rights(&mut open, 4_242, 1), Some(Rights::CACHE));
        assert_eq!(rights(&mut open, 4_243, 77), Some(Rights::READ | Rights::WRITE));
        assert_eq!(rights(&mut open, 5_000, 77), Some(Rights::WRITE));
        assert_eq!(rights(&mut open, 5_000, 78), None);
    }

    #[test]
    fn an_answer_about_groups_is_believed_for_a_while() {
        let mut door = door(Access { users: [].into(), groups: [(77, Rights::READ)].into() });
        let asked = Instant::now();
        door.groups.insert(6_000, (asked, [77].into()));
        assert!(door.admit(&somebody(6_000, 1), asked + GROUPS_BELIEVED / 2).is_some());
        assert!(
            door.admit(&somebody(6_000, 1), asked + GROUPS_BELIEVED).is_none(),
            "asked again: there is no such user"
        );
    }
}
