//! Accepting one connection, and connecting to Unix sockets: attempts that do not wait in the kernel.
//!
//! An accept that waits in the kernel is tried again whenever a connection comes. If others take it each time,
//! as they may where a listener is shared, the kernel gives up after some rounds and leaves the accept to a
//! thread of its own. An accept that goes on (multishot) is not concerned.

use io_uring::types::Fd;
use io_uring::{opcode, squeue};

use super::entries::accept;
use super::in_flight::Op;
use super::{IGNORED, Uring};
use crate::error::Errno;
use crate::{Completion, Place, sys};

impl Uring {
    #[cold]
    pub(super) fn start_accept(&mut self, at: Place) {
        let socket = self.in_flight.get_mut(at.slot());
        if socket.is_some_and(|socket| socket.begin(at.lane(), Op::AcceptOnce)) {
            self.loads.begin(at);
            self.try_accept(at);
        }
    }

    /// Accepts what is there: the cancellation behind it ends the accept otherwise, in the same call.
    fn try_accept(&mut self, at: Place) {
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

    /// Goes on after an attempt that found nothing, or after the poll. False if it has ended.
    pub(super) fn accepts_again(&mut self, at: Place, op: Op, result: Result<u32, Errno>) -> bool {
        let Some(socket) = self.in_flight.get_mut(at.slot()) else {
            return false;
        };
        if socket.is_cancelled(at.lane()) {
            return false;
        }
        match (op, result) {
            (Op::AcceptOnce, Err(Errno(libc::ECANCELED | libc::EAGAIN))) => {
                socket.turn_into(at.lane(), Op::PolledAccept);
                self.poll(at);
                true
            }
            (Op::PolledAccept, Ok(_)) => {
                socket.turn_into(at.lane(), Op::AcceptOnce);
                self.try_accept(at);
                true
            }
            _ => false,
        }
    }

    /// Connects to a Unix socket: that is done at once, or refused. A ring would wait for a full backlog
    /// in a thread of the kernel's.
    #[cold]
    pub(super) fn connect_unix(&mut self, at: Place) {
        let to = self.loads.address(at);
        let result = match (self.in_flight.socket(at.slot()), to) {
            (Some(socket), Ok(to)) => sys::connect_nonblocking(&mut self.counts, socket, to),
            (_, Err(errno)) => Err(errno),
            (None, _) => Err(Errno(libc::EBADF)),
        };
        let completion = Completion::last(at, result.map(|()| 0));
        self.immediate.push_back(completion);
    }
}
