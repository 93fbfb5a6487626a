//! From an entry of the completion queue to a completion, and to what it brought.

use std::os::fd::{FromRawFd, OwnedFd};

use io_uring::cqueue;

use super::in_flight::{Op, Running};
use super::{IGNORED, Uring, WOKEN};
use crate::error::Errno;
use crate::{Completion, Lane, Payload, sys};

impl Uring {
    /// What an entry of the completion queue means, if it is one of a request's.
    #[inline(always)]
    pub(super) fn reap(&mut self, entry: &cqueue::Entry) -> Option<Completion> {
        let key = match entry.user_data() {
            IGNORED => return None,
            WOKEN => {
                self.wake_armed = false;
                return None;
            }
            key => key as u32,
        };
        let &Running {
            slot,
            op,
            cancelled,
            ..
        } = self.in_flight.get(key)?;
        let flags = entry.flags();
        let result = match entry.result() {
            len @ 1.. => Ok(len as u32),
            0 => self.nothing(key, flags),
            errno => Err(Errno(-errno)),
        };
        if op.is_polled() {
            return self.ready_polled(key, result);
        }
        let more = cqueue::more(flags);
        if !more {
            self.end(key, cancelled);
        }
        let result = match (op, result) {
            (Op::RecvSwap, Ok(len)) => {
                self.in_flight.learn(slot, len);
                self.brought = self.received(None, len, flags);
                result
            }
            (Op::Transfer, _) | (_, Err(_)) => result,
            (Op::RecvStream, Ok(len)) => {
                self.brought = self.received(Some(key), len, flags);
                result
            }
            (Op::Accept, Ok(fd)) => {
                // SAFETY: the kernel made this descriptor for us, and says so once.
                self.brought = Payload::Socket(unsafe { OwnedFd::from_raw_fd(fd as i32) });
                Ok(0)
            }
            (_, Ok(_)) => Ok(0),
        };
        Some(Completion { key, more, result })
    }

    /// What an operation means that brought nothing.
    ///
    /// The system tells a reset once, to whoever comes first, and then gives the end. A send that the
    /// kernel goes on with by itself (`MSG_WAITALL`) and that meets the reset half way ends with the
    /// bytes that it sent: then nobody has told it. So the end itself is looked at.
    #[cold]
    fn nothing(&self, key: u32, flags: u32) -> Result<u32, Errno> {
        let receives = |running: &&Running| {
            let ops = [Op::RecvSwap, Op::RecvStream, Op::Transfer];
            running.lane == Lane::Read && ops.contains(&running.op)
        };
        let running = self.in_flight.get(key).filter(receives);
        let socket = running.and_then(|running| self.in_flight.socket(running.slot));
        // Of a connection that the other side has closed, the kernel says that there is more to be
        // received: its end. One that is closed without that was reset.
        match socket {
            Some(socket) if !cqueue::sock_nonempty(flags) && sys::is_closed_tcp(socket) => {
                Err(Errno(libc::ECONNRESET))
            }
            _ => Ok(0),
        }
    }

    /// The lease of what a receive put into a lent buffer, charged to a stream's account.
    #[inline(always)]
    fn received(&mut self, stream: Option<u32>, len: u32, flags: u32) -> Payload {
        let Some(id) = cqueue::buffer_select(flags) else {
            return Payload::None;
        };
        let credit = stream.and_then(|key| self.loads.credit(key));
        match self.buffers.take(id, len as usize, flags, credit) {
            Some(lease) => Payload::Lease(lease),
            None => Payload::None,
        }
    }

    /// The operation has ended; what it used is the watcher's again.
    #[inline]
    pub(super) fn end(&mut self, key: u32, cancelled: bool) {
        self.in_flight.end(key);
        self.loads.end(key);
        self.cancelling -= usize::from(cancelled);
    }
}
