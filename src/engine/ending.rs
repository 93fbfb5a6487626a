//! Ending requests before their time: cancelled, out of time, connection freed, watcher closed.

use gaio_backends::{Backend, Doing, Errno, Error, ErrorKind, Lane, Place};

use super::Engine;
use crate::conn::Conn;
use crate::conn_table::{Phase, Stage};
use crate::request::{Key, OpId, Position, What};

impl<C> Engine<C> {
    /// Cancels a request. False if there is none of that number.
    pub(crate) fn cancel(&mut self, backend: &mut dyn Backend, op: OpId) -> bool {
        let Some(key) = self.by_op.find(op, || self.conns.keys()) else {
            return false;
        };
        let ends_already = self.conns.request(key).is_some_and(|p| p.end.is_some());
        if !ends_already {
            self.end_early(backend, key, ErrorKind::Cancelled);
        }
        !ends_already
    }

    /// Ends the requests whose time has come, at most so many; false if there are none. What is about to
    /// have its first attempt has it before.
    pub(crate) fn expire(&mut self, backend: &mut dyn Backend, most: usize) -> bool {
        if self.deadlines.is_empty() {
            return false;
        }
        let now = backend.now();
        let mut postponed = Vec::new();
        let mut ended = 0;
        while ended < most
            && let Some((at, key)) = self.deadlines.pop_due(now)
        {
            if self.is_about_to_start(key) {
                postponed.push((at, key));
                continue;
            }
            ended += 1;
            let Some(pending) = self.conns.request_mut(key) else {
                continue;
            };
            pending.has_deadline = false;
            if pending.what == What::Timer {
                self.finish(backend, key, None);
            } else {
                self.end_early(backend, key, ErrorKind::Deadline);
            }
        }
        for (at, key) in postponed {
            // Unless it ended meanwhile, with the connect that it waited for.
            if self.conns.request(key).is_some_and(|p| p.has_deadline) {
                self.deadlines.insert(key, at);
            }
        }
        ended > 0
    }

    /// Whether a request is the next of a lane that the backend had no room for yet.
    fn is_about_to_start(&self, key: Key) -> bool {
        let Position::First(at) = key.kind() else {
            return false;
        };
        let lane = self.conns.lane(at);
        lane.is_some_and(|lane| matches!(lane.stage, Stage::Dirty | Stage::Served))
    }

    fn end_early(&mut self, backend: &mut dyn Backend, key: Key, why: ErrorKind) {
        let Some(pending) = self.conns.request_mut(key) else {
            return;
        };
        pending.end.get_or_insert(why);
        let what = pending.what;
        let error = Error::new(what.doing(), why);
        let Some(at) = self.conns.place_of(key) else {
            // A timer.
            return self.finish(backend, key, Some(error));
        };
        let Some(state) = self.conns.get(at.slot()) else {
            return;
        };
        let closing = state.phase == Phase::Closing;
        match (closing, self.conns.is_in_flight(key)) {
            // It ends with its connection.
            (true, _) => {}
            // Of several writes in one call, the first stands for all.
            (false, true) => backend.cancel(at, why == ErrorKind::Deadline),
            (false, false) if what == What::Connect => {
                self.leave_waiting(at);
                self.connected(backend, at, Err(Errno::CANCELLED));
            }
            // The one before it is ending, too: it follows at once, in order.
            (false, false) if self.follows_an_ending_one(key) => {}
            (false, false) => {
                if let Position::First(at) = key.kind() {
                    self.leave_waiting(at);
                }
                self.finish(backend, key, Some(error));
            }
        }
    }

    /// Whether the request before a queued one is about to end: it runs, or waits likewise.
    fn follows_an_ending_one(&self, key: Key) -> bool {
        let before = self.conns.before(key);
        before.is_some_and(|before| before.end.is_some())
    }

    /// Ends every request of a lane with an error.
    pub(super) fn fail_lane(&mut self, backend: &mut dyn Backend, at: Place, error: Error) {
        let first = Key::first(at);
        while let Some(pending) = self.conns.request(first) {
            let doing = pending.what.doing();
            self.finish(backend, first, Some(error.during(doing)));
        }
    }

    /// Frees a connection. False if the handle is not good.
    pub(crate) fn free(&mut self, backend: &mut dyn Backend, conn: Conn) -> bool {
        let open = self.is_open(conn);
        if open {
            self.free_slot(backend, conn.slot());
        }
        open
    }

    fn free_slot(&mut self, backend: &mut dyn Backend, slot: u32) {
        self.conns.begin_closing(slot);
        for at in Lane::BOTH.map(|lane| Place::new(slot, lane)) {
            let runs = self.conns.lane(at).is_some_and(|lane| lane.in_flight > 0);
            self.leave_waiting(at);
            if runs {
                backend.cancel(at, false);
            }
        }
        self.close_out_when_still(backend, slot);
    }

    /// If nothing runs any more on a freed connection, its requests end in the order in which they
    /// were accepted, then its socket is closed.
    pub(super) fn close_out_when_still(&mut self, backend: &mut dyn Backend, slot: u32) {
        if self.conns.get(slot).is_some_and(|state| state.is_still()) {
            self.close_out(backend, slot);
        }
    }

    fn close_out(&mut self, backend: &mut dyn Backend, slot: u32) {
        let why = if self.closed {
            ErrorKind::WatcherClosed
        } else {
            ErrorKind::ConnClosed
        };
        while let Some((key, doing)) = self.oldest(slot) {
            self.finish(backend, key, Some(Error::new(doing, why)));
        }
        self.discard(backend.release(slot));
        backend.loads().close_credit(slot);
        self.retire(slot);
        self.retry_listeners();
    }

    /// Gives the socket of an idle connection back.
    pub(crate) fn reclaim(
        &mut self,
        backend: &mut dyn Backend,
        conn: Conn,
    ) -> Result<std::os::fd::OwnedFd, ErrorKind> {
        let state = self.conns.get(conn.slot()).filter(|_| self.is_open(conn));
        let state = state.ok_or(ErrorKind::ConnClosed)?;
        if !state.is_idle() {
            return Err(ErrorKind::Busy);
        }
        let socket = backend.detach(conn.slot()).ok_or(ErrorKind::ConnClosed)?;
        backend.loads().close_credit(conn.slot());
        self.conns.begin_closing(conn.slot());
        self.retire(conn.slot());
        Ok(socket)
    }

    /// The request of a connection that was accepted first, and what it does.
    fn oldest(&self, slot: u32) -> Option<(Key, Doing)> {
        let firsts = Lane::BOTH.map(|lane| Key::first(Place::new(slot, lane)));
        let [read, write] = firsts.map(|key| Some((key, self.conns.request(key)?)));
        let oldest = match (read, write) {
            (Some((_, r)), Some((_, w))) if w.sequence.is_before(r.sequence) => write,
            (None, write) => write,
            (read, _) => read,
        };
        oldest.map(|(key, pending)| (key, pending.what.doing()))
    }

    fn retire(&mut self, slot: u32) {
        if let Some(state) = self.conns.get_mut(slot) {
            state.phase = Phase::Empty;
            let conn = state.conn;
            self.retired.push_back((self.emitted(), conn));
        }
    }

    /// Ends everything; what runs ends soon.
    pub(crate) fn close(&mut self, backend: &mut dyn Backend) {
        if std::mem::replace(&mut self.closed, true) {
            return;
        }
        for slot in self.conns.open_slots() {
            self.free_slot(backend, slot);
        }
        for key in self.conns.timers() {
            let error = Error::new(What::Timer.doing(), ErrorKind::WatcherClosed);
            self.finish(backend, key, Some(error));
        }
    }

    /// Whether, after `close`, everything has ended and was handed out.
    pub(crate) fn is_over(&self) -> bool {
        self.closed && self.pending_count() == 0 && self.out.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use gaio_backends::SocketKind;

    use super::*;
    use crate::conn::ConnIds;

    /// A request of a lane that is pending for ever, while billions of others come and go.
    #[test]
    fn order_outlives_any_number_of_requests() {
        let ids = Arc::new(ConnIds::new());
        let mut engine = Engine::new(Arc::clone(&ids), 1, 1);
        for first in Lane::BOTH {
            for (turns, requests) in [(1, 10), (3, 1 << 30), (5, (1 << 30) - 1), (40, 3 << 29)] {
                let conn = ids.allocate().unwrap_or(Conn::NONE);
                engine.conns.open(conn, SocketKind::Stream);
                let then = Lane::BOTH.into_iter().find(|lane| *lane != first);
                for lane in [first].into_iter().chain(then) {
                    let op = engine.ops.next();
                    let pending = engine.pending(op, What::ReadSwap, (), None);
                    if let Some(state) = engine.conns.lane_mut(Place::new(conn.slot(), lane)) {
                        state.first = Some(pending);
                    }
                    for _ in 0..turns {
                        engine.counts.accepted += requests;
                        engine.begin_turn();
                    }
                }
                let oldest = engine.oldest(conn.slot()).map(|(key, _)| key);
                let expected = Key::first(Place::new(conn.slot(), first));
                assert_eq!(
                    oldest,
                    Some(expected),
                    "{turns} turns with {requests} requests"
                );
            }
        }
    }
}
