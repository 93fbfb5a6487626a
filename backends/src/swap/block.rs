//! One buffer of the pool: its memory, the one writer that it can have, and its return to the pool.

use std::alloc::{Layout, alloc, dealloc};
use std::fmt;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering, fence};

use super::credit::CreditCell;
use super::{Credit, Shared, SwapBuf};

/// Blocks start on a page, so that small reads never share one with foreign memory.
const BLOCK_ALIGN: usize = 4096;

/// The owner's share of a block's reference count. Leases are not counted one by one when they are
/// cut, because that would be an atomic operation a message. They are counted all at once when the
/// owner lets go. Until then the count moves around this number.
const OWNER: usize = 1 << (usize::BITS - 2);

/// A count that only forgotten clones can reach: more references than memory could hold.
pub(super) const REFS_MAX: usize = OWNER + OWNER / 2;

/// A block that the kernel fills. It is the only handle that may write to the block.
pub struct OpenBlock {
    block: NonNull<Block>,
    used: usize,
    size: usize,
}

pub(super) struct Block {
    pub(super) refs: AtomicUsize,
    /// The number of leases cut since the checkout. Written by the owner alone.
    issued: AtomicUsize,
    pub(super) data: NonNull<u8>,
    size: usize,
    /// Valid while the block is out: the checkout holds a strong count of the `Arc`.
    pub(super) shared: *const Shared,
    /// Set for a private block that is out.
    private: Option<Private>,
}

/// The additional data of a private block.
#[derive(Clone, Copy)]
struct Private {
    /// The account that the block is charged to.
    account: NonNull<CreditCell>,
    /// The block's key among the private blocks that are out.
    key: usize,
}

// SAFETY: an `OpenBlock` is the unique handle of its block's unwritten rest; nothing in it is bound
// to a thread.
unsafe impl Send for OpenBlock {}

impl OpenBlock {
    /// Takes a free block out of its pool. A private block, which has a key there, is charged to an
    /// account as a whole, until its last lease is gone.
    ///
    /// # Safety
    /// The block is free: it has no leases and no `OpenBlock`, and nobody else looks at its fields.
    pub(super) unsafe fn check_out(
        block: NonNull<Block>,
        shared: &Arc<Shared>,
        private: Option<(&Credit, usize)>,
    ) -> Self {
        let shared = Arc::into_raw(Arc::clone(shared));
        // SAFETY: as the caller says.
        let size = unsafe { block.as_ref() }.size;
        let private = private.map(|(account, key)| Private {
            account: account.charge(size as u32),
            key,
        });
        // SAFETY: as above.
        unsafe {
            (*block.as_ptr()).shared = shared;
            (*block.as_ptr()).private = private;
            block.as_ref().issued.store(0, Ordering::Relaxed);
            block.as_ref().refs.store(OWNER, Ordering::Relaxed);
        }
        OpenBlock {
            block,
            used: 0,
            size,
        }
    }

    /// The address where the kernel may write next, and the length of the room there. The memory is
    /// not initialised.
    #[inline]
    pub fn tail(&mut self) -> (*mut u8, usize) {
        // SAFETY: `used <= size`, the size of the allocation behind `data`.
        let at = unsafe { self.block.as_ref().data.as_ptr().add(self.used) };
        (at, self.size - self.used)
    }

    /// The size of the whole block in bytes.
    pub fn size(&self) -> usize {
        self.size
    }

    /// The number of bytes that are not used yet.
    #[inline]
    pub fn left(&self) -> usize {
        self.size - self.used
    }

    /// Cuts a lease of the next `len` bytes, charged to `credit` if there is one.
    ///
    /// # Safety
    /// The first `len` bytes of [`tail`](OpenBlock::tail) were written, and nobody will write to
    /// them again while the lease lives.
    #[inline]
    pub unsafe fn lease(&mut self, len: usize, credit: Option<&Credit>) -> SwapBuf {
        debug_assert!(len <= self.left());
        let at = self.used;
        self.used += len;
        // SAFETY: the block lives while it is out, and `self` says that it is. Only the owner
        // writes `issued`.
        let issued = unsafe { &self.block.as_ref().issued };
        issued.store(issued.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
        // SAFETY: the caller vouches for the bytes; the lease was counted just now.
        unsafe { SwapBuf::cut(self.block, at, len, credit) }
    }
}

impl Drop for OpenBlock {
    fn drop(&mut self) {
        // SAFETY: the block is out until the count is zero, and `OWNER` still stands in it.
        let block = unsafe { self.block.as_ref() };
        let surplus = OWNER - block.issued.load(Ordering::Relaxed);
        // SAFETY: `surplus` is the owner's share less the references that belong to the leases it
        // cut.
        unsafe { release(self.block, surplus) };
    }
}

impl fmt::Debug for OpenBlock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "OpenBlock({} of {} bytes used)", self.used, self.size)
    }
}

/// Gives up `count` references of a block and returns it to its pool if they were the last.
///
/// # Safety
/// The caller owns these references and does not touch the block afterwards.
#[inline]
pub(super) unsafe fn release(block: NonNull<Block>, count: usize) {
    // SAFETY: the caller's references keep the block out, hence alive.
    let header = unsafe { block.as_ref() };
    if header.refs.fetch_sub(count, Ordering::Release) == count {
        // SAFETY: these were the last.
        unsafe { give_back(block) };
    }
}

/// Returns a block to its pool.
///
/// # Safety
/// Its last reference was just given up, by the caller.
#[cold]
unsafe fn give_back(block: NonNull<Block>) {
    // Other threads' reads through their leases happen before the block is written again.
    fence(Ordering::Acquire);
    // SAFETY: the block stays where it is while it is out, and it is out until this is done.
    let header = unsafe { block.as_ref() };
    let private = header.private;
    // SAFETY: the checkout made this pointer from an `Arc`; the last reference gives it back.
    let shared = unsafe { Arc::from_raw(header.shared) };
    if !shared.is_ours() {
        // The block goes with its pool.
        return;
    }
    match private {
        None => shared.take_back(block),
        Some(Private { account, key }) => {
            let size = header.size as u32;
            shared.take_back_private(block, key);
            // SAFETY: the checkout charged this many bytes, for this block.
            unsafe { CreditCell::release(account, size, &shared) };
        }
    }
}

impl Block {
    /// A free block. `None` if the system has no memory.
    pub(super) fn allocate(size: usize) -> Option<NonNull<Block>> {
        let layout = layout(size)?;
        // SAFETY: the layout's size is not zero.
        let data = NonNull::new(unsafe { alloc(layout) })?;
        let block = Box::new(Block {
            refs: AtomicUsize::new(0),
            issued: AtomicUsize::new(0),
            data,
            size,
            shared: std::ptr::null(),
            private: None,
        });
        Some(NonNull::from(Box::leak(block)))
    }

    /// Frees a block.
    ///
    /// # Safety
    /// It is free: no lease and no `OpenBlock` points to it, and none will.
    pub(super) unsafe fn free(block: NonNull<Block>) {
        // SAFETY: as the caller says; the memory was allocated by `allocate`, with the same layout.
        unsafe {
            let block = Box::from_raw(block.as_ptr());
            if let Some(layout) = layout(block.size) {
                dealloc(block.data.as_ptr(), layout);
            }
        }
    }

    /// The number of leases of this block that are alive. Both counts may change meanwhile.
    pub(super) fn lease_count(&self) -> usize {
        let refs = self.refs.load(Ordering::Relaxed);
        if refs > OWNER / 2 {
            (refs + self.issued.load(Ordering::Relaxed)).saturating_sub(OWNER)
        } else {
            refs
        }
    }
}

fn layout(size: usize) -> Option<Layout> {
    Layout::from_size_align(size.max(1), BLOCK_ALIGN).ok()
}
