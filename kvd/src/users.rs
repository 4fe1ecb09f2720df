//! What the machine knows of users.

use std::collections::BTreeSet;
use std::ffi::CString;

use nix::unistd::{Uid, User, geteuid, getgrouplist};

/// The daemon's own user and root, who may do everything.
pub(crate) fn is_owner(uid: u32) -> bool {
    uid == 0 || uid == geteuid().as_raw()
}

/// The groups that the user database gives to a user; none when it does not know it or cannot be asked. It may be asked over a
/// network.
pub(crate) fn groups(uid: u32) -> BTreeSet<u32> {
    let Ok(Some(user)) = User::from_uid(Uid::from_raw(uid)) else { return BTreeSet::new() };
    let Ok(name) = CString::new(user.name) else { return BTreeSet::new() };
    let groups = getgrouplist(&name, user.gid).unwrap_or_default();
    groups.into_iter().map(|gid| gid.as_raw()).collect()
}
