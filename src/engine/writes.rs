//! Writes that stand one behind the other in a lane go out in one vectored call. They are put together
//! when it starts, and taken apart when it has ended. Also the limit of the bytes in that queue.

use gaio_backends::{
    Backend, Errno, ErrorContext, ErrorKind, Lane, LaneId, OpData, Request, WRITES_MAX,
};

use super::Engine;
use crate::conn::Conn;
use crate::request::{Key, RequestKind};

impl<C> Engine<C> {
    /// The bytes of a connection's writes that the kernel does not have, as far as is known.
    pub(crate) fn queued_bytes(&self, conn: Conn) -> usize {
        match self.conns.get(conn.slot()) {
            Some(state) if self.is_open(conn) => {
                let at = LaneId::new(conn.slot(), Lane::Write);
                state.queued_bytes + self.backend.unwritten(at)
            }
            _ => 0,
        }
    }

    /// Whether a write of this length would exceed the limit of queued bytes. The first write may, so
    /// that a long message can be sent at all.
    #[inline(always)]
    pub(crate) fn is_over_write_limit(&self, conn: Conn, len: usize) -> bool {
        self.write_limit != usize::MAX && self.would_exceed_write_limit(conn, len)
    }

    #[cold]
    fn would_exceed_write_limit(&self, conn: Conn, len: usize) -> bool {
        let queued = self.queued_bytes(conn);
        queued > 0 && len > self.write_limit.saturating_sub(queued)
    }

    /// Starts a write that has requests behind it. The writes directly behind it go out with it, up to
    /// [`WRITES_MAX`] in all.
    pub(super) fn start_writes(&mut self, at: LaneId) {
        let (first, done) = self.backend.op_table().take_buffer(at);
        let gathered = &mut self.gathered;
        gathered.clear();
        gathered.push(first);
        self.conns.walk(at, |_, queued| {
            queued.in_flight =
                queued.pending.kind == RequestKind::Write && gathered.len() < WRITES_MAX;
            if queued.in_flight {
                gathered.push(std::mem::take(&mut queued.data).into_buffer());
            }
            queued.in_flight
        });
        let count = gathered.len();
        if count == 1 {
            let first = self.gathered.pop().unwrap_or_default();
            self.backend.op_table().put_buffer(at, first, done);
            return self.start(at, Request::Write, 1);
        }
        self.backend
            .op_table()
            .put_many(at, &mut self.gathered, done);
        self.start(at, Request::WriteMany, count as u16);
    }

    /// Starts the write of the next block of a file.
    #[cold]
    pub(super) fn start_file(&mut self, at: LaneId) {
        if self.backend.op_table().advance(at, 0) {
            return self.finish(Key::first(at), None);
        }
        match self.backend.op_table().prepare_file(at) {
            Ok(true) => self.start(at, Request::WriteMany, 1),
            Ok(false) => {
                let error = ErrorContext::SendFile.error(ErrorKind::UnexpectedEof);
                self.finish(Key::first(at), Some(error));
            }
            Err(errno) => self.finish_failed(at, errno),
        }
    }

    /// A vectored write of `count` requests has ended. The requests that are whole end, and so do those
    /// that were cancelled.
    pub(super) fn complete_writes(&mut self, at: LaneId, count: u16, result: Result<usize, Errno>) {
        self.spread(at, result.unwrap_or(0));
        for _ in 0..count {
            if !self.backend.op_table().advance(at, 0) {
                break;
            }
            self.finish(Key::first(at), None);
        }
        if let Err(errno) = result {
            // The error belongs to the first unfinished write. Those behind it may succeed when they
            // start again.
            self.finish_failed(at, errno);
        }
        self.end_marked(at, count);
        self.mark_dirty(at);
    }

    /// Gives the buffers of a vectored write back to their requests, and spreads the bytes written over
    /// them.
    pub(super) fn spread(&mut self, at: LaneId, size: usize) {
        let mut buffers = std::mem::take(&mut self.gathered);
        let mut left = size + self.backend.op_table().take_many(at, &mut buffers);
        let mut rest = buffers.drain(..).map(|buffer| {
            let done = left.min(buffer.len());
            left -= done;
            (buffer, done)
        });
        if let Some((buffer, done)) = rest.next() {
            self.backend.op_table().put_buffer(at, buffer, done);
        }
        self.conns.walk(at, |_, queued| {
            let was_in_flight = std::mem::take(&mut queued.in_flight);
            if was_in_flight && let Some((buffer, done)) = rest.next() {
                queued.data = OpData::Buffer(buffer);
                queued.done = done;
            }
            was_in_flight
        });
        drop(rest);
        debug_assert_eq!(left, 0, "more bytes written than handed in");
        self.gathered = buffers;
    }

    /// Ends the requests of a lane that are marked to end. They are among the `count` that ran, or
    /// follow one of those directly: any other ended at once when it was cancelled or ran out of time.
    /// So the cost does not depend on the length of the queue.
    fn end_marked(&mut self, at: LaneId, count: u16) {
        while let Some(first) = self.first(at)
            && let Some(why) = first.end
        {
            let error = first.kind.error_context().error(why);
            self.finish(Key::first(at), Some(error));
        }
        let mut marked = Vec::new();
        let mut ran = count;
        self.conns.walk(at, |key, queued| {
            let end = queued.pending.end;
            marked.extend(end.map(|why| (key, queued.pending.kind.error_context().error(why))));
            let may_go_on = ran > 0 || end.is_some();
            ran = ran.saturating_sub(1);
            may_go_on
        });
        for (key, error) in marked {
            self.finish(key, Some(error));
        }
    }
}
