//! Single accepts, and connects to Unix sockets: attempts that do not wait in the kernel.
//!
//! The kernel tries a waiting accept again whenever a connection comes. If others take the
//! connection each time, as they may where a listener is shared, the kernel gives up after some
//! rounds and leaves the accept to a thread of its own. So a single accept is attempted at once,
//! and after a poll, but never waits. A multishot accept is not concerned.

use io_uring::types::Fd;
use io_uring::{opcode, squeue};

use super::entries::accept;
use super::in_flight::RingOp;
use super::{IGNORED, Uring};
use crate::error::Errno;
use crate::{Completion, LaneId, sys};

impl Uring {
    #[cold]
    pub(super) fn start_accept(&mut self, at: LaneId) -> Option<Completion> {
        if self.in_flight.begin(at, RingOp::AcceptOnce) {
            self.op_table.begin(at);
            self.try_accept(at);
        }
        None
    }

    /// Accepts a connection that is there. Otherwise the cancellation right behind it ends the
    /// accept, in the same system call.
    fn try_accept(&mut self, at: LaneId) {
        let Some(socket) = self.in_flight.get(at.slot()) else {
            return;
        };
        let number = u64::from(at.number());
        let entry = accept(Fd(socket.fd)).user_data(number);
        let cancel = opcode::AsyncCancel::new(number).build();
        let cancel = cancel.flags(squeue::Flags::SKIP_SUCCESS).user_data(IGNORED);
        // SAFETY: neither names memory.
        unsafe {
            self.push(entry);
            self.push(cancel);
        }
    }

    /// Goes on with an accept: an attempt that found nothing is followed by a poll, and a poll by
    /// an attempt. False if the accept has ended.
    pub(super) fn accepts_again(
        &mut self,
        at: LaneId,
        op: RingOp,
        result: Result<u32, Errno>,
    ) -> bool {
        let Some(socket) = self.in_flight.get_mut(at.slot()) else {
            return false;
        };
        if socket.is_cancelled(at.lane()) {
            return false;
        }
        match (op, result) {
            (RingOp::AcceptOnce, Err(Errno(libc::ECANCELED | libc::EAGAIN))) => {
                socket.turn_into(at.lane(), RingOp::PolledAccept);
                self.poll(at);
                true
            }
            (RingOp::PolledAccept, Ok(_)) => {
                socket.turn_into(at.lane(), RingOp::AcceptOnce);
                self.try_accept(at);
                true
            }
            _ => false,
        }
    }

    /// Connects to a Unix socket. The system does that at once, or refuses. The ring would wait for
    /// a full backlog in a thread of the kernel's.
    #[cold]
    pub(super) fn connect_unix(&mut self, at: LaneId) -> Completion {
        let to = self.op_table.address(at);
        let result = match (self.in_flight.socket(at.slot()), to) {
            (Some(socket), Ok(to)) => sys::connect_nonblocking(&mut self.counts, socket, to),
            (_, Err(errno)) => Err(errno),
            (None, _) => Err(Errno(libc::EBADF)),
        };
        Completion::last(at, result.map(|()| 0))
    }
}
