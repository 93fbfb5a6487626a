//! `Remote`: requests to a watcher from other threads.

use std::fmt;
use std::fs::File;
use std::net::Shutdown;
use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use gaio_backends::{
    Address, Buffer, Errno, Error, ErrorContext, ErrorKind, Lane, OpData, Result, SocketKind,
    classify, stream_socket,
};

use crate::conn::Conn;
use crate::deadlines::Deadline;
use crate::error::Rejected;
use crate::inbox::{Inbox, Message};
use crate::request::{OpId, RequestKind, Submission, refuses_file};

/// A handle with which other threads submit requests to a [`Watcher`](crate::Watcher).
///
/// Its calls return at once. The watcher takes the requests at its next turn; it is woken if it
/// sleeps. Requests that one thread sends keep their order, and all results come to the watcher's
/// thread. An error that the call cannot know (a freed connection, an empty buffer, the system) comes as
/// the result of the request. The calls themselves fail only if the watcher is closed, in a child
/// of its process ([`Forked`](crate::ErrorKind::Forked)), or, where they make a new connection, if that
/// is not possible.
///
/// ```
/// use gaio::{Operation, Results, Watcher};
/// use std::io::{Read, Write};
/// use std::os::unix::net::UnixStream;
///
/// # fn main() -> gaio::Result<(), Box<dyn std::error::Error>> {
/// let (ours, mut peer) = UnixStream::pair()?;
/// let mut watcher = Watcher::new()?;
/// let remote = watcher.remote();
/// let thread = std::thread::spawn(move || -> gaio::Result<()> {
///     let conn = remote.delegate(ours)?; // usable at once
///     remote.write("greeting", conn, "hello")?;
///     remote.post("a message")?;
///     Ok(())
/// });
///
/// let mut results = Results::new();
/// let mut seen = Vec::new();
/// while seen.len() < 2 {
///     watcher.wait_io(&mut results)?;
///     seen.extend(results.drain().map(|res| (res.operation, res.context)));
/// }
/// assert!(seen.contains(&(Operation::Write, "greeting")));
/// assert!(seen.contains(&(Operation::Post, "a message")));
/// # let mut text = [0; 5];
/// # peer.read_exact(&mut text)?;
/// # assert_eq!(&text, b"hello");
/// # thread.join().expect("no panic")?;
/// # Ok(())
/// # }
/// ```
pub struct Remote<C = ()> {
    inbox: Arc<Inbox<C>>,
}

impl<C> Remote<C> {
    pub(crate) fn new(inbox: Arc<Inbox<C>>) -> Self {
        Remote { inbox }
    }

    /// Hands a connected stream socket, or another descriptor that can be waited for, to the watcher.
    /// The handle can be used at once.
    ///
    /// # Errors
    /// The descriptor comes back, still open.
    /// - `Unsupported`, `WrongKind` as for [`Watcher::delegate`](crate::Watcher::delegate).
    /// - `Os` with `ENFILE` if the watcher has as many connections as it can.
    /// - `WatcherClosed`, `Forked`.
    pub fn delegate(&self, socket: impl Into<OwnedFd>) -> Result<Conn, Rejected<OwnedFd>> {
        let socket = socket.into();
        let kind = match connection_kind(&socket) {
            Ok(kind) => kind,
            Err(error) => return Err(Rejected::new(error, socket)),
        };
        let conn = match self.allocate(ErrorContext::Delegate) {
            Ok(conn) => conn,
            Err(error) => return Err(Rejected::new(error, socket)),
        };
        let sent = self
            .inbox
            .send(socket, |_, socket| Message::Delegate { conn, socket, kind });
        match sent {
            Ok(_) => Ok(conn),
            Err(socket) => Err(Rejected::new(
                self.rejection(ErrorContext::Delegate),
                socket,
            )),
        }
    }

    /// See [`Watcher::read`](crate::Watcher::read).
    ///
    /// # Errors
    /// `WatcherClosed`, `Forked`.
    pub fn read(
        &self,
        ctx: C,
        conn: Conn,
        buf: impl Into<Option<Vec<u8>>>,
    ) -> Result<OpId, Rejected<(C, Option<Vec<u8>>)>> {
        self.read_timeout(ctx, conn, buf, Deadline::NEVER)
    }

    /// See [`Watcher::read_timeout`](crate::Watcher::read_timeout).
    ///
    /// # Errors
    /// `WatcherClosed`, `Forked`.
    pub fn read_timeout(
        &self,
        ctx: C,
        conn: Conn,
        buf: impl Into<Option<Vec<u8>>>,
        deadline: impl Into<Deadline>,
    ) -> Result<OpId, Rejected<(C, Option<Vec<u8>>)>> {
        let submission = Submission::read(ctx, buf.into(), deadline.into().at());
        self.submit(conn, submission).map_err(|submission| {
            Rejected::new(self.rejection(ErrorContext::Read), submission.into_read())
        })
    }

    /// See [`Watcher::read_full`](crate::Watcher::read_full).
    ///
    /// # Errors
    /// `WatcherClosed`, `Forked`.
    pub fn read_full(
        &self,
        ctx: C,
        conn: Conn,
        buf: Vec<u8>,
        deadline: impl Into<Deadline>,
    ) -> Result<OpId, Rejected<(C, Vec<u8>)>> {
        let data = OpData::Buffer(buf.into());
        let submission = Submission::new(RequestKind::ReadFull, ctx, data, deadline.into().at());
        self.submit(conn, submission).map_err(|submission| {
            let (ctx, buf) = submission.into_write();
            Rejected::new(self.rejection(ErrorContext::Read), (ctx, buf.into_vec()))
        })
    }

    /// See [`Watcher::read_stream`](crate::Watcher::read_stream).
    ///
    /// # Errors
    /// `WatcherClosed`, `Forked`.
    pub fn read_stream(&self, ctx: C, conn: Conn) -> Result<OpId, Rejected<C>>
    where
        C: Clone,
    {
        let submission = Submission::stream(RequestKind::ReadStream, ctx, OpData::None);
        self.submit(conn, submission).map_err(|submission| {
            Rejected::new(self.rejection(ErrorContext::Read), submission.context)
        })
    }

    /// See [`Watcher::write`](crate::Watcher::write).
    ///
    /// # Errors
    /// `WatcherClosed`, `Forked`.
    pub fn write(
        &self,
        ctx: C,
        conn: Conn,
        buf: impl Into<Buffer>,
    ) -> Result<OpId, Rejected<(C, Buffer)>> {
        self.write_timeout(ctx, conn, buf, Deadline::NEVER)
    }

    /// See [`Watcher::write_timeout`](crate::Watcher::write_timeout).
    ///
    /// # Errors
    /// `WatcherClosed`, `Forked`.
    pub fn write_timeout(
        &self,
        ctx: C,
        conn: Conn,
        buf: impl Into<Buffer>,
        deadline: impl Into<Deadline>,
    ) -> Result<OpId, Rejected<(C, Buffer)>> {
        let buffer = buf.into();
        let kind = RequestKind::write(&buffer);
        let data = OpData::Buffer(buffer);
        let submission = Submission::new(kind, ctx, data, deadline.into().at());
        self.submit(conn, submission).map_err(|submission| {
            Rejected::new(self.rejection(ErrorContext::Write), submission.into_write())
        })
    }

    /// See [`Watcher::write_vectored`](crate::Watcher::write_vectored).
    ///
    /// # Errors
    /// `WatcherClosed`, `Forked`.
    pub fn write_vectored(
        &self,
        ctx: C,
        conn: Conn,
        parts: Vec<Buffer>,
        deadline: impl Into<Deadline>,
    ) -> Result<OpId, Rejected<(C, Vec<Buffer>)>> {
        let written = self.write_timeout(ctx, conn, Buffer::from_parts(parts), deadline);
        written.map_err(|rejected| rejected.map(|(ctx, buffer)| (ctx, buffer.into_parts())))
    }

    /// See [`Watcher::send_file`](crate::Watcher::send_file).
    ///
    /// # Errors
    /// `Unsupported`, `InvalidInput`, `WatcherClosed`, `Forked`.
    pub fn send_file(
        &self,
        ctx: C,
        conn: Conn,
        file: Arc<File>,
        range: Range<u64>,
        deadline: impl Into<Deadline>,
    ) -> Result<OpId, Rejected<C>> {
        if let Some(error) = refuses_file(&file, &range) {
            return Err(Rejected::new(error, ctx));
        }
        let submission = Submission::file(ctx, file, range, deadline.into().at());
        self.submit(conn, submission).map_err(|submission| {
            Rejected::new(self.rejection(ErrorContext::SendFile), submission.context)
        })
    }

    /// See [`Watcher::connect`](crate::Watcher::connect). If no socket can be had, the result says so.
    /// The watcher may connect at once, so there is no time for other options.
    ///
    /// # Errors
    /// - `Os` with `ENFILE` if the watcher has as many connections as it can.
    /// - `WatcherClosed`, `Forked`.
    pub fn connect(
        &self,
        ctx: C,
        to: impl Into<Address>,
        deadline: impl Into<Deadline>,
    ) -> Result<Conn, Rejected<C>> {
        let to = to.into();
        let conn = match self.allocate(ErrorContext::Connect) {
            Ok(conn) => conn,
            Err(error) => return Err(Rejected::new(error, ctx)),
        };
        let socket = stream_socket(&to);
        let data = OpData::Address(Box::new(to));
        let submission = Submission::new(RequestKind::Connect, ctx, data, deadline.into().at());
        let sent = self
            .inbox
            .send((socket, submission), |op, (socket, submission)| {
                Message::Connect {
                    op,
                    conn,
                    socket,
                    submission,
                }
            });
        match sent {
            Ok(_) => Ok(conn),
            Err((_, submission)) => Err(Rejected::new(
                self.rejection(ErrorContext::Connect),
                submission.context,
            )),
        }
    }

    /// See [`Watcher::shutdown`](crate::Watcher::shutdown).
    ///
    /// # Errors
    /// `WatcherClosed`, `Forked`.
    pub fn shutdown(&self, ctx: C, conn: Conn, how: Shutdown) -> Result<OpId, Rejected<C>> {
        let submission = Submission::new(RequestKind::Shutdown(how), ctx, OpData::None, None);
        self.submit(conn, submission).map_err(|submission| {
            Rejected::new(self.rejection(ErrorContext::Shutdown), submission.context)
        })
    }

    /// Sends a message. The watcher has a result of [`Operation::Post`](crate::Operation::Post) with this
    /// context.
    ///
    /// # Errors
    /// `WatcherClosed`, `Forked`.
    pub fn post(&self, ctx: C) -> Result<(), Rejected<C>> {
        self.inbox
            .post(ctx)
            .map(drop)
            .map_err(|ctx| Rejected::new(self.rejection(ErrorContext::Post), ctx))
    }

    /// Ends the watcher's wait: [`wait_io`](crate::Watcher::wait_io) returns, with 0 results if there are
    /// none. If the watcher is not waiting, its next `wait_io` does so. Several calls before that are one.
    ///
    /// It is for work that reaches the watcher's thread on another way, such as a queue or a flag of the
    /// program's own. It costs a system call only if the watcher sleeps. A watcher that lies in another
    /// event loop becomes readable ([`poll_fd`](crate::Watcher::poll_fd)).
    ///
    /// ```
    /// use gaio::{Results, Watcher};
    /// use std::sync::mpsc;
    /// use std::thread;
    ///
    /// # fn main() -> gaio::Result<()> {
    /// let mut watcher = Watcher::<()>::new()?;
    /// let remote = watcher.remote();
    /// let (sender, jobs) = mpsc::channel();
    /// let thread = thread::spawn(move || {
    ///     sender.send("a job").expect("the receiver lives");
    ///     remote.wake()
    /// });
    ///
    /// let mut results = Results::new();
    /// assert_eq!(watcher.wait_io(&mut results)?, 0); // woken
    /// assert_eq!(jobs.try_recv(), Ok("a job"));
    /// # thread.join().expect("no panic")?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// `WatcherClosed`, `Forked`.
    pub fn wake(&self) -> Result<()> {
        let woken = self.inbox.wake();
        woken.map_err(|()| self.rejection(ErrorContext::Wake))
    }

    /// See [`Watcher::cancel`](crate::Watcher::cancel). If the request has finished by then, nothing
    /// happens.
    ///
    /// # Errors
    /// `WatcherClosed`, `Forked`.
    pub fn cancel(&self, op: OpId) -> Result<()> {
        self.tell(ErrorContext::Cancel, Message::Cancel(op))
    }

    /// See [`Watcher::cancel_reads`](crate::Watcher::cancel_reads). It does not tell how many.
    ///
    /// # Errors
    /// `WatcherClosed`, `Forked`.
    pub fn cancel_reads(&self, conn: Conn) -> Result<()> {
        self.tell(ErrorContext::Cancel, Message::CancelLane(conn, Lane::Read))
    }

    /// See [`Watcher::cancel_writes`](crate::Watcher::cancel_writes). It does not tell how many.
    ///
    /// # Errors
    /// `WatcherClosed`, `Forked`.
    pub fn cancel_writes(&self, conn: Conn) -> Result<()> {
        self.tell(ErrorContext::Cancel, Message::CancelLane(conn, Lane::Write))
    }

    /// See [`Watcher::set_deadline`](crate::Watcher::set_deadline). If the request has finished by then,
    /// nothing happens.
    ///
    /// # Errors
    /// `WatcherClosed`, `Forked`.
    pub fn set_deadline(&self, op: OpId, deadline: impl Into<Deadline>) -> Result<()> {
        let message = Message::SetDeadline(op, deadline.into().at());
        self.tell(ErrorContext::Deadline, message)
    }

    /// See [`Watcher::free`](crate::Watcher::free). If the handle is not valid any more, nothing happens.
    ///
    /// # Errors
    /// `WatcherClosed`, `Forked`.
    pub fn free(&self, conn: Conn) -> Result<()> {
        self.tell(ErrorContext::Free, Message::Free(conn))
    }

    /// See [`Watcher::close`](crate::Watcher::close). A `wait_io` that sleeps is woken.
    pub fn close(&self) {
        self.inbox.close();
    }

    fn submit(&self, conn: Conn, submission: Submission<C>) -> Result<OpId, Submission<C>> {
        self.inbox
            .send(submission, |op, submission| Message::Submit {
                op,
                conn,
                submission,
            })
    }

    /// Sends a message that has no result.
    fn tell(&self, error_context: ErrorContext, message: Message<C>) -> Result<()> {
        let sent = self.inbox.send(message, |_, message| message);
        sent.map(drop).map_err(|_| self.rejection(error_context))
    }

    /// Allocates a handle that can be used at once.
    fn allocate(&self, error_context: ErrorContext) -> Result<Conn> {
        if self.inbox.is_forked() {
            return Err(self.rejection(error_context));
        }
        let conn = self.inbox.conns.allocate();
        conn.ok_or(error_context.os_error(Errno::TABLE_FULL))
    }

    /// The error with which the inbox refuses everything.
    fn rejection(&self, error_context: ErrorContext) -> Error {
        let kind = match self.inbox.is_forked() {
            true => ErrorKind::Forked,
            false => ErrorKind::WatcherClosed,
        };
        error_context.error(kind)
    }
}

/// The kind of a descriptor, if `delegate` takes it.
pub(crate) fn connection_kind(socket: &OwnedFd) -> Result<SocketKind> {
    match classify(socket.as_fd()) {
        Ok(Some(SocketKind::Listener)) => Err(ErrorContext::Delegate.error(ErrorKind::WrongKind)),
        Ok(Some(kind)) => Ok(kind),
        Ok(None) => Err(ErrorContext::Delegate.error(ErrorKind::Unsupported)),
        Err(errno) => Err(ErrorContext::Delegate.os_error(errno)),
    }
}

impl<C> Clone for Remote<C> {
    fn clone(&self) -> Self {
        Remote {
            inbox: Arc::clone(&self.inbox),
        }
    }
}

impl<C> fmt::Debug for Remote<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Remote").finish_non_exhaustive()
    }
}
