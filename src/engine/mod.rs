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
    Backend, Buffer, Doing, Errno, Error, ErrorKind, Lane, Load, Loads, SocketKind,
};

use self::waiting::Waiting;
use crate::conn::{Conn, ConnIds};
use crate::conn_table::{ConnTable, Phase, Stage};
use crate::deadlines::Deadlines;
use crate::inbox::Message;
use crate::request::{NONE, OpId, OpIds, Operation, Order, Removed, Requests, What};
use crate::results::OpResult;

/// Everything a watcher knows that is not the kernel's.
#[derive(Debug)]
pub(crate) struct Engine<C> {
    pub(crate) ids: Arc<ConnIds>,
    ops: OpIds,
    pub(crate) conns: ConnTable,
    pub(crate) requests: Requests<C>,
    pub(crate) deadlines: Deadlines,
    /// Lanes whose first request may be started.
    dirty: Vec<(u32, Lane)>,
    /// The writes of one batch, while it is put together.
    gathered: Vec<u32>,
    waiting: Waiting,
    /// Results on their way out.
    pub(crate) out: Vec<OpResult<C>>,
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
            requests: Requests::new(),
            deadlines: Deadlines::default(),
            dirty: Vec::new(),
            gathered: Vec::new(),
            waiting: Waiting::new(swap_buffer_size),
            out: Vec::new(),
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
            .is_some_and(|state| state.phase == Phase::Open && state.conn == conn)
    }

    /// Why a request for a connection cannot be accepted, if it cannot.
    #[inline(always)]
    pub(crate) fn refusal(&self, conn: Conn, what: What) -> Option<ErrorKind> {
        let Some(state) = self.conns.get(conn.slot()).filter(|_| self.is_open(conn)) else {
            return Some(match self.closed {
                true => ErrorKind::WatcherClosed,
                false => ErrorKind::ConnClosed,
            });
        };
        let fits = match what {
            What::Accept | What::AcceptOne => state.is_listener,
            What::Ready(_) => true,
            _ => !state.is_listener,
        };
        if fits {
            None
        } else {
            Some(ErrorKind::WrongKind)
        }
    }

    /// Accepts a request for which there is no refusal. Its load is to be put under its key.
    #[inline(always)]
    pub(crate) fn accept(
        &mut self,
        conn: Conn,
        what: What,
        context: C,
        deadline: Option<Instant>,
    ) -> (OpId, u32) {
        let op = self.ops.next();
        (op, self.accept_as(op, conn, what, context, deadline))
    }

    #[inline(always)]
    fn accept_as(
        &mut self,
        op: OpId,
        conn: Conn,
        what: What,
        context: C,
        deadline: Option<Instant>,
    ) -> u32 {
        let (slot, lane) = (conn.slot(), what.lane());
        let key = self.record(op, slot, what, context, deadline);
        if self.conns.push(&mut self.requests, slot, lane, key) {
            self.dirty.push((slot, lane));
        }
        key
    }

    #[inline(always)]
    fn record(
        &mut self,
        op: OpId,
        slot: u32,
        what: What,
        context: C,
        deadline: Option<Instant>,
    ) -> u32 {
        let has_deadline = deadline.is_some();
        let key = self.requests.insert(op, slot, what, has_deadline, context);
        if let Some(at) = deadline {
            self.deadlines.insert(key, at);
        }
        key
    }

    /// Accepts a timer.
    pub(crate) fn timer(&mut self, context: C, deadline: Option<Instant>) -> OpId {
        let op = self.ops.next();
        self.record(op, NONE, What::Timer, context, deadline);
        op
    }

    /// How streams copy their context for each result.
    pub(crate) fn learn_to_clone(&mut self, clone: fn(&C) -> C) {
        self.clone_context = Some(clone);
    }

    /// Requests that follow wait until the connect has ended.
    pub(crate) fn begin_connecting(&mut self, conn: Conn) {
        if let Some(state) = self.conns.get_mut(conn.slot()) {
            state.connecting = true;
        }
    }

    /// Accepts a request that came from another thread.
    fn accept_order(&mut self, loads: &mut Loads, op: OpId, conn: Conn, order: Order<C>) {
        if let Some(clone) = order.clone_context {
            self.learn_to_clone(clone);
        }
        let key = self.accept_as(op, conn, order.what, order.context, order.deadline);
        loads.put(key, order.load);
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
            Message::Submit { op, conn, order } => {
                let refusal = match (self.refusal(conn, order.what), &order.load) {
                    (None, Load::Buffer(buffer)) if buffer.is_empty() => {
                        Some(ErrorKind::EmptyBuffer)
                    }
                    (refusal, _) => refusal,
                };
                match refusal {
                    None => self.accept_order(backend.loads(), op, conn, order),
                    Some(kind) => {
                        let error = Error::new(order.what.doing(), kind);
                        self.emit_refused(op, conn, order, error);
                    }
                }
            }
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
            Message::Post { op, context } => self.out.push(OpResult {
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
        self.accept_order(backend.loads(), op, conn, order);
        self.begin_connecting(conn);
        Ok(())
    }

    /// The lane's first request may be startable.
    #[inline]
    fn mark_dirty(&mut self, slot: u32, lane: Lane) {
        if let Some(queue) = self.conns.lane_mut(slot, lane)
            && queue.stage == Stage::None
            && queue.in_flight == 0
        {
            queue.stage = Stage::Dirty;
            self.dirty.push((slot, lane));
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
        self.out.push(OpResult {
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
    fn finish(&mut self, backend: &mut dyn Backend, key: u32, error: Option<Error>) {
        let (mut buffer, done) = backend.loads().take_buffer(key);
        let what = self.requests.get(key).map(|pending| pending.what);
        if let Some(What::Read | What::ReadFull) = what {
            // Until now it showed all of its room.
            buffer.set_filled(done);
        }
        self.conclude(key, error, || (buffer, done));
    }

    /// The same, for a request whose bytes are to be had elsewhere.
    #[inline(always)]
    fn conclude(
        &mut self,
        key: u32,
        error: Option<Error>,
        bytes: impl FnOnce() -> (Buffer, usize),
    ) {
        let Some(gone) = self.requests.remove(key) else {
            return;
        };
        if gone.has_deadline {
            self.deadlines.remove(key);
        }
        let conn = self.leave_lane(&gone);
        if let Some(error) = error {
            self.counts.cancelled += u64::from(error.kind() == ErrorKind::Cancelled);
            self.counts.deadlines += u64::from(error.kind() == ErrorKind::Deadline);
        }
        let (buffer, size) = bytes();
        self.out.push(OpResult {
            operation: gone.what.operation(),
            op: gone.op,
            conn,
            context: gone.context,
            buffer,
            size,
            error,
            accepted: Conn::NONE,
            last: true,
        });
    }

    /// Unlinks a request; returns its connection's handle. If it was the first of its lane, the
    /// next one may start.
    #[inline(always)]
    fn leave_lane(&mut self, gone: &Removed<C>) -> Conn {
        // A timer is in no slot.
        let Some(state) = self.conns.unlink(&mut self.requests, gone) else {
            return Conn::NONE;
        };
        let conn = state.conn;
        if state.lane(gone.lane).head != NONE {
            self.mark_dirty(gone.slot, gone.lane);
        }
        conn
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
