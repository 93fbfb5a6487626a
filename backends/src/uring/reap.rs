//! From an entry of the completion queue to a completion, and to what it brought.

use std::os::fd::{FromRawFd, OwnedFd};

use io_uring::cqueue;

use super::in_flight::Op;
use super::{Uring, WAITED, WOKEN};
use crate::error::Errno;
use crate::swap::SwapBuf;
use crate::{Completion, Lane, Payload, Place, Sink};

impl Uring {
    /// Hands out what an entry of the completion queue means. False if it is no place's.
    #[inline(always)]
    pub(super) fn hand_out(&mut self, entry: cqueue::Entry, sink: &mut impl Sink<Self>) -> bool {
        let (number, result, flags) = (entry.user_data(), entry.result(), entry.flags());
        let at = Place::from_number(number as u32);
        let slot = at.slot();
        if let Some(socket) = self.in_flight.get_mut(slot)
            && result > 0
            && !socket.is_cancelled(at.lane())
        {
            let len = result as u32;
            match (at.lane(), socket.op(at.lane())) {
                (Lane::Read, Op::RecvSwap) => {
                    let at = Place::new(slot, Lane::Read);
                    socket.learn(len);
                    socket.end(Lane::Read);
                    match self.received(None, len, flags) {
                        Some(lease) => sink.received(self, at, lease),
                        // The kernel says that it filled a buffer that it does not have: no working
                        // one does.
                        None => hand_out_last(self, at, Err(Errno(libc::EIO)), sink),
                    }
                    return true;
                }
                (Lane::Read, Op::RecvStream) if cqueue::more(flags) => {
                    let at = Place::new(slot, Lane::Read);
                    match self.received(Some(at), len, flags) {
                        Some(lease) => sink.streamed(self, at, lease),
                        None => hand_out_last(self, at, Err(Errno(libc::EIO)), sink),
                    }
                    return true;
                }
                (Lane::Write, Op::Transfer) => {
                    let at = Place::new(slot, Lane::Write);
                    if let Some((buffer, size)) = self.loads.end_whole(at, len) {
                        socket.end(Lane::Write);
                        sink.wrote(self, at, buffer, size);
                        return true;
                    }
                }
                _ => {}
            }
        }
        self.hand_out_other(number, result, flags, sink)
    }

    #[inline(never)]
    fn hand_out_other(
        &mut self,
        number: u64,
        result: i32,
        flags: u32,
        sink: &mut impl Sink<Self>,
    ) -> bool {
        let completion = self.reap(number, result, flags);
        self.complete(completion, sink)
    }

    /// Hands out what comes of a lane that was woken. False if it waits on.
    #[cold]
    pub(super) fn hand_out_woken(&mut self, at: Place, sink: &mut impl Sink<Self>) -> bool {
        let completion = self.reap_woken(at);
        self.complete(completion, sink)
    }

    fn complete(&mut self, completion: Option<Completion>, sink: &mut impl Sink<Self>) -> bool {
        let payload = self.brought.take();
        let is_some = completion.is_some();
        if let Some(completion) = completion {
            sink.completed(self, completion, payload);
        }
        is_some
    }

    /// What an entry of the completion queue means, if it is one of a place's.
    pub(super) fn reap(&mut self, number: u64, result: i32, flags: u32) -> Option<Completion> {
        if number >= WAITED {
            self.wake_armed &= number != WOKEN;
            if number == WAITED {
                self.collect_misled();
            }
            return None;
        }
        let at = Place::from_number(number as u32);
        let op = self.in_flight.get(at.slot())?.op(at.lane());
        self.reap_place(at, op, result, flags)
    }

    fn reap_place(&mut self, at: Place, op: Op, result: i32, flags: u32) -> Option<Completion> {
        let result = match result {
            len @ 1.. => Ok(len as u32),
            0 => Ok(0),
            errno => Err(Errno(-errno)),
        };
        match op {
            op if op.is_polled() => return self.ready_polled(at, op, result),
            Op::Ready => return self.is_told_ready(at, result),
            Op::AcceptOnce | Op::PolledAccept if self.accepts_again(at, op, result) => return None,
            Op::Transfer if at.lane() == Lane::Write => self.note_written(at, result),
            _ => {}
        }
        let more = cqueue::more(flags);
        if !more {
            self.end(at);
        }
        let result = match (op, result) {
            (Op::Idle, _) => return None,
            (Op::RecvPrivate, _) => {
                self.brought = self.end_private(at, result);
                result
            }
            (Op::Transfer, _) | (_, Err(_)) => result,
            (Op::RecvSwap | Op::RecvStream, Ok(len)) => {
                if let (Op::RecvSwap, Some(socket)) = (op, self.in_flight.get_mut(at.slot())) {
                    socket.learn(len);
                }
                let stream = (op == Op::RecvStream).then_some(at);
                let lease = self.received(stream, len, flags);
                self.brought = lease.map_or(Payload::None, Payload::Lease);
                result
            }
            (Op::Accept | Op::AcceptOnce, Ok(fd)) => {
                // SAFETY: the kernel made this descriptor for us, and says so once.
                self.brought = Payload::Socket(unsafe { OwnedFd::from_raw_fd(fd as i32) });
                Ok(0)
            }
            (_, Ok(_)) => Ok(0),
        };
        Some(Completion { at, more, result })
    }

    /// A lane that was woken in the epoll instance tries again.
    #[cold]
    pub(super) fn reap_woken(&mut self, at: Place) -> Option<Completion> {
        if !self.misled.waits(at) {
            return None;
        }
        match self.in_flight.get(at.slot())?.op(at.lane()) {
            Op::Ready => self.is_told_ready(at, Ok(0)),
            op => self.ready_polled(at, op, Ok(0)),
        }
    }

    /// A lane that only waits to be ready is said to be so.
    fn is_told_ready(&mut self, at: Place, polled: Result<u32, Errno>) -> Option<Completion> {
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

    /// The lease of what a receive put into a lent buffer, charged to a stream's account.
    #[inline(always)]
    fn received(&mut self, stream: Option<Place>, len: u32, flags: u32) -> Option<SwapBuf> {
        let id = cqueue::buffer_select(flags)?;
        let credit = stream.and_then(|at| self.loads.credit(at.slot()));
        self.buffers.take(id, len as usize, flags, credit)
    }

    /// The operation has ended; what it used is the watcher's again.
    #[inline(always)]
    pub(super) fn end(&mut self, at: Place) {
        if let Some(socket) = self.in_flight.get_mut(at.slot()) {
            self.cancelling -= usize::from(socket.end(at.lane()));
        }
        self.loads.end(at);
    }
}

#[cold]
fn hand_out_last(
    uring: &mut Uring,
    at: Place,
    result: Result<u32, Errno>,
    sink: &mut impl Sink<Uring>,
) {
    sink.completed(uring, Completion::last(at, result), Payload::None);
}
