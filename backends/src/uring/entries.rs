//! From a request to a submission queue entry: what the kernel is told, and what stays with the
//! lane until it has answered.

use io_uring::types::Fd;
use io_uring::{opcode, squeue};

use super::lanes::{Load, Op};
use super::{BUFFER_GROUP, Uring};
use crate::error::Errno;
use crate::sys::{self, TRANSFER_MAX};
use crate::{Interest, Lane, Request};

impl Uring {
    /// Records the operation on its lane and gives the entry for it. The memory that the entry
    /// names lies in the lane's load, on the heap.
    #[inline]
    pub(super) fn prepare(
        &mut self,
        slot: u32,
        lane: Lane,
        fd: Fd,
        request: Request,
    ) -> Result<squeue::Entry, Errno> {
        let entry = match request {
            Request::ReadSwap => {
                self.lanes.begin(slot, lane, Op::RecvSwap, Load::None);
                opcode::Recv::new(fd, std::ptr::null_mut(), 0)
                    .buf_group(BUFFER_GROUP)
                    .build()
                    .flags(squeue::Flags::BUFFER_SELECT)
            }
            Request::ReadStream(credit) => {
                let load = Load::Credit(credit);
                self.lanes.begin(slot, lane, Op::RecvStream, load);
                opcode::RecvMulti::new(fd, BUFFER_GROUP).build()
            }
            Request::Read { mut buffer, from } => {
                // A buffer that cannot be read into has no room, and the kernel would say "end".
                let rest = buffer.spare(from).unwrap_or_default();
                let (at, len) = (rest.as_mut_ptr(), rest.len().min(TRANSFER_MAX));
                let load = Load::Read { buffer, from };
                self.lanes.begin(slot, lane, Op::Other, load);
                opcode::Recv::new(fd, at, len as u32).build()
            }
            Request::Write { buffer, from } => {
                let rest = buffer.get(from..).unwrap_or_default();
                let (at, len) = (rest.as_ptr(), rest.len().min(TRANSFER_MAX));
                let load = Load::Write { buffer, from };
                self.lanes.begin(slot, lane, Op::Other, load);
                opcode::Send::new(fd, at, len as u32)
                    .flags(libc::MSG_NOSIGNAL | libc::MSG_WAITALL)
                    .build()
            }
            Request::WriteBatch(mut batch) => {
                let header = batch.header().cast_const();
                let load = Load::Batch(batch);
                self.lanes.begin(slot, lane, Op::Other, load);
                opcode::SendMsg::new(fd, header)
                    .flags((libc::MSG_NOSIGNAL | libc::MSG_WAITALL) as u32)
                    .build()
            }
            Request::Accept => {
                self.lanes.begin(slot, lane, Op::Accept, Load::None);
                opcode::Accept::new(fd, std::ptr::null_mut(), std::ptr::null_mut())
                    .flags(libc::SOCK_CLOEXEC)
                    .build()
            }
            Request::AcceptStream => {
                self.lanes.begin(slot, lane, Op::AcceptStream, Load::None);
                opcode::AcceptMulti::new(fd)
                    .flags(libc::SOCK_CLOEXEC)
                    .build()
            }
            Request::Connect(to) => {
                let address = Box::new(to.to_raw()?);
                let (at, len) = (address.as_ptr(), address.len());
                let load = Load::Address { _to: address };
                self.lanes.begin(slot, lane, Op::Connect, load);
                opcode::Connect::new(fd, at.cast(), len).build()
            }
            Request::Ready(interest) => {
                self.lanes.begin(slot, lane, Op::Ready, Load::None);
                poll_entry(fd, interest)
            }
        };
        Ok(entry)
    }
}

pub(super) fn poll_entry(fd: Fd, interest: Interest) -> squeue::Entry {
    opcode::PollAdd::new(fd, sys::poll_events(interest) as u32).build()
}
