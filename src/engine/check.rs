//! The invariants that hold between two turns, checked in debug builds.
//!
//! A check looks at all slots and queued requests, so with many it runs more rarely. On average a turn
//! looks at the same number of them.

use gaio_backends::{Lane, LaneId};

use super::Engine;
use crate::conn_state::{LaneState, Pausing, Phase, Stage};
use crate::request::RequestKind;

/// The number of slots and queued requests that a turn looks at, on average.
const LOOKS_PER_TURN: usize = 64;

impl<C> Engine<C> {
    /// Checks everything. With many slots or queued requests, only in some turns.
    pub(super) fn check(&self) {
        let count = self.conns.slot_count() + self.conns.queued_count();
        let every = 1 + (count / LOOKS_PER_TURN) as u64;
        if self.counts.turns.is_multiple_of(every) {
            self.check_all();
        }
    }

    fn check_all(&self) {
        let (mut requests, mut to_start) = (self.conns.queued_count(), 0);
        let (mut reads, mut streams, mut unserved) = (0, 0, 0);
        for (slot, state) in self.conns.states() {
            unserved += usize::from(state.phase == Phase::Unserved);
            for at in Lane::BOTH.map(|lane| LaneId::new(slot, lane)) {
                let lane = state.lane(at.lane());
                check_lane(at, lane, state.phase);
                requests += usize::from(lane.first.is_some());
                let is_stream = lane
                    .first
                    .as_ref()
                    .is_some_and(|it| it.kind == RequestKind::ReadStream);
                let waits = usize::from(lane.stage == Stage::WaitingForBuffer);
                reads += waits * usize::from(!is_stream);
                streams += waits * usize::from(is_stream);
                to_start += usize::from(lane.stage.is_to_start());
            }
        }
        assert_eq!(requests, self.pending_count(), "requests that were lost");
        if self.by_op.is_made() {
            for (op, key) in self.conns.keys() {
                assert_eq!(self.indexed(op), Some(key), "{op:?} is not in the index");
            }
        }
        assert_eq!(
            self.waiting.counts(),
            (reads, streams),
            "reads that wait for a buffer"
        );
        assert!(self.conns.queued_bytes_agree(), "queued bytes");
        assert_eq!(unserved, self.accept_limits.unserved_count(), "unserved");
        assert!(
            self.dirty.len() + self.waiting.urgent_count() >= to_start,
            "lanes that nobody starts"
        );
    }
}

/// Checks that a lane is in one of the states that the table at [`LaneState`] lists.
fn check_lane<C>(at: LaneId, lane: &LaneState<C>, phase: Phase) {
    let runs = lane.in_flight > 0;
    let kind = lane.first.as_ref().map(|first| first.kind);
    let reads_swap = matches!(kind, Some(RequestKind::ReadSwap | RequestKind::ReadStream));
    let is_legal = match phase {
        Phase::Empty => !runs && kind.is_none(),
        // A lane that was to be started stays marked until its turn comes.
        Phase::Closing => lane.stage == Stage::None || lane.stage.is_to_start(),
        Phase::Unserved => kind.is_none() && lane.stage == Stage::None,
        Phase::Open | Phase::Listening | Phase::Connecting => match lane.stage {
            Stage::None => runs || kind.is_none() || phase == Phase::Connecting,
            Stage::Dirty | Stage::BufferGranted | Stage::Overdue => !runs,
            Stage::WaitingForBuffer => !runs && reads_swap,
            Stage::WaitingForLeases => !runs && kind == Some(RequestKind::ReadStream),
            Stage::WaitingToRetry => !runs && kind.is_some(),
            Stage::WaitingForProgram => {
                !runs && matches!(kind, Some(RequestKind::Accept | RequestKind::AcceptOne))
            }
        },
    };
    assert!(
        is_legal,
        "{at:?}, {phase:?}: {kind:?} with {} in flight is {:?}",
        lane.in_flight, lane.stage
    );
    assert!(!runs || kind.is_some(), "{at:?} runs without a request");
    assert!(!lane.has_more() || kind.is_some(), "{at:?} has a gap");
    assert!(
        !lane.private || reads_swap,
        "{at:?} reads {kind:?} privately"
    );
    let pauses = lane.pausing != Pausing::No;
    assert!(
        !pauses || kind == Some(RequestKind::ReadStream),
        "{at:?} pauses {kind:?}"
    );
}
