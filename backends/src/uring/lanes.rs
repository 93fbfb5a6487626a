//! What runs on each connection, by slot: its socket, and per direction the operation and what
//! the kernel may still use of it. Small for idle connections: a pending swap read carries nothing.

use std::fmt;
use std::os::fd::{BorrowedFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};

use slab::Slab;
use socket2::SockAddr;

use crate::batch::Batch;
use crate::buffer::Buffer;
use crate::slots::{reserve_gently, reserve_slab_gently};
use crate::swap::Credit;
use crate::{Lane, SocketKind};

/// No socket in this slot.
const EMPTY: RawFd = -1;
/// No load: the operation carries nothing.
const NO_LOAD: u32 = u32::MAX;

#[derive(Default)]
pub(super) struct Lanes {
    slots: Vec<Slot>,
    loads: Slab<Load>,
    running: usize,
}

struct Slot {
    fd: RawFd,
    is_other: bool,
    was_blocking: bool,
    lanes: [State; 2],
}

/// One direction of one connection.
#[derive(Clone, Copy)]
pub(super) struct State {
    load: u32,
    pub(super) op: Op,
    cancelled: bool,
}

/// What a completion means depends on what runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Op {
    Idle,
    RecvSwap,
    RecvStream,
    Accept,
    AcceptStream,
    Connect,
    Ready,
    /// A transfer between the socket and memory that the load names.
    Other,
    /// Waiting until a descriptor that is not a socket is ready; then the load says what to do.
    PolledSwap,
    PolledStream,
    PolledTransfer,
}

/// What an operation owns while it runs.
#[derive(Debug)]
pub(super) enum Load {
    None,
    Read {
        buffer: Buffer,
        from: usize,
    },
    Write {
        buffer: Buffer,
        from: usize,
    },
    Batch(Box<Batch>),
    /// Held for the kernel alone.
    Address {
        _to: Box<SockAddr>,
    },
    Credit(Credit),
}

impl Op {
    #[inline]
    pub(super) fn is_polled(self) -> bool {
        matches!(self, Op::PolledSwap | Op::PolledStream | Op::PolledTransfer)
    }
}

const IDLE: State = State {
    load: NO_LOAD,
    op: Op::Idle,
    cancelled: false,
};

/// The `user_data` of a lane.
#[inline]
pub(super) fn encode(slot: u32, lane: Lane) -> u64 {
    u64::from(slot) << 1 | lane as u64
}

#[inline]
pub(super) fn decode(user_data: u64) -> (u32, Lane) {
    let lane = if user_data & 1 == 0 {
        Lane::Read
    } else {
        Lane::Write
    };
    ((user_data >> 1) as u32, lane)
}

impl Lanes {
    pub(super) fn attach(
        &mut self,
        slot: u32,
        socket: OwnedFd,
        kind: SocketKind,
        was_blocking: bool,
    ) {
        let index = slot as usize;
        while self.slots.len() <= index {
            reserve_gently(&mut self.slots);
            self.slots.push(Slot {
                fd: EMPTY,
                is_other: false,
                was_blocking: false,
                lanes: [IDLE; 2],
            });
        }
        self.slots[index] = Slot {
            fd: socket.into_raw_fd(),
            is_other: kind == SocketKind::Other,
            was_blocking,
            lanes: [IDLE; 2],
        };
    }

    /// The socket, and whether it came in blocking mode and was switched.
    pub(super) fn detach(&mut self, slot: u32) -> Option<(OwnedFd, bool)> {
        let entry = self.slots.get_mut(slot as usize)?;
        let fd = std::mem::replace(&mut entry.fd, EMPTY);
        if fd == EMPTY {
            return None;
        }
        // SAFETY: `attach` took ownership of this descriptor, and it is given up once.
        Some((unsafe { OwnedFd::from_raw_fd(fd) }, entry.was_blocking))
    }

    #[inline]
    pub(super) fn socket(&self, slot: u32) -> Option<BorrowedFd<'_>> {
        let fd = self.slots.get(slot as usize)?.fd;
        // SAFETY: this table owns the descriptor while it is in a slot.
        (fd != EMPTY).then(|| unsafe { BorrowedFd::borrow_raw(fd) })
    }

    #[inline]
    pub(super) fn is_other(&self, slot: u32) -> bool {
        self.slots
            .get(slot as usize)
            .is_some_and(|slot| slot.is_other)
    }

    #[inline]
    pub(super) fn get(&self, slot: u32, lane: Lane) -> Option<State> {
        let state = self.slots.get(slot as usize)?.lanes[lane as usize];
        (state.op != Op::Idle).then_some(state)
    }

    #[inline]
    pub(super) fn begin(&mut self, slot: u32, lane: Lane, op: Op, load: Load) {
        let load = if matches!(load, Load::None) {
            NO_LOAD
        } else {
            reserve_slab_gently(&mut self.loads);
            self.loads.insert(load) as u32
        };
        if let Some(slot) = self.slots.get_mut(slot as usize) {
            slot.lanes[lane as usize] = State {
                load,
                op,
                cancelled: false,
            };
            self.running += 1;
        }
    }

    /// Makes the lane idle. What it carried, and whether it was being cancelled.
    #[inline]
    pub(super) fn end(&mut self, slot: u32, lane: Lane) -> (Load, bool) {
        let Some(slot) = self.slots.get_mut(slot as usize) else {
            return (Load::None, false);
        };
        let state = std::mem::replace(&mut slot.lanes[lane as usize], IDLE);
        self.running -= 1;
        let load = self.loads.try_remove(state.load as usize);
        (load.unwrap_or(Load::None), state.cancelled)
    }

    /// False if nothing runs there, or is being cancelled already.
    pub(super) fn mark_cancelled(&mut self, slot: u32, lane: Lane) -> bool {
        let Some(slot) = self.slots.get_mut(slot as usize) else {
            return false;
        };
        let state = &mut slot.lanes[lane as usize];
        if state.op == Op::Idle || state.cancelled {
            return false;
        }
        state.cancelled = true;
        true
    }

    pub(super) fn is_cancelled(&self, slot: u32, lane: Lane) -> bool {
        self.get(slot, lane).is_some_and(|state| state.cancelled)
    }

    pub(super) fn credit(&self, slot: u32, lane: Lane) -> Option<&Credit> {
        let state = self.get(slot, lane)?;
        match self.loads.get(state.load as usize) {
            Some(Load::Credit(credit)) => Some(credit),
            _ => None,
        }
    }

    pub(super) fn load_mut(&mut self, slot: u32, lane: Lane) -> Option<&mut Load> {
        let state = self.get(slot, lane)?;
        self.loads.get_mut(state.load as usize)
    }

    /// Operations whose last completion has not come.
    pub(super) fn running(&self) -> usize {
        self.running
    }

    /// Every lane with an operation.
    pub(super) fn all_running(&self) -> Vec<(u32, Lane)> {
        let lanes_of = |(slot, entry): (usize, &Slot)| {
            Lane::BOTH.map(|lane| {
                let runs = entry.lanes[lane as usize].op != Op::Idle;
                runs.then_some((slot as u32, lane))
            })
        };
        self.slots
            .iter()
            .enumerate()
            .flat_map(lanes_of)
            .flatten()
            .collect()
    }

    /// Everything that the kernel may still use.
    pub(super) fn take_loads(&mut self) -> Slab<Load> {
        std::mem::take(&mut self.loads)
    }
}

impl Drop for Lanes {
    fn drop(&mut self) {
        for slot in 0..self.slots.len() {
            drop(self.detach(slot as u32));
        }
    }
}

impl fmt::Debug for Lanes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Lanes({} running)", self.running)
    }
}
