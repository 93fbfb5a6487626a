//! New connections: the completions of accepts and connects.

use std::os::fd::OwnedFd;

use gaio_backends::{Buffer, Errno, Lane, LaneId, SocketKind};

use super::Engine;
use crate::conn::Conn;
use crate::conn_state::Phase;
use crate::request::{Key, RequestKind};

impl<C> Engine<C> {
    /// A connect has ended. Requests that waited for it start, or end with its error.
    pub(super) fn complete_connect(&mut self, at: LaneId, result: Result<usize, Errno>) {
        let slot = at.slot();
        let ended = self.first(at).is_some_and(|first| first.end.is_some());
        let interrupted = result.is_err_and(Errno::is_interruption);
        if interrupted && !ended {
            return if result.is_err_and(Errno::would_block) {
                // The backlog of a Unix listener is full. No event tells when there is room again.
                self.retry_later(at)
            } else {
                self.mark_dirty(at)
            };
        }
        if let Some(state) = self.conns.get_mut(slot)
            && state.phase == Phase::Connecting
        {
            state.phase = Phase::Open;
        }
        let before = self.out.len();
        self.finish_with_result(at, result);
        let error = self.out.as_slice().get(before);
        let error = error.and_then(|result| result.error);
        let lanes = Lane::BOTH.map(|lane| LaneId::new(slot, lane));
        match error {
            None => lanes.map(|at| self.mark_dirty(at)),
            // Requests that waited for the connection end with its error. The handle stays valid until
            // `free`.
            Some(error) => lanes.map(|at| self.finish_lane(at, error)),
        };
    }

    /// An accept brought a connection.
    pub(super) fn complete_accept(&mut self, at: LaneId, more: bool, socket: OwnedFd) {
        let Some(state) = self.conns.get_mut(at.slot()) else {
            return;
        };
        state.out_of_descriptors = false;
        state.lane_mut(at.lane()).tries = 0;
        let listener = state.conn;
        let adopted = self.adopt(socket, SocketKind::Stream);
        let (accepted, error) = match adopted {
            Ok(conn) => {
                self.count_accepted(listener, conn);
                (conn, None)
            }
            Err((errno, socket)) => {
                self.discard(socket);
                (Conn::NONE, Some(errno))
            }
        };
        let Some(first) = self.first(at) else {
            return;
        };
        let error = error.map(|errno| first.kind.error_context().os_error(errno));
        if first.kind == RequestKind::AcceptOne {
            self.finish(Key::first(at), error);
            if let Some(result) = self.out.as_mut_slice().last_mut() {
                result.accepted = accepted;
            }
            return;
        }
        self.emit_step(at, error, accepted, Buffer::EMPTY, 0);
        if !more {
            self.go_on(at);
        }
    }

    /// An accept ended without a connection. If descriptors or memory have run out, a stream of accepts
    /// reports that once and tries again.
    pub(super) fn complete_failed_accept(&mut self, at: LaneId, result: Result<usize, Errno>) {
        let Some(first) = self.first(at) else {
            return;
        };
        let Err(errno) = result else {
            return self.go_on(at);
        };
        if errno.is_lost_connection() {
            return self.go_on(at);
        }
        if first.kind == RequestKind::AcceptOne || first.end.is_some() || !errno.is_shortage() {
            return self.finish_failed(at, errno);
        }
        let error = first.kind.error_context().os_error(errno);
        let told = self
            .conns
            .get_mut(at.slot())
            .is_some_and(|state| std::mem::replace(&mut state.out_of_descriptors, true));
        if !told {
            self.emit_step(at, Some(error), Conn::NONE, Buffer::EMPTY, 0);
        }
        self.retry_later(at);
    }
}
