//! Handing requests to the backend: the first of each lane that is idle; neighbouring writes
//! together, in one vectored call.

use std::collections::VecDeque;

use gaio_backends::{Backend, Batch, Buffer, Error, Lane, Request, Selected};

use super::Engine;
use crate::conn_table::{Phase, Stage};
use crate::request::{Held, NONE, What};

/// The list of lanes is kept at up to this length; longer ones are rare.
const DIRTY_KEPT: usize = 4096;

impl<C> Engine<C> {
    /// Starts what can be started, as far as the backend has room.
    pub(crate) fn start_dirty(&mut self, backend: &mut Selected) {
        let mut room = if self.dirty.is_empty() {
            0
        } else {
            backend.room()
        };
        while room > 0
            && let Some((slot, lane)) = self.dirty.pop_front()
        {
            self.start_lane(backend, slot, lane);
            room -= 1;
        }
        if self.dirty.is_empty() && self.dirty.capacity() > DIRTY_KEPT {
            self.dirty = VecDeque::new();
        }
    }

    fn start_lane(&mut self, backend: &mut Selected, slot: u32, lane: Lane) {
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
        let head = queue.head;
        if phase != Phase::Open || queue.in_flight > 0 {
            return;
        }
        let Some(first) = self.requests.get_mut(head) else {
            return;
        };
        if connecting && first.what != What::Connect {
            return;
        }
        if let Some(why) = first.end {
            let error = Error::new(first.what.doing(), why);
            return self.finish(head, Some(error));
        }
        let request = match (first.what, &mut first.held) {
            (What::Shutdown(how), _) => {
                let result = backend.shutdown(slot, how);
                return self.finish_with(head, result.map(|()| 0));
            }
            (What::ReadSwap, _) => {
                if self.must_queue_for_buffer(slot, served) {
                    return;
                }
                Request::ReadSwap
            }
            (What::ReadStream, Held::Credit(credit)) => {
                let credit = credit.clone();
                if self.must_queue_for_buffer(slot, served) {
                    return;
                }
                Request::ReadStream(credit)
            }
            (What::Read | What::ReadFull, Held::Buffer(buffer)) => Request::Read {
                buffer: std::mem::take(buffer),
                from: first.done,
            },
            (What::Write, Held::Buffer(_)) => return self.start_writes(backend, slot, head),
            (What::Accept, _) => Request::AcceptStream,
            (What::AcceptOne, _) => Request::Accept,
            (What::Connect, Held::Address(to)) => Request::Connect(to.clone()),
            (What::Ready(interest), _) => Request::Ready(interest),
            // What a request holds is decided where it is made.
            _ => return,
        };
        self.launch(slot, lane, head, 1);
        backend.start(slot, lane, request);
    }

    /// One write as it is; several neighbours as a batch.
    fn start_writes(&mut self, backend: &mut Selected, slot: u32, head: u32) {
        let next = self.requests.get(head).map_or(NONE, |first| first.next);
        let has_neighbour = self
            .requests
            .get(next)
            .is_some_and(|next| next.what == What::Write);
        let (request, count) = if has_neighbour {
            let (batch, count) = self.gather(head);
            (Request::WriteBatch(batch), count)
        } else {
            let (buffer, from) = self.take_unwritten(head);
            (Request::Write { buffer, from }, 1)
        };
        self.launch(slot, Lane::Write, head, count);
        backend.start(slot, Lane::Write, request);
    }

    fn gather(&mut self, head: u32) -> (Box<Batch>, u16) {
        let mut batch = self.batches.pop().unwrap_or_default();
        let mut count = 0;
        let mut index = head;
        while usize::from(count) < Batch::LEN_MAX
            && let Some(pending) = self.requests.get(index)
            && pending.what == What::Write
        {
            let next = pending.next;
            let (buffer, from) = self.take_unwritten(index);
            batch.push(buffer, from);
            count += 1;
            index = next;
        }
        (batch, count)
    }

    fn take_unwritten(&mut self, index: u32) -> (Buffer, usize) {
        match self.requests.get_mut(index) {
            Some(pending) => {
                let held = std::mem::replace(&mut pending.held, Held::NOTHING);
                (held.into_buffer(), pending.done)
            }
            None => (Buffer::EMPTY, 0),
        }
    }

    /// Notes that the backend works on the first `count` requests of a lane.
    #[inline]
    fn launch(&mut self, slot: u32, lane: Lane, head: u32, count: u16) {
        let mut index = head;
        for _ in 0..count {
            let Some(pending) = self.requests.get_mut(index) else {
                break;
            };
            pending.in_flight = true;
            index = pending.next;
        }
        if let Some(queue) = self.conns.lane_mut(slot, lane) {
            queue.in_flight = count;
        }
    }
}
