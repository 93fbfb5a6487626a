//! The swap pool: the memory that `read(None)` reads into, packed densely, shared by all
//! connections of a watcher and handed out as leases.
//!
//! A *block* is one buffer of the pool. A backend checks it out as a [`Filling`], lets the kernel
//! write at its end, and cuts a [`SwapBuf`] from what was written. Dropping the `Filling` says
//! "used up"; the block is free again when its last lease is gone, too. Free blocks are handed
//! out last in, first out, so that the working set stays small and warm.
//!
//! What reads do when the pool is dry is not decided here but by the watcher.

mod credit;
mod lease;

use std::alloc::{Layout, alloc, dealloc};
use std::fmt;
use std::ops::Add;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering, fence};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

pub use credit::Credit;
pub use lease::SwapBuf;

use crate::wake::Waker;

/// Blocks start on a page, so that small reads never share one with foreign memory.
const BLOCK_ALIGN: usize = 4096;

/// What the owner's hold counts for in a block's reference count. Leases are not counted when
/// they are cut (that would be an atomic operation a message) but all at once when the owner lets
/// go; until then the count moves around this number.
const OWNER: usize = 1 << (usize::BITS - 2);

/// The owner's handle of a watcher's pool.
pub struct Pool {
    shared: Arc<Shared>,
}

/// How a pool is used at the moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PoolUse {
    /// Leases that are alive, clones included.
    pub leases: usize,
    /// Blocks that are not free: being filled, or leased from.
    pub blocks_out: usize,
    /// The most blocks that were ever out at once.
    pub blocks_peak: usize,
    /// Bytes of memory that the pool holds.
    pub size_bytes: usize,
}

/// One block being filled by the kernel; the only handle that may write to it.
pub struct Filling {
    block: NonNull<Block>,
    used: usize,
    size: usize,
}

struct Shared {
    block_size: usize,
    blocks_max: usize,
    state: Mutex<State>,
    waker: Arc<Waker>,
    /// A paused stream got leases back: its owner should look.
    credit_back: AtomicBool,
}

struct State {
    free: Vec<NonNull<Block>>,
    all: Vec<NonNull<Block>>,
    peak: usize,
    /// The owner sleeps and would read if it had a block.
    hungry: bool,
}

struct Block {
    refs: AtomicUsize,
    /// Leases cut since the checkout. Written by the owner alone.
    issued: AtomicUsize,
    data: NonNull<u8>,
    /// Valid while the block is out: a checkout holds a strong count of the `Arc`.
    shared: *const Shared,
}

// SAFETY: the state's pointers are to blocks that live until `Shared` is dropped and whose fields
// are atomics, or written only by the one `Filling` that can exist of a block at a time.
unsafe impl Send for Shared {}
// SAFETY: as above; shared access goes through the mutex and atomics.
unsafe impl Sync for Shared {}
// SAFETY: a `Filling` is the unique handle of its block's unwritten rest; nothing in it is bound
// to a thread.
unsafe impl Send for Filling {}

impl Add for PoolUse {
    type Output = PoolUse;

    fn add(self, other: PoolUse) -> PoolUse {
        PoolUse {
            leases: self.leases + other.leases,
            blocks_out: self.blocks_out + other.blocks_out,
            blocks_peak: self.blocks_peak + other.blocks_peak,
            size_bytes: self.size_bytes + other.size_bytes,
        }
    }
}

impl Pool {
    /// A pool of at most `blocks_max` blocks of `block_size` bytes; memory is allocated as needed.
    pub fn new(block_size: usize, blocks_max: usize, waker: Arc<Waker>) -> Self {
        Pool {
            shared: Arc::new(Shared {
                block_size,
                blocks_max,
                state: Mutex::new(State {
                    free: Vec::new(),
                    all: Vec::new(),
                    peak: 0,
                    hungry: false,
                }),
                waker,
                credit_back: AtomicBool::new(false),
            }),
        }
    }

    /// The size of each block in bytes.
    pub fn block_size(&self) -> usize {
        self.shared.block_size
    }

    /// Takes a block to fill: the one returned most recently, else a new one. `None` when the
    /// pool is dry, or the system has no memory.
    pub fn checkout(&self) -> Option<Filling> {
        let mut state = self.shared.lock();
        let block = match state.free.pop() {
            Some(block) => block,
            None if state.all.len() < self.shared.blocks_max => {
                let block = Block::allocate(self.shared.block_size)?;
                state.all.push(block);
                // Room in the free list for every block: a return never allocates.
                let len = state.free.len();
                let want = state.all.len();
                state.free.reserve(want - len);
                block
            }
            None => return None,
        };
        state.peak = state.peak.max(state.all.len() - state.free.len());
        drop(state);
        let shared = Arc::into_raw(Arc::clone(&self.shared));
        // SAFETY: a free block has no leases and no `Filling`: nobody else looks at its fields.
        unsafe {
            (*block.as_ptr()).shared = shared;
            block.as_ref().issued.store(0, Ordering::Relaxed);
            block.as_ref().refs.store(OWNER, Ordering::Relaxed);
        }
        Some(Filling {
            block,
            used: 0,
            size: self.shared.block_size,
        })
    }

    /// How many blocks a checkout could still get.
    pub fn blocks_available(&self) -> usize {
        let state = self.shared.lock();
        state.free.len() + (self.shared.blocks_max - state.all.len())
    }

    /// Asks for a wake-up when a block comes back. False if one is there already.
    pub fn sleep_hungry(&self) -> bool {
        let mut state = self.shared.lock();
        let dry = state.free.is_empty() && state.all.len() >= self.shared.blocks_max;
        state.hungry = dry;
        dry
    }

    /// Whether a paused stream got bytes back.
    pub fn has_credit_back(&self) -> bool {
        self.shared.credit_back.load(Ordering::Relaxed)
    }

    /// The same, and forgets it.
    pub fn take_credit_back(&self) -> bool {
        self.has_credit_back() && self.shared.credit_back.swap(false, Ordering::Acquire)
    }

    /// Counts what is in use now.
    pub fn usage(&self) -> PoolUse {
        let state = self.shared.lock();
        let leases = state.all.iter().map(|block| {
            // SAFETY: blocks live as long as `shared`; both fields are atomics.
            let block = unsafe { block.as_ref() };
            let refs = block.refs.load(Ordering::Relaxed);
            if refs > OWNER / 2 {
                (refs + block.issued.load(Ordering::Relaxed)).saturating_sub(OWNER)
            } else {
                refs
            }
        });
        PoolUse {
            leases: leases.sum(),
            blocks_out: state.all.len() - state.free.len(),
            blocks_peak: state.peak,
            size_bytes: state.all.len() * self.shared.block_size,
        }
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Pool").field(&self.usage()).finish()
    }
}

impl Filling {
    /// Where the kernel may write next, and how much. The memory is not initialised.
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

    /// Bytes that are not used yet.
    #[inline]
    pub fn left(&self) -> usize {
        self.size - self.used
    }

    /// Cuts a lease of the next `len` bytes, charged to `credit` if there is one.
    ///
    /// # Safety
    /// The first `len` bytes of [`tail`](Filling::tail) were written, and nobody will write to
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

impl Drop for Filling {
    fn drop(&mut self) {
        // SAFETY: the block is out until the count is zero, and `OWNER` still stands in it.
        let block = unsafe { self.block.as_ref() };
        let surplus = OWNER - block.issued.load(Ordering::Relaxed);
        // SAFETY: `surplus` is the owner's hold less the leases it cut.
        unsafe { release(self.block, surplus) };
    }
}

impl fmt::Debug for Filling {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Filling({} of {} bytes used)", self.used, self.size)
    }
}

/// Gives up `count` references of a block and returns it to its pool if they were the last.
///
/// # Safety
/// The caller owns these references and does not touch the block afterwards.
#[inline]
unsafe fn release(block: NonNull<Block>, count: usize) {
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
    // SAFETY: the block stays where it is while it is out, and it is out until this is done.
    let header = unsafe { block.as_ref() };
    // What other threads read through their leases happened before the block is written again.
    fence(Ordering::Acquire);
    // SAFETY: the checkout made this pointer of an `Arc`; the last reference gives it back.
    let shared = unsafe { Arc::from_raw(header.shared) };
    if !shared.waker.process().is_current() {
        // In a forked child the lock may be held for ever. The block goes with its pool.
        return;
    }
    let mut state = shared.lock();
    state.free.push(block);
    let wake = std::mem::take(&mut state.hungry);
    drop(state);
    if wake {
        shared.waker.wake();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        let layout = block_layout(self.block_size);
        let state = self.state.get_mut().unwrap_or_else(PoisonError::into_inner);
        for block in state.all.drain(..) {
            // SAFETY: every block that is out holds this `Shared` alive, so all are free now:
            // no lease and no `Filling` points here. Allocated as `Block::allocate` did.
            unsafe {
                let block = Box::from_raw(block.as_ptr());
                if let Some(layout) = layout {
                    dealloc(block.data.as_ptr(), layout);
                }
            }
        }
    }
}

impl Block {
    fn allocate(size: usize) -> Option<NonNull<Block>> {
        let layout = block_layout(size)?;
        // SAFETY: the layout's size is not zero.
        let data = NonNull::new(unsafe { alloc(layout) })?;
        let block = Box::new(Block {
            refs: AtomicUsize::new(0),
            issued: AtomicUsize::new(0),
            data,
            shared: std::ptr::null(),
        });
        Some(NonNull::from(Box::leak(block)))
    }
}

fn block_layout(size: usize) -> Option<Layout> {
    Layout::from_size_align(size.max(1), BLOCK_ALIGN).ok()
}
