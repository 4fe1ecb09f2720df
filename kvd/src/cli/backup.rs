//! `kvd backup`: all caches on disk as of one moment, in a file, while everything goes on.
//!
//! The daemon sends and this process writes, so that the file is the caller's and the daemon needs no right to write anywhere.

use std::fs::File;
use std::io::{BufReader, Write as _};
use std::path::{Path, PathBuf};

use kvd::store::{ArchiveCounts, ArchiveReader, ArchiveRecord};
use kvd::units::show_bytes;
use serde_json::json;

use super::common::{Common, say};
use super::dump::whole_file;
use super::failure::{Exit, Failure, Outcome};
use super::progress::Progress;

/// Write a backup while the daemon serves
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  kvd backup /var/backups/kvd/nightly.kvd
  kvd backup nightly.kvd --json                 sequence, items and bytes, for scripts
  kvd check nightly.kvd                         is it whole?
  kvd restore nightly.kvd --dir /srv/kvd        while no daemon serves that directory

What is written is the state after one commit, whose sequence is in the file and printed: everything up to it, nothing
after it. The file gets its name only when it is on the disk and was read back whole; until then it is called
FILE.partial. Nobody waits for a backup, but while it runs the store cannot free what it reads.

Caches in memory only are left out. With --with-memory they are in the file too, each page as it is when its turn comes,
so not of that one moment; `kvd load FILE --format backup` puts them into a daemon.")]
pub(super) struct Args {
    /// The file
    file: PathBuf,
    /// With caches in memory only, which are not of one moment
    #[arg(long)]
    with_memory: bool,
}

/// What a backup says of itself.
pub(super) struct Summary {
    pub(super) sequence: u64,
    pub(super) made_ms: i64,
    pub(super) counts: ArchiveCounts,
    pub(super) caches: Vec<String>,
}

pub(super) fn run(common: &Common, args: &Args) -> Outcome {
    let client = common.client()?;
    let total = client.admin().caches()?.iter().map(|cache| cache.disk_bytes).sum();
    let mut backup = client.admin().backup(args.with_memory)?;
    let progress = Progress::towards("backup", total);
    let mut written = 0;
    let summary = whole_file(
        &args.file,
        |out, failed| {
            while let Some(part) = backup.next_part()? {
                out.write_all(&part).map_err(failed)?;
                written += part.len() as u64;
                progress.at(written, total);
            }
            Ok(())
        },
        |partial, ()| read_whole(partial),
    )?;
    drop(progress);
    let Summary { sequence, counts, .. } = &summary;
    let ArchiveCounts { caches, items, bytes } = counts;
    if common.json {
        say(json!({
            "file": args.file, "sequence": sequence, "caches": summary.caches, "items": items, "bytes": bytes,
            "file_bytes": written,
        }))?;
    } else {
        let (file, written) = (args.file.display(), show_bytes(written));
        say(format_args!(
            "{file}: {caches} caches, {items} items, {written}, as of sequence {sequence}; read back whole"
        ))?;
    }
    Ok(Exit::Done)
}

/// Reads a backup to its end.
pub(super) fn read_whole(path: &Path) -> Result<Summary, Failure> {
    let failed =
        |why: String| Failure::Daemon { message: format!("{}: {why}", path.display()), exit: Exit::Daemon };
    let file =
        File::open(path).map_err(|source| Failure::Input { what: path.display().to_string(), source })?;
    let total = file.metadata().map_or(0, |meta| meta.len());
    let mut reader = ArchiveReader::new(BufReader::with_capacity(1 << 20, file))
        .map_err(|error| failed(error.to_string()))?;
    let mut summary =
        Summary { sequence: 0, made_ms: 0, counts: ArchiveCounts::default(), caches: Vec::new() };
    let progress = Progress::towards("reading", total);
    loop {
        match reader.next().map_err(|error| failed(error.to_string()))? {
            None => break,
            Some(ArchiveRecord::Header { sequence, wall_ms, .. }) => {
                (summary.sequence, summary.made_ms) = (sequence, wall_ms);
            }
            Some(ArchiveRecord::Cache(cache)) => summary.caches.push(cache.name.to_owned()),
            Some(ArchiveRecord::Item(_) | ArchiveRecord::End { .. }) => {}
        }
        progress.at(reader.position(), total);
    }
    summary.counts = reader.counts;
    Ok(summary)
}
