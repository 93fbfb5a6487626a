//! What a completion means: a result, a further attempt, or a wait for something.

use gaio_backends::{Completion, Errno, Error, ErrorKind, Lane, Payload, Selected, SocketKind};
use std::os::fd::OwnedFd;

use super::Engine;
use crate::conn::Conn;
use crate::conn_table::Phase;
use crate::request::{Held, What};
use crate::results::OpResult;

/// Empty batches that are kept for later; more than are in use at a time in most programs.
const BATCHES_KEPT: usize = 64;

impl<C> Engine<C> {
    /// Takes one completion.
    #[inline]
    pub(crate) fn complete(&mut self, backend: &mut Selected, completion: Completion) {
        let (slot, lane, more) = (completion.slot, completion.lane, completion.more);
        self.counts.completions += 1;
        let Some(state) = self.conns.get_mut(slot) else {
            return;
        };
        let closing = state.phase == Phase::Closing;
        let queue = state.lane_mut(lane);
        let head = queue.head;
        let batch = queue.in_flight;
        if !more {
            queue.in_flight = 0;
        }
        let Some(first) = self.requests.get_mut(head) else {
            return;
        };
        if !more {
            first.in_flight = false;
        }
        let what = first.what;
        if closing {
            return self.complete_closing(backend, completion, batch);
        }
        let Completion {
            result, payload, ..
        } = completion;
        match (what, payload) {
            (What::Write, Payload::Batch(buffers)) => {
                self.wrote_batch(slot, head, batch, buffers, result);
            }
            (What::Write, payload) => self.wrote(head, result, payload),
            (What::ReadStream, payload) => {
                self.stream_step(backend, slot, head, more, result, payload);
            }
            (What::ReadFull, payload) => self.filled(head, result, payload),
            (What::ReadSwap | What::Read, payload) => {
                if let Payload::Buffer(buffer) = payload {
                    first.held = Held::Buffer(buffer);
                }
                match result {
                    Err(errno) if what == What::ReadSwap && errno.is_out_of_buffers() => {
                        return self.starve(slot, head);
                    }
                    Ok(size) => self.note_swap_read(size),
                    Err(_) => {}
                }
                self.finish_with(head, result);
            }
            (What::Accept | What::AcceptOne, Payload::Socket(socket)) => {
                self.accepted(backend, slot, head, more, socket);
            }
            (What::Accept | What::AcceptOne, _) => self.accept_failed(slot, head, result),
            (What::Connect, _) => self.connected(slot, head, result),
            _ => self.finish_with(head, result),
        }
    }

    /// Finishes a request with what the kernel said, or tries again if that was nothing.
    #[inline]
    pub(super) fn finish_with(&mut self, index: u32, result: Result<usize, Errno>) {
        let Some(pending) = self.requests.get_mut(index) else {
            return;
        };
        match result {
            Ok(size) => {
                pending.done += size;
                self.finish(index, None);
            }
            Err(errno) => self.fail(index, errno),
        }
    }

    /// Ends a request for the reason it was cancelled for, else with the system's error. An
    /// interruption that nobody asked for means: again.
    pub(super) fn fail(&mut self, index: u32, errno: Errno) {
        let Some(pending) = self.requests.get(index) else {
            return;
        };
        let doing = pending.what.doing();
        let interrupted = errno.is_interruption();
        match pending.end {
            Some(kind) if interrupted => self.finish(index, Some(Error::new(doing, kind))),
            None if interrupted => self.again(index),
            _ => self.finish(index, Some(Error::os(doing, errno))),
        }
    }

    /// The request stays first in its lane and is started again.
    pub(super) fn again(&mut self, index: u32) {
        if let Some(pending) = self.requests.get(index) {
            let (slot, lane) = (pending.slot, super::lane_of(pending.what));
            self.mark_dirty(slot, lane);
        }
    }

    /// A request that made progress but is not done: ends if it is to end, else goes on.
    fn go_on(&mut self, index: u32) {
        let Some(pending) = self.requests.get(index) else {
            return;
        };
        match pending.end {
            Some(kind) => {
                let error = Error::new(pending.what.doing(), kind);
                self.finish(index, Some(error));
            }
            None => self.again(index),
        }
    }

    fn filled(&mut self, index: u32, result: Result<usize, Errno>, payload: Payload) {
        let Some(pending) = self.requests.get_mut(index) else {
            return;
        };
        let mut wanted = 0;
        if let Payload::Buffer(mut buffer) = payload {
            pending.done += result.unwrap_or(0);
            wanted = buffer.room();
            buffer.set_filled(pending.done);
            pending.held = Held::Buffer(buffer);
        }
        let done = pending.done;
        match result {
            Ok(0) => {
                let error = Error::new(pending.what.doing(), ErrorKind::UnexpectedEof);
                self.finish(index, Some(error));
            }
            Ok(_) if done >= wanted => self.finish(index, None),
            Ok(_) => self.go_on(index),
            Err(errno) => self.fail(index, errno),
        }
    }

    fn wrote(&mut self, index: u32, result: Result<usize, Errno>, payload: Payload) {
        let Some(pending) = self.requests.get_mut(index) else {
            return;
        };
        let Payload::Buffer(buffer) = payload else {
            return self.finish_with(index, result);
        };
        let len = buffer.len();
        pending.held = Held::Buffer(buffer);
        match result {
            Ok(size) => {
                pending.done += size;
                if pending.done >= len {
                    self.finish(index, None);
                } else {
                    self.go_on(index);
                }
            }
            Err(errno) => self.fail(index, errno),
        }
    }

    /// Gives the written bytes to the requests of a batch, in order.
    fn wrote_batch(
        &mut self,
        slot: u32,
        head: u32,
        count: u16,
        mut batch: Box<gaio_backends::Batch>,
        result: Result<usize, Errno>,
    ) {
        let left = self.restore_batch(head, count, &mut batch, result.unwrap_or(0));
        debug_assert_eq!(left, 0, "more bytes written than handed in");
        self.keep_batch(batch);
        let mut index = head;
        for place in 0..count {
            let Some(pending) = self.requests.get(index) else {
                break;
            };
            let next = pending.next;
            let whole = matches!(&pending.held, Held::Buffer(b) if pending.done >= b.len());
            match (whole, pending.end, result) {
                (true, ..) => self.finish(index, None),
                (false, Some(kind), _) => {
                    let error = Error::new(pending.what.doing(), kind);
                    self.finish(index, Some(error));
                }
                // The system's error is the first unfinished write's; the others meet it, or not,
                // when their turn comes.
                (false, None, Err(errno)) if place == 0 => self.fail(index, errno),
                _ => {}
            }
            index = next;
        }
        self.mark_dirty(slot, Lane::Write);
    }

    fn keep_batch(&mut self, batch: Box<gaio_backends::Batch>) {
        if self.batches.len() < BATCHES_KEPT {
            self.batches.push(batch);
        }
    }

    /// Takes a completion of a connection that was freed: what comes back is kept for the
    /// results, which are all emitted when nothing runs any more.
    #[cold]
    fn complete_closing(&mut self, backend: &mut Selected, completion: Completion, count: u16) {
        let Completion {
            slot,
            lane,
            more,
            result,
            payload,
        } = completion;
        let Some(state) = self.conns.get(slot) else {
            return;
        };
        let (head, still) = (state.lane(lane).head, state.is_still());
        let size = result.unwrap_or(0);
        match (payload, self.requests.get_mut(head)) {
            (Payload::Batch(mut batch), _) => {
                self.restore_batch(head, count, &mut batch, size);
                self.keep_batch(batch);
            }
            (Payload::Buffer(mut buffer), Some(pending)) if pending.what != What::ReadStream => {
                pending.done += size;
                if pending.what == What::ReadFull {
                    buffer.set_filled(pending.done);
                }
                pending.held = Held::Buffer(buffer);
            }
            // Bytes of a stream that nobody wants, or a connection: closed when dropped.
            _ => {}
        }
        if !more && still {
            self.close_out(backend, slot);
        }
    }

    /// Puts the buffers of a batch back and spreads `size` bytes over them; returns what is left.
    fn restore_batch(
        &mut self,
        head: u32,
        count: u16,
        batch: &mut gaio_backends::Batch,
        mut size: usize,
    ) -> usize {
        let mut index = head;
        let mut buffers = batch.drain();
        for _ in 0..count {
            let (Some(pending), Some(buffer)) = (self.requests.get_mut(index), buffers.next())
            else {
                break;
            };
            let part = size.min(buffer.len() - pending.done);
            size -= part;
            pending.done += part;
            pending.in_flight = false;
            pending.held = Held::Buffer(buffer);
            index = pending.next;
        }
        size
    }

    pub(super) fn connected(&mut self, slot: u32, index: u32, result: Result<usize, Errno>) {
        let ended = self
            .requests
            .get(index)
            .is_some_and(|pending| pending.end.is_some());
        let interrupted = result.is_err_and(Errno::is_interruption);
        if interrupted && !ended {
            return if result.is_err_and(Errno::would_block) {
                self.wait_for_backlog(slot)
            } else {
                self.again(index)
            };
        }
        if let Some(state) = self.conns.get_mut(slot) {
            state.connecting = false;
        }
        let before = self.out.len();
        self.finish_with(index, result);
        let error = self.out.get(before).and_then(|result| result.error);
        match error {
            None => Lane::BOTH.map(|lane| self.mark_dirty(slot, lane)),
            // What waited for the connection ends as it did; the handle is the program's.
            Some(error) => Lane::BOTH.map(|lane| self.fail_lane(slot, lane, error)),
        };
    }

    fn accepted(
        &mut self,
        backend: &mut Selected,
        slot: u32,
        index: u32,
        more: bool,
        socket: OwnedFd,
    ) {
        if let Some(state) = self.conns.get_mut(slot) {
            state.out_of_descriptors = false;
        }
        let adopted = self.adopt(backend, socket, SocketKind::Stream);
        let (accepted, error) = match adopted {
            Ok(conn) => (Some(conn), None),
            Err((errno, _)) => (None, Some(errno)),
        };
        let Some(pending) = self.requests.get(index) else {
            return;
        };
        let error = error.map(|errno| Error::os(pending.what.doing(), errno));
        if pending.what == What::AcceptOne {
            self.finish(index, error);
            if let Some(result) = self.out.back_mut() {
                result.accepted = accepted;
            }
            return;
        }
        self.emit_step(index, error, accepted, Payload::None, 0);
        if !more {
            self.go_on(index);
        }
    }

    fn accept_failed(&mut self, slot: u32, index: u32, result: Result<usize, Errno>) {
        let Some(pending) = self.requests.get(index) else {
            return;
        };
        let Err(errno) = result else {
            return self.go_on(index);
        };
        if errno.is_lost_connection() {
            return self.go_on(index);
        }
        if pending.what == What::AcceptOne || pending.end.is_some() || !errno.is_shortage() {
            return self.fail(index, errno);
        }
        let error = Error::os(pending.what.doing(), errno);
        let told = self
            .conns
            .get_mut(slot)
            .is_some_and(|state| std::mem::replace(&mut state.out_of_descriptors, true));
        if !told {
            self.emit_step(index, Some(error), None, Payload::None, 0);
        }
        self.wait_for_descriptor(slot);
    }

    fn stream_step(
        &mut self,
        backend: &mut Selected,
        slot: u32,
        index: u32,
        more: bool,
        result: Result<usize, Errno>,
        payload: Payload,
    ) {
        match result {
            Ok(0) => self.finish(index, None),
            Ok(size) => {
                self.emit_step(index, None, None, payload, size);
                if more {
                    self.pause_if_over_window(backend, slot, index);
                } else {
                    self.resume_or_park(slot, index);
                }
            }
            Err(errno) if errno.is_out_of_buffers() && !self.is_over_window(index) => {
                self.starve(slot, index);
            }
            Err(errno) if errno.is_out_of_buffers() || errno.is_interruption() => {
                self.resume_or_park(slot, index)
            }
            Err(errno) => self.fail(index, errno),
        }
    }

    /// A result of a stream that goes on.
    fn emit_step(
        &mut self,
        index: u32,
        error: Option<Error>,
        accepted: Option<Conn>,
        payload: Payload,
        size: usize,
    ) {
        let Some(pending) = self.requests.get(index) else {
            return;
        };
        let Some(clone) = self.clone_context else {
            return;
        };
        let Some(state) = self.conns.get(pending.slot) else {
            return;
        };
        let buffer = match payload {
            Payload::Buffer(buffer) => buffer,
            _ => Default::default(),
        };
        let result = OpResult {
            operation: pending.what.operation(),
            op: pending.op,
            conn: self.ids.conn(pending.slot, state.generation),
            context: clone(&pending.context),
            buffer,
            size,
            error,
            accepted,
            last: false,
        };
        self.emit(result);
    }
}
