//! `kvd clear`: makes many items gone or stale at once.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt as _;

use clap::ArgGroup;
use kv_client::Effect;

use super::common::{Common, confirm};
use super::failure::{Exit, Failure, Outcome};
use super::put::say_version;

/// Make a cache, a tag, a prefix or everything gone, or stale
#[derive(Debug, clap::Args)]
#[command(
    group = ArgGroup::new("what").args(["cache", "tag", "all"]).required(true).multiple(true),
    after_help = "\
Examples:
  kvd clear page                     one cache
  kvd clear --tag sku:42             what has this tag, in all caches
  kvd clear page --tag sku:42        what has this tag, in one cache
  kvd clear page --prefix /toys/     keys that start so
  kvd clear --all --stale            everything stays servable as stale while one worker each reloads it

At once and whole, however many items it is. `flush` is no command here: to make writes durable use `kvd sync`."
)]
pub(super) struct Args {
    /// The cache
    cache: Option<String>,
    /// Items with this tag
    #[arg(long, value_name = "TAG")]
    tag: Option<OsString>,
    /// Items whose keys start so
    #[arg(long, value_name = "PREFIX", requires = "cache", conflicts_with = "tag")]
    prefix: Option<OsString>,
    /// Everything in all caches
    #[arg(long, conflicts_with_all = ["cache", "tag", "prefix"])]
    all: bool,
    /// Keep items servable as stale until they are reloaded or their own life ends
    #[arg(long)]
    stale: bool,
    /// Do not ask
    #[arg(long, short)]
    yes: bool,
}

pub(super) fn run(common: &Common, args: &Args) -> Outcome {
    let client = common.client()?;
    let effect = if args.stale { Effect::Stale } else { Effect::Gone };
    let version = match (&args.cache, &args.tag, &args.prefix) {
        (Some(cache), Some(tag), _) => client.cache(cache).clear_tag(tag.as_bytes(), effect)?,
        (Some(cache), None, Some(prefix)) => client.cache(cache).clear_prefix(prefix.as_bytes(), effect)?,
        (Some(cache), None, None) => client.cache(cache).clear(effect)?,
        (None, Some(tag), _) => client.clear_tag(tag.as_bytes(), effect)?,
        (None, None, _) if args.all => {
            let what = if args.stale { "stale" } else { "gone" };
            confirm(&format!("Make everything in all caches {what}?"), args.yes)?;
            client.clear_all(effect)?
        }
        (None, None, _) => return Err(Failure::Usage("say what to clear: CACHE, --tag or --all".to_owned())),
    };
    say_version(common, version).map(|()| Exit::Done)
}
