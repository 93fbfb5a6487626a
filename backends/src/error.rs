//! What can go wrong, in eight bytes: a kind to match on, the call that failed, the system's
//! error number where there is one. The texts say what was being done and what to do next.

use std::fmt;
use std::io;

use crate::quotes;

/// A result whose error is [`Error`] unless said otherwise.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a call was refused or an operation failed. Eight bytes, `Copy`.
///
/// [`kind`](Error::kind) is what a program matches on; [`raw_os_error`](Error::raw_os_error)
/// gives the system's `errno` where the system had a say. `Display` says what was being done,
/// what happened, and what to do about it.
///
/// ```
/// use gaio::{Conn, Error, ErrorKind, Watcher};
///
/// # fn main() -> gaio::Result<()> {
/// let mut watcher = Watcher::new()?;
/// let error: Error = watcher.read((), Conn::NONE, None).unwrap_err().into();
/// assert_eq!(error.kind(), ErrorKind::ConnClosed);
/// assert_eq!(std::io::Error::from(error).kind(), std::io::ErrorKind::NotConnected);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Error {
    /// The system's number; or what stands for a text to quote, below zero.
    errno: i32,
    kind: ErrorKind,
    doing: Doing,
}

/// The kinds of [`Error`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The connection was freed, reclaimed, or never belonged to this watcher.
    ConnClosed,
    /// The watcher was closed.
    WatcherClosed,
    /// The request was cancelled.
    Cancelled,
    /// The request's deadline passed.
    Deadline,
    /// The peer closed before a `read_full` had filled its buffer.
    UnexpectedEof,
    /// The buffer has length zero, so there is nothing to read into or to write.
    EmptyBuffer,
    /// This descriptor or backend cannot be had; the text says which and why.
    Unsupported,
    /// An option is out of its range; the text says which one and what is allowed.
    InvalidInput,
    /// A listener where a connection is needed, or the reverse.
    WrongKind,
    /// Called on another thread than the one that called `wait_io` first.
    WrongThread,
    /// Called in a child of the process that built the watcher.
    Forked,
    /// The connection still has pending requests.
    Busy,
    /// The system refused; [`Error::raw_os_error`] says why.
    Os,
}

/// What was being done when an error arose; it opens the error's text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
#[non_exhaustive]
#[allow(missing_docs)] // The names are the operations' own.
pub enum Doing {
    Build,
    SizeSwapBuffers,
    CountSwapBuffers,
    SizeQueue,
    SizeStreamWindow,
    ChooseBackend,
    Delegate,
    Listen,
    Inspect,
    Reclaim,
    Read,
    Write,
    Accept,
    Connect,
    Shutdown,
    Ready,
    Timer,
    Post,
    Cancel,
    Free,
    Wait,
    Nest,
    Pin,
}

impl Error {
    /// An error that does not come from the system.
    pub fn new(doing: Doing, kind: ErrorKind) -> Self {
        Error {
            errno: 0,
            kind,
            doing,
        }
    }

    /// An error of kind [`ErrorKind::Os`]. What systems say in different words is told in one.
    pub fn os(doing: Doing, errno: Errno) -> Self {
        Error {
            errno: errno.meaning(doing).0,
            kind: ErrorKind::Os,
            doing,
        }
    }

    /// `GAIO_BACKEND` names no backend; the text quotes it.
    pub(crate) fn unknown_backend(name: &str) -> Self {
        Error {
            errno: quotes::keep(name),
            ..Error::new(Doing::ChooseBackend, ErrorKind::Unsupported)
        }
    }

    /// The same error with the system's number as its cause.
    pub fn with_errno(self, errno: Errno) -> Self {
        Error {
            errno: errno.0,
            ..self
        }
    }

    /// The same error, met while doing something else.
    pub fn during(self, doing: Doing) -> Self {
        Error { doing, ..self }
    }

    /// The kind, to match on.
    pub fn kind(self) -> ErrorKind {
        self.kind
    }

    /// The system's `errno`, if the system had a say.
    pub fn raw_os_error(self) -> Option<i32> {
        (self.errno > 0).then_some(self.errno)
    }

    /// Why a backend cannot be had, and what to do.
    fn no_backend(self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.errno {
            0 => f.write_str(Doing::ChooseBackend.unsupported()),
            // The build has it, the machine refuses it.
            1.. => f.write_str(Errno(self.errno).advice()),
            _ => {
                f.write_str("GAIO_BACKEND names no backend")?;
                if let Some(name) = quotes::find(self.errno) {
                    write!(f, ": it is {name:?}")?;
                }
                f.write_str("; set it to io_uring, epoll or kqueue, or unset it")
            }
        }
    }
}

impl Doing {
    fn text(self) -> &'static str {
        match self {
            Doing::Build => "building the watcher",
            Doing::SizeSwapBuffers => "swap_buffer_size",
            Doing::CountSwapBuffers => "swap_buffers",
            Doing::SizeQueue => "queue_depth",
            Doing::SizeStreamWindow => "stream_window",
            Doing::ChooseBackend => "choosing a backend",
            Doing::Delegate => "delegate",
            Doing::Listen => "listen",
            Doing::Inspect => "looking at the socket",
            Doing::Reclaim => "reclaim",
            Doing::Read => "read",
            Doing::Write => "write",
            Doing::Accept => "accept",
            Doing::Connect => "connect",
            Doing::Shutdown => "shutdown",
            Doing::Ready => "ready",
            Doing::Timer => "timer",
            Doing::Post => "post",
            Doing::Cancel => "cancel",
            Doing::Free => "free",
            Doing::Wait => "wait_io",
            Doing::Nest => "poll_fd",
            Doing::Pin => "pin",
        }
    }

    /// What [`ErrorKind::Unsupported`] means for this call, and what to do.
    fn unsupported(self) -> &'static str {
        match self {
            Doing::Delegate => {
                "this descriptor cannot be waited for (a regular file, a directory, a datagram \
                 socket): delegate stream sockets, pipes or terminals"
            }
            Doing::ChooseBackend => {
                "this build does not have the backend: use Choice::Auto, or unset GAIO_BACKEND"
            }
            Doing::Pin => "this system cannot bind a thread to a CPU: go on without",
            Doing::Connect => "this socket cannot be connected: hand in an unused stream socket",
            _ => "not possible here",
        }
    }

    /// What an option may be.
    fn range(self) -> &'static str {
        match self {
            Doing::SizeSwapBuffers => "the size must lie between 1 KiB and 1 GiB",
            Doing::CountSwapBuffers => "the number must lie between 1 and 1,048,576",
            Doing::SizeQueue => "the depth must lie between 1 and 32,768",
            Doing::SizeStreamWindow => "the window must be at least 1 byte",
            _ => "out of its range",
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.doing.text())?;
        f.write_str(": ")?;
        let text = match self.kind {
            ErrorKind::ConnClosed => {
                "the connection is closed or not this watcher's: forget this Conn"
            }
            ErrorKind::WatcherClosed => "the watcher is closed: build a new one",
            ErrorKind::Cancelled => "cancelled by the program",
            // The system goes on connecting.
            ErrorKind::Deadline if self.doing == Doing::Connect => {
                "nobody answered in time: free this Conn, and connect again"
            }
            ErrorKind::Deadline => "the deadline passed: submit again to go on, or free",
            ErrorKind::UnexpectedEof => "the peer closed before the buffer was full",
            ErrorKind::EmptyBuffer => "the buffer is empty: its length is what is transferred",
            ErrorKind::Unsupported if self.doing == Doing::ChooseBackend => {
                self.no_backend(f)?;
                ""
            }
            ErrorKind::Unsupported => self.doing.unsupported(),
            ErrorKind::InvalidInput => self.doing.range(),
            ErrorKind::WrongKind => {
                "a listener where a connection is needed, or the reverse: `listen` takes \
                 listening sockets, `delegate` connections"
            }
            ErrorKind::WrongThread => {
                "the watcher belongs to the thread that called wait_io first: use a Remote from \
                 other threads"
            }
            ErrorKind::Forked => {
                "the watcher belongs to the process that built it, and this is a child of that: \
                 build the watcher after the fork"
            }
            ErrorKind::Busy => "requests are pending: wait for their results or cancel them",
            ErrorKind::Os => return write!(f, "{}", io::Error::from_raw_os_error(self.errno)),
        };
        f.write_str(text)?;
        match self.raw_os_error() {
            Some(errno) => write!(f, " ({})", io::Error::from_raw_os_error(errno)),
            None => Ok(()),
        }
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Error({:?}: {self})", self.kind)
    }
}

impl std::error::Error for Error {}

impl From<Error> for io::Error {
    fn from(error: Error) -> Self {
        let kind = match error.kind {
            ErrorKind::Os => return io::Error::from_raw_os_error(error.errno),
            ErrorKind::ConnClosed | ErrorKind::WatcherClosed => io::ErrorKind::NotConnected,
            ErrorKind::Deadline => io::ErrorKind::TimedOut,
            ErrorKind::UnexpectedEof => io::ErrorKind::UnexpectedEof,
            ErrorKind::EmptyBuffer | ErrorKind::WrongKind | ErrorKind::InvalidInput => {
                io::ErrorKind::InvalidInput
            }
            ErrorKind::Unsupported => io::ErrorKind::Unsupported,
            ErrorKind::Busy => io::ErrorKind::ResourceBusy,
            ErrorKind::Cancelled | ErrorKind::WrongThread | ErrorKind::Forked => {
                io::ErrorKind::Other
            }
        };
        io::Error::new(kind, error)
    }
}

/// A system's error number, positive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Errno(pub i32);

impl Errno {
    /// The number that the last failed system call of this thread left.
    pub fn last() -> Self {
        Errno(io::Error::last_os_error().raw_os_error().unwrap_or(0))
    }
}

/// What the numbers mean to a watcher, which knows none of them.
impl Errno {
    /// The operation was cancelled.
    pub const CANCELLED: Errno = Errno(libc::ECANCELED);

    /// The system's table of open files is full.
    pub const TABLE_FULL: Errno = Errno(libc::ENFILE);

    /// No connection will come any more: what Linux says of a listener that was shut down.
    pub(crate) const NOT_LISTENING: Errno = Errno(libc::EINVAL);

    /// Nothing was wrong: the operation was cancelled, interrupted, or not ready after all.
    #[inline]
    pub fn is_interruption(self) -> bool {
        matches!(self.0, libc::ECANCELED | libc::EINTR | libc::EAGAIN)
    }

    /// What this means in the words of Linux: the same event is the same error on every system. Here,
    /// and nowhere else, is that known.
    pub fn meaning(self, doing: Doing) -> Errno {
        match (doing, self.0) {
            // macOS, of a connection that the other side throws away meanwhile.
            (Doing::Write, libc::EPROTOTYPE) => Errno(libc::ECONNRESET),
            _ => self,
        }
    }

    /// It cannot be done now.
    pub fn would_block(self) -> bool {
        self.0 == libc::EAGAIN
    }

    /// A swap read found no buffer.
    #[inline]
    pub fn is_out_of_buffers(self) -> bool {
        self.0 == libc::ENOBUFS
    }

    /// What a user can do whose system refuses a backend with this.
    pub(crate) fn advice(self) -> &'static str {
        match self.0 {
            libc::EMFILE | libc::ENFILE => "raise RLIMIT_NOFILE (ulimit -n)",
            _ if !cfg!(gaio_uring) => "the system refuses it: see its limits for this user",
            libc::EPERM | libc::EACCES => {
                "a seccomp profile or the sysctl kernel.io_uring_disabled forbids it: allow \
                 io_uring there"
            }
            libc::ENOMEM => {
                "the limit of locked memory is too small: raise RLIMIT_MEMLOCK (ulimit -l), or set \
                 a smaller queue_depth"
            }
            _ => "io_uring needs Linux 6.0 or later",
        }
    }

    /// An error that passes when descriptors or memory are freed.
    pub fn is_shortage(self) -> bool {
        matches!(
            self.0,
            libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM
        )
    }

    /// The connection is no more: the other side threw it away, or cannot be reached.
    pub fn is_lost_peer(self) -> bool {
        matches!(
            self.0,
            libc::ECONNRESET | libc::ETIMEDOUT | libc::EHOSTUNREACH | libc::ENETUNREACH
        )
    }

    /// An error of accept(2) that concerns the one connection that was lost, or nothing.
    pub fn is_lost_connection(self) -> bool {
        #[cfg(any(target_os = "linux", target_os = "android"))]
        if matches!(self.0, libc::ENONET) {
            return true;
        }
        matches!(
            self.0,
            libc::ECONNABORTED
                | libc::EPROTO
                | libc::ENETDOWN
                | libc::ENOPROTOOPT
                | libc::EHOSTDOWN
                | libc::EHOSTUNREACH
                | libc::ENETUNREACH
        )
    }
}

impl From<io::Error> for Errno {
    fn from(error: io::Error) -> Self {
        Errno(error.raw_os_error().unwrap_or(libc::EIO))
    }
}

/// Why a backend could not be built: which step failed, and how.
#[derive(Clone, Copy, Debug)]
pub struct Refusal {
    /// What was tried.
    pub step: &'static str,
    /// What the system said.
    pub errno: Errno,
    /// What the user can do.
    pub advice: &'static str,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reset_is_a_reset() {
        let error = Error::os(Doing::Write, Errno(libc::EPROTOTYPE));
        assert_eq!(error.raw_os_error(), Some(libc::ECONNRESET));
        // A connect to a Unix socket of another type is told so everywhere.
        let error = Error::os(Doing::Connect, Errno(libc::EPROTOTYPE));
        assert_eq!(error.raw_os_error(), Some(libc::EPROTOTYPE));
    }

    #[test]
    fn each_error_quotes_its_own_value() {
        let [one, other] = ["iouring", "e-poll"].map(Error::unknown_backend);
        assert!(one != other && one == Error::unknown_backend("iouring"));
        assert!(one.to_string().contains("\"iouring\""), "{one}");
        assert!(other.to_string().contains("\"e-poll\""), "{other}");
        assert_eq!(one.raw_os_error(), None);
    }
}
