//! What the kernel works on: the socket of each slot, and by the request's key which operation
//! runs. Small for idle connections: eight bytes each. What an operation carries is in `Loads`.

use std::fmt;
use std::os::fd::{BorrowedFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};

use crate::slots::{grow_gently, reserve_gently};
use crate::{Lane, Place, SocketKind};

/// From so many bytes on, the next read polls first: messages of 64 KiB cost a fifth less then, as they
/// are not read in the pieces in which they arrive; from 16 KiB down they cost more; measured.
const BULK_MIN: u32 = 32 * 1024;

/// No socket in this slot.
const EMPTY: RawFd = -1;

#[derive(Default)]
pub(super) struct InFlight {
    sockets: Vec<Socket>,
    /// By key.
    running: Vec<Running>,
    count: usize,
}

#[derive(Clone, Copy)]
pub(super) struct Socket {
    pub(super) fd: RawFd,
    pub(super) is_other: bool,
    was_blocking: bool,
    /// What came last was large: more of it is worth waiting for.
    pub(super) is_bulky: bool,
}

const _: () = assert!(size_of::<Socket>() == 8);

/// One operation.
#[derive(Clone, Copy)]
pub(super) struct Running {
    pub(super) slot: u32,
    pub(super) op: Op,
    pub(super) lane: Lane,
    pub(super) cancelled: bool,
}

const _: () = assert!(size_of::<Running>() == 8);

/// What a completion means depends on what runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Op {
    Idle,
    RecvSwap,
    RecvStream,
    /// A transfer between the socket and the load.
    Transfer,
    Accept,
    Connect,
    Ready,
    /// Waiting until a descriptor that is not a socket is ready; then this is what to do.
    PolledSwap,
    PolledStream,
    PolledTransfer,
}

impl Op {
    #[inline]
    pub(super) fn is_polled(self) -> bool {
        matches!(self, Op::PolledSwap | Op::PolledStream | Op::PolledTransfer)
    }
}

const IDLE: Running = Running {
    slot: 0,
    op: Op::Idle,
    lane: Lane::Read,
    cancelled: false,
};

impl InFlight {
    pub(super) fn attach(
        &mut self,
        slot: u32,
        socket: OwnedFd,
        kind: SocketKind,
        was_blocking: bool,
    ) {
        let index = slot as usize;
        while self.sockets.len() <= index {
            reserve_gently(&mut self.sockets);
            self.sockets.push(Socket {
                fd: EMPTY,
                is_other: false,
                was_blocking: false,
                is_bulky: false,
            });
        }
        self.sockets[index] = Socket {
            fd: socket.into_raw_fd(),
            is_other: kind == SocketKind::Other,
            was_blocking,
            is_bulky: false,
        };
    }

    /// The socket, and whether it came in blocking mode and was switched.
    pub(super) fn detach(&mut self, slot: u32) -> Option<(OwnedFd, bool)> {
        let entry = self.sockets.get_mut(slot as usize)?;
        let fd = std::mem::replace(&mut entry.fd, EMPTY);
        if fd == EMPTY {
            return None;
        }
        // SAFETY: `attach` took ownership of this descriptor, and it is given up once.
        Some((unsafe { OwnedFd::from_raw_fd(fd) }, entry.was_blocking))
    }

    pub(super) fn socket(&self, slot: u32) -> Option<BorrowedFd<'_>> {
        let fd = self.get_socket(slot)?.fd;
        // SAFETY: this table owns the descriptor while it is in a slot.
        Some(unsafe { BorrowedFd::borrow_raw(fd) })
    }

    #[inline]
    pub(super) fn get_socket(&self, slot: u32) -> Option<Socket> {
        let socket = *self.sockets.get(slot as usize)?;
        (socket.fd != EMPTY).then_some(socket)
    }

    /// What is in a slot, if it is a socket.
    #[inline]
    pub(super) fn stream(&self, slot: u32) -> Option<&Socket> {
        let socket = self.sockets.get(slot as usize)?;
        (socket.fd != EMPTY && !socket.is_other).then_some(socket)
    }

    /// Learns from what a swap read brought.
    #[inline]
    pub(super) fn learn(&mut self, slot: u32, len: u32) {
        if let Some(socket) = self.sockets.get_mut(slot as usize) {
            socket.is_bulky = len >= BULK_MIN;
        }
    }

    /// What runs for a request.
    #[inline]
    pub(super) fn get(&self, key: u32) -> Option<&Running> {
        let running = self.running.get(key as usize)?;
        (running.op != Op::Idle).then_some(running)
    }

    #[inline(always)]
    pub(super) fn begin(&mut self, at: Place, op: Op) {
        let index = at.key as usize;
        if index >= self.running.len() {
            grow_gently(&mut self.running, index, || IDLE);
        }
        if let Some(place) = self.running.get_mut(index) {
            *place = Running {
                slot: at.slot,
                op,
                lane: at.lane,
                cancelled: false,
            };
            self.count += 1;
        }
    }

    #[inline]
    pub(super) fn end(&mut self, key: u32) {
        if let Some(running) = self.running.get_mut(key as usize) {
            running.op = Op::Idle;
            self.count -= 1;
        }
    }

    /// False if nothing runs there, or is being cancelled already.
    pub(super) fn mark_cancelled(&mut self, key: u32) -> bool {
        match self.running.get_mut(key as usize) {
            Some(running) if running.op != Op::Idle && !running.cancelled => {
                running.cancelled = true;
                true
            }
            _ => false,
        }
    }

    /// Operations whose last completion has not come.
    pub(super) fn count(&self) -> usize {
        self.count
    }

    /// All of them.
    pub(super) fn all(&self) -> Vec<Place> {
        let place = |(key, running): (usize, &Running)| {
            (running.op != Op::Idle).then_some(Place {
                slot: running.slot,
                lane: running.lane,
                key: key as u32,
            })
        };
        self.running.iter().enumerate().filter_map(place).collect()
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        for slot in 0..self.sockets.len() {
            drop(self.detach(slot as u32));
        }
    }
}

impl fmt::Debug for InFlight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "InFlight({} operations)", self.count)
    }
}
