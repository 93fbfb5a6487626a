//! Thin wrappers around system calls: arguments in, `Errno` out, no decisions. This file has the
//! calls of all systems. `linux.rs` and `kqueue/` have those of some systems. `cpu.rs`,
//! `credentials.rs`, `fork.rs` and `sigpipe.rs` have those that each system has in a form of its own,
//! and `file.rs` the reads and writes of descriptors that are not sockets.

mod cpu;
mod credentials;
mod file;
mod fork;
#[cfg(gaio_kqueue)]
pub(crate) mod kqueue;
#[cfg(gaio_kqueue_model)]
mod kqueue_model;
#[cfg(gaio_epoll)]
mod linux;
mod process;
mod sigpipe;

use std::io;
use std::net::Shutdown;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;
#[cfg(gaio_uring)]
use std::time::Instant;

use socket2::{SockAddr, SockRef, Socket, Type};

#[cfg(gaio_uring)]
use crate::Until;
use crate::address::Address;
use crate::error::Errno;
use crate::{Counts, Interest, SocketKind};

pub use cpu::pin_thread;
pub use credentials::{PeerCred, peer_cred};
pub(crate) use file::{Calls, NoWait};
#[cfg(gaio_epoll)]
pub(crate) use linux::*;
pub use process::Process;
use sigpipe::SEND_FLAG;
pub(crate) use sigpipe::disable_sigpipe;

/// The greatest number of bytes of one call. The kernel's own limit is a page below 2 GiB.
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
        // Sixty-eight years are enough, and fit into every system's type for seconds.
        tv_sec: duration.as_secs().min(i32::MAX as u64) as _,
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

/// The flags of a send that must not block and must not raise a signal. macOS and NetBSD do not
/// heed the first one: there, the socket must be in non-blocking mode.
#[inline]
fn send_flags() -> libc::c_int {
    let flags = libc::MSG_DONTWAIT | SEND_FLAG;
    #[cfg(gaio_kqueue_model)]
    let flags = kqueue_model::heeded(flags);
    flags
}

/// `send(2)` that does not block and raises no signal.
#[inline]
pub(crate) fn send(fd: RawFd, bytes: &[u8]) -> Result<usize, Errno> {
    let flags = send_flags();
    let len = bytes.len().min(TRANSFER_MAX);
    // SAFETY: `bytes` is valid for reads of `len` bytes.
    uninterrupted(|| check_len(unsafe { libc::send(fd, bytes.as_ptr().cast(), len, flags) }))
}

/// `sendmsg(2)` that does not block and raises no signal.
///
/// # Safety
/// The header and its vectors are valid, and the memory that they name is valid for reads.
pub(crate) unsafe fn send_message(fd: RawFd, header: *const libc::msghdr) -> Result<usize, Errno> {
    let flags = send_flags();
    // SAFETY: as the caller says.
    uninterrupted(|| check_len(unsafe { libc::sendmsg(fd, header, flags) }))
}

/// `accept4(2)`: close-on-exec and in blocking mode; the listener must be in non-blocking mode.
#[cfg(not(target_vendor = "apple"))]
pub(crate) fn accept(fd: RawFd) -> Result<OwnedFd, Errno> {
    let null = std::ptr::null_mut();
    // SAFETY: no address is asked for.
    let accepted =
        check(unsafe { libc::accept4(fd, null, std::ptr::null_mut(), libc::SOCK_CLOEXEC) });
    #[cfg(gaio_kqueue_model)]
    let accepted = accepted.map_err(kqueue_model::accept_says);
    let accepted = accepted?;
    // SAFETY: the call just made this descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(accepted) })
}

/// Accepts where `accept(2)` takes no flags, and the socket inherits the listener's mode.
#[cfg(target_vendor = "apple")]
pub(crate) fn accept(fd: RawFd) -> Result<OwnedFd, Errno> {
    let null = std::ptr::null_mut();
    // SAFETY: no address is asked for.
    let accepted = check(unsafe { libc::accept(fd, null, std::ptr::null_mut()) })?;
    // SAFETY: the call just made this descriptor.
    let accepted = unsafe { OwnedFd::from_raw_fd(accepted) };
    close_on_exec(accepted.as_raw_fd())?;
    set_nonblocking(std::os::fd::AsFd::as_fd(&accepted), false)?;
    Ok(accepted)
}

/// Whether a listener was shut down, so that no connection will come any more. An accept on it
/// fails with an error of its own on Linux. OpenBSD and DragonFly report a lost connection, each
/// time, and still call the socket a listener. But on all of them a read of it gives the end, while
/// a listener that listens has no peer to read from.
pub(crate) fn is_shut_down(fd: RawFd) -> bool {
    let flags = libc::MSG_PEEK | libc::MSG_DONTWAIT;
    let mut byte = 0u8;
    // SAFETY: one byte, borrowed for the call.
    let read = check_len(unsafe { libc::recv(fd, (&raw mut byte).cast(), 1, flags) });
    #[cfg(gaio_kqueue_model)]
    let read = kqueue_model::listener_reads(fd, read);
    read == Ok(0)
}

/// Sets close-on-exec on a descriptor whose call cannot.
#[cfg(gaio_kqueue)]
pub(crate) fn close_on_exec(fd: RawFd) -> Result<(), Errno> {
    // SAFETY: the call takes numbers and touches no memory of ours.
    check(unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) }).map(drop)
}

/// A duplicate of a descriptor.
pub(crate) fn duplicate(fd: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    fd.try_clone_to_owned().map_err(|error| match error.into() {
        // The limit is so low that the least number asked for lies above it.
        Errno(libc::EINVAL) => Errno(libc::EMFILE),
        errno => errno,
    })
}

/// A stream socket that can be connected to `to`. One for TCP sends small writes at once.
///
/// # Errors
/// The system's error, such as `EMFILE`.
pub fn stream_socket(to: &Address) -> Result<OwnedFd, Errno> {
    let socket = Socket::new(to.domain(), Type::STREAM, None)?;
    if let Address::Ip(_) = to {
        socket.set_tcp_nodelay(true)?;
    }
    Ok(socket.into())
}

/// `connect(2)`; the socket must be in non-blocking mode.
pub(crate) fn connect(fd: BorrowedFd<'_>, to: &SockAddr) -> Result<(), Errno> {
    Ok(SockRef::from(&fd).connect(to)?)
}

/// `connect(2)` that does not block, whatever the socket's mode.
pub(crate) fn connect_nonblocking(
    counts: &mut Counts,
    fd: BorrowedFd<'_>,
    to: &SockAddr,
) -> Result<(), Errno> {
    let was_on = counts.set_nonblocking(fd, true)?;
    counts.accepts += 1;
    let connected = connect(fd, to);
    if !was_on {
        counts.set_nonblocking(fd, false)?;
    }
    connected
}

/// The result of an asynchronous connect (`SO_ERROR`).
pub(crate) fn connect_result(fd: BorrowedFd<'_>) -> Result<(), Errno> {
    match SockRef::from(&fd).take_error()? {
        Some(error) => Err(error.into()),
        None => Ok(()),
    }
}

/// The address of the other end.
///
/// # Errors
/// `ENOTCONN` if there is none.
pub fn peer_addr(fd: BorrowedFd<'_>) -> Result<Address, Errno> {
    let raw = SockRef::from(&fd).peer_addr()?;
    Address::from_raw(&raw).ok_or(Errno(libc::EAFNOSUPPORT))
}

/// The address of this end.
///
/// # Errors
/// `ENOTSOCK` if it is no socket.
pub fn local_addr(fd: BorrowedFd<'_>) -> Result<Address, Errno> {
    let raw = SockRef::from(&fd).local_addr()?;
    Address::from_raw(&raw).ok_or(Errno(libc::EAFNOSUPPORT))
}

/// `shutdown(2)`.
pub(crate) fn shutdown(fd: BorrowedFd<'_>, how: Shutdown) -> Result<(), Errno> {
    Ok(SockRef::from(&fd).shutdown(how)?)
}

/// Switches non-blocking mode on or off. Returns whether it was on.
pub(crate) fn set_nonblocking(fd: impl AsRawFd, on: bool) -> Result<bool, Errno> {
    let fd = fd.as_raw_fd();
    // SAFETY: reading the flags touches no memory.
    let flags = check(unsafe { libc::fcntl(fd, libc::F_GETFL) })?;
    let was_on = flags & libc::O_NONBLOCK != 0;
    if was_on != on {
        #[cfg(gaio_kqueue_model)]
        kqueue_model::may_set_flags(fd)?;
        // SAFETY: setting the flags touches no memory.
        check(unsafe { libc::fcntl(fd, libc::F_SETFL, flags ^ libc::O_NONBLOCK) })?;
    }
    Ok(was_on)
}

/// The type of a file, as the system reports it. A kqueue reports that it is a pipe.
#[cfg(gaio_kqueue)]
fn file_type(fd: BorrowedFd<'_>) -> Result<libc::mode_t, Errno> {
    #[cfg(gaio_kqueue_model)]
    if kqueue_model::is_queue(fd.as_raw_fd()) {
        return Ok(libc::S_IFIFO);
    }
    // SAFETY: for this structure of numbers, zeros are valid.
    let mut status: libc::stat = unsafe { std::mem::zeroed() };
    // SAFETY: `status` is borrowed for the call.
    check(unsafe { libc::fstat(fd.as_raw_fd(), &raw mut status) })?;
    Ok(status.st_mode & libc::S_IFMT)
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

/// Sleeps until the descriptor is readable, the time has come, or a signal arrives.
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
        Interest::Readable => libc::POLLIN,
        Interest::Writable => libc::POLLOUT,
    }
}

/// Whether a socket may be a Unix domain socket. On some systems (NetBSD, OpenBSD), a TCP socket
/// that was reset has no address any more.
pub(crate) fn may_be_unix(fd: BorrowedFd<'_>) -> bool {
    let address = SockRef::from(&fd).local_addr();
    address.map_or(true, |address| address.is_unix())
}

/// The kind of a descriptor. `None` if it cannot be waited for.
///
/// # Errors
/// The descriptor cannot be examined.
pub fn classify(fd: BorrowedFd<'_>) -> Result<Option<SocketKind>, Errno> {
    let socket = SockRef::from(&fd);
    let kind = match socket.r#type() {
        Ok(Type::STREAM) if is_listener(fd)? => Some(SocketKind::Listener),
        Ok(Type::STREAM) => Some(SocketKind::Stream),
        Ok(_) => None,
        Err(error) if error.raw_os_error() == Some(libc::ENOTSOCK) => {
            can_wait(fd)?.then_some(SocketKind::Other)
        }
        Err(error) => return Err(error.into()),
    };
    Ok(kind)
}

/// Whether `listen(2)` was called on a stream socket.
fn is_listener(fd: BorrowedFd<'_>) -> Result<bool, Errno> {
    let mut listens: libc::c_int = 0;
    let mut len = size_of_val(&listens) as libc::socklen_t;
    let (level, name) = (libc::SOL_SOCKET, libc::SO_ACCEPTCONN);
    let (raw, value) = (fd.as_raw_fd(), (&raw mut listens).cast());
    // SAFETY: the answer is one integer, borrowed for the call together with its length.
    match check(unsafe { libc::getsockopt(raw, level, name, value, &raw mut len) }) {
        Ok(_) => Ok(listens != 0),
        Err(Errno(libc::ENOPROTOOPT)) => Ok(refuses_to_connect(fd)),
        Err(errno) => Err(errno),
    }
}

/// Whether a stream socket is a listener, for systems that do not tell (macOS, DragonFly). A
/// listener has no peer, and refuses to connect to any address. Nobody gets a peer with this
/// address.
fn refuses_to_connect(fd: BorrowedFd<'_>) -> bool {
    if SockRef::from(&fd).peer_addr().is_ok() {
        return false;
    }
    // SAFETY: for this structure of numbers, zeros are valid: the family `AF_UNSPEC`.
    let nowhere: libc::sockaddr = unsafe { std::mem::zeroed() };
    let len = size_of_val(&nowhere) as libc::socklen_t;
    // SAFETY: the address is borrowed for the call.
    let refused = check(unsafe { libc::connect(fd.as_raw_fd(), &raw const nowhere, len) });
    refused == Err(Errno(libc::EOPNOTSUPP))
}

/// Whether the kernel can wait for this descriptor: `epoll_ctl(2)` says `EPERM` for regular
/// files, directories and the like.
#[cfg(not(gaio_kqueue))]
fn can_wait(fd: BorrowedFd<'_>) -> Result<bool, Errno> {
    use std::os::fd::AsFd;

    let scratch = epoll_create()?;
    match epoll_add(scratch.as_fd(), fd, 0, 0) {
        Ok(()) => Ok(true),
        Err(Errno(libc::EPERM)) => Ok(false),
        Err(errno) => Err(errno),
    }
}

/// Whether the kernel can wait for this descriptor. `kevent(2)` takes files, too, but says that
/// they are readable up to their end, which is not what a read does.
#[cfg(gaio_kqueue)]
fn can_wait(fd: BorrowedFd<'_>) -> Result<bool, Errno> {
    let is_file = matches!(
        file_type(fd)?,
        libc::S_IFREG | libc::S_IFDIR | libc::S_IFLNK | libc::S_IFBLK
    );
    Ok(!is_file && kqueue::can_watch(fd)?)
}

impl From<Errno> for io::Error {
    fn from(errno: Errno) -> Self {
        io::Error::from_raw_os_error(errno.0)
    }
}
