//! `SwapBuf`, a lease of bytes in a swap block.

use std::fmt;
use std::ops::{Bound, Deref, RangeBounds};
use std::ptr::NonNull;
use std::sync::atomic::Ordering;

use super::Credit;
use super::block::{Block, REFS_MAX, release};
use super::credit::CreditCell;

/// A lease of received bytes in a swap buffer.
///
/// The bytes never change while the lease lives. It can be kept, cut, sent to other threads and
/// written to any connection, and it can outlive its watcher. A clone is one more lease of the same
/// bytes; nothing is copied.
///
/// A swap buffer takes new reads only after its last lease is dropped. So a lease of a few bytes
/// keeps a whole buffer: copy bytes that you keep for long. `Builder::swap_buffers` says what
/// happens when all are kept.
///
/// ```
/// use gaio::{Results, SwapBuf, Watcher};
/// use std::io::Write;
/// use std::os::unix::net::UnixStream;
///
/// # fn main() -> gaio::Result<(), Box<dyn std::error::Error>> {
/// let (ours, mut peer) = UnixStream::pair()?;
/// let mut watcher = Watcher::new()?;
/// let mut results = Results::new();
/// let conn = watcher.delegate(ours)?;
/// watcher.read((), conn, None)?;
/// peer.write_all(b"hello, world")?;
/// watcher.wait_io(&mut results)?;
/// let res = results.pop().expect("one read was submitted");
///
/// let whole: SwapBuf = res.buffer.into_swap().expect("a swap read");
/// let world = whole.slice(7..);
/// drop((whole, watcher));
/// assert_eq!(&world[..], b"world");
/// # Ok(())
/// # }
/// ```
pub struct SwapBuf {
    block: NonNull<Block>,
    at: u32,
    len: u32,
    credit: Option<NonNull<CreditCell>>,
    /// The bytes charged to `credit` for this lease. The view may have shrunk since.
    charged: u32,
}

// SAFETY: the leased bytes are never written while the lease lives, and the counts are atomics.
unsafe impl Send for SwapBuf {}
// SAFETY: as above: shared access only reads.
unsafe impl Sync for SwapBuf {}

impl SwapBuf {
    /// # Safety
    /// `at..at + len` of the block was written and stays so; the caller counted this lease.
    #[inline]
    pub(super) unsafe fn cut(
        block: NonNull<Block>,
        at: usize,
        len: usize,
        credit: Option<&Credit>,
    ) -> Self {
        SwapBuf {
            block,
            // A block has at most 1 GiB, so positions in it fit.
            at: at as u32,
            len: len as u32,
            credit: credit.map(|credit| credit.charge(len as u32)),
            charged: len as u32,
        }
    }

    /// The bytes in all living leases of the stream that this lease came from; 0 if it came from
    /// none.
    #[doc(hidden)]
    #[inline]
    pub fn stream_leased_bytes(&self) -> u64 {
        // SAFETY: this lease's charge keeps the cell alive.
        self.credit
            .map_or(0, |cell| unsafe { cell.as_ref() }.leased_bytes())
    }

    /// A lease of a part of the bytes. A range that reaches past the end is cut off there.
    pub fn slice(&self, range: impl RangeBounds<usize>) -> SwapBuf {
        let start = match range.start_bound() {
            Bound::Included(&start) => start,
            Bound::Excluded(&start) => start.saturating_add(1),
            Bound::Unbounded => 0,
        };
        let end = match range.end_bound() {
            Bound::Included(&end) => end.saturating_add(1),
            Bound::Excluded(&end) => end,
            Bound::Unbounded => usize::MAX,
        };
        let mut part = self.clone();
        part.truncate(end);
        part.advance(start);
        part
    }

    /// Removes the first `n` bytes from view, or all if there are fewer.
    pub(crate) fn advance(&mut self, n: usize) {
        let n = n.min(self.len as usize) as u32;
        self.at += n;
        self.len -= n;
    }

    /// Removes all but the first `n` bytes from view.
    pub(crate) fn truncate(&mut self, n: usize) {
        self.len = n.min(self.len as usize) as u32;
    }
}

impl Deref for SwapBuf {
    type Target = [u8];

    #[inline]
    fn deref(&self) -> &[u8] {
        // SAFETY: the block is alive while a lease is; `at..at + len` lies in it, was written
        // before the lease was cut and is not written while it lives.
        unsafe {
            let data = self.block.as_ref().data.as_ptr().add(self.at as usize);
            std::slice::from_raw_parts(data, self.len as usize)
        }
    }
}

impl Clone for SwapBuf {
    fn clone(&self) -> Self {
        // SAFETY: this lease keeps the block alive.
        let refs = unsafe { &self.block.as_ref().refs };
        if refs.fetch_add(1, Ordering::Relaxed) > REFS_MAX {
            // More forgotten clones than memory could hold. `Arc` aborts, too.
            std::process::abort();
        }
        let credit = self.credit.inspect(|cell| {
            // SAFETY: this lease's charge keeps the cell alive.
            unsafe { cell.as_ref() }.charge(self.len);
        });
        SwapBuf {
            block: self.block,
            at: self.at,
            len: self.len,
            credit,
            charged: self.len,
        }
    }
}

impl Drop for SwapBuf {
    #[inline]
    fn drop(&mut self) {
        if let Some(cell) = self.credit {
            // SAFETY: the block is alive, and so is its pool while a block is out; the charge is
            // this lease's own.
            unsafe { CreditCell::release(cell, self.charged, &*self.block.as_ref().shared) };
        }
        // SAFETY: this lease owns one reference and ends here.
        unsafe { release(self.block, 1) };
    }
}

impl AsRef<[u8]> for SwapBuf {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl From<SwapBuf> for bytes::Bytes {
    /// Converts without a copy, at the price of one small allocation.
    fn from(lease: SwapBuf) -> Self {
        bytes::Bytes::from_owner(lease)
    }
}

impl fmt::Debug for SwapBuf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SwapBuf({} bytes)", self.len)
    }
}
