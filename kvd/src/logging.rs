//! What the daemon says about itself, where to, and how much of it: the filter can be changed while it runs.
//!
//! `cli::serve` starts it once; whoever reloads the configuration calls [`set_filter`]. Values of items are never logged, and
//! keys only where a client's request is at fault.

use std::io::IsTerminal as _;
use std::sync::OnceLock;

use serde::{Deserialize, Serialize};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::reload::{self, Handle};
use tracing_subscriber::util::{SubscriberInitExt as _, TryInitError};
use tracing_subscriber::{EnvFilter, Layer, Registry};

/// How lines are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people: a line an event on standard error, coloured on a terminal.
    #[default]
    Pretty,
    /// For collectors: a JSON object an event on standard error.
    Json,
    /// To systemd's journal, with the fields as fields.
    Journald,
}

/// The words of the configuration.
pub(crate) const FORMATS: [(&str, LogFormat); 3] =
    [("pretty", LogFormat::Pretty), ("json", LogFormat::Json), ("journald", LogFormat::Journald)];

/// Why nothing can be logged as asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LogError {
    /// The filter is none.
    #[error("log = {filter:?}: {problem}; write info, debug or kvd::server=debug,info")]
    Filter {
        /// What was given.
        filter: String,
        /// What is wrong with it.
        problem: String,
    },
    /// There is no journal.
    #[error("log_format = \"journald\": {0}; use pretty or json where systemd's journal is not there")]
    Journal(std::io::Error),
    /// The process has a log already, or lost it.
    #[error("the log is not ours to change: {0}")]
    Taken(String),
}

static FILTER: OnceLock<Handle<EnvFilter, Registry>> = OnceLock::new();

fn parse(filter: &str) -> Result<EnvFilter, LogError> {
    EnvFilter::try_new(filter)
        .map_err(|error| LogError::Filter { filter: filter.to_owned(), problem: error.to_string() })
}

/// Whether [`set_filter`] would take it.
///
/// # Errors
/// What is wrong with it.
pub fn check_filter(filter: &str) -> Result<(), LogError> {
    parse(filter).map(drop)
}

/// From now on this process logs what passes `filter`. Once a process.
///
/// # Errors
/// See [`LogError`]; nothing is logged then.
pub fn start(format: LogFormat, filter: &str) -> Result<(), LogError> {
    let (filter, handle) = reload::Layer::new(parse(filter)?);
    let lines = || tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let output: Box<dyn Layer<_> + Send + Sync> = match format {
        LogFormat::Pretty => lines().with_ansi(std::io::stderr().is_terminal()).with_target(false).boxed(),
        LogFormat::Json => lines().json().flatten_event(true).boxed(),
        LogFormat::Journald => {
            let journal = tracing_journald::layer().map_err(LogError::Journal)?;
            journal.with_syslog_identifier("kvd".to_owned()).boxed()
        }
    };
    let taken = |error: TryInitError| LogError::Taken(error.to_string());
    tracing_subscriber::registry().with(filter).with(output).try_init().map_err(taken)?;
    let _ = FILTER.set(handle);
    Ok(())
}

/// Logs from now on what passes `filter`; the old one stays when this one is none.
///
/// ```
/// use kvd::logging::{LogFormat, set_filter, start};
/// start(LogFormat::Pretty, "info")?;
/// set_filter("kvd::server=debug,info")?;
/// assert!(set_filter("kvd::server=loud").is_err());
/// # Ok::<(), kvd::logging::LogError>(())
/// ```
///
/// # Errors
/// See [`LogError`].
pub fn set_filter(filter: &str) -> Result<(), LogError> {
    let parsed = parse(filter)?;
    let handle = FILTER.get().ok_or_else(|| LogError::Taken("it was not started by kvd".to_owned()))?;
    handle.reload(parsed).map_err(|error| LogError::Taken(error.to_string()))
}
