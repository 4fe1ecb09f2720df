//! How a command ends: its exit code, and the one line that says why.

use std::io::ErrorKind as IoKind;
use std::process::ExitCode;

use kv_client::{Attempt, Error, ErrorKind};

/// The documented exit codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Exit {
    Done = 0,
    NotFound = 1,
    Usage = 2,
    Condition = 3,
    Refused = 4,
    Unreachable = 69,
    Daemon = 70,
    Start = 78,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> ExitCode {
        ExitCode::from(exit as u8)
    }
}

/// What a command's run gives.
pub(super) type Outcome = Result<Exit, Failure>;

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    /// The client says why.
    #[error("{}{}", one_line(.0), advice(.0))]
    Client(#[from] Error),
    /// What was typed cannot be meant.
    #[error("{0}")]
    Usage(String),
    /// A file or standard input cannot be read.
    #[error("{what}: {source}")]
    Input { what: String, source: std::io::Error },
    /// The answer cannot be written.
    #[error("standard output: {0}")]
    Output(std::io::Error),
    /// The daemon does not start, or did not end well.
    #[error("{message}")]
    Daemon { message: String, exit: Exit },
}

impl Failure {
    /// A cache was named that the daemon does not know.
    pub(super) fn no_cache(name: &str) -> Failure {
        let message = format!("no cache is called {name:?}; `kvd caches` lists them");
        Failure::Daemon { message, exit: Exit::Refused }
    }

    pub(super) fn exit(&self) -> Exit {
        match self {
            Failure::Client(error) => exit_of(error),
            Failure::Usage(_) | Failure::Input { .. } => Exit::Usage,
            Failure::Output(_) => Exit::Daemon,
            Failure::Daemon { exit, .. } => *exit,
        }
    }
}

/// The place whose socket this user may not connect to, if there is one: then a daemon may well be there.
fn barred(error: &Error) -> Option<&Attempt> {
    let Error::Unreachable { tried } = error else { return None };
    tried.iter().find(|attempt| attempt.reason.kind() == IoKind::PermissionDenied)
}

/// What clap says about wrong arguments in some lines, in one: what is wrong, a tip, the usage, and where there is more.
pub(super) fn usage(error: &clap::Error) -> String {
    let text = error.render().to_string();
    let parts: Vec<String> = text
        .split("\n\n")
        .map(|part| part.split_whitespace().collect::<Vec<_>>().join(" "))
        .filter(|part| !part.is_empty())
        .collect();
    let line = parts.join("; ");
    line.strip_prefix("error: ").unwrap_or(&line).to_owned()
}

fn exit_of(error: &Error) -> Exit {
    if barred(error).is_some() {
        return Exit::Refused;
    }
    match error.kind() {
        ErrorKind::Timeout | ErrorKind::Unavailable => Exit::Unreachable,
        ErrorKind::Conflict | ErrorKind::Deadlock | ErrorKind::LeaseLost => Exit::Condition,
        ErrorKind::TooLarge
        | ErrorKind::Invalid
        | ErrorKind::Denied
        | ErrorKind::UnknownCache
        | ErrorKind::Config => Exit::Refused,
        // What is left are failures of the daemon, its disk, or the protocol with it.
        _ => Exit::Daemon,
    }
}

fn one_line(error: &Error) -> String {
    if let Some(Attempt { path, origin, reason, .. }) = barred(error) {
        return format!("this user may not use {} ({origin}): {reason}", path.display());
    }
    error.to_string().replace('\n', " ")
}

fn advice(error: &Error) -> &'static str {
    if barred(error).is_some() {
        return "; be listed under [access] of its configuration, or be its user or root";
    }
    if let Error::Unreachable { tried } = error {
        // Whoever is not let in is hung up on without a word.
        let hung_up = |attempt: &Attempt| {
            matches!(
                attempt.reason.kind(),
                IoKind::BrokenPipe | IoKind::ConnectionReset | IoKind::UnexpectedEof
            )
        };
        if tried.iter().any(hung_up) {
            return "; be listed under [access] of its configuration, or see its log";
        }
        return "; start one with `kvd serve`, or say where it is with --socket or KVD_SOCKET";
    }
    match error.kind() {
        ErrorKind::Timeout => {
            "; look with `kvd stats` whether it is overloaded, or give it longer with --timeout"
        }
        ErrorKind::UnknownCache => "; `kvd caches` lists them",
        ErrorKind::StoreFull => "; make room on its disk: it resumes by itself",
        ErrorKind::StoreFailed => "; the daemon's log says more",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_there_says_where_was_looked_and_how_to_start_one() {
        let error =
            kv_client::blocking::Client::builder().socket("/nonexistent/kvd.sock").build().unwrap_err();
        let failure = Failure::Client(error);
        assert_eq!(failure.exit(), Exit::Unreachable);
        let message = failure.to_string();
        assert!(message.contains("/nonexistent/kvd.sock") && message.contains("`kvd serve`"), "{message}");
        assert!(!message.contains('\n'), "{message}");
    }
}
