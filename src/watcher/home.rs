//! Where a watcher is at home: in one process, on one thread. And whether a call from there must wake
//! whoever polls its descriptor instead of sleeping in `wait_io`.

use std::cell::Cell;
use std::sync::atomic::{AtomicU64, Ordering};

use gaio_backends::{ErrorKind, Process};

/// Any thread may call.
const ANYBODY: u64 = 0;
/// No thread has this number: every call takes the long way, where it is seen that somebody sleeps.
const NOBODY: u64 = u64::MAX;

#[derive(Debug)]
pub(super) struct Home {
    process: Process,
    /// The thread of the first `wait_io`.
    owner: u64,
    /// Whose calls need no further look: the owner's.
    trusted: u64,
}

impl Home {
    pub(super) fn new(process: Process) -> Self {
        Home {
            process,
            owner: ANYBODY,
            trusted: ANYBODY,
        }
    }

    /// Whether a call may take the short way.
    #[inline(always)]
    pub(super) fn is_trusted(&self) -> bool {
        // A thread without a number cannot be the owner.
        (self.trusted == NUMBER.get() || self.trusted == ANYBODY) && self.process.is_current()
    }

    /// Whether this is a forked child, where the watcher is nobody's.
    pub(super) fn is_forked(&self) -> bool {
        !self.process.is_current()
    }

    /// Why a call from here is refused, if it is.
    pub(super) fn refusal(&self) -> Option<ErrorKind> {
        if self.is_forked() {
            Some(ErrorKind::Forked)
        } else if self.owner != NUMBER.get() && self.owner != ANYBODY {
            Some(ErrorKind::WrongThread)
        } else {
            None
        }
    }

    pub(super) fn is_bound(&self) -> bool {
        self.owner != ANYBODY
    }

    /// Binds it to the calling thread.
    pub(super) fn bind(&mut self) {
        (self.owner, self.trusted) = (this_thread(), this_thread());
    }

    /// Somebody polls the descriptor from now on.
    pub(super) fn sleep(&mut self) {
        self.trusted = NOBODY;
    }

    /// The watcher runs, or is told to. Returns whether it slept.
    #[inline]
    pub(super) fn awake(&mut self) -> bool {
        let slept = self.trusted == NOBODY;
        self.trusted = self.owner;
        slept
    }
}

thread_local! {
    /// The thread's number, if it has one already.
    static NUMBER: Cell<u64> = const { Cell::new(0) };
}

/// A number for the calling thread that no other thread ever has.
fn this_thread() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    if NUMBER.get() == 0 {
        NUMBER.set(NEXT.fetch_add(1, Ordering::Relaxed));
    }
    NUMBER.get()
}
