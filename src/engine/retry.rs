//! Requests that try again after a time, since nothing tells when it is worth it: listeners that ran
//! out of descriptors, connects to a full queue.

use std::time::{Duration, Instant};

use gaio_backends::{Backend, Lane, Place};

use super::Engine;

/// Descriptors can be freed anywhere in the process, unseen: try so often.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);
const CONNECT_RETRY: Duration = Duration::from_millis(5);

#[derive(Debug, Default)]
pub(super) struct Retries {
    lanes: Vec<Place>,
    next: Option<Instant>,
}

impl Retries {
    /// When the first is due.
    pub(super) fn next(&self) -> Option<Instant> {
        self.next
    }
}

impl<C> Engine<C> {
    /// A listener ran out of descriptors: it accepts again when one is freed.
    pub(super) fn wait_for_descriptor(&mut self, backend: &dyn Backend, slot: u32) {
        self.retry_at(backend.now() + ACCEPT_RETRY, Place::new(slot, Lane::Read));
    }

    /// The queue of the Unix socket to connect to is full, which makes no event when it is not.
    pub(super) fn wait_for_backlog(&mut self, backend: &dyn Backend, slot: u32) {
        self.retry_at(backend.now() + CONNECT_RETRY, Place::new(slot, Lane::Write));
    }

    fn retry_at(&mut self, time: Instant, at: Place) {
        if !self.retries.lanes.contains(&at) {
            self.retries.lanes.push(at);
        }
        let sooner = self.retries.next;
        self.retries.next = Some(sooner.map_or(time, |sooner| sooner.min(time)));
    }

    /// A descriptor was freed, or the time has come: what waits for that tries again.
    pub(super) fn retry(&mut self) {
        self.retries.next = None;
        for at in std::mem::take(&mut self.retries.lanes) {
            self.mark_dirty(at);
        }
    }

    /// Lets those try again whose time has come.
    pub(super) fn retry_due(&mut self, backend: &dyn Backend) {
        if let Some(at) = self.retries.next
            && at <= backend.now()
        {
            self.retry();
        }
    }
}
