//! `Remote`: the same requests from other threads.

use std::fmt;
use std::net::Shutdown;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use gaio_backends::{
    Address, Buffer, Doing, Errno, Error, ErrorKind, Load, Result, SocketKind, classify,
    stream_socket,
};

use crate::conn::Conn;
use crate::deadlines::Deadline;
use crate::error::Rejected;
use crate::inbox::{Inbox, Message};
use crate::request::{OpId, Order, What};

/// A handle to a [`Watcher`](crate::Watcher) for other threads.
///
/// Calls return at once; the watcher takes them up at its next turn and is woken if it sleeps.
/// Requests of one handle from one thread keep their order. Whatever is wrong with a request (a freed
/// connection, an empty buffer, the system) comes as its result. The calls fail only if the watcher
/// is closed, if this is a child of the watcher's process ([`Forked`](crate::ErrorKind::Forked)), or,
/// where they make a new connection, if it cannot be one.
///
/// ```
/// use gaio::{Operation, Results, Watcher};
///
/// # fn main() -> gaio::Result<()> {
/// let mut watcher = Watcher::new()?;
/// let remote = watcher.remote();
/// let thread = std::thread::spawn(move || remote.post("hello"));
/// let mut results = Results::new();
/// watcher.wait_io(&mut results)?;
/// let message = results.pop().expect("one result");
/// assert_eq!((message.operation, message.context), (Operation::Post, "hello"));
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

    /// Hands a connected stream socket, or something else that can be waited for, to the watcher.
    /// The handle can be used at once.
    ///
    /// # Errors
    /// `WatcherClosed`; `Forked`; `Unsupported` or `WrongKind` as for
    /// [`Watcher::delegate`](crate::Watcher::delegate); `Os` with `ENFILE` if the watcher has as many
    /// connections as it can. The descriptor comes back, open.
    pub fn delegate(&self, socket: impl Into<OwnedFd>) -> Result<Conn, Rejected<OwnedFd>> {
        let socket = socket.into();
        let kind = match connection_kind(&socket) {
            Ok(kind) => kind,
            Err(error) => return Err(Rejected::new(error, socket)),
        };
        let conn = match self.allocate(Doing::Delegate) {
            Ok(conn) => conn,
            Err(error) => return Err(Rejected::new(error, socket)),
        };
        let sent = self
            .inbox
            .send(socket, |_, socket| Message::Delegate { conn, socket, kind });
        match sent {
            Ok(_) => Ok(conn),
            Err(socket) => Err(Rejected::new(self.refusal(Doing::Delegate), socket)),
        }
    }

    /// As [`Watcher::read`](crate::Watcher::read).
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

    /// As [`Watcher::read_timeout`](crate::Watcher::read_timeout).
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
        let order = Order::read(ctx, buf.into(), deadline.into().at());
        self.submit(conn, order)
            .map_err(|order| Rejected::new(self.refusal(Doing::Read), order.into_read()))
    }

    /// As [`Watcher::read_full`](crate::Watcher::read_full).
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
        let load = Load::Buffer(buf.into());
        let order = Order::new(What::ReadFull, ctx, load, deadline.into().at());
        self.submit(conn, order).map_err(|order| {
            let (ctx, buf) = order.into_write();
            Rejected::new(self.refusal(Doing::Read), (ctx, buf.into_vec()))
        })
    }

    /// As [`Watcher::read_stream`](crate::Watcher::read_stream).
    ///
    /// # Errors
    /// `WatcherClosed`, `Forked`.
    pub fn read_stream(&self, ctx: C, conn: Conn) -> Result<OpId, Rejected<C>>
    where
        C: Clone,
    {
        let order = Order::stream(What::ReadStream, ctx, Load::None);
        self.submit(conn, order)
            .map_err(|order| Rejected::new(self.refusal(Doing::Read), order.context))
    }

    /// As [`Watcher::write`](crate::Watcher::write).
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

    /// As [`Watcher::write_timeout`](crate::Watcher::write_timeout).
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
        let load = Load::Buffer(buf.into());
        let order = Order::new(What::Write, ctx, load, deadline.into().at());
        self.submit(conn, order)
            .map_err(|order| Rejected::new(self.refusal(Doing::Write), order.into_write()))
    }

    /// As [`Watcher::connect`](crate::Watcher::connect); that no socket can be had comes as the
    /// result, too.
    ///
    /// # Errors
    /// `WatcherClosed`; `Forked`; `Os` with `ENFILE` if the watcher has as many connections as it can.
    pub fn connect(
        &self,
        ctx: C,
        to: impl Into<Address>,
        deadline: impl Into<Deadline>,
    ) -> Result<Conn, Rejected<C>> {
        let to = to.into();
        let conn = match self.allocate(Doing::Connect) {
            Ok(conn) => conn,
            Err(error) => return Err(Rejected::new(error, ctx)),
        };
        let socket = stream_socket(&to);
        let load = Load::Address(Box::new(to));
        let order = Order::new(What::Connect, ctx, load, deadline.into().at());
        let sent = self
            .inbox
            .send((socket, order), |op, (socket, order)| Message::Connect {
                op,
                conn,
                socket,
                order,
            });
        match sent {
            Ok(_) => Ok(conn),
            Err((_, order)) => Err(Rejected::new(self.refusal(Doing::Connect), order.context)),
        }
    }

    /// As [`Watcher::shutdown`](crate::Watcher::shutdown).
    ///
    /// # Errors
    /// `WatcherClosed`, `Forked`.
    pub fn shutdown(&self, ctx: C, conn: Conn, how: Shutdown) -> Result<OpId, Rejected<C>> {
        let order = Order::new(What::Shutdown(how), ctx, Load::None, None);
        self.submit(conn, order)
            .map_err(|order| Rejected::new(self.refusal(Doing::Shutdown), order.context))
    }

    /// Sends a message: the watcher gets a result of [`Operation::Post`](crate::Operation::Post)
    /// with this context.
    ///
    /// # Errors
    /// `WatcherClosed`, `Forked`.
    pub fn post(&self, ctx: C) -> Result<(), Rejected<C>> {
        self.inbox
            .send(ctx, |op, context| Message::Post { op, context })
            .map(drop)
            .map_err(|ctx| Rejected::new(self.refusal(Doing::Post), ctx))
    }

    /// As [`Watcher::cancel`](crate::Watcher::cancel); a number that is unknown by then does
    /// nothing.
    ///
    /// # Errors
    /// `WatcherClosed`, `Forked`.
    pub fn cancel(&self, op: OpId) -> Result<()> {
        self.inbox
            .send(op, |_, op| Message::Cancel(op))
            .map(drop)
            .map_err(|_| self.refusal(Doing::Cancel))
    }

    /// As [`Watcher::free`](crate::Watcher::free); a handle that is no longer good does nothing.
    ///
    /// # Errors
    /// `WatcherClosed`, `Forked`.
    pub fn free(&self, conn: Conn) -> Result<()> {
        self.inbox
            .send(conn, |_, conn| Message::Free(conn))
            .map(drop)
            .map_err(|_| self.refusal(Doing::Free))
    }

    /// Closes the watcher, as [`Watcher::close`](crate::Watcher::close); a blocked `wait_io`
    /// returns.
    pub fn close(&self) {
        self.inbox.close();
    }

    fn submit(&self, conn: Conn, order: Order<C>) -> Result<OpId, Order<C>> {
        self.inbox
            .send(order, |op, order| Message::Submit { op, conn, order })
    }

    /// A handle that can be used at once.
    fn allocate(&self, doing: Doing) -> Result<Conn> {
        if self.inbox.is_forked() {
            return Err(self.refusal(doing));
        }
        let conn = self.inbox.conns.allocate();
        conn.ok_or(Error::os(doing, Errno::TABLE_FULL))
    }

    /// Why the inbox takes nothing.
    fn refusal(&self, doing: Doing) -> Error {
        let kind = match self.inbox.is_forked() {
            true => ErrorKind::Forked,
            false => ErrorKind::WatcherClosed,
        };
        Error::new(doing, kind)
    }
}

/// What `delegate` takes.
pub(crate) fn connection_kind(socket: &OwnedFd) -> Result<SocketKind> {
    match classify(socket.as_fd()) {
        Ok(Some(SocketKind::Listener)) => Err(Error::new(Doing::Delegate, ErrorKind::WrongKind)),
        Ok(Some(kind)) => Ok(kind),
        Ok(None) => Err(Error::new(Doing::Delegate, ErrorKind::Unsupported)),
        Err(errno) => Err(Error::os(Doing::Delegate, errno)),
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
