//! A write that nobody can read must give an error, not a signal. Sends to sockets have a flag for
//! that; older systems of Apple's have an option of the socket. Some systems have a flag of the
//! descriptor for pipes, too. Elsewhere the signal is blocked during the write, and taken back.

use std::os::fd::BorrowedFd;

use crate::SocketKind;
use crate::error::Errno;

/// The flag of `send(2)` that asks for no signal. Older systems of Apple's ignore it:
/// [`disable_sigpipe`] is for them.
pub(super) const SEND_FLAG: libc::c_int = libc::MSG_NOSIGNAL;

/// Makes a descriptor raise no signal, where the calls that write cannot. Returns whether that took
/// a call.
#[allow(unused_variables)] // Most systems need no such call.
pub(crate) fn disable_sigpipe(fd: BorrowedFd<'_>, kind: SocketKind) -> Result<bool, Errno> {
    // An accepted socket has the option from its listener. A socket that was reset, or has ended in
    // both directions, takes no options any more.
    #[cfg(target_vendor = "apple")]
    if kind != SocketKind::Other {
        return match socket2::SockRef::from(&fd).set_nosigpipe(true) {
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(true),
            set => Ok(set.map(|()| true)?),
        };
    }
    #[cfg(any(target_vendor = "apple", target_os = "netbsd"))]
    if kind == SocketKind::Other {
        use std::os::fd::AsRawFd;
        // SAFETY: the call takes numbers and touches no memory of ours.
        let done = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETNOSIGPIPE, 1) };
        return super::check(done).map(|_| true);
    }
    Ok(false)
}

/// The number of calls that a write to a pipe takes in addition.
pub(super) use self::pipe::SIGPIPE_CALLS;
pub(super) use self::pipe::without_sigpipe;

/// The descriptor raises no signal: `disable_sigpipe` has seen to that.
#[cfg(any(target_vendor = "apple", target_os = "netbsd"))]
mod pipe {
    use crate::error::Errno;
    use crate::sys::uninterrupted;

    pub(crate) const SIGPIPE_CALLS: u64 = 0;

    pub(crate) fn without_sigpipe(
        write: impl FnMut() -> Result<usize, Errno>,
    ) -> Result<usize, Errno> {
        uninterrupted(write)
    }
}

#[cfg(not(any(target_vendor = "apple", target_os = "netbsd")))]
mod pipe {
    use std::mem::MaybeUninit;

    use crate::error::Errno;
    use crate::sys::uninterrupted;

    /// One call looks for pending signals, two change the mask.
    pub(crate) const SIGPIPE_CALLS: u64 = 3;

    /// Runs a write to a pipe with `SIGPIPE` blocked, and takes the signal back if the write raised
    /// it. These systems raise it in the thread that writes.
    pub(crate) fn without_sigpipe(
        write: impl FnMut() -> Result<usize, Errno>,
    ) -> Result<usize, Errno> {
        let mut pipe = MaybeUninit::<libc::sigset_t>::uninit();
        let mut before = MaybeUninit::<libc::sigset_t>::uninit();
        let mut pending = MaybeUninit::<libc::sigset_t>::uninit();
        // SAFETY: the sets are initialised by the calls that take them as output before they are
        // read; masking and unmasking touch this thread alone.
        unsafe {
            libc::sigemptyset(pipe.as_mut_ptr());
            libc::sigaddset(pipe.as_mut_ptr(), libc::SIGPIPE);
            libc::sigemptyset(pending.as_mut_ptr());
            libc::sigpending(pending.as_mut_ptr());
            let was_pending = libc::sigismember(pending.as_ptr(), libc::SIGPIPE) == 1;
            libc::pthread_sigmask(libc::SIG_BLOCK, pipe.as_ptr(), before.as_mut_ptr());
            let result = uninterrupted(write);
            if result == Err(Errno(libc::EPIPE)) && !was_pending {
                take(pipe.as_ptr());
            }
            libc::pthread_sigmask(libc::SIG_SETMASK, before.as_ptr(), std::ptr::null_mut());
            result
        }
    }

    /// Takes a pending signal of the set, without waiting.
    ///
    /// # Safety
    /// The set is initialised, and blocked in this thread.
    #[cfg(not(target_os = "openbsd"))]
    unsafe fn take(set: *const libc::sigset_t) {
        let now = crate::sys::timespec(std::time::Duration::ZERO);
        // SAFETY: the caller vouches for the set; the time is borrowed for the call.
        unsafe { libc::sigtimedwait(set, std::ptr::null_mut(), &raw const now) };
    }

    /// Takes a pending signal of the set, without `sigtimedwait(2)`: it waits only for a signal
    /// that is pending.
    ///
    /// # Safety
    /// The set is initialised, and blocked in this thread.
    #[cfg(target_os = "openbsd")]
    unsafe fn take(set: *const libc::sigset_t) {
        let mut pending = MaybeUninit::<libc::sigset_t>::uninit();
        let mut signal = 0;
        // SAFETY: the caller vouches for the set; `pending` is initialised before it is read.
        unsafe {
            libc::sigemptyset(pending.as_mut_ptr());
            libc::sigpending(pending.as_mut_ptr());
            if libc::sigismember(pending.as_ptr(), libc::SIGPIPE) == 1 {
                libc::sigwait(set, &raw mut signal);
            }
        }
    }
}
