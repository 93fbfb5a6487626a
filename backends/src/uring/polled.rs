//! Reads and writes of descriptors that are not sockets (pipes, terminals, an `eventfd`): the
//! ring says when they are ready, plain system calls move the bytes. The ring's own reads of such
//! files would start kernel threads, fail with `EAGAIN`, or raise `SIGPIPE`.

use io_uring::types::Fd;

use super::Uring;
use super::entries::poll_entry;
use super::in_flight::Op;
use crate::error::Errno;
use crate::swap::Filling;
use crate::{Completion, Interest, Lane, Payload, Place, Request};

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
            self.poll_again(at);
        }
    }

    /// The descriptor is ready, or the poll failed.
    #[cold]
    pub(super) fn ready_polled(
        &mut self,
        at: Place,
        op: Op,
        polled: Result<u32, Errno>,
    ) -> Option<Completion> {
        let cancelled = self.in_flight.get(at.slot())?.is_cancelled(at.lane());
        let result = match polled.and_then(|_| self.transfer(at, op)) {
            // A private read does not wait.
            Err(Errno(libc::EAGAIN | libc::EINTR)) if !cancelled && op != Op::PolledPrivate => {
                self.poll_again(at);
                return None;
            }
            Err(Errno(libc::EAGAIN | libc::EINTR)) if !cancelled => Err(Errno(libc::EAGAIN)),
            Err(Errno(libc::EAGAIN | libc::EINTR)) => Err(Errno(libc::ECANCELED)),
            // One call transfers less than 2 GiB.
            Ok(len) => Ok(len as u32),
            Err(errno) => Err(errno),
        };
        self.end(at);
        // A stream is started again by the watcher, as after any success.
        Some(Completion::last(at, result))
    }

    fn poll_again(&mut self, at: Place) {
        let Some(socket) = self.in_flight.get(at.slot()) else {
            return;
        };
        let interest = match at.lane() {
            Lane::Read => Interest::Readable,
            Lane::Write => Interest::Writable,
        };
        let entry = poll_entry(Fd(socket.fd), interest).user_data(u64::from(at.number()));
        // SAFETY: a poll names no memory.
        unsafe { self.push(entry) };
    }

    fn transfer(&mut self, at: Place, op: Op) -> Result<usize, Errno> {
        let socket = self.in_flight.get_mut(at.slot());
        let socket = socket.ok_or(Errno(libc::EBADF))?;
        match (op, at.lane()) {
            (Op::PolledTransfer, Lane::Read) => {
                self.counts.reads += 1;
                let mut calls = socket.no_wait.calls(socket.fd, &mut self.counts);
                calls.read_into(self.loads.unread(at))
            }
            (Op::PolledTransfer, Lane::Write) => {
                self.counts.writes += 1;
                let mut calls = socket.no_wait.calls(socket.fd, &mut self.counts);
                match self.loads.batch(at) {
                    Some(batch) => batch.write(calls),
                    None => calls.write(self.loads.unwritten(at)),
                }
            }
            (Op::PolledPrivate, _) => {
                self.counts.reads += 1;
                self.read_private(at)
            }
            _ => self.read_swap(at, op),
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
