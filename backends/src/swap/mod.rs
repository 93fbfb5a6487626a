//! The swap pool: the memory of reads that bring no buffer of their own. It is packed densely,
//! shared by all connections of a watcher, and handed out as leases.
//!
//! A *block* is one buffer of the pool. A backend checks it out as an [`OpenBlock`], lets the
//! kernel write at its tail, and cuts a [`SwapBuf`] from the written bytes. Dropping the
//! `OpenBlock` means that the block is used up. It is free again when its last lease is gone, too.
//! Free blocks are handed out last in, first out, so that the working set stays small and warm.
//!
//! When all blocks are out, a connection that holds little gets a small *private* block, which is
//! charged to its account, its [`Credit`]. So it gets on, however much others hold. The watcher
//! decides which connection reads into which block, and which one waits.

mod block;
mod credit;
mod lease;

use std::fmt;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use slab::Slab;

use self::block::Block;
pub(crate) use block::OpenBlock;
pub use credit::{Credit, Threshold, Thresholds};
pub use lease::SwapBuf;

use crate::wake::Waker;

/// The size of a private block in bytes, unless the pool's blocks are smaller.
const PRIVATE_SIZE: usize = 4096;
/// The number of private blocks that a connection may hold: it can keep one and read on.
const PRIVATE_COUNT: usize = 2;
/// The number of free private blocks that are kept.
const PRIVATE_KEPT: usize = 16;

/// The swap buffers of one watcher. A backend takes blocks with `checkout` and `checkout_private`.
/// Leases return them, from any thread.
pub struct Pool {
    shared: Arc<Shared>,
}

/// The present use of a pool.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PoolUse {
    /// The number of leases alive, clones included.
    pub leases: usize,
    /// The number of blocks that are not free: being filled, or leased from.
    pub blocks_out: usize,
    /// The greatest number of blocks that were ever out at once.
    pub blocks_peak: usize,
    /// The bytes of memory that the pool holds, private blocks included.
    pub size_bytes: usize,
}

struct Shared {
    block_size: usize,
    blocks_max: usize,
    state: Mutex<State>,
    waker: Arc<Waker>,
    /// Some connections no longer wait for their own leases: the owner should look.
    has_returned: AtomicBool,
}

struct State {
    free: Vec<NonNull<Block>>,
    all: Vec<NonNull<Block>>,
    peak: usize,
    /// The private blocks that are out.
    private: Slab<NonNull<Block>>,
    private_free: Vec<NonNull<Block>>,
    /// The slots of connections that no longer wait for their own leases.
    returned: Vec<u32>,
    /// Whether the owner waits for a block to come back.
    wanted: bool,
    /// Whether the system had no memory for another block. Reset when a block comes back.
    out_of_memory: bool,
}

// SAFETY: the state's pointers lead to blocks that live until `Shared` is dropped. Their fields are
// atomics, or are written only by the one `OpenBlock` that a block can have at a time.
unsafe impl Send for Shared {}
// SAFETY: as above; shared access goes through the mutex and atomics.
unsafe impl Sync for Shared {}

impl Pool {
    /// A pool of at most `blocks_max` blocks of `block_size` bytes. Memory is allocated as needed.
    pub fn new(block_size: usize, blocks_max: usize, waker: Arc<Waker>) -> Self {
        Pool {
            shared: Arc::new(Shared {
                block_size,
                blocks_max,
                state: Mutex::new(State {
                    free: Vec::new(),
                    all: Vec::new(),
                    peak: 0,
                    private: Slab::new(),
                    private_free: Vec::new(),
                    returned: Vec::new(),
                    wanted: false,
                    out_of_memory: false,
                }),
                waker,
                has_returned: AtomicBool::new(false),
            }),
        }
    }

    /// The size of each block in bytes.
    pub fn block_size(&self) -> usize {
        self.shared.block_size
    }

    /// The size of a private block in bytes.
    pub fn private_size(&self) -> usize {
        PRIVATE_SIZE.min(self.shared.block_size)
    }

    /// The greatest number of bytes in all blocks, without the private ones.
    pub fn size_max(&self) -> usize {
        self.shared
            .block_size
            .saturating_mul(self.shared.blocks_max)
    }

    /// The thresholds of an account whose streams have a window of so many bytes.
    pub fn thresholds(&self, stream_window: u64) -> Thresholds {
        Thresholds {
            private_bytes: (self.private_size() * (PRIVATE_COUNT - 1)) as u64,
            window_bytes: stream_window / 2,
        }
    }

    /// Takes a block to fill: the one returned most recently, else a new one. `None` if all blocks
    /// are out, or if the system has no memory.
    pub fn checkout(&self) -> Option<OpenBlock> {
        let mut state = self.shared.lock();
        let block = match state.free.pop() {
            Some(block) => block,
            None if state.may_grow(&self.shared) => {
                let Some(block) = Block::allocate(self.shared.block_size) else {
                    state.out_of_memory = true;
                    return None;
                };
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
        // SAFETY: a free block has no leases and no `OpenBlock`; nobody else has it now.
        Some(unsafe { OpenBlock::check_out(block, &self.shared, None) })
    }

    /// Takes a private block, charged to this account. `None` if the system has no memory.
    pub fn checkout_private(&self, account: &Credit) -> Option<OpenBlock> {
        let mut state = self.shared.lock();
        let free = state.private_free.pop();
        let Some(block) = free.or_else(|| Block::allocate(self.private_size())) else {
            state.out_of_memory = true;
            return None;
        };
        let key = state.private.insert(block);
        drop(state);
        // SAFETY: a free block has no leases and no `OpenBlock`; nobody else has it now.
        Some(unsafe { OpenBlock::check_out(block, &self.shared, Some((account, key))) })
    }

    /// The number of blocks that checkouts could still get.
    pub fn blocks_available(&self) -> usize {
        let state = self.shared.lock();
        let new = match state.out_of_memory {
            true => 0,
            false => self.shared.blocks_max - state.all.len(),
        };
        state.free.len() + new
    }

    /// Asks for a wake-up when a block comes back. Look for one once more after this call.
    pub fn want_block(&self) {
        self.shared.lock().wanted = true;
    }

    /// Whether the system had no memory for another block, and none came back since.
    pub fn is_out_of_memory(&self) -> bool {
        self.shared.lock().out_of_memory
    }

    /// Declares that there may be memory again.
    pub fn try_memory_again(&self) {
        self.shared.lock().out_of_memory = false;
    }

    /// Whether [`take_returned`](Pool::take_returned) has a slot to take.
    #[inline]
    pub fn has_returned(&self) -> bool {
        self.shared.has_returned.load(Ordering::Relaxed)
    }

    /// Takes the slots of connections whose wait for their own leases is over. A slot may belong to
    /// another connection by now.
    pub fn take_returned(&self, into: &mut Vec<u32>) {
        if self.has_returned() && self.shared.has_returned.swap(false, Ordering::Acquire) {
            into.append(&mut self.shared.lock().returned);
        }
    }

    /// Counts the present use.
    pub fn usage(&self) -> PoolUse {
        let state = self.shared.lock();
        let private = state.private.iter().map(|(_, block)| block);
        let leases = state.all.iter().chain(private).map(|block| {
            // SAFETY: blocks live as long as `shared`; only their atomics are read.
            unsafe { block.as_ref() }.lease_count()
        });
        let private_count = state.private.len() + state.private_free.len();
        PoolUse {
            leases: leases.sum(),
            blocks_out: state.all.len() - state.free.len(),
            blocks_peak: state.peak,
            size_bytes: state.all.len() * self.shared.block_size
                + private_count * self.private_size(),
        }
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Pool").field(&self.usage()).finish()
    }
}

impl State {
    fn may_grow(&self, shared: &Shared) -> bool {
        self.all.len() < shared.blocks_max && !self.out_of_memory
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether this is the process that built the pool. In a forked child, the lock may be held for
    /// ever.
    fn is_ours(&self) -> bool {
        self.waker.process().is_current()
    }

    /// Takes back a block that is free again.
    fn take_back(&self, block: NonNull<Block>) {
        let mut state = self.lock();
        state.free.push(block);
        self.note_memory(state);
    }

    /// Takes back a private block that is free again.
    fn take_back_private(&self, block: NonNull<Block>, key: usize) {
        let mut state = self.lock();
        let known = state.private.try_remove(key);
        debug_assert_eq!(known, Some(block));
        if state.private_free.len() < PRIVATE_KEPT {
            state.private_free.push(block);
            return self.note_memory(state);
        }
        self.note_memory(state);
        // SAFETY: its last lease is gone, and the pool no longer knows of it.
        unsafe { Block::free(block) };
    }

    /// Notes that memory came back, and wakes the owner if it waits for some.
    fn note_memory(&self, mut state: MutexGuard<'_, State>) {
        state.out_of_memory = false;
        let wake = std::mem::take(&mut state.wanted);
        drop(state);
        if wake {
            self.waker.wake();
        }
    }

    /// Notes that the connection in this slot no longer waits for its own leases.
    fn note_returned(&self, slot: u32) {
        if !self.is_ours() {
            return;
        }
        self.lock().returned.push(slot);
        self.has_returned.store(true, Ordering::Release);
        self.waker.wake();
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        let state = self.state.get_mut().unwrap_or_else(PoisonError::into_inner);
        // Private blocks are still out only in a forked child.
        let private = state.private.drain().chain(state.private_free.drain(..));
        for block in state.all.drain(..).chain(private) {
            // SAFETY: every block that is out holds this `Shared` alive, so all are free now:
            // no lease and no `OpenBlock` points here.
            unsafe { Block::free(block) };
        }
    }
}
