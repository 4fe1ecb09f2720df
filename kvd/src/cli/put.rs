//! `kvd put`: writes an item.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt as _;
use std::time::Duration;

use kv_client::{PutOptions, PutOutcome};
use kvd::units::parse_duration;
use serde_json::json;

use super::common::{Common, Place, ValueSource, say};
use super::failure::{Exit, Outcome};

/// Put an item
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  kvd put product 42 rocket --ttl 5m --stale-for 1m --tag sku:42
  kvd put page / --file index.html --ttl 90s
  render | kvd put page / -
  kvd put job nightly \"$(hostname)\" --if-absent --ttl 1h     exit code 3 when somebody has it")]
pub(super) struct Args {
    #[command(flatten)]
    place: Place,
    #[command(flatten)]
    source: ValueSource,
    /// How long it lives. Else the cache's default
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    ttl: Option<Duration>,
    /// How long after its expiry it may be served as stale
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    stale_for: Option<Duration>,
    /// A tag to clear it by; up to 8
    #[arg(long, value_name = "TAG")]
    tag: Vec<OsString>,
    /// Only if there is no such item
    #[arg(long, conflicts_with = "if_version")]
    if_absent: bool,
    /// Only if the item has this version
    #[arg(long, value_name = "VERSION")]
    if_version: Option<u64>,
    /// Answer only when it survives power loss
    #[arg(long)]
    durable: bool,
}

impl Args {
    fn options(&self) -> PutOptions {
        let mut options = PutOptions::new();
        if let Some(ttl) = self.ttl {
            options = options.ttl(ttl);
        }
        if let Some(stale_for) = self.stale_for {
            options = options.stale_for(stale_for);
        }
        if let Some(version) = self.if_version {
            options = options.if_version(version);
        }
        if self.if_absent {
            options = options.if_absent();
        }
        if self.durable {
            options = options.durable();
        }
        self.tag.iter().fold(options, |options, tag| options.tag(tag.as_bytes()))
    }
}

pub(super) fn run(common: &Common, args: &Args) -> Outcome {
    // The value first: a file that is not there needs no daemon.
    let (value, key) = (args.source.read()?, args.place.key()?);
    let cache = common.cache(&args.place.cache)?;
    match cache.put_with(&key, &value, args.options())? {
        PutOutcome::Written { version } => {
            say_version(common, version)?;
            Ok(Exit::Done)
        }
        PutOutcome::Refused { version } => {
            if common.json {
                say(json!({ "refused": true, "version": version }))?;
            }
            match version {
                Some(version) => eprintln!("kvd: not put: there is an item of version {version}"),
                None => eprintln!("kvd: not put: there is no such item"),
            }
            Ok(Exit::Condition)
        }
    }
}

/// What a write answers.
pub(super) fn say_version(common: &Common, version: u64) -> Result<(), super::Failure> {
    if common.json { say(json!({ "version": version })) } else { say(format_args!("version {version}")) }
}
