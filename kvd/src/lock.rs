//! Lock files: one daemon a store, one daemon a socket.
//!
//! `flock` frees the lock with its holder, however it dies. The file itself is never removed: whoever removed it could
//! leave two daemons each holding "the" lock. Its text only tells a person who holds it. `cli::serve` takes a store's
//! before the store is opened, `server::socket` one beside the socket.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read as _, Seek as _, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use nix::fcntl::OFlag;

use crate::clock::Clock;

/// How long a holder may take to be gone.
const HOLDER_LEAVES_WITHIN: Duration = Duration::from_secs(1);
/// How often it is looked whether it is.
const TRY_EVERY: Duration = Duration::from_millis(10);

/// A lock that is held until this is dropped or the process ends.
#[derive(Debug)]
pub struct FileLock {
    file: File,
}

/// Why a lock cannot be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LockError {
    /// Somebody has it.
    #[error("{} is held by {holder}: stop that daemon, or use another directory", path.display())]
    Held {
        /// The lock file.
        path: PathBuf,
        /// Who has it, as they wrote it there.
        holder: String,
    },
    /// The file cannot be used.
    #[error("{}: cannot be used as a lock file: {source}", path.display())]
    Unusable {
        /// The lock file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

/// The lock file of a store's directory.
#[must_use]
pub fn lock_path(dir: &Path) -> PathBuf {
    dir.join("kvd.lock")
}

impl FileLock {
    /// Takes the lock, waiting a moment for a holder that is just ending: a killed daemon keeps its lock until the kernel has
    /// taken its memory apart.
    ///
    /// # Errors
    /// When somebody has it, or the file cannot be opened.
    pub fn take(path: &Path, clock: &Clock) -> Result<FileLock, LockError> {
        let unusable = |source| LockError::Unusable { path: path.to_owned(), source };
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            // Neither through somebody's link, nor waiting for the other end of somebody's pipe.
            .custom_flags((OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK).bits())
            .open(path)
            .map_err(unusable)?;
        if !file.metadata().map_err(unusable)?.is_file() {
            return Err(unusable(std::io::Error::other("it is not a regular file")));
        }
        let deadline = clock.instant() + HOLDER_LEAVES_WITHIN;
        loop {
            match file.try_lock() {
                Ok(()) => break,
                Err(TryLockError::WouldBlock) if clock.instant() < deadline => std::thread::sleep(TRY_EVERY),
                Err(TryLockError::WouldBlock) => {
                    return Err(LockError::Held { path: path.to_owned(), holder: holder(&mut file) });
                }
                Err(TryLockError::Error(source)) => return Err(unusable(source)),
            }
        }
        describe_holder(&file, clock).map_err(unusable)?;
        Ok(FileLock { file })
    }

    /// A lock that another process has handed over: it is held as long as any of the two holds the descriptor.
    pub(crate) fn of_descriptor(descriptor: OwnedFd) -> FileLock {
        FileLock { file: File::from(descriptor) }
    }

    /// A copy of its descriptor, for the process that shall hold it next.
    pub(crate) fn descriptor(&self) -> std::io::Result<OwnedFd> {
        Ok(self.file.try_clone()?.into())
    }

    /// Writes down that it is this process now.
    pub(crate) fn claim(&self, clock: &Clock) -> std::io::Result<()> {
        describe_holder(&self.file, clock)
    }
}

fn describe_holder(mut file: &File, clock: &Clock) -> std::io::Result<()> {
    let now_ms = u64::try_from(clock.wall_ms()).unwrap_or(0);
    let since = humantime::format_rfc3339_seconds(SystemTime::UNIX_EPOCH + Duration::from_millis(now_ms));
    file.set_len(0)?;
    file.rewind()?;
    writeln!(file, "pid {} since {since}", std::process::id())
}

fn holder(file: &mut File) -> String {
    // The holder writes its name just after it has the lock; between the two nobody is named.
    let mut text = String::new();
    match file.take(128).read_to_string(&mut text) {
        Ok(_) if text.starts_with("pid ") => text.trim().to_owned(),
        Ok(_) | Err(_) => "another process".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_held_lock_says_who_holds_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kvd.lock");
        let held = FileLock::take(&path, &Clock::system()).unwrap();
        let error = FileLock::take(&path, &Clock::system()).unwrap_err().to_string();
        assert!(error.contains(&format!("held by pid {} since 2", std::process::id())), "{error}");
        drop(held);
        assert!(path.exists(), "the file stays");
        FileLock::take(&path, &Clock::system()).unwrap();
    }

    #[test]
    fn a_link_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kvd.lock");
        std::os::unix::fs::symlink(dir.path().join("elsewhere"), &path).unwrap();
        assert!(matches!(FileLock::take(&path, &Clock::system()), Err(LockError::Unusable { .. })));
        assert!(!dir.path().join("elsewhere").exists());
    }
}
