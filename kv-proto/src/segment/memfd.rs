//! Where shared words come from: a sealed memfd made here, one received from a daemon, or a file of the daemon.
//!
//! `Words::memfd` is called by the daemon when it makes a segment or the control page, `Words::attach` by clients with a
//! descriptor they received, `Words::map_file` by the daemon's pending log. Must never map a descriptor whose size somebody
//! else can still change: that is a SIGBUS in waiting.

use std::ffi::{CStr, c_void};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{
    FallocateFlags, MemfdFlags, Mode, SealFlags, fallocate, fchmod, fcntl_add_seals, fcntl_get_seals, fstat,
    ftruncate, memfd_create,
};
use rustix::io::Errno;
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap, mmap_anonymous, munmap};

use super::error::AttachError;
use super::words::{WORD_BYTES, Words, raw};

/// What a descriptor must be sealed against before it is mapped: any change of size, new writable maps, more seals.
const SEALS: SealFlags =
    SealFlags::SHRINK.union(SealFlags::GROW).union(SealFlags::FUTURE_WRITE).union(SealFlags::SEAL);

impl Words {
    /// Makes a memfd of `bytes` bytes (rounded up to a page), maps it writable and seals it: afterwards nobody can map it
    /// writable again, resize it or add seals. Every page is there already, charged to this process.
    ///
    /// # Errors
    /// What the kernel says: no memory, no descriptors, no memfd.
    pub fn memfd(name: &CStr, bytes: usize) -> io::Result<(Arc<Words>, OwnedFd)> {
        let bytes = bytes.next_multiple_of(rustix::param::page_size());
        let base = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let fd = match memfd_create(name, base | MemfdFlags::NOEXEC_SEAL) {
            // Before Linux 6.3.
            Err(Errno::INVAL) => memfd_create(name, base)?,
            other => other?,
        };
        fchmod(&fd, Mode::RUSR)?;
        ftruncate(&fd, bytes as u64)?;
        match fallocate(&fd, FallocateFlags::empty(), 0, bytes as u64) {
            Ok(()) => {}
            Err(Errno::OPNOTSUPP) => {}
            Err(error) => return Err(error.into()),
        }
        let words = map(fd.as_fd(), bytes / WORD_BYTES, true)?;
        fcntl_add_seals(&fd, SEALS)?;
        Ok((words, fd))
    }

    /// As [`Words::memfd`]; where the kernel has no sealed memory, or a policy forbids it, memory of this process alone and
    /// the kernel's reason.
    ///
    /// # Errors
    /// What will pass or can be helped: no memory, no descriptors.
    pub fn memfd_or_private(name: &CStr, bytes: usize) -> io::Result<(Arc<Words>, io::Result<OwnedFd>)> {
        match Words::memfd(name, bytes) {
            Ok((words, fd)) => Ok((words, Ok(fd))),
            Err(error) => match Errno::from_io_error(&error) {
                Some(Errno::NOSYS | Errno::PERM | Errno::ACCESS | Errno::INVAL) => {
                    Ok((Words::heap(bytes.div_ceil(WORD_BYTES)), Err(error)))
                }
                _ => Err(error),
            },
        }
    }

    /// Maps a received descriptor read-only, after checking that nobody can change its size.
    ///
    /// # Errors
    /// [`AttachError::NotSealed`] for a descriptor no daemon of ours made, [`AttachError::Io`] if it cannot be mapped.
    pub fn attach(fd: impl AsFd) -> Result<Arc<Words>, AttachError> {
        let fd = fd.as_fd();
        let seals = fcntl_get_seals(fd).map_err(io::Error::from)?;
        if !seals.contains(SEALS) {
            return Err(AttachError::NotSealed { found: seals.bits(), needed: SEALS.bits() });
        }
        let bytes = usize::try_from(fstat(fd).map_err(io::Error::from)?.st_size).unwrap_or(0);
        Ok(map(fd, bytes / WORD_BYTES, false)?)
    }

    /// Maps in all pages ahead of the first touch, piece by piece: for a thread that does nothing else.
    ///
    /// # Errors
    /// On kernels before 5.14, which have no `MADV_POPULATE_READ`; then pages come as they are touched.
    pub fn populate(&self) -> io::Result<()> {
        const PIECE_WORDS: usize = (16 << 20) / WORD_BYTES;
        for piece in self.slice().chunks(PIECE_WORDS) {
            let start = piece.as_ptr().cast_mut().cast();
            // SAFETY: the range is mapped as long as `piece` is borrowed; populating for reading changes nothing in it.
            unsafe { madvise(start, piece.len() * WORD_BYTES, Advice::LinuxPopulateRead) }?;
        }
        Ok(())
    }

    /// Asks the kernel to put huge pages under this memory, piece by piece: random reads of a large segment otherwise wait for
    /// walks of the page table. For a thread that does nothing else; whoever touches a piece meanwhile waits for its copy.
    ///
    /// # Errors
    /// What the kernel says: it knows no `MADV_COLLAPSE` (before Linux 6.1), forbids huge pages, or has none left. Then the
    /// rest stays as it is, which is only slower.
    pub fn collapse(&self) -> io::Result<()> {
        // 2 MiB at a time hold up a writer for some 100 us.
        for piece in self.slice().chunks_exact(HUGE_BYTES / WORD_BYTES) {
            let start = piece.as_ptr().cast_mut().cast();
            // SAFETY: the range is mapped as long as `piece` is borrowed; what lies under it changes, not what is in it.
            if unsafe { libc::madvise(start, HUGE_BYTES, libc::MADV_COLLAPSE) } != 0 {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(())
    }

    /// Maps the first `bytes` bytes of `file` shared and writable. The file must be that long already and stay so: whoever
    /// shortens it kills this process.
    ///
    /// # Errors
    /// `InvalidInput` when the file is shorter than `bytes` or `bytes` is no multiple of 8; else what the kernel says.
    pub fn map_file(file: &File, bytes: usize) -> io::Result<Arc<Words>> {
        let has = file.metadata()?.len();
        if has < bytes as u64 || !bytes.is_multiple_of(WORD_BYTES) {
            let message = format!("cannot map {bytes} bytes of a file of {has}");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
        }
        map(file.as_fd(), bytes / WORD_BYTES, true)
    }
}

/// What a huge page has, and where it begins.
const HUGE_BYTES: usize = 2 << 20;

fn map(fd: BorrowedFd<'_>, len: usize, writable: bool) -> io::Result<Arc<Words>> {
    if len == 0 {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "nothing to map"));
    }
    let bytes = len * WORD_BYTES;
    let prot = if writable { ProtFlags::READ | ProtFlags::WRITE } else { ProtFlags::READ };
    let start = if bytes < HUGE_BYTES {
        // SAFETY: a new mapping at an address of the kernel's choice touches nothing that exists.
        unsafe { mmap(std::ptr::null_mut(), bytes, prot, MapFlags::SHARED, fd, 0) }?
    } else {
        map_aligned(fd, bytes, prot)?
    };
    let start = std::ptr::NonNull::new(start).expect("mmap never answers null when it succeeds");
    // SAFETY: the mapping was just made with this length and belongs to nobody else. Its pages stay: callers checked seals
    // or own the file.
    let memory = unsafe { raw::Memory::map(start, len) };
    // Core dumps must not carry what the cache holds. A kernel that cannot is no reason to fail.
    // SAFETY: the range is the mapping just made; DONTDUMP changes nothing in it.
    let _ = unsafe { madvise(start.as_ptr(), len * WORD_BYTES, Advice::LinuxDontDump) };
    Ok(Words::mapped(memory, writable))
}

/// Maps at the beginning of a huge page, so that huge pages of the file can be mapped as such.
fn map_aligned(fd: BorrowedFd<'_>, bytes: usize, prot: ProtFlags) -> io::Result<*mut c_void> {
    let bytes = bytes.next_multiple_of(rustix::param::page_size());
    let room_bytes = bytes + HUGE_BYTES;
    // SAFETY: a new mapping at an address of the kernel's choice touches nothing that exists.
    let room = unsafe {
        mmap_anonymous(
            std::ptr::null_mut(),
            room_bytes,
            ProtFlags::empty(),
            MapFlags::PRIVATE | MapFlags::NORESERVE,
        )
    }?;
    let before = room.align_offset(HUGE_BYTES);
    let start = room.wrapping_byte_add(before);
    // SAFETY: the range lies within the room just made, which nobody else knows of.
    let mapped = unsafe { mmap(start, bytes, prot, MapFlags::SHARED | MapFlags::FIXED, fd, 0) };
    // What is not needed of the room: in front, and behind; all of it if the mapping failed.
    let kept = if mapped.is_ok() { bytes } else { 0 };
    let rest = [(room, before), (start.wrapping_byte_add(kept), room_bytes - before - kept)];
    for (at, bytes) in rest.into_iter().filter(|(_, bytes)| *bytes > 0) {
        // SAFETY: this part of the room is not used by anybody.
        unsafe { munmap(at, bytes) }?;
    }
    Ok(mapped?)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use rustix::fs::{copy_file_range, sendfile};
    use rustix::mm::{MprotectFlags, mprotect, munmap};

    use super::*;

    #[test]
    fn what_the_daemon_writes_a_client_reads() {
        let (words, fd) = Words::memfd(c"kvd-test", 10_000).unwrap();
        assert_eq!(words.len() * WORD_BYTES, 12_288);
        let reader = Words::attach(&fd).unwrap();
        words.copy_in(3, b"across two maps");
        let mut out = Vec::new();
        reader.copy_out(3, 15, &mut out);
        assert_eq!(out, b"across two maps");
    }

    #[test]
    fn an_attached_map_refuses_stores() {
        let (_words, fd) = Words::memfd(c"kvd-test", 4096).unwrap();
        let reader = Words::attach(&fd).unwrap();
        assert!(!reader.is_writable());
        assert!(std::panic::catch_unwind(|| reader.store(0, 1)).is_err());
        assert!(std::panic::catch_unwind(|| reader.copy_in(0, b"x")).is_err());
        assert!(std::panic::catch_unwind(|| reader.fetch_add(0, 0)).is_err());
    }

    /// A sealed memfd with something in it, and what a client may do its worst with.
    fn filled() -> (Arc<Words>, OwnedFd) {
        let (words, fd) = Words::memfd(c"kvd-test", BYTES).unwrap();
        (0..words.len()).for_each(|at| words.store(at, at as u64 + 7));
        (words, fd)
    }

    const BYTES: usize = 16 * 4096;

    /// Size, contents and seals are what they were, and the daemon writes on.
    fn assert_unchanged(words: &Words, fd: BorrowedFd<'_>) {
        assert_eq!(fstat(fd).unwrap().st_size, BYTES as i64);
        assert_eq!(fcntl_get_seals(fd).unwrap() & SEALS, SEALS);
        assert!((0..words.len()).all(|at| words.load(at) == at as u64 + 7));
        words.store(0, 8);
        words.store(0, 7);
    }

    /// Everything that changes a file by its descriptor.
    fn assert_descriptor_changes_nothing(fd: BorrowedFd<'_>, how: &str) {
        let refused = |what: &str, is_refused: bool| assert!(is_refused, "{what} was let through by {how}");
        let other = || File::open("/proc/self/exe").unwrap();
        let holes = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        refused("mmap", map(fd, BYTES / WORD_BYTES, true).is_err());
        refused("write", rustix::io::write(fd, b"x").is_err());
        refused("pwrite", rustix::io::pwrite(fd, b"x", 8).is_err());
        refused("pwritev", rustix::io::pwritev(fd, &[io::IoSlice::new(b"x")], 8).is_err());
        refused("shrinking", ftruncate(fd, 4096).is_err());
        refused("emptying", ftruncate(fd, 0).is_err());
        refused("growing", ftruncate(fd, 2 * BYTES as u64).is_err());
        refused("a longer fallocate", fallocate(fd, FallocateFlags::empty(), 0, 2 * BYTES as u64).is_err());
        refused("a hole", fallocate(fd, holes, 0, 4096).is_err());
        refused("zeroes", fallocate(fd, FallocateFlags::ZERO_RANGE, 0, 4096).is_err());
        refused("collapsing", fallocate(fd, FallocateFlags::COLLAPSE_RANGE, 0, 4096).is_err());
        refused("copy_file_range", copy_file_range(other(), Some(&mut 0), fd, Some(&mut 0), 64).is_err());
        refused("sendfile", sendfile(fd, other(), Some(&mut 0), 64).is_err());
        for seal in [SealFlags::SEAL, SealFlags::WRITE, SealFlags::SHRINK, SealFlags::from_bits_retain(0x20)]
        {
            refused("a seal", fcntl_add_seals(fd, seal).is_err());
        }
    }

    /// Opened again for writing by `path`, if the kernel lets us: root may open what the mode forbids.
    fn assert_reopening_changes_nothing(path: &str) {
        for write_only in [false, true] {
            if let Ok(again) = File::options().read(!write_only).write(true).open(path) {
                assert_descriptor_changes_nothing(again.as_fd(), path);
            }
        }
        let appended = File::options().append(true).open(path).map(|again| rustix::io::write(again, b"x"));
        assert!(!matches!(appended, Ok(Ok(_))), "{path} was appended to");
        assert!(File::options().write(true).truncate(true).open(path).is_err(), "{path} was truncated");
    }

    #[test]
    fn a_received_descriptor_changes_nothing() {
        let (words, fd) = filled();
        let received = fd.try_clone().unwrap();
        assert_descriptor_changes_nothing(received.as_fd(), "what was received");
        assert_unchanged(&words, fd.as_fd());
        let by_fd = format!("/proc/self/fd/{}", received.as_raw_fd());
        assert_reopening_changes_nothing(&by_fd);
        assert_unchanged(&words, fd.as_fd());
        // A process of the daemon's user may change the mode; it gains nothing by it.
        for mode in [Mode::RUSR | Mode::WUSR, Mode::RWXU, Mode::all()] {
            let _ = fchmod(&received, mode);
            assert_descriptor_changes_nothing(received.as_fd(), "what was received, after fchmod");
            assert_reopening_changes_nothing(&by_fd);
        }
        assert_unchanged(&words, fd.as_fd());
    }

    #[test]
    fn a_clients_map_changes_nothing() {
        let (words, fd) = filled();
        let reader = Words::attach(&fd).unwrap();
        let start = reader.slice().as_ptr().cast_mut().cast::<std::ffi::c_void>();
        for flags in [MprotectFlags::WRITE, MprotectFlags::READ | MprotectFlags::WRITE, MprotectFlags::all()]
        {
            // SAFETY: the range is mapped while `reader` lives; refused, it changes nothing, and granted, the test fails.
            assert!(unsafe { mprotect(start, BYTES, flags) }.is_err(), "{flags:?}");
        }
        for advice in [Advice::LinuxRemove, Advice::LinuxPopulateWrite] {
            // SAFETY: as above.
            assert!(unsafe { madvise(start, BYTES, advice) }.is_err(), "{advice:?}");
        }
        // What this throws away comes back from the memfd.
        // SAFETY: the map is shared, so its pages stay what they are.
        unsafe { madvise(start, BYTES, Advice::LinuxDontNeed) }.unwrap();
        // A debugger's way, which writes even where a page is read-only, if it may ever become writable.
        let memory = File::options().read(true).write(true).open("/proc/self/mem").unwrap();
        assert!(rustix::io::pwrite(&memory, b"x", start as u64).is_err());
        assert_unchanged(&words, fd.as_fd());
        let (from, to) = (start as usize, start as usize + BYTES);
        assert_reopening_changes_nothing(&format!("/proc/self/map_files/{from:x}-{to:x}"));
        assert_unchanged(&words, fd.as_fd());
        assert!((0..reader.len()).all(|at| reader.load(at) == at as u64 + 7));
    }

    #[test]
    fn a_clients_private_copy_is_its_own() {
        let (words, fd) = filled();
        let prot = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice touches nothing that exists.
        let start = unsafe { mmap(std::ptr::null_mut(), BYTES, prot, MapFlags::PRIVATE, &fd, 0) }.unwrap();
        // SAFETY: the mapping was just made, is writable and ours.
        unsafe { start.cast::<u64>().write(666) };
        assert_unchanged(&words, fd.as_fd());
        // SAFETY: nobody else knows of this mapping.
        unsafe { munmap(start, BYTES) }.unwrap();
    }

    #[test]
    fn an_unsealed_descriptor_is_refused() {
        let fd = memfd_create(c"kvd-test", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
        ftruncate(&fd, 4096).unwrap();
        assert!(matches!(Words::attach(&fd), Err(AttachError::NotSealed { .. })));
        let file = File::open("/proc/self/exe").unwrap();
        assert!(matches!(Words::attach(&file), Err(AttachError::Io(_))));
    }

    #[test]
    fn a_mapped_file_holds_what_was_stored() {
        let path = std::env::temp_dir().join(format!("kvd-words-{}", std::process::id()));
        let file = File::options().read(true).write(true).create(true).truncate(true).open(&path).unwrap();
        assert_eq!(Words::map_file(&file, 4096).unwrap_err().kind(), io::ErrorKind::InvalidInput);
        file.set_len(4096).unwrap();
        let words = Words::map_file(&file, 4096).unwrap();
        words.store(2, u64::from_le_bytes(*b"by a map"));
        let bytes = std::fs::read(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        assert_eq!(&bytes[16..24], b"by a map");
    }
}
