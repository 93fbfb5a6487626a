//! The kernel side of [gaio](https://docs.rs/gaio): the trait [`Backend`], its implementations, and
//! the swap buffers that they share.
//!
//! This crate is the lower half of `gaio`. Programs use the upper half. All unsafe code of the
//! project is here.
//!
//! # Adding a backend
//!
//! A system with a readiness poller, such as an event port, needs one file that implements the
//! trait `Poller` of `emulated/poller.rs`. A system that completes operations itself needs an
//! implementation of [`Backend`], in a folder of its own. Then name the backend's cfg in the
//! workspace's `build.rs`, and list the backend in `select.rs`.

#[cfg(not(any(gaio_uring, gaio_epoll, gaio_kqueue)))]
compile_error!("gaio has no backend for this target: it wants Linux, or a 64-bit BSD or macOS");

mod address;
mod batch;
mod buffer;
mod emulated;
mod error;
mod file_block;
mod op_table;
mod parts;
mod quotes;
mod result_queue;
mod select;
#[cfg(feature = "sim")]
pub mod sim;
mod slots;
mod swap;
mod sys;
#[cfg(gaio_uring)]
mod uring;
mod wake;

use std::fmt;
use std::net::Shutdown;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Instant;

pub use address::Address;
pub use buffer::Buffer;
pub use error::{Errno, Error, ErrorContext, ErrorKind, Result, SetupError};
pub(crate) use op_table::OpTable;
pub use op_table::{OpData, OpTableView};
pub use result_queue::ResultQueue;
#[cfg(feature = "sim")]
pub use select::simulate;
pub use select::{BackendInfo, BackendKind, Choice, Declined, Selected, select};
pub use slots::{is_overgrown, reserve_gently, shrink_overgrown};
pub use swap::{Credit, Pool, PoolUse, SwapBuf, Threshold, Thresholds};
pub use sys::{
    PeerCred, Process, classify, local_addr, peer_addr, peer_cred, pin_thread, stream_socket,
};
pub use wake::{Notifier, Waker};

/// Seals [`Backend`], so that the trait can change together with the engine above it.
mod sealed {
    #[allow(unreachable_pub)]
    pub trait Backend {}
}

/// The contract between the watcher, which knows the user, and a backend, which knows the kernel.
///
/// A turn starts operations, calls [`wait`](Backend::wait) once, and takes completions with
/// [`next`](Backend::next). Queues, order, deadlines, generations and the retries of short
/// transfers are the watcher's. A backend has no queue policy.
///
/// # Guarantees of the watcher
/// - A slot is a small number that the watcher chooses. It is attached once and detached once, and
///   it is not attached again before the next `wait`.
/// - A slot has two lanes. Each runs at most one operation at a time: the next one starts only
///   after the last completion of the one before was taken.
/// - The data of an operation (a buffer, several buffers, an address) is in the
///   [`op_table`](Backend::op_table), in the entry of its lane, before the operation starts.
/// - A lane is cancelled only while an operation runs on it. A slot is detached only while both
///   lanes are idle.
/// - At most [`room`](Backend::room) operations are started before each `wait`.
/// - All calls after [`bind`](Backend::bind) come from the thread that called it. Only the drop may
///   come from another.
///
/// # Duties of the backend
/// - Every started operation ends with exactly one completion whose `more` is false. Only a stream
///   may have others before it.
/// - A stream may end at any time with a success, except a read of 0 bytes. The watcher then starts
///   it again.
/// - A cancelled operation ends soon: with the work that it had done, or with `ECANCELED` if there
///   was none. Nothing is lost: received bytes are in the completion or still in the socket.
/// - The memory that the kernel uses lives until the last completion of the operation, even if the
///   backend is dropped. Operation data (buffers, addresses, message headers) stays in the table,
///   where it is marked as busy. Swap buffers stay with the backend.
/// - A swap read that finds no buffer ends with `ENOBUFS` and consumes nothing. It ends so only if
///   there is data to read, or the end, unless the buffers ran out just now.
/// - A private read never waits, so that it holds no memory for long. It ends with `EAGAIN` if
///   there is nothing to read.
/// - A transfer may be short but not empty. A read of 0 bytes means the end.
/// - No call blocks but `wait`, no call raises a signal, and descriptors are close-on-exec.
pub trait Backend: sealed::Backend {
    /// Takes a socket into `slot`.
    ///
    /// # Errors
    /// The system's error, together with the socket.
    fn attach(
        &mut self,
        slot: u32,
        socket: OwnedFd,
        kind: SocketKind,
    ) -> Result<(), (Errno, OwnedFd)>;

    /// Returns the socket, in the blocking mode in which it came.
    fn detach(&mut self, slot: u32) -> Option<OwnedFd>;

    /// Returns the socket to be closed. Duplicates of it share its blocking mode. A pipe or a
    /// terminal gets back the mode in which it came; a socket keeps its present mode. The drop does
    /// the same with each socket.
    fn release(&mut self, slot: u32) -> Option<OwnedFd> {
        self.detach(slot)
    }

    /// The socket in `slot`.
    fn socket(&self, slot: u32) -> Option<BorrowedFd<'_>>;

    /// The number of operations that can still be started before the next [`wait`](Backend::wait).
    fn room(&self) -> usize;

    /// The data of all operations, by lane.
    fn op_table(&mut self) -> OpTableView<'_>;

    /// The number of bytes of a lane's write that the kernel does not have, as far as is known.
    fn unwritten(&self, at: LaneId) -> usize;

    /// Starts an operation on an idle lane. A backend may do the work at once if that does not
    /// block. Then it returns the only completion, or the first one of a stream. After a last
    /// completion the data of the lane is no longer busy.
    fn start(&mut self, at: LaneId, request: Request) -> Option<Completion>;

    /// Ends an operation early. With `last_try`, the operation gets one more attempt, or its first
    /// one, so that everything possible at this moment is done.
    fn cancel(&mut self, at: LaneId, last_try: bool);

    /// Calls `shutdown(2)` at once.
    ///
    /// # Errors
    /// The system's error.
    fn shutdown(&mut self, slot: u32, how: Shutdown) -> Result<(), Errno>;

    /// Ties the backend to the calling thread. It is called once, before the first `wait`.
    ///
    /// # Errors
    /// The system's error.
    fn bind(&mut self) -> Result<(), Errno>;

    /// Runs the started operations, and sleeps if none is complete. A signal may end the sleep
    /// early.
    ///
    /// # Errors
    /// The system's error for the call that waits.
    fn wait(&mut self, until: Until) -> Result<(), Errno>;

    /// The next completion of the turn that the last [`wait`](Backend::wait) began, or `None` if
    /// that was all. Completions that were not taken come after the next `wait`, which does not
    /// sleep then.
    fn next(&mut self) -> Option<Completion>;

    /// Whether there is more to do without sleeping. The watcher asks at the end of a turn.
    fn has_work(&mut self) -> bool;

    /// A duplicate of a descriptor for other event loops. It is readable in three cases:
    ///
    /// - [`wait`](Backend::wait) would hand out something that was not there when
    ///   [`has_work`](Backend::has_work) was last asked;
    /// - the [`waker`](Backend::waker) was woken from its sleep;
    /// - the time last given to [`arm`](Backend::arm) has come.
    ///
    /// From the first success on, `wait` pays for keeping the descriptor exact.
    ///
    /// # Errors
    /// The system's error, such as `EMFILE`. The backend is unchanged then.
    fn readiness(&mut self) -> Result<OwnedFd, Errno>;

    /// Makes [`readiness`](Backend::readiness) readable at this time, or at none.
    fn arm(&mut self, at: Option<Instant>);

    /// The clock of deadlines. It differs from the system's only where time is simulated.
    #[inline]
    fn now(&self) -> Instant {
        Instant::now()
    }

    /// The handle that wakes `wait` from other threads.
    fn waker(&self) -> &Arc<Waker>;

    /// The pool from which swap reads take their memory.
    fn pool(&self) -> &Pool;

    /// The present room for swap reads.
    fn swap_room(&mut self) -> SwapRoom;

    /// The system calls made so far.
    fn counts(&self) -> &Counts;
}

impl Options {
    /// Options for tests of single backends.
    #[cfg(test)]
    const SMALL: Options = Options {
        swap_buffer_size: 4096,
        swap_buffers: 4,
        queue_depth: 64,
        restricted: false,
    };

    /// The pool with these options.
    fn pool(&self, waker: &Arc<Waker>) -> Pool {
        Pool::new(self.swap_buffer_size, self.swap_buffers, Arc::clone(waker))
    }
}

/// The options of a new backend.
#[derive(Clone, Debug)]
pub struct Options {
    /// Bytes in one swap buffer.
    pub swap_buffer_size: usize,
    /// The greatest number of swap buffers.
    pub swap_buffers: usize,
    /// The number of operations that one turn can start.
    pub queue_depth: usize,
    /// Whether the kernel refuses all operations that this library does not use.
    pub restricted: bool,
}

/// A lane of a slot. It identifies an operation and its completions.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LaneId(u32);

impl LaneId {
    /// The number of slots that have lanes.
    pub const SLOTS_MAX: u32 = 1 << 30;

    /// The lane of one direction of a connection.
    #[inline]
    pub const fn new(slot: u32, lane: Lane) -> Self {
        debug_assert!(slot < LaneId::SLOTS_MAX);
        LaneId(slot << 1 | lane as u32)
    }

    /// The slot of the connection.
    #[inline]
    pub const fn slot(self) -> u32 {
        self.0 >> 1
    }

    /// The direction of the lane.
    #[inline]
    pub const fn lane(self) -> Lane {
        if self.0 & 1 == 0 {
            Lane::Read
        } else {
            Lane::Write
        }
    }

    /// The lane as a small number, below 2^31.
    #[inline]
    pub const fn number(self) -> u32 {
        self.0
    }

    /// The lane with this number.
    #[inline]
    pub const fn from_number(number: u32) -> Self {
        LaneId(number)
    }
}

impl fmt::Debug for LaneId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} of slot {}", self.lane(), self.slot())
    }
}

/// The report that an operation, or one step of a stream, is complete.
#[derive(Debug)]
pub struct Completion {
    /// The lane of the operation.
    pub at: LaneId,
    /// Whether further completions of this operation follow. The lane is idle after the last one.
    pub more: bool,
    /// The outcome of the operation or the step.
    pub outcome: Outcome,
}

/// The outcome of an operation, or of one step of a stream.
#[derive(Debug)]
pub enum Outcome {
    /// The number of bytes that moved between the descriptor and the operation's buffer. For a
    /// read, 0 means the end. An operation that moves no bytes always reports 0.
    Done(u32),
    /// Bytes were read into a swap buffer.
    Leased(SwapBuf),
    /// A connection was accepted.
    Accepted(OwnedFd),
    /// The system's error.
    Failed(Errno),
}

/// The two directions of a socket. Accepting and waiting for readability use `Read`. Connecting and
/// waiting for writability use `Write`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Lane {
    /// Incoming bytes or connections.
    Read = 0,
    /// Outgoing bytes or connections.
    Write = 1,
}

/// An operation to start. Its data is in the table of operation data, in the entry of its lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// Read once into a swap buffer.
    ReadSwap,
    /// Read into swap buffers until the end. The leases are charged to the connection's account.
    ReadStream,
    /// Like `ReadStream`, in the smallest steps that the system can take, because other connections
    /// wait for buffers.
    ReadStep,
    /// Read once into a private buffer, without waiting. The buffer is charged to the connection's
    /// account.
    ReadPrivate,
    /// Read once into the rest of the buffer.
    Read,
    /// Write the rest of the buffer.
    Write,
    /// Write the rest of a first buffer and several others, or of a buffer in parts, as one transfer.
    WriteMany,
    /// Accept one connection.
    Accept,
    /// Accept until cancelled.
    AcceptStream,
    /// Connect to the address.
    Connect,
    /// Wait until the socket is ready, and transfer nothing.
    Ready(Interest),
}

/// The greatest number of buffers of one [`Request::WriteMany`].
pub const WRITES_MAX: usize = batch::Batch::LEN_MAX;

/// The readiness that `ready` waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Interest {
    /// A read would not block: there is data, the end, or an error.
    Readable,
    /// A write would not block, or would fail.
    Writable,
}

/// The kind of a descriptor. It decides how the descriptor is read and written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SocketKind {
    /// A connected, or connectable, stream socket.
    Stream,
    /// A listening socket.
    Listener,
    /// A descriptor that is not a socket but can be waited for: a pipe, a terminal, an `eventfd`.
    Other,
}

/// The limit of a sleep in [`Backend::wait`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Until {
    /// No sleep.
    Now,
    /// Until this time.
    Time(Instant),
    /// Until an operation is complete.
    Done,
}

/// The approximate room for swap reads before another lease comes back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SwapRoom {
    /// Free bytes in swap buffers.
    pub bytes: usize,
    /// The bytes of these that one turn can use.
    pub at_hand: usize,
    /// The number of reads that one turn can serve, however small they are.
    pub reads: usize,
}

/// The system calls that a backend made, by kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Calls that wait: `io_uring_enter(2)`, `epoll_wait(2)`, `kevent(2)`.
    pub waits: u64,
    /// Calls that read. Reads by the ring are not calls.
    pub reads: u64,
    /// Calls that write. Writes by the ring are not calls.
    pub writes: u64,
    /// Calls that accept or connect. Those by the ring are not calls.
    pub accepts: u64,
    /// All other calls since the backend was built: registrations, modes of descriptors, events.
    pub others: u64,
    /// The number of times that completions found the queue full, so that the kernel kept them
    /// aside. These are not calls.
    pub overflows: u64,
}

impl Counts {
    /// The number of all calls.
    pub fn sum(&self) -> u64 {
        self.waits + self.reads + self.writes + self.accepts + self.others
    }

    /// Switches non-blocking mode on or off, and counts the calls. Returns whether it was on.
    pub(crate) fn set_nonblocking(&mut self, fd: impl AsRawFd, on: bool) -> Result<bool, Errno> {
        self.others += 1;
        let was_on = sys::set_nonblocking(fd, on)?;
        self.others += u64::from(was_on != on);
        Ok(was_on)
    }
}

impl SwapRoom {
    /// Room that reads fill densely, however many they are.
    pub(crate) fn packed(bytes: usize) -> Self {
        SwapRoom {
            bytes,
            at_hand: bytes,
            reads: usize::MAX,
        }
    }
}

impl Completion {
    /// The last completion of an operation that brings no lease and no socket.
    #[inline]
    pub fn last(at: LaneId, result: Result<u32, Errno>) -> Self {
        Completion {
            at,
            more: false,
            outcome: match result {
                Ok(len) => Outcome::Done(len),
                Err(errno) => Outcome::Failed(errno),
            },
        }
    }

    /// A completion that brings bytes in a swap buffer.
    #[inline]
    pub(crate) fn leased(at: LaneId, more: bool, lease: SwapBuf) -> Self {
        Completion {
            at,
            more,
            outcome: Outcome::Leased(lease),
        }
    }

    /// The number of bytes transferred, or the error.
    #[cfg(test)]
    fn result(&self) -> Result<u32, Errno> {
        match &self.outcome {
            Outcome::Done(len) => Ok(*len),
            Outcome::Leased(lease) => Ok(lease.len() as u32),
            Outcome::Accepted(_) => Ok(0),
            Outcome::Failed(errno) => Err(*errno),
        }
    }
}

impl Lane {
    /// Both lanes, in order.
    pub const BOTH: [Lane; 2] = [Lane::Read, Lane::Write];
}
