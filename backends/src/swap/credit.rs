//! `Credit`: how many leased bytes one stream of reads has outstanding, counted without a lock,
//! so that the stream can pause when its consumer keeps too much and go on when it lets go.

use std::fmt;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

use super::Shared;

/// One handle in the count of handles, which lies above the count of bytes.
const HANDLE: u64 = 1 << 48;
/// The stream waits: a release must wake its owner.
const PAUSED: u64 = 1 << 63;
const BYTES: u64 = HANDLE - 1;

/// A handle of a stream's account. Leases that are charged to it may outlive it.
pub struct Credit {
    cell: NonNull<CreditCell>,
}

/// Freed by whoever takes handles and bytes to zero: a single atomic, so there is one such.
pub(super) struct CreditCell {
    state: AtomicU64,
}

// SAFETY: the cell is one atomic, freed by whoever takes it to zero, on any thread.
unsafe impl Send for Credit {}

impl Credit {
    /// A new account with nothing outstanding.
    pub fn new() -> Self {
        let cell = Box::new(CreditCell {
            state: AtomicU64::new(HANDLE),
        });
        Credit {
            cell: NonNull::from(Box::leak(cell)),
        }
    }

    /// Bytes in leases that are alive.
    pub fn leased_bytes(&self) -> u64 {
        self.cell().leased_bytes()
    }

    /// Marks the stream as waiting if more than `limit_bytes` are out; then a release wakes the
    /// owner. Returns whether it waits.
    pub fn pause_above(&self, limit_bytes: u64) -> bool {
        let before = self.cell().state.fetch_or(PAUSED, Ordering::AcqRel);
        let paused = before & BYTES > limit_bytes;
        if !paused {
            self.cell().state.fetch_and(!PAUSED, Ordering::Relaxed);
        }
        paused
    }

    #[inline]
    pub(super) fn charge(&self, len: u32) -> NonNull<CreditCell> {
        self.cell().charge(len);
        self.cell
    }

    #[inline]
    fn cell(&self) -> &CreditCell {
        // SAFETY: this handle is counted, and a cell with handles is not freed.
        unsafe { self.cell.as_ref() }
    }
}

impl Clone for Credit {
    fn clone(&self) -> Self {
        self.cell().state.fetch_add(HANDLE, Ordering::Relaxed);
        Credit { cell: self.cell }
    }
}

impl Default for Credit {
    fn default() -> Self {
        Credit::new()
    }
}

impl Drop for Credit {
    fn drop(&mut self) {
        // SAFETY: the handle ends here and its count is given back once.
        unsafe { CreditCell::subtract(self.cell, HANDLE) };
    }
}

impl fmt::Debug for Credit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Credit({} bytes leased)", self.leased_bytes())
    }
}

impl CreditCell {
    #[inline]
    pub(super) fn leased_bytes(&self) -> u64 {
        self.state.load(Ordering::Acquire) & BYTES
    }

    /// A lease of no bytes counts as one, so that a charged cell is never at zero.
    #[inline]
    pub(super) fn charge(&self, len: u32) {
        self.state
            .fetch_add(u64::from(len.max(1)), Ordering::Relaxed);
    }

    /// # Safety
    /// `len` was charged to this cell by the caller, who does not use it afterwards.
    pub(super) unsafe fn release(cell: NonNull<CreditCell>, len: u32, shared: &Shared) {
        // SAFETY: as the caller says.
        let paused = unsafe { Self::subtract(cell, u64::from(len.max(1))) };
        if paused {
            shared.credit_back.store(true, Ordering::Release);
            shared.waker.wake();
        }
    }

    /// Gives back a count and frees the cell with the last one. Returns whether a handle waits.
    ///
    /// # Safety
    /// The count is the caller's own; the caller does not use the cell afterwards.
    unsafe fn subtract(cell: NonNull<CreditCell>, count: u64) -> bool {
        // SAFETY: the caller's count keeps the cell alive up to this subtraction.
        let before = unsafe { cell.as_ref() }
            .state
            .fetch_sub(count, Ordering::AcqRel);
        let last = (before - count) & !PAUSED == 0;
        if last {
            // SAFETY: nothing is charged and no handle is left: nobody else has the pointer.
            drop(unsafe { Box::from_raw(cell.as_ptr()) });
        }
        !last && before & PAUSED != 0
    }
}
