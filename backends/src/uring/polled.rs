//! Transfers by plain system calls, after the ring has reported that the descriptor is ready: reads
//! and writes of descriptors that are not sockets (pipes, terminals, an `eventfd`), and writes to a
//! socket that was full. The ring's own reads of such files would start kernel threads, fail with
//! `EAGAIN`, or raise `SIGPIPE`. Its waiting sends would start kernel threads, too.

use super::Uring;
use super::in_flight::RingOp;
use crate::error::Errno;
use crate::swap::OpenBlock;
use crate::sys;
use crate::{Completion, Lane, LaneId, Request, SwapBuf};

/// The block that swap reads of such descriptors fill. It comes from the same pool as the blocks
/// that are lent to the ring for sockets.
#[derive(Debug, Default)]
pub(super) struct Polled {
    open_block: Option<OpenBlock>,
}

/// The bytes that a plain call moved.
pub(super) enum Moved {
    /// This many bytes, from or to the lane's buffers. For a read, 0 is the end.
    Bytes(usize),
    /// A lease of bytes that were read into a block.
    Leased(SwapBuf),
}

impl Uring {
    #[cold]
    pub(super) fn start_polled(&mut self, at: LaneId, request: Request) -> Option<Completion> {
        let op = match request {
            Request::ReadSwap => RingOp::PolledSwap,
            Request::ReadStream | Request::ReadStep => RingOp::PolledStream,
            Request::ReadPrivate => RingOp::PolledPrivate,
            Request::Read | Request::Write | Request::WriteMany => RingOp::PolledTransfer,
            Request::Ready(_) | Request::Accept | Request::AcceptStream | Request::Connect => {
                let refused = Err(Errno(libc::ENOTSOCK));
                return Some(Completion::last(at, refused));
            }
        };
        if self.in_flight.begin(at, op) {
            self.op_table.begin(at);
            self.poll(at);
        }
        None
    }

    /// Transfers after a poll has reported readiness or failed.
    #[cold]
    pub(super) fn ready_polled(
        &mut self,
        at: LaneId,
        op: RingOp,
        polled: Result<u32, Errno>,
    ) -> Option<Completion> {
        let cancelled = self.in_flight.get(at.slot())?.is_cancelled(at.lane());
        let mut result = polled.and_then(|_| self.transfer(at, op));
        // Not ready after all: wait again, except in a private read, which never waits.
        if result.as_ref().err() == Some(&Errno(libc::EAGAIN)) && op != RingOp::PolledPrivate {
            if cancelled {
                result = Err(Errno(libc::ECANCELED));
            } else if let Err(errno) = self.poll_exactly(at) {
                result = Err(errno);
            } else {
                return None;
            }
        }
        self.stop_waiting(at);
        self.end(at);
        // The watcher starts a stream again, as after any success.
        Some(match result {
            Ok(Moved::Leased(lease)) => Completion::leased(at, false, lease),
            // One call transfers less than 2 GiB.
            Ok(Moved::Bytes(len)) => Completion::last(at, Ok(len as u32)),
            Err(errno) => Completion::last(at, Err(errno)),
        })
    }

    fn transfer(&mut self, at: LaneId, op: RingOp) -> Result<Moved, Errno> {
        match (op, at.lane()) {
            (RingOp::PolledTransfer, Lane::Read) => {
                let socket = self.in_flight.get_mut(at.slot());
                let socket = socket.ok_or(Errno(libc::EBADF))?;
                self.counts.reads += 1;
                let mut calls = socket.no_wait.calls(socket.fd, &mut self.counts);
                calls.read_into(self.op_table.unread(at)).map(Moved::Bytes)
            }
            (RingOp::PolledTransfer, Lane::Write) => self.write(at).map(Moved::Bytes),
            (RingOp::PolledPrivate, _) => {
                self.counts.reads += 1;
                self.read_private(at)
            }
            _ => self.read_swap(at, op),
        }
    }

    fn write(&mut self, at: LaneId) -> Result<usize, Errno> {
        let socket = self.in_flight.get_mut(at.slot());
        let socket = socket.ok_or(Errno(libc::EBADF))?;
        self.counts.writes += 1;
        let written = if socket.is_other {
            let mut calls = socket.no_wait.calls(socket.fd, &mut self.counts);
            match self.op_table.batch(at) {
                Some(batch) => batch.write(calls),
                None => calls.write(self.op_table.unwritten(at)),
            }
        } else {
            match self.op_table.batch(at) {
                Some(batch) => batch.send(socket.fd),
                None => sys::send(socket.fd, self.op_table.unwritten(at)),
            }
        };
        self.note_written(at, written.map(|len| len as u32));
        written
    }

    /// Learns from a write whether the next one will fit.
    #[inline]
    pub(super) fn note_written(&mut self, at: LaneId, written: Result<u32, Errno>) {
        let is_full = match written {
            Ok(len) => (len as usize) < self.op_table.offered_len(at).min(sys::TRANSFER_MAX),
            Err(errno) => errno.would_block(),
        };
        if let Some(socket) = self.in_flight.get_mut(at.slot()) {
            socket.is_full = is_full;
        }
    }

    fn read_swap(&mut self, at: LaneId, op: RingOp) -> Result<Moved, Errno> {
        self.counts.reads += 1;
        let socket = self.in_flight.get_mut(at.slot());
        let socket = socket.ok_or(Errno(libc::EBADF))?;
        let polled = &mut self.polled;
        if polled.open_block.as_ref().is_none_or(is_nearly_full) {
            polled.open_block = None;
            polled.open_block = self.pool.checkout();
        }
        let open_block = polled.open_block.as_mut().ok_or(Errno(libc::ENOBUFS))?;
        let (tail, room) = open_block.tail();
        let mut calls = socket.no_wait.calls(socket.fd, &mut self.counts);
        // SAFETY: the tail is valid for writes of `room` bytes.
        let len = unsafe { calls.read(tail, room) }?;
        if len == 0 {
            return Ok(Moved::Bytes(0));
        }
        let charged = self.op_table.credit(at.slot());
        let charged = charged.filter(|_| op == RingOp::PolledStream);
        // SAFETY: `read(2)` wrote these bytes, and later reads go behind them.
        Ok(Moved::Leased(unsafe { open_block.lease(len, charged) }))
    }
}

fn is_nearly_full(open_block: &OpenBlock) -> bool {
    open_block.left() < open_block.size() / 16
}
