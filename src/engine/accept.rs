//! Requests and sockets coming in: from the watcher's own thread, or out of the inbox. What nearly all
//! requests are, a lone read or write of an open connection, has a way of its own with fewer steps.

use std::os::fd::OwnedFd;
use std::time::Instant;

use gaio_backends::{
    Backend, Buffer, Doing, Errno, Error, ErrorKind, Lane, Load, Place, SocketKind,
};

use super::Engine;
use crate::conn::Conn;
use crate::conn_table::{Phase, Stage};
use crate::inbox::Message;
use crate::request::{Key, OpId, Operation, Order, Pending, Sequence, What};
use crate::results::OpResult;

impl<C> Engine<C> {
    /// Why a request for a connection cannot be accepted, if it cannot.
    fn refusal(&self, conn: Conn, order: &Order<C>) -> Option<ErrorKind> {
        let Some(state) = self.conns.get(conn.slot()).filter(|_| self.is_open(conn)) else {
            return Some(match self.closed {
                true => ErrorKind::WatcherClosed,
                false => ErrorKind::ConnClosed,
            });
        };
        let is_listener = state.phase == Phase::Listening;
        let fits = match order.what {
            What::Accept | What::AcceptOne => is_listener,
            What::Ready(_) => true,
            _ => !is_listener,
        };
        match &order.load {
            _ if !fits => Some(ErrorKind::WrongKind),
            Load::Buffer(buffer) if buffer.is_empty() => Some(ErrorKind::EmptyBuffer),
            _ => None,
        }
    }

    /// Accepts a swap read and starts it, if nothing stands in its way: the most frequent request,
    /// in the fewest steps. Otherwise gives back what it came with.
    #[inline(always)]
    pub(crate) fn submit_read_swap<B: Backend>(
        &mut self,
        backend: &mut B,
        conn: Conn,
        context: C,
    ) -> Result<OpId, C> {
        let at = Place::new(conn.slot(), Lane::Read);
        let Some(state) = self.conns.get_mut(conn.slot()) else {
            return Err(context);
        };
        let is_plain = state.phase == Phase::Open && state.conn == conn;
        let lane = state.lane_mut(Lane::Read);
        let is_idle = lane.first.is_none() && lane.stage == Stage::None;
        if !is_plain || !is_idle || self.crowded || !backend.start_read_swap(at) {
            return Err(context);
        }
        lane.in_flight = 1;
        let op = self.ops.next();
        self.counts.accepted += 1;
        let sequence = Sequence::last(self.counts.accepted);
        lane.first = Some(Pending::new(op, sequence, What::ReadSwap, context, None));
        self.by_op.note(op, Key::first(at));
        Ok(op)
    }

    /// Whether nothing is special about a write of so many bytes.
    #[inline(always)]
    pub(crate) fn is_plain_write(&self, conn: Conn, len: usize) -> bool {
        self.conns.get(conn.slot()).is_some_and(|state| {
            let lane = state.lane(Lane::Write);
            state.phase == Phase::Open
                && state.conn == conn
                && lane.first.is_none()
                && lane.stage == Stage::None
                && len > 0
        })
    }

    /// Accepts such a write. It waits for the turn, so that those that are submitted together go out
    /// together.
    #[inline(always)]
    pub(crate) fn submit_plain_write<B: Backend>(
        &mut self,
        backend: &mut B,
        conn: Conn,
        context: C,
        buffer: Buffer,
        len: usize,
    ) -> OpId {
        let at = Place::new(conn.slot(), Lane::Write);
        let op = self.ops.next();
        self.counts.accepted += 1;
        let sequence = Sequence::last(self.counts.accepted);
        backend.loads().put_part(at, buffer, 0, len);
        if let Some(lane) = self.conns.lane_mut(at) {
            lane.stage = Stage::Dirty;
            lane.first = Some(Pending::new(op, sequence, What::Write, context, None));
        }
        self.dirty.push(at);
        self.by_op.note(op, Key::first(at));
        op
    }

    /// Accepts a request, or says why not and gives back what it came with.
    pub(crate) fn submit(
        &mut self,
        backend: &mut dyn Backend,
        conn: Conn,
        order: Order<C>,
    ) -> Result<OpId, (ErrorKind, Order<C>)> {
        if let Some(kind) = self.refusal(conn, &order) {
            return Err((kind, order));
        }
        let op = self.ops.next();
        self.accept(backend, op, conn, order);
        Ok(op)
    }

    /// Accepts a request for which there is no refusal. It is started in the next turn.
    fn accept(&mut self, backend: &mut dyn Backend, op: OpId, conn: Conn, order: Order<C>) {
        let Order {
            what,
            context,
            load,
            deadline,
            clone_context,
        } = order;
        if let Some(clone) = clone_context {
            self.clone_context = Some(clone);
        }
        if what == What::ReadStream {
            self.has_streams = true;
            self.open_credit(backend, conn.slot());
        }
        let at = Place::new(conn.slot(), what.lane());
        let pending = self.pending(op, what, context, deadline);
        let Some(lane) = self.conns.lane_mut(at) else {
            return;
        };
        if lane.first.is_some() {
            let key = self.conns.append(at, pending, load);
            return self.index(op, key, deadline);
        }
        lane.first = Some(pending);
        backend.loads().put(at, load);
        self.index(op, Key::first(at), deadline);
        self.mark_dirty(at);
    }

    pub(super) fn pending(
        &mut self,
        op: OpId,
        what: What,
        context: C,
        deadline: Option<Instant>,
    ) -> Pending<C> {
        self.counts.accepted += 1;
        let sequence = Sequence::last(self.counts.accepted);
        Pending::new(op, sequence, what, context, deadline)
    }

    /// Notes by what a new request is found.
    fn index(&mut self, op: OpId, key: Key, deadline: Option<Instant>) {
        self.by_op.note(op, key);
        if let Some(at) = deadline {
            self.deadlines.insert(key, at);
        }
    }

    /// Accepts a timer.
    pub(crate) fn timer(&mut self, context: C, deadline: Option<Instant>) -> OpId {
        let op = self.ops.next();
        let pending = self.pending(op, What::Timer, context, deadline);
        let key = self.conns.add_timer(pending);
        self.index(op, key, deadline);
        op
    }

    /// Accepts a connect of a socket that was just adopted. Requests that follow wait until it has
    /// ended.
    pub(crate) fn begin_connecting(
        &mut self,
        backend: &mut dyn Backend,
        op: Option<OpId>,
        conn: Conn,
        order: Order<C>,
    ) {
        if let Some(state) = self.conns.get_mut(conn.slot()) {
            state.phase = Phase::Connecting;
        }
        let op = op.unwrap_or_else(|| self.ops.next());
        self.accept(backend, op, conn, order);
    }

    /// Takes a socket under a fresh handle.
    pub(crate) fn adopt(
        &mut self,
        backend: &mut dyn Backend,
        socket: OwnedFd,
        kind: SocketKind,
    ) -> Result<Conn, (Errno, OwnedFd)> {
        match self.ids.allocate() {
            Some(conn) => self.adopt_as(backend, conn, socket, kind).map(|()| conn),
            None => Err((Errno::TABLE_FULL, socket)),
        }
    }

    /// Takes a socket under a handle that was given out already; on failure the handle's life
    /// is over.
    fn adopt_as(
        &mut self,
        backend: &mut dyn Backend,
        conn: Conn,
        socket: OwnedFd,
        kind: SocketKind,
    ) -> Result<(), (Errno, OwnedFd)> {
        if let Err(refused) = backend.attach(conn.slot(), socket, kind) {
            self.retired.push_back((self.emitted(), conn));
            return Err(refused);
        }
        self.conns.open(conn, kind);
        Ok(())
    }

    /// Takes a message from another thread.
    pub(crate) fn receive(&mut self, backend: &mut dyn Backend, message: Message<C>) {
        match message {
            Message::Submit { op, conn, order } => self.receive_order(backend, op, conn, order),
            Message::Connect {
                op,
                conn,
                socket,
                order,
            } => {
                if let Err((error, order)) = self.connect_as(backend, op, conn, socket, order) {
                    self.emit_refused(op, conn, order, error);
                }
            }
            Message::Delegate { conn, socket, kind } => {
                if self.closed {
                    self.retired.push_back((self.emitted(), conn));
                    self.discard(socket);
                } else if let Err((_, socket)) = self.adopt_as(backend, conn, socket, kind) {
                    // The handle is dead, and requests for it say so.
                    self.discard(socket);
                }
            }
            Message::Post { op, context } => self.out.push_with(|| {
                let nothing = Buffer::EMPTY;
                OpResult::last(Operation::Post, op, Conn::NONE, context, nothing, 0, None)
            }),
            Message::Cancel(op) => {
                self.cancel(backend, op);
            }
            Message::Free(conn) => {
                self.free(backend, conn);
            }
        }
    }

    /// Accepts a request from another thread; a refusal is its result.
    fn receive_order(&mut self, backend: &mut dyn Backend, op: OpId, conn: Conn, order: Order<C>) {
        match self.refusal(conn, &order) {
            Some(kind) => {
                let error = Error::new(order.what.doing(), kind);
                self.emit_refused(op, conn, order, error);
            }
            None => self.accept(backend, op, conn, order),
        }
    }

    fn connect_as(
        &mut self,
        backend: &mut dyn Backend,
        op: OpId,
        conn: Conn,
        socket: Result<OwnedFd, Errno>,
        order: Order<C>,
    ) -> Result<(), (Error, Order<C>)> {
        if self.closed {
            self.retired.push_back((self.emitted(), conn));
            self.discard(socket.ok());
            return Err((Error::new(Doing::Connect, ErrorKind::WatcherClosed), order));
        }
        if socket.is_err() {
            self.retired.push_back((self.emitted(), conn));
        }
        let adopted = socket.and_then(|socket| {
            let adopted = self.adopt_as(backend, conn, socket, SocketKind::Stream);
            adopted.map_err(|(errno, socket)| {
                self.discard(socket);
                errno
            })
        });
        if let Err(errno) = adopted {
            return Err((Error::os(Doing::Connect, errno), order));
        }
        self.begin_connecting(backend, Some(op), conn, order);
        Ok(())
    }
}
