//! Wakes a watcher that sleeps in its kernel call, from any thread. A flag says whether it sleeps,
//! so that a wake-up costs a system call only then.

use std::fmt;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};

use crate::error::Errno;
#[cfg(gaio_epoll)]
use crate::sys;
use crate::sys::Process;

/// A system's means to end the sleep of another thread.
pub trait Notifier: fmt::Debug + Send + Sync {
    /// Ends the sleep, present or next. A second call before the owner woke up may be lost.
    fn notify(&self);

    /// The descriptor that becomes readable.
    fn descriptor(&self) -> BorrowedFd<'_>;
}

/// The wake-up of one watcher. It is not lost if it comes before the sleep: it ends the next sleep
/// then.
#[derive(Debug)]
pub struct Waker {
    asleep: AtomicBool,
    notifier: Arc<dyn Notifier>,
    /// The process that built the watcher.
    process: Process,
    sent: AtomicU64,
    elided: AtomicU64,
}

impl Waker {
    /// A waker with an `eventfd(2)` behind it.
    #[cfg(gaio_epoll)]
    pub fn new() -> Result<Self, Errno> {
        Waker::with(Arc::new(sys::EventNotifier::new()?))
    }

    /// A waker with this notifier behind it.
    pub(crate) fn with(notifier: Arc<dyn Notifier>) -> Result<Self, Errno> {
        Ok(Waker {
            asleep: AtomicBool::new(false),
            notifier,
            process: Process::current()?,
            sent: AtomicU64::new(0),
            elided: AtomicU64::new(0),
        })
    }

    /// The process that built the watcher. Its children must not touch anything that they share
    /// with it. They must not take a lock either: another thread of the parent may have held it at
    /// the fork.
    #[inline]
    pub fn process(&self) -> Process {
        self.process
    }

    /// Ends the owner's sleep, present or about to begin. After its wake-up, the owner sees
    /// everything that was published before this call.
    pub fn wake(&self) {
        // Pairs with the fence in `sleep`. Either the owner sees the caller's publication, or the
        // caller sees the owner's flag.
        fence(Ordering::SeqCst);
        if self.asleep.load(Ordering::Relaxed) && self.asleep.swap(false, Ordering::Relaxed) {
            self.sent.fetch_add(1, Ordering::Relaxed);
            if self.process.is_current() {
                self.notifier.notify();
            }
        } else {
            self.elided.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Declares that the owner is about to sleep. It must look for work once more after this call.
    pub fn sleep(&self) {
        self.asleep.store(true, Ordering::Relaxed);
        // Pairs with the fence in `wake`.
        fence(Ordering::SeqCst);
    }

    /// Declares that the owner is awake. Wake-ups are free until the next [`sleep`](Waker::sleep).
    #[inline]
    pub fn awake(&self) {
        self.asleep.store(false, Ordering::Relaxed);
    }

    /// The descriptor that becomes readable when a wake-up is sent.
    pub fn event(&self) -> BorrowedFd<'_> {
        self.notifier.descriptor()
    }

    /// The numbers of wake-ups sent and elided so far.
    pub fn counts(&self) -> (u64, u64) {
        (
            self.sent.load(Ordering::Relaxed),
            self.elided.load(Ordering::Relaxed),
        )
    }
}
