//! Refusing descriptors where none are expected.
//!
//! Called by the daemon for each connection: it hands descriptors out and wants none. Without this the kernel would keep what
//! a client sends until it is read, counted against nobody the daemon knows.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// Linux 6.16; `libc` has no name for it yet.
const SO_PASSRIGHTS: libc::c_int = 83;

/// Lets `sendmsg` of a peer fail if it carries descriptors for this Unix socket.
///
/// # Errors
/// On kernels before 6.16, where such descriptors are dropped when the bytes they came with are read.
pub fn refuse_descriptors(socket: impl AsFd) -> io::Result<()> {
    let off: libc::c_int = 0;
    let bytes = libc::socklen_t::try_from(size_of_val(&off)).expect("an int has four bytes");
    let socket = socket.as_fd().as_raw_fd();
    // SAFETY: the kernel reads `bytes` bytes of `off`, which lives until the call returns.
    let said = unsafe {
        libc::setsockopt(socket, libc::SOL_SOCKET, SO_PASSRIGHTS, std::ptr::from_ref(&off).cast(), bytes)
    };
    if said == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
