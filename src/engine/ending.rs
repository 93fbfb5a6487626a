//! Ending requests before their time: cancelled, out of time, connection freed, watcher closed.

use gaio_backends::{Backend, Errno, Error, ErrorKind, Lane, Place};

use super::Engine;
use crate::conn::Conn;
use crate::conn_table::{Phase, Stage};
use crate::request::{OpId, What};

impl<C> Engine<C> {
    /// Cancels a request. False if there is none of that number.
    pub(crate) fn cancel(&mut self, backend: &mut dyn Backend, op: OpId) -> bool {
        let Some(index) = self.requests.find(op) else {
            return false;
        };
        let ends_already = self.requests.get(index).is_some_and(|p| p.end.is_some());
        if !ends_already {
            self.end_early(backend, index, ErrorKind::Cancelled);
        }
        !ends_already
    }

    /// Ends the requests whose time has come; false if there are none. What is about to have its
    /// first attempt has it before.
    pub(crate) fn expire(&mut self, backend: &mut dyn Backend) -> bool {
        if self.deadlines.is_empty() {
            return false;
        }
        let now = backend.now();
        let mut postponed = Vec::new();
        let mut any = false;
        while let Some((at, index)) = self.deadlines.pop_due(now) {
            if self.is_about_to_start(index) {
                postponed.push((at, index));
                continue;
            }
            any = true;
            let Some(pending) = self.requests.get_mut(index) else {
                continue;
            };
            pending.has_deadline = false;
            if pending.what == What::Timer {
                self.finish(backend, index, None);
            } else {
                self.end_early(backend, index, ErrorKind::Deadline);
            }
        }
        for (at, index) in postponed {
            self.deadlines.insert(index, at);
        }
        any
    }

    /// Whether a request is the next of a lane that the backend had no room for yet.
    fn is_about_to_start(&self, index: u32) -> bool {
        let Some(pending) = self.requests.get(index) else {
            return false;
        };
        let state = self.conns.get(pending.slot);
        let queue = state.map(|state| state.lane(pending.lane));
        pending.what != What::Timer
            && queue.is_some_and(|queue| {
                queue.head == index && matches!(queue.stage, Stage::Dirty | Stage::Served)
            })
    }

    fn end_early(&mut self, backend: &mut dyn Backend, index: u32, why: ErrorKind) {
        let Some(pending) = self.requests.get_mut(index) else {
            return;
        };
        pending.end.get_or_insert(why);
        let (slot, lane) = (pending.slot, pending.lane);
        let (what, in_flight) = (pending.what, pending.in_flight);
        let error = Error::new(what.doing(), why);
        if what == What::Timer {
            return self.finish(backend, index, Some(error));
        }
        let Some(state) = self.conns.get(slot) else {
            return;
        };
        let closing = state.phase == Phase::Closing;
        // Of several writes in one call, the first stands for all.
        let key = state.lane(lane).head;
        match (closing, in_flight) {
            // It ends with its connection.
            (true, _) => {}
            (false, true) => {
                backend.cancel(Place { slot, lane, key }, why == ErrorKind::Deadline);
            }
            (false, false) if what == What::Connect => {
                self.connected(backend, slot, index, Err(Errno::CANCELLED));
            }
            // The one before it is ending, too: it follows at once, in order.
            (false, false) if self.follows_an_ending_one(index) => {}
            (false, false) => {
                self.leave_waiting(slot, lane, index);
                self.finish(backend, index, Some(error));
            }
        }
    }

    /// Whether the request before a queued one is about to end: it runs, or waits likewise.
    fn follows_an_ending_one(&self, index: u32) -> bool {
        let prev = self.requests.get(index).map(|pending| pending.prev);
        prev.and_then(|prev| self.requests.get(prev))
            .is_some_and(|before| before.end.is_some())
    }

    /// Ends every request of a lane with an error.
    pub(super) fn fail_lane(
        &mut self,
        backend: &mut dyn Backend,
        slot: u32,
        lane: Lane,
        error: Error,
    ) {
        while let Some(head) = self.conns.get(slot).map(|state| state.lane(lane).head)
            && let Some(pending) = self.requests.get(head)
        {
            let doing = pending.what.doing();
            self.finish(backend, head, Some(error.during(doing)));
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
        for lane in Lane::BOTH {
            let Some(queue) = self.conns.lane_mut(slot, lane) else {
                return;
            };
            let (key, runs) = (queue.head, queue.in_flight > 0);
            self.leave_waiting(slot, lane, key);
            if runs {
                backend.cancel(Place { slot, lane, key }, false);
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
        while let Some(index) = self.oldest(slot) {
            let doing = self.requests.get(index).map(|pending| pending.what.doing());
            let Some(doing) = doing else {
                break;
            };
            self.finish(backend, index, Some(Error::new(doing, why)));
        }
        drop(backend.detach(slot));
        self.retire(slot);
        self.retry();
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
        self.conns.begin_closing(conn.slot());
        self.retire(conn.slot());
        Ok(socket)
    }

    /// The request of a connection that was accepted first.
    fn oldest(&self, slot: u32) -> Option<u32> {
        let state = self.conns.get(slot)?;
        let [read, write] = Lane::BOTH.map(|lane| state.lane(lane).head);
        let accepted = |key| self.requests.get(key).map(|pending| pending.accepted);
        match (accepted(read), accepted(write)) {
            // The count wraps around, so what matters is which one is ahead of the other.
            (Some(r), Some(w)) if (w.wrapping_sub(r) as i32) < 0 => Some(write),
            (Some(_), _) => Some(read),
            (None, Some(_)) => Some(write),
            (None, None) => None,
        }
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
        for index in self.requests.keys() {
            let pending = self.requests.get(index);
            if pending.is_some_and(|pending| pending.what == What::Timer) {
                let doing = What::Timer.doing();
                self.finish(
                    backend,
                    index,
                    Some(Error::new(doing, ErrorKind::WatcherClosed)),
                );
            }
        }
    }

    /// Whether, after `close`, everything has ended and was handed out.
    pub(crate) fn is_over(&self) -> bool {
        self.closed && self.requests.is_empty() && self.out.is_empty()
    }
}
