//! What commands share: where the daemon is, how answers are printed, how keys and values are given.

use std::ffi::OsString;
use std::io::{IsTerminal as _, Read as _, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use kv_client::blocking::{Cache, Client};
use kv_client::{Builder, OnOutage};

use super::failure::Failure;
use super::show;

/// Flags of every command.
#[derive(Debug, clap::Args)]
pub(super) struct Common {
    /// The daemon's socket. Else KVD_SOCKET, $XDG_RUNTIME_DIR/kvd/kvd.sock, /run/kvd/kvd.sock
    #[arg(long, global = true, value_name = "PATH")]
    pub(super) socket: Option<PathBuf>,
    /// Answer in JSON, for scripts
    #[arg(long, global = true)]
    pub(super) json: bool,
    /// Wait no longer than this for the daemon
    #[arg(long, global = true, value_name = "DURATION", default_value = "10s", value_parser = kvd::units::parse_duration)]
    pub(super) timeout: Duration,
}

impl Common {
    /// Connects to the daemon.
    pub(super) fn client(&self) -> Result<Client, Failure> {
        // One read is not worth a segment.
        Ok(self.builder("kvd command line").shared_memory(false).build()?)
    }

    /// A client that asks where, and waits as long as, it was told.
    pub(super) fn builder(&self, name: &str) -> Builder<Client> {
        let builder = Client::builder()
            .name(name)
            .op_timeout(self.timeout)
            // Whoever asks wants to know how a busy daemon does, not that it is busy.
            .connect_timeout(self.timeout)
            .on_outage(OnOutage::Error);
        match &self.socket {
            Some(socket) => builder.socket(socket),
            None => builder,
        }
    }

    /// Connects, and names the cache.
    pub(super) fn cache(&self, name: &str) -> Result<Cache, Failure> {
        Ok(self.client()?.cache(name))
    }
}

/// One item's place.
#[derive(Debug, clap::Args)]
pub(super) struct Place {
    /// The cache
    pub(super) cache: String,
    /// The key
    pub(super) key: OsString,
    /// KEY is written as `kvd scan` shows it: \n, \\, \xff
    #[arg(long)]
    pub(super) escaped: bool,
}

impl Place {
    /// The key's bytes.
    pub(super) fn key(&self) -> Result<Vec<u8>, Failure> {
        bytes_of(&self.key, self.escaped)
    }
}

/// The bytes that an argument stands for.
pub(super) fn bytes_of(argument: &OsString, escaped: bool) -> Result<Vec<u8>, Failure> {
    if escaped {
        show::unescape(argument.as_bytes()).map_err(Failure::Usage)
    } else {
        Ok(argument.as_bytes().to_vec())
    }
}

/// Where a value comes from.
#[derive(Debug, clap::Args)]
pub(super) struct ValueSource {
    /// The value; - reads it from standard input. One that begins with a hyphen goes behind --
    // Without `allow_hyphen_values`: it would take a mistyped flag for the value.
    #[arg(required_unless_present = "file")]
    pub(super) value: Option<OsString>,
    /// Read the value from this file
    #[arg(long, value_name = "FILE", conflicts_with = "value")]
    pub(super) file: Option<PathBuf>,
}

impl ValueSource {
    /// The value's bytes, at most what any daemon takes.
    pub(super) fn read(&self) -> Result<Vec<u8>, Failure> {
        match (&self.file, &self.value) {
            (Some(path), _) => {
                let what = path.display().to_string();
                let file = std::fs::File::open(path)
                    .map_err(|source| Failure::Input { what: what.clone(), source })?;
                read_bounded(file, what)
            }
            (None, Some(value)) if value == "-" => {
                read_bounded(std::io::stdin().lock(), "standard input".to_owned())
            }
            (None, Some(value)) => Ok(value.as_bytes().to_vec()),
            (None, None) => Err(Failure::Usage("a value is missing: give VALUE, - or --file".to_owned())),
        }
    }
}

fn read_bounded(from: impl std::io::Read, what: String) -> Result<Vec<u8>, Failure> {
    let limit = kv_proto::limits::VALUE_BYTES_MAX;
    let mut value = Vec::new();
    // One byte more than may be, so that too much is noticed without reading all of it.
    match from.take(limit as u64 + 1).read_to_end(&mut value) {
        Ok(_) if value.len() > limit => {
            Err(Failure::Usage(format!("{what} has more than {limit} bytes, the limit of any value")))
        }
        Ok(_) => Ok(value),
        Err(source) => Err(Failure::Input { what, source }),
    }
}

/// Set once INT or TERM has come: a command that goes on until it is stopped looks at it and ends as usual.
pub(super) fn on_interrupt() -> Result<Arc<AtomicBool>, Failure> {
    let is_over = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(&is_over))
            .map_err(|source| Failure::Input { what: "signals cannot be handled".to_owned(), source })?;
    }
    Ok(is_over)
}

/// Prints one line.
pub(super) fn say(line: impl std::fmt::Display) -> Result<(), Failure> {
    writeln!(std::io::stdout().lock(), "{line}").map_err(Failure::Output)
}

/// Prints bytes as they are.
pub(super) fn say_raw(bytes: &[u8]) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    out.write_all(bytes).and_then(|()| out.flush()).map_err(Failure::Output)
}

/// Asks before what takes away something whole. A script that did not say --yes is refused: it may have meant less. `look` shows
/// beforehand what there is.
pub(super) fn confirm(what: &str, look: &str, is_answered: bool) -> Result<(), Failure> {
    if is_answered {
        return Ok(());
    }
    if !std::io::stdin().is_terminal() {
        return Err(Failure::Usage(format!(
            "{what}: nobody is there to be asked; say --yes, or look first with {look}"
        )));
    }
    eprint!("{what}? [y/N] ");
    let mut answer = String::new();
    std::io::stdin()
        .read_line(&mut answer)
        .map_err(|source| Failure::Input { what: "standard input".to_owned(), source })?;
    if matches!(answer.trim(), "y" | "Y" | "yes") {
        Ok(())
    } else {
        Err(Failure::Usage("nothing was done".to_owned()))
    }
}
