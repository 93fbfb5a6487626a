//! The native backend: the kernel does the reads and writes and says when they are done.
//!
//! One `io_uring_enter(2)` a turn submits everything that was started, waits, and collects.
//! `setup` gets the ring, `entries` tells it what to do, `buffer_ring` lends it swap buffers,
//! `lanes` remembers what runs, `polled` does reads and writes for descriptors that are not
//! sockets, `teardown` ends it all without the kernel writing into freed memory. This file submits
//! and reaps.

mod buffer_ring;
mod entries;
mod lanes;
mod polled;
mod setup;
mod teardown;

use std::cell::OnceCell;
use std::collections::VecDeque;
use std::mem::ManuallyDrop;
use std::net::Shutdown;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::Arc;
use std::time::Instant;

use io_uring::types::{Fd, SubmitArgs, Timespec};
use io_uring::{IoUring, Submitter, cqueue, opcode, squeue};

use self::buffer_ring::BufferRing;
use self::lanes::{Lanes, Load, Op};
use self::polled::Polled;
use crate::error::Errno;
use crate::error::Refusal;
use crate::nest::NestTimer;
use crate::swap::Pool;
use crate::sys;
use crate::wake::Waker;
use crate::{
    Backend, Completion, Counting, Counts, Lane, Options, Payload, PoolUse, Request, Sink,
    SocketKind, Until,
};

/// The one group of provided buffers.
const BUFFER_GROUP: u16 = 0;
/// The most blocks lent to the kernel at a time: few, so that they stay warm; measured.
const LENT_MAX: usize = 16;
/// Places in the submission queue that are kept for the backend's own entries.
const OWN_ENTRIES: usize = 2;
/// From this many cancellations on, a turn asks the kernel to run them all: it runs only some
/// twenty deferred completions a call otherwise.
const MANY_CANCELS: usize = 16;

/// `user_data` of entries that belong to no lane. Lanes count from zero.
const IGNORED: u64 = u64::MAX;
const WOKEN: u64 = u64::MAX - 1;

/// The backend over io_uring.
pub struct Uring {
    /// Leaked when built, so that `submitter` can hold on to it; freed by the teardown.
    ring: &'static IoUring,
    /// Kept, because it knows the registered index of the ring.
    submitter: Submitter<'static>,
    buffers: ManuallyDrop<BufferRing>,
    pool: Pool,
    polled: Polled,
    lanes: Lanes,
    /// Completions that need no kernel.
    immediate: VecDeque<Completion>,
    /// Entries that found the submission queue full.
    deferred: VecDeque<squeue::Entry>,
    /// Lanes that were cancelled and still run.
    cancelling: usize,
    waker: Arc<Waker>,
    /// Where the kernel puts the waker's count.
    wake_count: Box<u64>,
    wake_armed: bool,
    bound: bool,
    nest: OnceCell<Nest>,
    timer: NestTimer,
    tombstone: ManuallyDrop<teardown::Tombstone>,
    counts: Counts,
}

// SAFETY: the `Submitter` has pointers into the ring's mapping, which belongs to this value alone;
// the kernel binds the ring to a thread only in `bind`, and refuses (it does not misbehave) when
// another one enters.
unsafe impl Send for Uring {}

/// What makes a blocking `poll(2)` work: the ring's own descriptor does not wake one while task
/// work is deferred. The ring's event, the waker's and a timer. The waker's event is no longer
/// read by the ring then: an event that arises within an event's signal is put off by the kernel.
struct Nest {
    epoll: OwnedFd,
    event: OwnedFd,
}

impl Uring {
    /// Builds the backend and proves that it works.
    ///
    /// # Errors
    /// The step that failed, and how.
    pub fn new(options: &Options) -> Result<(Self, Vec<&'static str>), Refusal> {
        let failed = |step| move |errno: Errno| setup::refusal(step, &errno.into());
        teardown::sweep_graveyard();
        let abilities = setup::prove()?;
        let ring = setup::build(abilities, options.queue_depth as u32)?;
        let tombstone = teardown::Tombstone::bury(&ring).map_err(failed("io_uring_register"))?;
        let lent = options.swap_buffers.min(LENT_MAX).next_power_of_two() as u16;
        let buffers = BufferRing::register(&ring.submitter(), lent, abilities.incremental)
            .map_err(|error| setup::refusal("registering a buffer ring", &error))?;
        let waker = Arc::new(Waker::new().map_err(failed("eventfd"))?);
        let pool = options.pool(&waker);
        let ring: &'static IoUring = Box::leak(Box::new(ring));
        let uring = Uring {
            ring,
            submitter: ring.submitter(),
            buffers: ManuallyDrop::new(buffers),
            pool,
            polled: Polled::new(options.pool(&waker)),
            lanes: Lanes::default(),
            immediate: VecDeque::new(),
            deferred: VecDeque::new(),
            cancelling: 0,
            waker,
            wake_count: Box::new(0),
            wake_armed: false,
            bound: false,
            nest: OnceCell::new(),
            timer: NestTimer::default(),
            tombstone: ManuallyDrop::new(tombstone),
            counts: Counts::default(),
        };
        Ok((uring, abilities.features()))
    }

    fn submission(&self) -> squeue::SubmissionQueue<'static> {
        // SAFETY: `self` is neither shared between threads nor entered again, and every caller
        // drops this queue before the next one is made.
        unsafe { self.ring.submission_shared() }
    }

    fn completion(&self) -> cqueue::CompletionQueue<'static> {
        // SAFETY: as for `submission`.
        unsafe { self.ring.completion_shared() }
    }

    /// Queues an entry for the next enter.
    ///
    /// # Safety
    /// Whatever memory the entry names lives until its last completion.
    #[inline]
    unsafe fn push(&mut self, entry: squeue::Entry) {
        // SAFETY: as the caller says.
        if !self.deferred.is_empty() || unsafe { self.submission().push(&entry) }.is_err() {
            self.deferred.push_back(entry);
        }
    }

    /// Moves what found the queue full into it. Order is kept: nothing else is pushed before.
    fn push_deferred(&mut self) {
        let mut queue = self.submission();
        while let Some(entry) = self.deferred.front() {
            // SAFETY: as when it was deferred: its memory lives until its last completion.
            if unsafe { queue.push(entry) }.is_err() {
                break;
            }
            self.deferred.pop_front();
        }
    }

    /// Lets a wake-up end the sleep in the ring. Nested, the sleep is elsewhere.
    fn arm_wake(&mut self) {
        if self.nest.get().is_some() {
            return self.disarm_wake();
        }
        if self.wake_armed {
            return;
        }
        self.wake_armed = true;
        let event = Fd(self.waker.event().as_raw_fd());
        let at: *mut u64 = &raw mut *self.wake_count;
        let entry = opcode::Read::new(event, at.cast(), 8)
            .build()
            .user_data(WOKEN);
        // SAFETY: the count is boxed, and the teardown waits for this entry or keeps the box.
        unsafe { self.push(entry) };
    }

    fn disarm_wake(&mut self) {
        if self.wake_armed {
            let entry = opcode::AsyncCancel::new(WOKEN).build().user_data(IGNORED);
            // SAFETY: a cancellation names no memory.
            unsafe { self.push(entry) };
        }
    }

    /// The turn's one system call.
    fn enter(&mut self, until: Until) -> Result<(), Errno> {
        let (has_ready, has_work) = {
            let queue = self.submission();
            let ready = !self.completion().is_empty() || !self.immediate.is_empty();
            (
                ready,
                !queue.is_empty() || queue.taskrun() || queue.cq_overflow(),
            )
        };
        let sleeps = !has_ready && until != Until::Now;
        if !sleeps && !has_work {
            return Ok(());
        }
        self.counts.waits += 1;
        let result = if self.cancelling >= MANY_CANCELS {
            let all = self.completion().len() + self.cancelling;
            let most = self.ring.params().cq_entries() as usize;
            self.enter_for(Timespec::new(), all.min(most))
        } else if !sleeps {
            self.submitter.submit_and_wait(0)
        } else if let Until::Time(at) = until {
            let left = at.saturating_duration_since(Instant::now());
            self.enter_for(Timespec::from(left), 1)
        } else {
            self.submitter.submit_and_wait(1)
        };
        match result.map_err(Errno::from) {
            Ok(_) => Ok(()),
            // Timed out, interrupted, or completions have to be reaped first: all in order.
            Err(Errno(libc::ETIME | libc::EINTR | libc::EBUSY | libc::EAGAIN)) => Ok(()),
            Err(errno) => Err(errno),
        }
    }

    fn enter_for(&self, timeout: Timespec, want: usize) -> std::io::Result<usize> {
        let args = SubmitArgs::new().timespec(&timeout);
        self.submitter.submit_with_args(want, &args)
    }

    fn reap(&mut self, sink: &mut impl Sink) {
        while sink.wants_more() {
            let Some(completion) = self.immediate.pop_front() else {
                break;
            };
            sink.complete(completion);
        }
        let mut queue = self.completion();
        while sink.wants_more() {
            let Some(entry) = queue.next() else {
                break;
            };
            match entry.user_data() {
                IGNORED => {}
                WOKEN => self.wake_armed = false,
                lane => self.reap_lane(lane, entry.result(), entry.flags(), sink),
            }
        }
    }

    #[inline]
    fn reap_lane(&mut self, user_data: u64, result: i32, flags: u32, sink: &mut impl Sink) {
        let (slot, lane) = lanes::decode(user_data);
        let Some(state) = self.lanes.get(slot, lane) else {
            return;
        };
        let op = state.op;
        let result = usize::try_from(result).map_err(|_| Errno(-result));
        if op.is_polled() {
            return self.ready_polled(slot, lane, result, sink);
        }
        let more = cqueue::more(flags);
        let received = match op {
            Op::RecvStream => self.received(flags, &result, Some((slot, lane))),
            Op::RecvSwap => self.received(flags, &result, None),
            _ => Payload::None,
        };
        let payload = if more {
            received
        } else {
            let load = self.end(slot, lane);
            load_payload(load, &result).unwrap_or(received)
        };
        let payload = match (op, &result) {
            (Op::Accept | Op::AcceptStream, &Ok(fd)) => {
                // SAFETY: the kernel made this descriptor for us, and says so once.
                Payload::Socket(unsafe { OwnedFd::from_raw_fd(fd as i32) })
            }
            _ => payload,
        };
        sink.complete(Completion {
            slot,
            lane,
            more,
            result: match op {
                Op::Accept | Op::AcceptStream | Op::Connect | Op::Ready => result.map(|_| 0),
                _ => result,
            },
            payload,
        });
    }

    /// The lease of what a receive put into a lent buffer.
    #[inline]
    fn received(
        &mut self,
        flags: u32,
        result: &Result<usize, Errno>,
        stream: Option<(u32, Lane)>,
    ) -> Payload {
        let (Some(id), Ok(len)) = (cqueue::buffer_select(flags), result) else {
            return Payload::None;
        };
        let credit = stream.and_then(|(slot, lane)| self.lanes.credit(slot, lane));
        match self.buffers.take(id, *len, flags, credit) {
            Some(lease) => Payload::Buffer(lease.into()),
            None => Payload::None,
        }
    }

    /// The lane is idle again; what it carried comes back.
    #[inline]
    fn end(&mut self, slot: u32, lane: Lane) -> Load {
        let (load, cancelled) = self.lanes.end(slot, lane);
        self.cancelling -= usize::from(cancelled);
        load
    }
}

/// What goes back to the watcher of what an operation carried.
fn load_payload(load: Load, result: &Result<usize, Errno>) -> Option<Payload> {
    match load {
        Load::Write { buffer, .. } => Some(Payload::Buffer(buffer)),
        Load::Batch(batch) => Some(Payload::Batch(batch)),
        Load::Read { mut buffer, from } => {
            buffer.set_filled(from + result.as_ref().copied().unwrap_or(0));
            Some(Payload::Buffer(buffer))
        }
        Load::None | Load::Address { .. } | Load::Credit(_) => None,
    }
}

impl Backend for Uring {
    fn attach(
        &mut self,
        slot: u32,
        socket: OwnedFd,
        kind: SocketKind,
    ) -> Result<(), (Errno, OwnedFd)> {
        let mut was_blocking = false;
        if kind == SocketKind::Other {
            self.counts.others += 1;
            match sys::set_nonblocking(socket.as_fd(), true) {
                Ok(was_on) => was_blocking = !was_on,
                Err(errno) => return Err((errno, socket)),
            }
        }
        self.lanes.attach(slot, socket, kind, was_blocking);
        Ok(())
    }

    fn detach(&mut self, slot: u32) -> Option<OwnedFd> {
        let (socket, was_blocking) = self.lanes.detach(slot)?;
        if was_blocking {
            self.counts.others += 1;
            // If it fails the socket merely stays non-blocking.
            let _ = sys::set_nonblocking(socket.as_fd(), false);
        }
        Some(socket)
    }

    fn socket(&self, slot: u32) -> Option<BorrowedFd<'_>> {
        self.lanes.socket(slot)
    }

    #[inline]
    fn room(&self) -> usize {
        let queue = self.submission();
        let free = queue.capacity() - queue.len();
        free.saturating_sub(OWN_ENTRIES + self.deferred.len())
    }

    #[inline]
    fn start(&mut self, slot: u32, lane: Lane, request: Request) {
        let Some(fd) = self.lanes.socket(slot).map(|fd| Fd(fd.as_raw_fd())) else {
            return;
        };
        if self.lanes.is_other(slot) && !matches!(request, Request::Ready(_)) {
            return self.start_polled(slot, lane, request);
        }
        let entry = match self.prepare(slot, lane, fd, request) {
            Ok(entry) => entry,
            Err(errno) => return self.refuse(slot, lane, errno),
        };
        // SAFETY: buffers, header and address lie in the load, on the heap; the table of lanes
        // keeps the load until the last completion, the teardown likewise or keeps it. Lent swap
        // buffers are kept by the buffer ring in the same way.
        unsafe { self.push(entry.user_data(lanes::encode(slot, lane))) };
    }

    /// What was started in this turn has its try before: the ring keeps the order.
    fn cancel(&mut self, slot: u32, lane: Lane, _last_try: bool) {
        if !self.lanes.mark_cancelled(slot, lane) {
            return;
        }
        self.cancelling += 1;
        if self.forget_dry(slot, lane) {
            return;
        }
        let entry = opcode::AsyncCancel::new(lanes::encode(slot, lane))
            .build()
            .flags(squeue::Flags::SKIP_SUCCESS)
            .user_data(IGNORED);
        // SAFETY: a cancellation names no memory.
        unsafe { self.push(entry) };
    }

    fn shutdown(&mut self, slot: u32, how: Shutdown) -> Result<(), Errno> {
        self.counts.others += 1;
        let socket = self.lanes.socket(slot).ok_or(Errno(libc::EBADF))?;
        sys::shutdown(socket, how)
    }

    fn bind(&mut self) -> Result<(), Errno> {
        self.submitter.register_enable_rings()?;
        self.bound = true;
        // An optimisation that old kernels lack; and tables of registered rings can be full.
        let _ = self.submitter.register_ring_fd();
        Ok(())
    }

    fn wait(&mut self, until: Until, sink: &mut impl Sink) -> Result<bool, Errno> {
        if self.nest.get().is_none() {
            return self.round(until, sink);
        }
        let mut sink = Counting::new(sink);
        let again = self.round(Until::Now, &mut sink)?;
        if sink.count > 0 || again || until == Until::Now {
            return Ok(again);
        }
        // `until` bounds this sleep; a timer that has fired would end it at once.
        self.timer.arm(None);
        self.counts.waits += 1;
        sys::wait_readable(self.readiness(), until)?;
        self.round(Until::Now, &mut sink)
    }
    fn readiness(&self) -> BorrowedFd<'_> {
        if self.nest.get().is_none()
            && let Ok(nest) = self.build_nest()
        {
            let _ = self.nest.set(nest);
        }
        match self.nest.get() {
            Some(nest) => nest.epoll.as_fd(),
            // SAFETY: the ring lives as long as `self`. Better than nothing: it can be polled
            // without blocking.
            None => unsafe { BorrowedFd::borrow_raw(self.ring.as_raw_fd()) },
        }
    }

    fn arm(&self, at: Option<Instant>) {
        self.timer.arm(at);
    }

    fn waker(&self) -> &Arc<Waker> {
        &self.waker
    }

    fn pool(&self) -> &Pool {
        &self.pool
    }

    fn pool_use(&self) -> PoolUse {
        self.pool.usage() + self.polled.pool_use()
    }

    fn swap_room_bytes(&mut self) -> usize {
        self.buffers.room_bytes() + self.pool.blocks_available() * self.pool.block_size()
    }

    fn counts(&self) -> &Counts {
        &self.counts
    }
}

impl Uring {
    /// Submits, waits, collects.
    fn round(&mut self, until: Until, sink: &mut impl Sink) -> Result<bool, Errno> {
        self.arm_wake();
        self.buffers.refill(&self.pool);
        self.retry_polled();
        self.push_deferred();
        let until = if self.deferred.is_empty() {
            until
        } else {
            Until::Now
        };
        self.enter(until)?;
        self.reap(sink);
        if let Some(nest) = self.nest.get() {
            self.counts.others += sys::clear_event(nest.event.as_fd());
            if !self.wake_armed {
                self.counts.others += sys::clear_event(self.waker.event());
            }
        }
        let queue = self.submission();
        Ok(!self.completion().is_empty()
            || !queue.is_empty()
            || queue.taskrun()
            || queue.cq_overflow()
            || !self.deferred.is_empty()
            || !self.immediate.is_empty())
    }

    fn refuse(&mut self, slot: u32, lane: Lane, errno: Errno) {
        self.immediate.push_back(Completion {
            slot,
            lane,
            more: false,
            result: Err(errno),
            payload: Payload::None,
        });
    }

    fn build_nest(&self) -> Result<Nest, Errno> {
        let epoll = sys::epoll_create()?;
        let event = sys::eventfd()?;
        sys::epoll_add(epoll.as_fd(), event.as_fd(), libc::EPOLLIN, 0)?;
        sys::epoll_add(epoll.as_fd(), self.waker.event(), libc::EPOLLIN, 0)?;
        sys::epoll_add(epoll.as_fd(), self.timer.descriptor()?, libc::EPOLLIN, 0)?;
        self.submitter.register_eventfd(event.as_raw_fd())?;
        // What completed before the registration makes no event of its own.
        let queue = self.submission();
        if !self.completion().is_empty() || queue.taskrun() || queue.cq_overflow() {
            sys::signal_event(event.as_fd());
        }
        Ok(Nest { epoll, event })
    }
}

impl std::fmt::Debug for Uring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Uring")
            .field("lanes", &self.lanes)
            .field("counts", &self.counts)
            .finish_non_exhaustive()
    }
}
