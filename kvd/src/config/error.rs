//! What can be wrong with a configuration, always with the place it was said at.

use std::fmt;
use std::path::PathBuf;

/// Where a setting was said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// In a file, on this line.
    File {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
    },
    /// In this environment variable.
    Env(String),
    /// By this flag.
    Flag(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::File { path, line } => write!(f, "{}:{line}", path.display()),
            Origin::Env(name) => write!(f, "environment {name}"),
            Origin::Flag(name) => write!(f, "flag {name}"),
        }
    }
}

/// Why a configuration is refused. The daemon exits 78 and touches nothing.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("{}: cannot be read: {source}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is not TOML.
    #[error("{origin}: {problem}")]
    Syntax {
        /// Where.
        origin: Origin,
        /// What the parser says.
        problem: String,
    },
    /// A key that nobody knows.
    #[error("{origin}: unknown key `{key}`{hint}")]
    UnknownKey {
        /// Where.
        origin: Origin,
        /// The key with the tables it is in.
        key: String,
        /// The nearest known one, as a sentence to append.
        hint: String,
    },
    /// A value that does not fit its key.
    #[error("{origin}: {key} = \"{value}\": {problem}")]
    Value {
        /// Where.
        origin: Origin,
        /// The key with the tables it is in.
        key: String,
        /// What was said.
        value: String,
        /// Why it does not fit, with the limit.
        problem: String,
    },
    /// Settings that do not fit each other.
    #[error("configuration: {0}")]
    Whole(String),
}
