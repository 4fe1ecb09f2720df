//! `kvd load`: items from lines of JSON, from a text dump of Berkeley DB, or from a backup.
//!
//! A line is checked whole before anything of it is put. What is put goes in batches, each one commit; a batch that is
//! refused is halved until the items in it that are at fault stand alone.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Read as _};
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use kv_client::blocking::Client;
use kv_client::{ErrorKind, PutOptions, Ttl};
use kv_proto::limits::VALUE_BYTES_MAX;
use kvd::clock::Clock;
use kvd::store::{ArchiveError, ArchiveReader, ArchiveRecord};
use serde_json::json;

use super::common::{Common, say};
use super::db_dump::{Found, Reader};
use super::failure::{Exit, Failure, Outcome};
use super::lines::{self, Item};
use super::offline::Offline;
use super::progress::Progress;

/// Items a commit, at most: each may be two writes.
const BATCH_ITEMS_MAX: usize = 256;
/// Bytes of keys and values a commit, about.
const BATCH_BYTES_MAX: usize = 1 << 20;
/// The longest line: JSON may need six characters for a byte.
const LINE_BYTES_MAX: u64 = 6 * VALUE_BYTES_MAX as u64 + (64 << 10);

/// What a file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
#[value(rename_all = "snake_case")]
enum Format {
    /// Lines of JSON, by `kvd dump`
    Json,
    /// Berkeley DB's text dump, by db_dump or db5.3_dump
    DbDump,
    /// A backup, by `kvd backup`
    Backup,
}

/// Put the items of a dump
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  kvd load all.jsonl                                     what `kvd dump` wrote; what is there already stays
  kvd load all.jsonl --replace                           what is there already is overwritten
  kvd dump product | ssh other kvd load
  db5.3_dump -p cart.db | kvd load --format db_dump --cache cart --ttl 1d
  kvd load nightly.kvd --format backup                   into a daemon that serves
  kvd load all.jsonl --offline --dir /srv/kvd            while no daemon serves that directory

Items keep what is left of their lives; what has ended meanwhile is left out. A bad line is named with its number and
the reason, nothing of it is put, and the load ends there with what came before it put; with --skip-bad it goes on.
After an interruption run it again: what is there already is passed over.")]
pub(super) struct Args {
    /// The file; standard input, when none is named
    file: Option<PathBuf>,
    /// What the file is
    #[arg(long, value_enum, default_value = "json")]
    format: Format,
    /// Put all into this cache, whatever the lines say
    #[arg(long, value_name = "CACHE", required_if_eq("format", "db_dump"))]
    cache: Option<String>,
    /// The life of items that say nothing about it; of db_dump all. Else they live for ever
    #[arg(long, value_name = "DURATION", value_parser = kvd::units::parse_duration)]
    ttl: Option<Duration>,
    /// Overwrite what is there
    #[arg(long, conflicts_with = "if_absent")]
    replace: bool,
    /// Leave what is there as it is, which is what happens anyway
    #[arg(long)]
    if_absent: bool,
    /// Go on after lines that cannot be used; they are named on standard error
    #[arg(long)]
    skip_bad: bool,
    #[command(flatten)]
    offline: Offline,
}

/// What became of the lines.
#[derive(Debug, Default)]
struct Counts {
    put: u64,
    there: u64,
    expired: u64,
    bad: u64,
}

/// What is to be put, and which line said so.
struct Pending {
    line: u64,
    item: Item,
}

struct Loader<'a> {
    args: &'a Args,
    client: &'a Client,
    now: SystemTime,
    pending: Vec<Pending>,
    bytes: usize,
    counts: Counts,
    progress: Progress,
}

pub(super) fn run(common: &Common, args: &Args) -> Outcome {
    let input: Box<dyn BufRead> = match &args.file {
        Some(path) => {
            let what = path.display().to_string();
            let file = File::open(path).map_err(|source| Failure::Input { what, source })?;
            Box::new(BufReader::with_capacity(1 << 20, file))
        }
        None => Box::new(std::io::stdin().lock()),
    };
    let way = args.offline.open(common)?;
    let done = load(common, args, &way.client(), input);
    way.close(done)
}

fn load(common: &Common, args: &Args, client: &Client, input: Box<dyn BufRead>) -> Outcome {
    let mut loader = Loader {
        args,
        client,
        now: Clock::system().wall_time(),
        pending: Vec::new(),
        bytes: 0,
        counts: Counts::default(),
        progress: Progress::endless("loading"),
    };
    let read = match args.format {
        Format::Json => loader.json(input),
        Format::DbDump => loader.db_dump(input),
        Format::Backup => loader.backup(input),
    };
    // What stands before a bad line is put all the same: then it is plain where to go on.
    let done = loader.put_pending().and(read);
    let Loader { counts, progress, .. } = loader;
    drop(progress);
    let Counts { put, there, expired, bad } = counts;
    if common.json {
        say(json!({ "put": put, "there_already": there, "expired": expired, "bad": bad }))?;
    } else {
        say(format_args!("{put} items put, {there} were there already, {expired} expired, {bad} bad"))?;
    }
    done.map(|()| if bad > 0 { Exit::Condition } else { Exit::Done })
}

impl Loader<'_> {
    fn json(&mut self, input: impl BufRead) -> Result<(), Failure> {
        let what = self.what();
        for_each_line(input, &what, |number, line| {
            if number == 1 {
                return lines::check_header(line).map_err(|why| Failure::Usage(format!("{what}: {why}")));
            }
            if line.is_empty() {
                return Ok(());
            }
            match lines::from_line(line) {
                Ok(item) => self.take(number, item),
                Err(why) => self.bad(number, &why),
            }
        })
        .and_then(|lines| match lines {
            0 => Err(Failure::Usage(format!("{what} is empty: a dump begins with {{\"kvd_dump\":1}}"))),
            _some => Ok(()),
        })
    }

    fn db_dump(&mut self, input: impl BufRead) -> Result<(), Failure> {
        let what = self.what();
        let mut reader = Reader::new();
        let expires = self.args.ttl.map(|ttl| self.now + ttl);
        let cache = self.args.cache.clone().unwrap_or_default();
        for_each_line(input, &what, |number, line| match reader.take(line) {
            Ok(Found::Nothing) => Ok(()),
            Ok(Found::Pair(key, value)) => {
                let (stale_for, load_cost) = (Duration::ZERO, Duration::ZERO);
                let cache = cache.clone();
                let item =
                    Item { cache, key, value, expires, stale_for, load_cost, stale: false, tags: Vec::new() };
                self.take(number, item)
            }
            Err((why, true)) => Err(Failure::Usage(format!("{what}, line {number}: {why}"))),
            Err((why, false)) => self.bad(number, &why),
        })?;
        reader.end().map_err(|why| Failure::Usage(format!("{what}: {why}")))
    }

    /// Items count as lines.
    fn backup(&mut self, input: impl BufRead) -> Result<(), Failure> {
        let what = self.what();
        let failed = |why: ArchiveError| Failure::Usage(format!("{what}: {why}"));
        let mut reader = ArchiveReader::new(input).map_err(&failed)?;
        let mut caches = BTreeMap::new();
        let at = |ms: i64| SystemTime::UNIX_EPOCH + Duration::from_millis(u64::try_from(ms).unwrap_or(0));
        for number in 1.. {
            let item = match reader.next().map_err(&failed)? {
                None => break,
                Some(ArchiveRecord::Header { .. } | ArchiveRecord::End { .. }) => continue,
                Some(ArchiveRecord::Cache(cache)) => {
                    caches.insert(cache.id, cache.name.to_owned());
                    continue;
                }
                Some(ArchiveRecord::Item(item)) => item,
            };
            let item = Item {
                cache: caches.get(&item.cache).cloned().unwrap_or_default(),
                key: item.key.to_vec(),
                value: item.value.to_vec(),
                expires: item.expires_ms.map(at),
                stale_for: Duration::from_millis(item.stale_for_ms),
                load_cost: Duration::from_millis(u64::from(item.load_cost_ms)),
                stale: item.stale,
                tags: item.tags.iter().map(|tag| tag.to_vec()).collect(),
            };
            self.take(number, item)?;
        }
        Ok(())
    }

    fn what(&self) -> String {
        self.args.file.as_ref().map_or("standard input".to_owned(), |path| path.display().to_string())
    }

    fn take(&mut self, line: u64, mut item: Item) -> Result<(), Failure> {
        if let Some(cache) = &self.args.cache {
            item.cache.clone_from(cache);
        }
        if item.expires.is_none() {
            item.expires = self.args.ttl.map(|ttl| self.now + ttl);
        }
        if item.expires.is_some_and(|at| at + item.stale_for <= self.now) {
            self.counts.expired += 1;
            return Ok(());
        }
        let bytes = item.key.len() + item.value.len();
        if !self.pending.is_empty() && self.bytes + bytes > BATCH_BYTES_MAX {
            self.put_pending()?;
        }
        self.bytes += bytes;
        self.pending.push(Pending { line, item });
        if self.pending.len() >= BATCH_ITEMS_MAX { self.put_pending() } else { Ok(()) }
    }

    fn put_pending(&mut self) -> Result<(), Failure> {
        let pending = std::mem::take(&mut self.pending);
        self.bytes = 0;
        // What is left of a life is counted from when it is put.
        self.now = Clock::system().wall_time();
        let done = self.put_all(&pending);
        let Counts { put, there, .. } = self.counts;
        self.progress.say(format!("{put} items put, {there} were there already"));
        done
    }

    /// Puts all of these in one commit, or, where that is refused, each half by itself.
    fn put_all(&mut self, pending: &[Pending]) -> Result<(), Failure> {
        let Some(last) = pending.last() else { return Ok(()) };
        let mut batch = self.client.batch();
        for Pending { item, .. } in pending {
            batch = self.add(batch, item);
        }
        let error = match batch.commit() {
            Ok(_committed) => {
                self.counts.put += pending.len() as u64;
                return Ok(());
            }
            Err(error) => error,
        };
        let of_items = match error.kind() {
            ErrorKind::Conflict | ErrorKind::TooLarge | ErrorKind::Invalid => true,
            _other => false,
        };
        match (of_items, pending) {
            (true, [_alone]) if error.kind() == ErrorKind::Conflict => self.counts.there += 1,
            (true, [alone]) => return self.bad(alone.line, &error.to_string()),
            (true, many) => {
                let (first, second) = many.split_at(many.len() / 2);
                self.put_all(first)?;
                return self.put_all(second);
            }
            (false, _) => {
                eprintln!("kvd: stopped before line {} was put; run it again to go on", last.line);
                return Err(error.into());
            }
        }
        Ok(())
    }

    fn add(&self, batch: kv_client::Batch<Client>, item: &Item) -> kv_client::Batch<Client> {
        let mut options = PutOptions::new().load_cost(item.load_cost).stale_for(item.stale_for);
        options = item.tags.iter().fold(options, |options, tag| options.tag(tag));
        if !self.args.replace {
            options = options.if_absent();
        }
        match item.expires.map(|at| at.duration_since(self.now)) {
            // A cache has a life of its own for what says none.
            None => options = options.ttl(Duration::from_millis(kv_proto::limits::TTL_MS_MAX)),
            Some(Ok(left)) => options = options.ttl(left.max(Duration::from_millis(1))),
            // It is past its life already: what is left of its stale life begins at once.
            Some(Err(past)) => {
                let left = item.stale_for.saturating_sub(past.duration());
                options = options.ttl(Duration::from_millis(1)).stale_for(left);
            }
        }
        let mut batch = batch.put_with(&item.cache, &item.key, &item.value, &options);
        if item.expires.is_none() {
            batch = batch.expire(&item.cache, &item.key, Ttl::Never);
        }
        if item.stale { batch.expire(&item.cache, &item.key, Ttl::Stale) } else { batch }
    }

    fn bad(&mut self, line: u64, why: &str) -> Result<(), Failure> {
        let message = format!("{}, line {line}: {why}", self.what());
        self.counts.bad += 1;
        if !self.args.skip_bad {
            return Err(Failure::Usage(format!("{message}; --skip-bad leaves such lines out")));
        }
        eprintln!("kvd: {message}");
        Ok(())
    }
}

/// Gives the lines of a file and their numbers; gives how many there were.
fn for_each_line(
    mut input: impl BufRead,
    what: &str,
    mut take: impl FnMut(u64, &[u8]) -> Result<(), Failure>,
) -> Result<u64, Failure> {
    let mut line = Vec::new();
    for number in 1.. {
        line.clear();
        let read = input
            .by_ref()
            .take(LINE_BYTES_MAX + 1)
            .read_until(b'\n', &mut line)
            .map_err(|source| Failure::Input { what: what.to_owned(), source })?;
        if read == 0 {
            return Ok(number - 1);
        }
        if line.len() as u64 > LINE_BYTES_MAX {
            return Err(Failure::Usage(format!(
                "{what}, line {number}: more than {LINE_BYTES_MAX} bytes, which no item takes"
            )));
        }
        if line.last() == Some(&b'\n') {
            line.pop();
        }
        take(number, &line)?;
    }
    unreachable!("a file has fewer lines than there are numbers")
}
