//! Where a daemon's socket is looked for, and where a daemon puts it.
//!
//! Called by both clients when they connect, and by the daemon for its default. It only names paths: it never opens,
//! creates or removes one.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};

use kv_proto::limits::SOCKET_PATH_BYTES_MAX;

/// The environment variable that names the socket.
pub const SOCKET_VARIABLE: &str = "KVD_SOCKET";
/// The socket's place below a runtime directory.
pub const SOCKET_BELOW: &str = "kvd/kvd.sock";
/// The socket of the host's own daemon.
pub const SOCKET_OF_HOST: &str = "/run/kvd/kvd.sock";

/// A path to try, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Place {
    /// The socket's path.
    pub path: PathBuf,
    /// Where it comes from: for example `KVD_SOCKET`.
    pub origin: &'static str,
}

/// The places to try, in order. A path given by hand, or else by `KVD_SOCKET`, is the only one: whoever names a daemon
/// does not want another one's answers.
///
/// ```
/// let places = kv_client::places::search(Some("/srv/kvd.sock".as_ref()));
/// assert_eq!(places.len(), 1);
/// assert_eq!(places[0].path.to_str(), Some("/srv/kvd.sock"));
/// ```
#[must_use]
pub fn search(given: Option<&Path>) -> Vec<Place> {
    search_in(given, |name| std::env::var_os(name))
}

/// Where a daemon without configuration puts its socket: the user's runtime directory, or the host's for root and for
/// whoever has no runtime directory.
///
/// ```
/// assert!(kv_client::places::default_for_daemon().ends_with("kvd/kvd.sock"));
/// ```
#[must_use]
pub fn default_for_daemon() -> PathBuf {
    if rustix::process::geteuid().is_root() {
        return PathBuf::from(SOCKET_OF_HOST);
    }
    variable("XDG_RUNTIME_DIR", |name| std::env::var_os(name))
        .map_or_else(|| PathBuf::from(SOCKET_OF_HOST), |dir| PathBuf::from(dir).join(SOCKET_BELOW))
}

/// Refuses what the kernel would cut or refuse without naming the limit.
pub(crate) fn check_path(path: &Path) -> io::Result<()> {
    let bytes = path.as_os_str().len();
    if bytes <= SOCKET_PATH_BYTES_MAX {
        return Ok(());
    }
    let message = format!("the path is {bytes} bytes, limit is {SOCKET_PATH_BYTES_MAX}");
    Err(io::Error::new(io::ErrorKind::InvalidInput, message))
}

fn search_in(given: Option<&Path>, env: impl Fn(&str) -> Option<OsString>) -> Vec<Place> {
    if let Some(path) = given {
        return vec![Place { path: path.to_owned(), origin: "given" }];
    }
    if let Some(path) = variable(SOCKET_VARIABLE, &env) {
        return vec![Place { path: path.into(), origin: SOCKET_VARIABLE }];
    }
    let user = variable("XDG_RUNTIME_DIR", &env)
        .map(|dir| Place { path: PathBuf::from(dir).join(SOCKET_BELOW), origin: "XDG_RUNTIME_DIR" });
    let host = Place { path: SOCKET_OF_HOST.into(), origin: "host" };
    user.into_iter().chain([host]).collect()
}

/// An empty variable counts as not set, as usual.
fn variable(name: &str, env: impl Fn(&str) -> Option<OsString>) -> Option<OsString> {
    env(name).filter(|value| !value.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paths(given: Option<&str>, env: &[(&str, &str)]) -> Vec<String> {
        let env = |name: &str| env.iter().find(|(n, _)| *n == name).map(|(_, value)| OsString::from(value));
        search_in(given.map(Path::new), env)
            .into_iter()
            .map(|p| p.path.to_string_lossy().into_owned())
            .collect()
    }

    #[test]
    fn a_named_daemon_is_the_only_place() {
        let env = [("KVD_SOCKET", "/b"), ("XDG_RUNTIME_DIR", "/run/user/1")];
        assert_eq!(paths(Some("/a"), &env), ["/a"]);
        assert_eq!(paths(None, &env), ["/b"]);
    }

    #[test]
    fn the_users_daemon_comes_before_the_hosts() {
        let env = [("KVD_SOCKET", ""), ("XDG_RUNTIME_DIR", "/run/user/1")];
        assert_eq!(paths(None, &env), ["/run/user/1/kvd/kvd.sock", SOCKET_OF_HOST]);
        assert_eq!(paths(None, &[]), [SOCKET_OF_HOST]);
    }
}
