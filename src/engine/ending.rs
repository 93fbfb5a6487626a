//! Requests that end before their time: cancelled, out of time, freed with their connection, closed
//! with the watcher.
//!
//! A request that the backend works on cannot end at once, because the kernel may still use its buffer.
//! It is marked (`Pending::end`) and its operation is cancelled; the completion ends it. A request that
//! waits ends at once. The exception is a request behind a marked one: it is marked, too, and ends
//! after it, so that the results of a lane keep their order.

use std::time::Instant;

use gaio_backends::{Backend, Errno, Error, ErrorContext, ErrorKind, Lane, LaneId};

use super::Engine;
use crate::conn::Conn;
use crate::conn_state::{Phase, Stage};
use crate::request::{Key, OpId, Position, RequestKind};

impl<C> Engine<C> {
    /// Cancels a request. Returns false if there is none with this number, or if it is ending already.
    pub(crate) fn cancel(&mut self, op: OpId) -> bool {
        let Some(key) = self.find(op) else {
            return false;
        };
        let ends_already = self.conns.request(key).is_some_and(|p| p.end.is_some());
        if !ends_already {
            self.end_early(key, ErrorKind::Cancelled);
        }
        !ends_already
    }

    /// Cancels every request of one direction. Returns how many were not ending already.
    pub(crate) fn cancel_lane(&mut self, conn: Conn, lane: Lane) -> usize {
        if !self.is_open(conn) {
            return 0;
        }
        let at = LaneId::new(conn.slot(), lane);
        let key = Key::first(at);
        let mut count = 0;
        while let Some(first) = self.first(at)
            && first.end.is_none()
        {
            count += 1;
            let runs = self.conns.is_in_flight(key);
            self.end_early(key, ErrorKind::Cancelled);
            if runs {
                break;
            }
        }
        // The first one runs. The others end after it, in order.
        self.conns.walk(at, |_, queued| {
            let end = &mut queued.pending.end;
            count += usize::from(end.is_none());
            end.get_or_insert(ErrorKind::Cancelled);
            true
        });
        count
    }

    /// Gives a request another deadline, or none. Returns false if there is none with this number, or
    /// if it is ending already.
    pub(crate) fn set_deadline(&mut self, op: OpId, deadline: Option<Instant>) -> bool {
        let Some(key) = self.find(op) else {
            return false;
        };
        let Some(pending) = self.conns.request_mut(key) else {
            debug_assert!(false, "{op:?} was found");
            return false;
        };
        if pending.end.is_some() {
            return false;
        }
        let had_deadline = std::mem::replace(&mut pending.has_deadline, deadline.is_some());
        match deadline {
            Some(at) => self.deadlines.set(key, at),
            None if had_deadline => self.deadlines.remove(key),
            None => {}
        }
        true
    }

    /// Whether any request has a deadline.
    pub(crate) fn has_deadlines(&self) -> bool {
        !self.deadlines.is_empty()
    }

    /// Ends requests whose time has come, at most `most`. Returns whether there were any. A request
    /// that is about to have its first attempt has that first.
    #[inline(never)]
    pub(crate) fn expire(&mut self, most: usize) -> bool {
        let now = self.backend.now();
        let mut ended = 0;
        while ended < most
            && let Some(key) = self.deadlines.pop_due(now)
        {
            if self.is_to_be_tried(key) {
                continue;
            }
            ended += 1;
            let Some(pending) = self.conns.request_mut(key) else {
                continue;
            };
            pending.has_deadline = false;
            if pending.kind == RequestKind::Timer {
                self.finish(key, None);
            } else {
                self.end_early(key, ErrorKind::Deadline);
            }
        }
        ended > 0
    }

    /// Whether a request whose time has come is about to be started, but the backend has had no room
    /// for it yet. Every request gets one attempt, even if its deadline has passed: data that is there
    /// must be returned. So the lane is marked as overdue, and the request runs out of time when it has
    /// started.
    fn is_to_be_tried(&mut self, key: Key) -> bool {
        if let Position::First(at) = key.kind()
            && let Some(lane) = self.conns.lane_mut(at)
            && lane.stage.is_to_start()
        {
            lane.stage = Stage::Overdue;
            return true;
        }
        false
    }

    /// The first request of an overdue lane starts. If it is the overdue one, its deadline is entered
    /// again, with the present time: the attempt that follows is its only one. Returns whether it is.
    pub(super) fn try_overdue(&mut self, at: LaneId) -> bool {
        let key = Key::first(at);
        let has_deadline = self.conns.request(key).is_some_and(|p| p.has_deadline);
        // It may be another request, which was behind the overdue one and has time left.
        let is_overdue = has_deadline && !self.deadlines.contains(key);
        if is_overdue {
            self.deadlines.insert(key, self.backend.now());
        }
        is_overdue
    }

    /// Ends a request that was cancelled or ran out of time: now, or as soon as nothing runs any more.
    fn end_early(&mut self, key: Key, why: ErrorKind) {
        let Some(pending) = self.conns.request_mut(key) else {
            return;
        };
        pending.end.get_or_insert(why);
        let kind = pending.kind;
        let error = kind.error_context().error(why);
        let Some(at) = self.conns.lane_of(key) else {
            // Only timers are in no lane.
            return self.finish(key, Some(error));
        };
        let Some(state) = self.conns.get(at.slot()) else {
            return;
        };
        let closing = state.phase == Phase::Closing;
        match (closing, self.conns.is_in_flight(key)) {
            // It ends with the other requests of the connection.
            (true, _) => {}
            // One operation stands for all writes of a vectored call. Those that were not meant start
            // again.
            (false, true) => self.backend.cancel(at, why == ErrorKind::Deadline),
            (false, false) if kind == RequestKind::Connect => {
                self.leave_waiting(at);
                self.complete_connect(at, Err(Errno::CANCELLED));
            }
            // The request before it is ending, too. This one follows it, in order.
            (false, false) if self.follows_an_ending_one(key) => {}
            (false, false) => {
                if let Position::First(at) = key.kind() {
                    self.leave_waiting(at);
                }
                self.finish(key, Some(error));
            }
        }
    }

    /// Whether the request before a queued one is about to end.
    fn follows_an_ending_one(&self, key: Key) -> bool {
        let before = self.conns.before(key);
        before.is_some_and(|before| before.end.is_some())
    }

    /// Ends every request of a lane with an error.
    pub(super) fn finish_lane(&mut self, at: LaneId, error: Error) {
        let first = Key::first(at);
        while let Some(pending) = self.conns.request(first) {
            let error_context = pending.kind.error_context();
            self.finish(first, Some(error_context.same_error(error)));
        }
    }

    /// Frees a connection. Returns false if the handle is not valid.
    pub(crate) fn free(&mut self, conn: Conn) -> bool {
        let open = self.is_open(conn);
        if open {
            self.free_slot(conn.slot());
        }
        open
    }

    fn free_slot(&mut self, slot: u32) {
        self.begin_closing(slot);
        for at in Lane::BOTH.map(|lane| LaneId::new(slot, lane)) {
            let runs = self.conns.lane(at).is_some_and(|lane| lane.in_flight > 0);
            self.leave_waiting(at);
            if runs {
                self.backend.cancel(at, false);
            }
        }
        self.finish_connection_when_idle(slot);
    }

    /// Ends a freed connection if nothing runs on it any more. Its requests end in the order of
    /// submission, then its socket is closed. An earlier close would give the descriptor's number to
    /// another file while operations still run on it.
    pub(super) fn finish_connection_when_idle(&mut self, slot: u32) {
        if self.conns.get(slot).is_some_and(|state| state.is_still()) {
            self.finish_connection(slot);
        }
    }

    fn finish_connection(&mut self, slot: u32) {
        let why = if self.closed {
            ErrorKind::WatcherClosed
        } else {
            ErrorKind::ConnClosed
        };
        while let Some((key, error_context)) = self.oldest(slot) {
            self.finish(key, Some(error_context.error(why)));
        }
        let socket = self.backend.release(slot);
        self.discard(socket);
        self.backend.op_table().close_credit(slot);
        self.retire(slot);
        self.retry_listeners();
    }

    /// Returns the socket of an idle connection.
    pub(crate) fn reclaim(&mut self, conn: Conn) -> Result<std::os::fd::OwnedFd, ErrorKind> {
        let state = self.conns.get(conn.slot()).filter(|_| self.is_open(conn));
        let state = state.ok_or(ErrorKind::ConnClosed)?;
        if !state.is_idle() {
            return Err(ErrorKind::Busy);
        }
        let socket = self
            .backend
            .detach(conn.slot())
            .ok_or(ErrorKind::ConnClosed)?;
        self.backend.op_table().close_credit(conn.slot());
        self.begin_closing(conn.slot());
        self.retire(conn.slot());
        Ok(socket)
    }

    /// The oldest request of a connection, and its context for errors.
    fn oldest(&self, slot: u32) -> Option<(Key, ErrorContext)> {
        let firsts = Lane::BOTH.map(|lane| Key::first(LaneId::new(slot, lane)));
        let [read, write] = firsts.map(|key| Some((key, self.conns.request(key)?)));
        let oldest = match (read, write) {
            (Some((_, r)), Some((_, w))) if w.sequence.is_before(r.sequence) => write,
            (None, write) => write,
            (read, _) => read,
        };
        oldest.map(|(key, pending)| (key, pending.kind.error_context()))
    }

    /// Empties a slot. Its index is used again once the program has the last result.
    fn retire(&mut self, slot: u32) {
        if let Some(state) = self.conns.get_mut(slot) {
            state.phase = Phase::Empty;
            let conn = state.conn;
            self.retired.push_back((self.emitted(), conn));
        }
    }

    /// Ends everything. Requests that run end with their completions.
    pub(crate) fn close(&mut self) {
        if std::mem::replace(&mut self.closed, true) {
            return;
        }
        for slot in self.conns.open_slots() {
            self.free_slot(slot);
        }
        for key in self.conns.timers() {
            let error = RequestKind::Timer
                .error_context()
                .error(ErrorKind::WatcherClosed);
            self.finish(key, Some(error));
        }
    }

    /// Whether the watcher is closed, every request has ended, and every result was handed out.
    pub(crate) fn is_over(&self) -> bool {
        self.closed && self.pending_count() == 0 && self.out.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use gaio_backends::SocketKind;

    use super::*;

    /// One request stays pending while billions of others come and go.
    #[test]
    fn order_outlives_any_number_of_requests() {
        let (mut engine, ids) = super::super::for_test();
        for first in Lane::BOTH {
            for (turns, requests) in [(1, 10), (3, 1 << 30), (5, (1 << 30) - 1), (40, 3 << 29)] {
                let conn = ids.allocate().unwrap_or(Conn::NONE);
                engine.conns.open(conn, SocketKind::Stream);
                let then = Lane::BOTH.into_iter().find(|lane| *lane != first);
                for lane in [first].into_iter().chain(then) {
                    let op = engine.ops.next();
                    let pending = engine.pending(op, RequestKind::ReadSwap, (), None);
                    if let Some(state) = engine.conns.lane_mut(LaneId::new(conn.slot(), lane)) {
                        state.first = Some(pending);
                        state.in_flight = 1;
                    }
                    for _ in 0..turns {
                        engine.counts.submitted += requests;
                        engine.counts.finished += requests;
                        engine.begin_turn();
                    }
                }
                let oldest = engine.oldest(conn.slot()).map(|(key, _)| key);
                let expected = Key::first(LaneId::new(conn.slot(), first));
                assert_eq!(
                    oldest,
                    Some(expected),
                    "{turns} turns with {requests} requests"
                );
            }
        }
    }
}
