//! Reads and writes of descriptors that are not sockets (a pipe, a terminal, an `eventfd`). They
//! neither block nor raise a signal.
//!
//! Such a descriptor is often shared with other watchers or other programs, and its blocking mode
//! belongs to all of them. So each call says by itself that it does not wait, where the system has
//! a flag for that. Linux has one, for pipes since 6.4, but not for terminals. Elsewhere the
//! descriptor must be in non-blocking mode. The mode is checked before each call, since others may
//! have changed it, and is restored when the descriptor is given up.

use std::os::fd::RawFd;

use super::sigpipe::{SIGPIPE_CALLS, without_sigpipe};
use super::{TRANSFER_MAX, check_len, uninterrupted};
use crate::Counts;
use crate::error::Errno;

/// The means that keeps calls on a descriptor from blocking.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum NoWait {
    /// A flag of each call.
    #[default]
    ByFlag,
    /// The descriptor's mode.
    ByMode,
    /// The descriptor's mode, which was switched here.
    Switched,
}

impl NoWait {
    /// The calls on the descriptor that this belongs to.
    #[inline]
    pub(crate) fn calls<'a>(&'a mut self, fd: RawFd, counts: &'a mut Counts) -> Calls<'a> {
        Calls {
            fd,
            how: self,
            counts,
        }
    }
}

/// Calls on one descriptor. Each call is counted here, except the first read or write of an
/// operation, which the caller counts.
#[derive(Debug)]
pub(crate) struct Calls<'a> {
    fd: RawFd,
    how: &'a mut NoWait,
    counts: &'a mut Counts,
}

impl Calls<'_> {
    /// Puts the descriptor into non-blocking mode, unless it is in that mode.
    ///
    /// # Errors
    /// The system's error.
    pub(crate) fn look(&mut self) -> Result<(), Errno> {
        if !self.counts.set_nonblocking(self.fd, true)? {
            *self.how = NoWait::Switched;
        } else if *self.how == NoWait::ByFlag {
            *self.how = NoWait::ByMode;
        }
        Ok(())
    }

    /// Restores the mode in which the descriptor came.
    pub(crate) fn restore(&mut self) {
        if std::mem::take(self.how) == NoWait::Switched {
            // Nothing can be done about a refusal.
            let _ = self.counts.set_nonblocking(self.fd, false);
        }
    }

    /// `read(2)`.
    ///
    /// # Safety
    /// `at` is valid for writes of `len` bytes.
    pub(crate) unsafe fn read(&mut self, at: *mut u8, len: usize) -> Result<usize, Errno> {
        let fd = self.fd;
        let room = libc::iovec {
            iov_base: at.cast(),
            iov_len: len.min(TRANSFER_MAX),
        };
        self.call(
            // SAFETY: the caller vouches for the memory.
            || unsafe { flagged::read(fd, &room) },
            // SAFETY: likewise.
            || check_len(unsafe { libc::read(fd, room.iov_base, room.iov_len) }),
        )
    }

    /// `read(2)` into memory that is initialised.
    #[cfg(gaio_uring)]
    pub(crate) fn read_into(&mut self, bytes: &mut [u8]) -> Result<usize, Errno> {
        // SAFETY: `bytes` is borrowed for the call, mutably.
        unsafe { self.read(bytes.as_mut_ptr(), bytes.len()) }
    }

    /// `write(2)`.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<usize, Errno> {
        let vector = libc::iovec {
            iov_base: bytes.as_ptr().cast_mut().cast(),
            iov_len: bytes.len().min(TRANSFER_MAX),
        };
        // SAFETY: the vector names `bytes`.
        unsafe { self.write_vectors(&[vector]) }
    }

    /// `writev(2)`.
    ///
    /// # Safety
    /// The memory that the vectors name is valid for reads.
    pub(crate) unsafe fn write_vectors(&mut self, from: &[libc::iovec]) -> Result<usize, Errno> {
        let fd = self.fd;
        self.counts.others += SIGPIPE_CALLS;
        without_sigpipe(|| {
            self.call(
                // SAFETY: as the caller says.
                || unsafe { flagged::write(fd, from) },
                // SAFETY: likewise.
                || check_len(unsafe { libc::writev(fd, from.as_ptr(), from.len() as _) }),
            )
        })
    }

    /// Makes the call with the flag. Where the flag is unknown, makes the plain call in
    /// non-blocking mode.
    fn call(
        &mut self,
        flagged: impl FnMut() -> Result<usize, Errno>,
        plain: impl FnMut() -> Result<usize, Errno>,
    ) -> Result<usize, Errno> {
        if *self.how == NoWait::ByFlag {
            match uninterrupted(flagged) {
                Err(Errno(libc::EOPNOTSUPP | libc::ENOSYS | libc::EINVAL | libc::EPERM)) => {}
                result => return result,
            }
            self.counts.others += u64::from(flagged::EXIST);
        }
        self.look()?;
        uninterrupted(plain)
    }
}

/// The calls that take flags. They are called by their numbers, because the C library may be older
/// than the kernel.
#[cfg(all(gaio_epoll, not(gaio_kqueue_model)))]
mod flagged {
    use std::os::fd::RawFd;

    use crate::error::Errno;
    use crate::sys::check_len;

    pub(super) const EXIST: bool = true;

    /// The current position; these descriptors have no others.
    const HERE: libc::c_long = -1;

    /// `preadv2(2)`.
    ///
    /// # Safety
    /// The memory that the vector names is valid for writes.
    pub(super) unsafe fn read(fd: RawFd, into: &libc::iovec) -> Result<usize, Errno> {
        let (at, count, flags) = (std::ptr::from_ref(into), 1usize, libc::RWF_NOWAIT);
        // SAFETY: as the caller says; the vector is borrowed for the call.
        let len = unsafe { libc::syscall(libc::SYS_preadv2, fd, at, count, HERE, HERE, flags) };
        check_len(len as isize)
    }

    /// `pwritev2(2)`.
    ///
    /// # Safety
    /// The memory that the vectors name is valid for reads.
    pub(super) unsafe fn write(fd: RawFd, from: &[libc::iovec]) -> Result<usize, Errno> {
        let (at, count, flags) = (from.as_ptr(), from.len(), libc::RWF_NOWAIT);
        // SAFETY: as the caller says; the vectors are borrowed for the call.
        let len = unsafe { libc::syscall(libc::SYS_pwritev2, fd, at, count, HERE, HERE, flags) };
        check_len(len as isize)
    }
}

/// Stands in for the calls on systems that do not have them.
#[cfg(not(all(gaio_epoll, not(gaio_kqueue_model))))]
mod flagged {
    use std::os::fd::RawFd;

    use crate::error::Errno;

    pub(super) const EXIST: bool = false;

    pub(super) unsafe fn read(_: RawFd, _: &libc::iovec) -> Result<usize, Errno> {
        Err(Errno(libc::ENOSYS))
    }

    pub(super) unsafe fn write(_: RawFd, _: &[libc::iovec]) -> Result<usize, Errno> {
        Err(Errno(libc::ENOSYS))
    }
}
