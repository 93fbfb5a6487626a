//! What a completion means: a result, a further attempt, or a wait for something.

use std::num::NonZeroI32;
use std::os::fd::OwnedFd;

use gaio_backends::{
    Backend, Buffer, Completion, Errno, Error, ErrorKind, Lane, Load, Payload, SocketKind,
};

use super::Engine;
use crate::conn::Conn;
use crate::conn_table::Phase;
use crate::request::{Pending, What};
use crate::results::OpResult;

impl<C> Engine<C> {
    /// Takes one completion.
    #[inline]
    pub(crate) fn complete<B: Backend>(&mut self, backend: &mut B, completion: Completion) {
        let Completion { key, more, result } = completion;
        let result = result.map(|len| len as usize);
        self.counts.completions += 1;
        let Some(pending) = self.requests.get_mut(key) else {
            return;
        };
        let (slot, what) = (pending.slot, pending.what);
        let Some(state) = self.conns.get_mut(slot) else {
            return;
        };
        let closing = state.phase == Phase::Closing;
        let queue = state.lane_mut(pending.lane);
        let count = queue.in_flight;
        if !more {
            queue.in_flight = 0;
            pending.in_flight = false;
        }
        if closing {
            let size = result.unwrap_or(0);
            self.keep(backend, key, count, size);
            return self.close_out_when_still(backend, slot);
        }
        match what {
            What::ReadSwap => self.received(backend, slot, key, result),
            What::Write if count == 1 => match result {
                Ok(size) if backend.loads().advance(key, size) => self.written(backend, key),
                Ok(_) => self.go_on(backend, key),
                Err(errno) => self.fail(backend, key, errno),
            },
            What::Write => self.wrote_batch(backend, slot, key, count, result),
            What::ReadStream => self.stream_step(backend, slot, key, more, result),
            What::Read | What::ReadFull if result == Ok(0) => self.ended(backend, slot, key),
            What::ReadFull => self.wrote(backend, key, result),
            What::Accept | What::AcceptOne => match backend.payload() {
                Payload::Socket(socket) => self.accepted(backend, slot, key, more, socket),
                _ => self.accept_failed(backend, slot, key, result),
            },
            What::Connect => self.connected(backend, slot, key, result),
            _ => self.finish_with(backend, key, result),
        }
    }

    #[inline]
    fn received<B: Backend>(
        &mut self,
        backend: &mut B,
        slot: u32,
        key: u32,
        result: Result<usize, Errno>,
    ) {
        match result {
            Ok(0) => self.ended(backend, slot, key),
            Ok(size) => {
                self.note_swap_read(size);
                self.conclude(key, None, || match backend.payload() {
                    Payload::Lease(lease) => (lease.into(), size),
                    _ => (Buffer::EMPTY, size),
                });
            }
            Err(errno) if errno.is_out_of_buffers() => self.starve(backend, slot, key),
            Err(errno) => self.fail(backend, key, errno),
        }
    }

    /// All of a write was written.
    #[inline]
    fn written<B: Backend>(&mut self, backend: &mut B, key: u32) {
        self.conclude(key, None, || backend.loads().take_buffer(key));
    }

    /// Finishes a request with what the kernel said, or tries again if that was nothing.
    #[inline]
    pub(super) fn finish_with(
        &mut self,
        backend: &mut dyn Backend,
        key: u32,
        result: Result<usize, Errno>,
    ) {
        match result {
            Ok(size) => {
                backend.loads().advance(key, size);
                self.finish(backend, key, None);
            }
            Err(errno) => self.fail(backend, key, errno),
        }
    }

    /// Ends a request for the reason it was cancelled for, else with the system's error. An
    /// interruption that nobody asked for means: again.
    #[cold]
    pub(super) fn fail(&mut self, backend: &mut dyn Backend, key: u32, errno: Errno) {
        let Some(pending) = self.requests.get(key) else {
            return;
        };
        let (what, end, slot) = (pending.what, pending.end, pending.slot);
        let doing = what.doing();
        match end {
            Some(kind) if errno.is_interruption() => {
                self.finish(backend, key, Some(Error::new(doing, kind)));
            }
            None if errno.is_interruption() => self.again(key),
            _ => {
                if errno.is_lost_peer() || what == What::Connect {
                    self.note_lost(slot, errno);
                }
                self.finish(backend, key, Some(Error::os(doing, errno)));
            }
        }
    }

    /// The system tells only once why a connection is lost; reads that come later want to know, too.
    fn note_lost(&mut self, slot: u32, errno: Errno) {
        if let Some(state) = self.conns.get_mut(slot) {
            state.lost = state.lost.or(NonZeroI32::new(errno.0));
        }
    }

    /// The request stays first in its lane and is started again.
    pub(super) fn again(&mut self, key: u32) {
        if let Some(pending) = self.requests.get(key) {
            let (slot, lane) = (pending.slot, pending.lane);
            self.mark_dirty(slot, lane);
        }
    }

    /// A request that made progress but is not done: ends if it is to end, else goes on.
    fn go_on(&mut self, backend: &mut dyn Backend, key: u32) {
        let Some(pending) = self.requests.get(key) else {
            return;
        };
        match pending.end {
            Some(kind) => {
                let error = Error::new(pending.what.doing(), kind);
                self.finish(backend, key, Some(error));
            }
            None => self.again(key),
        }
    }

    /// A read finds no more: the end, unless an error has told that the connection is lost.
    #[cold]
    fn ended(&mut self, backend: &mut dyn Backend, slot: u32, key: u32) {
        let lost = self.conns.get(slot).and_then(|state| state.lost);
        if let Some(errno) = lost {
            return self.fail(backend, key, Errno(errno.get()));
        }
        let full = |pending: &Pending<C>| pending.what == What::ReadFull;
        let unfilled = self.requests.get(key).is_some_and(full);
        let error = unfilled.then(|| Error::new(What::ReadFull.doing(), ErrorKind::UnexpectedEof));
        self.finish(backend, key, error);
    }

    /// A transfer that goes on until all is done.
    fn wrote(&mut self, backend: &mut dyn Backend, key: u32, result: Result<usize, Errno>) {
        match result {
            Ok(size) if backend.loads().advance(key, size) => self.finish(backend, key, None),
            Ok(_) => self.go_on(backend, key),
            Err(errno) => self.fail(backend, key, errno),
        }
    }

    /// Ends those requests of a batch that are whole, or are to end.
    fn wrote_batch(
        &mut self,
        backend: &mut dyn Backend,
        slot: u32,
        first: u32,
        count: u16,
        result: Result<usize, Errno>,
    ) {
        let left = self.spread(backend, first, count, result.unwrap_or(0));
        debug_assert_eq!(left, 0, "more bytes written than handed in");
        let mut key = first;
        for place in 0..count {
            let Some(pending) = self.requests.get(key) else {
                break;
            };
            let next = pending.next;
            let whole = backend.loads().left(key) == 0;
            match (whole, pending.end, result) {
                (true, ..) => self.finish(backend, key, None),
                // The system's error is the first unfinished write's; the others meet it, or not,
                // when their turn comes.
                (false, _, Err(errno)) if place == 0 => self.fail(backend, key, errno),
                (false, Some(kind), _) => {
                    let error = Error::new(pending.what.doing(), kind);
                    self.finish(backend, key, Some(error));
                }
                _ => {}
            }
            key = next;
        }
        self.mark_dirty(slot, Lane::Write);
    }

    /// Spreads `size` written bytes over the requests of a batch; returns what is left.
    fn spread(
        &mut self,
        backend: &mut dyn Backend,
        first: u32,
        count: u16,
        mut size: usize,
    ) -> usize {
        let mut key = first;
        for _ in 0..count {
            let Some(pending) = self.requests.get_mut(key) else {
                break;
            };
            pending.in_flight = false;
            let part = size.min(backend.loads().left(key));
            backend.loads().advance(key, part);
            size -= part;
            key = pending.next;
        }
        size
    }

    /// Keeps what a completion of a freed connection brings for the results, which are all
    /// emitted when nothing runs any more.
    #[cold]
    fn keep(&mut self, backend: &mut dyn Backend, key: u32, count: u16, size: usize) {
        let payload = backend.payload();
        let what = self.requests.get(key).map(|pending| pending.what);
        match (what, payload) {
            (Some(What::ReadSwap), Payload::Lease(lease)) => {
                backend.loads().put(key, Load::Buffer(lease.into()));
                backend.loads().advance(key, size);
            }
            (Some(What::Write), _) if count > 1 => {
                self.spread(backend, key, count, size);
            }
            // Bytes of a stream that nobody wants, or a connection: closed when dropped.
            (Some(What::ReadStream | What::Accept | What::AcceptOne), _) | (None, _) => {}
            (Some(_), _) => {
                backend.loads().advance(key, size);
            }
        }
    }

    pub(super) fn connected(
        &mut self,
        backend: &mut dyn Backend,
        slot: u32,
        key: u32,
        result: Result<usize, Errno>,
    ) {
        let ended = self
            .requests
            .get(key)
            .is_some_and(|pending| pending.end.is_some());
        let interrupted = result.is_err_and(Errno::is_interruption);
        if interrupted && !ended {
            return if result.is_err_and(Errno::would_block) {
                self.wait_for_backlog(backend, slot)
            } else {
                self.again(key)
            };
        }
        if let Some(state) = self.conns.get_mut(slot) {
            state.connecting = false;
        }
        let before = self.out.len();
        self.finish_with(backend, key, result);
        let error = self.out.get(before).and_then(|result| result.error);
        match error {
            None => Lane::BOTH.map(|lane| self.mark_dirty(slot, lane)),
            // What waited for the connection ends as it did; the handle is the program's.
            Some(error) => Lane::BOTH.map(|lane| self.fail_lane(backend, slot, lane, error)),
        };
    }

    fn accepted(
        &mut self,
        backend: &mut dyn Backend,
        slot: u32,
        key: u32,
        more: bool,
        socket: OwnedFd,
    ) {
        if let Some(state) = self.conns.get_mut(slot) {
            state.out_of_descriptors = false;
        }
        let adopted = self.adopt(backend, socket, SocketKind::Stream);
        let (accepted, error) = match adopted {
            Ok(conn) => (conn, None),
            Err((errno, _)) => (Conn::NONE, Some(errno)),
        };
        let Some(pending) = self.requests.get(key) else {
            return;
        };
        let error = error.map(|errno| Error::os(pending.what.doing(), errno));
        if pending.what == What::AcceptOne {
            self.finish(backend, key, error);
            if let Some(result) = self.out.last_mut() {
                result.accepted = accepted;
            }
            return;
        }
        self.emit_step(key, error, accepted, Payload::None, 0);
        if !more {
            self.go_on(backend, key);
        }
    }

    fn accept_failed(
        &mut self,
        backend: &mut dyn Backend,
        slot: u32,
        key: u32,
        result: Result<usize, Errno>,
    ) {
        let Some(pending) = self.requests.get(key) else {
            return;
        };
        let Err(errno) = result else {
            return self.go_on(backend, key);
        };
        if errno.is_lost_connection() {
            return self.go_on(backend, key);
        }
        if pending.what == What::AcceptOne || pending.end.is_some() || !errno.is_shortage() {
            return self.fail(backend, key, errno);
        }
        let error = Error::os(pending.what.doing(), errno);
        let told = self
            .conns
            .get_mut(slot)
            .is_some_and(|state| std::mem::replace(&mut state.out_of_descriptors, true));
        if !told {
            self.emit_step(key, Some(error), Conn::NONE, Payload::None, 0);
        }
        self.wait_for_descriptor(backend, slot);
    }

    fn stream_step(
        &mut self,
        backend: &mut dyn Backend,
        slot: u32,
        key: u32,
        more: bool,
        result: Result<usize, Errno>,
    ) {
        match result {
            Ok(0) => self.ended(backend, slot, key),
            Ok(size) => {
                self.emit_step(key, None, Conn::NONE, backend.payload(), size);
                if more {
                    self.pause_if_over_window(backend, slot, key);
                } else {
                    self.resume_or_park(backend, slot, key);
                }
            }
            Err(errno)
                if errno.is_out_of_buffers() && !self.is_over_window(backend.loads(), key) =>
            {
                self.starve(backend, slot, key);
            }
            Err(errno) if errno.is_out_of_buffers() || errno.is_interruption() => {
                self.resume_or_park(backend, slot, key)
            }
            Err(errno) => self.fail(backend, key, errno),
        }
    }

    /// A result of a stream that goes on.
    fn emit_step(
        &mut self,
        key: u32,
        error: Option<Error>,
        accepted: Conn,
        payload: Payload,
        size: usize,
    ) {
        let Some(pending) = self.requests.get(key) else {
            return;
        };
        let Some(clone) = self.clone_context else {
            return;
        };
        let (Some(state), Some(context)) = (self.conns.get(pending.slot), &pending.context) else {
            return;
        };
        let buffer = match payload {
            Payload::Lease(lease) => lease.into(),
            _ => Buffer::EMPTY,
        };
        let result = OpResult {
            operation: pending.what.operation(),
            op: pending.op,
            conn: state.conn,
            context: clone(context),
            buffer,
            size,
            error,
            accepted,
            last: false,
        };
        self.out.push(result);
    }
}
