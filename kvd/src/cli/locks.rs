//! `kvd locks`: who holds what, who loads what, who waits, and for whom.

use kv_client::TransactionInfo;
use kvd::units::show_duration;
use serde_json::json;

use super::common::{Common, say};
use super::failure::{Exit, Outcome};
use super::show;

/// List transactions, leases and named locks: what they hold, what they wait for, and for whom
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  kvd locks
  kvd locks --json | jq '.transactions[] | select(.waits != null)'
  kvd rollback 1882498868713619458               end one that is in the way
  kvd locks --json | jq '.transactions[] | select(.kind | test(\"load|lock\"))'

The oldest come first. QUIET is how long a transaction has sent nothing: after 50 ms it is rolled back as soon as somebody
waits for it. BEHIND are those it waits for. A ring of them is broken the moment it closes, so none is ever shown: who would
have closed it is rolled back or goes on, and `kvd stats` counts it under kvd_deadlocks_total. A load or lock may be quiet for
as long as it asked for; after that it ends as soon as somebody wants it.")]
pub(super) struct Args {}

pub(super) fn run(common: &Common, _args: &Args) -> Outcome {
    let listed = common.client()?.admin().transactions()?;
    if common.json {
        let rows: Vec<_> = listed.transactions.iter().map(json_row).collect();
        say(json!({ "mode": listed.mode, "transactions": rows }))?;
        return Ok(Exit::Done);
    }
    if listed.transactions.is_empty() {
        say(format!("locking mode {}: nobody holds or waits for anything", listed.mode))?;
        return Ok(Exit::Done);
    }
    say(format!("locking mode {}", listed.mode))?;
    let mut table = show::Rows::new([
        "TRANSACTION",
        "KIND",
        "PID",
        "NAME",
        "OPEN",
        "QUIET",
        "HOLDS",
        "WAITS FOR",
        "BEHIND",
    ]);
    for info in &listed.transactions {
        let behind: Vec<_> = info.behind.iter().map(u64::to_string).collect();
        table.add([
            info.number.to_string(),
            info.kind.clone(),
            info.pid.to_string(),
            info.name.clone(),
            show_duration(info.open),
            show_duration(info.quiet),
            holds(info),
            info.waits.as_ref().map_or("-".to_owned(), |(mode, what, since)| {
                format!("{mode} {what}, {}", show_duration(*since))
            }),
            if behind.is_empty() { "-".to_owned() } else { behind.join(", ") },
        ]);
    }
    say(table)?;
    Ok(Exit::Done)
}

fn holds(info: &TransactionInfo) -> String {
    let named: Vec<_> = info.holds.iter().map(|(mode, what)| format!("{mode} {what}")).collect();
    let more = info.held.saturating_sub(named.len() as u64);
    match (named.is_empty(), more) {
        (true, _) => "-".to_owned(),
        (false, 0) => named.join("; "),
        (false, more) => format!("{}; {more} more", named.join("; ")),
    }
}

fn json_row(info: &TransactionInfo) -> serde_json::Value {
    let ms = |duration: std::time::Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    json!({
        "transaction": info.number,
        "kind": info.kind,
        "client": info.client,
        "pid": info.pid,
        "name": info.name,
        "open_ms": ms(info.open),
        "quiet_ms": ms(info.quiet),
        "held": info.held,
        "holds": info.holds.iter().map(|(mode, what)| json!({ "mode": mode, "what": what })).collect::<Vec<_>>(),
        "waits": info.waits.as_ref().map(|(mode, what, since)| json!({ "mode": mode, "what": what, "ms": ms(*since) })),
        "behind": info.behind,
    })
}
