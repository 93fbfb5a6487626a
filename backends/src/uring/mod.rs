//! The native backend: the kernel does the reads and writes and says when they are done.
//!
//! One `io_uring_enter(2)` a turn submits everything that was started, waits, and collects (`enter`).
//! `setup` gets the ring, with the `features` of the kernel and, if asked for, under
//! `restrictions`; `entries` tells it what to do, `connections` accepts and connects where that must not
//! wait in the kernel, `buffer_ring` lends it swap buffers,
//! `in_flight` remembers what runs, `private` reads when all swap buffers are out, `waiting` finds out
//! when a descriptor is ready, `polled` does the reads and writes that need that, `reap` says what a
//! completion means, `nesting` makes the ring something to poll, `teardown` ends it all without the
//! kernel writing into freed memory. This file starts operations and hands out what comes of them.

mod buffer_ring;
mod connections;
mod enter;
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
mod waiting;

use std::collections::VecDeque;
use std::mem::ManuallyDrop;
use std::net::Shutdown;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Instant;

use io_uring::types::Fd;
use io_uring::{CompletionQueue, IoUring, SubmissionQueue, opcode, squeue};

use self::buffer_ring::BufferRing;
use self::features::Features;
use self::in_flight::{InFlight, Op};
use self::nesting::Nest;
use self::polled::Polled;
use self::private::PrivateReads;
use self::waiting::Misled;
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

/// `user_data` of entries that belong to no place. Places have 32 bits.
const IGNORED: u64 = u64::MAX;
const WOKEN: u64 = u64::MAX - 1;
const WAITED: u64 = u64::MAX - 2;

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
    misled: Misled,
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
        // Nothing of ours is meant to need a thread of the kernel's; what does all the same gets one for
        // all. It is no reason to decline the ring.
        let _ = ring.submitter().register_iowq_max_workers(&mut [1, 1]);
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
            misled: Misled::new().map_err(failed("epoll_create"))?,
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
        if socket.is_other || socket.is_full {
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
        let waits = match request {
            Request::Connect if self.loads.is_to_unix(at) => return self.connect_unix(at),
            // The watcher starts a stream again, as after any success.
            Request::Accept => return self.start_accept(at),
            Request::AcceptStream if !self.features.multishot => return self.start_accept(at),
            Request::Ready(_) => false,
            Request::Write | Request::WriteMany => socket.is_other || socket.is_full,
            _ => socket.is_other,
        };
        if waits {
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
        if self.forget_misled(at) {
            return;
        }
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
        while let Some(at) = self.misled.next_woken() {
            let completion = self.reap_woken(at);
            if completion.is_some() {
                return completion;
            }
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
            && let Some(at) = self.misled.next_woken()
        {
            left -= usize::from(self.hand_out_woken(at, sink));
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

impl std::fmt::Debug for Uring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Uring")
            .field("in_flight", &self.in_flight)
            .field("counts", &self.counts)
            .finish_non_exhaustive()
    }
}
