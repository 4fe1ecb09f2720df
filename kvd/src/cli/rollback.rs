//! `kvd rollback`: ends somebody's transaction by hand.

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
    if !common.client()?.admin().roll_back(args.transaction)? {
        eprintln!("kvd: no transaction {} is open", args.transaction);
        return Ok(Exit::NotFound);
    }
    say(format!("transaction {} was rolled back", args.transaction))?;
    Ok(Exit::Done)
}
