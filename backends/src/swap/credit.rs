//! `Credit`: the account of what a connection's leases hold, kept without a lock, so that the
//! connection can wait for its own leases while others go on.

use std::fmt;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

use super::Shared;

/// The connection is there. Leases may outlive it.
const OWNED: u64 = 1 << 63;
/// The connection waits for one of the two thresholds: the release that reaches it tells its watcher.
const WAITS: u64 = 0b11 << 61;
const BYTES: u64 = (1 << 61) - 1;

/// How far leases have to come back before a connection goes on. Both are fixed for the life of an
/// account, so that a release and a new wait never see different ones.
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
    /// Of [`Threshold::Private`].
    pub private_bytes: u64,
    /// Of [`Threshold::Window`].
    pub window_bytes: u64,
}

/// A connection's hold of its account.
pub struct Credit {
    cell: NonNull<CreditCell>,
}

/// Freed by whoever takes the last of it: the owner, or a lease that is charged to it.
pub(super) struct CreditCell {
    state: AtomicU64,
    thresholds: Thresholds,
    slot: u32,
}

// SAFETY: the cell consists of an atomic and of numbers that never change; it is freed by whoever
// takes the state to zero, on any thread.
unsafe impl Send for Credit {}

impl Threshold {
    /// The bit that says that the connection waits for it.
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
    /// An account with nothing on it, for the connection in `slot`.
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

    /// Bytes that leases hold.
    pub fn leased_bytes(&self) -> u64 {
        self.cell().leased_bytes()
    }

    /// Waits until no more is leased than the threshold says. The slot is then told by
    /// [`Pool::take_returned`](super::Pool::take_returned), once. False if that holds already.
    pub fn wait_for(&self, threshold: Threshold) -> bool {
        let cell = self.cell();
        let limit = cell.thresholds.bytes(threshold);
        let waits = |state: u64| (state & BYTES > limit).then_some(state | threshold.bit());
        cell.state
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, waits)
            .is_ok()
    }

    /// Whether as much is back as the threshold says.
    pub fn is_within(&self, threshold: Threshold) -> bool {
        self.leased_bytes() <= self.cell().thresholds.bytes(threshold)
    }

    /// No longer waits.
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
        // Before, so that no release tells of a slot that is another connection's by then.
        self.stop_waiting();
        // SAFETY: the owner's bit is given back once, here, and the cell not used afterwards.
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

    /// Charges a lease. One of no bytes counts as one, so that a cell that is charged is never at zero.
    #[inline]
    pub(super) fn charge(&self, len: u32) {
        let charge = u64::from(len.max(1));
        let before = self.state.fetch_add(charge, Ordering::Relaxed);
        if before & BYTES > BYTES / 2 {
            // Far more than there is memory: clones that were forgotten. As `Arc` does.
            std::process::abort();
        }
    }

    /// Takes a charge back, and tells the owner's watcher if that is what it waits for.
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

    /// Gives back a count, and frees the cell with the last one. Returns the slot of an owner whose
    /// wait is over by that.
    ///
    /// # Safety
    /// The count is the caller's own; the caller does not use the cell afterwards.
    unsafe fn subtract(cell: NonNull<CreditCell>, count: u64) -> Option<u32> {
        // SAFETY: the caller's count keeps the cell alive until the state changes.
        let this = unsafe { cell.as_ref() };
        let slot = this.slot;
        let mut before = this.state.load(Ordering::Acquire);
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
                    // SAFETY: nothing is charged and nobody owns it: no one else has the pointer.
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
    /// Whether so little is leased that the owner goes on.
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
