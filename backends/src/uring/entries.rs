//! Submission queue entries for requests. The memory that an entry names belongs to the lane's
//! operation data, which is busy until the kernel has answered.

use io_uring::types::Fd;
use io_uring::{opcode, squeue};

use super::in_flight::RingOp;
use super::{BUFFER_GROUP, Uring};
use crate::error::Errno;
use crate::sys::{self, TRANSFER_MAX};
use crate::{Interest, LaneId, Request};

/// `IORING_RECVSEND_POLL_FIRST` of io_uring_enter(2), since Linux 5.19.
const POLL_FIRST: u16 = 1;

/// A send is one attempt and never waits in the kernel (`waiting.rs` says why).
const WRITE_FLAGS: i32 = libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT;

impl Uring {
    /// The entry for a request, and the operation that its completion belongs to.
    pub(super) fn entry(
        &mut self,
        at: LaneId,
        fd: Fd,
        request: Request,
    ) -> Result<(squeue::Entry, RingOp), Errno> {
        Ok(match request {
            Request::WriteMany => {
                let batch = self.op_table.batch(at).ok_or(Errno(libc::EINVAL))?;
                let entry = opcode::SendMsg::new(fd, batch.header().cast_const());
                let entry = entry.flags(WRITE_FLAGS as u32).build();
                (entry, RingOp::Transfer)
            }
            Request::Read => {
                // A buffer that cannot be read into has no room. The kernel would then report the
                // end.
                let rest = self.op_table.unread(at);
                let (room, len) = (rest.as_mut_ptr(), rest.len().min(TRANSFER_MAX));
                (
                    opcode::Recv::new(fd, room, len as u32).build(),
                    RingOp::Transfer,
                )
            }
            Request::ReadStream if self.features.multishot && !self.lacks_buffers() => {
                let entry = opcode::RecvMulti::new(fd, BUFFER_GROUP).build();
                (entry, RingOp::RecvStream)
            }
            // The watcher starts it again, as after any success.
            Request::ReadStream | Request::ReadStep => {
                (receive(fd, self.lacks_buffers()), RingOp::RecvStream)
            }
            Request::AcceptStream => {
                let entry = opcode::AcceptMulti::new(fd).flags(libc::SOCK_CLOEXEC);
                (entry.build(), RingOp::Accept)
            }
            Request::Connect => {
                let to = self.op_table.address(at)?;
                let entry = opcode::Connect::new(fd, to.as_ptr().cast(), to.len());
                (entry.build(), RingOp::Connect)
            }
            // These requests are started elsewhere.
            Request::ReadSwap | Request::Write | Request::ReadPrivate | Request::Accept => {
                debug_assert!(false, "{request:?} has no entry");
                return Err(Errno(libc::EINVAL));
            }
            Request::Ready(interest) => (poll_entry(fd, interest), RingOp::Ready),
        })
    }
}

/// The entry for a swap read, which is attempted at once, or only after a poll. Even with the poll,
/// data that is there is read before a cancellation takes effect: the cancellation does not find a
/// request whose work is due.
#[inline]
pub(super) fn receive(fd: Fd, poll_first: bool) -> squeue::Entry {
    opcode::Recv::new(fd, std::ptr::null_mut(), 0)
        .buf_group(BUFFER_GROUP)
        .ioprio(u16::from(poll_first) * POLL_FIRST)
        .build()
        .flags(squeue::Flags::BUFFER_SELECT)
}

/// The entry for a write.
#[inline]
pub(super) fn send(fd: Fd, bytes: &[u8]) -> squeue::Entry {
    let len = bytes.len().min(TRANSFER_MAX);
    let entry = opcode::Send::new(fd, bytes.as_ptr(), len as u32);
    entry.flags(WRITE_FLAGS).build()
}

/// The entry for one accept.
pub(super) fn accept(fd: Fd) -> squeue::Entry {
    let null = std::ptr::null_mut();
    let entry = opcode::Accept::new(fd, null, std::ptr::null_mut());
    entry.flags(libc::SOCK_CLOEXEC).build()
}

pub(super) fn poll_entry(fd: Fd, interest: Interest) -> squeue::Entry {
    opcode::PollAdd::new(fd, sys::poll_events(interest) as u32).build()
}
