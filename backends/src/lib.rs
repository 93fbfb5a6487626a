//! The kernel side of [gaio](https://docs.rs/gaio): what a proactor needs from an operating
//! system, behind one trait, and the swap buffers that all backends share.
//!
//! This crate is the lower half of `gaio`; programs use the upper one. All unsafe code of the
//! project is here.
//!
//! # Adding a backend
//!
//! Implement [`Backend`] in a folder of its own, name its cfg in the workspace's `build.rs`, and
//! add a line in [`select`]. A system with a readiness poller (an event port, say) needs less: the
//! `Poller` trait of the [`emulated`] backend, one file.

#[cfg(not(any(gaio_uring, gaio_epoll, gaio_kqueue)))]
compile_error!("gaio has no backend for this target: it wants Linux, or a 64-bit BSD or macOS");

mod address;
mod batch;
pub mod buffer;
pub mod emulated;
mod error;
pub mod loads;
mod process;
mod quotes;
pub mod select;
#[cfg(feature = "sim")]
pub mod sim;
mod slots;
pub mod swap;
mod sys;
mod tray;
#[cfg(gaio_uring)]
pub mod uring;
mod wake;

use std::fmt;
use std::net::Shutdown;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Instant;

pub use address::Address;
pub use buffer::Buffer;
pub use error::{Doing, Errno, Error, ErrorKind, Refusal, Result};
pub(crate) use loads::LoadTable;
pub use loads::{Load, Loads};
pub use process::Process;
pub use select::{BackendInfo, BackendKind, Choice, Declined, Selected, Task};
pub use slots::{is_overgrown, reserve_gently, shrink_overgrown};
pub use swap::{Credit, Pool, PoolUse, SwapBuf, Threshold, Thresholds};
pub use sys::{classify, peer_addr, pin_thread, stream_socket};
pub use tray::Tray;
pub use wake::{Bell, Waker};

/// The contract between the watcher, which knows the user, and a backend, which knows the kernel.
///
/// # What a backend may assume
/// - A slot is a small number chosen by the watcher. It is attached once, detached once, and not
///   attached again before the next [`wait`](Backend::wait).
/// - A slot has two lanes. Each has at most one operation at a time: nothing is started on a lane
///   before the last completion of what ran there was given out.
/// - What an operation carries lies in [`loads`](Backend::loads), under its place, before it is
///   started.
/// - Lanes are cancelled only while they run, slots detached only while both lanes are idle.
/// - Before each `wait` at most [`room`](Backend::room) operations are started.
/// - All calls after [`bind`](Backend::bind) come from the thread that called it; only the drop
///   may come from another.
///
/// Queues, order, deadlines, retries of short transfers, generations: all of that is the
/// watcher's. A backend has no queue policy.
///
/// # What a backend must give
/// - Every started operation ends with exactly one completion whose `more` is false, and only a
///   stream may have others before it.
/// - A stream may end at any time with a completion that is a success (and not a read's 0 bytes):
///   that only says that it has to be started again.
/// - A cancelled operation ends soon: with what it had done, or `ECANCELED` if that was nothing.
///   Nothing is lost: received bytes are in the completion or still in the socket.
/// - What the kernel uses (buffers, addresses, message headers) is in the backend's table of
///   loads, and marked as busy there, until the last completion of the operation; also when the
///   backend is dropped.
/// - Reads of a swap buffer that find none end with `ENOBUFS` and consume nothing. There was data, or
///   the end, unless buffers ran out just now.
/// - A private read ends with `EAGAIN` if there is nothing to read: it never waits, so that it holds no
///   memory for long.
/// - Transfers may be short but not empty, except that a read of 0 bytes means the end.
/// - No call blocks but `wait`, nothing raises a signal, descriptors are close-on-exec.
pub trait Backend {
    /// Takes a socket into `slot`.
    ///
    /// # Errors
    /// The system's refusal, together with the socket.
    fn attach(
        &mut self,
        slot: u32,
        socket: OwnedFd,
        kind: SocketKind,
    ) -> Result<(), (Errno, OwnedFd)>;

    /// Gives the socket back, in the blocking mode in which it came.
    fn detach(&mut self, slot: u32) -> Option<OwnedFd>;

    /// Gives the socket out to be closed. Others may have duplicates: the blocking mode of a socket
    /// stays, that of a pipe or a terminal is again as it came. The drop does the same.
    fn release(&mut self, slot: u32) -> Option<OwnedFd> {
        self.detach(slot)
    }

    /// The socket in `slot`.
    fn socket(&self, slot: u32) -> Option<BorrowedFd<'_>>;

    /// How many more operations can be started before the next [`wait`](Backend::wait).
    fn room(&self) -> usize;

    /// What the lanes' operations carry.
    fn loads(&mut self) -> Loads<'_>;

    /// Starts an operation on an idle lane. A backend may do its work right here, if that does not
    /// block. Success and failure come as its completion.
    fn start(&mut self, at: Place, request: Request);

    /// Starts a swap read if there is room for it. False if there is none.
    #[inline(always)]
    fn start_read_swap(&mut self, at: Place) -> bool {
        let has_room = self.room() > 0;
        if has_room {
            self.start(at, Request::ReadSwap);
        }
        has_room
    }

    /// Starts a write. If it could be done at once, whole, there is no completion of it: the buffer
    /// comes back from the load, and its length.
    #[inline(always)]
    fn start_write(&mut self, at: Place) -> Option<(Buffer, usize)> {
        self.start(at, Request::Write);
        None
    }

    /// Ends an operation early. With a last try it is attempted once more, or for the first time:
    /// what is possible at this moment is done.
    fn cancel(&mut self, at: Place, last_try: bool);

    /// `shutdown(2)`, at once.
    ///
    /// # Errors
    /// The system's refusal.
    fn shutdown(&mut self, slot: u32, how: Shutdown) -> Result<(), Errno>;

    /// Ties the backend to the calling thread; comes once, before the first `wait`.
    ///
    /// # Errors
    /// The system's refusal.
    fn bind(&mut self) -> Result<(), Errno>;

    /// Runs what was started, and sleeps if nothing is complete. A signal may end the sleep early.
    ///
    /// # Errors
    /// The system refuses the call that waits.
    fn wait(&mut self, until: Until) -> Result<(), Errno>;

    /// The next completion of the turn that the last [`wait`](Backend::wait) began. Whoever stops
    /// early finds the others after the next `wait`, which does not sleep then.
    fn next(&mut self) -> Option<Completion>;

    /// Gives out completions as [`next`](Backend::next) does, `most` of them, each with what it
    /// brought.
    #[inline]
    fn collect(&mut self, most: usize, sink: &mut impl Sink<Self>)
    where
        Self: Sized,
    {
        for _ in 0..most {
            let Some(completion) = self.next() else {
                return;
            };
            let payload = self.payload();
            sink.completed(self, completion, payload);
        }
    }

    /// What the last completion brought. To be taken before anything else is done: what nobody
    /// takes is dropped.
    fn payload(&mut self) -> Payload;

    /// At the end of a turn: whether there is more to do without sleeping.
    fn has_work(&mut self) -> bool;

    /// A duplicate of a descriptor that is readable when [`wait`](Backend::wait) would have something
    /// to hand out that was not there when [`has_work`](Backend::has_work) was last asked, when the
    /// [`waker`](Backend::waker) was woken from its sleep, or when the time last given to
    /// [`arm`](Backend::arm) has come. From the first success on, `wait` pays for keeping it exact.
    ///
    /// # Errors
    /// The system's refusal, such as `EMFILE`: then nothing has changed.
    fn readiness(&mut self) -> Result<OwnedFd, Errno>;

    /// Makes [`readiness`](Backend::readiness) readable at this time.
    fn arm(&mut self, at: Option<Instant>);

    /// The time by which deadlines are kept. Not the system's only where time is simulated.
    #[inline]
    fn now(&self) -> Instant {
        Instant::now()
    }

    /// Wakes `wait` from other threads.
    fn waker(&self) -> &Arc<Waker>;

    /// Where swap reads take their memory.
    fn pool(&self) -> &Pool;

    /// What swap reads could take now.
    fn swap_room(&mut self) -> SwapRoom;

    /// System calls made so far.
    fn counts(&self) -> &Counts;
}

/// Who takes completions. Those that are nearly all come by themselves, so that they need not be
/// told apart again.
pub trait Sink<B> {
    /// A swap read has ended.
    fn received(&mut self, backend: &mut B, at: Place, lease: SwapBuf);

    /// A stream of reads has brought these bytes, charged to its account, and goes on.
    fn streamed(&mut self, backend: &mut B, at: Place, lease: SwapBuf);

    /// A write has ended, and all its bytes were written. The buffer comes out of the load.
    fn wrote(&mut self, backend: &mut B, at: Place, buffer: Buffer, size: usize);

    /// Anything else.
    fn completed(&mut self, backend: &mut B, completion: Completion, payload: Payload);
}

impl Options {
    /// What tests of single backends need.
    #[cfg(test)]
    const SMALL: Options = Options {
        swap_buffer_size: 4096,
        swap_buffers: 4,
        queue_depth: 64,
        restricted: false,
    };

    /// The pool that these options ask for.
    fn pool(&self, waker: &Arc<Waker>) -> Pool {
        Pool::new(self.swap_buffer_size, self.swap_buffers, Arc::clone(waker))
    }
}

/// What a backend is built with.
#[derive(Clone, Debug)]
pub struct Options {
    /// Bytes in one swap buffer.
    pub swap_buffer_size: usize,
    /// The most swap buffers there may be.
    pub swap_buffers: usize,
    /// How many operations one turn can start.
    pub queue_depth: usize,
    /// Whether the kernel is told to refuse what this library does not use.
    pub restricted: bool,
}

/// A lane of a slot: where an operation runs, and what its completions are known by.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place(u32);

impl Place {
    /// The most slots that have places.
    pub const SLOTS_MAX: u32 = 1 << 30;

    /// A direction of a connection.
    #[inline(always)]
    pub const fn new(slot: u32, lane: Lane) -> Self {
        debug_assert!(slot < Place::SLOTS_MAX);
        Place(slot << 1 | lane as u32)
    }

    /// The connection.
    #[inline(always)]
    pub const fn slot(self) -> u32 {
        self.0 >> 1
    }

    /// The direction.
    #[inline(always)]
    pub const fn lane(self) -> Lane {
        if self.0 & 1 == 0 {
            Lane::Read
        } else {
            Lane::Write
        }
    }

    /// A small number that stands for it; under 2^31.
    #[inline(always)]
    pub const fn number(self) -> u32 {
        self.0
    }

    /// The place of a number.
    #[inline(always)]
    pub const fn from_number(number: u32) -> Self {
        Place(number)
    }
}

impl fmt::Debug for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} of slot {}", self.lane(), self.slot())
    }
}

/// One step of one operation. What it brings is handed out apart, by [`Backend::payload`]: most
/// bring nothing, and the rest of it fits into two registers.
#[derive(Clone, Copy, Debug)]
pub struct Completion {
    /// Where it ran.
    pub at: Place,
    /// Whether further completions of this operation follow.
    pub more: bool,
    /// Bytes transferred, or why it failed.
    pub result: Result<u32, Errno>,
}

const _: () = assert!(size_of::<Completion>() == 16);

/// What a completion brings that was not there before.
#[derive(Debug, Default)]
pub enum Payload {
    /// Nothing.
    #[default]
    None,
    /// Bytes in a swap buffer.
    Lease(SwapBuf),
    /// An accepted connection.
    Socket(OwnedFd),
}

/// The two directions of a socket. Accepting and readiness to read use `Read`; connecting and
/// readiness to write use `Write`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Lane {
    /// Bytes or connections coming in.
    Read = 0,
    /// Bytes or connections going out.
    Write = 1,
}

/// An operation to start. What it needs is in its place's load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// Read once into a swap buffer.
    ReadSwap,
    /// Read into swap buffers until the end, charged to the connection's account.
    ReadStream,
    /// The same for as little as the system takes in one step, because others wait for buffers.
    ReadStep,
    /// Read once, now or not at all, into a private buffer that is charged to the connection's account.
    ReadPrivate,
    /// Read once into the rest of a buffer.
    Read,
    /// Write the rest of a buffer.
    Write,
    /// Write the rest of a buffer and then several others, as one.
    WriteMany,
    /// Accept one connection.
    Accept,
    /// Accept until cancelled.
    AcceptStream,
    /// Connect to the address.
    Connect,
    /// Wait until the socket is ready, transfer nothing.
    Ready(Interest),
}

/// The most buffers of [`Request::WriteMany`].
pub const WRITES_MAX: usize = batch::Batch::LEN_MAX;

/// What [`Request::Ready`] waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Interest {
    /// A read would not block: data, the end, or an error.
    Readable,
    /// A write would not block, or would fail.
    Writable,
}

/// How a descriptor is read and written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SocketKind {
    /// A connected, or connectable, stream socket.
    Stream,
    /// A listening socket.
    Listener,
    /// Not a socket, but it can be waited for: a pipe, a terminal, an `eventfd`.
    Other,
}

/// How long [`Backend::wait`] may sleep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Until {
    /// Not at all.
    Now,
    /// To this time.
    Time(Instant),
    /// Until something is complete.
    Done,
}

/// What swap reads could take without another lease coming back, roughly.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SwapRoom {
    /// Bytes in swap buffers.
    pub bytes: usize,
    /// How many reads one turn can serve, however small they are.
    pub reads: usize,
}

/// System calls that a backend made, by kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Calls that wait: `io_uring_enter(2)`, `epoll_wait(2)`, `kevent(2)`.
    pub waits: u64,
    /// Calls that read, where reading is not done by the ring.
    pub reads: u64,
    /// Calls that write, likewise.
    pub writes: u64,
    /// Calls that accept or connect, likewise.
    pub accepts: u64,
    /// All others after the building: registrations, modes of descriptors, events.
    pub others: u64,
    /// No calls: how often completions found the queue full and were kept aside by the kernel.
    pub overflows: u64,
}

impl Counts {
    /// All of them.
    pub fn sum(&self) -> u64 {
        self.waits + self.reads + self.writes + self.accepts + self.others
    }

    /// Switches non-blocking mode on or off, and counts the calls; returns whether it was on.
    pub(crate) fn set_nonblocking(&mut self, fd: impl AsRawFd, on: bool) -> Result<bool, Errno> {
        self.others += 1;
        let was_on = sys::set_nonblocking(fd, on)?;
        self.others += u64::from(was_on != on);
        Ok(was_on)
    }
}

impl SwapRoom {
    /// Room that reads fill one behind the other, however many they are.
    pub(crate) fn packed(bytes: usize) -> Self {
        SwapRoom {
            bytes,
            reads: usize::MAX,
        }
    }
}

impl Completion {
    /// The last completion of an operation.
    #[inline]
    pub fn last(at: Place, result: Result<u32, Errno>) -> Self {
        Completion {
            at,
            more: false,
            result,
        }
    }
}

impl Payload {
    /// Takes what there is and leaves nothing.
    #[inline]
    pub(crate) fn take(&mut self) -> Payload {
        std::mem::take(self)
    }
}

impl Lane {
    /// Both lanes, in order.
    pub const BOTH: [Lane; 2] = [Lane::Read, Lane::Write];
}
