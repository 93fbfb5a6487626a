//! Errors, in eight bytes: a kind to match on, the operation that failed, and the system's error
//! number where there is one. The text names the operation and says what to do next.

use std::fmt;
use std::io;

use crate::quotes;

/// A result. Its error is [`Error`] by default.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// The reason why a call was refused or an operation failed. Eight bytes, `Copy`.
///
/// Match on its [`kind`](Error::kind). [`raw_os_error`](Error::raw_os_error) is the system's `errno`,
/// if the error comes from there. The text says what was being done, what happened, and what to do.
///
/// ```
/// use gaio::{Conn, Error, ErrorKind, Watcher};
///
/// # fn main() -> gaio::Result<()> {
/// let mut watcher = Watcher::new()?;
/// let error: Error = watcher.read((), Conn::NONE, None).unwrap_err().into();
/// assert_eq!(error.kind(), ErrorKind::ConnClosed);
/// assert_eq!(error.to_string(), "read: the connection is closed or not this watcher's: forget this Conn");
/// assert_eq!(std::io::Error::from(error).kind(), std::io::ErrorKind::NotConnected);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Error {
    /// The system's number, or a number below zero that stands for a text to quote.
    errno: i32,
    kind: ErrorKind,
    context: ErrorContext,
}

/// The kinds of [`Error`].
///
/// ```
/// use gaio::{ErrorKind, OpResult};
///
/// /// Whether the request can simply be submitted again.
/// fn can_repeat(res: &OpResult) -> bool {
///     match res.error.map(|error| error.kind()) {
///         Some(ErrorKind::Deadline | ErrorKind::Cancelled) => res.size == 0,
///         _ => false,
///     }
/// }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The connection was freed or reclaimed, or is another watcher's.
    ConnClosed,
    /// The watcher was closed.
    WatcherClosed,
    /// The request was cancelled.
    Cancelled,
    /// The request's deadline passed.
    Deadline,
    /// The stream ended before a `read_full` had filled its buffer, or a file before its range was sent.
    UnexpectedEof,
    /// The buffer has length zero.
    EmptyBuffer,
    /// This descriptor or backend is not supported. The text says why.
    Unsupported,
    /// An option is out of its range. The text says which one, and what is allowed.
    InvalidInput,
    /// The handle is a listener where a connection is needed, or the reverse.
    WrongKind,
    /// The call came from another thread than the first `wait_io`.
    WrongThread,
    /// The call came in a child of the process that built the watcher.
    Forked,
    /// The connection has pending requests.
    Busy,
    /// The bytes queued on the connection would exceed the program's limit.
    WriteLimit,
    /// The system refused; [`Error::raw_os_error`] says why.
    Os,
}

/// The operation during which an error arose. It opens the error's text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
#[non_exhaustive]
#[allow(missing_docs)] // The names are the operations' own.
pub enum ErrorContext {
    Build,
    SizeSwapBuffers,
    CountSwapBuffers,
    SizeQueue,
    SizeStreamWindow,
    SizeWriteLimit,
    ChooseBackend,
    Delegate,
    Listen,
    Inspect,
    PeerCred,
    Reclaim,
    Read,
    Write,
    SendFile,
    Accept,
    AcceptLimit,
    Connect,
    Shutdown,
    Ready,
    Timer,
    Post,
    Wake,
    Cancel,
    Deadline,
    Free,
    Wait,
    Nest,
    Pin,
}

impl Error {
    /// The kind, to match on.
    pub fn kind(self) -> ErrorKind {
        self.kind
    }

    /// The system's `errno`, if the error comes from the system.
    pub fn raw_os_error(self) -> Option<i32> {
        (self.errno > 0).then_some(self.errno)
    }

    /// The reason why a backend is unavailable, and what to do.
    fn no_backend(self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.errno {
            0 => f.write_str(ErrorContext::ChooseBackend.unsupported()),
            // The build has the backend, but the machine refuses it.
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

/// Constructors of errors. They are here, and not at [`Error`], so that programs see only the
/// methods that read an error.
impl ErrorContext {
    /// An error that does not come from the system.
    pub fn error(self, kind: ErrorKind) -> Error {
        Error {
            errno: 0,
            kind,
            context: self,
        }
    }

    /// An error of kind [`ErrorKind::Os`]. The number is translated by [`Errno::meaning`].
    pub fn os_error(self, errno: Errno) -> Error {
        Error {
            errno: errno.meaning(self).0,
            kind: ErrorKind::Os,
            context: self,
        }
    }

    /// The same error, with this context.
    pub fn same_error(self, error: Error) -> Error {
        Error {
            context: self,
            ..error
        }
    }

    /// The machine refuses the backend that was asked for.
    pub(crate) fn refused_backend(errno: Errno) -> Error {
        Error {
            errno: errno.0,
            ..ErrorContext::ChooseBackend.error(ErrorKind::Unsupported)
        }
    }

    /// `GAIO_BACKEND` names no backend; the text quotes it.
    pub(crate) fn unknown_backend(name: &str) -> Error {
        Error {
            errno: quotes::keep(name),
            ..ErrorContext::ChooseBackend.error(ErrorKind::Unsupported)
        }
    }

    fn text(self) -> &'static str {
        match self {
            ErrorContext::Build => "building the watcher",
            ErrorContext::SizeSwapBuffers => "swap_buffer_size",
            ErrorContext::CountSwapBuffers => "swap_buffers",
            ErrorContext::SizeQueue => "queue_depth",
            ErrorContext::SizeStreamWindow => "stream_window",
            ErrorContext::SizeWriteLimit => "write_limit",
            ErrorContext::ChooseBackend => "choosing a backend",
            ErrorContext::Delegate => "delegate",
            ErrorContext::Listen => "listen",
            ErrorContext::Inspect => "looking at the socket",
            ErrorContext::PeerCred => "peer_cred",
            ErrorContext::Reclaim => "reclaim",
            ErrorContext::Read => "read",
            ErrorContext::Write => "write",
            ErrorContext::SendFile => "send_file",
            ErrorContext::Accept => "accept",
            ErrorContext::AcceptLimit => "accept_limit",
            ErrorContext::Connect => "connect",
            ErrorContext::Shutdown => "shutdown",
            ErrorContext::Ready => "ready",
            ErrorContext::Timer => "timer",
            ErrorContext::Post => "post",
            ErrorContext::Wake => "wake",
            ErrorContext::Cancel => "cancel",
            ErrorContext::Deadline => "set_deadline",
            ErrorContext::Free => "free",
            ErrorContext::Wait => "wait_io",
            ErrorContext::Nest => "poll_fd",
            ErrorContext::Pin => "pin",
        }
    }

    /// The meaning of [`ErrorKind::Unsupported`] for this call, and what to do.
    fn unsupported(self) -> &'static str {
        match self {
            ErrorContext::Delegate => {
                "this descriptor cannot be waited for (a regular file, a directory, a datagram \
                 socket): delegate stream sockets, pipes or terminals"
            }
            ErrorContext::ChooseBackend => {
                "this build does not have the backend: use Choice::Auto, or unset GAIO_BACKEND"
            }
            ErrorContext::Pin => "this system cannot bind a thread to a CPU: go on without",
            ErrorContext::Connect => {
                "this socket cannot be connected: hand in an unused stream socket"
            }
            ErrorContext::SendFile => {
                "only regular files can be sent: delegate a pipe, and read it"
            }
            ErrorContext::PeerCred => "only the peer of a Unix socket can be asked for",
            _ => "not possible here",
        }
    }

    /// The range of an option.
    fn range(self) -> &'static str {
        match self {
            ErrorContext::SizeSwapBuffers => "the size must lie between 1 KiB and 1 GiB",
            ErrorContext::CountSwapBuffers => "the number must lie between 1 and 1,048,576",
            ErrorContext::SizeQueue => "the depth must lie between 1 and 32,768",
            ErrorContext::SizeStreamWindow => "the window must be at least 1 byte",
            ErrorContext::SizeWriteLimit => "the limit must be at least 1 byte",
            ErrorContext::SendFile => "the range must lie within the file",
            ErrorContext::AcceptLimit => "the limit must be at least 1 connection",
            _ => "out of its range",
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.context.text())?;
        f.write_str(": ")?;
        let text = match self.kind {
            ErrorKind::ConnClosed => {
                "the connection is closed or not this watcher's: forget this Conn"
            }
            ErrorKind::WatcherClosed => "the watcher is closed: build a new one",
            ErrorKind::Cancelled => "cancelled by the program",
            // The system goes on connecting.
            ErrorKind::Deadline if self.context == ErrorContext::Connect => {
                "nobody answered in time: free this Conn, and connect again"
            }
            ErrorKind::Deadline => "the deadline passed: submit again to go on, or free",
            ErrorKind::UnexpectedEof if self.context == ErrorContext::SendFile => {
                "the file became shorter than the range: free the connection"
            }
            ErrorKind::UnexpectedEof => "the peer closed before the buffer was full",
            ErrorKind::EmptyBuffer => "the buffer is empty: its length is what is transferred",
            ErrorKind::Unsupported if self.context == ErrorContext::ChooseBackend => {
                self.no_backend(f)?;
                ""
            }
            ErrorKind::Unsupported => self.context.unsupported(),
            ErrorKind::InvalidInput => self.context.range(),
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
            ErrorKind::WriteLimit => {
                "too many bytes are queued: go on when a write has ended, or free"
            }
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
            ErrorKind::WriteLimit => io::ErrorKind::QuotaExceeded,
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

/// The meaning of the numbers. The watcher knows none of them.
impl Errno {
    /// The operation was cancelled.
    pub const CANCELLED: Errno = Errno(libc::ECANCELED);

    /// The system's table of open files is full.
    pub const TABLE_FULL: Errno = Errno(libc::ENFILE);

    /// No connection will come any more: Linux's error for a listener that was shut down.
    pub(crate) const NOT_LISTENING: Errno = Errno(libc::EINVAL);

    /// Whether nothing was wrong: the operation was cancelled, interrupted, or not ready after all.
    #[inline]
    pub fn is_interruption(self) -> bool {
        matches!(self.0, libc::ECANCELED | libc::EINTR | libc::EAGAIN)
    }

    /// The number that Linux has for the same event, so that it is the same error on every system.
    /// The differences between systems are known here and nowhere else.
    pub fn meaning(self, context: ErrorContext) -> Errno {
        match (context, self.0) {
            // macOS says this if the other side resets the connection meanwhile.
            (ErrorContext::Write | ErrorContext::SendFile, libc::EPROTOTYPE) => {
                Errno(libc::ECONNRESET)
            }
            _ => self,
        }
    }

    /// Whether the call is not possible now.
    pub fn would_block(self) -> bool {
        self.0 == libc::EAGAIN
    }

    /// Whether a swap read found no buffer.
    #[inline]
    pub fn is_out_of_buffers(self) -> bool {
        self.0 == libc::ENOBUFS
    }

    /// Advice for a user whose system refuses a backend with this error.
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

    /// Whether the error passes when descriptors or memory are freed.
    pub fn is_shortage(self) -> bool {
        matches!(
            self.0,
            libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM
        )
    }

    /// Whether the connection is gone: the other side reset it, or cannot be reached.
    pub fn is_lost_peer(self) -> bool {
        matches!(
            self.0,
            libc::ECONNRESET | libc::ETIMEDOUT | libc::EHOSTUNREACH | libc::ENETUNREACH
        )
    }

    /// Whether this error of `accept(2)` concerns a single connection that was lost, or nothing.
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

/// The reason why a backend could not be built.
#[derive(Clone, Copy, Debug)]
pub struct SetupError {
    /// The step that failed.
    pub step: &'static str,
    /// The system's error.
    pub errno: Errno,
    /// Advice for the user.
    pub advice: &'static str,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reset_is_a_reset() {
        let error = ErrorContext::Write.os_error(Errno(libc::EPROTOTYPE));
        assert_eq!(error.raw_os_error(), Some(libc::ECONNRESET));
        // A connect to a Unix socket of another type has this error everywhere.
        let error = ErrorContext::Connect.os_error(Errno(libc::EPROTOTYPE));
        assert_eq!(error.raw_os_error(), Some(libc::EPROTOTYPE));
    }

    #[test]
    fn each_error_quotes_its_own_value() {
        let [one, other] = ["iouring", "e-poll"].map(ErrorContext::unknown_backend);
        assert!(one != other && one == ErrorContext::unknown_backend("iouring"));
        assert!(one.to_string().contains("\"iouring\""), "{one}");
        assert!(other.to_string().contains("\"e-poll\""), "{other}");
        assert_eq!(one.raw_os_error(), None);
    }
}
