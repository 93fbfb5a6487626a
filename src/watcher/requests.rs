//! The requests: what a user may ask of a connection, and how it is taken back.

use std::net::Shutdown;
use std::os::fd::{AsFd, OwnedFd};

use gaio_backends::{
    Address, Backend, Buffer, Doing, Error, ErrorKind, Interest, Load, Result, SocketKind, Task,
    classify, stream_socket,
};

use super::Watcher;
use crate::conn::Conn;
use crate::deadlines::Deadline;
use crate::engine::Engine;
use crate::error::Rejected;
use crate::request::{OpId, Order, What};

impl<C> Watcher<C> {
    /// Reads once: at least one byte, or the end.
    ///
    /// `buf` says where to: a vector, whose length is the most that is wanted; `None` for a
    /// swap buffer, of which the result has a lease; or a finished operation's
    /// [`Buffer`], which reads the same way again.
    ///
    /// # Errors
    /// `EmptyBuffer`, `ConnClosed`, `WrongKind` (a listener), `WatcherClosed`, `WrongThread`,
    /// `Forked`.
    #[inline(always)]
    pub fn read(
        &mut self,
        ctx: C,
        conn: Conn,
        buf: impl Into<Option<Vec<u8>>>,
    ) -> Result<OpId, Rejected<(C, Option<Vec<u8>>)>> {
        let (ctx, buf) = match buf.into() {
            None if self.home.is_trusted() => {
                let quick = QuickRead(&mut self.engine, conn, ctx);
                match self.backend.run(quick) {
                    Ok(op) => return Ok(op),
                    Err(ctx) => (ctx, None),
                }
            }
            buf => (ctx, buf),
        };
        self.read_carefully(ctx, conn, buf, Deadline::NEVER)
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
        self.read_carefully(ctx, conn, buf.into(), deadline.into())
    }

    #[inline(never)]
    fn read_carefully(
        &mut self,
        ctx: C,
        conn: Conn,
        buf: Option<Vec<u8>>,
        deadline: Deadline,
    ) -> Result<OpId, Rejected<(C, Option<Vec<u8>>)>> {
        self.submit(conn, Order::read(ctx, buf, deadline.at()))
            .map_err(|rejected| rejected.map(Order::into_read))
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
        let give_back = |(ctx, buffer): (C, Buffer)| (ctx, buffer.into_vec());
        let load = Load::Buffer(buf.into());
        let order = Order::new(What::ReadFull, ctx, load, deadline.into().at());
        self.submit(conn, order)
            .map_err(|rejected| rejected.map(|order| give_back(order.into_write())))
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
        let order = Order::stream(What::ReadStream, ctx, Load::None);
        self.submit(conn, order)
            .map_err(|rejected| rejected.map(|order| order.context))
    }

    /// Writes every byte. On error, deadline or cancel the result's `size` says how many were
    /// handed to the kernel.
    ///
    /// To close a connection after its last write, submit a [`shutdown`](Watcher::shutdown) and free
    /// it on the result: [`free`](Watcher::free) ends the writes that wait. Nothing bounds how much may
    /// be queued for a peer that does not read, but the program: for instance by reading on only when
    /// a write has ended.
    ///
    /// # Errors
    /// `EmptyBuffer` (so leave an empty body out), `ConnClosed`, `WrongKind` (a listener),
    /// `WatcherClosed`, `WrongThread`, `Forked`.
    #[inline(always)]
    pub fn write(
        &mut self,
        ctx: C,
        conn: Conn,
        buf: impl Into<Buffer>,
    ) -> Result<OpId, Rejected<(C, Buffer)>> {
        let buf = buf.into();
        let len = buf.len();
        if !self.home.is_trusted() || !self.engine.is_plain_write(conn, len) {
            return self.write_carefully(ctx, conn, buf, Deadline::NEVER);
        }
        let plain = PlainWrite(&mut self.engine, conn, ctx, buf, len);
        Ok(self.backend.run(plain))
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
        self.write_carefully(ctx, conn, buf.into(), deadline.into())
    }

    /// Accepts connections until it is cancelled or the listener freed. Each result with
    /// [`accepted`](crate::OpResult::accepted) brings a connection that belongs to the watcher.
    ///
    /// Out of descriptors: one result with the error, which is not the last, then silence until
    /// a connection is freed (or a tenth of a second passes) and accepting works again.
    ///
    /// Take every result: a connection whose result is dropped unread stays open until the watcher
    /// is closed, and nobody has its handle.
    ///
    /// To stop accepting, cancel it or free the listener. If the program calls `shutdown(2)` on the
    /// listener instead, the last result has `EINVAL`; on NetBSD, FreeBSD and macOS there is none.
    ///
    /// # Errors
    /// `WrongKind` (not a listener), `ConnClosed`, `WatcherClosed`, `WrongThread`, `Forked`.
    pub fn accept(&mut self, ctx: C, listener: Conn) -> Result<OpId, Rejected<C>>
    where
        C: Clone,
    {
        let order = Order::stream(What::Accept, ctx, Load::None);
        self.submit(listener, order)
            .map_err(|rejected| rejected.map(|order| order.context))
    }

    /// Accepts one connection.
    ///
    /// # Errors
    /// As [`accept`](Watcher::accept).
    pub fn accept_one(&mut self, ctx: C, listener: Conn) -> Result<OpId, Rejected<C>> {
        self.submit_plain(What::AcceptOne, ctx, listener)
    }

    /// Connects a new socket. Further requests may be submitted at once: they wait for the
    /// connection, and end with its error if there is none.
    ///
    /// The handle is the program's until [`free`](Watcher::free), also when the connect failed: free
    /// it then. After a `Deadline`, too: the system goes on connecting, so that later requests
    /// would be sent to whoever answers at last.
    ///
    /// The number of the request, [`OpResult::op`](crate::OpResult::op), is first seen in its result:
    /// what gives a connect up is its deadline, or `free`.
    ///
    /// A TCP socket holds small writes back for as long as earlier ones are not acknowledged, which
    /// takes 40 ms and more if the peer waits for the rest before it answers. Where requests are
    /// written in pieces, set `TCP_NODELAY` on the [`socket`](Watcher::socket).
    ///
    /// # Errors
    /// `WatcherClosed`; `WrongThread`; `Forked`; `Os` if no socket can be had.
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

    /// As [`connect`](Watcher::connect), with a stream socket of the program's own: bound, or with
    /// options set.
    ///
    /// # Errors
    /// `Unsupported` for anything else; `WatcherClosed`; `WrongThread`; `Forked`; `Os`.
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
        let load = Load::Address(Box::new(to));
        let order = Order::new(What::Connect, ctx, load, deadline.at());
        self.engine
            .begin_connecting(&mut *self.backend, None, conn, order);
        Ok(conn)
    }

    /// Shuts down one or both directions, after the writes that were submitted before. So this is
    /// how a connection ends without loss: shut down, and [`free`](Watcher::free) it on the result.
    ///
    /// # Errors
    /// `ConnClosed`, `WrongKind` (a listener), `WatcherClosed`, `WrongThread`, `Forked`.
    pub fn shutdown(&mut self, ctx: C, conn: Conn, how: Shutdown) -> Result<OpId, Rejected<C>> {
        self.submit_plain(What::Shutdown(how), ctx, conn)
    }

    /// Waits until the socket is ready, once, and transfers nothing; in its turn among the reads
    /// or writes.
    ///
    /// # Errors
    /// `ConnClosed`, `WatcherClosed`, `WrongThread`, `Forked`.
    pub fn ready(&mut self, ctx: C, conn: Conn, interest: Interest) -> Result<OpId, Rejected<C>> {
        self.submit_plain(What::Ready(interest), ctx, conn)
    }

    /// Gives a result at a point in time.
    ///
    /// # Errors
    /// `WatcherClosed`, `WrongThread`, `Forked`.
    pub fn timer(&mut self, ctx: C, deadline: impl Into<Deadline>) -> Result<OpId, Rejected<C>> {
        let refusal = self.admit();
        let closed = self.engine.closed.then_some(ErrorKind::WatcherClosed);
        match refusal.or(closed) {
            None => Ok(self.engine.timer(ctx, deadline.into().at())),
            Some(kind) => Err(Rejected::new(Error::new(Doing::Timer, kind), ctx)),
        }
    }

    #[inline(never)]
    fn write_carefully(
        &mut self,
        ctx: C,
        conn: Conn,
        buffer: Buffer,
        deadline: Deadline,
    ) -> Result<OpId, Rejected<(C, Buffer)>> {
        let order = Order::new(What::Write, ctx, Load::Buffer(buffer), deadline.at());
        self.submit(conn, order)
            .map_err(|rejected| rejected.map(Order::into_write))
    }

    /// A request that carries nothing but its context.
    fn submit_plain(&mut self, what: What, ctx: C, conn: Conn) -> Result<OpId, Rejected<C>> {
        self.submit(conn, Order::new(what, ctx, Load::None, None))
            .map_err(|rejected| rejected.map(|order| order.context))
    }

    fn submit(&mut self, conn: Conn, order: Order<C>) -> Result<OpId, Rejected<Order<C>>> {
        if let Some(kind) = self.admit() {
            return Err(refused(kind, order));
        }
        match self.engine.submit(&mut *self.backend, conn, order) {
            Ok(op) => Ok(op),
            Err((kind, order)) => self.submit_again(kind, conn, order),
        }
    }

    /// A handle that a `Remote` just got may still be in the inbox.
    #[cold]
    fn submit_again(
        &mut self,
        kind: ErrorKind,
        conn: Conn,
        order: Order<C>,
    ) -> Result<OpId, Rejected<Order<C>>> {
        if kind != ErrorKind::ConnClosed || !self.inbox.is_pending() {
            return Err(refused(kind, order));
        }
        self.absorb();
        self.engine
            .submit(&mut *self.backend, conn, order)
            .map_err(|(kind, order)| refused(kind, order))
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
        if self.admit() == Some(ErrorKind::Forked) {
            return false;
        }
        if self.inbox.is_pending() {
            self.absorb();
        }
        self.engine.cancel(&mut *self.backend, op)
    }

    /// Frees a connection or listener: its pending requests end with `ConnClosed`, in order, then
    /// its socket is closed. It is not shut down: a duplicate that the program has stays usable.
    /// False if the handle was not good.
    ///
    /// Writes that wait are among the pending requests, so their bytes are lost: to send them first,
    /// [`shutdown`](Watcher::shutdown), and free on its result. Results that were handed out before
    /// stay good; requests for the connection are refused from now on.
    pub fn free(&mut self, conn: Conn) -> bool {
        if self.admit() == Some(ErrorKind::Forked) {
            return false;
        }
        self.reach(conn);
        self.engine.free(&mut *self.backend, conn)
    }
}

/// A swap read that starts at once, if nothing stands in its way.
struct QuickRead<'a, C>(&'a mut Engine<C>, Conn, C);

impl<C> Task for QuickRead<'_, C> {
    type Output = Result<OpId, C>;

    #[inline(always)]
    fn run<B: Backend>(self, backend: &mut B) -> Self::Output {
        let QuickRead(engine, conn, context) = self;
        engine.submit_read_swap(backend, conn, context)
    }
}

/// A write about which nothing is special, and how long it is.
struct PlainWrite<'a, C>(&'a mut Engine<C>, Conn, C, Buffer, usize);

impl<C> Task for PlainWrite<'_, C> {
    type Output = OpId;

    #[inline(always)]
    fn run<B: Backend>(self, backend: &mut B) -> Self::Output {
        let PlainWrite(engine, conn, context, buffer, len) = self;
        engine.submit_plain_write(backend, conn, context, buffer, len)
    }
}

#[cold]
fn refused<C>(kind: ErrorKind, order: Order<C>) -> Rejected<Order<C>> {
    Rejected::new(Error::new(order.what.doing(), kind), order)
}
