//! `Stats`: the counters of a watcher.

/// Counters of a watcher since it was built, and what is pending now. They are always on.
///
/// ```
/// use gaio::{Results, Watcher};
/// use std::time::Duration;
///
/// # fn main() -> gaio::Result<()> {
/// let mut watcher = Watcher::new()?;
/// let before = watcher.stats();
/// watcher.timer((), Duration::ZERO)?;
/// assert_eq!(watcher.stats().pending, 1);
/// watcher.wait_io(&mut Results::new())?;
///
/// let now = watcher.stats();
/// assert_eq!((now.submitted - before.submitted, now.pending), (1, 0));
/// println!("{} system calls in {} turns", now.kernel_calls, now.turns);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// System calls that the watcher made on its thread: to wait, to transfer, to take sockets in, to
    /// close them. Not counted are the checks of what `delegate`, `listen` and `connect` are given, the calls
    /// that only answer the program (`peer_addr`), and the allocator's.
    pub kernel_calls: u64,
    /// Of these, the calls that wait (`io_uring_enter`, `epoll_wait`).
    pub wait_calls: u64,
    /// Of these, the calls that read. On io_uring, sockets need none.
    pub read_calls: u64,
    /// Of these, the calls that write. On io_uring, sockets need them only when they were full.
    pub write_calls: u64,
    /// Of these, the calls that accept or connect. On io_uring, only connects to Unix sockets need them.
    pub accept_calls: u64,
    /// Wake-ups that were sent to the sleeping watcher.
    pub wakeups: u64,
    /// Wake-ups that needed no system call because the watcher was running.
    pub wakeups_elided: u64,
    /// Calls of `wait_io` and `wait_io_timeout`.
    pub turns: u64,
    /// Requests that were accepted.
    pub submitted: u64,
    /// Completions that the backend reported.
    pub completions: u64,
    /// Turns that began with completions for which the ring's queue had no room. None is lost, but
    /// they cost more. A larger [`queue_depth`](crate::Builder::queue_depth) avoids them. Always zero
    /// except on io_uring.
    pub completion_overflows: u64,
    /// Results that were returned.
    pub delivered: u64,
    /// Requests that ended with `Cancelled`.
    pub cancelled: u64,
    /// Requests that ended with `Deadline`.
    pub deadlines: u64,
    /// Reads that found the swap pool used up. Each is counted once.
    pub swap_starved: u64,
    /// Open connections and listeners.
    pub connections: usize,
    /// Requests whose last result is still to come.
    pub pending: usize,
    /// Leases of swap buffers that are alive, clones included.
    pub leases: usize,
    /// Swap buffers in use, without the small buffers of single connections.
    pub swap_buffers_out: usize,
    /// The largest number of swap buffers that were in use at once.
    pub swap_buffers_peak: usize,
    /// Memory of the swap pool in bytes, with the small buffers of single connections.
    pub swap_bytes: usize,
}
