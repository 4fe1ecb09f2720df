//! The listening socket in the file system: who may see it, what it may replace, and that it goes away again.
//!
//! `Server::start` calls it. The socket is bound under another name and renamed into place, so that it never exists
//! with wrong rights and a stale one is replaced without a gap. Only under a lock beside it: two daemons with different
//! stores but one socket path must not take it from each other. It must never touch what is not a socket of ours.

use std::ffi::OsString;
use std::fs::{DirBuilder, Metadata};
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{DirBuilderExt as _, FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use kv_proto::limits::SOCKET_PATH_BYTES_MAX;
use nix::sys::socket::{
    AddressFamily, Backlog, Shutdown, SockFlag, SockType, UnixAddr, bind, listen, shutdown, socket,
};
use nix::sys::stat::{Mode, fchmod};
use nix::unistd::{Gid, chown, geteuid};
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};

use crate::clock::Clock;
use crate::config::Access;
use crate::lock::{FileLock, LockError};

/// Connections the kernel queues for the accept thread; beyond this a connect waits or fails.
const BACKLOG: i32 = 1_024;

/// Why the daemon cannot listen.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SocketError {
    /// The path does not fit a socket address.
    #[error("socket path {} is {bytes} bytes, limit is {SOCKET_PATH_BYTES_MAX}: use a shorter --socket", path.display())]
    TooLong {
        /// The path.
        path: PathBuf,
        /// Its length.
        bytes: usize,
    },
    /// Something that is not ours is there.
    #[error("{} is {what}, and is left alone: remove it, or use another --socket", path.display())]
    Foreign {
        /// The path.
        path: PathBuf,
        /// What is there.
        what: String,
    },
    /// Others could replace the socket.
    #[error("directory {} {problem}: chmod or chown it, or use another --socket", path.display())]
    UnsafeDirectory {
        /// The directory.
        path: PathBuf,
        /// Why it is unsafe.
        problem: String,
    },
    /// Another daemon listens there.
    #[error(transparent)]
    Locked(#[from] LockError),
    /// The system refused something.
    #[error("socket {}: cannot {doing}: {source}", path.display())]
    Io {
        /// The path.
        path: PathBuf,
        /// What was tried.
        doing: &'static str,
        /// Why not.
        source: std::io::Error,
    },
}

/// A socket that listens, and its place in the file system.
#[derive(Debug)]
pub(super) struct BoundSocket {
    listener: UnixListener,
    path: PathBuf,
    identity: (u64, u64),
    owner: Owner,
    /// Wakes the accept thread.
    bell: OwnedFd,
    is_pausing: AtomicBool,
    /// Another process serves it: it stays where it is.
    is_given_away: AtomicBool,
}

/// Who looks after the socket's place in the file system.
#[derive(Debug)]
enum Owner {
    /// We do, under this lock.
    Us { lock: FileLock },
    /// The service manager: the socket stays when we end.
    Manager,
}

impl BoundSocket {
    pub(super) fn bind(path: &Path, access: &Access, clock: &Clock) -> Result<BoundSocket, SocketError> {
        let io =
            |doing| move |source: std::io::Error| SocketError::Io { path: path.to_owned(), doing, source };
        let dir =
            path.parent().ok_or_else(|| io("find its directory")(std::io::Error::other("there is none")))?;
        let temporary = dir.join(format!(".k{}", std::process::id()));
        for candidate in [path, &temporary] {
            let bytes = candidate.as_os_str().as_bytes().len();
            if bytes > SOCKET_PATH_BYTES_MAX {
                return Err(SocketError::TooLong { path: candidate.to_owned(), bytes });
            }
        }
        make_directory(dir, access).map_err(io("make its directory"))?;
        check_directory(dir)?;
        let lock = FileLock::take(&lock_path(path), clock)?;
        check_place(path)?;
        // The lock is ours, so a file of this name is left from a predecessor with our process id.
        remove_socket(&temporary).map_err(io("remove a left-over"))?;
        let listener = listen_at(&temporary, access).map_err(|e| io("listen")(e.into()))?;
        let placed = place(&temporary, path, access);
        let metadata =
            placed.inspect_err(|_| drop(remove_socket(&temporary))).map_err(io("put it in place"))?;
        BoundSocket::of(listener, path, identity(&metadata), Owner::Us { lock }).map_err(io("make it ready"))
    }

    /// A socket that the service manager listens on.
    pub(super) fn activated(listener: UnixListener) -> Result<BoundSocket, SocketError> {
        let address = listener.local_addr();
        let path = address.ok().and_then(|address| address.as_pathname().map(Path::to_owned));
        let path = path.unwrap_or_default();
        let io = |doing| {
            let path = path.clone();
            move |source: std::io::Error| SocketError::Io { path, doing, source }
        };
        let metadata = path.symlink_metadata().map_err(io("find the passed socket's path"))?;
        BoundSocket::of(listener, &path, identity(&metadata), Owner::Manager).map_err(io("make it ready"))
    }

    fn of(
        listener: UnixListener,
        path: &Path,
        identity: (u64, u64),
        owner: Owner,
    ) -> std::io::Result<BoundSocket> {
        // Else a client that gives up between poll and accept would leave the thread waiting where no bell is heard.
        listener.set_nonblocking(true)?;
        let bell = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let (is_pausing, is_given_away) = (AtomicBool::new(false), AtomicBool::new(false));
        Ok(BoundSocket { listener, path: path.to_owned(), identity, owner, bell, is_pausing, is_given_away })
    }

    /// The socket at `path`, which another daemon has listened on until now, and the lock beside it unless the socket is the service
    /// manager's.
    pub(super) fn inherited(
        listener: UnixListener,
        lock: Option<OwnedFd>,
        path: &Path,
    ) -> std::io::Result<BoundSocket> {
        let owner = match lock.map(FileLock::of_descriptor) {
            Some(lock) => Owner::Us { lock },
            None => Owner::Manager,
        };
        BoundSocket::of(listener, path, identity(&path.symlink_metadata()?), owner)
    }

    /// Copies of the descriptors of the listener and of the lock beside it, for the next daemon.
    pub(super) fn descriptors(&self) -> std::io::Result<(OwnedFd, Option<OwnedFd>)> {
        let lock = match &self.owner {
            Owner::Us { lock } => Some(lock.descriptor()?),
            Owner::Manager => None,
        };
        Ok((self.listener.try_clone()?.into(), lock))
    }

    /// Accepting may begin again.
    pub(super) fn resume(&self, clock: &Clock) {
        if let Owner::Us { lock } = &self.owner
            && let Err(error) = lock.claim(clock)
        {
            // Its text is for people; the lock is held all the same.
            tracing::warn!(%error, "the socket's lock file does not say who holds it");
        }
        let _ = rustix::io::read(&self.bell, &mut [0_u8; 8]);
        self.is_pausing.store(false, Ordering::Release);
    }

    /// Another process serves it from here on.
    pub(super) fn give_away(&self) {
        self.is_given_away.store(true, Ordering::Release);
    }

    /// The next connection; `None`: no more are to be accepted.
    pub(super) fn accept(&self) -> std::io::Result<Option<UnixStream>> {
        loop {
            if self.is_pausing.load(Ordering::Acquire) {
                return Ok(None);
            }
            match self.listener.accept() {
                Ok((stream, _)) => return Ok(Some(stream)),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
            let mut fds =
                [PollFd::new(&self.listener, PollFlags::IN), PollFd::new(&self.bell, PollFlags::IN)];
            match poll(&mut fds, None) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn listener(&self) -> &UnixListener {
        &self.listener
    }

    /// Ends [`BoundSocket::accept`]. Who connects from now on waits in the kernel's queue for the next who accepts.
    pub(super) fn pause(&self) {
        self.is_pausing.store(true, Ordering::Release);
        // It can only fail when it was rung 2^64 times unheard.
        let _ = rustix::io::write(&self.bell, &1_u64.to_ne_bytes());
    }

    /// Wakes the accept thread and refuses who connects from now on; where the socket is the manager's they wait for the next
    /// daemon.
    pub(super) fn refuse_more(&self) {
        self.pause();
        if !matches!(self.owner, Owner::Us { .. }) {
            return;
        }
        // Linux: a listening Unix socket that is shut down for reading fails its accept with EINVAL and refuses
        // connects. It can only fail for a descriptor that is no socket.
        shutdown(self.listener.as_raw_fd(), Shutdown::Both).expect("the listener is a socket");
    }

    /// Removes the socket if it is still the one we put there.
    pub(super) fn remove(&self) {
        if matches!(self.owner, Owner::Us { .. })
            && !self.is_given_away.load(Ordering::Acquire)
            && let Ok(there) = self.path.symlink_metadata()
            && identity(&there) == self.identity
            && let Err(error) = std::fs::remove_file(&self.path)
        {
            tracing::warn!(path = %self.path.display(), %error, "the socket could not be removed");
        }
    }
}

impl Drop for BoundSocket {
    fn drop(&mut self) {
        self.remove();
    }
}

fn lock_path(path: &Path) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(".lock");
    PathBuf::from(name)
}

fn identity(metadata: &Metadata) -> (u64, u64) {
    (metadata.dev(), metadata.ino())
}

/// The rights of the socket. The file system can name one group only; who is let in is decided by `peer` in any case.
fn mode(access: &Access) -> (u32, Option<u32>) {
    match (access.users.len(), access.groups.keys().next()) {
        (0, None) => (0o600, None),
        (0, Some(group)) if access.groups.len() == 1 => (0o660, Some(*group)),
        (_, _) => (0o666, None),
    }
}

fn make_directory(dir: &Path, access: &Access) -> std::io::Result<()> {
    if dir.is_dir() {
        return Ok(());
    }
    let mode = if access.is_private() { 0o700 } else { 0o755 };
    DirBuilder::new().recursive(true).mode(mode).create(dir)
}

/// Others must not be able to put their own socket in the place of ours.
fn check_directory(dir: &Path) -> Result<(), SocketError> {
    let io = |source| SocketError::Io { path: dir.to_owned(), doing: "look at its directory", source };
    let metadata = dir.metadata().map_err(io)?;
    let unsafe_for = |problem: String| Err(SocketError::UnsafeDirectory { path: dir.to_owned(), problem });
    if metadata.uid() != geteuid().as_raw() && metadata.uid() != 0 {
        return unsafe_for(format!("belongs to user {}, neither to us nor to root", metadata.uid()));
    }
    let mode = metadata.mode();
    if mode & 0o002 != 0 && mode & 0o1000 == 0 {
        return unsafe_for(format!("has mode {:o}: everybody may replace what is in it", mode & 0o7777));
    }
    Ok(())
}

/// What is in the socket's place must be nothing, or a socket of ours: with the lock held nobody serves it.
fn check_place(path: &Path) -> Result<(), SocketError> {
    let foreign = |what: String| Err(SocketError::Foreign { path: path.to_owned(), what });
    match path.symlink_metadata() {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(source) => Err(SocketError::Io { path: path.to_owned(), doing: "look at its place", source }),
        Ok(there) if there.is_symlink() => foreign("a symbolic link".to_owned()),
        Ok(there) if !there.file_type().is_socket() => foreign("not a socket".to_owned()),
        Ok(there) if there.uid() != geteuid().as_raw() => {
            foreign(format!("a socket of user {}", there.uid()))
        }
        Ok(_) => Ok(()),
    }
}

fn remove_socket(path: &Path) -> std::io::Result<()> {
    match path.symlink_metadata() {
        Ok(there) if there.file_type().is_socket() => std::fs::remove_file(path),
        // Anything else makes the bind fail, and stays.
        Ok(_) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

fn listen_at(temporary: &Path, access: &Access) -> nix::Result<UnixListener> {
    let fd = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    // On Linux the file gets the socket's own mode (less the umask): no window with wider rights, and no change of
    // the umask, which belongs to the whole process and so to an embedding application.
    fchmod(fd.as_fd(), Mode::from_bits_truncate(mode(access).0))?;
    bind(fd.as_raw_fd(), &UnixAddr::new(temporary)?)?;
    listen(&fd, Backlog::new(BACKLOG)?)?;
    Ok(UnixListener::from(fd))
}

fn place(temporary: &Path, path: &Path, access: &Access) -> std::io::Result<Metadata> {
    let (mode, group) = mode(access);
    if let Some(group) = group {
        chown(temporary, None, Some(Gid::from_raw(group)))?;
    }
    std::fs::set_permissions(temporary, std::fs::Permissions::from_mode(mode))?;
    std::fs::rename(temporary, path)?;
    path.symlink_metadata()
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use kv_proto::wire::Rights;

    use super::*;

    fn bind_at(path: &Path) -> Result<BoundSocket, SocketError> {
        BoundSocket::bind(path, &Access::default(), &Clock::system())
    }

    fn mode_of(path: &Path) -> u32 {
        path.symlink_metadata().unwrap().mode() & 0o7777
    }

    #[test]
    fn the_socket_is_private_and_goes_away() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sub/kvd.sock");
        let bound = bind_at(&path).unwrap();
        assert_eq!(mode_of(&path), 0o600);
        assert_eq!(mode_of(path.parent().unwrap()), 0o700);
        UnixStream::connect(&path).unwrap();
        drop(bound);
        assert!(!path.exists());
        assert!(lock_path(&path).exists(), "the lock file stays");
    }

    #[test]
    fn the_mode_before_bind_is_the_mode_of_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let _listener = listen_at(&path, &Access::default()).unwrap();
        assert_eq!(mode_of(&path), 0o600);
    }

    #[test]
    fn one_group_gets_the_socket_and_more_open_it() {
        let group = nix::unistd::getegid().as_raw();
        let groups = |ids: &[u32]| Access {
            groups: ids.iter().map(|id| (*id, Rights::CACHE)).collect(),
            ..Access::default()
        };
        assert_eq!(mode(&groups(&[group])), (0o660, Some(group)));
        assert_eq!(mode(&groups(&[group, group + 1])), (0o666, None));
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kvd.sock");
        let _bound = BoundSocket::bind(&path, &groups(&[group]), &Clock::system()).unwrap();
        assert_eq!((mode_of(&path), path.symlink_metadata().unwrap().gid()), (0o660, group));
    }

    #[test]
    fn a_stale_socket_is_taken_over() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kvd.sock");
        drop(UnixListener::bind(&path).unwrap());
        assert!(UnixStream::connect(&path).is_err(), "nobody listens");
        let _bound = bind_at(&path).unwrap();
        UnixStream::connect(&path).unwrap();
    }

    #[test]
    fn a_served_socket_is_not_taken_over() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kvd.sock");
        let _bound = bind_at(&path).unwrap();
        let error = bind_at(&path).unwrap_err().to_string();
        assert!(error.contains("kvd.sock.lock is held by pid"), "{error}");
        UnixStream::connect(&path).unwrap();
    }

    #[test]
    fn what_is_not_a_socket_of_ours_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        std::fs::write(&file, "precious").unwrap();
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(&file, &link).unwrap();
        for path in [&file, &link] {
            assert!(matches!(bind_at(path), Err(SocketError::Foreign { .. })));
        }
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "precious");
        assert!(link.is_symlink());
    }

    #[test]
    fn a_socket_that_somebody_put_in_our_place_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kvd.sock");
        let bound = bind_at(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        let _other = UnixListener::bind(&path).unwrap();
        drop(bound);
        assert!(path.exists());
    }

    #[test]
    fn a_directory_open_to_everybody_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let open = dir.path().join("open");
        std::fs::create_dir(&open).unwrap();
        std::fs::set_permissions(&open, std::fs::Permissions::from_mode(0o777)).unwrap();
        let error = bind_at(&open.join("kvd.sock")).unwrap_err().to_string();
        assert!(error.contains("has mode 777"), "{error}");
        assert!(!open.join("kvd.sock").exists());
    }

    #[test]
    fn a_long_path_names_the_limit() {
        let error = bind_at(&Path::new("/tmp").join("x".repeat(110))).unwrap_err().to_string();
        assert!(error.contains("is 115 bytes, limit is 107"), "{error}");
    }
}
