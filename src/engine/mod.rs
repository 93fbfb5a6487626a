//! The heart: which request runs next, what a completion means, how requests and connections end.
//!
//! Order, queueing, deadlines, closing and generations live here, once, for all backends. The
//! backend is handed at most one operation a lane; everything else waits in the lane's queue.
//! `accept` takes requests, `start` hands them to the backend, `sink` and `complete` take completions,
//! `ending` ends requests before their time. This file gives out their last results.

mod accept;
mod complete;
mod ending;
mod retry;
mod sink;
mod start;
mod waiting;

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Instant;

use gaio_backends::{Backend, Buffer, Error, ErrorKind, Loads, Place, Tray};

use self::retry::Retries;
use self::waiting::Waiting;
use crate::conn::{Conn, ConnIds};
use crate::conn_table::{ConnTable, Stage};
use crate::deadlines::Deadlines;
use crate::request::{Key, OpId, OpIds, OpIndex, Order, Pending, Position, Sequence, What};
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
    retries: Retries,
    /// Results on their way out.
    pub(crate) out: Tray<OpResult<C>>,
    /// Results taken from `out` so far.
    handed_out: u64,
    /// Handles whose last result was emitted as the numbered one.
    retired: VecDeque<(u64, Conn)>,
    stream_window: u64,
    /// Leased bytes that a stream may have at present: less than its window while the pool is nearly
    /// used up.
    window: u64,
    has_streams: bool,
    /// How streams copy their context; known once there was one.
    clone_context: Option<fn(&C) -> C>,
    pub(crate) closed: bool,
    pub(crate) counts: EngineCounts,
    /// How many requests had been accepted when the pending ones got new numbers.
    renumbered: u64,
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
    /// Sockets closed.
    pub(crate) closes: u64,
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
            retries: Retries::default(),
            out: Tray::new(),
            handed_out: 0,
            retired: VecDeque::new(),
            stream_window: stream_window as u64,
            window: stream_window as u64,
            has_streams: false,
            clone_context: None,
            closed: false,
            counts: EngineCounts::default(),
            renumbered: 0,
        }
    }

    /// Whether the handle is good.
    #[inline]
    pub(crate) fn is_open(&self, conn: Conn) -> bool {
        self.conns
            .get(conn.slot())
            .is_some_and(|state| state.phase.is_open() && state.conn == conn)
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
        !self.dirty.is_empty() || self.waiting.has_urgent()
    }

    /// How many results there were, handed out or not.
    fn emitted(&self) -> u64 {
        self.handed_out + self.out.len() as u64
    }

    /// The one result of a request from another thread that is refused.
    fn emit_refused(&mut self, op: OpId, conn: Conn, order: Order<C>, error: Error) {
        let (operation, buffer) = (order.what.operation(), order.load.into_buffer());
        self.out.push_with(|| {
            OpResult::last(operation, op, conn, order.context, buffer, 0, Some(error))
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
        let conn = queued.at.and_then(|at| self.conns.get(at.slot()));
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
        (lane.misses, lane.private, lane.tries) = (0, false, 0);
        let has_more = lane.has_more();
        self.forget(Key::first(at), pending.op, pending.has_deadline, error);
        if has_more {
            self.promote(backend.loads(), at);
        }
        self.emit_last(conn, pending, error, buffer, size);
    }

    /// The second request of a lane becomes the first.
    #[cold]
    fn promote(&mut self, mut loads: Loads<'_>, at: Place) {
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
        let Pending {
            op, what, context, ..
        } = pending;
        self.out
            .push_with(|| OpResult::last(what.operation(), op, conn, context, buffer, size, error));
    }

    /// Closes a socket.
    fn discard(&mut self, socket: impl Into<Option<OwnedFd>>) {
        let socket = socket.into();
        self.counts.closes += u64::from(socket.is_some());
        drop(socket);
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
        self.shrink_overgrown();
        if self.counts.accepted - self.renumbered >= Sequence::LIFE {
            self.renumbered = self.counts.accepted;
            self.conns.renumber(Sequence::last(self.counts.accepted));
        }
    }

    /// Gives back the memory of a flood of requests once it is over. Only here, between two turns, because
    /// keys change.
    #[inline]
    fn shrink_overgrown(&mut self) {
        self.deadlines.shrink_overgrown();
        self.by_op.shrink_overgrown();
        if self.conns.is_overgrown() {
            self.compact();
        }
    }

    #[cold]
    fn compact(&mut self) {
        let renamed = self.conns.compact();
        for &(from, to) in &renamed {
            // An earlier one has left the key `to`: they come in order, and closer together.
            if let Some(pending) = self.conns.request(to) {
                self.by_op.note(pending.op, to);
                if pending.has_deadline {
                    self.deadlines.rename(from, to);
                }
            }
        }
        self.deadlines.forget_others(renamed.len());
    }

    /// So many results left `out`.
    pub(crate) fn note_handed_out(&mut self, count: usize) {
        self.handed_out += count as u64;
    }

    /// When the engine itself has something to do.
    pub(crate) fn next_time(&self) -> Option<Instant> {
        let times = [
            self.deadlines.next(),
            self.retries.next(),
            self.waiting.next(),
        ];
        times.into_iter().flatten().min()
    }

    pub(crate) fn delivered(&self) -> u64 {
        self.handed_out
    }
}
