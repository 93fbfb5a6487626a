//! Reads and writes of descriptors that are not sockets (pipes, terminals, an `eventfd`): the
//! ring says when they are ready, plain system calls move the bytes. The ring's own reads of such
//! files would start kernel threads, fail with `EAGAIN`, or raise `SIGPIPE`.

use std::os::fd::AsRawFd;

use io_uring::types::Fd;

use super::entries::poll_entry;
use super::lanes::{Load, Op, encode};
use super::{Uring, load_payload};
use crate::error::Errno;
use crate::swap::{Filling, Pool, PoolUse};
use crate::sys;
use crate::{Completion, Interest, Lane, Payload, Request, Sink};

/// Their swap buffers: a pool of their own, because the other one's blocks are lent to the ring.
#[derive(Debug)]
pub(super) struct Polled {
    pool: Pool,
    filling: Option<Filling>,
    /// Reads that found the pool dry; they are ready, so nothing else would wake them.
    dry: Vec<(u32, Lane)>,
}

impl Polled {
    pub(super) fn new(pool: Pool) -> Self {
        Polled {
            pool,
            filling: None,
            dry: Vec::new(),
        }
    }

    pub(super) fn pool_use(&self) -> PoolUse {
        self.pool.usage()
    }
}

impl Uring {
    /// Lets reads that waited for a buffer try again once there is one; else asks to be woken.
    pub(super) fn retry_polled(&mut self) {
        if self.polled.dry.is_empty() || self.polled.pool.sleep_hungry() {
            return;
        }
        for (slot, lane) in std::mem::take(&mut self.polled.dry) {
            self.poll_again(slot, lane);
        }
    }

    /// Ends a read that waits for a buffer, of which the kernel knows nothing. False if it does
    /// not wait.
    pub(super) fn forget_dry(&mut self, slot: u32, lane: Lane) -> bool {
        let Some(place) = self.polled.dry.iter().position(|&dry| dry == (slot, lane)) else {
            return false;
        };
        self.polled.dry.swap_remove(place);
        let load = self.end(slot, lane);
        let result = Err(Errno(libc::ECANCELED));
        self.immediate.push_back(Completion {
            slot,
            lane,
            more: false,
            payload: load_payload(load, &result).unwrap_or(Payload::None),
            result,
        });
        true
    }

    pub(super) fn start_polled(&mut self, slot: u32, lane: Lane, request: Request) {
        let (op, load) = match request {
            Request::ReadSwap => (Op::PolledSwap, Load::None),
            Request::ReadStream(credit) => (Op::PolledStream, Load::Credit(credit)),
            Request::Read { buffer, from } => (Op::PolledTransfer, Load::Read { buffer, from }),
            Request::Write { buffer, from } => (Op::PolledTransfer, Load::Write { buffer, from }),
            Request::WriteBatch(batch) => (Op::PolledTransfer, Load::Batch(batch)),
            Request::Ready(_) | Request::Accept | Request::AcceptStream | Request::Connect(_) => {
                return self.refuse(slot, lane, Errno(libc::ENOTSOCK));
            }
        };
        self.lanes.begin(slot, lane, op, load);
        self.poll_again(slot, lane);
    }

    /// The descriptor is ready, or the poll failed.
    pub(super) fn ready_polled(
        &mut self,
        slot: u32,
        lane: Lane,
        polled: Result<usize, Errno>,
        sink: &mut impl Sink,
    ) {
        let transfer = polled.and_then(|_| self.transfer(slot, lane));
        let (result, read) = match transfer {
            Err(Errno(libc::EAGAIN | libc::EINTR)) if !self.lanes.is_cancelled(slot, lane) => {
                return self.poll_again(slot, lane);
            }
            Err(Errno(libc::ENOBUFS)) if !self.lanes.is_cancelled(slot, lane) => {
                return self.polled.dry.push((slot, lane));
            }
            Err(Errno(libc::EAGAIN | libc::EINTR)) => (Err(Errno(libc::ECANCELED)), Payload::None),
            Ok((len, read)) => (Ok(len), read),
            Err(errno) => (Err(errno), Payload::None),
        };
        let load = self.end(slot, lane);
        sink.complete(Completion {
            slot,
            lane,
            // A stream is started again by the watcher, as after any success.
            more: false,
            payload: load_payload(load, &result).unwrap_or(read),
            result,
        });
    }

    fn poll_again(&mut self, slot: u32, lane: Lane) {
        let Some(fd) = self.lanes.socket(slot).map(|fd| Fd(fd.as_raw_fd())) else {
            return;
        };
        let interest = match lane {
            Lane::Read => Interest::Readable,
            Lane::Write => Interest::Writable,
        };
        let entry = poll_entry(fd, interest).user_data(encode(slot, lane));
        // SAFETY: a poll names no memory.
        unsafe { self.push(entry) };
    }

    fn transfer(&mut self, slot: u32, lane: Lane) -> Result<(usize, Payload), Errno> {
        let fd = self.lanes.socket(slot).ok_or(Errno(libc::EBADF))?;
        let fd = fd.as_raw_fd();
        let len = match self.lanes.load_mut(slot, lane) {
            Some(Load::Read { buffer, from }) => {
                self.counts.reads += 1;
                let rest = buffer.spare(*from).unwrap_or_default();
                // SAFETY: `rest` is valid for writes of its length.
                unsafe { sys::read(fd, rest.as_mut_ptr(), rest.len()) }?
            }
            Some(Load::Write { buffer, from }) => {
                self.counts.writes += 1;
                sys::write(fd, buffer.get(*from..).unwrap_or_default())?
            }
            Some(Load::Batch(batch)) => {
                self.counts.writes += 1;
                sys::write_batch(fd, batch)?
            }
            _ => return self.read_swap(slot, lane, fd),
        };
        Ok((len, Payload::None))
    }

    fn read_swap(&mut self, slot: u32, lane: Lane, fd: i32) -> Result<(usize, Payload), Errno> {
        self.counts.reads += 1;
        let polled = &mut self.polled;
        if polled.filling.as_ref().is_none_or(is_nearly_full) {
            polled.filling = None;
            polled.filling = polled.pool.checkout();
        }
        let filling = polled.filling.as_mut().ok_or(Errno(libc::ENOBUFS))?;
        let (at, room) = filling.tail();
        // SAFETY: the tail is valid for writes of `room` bytes.
        let len = unsafe { sys::read(fd, at, room) }?;
        if len == 0 {
            return Ok((0, Payload::None));
        }
        // SAFETY: `read(2)` wrote these bytes, and later reads go behind them.
        let lease = unsafe { filling.lease(len, self.lanes.credit(slot, lane)) };
        Ok((len, Payload::Buffer(lease.into())))
    }
}

fn is_nearly_full(filling: &Filling) -> bool {
    filling.left() < filling.size() / 16
}
