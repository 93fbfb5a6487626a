//! The swap pool: the memory that `read(None)` reads into, packed densely, shared by all
//! connections of a watcher and handed out as leases.
//!
//! A *block* is one buffer of the pool. A backend checks it out as a [`Filling`], lets the kernel
//! write at its end, and cuts a [`SwapBuf`] from what was written. Dropping the `Filling` says
//! "used up"; the block is free again when its last lease is gone, too. Free blocks are handed
//! out last in, first out, so that the working set stays small and warm.
//!
//! When all blocks are out, a connection that holds little gets a small *private* block, which is
//! charged to its account, its [`Credit`]: whatever others hold, it gets on. Who reads into which, and
//! who waits, is not decided here but by the watcher.

mod block;
mod credit;
mod lease;

use std::fmt;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use slab::Slab;

use self::block::Block;
pub use block::Filling;
pub use credit::{Credit, Threshold, Thresholds};
pub use lease::SwapBuf;

use crate::wake::Waker;

/// The size of a private block in bytes, unless the pool's blocks are smaller.
const PRIVATE_SIZE: usize = 4096;
/// Private blocks that a connection may hold: so much it can keep while it reads on.
const PRIVATE_COUNT: usize = 2;
/// Free private blocks that are kept for the next.
const PRIVATE_KEPT: usize = 16;

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
    /// Bytes of memory that the pool holds, private blocks included.
    pub size_bytes: usize,
}

struct Shared {
    block_size: usize,
    blocks_max: usize,
    state: Mutex<State>,
    waker: Arc<Waker>,
    /// Connections wait no longer for their own leases: the owner should look.
    has_returned: AtomicBool,
}

struct State {
    free: Vec<NonNull<Block>>,
    all: Vec<NonNull<Block>>,
    peak: usize,
    /// Private blocks that are out.
    private: Slab<NonNull<Block>>,
    private_free: Vec<NonNull<Block>>,
    /// The slots of connections that wait no longer for their own leases.
    returned: Vec<u32>,
    /// The owner waits for a block to come back.
    wanted: bool,
    /// The system had no memory for another block. Forgotten when one comes back.
    out_of_memory: bool,
}

// SAFETY: the state's pointers are to blocks that live until `Shared` is dropped and whose fields
// are atomics, or written only by the one `Filling` that can exist of a block at a time.
unsafe impl Send for Shared {}
// SAFETY: as above; shared access goes through the mutex and atomics.
unsafe impl Sync for Shared {}

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

    /// The most that all blocks hold, private ones apart.
    pub fn size_max(&self) -> usize {
        self.shared
            .block_size
            .saturating_mul(self.shared.blocks_max)
    }

    /// The thresholds of a connection's account, whose streams have a window of so many bytes.
    pub fn thresholds(&self, stream_window: u64) -> Thresholds {
        Thresholds {
            private_bytes: (self.private_size() * (PRIVATE_COUNT - 1)) as u64,
            window_bytes: stream_window / 2,
        }
    }

    /// Takes a block to fill: the one returned most recently, else a new one. `None` when all are
    /// out, or the system has no memory.
    pub fn checkout(&self) -> Option<Filling> {
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
        // SAFETY: a free block has no leases and no `Filling`; nobody else has it now.
        Some(unsafe { Filling::check_out(block, &self.shared, None) })
    }

    /// Takes a private block, charged to this account. `None` if the system has no memory.
    pub fn checkout_private(&self, account: &Credit) -> Option<Filling> {
        let mut state = self.shared.lock();
        let free = state.private_free.pop();
        let Some(block) = free.or_else(|| Block::allocate(self.private_size())) else {
            state.out_of_memory = true;
            return None;
        };
        let key = state.private.insert(block);
        drop(state);
        // SAFETY: a free block has no leases and no `Filling`; nobody else has it now.
        Some(unsafe { Filling::check_out(block, &self.shared, Some((account, key))) })
    }

    /// How many blocks a checkout could still get.
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

    /// There may be memory again.
    pub fn try_memory_again(&self) {
        self.shared.lock().out_of_memory = false;
    }

    /// Whether there is a slot for [`take_returned`](Pool::take_returned).
    #[inline]
    pub fn has_returned(&self) -> bool {
        self.shared.has_returned.load(Ordering::Relaxed)
    }

    /// Takes the slots of connections whose wait for their own leases is over. A slot may be another
    /// connection's by now.
    pub fn take_returned(&self, into: &mut Vec<u32>) {
        if self.has_returned() && self.shared.has_returned.swap(false, Ordering::Acquire) {
            into.append(&mut self.shared.lock().returned);
        }
    }

    /// Counts what is in use now.
    pub fn usage(&self) -> PoolUse {
        let state = self.shared.lock();
        let private = state.private.iter().map(|(_, block)| block);
        let leases = state.all.iter().chain(private).map(|block| {
            // SAFETY: blocks live as long as `shared`; only atomics are looked at.
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

    /// Whether this is the process that built the pool. In a forked child the lock may be held for ever.
    fn is_ours(&self) -> bool {
        self.waker.process().is_current()
    }

    /// A block is free again.
    fn take_back(&self, block: NonNull<Block>) {
        let mut state = self.lock();
        state.free.push(block);
        self.note_memory(state);
    }

    /// A private block is free again.
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

    /// Memory came back: whoever waits for it may look.
    fn note_memory(&self, mut state: MutexGuard<'_, State>) {
        state.out_of_memory = false;
        let wake = std::mem::take(&mut state.wanted);
        drop(state);
        if wake {
            self.waker.wake();
        }
    }

    /// The connection in this slot waits no longer for its own leases.
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
        // There are private ones that did not come back only in a forked child.
        let private = state.private.drain().chain(state.private_free.drain(..));
        for block in state.all.drain(..).chain(private) {
            // SAFETY: every block that is out holds this `Shared` alive, so all are free now:
            // no lease and no `Filling` points here.
            unsafe { Block::free(block) };
        }
    }
}
