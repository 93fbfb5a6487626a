//! From a request to a submission queue entry: what the kernel is told. The memory that an entry
//! names lies in the request's load, which is busy until the kernel has answered.

use io_uring::types::Fd;
use io_uring::{opcode, squeue};

use super::in_flight::Op;
use super::{BUFFER_GROUP, Uring};
use crate::error::Errno;
use crate::sys::{self, TRANSFER_MAX};
use crate::{Interest, Request};

/// `IORING_RECVSEND_POLL_FIRST` of io_uring_enter(2), since Linux 5.19.
const POLL_FIRST: u16 = 1;

const WRITE_FLAGS: i32 = libc::MSG_NOSIGNAL | libc::MSG_WAITALL;

impl Uring {
    /// The entry for a write.
    #[inline]
    pub(super) fn send(&mut self, key: u32, fd: Fd) -> squeue::Entry {
        self.loads.begin(key);
        let rest = self.loads.unwritten(key);
        let (at, len) = (rest.as_ptr(), rest.len().min(TRANSFER_MAX));
        let entry = opcode::Send::new(fd, at, len as u32);
        entry.flags(WRITE_FLAGS).build()
    }

    /// The entry for any request, and what its completion will mean.
    pub(super) fn entry(
        &mut self,
        key: u32,
        fd: Fd,
        request: Request,
    ) -> Result<(squeue::Entry, Op), Errno> {
        Ok(match request {
            Request::ReadSwap => (receive(fd, false), Op::RecvSwap),
            Request::Write => (self.send(key, fd), Op::Transfer),
            Request::Read => {
                // A buffer that cannot be read into has no room, and the kernel would say "end".
                let rest = self.loads.unread(key);
                let (at, len) = (rest.as_mut_ptr(), rest.len().min(TRANSFER_MAX));
                self.loads.begin(key);
                (opcode::Recv::new(fd, at, len as u32).build(), Op::Transfer)
            }
            Request::ReadStream => {
                // Busy, so that the account stays.
                self.loads.begin(key);
                let entry = if self.features.multishot {
                    opcode::RecvMulti::new(fd, BUFFER_GROUP).build()
                } else {
                    // The watcher starts it again, as after any success.
                    receive(fd, false)
                };
                (entry, Op::RecvStream)
            }
            Request::AcceptStream if self.features.multishot => {
                let entry = opcode::AcceptMulti::new(fd).flags(libc::SOCK_CLOEXEC);
                (entry.build(), Op::Accept)
            }
            Request::Accept | Request::AcceptStream => {
                let null = std::ptr::null_mut();
                let entry = opcode::Accept::new(fd, null, std::ptr::null_mut());
                (entry.flags(libc::SOCK_CLOEXEC).build(), Op::Accept)
            }
            Request::Connect => {
                let to = self.loads.address(key)?;
                let (at, len) = (to.as_ptr(), to.len());
                self.loads.begin(key);
                (
                    opcode::Connect::new(fd, at.cast(), len).build(),
                    Op::Connect,
                )
            }
            Request::Ready(interest) => (poll_entry(fd, interest), Op::Ready),
        })
    }

    /// The entry for several writes.
    pub(super) fn send_many(&mut self, fd: Fd, keys: &[u32]) -> Option<squeue::Entry> {
        let header = self.loads.begin_batch(keys)?.header().cast_const();
        let entry = opcode::SendMsg::new(fd, header).flags(WRITE_FLAGS as u32);
        Some(entry.build())
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

pub(super) fn poll_entry(fd: Fd, interest: Interest) -> squeue::Entry {
    opcode::PollAdd::new(fd, sys::poll_events(interest) as u32).build()
}
