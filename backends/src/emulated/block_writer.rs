//! The memory of swap reads: one block of the pool at a time. It is filled from the front by
//! whichever connection has data. So small reads of many connections lie side by side, and an idle
//! connection holds nothing.

use super::slot::Source;
use crate::error::Errno;
use crate::swap::{Credit, OpenBlock, Pool, SwapBuf};

/// Fills blocks of the pool, and decides when to go on to the next.
#[derive(Debug)]
pub(super) struct BlockWriter {
    pool: Pool,
    current: Option<OpenBlock>,
    /// The bytes at the tail that the last read brought and that are not leased yet.
    fresh: usize,
    /// The smallest tail worth reading into: the typical size of a read, within limits. So large
    /// messages are rarely cut, and small ones waste little at the end of a block.
    least: usize,
    /// The size of the largest read into the current block.
    largest: usize,
    block_size: usize,
}

impl BlockWriter {
    pub(super) fn new(pool: Pool) -> Self {
        let block_size = pool.block_size();
        BlockWriter {
            pool,
            current: None,
            fresh: 0,
            least: smallest(block_size),
            largest: 0,
            block_size,
        }
    }

    pub(super) fn pool(&self) -> &Pool {
        &self.pool
    }

    /// The bytes that reads could take before the pool is empty.
    pub(super) fn room_bytes(&mut self) -> usize {
        let least = self.least;
        self.fresh = 0;
        // A block with too small a tail is of use only to the pool.
        self.current = self
            .current
            .take()
            .filter(|open_block| open_block.left() >= least);
        let here = self.current.as_ref().map_or(0, OpenBlock::left);
        self.pool.blocks_available() * self.block_size + here
    }

    /// Reads once. Returns the bytes read and the bytes that there was room for. `ENOBUFS` if there
    /// is no memory to read into.
    #[inline]
    pub(super) fn read(&mut self, source: Source<'_>) -> Result<(usize, usize), Errno> {
        self.fresh = 0;
        let open_block = match &mut self.current {
            Some(open_block) if open_block.left() >= self.least => open_block,
            _ => self.advance().ok_or(Errno(libc::ENOBUFS))?,
        };
        let (len, asked) = receive(open_block, source)?;
        self.fresh = len;
        self.largest = self.largest.max(len);
        Ok((len, asked))
    }

    /// Reads once into a private block. Returns a lease of the bytes, if there are any, and the
    /// bytes that there was room for.
    pub(super) fn read_private(
        &self,
        source: Source<'_>,
        account: &Credit,
    ) -> Result<(Option<SwapBuf>, usize), Errno> {
        let open_block = self.pool.checkout_private(account);
        let mut open_block = open_block.ok_or(Errno(libc::ENOBUFS))?;
        let (len, asked) = receive(&mut open_block, source)?;
        if len == 0 {
            return Ok((None, asked));
        }
        // SAFETY: these bytes were just written, and nothing is written behind them.
        Ok((Some(unsafe { open_block.lease(len, None) }), asked))
    }

    /// A lease of the bytes of the last read, once. `None` if there are none.
    #[inline]
    pub(super) fn lease(&mut self, credit: Option<&Credit>) -> Option<SwapBuf> {
        let len = std::mem::take(&mut self.fresh);
        let open_block = self.current.as_mut().filter(|_| len > 0)?;
        // SAFETY: the last read wrote `len` bytes at the tail of the current block. Both are as it
        // left them: whatever changes the block or its tail sets `fresh` to zero. The block moves
        // its tail past the bytes with this lease, and has no other writer.
        Some(unsafe { open_block.lease(len, credit) })
    }

    /// Goes on to a fresh block. The old block goes back first, because it may be the one that
    /// comes next.
    #[cold]
    fn advance(&mut self) -> Option<&mut OpenBlock> {
        let typical = std::mem::take(&mut self.largest).max(self.least / 2);
        self.least = typical
            .min(self.block_size / 2)
            .max(smallest(self.block_size));
        self.current = None;
        self.current = self.pool.checkout();
        self.current.as_mut()
    }
}

/// Reads once into the tail of a block. Returns the bytes read and the bytes that there was room
/// for.
#[inline]
fn receive(open_block: &mut OpenBlock, source: Source<'_>) -> Result<(usize, usize), Errno> {
    let (at, asked) = open_block.tail();
    // SAFETY: `at` is the start of `asked` bytes that belong to `open_block` alone.
    let len = unsafe { source.read(at, asked) }?;
    Ok((len, asked))
}

/// The lower limit of `BlockWriter::least`: a sixteenth of a block may stay unused.
fn smallest(block_size: usize) -> usize {
    (block_size / 16).max(1)
}
