//! `Credit`: the account of the bytes that a connection's leases hold. It is kept without a lock.
//! So the connection can wait for its own leases while others go on.

use std::fmt;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

use super::Shared;

/// The connection exists. Leases may outlive it.
const OWNED: u64 = 1 << 63;
/// The connection waits for a threshold, one bit for each. The release that reaches the threshold
/// tells the watcher.
const WAITS: u64 = 0b11 << 61;
const BYTES: u64 = (1 << 61) - 1;

/// The limits to which leases must come back before a connection goes on. Both are fixed for the
/// life of an account, so that a release and a new wait always agree on them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Threshold {
    /// There is room for one more private buffer.
    Private,
    /// Half of the stream's window is free.
    Window,
}

/// The thresholds of an account, in leased bytes.
#[derive(Clone, Copy, Debug)]
pub struct Thresholds {
    /// The limit of [`Threshold::Private`].
    pub private_bytes: u64,
    /// The limit of [`Threshold::Window`].
    pub window_bytes: u64,
}

/// A connection's handle of its account.
pub struct Credit {
    cell: NonNull<CreditCell>,
}

/// The account itself. The last holder frees it: the owner, or a lease that is charged to it.
pub(super) struct CreditCell {
    state: AtomicU64,
    thresholds: Thresholds,
    slot: u32,
}

// SAFETY: the cell consists of an atomic and of numbers that never change. It is freed by the
// thread that takes the state to zero, whichever it is.
unsafe impl Send for Credit {}

impl Threshold {
    /// The bit of a connection that waits for this threshold.
    const fn bit(self) -> u64 {
        1 << (61 + self as u32)
    }
}

impl Thresholds {
    fn bytes(self, of: Threshold) -> u64 {
        match of {
            Threshold::Private => self.private_bytes,
            Threshold::Window => self.window_bytes,
        }
    }
}

impl Credit {
    /// An empty account, for the connection in `slot`.
    pub fn new(slot: u32, thresholds: Thresholds) -> Self {
        let cell = Box::new(CreditCell {
            state: AtomicU64::new(OWNED),
            thresholds,
            slot,
        });
        Credit {
            cell: NonNull::from(Box::leak(cell)),
        }
    }

    /// The bytes that leases hold.
    pub fn leased_bytes(&self) -> u64 {
        self.cell().leased_bytes()
    }

    /// Starts to wait until no more bytes are leased than the threshold allows. Then
    /// [`Pool::take_returned`](super::Pool::take_returned) gives the slot, once. Returns false, and
    /// waits for nothing, if that is so already.
    pub fn wait_for(&self, threshold: Threshold) -> bool {
        let cell = self.cell();
        let limit = cell.thresholds.bytes(threshold);
        let waits = |state: u64| (state & BYTES > limit).then_some(state | threshold.bit());
        cell.state
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, waits)
            .is_ok()
    }

    /// Whether no more bytes are leased than the threshold allows.
    pub fn is_within(&self, threshold: Threshold) -> bool {
        self.leased_bytes() <= self.cell().thresholds.bytes(threshold)
    }

    /// Stops waiting.
    pub fn stop_waiting(&self) {
        self.cell().state.fetch_and(!WAITS, Ordering::Relaxed);
    }

    #[inline]
    pub(super) fn charge(&self, len: u32) -> NonNull<CreditCell> {
        self.cell().charge(len);
        self.cell
    }

    #[inline]
    fn cell(&self) -> &CreditCell {
        // SAFETY: a cell that is owned is not freed.
        unsafe { self.cell.as_ref() }
    }
}

impl Drop for Credit {
    fn drop(&mut self) {
        // First, so that no release reports a slot that belongs to another connection by then.
        self.stop_waiting();
        // SAFETY: the owner's bit is given back once, here, and the cell is not used afterwards.
        unsafe { CreditCell::subtract(self.cell, OWNED) };
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

    /// Charges a lease. An empty lease counts as one byte, so that a cell with leases is never at
    /// zero.
    #[inline]
    pub(super) fn charge(&self, len: u32) {
        let charge = u64::from(len.max(1));
        let before = self.state.fetch_add(charge, Ordering::Relaxed);
        if before & BYTES > BYTES / 2 {
            // Far more than there is memory: forgotten clones. `Arc` aborts, too.
            std::process::abort();
        }
    }

    /// Takes a charge back. Tells the owner's watcher if that ends the owner's wait.
    ///
    /// # Safety
    /// `len` was charged to this cell by the caller, who does not use it afterwards.
    pub(super) unsafe fn release(cell: NonNull<CreditCell>, len: u32, shared: &Shared) {
        // SAFETY: as the caller says.
        let returned = unsafe { Self::subtract(cell, u64::from(len.max(1))) };
        if let Some(slot) = returned {
            shared.note_returned(slot);
        }
    }

    /// Gives back a count, and frees the cell with the last one. Returns the slot of the owner if
    /// that ends its wait.
    ///
    /// # Safety
    /// The count is the caller's own; the caller does not use the cell afterwards.
    unsafe fn subtract(cell: NonNull<CreditCell>, count: u64) -> Option<u32> {
        // SAFETY: the caller's count keeps the cell alive until the state changes.
        let this = unsafe { cell.as_ref() };
        let slot = this.slot;
        let mut before = this.state.load(Ordering::Acquire);
        // One exchange takes the charge back and ends the wait, so that just one release reports
        // the slot.
        loop {
            let left = before - count;
            let resumes = left & WAITS != 0 && this.is_enough(left);
            let after = if resumes { left & !WAITS } else { left };
            match this.state.compare_exchange_weak(
                before,
                after,
                Ordering::AcqRel,
                Ordering::Acquire,
            ) {
                Ok(_) if after == 0 => {
                    // SAFETY: nothing is charged and there is no owner, so nobody else has the
                    // pointer.
                    drop(unsafe { Box::from_raw(cell.as_ptr()) });
                    return None;
                }
                Ok(_) => return resumes.then_some(slot),
                Err(now) => before = now,
            }
        }
    }
}

impl CreditCell {
    /// Whether so few bytes are leased that the owner's wait is over.
    fn is_enough(&self, state: u64) -> bool {
        [Threshold::Private, Threshold::Window]
            .into_iter()
            .any(|it| state & it.bit() != 0 && state & BYTES <= self.thresholds.bytes(it))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const THRESHOLDS: Thresholds = Thresholds {
        private_bytes: 5,
        window_bytes: 15,
    };

    #[test]
    fn waits_only_for_what_is_out() {
        let credit = Credit::new(7, THRESHOLDS);
        assert!(!credit.wait_for(Threshold::Private));
        let cell = credit.charge(10);
        credit.charge(5);
        assert!(!credit.wait_for(Threshold::Window));
        assert!(credit.wait_for(Threshold::Private));
        // SAFETY: charged just now, and never again used by this name.
        assert_eq!(unsafe { CreditCell::subtract(cell, 5) }, None);
        // SAFETY: as above.
        assert_eq!(unsafe { CreditCell::subtract(cell, 5) }, Some(7));
        // SAFETY: as above. It is told once.
        assert_eq!(unsafe { CreditCell::subtract(cell, 5) }, None);
        assert_eq!(credit.leased_bytes(), 0);
    }

    #[test]
    fn leases_outlive_the_owner_without_a_word() {
        let credit = Credit::new(
            7,
            Thresholds {
                private_bytes: 0,
                window_bytes: 0,
            },
        );
        let cell = credit.charge(0);
        assert!(credit.wait_for(Threshold::Window));
        drop(credit);
        // SAFETY: charged just now, as one byte.
        assert_eq!(unsafe { CreditCell::subtract(cell, 1) }, None);
    }
}
