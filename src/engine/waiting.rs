//! Reads that wait for memory: for a swap buffer, or for leases of their own connection.
//!
//! Nobody waits for what others hold. A read that finds no swap buffer tries again at once if the pool
//! has more than was at hand. If not, a connection that holds little reads into a private buffer. Only
//! one that holds much waits, until some of its own leases or a swap buffer come back. Streams, which
//! can hold most, are held shorter while less than a quarter of the pool is left.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use gaio_backends::{Backend, Credit, Error, Lane, Loads, Place, Pool, SwapRoom, Threshold};

use super::Engine;
use crate::conn_table::{ConnTable, Pausing, Stage};
use crate::request::{Key, What};

/// How often a single read tries again because the pool has more than was at hand, before it reads
/// privately.
const MISSES_MAX: u8 = 1;
/// The pool was used up, and that was counted.
const USED_UP: u8 = u8::MAX;
/// For how many turns of the loop streams take turns, after one went short.
const TAKING_TURNS: u64 = 100;
/// Memory can be freed anywhere in the system, unseen: try so often.
const MEMORY_RETRY: Duration = Duration::from_millis(100);

#[derive(Debug, Default)]
pub(super) struct Waiting {
    /// Single reads, first come first served.
    reads: Queue,
    /// Streams. They go on only when a quarter of the pool is left.
    streams: Queue,
    /// Reads to be started before all others.
    urgent: Vec<Place>,
    /// The stream that last went short of buffers, and in which turn of the loop.
    went_short: (u64, Option<Place>),
    /// Up to which turn of the loop streams take turns.
    turns_until: u64,
    /// What swap reads took lately, in bytes: how many reads some room will serve.
    typical_read: usize,
    /// When to ask the system for memory again, after it had none.
    memory_retry: Option<Instant>,
    /// Slots whose wait for their own leases is over; kept for its memory.
    returned: Vec<u32>,
}

/// Connections whose read waits for a swap buffer. An entry counts only if its lane says so, too: one
/// that was cancelled stays behind until its turn.
#[derive(Debug, Default)]
struct Queue {
    slots: VecDeque<u32>,
    count: usize,
}

impl Waiting {
    pub(super) fn new(swap_buffer_size: usize) -> Self {
        Waiting {
            typical_read: swap_buffer_size,
            ..Waiting::default()
        }
    }

    /// Whether reads are to be started before all others.
    pub(super) fn has_urgent(&self) -> bool {
        !self.urgent.is_empty()
    }

    /// When to ask for memory again.
    pub(super) fn next(&self) -> Option<Instant> {
        self.memory_retry
    }

    fn queue(&mut self, what: What) -> &mut Queue {
        match what {
            What::ReadStream => &mut self.streams,
            _ => &mut self.reads,
        }
    }
}

impl Queue {
    fn push(&mut self, slot: u32) {
        self.slots.push_back(slot);
        self.count += 1;
    }

    /// Takes the first read of this kind that still waits.
    fn pop<C>(&mut self, conns: &ConnTable<C>, is_stream: bool) -> Option<Place> {
        loop {
            let at = Place::new(self.slots.pop_front()?, Lane::Read);
            if waits(conns, at, is_stream) {
                self.count -= 1;
                return Some(at);
            }
        }
    }

    /// Drops entries of reads that no longer wait once they are the majority.
    fn forget_stale<C>(&mut self, conns: &ConnTable<C>, is_stream: bool) {
        if self.slots.len() > 2 * self.count + 64 {
            self.slots
                .retain(|&slot| waits(conns, Place::new(slot, Lane::Read), is_stream));
        }
    }
}

/// Whether a read of this kind waits there for a swap buffer.
fn waits<C>(conns: &ConnTable<C>, at: Place, is_stream: bool) -> bool {
    let Some(lane) = conns.lane(at) else {
        return false;
    };
    let what = lane.first.as_ref().map(|first| first.what);
    lane.stage == Stage::Starved && (what == Some(What::ReadStream)) == is_stream
}

impl<C> Engine<C> {
    /// Whether reads wait for a swap buffer.
    pub(crate) fn has_starved(&self) -> bool {
        self.waiting.reads.count + self.waiting.streams.count > 0
    }

    /// Whether connections may go on whose own leases came back.
    pub(crate) fn can_resume(&self, pool: &Pool) -> bool {
        pool.has_returned()
    }

    /// Asks to be woken when a block comes back, if a read waits for one. Whether one is there.
    pub(crate) fn wants_block(&self, pool: &Pool) -> bool {
        if !self.has_starved() {
            return false;
        }
        pool.want_block();
        self.waiting.reads.count > 0 && pool.blocks_available() > 0
    }

    /// Whether a read waits for a buffer that is there.
    pub(crate) fn can_serve(&self, backend: &mut dyn Backend) -> bool {
        if !self.has_starved() {
            return false;
        }
        let room = backend.swap_room();
        self.waiting.reads.count > 0 && room.bytes > 0
            || self.waiting.streams.count > 0 && !is_scarce(backend.pool(), room)
    }

    /// Lets everything go on whose wait is over.
    pub(crate) fn wake_waiting(&mut self, backend: &mut dyn Backend) {
        if self.waiting.memory_retry.is_some() {
            self.retry_memory(backend);
        }
        if self.has_streams {
            let room = backend.swap_room();
            let scarce = is_scarce(backend.pool(), room);
            self.window = self.window_when(backend.pool(), scarce);
        }
        if self.can_resume(backend.pool()) {
            self.resume_returned(backend);
        }
        if self.has_starved() {
            self.serve_starved(backend);
        }
        if self.waiting.has_urgent() {
            self.dirty.splice(0..0, self.waiting.urgent.drain(..));
        }
        self.retry_due(backend);
    }

    /// A swap read, or a private one, found no buffer.
    #[cold]
    pub(super) fn out_of_buffers(&mut self, backend: &mut dyn Backend, at: Place, private: bool) {
        let room = backend.swap_room();
        let Some(lane) = self.conns.lane_mut(at) else {
            return;
        };
        lane.pausing = Pausing::No;
        let Some(first) = &lane.first else {
            return;
        };
        let what = first.what;
        if let Some(why) = first.end {
            let error = Error::new(what.doing(), why);
            return self.finish(backend, Key::first(at), Some(error));
        }
        if room.bytes == 0 && lane.misses != USED_UP {
            self.counts.swap_starved += 1;
            lane.misses = USED_UP;
        }
        let misses = lane.misses;
        let is_at_hand = room.bytes > 0 && misses < MISSES_MAX;
        lane.misses = misses.saturating_add(1);
        match (what, private) {
            (_, true) => self.wait_for_buffer(backend, at),
            (What::ReadStream, _) if room.bytes > 0 => self.contend(at),
            _ if is_at_hand => self.mark_urgent(at),
            _ if self.may_read_privately(backend.loads(), at) => self.read_privately(backend, at),
            _ => self.wait_for_buffer(backend, at),
        }
    }

    /// A stream found no buffer at hand, though the pool has some. If it is the only one, it took them
    /// all. If others went short, too, streams take turns for a while.
    fn contend(&mut self, at: Place) {
        let turn = self.counts.turns;
        let (last_turn, last) = std::mem::replace(&mut self.waiting.went_short, (turn, Some(at)));
        let is_alone = last == Some(at) || last_turn + 1 < turn;
        if is_alone && !self.takes_turns() {
            return self.mark_dirty(at);
        }
        self.waiting.turns_until = turn + TAKING_TURNS;
        self.mark_urgent(at);
    }

    /// Whether streams read one buffer each, and not as much as they can, because others went short.
    pub(super) fn takes_turns(&self) -> bool {
        self.counts.turns < self.waiting.turns_until
    }

    /// A read that is about to start may not overtake those that wait for a buffer, if it would have
    /// to wait, too. True if it now waits.
    pub(super) fn must_queue_for_buffer(
        &mut self,
        backend: &mut dyn Backend,
        at: Place,
        served: bool,
    ) -> bool {
        let must = self.has_starved() && !served && !self.may_read_privately(backend.loads(), at);
        if must {
            self.wait_for_buffer(backend, at);
        }
        must
    }

    /// Whether a connection holds so little that it gets a private buffer.
    fn may_read_privately(&self, loads: Loads<'_>, at: Place) -> bool {
        let credit = loads.credit(at.slot());
        credit.is_none_or(|credit| credit.is_within(Threshold::Private))
    }

    fn read_privately(&mut self, backend: &mut dyn Backend, at: Place) {
        self.open_credit(backend, at.slot());
        if let Some(lane) = self.conns.lane_mut(at) {
            lane.private = true;
        }
        self.mark_urgent(at);
    }

    /// Gives a connection its account, if it has none.
    pub(super) fn open_credit(&self, backend: &mut dyn Backend, slot: u32) {
        let thresholds = backend.pool().thresholds(self.stream_window);
        backend.loads().open_credit(slot, thresholds);
    }

    /// The lane's first request is to be started before all others.
    fn mark_urgent(&mut self, at: Place) {
        let lane = self.conns.lane(at);
        if lane.is_some_and(|lane| lane.stage == Stage::None) {
            self.mark_served(at);
            self.waiting.urgent.push(at);
        }
    }

    /// A read waits for a swap buffer, or for leases of its own connection.
    fn wait_for_buffer(&mut self, backend: &mut dyn Backend, at: Place) {
        self.open_credit(backend, at.slot());
        if backend.pool().is_out_of_memory() {
            self.retry_memory_later(backend);
        } else if !self.waits_for_leases(backend.loads(), at, Threshold::Private) {
            // They came back just now.
            return self.mark_urgent(at);
        }
        let Some(lane) = self.conns.lane_mut(at) else {
            return;
        };
        if let Some(first) = &lane.first
            && lane.stage == Stage::None
        {
            lane.stage = Stage::Starved;
            let what = first.what;
            let queue = self.waiting.queue(what);
            queue.push(at.slot());
            queue.forget_stale(&self.conns, what == What::ReadStream);
            self.crowded = true;
        }
    }

    /// Lets the connection wait for its own leases. False if enough of them are back.
    fn waits_for_leases(&self, loads: Loads<'_>, at: Place, threshold: Threshold) -> bool {
        let credit = loads.credit(at.slot());
        credit.is_some_and(|credit| credit.wait_for(threshold))
    }

    /// The first request of a lane no longer waits for buffers, leases or time.
    pub(super) fn leave_waiting(&mut self, at: Place) {
        if let Some(lane) = self.conns.lane_mut(at)
            && matches!(lane.stage, Stage::Starved | Stage::Paused | Stage::Retrying)
        {
            let starved = std::mem::replace(&mut lane.stage, Stage::None) == Stage::Starved;
            if let Some(first) = &lane.first {
                self.waiting.queue(first.what).count -= usize::from(starved);
            }
        }
    }

    /// Lets as many reads go on as the returned room will serve.
    fn serve_starved(&mut self, backend: &mut dyn Backend) {
        let room = backend.swap_room();
        if room.bytes == 0 && backend.pool().is_out_of_memory() {
            self.retry_memory_later(backend);
        }
        let typical = self.waiting.typical_read.max(1);
        let reads = match room.bytes {
            0 => 0,
            bytes => (bytes / typical).clamp(1, room.reads.max(1)),
        };
        for _ in 0..reads {
            let Some(at) = self.waiting.reads.pop(&self.conns, false) else {
                break;
            };
            self.mark_served(at);
            self.waiting.urgent.push(at);
        }
        let quarter = backend.pool().size_max() / 4;
        let streams = match room.bytes.checked_sub(quarter) {
            None => 0,
            Some(bytes) => bytes / backend.pool().block_size() + 1,
        };
        for _ in 0..streams {
            let Some(at) = self.waiting.streams.pop(&self.conns, true) else {
                break;
            };
            self.mark_served(at);
            self.dirty.push(at);
        }
    }

    /// The lane's first request waited for its turn, and has it: it does not queue again behind those
    /// that still wait.
    fn mark_served(&mut self, at: Place) {
        if let Some(lane) = self.conns.lane_mut(at) {
            lane.stage = Stage::Served;
        }
        self.crowded = true;
    }

    /// Connections go on whose own leases came back.
    #[cold]
    fn resume_returned(&mut self, backend: &mut dyn Backend) {
        let mut returned = std::mem::take(&mut self.waiting.returned);
        backend.pool().take_returned(&mut returned);
        for slot in returned.drain(..) {
            let at = Place::new(slot, Lane::Read);
            let stage = self.conns.lane(at).map(|lane| lane.stage);
            let threshold = match stage {
                Some(Stage::Paused) => Threshold::Window,
                Some(Stage::Starved) => Threshold::Private,
                _ => continue,
            };
            if !self.waits_for_leases(backend.loads(), at, threshold) {
                self.leave_waiting(at);
                self.mark_dirty(at);
            }
        }
        self.waiting.returned = returned;
    }

    fn retry_memory_later(&mut self, backend: &dyn Backend) {
        let at = backend.now() + MEMORY_RETRY;
        self.waiting.memory_retry.get_or_insert(at);
    }

    fn retry_memory(&mut self, backend: &dyn Backend) {
        if self
            .waiting
            .memory_retry
            .is_some_and(|at| at <= backend.now())
        {
            self.waiting.memory_retry = None;
            backend.pool().try_memory_again();
        }
    }

    /// Learns how much swap reads take; only of interest while some wait.
    #[inline(always)]
    pub(super) fn note_swap_read(&mut self, size: usize) {
        if self.has_starved() {
            let typical = &mut self.waiting.typical_read;
            *typical = (*typical * 7 + size) / 8;
        }
    }

    /// What a stream may hold: little, while little is left for all.
    fn window_when(&self, pool: &Pool, scarce: bool) -> u64 {
        let little = (4 * pool.private_size()) as u64;
        match scarce {
            true => self.stream_window.min(little),
            false => self.stream_window,
        }
    }

    /// Whether a stream has more leases out than it may at present.
    pub(super) fn is_over_window(&self, loads: Loads<'_>, at: Place) -> bool {
        let leased = loads.credit(at.slot()).map_or(0, Credit::leased_bytes);
        leased > self.window
    }

    /// A stream over its window stops taking in more.
    #[cold]
    pub(super) fn pause(&mut self, backend: &mut dyn Backend, at: Place) {
        let is_scarce = self.window < self.stream_window;
        if let Some(lane) = self.conns.lane_mut(at)
            && lane.pausing == Pausing::No
            && lane.first.as_ref().is_some_and(|first| first.end.is_none())
        {
            let leased = backend
                .loads()
                .credit(at.slot())
                .map_or(0, Credit::leased_bytes);
            lane.pausing = match is_scarce && leased <= self.stream_window {
                true => Pausing::Scarce,
                false => Pausing::OverWindow,
            };
            backend.cancel(at, false);
        }
    }

    /// A stream's operation has ended, but not the stream: it goes on, or waits for leases.
    pub(super) fn resume_or_park(&mut self, backend: &mut dyn Backend, at: Place) {
        let Some(lane) = self.conns.lane_mut(at) else {
            return;
        };
        let pausing = std::mem::take(&mut lane.pausing);
        let Some(first) = &lane.first else {
            return;
        };
        if let Some(why) = first.end {
            let error = Error::new(first.what.doing(), why);
            return self.finish(backend, Key::first(at), Some(error));
        }
        let leased = backend
            .loads()
            .credit(at.slot())
            .map_or(0, Credit::leased_bytes);
        let is_over = pausing == Pausing::OverWindow || leased > self.stream_window;
        if is_over && self.waits_for_leases(backend.loads(), at, Threshold::Window) {
            self.park(at);
        } else if leased > self.window {
            self.wait_for_buffer(backend, at);
        } else {
            self.mark_dirty(at);
        }
    }

    fn park(&mut self, at: Place) {
        if let Some(lane) = self.conns.lane_mut(at) {
            lane.stage = Stage::Paused;
        }
    }
}

/// Whether less than a quarter of the pool is left.
fn is_scarce(pool: &Pool, room: SwapRoom) -> bool {
    room.bytes < pool.size_max() / 4
}
