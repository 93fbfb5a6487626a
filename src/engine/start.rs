//! Hands requests to the backend: the first one of each idle lane.

use gaio_backends::{Backend, LaneId, Request, is_overgrown};

use super::Engine;
use crate::conn_state::{Phase, Stage};
use crate::request::{Key, RequestKind};

impl<C> Engine<C> {
    /// Starts the dirty lanes, as far as the backend has room. Lanes that become dirty meanwhile are
    /// left to the next round, so that this one ends.
    pub(crate) fn start_dirty(&mut self) {
        if self.dirty.is_empty() {
            return;
        }
        let count = self.dirty.len().min(self.backend.room());
        for index in 0..count {
            self.start_first(self.dirty[index]);
        }
        if count < self.dirty.len() {
            self.dirty.drain(..count);
            return;
        }
        self.dirty.clear();
        if is_overgrown(count, self.dirty.capacity()) {
            self.dirty = Vec::new();
        }
    }

    /// Starts the first request of a lane that was marked as dirty, unless it has to wait.
    #[inline]
    fn start_first(&mut self, at: LaneId) {
        let Some(state) = self.conns.get_mut(at.slot()) else {
            return;
        };
        let phase = state.phase;
        let lane = state.lane_mut(at.lane());
        if lane.stage.is_waiting() {
            return;
        }
        let stage = std::mem::replace(&mut lane.stage, Stage::None);
        if !phase.is_open() || lane.in_flight > 0 {
            return;
        }
        let Some(first) = &lane.first else {
            return;
        };
        let (kind, end) = (first.kind, first.end);
        let (private, has_more) = (lane.private, lane.has_more());
        let overdue = stage == Stage::Overdue && self.try_overdue(at);
        let granted = overdue || stage == Stage::BufferGranted;
        if let Some(why) = end {
            let error = kind.error_context().error(why);
            return self.finish(Key::first(at), Some(error));
        }
        if phase == Phase::Connecting && kind != RequestKind::Connect {
            return;
        }
        let request = match kind {
            RequestKind::ReadSwap | RequestKind::ReadStream if private => Request::ReadPrivate,
            RequestKind::ReadSwap | RequestKind::ReadStream
                if self.reads_wait_for_buffer() && self.must_queue_for_buffer(at, granted) =>
            {
                return;
            }
            RequestKind::ReadSwap => Request::ReadSwap,
            RequestKind::ReadStream if self.takes_turns() => Request::ReadStep,
            RequestKind::ReadStream => Request::ReadStream,
            RequestKind::Read | RequestKind::ReadFull => Request::Read,
            RequestKind::Write if has_more => return self.start_writes(at),
            RequestKind::Write => Request::Write,
            RequestKind::SendFile => return self.start_file(at),
            RequestKind::WriteParts => {
                self.backend.op_table().prepare_parts(at);
                Request::WriteMany
            }
            RequestKind::Accept | RequestKind::AcceptOne => match self.accept_operation(at, kind) {
                Some(request) => request,
                None => return,
            },
            RequestKind::Connect => Request::Connect,
            RequestKind::Ready(interest) => Request::Ready(interest),
            RequestKind::EmptyWrite => return self.finish_with_result(at, Ok(0)),
            RequestKind::Shutdown(how) => {
                let result = self.backend.shutdown(at.slot(), how);
                return self.finish_with_result(at, result.map(|()| 0));
            }
            RequestKind::Timer => {
                debug_assert!(false, "timers are in no lane");
                return;
            }
        };
        self.start(at, request, 1);
    }

    /// Hands the backend one operation for the first `count` requests of a lane. It may complete at
    /// once.
    #[inline]
    pub(super) fn start(&mut self, at: LaneId, request: Request, count: u16) {
        if let Some(lane) = self.conns.lane_mut(at) {
            lane.in_flight = count;
        }
        if let Some(completion) = self.backend.start(at, request) {
            self.complete(completion);
        }
    }
}
