//! Handing requests to the backend: the first of each lane that is idle; neighbouring writes
//! together, in one vectored call.

use gaio_backends::{Backend, Error, Lane, Place, Request, WRITES_MAX};

use super::Engine;
use crate::conn_table::{Phase, Stage};
use crate::request::{NONE, What};

/// The list of lanes is kept at up to this length; longer ones are rare.
const DIRTY_KEPT: usize = 4096;

impl<C> Engine<C> {
    /// Starts what can be started, as far as the backend has room.
    #[inline]
    pub(crate) fn start_dirty<B: Backend>(&mut self, backend: &mut B) {
        if self.dirty.is_empty() {
            return;
        }
        let room = backend.room();
        let mut started = 0;
        while started < room
            && let Some(&(slot, lane)) = self.dirty.get(started)
        {
            self.start_lane(backend, slot, lane);
            started += 1;
        }
        self.dirty.drain(..started);
        if self.dirty.is_empty() && self.dirty.capacity() > DIRTY_KEPT {
            self.dirty = Vec::new();
        }
    }

    #[inline(always)]
    fn start_lane<B: Backend>(&mut self, backend: &mut B, slot: u32, lane: Lane) {
        let Some(state) = self.conns.get_mut(slot) else {
            return;
        };
        let (phase, connecting) = (state.phase, state.connecting);
        let queue = state.lane_mut(lane);
        let served = queue.stage == Stage::Served;
        if matches!(queue.stage, Stage::Starved | Stage::Paused) {
            return;
        }
        queue.stage = Stage::None;
        let key = queue.head;
        if phase != Phase::Open || queue.in_flight > 0 {
            return;
        }
        let Some(first) = self.requests.get_mut(key) else {
            return;
        };
        let what = first.what;
        if connecting && what != What::Connect {
            return;
        }
        if let Some(why) = first.end {
            let error = Error::new(what.doing(), why);
            return self.finish(backend, key, Some(error));
        }
        let request = match what {
            What::ReadSwap | What::ReadStream if self.must_queue_for_buffer(slot, served) => return,
            What::ReadSwap => {
                // By itself, and so the most frequent of all, in a form that can be inlined.
                self.launch(slot, lane, key);
                return backend.start(Place { slot, lane, key }, Request::ReadSwap);
            }
            What::Write => return self.start_writes(backend, slot, key),
            What::ReadStream => Request::ReadStream,
            What::Read | What::ReadFull => Request::Read,
            What::Accept => Request::AcceptStream,
            What::AcceptOne => Request::Accept,
            What::Connect => Request::Connect,
            What::Ready(interest) => Request::Ready(interest),
            What::Shutdown(how) => {
                let result = backend.shutdown(slot, how);
                return self.finish_with(backend, key, result.map(|()| 0));
            }
            // Timers are in no lane.
            What::Timer => return,
        };
        self.launch(slot, lane, key);
        backend.start(Place { slot, lane, key }, request);
    }

    /// One write as it is; several neighbours together.
    #[inline(always)]
    fn start_writes<B: Backend>(&mut self, backend: &mut B, slot: u32, key: u32) {
        let next = self.requests.get(key).map_or(NONE, |first| first.next);
        let next = self.requests.get(next);
        if next.is_some_and(|next| next.what == What::Write) {
            return self.start_batch(backend, slot, key);
        }
        let lane = Lane::Write;
        self.launch(slot, lane, key);
        backend.start(Place { slot, lane, key }, Request::Write);
    }

    #[cold]
    fn start_batch(&mut self, backend: &mut dyn Backend, slot: u32, first: u32) {
        self.gathered.clear();
        let mut key = first;
        while self.gathered.len() < WRITES_MAX
            && let Some(pending) = self.requests.get_mut(key)
            && pending.what == What::Write
        {
            pending.in_flight = true;
            self.gathered.push(key);
            key = pending.next;
        }
        if let Some(queue) = self.conns.lane_mut(slot, Lane::Write) {
            queue.in_flight = self.gathered.len() as u16;
        }
        backend.start_writes(slot, &self.gathered);
    }

    /// Notes that the backend works on the first request of a lane.
    #[inline]
    fn launch(&mut self, slot: u32, lane: Lane, key: u32) {
        if let Some(pending) = self.requests.get_mut(key) {
            pending.in_flight = true;
        }
        if let Some(queue) = self.conns.lane_mut(slot, lane) {
            queue.in_flight = 1;
        }
    }
}
