//! Completions from entries of the completion queue.

use std::os::fd::{FromRawFd, OwnedFd};

use io_uring::cqueue;

use super::in_flight::RingOp;
use super::{IGNORED, Uring, WAITED, WOKEN};
use crate::error::Errno;
use crate::{Completion, Lane, LaneId, Outcome};

impl Uring {
    /// Whether an operation ended without an entry of the completion queue, or a lane was woken
    /// there.
    #[inline]
    pub(super) fn has_ended_here(&self) -> bool {
        !self.ended.is_empty() || self.misled.has_woken()
    }

    /// The next completion that has no entry in the completion queue.
    #[cold]
    pub(super) fn next_ended_here(&mut self) -> Option<Completion> {
        if let Some(completion) = self.ended.pop_front() {
            return Some(completion);
        }
        while let Some(at) = self.misled.next_woken() {
            let completion = self.reap_woken(at);
            if completion.is_some() {
                return completion;
            }
        }
        None
    }

    /// The completion of an entry of the completion queue, if the entry belongs to a lane.
    #[inline]
    pub(super) fn reap(&mut self, number: u64, result: i32, flags: u32) -> Option<Completion> {
        if number >= WAITED {
            self.reap_own(number);
            return None;
        }
        let at = LaneId::from_number(number as u32);
        let op = self.in_flight.get(at.slot())?.op(at.lane());
        match (op, result) {
            (RingOp::RecvSwap | RingOp::RecvStream, len @ 1..) => {
                Some(self.received(at, op, len as u32, flags))
            }
            (RingOp::Transfer, len @ 1..) => {
                if at.lane() == Lane::Write {
                    self.note_written(at, Ok(len as u32));
                }
                self.end(at);
                Some(Completion::last(at, Ok(len as u32)))
            }
            _ => self.reap_other(at, op, result, flags),
        }
    }

    /// Handles an entry of the backend's own.
    #[cold]
    fn reap_own(&mut self, number: u64) {
        match number {
            WOKEN => self.wake_armed = false,
            WAITED => self.collect_misled(),
            _ => debug_assert_eq!(number, IGNORED),
        }
    }

    /// The completion of a receive that put bytes into a lent buffer.
    #[inline]
    fn received(&mut self, at: LaneId, op: RingOp, len: u32, flags: u32) -> Completion {
        let more = cqueue::more(flags);
        if !more {
            self.end_receive(at, len);
        }
        let credit = match op {
            RingOp::RecvStream => self.op_table.credit(at.slot()),
            _ => None,
        };
        let lease = cqueue::buffer_select(flags)
            .and_then(|id| self.buffers.take(id, len as usize, flags, credit));
        debug_assert!(lease.is_some(), "a buffer was filled that was not lent");
        match lease {
            Some(lease) => Completion::leased(at, more, lease),
            None => Completion::last(at, Err(Errno(libc::EIO))),
        }
    }

    /// All rarer completions: ends, errors, operations that wait.
    #[inline(never)]
    fn reap_other(
        &mut self,
        at: LaneId,
        op: RingOp,
        result: i32,
        flags: u32,
    ) -> Option<Completion> {
        let result = match result {
            0.. => Ok(result as u32),
            errno => Err(Errno(-errno)),
        };
        match op {
            op if op.is_polled() => return self.ready_polled(at, op, result),
            RingOp::Ready => return self.is_told_ready(at, result),
            RingOp::AcceptOnce | RingOp::PolledAccept if self.accepts_again(at, op, result) => {
                return None;
            }
            RingOp::Transfer if at.lane() == Lane::Write => self.note_written(at, result),
            _ => {}
        }
        let more = cqueue::more(flags);
        if !more {
            self.end(at);
        }
        debug_assert_ne!(op, RingOp::Idle, "{at:?} completes and is idle");
        if let Some(id) = cqueue::buffer_select(flags) {
            self.buffers.untake(id, flags);
        }
        let outcome = match (op, result) {
            (RingOp::RecvPrivate, result) => self.end_private(at, result),
            (_, Err(errno)) => Outcome::Failed(errno),
            (RingOp::Accept | RingOp::AcceptOnce, Ok(fd)) => {
                // SAFETY: the kernel made this descriptor for this process, and reports it once.
                Outcome::Accepted(unsafe { OwnedFd::from_raw_fd(fd as i32) })
            }
            (RingOp::Connect, Ok(_)) => Outcome::Done(0),
            (_, Ok(len)) => Outcome::Done(len),
        };
        Some(Completion { at, more, outcome })
    }

    /// Tries again with a lane that was woken in the epoll instance.
    #[cold]
    pub(super) fn reap_woken(&mut self, at: LaneId) -> Option<Completion> {
        if !self.misled.waits(at) {
            return None;
        }
        match self.in_flight.get(at.slot())?.op(at.lane()) {
            RingOp::Ready => self.is_told_ready(at, Ok(0)),
            op => self.ready_polled(at, op, Ok(0)),
        }
    }

    /// Completes a `ready` after a poll, unless the descriptor is not ready after all.
    fn is_told_ready(&mut self, at: LaneId, polled: Result<u32, Errno>) -> Option<Completion> {
        let cancelled = self.in_flight.get(at.slot())?.is_cancelled(at.lane());
        let result = match polled.and_then(|_| self.is_ready(at)) {
            Ok(true) => Ok(0),
            Ok(false) if cancelled => Err(Errno(libc::ECANCELED)),
            Ok(false) => match self.poll_exactly(at) {
                Ok(()) => return None,
                Err(errno) => Err(errno),
            },
            Err(errno) => Err(errno),
        };
        self.stop_waiting(at);
        self.end(at);
        Some(Completion::last(at, result))
    }

    /// Ends an operation. Its data is the watcher's again.
    #[inline]
    pub(super) fn end(&mut self, at: LaneId) {
        if let Some(socket) = self.in_flight.get_mut(at.slot()) {
            self.cancelling -= usize::from(socket.end(at.lane()));
        }
        self.op_table.end(at);
    }

    /// Ends a receive, and learns from its size.
    #[inline]
    fn end_receive(&mut self, at: LaneId, len: u32) {
        if let Some(socket) = self.in_flight.get_mut(at.slot()) {
            socket.learn(len);
            self.cancelling -= usize::from(socket.end(at.lane()));
        }
        self.op_table.end(at);
    }
}
