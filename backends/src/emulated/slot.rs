//! The table of attached sockets. An entry is small, because idle connections are many. The data of
//! an operation is in the table of operation data.

use std::ops::BitOr;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use super::poller::Readiness;
use crate::batch::Batch;
use crate::error::Errno;
use crate::slots::reserve_gently;
use crate::sys::{self, Calls, NoWait, TRANSFER_MAX};
use crate::{Completion, Counts, Lane, Request};

/// One slot, in use or not.
#[derive(Debug, Default)]
pub(super) struct Slot {
    pub(super) socket: Option<OwnedFd>,
    /// The life of the slot. It is part of the poller's token, so that an event of an earlier life
    /// is recognised.
    pub(super) generation: u32,
    pub(super) flags: Flags,
    pub(super) no_wait: NoWait,
    /// The operation of each lane.
    running: [Option<Request>; 2],
}

const _: () = assert!(size_of::<Slot>() <= 12);

/// A descriptor to read and write without blocking.
#[derive(Debug)]
pub(super) enum Source<'a> {
    /// A socket: `recv(2)` and its kin.
    Socket(RawFd),
    /// Any other descriptor: `read(2)` and its kin.
    Other(Calls<'a>),
}

impl Source<'_> {
    /// Reads once.
    ///
    /// # Safety
    /// `at` is valid for writes of `len` bytes.
    #[inline]
    pub(super) unsafe fn read(self, at: *mut u8, len: usize) -> Result<usize, Errno> {
        // SAFETY: as the caller says.
        unsafe {
            match self {
                Source::Socket(fd) => sys::uninterrupted(|| sys::recv(fd, at, len)),
                Source::Other(mut calls) => calls.read(at, len),
            }
        }
    }

    /// Reads once into memory that is initialised.
    pub(super) fn read_into(self, bytes: &mut [u8]) -> Result<usize, Errno> {
        // SAFETY: `bytes` is borrowed for the call, mutably.
        unsafe { self.read(bytes.as_mut_ptr(), bytes.len()) }
    }

    /// Writes once.
    #[inline]
    pub(super) fn write(self, bytes: &[u8]) -> Result<usize, Errno> {
        match self {
            Source::Socket(fd) => sys::send(fd, bytes),
            Source::Other(mut calls) => calls.write(bytes),
        }
    }

    /// Writes several buffers once.
    pub(super) fn write_batch(self, batch: &mut Batch) -> Result<usize, Errno> {
        match self {
            Source::Socket(fd) => batch.send(fd),
            Source::Other(calls) => batch.write(calls),
        }
    }
}

/// A set of facts about a slot.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Flags(u8);

impl Flags {
    /// As far as is known, reading or writing would not block. `ready(lane)` is the flag of a lane.
    pub(super) const READABLE: Flags = Flags::from_event(Readiness::READABLE);
    pub(super) const WRITABLE: Flags = Flags::from_event(Readiness::WRITABLE);
    /// The lane is in the queue. The flag belongs to the queue's entry, so it outlives the socket.
    const QUEUED: Flags = Flags(1 << 3);
    /// A short transfer does not prove that nothing is left.
    pub(super) const DOUBT: Flags = Flags::from_event(Readiness::BEYOND_DATA);
    /// The kernel is connecting.
    pub(super) const CONNECTING: Flags = Flags(1 << 5);
    /// The descriptor is not a socket.
    pub(super) const FILE: Flags = Flags(1 << 7);

    /// All flags that events can set.
    pub(super) const ALL_READY: Flags = Flags::from_event(Readiness::OVER);

    #[inline]
    pub(super) fn ready(lane: Lane) -> Flags {
        Flags(Flags::READABLE.0 << lane as u8)
    }

    #[inline]
    pub(super) fn queued(lane: Lane) -> Flags {
        Flags(Flags::QUEUED.0 << lane as u8)
    }

    /// The flags that an event sets.
    #[inline]
    pub(super) const fn from_event(readiness: Readiness) -> Flags {
        Flags(readiness.bits())
    }

    #[inline]
    pub(super) fn has(self, flags: Flags) -> bool {
        self.0 & flags.0 != 0
    }

    #[inline]
    pub(super) fn set(&mut self, flags: Flags) {
        self.0 |= flags.0;
    }

    #[inline]
    pub(super) fn clear(&mut self, flags: Flags) {
        self.0 &= !flags.0;
    }

    /// The flags that stay when the socket goes.
    pub(super) fn of_vacancy(self) -> Flags {
        let outlive = Flags::queued(Lane::Read) | Flags::queued(Lane::Write);
        Flags(self.0 & outlive.0)
    }
}

impl BitOr for Flags {
    type Output = Flags;

    fn bitor(self, other: Flags) -> Flags {
        Flags(self.0 | other.0)
    }
}

impl Slot {
    #[inline]
    pub(super) fn running(&self, lane: Lane) -> Option<Request> {
        self.running[lane as usize]
    }

    #[inline]
    pub(super) fn set_running(&mut self, lane: Lane, request: Option<Request>) {
        self.running[lane as usize] = request;
    }

    /// The descriptor, or -1, which every call refuses, if there is none.
    #[inline]
    pub(super) fn fd(&self) -> RawFd {
        self.socket.as_ref().map_or(-1, AsRawFd::as_raw_fd)
    }

    #[inline]
    pub(super) fn source<'a>(&'a mut self, counts: &'a mut Counts) -> Source<'a> {
        if self.flags.has(Flags::FILE) {
            Source::Other(self.no_wait.calls(self.fd(), counts))
        } else {
            Source::Socket(self.fd())
        }
    }

    /// Leaves the descriptor to its other users. Pipes and terminals get back the mode in which
    /// they came. The mode of a socket is left alone: another watcher may rely on it.
    pub(super) fn let_go(&mut self, counts: &mut Counts) {
        if self.flags.has(Flags::FILE) {
            self.no_wait.calls(self.fd(), counts).restore();
        }
    }

    /// Whether the lane has an operation that would not block, as far as is known.
    #[inline]
    pub(super) fn can_run(&self, lane: Lane) -> bool {
        self.flags.has(Flags::ready(lane)) && self.running(lane).is_some()
    }

    /// Notes that a call would block: nothing completes before the next change makes an event.
    #[inline]
    pub(super) fn forget_ready(&mut self, lane: Lane) -> Option<Completion> {
        self.flags.clear(Flags::ready(lane));
        None
    }

    /// Learns from a transfer of `len` bytes where `asked` were possible. A short transfer means
    /// that nothing is left, and that the next change makes an event. It means nothing where it is
    /// due to the limit of one call.
    #[inline]
    pub(super) fn learn(&mut self, lane: Lane, len: usize, asked: usize) {
        if len < asked.min(TRANSFER_MAX) && len > 0 && !self.flags.has(Flags::DOUBT) {
            self.flags.clear(Flags::ready(lane));
        }
    }
}

/// The entry of a slot. The table grows if there is none.
pub(super) fn slot_or_grow(slots: &mut Vec<Slot>, slot: u32) -> &mut Slot {
    let index = slot as usize;
    while slots.len() <= index {
        reserve_gently(slots);
        slots.push(Slot::default());
    }
    &mut slots[index]
}
