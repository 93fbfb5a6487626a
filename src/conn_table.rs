//! The state of each connection: whether its handle is good, what it is, and a queue of requests
//! per direction. Moves requests in and out of the queues; what they mean is not known here.

use std::num::NonZeroI32;

use gaio_backends::{Lane, SocketKind, reserve_gently};

use crate::conn::Conn;
use crate::request::{NONE, Removed, Requests};

/// All connections, by slot.
#[derive(Debug, Default)]
pub(crate) struct ConnTable {
    slots: Vec<ConnState>,
    open: usize,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct ConnState {
    /// The handle under which it was opened last.
    pub(crate) conn: Conn,
    pub(crate) phase: Phase,
    pub(crate) is_listener: bool,
    /// Other requests wait for the connect to succeed.
    pub(crate) connecting: bool,
    /// Accepting failed for want of descriptors, and the program was told.
    pub(crate) out_of_descriptors: bool,
    /// The system's error that said that it is lost, as it says only once.
    pub(crate) lost: Option<NonZeroI32>,
    lanes: [Queue; 2],
}

/// The life of a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Nothing is here, or the last results of what was are on their way.
    Empty,
    Open,
    /// Freed; what runs is being cancelled.
    Closing,
}

/// The requests of one direction, oldest first.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Queue {
    pub(crate) head: u32,
    tail: u32,
    /// How many of the first requests a backend works on.
    pub(crate) in_flight: u16,
    pub(crate) stage: Stage,
}

/// In which list a lane waits, if nothing runs on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    None,
    /// To be started.
    Dirty,
    /// For a swap buffer.
    Starved,
    /// A stream, for leases to come back.
    Paused,
    /// To be started: its turn for a buffer has come, it need not wait behind the others.
    Served,
}

const _: () = assert!(size_of::<ConnState>() <= 40);

const EMPTY_QUEUE: Queue = Queue {
    head: NONE,
    tail: NONE,
    in_flight: 0,
    stage: Stage::None,
};

const EMPTY_SLOT: ConnState = ConnState {
    conn: Conn::NONE,
    phase: Phase::Empty,
    is_listener: false,
    connecting: false,
    out_of_descriptors: false,
    lost: None,
    lanes: [EMPTY_QUEUE; 2],
};

impl ConnState {
    #[inline]
    pub(crate) fn lane(&self, lane: Lane) -> &Queue {
        &self.lanes[lane as usize]
    }

    #[inline]
    pub(crate) fn lane_mut(&mut self, lane: Lane) -> &mut Queue {
        &mut self.lanes[lane as usize]
    }

    /// Whether a backend works on nothing.
    pub(crate) fn is_still(&self) -> bool {
        self.lanes.iter().all(|queue| queue.in_flight == 0)
    }

    /// Whether nothing was asked.
    pub(crate) fn is_idle(&self) -> bool {
        self.lanes.iter().all(|queue| queue.head == NONE)
    }
}

impl ConnTable {
    pub(crate) fn open_count(&self) -> usize {
        self.open
    }

    /// Opens the slot of a new handle.
    pub(crate) fn open(&mut self, conn: Conn, kind: SocketKind) {
        let index = conn.index();
        while self.slots.len() <= index {
            reserve_gently(&mut self.slots);
            self.slots.push(EMPTY_SLOT);
        }
        self.slots[index] = ConnState {
            conn,
            phase: Phase::Open,
            is_listener: kind == SocketKind::Listener,
            ..EMPTY_SLOT
        };
        self.open += 1;
    }

    /// The connection is no longer the program's.
    pub(crate) fn begin_closing(&mut self, slot: u32) {
        if let Some(state) = self.get_mut(slot)
            && state.phase == Phase::Open
        {
            state.phase = Phase::Closing;
            self.open -= 1;
        }
    }

    #[inline]
    pub(crate) fn get(&self, slot: u32) -> Option<&ConnState> {
        self.slots.get(slot as usize)
    }

    #[inline]
    pub(crate) fn get_mut(&mut self, slot: u32) -> Option<&mut ConnState> {
        self.slots.get_mut(slot as usize)
    }

    #[inline]
    pub(crate) fn lane_mut(&mut self, slot: u32, lane: Lane) -> Option<&mut Queue> {
        Some(self.get_mut(slot)?.lane_mut(lane))
    }

    /// The slots of all open connections.
    pub(crate) fn open_slots(&self) -> Vec<u32> {
        let open = |(slot, state): (usize, &ConnState)| {
            (state.phase == Phase::Open).then_some(slot as u32)
        };
        self.slots.iter().enumerate().filter_map(open).collect()
    }

    /// Appends a request to a lane. True if it is the first there and the lane was in no list:
    /// now it is to be started.
    #[inline(always)]
    pub(crate) fn push<C>(
        &mut self,
        requests: &mut Requests<C>,
        slot: u32,
        lane: Lane,
        key: u32,
    ) -> bool {
        let Some(queue) = self.lane_mut(slot, lane) else {
            return false;
        };
        let tail = std::mem::replace(&mut queue.tail, key);
        if tail == NONE {
            queue.head = key;
            let fresh = queue.stage == Stage::None;
            queue.stage = if fresh { Stage::Dirty } else { queue.stage };
            return fresh;
        }
        link(requests, tail, key);
        false
    }

    /// Takes a request out of its lane, wherever it stands. The state of its connection.
    #[inline(always)]
    pub(crate) fn unlink<C>(
        &mut self,
        requests: &mut Requests<C>,
        gone: &Removed<C>,
    ) -> Option<&mut ConnState> {
        let state = self.get_mut(gone.slot)?;
        let queue = state.lane_mut(gone.lane);
        match requests.get_mut(gone.prev) {
            Some(before) => before.next = gone.next,
            None => queue.head = gone.next,
        }
        match requests.get_mut(gone.next) {
            Some(after) => after.prev = gone.prev,
            None => queue.tail = gone.prev,
        }
        Some(state)
    }
}

/// Makes `next` the neighbour behind `prev`.
fn link<C>(requests: &mut Requests<C>, prev: u32, next: u32) {
    if let Some(before) = requests.get_mut(prev) {
        before.next = next;
    }
    if let Some(after) = requests.get_mut(next) {
        after.prev = prev;
    }
}
