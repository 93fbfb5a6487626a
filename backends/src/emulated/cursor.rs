//! Where swap reads put their bytes: one block of the pool at a time, filled from the front by
//! whichever connection has data, so that small reads of many connections lie side by side and
//! an idle connection holds nothing.

use super::slot::Source;
use crate::error::Errno;
use crate::swap::{Credit, Filling, Pool, SwapBuf};

/// The block being filled, and when to leave it.
#[derive(Debug)]
pub(super) struct Cursor {
    pool: Pool,
    current: Option<Filling>,
    /// Bytes at the tail that the last read brought and nobody leased yet.
    fresh: usize,
    /// The smallest tail worth reading into: what reads typically bring, within limits, so that
    /// large messages are rarely cut and small ones waste little at the end of a block.
    least: usize,
    /// The most that one read brought into the current block.
    largest: usize,
    block_size: usize,
}

impl Cursor {
    pub(super) fn new(pool: Pool) -> Self {
        let block_size = pool.block_size();
        Cursor {
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

    /// Bytes that reads could take before the pool is dry.
    pub(super) fn room_bytes(&mut self) -> usize {
        let least = self.least;
        self.fresh = 0;
        // A block with too little left is of use only to the pool.
        self.current = self
            .current
            .take()
            .filter(|filling| filling.left() >= least);
        let here = self.current.as_ref().map_or(0, Filling::left);
        self.pool.blocks_available() * self.block_size + here
    }

    /// Reads once; returns how much came, and how much there was room for. `ENOBUFS` if there is
    /// no memory to read into.
    #[inline]
    pub(super) fn read(&mut self, source: Source<'_>) -> Result<(usize, usize), Errno> {
        self.fresh = 0;
        let filling = match &mut self.current {
            Some(filling) if filling.left() >= self.least => filling,
            _ => self.advance().ok_or(Errno(libc::ENOBUFS))?,
        };
        let (len, asked) = receive(filling, source)?;
        self.fresh = len;
        self.largest = self.largest.max(len);
        Ok((len, asked))
    }

    /// Reads once into a private block; a lease of what came, if anything did, and how much there was
    /// room for.
    pub(super) fn read_private(
        &self,
        source: Source<'_>,
        account: &Credit,
    ) -> Result<(Option<SwapBuf>, usize), Errno> {
        let filling = self.pool.checkout_private(account);
        let mut filling = filling.ok_or(Errno(libc::ENOBUFS))?;
        let (len, asked) = receive(&mut filling, source)?;
        if len == 0 {
            return Ok((None, asked));
        }
        // SAFETY: these bytes were just written, and nothing is written behind them.
        Ok((Some(unsafe { filling.lease(len, None) }), asked))
    }

    /// The bytes of the last read, once; `None` if there are none.
    #[inline]
    pub(super) fn lease(&mut self, credit: Option<&Credit>) -> Option<SwapBuf> {
        let len = std::mem::take(&mut self.fresh);
        let filling = self.current.as_mut().filter(|_| len > 0)?;
        // SAFETY: the last read wrote `len` bytes at the tail of the current block. Both are as it
        // left them: whatever changes the block or its tail sets `fresh` to zero. The filling
        // moves past the bytes with this lease, and has no other writer.
        Some(unsafe { filling.lease(len, credit) })
    }

    /// Goes to a fresh block. The old one goes back first: it may be the one that comes next.
    #[cold]
    fn advance(&mut self) -> Option<&mut Filling> {
        let typical = std::mem::take(&mut self.largest).max(self.least / 2);
        self.least = typical
            .min(self.block_size / 2)
            .max(smallest(self.block_size));
        self.current = None;
        self.current = self.pool.checkout();
        self.current.as_mut()
    }
}

/// Reads once to where the block is filled next; how much came, and how much there was room for.
#[inline(always)]
fn receive(filling: &mut Filling, source: Source<'_>) -> Result<(usize, usize), Errno> {
    let (at, asked) = filling.tail();
    // SAFETY: `at` is the start of `asked` bytes that belong to `filling` alone.
    let len = unsafe { source.read(at, asked) }?;
    Ok((len, asked))
}

/// The least that `Cursor::least` gets: a sixteenth of a block may stay unused.
fn smallest(block_size: usize) -> usize {
    (block_size / 16).max(1)
}
