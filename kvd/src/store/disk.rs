//! What lies under redb and under the pending log: files, or in tests a disk that loses power.
//!
//! Called by recovery and by the handling of disk trouble. It opens files as they must be opened (0600, no symlinks, not
//! inherited), makes names durable, and remembers which operation of redb failed how, because redb itself only says that
//! something did.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind};
use std::ops::Bound;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use kv_proto::segment::Words;
use nix::fcntl::{FallocateFlags, fallocate};
use parking_lot::Mutex;
use redb::backends::FileBackend;
use redb::{BackendError, StorageBackend};

#[cfg(test)]
use super::sim::{SimDisk, SimFile};

pub(super) const STORE_FILE: &str = "store.redb";
pub(super) const LOG_FILE: &str = "pending.log";
pub(super) const MARKS_FILE: &str = "marks";

/// Where a store lives.
#[derive(Debug, Clone, Default)]
pub enum Disk {
    /// In files.
    #[default]
    Files,
    /// On a simulated disk.
    #[cfg(test)]
    Sim(SimDisk),
}

/// Which operation of redb failed first since it was opened, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    /// No space, on a write or a growth: the file is as good as it was.
    Space,
    /// Anything else, and every failure of a sync: what the file holds cannot be known from reading it.
    Suspect,
}

/// Shared with the backend inside redb.
pub(super) type FaultCell = Arc<Mutex<Option<Fault>>>;

impl Disk {
    /// Makes the directory if it is missing and refuses one that others can write to.
    pub(super) fn prepare_dir(&self, dir: &Path) -> io::Result<()> {
        match self {
            Disk::Files => {
                if !dir.exists() {
                    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
                    if let Some(parent) = dir.parent().filter(|parent| !parent.as_os_str().is_empty()) {
                        sync_dir(parent)?;
                    }
                }
                Ok(())
            }
            #[cfg(test)]
            Disk::Sim(_) => Ok(()),
        }
    }

    /// What is wrong with the rights on the directory and its files, if anything.
    pub(super) fn rights(&self, dir: &Path) -> Option<(PathBuf, String)> {
        match self {
            Disk::Files => {
                let files = [STORE_FILE, LOG_FILE, MARKS_FILE].map(|name| (dir.join(name), 0o077));
                [(dir.to_owned(), 0o022)].into_iter().chain(files).find_map(|(path, mask)| {
                    let why = wrong_rights(&path, mask)?;
                    Some((path, why))
                })
            }
            #[cfg(test)]
            Disk::Sim(_) => None,
        }
    }

    /// Whether a file is there.
    pub(super) fn exists(&self, dir: &Path, name: &str) -> bool {
        match self {
            Disk::Files => dir.join(name).symlink_metadata().is_ok(),
            #[cfg(test)]
            Disk::Sim(sim) => sim.exists(name),
        }
    }

    /// Bytes that can still be written in the directory, and bytes of the whole file system.
    pub(super) fn space(&self, dir: &Path) -> io::Result<(u64, u64)> {
        match self {
            Disk::Files => {
                let stat = nix::sys::statvfs::statvfs(dir)?;
                let block = stat.fragment_size();
                Ok((block * stat.blocks_available(), block * stat.blocks()))
            }
            #[cfg(test)]
            Disk::Sim(sim) => Ok((sim.free_bytes(), u64::MAX)),
        }
    }

    /// The file for redb, made if missing.
    pub(super) fn store_backend(&self, dir: &Path, name: &str) -> io::Result<(Backend, FaultCell)> {
        let fault = FaultCell::default();
        let inner = match self {
            Disk::Files => {
                let is_new = !self.exists(dir, name);
                let file = open_options().create(true).open(dir.join(name))?;
                if is_new {
                    sync_dir(dir)?;
                }
                Inner::File(FileBackend::new(file).map_err(io::Error::other)?)
            }
            #[cfg(test)]
            Disk::Sim(sim) => Inner::Sim(sim.file(name)),
        };
        Ok((Backend { inner, fault: fault.clone() }, fault))
    }

    /// The existing pending log.
    pub(super) fn open_log(&self, dir: &Path) -> io::Result<Option<Arc<Words>>> {
        match self {
            Disk::Files => match open_options().open(dir.join(LOG_FILE)) {
                Ok(file) => {
                    let bytes = usize::try_from(file.metadata()?.len()).unwrap_or(usize::MAX) / 8 * 8;
                    if bytes == 0 {
                        Ok(Some(Words::heap(1)))
                    } else {
                        Words::map_file(&file, bytes).map(Some)
                    }
                }
                Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
                Err(error) => Err(error),
            },
            #[cfg(test)]
            Disk::Sim(sim) => Ok(sim.log()),
        }
    }

    /// A new pending log in place of any other: all blocks taken, header on stable storage, then its name.
    pub(super) fn create_log(&self, dir: &Path, header: &[u8], bytes: usize) -> io::Result<Arc<Words>> {
        match self {
            Disk::Files => {
                let draft = dir.join("pending.log.new");
                let file = open_options().create(true).truncate(true).open(&draft)?;
                let made = fill_log(&file, header, bytes);
                if let Err(error) = made {
                    drop(file);
                    let _ = std::fs::remove_file(&draft);
                    return Err(error);
                }
                std::fs::rename(&draft, dir.join(LOG_FILE))?;
                sync_dir(dir)?;
                Words::map_file(&file, bytes)
            }
            #[cfg(test)]
            Disk::Sim(sim) => sim.create_log(header, bytes),
        }
    }

    /// Reads a small file whole.
    pub(super) fn read_small(&self, dir: &Path, name: &str) -> io::Result<Option<Vec<u8>>> {
        match self {
            Disk::Files => match std::fs::read(dir.join(name)) {
                Ok(bytes) => Ok(Some(bytes)),
                Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
                Err(error) => Err(error),
            },
            #[cfg(test)]
            Disk::Sim(sim) => Ok(sim.read_small(name)),
        }
    }

    /// Overwrites a small file in place and waits until it is on stable storage. Needs no new block once the file is there.
    pub(super) fn write_small(&self, dir: &Path, name: &str, bytes: &[u8]) -> io::Result<()> {
        match self {
            Disk::Files => {
                let is_new = !self.exists(dir, name);
                let file = open_options().create(true).open(dir.join(name))?;
                std::os::unix::fs::FileExt::write_all_at(&file, bytes, 0)?;
                file.sync_all()?;
                if is_new { sync_dir(dir) } else { Ok(()) }
            }
            #[cfg(test)]
            Disk::Sim(sim) => sim.write_small(name, bytes),
        }
    }

    /// Gives a file another name, over any file of that name, durably.
    pub(super) fn rename(&self, dir: &Path, from: &str, to: &str) -> io::Result<()> {
        match self {
            Disk::Files => {
                std::fs::rename(dir.join(from), dir.join(to))?;
                sync_dir(dir)
            }
            #[cfg(test)]
            Disk::Sim(sim) => sim.rename(from, to),
        }
    }

    /// Has the kernel forget what it holds of a file, so that reading it reads the disk. As far as the kernel likes.
    pub(super) fn forget_cached(&self, dir: &Path, name: &str) {
        match self {
            Disk::Files => {
                if let Ok(file) = open_options().open(dir.join(name)) {
                    let advice = nix::fcntl::PosixFadviseAdvice::POSIX_FADV_DONTNEED;
                    let _ = nix::fcntl::posix_fadvise(&file, 0, 0, advice);
                }
            }
            #[cfg(test)]
            Disk::Sim(_) => {}
        }
    }

    /// Removes a file if it is there.
    pub(super) fn remove(&self, dir: &Path, name: &str) {
        match self {
            Disk::Files => {
                let _ = std::fs::remove_file(dir.join(name));
            }
            #[cfg(test)]
            Disk::Sim(sim) => sim.remove(name),
        }
    }
}

fn open_options() -> OpenOptions {
    let flags = nix::fcntl::OFlag::O_NOFOLLOW | nix::fcntl::OFlag::O_CLOEXEC;
    let mut options = OpenOptions::new();
    options.read(true).write(true).mode(0o600).custom_flags(flags.bits());
    options
}

fn fill_log(file: &File, header: &[u8], bytes: usize) -> io::Result<()> {
    let length = i64::try_from(bytes).map_err(io::Error::other)?;
    match fallocate(file, FallocateFlags::empty(), 0, length) {
        Ok(()) => {}
        // Not every file system can reserve blocks; a full disk would then be a signal, so write them all.
        Err(nix::errno::Errno::EOPNOTSUPP) => {
            let zeros = vec![0; 1 << 20];
            for at in (0..bytes).step_by(zeros.len()) {
                let part = &zeros[..zeros.len().min(bytes - at)];
                std::os::unix::fs::FileExt::write_all_at(file, part, at as u64)?;
            }
        }
        Err(error) => return Err(error.into()),
    }
    std::os::unix::fs::FileExt::write_all_at(file, header, 0)?;
    file.sync_all()
}

fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

fn wrong_rights(path: &Path, mask: u32) -> Option<String> {
    let meta = path.symlink_metadata().ok()?;
    let me = nix::unistd::geteuid().as_raw();
    if meta.file_type().is_symlink() && mask == 0o077 {
        return Some("is a symbolic link: the store's files must be plain files".to_owned());
    }
    if meta.uid() != me && me != 0 {
        return Some(format!(
            "belongs to user {}, not to user {me}: run as its owner or choose another --dir",
            meta.uid()
        ));
    }
    let mode = meta.mode() & 0o777;
    (mode & mask != 0 && !meta.file_type().is_symlink())
        .then(|| format!("has mode {mode:03o}, which lets others in: chmod {:03o} it", mode & !mask))
}

/// Whether an error says that there is no room.
pub(super) fn is_no_space(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge)
}

/// A storage backend that remembers its first fault.
#[derive(Debug)]
pub(super) struct Backend {
    inner: Inner,
    fault: FaultCell,
}

#[derive(Debug)]
enum Inner {
    File(FileBackend),
    #[cfg(test)]
    Sim(SimFile),
}

impl Backend {
    fn backend(&self) -> &dyn StorageBackend {
        match &self.inner {
            Inner::File(file) => file,
            #[cfg(test)]
            Inner::Sim(file) => file,
        }
    }

    fn noted<T>(&self, result: io::Result<T>, is_sync: bool) -> io::Result<T> {
        if let Err(error) = &result {
            let fault = if is_no_space(error) && !is_sync { Fault::Space } else { Fault::Suspect };
            self.fault.lock().get_or_insert(fault);
        }
        result
    }
}

impl StorageBackend for Backend {
    fn len(&self) -> io::Result<u64> {
        self.noted(self.backend().len(), false)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.noted(self.backend().read(offset, out), false)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.noted(self.backend().set_len(len), false)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.noted(self.backend().sync_data(), true)
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.noted(self.backend().write(offset, data), false)
    }

    fn close(&self) -> io::Result<()> {
        self.backend().close()
    }

    fn try_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.backend().try_lock_range(start, end)
    }

    fn try_lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.backend().try_lock_shared_range(start, end)
    }

    fn lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.backend().lock_range(start, end)
    }

    fn lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.backend().lock_shared_range(start, end)
    }

    fn unlock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.backend().unlock_range(start, end)
    }

    fn query_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.backend().query_lock_range(start, end)
    }
}
