//! Private reads: into a small block that belongs to one connection, when all others are out. They are
//! tried once and never wait, so that no idle connection holds a block.

use std::collections::BTreeMap;

use io_uring::opcode;
use io_uring::types::Fd;

use super::Uring;
use super::in_flight::Op;
use crate::error::Errno;
use crate::swap::Filling;
use crate::{Completion, Payload, Place};

/// The blocks that the kernel may write to, until the completion of their read.
pub(super) type PrivateReads = BTreeMap<Place, Filling>;

impl Uring {
    /// Starts a private read of a socket.
    #[cold]
    pub(super) fn start_private(&mut self, at: Place, fd: Fd) {
        let mut filling = match self.private_block(at) {
            Ok(filling) => filling,
            Err(errno) => return self.immediate.push_back(Completion::last(at, Err(errno))),
        };
        let (room, len) = filling.tail();
        let before = self.private.insert(at, filling);
        debug_assert!(before.is_none(), "{at:?} reads privately already");
        let entry = opcode::Recv::new(fd, room, len as u32)
            .flags(libc::MSG_DONTWAIT)
            .build();
        // SAFETY: the block is kept until the completion; the teardown waits for that, or keeps it.
        unsafe { self.launch(at, Op::RecvPrivate, entry) };
    }

    /// Ends a private read, which brought so many bytes: their lease.
    #[cold]
    pub(super) fn end_private(&mut self, at: Place, result: Result<u32, Errno>) -> Payload {
        let filling = self.private.remove(&at);
        debug_assert!(filling.is_some(), "{at:?} does not read privately");
        match (filling, result) {
            (Some(mut filling), Ok(len @ 1..)) if len as usize <= filling.left() => {
                // SAFETY: the kernel wrote these bytes, and is through with the block.
                Payload::Lease(unsafe { filling.lease(len as usize, None) })
            }
            _ => Payload::None,
        }
    }

    /// Reads privately from what is no socket, at once.
    pub(super) fn read_private(&mut self, at: Place) -> Result<usize, Errno> {
        let mut filling = self.private_block(at)?;
        let (room, size) = filling.tail();
        let socket = self.in_flight.get_mut(at.slot());
        let socket = socket.ok_or(Errno(libc::EBADF))?;
        let mut calls = socket.no_wait.calls(socket.fd, &mut self.counts);
        // SAFETY: the block has room for `size` bytes, and nobody else writes to it.
        let len = unsafe { calls.read(room, size) }?;
        if len > 0 {
            // SAFETY: `read(2)` wrote these bytes.
            self.brought = Payload::Lease(unsafe { filling.lease(len, None) });
        }
        Ok(len)
    }

    fn private_block(&self, at: Place) -> Result<Filling, Errno> {
        let account = self.loads.credit(at.slot());
        debug_assert!(account.is_some(), "{at:?} has no account");
        let block = account.and_then(|account| self.pool.checkout_private(account));
        block.ok_or(Errno(libc::ENOBUFS))
    }
}
