//! What a watcher has done so far, in numbers.

/// Counters of one watcher since it was built, and what is pending now. Always on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// All system calls that the watcher made on its thread: to wait, to transfer, to take sockets in, to
    /// close them. Not those by which a call first looks at what it was given (`delegate`, `listen`,
    /// `connect`), those that only answer the program (`peer_addr`), and the allocator's.
    pub kernel_calls: u64,
    /// Of these: calls that wait (`io_uring_enter`, `epoll_wait`).
    pub wait_calls: u64,
    /// Of these: calls that read (none for sockets on io_uring).
    pub read_calls: u64,
    /// Of these: calls that write (for sockets on io_uring only when they were full).
    pub write_calls: u64,
    /// Of these: calls that accept or connect (on io_uring only connects to Unix sockets).
    pub accept_calls: u64,
    /// Wake-ups that were sent to the sleeping watcher.
    pub wakeups: u64,
    /// Wake-ups that needed no system call, because the watcher was running.
    pub wakeups_elided: u64,
    /// Calls of `wait_io` and `wait_io_timeout`.
    pub turns: u64,
    /// Requests accepted.
    pub submitted: u64,
    /// Completions that the backend gave.
    pub completions: u64,
    /// Turns that began with completions which had found the ring's queue full. Nothing is lost, but they cost
    /// more: a larger [`queue_depth`](crate::Builder::queue_depth) holds more. None but on io_uring.
    pub completion_overflows: u64,
    /// Results handed out.
    pub delivered: u64,
    /// Requests that ended with `Cancelled`.
    pub cancelled: u64,
    /// Requests that ended with `Deadline`.
    pub deadlines: u64,
    /// Reads that met a swap pool that was used up, each counted once.
    pub swap_starved: u64,
    /// Open connections and listeners.
    pub connections: usize,
    /// Requests without their last result.
    pub pending: usize,
    /// Leases of swap buffers that are alive, clones included.
    pub leases: usize,
    /// Swap buffers that are in use, private ones apart.
    pub swap_buffers_out: usize,
    /// The most swap buffers that were ever in use at once.
    pub swap_buffers_peak: usize,
    /// Memory held by the swap pool, in bytes, with what connections hold privately.
    pub swap_bytes: usize,
}
