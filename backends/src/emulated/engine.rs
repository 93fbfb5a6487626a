//! Which operation runs when: remembers what was started and what is known to be ready, and
//! brings the two together. Knows nothing of the poller; what one attempt does is in
//! `attempt.rs`.

use std::collections::VecDeque;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Instant;

use super::cursor::Cursor;
use super::poller::Readiness;
use super::retries::Retries;
use super::slot::{Flags, Op, Slot, reach};
use crate::error::Errno;
use crate::swap::Pool;
use crate::{Completion, Counts, Lane, Loads, Place, Request, Sink, sys};

/// The attached sockets and their operations.
#[derive(Debug)]
pub(super) struct Engine {
    pub(super) slots: Vec<Slot>,
    pub(super) loads: Loads,
    /// Lanes to run in the next turn. Each is here at most once, as `Flags::queued` says; by its
    /// turn there may be nothing left to run on it.
    queue: VecDeque<(u32, Lane)>,
    /// Completions from outside of `wait`, to be handed out by the next one.
    done: Done,
    pub(super) retries: Retries,
    pub(super) cursor: Cursor,
    pub(super) counts: Counts,
}

#[derive(Debug, Default)]
struct Done(VecDeque<Completion>);

impl Sink for Done {
    #[inline]
    fn complete(&mut self, completion: Completion) {
        self.0.push_back(completion);
    }

    /// Streams end after one step.
    fn wants_more(&self) -> bool {
        false
    }
}

impl Engine {
    pub(super) fn new(pool: Pool) -> Self {
        Engine {
            slots: Vec::new(),
            loads: Loads::default(),
            queue: VecDeque::new(),
            done: Done::default(),
            retries: Retries::default(),
            cursor: Cursor::new(pool),
            counts: Counts::default(),
        }
    }

    /// What the events of a slot's present life carry.
    pub(super) fn token(&mut self, slot: u32) -> u64 {
        let entry = reach(&mut self.slots, slot);
        u64::from(entry.generation) << 32 | u64::from(slot)
    }

    /// Takes a socket in.
    pub(super) fn seat(&mut self, slot: u32, socket: OwnedFd, flags: Flags) {
        let entry = reach(&mut self.slots, slot);
        debug_assert!(entry.socket.is_none(), "slot {slot} is taken");
        entry.socket = Some(socket);
        entry.flags.set(flags);
    }

    /// Gives a socket up, and what was known of it.
    pub(super) fn vacate(&mut self, slot: u32) -> Option<(OwnedFd, Flags)> {
        let entry = self.slots.get_mut(slot as usize)?;
        let socket = entry.socket.take()?;
        entry.generation = entry.generation.wrapping_add(1);
        let flags = entry.flags;
        entry.flags = flags.of_vacancy();
        Some((socket, flags))
    }

    /// Takes an operation. It runs at once or in the next turn if its lane is thought ready, else
    /// when an event says so.
    #[inline(always)]
    pub(super) fn start(&mut self, at: Place, request: Request) {
        match request {
            Request::ReadSwap => self.record(at, Op::ReadSwap),
            Request::Write => self.start_write(at),
            request => self.start_other(at, request),
        }
    }

    fn start_other(&mut self, at: Place, request: Request) {
        match request {
            Request::ReadSwap => self.record(at, Op::ReadSwap),
            Request::Write => self.start_busy(at, Op::Write),
            Request::Read => self.start_busy(at, Op::Read),
            Request::ReadStream => self.start_busy(at, Op::ReadStream),
            Request::Accept => self.record(at, Op::Accept),
            Request::AcceptStream => self.record(at, Op::AcceptStream),
            Request::Connect => self.start_regardless(at, Op::Connect),
            Request::Ready(_) => self.start_regardless(at, Op::Ready),
        }
    }

    /// Takes several writes.
    pub(super) fn start_writes(&mut self, slot: u32, keys: &[u32]) {
        let Some(&key) = keys.first() else {
            return;
        };
        self.loads.begin_batch(keys);
        let lane = Lane::Write;
        self.record(Place { slot, lane, key }, Op::Write);
    }

    fn start_busy(&mut self, at: Place, op: Op) {
        self.loads.begin(at.key);
        self.record(at, op);
    }

    /// For operations that find out by themselves, whatever is known.
    fn start_regardless(&mut self, at: Place, op: Op) {
        if let Some(entry) = self.slots.get_mut(at.slot as usize) {
            entry.flags.set(Flags::ready(at.lane));
        }
        self.record(at, op);
    }

    /// Puts an operation on its lane, and in the queue if it can run.
    #[inline]
    fn record(&mut self, at: Place, op: Op) {
        let Place { slot, lane, key } = at;
        let Some(entry) = self.slots.get_mut(slot as usize) else {
            debug_assert!(false, "slot {slot} was never attached");
            return;
        };
        debug_assert_eq!(entry.op(lane), Op::Idle, "{lane:?} of slot {slot} is busy");
        entry.begin(lane, op, key);
        if entry.flags.has(Flags::ready(lane)) {
            self.enqueue(slot, lane);
        }
    }

    /// Writes at once what will not wait, by far the most common case: recording it first and
    /// doing it in the next turn would cost as much again.
    #[inline]
    fn start_write(&mut self, at: Place) {
        let Some(entry) = self.slots.get_mut(at.slot as usize) else {
            debug_assert!(false, "slot {} was never attached", at.slot);
            return;
        };
        if entry.flags.has(Flags::WRITABLE) {
            let rest = self.loads.unwritten(at.key);
            self.counts.writes += 1;
            match entry.source().write(entry.fd(), rest) {
                // The next turn finds out how to wait.
                Err(Errno(libc::EAGAIN | libc::ENOBUFS | libc::ENOMEM)) => {}
                written => {
                    entry.learn(Lane::Write, written.unwrap_or(0), rest.len());
                    let result = written.map(transferred);
                    return self.done.complete(Completion::last(at.key, result));
                }
            }
        }
        self.start_other(at, Request::Write);
    }

    /// Ends an operation, after a last attempt if it is to have one.
    pub(super) fn cancel(&mut self, at: Place, last_try: bool) {
        let Place { slot, lane, .. } = at;
        let mut done = std::mem::take(&mut self.done);
        // While the kernel connects there is nothing to try.
        let connecting = self
            .slots
            .get(slot as usize)
            .is_some_and(|entry| entry.op(lane) == Op::Connecting);
        if last_try && !connecting {
            self.attempt(slot, lane, &mut done);
        }
        if self.runs(slot, lane) {
            self.finish(slot, lane, Err(Errno(libc::ECANCELED)), &mut done);
        }
        self.done = done;
    }

    /// Hands out what was completed outside of `wait`.
    #[inline]
    pub(super) fn hand_out(&mut self, sink: &mut impl Sink) {
        while sink.wants_more() {
            let Some(completion) = self.done.0.pop_front() else {
                return;
            };
            sink.complete(completion);
        }
    }

    /// Runs what is queued, but not what queues up meanwhile: that has to let others go first.
    #[inline]
    pub(super) fn run_queue(&mut self, sink: &mut impl Sink) {
        for _ in 0..self.queue.len() {
            if !sink.wants_more() {
                return;
            }
            let Some((slot, lane)) = self.queue.pop_front() else {
                return;
            };
            let Some(entry) = self.slots.get_mut(slot as usize) else {
                continue;
            };
            entry.flags.clear(Flags::queued(lane));
            if entry.can_run(lane) {
                self.attempt(slot, lane, sink);
            }
        }
    }

    /// Runs what waited for time to pass.
    #[inline]
    pub(super) fn run_retries(&mut self, sink: &mut impl Sink) {
        if self.retries.is_empty() {
            return;
        }
        let now = Instant::now();
        while sink.wants_more()
            && let Some(slot) = self.retries.take_due(now)
        {
            if let Some(entry) = self.slots.get_mut(slot as usize) {
                entry.flags.clear(Flags::RETRYING);
                self.attempt(slot, Lane::Write, sink);
            }
        }
        self.retries.end();
    }

    /// Remembers what an event says, and runs what waited for it.
    #[inline]
    pub(super) fn event(&mut self, token: u64, readiness: Readiness, sink: &mut impl Sink) {
        let (slot, generation) = (token as u32, (token >> 32) as u32);
        let Some(entry) = self.slots.get_mut(slot as usize) else {
            return;
        };
        if entry.generation != generation {
            return;
        }
        entry.flags.set(Flags::from_event(readiness));
        let read = readiness.readable && entry.can_run(Lane::Read);
        let write = readiness.writable && entry.can_run(Lane::Write);
        if read {
            self.attempt_or_enqueue(slot, Lane::Read, sink);
        }
        if write {
            self.attempt_or_enqueue(slot, Lane::Write, sink);
        }
    }

    /// Whether there is something to do without waiting.
    #[inline]
    pub(super) fn has_work(&self) -> bool {
        !self.queue.is_empty() || !self.done.0.is_empty()
    }

    #[inline]
    fn attempt_or_enqueue(&mut self, slot: u32, lane: Lane, sink: &mut impl Sink) {
        if sink.wants_more() {
            self.attempt(slot, lane, sink);
        } else {
            self.enqueue(slot, lane);
        }
    }

    /// Lets a lane run in the next turn.
    #[inline]
    pub(super) fn enqueue(&mut self, slot: u32, lane: Lane) {
        if let Some(entry) = self.slots.get_mut(slot as usize)
            && !entry.flags.has(Flags::queued(lane))
        {
            entry.flags.set(Flags::queued(lane));
            self.queue.push_back((slot, lane));
        }
    }

    fn runs(&self, slot: u32, lane: Lane) -> bool {
        self.slots
            .get(slot as usize)
            .is_some_and(|entry| entry.op(lane) != Op::Idle)
    }
}

/// The length of one transfer, which is at most [`sys::TRANSFER_MAX`], or under 2 GiB.
#[inline]
pub(super) fn transferred(len: usize) -> u32 {
    len as u32
}

impl Drop for Engine {
    /// The user may hold duplicates, which share the blocking mode.
    fn drop(&mut self) {
        for entry in &self.slots {
            if let Some(socket) = &entry.socket {
                restore_mode(socket, entry.flags);
            }
        }
    }
}

/// Puts a descriptor back into the blocking mode in which it came.
pub(super) fn restore_mode(socket: &OwnedFd, flags: Flags) {
    if flags.has(Flags::WAS_BLOCKING) {
        // Nothing can be done about a refusal.
        let _ = sys::set_nonblocking(socket.as_fd(), false);
    }
}
