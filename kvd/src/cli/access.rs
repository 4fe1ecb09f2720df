//! `kvd access`: who may do what.

use kv_client::{AccessReport, Rights};
use nix::unistd::{Uid, User};
use serde_json::json;

use super::common::{Common, say};
use super::failure::{Exit, Failure, Outcome};
use super::show;

/// Show what a user may do, cache by cache
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  kvd access                                     what you may do yourself
  kvd access --user www-data                     what somebody else may do; for who has `admin`
  kvd access --user 1001 --json | jq '.caches[] | select(.rights | index(\"write\"))'

What each verb allows:
  read     get and describe items; with `write`, load them together with others, and increment
  write    put items, change their lives; in any cache: begin transactions, take named locks
  delete   delete, take and expire single items
  scan     see which keys there are: scan, watch, hottest keys, slow log; with `read`, the shared memory
  clear    make many items gone or stale at once; drop the cache
  admin    everything, and what concerns the daemon: stop, reload, restart, backup, check, compact, rollback

Of a user, all groups count that the user database gives it; a process that has one besides, as by `sg`, has what that one has, too.

The daemon's own user and root may do everything. Others may connect, and do what it says, if the configuration lists them or one
of their groups; an entry without verbs has all but `admin`:
  [access]
  users  = [\"www-data\", \"report:read+scan\", \"deploy:admin\"]
  groups = [\"staff:read\"]
A cache with a list of its own goes by that instead:
  [caches.session]
  users = [\"www-data\"]")]
pub(super) struct Args {
    /// The user, by name or number
    #[arg(long, value_name = "USER")]
    user: Option<String>,
}

pub(super) fn run(common: &Common, args: &Args) -> Outcome {
    let uid = args.user.as_deref().map(uid_of).transpose()?;
    let report = common.client()?.admin().access(uid)?;
    match common.json {
        true => say(as_json(&report))?,
        false => tell(&report)?,
    }
    Ok(Exit::Done)
}

fn uid_of(user: &str) -> Result<u32, Failure> {
    if let Ok(uid) = user.parse() {
        return Ok(uid);
    }
    match User::from_name(user) {
        Ok(Some(user)) => Ok(user.uid.as_raw()),
        Ok(None) => Err(Failure::Usage(format!("this machine has no user {user:?}; a number will do too"))),
        Err(error) => Err(Failure::Usage(format!("user {user:?} cannot be looked up: {error}"))),
    }
}

fn tell(report: &AccessReport) -> Result<(), Failure> {
    let name = User::from_uid(Uid::from_raw(report.uid)).ok().flatten().map(|user| user.name);
    let who = name.map_or(format!("user {}", report.uid), |name| format!("{name} (user {})", report.uid));
    if report.rights.is_empty() {
        return say(format!("{who} may not connect: no entry under [access] names it or one of its groups"));
    }
    say(match report.rights.contains(Rights::ADMIN) {
        true => format!("{who} may do everything, and what concerns the daemon"),
        false => format!("{who} may connect, and {} where a cache has no list of its own", report.rights),
    })?;
    let mut table = show::Rows::new(["CACHE", "READ", "WRITE", "DELETE", "SCAN", "CLEAR", "SAYS"]);
    let mut add = |cache: &str, rights: Rights, says: &str| {
        let may = |verb| if rights.contains(verb) { "yes" } else { "-" }.to_owned();
        table.add([
            cache.to_owned(),
            may(Rights::READ),
            may(Rights::WRITE),
            may(Rights::DELETE),
            may(Rights::SCAN),
            may(Rights::CLEAR),
            says.to_owned(),
        ]);
    };
    for cache in &report.caches {
        add(&cache.cache, cache.rights, if cache.is_listed { "its own list" } else { "[access]" });
    }
    add("(any new)", report.of_new, "[default] or [access]");
    say(table)
}

fn as_json(report: &AccessReport) -> serde_json::Value {
    let words = |rights: Rights| rights.words().collect::<Vec<_>>();
    let caches = report.caches.iter().map(
        |cache| json!({ "cache": cache.cache, "own_list": cache.is_listed, "rights": words(cache.rights) }),
    );
    json!({
        "uid": report.uid,
        "groups": report.groups,
        "rights": words(report.rights),
        "new_caches": words(report.of_new),
        "caches": caches.collect::<Vec<_>>(),
    })
}
