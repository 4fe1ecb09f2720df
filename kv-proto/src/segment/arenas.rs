//! How many heaps the C library keeps for the daemon's threads.
//!
//! Called once by `kvd serve`. It has nothing to do with segments and stands here because it needs `unsafe`.

/// Lets all threads share so many heaps. Connections allocate what the flush thread frees, and each heap keeps its own free
/// memory: with glibc's eight heaps a core that was a tenth of a small daemon. Elsewhere than on glibc it does nothing.
pub fn share_heaps(heaps: u16) {
    #[cfg(target_env = "gnu")]
    // SAFETY: a number is stored in the C library's settings; no memory is touched.
    let _ = unsafe { libc::mallopt(libc::M_ARENA_MAX, libc::c_int::from(heaps)) };
    #[cfg(not(target_env = "gnu"))]
    let _ = heaps;
}
