//! The native backend: the kernel does the reads and writes and says when they are done.
//!
//! One `io_uring_enter(2)` a turn submits everything that was started, waits, and collects.
//! `setup` gets the ring, with the `features` of the kernel and, if asked for, under
//! `restrictions`; `entries` tells it what to do, `buffer_ring` lends it swap buffers,
//! `in_flight` remembers what runs, `private` reads when all swap buffers are out, `polled` does reads
//! and writes for descriptors that are not sockets, `reap` says what a completion means, `nesting` makes the ring something to poll, `teardown`
//! ends it all without the kernel writing into freed memory. This file submits and waits.

mod buffer_ring;
mod entries;
mod features;
mod in_flight;
mod nesting;
mod polled;
mod private;
mod reap;
mod restrictions;
mod setup;
mod teardown;

use std::collections::VecDeque;
use std::mem::ManuallyDrop;
use std::net::Shutdown;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Instant;

use io_uring::types::{Fd, SubmitArgs, Timespec};
use io_uring::{CompletionQueue, IoUring, SubmissionQueue, opcode, squeue};

use self::buffer_ring::BufferRing;
use self::features::Features;
use self::in_flight::{InFlight, Op};
use self::nesting::Nest;
use self::polled::Polled;
use self::private::PrivateReads;
use crate::error::Errno;
use crate::error::Refusal;
use crate::swap::Pool;
use crate::sys;
use crate::wake::Waker;
use crate::{
    Backend, Buffer, Completion, Counts, LoadTable, Loads, Options, Payload, Place, Request, Sink,
    SocketKind, SwapRoom, Until,
};

/// The one group of provided buffers.
const BUFFER_GROUP: u16 = 0;
/// The most blocks lent to the kernel at a time: few, so that they stay warm, and so that a stream
/// takes little more than its window; measured.
const LENT_MAX: usize = 16;
/// Places in the submission queue that are kept for the backend's own entries.
const OWN_ENTRIES: usize = 2;
/// From this many cancellations on, a turn asks the kernel to run them all: it runs only some
/// twenty deferred completions a call otherwise, unless as many are asked for.
const MANY_CANCELS: usize = 16;

/// `user_data` of entries that belong to no place. Places have 32 bits.
const IGNORED: u64 = u64::MAX;
const WOKEN: u64 = u64::MAX - 1;

/// The backend over io_uring.
pub struct Uring {
    /// Leaked when built, so that the queues can hold on to it; freed by the teardown.
    ring: &'static IoUring,
    /// The only handles of the two queues. Never dropped: that would write to the ring.
    submission: ManuallyDrop<SubmissionQueue<'static>>,
    completion: ManuallyDrop<CompletionQueue<'static>>,
    buffers: ManuallyDrop<BufferRing>,
    pool: Pool,
    private: ManuallyDrop<PrivateReads>,
    polled: Polled,
    in_flight: InFlight,
    loads: ManuallyDrop<LoadTable>,
    /// Completions that need no kernel.
    immediate: VecDeque<Completion>,
    /// What the last completion brought.
    brought: Payload,
    /// How many entries of the submission queue are for the watcher's operations.
    starts_max: usize,
    /// Entries that found the submission queue full.
    deferred: VecDeque<squeue::Entry>,
    /// Operations that were cancelled and still run.
    cancelling: usize,
    /// The last enter left deferred completions behind.
    left_behind: bool,
    waker: Arc<Waker>,
    /// Where the kernel puts the waker's count.
    wake_count: Box<u64>,
    wake_armed: bool,
    features: Features,
    bound: bool,
    nest: Option<Nest>,
    /// Tells when the closed ring is gone.
    exit: ManuallyDrop<teardown::ExitPipe>,
    counts: Counts,
}

// SAFETY: the queues have pointers into the ring's mapping, which belongs to this value alone;
// the kernel binds the ring to a thread only in `bind`, and refuses (it does not misbehave) when
// another one enters.
unsafe impl Send for Uring {}

impl Uring {
    /// Builds the backend and proves that it works.
    ///
    /// # Errors
    /// The step that failed, and how.
    pub fn new(options: &Options) -> Result<(Self, Vec<&'static str>), Refusal> {
        let failed = |step| move |errno: Errno| setup::refusal(step, &errno.into());
        let features = setup::prove()?;
        let ring = setup::build(features, options.queue_depth as u32)?;
        let exit = teardown::ExitPipe::register(&ring).map_err(failed("io_uring_register"))?;
        // Some are left to descriptors that are not sockets.
        let lent = (options.swap_buffers * 3 / 4).clamp(1, LENT_MAX) as u16;
        let buffers = BufferRing::register(&ring.submitter(), lent, features.incremental)
            .map_err(|error| setup::refusal("registering a buffer ring", &error))?;
        if options.restricted {
            restrictions::restrict(&ring)?;
        }
        let waker = Arc::new(Waker::new().map_err(failed("eventfd"))?);
        let pool = options.pool(&waker);
        let ring: &'static IoUring = Box::leak(Box::new(ring));
        // SAFETY: these are the only handles of this ring's queues, and stay so.
        let (submission, completion) =
            unsafe { (ring.submission_shared(), ring.completion_shared()) };
        let uring = Uring {
            ring,
            submission: ManuallyDrop::new(submission),
            completion: ManuallyDrop::new(completion),
            buffers: ManuallyDrop::new(buffers),
            pool,
            private: ManuallyDrop::default(),
            polled: Polled::default(),
            in_flight: InFlight::default(),
            loads: ManuallyDrop::default(),
            immediate: VecDeque::new(),
            brought: Payload::None,
            starts_max: ring.params().sq_entries() as usize - OWN_ENTRIES,
            deferred: VecDeque::new(),
            cancelling: 0,
            left_behind: false,
            waker,
            wake_count: Box::new(0),
            wake_armed: false,
            features,
            bound: false,
            nest: None,
            exit: ManuallyDrop::new(exit),
            counts: Counts::default(),
        };
        let mut words = features.words();
        if options.restricted {
            words.push("restricted");
        }
        if uring.ring.params().sq_entries() < options.queue_depth as u32 {
            words.push("smaller queue, for want of memory to lock");
        }
        Ok((uring, words))
    }

    /// Shows the kernel what was queued and what was taken; looks at what it did.
    #[inline]
    fn sync(&mut self) {
        self.submission.sync();
        self.completion.sync();
    }

    /// Queues an entry for the next enter.
    ///
    /// # Safety
    /// Whatever memory the entry names lives until its last completion.
    #[inline(always)]
    unsafe fn push(&mut self, entry: squeue::Entry) {
        // SAFETY: as the caller says.
        if !self.deferred.is_empty() || unsafe { self.submission.push(&entry) }.is_err() {
            self.defer(entry);
        }
    }

    #[cold]
    fn defer(&mut self, entry: squeue::Entry) {
        self.deferred.push_back(entry);
    }

    /// Records an operation and queues its entry. Nothing is done if the lane is not idle.
    ///
    /// # Safety
    /// Whatever memory the entry names lies in the place's load: it stays until the last completion,
    /// for which the teardown waits, or else keeps the table. Lent swap buffers are kept by the
    /// buffer ring in the same way.
    #[inline(always)]
    unsafe fn launch(&mut self, at: Place, op: Op, entry: squeue::Entry) {
        let socket = self.in_flight.get_mut(at.slot());
        if socket.is_some_and(|socket| socket.begin(at.lane(), op)) {
            // A swap read uses no load.
            if op != Op::RecvSwap {
                self.loads.begin(at);
            }
            // SAFETY: as the caller says; the load, if there is one, is busy now.
            unsafe { self.push(entry.user_data(u64::from(at.number()))) };
        }
    }

    /// A swap read, in the fewest steps.
    #[inline(always)]
    fn start_receive(&mut self, at: Place) {
        let Some(socket) = self.in_flight.get_mut(at.slot()) else {
            return;
        };
        if socket.is_other {
            return self.start_polled(at, Request::ReadSwap);
        }
        // Without a buffer, the kernel would not wait for data.
        let poll_first = socket.is_bulky || self.buffers.is_empty();
        let entry = entries::receive(Fd(socket.fd), poll_first);
        if socket.begin(at.lane(), Op::RecvSwap) {
            // SAFETY: it names no memory but lent buffers.
            unsafe { self.push(entry.user_data(u64::from(at.number()))) };
        }
    }

    /// A single write, likewise.
    #[inline(always)]
    fn start_send(&mut self, at: Place) {
        let Some(socket) = self.in_flight.get_mut(at.slot()) else {
            return;
        };
        if socket.is_other {
            return self.start_polled(at, Request::Write);
        }
        let fd = Fd(socket.fd);
        if socket.begin(at.lane(), Op::Transfer) {
            let entry = entries::send(fd, self.loads.begin_write(at));
            // SAFETY: the bytes lie in the load, which is busy now.
            unsafe { self.push(entry.user_data(u64::from(at.number()))) };
        }
    }

    /// Any operation.
    fn start_any(&mut self, at: Place, request: Request) {
        let Some(&socket) = self.in_flight.get(at.slot()) else {
            return;
        };
        if socket.is_other && !matches!(request, Request::Ready(_)) {
            return self.start_polled(at, request);
        }
        if request == Request::ReadPrivate {
            return self.start_private(at, Fd(socket.fd));
        }
        match self.entry(at, Fd(socket.fd), request) {
            // SAFETY: buffer, address and account lie in the load.
            Ok((entry, op)) => unsafe { self.launch(at, op, entry) },
            Err(errno) => self.immediate.push_back(Completion::last(at, Err(errno))),
        }
    }

    /// Moves what found the queue full into it. Order is kept: nothing else is pushed before.
    fn push_deferred(&mut self) {
        while let Some(entry) = self.deferred.front() {
            // SAFETY: as when it was deferred: its memory lives until its last completion.
            if unsafe { self.submission.push(entry) }.is_err() {
                break;
            }
            self.deferred.pop_front();
        }
    }

    /// Lets a wake-up end the sleep in the ring. Nested, the sleep is elsewhere.
    fn arm_wake(&mut self) {
        if self.nest.is_some() {
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
        self.sync();
        let sleeps = until != Until::Now && !self.has_ready();
        if !sleeps && !self.owes_work() {
            return Ok(());
        }
        self.counts.waits += 1;
        let most = self.ring.params().cq_entries() as usize;
        let result = if self.cancelling >= MANY_CANCELS {
            let all = self.completion.len() + self.cancelling;
            self.enter_for(Timespec::new(), all.min(most))
        } else if !sleeps && self.left_behind && !self.has_ready() {
            self.enter_for(Timespec::new(), most)
        } else if !sleeps {
            self.ring.submitter().submit_and_wait(0)
        } else if let Until::Time(at) = until {
            let left = at.saturating_duration_since(Instant::now());
            self.enter_for(Timespec::from(left), 1)
        } else {
            self.ring.submitter().submit_and_wait(1)
        };
        self.sync();
        self.left_behind = self.submission.taskrun();
        match result.map_err(Errno::from) {
            Ok(_) => Ok(()),
            // Timed out, interrupted, or completions have to be reaped first: all in order.
            Err(Errno(libc::ETIME | libc::EINTR | libc::EBUSY | libc::EAGAIN)) => Ok(()),
            Err(errno) => Err(errno),
        }
    }

    fn enter_for(&self, timeout: Timespec, want: usize) -> std::io::Result<usize> {
        let args = SubmitArgs::new().timespec(&timeout);
        self.ring.submitter().submit_with_args(want, &args)
    }

    /// Completions that were not given out yet.
    #[inline]
    fn has_ready(&self) -> bool {
        !self.completion.is_empty() || !self.immediate.is_empty()
    }

    /// Whether the kernel would do something if it were entered.
    #[inline]
    fn owes_work(&self) -> bool {
        let queue = &self.submission;
        !queue.is_empty() || queue.taskrun() || queue.cq_overflow()
    }
}

impl Backend for Uring {
    fn attach(
        &mut self,
        slot: u32,
        socket: OwnedFd,
        kind: SocketKind,
    ) -> Result<(), (Errno, OwnedFd)> {
        self.in_flight.attach(slot, socket, kind);
        Ok(())
    }

    fn detach(&mut self, slot: u32) -> Option<OwnedFd> {
        self.in_flight.detach(slot, &mut self.counts)
    }

    fn socket(&self, slot: u32) -> Option<BorrowedFd<'_>> {
        self.in_flight.socket(slot)
    }

    #[inline]
    fn room(&self) -> usize {
        let free = self.submission.capacity() - self.submission.len();
        free.saturating_sub(OWN_ENTRIES + self.deferred.len())
    }

    #[inline]
    fn loads(&mut self) -> Loads<'_> {
        self.loads.as_loads()
    }

    fn start(&mut self, at: Place, request: Request) {
        self.start_any(at, request);
    }

    #[inline(always)]
    fn start_read_swap(&mut self, at: Place) -> bool {
        let has_room = self.submission.len() < self.starts_max && self.deferred.is_empty();
        if has_room {
            self.start_receive(at);
        }
        has_room
    }

    #[inline(always)]
    fn start_write(&mut self, at: Place) -> Option<(Buffer, usize)> {
        self.start_send(at);
        None
    }

    /// What was started in this turn has its try before: the ring keeps the order.
    fn cancel(&mut self, at: Place, _last_try: bool) {
        if !self.in_flight.mark_cancelled(at) {
            return;
        }
        self.cancelling += 1;
        let entry = opcode::AsyncCancel::new(u64::from(at.number()))
            .build()
            .flags(squeue::Flags::SKIP_SUCCESS)
            .user_data(IGNORED);
        // SAFETY: a cancellation names no memory.
        unsafe { self.push(entry) };
    }

    fn shutdown(&mut self, slot: u32, how: Shutdown) -> Result<(), Errno> {
        self.counts.others += 1;
        let socket = self.in_flight.socket(slot).ok_or(Errno(libc::EBADF))?;
        sys::shutdown(socket, how)
    }

    fn bind(&mut self) -> Result<(), Errno> {
        self.counts.others += 1;
        self.ring.submitter().register_enable_rings()?;
        self.bound = true;
        Ok(())
    }

    fn wait(&mut self, until: Until) -> Result<(), Errno> {
        if self.nest.is_none() {
            return self.round(until);
        }
        self.wait_nested(until)
    }

    fn next(&mut self) -> Option<Completion> {
        if let Some(completion) = self.immediate.pop_front() {
            return Some(completion);
        }
        while let Some(entry) = self.completion.next() {
            let completion = self.reap(entry.user_data(), entry.result(), entry.flags());
            if completion.is_some() {
                return completion;
            }
        }
        None
    }

    #[inline]
    fn collect(&mut self, most: usize, sink: &mut impl Sink<Self>) {
        let mut left = most;
        while left > 0
            && let Some(completion) = self.immediate.pop_front()
        {
            left -= 1;
            sink.completed(self, completion, Payload::None);
        }
        while left > 0
            && let Some(entry) = self.completion.next()
        {
            left -= usize::from(self.hand_out(entry, sink));
        }
    }

    #[inline(always)]
    fn payload(&mut self) -> Payload {
        self.brought.take()
    }

    fn has_work(&mut self) -> bool {
        self.sync();
        self.has_ready() || self.owes_work() || !self.deferred.is_empty()
    }

    fn readiness(&mut self) -> Result<OwnedFd, Errno> {
        self.nest()
    }

    fn arm(&mut self, at: Option<Instant>) {
        if let Some(nest) = &self.nest {
            nest.arm(at);
        }
    }

    fn waker(&self) -> &Arc<Waker> {
        &self.waker
    }

    fn pool(&self) -> &Pool {
        &self.pool
    }

    fn swap_room(&mut self) -> SwapRoom {
        let available = self.pool.blocks_available();
        self.buffers.room(available, self.pool.block_size())
    }

    fn counts(&self) -> &Counts {
        &self.counts
    }
}

impl Uring {
    /// Submits and waits.
    fn round(&mut self, until: Until) -> Result<(), Errno> {
        self.arm_wake();
        self.buffers.refill(&self.pool);
        self.push_deferred();
        let until = if self.deferred.is_empty() {
            until
        } else {
            Until::Now
        };
        self.enter(until)?;
        self.clear_nest();
        Ok(())
    }
}

impl std::fmt::Debug for Uring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Uring")
            .field("in_flight", &self.in_flight)
            .field("counts", &self.counts)
            .finish_non_exhaustive()
    }
}
