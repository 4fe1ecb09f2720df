//! Where the daemon lives: the store's directory and its file system, the socket, and who holds the locks.

use std::fs::{File, Metadata, TryLockError};
use std::io::Read as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::os::unix::net::UnixStream;
use std::path::Path;

use kvd::config::Config;
use kvd::units::show_bytes;
use nix::sys::statfs::{FsType, statfs};
use nix::sys::statvfs::statvfs;
use nix::unistd::{AccessFlags, access};

use super::{Findings, Level};

/// Less room than this is little, whatever the caches may use.
const ROOM_BYTES_LITTLE: u64 = 1 << 30;
/// Room beyond the logs without which nothing goes.
const ROOM_BYTES_LEAST: u64 = 64 << 20;

/// Looks at everything; the process that holds the store.
pub(super) fn look(config: &Config, is_answering: bool, findings: &mut Findings) -> Option<u32> {
    directory(&config.dir, findings);
    room(config, findings);
    let holder = lock(config, is_answering, findings);
    socket(&config.socket, is_answering, findings);
    holder
}

/// The directory itself, or the nearest one above it that is there.
fn nearest(dir: &Path) -> &Path {
    dir.ancestors().find(|dir| dir.exists()).unwrap_or(Path::new("/"))
}

fn directory(dir: &Path, findings: &mut Findings) {
    let shown = dir.display();
    let found = match std::fs::metadata(dir) {
        Ok(found) => found,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let above = nearest(dir);
            if access(above, AccessFlags::W_OK | AccessFlags::X_OK).is_ok() {
                findings.ok("directory", format!("{shown} is not there yet: the first start makes it"));
            } else {
                let what = format!("{shown} is not there, and {} is not yours to write", above.display());
                findings.add(
                    Level::Error,
                    "directory",
                    what,
                    "make it for the daemon's user, or choose another with --dir",
                );
            }
            return;
        }
        Err(error) => {
            let cure = "run this as the daemon's user or root";
            findings.add(Level::Warning, "directory", format!("{shown} cannot be seen: {error}"), cure);
            return;
        }
    };
    if !found.is_dir() {
        findings.add(
            Level::Error,
            "directory",
            format!("{shown} is no directory"),
            "choose another with --dir",
        );
        return;
    }
    match rights(&found) {
        None => findings.ok("directory", format!("{shown} is for its owner (user {})", found.uid())),
        Some(problem) => {
            let cure = format!("chmod go-w {shown}: whoever may write there can replace the store");
            findings.add(Level::Error, "directory", format!("{shown} {problem}"), cure);
        }
    }
    let file_system = statfs(dir).map(|found| found.filesystem_type());
    match file_system.as_ref().map(|kind| judge(*kind)) {
        Ok(None) | Err(_) => {}
        Ok(Some((level, what, cure))) => findings.add(level, "disk", format!("{shown} lies on {what}"), cure),
    }
}

/// What is wrong with the rights of a directory.
fn rights(found: &Metadata) -> Option<String> {
    let mode = found.mode() & 0o7777;
    (mode & 0o022 != 0).then(|| format!("can be written by others than its owner (mode {mode:04o})"))
}

/// What a file system means for a store.
fn judge(kind: FsType) -> Option<(Level, &'static str, &'static str)> {
    use nix::sys::statfs::{FUSE_SUPER_MAGIC, NFS_SUPER_MAGIC, OVERLAYFS_SUPER_MAGIC, TMPFS_MAGIC};
    const CIFS: FsType = FsType(0xff53_4d42_u32 as _);
    match kind {
        TMPFS_MAGIC => Some((
            Level::Warning,
            "a file system in memory",
            "what should outlive a reboot needs a disk: choose another with --dir",
        )),
        NFS_SUPER_MAGIC | CIFS => Some((
            Level::Error,
            "a network file system",
            "mapped files and locks are not safe there: use a local disk",
        )),
        FUSE_SUPER_MAGIC => Some((
            Level::Warning,
            "a file system of a user process",
            "whether it syncs and locks as it should is not known: prefer a local disk",
        )),
        OVERLAYFS_SUPER_MAGIC => Some((
            Level::Warning,
            "an overlay, as containers have it",
            "it goes with the container: mount a volume there if the caches should not",
        )),
        _ => None,
    }
}

fn room(config: &Config, findings: &mut Findings) {
    let dir = nearest(&config.dir);
    let Ok(found) = statvfs(dir) else { return };
    let free = found.blocks_available() * found.fragment_size();
    let used = std::fs::read_dir(&config.dir).map_or(0, |files| {
        let sizes = files.filter_map(|file| Some(file.ok()?.metadata().ok()?.blocks() * 512));
        sizes.sum::<u64>()
    });
    let logs = config.pending_log_bytes + config.journal_bytes_max * 2;
    let caches: u64 = config.caches.values().map(|cache| cache.disk_bytes_max).sum();
    let (shown, at) = (show_bytes(free), dir.display());
    let cure = "make room, choose another --dir, or give the caches less `disk`";
    if free + used < logs + ROOM_BYTES_LEAST {
        let what = format!("{shown} free at {at}; the logs alone may need {}", show_bytes(logs));
        findings.add(Level::Error, "disk", what, cure);
    } else if free + used < logs + caches {
        let what =
            format!("{shown} free at {at}; the declared caches may need {}", show_bytes(logs + caches));
        findings.add(Level::Warning, "disk", what, cure);
    } else if free < ROOM_BYTES_LITTLE {
        findings.add(Level::Warning, "disk", format!("only {shown} free at {at}"), cure);
    } else {
        findings.ok("disk", format!("{shown} free at {at}"));
    }
    if found.files() > 0 && found.files_available() < 1_000 {
        findings.add(
            Level::Warning,
            "disk",
            format!("{} inodes free at {at}", found.files_available()),
            "remove files",
        );
    }
}

/// Who holds the store, without taking it: a shared lock for a moment, which a daemon that starts waits out.
fn lock(config: &Config, is_answering: bool, findings: &mut Findings) -> Option<u32> {
    let path = kvd::lock::lock_path(&config.dir);
    let shown = path.display();
    let mut file = match File::open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            findings.ok("lock", "nobody has used this directory yet");
            return None;
        }
        Err(error) => {
            let cure = "run this as the daemon's user or root to see who holds it";
            findings.add(Level::Note, "lock", format!("{shown} cannot be read: {error}"), cure);
            return None;
        }
    };
    match file.try_lock_shared() {
        Ok(()) => {
            findings.ok("lock", "nobody holds the store: no daemon runs in this directory");
            None
        }
        Err(TryLockError::WouldBlock) => {
            let mut text = String::new();
            let _ = file.by_ref().take(128).read_to_string(&mut text);
            let text = text.trim();
            let pid: Option<u32> =
                text.strip_prefix("pid ").and_then(|rest| rest.split(' ').next()?.parse().ok());
            if is_answering {
                findings.ok("lock", format!("the store is held by {text}"));
            } else {
                let cure = format!(
                    "it is starting, stopping or stuck, or listens elsewhere: see its log, and `cat /proc/{}/stack`",
                    pid.map_or("PID".to_owned(), |pid| pid.to_string())
                );
                let what = format!("the store is held by {text}, but no daemon answers");
                findings.add(Level::Error, "lock", what, cure);
            }
            pid
        }
        Err(TryLockError::Error(error)) => {
            let cure = "this file system has no locks: two daemons could use one store. Choose another --dir";
            findings.add(Level::Error, "lock", format!("{shown} cannot be locked: {error}"), cure);
            None
        }
    }
}

fn socket(path: &Path, is_answering: bool, findings: &mut Findings) {
    let shown = path.display();
    let dir = path.parent().unwrap_or(Path::new("/"));
    if let Ok(found) = std::fs::metadata(dir) {
        let is_sticky = found.mode() & 0o1000 != 0;
        if let Some(problem) = rights(&found).filter(|_| !is_sticky) {
            let cure = format!(
                "chmod go-w {}: whoever may write there can put a socket of their own in its place",
                dir.display()
            );
            findings.add(Level::Error, "socket", format!("{} {problem}", dir.display()), cure);
        }
    }
    match std::fs::symlink_metadata(path) {
        Err(_) if is_answering => {
            let cure = "say --config or --dir as that daemon is told, to look at the right one";
            findings.add(
                Level::Note,
                "socket",
                format!("the daemon that answers is another one than {shown}"),
                cure,
            );
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            findings.ok("socket", format!("{shown} is not there: no daemon listens"));
        }
        Err(error) => {
            let cure = "run this as a user who may use the daemon";
            findings.add(Level::Warning, "socket", format!("{shown} cannot be seen: {error}"), cure);
        }
        Ok(found) if !found.file_type().is_socket() => {
            let cure = "remove it, or use another --socket: the daemon leaves it alone and does not start";
            findings.add(Level::Error, "socket", format!("{shown} is no socket"), cure);
        }
        Ok(_) => match UnixStream::connect(path) {
            Ok(_) => findings.ok("socket", format!("somebody listens at {shown}")),
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => {
                let cure = "nothing is to be done: the next start replaces it";
                findings.add(
                    Level::Warning,
                    "socket",
                    format!("{shown} is stale: nobody listens there"),
                    cure,
                );
            }
            Err(error) => {
                let cure =
                    "list your user or group under [access] of the configuration, or ask who runs the daemon";
                findings.add(Level::Warning, "socket", format!("{shown}: {error}"), cure);
            }
        },
    }
}
