//! Handing requests to the backend: the first of each lane that is idle; neighbouring writes
//! together, in one vectored call.

use gaio_backends::{Backend, Error, Lane, Place, Request, WRITES_MAX, is_overgrown};

use super::Engine;
use crate::conn_table::{Phase, Stage};
use crate::request::{Key, What};

impl<C> Engine<C> {
    /// Starts what can be started, as far as the backend has room.
    #[inline]
    pub(crate) fn start_dirty<B: Backend>(&mut self, backend: &mut B) {
        if self.dirty.is_empty() {
            self.crowded = self.has_starved();
            return;
        }
        let room = backend.room();
        let mut started = 0;
        while started < room
            && let Some(&at) = self.dirty.get(started)
        {
            self.start_lane(backend, at);
            started += 1;
        }
        if started == self.dirty.len() {
            self.dirty.clear();
            if is_overgrown(started, self.dirty.capacity()) {
                self.dirty = Vec::new();
            }
        } else {
            self.dirty.drain(..started);
        }
        self.crowded = !self.dirty.is_empty() || self.has_starved();
    }

    #[inline(always)]
    fn start_lane<B: Backend>(&mut self, backend: &mut B, at: Place) {
        if at.lane() == Lane::Write
            && let Some(state) = self.conns.get_mut(at.slot())
        {
            let phase = state.phase;
            let lane = state.lane_mut(Lane::Write);
            if let Some(first) = &lane.first
                && (first.what, first.end) == (What::Write, None)
                && (lane.stage, phase) == (Stage::Dirty, Phase::Open)
                && lane.in_flight == 0
                && !lane.has_more()
            {
                // By itself, and so the most frequent of all, in a form that can be inlined.
                lane.stage = Stage::None;
                lane.in_flight = 1;
                let at = Place::new(at.slot(), Lane::Write);
                if let Some((buffer, size)) = backend.start_write(at) {
                    self.counts.completions += 1;
                    self.finish_write(backend, at, buffer, size);
                }
                return;
            }
        }
        self.start_any(backend, at);
    }

    fn start_any(&mut self, backend: &mut dyn Backend, at: Place) {
        let Some(state) = self.conns.get_mut(at.slot()) else {
            return;
        };
        let phase = state.phase;
        let lane = state.lane_mut(at.lane());
        if matches!(lane.stage, Stage::Starved | Stage::Paused | Stage::Retrying) {
            return;
        }
        let served = std::mem::replace(&mut lane.stage, Stage::None) == Stage::Served;
        if !phase.is_open() || lane.in_flight > 0 {
            return;
        }
        let Some(first) = &lane.first else {
            return;
        };
        let (what, end, has_more) = (first.what, first.end, lane.has_more());
        let private = lane.private;
        if phase == Phase::Connecting && what != What::Connect {
            return;
        }
        if let Some(why) = end {
            let error = Error::new(what.doing(), why);
            return self.finish(backend, Key::first(at), Some(error));
        }
        let request = match what {
            What::ReadSwap | What::ReadStream if private => Request::ReadPrivate,
            What::ReadSwap | What::ReadStream
                if self.must_queue_for_buffer(backend, at, served) =>
            {
                return;
            }
            What::ReadSwap => Request::ReadSwap,
            What::Write if has_more => return self.start_writes(backend, at),
            What::Write => Request::Write,
            What::ReadStream if self.takes_turns() => Request::ReadStep,
            What::ReadStream => Request::ReadStream,
            What::Read | What::ReadFull => Request::Read,
            What::Accept => Request::AcceptStream,
            What::AcceptOne => Request::Accept,
            What::Connect => Request::Connect,
            What::Ready(interest) => Request::Ready(interest),
            What::Shutdown(how) => {
                let result = backend.shutdown(at.slot(), how);
                return self.finish_with(backend, at, result.map(|()| 0));
            }
            // Timers are in no lane.
            What::Timer => return,
        };
        self.launch(at);
        backend.start(at, request);
    }

    /// A write with something behind it: what are writes, too, goes together with it.
    fn start_writes(&mut self, backend: &mut dyn Backend, at: Place) {
        let (first, done) = backend.loads().take_buffer(at);
        let gathered = &mut self.gathered;
        gathered.clear();
        gathered.push(first);
        self.conns.walk(at, |_, queued| {
            queued.in_flight = queued.pending.what == What::Write && gathered.len() < WRITES_MAX;
            if queued.in_flight {
                gathered.push(std::mem::take(&mut queued.load).into_buffer());
            }
            queued.in_flight
        });
        let count = gathered.len();
        if let Some(lane) = self.conns.lane_mut(at) {
            lane.in_flight = count as u16;
        }
        if count == 1 {
            let first = self.gathered.pop().unwrap_or_default();
            backend.loads().put_buffer(at, first, done);
            return backend.start(at, Request::Write);
        }
        backend.loads().put_many(at, &mut self.gathered, done);
        backend.start(at, Request::WriteMany);
    }

    /// Notes that the backend works on the first request of a lane.
    #[inline(always)]
    pub(super) fn launch(&mut self, at: Place) {
        if let Some(lane) = self.conns.lane_mut(at) {
            lane.in_flight = 1;
        }
    }
}
