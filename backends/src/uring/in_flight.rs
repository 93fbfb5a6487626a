//! What the kernel works on: the socket of each slot, and which operation runs on each of its lanes.
//! Small, because idle connections are many. What an operation carries is in `LoadTable`.

use std::fmt;
use std::os::fd::{BorrowedFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};

use crate::slots::reserve_gently;
use crate::sys::NoWait;
use crate::{Counts, Lane, Place, SocketKind};

/// From so many bytes on, the next read polls first: messages of 64 KiB cost a fifth less then, as they
/// are not read in the pieces in which they arrive; from 16 KiB down they cost more; measured.
const BULK_MIN: u32 = 32 * 1024;

/// No socket in this slot; every operation refuses it.
const EMPTY: RawFd = -1;

#[derive(Default)]
pub(super) struct InFlight {
    sockets: Vec<Socket>,
}

#[derive(Clone, Copy)]
pub(super) struct Socket {
    pub(super) fd: RawFd,
    ops: [Op; 2],
    /// By lane: what runs there was cancelled.
    cancelled: [bool; 2],
    pub(super) is_other: bool,
    /// If it is no socket.
    pub(super) no_wait: NoWait,
    /// What came last was large: more of it is worth waiting for.
    pub(super) is_bulky: bool,
    /// What was written last did not fit: the next write waits until there is room.
    pub(super) is_full: bool,
}

const _: () = assert!(size_of::<Socket>() == 12);

/// What a completion means depends on what runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Op {
    Idle,
    RecvSwap,
    RecvStream,
    RecvPrivate,
    /// A transfer between the socket and the load.
    Transfer,
    Accept,
    /// One attempt to accept.
    AcceptOnce,
    /// Waiting until there is a connection for another attempt.
    PolledAccept,
    Connect,
    Ready,
    /// Waiting until the descriptor is ready; then this is what to do by a plain call.
    PolledSwap,
    PolledStream,
    PolledPrivate,
    PolledTransfer,
}

impl Op {
    /// Whether the ring only says when it can be done.
    pub(super) fn is_polled(self) -> bool {
        matches!(
            self,
            Op::PolledSwap | Op::PolledStream | Op::PolledPrivate | Op::PolledTransfer
        )
    }
}

const NO_SOCKET: Socket = Socket {
    fd: EMPTY,
    ops: [Op::Idle; 2],
    cancelled: [false; 2],
    is_other: false,
    no_wait: NoWait::ByFlag,
    is_bulky: false,
    is_full: false,
};

impl Socket {
    #[inline(always)]
    pub(super) fn op(&self, lane: Lane) -> Op {
        self.ops[lane as usize]
    }

    #[inline(always)]
    pub(super) fn is_cancelled(&self, lane: Lane) -> bool {
        self.cancelled[lane as usize]
    }

    /// Notes what runs on an idle lane from now on. False if it is not idle.
    #[inline(always)]
    pub(super) fn begin(&mut self, lane: Lane, op: Op) -> bool {
        let place = &mut self.ops[lane as usize];
        let idle = *place == Op::Idle;
        debug_assert!(idle, "{lane:?} runs {place:?}");
        if idle {
            *place = op;
        }
        idle
    }

    /// The operation of a lane goes on in another way.
    pub(super) fn turn_into(&mut self, lane: Lane, op: Op) {
        self.ops[lane as usize] = op;
    }

    /// Nothing runs on the lane any more. Returns whether that was cancelled.
    #[inline(always)]
    pub(super) fn end(&mut self, lane: Lane) -> bool {
        self.ops[lane as usize] = Op::Idle;
        std::mem::take(&mut self.cancelled[lane as usize])
    }

    /// The descriptor, once.
    fn take(&mut self) -> Option<OwnedFd> {
        let fd = std::mem::replace(&mut self.fd, EMPTY);
        // SAFETY: `attach` took it from an `OwnedFd`; it is taken out once, just now.
        (fd != EMPTY).then(|| unsafe { OwnedFd::from_raw_fd(fd) })
    }

    /// Learns from what a swap read brought.
    #[inline(always)]
    pub(super) fn learn(&mut self, len: u32) {
        self.is_bulky = len >= BULK_MIN;
    }
}

impl InFlight {
    pub(super) fn attach(&mut self, slot: u32, socket: OwnedFd, kind: SocketKind) {
        let index = slot as usize;
        while self.sockets.len() <= index {
            reserve_gently(&mut self.sockets);
            self.sockets.push(NO_SOCKET);
        }
        let entry = &mut self.sockets[index];
        // What runs, if anything, is not forgotten: the kernel still uses its load.
        *entry = Socket {
            fd: socket.into_raw_fd(),
            is_other: kind == SocketKind::Other,
            no_wait: NoWait::default(),
            is_bulky: false,
            is_full: false,
            ..*entry
        };
    }

    /// The socket, in the blocking mode in which it came.
    pub(super) fn detach(&mut self, slot: u32, counts: &mut Counts) -> Option<OwnedFd> {
        let entry = self.get_mut(slot)?;
        entry.no_wait.calls(entry.fd, counts).restore();
        entry.take()
    }

    /// Closes all sockets. Others that have them find them in the blocking mode in which they came.
    pub(super) fn close_all(&mut self, counts: &mut Counts) {
        for slot in 0..self.sockets.len() {
            drop(self.detach(slot as u32, counts));
        }
    }

    pub(super) fn socket(&self, slot: u32) -> Option<BorrowedFd<'_>> {
        let fd = self.get(slot)?.fd;
        // SAFETY: this table owns the descriptor, and is borrowed for as long as the result.
        (fd != EMPTY).then(|| unsafe { BorrowedFd::borrow_raw(fd) })
    }

    /// What is known of a slot, be there a socket or not.
    #[inline(always)]
    pub(super) fn get(&self, slot: u32) -> Option<&Socket> {
        self.sockets.get(slot as usize)
    }

    #[inline(always)]
    pub(super) fn get_mut(&mut self, slot: u32) -> Option<&mut Socket> {
        self.sockets.get_mut(slot as usize)
    }

    /// False if nothing runs there, or is being cancelled already.
    pub(super) fn mark_cancelled(&mut self, at: Place) -> bool {
        let Some(socket) = self.get_mut(at.slot()) else {
            return false;
        };
        let runs = socket.op(at.lane()) != Op::Idle;
        runs && !std::mem::replace(&mut socket.cancelled[at.lane() as usize], true)
    }

    /// Where operations run whose last completion has not come.
    pub(super) fn all(&self) -> impl Iterator<Item = Place> + '_ {
        let running = |(slot, socket): (usize, &Socket)| {
            let runs = Lane::BOTH.map(|lane| (lane, socket.op(lane) != Op::Idle));
            let runs = runs.into_iter().filter(|&(_, runs)| runs);
            runs.map(move |(lane, _)| Place::new(slot as u32, lane))
        };
        self.sockets.iter().enumerate().flat_map(running)
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        for socket in &mut self.sockets {
            drop(socket.take());
        }
    }
}

impl fmt::Debug for InFlight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "InFlight({} operations)", self.all().count())
    }
}
