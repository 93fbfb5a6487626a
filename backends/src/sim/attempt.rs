//! What one attempt of the simulated kernel at each kind of operation does.

use super::Sim;
use crate::error::Errno;
use crate::swap::{Credit, Filling, SwapBuf};
use crate::{Completion, Interest, Payload, Place, Request};

/// What came of an attempt: bytes and what they bring, or an error; nothing if it has to wait.
pub(super) type Attempt = Option<Result<(u32, Payload), Errno>>;

impl Sim {
    /// Attempts an operation, if no fault comes between.
    pub(super) fn attempt(&mut self, at: Place) {
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

    /// Attempts an operation and ends it if that got anywhere.
    pub(super) fn attempt_plainly(&mut self, at: Place) {
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
        match attempt {
            None => {}
            Some(Err(errno)) => self.finish(at, Err(errno)),
            Some(Ok((len, payload))) => {
                let streams = match request {
                    Request::ReadStream => len > 0,
                    request => request == Request::AcceptStream,
                };
                let more = streams && !self.world.lock().fault(6);
                let result = Ok(len);
                self.complete(Completion { at, more, result }, payload);
            }
        }
    }

    /// How many bytes a read of at most `room` would take; the end, an error, or nothing yet.
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

    fn read_swap(&mut self, at: Place, end: usize) -> Attempt {
        if self.filling.is_none() {
            self.filling = self.pool.checkout();
        }
        let room = self
            .filling
            .as_ref()
            .map_or(usize::MAX, |filling| filling.left());
        let len = match self.readable(end, room)? {
            Ok(0) => return Some(Ok((0, Payload::None))),
            Ok(len) => len,
            Err(errno) => return Some(Err(errno)),
        };
        if self.filling.is_none() || self.world.lock().fault(20) {
            return Some(Err(Errno(libc::ENOBUFS)));
        }
        let request = self.running.get(&at)?.request;
        let is_stream = matches!(request, Request::ReadStream | Request::ReadStep);
        let charged = self.loads.credit(at.slot()).filter(|_| is_stream);
        let mut filling = self.filling.take()?;
        let lease = self.fill(&mut filling, end, len, charged);
        // A block that is used up goes back at once: others may wait for it.
        self.filling = Some(filling).filter(|filling| filling.left() > 0);
        Some(Ok((len as u32, Payload::Lease(lease))))
    }

    /// Moves bytes into a buffer.
    fn fill(
        &self,
        filling: &mut Filling,
        end: usize,
        len: usize,
        charged: Option<&Credit>,
    ) -> SwapBuf {
        let bytes: Vec<u8> = self.world.lock().ends[end].incoming.drain(..len).collect();
        let (tail, _) = filling.tail();
        // SAFETY: the tail is valid for writes of what is left, which is no less than `len`;
        // nobody else knows of it.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), tail, len) };
        // SAFETY: these bytes were just written, and later ones go behind them.
        unsafe { filling.lease(len, charged) }
    }

    fn read_private(&mut self, at: Place, end: usize) -> Attempt {
        let account = self.loads.credit(at.slot());
        assert!(account.is_some(), "{at:?} has no account to charge");
        let account = account?;
        let Some(mut filling) = self.pool.checkout_private(account) else {
            return Some(Err(Errno(libc::ENOBUFS)));
        };
        let len = match self.readable(end, filling.left()) {
            None => return Some(Err(Errno(libc::EAGAIN))),
            Some(Ok(0)) => return Some(Ok((0, Payload::None))),
            Some(Ok(len)) => len,
            Some(Err(errno)) => return Some(Err(errno)),
        };
        let lease = self.fill(&mut filling, end, len, None);
        Some(Ok((len as u32, Payload::Lease(lease))))
    }

    fn read(&mut self, at: Place, end: usize) -> Attempt {
        let room = self.loads.unread(at).len();
        assert!(room > 0, "{at:?} has no room to read into");
        let len = match self.readable(end, room)? {
            Ok(len) => len,
            Err(errno) => return Some(Err(errno)),
        };
        let mut state = self.world.lock();
        let bytes = state.ends[end].incoming.drain(..len);
        for (to, byte) in self.loads.unread(at).iter_mut().zip(bytes) {
            *to = byte;
        }
        Some(Ok((len as u32, Payload::None)))
    }

    pub(super) fn write(&self, at: Place, end: usize) -> Attempt {
        let running = self.running.get(&at)?;
        let mut state = self.world.lock();
        let to = &state.ends[end];
        if to.reset || to.shut {
            let errno = if to.reset {
                libc::ECONNRESET
            } else {
                libc::EPIPE
            };
            return Some(Err(Errno(errno)));
        }
        let window = to.window.saturating_sub(to.outgoing.len());
        let parts = self.loads.parts(at);
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
        Some(Ok((len as u32, Payload::None)))
    }

    fn accept(&mut self, end: usize) -> Attempt {
        let mut state = self.world.lock();
        if state.ends[end].backlog.is_empty() {
            return None;
        }
        if state.fault(10) {
            return Some(Err(Errno(libc::ECONNABORTED)));
        }
        if state.fault(20) {
            return Some(Err(Errno(libc::EMFILE)));
        }
        let peer = state.ends[end].backlog.pop_front()?;
        let socket = state.accepted(peer);
        Some(socket.map(|socket| (0, Payload::Socket(socket))))
    }

    fn connect(&mut self, at: Place, end: usize) -> Attempt {
        if let Err(errno) = self.loads.address(at) {
            return Some(Err(errno));
        }
        let mut state = self.world.lock();
        if state.fault(5) {
            return Some(Err(Errno(libc::ECONNREFUSED)));
        }
        state.connected(end);
        Some(Ok((0, Payload::None)))
    }

    fn ready(&mut self, end: usize, interest: Interest) -> Attempt {
        let state = self.world.lock();
        let end = &state.ends[end];
        let ready = match interest {
            Interest::Readable => !end.incoming.is_empty() || end.ended,
            Interest::Writable => end.outgoing.len() < end.window || end.shut,
        };
        (ready || end.reset).then_some(Ok((0, Payload::None)))
    }
}
