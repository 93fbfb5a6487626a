//! Transfers for which the ring only says when the descriptor is ready, and plain system calls move the
//! bytes: reads and writes of descriptors that are not sockets (pipes, terminals, an `eventfd`), and
//! writes to a socket that was full. The ring's own reads of such files would start kernel threads,
//! fail with `EAGAIN`, or raise `SIGPIPE`; its waiting sends would start kernel threads, too.

use super::Uring;
use super::in_flight::Op;
use crate::error::Errno;
use crate::swap::Filling;
use crate::sys;
use crate::{Completion, Lane, Payload, Place, Request};

/// The block that their swap reads fill. Of the pool that sockets use, too; but those read into
/// what was lent to the ring.
#[derive(Debug, Default)]
pub(super) struct Polled {
    filling: Option<Filling>,
}

impl Uring {
    #[cold]
    pub(super) fn start_polled(&mut self, at: Place, request: Request) {
        let op = match request {
            Request::ReadSwap => Op::PolledSwap,
            Request::ReadStream | Request::ReadStep => Op::PolledStream,
            Request::ReadPrivate => Op::PolledPrivate,
            Request::Read | Request::Write | Request::WriteMany => Op::PolledTransfer,
            Request::Ready(_) | Request::Accept | Request::AcceptStream | Request::Connect => {
                let refused = Err(Errno(libc::ENOTSOCK));
                return self.immediate.push_back(Completion::last(at, refused));
            }
        };
        let socket = self.in_flight.get_mut(at.slot());
        if socket.is_some_and(|socket| socket.begin(at.lane(), op)) {
            self.loads.begin(at);
            self.poll(at);
        }
    }

    /// The descriptor is said to be ready, or the poll failed.
    #[cold]
    pub(super) fn ready_polled(
        &mut self,
        at: Place,
        op: Op,
        polled: Result<u32, Errno>,
    ) -> Option<Completion> {
        let cancelled = self.in_flight.get(at.slot())?.is_cancelled(at.lane());
        let mut result = polled.and_then(|_| self.transfer(at, op));
        // A private read does not wait.
        if result == Err(Errno(libc::EAGAIN)) && op != Op::PolledPrivate {
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
        // A stream is started again by the watcher, as after any success. One call transfers less
        // than 2 GiB.
        Some(Completion::last(at, result.map(|len| len as u32)))
    }

    fn transfer(&mut self, at: Place, op: Op) -> Result<usize, Errno> {
        match (op, at.lane()) {
            (Op::PolledTransfer, Lane::Read) => {
                let socket = self.in_flight.get_mut(at.slot());
                let socket = socket.ok_or(Errno(libc::EBADF))?;
                self.counts.reads += 1;
                let mut calls = socket.no_wait.calls(socket.fd, &mut self.counts);
                calls.read_into(self.loads.unread(at))
            }
            (Op::PolledTransfer, Lane::Write) => self.write(at),
            (Op::PolledPrivate, _) => {
                self.counts.reads += 1;
                self.read_private(at)
            }
            _ => self.read_swap(at, op),
        }
    }

    fn write(&mut self, at: Place) -> Result<usize, Errno> {
        let socket = self.in_flight.get_mut(at.slot());
        let socket = socket.ok_or(Errno(libc::EBADF))?;
        self.counts.writes += 1;
        let written = if socket.is_other {
            let mut calls = socket.no_wait.calls(socket.fd, &mut self.counts);
            match self.loads.batch(at) {
                Some(batch) => batch.write(calls),
                None => calls.write(self.loads.unwritten(at)),
            }
        } else {
            match self.loads.batch(at) {
                Some(batch) => batch.send(socket.fd),
                None => sys::send(socket.fd, self.loads.unwritten(at)),
            }
        };
        self.note_written(at, written.map(|len| len as u32));
        written
    }

    /// Learns from a write whether the next one fits.
    pub(super) fn note_written(&mut self, at: Place, written: Result<u32, Errno>) {
        let is_full = match written {
            Ok(len) => (len as usize) < self.loads.unwritten_len(at).min(sys::TRANSFER_MAX),
            Err(errno) => errno.would_block(),
        };
        if let Some(socket) = self.in_flight.get_mut(at.slot()) {
            socket.is_full = is_full;
        }
    }

    fn read_swap(&mut self, at: Place, op: Op) -> Result<usize, Errno> {
        self.counts.reads += 1;
        let socket = self.in_flight.get_mut(at.slot());
        let socket = socket.ok_or(Errno(libc::EBADF))?;
        let polled = &mut self.polled;
        if polled.filling.as_ref().is_none_or(is_nearly_full) {
            polled.filling = None;
            polled.filling = self.pool.checkout();
        }
        let filling = polled.filling.as_mut().ok_or(Errno(libc::ENOBUFS))?;
        let (tail, room) = filling.tail();
        let mut calls = socket.no_wait.calls(socket.fd, &mut self.counts);
        // SAFETY: the tail is valid for writes of `room` bytes.
        let len = unsafe { calls.read(tail, room) }?;
        if len == 0 {
            return Ok(0);
        }
        let charged = self.loads.credit(at.slot());
        let charged = charged.filter(|_| op == Op::PolledStream);
        // SAFETY: `read(2)` wrote these bytes, and later reads go behind them.
        let lease = unsafe { filling.lease(len, charged) };
        self.brought = Payload::Lease(lease);
        Ok(len)
    }
}

fn is_nearly_full(filling: &Filling) -> bool {
    filling.left() < filling.size() / 16
}
