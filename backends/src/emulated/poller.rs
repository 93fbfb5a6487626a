//! The trait `Poller`: a system's readiness interface, as the emulated backend needs it. Each
//! system implements it in one file. Everything else of the backend is the same everywhere.

use std::ops::BitOr;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::Instant;

use crate::Until;
use crate::error::Errno;
use crate::error::SetupError;
use crate::wake::Notifier;

/// An edge-triggered readiness poller.
///
/// Each descriptor is registered once and stays so. An event says that something *changed*. The
/// scheduler remembers the reported state until a call shows that it is no longer true. So a poller
/// must also report a state that holds at the registration. One event too many is harmless; one too
/// few is a connection that hangs.
pub(crate) trait Poller: Sized {
    /// Whether sockets have to be in non-blocking mode, because this system does not reliably heed
    /// the flag that makes a single call non-blocking.
    const NEEDS_NONBLOCKING: bool;

    /// The greatest number of events that one [`wait`](Poller::wait) collects. If it collects
    /// fewer, none are left.
    const EVENTS_MAX: usize;

    /// A poller that watches nothing.
    ///
    /// # Errors
    /// The system's error, and advice.
    fn new() -> Result<Self, SetupError>;

    /// Registers a descriptor; its events carry `token`.
    ///
    /// # Errors
    /// The system's error, such as `ENOSPC` or `EPERM`.
    fn add(&self, fd: BorrowedFd<'_>, token: u64, watch: Watch) -> Result<(), Errno>;

    /// Forgets a descriptor, whatever duplicates of it there may be. Events that were not collected
    /// yet are lost.
    fn remove(&self, fd: BorrowedFd<'_>);

    /// A notifier that ends the sleep. Its events carry `token`. Called once.
    ///
    /// # Errors
    /// The system's error, such as `EMFILE`.
    fn notifier(&mut self, token: u64) -> Result<Arc<dyn Notifier>, Errno>;

    /// Makes one event that carries `token` at this time. It replaces the alarm that was set
    /// before; `None` sets no other. The event may come a little early: its receiver looks at the
    /// clock, and sets the alarm again.
    ///
    /// # Errors
    /// The system's error, such as `EMFILE`.
    fn alarm(&mut self, token: u64, at: Option<Instant>) -> Result<(), Errno>;

    /// Sleeps until there are events, and collects them. Only events, `until` and signals end the
    /// sleep. Returns the number of events.
    ///
    /// # Errors
    /// The system's error.
    fn wait(&mut self, until: Until) -> Result<usize, Errno>;

    /// One of the events that the last `wait` collected: its token, and the reported readiness.
    fn event(&self, index: usize) -> Option<(u64, Readiness)>;

    /// A descriptor that is readable while there are events to collect.
    fn descriptor(&self) -> BorrowedFd<'_>;
}

/// The changes to watch a descriptor for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Watch {
    /// The descriptor becomes readable.
    Incoming,
    /// The descriptor becomes readable or writable, or ends.
    Both,
}

/// The readiness that an event reports: any combination of the constants.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Readiness(u8);

impl Readiness {
    /// Reading will not block.
    pub(crate) const READABLE: Readiness = Readiness(1);
    /// Writing will not block.
    pub(crate) const WRITABLE: Readiness = Readiness(1 << 1);
    /// Something came behind the data that a short read can hide: the end, an error, urgent data.
    /// There may be no further event for it.
    pub(crate) const BEYOND_DATA: Readiness = Readiness(1 << 2);
    /// The end, or an error. It wakes both directions, and the call of each learns the cause.
    pub(crate) const OVER: Readiness = Readiness(0b111);

    #[inline]
    pub(super) const fn has(self, other: Readiness) -> bool {
        self.0 & other.0 != 0
    }

    #[inline]
    pub(super) const fn bits(self) -> u8 {
        self.0
    }
}

impl BitOr for Readiness {
    type Output = Readiness;

    #[inline]
    fn bitor(self, other: Readiness) -> Readiness {
        Readiness(self.0 | other.0)
    }
}
