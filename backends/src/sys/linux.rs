//! The calls that only Linux has: `epoll(7)`, `eventfd(2)`, `timerfd(2)`.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::time::{Duration, Instant};

use super::{check, timespec};
use crate::error::Errno;
use crate::wake::Notifier;

/// A close-on-exec epoll instance.
pub(crate) fn epoll_create() -> Result<OwnedFd, Errno> {
    // SAFETY: no memory is passed.
    let fd = check(unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) })?;
    // SAFETY: the call just made this descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Registers `fd` with an epoll instance.
pub(crate) fn epoll_add(
    epoll: BorrowedFd<'_>,
    fd: BorrowedFd<'_>,
    events: libc::c_int,
    token: u64,
) -> Result<(), Errno> {
    epoll_control(epoll, libc::EPOLL_CTL_ADD, fd, events, token)
}

/// `epoll_ctl(2)`: registers `fd`, changes what it is waited for, or removes it.
pub(crate) fn epoll_control(
    epoll: BorrowedFd<'_>,
    operation: libc::c_int,
    fd: BorrowedFd<'_>,
    events: libc::c_int,
    token: u64,
) -> Result<(), Errno> {
    let mut event = libc::epoll_event {
        events: events as u32,
        u64: token,
    };
    // SAFETY: `event` is borrowed for the call.
    check(unsafe { libc::epoll_ctl(epoll.as_raw_fd(), operation, fd.as_raw_fd(), &raw mut event) })
        .map(drop)
}

/// Removes `fd` from an epoll instance.
pub(crate) fn epoll_del(epoll: BorrowedFd<'_>, fd: BorrowedFd<'_>) -> Result<(), Errno> {
    epoll_control(epoll, libc::EPOLL_CTL_DEL, fd, 0, 0)
}

/// `epoll_wait(2)`: fills `events` up to its capacity. A timeout of -1 is none.
pub(crate) fn epoll_wait(
    epoll: BorrowedFd<'_>,
    events: &mut Vec<libc::epoll_event>,
    timeout_ms: libc::c_int,
) -> Result<(), Errno> {
    events.clear();
    let room = libc::c_int::try_from(events.capacity()).unwrap_or(libc::c_int::MAX);
    // SAFETY: the vector owns memory for `room` events, borrowed for the call.
    let collected = check(unsafe {
        libc::epoll_wait(epoll.as_raw_fd(), events.as_mut_ptr(), room, timeout_ms)
    })?;
    // SAFETY: the call initialised that many events, which is not negative and at most `room`.
    unsafe { events.set_len(collected as usize) };
    Ok(())
}

/// `epoll_pwait2(2)`: `epoll_wait(2)` with a timeout in nanoseconds. It is called by its number,
/// because the C library may be older than the kernel.
pub(crate) fn epoll_wait_precise(
    epoll: BorrowedFd<'_>,
    events: &mut Vec<libc::epoll_event>,
    timeout: Duration,
) -> Result<(), Errno> {
    /// The kernel's own layout, the same on all architectures.
    #[repr(C)]
    struct Timespec {
        seconds: i64,
        nanoseconds: i64,
    }
    let timeout = Timespec {
        seconds: i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX),
        nanoseconds: i64::from(timeout.subsec_nanos()),
    };
    events.clear();
    let room = libc::c_int::try_from(events.capacity()).unwrap_or(libc::c_int::MAX);
    // SAFETY: the vector owns memory for `room` events; it and the timeout are borrowed for the
    // call. There is no signal mask.
    let collected = unsafe {
        libc::syscall(
            libc::SYS_epoll_pwait2,
            epoll.as_raw_fd(),
            events.as_mut_ptr(),
            room,
            &raw const timeout,
            std::ptr::null::<libc::sigset_t>(),
            0usize,
        )
    };
    if collected < 0 {
        return Err(Errno::last());
    }
    // SAFETY: the call initialised that many events, which is at most `room`.
    unsafe { events.set_len(collected as usize) };
    Ok(())
}

/// A close-on-exec `eventfd(2)` in blocking mode. Only a ring reads it while it is zero.
pub(crate) fn eventfd() -> Result<OwnedFd, Errno> {
    // SAFETY: no memory is passed.
    let fd = check(unsafe { libc::eventfd(0, libc::EFD_CLOEXEC) })?;
    // SAFETY: the call just made this descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Adds one to an eventfd.
pub(crate) fn signal_event(fd: BorrowedFd<'_>) {
    let one = 1u64.to_ne_bytes();
    // A failure means that the count is at its maximum. Then the eventfd is readable, which is all
    // that matters.
    // SAFETY: eight bytes, borrowed for the call.
    unsafe { libc::write(fd.as_raw_fd(), one.as_ptr().cast(), one.len()) };
}

/// Resets an eventfd to zero without blocking. It is read only if `poll(2)` finds it signalled.
/// Returns whether it was.
#[cfg(any(gaio_uring, gaio_kqueue_model))]
pub(crate) fn clear_event(fd: BorrowedFd<'_>) -> bool {
    if super::is_ready(fd.as_raw_fd(), crate::Interest::Readable) != Ok(true) {
        return false;
    }
    let mut count = [0u8; 8];
    // SAFETY: eight bytes, borrowed for the call. It is readable, and has this one reader.
    unsafe { libc::read(fd.as_raw_fd(), count.as_mut_ptr().cast(), count.len()) };
    true
}

/// A close-on-exec `timerfd(2)` on the monotonic clock.
pub(crate) fn timerfd() -> Result<OwnedFd, Errno> {
    let flags = libc::TFD_CLOEXEC | libc::TFD_NONBLOCK;
    // SAFETY: no memory is passed.
    let fd = check(unsafe { libc::timerfd_create(libc::CLOCK_MONOTONIC, flags) })?;
    // SAFETY: the call just made this descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Makes a timerfd readable at `at`, or never.
pub(crate) fn arm_timerfd(fd: BorrowedFd<'_>, at: Option<Instant>) {
    let left = at.map_or(Duration::ZERO, |at| {
        // Zero would disarm it.
        at.saturating_duration_since(Instant::now())
            .max(Duration::from_nanos(1))
    });
    let spec = libc::itimerspec {
        it_interval: timespec(Duration::ZERO),
        it_value: timespec(left),
    };
    // It fails only for a value out of range, which this is not.
    // SAFETY: the specification is borrowed for the call.
    unsafe { libc::timerfd_settime(fd.as_raw_fd(), 0, &raw const spec, std::ptr::null_mut()) };
}

/// An [`eventfd`] that wakes a watcher.
#[derive(Debug)]
pub(crate) struct EventNotifier(OwnedFd);

impl EventNotifier {
    pub(crate) fn new() -> Result<Self, Errno> {
        Ok(EventNotifier(eventfd()?))
    }
}

impl Notifier for EventNotifier {
    fn notify(&self) {
        signal_event(self.0.as_fd());
    }

    fn descriptor(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
