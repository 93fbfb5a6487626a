//! The differences between systems with a kqueue: the one that the model follows, and the answers
//! of calls other than those of a kqueue there. `GAIO_KQUEUE_MODEL` names it: `new`, `old` or
//! `netbsd`.

use std::ffi::c_int;
use std::io::Write;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use super::poll;
use crate::error::Errno;

/// The type of a descriptor that is no file at all.
const NO_FILE: libc::mode_t = 0;

/// The kind of system that is modelled.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Ways {
    /// A kqueue with user events and receipts.
    New,
    /// A kqueue without them.
    Old,
    /// A kqueue without them, and with all else that NetBSD before 10 does in its own way.
    NetBsd,
}

impl Ways {
    /// The environment's choice. It is asked for once, since tests count allocations.
    fn of_environment() -> Option<Ways> {
        static WAYS: OnceLock<Option<Ways>> = OnceLock::new();
        *WAYS.get_or_init(|| match std::env::var("GAIO_KQUEUE_MODEL").as_deref() {
            Err(_) | Ok("new") => Some(Ways::New),
            Ok("old") => Some(Ways::Old),
            Ok("netbsd") => Some(Ways::NetBsd),
            Ok(_) => None,
        })
    }

    /// The choice for a new queue.
    pub(super) fn choose() -> Result<Ways, Errno> {
        Ways::of_environment().ok_or(Errno(libc::EINVAL))
    }

    /// Whether there are `EV_RECEIPT` and `EVFILT_USER`.
    pub(super) fn has_user_events(self) -> bool {
        self == Ways::New
    }

    /// The time at which a timer fires that is set now. NetBSD's timers run by ticks, and the
    /// present tick counts as a whole one.
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

    /// Whether the file behind a descriptor can be watched for `EVFILT_WRITE`.
    pub(super) fn may_watch_writing(
        self,
        what: BorrowedFd<'_>,
        file_type: libc::mode_t,
    ) -> Result<(), Errno> {
        let said = || poll(what.as_raw_fd());
        match file_type {
            // Either end is refused once the other is gone.
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

/// A kqueue's error for a descriptor that Linux cannot wait for.
pub(super) fn refused(errno: Errno, file_type: libc::mode_t) -> Errno {
    match (errno, file_type) {
        (Errno(libc::EPERM), libc::S_IFCHR) => Errno(libc::ENODEV),
        _ => errno,
    }
}

fn is_netbsd() -> bool {
    Ways::of_environment() == Some(Ways::NetBsd)
}

/// The flags of `send(2)` that the system heeds.
pub(in crate::sys) fn heeded(flags: c_int) -> c_int {
    if is_netbsd() {
        flags & !libc::MSG_DONTWAIT
    } else {
        flags
    }
}

/// The error of `accept(2)` on a listener that was shut down, in place of Linux's `EINVAL`. NetBSD
/// and macOS report nothing. OpenBSD and DragonFly report a lost connection, each time.
pub(in crate::sys) fn accept_says(errno: Errno) -> Errno {
    match errno {
        Errno(libc::EINVAL) if is_netbsd() => Errno(libc::EAGAIN),
        Errno(libc::EINVAL) => Errno(libc::ECONNABORTED),
        errno => errno,
    }
}

/// The result of `recv(2)` on a listener, in place of Linux's `ENOTCONN`: the end, if the listener
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

/// The result of `fcntl(2)` with `F_SETFL`, which fails for a kqueue.
pub(in crate::sys) fn may_set_flags(fd: RawFd) -> Result<(), Errno> {
    if is_queue(fd) {
        return Err(Errno(libc::ENOTTY));
    }
    Ok(())
}

/// Whether a descriptor is a queue, or any other epoll instance. It may be a duplicate.
pub(in crate::sys) fn is_queue(fd: RawFd) -> bool {
    const EPOLL: &[u8] = b"anon_inode:[eventpoll]";
    // Not on the heap, for the same reason as the table of descriptors.
    let (mut path, mut target) = ([0; 32], [0; EPOLL.len() + 1]);
    if write!(&mut path[..31], "/proc/self/fd/{fd}").is_err() {
        return false;
    }
    let (from, to) = (path.as_ptr().cast(), target.as_mut_ptr());
    // SAFETY: the path ends with a zero; the target is borrowed for the call, with its length.
    let len = unsafe { libc::readlink(from, to.cast(), target.len()) };
    usize::try_from(len).is_ok_and(|len| &target[..len] == EPOLL)
}
