//! The identity of the process, known without a system call. A watcher belongs to the process that
//! built it: a forked child shares sockets and pollers with its parent, and has no ring where its
//! parent's was.
//!
//! A cell holds the number of the process. A child finds zero there: the system wipes the cell's
//! page at a fork. Where the system cannot, a fork handler sets the cell to zero.

use std::sync::atomic::{AtomicPtr, AtomicU64, Ordering};

use super::fork::{at_fork, wiped_at_fork};
use crate::error::Errno;

/// The process that ran when something was built.
#[derive(Clone, Copy, Debug)]
pub struct Process {
    cell: &'static AtomicU64,
    number: u64,
}

impl Process {
    /// The running process.
    ///
    /// # Errors
    /// The system has no memory for the cell.
    pub fn current() -> Result<Self, Errno> {
        // A child inherits the count but not the cell, so its number differs from those of all its
        // ancestors.
        static LAST: AtomicU64 = AtomicU64::new(0);
        let cell = cell()?;
        let mut number = cell.load(Ordering::Relaxed);
        if number == 0 {
            let fresh = LAST.fetch_add(1, Ordering::Relaxed) + 1;
            let set = cell.compare_exchange(0, fresh, Ordering::Relaxed, Ordering::Relaxed);
            number = set.map_or_else(|other| other, |_| fresh);
        }
        Ok(Process { cell, number })
    }

    /// Whether the running process is this one, and not a child of it.
    #[inline]
    pub fn is_current(&self) -> bool {
        self.cell.load(Ordering::Relaxed) == self.number
    }
}

/// The one cell of this process. No lock guards its making: a child could find the lock held for
/// ever.
fn cell() -> Result<&'static AtomicU64, Errno> {
    static CELL: AtomicPtr<AtomicU64> = AtomicPtr::new(std::ptr::null_mut());
    let known = CELL.load(Ordering::Acquire);
    // SAFETY: a pointer that was stored here is valid for ever.
    if let Some(cell) = unsafe { known.as_ref() } {
        return Ok(cell);
    }
    let made = match wiped_at_fork() {
        Some(page) => page,
        None => {
            at_fork(wipe)?;
            &HANDLED
        }
    };
    // If two threads come here at once, the second one loses. Its page, if it has one, is never
    // freed.
    let new = std::ptr::from_ref(made).cast_mut();
    match CELL.compare_exchange(known, new, Ordering::AcqRel, Ordering::Acquire) {
        Ok(_) => Ok(made),
        // SAFETY: as above; the pointer was stored by the thread that came first, and is not null.
        Err(first) => Ok(unsafe { &*first }),
    }
}

/// The cell for systems that cannot wipe a page.
static HANDLED: AtomicU64 = AtomicU64::new(0);

extern "C" fn wipe() {
    HANDLED.store(0, Ordering::Relaxed);
}
