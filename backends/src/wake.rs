//! Waking a watcher that sleeps in its kernel call, from any thread, and for nothing when it
//! does not sleep: the flag decides who pays for a system call.

use std::fmt;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};

use crate::error::Errno;
use crate::process::Process;
#[cfg(gaio_epoll)]
use crate::sys;

/// What a system has to end the sleep of another thread.
pub trait Bell: fmt::Debug + Send + Sync {
    /// Ends the sleep, present or next. A second ring before the owner woke up may be lost.
    fn ring(&self);

    /// What becomes readable.
    fn descriptor(&self) -> BorrowedFd<'_>;
}

/// The wake-up of one watcher. A wake sticks: one that comes before the sleep ends the sleep.
#[derive(Debug)]
pub struct Waker {
    asleep: AtomicBool,
    bell: Arc<dyn Bell>,
    /// Whose watcher it wakes.
    process: Process,
    sent: AtomicU64,
    elided: AtomicU64,
}

impl Waker {
    /// A waker with an `eventfd(2)` behind it.
    #[cfg(gaio_epoll)]
    pub fn new() -> Result<Self, Errno> {
        Waker::with(Arc::new(sys::EventBell::new()?))
    }

    /// A waker that rings this bell.
    pub(crate) fn with(bell: Arc<dyn Bell>) -> Result<Self, Errno> {
        Ok(Waker {
            asleep: AtomicBool::new(false),
            bell,
            process: Process::current()?,
            sent: AtomicU64::new(0),
            elided: AtomicU64::new(0),
        })
    }

    /// The process in which the watcher was built. In a child of it nothing may be touched that the
    /// two share, nor a lock be taken: another thread of the parent may have held it at the fork.
    #[inline]
    pub fn process(&self) -> Process {
        self.process
    }

    /// Ends the owner's sleep, present or about to begin. What was published before this call
    /// is seen by the owner after its wake-up.
    pub fn wake(&self) {
        // Pairs with the fence in `sleep`: either the owner sees what the caller published, or
        // the caller sees the owner's flag.
        fence(Ordering::SeqCst);
        if self.asleep.load(Ordering::Relaxed) && self.asleep.swap(false, Ordering::Relaxed) {
            self.sent.fetch_add(1, Ordering::Relaxed);
            if self.process.is_current() {
                self.bell.ring();
            }
        } else {
            self.elided.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// The owner is about to sleep. It must look for work once more after this call.
    pub fn sleep(&self) {
        self.asleep.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }

    /// The owner runs again; wake-ups are free until the next [`sleep`](Waker::sleep).
    #[inline]
    pub fn awake(&self) {
        self.asleep.store(false, Ordering::Relaxed);
    }

    /// The descriptor that becomes readable when a wake-up is sent.
    pub fn event(&self) -> BorrowedFd<'_> {
        self.bell.descriptor()
    }

    /// Wake-ups sent and elided so far.
    pub fn counts(&self) -> (u64, u64) {
        (
            self.sent.load(Ordering::Relaxed),
            self.elided.load(Ordering::Relaxed),
        )
    }
}
