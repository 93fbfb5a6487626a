//! The native backend: the kernel does the reads and writes, and reports when they are done.
//!
//! One `io_uring_enter(2)` a turn submits all started operations, waits, and collects. This file
//! starts operations and hands out their completions. The other files:
//!
//! - `setup.rs` builds the ring, with the features of the kernel (`features.rs`) and, if asked for,
//!   under restrictions (`restrictions.rs`);
//! - `enter.rs` makes the system call;
//! - `entries.rs` turns requests into submission entries, `reap.rs` turns completion entries into
//!   completions, and `in_flight.rs` keeps the operations between the two;
//! - `buffer_ring.rs` lends swap buffers to the kernel, and `private.rs` reads when all swap
//!   buffers are out;
//! - `connections.rs` accepts and connects where that must not wait in the kernel;
//! - `waiting.rs` waits until a descriptor is ready, and `polled.rs` does the reads and writes that
//!   need such a wait;
//! - `nesting.rs` makes the ring a descriptor to poll;
//! - `teardown.rs` ends it all, so that the kernel does not write into freed memory.

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
use self::in_flight::{InFlight, RingOp, Socket};
use self::nesting::Nest;
use self::polled::Polled;
use self::private::PrivateReads;
use self::waiting::Misled;
use crate::error::Errno;
use crate::error::SetupError;
use crate::swap::Pool;
use crate::sys;
use crate::wake::Waker;
use crate::{
    Backend, Completion, Counts, LaneId, OpTable, OpTableView, Options, Request, SocketKind,
    SwapRoom, Until,
};

/// The only group of provided buffers.
const BUFFER_GROUP: u16 = 0;
/// The greatest number of blocks lent to the kernel at a time. It is small, so that the blocks stay
/// warm, and so that a stream takes little more than its window; measured.
const LENT_MAX: usize = 16;
/// The entries of the submission queue that are kept for the backend itself.
const OWN_ENTRIES: usize = 2;

/// `user_data` of entries that belong to no lane. Lanes have 32 bits.
const IGNORED: u64 = u64::MAX;
const WOKEN: u64 = u64::MAX - 1;
const WAITED: u64 = u64::MAX - 2;

/// The backend over io_uring.
pub(crate) struct Uring {
    /// Leaked when built, so that the queues can refer to it. The teardown frees it.
    ring: &'static IoUring,
    /// The only handles of the two queues. They are never dropped, because that would write to the
    /// ring.
    submission: ManuallyDrop<SubmissionQueue<'static>>,
    completion: ManuallyDrop<CompletionQueue<'static>>,
    buffers: ManuallyDrop<BufferRing>,
    pool: Pool,
    private: ManuallyDrop<PrivateReads>,
    polled: Polled,
    misled: Misled,
    in_flight: InFlight,
    op_table: ManuallyDrop<OpTable>,
    /// Completions of operations that ended without the ring, which knew nothing of them when they
    /// were cancelled.
    ended: VecDeque<Completion>,
    /// Entries that found the submission queue full.
    deferred: VecDeque<squeue::Entry>,
    /// The number of operations that were cancelled and still run.
    cancelling: usize,
    /// Whether the last enter left deferred completions behind.
    left_behind: bool,
    waker: Arc<Waker>,
    /// The memory for the waker's count, which the kernel writes.
    wake_count: Box<u64>,
    wake_armed: bool,
    features: Features,
    bound: bool,
    nest: Option<Nest>,
    /// Tells when the closed ring is gone.
    exit: ManuallyDrop<teardown::ExitPipe>,
    counts: Counts,
}

// SAFETY: the queues have pointers into the ring's mapping, which belongs to this value alone. The
// kernel binds the ring to a thread only in `bind`. If another thread enters, the kernel refuses,
// and does not misbehave.
unsafe impl Send for Uring {}

impl Uring {
    /// Builds the backend and proves that it works.
    ///
    /// # Errors
    /// The step that failed, and the system's error.
    pub(crate) fn new(options: &Options) -> Result<(Self, Vec<&'static str>), SetupError> {
        let failed = |step| move |errno: Errno| setup::setup_error(step, &errno.into());
        let features = setup::prove()?;
        let ring = setup::build(features, options.queue_depth as u32)?;
        let exit = teardown::ExitPipe::register(&ring).map_err(failed("io_uring_register"))?;
        // The other blocks are left to descriptors that are not sockets.
        let lent = (options.swap_buffers * 3 / 4).clamp(1, LENT_MAX) as u16;
        let buffers = BufferRing::register(&ring.submitter(), lent, features.incremental)
            .map_err(|error| setup::setup_error("registering a buffer ring", &error))?;
        // No operation here is meant to need a thread of the kernel's. Should one need it all the
        // same, there is one thread for all of them. A refusal is no reason to decline the ring.
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
            op_table: ManuallyDrop::default(),
            ended: VecDeque::new(),
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
    /// All memory that the entry names lives until its last completion.
    #[inline]
    unsafe fn push(&mut self, entry: squeue::Entry) {
        // Behind deferred entries, so that the order is kept.
        // SAFETY: as the caller says.
        if !self.deferred.is_empty() || unsafe { self.submission.push(&entry) }.is_err() {
            self.defer(entry);
        }
    }

    #[cold]
    fn defer(&mut self, entry: squeue::Entry) {
        self.deferred.push_back(entry);
    }

    /// Records an operation and queues its entry.
    ///
    /// # Safety
    /// All memory that the entry names belongs to the lane's entry in the table of operation data.
    /// It stays until the last completion: the teardown waits for that, or else keeps the table.
    /// Lent swap buffers are kept by the buffer ring in the same way.
    #[inline]
    unsafe fn launch(&mut self, at: LaneId, op: RingOp, entry: squeue::Entry) {
        if self.in_flight.begin(at, op) {
            // A swap read uses no operation data.
            if op != RingOp::RecvSwap {
                self.op_table.begin(at);
            }
            // SAFETY: as the caller says; the operation data, if there is any, is busy now.
            unsafe { self.push(entry.user_data(u64::from(at.number()))) };
        }
    }

    /// Starts any operation that is neither a swap read nor a write to a socket with room.
    fn start_other(&mut self, at: LaneId, socket: Socket, request: Request) -> Option<Completion> {
        let waits = match request {
            Request::Connect if self.op_table.is_to_unix(at) => return Some(self.connect_unix(at)),
            // Where the stream cannot go on by itself, the watcher starts it again, as after any
            // success.
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
            Ok((entry, op)) => {
                // SAFETY: buffer, batch and address belong to the lane's operation data. Beside
                // them, entries name lent buffers only.
                unsafe { self.launch(at, op, entry) };
                None
            }
            Err(errno) => Some(Completion::last(at, Err(errno))),
        }
    }

    /// Whether nothing is lent, so that a read has to wait for its data before it asks for a
    /// buffer. Reads that begin after the next refill would overtake a read that waits so. That is
    /// why the refill is tried first.
    #[inline]
    fn lacks_buffers(&mut self) -> bool {
        if self.buffers.is_empty() {
            self.buffers.refill(&self.pool);
        }
        self.buffers.is_empty()
    }

    /// Moves deferred entries into the submission queue, in order. Nothing else is pushed before
    /// them.
    #[cold]
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

impl crate::sealed::Backend for Uring {}

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
    fn op_table(&mut self) -> OpTableView<'_> {
        self.op_table.view()
    }

    fn unwritten(&self, at: LaneId) -> usize {
        self.op_table.unwritten_len(at)
    }

    #[inline]
    fn start(&mut self, at: LaneId, request: Request) -> Option<Completion> {
        let socket = self.in_flight.get(at.slot());
        debug_assert!(socket.is_some(), "{at:?} was never attached");
        let &socket = socket?;
        match request {
            Request::ReadSwap if !socket.is_other => {
                let polls_first = self.lacks_buffers() || socket.is_bulky;
                let entry = entries::receive(Fd(socket.fd), polls_first);
                // SAFETY: the entry names no memory but lent buffers.
                unsafe { self.launch(at, RingOp::RecvSwap, entry) };
                None
            }
            Request::Write if !socket.is_other && !socket.is_full => {
                let entry = entries::send(Fd(socket.fd), self.op_table.unwritten(at));
                // SAFETY: the bytes belong to the lane's operation data.
                unsafe { self.launch(at, RingOp::Transfer, entry) };
                None
            }
            _ => self.start_other(at, socket, request),
        }
    }

    /// A last try needs no care: the ring keeps the order, so an operation that was started in this
    /// turn is attempted before its cancellation.
    fn cancel(&mut self, at: LaneId, _last_try: bool) {
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

    #[inline]
    fn next(&mut self) -> Option<Completion> {
        if self.has_ended_here()
            && let Some(completion) = self.next_ended_here()
        {
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
