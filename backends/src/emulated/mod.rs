//! The emulated backend: a proactor over a system's readiness poller. It does the reads and writes
//! itself, after the poller has said that they will not block.
//!
//! - `poller.rs`: the trait that a system implements, as `epoll.rs` and `kqueue.rs` do;
//! - `scheduler.rs`: which operation runs when; `attempt.rs`: one attempt at an operation;
//! - `slot.rs`: the table of sockets; `block_writer.rs`: the memory of swap reads.
//!
//! This file is the turn: it runs the started operations, then collects events, with no system call
//! beyond that.

mod attempt;
mod block_writer;
#[cfg(gaio_epoll)]
pub(crate) mod epoll;
#[cfg(gaio_kqueue)]
pub(crate) mod kqueue;
pub(crate) mod poller;
mod scheduler;
mod slot;
#[cfg(test)]
mod tests;

use std::fmt;
use std::net::Shutdown;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Instant;

use self::poller::{Poller, Readiness, Watch};
use self::scheduler::Scheduler;
use self::slot::Flags;
use crate::error::Errno;
use crate::error::SetupError;
use crate::sys::NoWait;
use crate::{
    Backend, Completion, Counts, LaneId, OpTableView, Options, Pool, Request, SocketKind, SwapRoom,
    Until, Waker, sys,
};

/// Tokens that belong to no slot: there are never that many slots.
const WAKER: u64 = u64::MAX;
const TIMER: u64 = u64::MAX - 1;

/// A proactor over the poller `P`.
pub(crate) struct Emulated<P> {
    scheduler: Scheduler,
    poller: P,
    waker: Arc<Waker>,
    /// Another event loop may wait for the poller's descriptor.
    nested: bool,
    /// The last turn ended without asking for events (`wait` says why).
    skipped: bool,
    /// The first completion of the turn. `wait` may sleep only if nothing is complete, so it takes
    /// the first completion and keeps it here for `next`.
    ahead: Option<Completion>,
    /// The number of events that the last call collected, and the number of those that were looked
    /// at.
    collected: usize,
    seen: usize,
    /// Whether this turn has asked for events.
    asked: bool,
    /// Whether this turn begins with the events that the watcher had no room for in the last one.
    events_first: bool,
}

impl<P: Poller> Emulated<P> {
    /// Builds the backend.
    ///
    /// # Errors
    /// The system's error, and the step that failed.
    pub(crate) fn new(options: &Options) -> Result<Self, SetupError> {
        let refused = |step| {
            move |errno| SetupError {
                step,
                errno,
                advice: "raise the limit of open descriptors (ulimit -n)",
            }
        };
        let mut poller = P::new()?;
        let waker = poller.notifier(WAKER).and_then(Waker::with);
        let waker = Arc::new(waker.map_err(refused("the wake-up"))?);
        let pool = options.pool(&waker);
        Ok(Emulated {
            scheduler: Scheduler::new(pool, waker.process()),
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
        self.scheduler.counts.waits += 1;
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
}

impl<P: Poller> crate::sealed::Backend for Emulated<P> {}

impl<P: Poller> Backend for Emulated<P> {
    fn attach(
        &mut self,
        slot: u32,
        socket: OwnedFd,
        kind: SocketKind,
    ) -> Result<(), (Errno, OwnedFd)> {
        let counts = &mut self.scheduler.counts;
        let prepared = prepare(counts, socket.as_fd(), kind, P::NEEDS_NONBLOCKING);
        let (flags, mut no_wait) = match prepared {
            Ok(known) => known,
            Err(errno) => return Err((errno, socket)),
        };
        let watch = match kind {
            SocketKind::Listener => Watch::Incoming,
            SocketKind::Stream | SocketKind::Other => Watch::Both,
        };
        self.scheduler.counts.others += 1;
        let token = self.scheduler.token(slot);
        if let Err(errno) = self.poller.add(socket.as_fd(), token, watch) {
            let counts = &mut self.scheduler.counts;
            no_wait.calls(socket.as_raw_fd(), counts).restore();
            return Err((errno, socket));
        }
        self.scheduler.attach(slot, socket, flags, no_wait);
        Ok(())
    }

    fn detach(&mut self, slot: u32) -> Option<OwnedFd> {
        let (socket, mut no_wait) = self.scheduler.detach(slot)?;
        self.scheduler.counts.others += 1;
        self.poller.remove(socket.as_fd());
        let counts = &mut self.scheduler.counts;
        no_wait.calls(socket.as_raw_fd(), counts).restore();
        Some(socket)
    }

    fn release(&mut self, slot: u32) -> Option<OwnedFd> {
        let entry = self.scheduler.slots.get_mut(slot as usize)?;
        entry.let_go(&mut self.scheduler.counts);
        let (socket, _) = self.scheduler.detach(slot)?;
        self.scheduler.counts.others += 1;
        self.poller.remove(socket.as_fd());
        Some(socket)
    }

    fn socket(&self, slot: u32) -> Option<BorrowedFd<'_>> {
        let entry = self.scheduler.slots.get(slot as usize)?;
        entry.socket.as_ref().map(AsFd::as_fd)
    }

    #[inline]
    fn room(&self) -> usize {
        usize::MAX
    }

    #[inline]
    fn op_table(&mut self) -> OpTableView<'_> {
        self.scheduler.op_table.view()
    }

    fn unwritten(&self, at: LaneId) -> usize {
        self.scheduler.op_table.unwritten_len(at)
    }

    #[inline]
    fn start(&mut self, at: LaneId, request: Request) -> Option<Completion> {
        self.scheduler.start(at, request)
    }

    fn cancel(&mut self, at: LaneId, last_try: bool) {
        self.scheduler.cancel(at, last_try);
    }

    fn shutdown(&mut self, slot: u32, how: Shutdown) -> Result<(), Errno> {
        self.scheduler.counts.others += 1;
        let socket = self.socket(slot).ok_or(Errno(libc::EBADF))?;
        sys::shutdown(socket, how)
    }

    fn bind(&mut self) -> Result<(), Errno> {
        Ok(())
    }

    /// Runs the started operations first. If that completes something, the turn ends without a call
    /// that asks for events: the next turn asks anyway, and often nothing has come yet. Two turns
    /// in a row never do so, or busy connections would starve the others.
    fn wait(&mut self, until: Until) -> Result<(), Errno> {
        // Left-over events come before newly started operations, or busy connections would take the
        // room of the others again.
        self.asked = false;
        self.events_first = self.seen < self.collected;
        if self.events_first {
            return Ok(());
        }
        self.scheduler.begin_turn();
        if self.ahead.is_none() {
            self.ahead = self.scheduler.next_started();
        }
        let at_start = std::mem::take(&mut self.scheduler.completed_at_start);
        let has_completed = self.ahead.is_some() || at_start;
        self.skipped = has_completed && !self.skipped;
        if self.skipped {
            return Ok(());
        }
        let until = if has_completed || self.scheduler.has_work() {
            Until::Now
        } else {
            until
        };
        self.ask(until)
    }

    #[inline]
    fn next(&mut self) -> Option<Completion> {
        if self.ahead.is_some() {
            return self.ahead.take();
        }
        loop {
            // Started lanes run between two events, so that a second lane or the next step of a
            // stream does not wait behind all events. Left-over events are the exception: they are
            // older.
            if !self.events_first
                && self.scheduler.has_started()
                && let Some(completion) = self.scheduler.next_started()
            {
                return Some(completion);
            }
            let Some((token, readiness)) = self.next_event() else {
                if std::mem::take(&mut self.events_first) {
                    continue;
                }
                return None;
            };
            if let Some(completion) = self.scheduler.event(token, readiness) {
                return Some(completion);
            }
        }
    }

    fn has_work(&mut self) -> bool {
        let left_events = self.seen < self.collected;
        // A full batch of events may not have been the last.
        let uncollected = self.collected == P::EVENTS_MAX;
        // A turn that did not ask for events does not know whether there are any.
        let unasked = !self.asked;
        left_events || uncollected || unasked || self.ahead.is_some() || self.scheduler.has_work()
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
            // The alarm was set up before; setting it again takes nothing that could be refused.
            let _ = self.poller.alarm(TIMER, at);
        }
    }

    fn waker(&self) -> &Arc<Waker> {
        &self.waker
    }

    fn pool(&self) -> &Pool {
        self.scheduler.block_writer.pool()
    }

    fn swap_room(&mut self) -> SwapRoom {
        SwapRoom::packed(self.scheduler.block_writer.room_bytes())
    }

    fn counts(&self) -> &Counts {
        &self.scheduler.counts
    }
}

/// Prepares a descriptor for calls that must not block and must not raise a signal. Returns its
/// initial flags and the means against blocking.
fn prepare(
    counts: &mut Counts,
    fd: BorrowedFd<'_>,
    kind: SocketKind,
    nonblocking: bool,
) -> Result<(Flags, NoWait), Errno> {
    counts.others += u64::from(sys::disable_sigpipe(fd, kind)?);
    // `may_be_unix` asks for the address.
    counts.others += u64::from(kind == SocketKind::Stream);
    let flags = match kind {
        // A fresh connection nearly always takes a first write. A read from a Unix socket ends
        // where descriptors were passed along, so a short read does not prove that nothing is left.
        SocketKind::Stream if sys::may_be_unix(fd) => Flags::WRITABLE | Flags::DOUBT,
        SocketKind::Stream => Flags::WRITABLE,
        SocketKind::Listener => Flags::default(),
        SocketKind::Other => Flags::WRITABLE | Flags::FILE | Flags::DOUBT,
    };
    let mut no_wait = NoWait::default();
    // The mode of all other descriptors is checked before each call.
    if kind == SocketKind::Stream && nonblocking {
        no_wait.calls(fd.as_raw_fd(), counts).look()?;
    }
    Ok((flags, no_wait))
}

impl<P> fmt::Debug for Emulated<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Emulated")
            .field("counts", &self.scheduler.counts)
            .finish_non_exhaustive()
    }
}
