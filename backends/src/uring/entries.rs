//! From a request to a submission queue entry: what the kernel is told. The memory that an entry
//! names lies in the place's load, which is busy until the kernel has answered.

use io_uring::types::Fd;
use io_uring::{opcode, squeue};

use super::in_flight::Op;
use super::{BUFFER_GROUP, Uring};
use crate::error::Errno;
use crate::sys::{self, TRANSFER_MAX};
use crate::{Interest, Place, Request};

/// `IORING_RECVSEND_POLL_FIRST` of io_uring_enter(2), since Linux 5.19.
const POLL_FIRST: u16 = 1;

/// One attempt: a send never waits in the kernel (`waiting` says why).
const WRITE_FLAGS: i32 = libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT;

impl Uring {
    /// The entry for any request, and what its completion will mean.
    pub(super) fn entry(
        &mut self,
        at: Place,
        fd: Fd,
        request: Request,
    ) -> Result<(squeue::Entry, Op), Errno> {
        Ok(match request {
            Request::ReadSwap => {
                // One that begins with nothing lent waits for its data first, and would be overtaken by
                // those that begin after the next refill.
                if self.buffers.is_empty() {
                    self.buffers.refill(&self.pool);
                }
                (receive(fd, self.buffers.is_empty()), Op::RecvSwap)
            }
            Request::Write => (send(fd, self.loads.unwritten(at)), Op::Transfer),
            Request::WriteMany => {
                let batch = self.loads.batch(at).ok_or(Errno(libc::EINVAL))?;
                let entry = opcode::SendMsg::new(fd, batch.header().cast_const());
                let entry = entry.flags(WRITE_FLAGS as u32).build();
                (entry, Op::Transfer)
            }
            Request::Read => {
                // A buffer that cannot be read into has no room, and the kernel would say "end".
                let rest = self.loads.unread(at);
                let (room, len) = (rest.as_mut_ptr(), rest.len().min(TRANSFER_MAX));
                (
                    opcode::Recv::new(fd, room, len as u32).build(),
                    Op::Transfer,
                )
            }
            Request::ReadStream if self.features.multishot && !self.buffers.is_empty() => {
                let entry = opcode::RecvMulti::new(fd, BUFFER_GROUP).build();
                (entry, Op::RecvStream)
            }
            // The watcher starts it again, as after any success.
            Request::ReadStream | Request::ReadStep => {
                (receive(fd, self.buffers.is_empty()), Op::RecvStream)
            }
            Request::AcceptStream => {
                let entry = opcode::AcceptMulti::new(fd).flags(libc::SOCK_CLOEXEC);
                (entry.build(), Op::Accept)
            }
            Request::Accept => (accept(fd), Op::AcceptOnce),
            Request::Connect => {
                let to = self.loads.address(at)?;
                let entry = opcode::Connect::new(fd, to.as_ptr().cast(), to.len());
                (entry.build(), Op::Connect)
            }
            // They have a way of their own.
            Request::ReadPrivate => return Err(Errno(libc::EINVAL)),
            Request::Ready(interest) => (poll_entry(fd, interest), Op::Ready),
        })
    }
}

/// The entry for a swap read: tried at once, or not before the socket was polled. What is there then
/// is read all the same, even if a cancellation follows: the kernel does not find what it has to run.
#[inline]
pub(super) fn receive(fd: Fd, poll_first: bool) -> squeue::Entry {
    opcode::Recv::new(fd, std::ptr::null_mut(), 0)
        .buf_group(BUFFER_GROUP)
        .ioprio(u16::from(poll_first) * POLL_FIRST)
        .build()
        .flags(squeue::Flags::BUFFER_SELECT)
}

/// The entry for a write.
#[inline(always)]
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
