//! What one attempt at each kind of operation does: the system call, what its outcome teaches
//! about the socket, and whether the operation ends, goes on, or waits.

use std::os::fd::AsFd;

use super::engine::{Engine, Step, transferred};
use super::slot::{Flags, Op};
use crate::error::Errno;
use crate::{Completion, Interest, Lane, Payload, Place, sys};

/// Reads of one stream in one turn, before others get theirs.
const READS_PER_TURN: usize = 4;

/// Connections accepted of one listener in one turn.
const ACCEPTS_PER_TURN: usize = 64;

impl Engine {
    /// Attempts what runs on a lane, whether or not it is thought ready.
    #[inline]
    pub(super) fn attempt(&mut self, at: Place) -> Option<Completion> {
        let slot = at.slot();
        match self.slots.get(slot as usize)?.op(at.lane()) {
            Op::ReadSwap => {
                let step = self.read_swap(slot);
                self.completion(step)
            }
            Op::ReadStream => {
                let step = self.read_stream(slot);
                self.completion(step)
            }
            Op::ReadPrivate => self.read_private(slot),
            Op::Write => self.write(slot),
            Op::Read => self.read_own(slot),
            Op::Accept => self.accept(slot, false),
            Op::AcceptStream => self.accept(slot, true),
            Op::Connect => self.connect(slot),
            Op::Connecting => self.end_connect(slot),
            Op::Ready => self.check_ready(at),
            Op::Idle => None,
        }
    }

    /// A step as a completion. What it brings is in `brought`.
    pub(super) fn completion(&mut self, step: Step) -> Option<Completion> {
        let (at, more, lease) = match step {
            Step::Nothing => return None,
            Step::Completed(completion) => return Some(completion),
            Step::Received(at, lease) => (at, false, lease),
            Step::Streamed(at, lease) => (at, true, lease),
        };
        let result = Ok(transferred(lease.len()));
        self.brought = Payload::Lease(lease);
        Some(Completion { at, more, result })
    }

    #[inline(always)]
    pub(super) fn read_swap(&mut self, slot: u32) -> Step {
        let Some(entry) = self.slots.get_mut(slot as usize) else {
            return Step::Nothing;
        };
        self.counts.reads += 1;
        match self.cursor.read(entry.source(&mut self.counts)) {
            Ok((len, asked)) if len > 0 => {
                entry.learn(Lane::Read, len, asked);
                entry.set_op(Lane::Read, Op::Idle);
                match self.cursor.lease(None) {
                    Some(lease) => Step::Received(read(slot), lease),
                    None => Step::Nothing,
                }
            }
            other => self.end_read_swap(slot, other.map(|_| 0)),
        }
    }

    #[cold]
    fn end_read_swap(&mut self, slot: u32, result: Result<u32, Errno>) -> Step {
        let Some(entry) = self.slots.get_mut(slot as usize) else {
            return Step::Nothing;
        };
        if result == Err(Errno(libc::EAGAIN)) {
            entry.forget_ready(Lane::Read);
            return Step::Nothing;
        }
        entry.set_op(Lane::Read, Op::Idle);
        Step::Completed(Completion::last(read(slot), result))
    }

    #[inline(always)]
    pub(super) fn read_stream(&mut self, slot: u32) -> Step {
        let Some(entry) = self.slots.get_mut(slot as usize) else {
            return Step::Nothing;
        };
        self.counts.reads += 1;
        let at = read(slot);
        match self.cursor.read(entry.source(&mut self.counts)) {
            Ok((len, asked)) if len > 0 => {
                entry.learn(Lane::Read, len, asked);
                if entry.can_run(Lane::Read) {
                    self.go_on(at, READS_PER_TURN);
                }
                match self.cursor.lease(self.loads.credit(slot)) {
                    Some(lease) => Step::Streamed(at, lease),
                    None => Step::Nothing,
                }
            }
            other => self.end_read_swap(slot, other.map(|_| 0)),
        }
    }

    /// Ends in any case: what waits holds no memory.
    fn read_private(&mut self, slot: u32) -> Option<Completion> {
        let entry = self.slots.get_mut(slot as usize)?;
        let account = self.loads.credit(slot)?;
        self.counts.reads += 1;
        let read_bytes = self
            .cursor
            .read_private(entry.source(&mut self.counts), account);
        let result = match read_bytes {
            Ok((lease, asked)) => {
                let len = lease.as_ref().map_or(0, |lease| lease.len());
                entry.learn(Lane::Read, len, asked);
                self.brought = lease.map_or(Payload::None, Payload::Lease);
                Ok(len)
            }
            Err(errno) => {
                if errno == Errno(libc::EAGAIN) {
                    entry.forget_ready(Lane::Read);
                }
                Err(errno)
            }
        };
        self.finish(read(slot), result)
    }

    /// A stream has more to give: at once, until it is the others' turn.
    fn go_on(&mut self, at: Place, steps_max: usize) {
        self.streak += 1;
        if self.streak < steps_max {
            return self.enqueue_first(at);
        }
        self.streak = 0;
        self.enqueue(at);
    }

    fn read_own(&mut self, slot: u32) -> Option<Completion> {
        let entry = self.slots.get_mut(slot as usize)?;
        let spare = self.loads.unread(read(slot));
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
        let (written, asked) = match self.loads.batch(at) {
            None => {
                let rest = self.loads.unwritten(at);
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
            // The listener may be shared with others, who change its mode.
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
                        entry.set_op(Lane::Read, Op::Idle);
                    }
                    self.brought = Payload::Socket(socket);
                    return Some(Completion {
                        at,
                        more: stream,
                        result: Ok(0),
                    });
                }
                Err(Errno(libc::EAGAIN)) => return entry.forget_ready(Lane::Read),
                Err(Errno(libc::EINTR)) => {}
                Err(errno) if errno.is_lost_connection() => {
                    self.counts.others += 1;
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
        let socket = entry.socket.as_ref()?;
        let to = match self.loads.address(write(slot)) {
            Ok(to) => to,
            Err(errno) => return self.finish(write(slot), Err(errno)),
        };
        // A socket that is not connected polls as ended: that says nothing of what comes now.
        entry.flags.clear(Flags::ALL_READY);
        match sys::connect_nonblocking(&mut self.counts, socket.as_fd(), to) {
            Ok(()) => {
                entry.flags.set(Flags::WRITABLE);
                self.finish(write(slot), Ok(0))
            }
            Err(Errno(libc::EINPROGRESS | libc::EALREADY | libc::EINTR)) => {
                entry.set_op(Lane::Write, Op::Connecting);
                None
            }
            Err(errno) => {
                // What the socket is now will show at the next attempt of anything.
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

    fn check_ready(&mut self, at: Place) -> Option<Completion> {
        let entry = self.slots.get_mut(at.slot() as usize)?;
        let interest = match at.lane() {
            Lane::Read => Interest::Readable,
            Lane::Write => Interest::Writable,
        };
        self.counts.others += 1;
        match sys::is_ready(entry.fd(), interest) {
            Ok(false) => entry.forget_ready(at.lane()),
            Ok(true) => self.finish(at, Ok(0)),
            Err(errno) => self.finish(at, Err(errno)),
        }
    }

    /// Ends an operation; what it used is the watcher's again.
    #[inline]
    pub(super) fn finish(&mut self, at: Place, result: Result<usize, Errno>) -> Option<Completion> {
        let entry = self.slots.get_mut(at.slot() as usize)?;
        entry.set_op(at.lane(), Op::Idle);
        self.loads.end(at);
        Some(Completion::last(at, result.map(transferred)))
    }
}

#[inline(always)]
fn read(slot: u32) -> Place {
    Place::new(slot, Lane::Read)
}

#[inline(always)]
fn write(slot: u32) -> Place {
    Place::new(slot, Lane::Write)
}
