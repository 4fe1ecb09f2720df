//! `kvd check`: is what is stored what was written? Of a daemon by samples, of a stopped store or a backup all of it.

use std::path::PathBuf;

use kvd::clock::Clock;
use kvd::lock::{FileLock, lock_path};
use kvd::store::verify;
use serde_json::json;

use super::backup::read_whole;
use super::common::{Common, say};
use super::failure::{Exit, Failure, Outcome};
use super::offline::{Place, must_be_a_store, refused};
use super::progress::Progress;

/// Look whether a daemon's data, a stopped store, or a backup is sound
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  kvd check                                 the daemon: checksums of a sample, memory against the store
  kvd check --samples 8192                  a larger sample of each cache
  kvd check --offline --dir /srv/kvd        while no daemon serves it: every page, record and checksum
  kvd check nightly.kvd                     a backup, to its end

Nothing is changed. Exit code 0: all that was looked at is sound; 70: something is wrong, and each line says what.")]
pub(super) struct Args {
    /// A backup
    #[arg(conflicts_with = "offline")]
    file: Option<PathBuf>,
    /// Look at so many items of each cache of a daemon, at most 8192
    #[arg(long, value_name = "ITEMS", default_value = "1000")]
    samples: u32,
    /// The daemon is down: look at all of its store, under its lock
    #[arg(long)]
    offline: bool,
    #[command(flatten)]
    place: Place,
}

pub(super) fn run(common: &Common, args: &Args) -> Outcome {
    if let Some(file) = &args.file {
        let summary = read_whole(file)?;
        let (counts, sequence) = (summary.counts, summary.sequence);
        if common.json {
            say(json!({
                "sound": true, "sequence": sequence, "caches": summary.caches, "items": counts.items, "bytes": counts.bytes,
            }))?;
        } else {
            let (file, items, caches) = (file.display(), counts.items, counts.caches);
            say(format_args!("{file}: sound; {caches} caches, {items} items, as of sequence {sequence}"))?;
        }
        return Ok(Exit::Done);
    }
    if args.offline { offline(common, args) } else { online(common, args) }
}

fn online(common: &Common, args: &Args) -> Outcome {
    if args.place.dir.is_some() || args.place.config.is_some() {
        return Err(Failure::Usage(
            "--dir and --config go with --offline; a daemon is found by --socket".to_owned(),
        ));
    }
    let found = common.client()?.admin().check(args.samples)?;
    let is_sound = found.wrong.is_empty();
    if common.json {
        say(json!({
            "sound": is_sound, "sequence": found.sequence, "items": found.items, "compared": found.compared,
            "wrong": found.wrong,
        }))?;
    } else if is_sound {
        let (items, compared, sequence) = (found.items, found.compared, found.sequence);
        say(format_args!(
            "sound: checksums of {items} items, {compared} of them held against memory, at sequence {sequence}"
        ))?;
    }
    verdict(&found.wrong)
}

fn offline(common: &Common, args: &Args) -> Outcome {
    let config = args.place.load()?;
    must_be_a_store(&config.dir)?;
    let _lock = FileLock::take(&lock_path(&config.dir), &Clock::system()).map_err(|error| {
        refused(format!("{error}; or leave --offline away: the daemon is checked while it serves"))
    })?;
    let progress = Progress::towards("checking", 0);
    let found = verify(&config.store_options(), |done, total| progress.at(done, total)).map_err(refused)?;
    drop(progress);
    let is_sound = found.wrong.is_empty();
    let (items, journal, pending, sequence) =
        (found.items, found.journal_records, found.pending_records, found.sequence);
    if common.json {
        say(json!({
            "sound": is_sound, "sequence": sequence, "items": items, "bytes": found.bytes, "journal_records": journal,
            "pending_records": pending, "wrong": found.wrong,
        }))?;
    } else if is_sound {
        say(format_args!(
            "sound: {items} items, {journal} journal and {pending} pending records, at sequence {sequence}"
        ))?;
    }
    verdict(&found.wrong)
}

fn verdict(wrong: &[String]) -> Outcome {
    wrong.iter().for_each(|what| eprintln!("kvd: {what}"));
    Ok(if wrong.is_empty() { Exit::Done } else { Exit::Daemon })
}
