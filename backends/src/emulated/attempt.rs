//! What one attempt at each kind of operation does: the system call, what its outcome teaches
//! about the socket, and whether the operation ends, goes on, or waits.

use std::os::fd::AsFd;

use socket2::SockAddr;

use super::engine::{Engine, transferred};
use super::slot::{Flags, Op, Source};
use crate::error::Errno;
use crate::swap::SwapBuf;
use crate::{Completion, Interest, Lane, Payload, sys};

/// Reads of one stream in one turn, before others get theirs.
const READS_PER_TURN: usize = 4;

/// Connections accepted of one listener in one turn.
const ACCEPTS_PER_TURN: usize = 64;

impl Engine {
    /// Attempts what runs on a lane, whether or not it is thought ready.
    #[inline]
    pub(super) fn attempt(&mut self, slot: u32, lane: Lane) -> Option<Completion> {
        match self.slots.get(slot as usize)?.op(lane) {
            Op::ReadSwap => self.read_swap(slot),
            Op::Write => self.write(slot),
            Op::Read => self.read_own(slot),
            Op::ReadStream => self.read_stream(slot),
            Op::Accept => self.accept(slot, false),
            Op::AcceptStream => self.accept(slot, true),
            Op::Connect => self.connect(slot),
            Op::Connecting => self.end_connect(slot),
            Op::Ready => self.check_ready(slot, lane),
            Op::Idle => None,
        }
    }

    #[inline]
    fn read_swap(&mut self, slot: u32) -> Option<Completion> {
        let entry = self.slots.get_mut(slot as usize)?;
        self.counts.reads += 1;
        let result = match self.cursor.read(entry.fd(), entry.source()) {
            Err(Errno(libc::EAGAIN)) => return entry.forget_ready(Lane::Read),
            Err(errno) => Err(errno),
            Ok((len, asked)) => {
                entry.learn(Lane::Read, len, asked);
                Ok(transferred(len))
            }
        };
        entry.set_op(Lane::Read, Op::Idle);
        self.brought = leased(self.cursor.lease(None));
        Some(Completion::last(entry.key(Lane::Read), result))
    }

    fn read_stream(&mut self, slot: u32) -> Option<Completion> {
        let entry = self.slots.get_mut(slot as usize)?;
        self.counts.reads += 1;
        let (len, asked) = match self.cursor.read(entry.fd(), entry.source()) {
            Err(Errno(libc::EAGAIN)) => return entry.forget_ready(Lane::Read),
            Err(errno) => return self.finish(slot, Lane::Read, Err(errno)),
            Ok((0, _)) => return self.finish(slot, Lane::Read, Ok(0)),
            Ok(taken) => taken,
        };
        entry.learn(Lane::Read, len, asked);
        let key = entry.key(Lane::Read);
        if entry.can_run(Lane::Read) {
            self.go_on(slot, READS_PER_TURN);
        }
        self.brought = leased(self.cursor.lease(self.loads.credit(key)));
        Some(Completion {
            key,
            more: true,
            result: Ok(transferred(len)),
        })
    }

    /// A stream has more to give: at once, until it is the others' turn.
    fn go_on(&mut self, slot: u32, steps_max: usize) {
        self.streak += 1;
        if self.streak < steps_max {
            return self.enqueue_first(slot, Lane::Read);
        }
        self.streak = 0;
        self.enqueue(slot, Lane::Read);
    }

    fn read_own(&mut self, slot: u32) -> Option<Completion> {
        let entry = self.slots.get_mut(slot as usize)?;
        let spare = self.loads.unread(entry.key(Lane::Read));
        let asked = spare.len().min(sys::TRANSFER_MAX);
        self.counts.reads += 1;
        let read = match entry.source() {
            // The system would answer 0, which means the end.
            _ if asked == 0 => Err(Errno(libc::EINVAL)),
            Source::Socket => sys::recv_into(entry.fd(), spare),
            Source::File => sys::read_into(entry.fd(), spare),
        };
        match read {
            Err(Errno(libc::EAGAIN)) => entry.forget_ready(Lane::Read),
            _ => {
                entry.learn(Lane::Read, read.unwrap_or(0), asked);
                self.finish(slot, Lane::Read, read)
            }
        }
    }

    #[inline]
    fn write(&mut self, slot: u32) -> Option<Completion> {
        let entry = self.slots.get_mut(slot as usize)?;
        let (fd, source) = (entry.fd(), entry.source());
        self.counts.writes += 1;
        let key = entry.key(Lane::Write);
        let (written, asked) = match self.loads.batch(key) {
            None => {
                let rest = self.loads.unwritten(key);
                (source.write(fd, rest), rest.len())
            }
            Some(batch) => {
                let written = match source {
                    Source::Socket => sys::send_batch(fd, batch),
                    Source::File => sys::write_batch(fd, batch),
                };
                (written, batch.len_bytes())
            }
        };
        match written {
            Err(Errno(libc::EAGAIN)) => entry.forget_ready(Lane::Write),
            Err(Errno(libc::ENOBUFS | libc::ENOMEM)) => self.retry_later(slot),
            _ => {
                entry.learn(Lane::Write, written.unwrap_or(0), asked);
                self.finish(slot, Lane::Write, written)
            }
        }
    }

    fn accept(&mut self, slot: u32, stream: bool) -> Option<Completion> {
        for _ in 0..ACCEPTS_PER_TURN {
            let entry = self.slots.get_mut(slot as usize)?;
            let key = entry.key(Lane::Read);
            self.counts.accepts += 1;
            match sys::accept(entry.fd()) {
                Ok(socket) => {
                    if stream {
                        self.go_on(slot, ACCEPTS_PER_TURN);
                    } else {
                        entry.set_op(Lane::Read, Op::Idle);
                    }
                    self.brought = Payload::Socket(socket);
                    return Some(Completion {
                        key,
                        more: stream,
                        result: Ok(0),
                    });
                }
                Err(Errno(libc::EAGAIN)) => return entry.forget_ready(Lane::Read),
                Err(Errno(libc::EINTR)) => {}
                Err(errno) if errno.is_lost_connection() => {}
                Err(errno) => return self.finish(slot, Lane::Read, Err(errno)),
            }
        }
        self.enqueue(slot, Lane::Read);
        None
    }

    fn connect(&mut self, slot: u32) -> Option<Completion> {
        let entry = self.slots.get_mut(slot as usize)?;
        let socket = entry.socket.as_ref()?;
        let to = match self.loads.address(entry.key(Lane::Write)) {
            Ok(to) => to,
            Err(errno) => return self.finish(slot, Lane::Write, Err(errno)),
        };
        // A socket that is not connected polls as ended: that says nothing of what comes now.
        entry.flags.clear(Flags::ALL_READY);
        self.counts.accepts += 1;
        match sys::connect_nonblocking(socket.as_fd(), to) {
            Ok(()) => {
                entry.flags.set(Flags::WRITABLE);
                self.finish(slot, Lane::Write, Ok(0))
            }
            Err(Errno(libc::EINPROGRESS | libc::EALREADY | libc::EINTR)) => {
                entry.set_op(Lane::Write, Op::Connecting);
                None
            }
            Err(Errno(libc::EAGAIN)) if SockAddr::is_unix(to) => self.retry_later(slot),
            Err(errno) => {
                // What the socket is now will show at the next attempt of anything.
                entry.flags.set(Flags::ALL_READY);
                self.finish(slot, Lane::Write, Err(errno))
            }
        }
    }

    fn end_connect(&mut self, slot: u32) -> Option<Completion> {
        let socket = self.slots.get(slot as usize)?.socket.as_ref()?;
        self.counts.others += 1;
        let result = sys::connect_result(socket.as_fd()).map(|()| 0);
        self.finish(slot, Lane::Write, result)
    }

    fn check_ready(&mut self, slot: u32, lane: Lane) -> Option<Completion> {
        let entry = self.slots.get_mut(slot as usize)?;
        let interest = match lane {
            Lane::Read => Interest::Readable,
            Lane::Write => Interest::Writable,
        };
        self.counts.others += 1;
        match sys::is_ready(entry.fd(), interest) {
            Ok(false) => entry.forget_ready(lane),
            Ok(true) => self.finish(slot, lane, Ok(0)),
            Err(errno) => self.finish(slot, lane, Err(errno)),
        }
    }

    /// Plans an attempt of the write lane that no event will trigger.
    #[cold]
    fn retry_later(&mut self, slot: u32) -> Option<Completion> {
        if let Some(entry) = self.slots.get_mut(slot as usize)
            && !entry.flags.has(Flags::RETRYING)
        {
            entry.flags.set(Flags::RETRYING);
            self.retries.plan(slot);
        }
        None
    }

    /// Ends an operation; what it used is the watcher's again.
    #[inline]
    pub(super) fn finish(
        &mut self,
        slot: u32,
        lane: Lane,
        result: Result<usize, Errno>,
    ) -> Option<Completion> {
        let entry = self.slots.get_mut(slot as usize)?;
        let key = entry.key(lane);
        entry.set_op(lane, Op::Idle);
        self.loads.end(key);
        Some(Completion::last(key, result.map(transferred)))
    }
}

#[inline]
fn leased(lease: Option<SwapBuf>) -> Payload {
    lease.map_or(Payload::None, Payload::Lease)
}
