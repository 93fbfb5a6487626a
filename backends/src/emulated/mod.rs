//! The emulated backend: a proactor over a system's readiness poller. It does the reads and
//! writes itself, when the poller has said that they will not block.
//!
//! - `poller.rs` is the trait that a system implements, `epoll.rs` and `kqueue.rs` do so;
//! - `engine.rs` decides what runs when, `attempt.rs` runs it;
//! - `slot.rs` is the table of sockets, `cursor.rs` the memory of swap reads.
//!
//! This file is the turn: run what was started, then collect events, and not one system call more
//! than that takes.

mod attempt;
mod cursor;
mod engine;
#[cfg(gaio_epoll)]
pub mod epoll;
#[cfg(gaio_kqueue)]
pub mod kqueue;
pub mod poller;
mod slot;
#[cfg(test)]
mod tests;

use std::fmt;
use std::net::Shutdown;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Instant;

use self::engine::{Engine, Step};
use self::poller::{Poller, Readiness, Watch};
use self::slot::Flags;
use crate::error::Errno;
use crate::error::Refusal;
use crate::sys::NoWait;
use crate::{
    Backend, Buffer, Completion, Counts, Loads, Options, Payload, Place, Pool, Request, Sink,
    SocketKind, SwapRoom, Until, Waker, sys,
};

/// Tokens of no slot: there are never so many.
const WAKER: u64 = u64::MAX;
const TIMER: u64 = u64::MAX - 1;

/// A proactor over the poller `P`.
pub struct Emulated<P> {
    engine: Engine,
    poller: P,
    waker: Arc<Waker>,
    /// Somebody else waits for the poller's descriptor.
    nested: bool,
    /// The last turn had enough to do and did not ask for events.
    skipped: bool,
    /// The first completion of the turn: found by `wait`, which has to know if there is one.
    ahead: Option<Completion>,
    /// Events of the last call that asked for some, and how many of them were looked at.
    collected: usize,
    seen: usize,
    /// This turn has asked for events.
    asked: bool,
    /// This turn begins with events that found no room in the last.
    events_first: bool,
}

impl<P: Poller> Emulated<P> {
    /// Builds one.
    ///
    /// # Errors
    /// The system's refusal, and at which step.
    pub fn new(options: &Options) -> Result<Self, Refusal> {
        let refused = |step| {
            move |errno| Refusal {
                step,
                errno,
                advice: "raise the limit of open descriptors (ulimit -n)",
            }
        };
        let mut poller = P::new()?;
        let waker = poller.bell(WAKER).and_then(Waker::with);
        let waker = Arc::new(waker.map_err(refused("the wake-up"))?);
        let pool = options.pool(&waker);
        Ok(Emulated {
            engine: Engine::new(pool, waker.process()),
            poller,
            waker,
            nested: false,
            skipped: false,
            ahead: None,
            collected: 0,
            seen: 0,
            asked: false,
            events_first: false,
        })
    }

    #[inline]
    fn ask(&mut self, until: Until) -> Result<(), Errno> {
        self.asked = true;
        self.engine.counts.waits += 1;
        (self.seen, self.collected) = (0, 0);
        self.collected = self.poller.wait(until)?;
        Ok(())
    }

    #[inline]
    fn next_event(&mut self) -> Option<(u64, Readiness)> {
        if self.seen == self.collected {
            return None;
        }
        self.seen += 1;
        self.poller.event(self.seen - 1)
    }

    #[inline]
    fn next_started(&mut self) -> Option<Completion> {
        if self.events_first {
            return None;
        }
        self.engine.next_started()
    }

    /// Whether something is to be done before the next event.
    #[inline(always)]
    fn has_started(&self) -> bool {
        !self.events_first && self.engine.has_started()
    }
}

impl<P: Poller> Backend for Emulated<P> {
    fn attach(
        &mut self,
        slot: u32,
        socket: OwnedFd,
        kind: SocketKind,
    ) -> Result<(), (Errno, OwnedFd)> {
        let counts = &mut self.engine.counts;
        let prepared = prepare(counts, socket.as_fd(), kind, P::NEEDS_NONBLOCKING);
        let (flags, mut no_wait) = match prepared {
            Ok(known) => known,
            Err(errno) => return Err((errno, socket)),
        };
        let watch = match kind {
            SocketKind::Listener => Watch::Incoming,
            SocketKind::Stream | SocketKind::Other => Watch::Both,
        };
        self.engine.counts.others += 1;
        let token = self.engine.token(slot);
        if let Err(errno) = self.poller.add(socket.as_fd(), token, watch) {
            let counts = &mut self.engine.counts;
            no_wait.calls(socket.as_raw_fd(), counts).restore();
            return Err((errno, socket));
        }
        self.engine.seat(slot, socket, flags, no_wait);
        Ok(())
    }

    fn detach(&mut self, slot: u32) -> Option<OwnedFd> {
        let (socket, mut no_wait) = self.engine.vacate(slot)?;
        self.engine.counts.others += 1;
        self.poller.remove(socket.as_fd());
        let counts = &mut self.engine.counts;
        no_wait.calls(socket.as_raw_fd(), counts).restore();
        Some(socket)
    }

    fn release(&mut self, slot: u32) -> Option<OwnedFd> {
        let entry = self.engine.slots.get_mut(slot as usize)?;
        entry.let_go(&mut self.engine.counts);
        let (socket, _) = self.engine.vacate(slot)?;
        self.engine.counts.others += 1;
        self.poller.remove(socket.as_fd());
        Some(socket)
    }

    fn socket(&self, slot: u32) -> Option<BorrowedFd<'_>> {
        let entry = self.engine.slots.get(slot as usize)?;
        entry.socket.as_ref().map(AsFd::as_fd)
    }

    #[inline]
    fn room(&self) -> usize {
        usize::MAX
    }

    #[inline]
    fn loads(&mut self) -> Loads<'_> {
        self.engine.loads.as_loads()
    }

    fn start(&mut self, at: Place, request: Request) {
        self.engine.start(at, request);
    }

    #[inline(always)]
    fn start_read_swap(&mut self, at: Place) -> bool {
        self.engine.start_read_swap(at);
        true
    }

    #[inline(always)]
    fn start_write(&mut self, at: Place) -> Option<(Buffer, usize)> {
        self.engine.start_write(at)
    }

    fn cancel(&mut self, at: Place, last_try: bool) {
        self.engine.cancel(at, last_try);
    }

    fn shutdown(&mut self, slot: u32, how: Shutdown) -> Result<(), Errno> {
        self.engine.counts.others += 1;
        let socket = self.socket(slot).ok_or(Errno(libc::EBADF))?;
        sys::shutdown(socket, how)
    }

    fn bind(&mut self) -> Result<(), Errno> {
        Ok(())
    }

    /// What was started runs first. If that completes something, the turn ends without a call
    /// that asks for events: the next one will ask anyway, and often nothing has come yet. Two
    /// turns in a row never do so, or busy connections would starve the others.
    fn wait(&mut self, until: Until) -> Result<(), Errno> {
        // Events that found no room come before what was started since, or busy connections would
        // take the room again.
        self.asked = false;
        self.events_first = self.seen < self.collected;
        if self.events_first {
            return Ok(());
        }
        self.engine.begin_turn();
        if self.ahead.is_none() {
            self.ahead = self.engine.next_started();
        }
        let wrote = std::mem::take(&mut self.engine.wrote_at_once);
        let has_completed = self.ahead.is_some() || wrote;
        self.skipped = has_completed && !self.skipped;
        if self.skipped {
            return Ok(());
        }
        let until = if has_completed || self.engine.has_work() {
            Until::Now
        } else {
            until
        };
        self.ask(until)
    }

    fn next(&mut self) -> Option<Completion> {
        if let Some(completion) = self.ahead.take() {
            return Some(completion);
        }
        loop {
            if let Some(completion) = self.next_started() {
                return Some(completion);
            }
            let Some((token, readiness)) = self.next_event() else {
                if std::mem::take(&mut self.events_first) {
                    continue;
                }
                return None;
            };
            let step = self.engine.event(token, readiness);
            if let Some(completion) = self.engine.completion(step) {
                return Some(completion);
            }
        }
    }

    #[inline]
    fn collect(&mut self, most: usize, sink: &mut impl Sink<Self>) {
        let mut left = most;
        while left > 0 {
            // Only events are many; all else has its turn between them.
            if self.ahead.is_none()
                && !self.has_started()
                && let Some((token, readiness)) = self.next_event()
            {
                match self.engine.event(token, readiness) {
                    Step::Nothing => continue,
                    Step::Received(at, lease) => sink.received(self, at, lease),
                    Step::Streamed(at, lease) => sink.streamed(self, at, lease),
                    Step::Completed(completion) => {
                        let payload = self.engine.brought.take();
                        sink.completed(self, completion, payload);
                    }
                }
            } else if let Some(completion) = self.next() {
                let payload = self.engine.brought.take();
                sink.completed(self, completion, payload);
            } else {
                return;
            }
            left -= 1;
        }
    }

    #[inline]
    fn payload(&mut self) -> Payload {
        self.engine.brought.take()
    }

    fn has_work(&mut self) -> bool {
        let left_events = self.seen < self.collected;
        // Behind events that nobody asked for, there may be others.
        let uncollected = self.collected == P::EVENTS_MAX;
        // A turn that did not ask does not know what has come.
        let unasked = !self.asked;
        left_events || uncollected || unasked || self.ahead.is_some() || self.engine.has_work()
    }

    fn readiness(&mut self) -> Result<OwnedFd, Errno> {
        let descriptor = sys::duplicate(self.poller.descriptor())?;
        if !self.nested {
            self.poller.alarm(TIMER, None)?;
            self.nested = true;
        }
        Ok(descriptor)
    }

    fn arm(&mut self, at: Option<Instant>) {
        if self.nested {
            // It was set up before; setting it again takes nothing that could be refused.
            let _ = self.poller.alarm(TIMER, at);
        }
    }

    fn waker(&self) -> &Arc<Waker> {
        &self.waker
    }

    fn pool(&self) -> &Pool {
        self.engine.cursor.pool()
    }

    fn swap_room(&mut self) -> SwapRoom {
        SwapRoom::packed(self.engine.cursor.room_bytes())
    }

    fn counts(&self) -> &Counts {
        &self.engine.counts
    }
}

/// Readies a descriptor for calls that must not block and raise no signal; returns what is known
/// of it.
fn prepare(
    counts: &mut Counts,
    fd: BorrowedFd<'_>,
    kind: SocketKind,
    nonblocking: bool,
) -> Result<(Flags, NoWait), Errno> {
    counts.others += u64::from(sys::silence(fd, kind)?);
    // The look at the address, below.
    counts.others += u64::from(kind == SocketKind::Stream);
    let flags = match kind {
        // A fresh connection nearly always takes a first write. A read from a Unix socket ends
        // where descriptors were passed along: being short, it does not prove that nothing is left.
        SocketKind::Stream if sys::may_be_unix(fd) => Flags::WRITABLE | Flags::DOUBT,
        SocketKind::Stream => Flags::WRITABLE,
        SocketKind::Listener => Flags::default(),
        SocketKind::Other => Flags::WRITABLE | Flags::FILE | Flags::DOUBT,
    };
    let mut no_wait = NoWait::default();
    // The mode of all others is looked at before each call.
    if kind == SocketKind::Stream && nonblocking {
        no_wait.calls(fd.as_raw_fd(), counts).look()?;
    }
    Ok((flags, no_wait))
}

impl<P> fmt::Debug for Emulated<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Emulated")
            .field("counts", &self.engine.counts)
            .finish_non_exhaustive()
    }
}
