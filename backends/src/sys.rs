//! Thin wrappers around system calls: arguments in, `Errno` out, nothing decided here.

use std::io;
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};

use socket2::{SockAddr, SockRef, Socket, Type};

use crate::address::Address;
use crate::batch::Batch;
use crate::error::Errno;
use crate::{Interest, SocketKind, Until};

/// The most bytes one call transfers: the kernel's own limit is a page under 2 GiB.
pub(crate) const TRANSFER_MAX: usize = 1 << 30;

/// Turns a return value of -1 into the error it stands for.
pub(crate) fn check(returned: libc::c_int) -> Result<libc::c_int, Errno> {
    if returned == -1 {
        Err(Errno::last())
    } else {
        Ok(returned)
    }
}

fn timespec(duration: Duration) -> libc::timespec {
    libc::timespec {
        tv_sec: libc::time_t::try_from(duration.as_secs()).unwrap_or(libc::time_t::MAX),
        tv_nsec: duration.subsec_nanos() as _,
    }
}

#[inline]
fn check_len(returned: isize) -> Result<usize, Errno> {
    usize::try_from(returned).map_err(|_| Errno::last())
}

/// `recv(2)` that does not block.
///
/// # Safety
/// `at` is valid for writes of `len` bytes.
#[inline]
pub(crate) unsafe fn recv(fd: RawFd, at: *mut u8, len: usize) -> Result<usize, Errno> {
    // SAFETY: the caller vouches for the memory.
    check_len(unsafe { libc::recv(fd, at.cast(), len.min(TRANSFER_MAX), libc::MSG_DONTWAIT) })
}

/// `read(2)`, for descriptors that are not sockets and are in non-blocking mode.
///
/// # Safety
/// `at` is valid for writes of `len` bytes.
pub(crate) unsafe fn read(fd: RawFd, at: *mut u8, len: usize) -> Result<usize, Errno> {
    // SAFETY: the caller vouches for the memory.
    check_len(unsafe { libc::read(fd, at.cast(), len.min(TRANSFER_MAX)) })
}

/// Repeats a call that a signal interrupted.
#[inline]
pub(crate) fn uninterrupted<T>(mut call: impl FnMut() -> Result<T, Errno>) -> Result<T, Errno> {
    loop {
        match call() {
            Err(Errno(libc::EINTR)) => {}
            result => return result,
        }
    }
}

/// [`recv`] into memory that is initialised.
pub(crate) fn recv_into(fd: RawFd, bytes: &mut [u8]) -> Result<usize, Errno> {
    // SAFETY: `bytes` is borrowed for the call, mutably.
    uninterrupted(|| unsafe { recv(fd, bytes.as_mut_ptr(), bytes.len()) })
}

/// [`read`] into memory that is initialised.
pub(crate) fn read_into(fd: RawFd, bytes: &mut [u8]) -> Result<usize, Errno> {
    // SAFETY: `bytes` is borrowed for the call, mutably.
    uninterrupted(|| unsafe { read(fd, bytes.as_mut_ptr(), bytes.len()) })
}

/// `send(2)` that does not block and raises no signal.
#[inline]
pub(crate) fn send(fd: RawFd, bytes: &[u8]) -> Result<usize, Errno> {
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    let len = bytes.len().min(TRANSFER_MAX);
    // SAFETY: `bytes` is valid for reads of `len` bytes.
    uninterrupted(|| check_len(unsafe { libc::send(fd, bytes.as_ptr().cast(), len, flags) }))
}

/// `sendmsg(2)` that does not block and raises no signal.
pub(crate) fn send_batch(fd: RawFd, batch: &mut Batch) -> Result<usize, Errno> {
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    // SAFETY: `batch` owns the header and the vectors, and what these name stays in the table of
    // loads until it is drained.
    uninterrupted(|| check_len(unsafe { libc::sendmsg(fd, batch.header(), flags) }))
}

/// `write(2)`, for descriptors that are not sockets and are in non-blocking mode.
pub(crate) fn write(fd: RawFd, bytes: &[u8]) -> Result<usize, Errno> {
    let len = bytes.len().min(TRANSFER_MAX);
    without_sigpipe(|| {
        // SAFETY: `bytes` is valid for reads of `len` bytes.
        check_len(unsafe { libc::write(fd, bytes.as_ptr().cast(), len) })
    })
}

/// `writev(2)`, likewise.
pub(crate) fn write_batch(fd: RawFd, batch: &Batch) -> Result<usize, Errno> {
    let iovecs = batch.iovecs();
    without_sigpipe(|| {
        // SAFETY: the vectors name memory that stays in the table of loads until `batch` is
        // drained; there are at most `Batch::LEN_MAX` of them.
        check_len(unsafe { libc::writev(fd, iovecs.as_ptr(), iovecs.len() as libc::c_int) })
    })
}

/// Runs a write to a pipe with `SIGPIPE` blocked, and takes back the signal if the write raised
/// it: there is no `MSG_NOSIGNAL` for pipes.
fn without_sigpipe(write: impl FnMut() -> Result<usize, Errno>) -> Result<usize, Errno> {
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
            let now = timespec(Duration::ZERO);
            libc::sigtimedwait(pipe.as_ptr(), std::ptr::null_mut(), &raw const now);
        }
        libc::pthread_sigmask(libc::SIG_SETMASK, before.as_ptr(), std::ptr::null_mut());
        result
    }
}

/// `accept4(2)`: close-on-exec; the listener must be in non-blocking mode.
pub(crate) fn accept(fd: RawFd) -> Result<OwnedFd, Errno> {
    let null = std::ptr::null_mut();
    // SAFETY: no address is asked for.
    let accepted =
        check(unsafe { libc::accept4(fd, null, std::ptr::null_mut(), libc::SOCK_CLOEXEC) })?;
    // SAFETY: the call just made this descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(accepted) })
}

/// A stream socket that can be connected to `to`.
///
/// # Errors
/// The system's refusal, such as `EMFILE`.
pub fn stream_socket(to: &Address) -> Result<OwnedFd, Errno> {
    let socket = Socket::new(to.domain(), Type::STREAM, None)?;
    Ok(socket.into())
}

/// `connect(2)`; the socket must be in non-blocking mode.
pub(crate) fn connect(fd: BorrowedFd<'_>, to: &SockAddr) -> Result<(), Errno> {
    Ok(SockRef::from(&fd).connect(to)?)
}

/// `connect(2)` that does not block, in whatever mode the socket is.
pub(crate) fn connect_nonblocking(fd: BorrowedFd<'_>, to: &SockAddr) -> Result<(), Errno> {
    let was_on = set_nonblocking(fd, true)?;
    let connected = connect(fd, to);
    if !was_on {
        set_nonblocking(fd, false)?;
    }
    connected
}

/// How an asynchronous connect ended (`SO_ERROR`).
pub(crate) fn connect_result(fd: BorrowedFd<'_>) -> Result<(), Errno> {
    match SockRef::from(&fd).take_error()? {
        Some(error) => Err(error.into()),
        None => Ok(()),
    }
}

/// Who is on the other end.
///
/// # Errors
/// `ENOTCONN` if nobody is.
pub fn peer_addr(fd: BorrowedFd<'_>) -> Result<Address, Errno> {
    let raw = SockRef::from(&fd).peer_addr()?;
    Address::from_raw(&raw).ok_or(Errno(libc::EAFNOSUPPORT))
}

/// `shutdown(2)`.
pub(crate) fn shutdown(fd: BorrowedFd<'_>, how: Shutdown) -> Result<(), Errno> {
    Ok(SockRef::from(&fd).shutdown(how)?)
}

/// Switches non-blocking mode on or off; returns whether it was on.
pub(crate) fn set_nonblocking(fd: BorrowedFd<'_>, on: bool) -> Result<bool, Errno> {
    let raw = fd.as_raw_fd();
    // SAFETY: reading the flags touches no memory.
    let flags = check(unsafe { libc::fcntl(raw, libc::F_GETFL) })?;
    let was_on = flags & libc::O_NONBLOCK != 0;
    if was_on != on {
        let flags = flags ^ libc::O_NONBLOCK;
        // SAFETY: setting the flags touches no memory.
        check(unsafe { libc::fcntl(raw, libc::F_SETFL, flags) })?;
    }
    Ok(was_on)
}

/// Whether the descriptor is ready now, by `poll(2)`.
pub(crate) fn is_ready(fd: RawFd, interest: Interest) -> Result<bool, Errno> {
    let mut poll = libc::pollfd {
        fd,
        events: poll_events(interest),
        revents: 0,
    };
    // SAFETY: one entry, borrowed for the call.
    Ok(check(unsafe { libc::poll(&raw mut poll, 1, 0) })? > 0)
}

/// Sleeps until the descriptor is readable, or the time has come, or a signal.
#[cfg(gaio_uring)]
pub(crate) fn wait_readable(fd: BorrowedFd<'_>, until: Until) -> Result<(), Errno> {
    let mut poll = libc::pollfd {
        fd: fd.as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    };
    let left = match until {
        Until::Now => Some(Duration::ZERO),
        Until::Time(at) => Some(at.saturating_duration_since(Instant::now())),
        Until::Done => None,
    };
    let left = left.map(timespec);
    let timeout = left.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
    // SAFETY: one entry and the timeout, borrowed for the call; no signal mask.
    match check(unsafe { libc::ppoll(&raw mut poll, 1, timeout, std::ptr::null()) }) {
        Ok(_) | Err(Errno(libc::EINTR)) => Ok(()),
        Err(errno) => Err(errno),
    }
}

/// The events of `poll(2)` that mean ready.
pub(crate) fn poll_events(interest: Interest) -> libc::c_short {
    match interest {
        Interest::Readable => libc::POLLIN | libc::POLLRDHUP,
        Interest::Writable => libc::POLLOUT,
    }
}

/// Whether a socket is a Unix domain socket.
pub(crate) fn is_unix(fd: BorrowedFd<'_>) -> Result<bool, Errno> {
    Ok(SockRef::from(&fd).domain()? == socket2::Domain::UNIX)
}

/// What a descriptor is. `None`: nothing that can be waited for.
///
/// # Errors
/// The descriptor cannot be examined.
pub fn classify(fd: BorrowedFd<'_>) -> Result<Option<SocketKind>, Errno> {
    let socket = SockRef::from(&fd);
    let kind = match socket.r#type() {
        Ok(Type::STREAM) if socket.is_listener()? => Some(SocketKind::Listener),
        Ok(Type::STREAM) => Some(SocketKind::Stream),
        Ok(_) => None,
        Err(error) if error.raw_os_error() == Some(libc::ENOTSOCK) => {
            can_wait(fd)?.then_some(SocketKind::Other)
        }
        Err(error) => return Err(error.into()),
    };
    Ok(kind)
}

/// Whether the kernel can wait for this descriptor: `epoll_ctl(2)` says `EPERM` for regular
/// files, directories and the like.
fn can_wait(fd: BorrowedFd<'_>) -> Result<bool, Errno> {
    let scratch = epoll_create()?;
    match epoll_add(scratch.as_fd(), fd, 0, 0) {
        Ok(()) => Ok(true),
        Err(Errno(libc::EPERM)) => Ok(false),
        Err(errno) => Err(errno),
    }
}

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
    let mut event = libc::epoll_event {
        events: events as u32,
        u64: token,
    };
    // SAFETY: `event` is borrowed for the call.
    check(unsafe {
        libc::epoll_ctl(
            epoll.as_raw_fd(),
            libc::EPOLL_CTL_ADD,
            fd.as_raw_fd(),
            &raw mut event,
        )
    })
    .map(drop)
}

/// Removes `fd` from an epoll instance.
pub(crate) fn epoll_del(epoll: BorrowedFd<'_>, fd: BorrowedFd<'_>) -> Result<(), Errno> {
    // SAFETY: removal takes no event.
    check(unsafe {
        libc::epoll_ctl(
            epoll.as_raw_fd(),
            libc::EPOLL_CTL_DEL,
            fd.as_raw_fd(),
            std::ptr::null_mut(),
        )
    })
    .map(drop)
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

/// `epoll_pwait2(2)`: the same with a timeout in nanoseconds. By its number, because the C library
/// may be older than the kernel.
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

/// A close-on-exec `eventfd(2)` in blocking mode: nobody but a ring reads it while it is zero.
pub(crate) fn eventfd() -> Result<OwnedFd, Errno> {
    // SAFETY: no memory is passed.
    let fd = check(unsafe { libc::eventfd(0, libc::EFD_CLOEXEC) })?;
    // SAFETY: the call just made this descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Adds one to an eventfd.
pub(crate) fn signal_event(fd: BorrowedFd<'_>) {
    let one = 1u64.to_ne_bytes();
    // A failure means that the count is at its maximum: then it is readable, which is the point.
    // SAFETY: eight bytes, borrowed for the call.
    unsafe { libc::write(fd.as_raw_fd(), one.as_ptr().cast(), one.len()) };
}

/// Takes an eventfd back to zero, without blocking if it is. Returns how many calls that took.
pub(crate) fn clear_event(fd: BorrowedFd<'_>) -> u64 {
    if is_ready(fd.as_raw_fd(), Interest::Readable) != Ok(true) {
        return 1;
    }
    let mut count = [0u8; 8];
    // SAFETY: eight bytes, borrowed for the call. It is readable, and has this one reader.
    unsafe { libc::read(fd.as_raw_fd(), count.as_mut_ptr().cast(), count.len()) };
    2
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

/// Binds the calling thread to one CPU.
///
/// # Errors
/// `EINVAL` if there is no such CPU, or this process may not use it.
pub fn pin_thread(cpu: usize) -> Result<(), Errno> {
    if cpu >= libc::CPU_SETSIZE as usize {
        return Err(Errno(libc::EINVAL));
    }
    // SAFETY: a set of zeros is valid and empty; `cpu` is within it; the set is borrowed for the
    // call.
    check(unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(cpu, &mut set);
        libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const set)
    })
    .map(drop)
}

impl From<Errno> for io::Error {
    fn from(errno: Errno) -> Self {
        io::Error::from_raw_os_error(errno.0)
    }
}
