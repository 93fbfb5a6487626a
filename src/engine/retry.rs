//! Requests that try again after a time, since nothing tells when it is worth it: listeners that ran
//! out of descriptors, connects to a full backlog, writes for which the system had no memory.
//!
//! Each waits twice as long after every attempt. All together they get a few attempts a turn, and a
//! pause after any that failed. So a turn costs the same however many wait.

use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap};
use std::time::{Duration, Instant};

use gaio_backends::{Backend, Lane, Place};

use super::Engine;
use crate::conn_table::Stage;

/// How long a request waits after its first attempt.
const DELAY_MIN: Duration = Duration::from_millis(2);
/// How often that doubles: to 64 ms.
const DOUBLINGS_MAX: u8 = 5;
/// The most attempts in one turn.
const ATTEMPTS_MAX: usize = 32;
/// No attempts for so long after one that failed.
const PAUSE: Duration = Duration::from_millis(2);

#[derive(Debug, Default)]
pub(super) struct Retries {
    /// When which lane tries again. An entry counts only if its lane says that it waits: one whose
    /// request has ended stays behind until its time.
    due: BinaryHeap<Reverse<(Instant, Place)>>,
    /// Those of them that wait for a descriptor.
    listeners: BTreeSet<Place>,
    pause: Option<Instant>,
}

impl Retries {
    /// When the next attempt is due.
    pub(super) fn next(&self) -> Option<Instant> {
        let Reverse((first, _)) = self.due.peek()?;
        Some(self.pause.map_or(*first, |pause| pause.max(*first)))
    }
}

impl<C> Engine<C> {
    /// The first request of a lane is tried again, later each time.
    #[cold]
    pub(super) fn retry_later(&mut self, backend: &dyn Backend, at: Place) {
        let Some(lane) = self.conns.lane_mut(at) else {
            return;
        };
        if lane.stage != Stage::None {
            return;
        }
        lane.stage = Stage::Retrying;
        let doublings = lane.tries.min(DOUBLINGS_MAX);
        lane.tries = doublings + 1;
        let now = backend.now();
        let again = now + DELAY_MIN * (1 << doublings);
        self.retries.pause = Some(now + PAUSE);
        self.retries.due.push(Reverse((again, at)));
        if at.lane() == Lane::Read {
            self.retries.listeners.insert(at);
        }
    }

    /// Lets those try again whose time has come, the first of them.
    pub(super) fn retry_due(&mut self, backend: &dyn Backend) {
        let Some(next) = self.retries.next() else {
            return;
        };
        let now = backend.now();
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

    fn retry(&mut self, at: Place) {
        self.retries.listeners.remove(&at);
        if let Some(lane) = self.conns.lane_mut(at)
            && lane.stage == Stage::Retrying
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
            let at = (ms(at), Place::new(slot, Lane::Write));
            retries.due.push(Reverse(at));
        }
        for (pause, next) in [(None, 2), (Some(1), 2), (Some(3), 3), (Some(70), 70)] {
            retries.pause = pause.map(ms);
            assert_eq!(retries.next(), Some(ms(next)), "paused until {pause:?}");
        }
    }
}
