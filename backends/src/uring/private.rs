//! Private reads: each fills a small block that belongs to one connection, when all other blocks
//! are out. They are tried once and never wait, so that no idle connection holds a block.

use std::collections::BTreeMap;

use io_uring::opcode;
use io_uring::types::Fd;

use super::Uring;
use super::in_flight::RingOp;
use super::polled::Moved;
use crate::error::Errno;
use crate::swap::OpenBlock;
use crate::{Completion, LaneId, Outcome};

/// The blocks that the kernel may write to, until the completion of their read.
pub(super) type PrivateReads = BTreeMap<LaneId, OpenBlock>;

impl Uring {
    /// Starts a private read of a socket.
    #[cold]
    pub(super) fn start_private(&mut self, at: LaneId, fd: Fd) -> Option<Completion> {
        let mut open_block = match self.private_block(at) {
            Ok(open_block) => open_block,
            Err(errno) => return Some(Completion::last(at, Err(errno))),
        };
        let (room, len) = open_block.tail();
        let before = self.private.insert(at, open_block);
        debug_assert!(before.is_none(), "{at:?} reads privately already");
        let entry = opcode::Recv::new(fd, room, len as u32)
            .flags(libc::MSG_DONTWAIT)
            .build();
        // SAFETY: the block is kept until the completion; the teardown waits for that, or keeps the
        // block.
        unsafe { self.launch(at, RingOp::RecvPrivate, entry) };
        None
    }

    /// Ends a private read with a lease of the bytes that it brought, if there are any.
    #[cold]
    pub(super) fn end_private(&mut self, at: LaneId, result: Result<u32, Errno>) -> Outcome {
        let open_block = self.private.remove(&at);
        debug_assert!(open_block.is_some(), "{at:?} does not read privately");
        match (open_block, result) {
            (Some(mut open_block), Ok(len @ 1..)) if len as usize <= open_block.left() => {
                // SAFETY: the kernel wrote these bytes, and no longer uses the block.
                Outcome::Leased(unsafe { open_block.lease(len as usize, None) })
            }
            (_, Ok(_)) => Outcome::Done(0),
            (_, Err(errno)) => Outcome::Failed(errno),
        }
    }

    /// Reads privately from a descriptor that is not a socket, at once.
    pub(super) fn read_private(&mut self, at: LaneId) -> Result<Moved, Errno> {
        let mut open_block = self.private_block(at)?;
        let (room, size) = open_block.tail();
        let socket = self.in_flight.get_mut(at.slot());
        let socket = socket.ok_or(Errno(libc::EBADF))?;
        let mut calls = socket.no_wait.calls(socket.fd, &mut self.counts);
        // SAFETY: the block has room for `size` bytes, and nobody else writes to it.
        let len = unsafe { calls.read(room, size) }?;
        if len == 0 {
            return Ok(Moved::Bytes(0));
        }
        // SAFETY: `read(2)` wrote these bytes.
        Ok(Moved::Leased(unsafe { open_block.lease(len, None) }))
    }

    fn private_block(&self, at: LaneId) -> Result<OpenBlock, Errno> {
        let account = self.op_table.credit(at.slot());
        debug_assert!(account.is_some(), "{at:?} has no account");
        let block = account.and_then(|account| self.pool.checkout_private(account));
        block.ok_or(Errno(libc::ENOBUFS))
    }
}
