//! The engine decides which request runs next, what a completion means, and how requests and
//! connections end.
//!
//! Order, queueing, deadlines, closing and generations live here, once, for all backends. The backend
//! is handed at most one operation a lane; the other requests wait in the lane's queue.
//!
//! `submit` takes requests in, `start` hands them to the backend, and `complete` takes completions,
//! with `writes` for vectored writes and `connections` for accepts and connects. `waiting` and `retry`
//! hold back requests that cannot go on. `ending` ends requests before their time, and `find` finds
//! them by number. This file emits the last result of each.

mod accept_limit;
#[cfg(debug_assertions)]
mod check;
mod complete;
mod connections;
mod ending;
mod find;
mod retry;
mod start;
mod submit;
mod waiting;
mod writes;

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Instant;

use gaio_backends::{Backend, Buffer, Error, ErrorKind, LaneId, ResultQueue, Selected};

use self::accept_limit::AcceptLimits;
use self::retry::Retries;
use self::waiting::Waiting;
use crate::conn::{Conn, ConnIds};
use crate::conn_state::{Pausing, Stage};
use crate::conn_table::ConnTable;
use crate::deadlines::Deadlines;
use crate::op_index::OpIndex;
use crate::request::{
    Key, OpId, OpIds, Operation, Pending, Position, RequestKind, Sequence, Submission,
};
use crate::results::OpResult;

/// The connections and requests of a watcher, and the backend that runs them.
#[derive(Debug)]
pub(crate) struct Engine<C> {
    /// Declared first, so that it is dropped first: its drop ends the kernel's work.
    pub(crate) backend: Selected,
    pub(crate) ids: Arc<ConnIds>,
    ops: OpIds,
    pub(crate) conns: ConnTable<C>,
    by_op: OpIndex,
    deadlines: Deadlines,
    /// Lanes whose first request may be started.
    dirty: Vec<LaneId>,
    /// The buffers of one vectored write, while it is put together or taken apart.
    gathered: Vec<Buffer>,
    waiting: Waiting,
    retries: Retries,
    accept_limits: AcceptLimits,
    /// Results on their way out.
    pub(crate) out: ResultQueue<OpResult<C>>,
    /// Results taken from `out` so far.
    handed_out: u64,
    /// Handles of connections that have ended, each with the number of results emitted by then. When
    /// the program has them all, the handle's index may be used again.
    retired: VecDeque<(u64, Conn)>,
    stream_window: u64,
    /// Leased bytes that a stream may hold at present: less than `stream_window` while the pool is
    /// scarce.
    window: u64,
    /// The most bytes that the writes of one connection may have queued.
    write_limit: usize,
    has_streams: bool,
    /// Copies the context of a stream. Known once there was a stream, because `C` need not be `Clone`.
    clone_context: Option<fn(&C) -> C>,
    pub(crate) closed: bool,
    pub(crate) counts: EngineCounts,
    /// The number of requests submitted when the pending ones were last renumbered.
    renumbered: u64,
}

/// The counters that only the engine can keep.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct EngineCounts {
    pub(crate) turns: u64,
    pub(crate) submitted: u64,
    pub(crate) finished: u64,
    pub(crate) completions: u64,
    pub(crate) cancelled: u64,
    pub(crate) deadlines: u64,
    pub(crate) swap_starved: u64,
    /// Sockets closed.
    pub(crate) closes: u64,
}

impl<C> Engine<C> {
    pub(crate) fn new(
        backend: Selected,
        ids: Arc<ConnIds>,
        stream_window: usize,
        write_limit: usize,
    ) -> Self {
        let swap_buffer_size = backend.pool().block_size();
        Engine {
            backend,
            ids,
            ops: OpIds::new(),
            conns: ConnTable::default(),
            by_op: OpIndex::default(),
            deadlines: Deadlines::default(),
            dirty: Vec::new(),
            gathered: Vec::new(),
            waiting: Waiting::new(swap_buffer_size),
            retries: Retries::default(),
            accept_limits: AcceptLimits::default(),
            out: ResultQueue::new(),
            handed_out: 0,
            retired: VecDeque::new(),
            stream_window: stream_window as u64,
            window: stream_window as u64,
            write_limit,
            has_streams: false,
            clone_context: None,
            closed: false,
            counts: EngineCounts::default(),
            renumbered: 0,
        }
    }

    /// Whether the handle is valid.
    #[inline(always)]
    pub(crate) fn is_open(&self, conn: Conn) -> bool {
        self.conns
            .get(conn.slot())
            .is_some_and(|state| state.phase.is_open() && state.conn == conn)
    }

    /// Queues a lane to be started, unless it runs or waits.
    #[inline(always)]
    fn mark_dirty(&mut self, at: LaneId) {
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

    /// The number of results so far, handed out or not.
    fn emitted(&self) -> u64 {
        self.handed_out + self.out.len() as u64
    }

    /// Emits the one result of a refused request from another thread.
    fn emit_refused(&mut self, op: OpId, conn: Conn, submission: Submission<C>, error: Error) {
        let (operation, buffer) = match submission.kind {
            RequestKind::SendFile => (Operation::SendFile, Buffer::EMPTY),
            kind => (kind.operation(), submission.data.into_buffer()),
        };
        self.out.push_with(|| {
            OpResult::last(
                operation,
                op,
                conn,
                submission.context,
                buffer,
                0,
                Some(error),
            )
        });
    }

    /// Takes a request out of every table and emits its last result.
    fn finish(&mut self, key: Key, error: Option<Error>) {
        match key.kind() {
            Position::First(at) => {
                let (mut buffer, done) = self.backend.op_table().take_buffer(at);
                self.backend.op_table().clear(at);
                if let Some(pending) = self.conns.request(key) {
                    buffer = returned(pending.kind, buffer, done);
                }
                self.finish_first(at, buffer, done, error);
            }
            Position::Queued(_) => self.finish_queued(key, error),
        }
    }

    /// The same for a timer, or a request that is not the first of its lane.
    fn finish_queued(&mut self, key: Key, error: Option<Error>) {
        let Some(queued) = self.conns.take_queued(key) else {
            return;
        };
        let done = queued.done;
        let buffer = returned(queued.pending.kind, queued.data.into_buffer(), done);
        let conn = queued.at.and_then(|at| self.conns.get(at.slot()));
        let conn = conn.map_or(Conn::NONE, |state| state.conn);
        self.forget(key, queued.pending.op, queued.pending.has_deadline, error);
        self.emit_last(conn, queued.pending, error, buffer, done);
    }

    /// The same for the first of a lane, whose buffer is at hand. The request behind it becomes the
    /// first.
    #[inline(always)]
    fn finish_first(&mut self, at: LaneId, buffer: Buffer, size: usize, error: Option<Error>) {
        let Some(state) = self.conns.get_mut(at.slot()) else {
            return;
        };
        let conn = state.conn;
        let lane = state.lane_mut(at.lane());
        let Some(pending) = lane.first.take() else {
            debug_assert!(false, "{at:?} finishes without a request");
            return;
        };
        (lane.misses, lane.private, lane.tries) = (0, false, 0);
        lane.pausing = Pausing::No;
        let has_more = lane.has_more();
        self.forget(Key::first(at), pending.op, pending.has_deadline, error);
        if has_more {
            self.promote(at);
        }
        self.emit_last(conn, pending, error, buffer, size);
    }

    /// The second request of a lane becomes the first.
    #[cold]
    fn promote(&mut self, at: LaneId) {
        let Some((key, next)) = self.conns.take_next(at) else {
            return;
        };
        let first = Key::first(at);
        self.by_op.rename(next.pending.op, key, first);
        if next.pending.has_deadline {
            self.deadlines.rename(key, first);
        }
        let mut op_table = self.backend.op_table();
        op_table.put(at, next.data);
        op_table.advance(at, next.done);
        if let Some(lane) = self.conns.lane_mut(at) {
            lane.first = Some(next.pending);
        }
        self.mark_dirty(at);
    }

    /// Takes a request that ends out of the indexes, and counts the reason.
    #[inline(always)]
    fn forget(&mut self, key: Key, op: OpId, has_deadline: bool, error: Option<Error>) {
        self.counts.finished += 1;
        self.by_op.remove(op, key);
        if has_deadline {
            self.deadlines.remove(key);
        }
        if let Some(error) = error {
            self.counts.cancelled += u64::from(error.kind() == ErrorKind::Cancelled);
            self.counts.deadlines += u64::from(error.kind() == ErrorKind::Deadline);
        }
    }

    #[inline(always)]
    fn emit_last(
        &mut self,
        conn: Conn,
        pending: Pending<C>,
        error: Option<Error>,
        buffer: Buffer,
        size: usize,
    ) {
        let Pending {
            op, kind, context, ..
        } = pending;
        self.out
            .push_with(|| OpResult::last(kind.operation(), op, conn, context, buffer, size, error));
    }

    /// Closes a socket.
    fn discard(&mut self, socket: impl Into<Option<OwnedFd>>) {
        let socket = socket.into();
        self.counts.closes += u64::from(socket.is_some());
        drop(socket);
    }

    /// The number of requests whose last result is still to come.
    pub(crate) fn pending_count(&self) -> usize {
        (self.counts.submitted - self.counts.finished) as usize
    }

    /// Begins a turn. Indexes of ended connections may be used again if the program has all their
    /// results.
    pub(crate) fn begin_turn(&mut self) {
        self.counts.turns += 1;
        #[cfg(debug_assertions)]
        self.check();
        while let Some(&(last, conn)) = self.retired.front()
            && last <= self.handed_out
        {
            self.retired.pop_front();
            self.ids.release(conn);
        }
        self.shrink_overgrown();
        if self.counts.submitted - self.renumbered >= Sequence::LIFE {
            self.renumbered = self.counts.submitted;
            self.conns.renumber(Sequence::last(self.counts.submitted));
        }
    }

    /// Gives back the memory of a flood of requests once it is over. This happens between two turns
    /// only, because keys change.
    #[inline]
    fn shrink_overgrown(&mut self) {
        self.deadlines.shrink_overgrown();
        if self.by_op.is_overgrown(self.pending_count()) {
            self.rebuild_index();
        }
        if self.conns.is_overgrown() {
            self.compact();
        }
    }

    #[cold]
    fn compact(&mut self) {
        let renamed = self.conns.compact();
        for &(from, to) in &renamed {
            // The key `to` is free: requests move in order and closer together, so its old owner has
            // moved.
            if let Some(pending) = self.conns.request(to) {
                self.by_op.rename(pending.op, from, to);
                if pending.has_deadline {
                    self.deadlines.rename(from, to);
                }
            }
        }
        self.deadlines.forget_others(renamed.len());
    }

    /// Counts results that left `out`.
    pub(crate) fn note_handed_out(&mut self, count: usize) {
        self.handed_out += count as u64;
    }

    /// The earliest time at which the engine has something to do by itself.
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

/// The buffer as the program gets it back, after so many bytes.
fn returned(kind: RequestKind, mut buffer: Buffer, done: usize) -> Buffer {
    match kind {
        // Until now its length included the room that no byte was read into.
        RequestKind::Read | RequestKind::ReadFull => buffer.set_filled(done),
        // The block of the file is the library's own.
        RequestKind::SendFile => buffer = Buffer::EMPTY,
        _ => {}
    }
    buffer
}

#[cfg(test)]
#[expect(clippy::expect_used, reason = "a test that has no backend has failed")]
fn for_test<C>() -> (Engine<C>, Arc<ConnIds>) {
    use gaio_backends::{Choice, select};
    let options = gaio_backends::Options {
        swap_buffer_size: 4096,
        swap_buffers: 4,
        queue_depth: 8,
        restricted: false,
    };
    let (backend, _) = select(Choice::Auto, &options).expect("a backend");
    let ids = Arc::new(ConnIds::new());
    (Engine::new(backend, Arc::clone(&ids), 1, usize::MAX), ids)
}
