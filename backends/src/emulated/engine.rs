//! Which operation runs when: remembers what was started and what is known to be ready, and
//! brings the two together. Knows nothing of the poller; what one attempt does is in
//! `attempt.rs`.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;

use super::cursor::Cursor;
use super::poller::Readiness;
use super::slot::{Flags, Op, Slot, reach};
use crate::error::Errno;
use crate::swap::{Pool, SwapBuf};
use crate::sys::NoWait;
use crate::{Buffer, Completion, Counts, Lane, LoadTable, Payload, Place, Process, Request};

/// What came of an event.
pub(super) enum Step {
    Nothing,
    /// A swap read.
    Received(Place, SwapBuf),
    /// A step of a stream.
    Streamed(Place, SwapBuf),
    /// What it brings is in `Engine::brought`.
    Completed(Completion),
}

/// The attached sockets and their operations.
#[derive(Debug)]
pub(super) struct Engine {
    pub(super) slots: Vec<Slot>,
    pub(super) loads: LoadTable,
    /// Lanes to run in the next turn. Each is here at most once, as `Flags::queued` says; by its
    /// turn there may be nothing left to run on it.
    queue: VecDeque<Place>,
    /// Writes that were done when they were started, but not whole: handed out by the next `wait`.
    done: VecDeque<Completion>,
    /// Operations that were cancelled, and what their last try brought, in order.
    cancelled: VecDeque<(Completion, Payload)>,
    /// What the last completion brought.
    pub(super) brought: Payload,
    /// Writes were done when they were started, since the last turn.
    pub(super) wrote_at_once: bool,
    /// How many lanes of the queue still run in this turn. What queues up meanwhile lets others go
    /// first.
    left: usize,
    /// Steps that the stream at the head of the queue took in a row.
    pub(super) streak: usize,
    pub(super) cursor: Cursor,
    pub(super) counts: Counts,
    process: Process,
}

impl Engine {
    pub(super) fn new(pool: Pool, process: Process) -> Self {
        Engine {
            slots: Vec::new(),
            loads: LoadTable::default(),
            queue: VecDeque::new(),
            done: VecDeque::new(),
            cancelled: VecDeque::new(),
            brought: Payload::None,
            wrote_at_once: false,
            left: 0,
            streak: 0,
            cursor: Cursor::new(pool),
            counts: Counts::default(),
            process,
        }
    }

    /// What the events of a slot's present life carry.
    pub(super) fn token(&mut self, slot: u32) -> u64 {
        let entry = reach(&mut self.slots, slot);
        u64::from(entry.generation) << 32 | u64::from(slot)
    }

    /// Takes a socket in.
    pub(super) fn seat(&mut self, slot: u32, socket: OwnedFd, flags: Flags, no_wait: NoWait) {
        let entry = reach(&mut self.slots, slot);
        debug_assert!(entry.socket.is_none(), "slot {slot} is taken");
        entry.socket = Some(socket);
        entry.flags.set(flags);
        entry.no_wait = no_wait;
    }

    /// Gives a socket up, and what keeps calls on it from blocking.
    pub(super) fn vacate(&mut self, slot: u32) -> Option<(OwnedFd, NoWait)> {
        let entry = self.slots.get_mut(slot as usize)?;
        let socket = entry.socket.take()?;
        entry.generation = entry.generation.wrapping_add(1);
        entry.flags = entry.flags.of_vacancy();
        Some((socket, std::mem::take(&mut entry.no_wait)))
    }

    /// Takes an operation. It runs in the next turn if its lane is thought ready, else when an event
    /// says so.
    pub(super) fn start(&mut self, at: Place, request: Request) {
        match request {
            Request::ReadSwap => self.start_read_swap(at),
            Request::Write | Request::WriteMany => self.start_busy(at, Op::Write),
            Request::Read => self.start_busy(at, Op::Read),
            // Streams take turns in any case.
            Request::ReadStream | Request::ReadStep => self.record(at, Op::ReadStream),
            Request::ReadPrivate => self.start_regardless(at, Op::ReadPrivate),
            Request::Accept => self.record(at, Op::Accept),
            Request::AcceptStream => self.record(at, Op::AcceptStream),
            Request::Connect => self.start_regardless(at, Op::Connect),
            Request::Ready(_) => self.start_regardless(at, Op::Ready),
        }
    }

    #[inline]
    pub(super) fn start_read_swap(&mut self, at: Place) {
        self.record(at, Op::ReadSwap);
    }

    fn start_busy(&mut self, at: Place, op: Op) {
        self.loads.begin(at);
        self.record(at, op);
    }

    /// For operations that find out by themselves, whatever is known.
    fn start_regardless(&mut self, at: Place, op: Op) {
        if let Some(entry) = self.slots.get_mut(at.slot() as usize) {
            entry.flags.set(Flags::ready(at.lane()));
        }
        self.record(at, op);
    }

    /// Puts an operation on its lane, and in the queue if it can run.
    #[inline]
    fn record(&mut self, at: Place, op: Op) {
        let Some(entry) = self.slots.get_mut(at.slot() as usize) else {
            debug_assert!(false, "{at:?} was never attached");
            return;
        };
        debug_assert_eq!(entry.op(at.lane()), Op::Idle, "{at:?} is busy");
        entry.set_op(at.lane(), op);
        if entry.flags.has(Flags::ready(at.lane())) {
            self.enqueue(at);
        }
    }

    /// Writes at once what will not wait, by far the most common case: recording it first and
    /// doing it in the next turn would cost as much again.
    #[inline(always)]
    pub(super) fn start_write(&mut self, at: Place) -> Option<(Buffer, usize)> {
        let entry = self.slots.get_mut(at.slot() as usize)?;
        if entry.flags.has(Flags::WRITABLE) {
            let rest = self.loads.unwritten(at);
            self.counts.writes += 1;
            match entry.source(&mut self.counts).write(rest) {
                Ok(len) if len == rest.len() => {
                    self.wrote_at_once = true;
                    let whole = self.loads.end_whole(at, transferred(len));
                    if whole.is_none() {
                        let part = Completion::last(at, Ok(transferred(len)));
                        self.done.push_back(part);
                    }
                    return whole;
                }
                // The next turn finds out how to wait.
                Err(Errno(libc::EAGAIN | libc::ENOBUFS | libc::ENOMEM)) => {}
                written => {
                    entry.learn(Lane::Write, written.unwrap_or(0), rest.len());
                    let result = written.map(transferred);
                    self.done.push_back(Completion::last(at, result));
                    return None;
                }
            }
        }
        self.start_busy(at, Op::Write);
        None
    }

    /// Ends an operation, after a last attempt if it is to have one.
    pub(super) fn cancel(&mut self, at: Place, last_try: bool) {
        // While the kernel connects there is nothing to try.
        if last_try && self.op(at) != Op::Connecting {
            let completion = self.attempt(at);
            let payload = self.brought.take();
            self.cancelled
                .extend(completion.map(|completion| (completion, payload)));
        }
        if self.op(at) != Op::Idle {
            // Behind what the last try may have brought.
            let completion = self.finish(at, Err(Errno(libc::ECANCELED)));
            self.cancelled
                .extend(completion.map(|completion| (completion, Payload::None)));
        }
    }

    /// What is queued now may run.
    pub(super) fn begin_turn(&mut self) {
        self.left = self.queue.len();
    }

    /// Whether there is something that needs no event.
    #[inline(always)]
    pub(super) fn has_started(&self) -> bool {
        self.left > 0 || !self.done.is_empty() || !self.cancelled.is_empty()
    }

    /// The next completion of what needs no event: it was complete already, or runs now.
    #[inline(always)]
    pub(super) fn next_started(&mut self) -> Option<Completion> {
        if let Some(completion) = self.done.pop_front() {
            return Some(completion);
        }
        if self.left == 0 && self.cancelled.is_empty() {
            return None;
        }
        self.next_queued()
    }

    fn next_queued(&mut self) -> Option<Completion> {
        if let Some((completion, payload)) = self.cancelled.pop_front() {
            self.brought = payload;
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

    /// Remembers what an event says, and runs what waited for it.
    #[inline(always)]
    pub(super) fn event(&mut self, token: u64, readiness: Readiness) -> Step {
        let (slot, generation) = (token as u32, (token >> 32) as u32);
        let Some(entry) = self.slots.get_mut(slot as usize) else {
            return Step::Nothing;
        };
        if entry.generation != generation {
            return Step::Nothing;
        }
        entry.flags.set(Flags::from_event(readiness));
        let writes = entry.op(Lane::Write) != Op::Idle;
        if readiness.has(Readiness::READABLE) && !writes {
            match entry.op(Lane::Read) {
                Op::ReadSwap => return self.read_swap(slot),
                Op::ReadStream => return self.read_stream(slot),
                _ => {}
            }
        }
        let read = readiness.has(Readiness::READABLE) && entry.can_run(Lane::Read);
        let write = readiness.has(Readiness::WRITABLE) && entry.can_run(Lane::Write);
        match self.run_ready(slot, read, write) {
            Some(completion) => Step::Completed(completion),
            None => Step::Nothing,
        }
    }

    fn run_ready(&mut self, slot: u32, read: bool, write: bool) -> Option<Completion> {
        let at = |lane| Place::new(slot, lane);
        match (read, write) {
            (true, true) => {
                self.enqueue_first(at(Lane::Write));
                self.attempt(at(Lane::Read))
            }
            (true, false) => self.attempt(at(Lane::Read)),
            (false, true) => self.attempt(at(Lane::Write)),
            (false, false) => None,
        }
    }

    /// Whether there is something to do without waiting.
    #[inline]
    pub(super) fn has_work(&self) -> bool {
        !self.queue.is_empty() || !self.done.is_empty() || !self.cancelled.is_empty()
    }

    /// Lets a lane run in the next turn.
    #[inline]
    pub(super) fn enqueue(&mut self, at: Place) {
        if self.note_queued(at) {
            self.queue.push_back(at);
        }
    }

    /// Lets a lane run next.
    pub(super) fn enqueue_first(&mut self, at: Place) {
        if self.note_queued(at) {
            self.queue.push_front(at);
            self.left += 1;
        }
    }

    /// False if it is in the queue.
    #[inline]
    fn note_queued(&mut self, at: Place) -> bool {
        let Some(entry) = self.slots.get_mut(at.slot() as usize) else {
            return false;
        };
        let queued = Flags::queued(at.lane());
        let fresh = !entry.flags.has(queued);
        entry.flags.set(queued);
        fresh
    }

    fn op(&self, at: Place) -> Op {
        let entry = self.slots.get(at.slot() as usize);
        entry.map_or(Op::Idle, |entry| entry.op(at.lane()))
    }
}

/// The length of one transfer, which is at most [`sys::TRANSFER_MAX`], or under 2 GiB.
#[inline]
pub(super) fn transferred(len: usize) -> u32 {
    len as u32
}

impl Drop for Engine {
    /// In a forked child the parent, which goes on, is among the others.
    fn drop(&mut self) {
        if self.process.is_current() {
            for entry in &mut self.slots {
                entry.let_go(&mut self.counts);
            }
        }
    }
}
