//! Two options of Unix sockets that no crate of ours offers: refusing descriptors, and holding on to the peer's process.
//!
//! Called by the daemon for each connection: it hands descriptors out and wants none. Without this the kernel would keep what
//! a client sends until it is read, counted against nobody the daemon knows.

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

/// Linux 6.16; `libc` has no name for it yet.
const SO_PASSRIGHTS: libc::c_int = 83;

/// Linux 6.5; `libc` has no name for it everywhere yet.
const SO_PEERPIDFD: libc::c_int = 77;

/// A descriptor of the process that connected this Unix socket: readable when that has died, whoever else keeps the socket
/// open, and never another process of the same number.
///
/// # Errors
/// On kernels before 6.5, and when the process has died already.
pub fn peer_process(socket: impl AsFd) -> io::Result<OwnedFd> {
    let mut descriptor: libc::c_int = -1;
    let mut bytes = libc::socklen_t::try_from(size_of_val(&descriptor)).expect("an int has four bytes");
    let socket = socket.as_fd().as_raw_fd();
    let to = std::ptr::from_mut(&mut descriptor).cast();
    // SAFETY: the kernel writes at most `bytes` bytes to `descriptor`, which lives until the call returns.
    let said = unsafe { libc::getsockopt(socket, libc::SOL_SOCKET, SO_PEERPIDFD, to, &raw mut bytes) };
    if said != 0 || descriptor < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor for us; nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

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
