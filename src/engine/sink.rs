//! Completions as a backend hands them out. Swap reads, steps of streams and whole writes are nearly
//! all there is, and nearly always alone in their lane: they are finished here, in the fewest steps.
//! For all else there is `complete`.

use gaio_backends::{Backend, Buffer, Completion, Lane, Payload, Place, Sink, SwapBuf};

use super::Engine;
use crate::conn::Conn;
use crate::conn_table::Phase;
use crate::request::{Key, OpId, Operation, What};
use crate::results::OpResult;

impl<C, B: Backend> Sink<B> for Engine<C> {
    #[inline(always)]
    fn received(&mut self, backend: &mut B, at: Place, lease: SwapBuf) {
        self.counts.completions += 1;
        let Some(state) = self.conns.get_mut(at.slot()) else {
            return;
        };
        let (conn, closing) = (state.conn, state.phase == Phase::Closing);
        let lane = state.lane_mut(Lane::Read);
        match lane
            .first
            .take_if(|first| first.what == What::ReadSwap && !closing)
        {
            Some(first) => {
                lane.in_flight = 0;
                lane.misses = 0;
                let has_more = lane.has_more();
                let size = lease.len();
                self.note_swap_read(size);
                self.tidy_up(backend, at, has_more, first.op, first.has_deadline);
                let (op, context) = (first.op, first.context);
                self.out.push_with(move || {
                    OpResult::last(Operation::Read, op, conn, context, lease.into(), size, None)
                });
            }
            None => {
                let last = Completion::last(at, Ok(lease.len() as u32));
                self.complete(backend, last, Payload::Lease(lease));
            }
        }
    }

    #[inline(always)]
    fn streamed(&mut self, backend: &mut B, at: Place, lease: SwapBuf) {
        self.counts.completions += 1;
        let size = lease.len();
        let leased_bytes = lease.stream_leased_bytes();
        let state = self.conns.get_mut(at.slot());
        if let Some(state) = state.filter(|state| state.phase == Phase::Open)
            && let (conn, lane) = (state.conn, state.lane_mut(Lane::Read))
            && let Some(first) = &lane.first
            && first.what == What::ReadStream
            && let Some(clone) = self.clone_context
        {
            let (op, context) = (first.op, clone(&first.context));
            lane.misses = 0;
            self.out.push_with(move || OpResult {
                operation: Operation::Read,
                op,
                conn,
                context,
                buffer: lease.into(),
                size,
                error: None,
                accepted: Conn::NONE,
                last: false,
            });
            if leased_bytes > self.window {
                self.pause(backend, at);
            }
        } else {
            let step = Completion {
                at,
                more: true,
                result: Ok(size as u32),
            };
            self.complete(backend, step, Payload::Lease(lease));
        }
    }

    #[inline(always)]
    fn wrote(&mut self, backend: &mut B, at: Place, buffer: Buffer, size: usize) {
        self.counts.completions += 1;
        self.finish_write(backend, at, buffer, size);
    }

    fn completed(&mut self, backend: &mut B, completion: Completion, payload: Payload) {
        self.counts.completions += 1;
        self.complete(backend, completion, payload);
    }
}

impl<C> Engine<C> {
    /// Ends a write that is whole.
    #[inline(always)]
    pub(super) fn finish_write<B: Backend>(
        &mut self,
        backend: &mut B,
        at: Place,
        buffer: Buffer,
        size: usize,
    ) {
        let Some(state) = self.conns.get_mut(at.slot()) else {
            return;
        };
        let (conn, closing) = (state.conn, state.phase == Phase::Closing);
        let lane = state.lane_mut(at.lane());
        match lane
            .first
            .take_if(|first| first.what == What::Write && !closing)
        {
            Some(first) => {
                lane.in_flight = 0;
                let has_more = lane.has_more();
                self.tidy_up(backend, at, has_more, first.op, first.has_deadline);
                let (op, context) = (first.op, first.context);
                self.out.push_with(move || {
                    OpResult::last(Operation::Write, op, conn, context, buffer, size, None)
                });
            }
            None => self.keep_write(backend, at, buffer, size),
        }
    }

    /// What else is to be done for a request that left the head of its lane: nothing, mostly.
    #[inline(always)]
    fn tidy_up<B: Backend>(
        &mut self,
        backend: &mut B,
        at: Place,
        has_more: bool,
        op: OpId,
        has_deadline: bool,
    ) {
        if has_more || has_deadline || self.by_op.is_used() {
            self.forget(Key::first(at), op, has_deadline, None);
            // If there is one.
            self.promote(backend.loads(), at);
        } else {
            self.counts.finished += 1;
        }
    }

    /// Keeps a write that is whole for the end of its connection, which was freed.
    #[cold]
    fn keep_write(&mut self, backend: &mut dyn Backend, at: Place, buffer: Buffer, size: usize) {
        // As if the last step had brought all of it, or as much as one step can.
        let len = u32::try_from(size).unwrap_or(u32::MAX);
        backend.loads().put_buffer(at, buffer, size - len as usize);
        self.complete(backend, Completion::last(at, Ok(len)), Payload::None);
    }
}
