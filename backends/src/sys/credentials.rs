//! Who is at the other end of a Unix socket. Each system tells it in its own way.

use std::os::fd::{AsRawFd, BorrowedFd};

use super::{check, peer_addr};
use crate::address::Address;
use crate::error::{Errno, ErrorContext, ErrorKind, Result};

/// The process at the other end of a Unix socket, as it was when the connection was made.
///
/// ```
/// use gaio::{PeerCred, Watcher};
/// use std::os::unix::net::UnixStream;
///
/// # fn main() -> gaio::Result<(), Box<dyn std::error::Error>> {
/// let (ours, _peer) = UnixStream::pair()?; // both ends in this process
/// let mut watcher = Watcher::<()>::new()?;
/// let conn = watcher.delegate(ours)?;
/// let PeerCred { pid, uid, gid, .. } = watcher.peer_cred(conn)?;
/// println!("process {pid:?} of user {uid}, group {gid}");
/// assert!(pid.is_none_or(|pid| pid == std::process::id()));
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct PeerCred {
    /// The process, if the system tells. DragonFly does not; Linux does not if the process is in
    /// another PID namespace.
    pub pid: Option<u32>,
    /// The effective user.
    pub uid: u32,
    /// The effective group.
    pub gid: u32,
}

/// The process at the other end.
///
/// # Errors
/// - `Unsupported` if it is not a Unix socket.
/// - `Os` with `ENOTCONN` if there is no other end, or `ENOTSOCK`.
pub fn peer_cred(fd: BorrowedFd<'_>) -> Result<PeerCred> {
    let context = ErrorContext::PeerCred;
    // Linux would answer for other sockets, too, with a user who does not exist.
    match peer_addr(fd) {
        Ok(Address::Unix(_)) => ask(fd).map_err(|errno| context.os_error(errno)),
        Ok(_) => Err(context.error(ErrorKind::Unsupported)),
        Err(errno) => Err(context.os_error(errno)),
    }
}

#[cfg(any(target_os = "linux", target_os = "android"))]
fn ask(fd: BorrowedFd<'_>) -> Result<PeerCred, Errno> {
    // SAFETY: the answer to this option is this structure of numbers.
    let peer: libc::ucred = unsafe { option(fd, libc::SOL_SOCKET, libc::SO_PEERCRED)? };
    Ok(PeerCred {
        pid: known(peer.pid),
        uid: peer.uid,
        gid: peer.gid,
    })
}

#[cfg(not(any(target_os = "linux", target_os = "android")))]
fn ask(fd: BorrowedFd<'_>) -> Result<PeerCred, Errno> {
    let (mut uid, mut gid) = (0, 0);
    // SAFETY: the two numbers are borrowed for the call.
    check(unsafe { libc::getpeereid(fd.as_raw_fd(), &raw mut uid, &raw mut gid) })?;
    Ok(PeerCred {
        pid: ask_pid(fd).ok().and_then(known),
        uid,
        gid,
    })
}

#[cfg(target_vendor = "apple")]
fn ask_pid(fd: BorrowedFd<'_>) -> Result<libc::pid_t, Errno> {
    // SAFETY: the answer to this option is this number.
    unsafe { option(fd, libc::SOL_LOCAL, libc::LOCAL_PEERPID) }
}

#[cfg(target_os = "freebsd")]
fn ask_pid(fd: BorrowedFd<'_>) -> Result<libc::pid_t, Errno> {
    // SAFETY: the answer to this option is this structure of numbers.
    let peer: libc::xucred = unsafe { option(fd, libc::SOL_LOCAL, libc::LOCAL_PEERCRED)? };
    // SAFETY: every value is one of this number. It is 0 before FreeBSD 13.
    Ok(unsafe { peer.cr_pid__c_anonymous_union.cr_pid })
}

#[cfg(target_os = "netbsd")]
fn ask_pid(fd: BorrowedFd<'_>) -> Result<libc::pid_t, Errno> {
    const SOL_LOCAL: libc::c_int = 0;
    // SAFETY: the answer to this option is this structure of numbers.
    let peer: libc::unpcbid = unsafe { option(fd, SOL_LOCAL, libc::LOCAL_PEEREID)? };
    Ok(peer.unp_pid)
}

#[cfg(target_os = "openbsd")]
fn ask_pid(fd: BorrowedFd<'_>) -> Result<libc::pid_t, Errno> {
    // SAFETY: the answer to this option is this structure of numbers.
    let peer: libc::sockpeercred = unsafe { option(fd, libc::SOL_SOCKET, libc::SO_PEERCRED)? };
    Ok(peer.pid)
}

/// DragonFly tells nobody.
#[cfg(target_os = "dragonfly")]
fn ask_pid(_: BorrowedFd<'_>) -> Result<libc::pid_t, Errno> {
    Ok(0)
}

/// A process number, unless it stands for none.
fn known(pid: libc::pid_t) -> Option<u32> {
    u32::try_from(pid).ok().filter(|pid| *pid > 0)
}

/// An option of a socket.
///
/// # Safety
/// For `T`, zeros and whatever the system answers to this option are valid.
#[cfg(not(target_os = "dragonfly"))]
unsafe fn option<T>(fd: BorrowedFd<'_>, level: libc::c_int, name: libc::c_int) -> Result<T, Errno> {
    // SAFETY: as the caller says.
    let mut value: T = unsafe { std::mem::zeroed() };
    let mut len = size_of::<T>() as libc::socklen_t;
    let at = (&raw mut value).cast();
    // SAFETY: the value is borrowed for the call together with its length.
    check(unsafe { libc::getsockopt(fd.as_raw_fd(), level, name, at, &raw mut len) })?;
    Ok(value)
}
