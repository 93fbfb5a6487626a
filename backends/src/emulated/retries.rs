//! Attempts to repeat after a while: of writes and connects that the system refused for a
//! reason whose end no event announces (no memory for buffers, a Unix listener with a full
//! backlog).

use std::time::{Duration, Instant};

use crate::Until;

const DELAY_MIN: Duration = Duration::from_millis(2);
const DELAY_MAX: Duration = Duration::from_millis(64);

/// The slots whose write lane waits for time to pass. There are few, if any.
#[derive(Debug, Default)]
pub(super) struct Retries {
    waiting: Vec<Retry>,
    /// The delay behind the attempt that is running.
    last: Option<Duration>,
}

#[derive(Debug)]
struct Retry {
    at: Instant,
    delay: Duration,
    slot: u32,
}

impl Retries {
    /// Plans another attempt, each time after twice as long.
    pub(super) fn plan(&mut self, slot: u32) {
        let delay = self.last.map_or(DELAY_MIN, |last| DELAY_MAX.min(last * 2));
        self.waiting.push(Retry {
            at: Instant::now() + delay,
            delay,
            slot,
        });
    }

    /// A slot whose time has come. What is planned before the next call of this, or of
    /// [`end`](Retries::end), counts as its repetition.
    pub(super) fn take_due(&mut self, now: Instant) -> Option<u32> {
        let due = self.waiting.iter().position(|retry| retry.at <= now)?;
        let retry = self.waiting.swap_remove(due);
        self.last = Some(retry.delay);
        Some(retry.slot)
    }

    /// The due ones are done.
    pub(super) fn end(&mut self) {
        self.last = None;
    }

    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// When the first is due.
    pub(super) fn next(&self) -> Option<Instant> {
        self.waiting.iter().map(|retry| retry.at).min()
    }

    /// Shortens a sleep so that it ends when the first is due.
    #[inline]
    pub(super) fn bound(&self, until: Until) -> Until {
        match (self.next(), until) {
            (Some(next), Until::Time(at)) => Until::Time(at.min(next)),
            (Some(next), Until::Done) => Until::Time(next),
            _ => until,
        }
    }
}
