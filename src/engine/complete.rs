//! What a completion means: a result, a further attempt, or a wait for something.

use std::num::NonZeroI32;
use std::os::fd::OwnedFd;

use gaio_backends::{
    Backend, Buffer, Completion, Errno, Error, ErrorKind, Lane, Load, Payload, Place, SocketKind,
};

use super::Engine;
use crate::conn::Conn;
use crate::conn_table::Phase;
use crate::request::{Key, Pending, What};
use crate::results::OpResult;

impl<C> Engine<C> {
    /// Takes any completion.
    pub(super) fn complete(
        &mut self,
        backend: &mut dyn Backend,
        completion: Completion,
        payload: Payload,
    ) {
        let Completion { at, more, result } = completion;
        let result = result.map(|size| size as usize);
        let Some(state) = self.conns.get_mut(at.slot()) else {
            return;
        };
        let closing = state.phase == Phase::Closing;
        let lane = state.lane_mut(at.lane());
        let count = lane.in_flight;
        if !more {
            lane.in_flight = 0;
        }
        let private = std::mem::take(&mut lane.private);
        let Some(first) = &lane.first else {
            return;
        };
        let what = first.what;
        if closing {
            self.keep(backend, at, what, count, payload, result.unwrap_or(0));
            return self.close_out_when_still(backend, at.slot());
        }
        match what {
            What::ReadSwap => match result {
                Err(errno) if errno.is_out_of_buffers() => {
                    self.out_of_buffers(backend, at, private);
                }
                Err(errno) => self.fail(backend, at, errno),
                Ok(0) => self.ended(backend, at),
                Ok(size) => {
                    self.note_swap_read(size);
                    self.conclude(backend, at, None, leased(payload), size);
                }
            },
            What::Write if count > 1 => self.wrote_many(backend, at, count, result),
            What::ReadStream => match result {
                Err(errno) if errno.is_out_of_buffers() => {
                    if self.is_over_window(backend.loads(), at) {
                        self.resume_or_park(backend, at);
                    } else {
                        self.out_of_buffers(backend, at, private);
                    }
                }
                result => self.stream_step(backend, at, more, payload, result),
            },
            What::Read | What::ReadFull if result == Ok(0) => self.ended(backend, at),
            What::ReadFull | What::Write => self.transferred(backend, at, result),
            What::Accept | What::AcceptOne => match payload {
                Payload::Socket(socket) => self.accepted(backend, at, more, socket),
                _ => self.accept_failed(backend, at, result),
            },
            What::Connect => self.connected(backend, at, result),
            _ => self.finish_with(backend, at, result),
        }
    }

    /// Finishes a request with what the kernel said, or tries again if that was nothing.
    pub(super) fn finish_with(
        &mut self,
        backend: &mut dyn Backend,
        at: Place,
        result: Result<usize, Errno>,
    ) {
        match result {
            Ok(size) => {
                backend.loads().advance(at, size);
                self.finish(backend, Key::first(at), None);
            }
            Err(errno) => self.fail(backend, at, errno),
        }
    }

    /// The first request of a lane.
    fn first(&self, at: Place) -> Option<&Pending<C>> {
        self.conns.lane(at)?.first.as_ref()
    }

    /// Ends a request for the reason it was cancelled for, else with the system's error. An
    /// interruption that nobody asked for means: again; a write for which there was no memory: later.
    #[cold]
    pub(super) fn fail(&mut self, backend: &mut dyn Backend, at: Place, errno: Errno) {
        let Some(first) = self.first(at) else {
            return;
        };
        let (what, end) = (first.what, first.end);
        let doing = what.doing();
        let errno = errno.meaning(doing);
        let passes = what == What::Write && errno.is_shortage();
        let error = match end {
            Some(kind) if errno.is_interruption() || passes => Error::new(doing, kind),
            None if errno.is_interruption() => return self.mark_dirty(at),
            None if passes => return self.retry_later(backend, at),
            _ => {
                if errno.is_lost_peer() || what == What::Connect {
                    self.note_lost(at.slot(), errno);
                }
                Error::os(doing, errno)
            }
        };
        self.finish(backend, Key::first(at), Some(error));
    }

    /// The system tells only once why a connection is lost; reads that come later want to know, too.
    fn note_lost(&mut self, slot: u32, errno: Errno) {
        if let Some(state) = self.conns.get_mut(slot) {
            state.lost = state.lost.or(NonZeroI32::new(errno.0));
        }
    }

    /// A request that made progress but is not done: ends if it is to end, else goes on.
    fn go_on(&mut self, backend: &mut dyn Backend, at: Place) {
        let Some(first) = self.first(at) else {
            return;
        };
        match first.end {
            Some(kind) => {
                let error = Error::new(first.what.doing(), kind);
                self.finish(backend, Key::first(at), Some(error));
            }
            None => self.mark_dirty(at),
        }
    }

    /// A read finds no more: the end, unless an error has told that the connection is lost.
    #[cold]
    fn ended(&mut self, backend: &mut dyn Backend, at: Place) {
        let lost = self.conns.get(at.slot()).and_then(|state| state.lost);
        if let Some(errno) = lost {
            return self.fail(backend, at, Errno(errno.get()));
        }
        let unfilled = self
            .first(at)
            .is_some_and(|first| first.what == What::ReadFull);
        let error = unfilled.then(|| Error::new(What::ReadFull.doing(), ErrorKind::UnexpectedEof));
        self.finish(backend, Key::first(at), error);
    }

    /// A step of a transfer that goes on until all is done.
    fn transferred(&mut self, backend: &mut dyn Backend, at: Place, result: Result<usize, Errno>) {
        match result {
            Ok(size) if backend.loads().advance(at, size) => {
                self.finish(backend, Key::first(at), None);
            }
            Ok(_) => self.go_on(backend, at),
            Err(errno) => self.fail(backend, at, errno),
        }
    }

    /// A vectored write of `count` requests has ended: so do those that are whole, and those that are
    /// to end.
    fn wrote_many(
        &mut self,
        backend: &mut dyn Backend,
        at: Place,
        count: u16,
        result: Result<usize, Errno>,
    ) {
        self.spread(backend, at, result.unwrap_or(0));
        for _ in 0..count {
            if !backend.loads().advance(at, 0) {
                break;
            }
            self.finish(backend, Key::first(at), None);
        }
        if let Err(errno) = result {
            // The system's error is the first unfinished write's; the others meet it, or not, when
            // their turn comes.
            self.fail(backend, at, errno);
        }
        self.end_marked(backend, at, count);
        self.mark_dirty(at);
    }

    /// Gives the buffers of a vectored write back to their requests, and spreads what was written
    /// over them.
    fn spread(&mut self, backend: &mut dyn Backend, at: Place, size: usize) {
        let mut buffers = std::mem::take(&mut self.gathered);
        let mut left = size + backend.loads().take_many(at, &mut buffers);
        let mut rest = buffers.drain(..).map(|buffer| {
            let done = left.min(buffer.len());
            left -= done;
            (buffer, done)
        });
        if let Some((buffer, done)) = rest.next() {
            backend.loads().put_buffer(at, buffer, done);
        }
        self.conns.walk(at, |_, queued| {
            let was_in_flight = std::mem::take(&mut queued.in_flight);
            if was_in_flight && let Some((buffer, done)) = rest.next() {
                queued.load = Load::Buffer(buffer);
                queued.done = done;
            }
            was_in_flight
        });
        drop(rest);
        debug_assert_eq!(left, 0, "more bytes written than handed in");
        self.gathered = buffers;
    }

    /// Ends the requests of a lane that were to end as soon as nothing runs. They are among the `count`
    /// that ran, or follow one of those directly: any other ended at once when it was cancelled or
    /// out of time. So what this costs does not depend on how many requests are queued.
    fn end_marked(&mut self, backend: &mut dyn Backend, at: Place, count: u16) {
        while let Some(first) = self.first(at)
            && let Some(kind) = first.end
        {
            let error = Error::new(first.what.doing(), kind);
            self.finish(backend, Key::first(at), Some(error));
        }
        let mut marked = Vec::new();
        let mut ran = count;
        self.conns.walk(at, |key, queued| {
            let end = queued.pending.end;
            marked.extend(end.map(|kind| (key, Error::new(queued.pending.what.doing(), kind))));
            let may_go_on = ran > 0 || end.is_some();
            ran = ran.saturating_sub(1);
            may_go_on
        });
        for (key, error) in marked {
            self.finish(backend, key, Some(error));
        }
    }

    /// Keeps what a completion of a freed connection brings for the results, which are all
    /// emitted when nothing runs any more.
    #[cold]
    fn keep(
        &mut self,
        backend: &mut dyn Backend,
        at: Place,
        what: What,
        count: u16,
        payload: Payload,
        size: usize,
    ) {
        match (what, payload) {
            (What::ReadSwap, Payload::Lease(lease)) => {
                backend.loads().put_buffer(at, lease.into(), size);
            }
            (What::Write, _) if count > 1 => self.spread(backend, at, size),
            // A connection, or bytes of a stream, that nobody wants.
            (_, Payload::Socket(socket)) => self.discard(socket),
            (What::ReadStream | What::Accept | What::AcceptOne, _) => {}
            _ => {
                backend.loads().advance(at, size);
            }
        }
    }

    pub(super) fn connected(
        &mut self,
        backend: &mut dyn Backend,
        at: Place,
        result: Result<usize, Errno>,
    ) {
        let slot = at.slot();
        let ended = self.first(at).is_some_and(|first| first.end.is_some());
        let interrupted = result.is_err_and(Errno::is_interruption);
        if interrupted && !ended {
            return if result.is_err_and(Errno::would_block) {
                self.retry_later(backend, at)
            } else {
                self.mark_dirty(at)
            };
        }
        if let Some(state) = self.conns.get_mut(slot)
            && state.phase == Phase::Connecting
        {
            state.phase = Phase::Open;
        }
        let before = self.out.len();
        self.finish_with(backend, at, result);
        let error = self.out.as_slice().get(before);
        let error = error.and_then(|result| result.error);
        let lanes = Lane::BOTH.map(|lane| Place::new(slot, lane));
        match error {
            None => lanes.map(|at| self.mark_dirty(at)),
            // What waited for the connection ends as it did; the handle is the program's.
            Some(error) => lanes.map(|at| self.fail_lane(backend, at, error)),
        };
    }

    fn accepted(&mut self, backend: &mut dyn Backend, at: Place, more: bool, socket: OwnedFd) {
        if let Some(state) = self.conns.get_mut(at.slot()) {
            state.out_of_descriptors = false;
            state.lane_mut(at.lane()).tries = 0;
        }
        let adopted = self.adopt(backend, socket, SocketKind::Stream);
        let (accepted, error) = match adopted {
            Ok(conn) => (conn, None),
            Err((errno, socket)) => {
                self.discard(socket);
                (Conn::NONE, Some(errno))
            }
        };
        let Some(first) = self.first(at) else {
            return;
        };
        let error = error.map(|errno| Error::os(first.what.doing(), errno));
        if first.what == What::AcceptOne {
            self.finish(backend, Key::first(at), error);
            if let Some(result) = self.out.as_mut_slice().last_mut() {
                result.accepted = accepted;
            }
            return;
        }
        self.emit_step(at, error, accepted, Payload::None, 0);
        if !more {
            self.go_on(backend, at);
        }
    }

    fn accept_failed(
        &mut self,
        backend: &mut dyn Backend,
        at: Place,
        result: Result<usize, Errno>,
    ) {
        let Some(first) = self.first(at) else {
            return;
        };
        let Err(errno) = result else {
            return self.go_on(backend, at);
        };
        if errno.is_lost_connection() {
            return self.go_on(backend, at);
        }
        if first.what == What::AcceptOne || first.end.is_some() || !errno.is_shortage() {
            return self.fail(backend, at, errno);
        }
        let error = Error::os(first.what.doing(), errno);
        let told = self
            .conns
            .get_mut(at.slot())
            .is_some_and(|state| std::mem::replace(&mut state.out_of_descriptors, true));
        if !told {
            self.emit_step(at, Some(error), Conn::NONE, Payload::None, 0);
        }
        self.retry_later(backend, at);
    }

    fn stream_step(
        &mut self,
        backend: &mut dyn Backend,
        at: Place,
        more: bool,
        payload: Payload,
        result: Result<usize, Errno>,
    ) {
        match result {
            Ok(0) => self.ended(backend, at),
            Ok(size) => {
                if let Some(lane) = self.conns.lane_mut(at) {
                    lane.misses = 0;
                }
                self.emit_step(at, None, Conn::NONE, payload, size);
                if !more {
                    self.resume_or_park(backend, at);
                } else if self.is_over_window(backend.loads(), at) {
                    self.pause(backend, at);
                }
            }
            Err(errno) if errno.is_interruption() => self.resume_or_park(backend, at),
            Err(errno) => self.fail(backend, at, errno),
        }
    }

    /// A result of a stream that goes on.
    fn emit_step(
        &mut self,
        at: Place,
        error: Option<Error>,
        accepted: Conn,
        payload: Payload,
        size: usize,
    ) {
        let Some(clone) = self.clone_context else {
            return;
        };
        let Some(state) = self.conns.get(at.slot()) else {
            return;
        };
        let Some(first) = &state.lane(at.lane()).first else {
            return;
        };
        self.out.push_with(|| OpResult {
            operation: first.what.operation(),
            op: first.op,
            conn: state.conn,
            context: clone(&first.context),
            buffer: leased(payload),
            size,
            error,
            accepted,
            last: false,
        });
    }
}

/// The bytes that a completion brought.
fn leased(payload: Payload) -> Buffer {
    match payload {
        Payload::Lease(lease) => lease.into(),
        _ => Buffer::EMPTY,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::conn::ConnIds;

    /// What was told first is why the connection was lost; errors that come later follow from it.
    #[test]
    fn the_first_error_is_the_reason() {
        let ids = Arc::new(ConnIds::new());
        let mut engine = Engine::<()>::new(Arc::clone(&ids), 1, 1);
        let conn = ids.allocate().unwrap_or(Conn::NONE);
        engine.conns.open(conn, SocketKind::Stream);
        for errno in [110, 104, 113] {
            engine.note_lost(conn.slot(), Errno(errno));
            let lost = engine.conns.get(conn.slot()).and_then(|state| state.lost);
            assert_eq!(lost.map(NonZeroI32::get), Some(110));
        }
    }
}
