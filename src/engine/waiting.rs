//! Reads that wait for memory: for a swap buffer, or for leases of their own connection.
//!
//! No connection depends on the leases of others. A read that finds no swap buffer tries again at once
//! if the pool has more than was at hand. If the pool is used up, a connection that holds little reads
//! into a private block. Only a connection that holds much waits, until some of its own leases or a
//! swap buffer come back. Streams can hold the most, so they may hold less while the pool is *scarce*:
//! while less than a quarter of it is left.
//!
//! A lane that is `WaitingForBuffer` stands in one of two queues, and is served when a buffer or its
//! own leases come back. A lane that is `WaitingForLeases` is in no queue: the pool names its slot when
//! enough of its leases are back. A lane is `BufferGranted` when it may try again, so that it does not
//! queue a second time. *Urgent* lanes are granted, and start before all others in the order in which
//! they waited.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use gaio_backends::{Backend, Credit, Lane, LaneId, Pool, SwapRoom, Threshold};

use super::Engine;
use crate::conn_state::{Pausing, Stage};
use crate::conn_table::ConnTable;
use crate::request::{Key, RequestKind};

/// The number of times that a single read tries again while the pool has more than was at hand. After
/// that it reads privately. Only as many reads start at a time as should find a buffer, so a second
/// miss is rare.
const MISSES_MAX: u8 = 8;
/// The count of misses of a read that found the pool used up and was counted for it.
const USED_UP: u8 = u8::MAX;
/// The number of turns of the loop in which streams read one buffer each, after several went short.
const TAKING_TURNS: u64 = 100;
/// The interval at which the system is asked for memory again. No event tells when it has some.
const MEMORY_RETRY: Duration = Duration::from_millis(100);

#[derive(Debug, Default)]
pub(super) struct Waiting {
    /// Single reads, first come first served.
    reads: Queue,
    /// Streams. They go on only while the pool is not scarce.
    streams: Queue,
    /// Reads to be started before all others, first come first served.
    urgent: VecDeque<LaneId>,
    /// The last stream that found no buffer at hand, and the turn of the loop in which it did.
    went_short: (u64, Option<LaneId>),
    /// The turn of the loop up to which streams read one buffer each.
    turns_until: u64,
    /// The bytes that a swap read took lately, on average. They tell how many reads some room will
    /// serve.
    typical_read: usize,
    /// The time to ask the system for memory again, after it had none.
    memory_retry: Option<Instant>,
    /// Slots whose own leases are back. Kept for its memory.
    returned: Vec<u32>,
}

/// Slots whose read waits for a swap buffer. An entry counts only while its lane says so, too: the
/// entry of a cancelled read stays behind until its turn.
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

    /// The time to ask for memory again.
    pub(super) fn next(&self) -> Option<Instant> {
        self.memory_retry
    }

    /// The number of reads that should find a swap buffer in the next turn: at least one if there is
    /// any.
    fn servable(&self, room: SwapRoom) -> usize {
        match room.at_hand {
            0 => 0,
            bytes => (bytes / self.typical_read.max(1)).clamp(1, room.reads.max(1)),
        }
    }

    /// The numbers of single reads and of streams that wait for a buffer.
    #[cfg(debug_assertions)]
    pub(super) fn counts(&self) -> (usize, usize) {
        (self.reads.count, self.streams.count)
    }

    /// The number of reads to be started before all others.
    #[cfg(debug_assertions)]
    pub(super) fn urgent_count(&self) -> usize {
        self.urgent.len()
    }

    fn queue(&mut self, kind: RequestKind) -> &mut Queue {
        match kind {
            RequestKind::ReadStream => &mut self.streams,
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
    fn pop<C>(&mut self, conns: &ConnTable<C>, is_stream: bool) -> Option<LaneId> {
        loop {
            let at = LaneId::new(self.slots.pop_front()?, Lane::Read);
            if waits(conns, at, is_stream) {
                self.count -= 1;
                return Some(at);
            }
        }
    }

    /// Drops the entries of reads that no longer wait, once they are the majority.
    fn forget_stale<C>(&mut self, conns: &ConnTable<C>, is_stream: bool) {
        if self.slots.len() > 2 * self.count + 64 {
            self.slots
                .retain(|&slot| waits(conns, LaneId::new(slot, Lane::Read), is_stream));
        }
    }
}

/// Whether a read of this kind waits there for a swap buffer.
fn waits<C>(conns: &ConnTable<C>, at: LaneId, is_stream: bool) -> bool {
    let Some(lane) = conns.lane(at) else {
        return false;
    };
    let kind = lane.first.as_ref().map(|first| first.kind);
    lane.stage == Stage::WaitingForBuffer && (kind == Some(RequestKind::ReadStream)) == is_stream
}

impl<C> Engine<C> {
    /// Whether reads wait for a swap buffer.
    pub(crate) fn reads_wait_for_buffer(&self) -> bool {
        self.waiting.reads.count + self.waiting.streams.count > 0
    }

    /// Whether reads are to be started before any new one.
    pub(super) fn has_overdue(&self) -> bool {
        self.waiting.has_urgent() || self.reads_wait_for_buffer()
    }

    /// Whether leases came back for which their own connections wait.
    pub(crate) fn can_resume(&self) -> bool {
        self.backend.pool().has_returned()
    }

    /// Whether anything waits that [`wake_waiting`](Engine::wake_waiting) may let go on.
    pub(crate) fn has_waiting(&self) -> bool {
        self.has_streams
            || self.has_overdue()
            || self.can_resume()
            || self.retries.has_any()
            || self.waiting.memory_retry.is_some()
    }

    /// Asks to be woken when a block comes back, and returns whether a read waits for a buffer that is
    /// there already.
    #[cold]
    pub(crate) fn buffer_is_there(&mut self) -> bool {
        self.backend.pool().want_block();
        let room = self.backend.swap_room();
        self.waiting.reads.count > 0 && room.bytes > 0
            || self.waiting.streams.count > 0 && !is_scarce(self.backend.pool(), room)
    }

    /// Lets the lanes go on whose wait is over.
    #[inline(never)]
    pub(crate) fn wake_waiting(&mut self) {
        if self.waiting.memory_retry.is_some() {
            self.retry_memory();
        }
        if self.has_streams {
            let room = self.backend.swap_room();
            let scarce = is_scarce(self.backend.pool(), room);
            self.window = self.window_when(self.backend.pool(), scarce);
        }
        if self.can_resume() {
            self.resume_returned();
        }
        if self.reads_wait_for_buffer() {
            self.grant_buffers();
        }
        if self.waiting.has_urgent() {
            self.start_urgent();
        }
        self.retry_due();
    }

    /// Starts as many of the urgent reads as should find a buffer; the others keep their order. If
    /// there is no buffer, all of them start: each then waits in its queue, or reads privately.
    fn start_urgent(&mut self) {
        let servable = self.waiting.servable(self.backend.swap_room());
        let urgent = &mut self.waiting.urgent;
        let count = match servable {
            0 => urgent.len(),
            count => count.min(urgent.len()),
        };
        self.dirty.splice(0..0, urgent.drain(..count));
    }

    /// A read found no buffer: no swap buffer, or, if it was `private`, no private block. It tries
    /// again, reads privately, or waits.
    #[cold]
    pub(super) fn out_of_buffers(&mut self, at: LaneId, private: bool) {
        if self.is_over_window(at)
            && self
                .first(at)
                .is_some_and(|first| first.kind == RequestKind::ReadStream)
        {
            return self.resume_or_park(at);
        }
        let room = self.backend.swap_room();
        let Some(lane) = self.conns.lane_mut(at) else {
            return;
        };
        lane.pausing = Pausing::No;
        let Some(first) = &lane.first else {
            return;
        };
        let kind = first.kind;
        if let Some(why) = first.end {
            let error = kind.error_context().error(why);
            return self.finish(Key::first(at), Some(error));
        }
        if room.bytes == 0 && lane.misses != USED_UP {
            self.counts.swap_starved += 1;
            lane.misses = USED_UP;
        }
        let misses = lane.misses;
        let is_at_hand = room.bytes > 0 && misses < MISSES_MAX;
        lane.misses = misses.saturating_add(1);
        match (kind, private) {
            // No private block is left, either.
            (_, true) => self.wait_for_buffer(at),
            (RequestKind::ReadStream, _) if room.bytes > 0 => self.contend(at),
            _ if is_at_hand => self.mark_urgent(at),
            _ if self.may_read_privately(at) => self.read_privately(at),
            _ => self.wait_for_buffer(at),
        }
    }

    /// A stream found no buffer at hand, though the pool has some. If no other stream went short, it
    /// has taken them all itself, and starts again. If several did, each would take the buffers of the
    /// others, so streams take turns for a while: each reads one buffer, then queues again.
    fn contend(&mut self, at: LaneId) {
        let turn = self.counts.turns;
        let (last_turn, last) = std::mem::replace(&mut self.waiting.went_short, (turn, Some(at)));
        let is_alone = last.is_none_or(|last| last == at) || last_turn + 1 < turn;
        if is_alone && !self.takes_turns() {
            return self.mark_dirty(at);
        }
        self.waiting.turns_until = turn + TAKING_TURNS;
        self.mark_urgent(at);
    }

    /// Whether streams read one buffer at a time, because several went short.
    pub(super) fn takes_turns(&self) -> bool {
        self.counts.turns < self.waiting.turns_until
    }

    /// A read that is about to start while others wait for a buffer must not overtake them, unless it
    /// was granted one or may read privately. Returns whether it now waits.
    #[cold]
    pub(super) fn must_queue_for_buffer(&mut self, at: LaneId, granted: bool) -> bool {
        let must = !granted && !self.may_read_privately(at);
        if must {
            self.wait_for_buffer(at);
        }
        must
    }

    /// Whether a connection holds so little that it gets a private block.
    fn may_read_privately(&mut self, at: LaneId) -> bool {
        let credit = self.backend.op_table().credit(at.slot());
        credit.is_none_or(|credit| credit.is_within(Threshold::Private))
    }

    /// Starts the lane's first read again, into a private block.
    fn read_privately(&mut self, at: LaneId) {
        self.open_credit(at.slot());
        if let Some(lane) = self.conns.lane_mut(at) {
            lane.private = true;
        }
        self.mark_urgent(at);
    }

    /// Gives a connection its account, if it has none.
    pub(super) fn open_credit(&mut self, slot: u32) {
        let thresholds = self.backend.pool().thresholds(self.stream_window);
        self.backend.op_table().open_credit(slot, thresholds);
    }

    /// Queues the lane's first request to be started before all others.
    fn mark_urgent(&mut self, at: LaneId) {
        let lane = self.conns.lane(at);
        if lane.is_some_and(|lane| lane.stage == Stage::None) {
            self.mark_granted(at);
            self.waiting.urgent.push_back(at);
        }
    }

    /// Lets a read wait for a swap buffer or for leases of its own connection, whichever comes first.
    fn wait_for_buffer(&mut self, at: LaneId) {
        self.open_credit(at.slot());
        if self.backend.pool().is_out_of_memory() {
            self.retry_memory_later();
        } else if !self.waits_for_leases(at, Threshold::Private) {
            // Enough leases came back just now.
            return self.mark_urgent(at);
        }
        let Some(lane) = self.conns.lane_mut(at) else {
            return;
        };
        if let Some(first) = &lane.first
            && lane.stage == Stage::None
        {
            lane.stage = Stage::WaitingForBuffer;
            let kind = first.kind;
            let queue = self.waiting.queue(kind);
            queue.push(at.slot());
            queue.forget_stale(&self.conns, kind == RequestKind::ReadStream);
        }
    }

    /// Asks to be told when enough of the connection's own leases are back. Returns false if they are
    /// back already.
    fn waits_for_leases(&mut self, at: LaneId, threshold: Threshold) -> bool {
        let credit = self.backend.op_table().credit(at.slot());
        credit.is_some_and(|credit| credit.wait_for(threshold))
    }

    /// The first request of a lane no longer waits for buffers, leases, time or the program.
    pub(super) fn leave_waiting(&mut self, at: LaneId) {
        if let Some(lane) = self.conns.lane_mut(at)
            && matches!(
                lane.stage,
                Stage::WaitingForBuffer
                    | Stage::WaitingForLeases
                    | Stage::WaitingToRetry
                    | Stage::WaitingForProgram
            )
        {
            let was_queued =
                std::mem::replace(&mut lane.stage, Stage::None) == Stage::WaitingForBuffer;
            if let Some(first) = &lane.first {
                self.waiting.queue(first.kind).count -= usize::from(was_queued);
            }
        }
    }

    /// Lets as many reads go on as the room in the pool should serve. More would miss, and lose their
    /// place in the queue. Single reads come first. Streams share only the room above the limit at
    /// which the pool is scarce, about one for each block of it.
    fn grant_buffers(&mut self) {
        let room = self.backend.swap_room();
        if room.bytes == 0 && self.backend.pool().is_out_of_memory() {
            self.retry_memory_later();
        }
        let reads = self.waiting.servable(room);
        for _ in self.waiting.urgent.len()..reads {
            let Some(at) = self.waiting.reads.pop(&self.conns, false) else {
                break;
            };
            self.mark_granted(at);
            self.waiting.urgent.push_back(at);
        }
        let streams = match room.bytes.checked_sub(scarce_below(self.backend.pool())) {
            None => 0,
            Some(bytes) => bytes / self.backend.pool().block_size() + 1,
        };
        for _ in 0..streams {
            let Some(at) = self.waiting.streams.pop(&self.conns, true) else {
                break;
            };
            self.mark_granted(at);
            self.dirty.push(at);
        }
    }

    /// Lets the lane's first request take a buffer. When it starts, it does not queue behind reads that
    /// wait.
    fn mark_granted(&mut self, at: LaneId) {
        if let Some(lane) = self.conns.lane_mut(at) {
            lane.stage = Stage::BufferGranted;
        }
    }

    /// Lets connections go on whose own leases came back.
    #[cold]
    fn resume_returned(&mut self) {
        let mut returned = std::mem::take(&mut self.waiting.returned);
        self.backend.pool().take_returned(&mut returned);
        for slot in returned.drain(..) {
            let at = LaneId::new(slot, Lane::Read);
            let stage = self.conns.lane(at).map(|lane| lane.stage);
            let threshold = match stage {
                Some(Stage::WaitingForLeases) => Threshold::Window,
                Some(Stage::WaitingForBuffer) => Threshold::Private,
                _ => continue,
            };
            if !self.waits_for_leases(at, threshold) {
                self.leave_waiting(at);
                self.mark_dirty(at);
            }
        }
        self.waiting.returned = returned;
    }

    /// The system had no memory for a block. The pool counts as used up until it is asked again.
    fn retry_memory_later(&mut self) {
        let at = self.backend.now() + MEMORY_RETRY;
        self.waiting.memory_retry.get_or_insert(at);
    }

    fn retry_memory(&mut self) {
        if self
            .waiting
            .memory_retry
            .is_some_and(|at| at <= self.backend.now())
        {
            self.waiting.memory_retry = None;
            self.backend.pool().try_memory_again();
        }
    }

    /// Learns the usual size of swap reads. It is needed only while some wait.
    #[cold]
    pub(super) fn note_swap_read(&mut self, size: usize) {
        let typical = &mut self.waiting.typical_read;
        *typical = (*typical * 7 + size) / 8;
    }

    /// The leased bytes that a stream may hold: few while the pool is scarce.
    fn window_when(&self, pool: &Pool, scarce: bool) -> u64 {
        let little = (4 * pool.private_size()) as u64;
        match scarce {
            true => self.stream_window.min(little),
            false => self.stream_window,
        }
    }

    /// Whether a stream holds more leased bytes than it may at present.
    pub(super) fn is_over_window(&mut self, at: LaneId) -> bool {
        let leased = self
            .backend
            .op_table()
            .credit(at.slot())
            .map_or(0, Credit::leased_bytes);
        leased > self.window
    }

    /// Cancels the operation of a stream that holds too much, so that it takes in no more. The stream
    /// goes on later.
    #[cold]
    pub(super) fn pause(&mut self, at: LaneId) {
        if let Some(lane) = self.conns.lane_mut(at)
            && lane.pausing == Pausing::No
            && lane.first.as_ref().is_some_and(|first| first.end.is_none())
        {
            lane.pausing = match self.window < self.stream_window {
                true => Pausing::Scarce,
                false => Pausing::OverWindow,
            };
            self.backend.cancel(at, false);
        }
    }

    /// The operation of a stream has ended, but not the stream: it starts again, or waits. Over its own
    /// window it waits for its own leases. Over the smaller window of a scarce pool it queues for a
    /// buffer, because the pool can recover without it.
    pub(super) fn resume_or_park(&mut self, at: LaneId) {
        let Some(lane) = self.conns.lane_mut(at) else {
            return;
        };
        let pausing = std::mem::take(&mut lane.pausing);
        let Some(first) = &lane.first else {
            return;
        };
        if let Some(why) = first.end {
            let error = first.kind.error_context().error(why);
            return self.finish(Key::first(at), Some(error));
        }
        let credit = self.backend.op_table().credit(at.slot());
        let leased = credit.map_or(0, Credit::leased_bytes);
        let is_over = pausing == Pausing::OverWindow || leased > self.stream_window;
        if is_over && self.waits_for_leases(at, Threshold::Window) {
            self.park(at);
        } else if leased > self.window {
            self.wait_for_buffer(at);
        } else {
            self.mark_dirty(at);
        }
    }

    /// Lets a stream wait for its own leases.
    fn park(&mut self, at: LaneId) {
        if let Some(lane) = self.conns.lane_mut(at) {
            lane.stage = Stage::WaitingForLeases;
        }
    }
}

/// Whether the pool is scarce: little of it is left.
fn is_scarce(pool: &Pool, room: SwapRoom) -> bool {
    room.bytes < scarce_below(pool)
}

/// The limit at which the pool is scarce: a quarter of it.
fn scarce_below(pool: &Pool) -> usize {
    pool.size_max() / 4
}
