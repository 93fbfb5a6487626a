//! The limit of connections that a listener has accepted and the program does not serve yet.
//!
//! A connection counts from its accept until the program makes a request for it, or frees it. At the limit,
//! accepting pauses, and the listener's backlog holds the rest. So that no connection is taken too many, a
//! listener with a limit accepts one at a time: a stream of accepts would take all that wait.

use gaio_backends::{Backend, Lane, LaneId, Request};

use super::Engine;
use crate::conn::Conn;
use crate::conn_map::ConnMap;
use crate::conn_state::{Phase, Stage};
use crate::request::RequestKind;

#[derive(Debug, Default)]
pub(super) struct AcceptLimits {
    listeners: ConnMap<Limit>,
    /// The connections that the program does not serve yet, each with its listener.
    unserved: ConnMap<Conn>,
}

#[derive(Debug)]
struct Limit {
    most: usize,
    unserved: usize,
}

impl Limit {
    /// There was no limit, or it was taken away.
    const NONE: usize = usize::MAX;
}

impl AcceptLimits {
    /// The limit of a listener, if it has one now.
    fn of(&self, listener: Conn) -> Option<&Limit> {
        let limit = self.listeners.get(listener);
        limit.filter(|limit| limit.most != Limit::NONE)
    }

    fn is_reached(&self, listener: Conn) -> bool {
        let limit = self.of(listener);
        limit.is_some_and(|limit| limit.unserved >= limit.most)
    }

    /// The number of connections that are not served yet.
    #[cfg(debug_assertions)]
    pub(super) fn unserved_count(&self) -> usize {
        self.unserved.len()
    }
}

impl<C> Engine<C> {
    /// Sets the limit of a listener.
    pub(crate) fn accept_limit(&mut self, listener: Conn, most: usize) {
        let limits = &mut self.accept_limits;
        let was_limited = limits.of(listener).is_some();
        let new = || Limit { most, unserved: 0 };
        limits.listeners.get_or_insert_with(listener, new).most = most;
        let at = accepts_of(listener);
        let runs = self.conns.lane(at).is_some_and(|lane| lane.in_flight > 0);
        let is_ending = self.first(at).is_some_and(|first| first.end.is_some());
        if runs && !is_ending && !was_limited {
            // It may be a stream, which knows no limit. It starts again within the limit.
            self.backend.cancel(at, false);
        }
        self.resume_accepting(listener);
    }

    /// The operation with which an accept starts. None at the limit: then it waits.
    pub(super) fn accept_operation(&mut self, at: LaneId, kind: RequestKind) -> Option<Request> {
        let state = self.conns.get_mut(at.slot())?;
        if self.accept_limits.is_reached(state.conn) {
            state.lane_mut(at.lane()).stage = Stage::WaitingForProgram;
            return None;
        }
        let one_by_one =
            kind == RequestKind::AcceptOne || self.accept_limits.of(state.conn).is_some();
        Some(match one_by_one {
            true => Request::Accept,
            false => Request::AcceptStream,
        })
    }

    /// A listener has accepted a connection, which counts if there is a limit.
    pub(super) fn count_accepted(&mut self, listener: Conn, accepted: Conn) {
        let limits = &mut self.accept_limits;
        if limits.of(listener).is_some()
            && let Some(limit) = limits.listeners.get_mut(listener)
            && let Some(state) = self.conns.get_mut(accepted.slot())
        {
            limit.unserved += 1;
            limits.unserved.insert(accepted, listener);
            state.phase = Phase::Unserved;
        }
    }

    /// The program serves a connection from now on, or frees it. Its listener may accept another one.
    #[cold]
    pub(super) fn count_served(&mut self, conn: Conn) {
        if let Some(state) = self.conns.get_mut(conn.slot()) {
            state.phase = Phase::Open;
        }
        let listener = self.accept_limits.unserved.remove(conn);
        if let Some(listener) = listener
            && let Some(limit) = self.accept_limits.listeners.get_mut(listener)
        {
            limit.unserved -= 1;
            self.resume_accepting(listener);
        }
    }

    /// Takes a connection or a listener from the program: its handle is no longer valid.
    pub(super) fn begin_closing(&mut self, slot: u32) {
        let Some(state) = self.conns.get(slot) else {
            return;
        };
        let conn = state.conn;
        match state.phase {
            Phase::Unserved => self.count_served(conn),
            Phase::Listening => drop(self.accept_limits.listeners.remove(conn)),
            _ => {}
        }
        self.conns.begin_closing(slot);
    }

    /// Lets a listener accept again that waits at its limit, if it is below that now.
    fn resume_accepting(&mut self, listener: Conn) {
        let at = accepts_of(listener);
        if !self.accept_limits.is_reached(listener)
            && let Some(lane) = self.conns.lane_mut(at)
            && lane.stage == Stage::WaitingForProgram
        {
            lane.stage = Stage::None;
            self.mark_dirty(at);
        }
    }
}

/// The lane of a listener's accepts.
fn accepts_of(listener: Conn) -> LaneId {
    LaneId::new(listener.slot(), Lane::Read)
}
