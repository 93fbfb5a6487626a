//! `Watcher`: what a user calls. Sockets in, requests in (`watcher/requests.rs`), results out (what
//! `wait_io` does is in `watcher/turn.rs`).

mod home;
mod requests;
mod turn;

use std::cell::Cell;
use std::fmt;
use std::marker::PhantomData;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use gaio_backends::select::BackendInfo;
use gaio_backends::{
    Address, Doing, Error, ErrorKind, PoolUse, Result, Selected, SocketKind, Until, classify,
    peer_addr, pin_thread,
};

use self::home::Home;
use crate::builder::Builder;
use crate::conn::{Conn, ConnIds};
use crate::engine::Engine;
use crate::error::Rejected;
use crate::inbox::{Inbox, Message};
use crate::remote::{Remote, connection_kind};
use crate::results::Results;
use crate::stats::Stats;

/// Watches over connections: takes requests, gives results.
///
/// `C` is the program's context: handed in with each request, handed back with its result.
///
/// A watcher may be built on one thread and moved to another; the first
/// [`wait_io`](Watcher::wait_io) binds it to its thread. Other threads use a [`Remote`]. It may be
/// dropped anywhere, best on its own thread, where nothing has to be waited for.
///
/// With io_uring, the kernel may interrupt other system calls of the watcher's thread that wait for a
/// limited time: they fail with `EINTR` ([`Interrupted`](std::io::ErrorKind::Interrupted)) now and
/// then, without any signal. Repeat them; `read_exact` and `write_all` do so by themselves.
///
/// It belongs to the process that built it: in a forked child every call is refused with
/// [`ErrorKind::Forked`], and a drop harms nobody.
///
/// ```
/// use gaio::{Operation, Results, Watcher};
/// use std::os::unix::net::UnixStream;
/// use std::io::Write;
///
/// # fn main() -> gaio::Result<(), Box<dyn std::error::Error>> {
/// let (ours, mut theirs) = UnixStream::pair()?;
/// let mut watcher = Watcher::<&str>::builder().build()?;
/// let conn = watcher.delegate(ours)?;
/// watcher.read("first", conn, None)?;
/// theirs.write_all(b"hello")?;
///
/// let mut results = Results::new();
/// watcher.wait_io(&mut results)?;
/// for res in results.drain() {
///     assert_eq!((res.operation, res.context), (Operation::Read, "first"));
///     assert_eq!(res.data(), b"hello");
/// }
/// # Ok(())
/// # }
/// ```
pub struct Watcher<C = ()> {
    // Declared first, so that it is dropped first: it ends what the kernel does.
    backend: Selected,
    engine: Engine<C>,
    inbox: Arc<Inbox<C>>,
    /// Messages taken from the inbox; kept for its memory.
    messages: Vec<Message<C>>,
    info: BackendInfo,
    /// How long to look for results before sleeping.
    spin: Duration,
    home: Home,
    /// Somebody has our descriptor.
    nested: bool,
    not_sync: PhantomData<Cell<()>>,
}

impl<C> Watcher<C> {
    /// A watcher with the default options and the best backend that works here.
    ///
    /// # Errors
    /// As [`Builder::build`].
    pub fn new() -> Result<Self> {
        Builder::new().build()
    }

    /// Options first.
    pub fn builder() -> Builder<C> {
        Builder::new()
    }

    pub(crate) fn assemble(
        backend: Selected,
        info: BackendInfo,
        stream_window: usize,
        swap_buffer_size: usize,
        spin: Duration,
    ) -> Self {
        let ids = Arc::new(ConnIds::new());
        let waker = Arc::clone(backend.waker());
        let process = waker.process();
        Watcher {
            backend,
            engine: Engine::new(Arc::clone(&ids), stream_window, swap_buffer_size),
            inbox: Arc::new(Inbox::new(waker, ids)),
            messages: Vec::new(),
            info,
            spin,
            home: Home::new(process),
            nested: false,
            not_sync: PhantomData,
        }
    }

    /// Which backend this is, with which features, and why not a better one.
    pub fn backend(&self) -> &BackendInfo {
        &self.info
    }

    /// A handle for other threads.
    pub fn remote(&self) -> Remote<C> {
        Remote::new(Arc::clone(&self.inbox))
    }

    /// Takes a connected stream socket, or something else that can be waited for (a pipe, a
    /// terminal, an `eventfd`). It stays open until [`free`](Watcher::free).
    ///
    /// # Errors
    /// `Unsupported` for regular files, directories, datagram sockets; `WrongKind` for listening
    /// sockets; `WatcherClosed`; `WrongThread`; `Forked`; `Os`. The descriptor comes back, open.
    pub fn delegate(&mut self, socket: impl Into<OwnedFd>) -> Result<Conn, Rejected<OwnedFd>> {
        let socket = socket.into();
        match connection_kind(&socket) {
            Ok(kind) => self.adopt(Doing::Delegate, socket, kind),
            Err(error) => Err(Rejected::new(error, socket)),
        }
    }

    /// Takes a listening socket, for [`accept`](Watcher::accept).
    ///
    /// # Errors
    /// `WrongKind` for a stream socket that does not listen; `Unsupported` for anything else;
    /// `WatcherClosed`; `WrongThread`; `Forked`; `Os`. The descriptor comes back, open.
    pub fn listen(&mut self, listener: impl Into<OwnedFd>) -> Result<Conn, Rejected<OwnedFd>> {
        let listener = listener.into();
        let error = match classify(listener.as_fd()) {
            Ok(Some(SocketKind::Listener)) => {
                return self.adopt(Doing::Listen, listener, SocketKind::Listener);
            }
            Ok(Some(_)) => Error::new(Doing::Listen, ErrorKind::WrongKind),
            Ok(None) => Error::new(Doing::Listen, ErrorKind::Unsupported),
            Err(errno) => Error::os(Doing::Listen, errno),
        };
        Err(Rejected::new(error, listener))
    }

    fn adopt(
        &mut self,
        doing: Doing,
        socket: OwnedFd,
        kind: SocketKind,
    ) -> Result<Conn, Rejected<OwnedFd>> {
        let refusal = self.admit();
        let closed = self.engine.closed.then_some(ErrorKind::WatcherClosed);
        if let Some(kind) = refusal.or(closed) {
            return Err(Rejected::new(Error::new(doing, kind), socket));
        }
        self.engine
            .adopt(&mut *self.backend, socket, kind)
            .map_err(|(errno, socket)| Rejected::new(Error::os(doing, errno), socket))
    }

    /// Whether the handle is good: of this watcher, and not freed.
    pub fn contains(&self, conn: Conn) -> bool {
        self.engine.is_open(conn) && !self.home.is_forked()
    }

    /// The socket, to look at or to set options on (`socket2::SockRef`). Reading from it or writing
    /// to it gets in the watcher's way; so does putting it into blocking mode, on macOS and the BSDs.
    ///
    /// # Errors
    /// `ConnClosed`, `Forked`.
    pub fn socket(&self, conn: Conn) -> Result<BorrowedFd<'_>> {
        if self.home.is_forked() {
            return Err(Error::new(Doing::Inspect, ErrorKind::Forked));
        }
        let open = self.engine.is_open(conn);
        let socket = self.backend.socket(conn.slot()).filter(|_| open);
        socket.ok_or(Error::new(Doing::Inspect, ErrorKind::ConnClosed))
    }

    /// Who is on the other end.
    ///
    /// # Errors
    /// `ConnClosed`; `Forked`; `Os` if nobody is (`ENOTCONN`) or it is not a socket (`ENOTSOCK`).
    pub fn peer_addr(&self, conn: Conn) -> Result<Address> {
        peer_addr(self.socket(conn)?).map_err(|errno| Error::os(Doing::Inspect, errno))
    }

    /// Takes an idle connection back, in the blocking mode in which it came.
    ///
    /// # Errors
    /// `Busy` while requests are pending; `ConnClosed`; `WrongThread`; `Forked`.
    pub fn reclaim(&mut self, conn: Conn) -> Result<OwnedFd> {
        self.check_here(Doing::Reclaim)?;
        self.reach(conn);
        self.engine
            .reclaim(&mut *self.backend, conn)
            .map_err(|kind| Error::new(Doing::Reclaim, kind))
    }

    /// Waits until there is at least one result, and hands out all there are, up to the
    /// container's maximum. Returns how many.
    ///
    /// # Errors
    /// `WatcherClosed` when the watcher is closed and everything was handed out; `WrongThread`;
    /// `Forked`; `Os` if the system refuses to wait.
    #[inline]
    pub fn wait_io(&mut self, results: &mut Results<C>) -> Result<usize> {
        self.wait_until(results, Until::Done)
    }

    /// As [`wait_io`](Watcher::wait_io), for at most `timeout`; then there may be no result.
    ///
    /// # Errors
    /// As [`wait_io`](Watcher::wait_io).
    pub fn wait_io_timeout(
        &mut self,
        results: &mut Results<C>,
        timeout: Duration,
    ) -> Result<usize> {
        let limit = if timeout.is_zero() {
            Until::Now
        } else {
            let at = self.backend.now().checked_add(timeout);
            at.map_or(Until::Done, Until::Time)
        };
        self.wait_until(results, limit)
    }

    /// Binds the calling thread to one CPU: call it on the thread that will wait.
    ///
    /// # Errors
    /// `Os` with `EINVAL` if this process has no such CPU; `Unsupported` where the system cannot bind
    /// a thread (macOS, OpenBSD); `WrongThread`; `Forked`.
    pub fn pin(&mut self, cpu: usize) -> Result<()> {
        self.check_here(Doing::Pin)?;
        pin_thread(cpu)
    }

    /// A descriptor to nest the watcher in another event loop: readable when
    /// [`wait_io_timeout`](Watcher::wait_io_timeout) with a timeout of zero has something to do. That is
    /// so when there is a result, when a deadline passed, when a [`Remote`] or a lease that came back has
    /// something for the watcher, and when a request was submitted since the last turn.
    ///
    /// So poll it on the watcher's own thread, and make a turn of no time whenever it is readable. A turn
    /// may give no result; there may be more than one turn takes, and then the descriptor is readable
    /// again. It works with edge-triggered loops, too.
    ///
    /// It is a duplicate: register it once, and close it when you like. When the watcher is gone it says
    /// nothing any more. From the first call on, a turn makes some more system calls.
    ///
    /// # Errors
    /// `Os` if the system refuses a descriptor: then nothing has changed, and a later call may succeed;
    /// `WrongThread`; `Forked`.
    pub fn poll_fd(&mut self) -> Result<OwnedFd> {
        self.check_here(Doing::Nest)?;
        let refused = |errno| Error::os(Doing::Nest, errno);
        let descriptor = self.backend.readiness().map_err(refused)?;
        self.nested = true;
        if self.home.is_bound() {
            // A ring that slept before still reads the waker's event: it stops that by the way.
            self.settle().map_err(refused)?;
        }
        self.lie_down();
        Ok(descriptor)
    }

    /// What this watcher has done so far.
    pub fn stats(&self) -> Stats {
        let calls = self.backend.counts();
        let (wakeups, wakeups_elided) = self.inbox.waker.counts();
        // In a forked child its lock may be held for ever.
        let pool = match self.home.is_forked() {
            true => PoolUse::default(),
            false => self.backend.pool().usage(),
        };
        let engine = &self.engine.counts;
        Stats {
            kernel_calls: calls.sum() + engine.closes,
            wait_calls: calls.waits,
            read_calls: calls.reads,
            write_calls: calls.writes,
            accept_calls: calls.accepts,
            wakeups,
            wakeups_elided,
            turns: engine.turns,
            submitted: engine.accepted,
            completions: engine.completions,
            completion_overflows: calls.overflows,
            delivered: self.engine.delivered(),
            cancelled: engine.cancelled,
            deadlines: engine.deadlines,
            swap_starved: engine.swap_starved,
            connections: self.engine.conns.open_count(),
            pending: self.engine.pending_count(),
            leases: pool.leases,
            swap_buffers_out: pool.blocks_out,
            swap_buffers_peak: pool.blocks_peak,
            swap_bytes: pool.size_bytes,
        }
    }

    /// Closes the watcher: everything pending ends with `WatcherClosed`, all sockets are closed.
    /// `wait_io` hands out what is left, then fails with `WatcherClosed`. Closing again does
    /// nothing.
    pub fn close(&mut self) {
        if !self.home.is_forked() {
            self.inbox.close();
            self.absorb();
        }
    }
}

impl<C> Drop for Watcher<C> {
    fn drop(&mut self) {
        if self.home.is_forked() {
            // Only copies go; what is in the inbox goes with it.
            return;
        }
        // From now on no message comes that would be lost; what is there is dropped outside the
        // lock, because contexts may do anything when dropped.
        self.inbox.close();
        self.inbox.take(&mut self.messages);
    }
}

impl<C> fmt::Debug for Watcher<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watcher")
            .field("backend", &self.info)
            .field("connections", &self.engine.conns.open_count())
            .field("pending", &self.engine.pending_count())
            .finish_non_exhaustive()
    }
}
