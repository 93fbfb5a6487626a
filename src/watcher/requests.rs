//! The requests: what a user may ask of a connection, and how it is taken back.

use std::net::Shutdown;
use std::os::fd::{AsFd, OwnedFd};

use gaio_backends::{
    Address, Buffer, Credit, Doing, Error, ErrorKind, Interest, Load, Result, SocketKind, classify,
    stream_socket,
};

use super::Watcher;
use crate::conn::Conn;
use crate::deadlines::Deadline;
use crate::error::Rejected;
use crate::request::{OpId, What};

impl<C> Watcher<C> {
    /// Reads once: at least one byte, or the end.
    ///
    /// `buf` says where to: a vector, whose length is the most that is wanted; `None` for a
    /// swap buffer, of which the result has a lease; or a finished operation's
    /// [`Buffer`], which reads the same way again.
    ///
    /// # Errors
    /// `EmptyBuffer`, `ConnClosed`, `WrongKind` (a listener), `WatcherClosed`.
    #[inline(always)]
    pub fn read(
        &mut self,
        ctx: C,
        conn: Conn,
        buf: impl Into<Option<Vec<u8>>>,
    ) -> Result<OpId, Rejected<(C, Option<Vec<u8>>)>> {
        match buf.into() {
            None => self.read_swap(ctx, conn, NEVER),
            Some(vec) => self.read_into(ctx, conn, vec, NEVER),
        }
    }

    /// As [`read`](Watcher::read), ending with `Deadline` if nothing came in time. Bytes that
    /// arrive later are still in the socket.
    ///
    /// # Errors
    /// As [`read`](Watcher::read).
    pub fn read_timeout(
        &mut self,
        ctx: C,
        conn: Conn,
        buf: impl Into<Option<Vec<u8>>>,
        deadline: impl Into<Deadline>,
    ) -> Result<OpId, Rejected<(C, Option<Vec<u8>>)>> {
        let deadline = deadline.into();
        match buf.into() {
            None => self.read_swap(ctx, conn, deadline),
            Some(vec) => self.read_into(ctx, conn, vec, deadline),
        }
    }

    #[inline(always)]
    fn read_swap(
        &mut self,
        ctx: C,
        conn: Conn,
        deadline: Deadline,
    ) -> Result<OpId, Rejected<(C, Option<Vec<u8>>)>> {
        self.submit(What::ReadSwap, ctx, conn, deadline)
            .map_err(|rejected| rejected.map(|ctx| (ctx, None)))
    }

    fn read_into(
        &mut self,
        ctx: C,
        conn: Conn,
        vec: Vec<u8>,
        deadline: Deadline,
    ) -> Result<OpId, Rejected<(C, Option<Vec<u8>>)>> {
        let give_back = |ctx, buffer: Buffer| (ctx, buffer.recycle());
        self.submit_with(What::Read, ctx, conn, vec.into(), deadline, give_back)
    }

    /// Reads until the buffer is full. Ends with `UnexpectedEof` or `Deadline`, and the bytes so
    /// far, if that does not happen.
    ///
    /// # Errors
    /// As [`read`](Watcher::read).
    pub fn read_full(
        &mut self,
        ctx: C,
        conn: Conn,
        buf: Vec<u8>,
        deadline: impl Into<Deadline>,
    ) -> Result<OpId, Rejected<(C, Vec<u8>)>> {
        let give_back = |ctx, buffer: Buffer| (ctx, buffer.into_vec());
        let deadline = deadline.into();
        self.submit_with(What::ReadFull, ctx, conn, buf.into(), deadline, give_back)
    }

    /// Reads into swap buffers until the end of the stream, an error, or its
    /// [`cancel`](Watcher::cancel): one request, many results, the last of which says
    /// [`is_last`](crate::OpResult::is_last). Pauses while the program keeps more leased bytes
    /// than [`Builder::stream_window`](crate::Builder::stream_window).
    ///
    /// # Errors
    /// As [`read`](Watcher::read).
    pub fn read_stream(&mut self, ctx: C, conn: Conn) -> Result<OpId, Rejected<C>>
    where
        C: Clone,
    {
        self.engine.learn_to_clone(C::clone);
        if let Some(kind) = self.refusal(conn, What::ReadStream) {
            return Err(Rejected::new(Error::new(Doing::Read, kind), ctx));
        }
        let (op, key) = self.engine.accept(conn, What::ReadStream, ctx, None);
        self.backend.loads().put(key, Load::Credit(Credit::new()));
        Ok(op)
    }

    /// Writes every byte. On error, deadline or cancel the result's `size` says how many were
    /// handed to the kernel.
    ///
    /// # Errors
    /// `EmptyBuffer`, `ConnClosed`, `WrongKind` (a listener), `WatcherClosed`.
    #[inline]
    pub fn write(
        &mut self,
        ctx: C,
        conn: Conn,
        buf: impl Into<Buffer>,
    ) -> Result<OpId, Rejected<(C, Buffer)>> {
        self.submit_with(What::Write, ctx, conn, buf.into(), NEVER, both)
    }

    /// As [`write`](Watcher::write), ending with `Deadline` if it takes longer.
    ///
    /// # Errors
    /// As [`write`](Watcher::write).
    pub fn write_timeout(
        &mut self,
        ctx: C,
        conn: Conn,
        buf: impl Into<Buffer>,
        deadline: impl Into<Deadline>,
    ) -> Result<OpId, Rejected<(C, Buffer)>> {
        self.submit_with(What::Write, ctx, conn, buf.into(), deadline.into(), both)
    }

    /// Accepts connections until it is cancelled or the listener freed. Each result with
    /// [`accepted`](crate::OpResult::accepted) brings a connection that belongs to the watcher.
    ///
    /// Out of descriptors: one result with the error, which is not the last, then silence until
    /// a connection is freed (or a tenth of a second passes) and accepting works again.
    ///
    /// # Errors
    /// `WrongKind` (not a listener), `ConnClosed`, `WatcherClosed`.
    pub fn accept(&mut self, ctx: C, listener: Conn) -> Result<OpId, Rejected<C>>
    where
        C: Clone,
    {
        self.engine.learn_to_clone(C::clone);
        self.submit(What::Accept, ctx, listener, NEVER)
    }

    /// Accepts one connection.
    ///
    /// # Errors
    /// As [`accept`](Watcher::accept).
    pub fn accept_one(&mut self, ctx: C, listener: Conn) -> Result<OpId, Rejected<C>> {
        self.submit(What::AcceptOne, ctx, listener, NEVER)
    }

    /// Connects a new socket. Further requests may be submitted at once: they wait for the
    /// connection, and end with its error if there is none. Then the handle still is the
    /// program's, until [`free`](Watcher::free).
    ///
    /// # Errors
    /// `WatcherClosed`; `Os` if no socket can be had.
    pub fn connect(
        &mut self,
        ctx: C,
        to: impl Into<Address>,
        deadline: impl Into<Deadline>,
    ) -> Result<Conn, Rejected<C>> {
        let to = to.into();
        let socket = match stream_socket(&to) {
            Ok(socket) => socket,
            Err(errno) => return Err(Rejected::new(Error::os(Doing::Connect, errno), ctx)),
        };
        self.connect_socket(ctx, socket, to, deadline.into())
            .map_err(|(error, ctx, _)| Rejected::new(error, ctx))
    }

    /// Connects a stream socket of the program's own: bound, or with options set.
    ///
    /// # Errors
    /// `Unsupported` for anything else; `WatcherClosed`; `Os`.
    pub fn connect_from(
        &mut self,
        ctx: C,
        socket: impl Into<OwnedFd>,
        to: impl Into<Address>,
        deadline: impl Into<Deadline>,
    ) -> Result<Conn, Rejected<(C, OwnedFd)>> {
        let socket = socket.into();
        if classify(socket.as_fd()) != Ok(Some(SocketKind::Stream)) {
            let error = Error::new(Doing::Connect, ErrorKind::Unsupported);
            return Err(Rejected::new(error, (ctx, socket)));
        }
        self.connect_socket(ctx, socket, to.into(), deadline.into())
            .map_err(|(error, ctx, socket)| Rejected::new(error, (ctx, socket)))
    }

    fn connect_socket(
        &mut self,
        ctx: C,
        socket: OwnedFd,
        to: Address,
        deadline: Deadline,
    ) -> Result<Conn, (Error, C, OwnedFd)> {
        let adopted = self.adopt(Doing::Connect, socket, SocketKind::Stream);
        let conn = match adopted.map_err(Rejected::into_parts) {
            Ok(conn) => conn,
            Err((error, socket)) => return Err((error, ctx, socket)),
        };
        let (_, key) = self.engine.accept(conn, What::Connect, ctx, deadline.at());
        self.engine.begin_connecting(conn);
        let load = Load::Address(Box::new(to));
        self.backend.loads().put(key, load);
        Ok(conn)
    }

    /// Shuts down one or both directions, after the writes that were submitted before.
    ///
    /// # Errors
    /// `ConnClosed`, `WrongKind` (a listener), `WatcherClosed`.
    pub fn shutdown(&mut self, ctx: C, conn: Conn, how: Shutdown) -> Result<OpId, Rejected<C>> {
        let what = What::Shutdown(how);
        self.submit(what, ctx, conn, NEVER)
    }

    /// Waits until the socket is ready, once, and transfers nothing; in its turn among the reads
    /// or writes.
    ///
    /// # Errors
    /// `ConnClosed`, `WatcherClosed`.
    pub fn ready(&mut self, ctx: C, conn: Conn, interest: Interest) -> Result<OpId, Rejected<C>> {
        let what = What::Ready(interest);
        self.submit(what, ctx, conn, NEVER)
    }

    /// Gives a result at a point in time.
    ///
    /// # Errors
    /// `WatcherClosed`.
    pub fn timer(&mut self, ctx: C, deadline: impl Into<Deadline>) -> Result<OpId, Rejected<C>> {
        let refusal = if self.is_elsewhere() {
            Some(ErrorKind::WrongThread)
        } else {
            self.engine.closed.then_some(ErrorKind::WatcherClosed)
        };
        match refusal {
            None => Ok(self.engine.timer(ctx, deadline.into().at())),
            Some(kind) => Err(Rejected::new(Error::new(Doing::Timer, kind), ctx)),
        }
    }

    /// A request that carries nothing but its context. Inlined, so that what is known of each kind
    /// of request is known at compile time.
    #[inline(always)]
    fn submit(
        &mut self,
        what: What,
        ctx: C,
        conn: Conn,
        deadline: Deadline,
    ) -> Result<OpId, Rejected<C>> {
        match self.refusal(conn, what) {
            None => Ok(self.engine.accept(conn, what, ctx, deadline.at()).0),
            Some(kind) => Err(Rejected::new(Error::new(what.doing(), kind), ctx)),
        }
    }

    /// A request that carries bytes, or room for some.
    #[inline(always)]
    fn submit_with<T>(
        &mut self,
        what: What,
        ctx: C,
        conn: Conn,
        buffer: Buffer,
        deadline: Deadline,
        give_back: impl FnOnce(C, Buffer) -> T,
    ) -> Result<OpId, Rejected<T>> {
        let refusal = match self.refusal(conn, what) {
            None if buffer.is_empty() => Some(ErrorKind::EmptyBuffer),
            refusal => refusal,
        };
        if let Some(kind) = refusal {
            let error = Error::new(what.doing(), kind);
            return Err(Rejected::new(error, give_back(ctx, buffer)));
        }
        let (op, key) = self.engine.accept(conn, what, ctx, deadline.at());
        self.backend.loads().put(key, Load::Buffer(buffer));
        Ok(op)
    }

    #[inline(always)]
    fn refusal(&mut self, conn: Conn, what: What) -> Option<ErrorKind> {
        if self.is_elsewhere() {
            return Some(ErrorKind::WrongThread);
        }
        self.reach(conn);
        self.engine.refusal(conn, what)
    }

    /// A handle that a `Remote` just got may still be in the inbox.
    #[inline]
    pub(super) fn reach(&mut self, conn: Conn) {
        if self.inbox.is_pending() && !self.engine.is_open(conn) {
            self.absorb();
        }
    }

    /// Cancels a request: it ends with `Cancelled`, unless it was quicker. False if it has
    /// finished, is unknown, or another watcher's.
    pub fn cancel(&mut self, op: OpId) -> bool {
        if self.inbox.is_pending() {
            self.absorb();
        }
        self.engine.cancel(&mut *self.backend, op)
    }

    /// Frees a connection or listener: its pending requests end with `ConnClosed`, in order, then
    /// its socket is closed. It is not shut down: a duplicate that the program has stays usable.
    /// False if the handle was not good.
    pub fn free(&mut self, conn: Conn) -> bool {
        self.reach(conn);
        self.engine.free(&mut *self.backend, conn)
    }
}

const NEVER: Deadline = Deadline::NEVER;

fn both<C>(ctx: C, buffer: Buffer) -> (C, Buffer) {
    (ctx, buffer)
}
