//! `kvd expire`: changes the life of an item.

use kv_client::Ttl;

use super::common::{Common, Place};
use super::failure::{Exit, Outcome};
use super::get::missing;
use super::put::say_version;

/// Give an item a new life
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  kvd expire product 42 5m        expires in five minutes from now
  kvd expire product 42 never
  kvd expire product 42 now       gone at once
  kvd expire product 42 stale     kept, but to be reloaded by the first who reads it")]
pub(super) struct Args {
    #[command(flatten)]
    place: Place,
    /// A duration from now, never, now, or stale
    #[arg(value_name = "TTL", value_parser = parse_ttl)]
    ttl: Ttl,
}

fn parse_ttl(text: &str) -> Result<Ttl, String> {
    Ok(match text {
        "never" => Ttl::Never,
        "now" | "0" => Ttl::Now,
        "stale" => Ttl::Stale,
        _ => Ttl::After(kvd::units::parse_duration(text)?),
    })
}

pub(super) fn run(common: &Common, args: &Args) -> Outcome {
    match common.cache(&args.place.cache)?.expire(args.place.key()?, args.ttl)? {
        Some(version) => say_version(common, version).map(|()| Exit::Done),
        None => missing(&args.place),
    }
}
