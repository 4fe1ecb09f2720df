//! `kvd restore`: fills a store from a backup, while its daemon is down.

use std::fs::File;
use std::io::BufReader;
use std::path::PathBuf;

use kvd::clock::Clock;
use kvd::lock::{FileLock, lock_path};
use kvd::store::{RestoreError, restore};
use serde_json::json;

use super::backup::read_whole;
use super::common::{Common, say};
use super::failure::{Exit, Failure, Outcome};
use super::offline::{Place, refused};
use super::progress::Progress;

/// Fill a store from a backup, while its daemon is down
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  kvd restore nightly.kvd --dir /srv/kvd                into a directory without a store
  kvd restore nightly.kvd --dir /srv/kvd --replace      the old store is kept beside it under another name
  kvd restore nightly.kvd --config /etc/kvd/kvd.toml    where that configuration says

The backup is read to its end before anything is touched, and what is filled gets the store's name when it is whole. It
needs the daemon to be down and takes its lock. Items keep the ends of their lives. To the daemon it looks as if it had
been down since the backup was made: at its start it does to each cache what its `recover` says (stale, unless it holds
durable writes or is configured to keep or clear).")]
pub(super) struct Args {
    /// The backup
    file: PathBuf,
    #[command(flatten)]
    place: Place,
    /// Set aside a store that is there
    #[arg(long)]
    replace: bool,
}

pub(super) fn run(common: &Common, args: &Args) -> Outcome {
    let summary = read_whole(&args.file)?;
    let config = args.place.load()?;
    let mut builder = std::fs::DirBuilder::new();
    std::os::unix::fs::DirBuilderExt::mode(builder.recursive(true), 0o700);
    builder.create(&config.dir).map_err(|error| refused(format!("{}: {error}", config.dir.display())))?;
    let clock = Clock::system();
    let _lock = FileLock::take(&lock_path(&config.dir), &clock).map_err(refused)?;
    let what = args.file.display().to_string();
    let file = File::open(&args.file).map_err(|source| Failure::Input { what: what.clone(), source })?;
    let total = file.metadata().map_or(0, |meta| meta.len());
    let progress = Progress::towards("restoring", total);
    let input = BufReader::with_capacity(1 << 20, file);
    let options = config.store_options();
    let restored = restore(&options, &clock, input, args.replace, |done| progress.at(done, total))
        .map_err(|error| failure(&what, &error))?;
    drop(progress);
    let (items, expired, in_memory) = (restored.counts.items, restored.expired, restored.in_memory);
    if common.json {
        say(json!({
            "sequence": restored.sequence, "caches": summary.caches, "items": items - expired - in_memory,
            "expired": expired, "in_memory": in_memory, "dir": config.dir, "set_aside": restored.aside,
        }))?;
        return Ok(Exit::Done);
    }
    let kept = items - expired - in_memory;
    let made = std::time::SystemTime::UNIX_EPOCH
        + std::time::Duration::from_millis(u64::try_from(summary.made_ms).unwrap_or(0));
    let (dir, sequence) = (config.dir.display(), restored.sequence);
    let made = humantime::format_rfc3339_seconds(made);
    say(format_args!(
        "{kept} items in {dir}, as of sequence {sequence} at {made}; {expired} have expired since"
    ))?;
    if in_memory > 0 {
        eprintln!(
            "kvd: {in_memory} items of caches in memory only are left: `kvd load {what} --format backup` puts them into a daemon"
        );
    }
    if let Some(aside) = &restored.aside {
        eprintln!("kvd: the store that was there is {}", aside.display());
    }
    Ok(Exit::Done)
}

fn failure(what: &str, error: &RestoreError) -> Failure {
    match error {
        RestoreError::Archive(error) => {
            Failure::Daemon { message: format!("{what}: {error}"), exit: Exit::Daemon }
        }
        RestoreError::Occupied(_) => Failure::Daemon { message: error.to_string(), exit: Exit::Refused },
        RestoreError::Disk(_) | RestoreError::Store(_) => refused(error),
    }
}
