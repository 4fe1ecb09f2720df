//! `kvd dump`: items as lines of JSON, for other tools and for `kvd load`.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use kv_client::blocking::Client;
use kvd::clock::Clock;
use serde_json::json;

use super::common::Common;
use super::failure::{Exit, Failure, Outcome};
use super::lines;
use super::offline::Offline;
use super::progress::Progress;

/// Write the items of caches as lines of JSON
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  kvd dump product                         to standard output
  kvd dump --output all.jsonl              all caches, into a file
  kvd dump session | jq -r .key
  kvd dump --offline --dir /srv/kvd        while no daemon serves that directory

One line says {\"kvd_dump\":1}, then each item is a line: cache, key, value, version, expires, stale_for_ms, tags.
Bytes that are not UTF-8 stand as base64 under key_base64, value_base64, tags_base64. Stale items are among them.

It is read page by page while all is served: each page is one state, the whole is not. For that, and for everything
a restored daemon needs, use `kvd backup`.")]
pub(super) struct Args {
    /// The caches; all, when none is named
    #[arg(value_name = "CACHE")]
    caches: Vec<String>,
    /// Write into this file, which is there only when it is whole
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
    #[command(flatten)]
    offline: Offline,
}

pub(super) fn run(common: &Common, args: &Args) -> Outcome {
    let way = args.offline.open(common)?;
    let done = dump(common, args, &way.client());
    way.close(done)
}

fn dump(common: &Common, args: &Args, client: &Client) -> Outcome {
    let caches = if args.caches.is_empty() {
        client.admin().caches()?.into_iter().map(|cache| cache.name).collect()
    } else {
        args.caches.clone()
    };
    let Some(path) = &args.output else {
        let mut out = BufWriter::new(std::io::stdout().lock());
        write_items(client, &caches, &mut out, &Failure::Output)?;
        out.flush().map_err(Failure::Output)?;
        return Ok(Exit::Done);
    };
    let items =
        whole_file(path, |out, failed| write_items(client, &caches, out, failed), |_path, items| Ok(items))?;
    if common.json {
        super::common::say(json!({ "items": items, "file": path }))?;
    } else {
        super::common::say(format_args!("{items} items in {}", path.display()))?;
    }
    Ok(Exit::Done)
}

fn write_items(
    client: &Client,
    caches: &[String],
    out: &mut dyn Write,
    failed: &dyn Fn(std::io::Error) -> Failure,
) -> Result<u64, Failure> {
    let progress = Progress::endless("dumping");
    let mut items = 0;
    writeln!(out, "{}", lines::header(Clock::system().wall_time())).map_err(failed)?;
    for cache in caches {
        let mut scan = client.cache(cache).scan("").stale().values();
        while let Some(page) = scan.next_page()? {
            for (key, entry) in &page.items {
                writeln!(out, "{}", lines::to_line(cache, key, entry)).map_err(failed)?;
            }
            items += page.items.len() as u64;
            progress.say(format!("{cache}, {items} items"));
        }
    }
    Ok(items)
}

/// Writes a file that gets its name only when it is whole, on stable storage, and `verify` has found nothing wrong with it.
pub(super) fn whole_file<T, V>(
    path: &Path,
    write: impl FnOnce(&mut BufWriter<File>, &dyn Fn(std::io::Error) -> Failure) -> Result<T, Failure>,
    verify: impl FnOnce(&Path, T) -> Result<V, Failure>,
) -> Result<V, Failure> {
    let failed = |source| Failure::Input { what: path.display().to_string(), source };
    let mut name = path.as_os_str().to_owned();
    name.push(".partial");
    let partial = PathBuf::from(name);
    let written = (|| {
        let mut options = std::fs::OpenOptions::new();
        options.write(true).create(true).truncate(true);
        // What is in caches is not for everybody.
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let mut out = BufWriter::with_capacity(1 << 20, options.open(&partial).map_err(failed)?);
        let done = write(&mut out, &failed)?;
        out.into_inner().map_err(|error| failed(error.into_error()))?.sync_all().map_err(failed)?;
        let done = verify(&partial, done)?;
        std::fs::rename(&partial, path).map_err(failed)?;
        let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
        File::open(dir).and_then(|dir| dir.sync_all()).map_err(failed)?;
        Ok(done)
    })();
    if written.is_err() {
        // Nobody could use it; it may never have been made.
        let _ = std::fs::remove_file(&partial);
    }
    written
}
