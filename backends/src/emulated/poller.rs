//! What the emulated backend needs from a system's readiness interface. One file a system
//! implements this; everything else of the backend is the same everywhere.

use std::ops::BitOr;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::Instant;

use crate::Until;
use crate::error::Errno;
use crate::error::Refusal;
use crate::wake::Bell;

/// An edge-triggered readiness poller.
///
/// Each descriptor is registered once and stays so. An event says that something *changed*;
/// what it said is remembered above until a call shows that it is no longer true. So a poller
/// must report a state that holds at the registration, too, and one event too many is harmless,
/// while one too few is a connection that hangs.
pub trait Poller: Sized {
    /// Whether sockets have to be in non-blocking mode, because the flag that says so to a single
    /// call is not to be trusted on this system.
    const NEEDS_NONBLOCKING: bool;

    /// The most events that one [`wait`](Poller::wait) collects. After one that collected fewer there
    /// is none left.
    const EVENTS_MAX: usize;

    /// A poller that watches nothing.
    ///
    /// # Errors
    /// The system refuses.
    fn new() -> Result<Self, Refusal>;

    /// Registers a descriptor; its events carry `token`.
    ///
    /// # Errors
    /// The system's refusal, such as `ENOSPC` or `EPERM`.
    fn add(&self, fd: BorrowedFd<'_>, token: u64, watch: Watch) -> Result<(), Errno>;

    /// Forgets a descriptor, whatever duplicates of it there may be. Events that were not
    /// collected yet are gone, too.
    fn remove(&self, fd: BorrowedFd<'_>);

    /// A bell that ends the sleep; its events carry `token`. Comes once.
    ///
    /// # Errors
    /// The system's refusal, such as `EMFILE`.
    fn bell(&mut self, token: u64) -> Result<Arc<dyn Bell>, Errno>;

    /// Makes an event that carries `token`, once, at this time, in place of the last one asked for. It
    /// may come a little early: whoever hears it looks at the clock, and asks again.
    ///
    /// # Errors
    /// The system's refusal, such as `EMFILE`.
    fn alarm(&mut self, token: u64, at: Option<Instant>) -> Result<(), Errno>;

    /// Sleeps until there are events, never ends early but for them or a signal, and collects
    /// them. Returns how many there are.
    ///
    /// # Errors
    /// The system refuses the call.
    fn wait(&mut self, until: Until) -> Result<usize, Errno>;

    /// One of the events that the last `wait` collected: its token, and what it says.
    fn event(&self, index: usize) -> Option<(u64, Readiness)>;

    /// A descriptor that is readable while there are events to collect.
    fn descriptor(&self) -> BorrowedFd<'_>;
}

/// What to watch a descriptor for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Watch {
    /// It becomes readable.
    Incoming,
    /// It becomes readable, writable, or ends.
    Both,
}

/// What an event says: any of its constants together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Readiness(u8);

impl Readiness {
    /// Reading will not block.
    pub const READABLE: Readiness = Readiness(1);
    /// Writing will not block.
    pub const WRITABLE: Readiness = Readiness(1 << 1);
    /// Something came behind the data that a short read can hide: the end, an error, urgent
    /// data. No further event may announce it.
    pub const BEYOND_DATA: Readiness = Readiness(1 << 2);
    /// The end, or an error: it wakes both directions, and whoever waits there learns it from its
    /// call.
    pub const OVER: Readiness = Readiness(0b111);

    /// The same if `holds`, else nothing.
    #[inline]
    pub const fn when(self, holds: bool) -> Readiness {
        Readiness(self.0 * holds as u8)
    }

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
