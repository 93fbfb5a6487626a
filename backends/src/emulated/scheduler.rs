//! Decides which operation runs when: it brings together the started operations and the known
//! readiness of their sockets. It knows nothing of the poller. One attempt at an operation is in
//! `attempt.rs`.
//!
//! An operation runs when it is started, if its lane is thought ready. Otherwise it waits for an
//! event, or stands in the queue: a stream has more to read, or an event woke both lanes.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;

use super::block_writer::BlockWriter;
use super::poller::Readiness;
use super::slot::{Flags, Slot, slot_or_grow};
use crate::error::Errno;
use crate::swap::Pool;
use crate::sys::NoWait;
use crate::{Completion, Counts, Lane, LaneId, OpTable, Process, Request};

/// The attached sockets and their operations.
#[derive(Debug)]
pub(super) struct Scheduler {
    pub(super) slots: Vec<Slot>,
    pub(super) op_table: OpTable,
    /// Lanes to run without an event. Each is in the queue at most once, as `Flags::queued` says. A
    /// lane may have nothing left to run when it comes to its head.
    queue: VecDeque<LaneId>,
    /// Completions of cancelled operations and of their last attempts, in order.
    cancelled: VecDeque<Completion>,
    /// Whether operations have completed in `start` since the last turn.
    pub(super) completed_at_start: bool,
    /// The number of lanes at the head of the queue that still run in this turn. Lanes that are
    /// appended meanwhile wait for the next turn, so that a busy stream cannot keep a turn from its
    /// end, and from the next events.
    left: usize,
    /// The number of steps that the stream at the head of the queue took in a row.
    pub(super) streak: usize,
    pub(super) block_writer: BlockWriter,
    pub(super) counts: Counts,
    process: Process,
}

impl Scheduler {
    pub(super) fn new(pool: Pool, process: Process) -> Self {
        Scheduler {
            slots: Vec::new(),
            op_table: OpTable::default(),
            queue: VecDeque::new(),
            cancelled: VecDeque::new(),
            completed_at_start: false,
            left: 0,
            streak: 0,
            block_writer: BlockWriter::new(pool),
            counts: Counts::default(),
            process,
        }
    }

    /// The token of events in the slot's present life.
    pub(super) fn token(&mut self, slot: u32) -> u64 {
        let entry = slot_or_grow(&mut self.slots, slot);
        u64::from(entry.generation) << 32 | u64::from(slot)
    }

    /// Takes a socket into a slot.
    pub(super) fn attach(&mut self, slot: u32, socket: OwnedFd, flags: Flags, no_wait: NoWait) {
        let entry = slot_or_grow(&mut self.slots, slot);
        debug_assert!(entry.socket.is_none(), "slot {slot} is taken");
        entry.socket = Some(socket);
        entry.flags.set(flags);
        entry.no_wait = no_wait;
    }

    /// Gives a socket up, together with the means that keep calls on it from blocking.
    pub(super) fn detach(&mut self, slot: u32) -> Option<(OwnedFd, NoWait)> {
        let entry = self.slots.get_mut(slot as usize)?;
        let socket = entry.socket.take()?;
        entry.generation = entry.generation.wrapping_add(1);
        entry.flags = entry.flags.of_vacancy();
        Some((socket, std::mem::take(&mut entry.no_wait)))
    }

    /// Takes an operation, and attempts it if its lane is thought ready. Then it nearly always
    /// succeeds. Otherwise an event will tell when it can run.
    #[inline]
    pub(super) fn start(&mut self, at: LaneId, request: Request) -> Option<Completion> {
        let entry = self.slots.get_mut(at.slot() as usize);
        debug_assert!(entry.is_some(), "{at:?} was never attached");
        let entry = entry?;
        debug_assert_eq!(entry.running(at.lane()), None, "{at:?} is busy");
        entry.set_running(at.lane(), Some(request));
        // These operations find out by themselves, whatever is known of the lane.
        if let Request::ReadPrivate | Request::Connect | Request::Ready(_) = request {
            entry.flags.set(Flags::ready(at.lane()));
        }
        if entry.can_run(at.lane())
            && let Some(completion) = self.attempt(at)
        {
            self.completed_at_start = true;
            return Some(completion);
        }
        // Other operations use no data while they wait.
        if let Request::Read | Request::Write | Request::WriteMany = request {
            self.op_table.begin(at);
        }
        None
    }

    /// Ends an operation, after a last attempt if asked.
    pub(super) fn cancel(&mut self, at: LaneId, last_try: bool) {
        // There is nothing to attempt while the kernel connects.
        if last_try && !self.is_connecting(at) {
            let completion = self.attempt(at);
            self.cancelled.extend(completion);
        }
        if self.running(at).is_some() {
            // The end comes behind a completion of the last attempt.
            let completion = self.finish(at, Err(Errno(libc::ECANCELED)));
            self.cancelled.extend(completion);
        }
    }

    /// Begins a turn: the lanes that are queued now may run in it.
    pub(super) fn begin_turn(&mut self) {
        self.left = self.queue.len();
    }

    /// Whether something can complete in this turn without an event.
    #[inline]
    pub(super) fn has_started(&self) -> bool {
        self.left > 0 || !self.cancelled.is_empty()
    }

    /// The next completion that needs no event: one that is kept, or one of a lane that runs now.
    pub(super) fn next_started(&mut self) -> Option<Completion> {
        if let Some(completion) = self.cancelled.pop_front() {
            return Some(completion);
        }
        while self.left > 0 {
            self.left -= 1;
            let at = self.queue.pop_front()?;
            let Some(entry) = self.slots.get_mut(at.slot() as usize) else {
                continue;
            };
            entry.flags.clear(Flags::queued(at.lane()));
            if entry.can_run(at.lane())
                && let Some(completion) = self.attempt(at)
            {
                return Some(completion);
            }
        }
        None
    }

    /// Remembers the readiness that an event reports, and runs the operations that waited for it.
    #[inline]
    pub(super) fn event(&mut self, token: u64, readiness: Readiness) -> Option<Completion> {
        let (slot, generation) = (token as u32, (token >> 32) as u32);
        let entry = self.slots.get_mut(slot as usize)?;
        // The event belongs to an earlier life of the slot.
        if entry.generation != generation {
            return None;
        }
        entry.flags.set(Flags::from_event(readiness));
        let reads = readiness.has(Readiness::READABLE) && entry.can_run(Lane::Read);
        let writes = readiness.has(Readiness::WRITABLE) && entry.can_run(Lane::Write);
        let at = |lane| LaneId::new(slot, lane);
        match (reads, writes) {
            (true, false) => self.attempt(at(Lane::Read)),
            (true, true) => {
                // The write lane runs next, before any other event.
                self.enqueue_first(at(Lane::Write));
                self.attempt(at(Lane::Read))
            }
            (false, true) => self.attempt(at(Lane::Write)),
            (false, false) => None,
        }
    }

    /// Whether there is something to do without waiting.
    #[inline]
    pub(super) fn has_work(&self) -> bool {
        !self.queue.is_empty() || !self.cancelled.is_empty()
    }

    /// Appends a lane to the queue: it runs in the next turn.
    #[inline]
    pub(super) fn enqueue(&mut self, at: LaneId) {
        if self.note_queued(at) {
            self.queue.push_back(at);
        }
    }

    /// Puts a lane at the head of the queue: it runs next, and still in this turn.
    pub(super) fn enqueue_first(&mut self, at: LaneId) {
        if self.note_queued(at) {
            self.queue.push_front(at);
            self.left += 1;
        }
    }

    /// Marks a lane as queued. False if it was queued already.
    #[inline]
    fn note_queued(&mut self, at: LaneId) -> bool {
        let Some(entry) = self.slots.get_mut(at.slot() as usize) else {
            return false;
        };
        let queued = Flags::queued(at.lane());
        let fresh = !entry.flags.has(queued);
        entry.flags.set(queued);
        fresh
    }

    fn running(&self, at: LaneId) -> Option<Request> {
        self.slots.get(at.slot() as usize)?.running(at.lane())
    }

    fn is_connecting(&self, at: LaneId) -> bool {
        let entry = self.slots.get(at.slot() as usize);
        entry.is_some_and(|entry| entry.flags.has(Flags::CONNECTING)) && at.lane() == Lane::Write
    }
}

/// The length of one transfer, which fits: [`TRANSFER_MAX`](crate::sys::TRANSFER_MAX) and the kernel keep it below 2 GiB.
#[inline]
pub(super) fn transferred(len: usize) -> u32 {
    len as u32
}

impl Drop for Scheduler {
    /// Restores the modes of descriptors, except in a forked child: there, the parent goes on to
    /// use them.
    fn drop(&mut self) {
        if self.process.is_current() {
            for entry in &mut self.slots {
                entry.let_go(&mut self.counts);
            }
        }
    }
}
