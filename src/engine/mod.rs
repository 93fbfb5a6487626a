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

use gaio_backends::{Backend, Batch, Doing, Errno, Error, ErrorKind, Lane, Selected, SocketKind};

use self::waiting::Waiting;
use crate::conn::{Conn, ConnIds};
use crate::conn_table::{ConnTable, Phase, Stage};
use crate::deadlines::Deadlines;
use crate::inbox::Message;
use crate::request::{Held, OpId, OpIds, Operation, Order, Pending, Requests, What};
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
    dirty: VecDeque<(u32, Lane)>,
    waiting: Waiting,
    /// Empty batches, kept for the next vectored write.
    #[expect(
        clippy::vec_box,
        reason = "the boxes travel; the kernel has their address"
    )]
    batches: Vec<Box<Batch>>,
    /// Results on their way out.
    pub(crate) out: VecDeque<OpResult<C>>,
    /// Results put into `out` so far, and taken from it.
    emitted: u64,
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
    pub(crate) submitted: u64,
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
            dirty: VecDeque::new(),
            waiting: Waiting::new(swap_buffer_size),
            batches: Vec::new(),
            out: VecDeque::new(),
            emitted: 0,
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
        self.conns.get(conn.slot()).is_some_and(|state| {
            state.phase == Phase::Open && self.ids.conn(conn.slot(), state.generation) == conn
        })
    }

    /// Accepts a request for a connection, or says why not.
    #[inline]
    pub(crate) fn submit(
        &mut self,
        conn: Conn,
        order: Order<C>,
    ) -> Result<OpId, (ErrorKind, Order<C>)> {
        let op = self.ops.next();
        self.submit_as(op, conn, order).map(|()| op)
    }

    #[inline]
    fn submit_as(
        &mut self,
        op: OpId,
        conn: Conn,
        order: Order<C>,
    ) -> Result<(), (ErrorKind, Order<C>)> {
        if let Err(kind) = self.check(conn, &order) {
            return Err((kind, order));
        }
        let slot = conn.slot();
        let lane = lane_of(order.what);
        let deadline = order.deadline;
        if order.clone_context.is_some() {
            self.clone_context = order.clone_context;
        }
        let index = self.requests.insert(op, slot, order);
        if let Some(at) = deadline {
            self.deadlines.insert(index, at);
        }
        self.conns.push(&mut self.requests, slot, lane, index);
        self.counts.submitted += 1;
        self.mark_dirty(slot, lane);
        Ok(())
    }

    #[inline]
    fn check(&self, conn: Conn, order: &Order<C>) -> Result<(), ErrorKind> {
        if self.closed {
            return Err(ErrorKind::WatcherClosed);
        }
        let state = self.conns.get(conn.slot());
        let state = state.filter(|_| self.is_open(conn));
        let state = state.ok_or(ErrorKind::ConnClosed)?;
        let fits = match order.what {
            What::Accept | What::AcceptOne => state.is_listener,
            What::Ready(_) => true,
            _ => !state.is_listener,
        };
        if !fits {
            return Err(ErrorKind::WrongKind);
        }
        let needs_bytes = matches!(order.what, What::Read | What::ReadFull | What::Write);
        match &order.held {
            Held::Buffer(buffer) if needs_bytes && buffer.is_empty() => Err(ErrorKind::EmptyBuffer),
            _ => Ok(()),
        }
    }

    /// Accepts a timer.
    pub(crate) fn timer(&mut self, order: Order<C>) -> Result<OpId, (ErrorKind, Order<C>)> {
        if self.closed {
            return Err((ErrorKind::WatcherClosed, order));
        }
        let op = self.ops.next();
        let deadline = order.deadline;
        let index = self.requests.insert(op, Conn::NONE.slot(), order);
        if let Some(at) = deadline {
            self.deadlines.insert(index, at);
        }
        self.counts.submitted += 1;
        Ok(op)
    }

    /// Takes a socket under a fresh handle.
    pub(crate) fn adopt(
        &mut self,
        backend: &mut Selected,
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
        backend: &mut Selected,
        conn: Conn,
        socket: OwnedFd,
        kind: SocketKind,
    ) -> Result<(), (Errno, OwnedFd)> {
        if let Err(refused) = backend.attach(conn.slot(), socket, kind) {
            self.retired.push_back((self.emitted, conn));
            return Err(refused);
        }
        self.conns.open(conn, kind);
        Ok(())
    }

    /// Takes a message from another thread.
    pub(crate) fn receive(&mut self, backend: &mut Selected, message: Message<C>) {
        match message {
            Message::Submit { op, conn, order } => {
                if let Err((kind, order)) = self.submit_as(op, conn, order) {
                    let error = Error::new(order.what.doing(), kind);
                    self.emit_refused(op, conn, order, error);
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
                    self.retired.push_back((self.emitted, conn));
                } else {
                    // If the system refuses, the handle is dead and requests for it say so.
                    drop(self.adopt_as(backend, conn, socket, kind));
                }
            }
            Message::Post { op, context } => self.emit(OpResult {
                operation: Operation::Post,
                op,
                conn: Conn::NONE,
                context,
                buffer: Default::default(),
                size: 0,
                error: None,
                accepted: None,
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
        backend: &mut Selected,
        op: OpId,
        conn: Conn,
        socket: Result<OwnedFd, Errno>,
        order: Order<C>,
    ) -> Result<(), (Error, Order<C>)> {
        if self.closed {
            self.retired.push_back((self.emitted, conn));
            return Err((Error::new(Doing::Connect, ErrorKind::WatcherClosed), order));
        }
        if socket.is_err() {
            self.retired.push_back((self.emitted, conn));
        }
        let adopted = socket.and_then(|socket| {
            let adopted = self.adopt_as(backend, conn, socket, SocketKind::Stream);
            adopted.map_err(|(errno, _)| errno)
        });
        if let Err(errno) = adopted {
            return Err((Error::os(Doing::Connect, errno), order));
        }
        self.submit_as(op, conn, order)
            .map_err(|(kind, order)| (Error::new(Doing::Connect, kind), order))?;
        self.begin_connecting(conn);
        Ok(())
    }

    /// Requests that follow wait until the connect has ended.
    pub(crate) fn begin_connecting(&mut self, conn: Conn) {
        if let Some(state) = self.conns.get_mut(conn.slot()) {
            state.connecting = true;
        }
    }

    /// The lane's first request may be startable.
    #[inline]
    fn mark_dirty(&mut self, slot: u32, lane: Lane) {
        if let Some(queue) = self.conns.lane_mut(slot, lane)
            && queue.stage == Stage::None
            && queue.in_flight == 0
        {
            queue.stage = Stage::Dirty;
            self.dirty.push_back((slot, lane));
        }
    }

    /// Whether lanes wait to be started.
    #[inline]
    pub(crate) fn has_dirty(&self) -> bool {
        !self.dirty.is_empty()
    }

    #[inline]
    fn emit(&mut self, result: OpResult<C>) {
        self.emitted += 1;
        self.out.push_back(result);
    }

    /// The one result of a request from another thread that is refused.
    fn emit_refused(&mut self, op: OpId, conn: Conn, order: Order<C>, error: Error) {
        self.emit(OpResult {
            operation: order.what.operation(),
            op,
            conn,
            context: order.context,
            buffer: order.held.into_buffer(),
            size: 0,
            error: Some(error),
            accepted: None,
            last: true,
        });
    }

    /// Takes a request out of every table and emits its last result.
    #[inline]
    fn finish(&mut self, index: u32, error: Option<Error>) {
        let Some(mut pending) = self.requests.remove(index) else {
            return;
        };
        if pending.has_deadline {
            self.deadlines.remove(index);
        }
        if error.is_some()
            && let (What::Read | What::ReadFull, Held::Buffer(buffer)) =
                (pending.what, &mut pending.held)
        {
            // One that was never started still shows all of its room.
            buffer.set_filled(pending.done);
        }
        let conn = if pending.what == What::Timer {
            Conn::NONE
        } else {
            self.leave_lane(&pending)
        };
        match error.map(Error::kind) {
            Some(ErrorKind::Cancelled) => self.counts.cancelled += 1,
            Some(ErrorKind::Deadline) => self.counts.deadlines += 1,
            _ => {}
        }
        self.emit(OpResult {
            operation: pending.what.operation(),
            op: pending.op,
            conn,
            context: pending.context,
            buffer: pending.held.into_buffer(),
            size: pending.done,
            error,
            accepted: None,
            last: true,
        });
    }

    /// Unlinks a request; returns its connection's handle. If it was the first of its lane, the
    /// next one may start.
    #[inline]
    fn leave_lane(&mut self, pending: &Pending<C>) -> Conn {
        let (slot, lane) = (pending.slot, lane_of(pending.what));
        self.conns
            .unlink(&mut self.requests, slot, lane, pending.prev, pending.next);
        let Some(state) = self.conns.get(slot) else {
            return Conn::NONE;
        };
        let generation = state.generation;
        if state.lane(lane).head != crate::request::NONE {
            self.mark_dirty(slot, lane);
        }
        self.ids.conn(slot, generation)
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

/// The lane in which a request waits its turn.
#[inline]
pub(crate) fn lane_of(what: What) -> Lane {
    use gaio_backends::Interest;
    match what {
        What::Write
        | What::Connect
        | What::Shutdown(_)
        | What::Ready(Interest::Writable)
        | What::Timer => Lane::Write,
        What::ReadSwap
        | What::Read
        | What::ReadFull
        | What::ReadStream
        | What::Accept
        | What::AcceptOne
        | What::Ready(Interest::Readable) => Lane::Read,
    }
}
