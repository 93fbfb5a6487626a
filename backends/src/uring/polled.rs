//! Reads and writes of descriptors that are not sockets (pipes, terminals, an `eventfd`): the
//! ring says when they are ready, plain system calls move the bytes. The ring's own reads of such
//! files would start kernel threads, fail with `EAGAIN`, or raise `SIGPIPE`.

use io_uring::types::Fd;

use super::Uring;
use super::entries::poll_entry;
use super::in_flight::{Op, Running};
use crate::error::Errno;
use crate::swap::{Filling, Pool, PoolUse};
use crate::sys;
use crate::{Completion, Interest, Lane, Payload, Place, Request};

/// Their swap buffers: a pool of their own, because the other one's blocks are lent to the ring.
#[derive(Debug)]
pub(super) struct Polled {
    pool: Pool,
    filling: Option<Filling>,
    /// Reads that found the pool dry; they are ready, so nothing else would wake them.
    dry: Vec<u32>,
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
        for key in std::mem::take(&mut self.polled.dry) {
            self.poll_again(key);
        }
    }

    /// Ends a read that waits for a buffer, of which the kernel knows nothing. False if it does
    /// not wait.
    pub(super) fn forget_dry(&mut self, key: u32) -> bool {
        let place = self.polled.dry.iter().position(|&dry| dry == key);
        let (Some(place), Some(&running)) = (place, self.in_flight.get(key)) else {
            return false;
        };
        self.polled.dry.swap_remove(place);
        self.end(key, running.cancelled);
        let cancelled = Err(Errno(libc::ECANCELED));
        self.immediate.push_back(Completion::last(key, cancelled));
        true
    }

    pub(super) fn start_polled(&mut self, at: Place, request: Request) {
        let op = match request {
            Request::ReadSwap => Op::PolledSwap,
            Request::ReadStream => Op::PolledStream,
            Request::Read | Request::Write => Op::PolledTransfer,
            Request::Ready(_) | Request::Accept | Request::AcceptStream | Request::Connect => {
                let refused = Err(Errno(libc::ENOTSOCK));
                return self.immediate.push_back(Completion::last(at.key, refused));
            }
        };
        self.loads.begin(at.key);
        self.in_flight.begin(at, op);
        self.poll_again(at.key);
    }

    /// The descriptor is ready, or the poll failed.
    #[cold]
    pub(super) fn ready_polled(
        &mut self,
        key: u32,
        polled: Result<u32, Errno>,
    ) -> Option<Completion> {
        let running = *self.in_flight.get(key)?;
        let transfer = polled.and_then(|_| self.transfer(key, running));
        let result = match transfer {
            Err(Errno(libc::EAGAIN | libc::EINTR)) if !running.cancelled => {
                self.poll_again(key);
                return None;
            }
            Err(Errno(libc::ENOBUFS)) if !running.cancelled => {
                self.polled.dry.push(key);
                return None;
            }
            Err(Errno(libc::EAGAIN | libc::EINTR)) => Err(Errno(libc::ECANCELED)),
            // One call transfers less than 2 GiB.
            Ok(len) => Ok(len as u32),
            Err(errno) => Err(errno),
        };
        self.end(key, running.cancelled);
        // A stream is started again by the watcher, as after any success.
        Some(Completion::last(key, result))
    }

    fn poll_again(&mut self, key: u32) {
        let Some(&running) = self.in_flight.get(key) else {
            return;
        };
        let Some(socket) = self.in_flight.get_socket(running.slot) else {
            return;
        };
        let interest = match running.lane {
            Lane::Read => Interest::Readable,
            Lane::Write => Interest::Writable,
        };
        let entry = poll_entry(Fd(socket.fd), interest).user_data(u64::from(key));
        // SAFETY: a poll names no memory.
        unsafe { self.push(entry) };
    }

    fn transfer(&mut self, key: u32, running: Running) -> Result<usize, Errno> {
        let socket = self.in_flight.get_socket(running.slot);
        let fd = socket.ok_or(Errno(libc::EBADF))?.fd;
        match (running.op, running.lane) {
            (Op::PolledTransfer, Lane::Read) => {
                self.counts.reads += 1;
                sys::read_into(fd, self.loads.unread(key))
            }
            (Op::PolledTransfer, Lane::Write) => {
                self.counts.writes += 1;
                match self.loads.batch(key) {
                    Some(batch) => sys::write_batch(fd, batch),
                    None => sys::write(fd, self.loads.unwritten(key)),
                }
            }
            _ => self.read_swap(key, fd),
        }
    }

    fn read_swap(&mut self, key: u32, fd: i32) -> Result<usize, Errno> {
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
            return Ok(0);
        }
        // SAFETY: `read(2)` wrote these bytes, and later reads go behind them.
        let lease = unsafe { filling.lease(len, self.loads.credit(key)) };
        self.brought = Payload::Lease(lease);
        Ok(len)
    }
}

fn is_nearly_full(filling: &Filling) -> bool {
    filling.left() < filling.size() / 16
}
