//! Who may do what: users and groups, each with verbs.

use std::collections::{BTreeMap, BTreeSet};

use kv_proto::wire::Rights;
use serde::{Deserialize, Serialize};

/// What users and groups may do. The daemon's own user and root, who may do everything, are in no list.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Access {
    /// By user id.
    pub users: BTreeMap<u32, Rights>,
    /// By group id, primary or supplementary.
    pub groups: BTreeMap<u32, Rights>,
}

impl Access {
    /// Whether nobody is listed.
    #[must_use]
    pub fn is_private(&self) -> bool {
        self.users.is_empty() && self.groups.is_empty()
    }

    /// Whether somebody loses the right to map memory when `new` takes its place.
    pub(super) fn maps_more_than(&self, new: &Access) -> bool {
        let mapping = Rights::READ | Rights::SCAN;
        let loses = |(id, rights): (&u32, &Rights), new: &BTreeMap<u32, Rights>| {
            // Who is in no list any more goes by what others say, if that is anything.
            rights.contains(mapping) && !new.get(id).is_some_and(|rights| rights.contains(mapping))
        };
        self.users.iter().any(|entry| loses(entry, &new.users))
            || self.groups.iter().any(|entry| loses(entry, &new.groups))
    }

    /// What a user of these groups may do: what any entry says.
    #[must_use]
    pub fn rights(&self, uid: u32, groups: &BTreeSet<u32>) -> Rights {
        let by_group = self.groups.iter().filter(|(gid, _)| groups.contains(gid));
        by_group.map(|(_, rights)| *rights).chain(self.users.get(&uid).copied()).collect()
    }
}

/// An entry of a list: a name or number, and what it may do; without verbs everything that can be done with a cache.
pub(super) fn parse_entry(text: &str) -> Result<(&str, Rights), String> {
    match text.split_once(':') {
        None => Ok((text, Rights::CACHE)),
        Some((name, verbs)) => Ok((name.trim_end(), verbs.parse()?)),
    }
}

/// A list as it could be written.
pub(super) fn show_list(list: &BTreeMap<u32, Rights>) -> String {
    if list.is_empty() {
        return "nobody".to_owned();
    }
    let entry = |(id, rights): (&u32, &Rights)| match *rights {
        Rights::CACHE => id.to_string(),
        rights => format!("{id}:{rights}"),
    };
    list.iter().map(entry).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_give_what_they_name_and_all_that_match_count() {
        assert_eq!(parse_entry("shop"), Ok(("shop", Rights::CACHE)));
        assert_eq!(parse_entry("report: read + scan"), Ok(("report", Rights::READ | Rights::SCAN)));
        let problem = parse_entry("report:rea").unwrap_err();
        assert!(problem.contains("\"rea\"") && problem.contains("read, write, delete"), "{problem}");
        let access = Access {
            users: [(1, Rights::READ)].into(),
            groups: [(7, Rights::WRITE), (8, Rights::ADMIN)].into(),
        };
        assert_eq!(access.rights(1, &[7, 9].into()), Rights::READ | Rights::WRITE);
        assert_eq!(access.rights(2, &[9].into()), Rights::empty());
        assert_eq!(show_list(&access.groups), "7:write, 8:admin");
        assert_eq!(show_list(&[(3, Rights::CACHE)].into()), "3");
    }
}
