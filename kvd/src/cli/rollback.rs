//! `kvd rollback`: ends somebody's transaction by hand.

use serde_json::json;

use super::common::{Common, say};
use super::failure::{Exit, Outcome};

/// Roll back a transaction, of whichever process
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  kvd locks                                      shows the numbers
  kvd rollback 1882498868713619458

Nothing of it is applied; its client is told so with its next request. Exit code 1: no such transaction is open (any more).")]
pub(super) struct Args {
    /// Its number, as `kvd locks` shows it
    transaction: u64,
}

pub(super) fn run(common: &Common, args: &Args) -> Outcome {
    let number = args.transaction;
    let was_open = common.client()?.admin().roll_back(number)?;
    if common.json {
        say(json!({ "transaction": number, "rolled_back": was_open }))?;
    } else if was_open {
        say(format_args!("transaction {number} was rolled back"))?;
    } else {
        eprintln!("kvd: no transaction {number} is open");
    }
    Ok(if was_open { Exit::Done } else { Exit::NotFound })
}
