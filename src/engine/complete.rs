//! The meaning of a completion: a result, another attempt, or a wait.
//!
//! The common cases come first: a swap read, a whole write, a step of a stream. Connections and
//! vectored writes have files of their own, `connections` and `writes`.

use std::num::NonZeroI32;

use gaio_backends::{Backend, Buffer, Completion, Errno, Error, ErrorKind, LaneId, Outcome};

use super::Engine;
use crate::conn::Conn;
use crate::conn_state::Phase;
use crate::request::{Key, Pending, RequestKind};
use crate::results::OpResult;

impl<C> Engine<C> {
    /// Takes completions from the backend, at most `most`.
    pub(crate) fn collect(&mut self, most: usize) {
        for _ in 0..most {
            let Some(completion) = self.backend.next() else {
                return;
            };
            self.complete(completion);
        }
    }

    /// Takes a completion.
    #[inline(always)]
    pub(super) fn complete(&mut self, completion: Completion) {
        self.counts.completions += 1;
        let Completion { at, more, outcome } = completion;
        let state = self.conns.get_mut(at.slot());
        debug_assert!(state.is_some(), "{at:?} was never opened");
        let Some(state) = state else {
            return;
        };
        let closing = state.phase == Phase::Closing;
        let lane = state.lane_mut(at.lane());
        let (count, private) = (lane.in_flight, std::mem::take(&mut lane.private));
        if !more {
            lane.in_flight = 0;
        }
        debug_assert!(lane.first.is_some(), "{at:?} completes without a request");
        let Some(first) = &lane.first else {
            return;
        };
        match (first.kind, outcome) {
            (kind, outcome) if closing => self.complete_closing(at, kind, count, outcome),
            (RequestKind::ReadSwap, Outcome::Leased(lease)) => {
                let size = lease.len();
                if self.has_overdue() {
                    self.note_swap_read(size);
                }
                self.finish_first(at, lease.into(), size, None);
            }
            (RequestKind::ReadStream, Outcome::Leased(lease)) => {
                lane.misses = 0;
                let size = lease.len();
                self.emit_step(at, None, Conn::NONE, lease.into(), size);
                if !more {
                    self.resume_or_park(at);
                } else if self.is_over_window(at) {
                    self.pause(at);
                }
            }
            (RequestKind::Write, Outcome::Done(len)) if count == 1 => {
                match self.backend.op_table().take_whole(at, len as usize) {
                    Some((buffer, size)) => self.finish_first(at, buffer, size, None),
                    None => self.go_on(at),
                }
            }
            (RequestKind::ReadSwap | RequestKind::ReadStream, Outcome::Failed(errno))
                if errno.is_out_of_buffers() =>
            {
                self.out_of_buffers(at, private);
            }
            (kind, outcome) => self.complete_other(at, kind, count, more, outcome),
        }
    }

    /// The rarer completions: ends, errors, transfers in several steps, connections.
    #[inline(never)]
    fn complete_other(
        &mut self,
        at: LaneId,
        kind: RequestKind,
        count: u16,
        more: bool,
        outcome: Outcome,
    ) {
        let result = match outcome {
            Outcome::Done(len) => Ok(len as usize),
            Outcome::Failed(errno) => Err(errno),
            Outcome::Accepted(socket) => return self.complete_accept(at, more, socket),
            Outcome::Leased(_) => {
                debug_assert!(false, "{at:?} gets a lease for a {kind:?}");
                return self.finish_failed(at, Errno::CANCELLED);
            }
        };
        match kind {
            RequestKind::ReadStream if result.is_err_and(Errno::is_interruption) => {
                self.resume_or_park(at)
            }
            RequestKind::ReadSwap | RequestKind::ReadStream => match result {
                Ok(_) => self.finish_at_end(at),
                Err(errno) => self.finish_failed(at, errno),
            },
            RequestKind::Write if count > 1 => self.complete_writes(at, count, result),
            RequestKind::Read | RequestKind::ReadFull if result == Ok(0) => self.finish_at_end(at),
            RequestKind::ReadFull
            | RequestKind::Write
            | RequestKind::WriteParts
            | RequestKind::SendFile => self.complete_transfer(at, result),
            RequestKind::Accept | RequestKind::AcceptOne => self.complete_failed_accept(at, result),
            RequestKind::Connect => self.complete_connect(at, result),
            RequestKind::Read | RequestKind::Shutdown(_) | RequestKind::Ready(_) => {
                self.finish_with_result(at, result)
            }
            RequestKind::EmptyWrite | RequestKind::Timer => {
                debug_assert!(false, "{kind:?} is not handed to the backend")
            }
        }
    }

    /// Takes a completion of a freed connection. The bytes are kept: the results are emitted together,
    /// when nothing runs any more.
    #[cold]
    fn complete_closing(&mut self, at: LaneId, kind: RequestKind, count: u16, outcome: Outcome) {
        match (kind, outcome) {
            (RequestKind::ReadSwap, Outcome::Leased(lease)) => {
                let size = lease.len();
                self.backend.op_table().put_buffer(at, lease.into(), size);
            }
            // Nobody has a handle of this connection.
            (_, Outcome::Accepted(socket)) => self.discard(socket),
            (RequestKind::Write, Outcome::Done(len)) if count > 1 => self.spread(at, len as usize),
            (RequestKind::Write, _) if count > 1 => self.spread(at, 0),
            (_, Outcome::Done(len)) => {
                self.backend.op_table().advance(at, len as usize);
            }
            // A stream's bytes are dropped.
            (_, Outcome::Leased(_) | Outcome::Failed(_)) => {}
        }
        self.finish_connection_when_idle(at.slot());
    }

    /// Finishes a request with the system's result. After an interruption the request starts again.
    pub(super) fn finish_with_result(&mut self, at: LaneId, result: Result<usize, Errno>) {
        match result {
            Ok(size) => {
                self.backend.op_table().advance(at, size);
                self.finish(Key::first(at), None);
            }
            Err(errno) => self.finish_failed(at, errno),
        }
    }

    /// The first request of a lane.
    pub(super) fn first(&self, at: LaneId) -> Option<&Pending<C>> {
        self.conns.lane(at)?.first.as_ref()
    }

    /// Ends a request with the reason for which it was cancelled, or else with the system's error. Two
    /// errors do not end a request that goes on: after an interruption it starts again at once, and a
    /// write for which the system had no memory is retried later.
    #[cold]
    pub(super) fn finish_failed(&mut self, at: LaneId, errno: Errno) {
        let Some(first) = self.first(at) else {
            return;
        };
        let (kind, end) = (first.kind, first.end);
        let error_context = kind.error_context();
        let errno = errno.meaning(error_context);
        let passes = (kind.writes() || kind == RequestKind::SendFile) && errno.is_shortage();
        let error = match end {
            Some(why) if errno.is_interruption() || passes => error_context.error(why),
            None if errno.is_interruption() => return self.mark_dirty(at),
            None if passes => return self.retry_later(at),
            _ => {
                if errno.is_lost_peer() || kind == RequestKind::Connect {
                    self.note_lost(at.slot(), errno);
                }
                error_context.os_error(errno)
            }
        };
        self.finish(Key::first(at), Some(error));
    }

    /// Keeps the error with which a connection was lost. The system reports it only once, and later
    /// reads end with it, too.
    fn note_lost(&mut self, slot: u32, errno: Errno) {
        if let Some(state) = self.conns.get_mut(slot) {
            state.lost = state.lost.or(NonZeroI32::new(errno.0));
        }
    }

    /// A request has made progress but is not done. It ends if it was cancelled, and otherwise starts
    /// again.
    pub(super) fn go_on(&mut self, at: LaneId) {
        let Some(first) = self.first(at) else {
            return;
        };
        match first.end {
            Some(why) => {
                let error = first.kind.error_context().error(why);
                self.finish(Key::first(at), Some(error));
            }
            None => self.mark_dirty(at),
        }
    }

    /// A read finds no more bytes. This is the end of the stream, unless the connection was lost: then
    /// the read ends with that error.
    #[cold]
    fn finish_at_end(&mut self, at: LaneId) {
        let lost = self.conns.get(at.slot()).and_then(|state| state.lost);
        if let Some(errno) = lost {
            return self.finish_failed(at, Errno(errno.get()));
        }
        let unfilled = self
            .first(at)
            .is_some_and(|first| first.kind == RequestKind::ReadFull);
        let error = unfilled.then(|| {
            RequestKind::ReadFull
                .error_context()
                .error(ErrorKind::UnexpectedEof)
        });
        self.finish(Key::first(at), error);
    }

    /// A step of a transfer that goes on until all bytes are moved.
    fn complete_transfer(&mut self, at: LaneId, result: Result<usize, Errno>) {
        match result {
            Ok(size) if self.backend.op_table().advance(at, size) => {
                self.finish(Key::first(at), None);
            }
            Ok(_) => self.go_on(at),
            Err(errno) => self.finish_failed(at, errno),
        }
    }

    /// Emits a result of a stream that goes on.
    #[inline(always)]
    pub(super) fn emit_step(
        &mut self,
        at: LaneId,
        error: Option<Error>,
        accepted: Conn,
        buffer: Buffer,
        size: usize,
    ) {
        let Some(clone) = self.clone_context else {
            debug_assert!(false, "a stream that cannot copy its context");
            return;
        };
        let Some(state) = self.conns.get(at.slot()) else {
            return;
        };
        let Some(first) = &state.lane(at.lane()).first else {
            return;
        };
        let (operation, op, conn) = (first.kind.operation(), first.op, state.conn);
        let context = clone(&first.context);
        self.out.push_with(move || OpResult {
            operation,
            op,
            conn,
            context,
            buffer,
            size,
            error,
            accepted,
            last: false,
        });
    }
}

#[cfg(test)]
mod tests {
    use gaio_backends::SocketKind;

    use super::*;

    /// The first error is the reason of the loss. Later errors follow from it.
    #[test]
    fn the_first_error_is_the_reason() {
        let (mut engine, ids) = super::super::for_test::<()>();
        let conn = ids.allocate().unwrap_or(Conn::NONE);
        engine.conns.open(conn, SocketKind::Stream);
        for errno in [110, 104, 113] {
            engine.note_lost(conn.slot(), Errno(errno));
            let lost = engine.conns.get(conn.slot()).and_then(|state| state.lost);
            assert_eq!(lost.map(NonZeroI32::get), Some(110));
        }
    }
}
