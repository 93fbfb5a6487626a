//! Takes requests and sockets in, from the watcher's own thread and from the inbox.

use std::os::fd::OwnedFd;
use std::time::Instant;

use gaio_backends::{
    Backend, Buffer, Errno, Error, ErrorContext, ErrorKind, LaneId, OpData, SocketKind,
};

use super::Engine;
use crate::conn::Conn;
use crate::conn_state::Phase;
use crate::inbox::{Message, Post};
use crate::request::{Key, OpId, Operation, Pending, RequestKind, Sequence, Submission};
use crate::results::OpResult;

impl<C> Engine<C> {
    /// The reason to refuse a request, if there is one. `is_empty` says whether it carries a buffer
    /// without bytes.
    #[inline(always)]
    pub(crate) fn rejection(
        &mut self,
        conn: Conn,
        kind: RequestKind,
        is_empty: bool,
    ) -> Option<ErrorKind> {
        let state = self.conns.get(conn.slot());
        let is_open = state.is_some_and(|it| it.phase == Phase::Open && it.conn == conn);
        let accepts = matches!(kind, RequestKind::Accept | RequestKind::AcceptOne);
        match is_open && !accepts && !is_empty {
            true => None,
            false => self.rare_rejection(conn, kind, is_empty),
        }
    }

    /// The same for requests that may be refused, and for the first of an accepted connection.
    #[cold]
    fn rare_rejection(
        &mut self,
        conn: Conn,
        kind: RequestKind,
        is_empty: bool,
    ) -> Option<ErrorKind> {
        let Some(state) = self.conns.get(conn.slot()).filter(|_| self.is_open(conn)) else {
            return Some(match self.closed {
                true => ErrorKind::WatcherClosed,
                false => ErrorKind::ConnClosed,
            });
        };
        let phase = state.phase;
        let is_listener = phase == Phase::Listening;
        let fits = match kind {
            RequestKind::Accept | RequestKind::AcceptOne => is_listener,
            RequestKind::Ready(_) => true,
            _ => !is_listener,
        };
        match fits {
            false => return Some(ErrorKind::WrongKind),
            true if is_empty => return Some(ErrorKind::EmptyBuffer),
            true => {}
        }
        if phase == Phase::Unserved {
            self.count_served(conn);
        }
        None
    }

    /// Takes a request for which there is no [`rejection`](Engine::rejection). The next round starts
    /// it, so that requests submitted together go out together.
    #[inline(always)]
    pub(crate) fn submit(
        &mut self,
        conn: Conn,
        kind: RequestKind,
        context: C,
        data: OpData,
        deadline: Option<Instant>,
    ) -> OpId {
        let op = self.ops.next();
        self.submit_as(op, conn, kind, context, data, deadline);
        op
    }

    /// The same under a number that was given out already.
    #[inline(always)]
    fn submit_as(
        &mut self,
        op: OpId,
        conn: Conn,
        kind: RequestKind,
        context: C,
        data: OpData,
        deadline: Option<Instant>,
    ) {
        let at = LaneId::new(conn.slot(), kind.lane());
        let pending = self.pending(op, kind, context, deadline);
        let Some(lane) = self.conns.lane_mut(at) else {
            debug_assert!(false, "{conn:?} was checked");
            return;
        };
        if lane.first.is_some() {
            let key = self.conns.append(at, pending, data);
            return self.index(op, key, deadline);
        }
        lane.first = Some(pending);
        self.backend.op_table().put(at, data);
        self.index(op, Key::first(at), deadline);
        self.mark_dirty(at);
    }

    /// Prepares for a request with many results, and learns how to copy its context.
    #[cold]
    pub(crate) fn expect_stream(
        &mut self,
        conn: Conn,
        kind: RequestKind,
        clone_context: fn(&C) -> C,
    ) {
        self.clone_context = Some(clone_context);
        if kind == RequestKind::ReadStream {
            self.has_streams = true;
            self.open_credit(conn.slot());
        }
    }

    #[inline(always)]
    pub(super) fn pending(
        &mut self,
        op: OpId,
        kind: RequestKind,
        context: C,
        deadline: Option<Instant>,
    ) -> Pending<C> {
        self.counts.submitted += 1;
        let sequence = Sequence::last(self.counts.submitted);
        Pending::new(op, sequence, kind, context, deadline)
    }

    /// Enters a new request into the indexes.
    #[inline(always)]
    fn index(&mut self, op: OpId, key: Key, deadline: Option<Instant>) {
        let displaced = self.by_op.insert(op, key);
        if displaced != Key::NONE {
            self.displace(displaced);
        }
        if let Some(at) = deadline {
            self.deadlines.insert(key, at);
        }
    }

    /// Takes a timer.
    pub(crate) fn timer(&mut self, context: C, deadline: Option<Instant>) -> OpId {
        let op = self.ops.next();
        let pending = self.pending(op, RequestKind::Timer, context, deadline);
        let key = self.conns.add_timer(pending);
        self.index(op, key, deadline);
        op
    }

    /// Takes the connect of a socket that was just adopted. Later requests wait until it has ended.
    pub(crate) fn begin_connecting(
        &mut self,
        op: Option<OpId>,
        conn: Conn,
        submission: Submission<C>,
    ) {
        if let Some(state) = self.conns.get_mut(conn.slot()) {
            state.phase = Phase::Connecting;
        }
        let op = op.unwrap_or_else(|| self.ops.next());
        self.submit_all_of(op, conn, submission);
    }

    /// Takes a socket under a fresh handle.
    pub(crate) fn adopt(
        &mut self,
        socket: OwnedFd,
        kind: SocketKind,
    ) -> Result<Conn, (Errno, OwnedFd)> {
        match self.ids.allocate() {
            Some(conn) => self.adopt_as(conn, socket, kind).map(|()| conn),
            None => Err((Errno::TABLE_FULL, socket)),
        }
    }

    /// Takes a socket under a handle that was given out already. If that fails, the handle's life is
    /// over.
    fn adopt_as(
        &mut self,
        conn: Conn,
        socket: OwnedFd,
        kind: SocketKind,
    ) -> Result<(), (Errno, OwnedFd)> {
        if let Err(refused) = self.backend.attach(conn.slot(), socket, kind) {
            self.retired.push_back((self.emitted(), conn));
            return Err(refused);
        }
        self.conns.open(conn, kind);
        Ok(())
    }

    /// Takes a message from another thread.
    pub(crate) fn receive(&mut self, message: Message<C>) {
        match message {
            Message::Submit {
                op,
                conn,
                submission,
            } => self.receive_submission(op, conn, submission),
            Message::Connect {
                op,
                conn,
                socket,
                submission,
            } => {
                if let Err((error, submission)) = self.connect_as(op, conn, socket, submission) {
                    self.emit_refused(op, conn, submission, error);
                }
            }
            Message::Delegate { conn, socket, kind } => {
                if self.closed {
                    self.retired.push_back((self.emitted(), conn));
                    self.discard(socket);
                } else if let Err((_, socket)) = self.adopt_as(conn, socket, kind) {
                    // Requests for this handle end with `ConnClosed`.
                    self.discard(socket);
                }
            }
            Message::Cancel(op) => {
                self.cancel(op);
            }
            Message::CancelLane(conn, lane) => {
                self.cancel_lane(conn, lane);
            }
            Message::SetDeadline(op, deadline) => {
                self.set_deadline(op, deadline);
            }
            Message::Free(conn) => {
                self.free(conn);
            }
        }
    }

    /// Turns a posted message into a result.
    pub(crate) fn receive_post(&mut self, post: Post<C>) {
        let Post { op, context } = post;
        self.out.push_with(|| {
            let nothing = Buffer::EMPTY;
            OpResult::last(Operation::Post, op, Conn::NONE, context, nothing, 0, None)
        });
    }

    /// Takes a request from another thread. If it is refused, its result says so.
    fn receive_submission(&mut self, op: OpId, conn: Conn, submission: Submission<C>) {
        let (kind, len) = match &submission.data {
            OpData::Buffer(buffer) => (submission.kind, buffer.len_bytes()),
            _ => (submission.kind, 0),
        };
        let is_empty = len == 0 && matches!(kind, RequestKind::Read | RequestKind::ReadFull);
        let rejection = self.rejection(conn, kind, is_empty);
        let over = kind.writes() && self.is_over_write_limit(conn, len);
        match rejection.or(over.then_some(ErrorKind::WriteLimit)) {
            Some(why) => {
                let error = submission.kind.error_context().error(why);
                self.emit_refused(op, conn, submission, error);
            }
            None => self.submit_all_of(op, conn, submission),
        }
    }

    fn submit_all_of(&mut self, op: OpId, conn: Conn, submission: Submission<C>) {
        let Submission {
            kind,
            context,
            data,
            deadline,
            clone_context,
        } = submission;
        if let Some(clone) = clone_context {
            self.expect_stream(conn, kind, clone);
        }
        self.submit_as(op, conn, kind, context, data, deadline);
    }

    fn connect_as(
        &mut self,
        op: OpId,
        conn: Conn,
        socket: Result<OwnedFd, Errno>,
        submission: Submission<C>,
    ) -> Result<(), (Error, Submission<C>)> {
        if self.closed {
            self.retired.push_back((self.emitted(), conn));
            self.discard(socket.ok());
            return Err((
                ErrorContext::Connect.error(ErrorKind::WatcherClosed),
                submission,
            ));
        }
        if socket.is_err() {
            self.retired.push_back((self.emitted(), conn));
        }
        let adopted = socket.and_then(|socket| {
            let adopted = self.adopt_as(conn, socket, SocketKind::Stream);
            adopted.map_err(|(errno, socket)| {
                self.discard(socket);
                errno
            })
        });
        if let Err(errno) = adopted {
            return Err((ErrorContext::Connect.os_error(errno), submission));
        }
        self.begin_connecting(Some(op), conn, submission);
        Ok(())
    }
}
