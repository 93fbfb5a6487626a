//! Where swap reads put their bytes: one block of the pool at a time, filled from the front by
//! whichever connection has data, so that small reads of many connections lie side by side and
//! an idle connection holds nothing.

use std::os::fd::RawFd;

use super::slot::Source;
use crate::error::Errno;
use crate::swap::{Credit, Filling, Pool, SwapBuf};
use crate::sys;

/// The block being filled, and when to leave it.
#[derive(Debug)]
pub(super) struct Cursor {
    pool: Pool,
    current: Option<Filling>,
    /// What reads brought lately: a decaying maximum.
    typical: usize,
}

/// What one read brought.
pub(super) struct Taken {
    /// The bytes; `None` at the end.
    pub(super) lease: Option<SwapBuf>,
    /// How many there was room for.
    pub(super) asked: usize,
}

impl Cursor {
    pub(super) fn new(pool: Pool) -> Self {
        Cursor {
            pool,
            current: None,
            typical: 0,
        }
    }

    pub(super) fn pool(&self) -> &Pool {
        &self.pool
    }

    /// Bytes that reads could take before the pool is dry.
    pub(super) fn room_bytes(&mut self) -> usize {
        let least = self.least();
        // A block with too little left is of use only to the pool.
        self.current = self.current.take().filter(|filling| filling.left() >= least);
        let here = self.current.as_ref().map_or(0, Filling::left);
        self.pool.blocks_available() * self.pool.block_size() + here
    }

    /// Reads once; `ENOBUFS` if there is no memory to read into.
    #[inline]
    pub(super) fn read(
        &mut self,
        fd: RawFd,
        source: Source,
        credit: Option<&Credit>,
    ) -> Result<Taken, Errno> {
        let least = self.least();
        let filling = match &mut self.current {
            Some(filling) if filling.left() >= least => filling,
            current => next_block(current, &self.pool).ok_or(Errno(libc::ENOBUFS))?,
        };
        let (at, asked) = filling.tail();
        let len = sys::uninterrupted(|| {
            // SAFETY: `at` is the start of `asked` bytes that belong to `filling` alone.
            unsafe {
                match source {
                    Source::Socket => sys::recv(fd, at, asked),
                    Source::File => sys::read(fd, at, asked),
                }
            }
        })?;
        self.typical = len.max(self.typical - self.typical / 16);
        let lease = (len > 0).then(|| {
            // SAFETY: the call has just written `len` bytes at the tail; the filling moves past
            // them with this lease and has no other writer.
            unsafe { filling.lease(len, credit) }
        });
        Ok(Taken { lease, asked })
    }

    /// The smallest tail worth reading into: what reads typically bring, within limits, so that
    /// large messages are rarely cut and small ones waste little at the end of a block.
    #[inline]
    fn least(&self) -> usize {
        let size = self.pool.block_size();
        self.typical.clamp(size / 16, size / 2).max(1)
    }
}

/// Goes to a fresh block. The old one goes back first: it may be the one that comes next.
#[cold]
fn next_block<'a>(current: &'a mut Option<Filling>, pool: &Pool) -> Option<&'a mut Filling> {
    *current = None;
    *current = pool.checkout();
    current.as_mut()
}
