//! Which process this is, without asking the kernel each time: a page that a forked child finds empty.
//!
//! Called by clients before they use a connection, because a child must not write to its parent's. The kernel wipes the page
//! in the child (`MADV_WIPEONFORK`, Linux 4.14), so nobody has to have called `fork` through us.

use std::ffi::c_void;
use std::ptr::{NonNull, null_mut};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous};

/// Where the number stands; `None`: the kernel cannot wipe, and is asked instead. Lives as long as the process.
struct Page(Option<NonNull<AtomicU32>>);

// SAFETY: what it points to is atomic and is never unmapped.
unsafe impl Send for Page {}
// SAFETY: as above.
unsafe impl Sync for Page {}

static PAGE: OnceLock<Page> = OnceLock::new();

/// The number of the calling process: two loads, and in a child of `fork` one system call.
///
/// ```
/// assert_eq!(kv_proto::segment::process_id(), std::process::id());
/// ```
#[inline]
#[must_use]
pub fn process_id() -> u32 {
    let Some(page) = PAGE.get_or_init(map).0 else { return std::process::id() };
    // SAFETY: the page is mapped for as long as the process lives, and holds nothing but this number.
    let known = unsafe { page.as_ref() };
    match known.load(Ordering::Relaxed) {
        // A process that was just begun, here or by `fork`. Threads that get here together store the same.
        0 => {
            let id = std::process::id();
            known.store(id, Ordering::Relaxed);
            id
        }
        id => id,
    }
}

fn map() -> Page {
    let bytes = rustix::param::page_size();
    // SAFETY: a new private mapping at a place of the kernel's choice touches nothing that exists.
    let start =
        unsafe { mmap_anonymous(null_mut(), bytes, ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE) };
    let Ok(start) = start else { return Page(None) };
    // SAFETY: the range is the whole of that mapping; it is advised before anybody has stored in it.
    let wiped: rustix::io::Result<()> = unsafe { madvise(start, bytes, Advice::LinuxWipeOnFork) };
    Page(wiped.ok().and_then(|()| NonNull::new(start.cast::<c_void>().cast())))
}
