//! Requests that wait for memory: reads for a swap buffer, streams for leases to come back.

use std::collections::VecDeque;

use gaio_backends::{Backend, Credit, Error, Lane, Loads, Place, Pool};

use super::Engine;
use crate::conn_table::Stage;
use crate::request::Key;

#[derive(Debug, Default)]
pub(super) struct Waiting {
    /// Connections whose swap read found no buffer, first come first served. An entry counts
    /// only if its lane says so too: one that was cancelled stays behind until its turn.
    starved: VecDeque<u32>,
    starved_count: usize,
    /// What swap reads took lately, in bytes: how many reads some room will serve.
    typical_read: usize,
    /// Streams over their window.
    paused: Vec<u32>,
}

impl Waiting {
    pub(super) fn new(swap_buffer_size: usize) -> Self {
        Waiting {
            typical_read: swap_buffer_size,
            ..Waiting::default()
        }
    }
}

impl<C> Engine<C> {
    /// Whether reads wait for a swap buffer.
    pub(crate) fn has_starved(&self) -> bool {
        self.waiting.starved_count > 0
    }

    /// Whether a paused stream may go on.
    pub(crate) fn can_resume(&self, pool: &Pool) -> bool {
        !self.waiting.paused.is_empty() && pool.has_credit_back()
    }

    /// Lets everything go on whose wait is over.
    pub(crate) fn wake_waiting(&mut self, backend: &mut dyn Backend) {
        if self.has_starved() {
            self.serve_starved(backend);
        }
        if !self.waiting.paused.is_empty() {
            self.resume_paused(backend);
        }
        self.retry_due(backend);
    }

    /// A swap read may not overtake those that wait for a buffer. True if it now waits.
    pub(super) fn must_queue_for_buffer(&mut self, at: Place, served: bool) -> bool {
        let must = self.has_starved() && !served;
        if must {
            self.queue_for_buffer(at);
        }
        must
    }

    /// A swap read found the pool dry: it waits until leases come back.
    pub(super) fn starve(&mut self, backend: &mut dyn Backend, at: Place) {
        let Some(lane) = self.conns.lane_mut(at) else {
            return;
        };
        lane.pausing = false;
        let Some(first) = &lane.first else {
            return;
        };
        match first.end {
            Some(why) => {
                let error = Error::new(first.what.doing(), why);
                self.finish(backend, Key::first(at), Some(error));
            }
            None => {
                self.counts.swap_starved += 1;
                self.queue_for_buffer(at);
            }
        }
    }

    fn queue_for_buffer(&mut self, at: Place) {
        if let Some(lane) = self.conns.lane_mut(at)
            && lane.stage == Stage::None
        {
            lane.stage = Stage::Starved;
            self.waiting.starved_count += 1;
            self.waiting.starved.push_back(at.slot());
            self.crowded = true;
        }
        self.forget_stale_starved();
    }

    /// Drops entries of reads that no longer wait once they are the majority.
    fn forget_stale_starved(&mut self) {
        let waiting = &mut self.waiting;
        if waiting.starved.len() > 2 * waiting.starved_count + 64 {
            let conns = &self.conns;
            waiting.starved.retain(|&slot| {
                conns
                    .get(slot)
                    .is_some_and(|state| state.lane(Lane::Read).stage == Stage::Starved)
            });
        }
    }

    /// The first request of a lane no longer waits for buffers or leases, because it ends.
    pub(super) fn leave_waiting(&mut self, at: Place) {
        if let Some(lane) = self.conns.lane_mut(at)
            && matches!(lane.stage, Stage::Starved | Stage::Paused)
        {
            let starved = std::mem::replace(&mut lane.stage, Stage::None) == Stage::Starved;
            self.waiting.starved_count -= usize::from(starved);
        }
    }

    /// Wakes as many reads as the returned room will serve.
    fn serve_starved(&mut self, backend: &mut dyn Backend) {
        let room = backend.swap_room_bytes();
        if room == 0 {
            return;
        }
        let typical = self.waiting.typical_read.max(1);
        let mut count = (room / typical).max(1);
        let others = self.dirty.len();
        while count > 0
            && let Some(slot) = self.waiting.starved.pop_front()
        {
            let at = Place::new(slot, Lane::Read);
            let Some(lane) = self.conns.lane_mut(at) else {
                continue;
            };
            if lane.stage == Stage::Starved {
                lane.stage = Stage::Served;
                self.waiting.starved_count -= 1;
                self.dirty.push(at);
                count -= 1;
            }
        }
        // Ahead of newer reads, which would take the room; behind those served before them.
        let conns = &self.conns;
        let is_served = |&at: &Place| conns.lane(at).is_some_and(|l| l.stage == Stage::Served);
        let before = self.dirty[..others].iter().copied();
        let before = before.take_while(is_served).count();
        self.dirty[before..].rotate_left(others - before);
    }

    /// Learns how much swap reads take; only of interest while some wait.
    #[inline(always)]
    pub(super) fn note_swap_read(&mut self, size: usize) {
        if self.has_starved() {
            let typical = &mut self.waiting.typical_read;
            *typical = (*typical * 7 + size) / 8;
        }
    }

    /// Whether a stream has more leases out than its window allows.
    pub(super) fn is_over_window(&self, loads: Loads<'_>, at: Place) -> bool {
        let leased = loads.credit(at).map_or(0, Credit::leased_bytes);
        leased > self.stream_window
    }

    /// A stream over its window stops taking in more.
    #[cold]
    pub(super) fn pause(&mut self, backend: &mut dyn Backend, at: Place) {
        if let Some(lane) = self.conns.lane_mut(at)
            && !lane.pausing
            && lane.first.as_ref().is_some_and(|first| first.end.is_none())
        {
            lane.pausing = true;
            backend.cancel(at, false);
        }
    }

    /// A stream's operation has ended, but not the stream: it goes on, or waits for leases.
    pub(super) fn resume_or_park(&mut self, backend: &mut dyn Backend, at: Place) {
        let window = self.stream_window;
        let Some(lane) = self.conns.lane_mut(at) else {
            return;
        };
        let was_pausing = std::mem::take(&mut lane.pausing);
        let Some(first) = &lane.first else {
            return;
        };
        if let Some(why) = first.end {
            let error = Error::new(first.what.doing(), why);
            return self.finish(backend, Key::first(at), Some(error));
        }
        let Some(credit) = backend.loads().credit(at) else {
            return;
        };
        let over = was_pausing || credit.leased_bytes() > window;
        if over && credit.pause_above(window / 2) {
            self.park(at);
        } else {
            self.mark_dirty(at);
        }
    }

    fn park(&mut self, at: Place) {
        if let Some(lane) = self.conns.lane_mut(at) {
            lane.stage = Stage::Paused;
            self.waiting.paused.push(at.slot());
        }
    }

    fn resume_paused(&mut self, backend: &mut dyn Backend) {
        if !backend.pool().take_credit_back() {
            return;
        }
        let mut paused = std::mem::take(&mut self.waiting.paused);
        paused.retain(|&slot| {
            let at = Place::new(slot, Lane::Read);
            let Some(lane) = self.conns.lane_mut(at) else {
                return false;
            };
            if lane.stage != Stage::Paused {
                return false;
            }
            let credit = backend.loads().credit(at);
            let still = credit.is_some_and(|credit| credit.pause_above(self.stream_window / 2));
            if !still {
                lane.stage = Stage::None;
                self.mark_dirty(at);
            }
            still
        });
        self.waiting.paused = paused;
    }
}
