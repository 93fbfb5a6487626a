//! The life of a watcher: building, sockets in, results out, closing.

use std::marker::PhantomData;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use gaio_backends::BackendInfo;
use gaio_backends::{
    Backend, ErrorContext, ErrorKind, PoolUse, Result, Selected, SocketKind, Until, classify,
    pin_thread,
};

use super::Watcher;
use super::owner::Owner;
use crate::builder::Builder;
use crate::conn::{Conn, ConnIds};
use crate::engine::Engine;
use crate::error::Rejected;
use crate::inbox::Inbox;
use crate::remote::{Remote, connection_kind};
use crate::results::Results;
use crate::stats::Stats;

impl<C> Watcher<C> {
    /// Builds a watcher with the default options, on the best backend that works on this machine.
    ///
    /// ```
    /// use gaio::Watcher;
    ///
    /// # fn main() -> gaio::Result<()> {
    /// let watcher: Watcher<()> = Watcher::new()?;
    /// println!("running on {}", watcher.backend());
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// Those of [`Builder::build`].
    pub fn new() -> Result<Self> {
        Builder::new().build()
    }

    /// Options for a new watcher. Ends with [`build`](Builder::build).
    pub fn builder() -> Builder<C> {
        Builder::new()
    }

    pub(crate) fn assemble(
        backend: Selected,
        info: BackendInfo,
        stream_window: usize,
        write_limit: usize,
        spin: Duration,
    ) -> Self {
        let ids = Arc::new(ConnIds::new());
        let waker = Arc::clone(backend.waker());
        let process = waker.process();
        Watcher {
            engine: Engine::new(backend, Arc::clone(&ids), stream_window, write_limit),
            inbox: Arc::new(Inbox::new(waker, ids)),
            messages: Vec::new(),
            info,
            woken: false,
            spin,
            owner: Owner::new(process),
            nested: false,
            not_sync: PhantomData,
        }
    }

    /// Waits until at least one request has a result, then fills `results` with what there is, up to
    /// the container's maximum. Returns the number of results: at least 1, unless [`Remote::wake`] ended
    /// the wait.
    ///
    /// One call is one *turn* of the loop. It also takes messages of [`Remote`]s, starts the requests
    /// that were submitted since the last turn, and ends those whose deadline has passed.
    ///
    /// # Errors
    /// - `WatcherClosed` once the watcher is closed and every result was returned.
    /// - `WrongThread` on any thread but that of the first call; `Forked` in a forked child.
    /// - `Os` if the system refuses the call that waits.
    #[inline]
    pub fn wait_io(&mut self, results: &mut Results<C>) -> Result<usize> {
        self.wait_until(results, Until::Done)
    }

    /// Like [`wait_io`](Watcher::wait_io), but returns after `timeout`, even without a result. With a
    /// timeout of zero it returns what is there, without waiting.
    ///
    /// ```
    /// use gaio::{Results, Watcher};
    /// use std::time::Duration;
    ///
    /// # fn main() -> gaio::Result<()> {
    /// let mut watcher = Watcher::<()>::new()?;
    /// let mut results = Results::new();
    /// assert_eq!(watcher.wait_io_timeout(&mut results, Duration::from_millis(1))?, 0);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// Those of [`wait_io`](Watcher::wait_io).
    pub fn wait_io_timeout(
        &mut self,
        results: &mut Results<C>,
        timeout: Duration,
    ) -> Result<usize> {
        let limit = if timeout.is_zero() {
            Until::Now
        } else {
            let at = self.engine.backend.now().checked_add(timeout);
            at.map_or(Until::Done, Until::Time)
        };
        self.wait_until(results, limit)
    }

    /// Takes a connected stream socket, or another descriptor that can be waited for: a pipe, a
    /// terminal, an `eventfd`. Returns the handle for its requests. The watcher owns the descriptor
    /// until [`free`](Watcher::free) closes it or [`reclaim`](Watcher::reclaim) returns it.
    ///
    /// ```
    /// use gaio::{ErrorKind, Watcher};
    /// use std::fs::File;
    /// use std::os::unix::net::UnixStream;
    ///
    /// # fn main() -> gaio::Result<(), Box<dyn std::error::Error>> {
    /// let mut watcher = Watcher::<()>::new()?;
    /// let (ours, _peer) = UnixStream::pair()?;
    /// let conn = watcher.delegate(ours)?;
    /// assert!(watcher.contains(conn));
    ///
    /// let rejected = watcher.delegate(File::open("Cargo.toml")?).unwrap_err();
    /// assert_eq!(rejected.error().kind(), ErrorKind::Unsupported);
    /// let _file: File = rejected.into_inner().into(); // still open
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// The descriptor comes back, still open.
    /// - `Unsupported` for regular files, directories and datagram sockets.
    /// - `WrongKind` for listening sockets: use [`listen`](Watcher::listen).
    /// - `Os`, `WatcherClosed`, `WrongThread`, `Forked`.
    pub fn delegate(&mut self, socket: impl Into<OwnedFd>) -> Result<Conn, Rejected<OwnedFd>> {
        let socket = socket.into();
        match connection_kind(&socket) {
            Ok(kind) => self.adopt(ErrorContext::Delegate, socket, kind),
            Err(error) => Err(Rejected::new(error, socket)),
        }
    }

    /// Takes a listening socket and returns the handle for [`accept`](Watcher::accept).
    ///
    /// # Errors
    /// The descriptor comes back, still open.
    /// - `WrongKind` for a stream socket that does not listen.
    /// - `Unsupported` for any other descriptor.
    /// - `Os`, `WatcherClosed`, `WrongThread`, `Forked`.
    pub fn listen(&mut self, listener: impl Into<OwnedFd>) -> Result<Conn, Rejected<OwnedFd>> {
        let listener = listener.into();
        let error = match classify(listener.as_fd()) {
            Ok(Some(SocketKind::Listener)) => {
                return self.adopt(ErrorContext::Listen, listener, SocketKind::Listener);
            }
            Ok(Some(_)) => ErrorContext::Listen.error(ErrorKind::WrongKind),
            Ok(None) => ErrorContext::Listen.error(ErrorKind::Unsupported),
            Err(errno) => ErrorContext::Listen.os_error(errno),
        };
        Err(Rejected::new(error, listener))
    }

    pub(super) fn adopt(
        &mut self,
        error_context: ErrorContext,
        socket: OwnedFd,
        kind: SocketKind,
    ) -> Result<Conn, Rejected<OwnedFd>> {
        let rejection = self.admit();
        let closed = self.engine.closed.then_some(ErrorKind::WatcherClosed);
        if let Some(kind) = rejection.or(closed) {
            return Err(Rejected::new(error_context.error(kind), socket));
        }
        self.engine
            .adopt(socket, kind)
            .map_err(|(errno, socket)| Rejected::new(error_context.os_error(errno), socket))
    }

    /// Returns the socket of an idle connection, in the blocking mode in which it was handed in. The
    /// handle is dead afterwards.
    ///
    /// ```
    /// use gaio::{ErrorKind, Results, Watcher};
    /// use std::os::unix::net::UnixStream;
    ///
    /// # fn main() -> gaio::Result<(), Box<dyn std::error::Error>> {
    /// let (ours, _peer) = UnixStream::pair()?;
    /// let mut watcher = Watcher::new()?;
    /// let mut results = Results::new();
    /// let conn = watcher.delegate(ours)?;
    /// let read = watcher.read((), conn, None)?;
    /// assert_eq!(watcher.reclaim(conn).unwrap_err().kind(), ErrorKind::Busy);
    ///
    /// watcher.cancel(read);
    /// watcher.wait_io(&mut results)?; // the read ends with Cancelled
    /// let ours = UnixStream::from(watcher.reclaim(conn)?);
    /// assert!(!watcher.contains(conn));
    /// # drop(ours);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// - `Busy` while requests are pending.
    /// - `ConnClosed`, `WrongThread`, `Forked`.
    pub fn reclaim(&mut self, conn: Conn) -> Result<OwnedFd> {
        self.check_here(ErrorContext::Reclaim)?;
        self.find_in_inbox(conn);
        self.engine
            .reclaim(conn)
            .map_err(|kind| ErrorContext::Reclaim.error(kind))
    }

    /// A handle with which other threads submit requests to this watcher.
    pub fn remote(&self) -> Remote<C> {
        Remote::new(Arc::clone(&self.inbox))
    }

    /// The backend in use, the kernel's features that it uses, and the reasons why better backends
    /// were declined.
    pub fn backend(&self) -> &BackendInfo {
        &self.info
    }

    /// Counters since the watcher was built, and what is pending now.
    pub fn stats(&self) -> Stats {
        let calls = self.engine.backend.counts();
        let (wakeups, wakeups_elided) = self.inbox.waker.counts();
        // In a forked child the pool's lock may be held for ever.
        let pool = match self.owner.is_forked() {
            true => PoolUse::default(),
            false => self.engine.backend.pool().usage(),
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
            submitted: engine.submitted,
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

    /// A descriptor for another event loop. It is readable when
    /// [`wait_io_timeout`](Watcher::wait_io_timeout) with a timeout of zero has something to do:
    /// a result is there, a deadline has passed, a [`Remote`] sent something, a lease came back that a
    /// read waits for, or a request was submitted since the last turn.
    ///
    /// Poll it on the watcher's own thread, and make one turn with a timeout of zero each time it is
    /// readable. The turn may return no result. If it leaves results for the next turn, the descriptor
    /// stays readable. Level- and edge-triggered loops both work. [`guide::nesting`](crate::guide::nesting)
    /// has an example.
    ///
    /// The descriptor is a duplicate: register it once, and close it whenever you like. After the watcher
    /// is gone it is never readable again. After the first call of this method, each turn makes a few more system calls.
    ///
    /// # Errors
    /// - `Os` if no descriptor can be had. Nothing has changed then, and a later call may succeed.
    /// - `WrongThread`, `Forked`.
    pub fn poll_fd(&mut self) -> Result<OwnedFd> {
        self.check_here(ErrorContext::Nest)?;
        let refused = |errno| ErrorContext::Nest.os_error(errno);
        let descriptor = self.engine.backend.readiness().map_err(refused)?;
        self.nested = true;
        if self.owner.is_bound() {
            // A ring that slept before still reads the waker's event. These rounds end that.
            self.settle().map_err(refused)?;
        }
        self.sleep_polled();
        Ok(descriptor)
    }

    /// Binds the calling thread to one CPU. Call it on the watcher's own thread.
    ///
    /// ```
    /// use gaio::{ErrorKind, Watcher};
    ///
    /// # fn main() -> gaio::Result<()> {
    /// let mut watcher = Watcher::<()>::new()?;
    /// match watcher.pin(0) {
    ///     Ok(()) => {}
    ///     Err(error) if error.kind() == ErrorKind::Unsupported => {} // not on this system
    ///     Err(error) => eprintln!("CPU 0 is not for this process: {error}"),
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// - `Os` with `EINVAL` if this process may not use such a CPU.
    /// - `Unsupported` where the system cannot bind a thread (macOS, OpenBSD).
    /// - `WrongThread`, `Forked`.
    pub fn pin(&mut self, cpu: usize) -> Result<()> {
        self.check_here(ErrorContext::Pin)?;
        pin_thread(cpu)
    }

    /// Closes the watcher. All pending requests end with `WatcherClosed`, and all sockets are closed.
    /// [`wait_io`](Watcher::wait_io) still returns the results that are left, then fails with
    /// `WatcherClosed`. A second call does nothing.
    ///
    /// It may be called on any thread. On another than the watcher's own it is
    /// [`Remote::close`](crate::Remote::close): new messages are refused at once, and the rest happens in
    /// the next turn.
    ///
    /// ```
    /// use gaio::{ErrorKind, Results, Watcher};
    ///
    /// # fn main() -> gaio::Result<()> {
    /// let mut watcher = Watcher::new()?;
    /// watcher.timer("never", gaio::Deadline::NEVER)?;
    /// watcher.close();
    ///
    /// let mut results = Results::new();
    /// watcher.wait_io(&mut results)?;
    /// let res = results.pop().expect("the timer's result");
    /// assert_eq!(res.error.map(|error| error.kind()), Some(ErrorKind::WatcherClosed));
    /// assert_eq!(watcher.wait_io(&mut results).unwrap_err().kind(), ErrorKind::WatcherClosed);
    /// # Ok(())
    /// # }
    /// ```
    pub fn close(&mut self) {
        if self.owner.is_forked() {
            return;
        }
        self.inbox.close();
        if self.owner.rejection().is_none() {
            self.receive_messages(usize::MAX);
        }
    }
}
