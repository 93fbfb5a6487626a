//! Which process this is, without asking the system. A watcher belongs to the process that built
//! it: a forked child shares sockets and pollers with its parent, and finds no ring where its
//! parent's ring was.
//!
//! A cell holds the process's number, and a child finds it at zero: its page is one that the system
//! wipes at a fork, or, where no page is, a handler wipes it.

use std::sync::atomic::{AtomicPtr, AtomicU64, Ordering};

use crate::error::Errno;
use crate::sys;

/// A process, as it was when it built something.
#[derive(Clone, Copy, Debug)]
pub struct Process {
    cell: &'static AtomicU64,
    number: u64,
}

impl Process {
    /// The one that runs.
    ///
    /// # Errors
    /// The system has no memory for the cell.
    pub fn current() -> Result<Self, Errno> {
        // A child inherits the count but not the cell, so that its number is none of its ancestors'.
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

    /// Whether it is the one that runs, and not a child of it.
    #[inline(always)]
    pub fn is_current(&self) -> bool {
        self.cell.load(Ordering::Relaxed) == self.number
    }
}

/// The one cell of this process. No lock guards its making: a child might find it locked for ever.
fn cell() -> Result<&'static AtomicU64, Errno> {
    static CELL: AtomicPtr<AtomicU64> = AtomicPtr::new(std::ptr::null_mut());
    let known = CELL.load(Ordering::Acquire);
    // SAFETY: what was put here is valid for ever.
    if let Some(cell) = unsafe { known.as_ref() } {
        return Ok(cell);
    }
    let made = match sys::wiped_at_fork() {
        Some(page) => page,
        None => {
            sys::at_fork(wipe)?;
            &HANDLED
        }
    };
    // Of two threads that come here at once, one is second. Its page, if it is one, is left alone.
    let new = std::ptr::from_ref(made).cast_mut();
    match CELL.compare_exchange(known, new, Ordering::AcqRel, Ordering::Acquire) {
        Ok(_) => Ok(made),
        // SAFETY: as above; only the first puts something here, and that was not null.
        Err(first) => Ok(unsafe { &*first }),
    }
}

/// The cell where the system wipes none.
static HANDLED: AtomicU64 = AtomicU64::new(0);

extern "C" fn wipe() {
    HANDLED.store(0, Ordering::Relaxed);
}
