//! The table of attached sockets. An entry is small, because idle connections are many: what an
//! operation carries along lies in the table of loads.

use std::ops::BitOr;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use super::poller::Readiness;
use crate::batch::Batch;
use crate::error::Errno;
use crate::slots::reserve_gently;
use crate::sys::{self, Calls, NoWait, TRANSFER_MAX};
use crate::{Completion, Counts, Lane};

/// One place of the table, taken or not.
#[derive(Debug, Default)]
pub(super) struct Slot {
    pub(super) socket: Option<OwnedFd>,
    /// Which life of the slot it is. Part of the poller's token, so that an event of an old life
    /// is recognised.
    pub(super) generation: u32,
    pub(super) flags: Flags,
    pub(super) no_wait: NoWait,
    ops: [Op; 2],
}

const _: () = assert!(size_of::<Slot>() <= 12);

/// What runs on a lane.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Op {
    #[default]
    Idle,
    ReadSwap,
    ReadStream,
    ReadPrivate,
    Read,
    Write,
    Accept,
    AcceptStream,
    Connect,
    /// The kernel is connecting.
    Connecting,
    /// Waits until it is ready for what its lane does.
    Ready,
}

/// How a descriptor is read and written, without blocking.
#[derive(Debug)]
pub(super) enum Source<'a> {
    /// By `recv(2)` and its kin.
    Socket(RawFd),
    /// What is no socket, by `read(2)` and its kin.
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

    /// The same into memory that is initialised.
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

    /// The same for several buffers.
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
    /// As far as is known, reading (writing) would not block. `ready(lane)` is the one for a lane.
    pub(super) const READABLE: Flags = Flags::from_event(Readiness::READABLE);
    pub(super) const WRITABLE: Flags = Flags::from_event(Readiness::WRITABLE);
    /// The lane is in the queue. Belongs to the queue's entry, so it outlives the socket.
    const QUEUED: Flags = Flags(1 << 3);
    /// A short transfer does not prove that nothing is left.
    pub(super) const DOUBT: Flags = Flags::from_event(Readiness::BEYOND_DATA);
    /// Not a socket.
    pub(super) const FILE: Flags = Flags(1 << 7);

    /// All that events can say.
    pub(super) const ALL_READY: Flags = Flags::from_event(Readiness::OVER);

    #[inline]
    pub(super) fn ready(lane: Lane) -> Flags {
        Flags(Flags::READABLE.0 << lane as u8)
    }

    #[inline]
    pub(super) fn queued(lane: Lane) -> Flags {
        Flags(Flags::QUEUED.0 << lane as u8)
    }

    /// What an event says.
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

    /// What is left when the socket goes.
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
    pub(super) fn op(&self, lane: Lane) -> Op {
        self.ops[lane as usize]
    }

    #[inline]
    pub(super) fn set_op(&mut self, lane: Lane, op: Op) {
        self.ops[lane as usize] = op;
    }

    /// The descriptor; -1, which every call refuses, if there is none.
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

    /// Leaves the descriptor to others who may have it. What is theirs goes back as it came (pipes,
    /// terminals). The mode of a socket is left alone: another watcher may count on it.
    pub(super) fn let_go(&mut self, counts: &mut Counts) {
        if self.flags.has(Flags::FILE) {
            self.no_wait.calls(self.fd(), counts).restore();
        }
    }

    /// Whether the lane's operation would get somewhere, as far as is known.
    #[inline]
    pub(super) fn can_run(&self, lane: Lane) -> bool {
        self.flags.has(Flags::ready(lane)) && self.op(lane) != Op::Idle
    }

    /// It would block: nothing completes before the next change makes an event.
    #[inline]
    pub(super) fn forget_ready(&mut self, lane: Lane) -> Option<Completion> {
        self.flags.clear(Flags::ready(lane));
        None
    }

    /// Learns from a transfer of `len` bytes where `asked` were possible. Less (but not because one
    /// call has its limit) means that nothing is left, and that the next change makes an event.
    #[inline]
    pub(super) fn learn(&mut self, lane: Lane, len: usize, asked: usize) {
        if len < asked.min(TRANSFER_MAX) && len > 0 && !self.flags.has(Flags::DOUBT) {
            self.flags.clear(Flags::ready(lane));
        }
    }
}

/// Makes `slots` long enough for a slot, and gives it.
pub(super) fn reach(slots: &mut Vec<Slot>, slot: u32) -> &mut Slot {
    let index = slot as usize;
    while slots.len() <= index {
        reserve_gently(slots);
        slots.push(Slot::default());
    }
    &mut slots[index]
}
