//! The process and the thread that a watcher belongs to. Also whether a call must wake the event loop
//! that polls the watcher's descriptor.

use std::cell::Cell;
use std::sync::atomic::{AtomicU64, Ordering};

use gaio_backends::{ErrorKind, Process};

/// The number of an unbound watcher's thread: every thread may call.
const ANYBODY: u64 = 0;
/// A number that no thread has. While a nested watcher sleeps, it stands for the trusted thread, so
/// that every call is checked and wakes the other loop.
const NOBODY: u64 = u64::MAX;

#[derive(Debug)]
pub(super) struct Owner {
    process: Process,
    /// The thread of the first `wait_io`.
    owner: u64,
    /// The thread whose calls need no further check: the owner, or `NOBODY`.
    trusted: u64,
}

impl Owner {
    pub(super) fn new(process: Process) -> Self {
        Owner {
            process,
            owner: ANYBODY,
            trusted: ANYBODY,
        }
    }

    /// Whether a call needs no further check.
    #[inline]
    pub(super) fn is_trusted(&self) -> bool {
        // A thread without a number cannot be the owner.
        (self.trusted == NUMBER.get() || self.trusted == ANYBODY) && self.process.is_current()
    }

    /// Whether this is a forked child, in which no call is allowed.
    pub(super) fn is_forked(&self) -> bool {
        !self.process.is_current()
    }

    /// The reason to refuse a call from this thread, if there is one.
    #[inline]
    pub(super) fn rejection(&self) -> Option<ErrorKind> {
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

    /// Binds the watcher to the calling thread.
    pub(super) fn bind(&mut self) {
        (self.owner, self.trusted) = (this_thread(), this_thread());
    }

    /// From now on another loop polls the descriptor.
    pub(super) fn sleep(&mut self) {
        self.trusted = NOBODY;
    }

    /// The watcher runs, or is about to. Returns whether it slept.
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
