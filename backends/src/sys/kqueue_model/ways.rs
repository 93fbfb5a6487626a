//! Where systems with a kqueue differ: which one the model follows, and what calls other than those
//! of a kqueue answer there. `GAIO_KQUEUE_MODEL` names it: `new`, `old` or `netbsd`.

use std::ffi::c_int;
use std::io::Write;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use super::poll;
use crate::error::Errno;

/// The type of what is no file at all.
const NO_FILE: libc::mode_t = 0;

/// What is modelled.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Ways {
    /// A kqueue with user events and receipts.
    New,
    /// One without them.
    Old,
    /// One without them, and what else NetBSD before 10 does in its own way.
    NetBsd,
}

impl Ways {
    /// What the environment says; it is asked once, since tests count what is allocated.
    fn of_environment() -> Option<Ways> {
        static WAYS: OnceLock<Option<Ways>> = OnceLock::new();
        *WAYS.get_or_init(|| match std::env::var("GAIO_KQUEUE_MODEL").as_deref() {
            Err(_) | Ok("new") => Some(Ways::New),
            Ok("old") => Some(Ways::Old),
            Ok("netbsd") => Some(Ways::NetBsd),
            Ok(_) => None,
        })
    }

    /// The same for a new queue.
    pub(super) fn choose() -> Result<Ways, Errno> {
        Ways::of_environment().ok_or(Errno(libc::EINVAL))
    }

    /// Whether there are `EV_RECEIPT` and `EVFILT_USER`.
    pub(super) fn has_user_events(self) -> bool {
        self == Ways::New
    }

    /// When a timer fires that is set now. NetBSD's run by ticks, and the one that is running
    /// counts as whole.
    pub(super) fn fires_at(self, ms: u64) -> Instant {
        const TICK_MS: u64 = 10;
        static START: OnceLock<Instant> = OnceLock::new();
        if self != Ways::NetBsd {
            return Instant::now() + Duration::from_millis(ms);
        }
        let start = *START.get_or_init(Instant::now);
        let now_ms = start.elapsed().as_millis() as u64;
        let ticks = now_ms / TICK_MS + (ms / TICK_MS).max(1);
        start + Duration::from_millis(ticks * TICK_MS)
    }

    /// Whether what a descriptor stands for can be watched for `EVFILT_WRITE`.
    pub(super) fn may_watch_writing(
        self,
        what: BorrowedFd<'_>,
        file_type: libc::mode_t,
    ) -> Result<(), Errno> {
        let said = || poll(what.as_raw_fd());
        match file_type {
            // Of either end, once the other is gone.
            libc::S_IFIFO if self == Ways::NetBsd => {
                let gone = said() & (libc::POLLERR | libc::POLLHUP) != 0;
                if gone {
                    Err(Errno(libc::EBADF))
                } else {
                    Ok(())
                }
            }
            libc::S_IFIFO if said() & libc::POLLERR != 0 => Err(Errno(libc::EPIPE)),
            NO_FILE if is_queue(what.as_raw_fd()) => Err(Errno(libc::EINVAL)),
            _ => Ok(()),
        }
    }
}

/// What a kqueue says of what Linux cannot wait for.
pub(super) fn refused(errno: Errno, file_type: libc::mode_t) -> Errno {
    match (errno, file_type) {
        (Errno(libc::EPERM), libc::S_IFCHR) => Errno(libc::ENODEV),
        _ => errno,
    }
}

fn is_netbsd() -> bool {
    Ways::of_environment() == Some(Ways::NetBsd)
}

/// Flags of `send(2)`, as far as the system heeds them.
pub(in crate::sys) fn heeded(flags: c_int) -> c_int {
    if is_netbsd() {
        flags & !libc::MSG_DONTWAIT
    } else {
        flags
    }
}

/// What `accept(2)` says instead of Linux' `EINVAL` of a listener that was shut down: nothing (NetBSD,
/// macOS), or as often as it is asked that a connection was lost (OpenBSD, DragonFly).
pub(in crate::sys) fn accept_says(errno: Errno) -> Errno {
    match errno {
        Errno(libc::EINVAL) if is_netbsd() => Errno(libc::EAGAIN),
        Errno(libc::EINVAL) => Errno(libc::ECONNABORTED),
        errno => errno,
    }
}

/// What `recv(2)` says of a listener instead of Linux' `ENOTCONN`, which is all it says: the end, if it
/// was shut down.
pub(in crate::sys) fn listener_reads(
    fd: RawFd,
    said: Result<usize, Errno>,
) -> Result<usize, Errno> {
    // SAFETY: the caller has the descriptor open.
    let listener = unsafe { BorrowedFd::borrow_raw(fd) };
    match socket2::SockRef::from(&listener).is_listener() {
        Ok(false) => Ok(0),
        _ => said,
    }
}

/// `fcntl(2)` with `F_SETFL` ends so for a kqueue.
pub(in crate::sys) fn may_set_flags(fd: RawFd) -> Result<(), Errno> {
    if is_queue(fd) {
        return Err(Errno(libc::ENOTTY));
    }
    Ok(())
}

/// Whether this is a queue, or any other epoll instance, under whatever number.
pub(in crate::sys) fn is_queue(fd: RawFd) -> bool {
    const EPOLL: &[u8] = b"anon_inode:[eventpoll]";
    // Not on the heap, as the table of descriptors.
    let (mut path, mut target) = ([0; 32], [0; EPOLL.len() + 1]);
    if write!(&mut path[..31], "/proc/self/fd/{fd}").is_err() {
        return false;
    }
    let (from, to) = (path.as_ptr().cast(), target.as_mut_ptr());
    // SAFETY: the path ends with a zero; the target is borrowed for the call, with its length.
    let len = unsafe { libc::readlink(from, to.cast(), target.len()) };
    usize::try_from(len).is_ok_and(|len| &target[..len] == EPOLL)
}
