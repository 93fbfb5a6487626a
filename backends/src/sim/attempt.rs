//! One attempt of the simulated kernel at each kind of operation.

use super::Sim;
use crate::error::Errno;
use crate::swap::{Credit, OpenBlock, SwapBuf};
use crate::{Completion, Interest, LaneId, Outcome, Request};

/// The outcome of an attempt; none if the operation has to wait.
pub(super) type Attempt = Option<Outcome>;

impl Sim {
    /// Attempts an operation, unless a fault comes first.
    pub(super) fn attempt(&mut self, at: LaneId) {
        let request = self.running.get(&at).map(|running| running.request);
        let writes = matches!(request, Some(Request::Write | Request::WriteMany));
        let mut state = self.world.lock();
        let fault = if state.fault(40) {
            Some(libc::EINTR)
        } else if state.fault(60) {
            Some(libc::EAGAIN)
        } else if writes && state.fault(40) {
            Some(libc::ENOBUFS)
        } else {
            None
        };
        drop(state);
        match fault {
            Some(errno) => self.finish(at, Err(Errno(errno))),
            None => self.attempt_plainly(at),
        }
    }

    /// Attempts an operation without faults of the call, and completes it unless it has to wait.
    pub(super) fn attempt_plainly(&mut self, at: LaneId) {
        let Some(running) = self.running.get(&at) else {
            return;
        };
        let request = running.request;
        let Some(end) = self.end(at.slot()) else {
            return;
        };
        let attempt = match request {
            Request::ReadSwap | Request::ReadStream | Request::ReadStep => self.read_swap(at, end),
            Request::ReadPrivate => self.read_private(at, end),
            Request::Read => self.read(at, end),
            Request::Write | Request::WriteMany => self.write(at, end),
            Request::Accept | Request::AcceptStream => self.accept(end),
            Request::Connect => self.connect(at, end),
            Request::Ready(interest) => self.ready(end, interest),
        };
        let Some(outcome) = attempt else {
            return;
        };
        let streams = matches!(
            (&outcome, request),
            (Outcome::Leased(_), Request::ReadStream)
                | (Outcome::Accepted(_), Request::AcceptStream)
        );
        let more = streams && !self.world.lock().fault(6);
        self.complete(Completion { at, more, outcome });
    }

    /// The number of bytes that a read of at most `room` takes, or the end, or an error. `None` if
    /// there is nothing yet.
    fn readable(&self, end: usize, room: usize) -> Option<Result<usize, Errno>> {
        let mut state = self.world.lock();
        let from = &state.ends[end];
        if from.reset {
            return Some(Err(Errno(libc::ECONNRESET)));
        }
        match from.incoming.len().min(room) {
            0 => from.ended.then_some(Ok(0)),
            most => Some(Ok(state.part(most))),
        }
    }

    fn read_swap(&mut self, at: LaneId, end: usize) -> Attempt {
        if self.open_block.is_none() {
            self.open_block = self.pool.checkout();
        }
        let room = self
            .open_block
            .as_ref()
            .map_or(usize::MAX, |open_block| open_block.left());
        let len = match self.readable(end, room)? {
            Ok(0) => return Some(Outcome::Done(0)),
            Ok(len) => len,
            Err(errno) => return Some(Outcome::Failed(errno)),
        };
        if self.open_block.is_none() || self.world.lock().fault(20) {
            return Some(Outcome::Failed(Errno(libc::ENOBUFS)));
        }
        let request = self.running.get(&at)?.request;
        let is_stream = matches!(request, Request::ReadStream | Request::ReadStep);
        let charged = self.op_table.credit(at.slot()).filter(|_| is_stream);
        let mut open_block = self.open_block.take()?;
        let lease = self.fill(&mut open_block, end, len, charged);
        // A block that is used up goes back at once: others may wait for it.
        self.open_block = Some(open_block).filter(|open_block| open_block.left() > 0);
        Some(Outcome::Leased(lease))
    }

    /// Moves received bytes into a block, and leases them.
    fn fill(
        &self,
        open_block: &mut OpenBlock,
        end: usize,
        len: usize,
        charged: Option<&Credit>,
    ) -> SwapBuf {
        let bytes: Vec<u8> = self.world.lock().ends[end].incoming.drain(..len).collect();
        let (tail, _) = open_block.tail();
        // SAFETY: the tail is valid for writes of all that is left, which is at least `len` bytes;
        // nobody else writes to it.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), tail, len) };
        // SAFETY: these bytes were just written, and later ones go behind them.
        unsafe { open_block.lease(len, charged) }
    }

    fn read_private(&mut self, at: LaneId, end: usize) -> Attempt {
        let account = self.op_table.credit(at.slot());
        assert!(account.is_some(), "{at:?} has no account to charge");
        let account = account?;
        let Some(mut open_block) = self.pool.checkout_private(account) else {
            return Some(Outcome::Failed(Errno(libc::ENOBUFS)));
        };
        let len = match self.readable(end, open_block.left()) {
            None => return Some(Outcome::Failed(Errno(libc::EAGAIN))),
            Some(Ok(0)) => return Some(Outcome::Done(0)),
            Some(Ok(len)) => len,
            Some(Err(errno)) => return Some(Outcome::Failed(errno)),
        };
        let lease = self.fill(&mut open_block, end, len, None);
        Some(Outcome::Leased(lease))
    }

    fn read(&mut self, at: LaneId, end: usize) -> Attempt {
        let room = self.op_table.unread(at).len();
        assert!(room > 0, "{at:?} has no room to read into");
        let len = match self.readable(end, room)? {
            Ok(len) => len,
            Err(errno) => return Some(Outcome::Failed(errno)),
        };
        let mut state = self.world.lock();
        let bytes = state.ends[end].incoming.drain(..len);
        for (to, byte) in self.op_table.unread(at).iter_mut().zip(bytes) {
            *to = byte;
        }
        Some(Outcome::Done(len as u32))
    }

    fn write(&self, at: LaneId, end: usize) -> Attempt {
        let running = self.running.get(&at)?;
        let mut state = self.world.lock();
        let to = &state.ends[end];
        if to.reset || to.shut {
            let errno = if to.reset {
                libc::ECONNRESET
            } else {
                libc::EPIPE
            };
            return Some(Outcome::Failed(Errno(errno)));
        }
        let window = to.window.saturating_sub(to.outgoing.len());
        let parts = self.op_table.parts(at);
        let most = parts
            .iter()
            .map(|part| part.len())
            .sum::<usize>()
            .min(window);
        if most == 0 {
            return None;
        }
        assert_eq!(
            self.checksum(at),
            running.checksum,
            "bytes of {at:?} changed while the kernel could read them"
        );
        let len = state.part(most);
        let mut left = len;
        for part in parts {
            let taken = &part[..left.min(part.len())];
            state.ends[end].outgoing.extend(taken);
            left -= taken.len();
        }
        Some(Outcome::Done(len as u32))
    }

    fn accept(&mut self, end: usize) -> Attempt {
        let mut state = self.world.lock();
        if state.ends[end].backlog.is_empty() {
            return None;
        }
        if state.fault(10) {
            return Some(Outcome::Failed(Errno(libc::ECONNABORTED)));
        }
        if state.fault(20) {
            return Some(Outcome::Failed(Errno(libc::EMFILE)));
        }
        let peer = state.ends[end].backlog.pop_front()?;
        let socket = state.accepted(peer);
        Some(socket.map_or_else(Outcome::Failed, Outcome::Accepted))
    }

    fn connect(&mut self, at: LaneId, end: usize) -> Attempt {
        if let Err(errno) = self.op_table.address(at) {
            return Some(Outcome::Failed(errno));
        }
        let mut state = self.world.lock();
        if state.fault(5) {
            return Some(Outcome::Failed(Errno(libc::ECONNREFUSED)));
        }
        state.connected(end);
        Some(Outcome::Done(0))
    }

    fn ready(&mut self, end: usize, interest: Interest) -> Attempt {
        let state = self.world.lock();
        let end = &state.ends[end];
        let ready = match interest {
            Interest::Readable => !end.incoming.is_empty() || end.ended,
            Interest::Writable => end.outgoing.len() < end.window || end.shut,
        };
        (ready || end.reset).then_some(Outcome::Done(0))
    }
}
