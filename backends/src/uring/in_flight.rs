//! The socket of each slot, and the operation that runs on each of its lanes. An entry is small,
//! because idle connections are many. The data of operations is in `OpTable`.

use std::fmt;
use std::os::fd::{BorrowedFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};

use crate::slots::reserve_gently;
use crate::sys::NoWait;
use crate::{Counts, Lane, LaneId, SocketKind};

/// The size of a read from which on the next read polls first. Messages of 64 KiB cost a fifth less
/// then, because they are not read in the pieces in which they arrive. Messages of 16 KiB or less
/// would cost more; measured.
const BULK_MIN: u32 = 32 * 1024;

/// The descriptor of a slot without a socket. Every operation refuses it.
const EMPTY: RawFd = -1;

#[derive(Default)]
pub(super) struct InFlight {
    sockets: Vec<Socket>,
}

#[derive(Clone, Copy)]
pub(super) struct Socket {
    pub(super) fd: RawFd,
    ops: [RingOp; 2],
    /// Whether the operation of each lane was cancelled.
    cancelled: [bool; 2],
    pub(super) is_other: bool,
    /// The means against blocking, if the descriptor is not a socket.
    pub(super) no_wait: NoWait,
    /// The last read was large, so it pays to wait until more has come.
    pub(super) is_bulky: bool,
    /// The last write did not fit, so the next one waits until there is room.
    pub(super) is_full: bool,
}

const _: () = assert!(size_of::<Socket>() == 12);

/// The operation of a lane. It decides the meaning of a completion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RingOp {
    Idle,
    RecvSwap,
    RecvStream,
    RecvPrivate,
    /// A transfer between the socket and the lane's buffers.
    Transfer,
    Accept,
    /// An attempt to accept.
    AcceptOnce,
    /// A wait for a connection, before another attempt.
    PolledAccept,
    Connect,
    Ready,
    /// A wait until the descriptor is ready, before this transfer by a plain call. The same holds
    /// for the variants below.
    PolledSwap,
    PolledStream,
    PolledPrivate,
    PolledTransfer,
}

impl RingOp {
    /// Whether the ring only reports when the transfer is possible.
    pub(super) fn is_polled(self) -> bool {
        matches!(
            self,
            RingOp::PolledSwap
                | RingOp::PolledStream
                | RingOp::PolledPrivate
                | RingOp::PolledTransfer
        )
    }
}

const NO_SOCKET: Socket = Socket {
    fd: EMPTY,
    ops: [RingOp::Idle; 2],
    cancelled: [false; 2],
    is_other: false,
    no_wait: NoWait::ByFlag,
    is_bulky: false,
    is_full: false,
};

impl Socket {
    #[inline]
    pub(super) fn op(&self, lane: Lane) -> RingOp {
        self.ops[lane as usize]
    }

    #[inline]
    pub(super) fn is_cancelled(&self, lane: Lane) -> bool {
        self.cancelled[lane as usize]
    }

    #[inline]
    fn begin(&mut self, lane: Lane, op: RingOp) -> bool {
        let place = &mut self.ops[lane as usize];
        let idle = *place == RingOp::Idle;
        debug_assert!(idle, "{lane:?} runs {place:?}");
        if idle {
            *place = op;
        }
        idle
    }

    /// Replaces the operation of a lane by another way to go on with it.
    pub(super) fn turn_into(&mut self, lane: Lane, op: RingOp) {
        self.ops[lane as usize] = op;
    }

    /// Marks a lane as idle. Returns whether its operation was cancelled.
    #[inline]
    pub(super) fn end(&mut self, lane: Lane) -> bool {
        self.ops[lane as usize] = RingOp::Idle;
        std::mem::take(&mut self.cancelled[lane as usize])
    }

    /// Takes the descriptor out.
    fn take(&mut self) -> Option<OwnedFd> {
        let fd = std::mem::replace(&mut self.fd, EMPTY);
        // SAFETY: `attach` took the descriptor from an `OwnedFd`. It is taken out once, just now.
        (fd != EMPTY).then(|| unsafe { OwnedFd::from_raw_fd(fd) })
    }

    /// Learns from the size of a swap read.
    #[inline]
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
        // A running operation, if there is one, is not forgotten: the kernel still uses its data.
        *entry = Socket {
            fd: socket.into_raw_fd(),
            is_other: kind == SocketKind::Other,
            no_wait: NoWait::default(),
            is_bulky: false,
            is_full: false,
            ..*entry
        };
    }

    /// Takes the socket out, in the blocking mode in which it came.
    pub(super) fn detach(&mut self, slot: u32, counts: &mut Counts) -> Option<OwnedFd> {
        let entry = self.get_mut(slot)?;
        entry.no_wait.calls(entry.fd, counts).restore();
        entry.take()
    }

    /// Closes all sockets. Holders of duplicates find them in the blocking mode in which they came.
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

    /// The entry of a slot, with or without a socket.
    #[inline]
    pub(super) fn get(&self, slot: u32) -> Option<&Socket> {
        self.sockets.get(slot as usize)
    }

    #[inline]
    pub(super) fn get_mut(&mut self, slot: u32) -> Option<&mut Socket> {
        self.sockets.get_mut(slot as usize)
    }

    /// Notes the operation that runs on an idle lane from now on. False if the lane is not idle.
    #[inline]
    pub(super) fn begin(&mut self, at: LaneId, op: RingOp) -> bool {
        let socket = self.get_mut(at.slot());
        debug_assert!(socket.is_some(), "{at:?} was never attached");
        socket.is_some_and(|socket| socket.begin(at.lane(), op))
    }

    /// Marks the operation of a lane as cancelled. False if there is none, or if it was cancelled
    /// before.
    pub(super) fn mark_cancelled(&mut self, at: LaneId) -> bool {
        let Some(socket) = self.get_mut(at.slot()) else {
            return false;
        };
        let runs = socket.op(at.lane()) != RingOp::Idle;
        runs && !std::mem::replace(&mut socket.cancelled[at.lane() as usize], true)
    }

    /// The lanes with operations whose last completion has not come.
    pub(super) fn all(&self) -> impl Iterator<Item = LaneId> + '_ {
        let running = |(slot, socket): (usize, &Socket)| {
            let runs = Lane::BOTH.map(|lane| (lane, socket.op(lane) != RingOp::Idle));
            let runs = runs.into_iter().filter(|&(_, runs)| runs);
            runs.map(move |(lane, _)| LaneId::new(slot as u32, lane))
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
