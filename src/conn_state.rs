//! The state of one connection: its phase, and the requests of its two lanes. The first request of a
//! lane lies here, because most lanes have one at most. The requests behind it are linked in
//! `conn_table`.

use std::num::NonZeroI32;

use gaio_backends::Lane;

use crate::conn::Conn;
use crate::request::Pending;

/// No request: the end of a list.
pub(crate) const NONE: u32 = u32::MAX;

#[derive(Debug)]
pub(crate) struct ConnState<C> {
    /// The handle under which the slot was opened last.
    pub(crate) conn: Conn,
    pub(crate) phase: Phase,
    /// Accepting failed for want of descriptors, and the program was told.
    pub(crate) out_of_descriptors: bool,
    /// The error with which the system reported the loss of the connection. It does so only once.
    pub(crate) lost: Option<NonZeroI32>,
    /// The bytes that the writes behind the first have still to write, except those that the backend has.
    pub(crate) queued_bytes: usize,
    lanes: [LaneState<C>; 2],
}

/// The life of a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// A connection whose requests may run.
    Open,
    /// An accepted connection for which the program has made no request yet. It counts for the limit of its
    /// listener.
    Unserved,
    /// A listener.
    Listening,
    /// A connect is pending. The other requests wait for it.
    Connecting,
    /// Freed. The operations that run are being cancelled, and the requests end after them.
    Closing,
    /// Free, or waiting until the program has the last results of the connection that ended.
    Empty,
}

/// The requests of one direction, oldest first.
///
/// A lane runs, or waits for one thing, or is idle. These are the legal combinations in an open
/// connection; `engine/check.rs` asserts them.
///
/// | `stage` | `in_flight` | `first` | what comes next |
/// |---|---|---|---|
/// | `None` | 0 | none | a request is submitted |
/// | `None` | 1 or more | some; with `end` if it was cancelled, or `pausing` if a stream was | its completion |
/// | `None` | 0 | some | while it connects: the end of the connect |
/// | `Dirty`, `BufferGranted`, `Overdue` | 0 | some, or none if it has ended | the next round starts it |
/// | `WaitingForBuffer` | 0 | a swap read or a stream | a swap buffer, or leases of its own, come back |
/// | `WaitingForLeases` | 0 | a stream | leases of its own come back |
/// | `WaitingToRetry` | 0 | any | time passes |
/// | `WaitingForProgram` | 0 | an accept | the program serves connections |
///
/// `private` is set from the decision to read into a private block until that read completes. On a
/// freed connection no lane waits: its operations end, and then all of its requests do.
#[derive(Debug)]
pub(crate) struct LaneState<C> {
    pub(crate) first: Option<Pending<C>>,
    /// The list of the requests behind it.
    pub(crate) next: u32,
    pub(crate) last: u32,
    /// The number of requests that the backend works on, from the first on. Only writes run several at
    /// a time.
    pub(crate) in_flight: u16,
    pub(crate) stage: Stage,
    pub(crate) pausing: Pausing,
    /// The number of times that the first read found no swap buffer.
    pub(crate) misses: u8,
    /// The first read goes into a private block.
    pub(crate) private: bool,
    /// The number of attempts of the first request that failed for now, up to a limit. The wait for the
    /// next one grows with it.
    pub(crate) tries: u8,
}

/// The reason why the operation of a stream was cancelled although the stream goes on. It says what the
/// stream waits for next.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Pausing {
    #[default]
    No,
    /// It holds more than its window, so it waits for leases of its own.
    OverWindow,
    /// It holds more than it may while the pool is scarce, so it queues for a buffer.
    Scarce,
}

/// The wait of a lane on which nothing runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// It does not wait: it is idle, or runs, or its connection is not connected yet.
    None,
    /// To be started by the next round.
    Dirty,
    /// Queues for a swap buffer. Leases of its own connection that come back end the wait, too.
    WaitingForBuffer,
    /// A stream over its window waits for leases of its own.
    WaitingForLeases,
    /// Waits for time to pass, until it is tried again.
    WaitingToRetry,
    /// A listener at its limit waits until the program serves what was accepted.
    WaitingForProgram,
    /// To be started. It may take a buffer now, and does not queue for one behind others.
    BufferGranted,
    /// To be started, though its deadline has passed: every request has one attempt. Until then its
    /// deadline is not in the queue of deadlines.
    Overdue,
}

const _: () = assert!(size_of::<ConnState<()>>() == 88);

impl Stage {
    /// Whether the lane is to be started.
    pub(crate) fn is_to_start(self) -> bool {
        matches!(self, Stage::Dirty | Stage::BufferGranted | Stage::Overdue)
    }

    /// Whether the lane waits for something that another part of the engine tells it.
    #[inline]
    pub(crate) fn is_waiting(self) -> bool {
        !self.is_to_start() && self != Stage::None
    }
}

impl Phase {
    /// Whether the program's handle is valid.
    #[inline]
    pub(crate) fn is_open(self) -> bool {
        matches!(
            self,
            Phase::Open | Phase::Unserved | Phase::Listening | Phase::Connecting
        )
    }
}

impl<C> LaneState<C> {
    const fn new() -> Self {
        LaneState {
            first: None,
            next: NONE,
            last: NONE,
            in_flight: 0,
            stage: Stage::None,
            pausing: Pausing::No,
            misses: 0,
            private: false,
            tries: 0,
        }
    }

    /// Whether requests wait behind the first.
    #[inline]
    pub(crate) fn has_more(&self) -> bool {
        self.next != NONE
    }
}

impl<C> ConnState<C> {
    pub(crate) fn new() -> Self {
        ConnState {
            conn: Conn::NONE,
            phase: Phase::Empty,
            out_of_descriptors: false,
            lost: None,
            queued_bytes: 0,
            lanes: [LaneState::new(), LaneState::new()],
        }
    }

    #[inline]
    pub(crate) fn lane(&self, lane: Lane) -> &LaneState<C> {
        &self.lanes[lane as usize]
    }

    #[inline]
    pub(crate) fn lane_mut(&mut self, lane: Lane) -> &mut LaneState<C> {
        &mut self.lanes[lane as usize]
    }

    /// Whether the backend works on none of its requests.
    pub(crate) fn is_still(&self) -> bool {
        self.lanes.iter().all(|lane| lane.in_flight == 0)
    }

    /// Whether no request is pending.
    pub(crate) fn is_idle(&self) -> bool {
        self.lanes.iter().all(|lane| lane.first.is_none())
    }
}
