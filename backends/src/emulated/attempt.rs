//! One attempt at each kind of operation: the system call, the conclusions about the socket's
//! readiness, and whether the operation ends, goes on, or waits.

use std::os::fd::AsFd;

use super::scheduler::{Scheduler, transferred};
use super::slot::Flags;
use crate::error::Errno;
use crate::{Completion, Interest, Lane, LaneId, Outcome, Request, sys};

/// The greatest number of reads of one stream in a row, before it is the others' turn.
const READS_PER_TURN: usize = 4;

/// The greatest number of connections that one listener accepts in a row.
const ACCEPTS_PER_TURN: usize = 64;

impl Scheduler {
    /// Attempts the operation of a lane, whether or not the lane is thought ready.
    #[inline]
    pub(super) fn attempt(&mut self, at: LaneId) -> Option<Completion> {
        let slot = at.slot();
        match self.slots.get(slot as usize)?.running(at.lane())? {
            Request::ReadSwap => self.read_swap(slot),
            // All streams take turns here, so a step needs no special care.
            Request::ReadStream | Request::ReadStep => self.read_stream(slot),
            Request::ReadPrivate => self.read_private(slot),
            Request::Write | Request::WriteMany => self.write(slot),
            Request::Read => self.read_own(slot),
            Request::Accept => self.accept(slot, false),
            Request::AcceptStream => self.accept(slot, true),
            Request::Connect => self.connect(slot),
            Request::Ready(interest) => self.check_ready(at, interest),
        }
    }

    #[inline]
    fn read_swap(&mut self, slot: u32) -> Option<Completion> {
        let entry = self.slots.get_mut(slot as usize)?;
        self.counts.reads += 1;
        match self.block_writer.read(entry.source(&mut self.counts)) {
            Ok((len, asked)) if len > 0 => {
                entry.learn(Lane::Read, len, asked);
                entry.set_running(Lane::Read, None);
                let lease = self.block_writer.lease(None)?;
                Some(Completion::leased(read(slot), false, lease))
            }
            other => self.end_read_swap(slot, other.map(|_| 0)),
        }
    }

    #[inline]
    fn read_stream(&mut self, slot: u32) -> Option<Completion> {
        let entry = self.slots.get_mut(slot as usize)?;
        self.counts.reads += 1;
        let at = read(slot);
        match self.block_writer.read(entry.source(&mut self.counts)) {
            Ok((len, asked)) if len > 0 => {
                entry.learn(Lane::Read, len, asked);
                if entry.can_run(Lane::Read) {
                    self.go_on(at, READS_PER_TURN);
                }
                let lease = self.block_writer.lease(self.op_table.credit(slot))?;
                Some(Completion::leased(at, true, lease))
            }
            other => self.end_read_swap(slot, other.map(|_| 0)),
        }
    }

    /// Ends a read into a swap buffer that brought no bytes, or lets it wait.
    #[cold]
    fn end_read_swap(&mut self, slot: u32, result: Result<usize, Errno>) -> Option<Completion> {
        if result == Err(Errno(libc::EAGAIN)) {
            return self.slots.get_mut(slot as usize)?.forget_ready(Lane::Read);
        }
        self.finish(read(slot), result)
    }

    /// Reads into a private block. The operation ends in any case: one that waits would hold
    /// memory.
    fn read_private(&mut self, slot: u32) -> Option<Completion> {
        let entry = self.slots.get_mut(slot as usize)?;
        let account = self.op_table.credit(slot)?;
        self.counts.reads += 1;
        let read_bytes = self
            .block_writer
            .read_private(entry.source(&mut self.counts), account);
        match read_bytes {
            Ok((Some(lease), asked)) => {
                entry.learn(Lane::Read, lease.len(), asked);
                entry.set_running(Lane::Read, None);
                Some(Completion::leased(read(slot), false, lease))
            }
            Ok((None, _)) => self.finish(read(slot), Ok(0)),
            Err(errno) => {
                if errno == Errno(libc::EAGAIN) {
                    entry.forget_ready(Lane::Read);
                }
                self.finish(read(slot), Err(errno))
            }
        }
    }

    /// Lets a stream go on that may have more to give: at once, until it is the others' turn.
    fn go_on(&mut self, at: LaneId, steps_max: usize) {
        self.streak += 1;
        if self.streak < steps_max {
            return self.enqueue_first(at);
        }
        self.streak = 0;
        self.enqueue(at);
    }

    fn read_own(&mut self, slot: u32) -> Option<Completion> {
        let entry = self.slots.get_mut(slot as usize)?;
        let spare = self.op_table.unread(read(slot));
        let asked = spare.len().min(sys::TRANSFER_MAX);
        self.counts.reads += 1;
        let result = if asked == 0 {
            // The system would answer 0, which means the end.
            Err(Errno(libc::EINVAL))
        } else {
            entry.source(&mut self.counts).read_into(spare)
        };
        match result {
            Err(Errno(libc::EAGAIN)) => entry.forget_ready(Lane::Read),
            _ => {
                entry.learn(Lane::Read, result.unwrap_or(0), asked);
                self.finish(read(slot), result)
            }
        }
    }

    #[inline]
    fn write(&mut self, slot: u32) -> Option<Completion> {
        let entry = self.slots.get_mut(slot as usize)?;
        self.counts.writes += 1;
        let at = write(slot);
        let (written, asked) = match self.op_table.batch(at) {
            None => {
                let rest = self.op_table.unwritten(at);
                (entry.source(&mut self.counts).write(rest), rest.len())
            }
            Some(batch) => {
                let written = entry.source(&mut self.counts).write_batch(batch);
                (written, batch.len_bytes())
            }
        };
        match written {
            Err(Errno(libc::EAGAIN)) => entry.forget_ready(Lane::Write),
            _ => {
                entry.learn(Lane::Write, written.unwrap_or(0), asked);
                self.finish(at, written)
            }
        }
    }

    fn accept(&mut self, slot: u32, stream: bool) -> Option<Completion> {
        for _ in 0..ACCEPTS_PER_TURN {
            let entry = self.slots.get_mut(slot as usize)?;
            let at = read(slot);
            // Another process that shares the listener may have changed its mode.
            let fd = entry.fd();
            if let Err(errno) = entry.no_wait.calls(fd, &mut self.counts).look() {
                return self.finish(at, Err(errno));
            }
            self.counts.accepts += 1;
            match sys::accept(fd) {
                Ok(socket) => {
                    if stream {
                        self.go_on(at, ACCEPTS_PER_TURN);
                    } else {
                        entry.set_running(Lane::Read, None);
                    }
                    return Some(Completion {
                        at,
                        more: stream,
                        outcome: Outcome::Accepted(socket),
                    });
                }
                Err(Errno(libc::EAGAIN)) => return entry.forget_ready(Lane::Read),
                Err(Errno(libc::EINTR)) => {}
                Err(errno) if errno.is_lost_connection() => {
                    self.counts.others += 1;
                    // Some systems report this error for ever once a listener was shut down.
                    if sys::is_shut_down(entry.fd()) {
                        return self.finish(at, Err(Errno::NOT_LISTENING));
                    }
                }
                Err(errno) => return self.finish(at, Err(errno)),
            }
        }
        self.enqueue(read(slot));
        None
    }

    fn connect(&mut self, slot: u32) -> Option<Completion> {
        let entry = self.slots.get_mut(slot as usize)?;
        if entry.flags.has(Flags::CONNECTING) {
            return self.end_connect(slot);
        }
        let socket = entry.socket.as_ref()?;
        let to = match self.op_table.address(write(slot)) {
            Ok(to) => to,
            Err(errno) => return self.finish(write(slot), Err(errno)),
        };
        // A socket that is not connected polls as ended. That says nothing of the events to come.
        entry.flags.clear(Flags::ALL_READY);
        match sys::connect_nonblocking(&mut self.counts, socket.as_fd(), to) {
            Ok(()) => {
                entry.flags.set(Flags::WRITABLE);
                self.finish(write(slot), Ok(0))
            }
            Err(Errno(libc::EINPROGRESS | libc::EALREADY | libc::EINTR)) => {
                entry.flags.set(Flags::CONNECTING);
                None
            }
            Err(errno) => {
                // The state of the socket will show at the next attempt of any operation.
                entry.flags.set(Flags::ALL_READY);
                self.finish(write(slot), Err(errno))
            }
        }
    }

    fn end_connect(&mut self, slot: u32) -> Option<Completion> {
        let socket = self.slots.get(slot as usize)?.socket.as_ref()?;
        self.counts.others += 1;
        let result = sys::connect_result(socket.as_fd()).map(|()| 0);
        self.finish(write(slot), result)
    }

    fn check_ready(&mut self, at: LaneId, interest: Interest) -> Option<Completion> {
        let entry = self.slots.get_mut(at.slot() as usize)?;
        self.counts.others += 1;
        match sys::is_ready(entry.fd(), interest) {
            Ok(false) => entry.forget_ready(at.lane()),
            Ok(true) => self.finish(at, Ok(0)),
            Err(errno) => self.finish(at, Err(errno)),
        }
    }

    /// Ends an operation. Its data is the watcher's again.
    #[inline]
    pub(super) fn finish(
        &mut self,
        at: LaneId,
        result: Result<usize, Errno>,
    ) -> Option<Completion> {
        let entry = self.slots.get_mut(at.slot() as usize)?;
        entry.set_running(at.lane(), None);
        if at.lane() == Lane::Write {
            entry.flags.clear(Flags::CONNECTING);
        }
        self.op_table.end(at);
        Some(Completion::last(at, result.map(transferred)))
    }
}

#[inline]
fn read(slot: u32) -> LaneId {
    LaneId::new(slot, Lane::Read)
}

#[inline]
fn write(slot: u32) -> LaneId {
    LaneId::new(slot, Lane::Write)
}
