//! The heart: which request runs next, what a completion means, how requests and connections end.
//!
//! Order, queueing, deadlines, closing and generations live here, once, for all backends. The
//! backend is handed at most one operation a lane; everything else waits in the lane's queue.
//! `start` hands requests to the backend, `complete` takes completions, `ending` ends
//! requests before their time. This file accepts requests and gives out results.

mod complete;
mod ending;
mod start;
mod waiting;

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Instant;

use gaio_backends::{
    Backend, Buffer, Doing, Errno, Error, ErrorKind, Lane, Load, Loads, Place, SocketKind, Tray,
};

use self::waiting::Waiting;
use crate::conn::{Conn, ConnIds};
use crate::conn_table::{ConnTable, Phase, Stage};
use crate::deadlines::Deadlines;
use crate::inbox::Message;
use crate::request::{Key, OpId, OpIds, OpIndex, Operation, Order, Pending, Position, What};
use crate::results::OpResult;

/// Everything a watcher knows that is not the kernel's.
#[derive(Debug)]
pub(crate) struct Engine<C> {
    pub(crate) ids: Arc<ConnIds>,
    ops: OpIds,
    pub(crate) conns: ConnTable<C>,
    by_op: OpIndex,
    deadlines: Deadlines,
    /// Lanes whose first request may be started.
    dirty: Vec<Place>,
    /// Nothing may be started out of turn: others wait for room, or for a swap buffer.
    crowded: bool,
    /// The buffers of one vectored write, while it is put together or taken apart.
    gathered: Vec<Buffer>,
    waiting: Waiting,
    /// Results on their way out.
    pub(crate) out: Tray<OpResult<C>>,
    /// Results taken from `out` so far.
    handed_out: u64,
    /// Handles whose last result was emitted as the numbered one.
    retired: VecDeque<(u64, Conn)>,
    stream_window: u64,
    /// How streams copy their context; known once there was one.
    clone_context: Option<fn(&C) -> C>,
    pub(crate) closed: bool,
    pub(crate) counts: EngineCounts,
}

/// What only the engine can count.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct EngineCounts {
    pub(crate) turns: u64,
    pub(crate) accepted: u64,
    pub(crate) finished: u64,
    pub(crate) completions: u64,
    pub(crate) cancelled: u64,
    pub(crate) deadlines: u64,
    pub(crate) swap_starved: u64,
}

impl<C> Engine<C> {
    pub(crate) fn new(ids: Arc<ConnIds>, stream_window: usize, swap_buffer_size: usize) -> Self {
        Engine {
            ids,
            ops: OpIds::new(),
            conns: ConnTable::default(),
            by_op: OpIndex::default(),
            deadlines: Deadlines::default(),
            dirty: Vec::new(),
            crowded: false,
            gathered: Vec::new(),
            waiting: Waiting::new(swap_buffer_size),
            out: Tray::new(),
            handed_out: 0,
            retired: VecDeque::new(),
            stream_window: stream_window as u64,
            clone_context: None,
            closed: false,
            counts: EngineCounts::default(),
        }
    }

    /// Whether the handle is good.
    #[inline]
    pub(crate) fn is_open(&self, conn: Conn) -> bool {
        self.conns
            .get(conn.slot())
            .is_some_and(|state| state.phase.is_open() && state.conn == conn)
    }

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
        let accepted = self.counts.accepted as u32;
        lane.first = Some(Pending::new(op, accepted, What::ReadSwap, context, None));
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
        let accepted = self.counts.accepted as u32;
        backend.loads().put_part(at, buffer, 0, len);
        if let Some(lane) = self.conns.lane_mut(at) {
            lane.stage = Stage::Dirty;
            lane.first = Some(Pending::new(op, accepted, What::Write, context, None));
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

    fn pending(
        &mut self,
        op: OpId,
        what: What,
        context: C,
        deadline: Option<Instant>,
    ) -> Pending<C> {
        self.counts.accepted += 1;
        Pending::new(op, self.counts.accepted as u32, what, context, deadline)
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
                let refused = self.closed;
                if refused {
                    self.retired.push_back((self.emitted(), conn));
                } else {
                    // If the system refuses, the handle is dead and requests for it say so.
                    drop(self.adopt_as(backend, conn, socket, kind));
                }
            }
            Message::Post { op, context } => self.out.push_with(|| OpResult {
                operation: Operation::Post,
                op,
                conn: Conn::NONE,
                context,
                buffer: Default::default(),
                size: 0,
                error: None,
                accepted: Conn::NONE,
                last: true,
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
            return Err((Error::new(Doing::Connect, ErrorKind::WatcherClosed), order));
        }
        if socket.is_err() {
            self.retired.push_back((self.emitted(), conn));
        }
        let adopted = socket.and_then(|socket| {
            let adopted = self.adopt_as(backend, conn, socket, SocketKind::Stream);
            adopted.map_err(|(errno, _)| errno)
        });
        if let Err(errno) = adopted {
            return Err((Error::os(Doing::Connect, errno), order));
        }
        self.begin_connecting(backend, Some(op), conn, order);
        Ok(())
    }

    /// The lane's first request may be startable.
    #[inline]
    fn mark_dirty(&mut self, at: Place) {
        if let Some(lane) = self.conns.lane_mut(at)
            && lane.stage == Stage::None
            && lane.in_flight == 0
        {
            lane.stage = Stage::Dirty;
            self.dirty.push(at);
        }
    }

    /// Whether lanes wait to be started.
    #[inline]
    pub(crate) fn has_dirty(&self) -> bool {
        !self.dirty.is_empty()
    }

    /// How many results there were, handed out or not.
    fn emitted(&self) -> u64 {
        self.handed_out + self.out.len() as u64
    }

    /// The one result of a request from another thread that is refused.
    fn emit_refused(&mut self, op: OpId, conn: Conn, order: Order<C>, error: Error) {
        self.out.push_with(|| OpResult {
            operation: order.what.operation(),
            op,
            conn,
            context: order.context,
            buffer: order.load.into_buffer(),
            size: 0,
            error: Some(error),
            accepted: Conn::NONE,
            last: true,
        });
    }

    /// Takes a request out of every table and emits its last result.
    fn finish(&mut self, backend: &mut dyn Backend, key: Key, error: Option<Error>) {
        match key.kind() {
            Position::First(at) => {
                let (mut buffer, done) = backend.loads().take_buffer(at);
                backend.loads().clear(at);
                let what = self.conns.request(key).map(|pending| pending.what);
                if let Some(What::Read | What::ReadFull) = what {
                    // Until now it showed all of its room.
                    buffer.set_filled(done);
                }
                self.conclude(backend, at, error, buffer, done);
            }
            Position::Queued(_) => self.finish_queued(key, error),
        }
    }

    /// The same, for one that never was the first.
    fn finish_queued(&mut self, key: Key, error: Option<Error>) {
        let Some(queued) = self.conns.take_queued(key) else {
            return;
        };
        let (mut buffer, done) = (queued.load.into_buffer(), queued.done);
        if let What::Read | What::ReadFull = queued.pending.what {
            buffer.set_filled(done);
        }
        let conn = queued.lane.and_then(|at| self.conns.get(at.slot()));
        let conn = conn.map_or(Conn::NONE, |state| state.conn);
        self.forget(key, queued.pending.op, queued.pending.has_deadline, error);
        self.emit_last(conn, queued.pending, error, buffer, done);
    }

    /// The same, for the first of a lane, whose bytes are at hand. The one behind it may start.
    fn conclude(
        &mut self,
        backend: &mut dyn Backend,
        at: Place,
        error: Option<Error>,
        buffer: Buffer,
        size: usize,
    ) {
        let Some(state) = self.conns.get_mut(at.slot()) else {
            return;
        };
        let conn = state.conn;
        let lane = state.lane_mut(at.lane());
        let Some(pending) = lane.first.take() else {
            return;
        };
        let has_more = lane.has_more();
        self.forget(Key::first(at), pending.op, pending.has_deadline, error);
        if has_more {
            self.promote(backend.loads(), at);
        }
        self.emit_last(conn, pending, error, buffer, size);
    }

    /// The second request of a lane becomes the first.
    #[cold]
    fn promote(&mut self, loads: &mut Loads, at: Place) {
        let Some((key, next)) = self.conns.take_next(at) else {
            return;
        };
        let first = Key::first(at);
        self.by_op.note(next.pending.op, first);
        if next.pending.has_deadline {
            self.deadlines.rename(key, first);
        }
        loads.put(at, next.load);
        loads.advance(at, next.done);
        if let Some(lane) = self.conns.lane_mut(at) {
            lane.first = Some(next.pending);
        }
        self.mark_dirty(at);
    }

    /// A request ends: takes it out of the indexes, and counts why.
    fn forget(&mut self, key: Key, op: OpId, has_deadline: bool, error: Option<Error>) {
        self.counts.finished += 1;
        self.by_op.forget(op);
        if has_deadline {
            self.deadlines.remove(key);
        }
        if let Some(error) = error {
            self.counts.cancelled += u64::from(error.kind() == ErrorKind::Cancelled);
            self.counts.deadlines += u64::from(error.kind() == ErrorKind::Deadline);
        }
    }

    fn emit_last(
        &mut self,
        conn: Conn,
        pending: Pending<C>,
        error: Option<Error>,
        buffer: Buffer,
        size: usize,
    ) {
        self.out.push_with(|| OpResult {
            operation: pending.what.operation(),
            op: pending.op,
            conn,
            context: pending.context,
            buffer,
            size,
            error,
            accepted: Conn::NONE,
            last: true,
        });
    }

    /// How many requests have had no last result.
    pub(crate) fn pending_count(&self) -> usize {
        (self.counts.accepted - self.counts.finished) as usize
    }

    /// Results in `out` were handed out; a new turn begins. Handles whose last result the program
    /// got may be given to new connections.
    pub(crate) fn begin_turn(&mut self) {
        self.counts.turns += 1;
        while let Some(&(last, conn)) = self.retired.front()
            && last <= self.handed_out
        {
            self.retired.pop_front();
            self.ids.release(conn);
        }
    }

    /// So many results left `out`.
    pub(crate) fn note_handed_out(&mut self, count: usize) {
        self.handed_out += count as u64;
    }

    /// When the engine itself has something to do.
    pub(crate) fn next_time(&self) -> Option<Instant> {
        let retry = self.waiting.retry_at();
        match (self.deadlines.next(), retry) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        }
    }

    pub(crate) fn delivered(&self) -> u64 {
        self.handed_out
    }
}
