//! Requests that are tried again after a while, because no event tells when they would succeed:
//! listeners that ran out of descriptors, connects to a full backlog, writes for which the system had
//! no memory.
//!
//! The wait of each doubles with every attempt. A turn makes a limited number of attempts, and after a
//! failed one there is a pause for all. So the cost of a turn does not depend on the number of requests
//! that wait.

use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap};
use std::time::{Duration, Instant};

use gaio_backends::{Backend, Lane, LaneId};

use super::Engine;
use crate::conn_state::Stage;

/// The wait after the first attempt.
const DELAY_MIN: Duration = Duration::from_millis(2);
/// The most doublings of that wait: up to 64 ms.
const DOUBLINGS_MAX: u8 = 5;
/// The most attempts in one turn.
const ATTEMPTS_MAX: usize = 32;
/// The pause of all attempts after one that failed.
const PAUSE: Duration = Duration::from_millis(2);

#[derive(Debug, Default)]
pub(super) struct Retries {
    /// The lanes, by the time of their next attempt. An entry counts only while its lane is waiting to
    /// retry: the entry of a request that has ended stays behind until its time.
    due: BinaryHeap<Reverse<(Instant, LaneId)>>,
    /// The lanes among them that wait for a descriptor.
    listeners: BTreeSet<LaneId>,
    pause: Option<Instant>,
}

impl Retries {
    /// Whether any lane waits for its next attempt.
    pub(super) fn has_any(&self) -> bool {
        !self.due.is_empty()
    }

    /// The time of the next attempt.
    pub(super) fn next(&self) -> Option<Instant> {
        let Reverse((first, _)) = self.due.peek()?;
        Some(self.pause.map_or(*first, |pause| pause.max(*first)))
    }
}

impl<C> Engine<C> {
    /// Tries the first request of a lane again, after a longer wait each time.
    #[cold]
    pub(super) fn retry_later(&mut self, at: LaneId) {
        let Some(lane) = self.conns.lane_mut(at) else {
            return;
        };
        if lane.stage != Stage::None {
            return;
        }
        lane.stage = Stage::WaitingToRetry;
        let doublings = lane.tries.min(DOUBLINGS_MAX);
        lane.tries = doublings + 1;
        let now = self.backend.now();
        let again = now + DELAY_MIN * (1 << doublings);
        self.retries.pause = Some(now + PAUSE);
        self.retries.due.push(Reverse((again, at)));
        if at.lane() == Lane::Read {
            self.retries.listeners.insert(at);
        }
    }

    /// Starts lanes whose time has come, a limited number of them.
    pub(super) fn retry_due(&mut self) {
        let Some(next) = self.retries.next() else {
            return;
        };
        let now = self.backend.now();
        if next > now {
            return;
        }
        for _ in 0..ATTEMPTS_MAX {
            match self.retries.due.peek() {
                Some(&Reverse((again, at))) if again <= now => {
                    self.retries.due.pop();
                    self.retry(at);
                }
                _ => return,
            }
        }
    }

    /// A descriptor was freed: listeners that ran out of them try again.
    pub(super) fn retry_listeners(&mut self) {
        for at in std::mem::take(&mut self.retries.listeners) {
            self.retry(at);
        }
    }

    fn retry(&mut self, at: LaneId) {
        self.retries.listeners.remove(&at);
        if let Some(lane) = self.conns.lane_mut(at)
            && lane.stage == Stage::WaitingToRetry
        {
            lane.stage = Stage::None;
            self.mark_dirty(at);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_earliest_is_next() {
        let now = Instant::now();
        let ms = |ms| now + Duration::from_millis(ms);
        let mut retries = Retries::default();
        assert_eq!(retries.next(), None);
        for (slot, at) in [(0, 64), (1, 2), (2, 16)] {
            let at = (ms(at), LaneId::new(slot, Lane::Write));
            retries.due.push(Reverse(at));
        }
        for (pause, next) in [(None, 2), (Some(1), 2), (Some(3), 3), (Some(70), 70)] {
            retries.pause = pause.map(ms);
            assert_eq!(retries.next(), Some(ms(next)), "paused until {pause:?}");
        }
    }
}
