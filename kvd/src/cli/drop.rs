//! `kvd drop`: removes a cache.

use super::common::{Common, confirm};
use super::failure::{Exit, Outcome};
use super::put::say_version;

/// Remove a cache and all its items
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Example:
  kvd drop experiment --yes       without --yes it asks, and refuses a script

To empty a cache and keep it use `kvd clear`.")]
pub(super) struct Args {
    /// The cache
    cache: String,
    /// Do not ask
    #[arg(long, short)]
    yes: bool,
}

pub(super) fn run(common: &Common, args: &Args) -> Outcome {
    let cache = common.cache(&args.cache)?;
    confirm(&format!("Remove the cache {} and all its items", args.cache), "`kvd caches`", args.yes)?;
    say_version(common, cache.drop_cache()?).map(|()| Exit::Done)
}
