//! Ends a ring so that the kernel does not write into freed memory.
//!
//! Closing a ring is asynchronous: the kernel was seen to write into buffers after `close(2)` had
//! returned. So the ring's own thread first cancels all operations and collects their completions,
//! which takes 5 ms for a thousand of them.
//!
//! Two cases go another way. Many more operations take long on a small ring, because the kernel
//! looks for each in a table as small as the ring. And the ring lets no other thread in. In both,
//! the kernel cancels everything when the ring is closed. A pipe that hangs up with the ring tells
//! when that is done: after 20 to 60 ms, for one operation as for 9,000. (Measured on 6.18.)

use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::thread;
use std::time::{Duration, Instant};

use io_uring::IoUring;
use io_uring::types::Timespec;

use super::Uring;
use super::buffer_ring::BufferRing;
use super::private::PrivateReads;
use crate::error::Errno;
use crate::{Backend, OpTable, Until, sys};

/// The greatest number of operations that are cancelled one by one. For more, closing the ring is
/// faster.
const DRAIN_MAX: usize = 2_000;
/// The greatest time that a drop may wait.
const WAIT_MAX: Duration = Duration::from_millis(100);
/// The time for which the memory of a ring is kept that does not end in time: a forked process may
/// hold the ring.
const KEEP_MAX: Duration = Duration::from_secs(10);

/// The read end of a pipe that hangs up when the ring is gone.
pub(super) struct ExitPipe(OwnedFd);

impl ExitPipe {
    /// Registers the write end with the ring and keeps no other copy.
    pub(super) fn register(ring: &IoUring) -> Result<Self, Errno> {
        let (read, write) = std::io::pipe()?;
        ring.submitter().register_files(&[write.as_raw_fd()])?;
        Ok(ExitPipe(read.into()))
    }

    /// Waits until the ring is gone, until this time at most. Returns whether it is gone.
    fn hangs_up(&self, until: Instant) -> bool {
        let sleep = || sys::wait_readable(self.0.as_fd(), Until::Time(until)).is_ok();
        let gone = || sys::is_ready(self.0.as_raw_fd(), crate::Interest::Readable) == Ok(true);
        while !gone() {
            if Instant::now() >= until || !sleep() {
                return false;
            }
        }
        true
    }
}

/// The memory that the kernel may write to, or read from, until the ring is gone.
struct KernelMemory {
    _op_table: OpTable,
    _buffers: BufferRing,
    _private: PrivateReads,
    _wake_count: Box<u64>,
}

impl KernelMemory {
    /// Frees the memory when the ring is gone, on a thread that ends then. If no thread can be
    /// started, or the ring does not end, the memory stays allocated.
    fn free_after(self, exit: ExitPipe) {
        // `ManuallyDrop`, because a thread that cannot be started drops its closure.
        let memory = ManuallyDrop::new(self);
        let wait = move || {
            if exit.hangs_up(Instant::now() + KEEP_MAX) {
                drop(ManuallyDrop::into_inner(memory));
            }
        };
        let _ = thread::Builder::new()
            .name("gaio-ending".into())
            .spawn(wait);
    }
}

impl Uring {
    /// Cancels all operations and collects their completions. False if some may still run: there
    /// are too many, they take too long, or the ring does not let this thread in.
    fn drain(&mut self, until: Instant) -> bool {
        let running: Vec<_> = self.in_flight.all().collect();
        if running.len() > DRAIN_MAX {
            return false;
        }
        for at in running {
            self.cancel(at, false);
        }
        self.disarm_wake();
        while self.running() > 0 {
            self.push_deferred();
            self.sync();
            let queued = !self.deferred.is_empty();
            // While cancellations are queued there is more to submit, and nothing to wait for.
            // After that the wait asks for as many completions as there are running operations, so
            // it ends as soon as all have ended.
            let most = self.ring.params().cq_entries() as usize;
            let all = self.completion.len() + self.running();
            let want = if queued { 0 } else { all.min(most) };
            let left = until.saturating_duration_since(Instant::now());
            let entered = self.enter_for(Timespec::from(left), want);
            self.sync();
            while self.next().is_some() {}
            let refused = entered.is_err_and(|error| {
                let expected = [libc::ETIME, libc::EINTR, libc::EBUSY, libc::EAGAIN];
                !error.raw_os_error().is_some_and(|e| expected.contains(&e))
            });
            if refused || left.is_zero() {
                break;
            }
        }
        // Memory is freed on this answer, so it comes from the table itself, not from a count.
        !self.wake_armed && self.in_flight.all().next().is_none()
    }

    /// In a forked child: closes and frees the child's copies only. The ring is the parent's. Its
    /// mapping was never in the child, and other memory may lie there by now. So the box that would
    /// unmap it is leaked.
    fn leave_to_parent(&mut self) {
        // SAFETY: the box is leaked, so nobody else closes this descriptor. The kernel works for
        // the parent and uses the parent's memory. Each value is dropped once, here, and not used
        // afterwards.
        unsafe {
            drop(OwnedFd::from_raw_fd(self.ring.as_raw_fd()));
            ManuallyDrop::drop(&mut self.exit);
            ManuallyDrop::drop(&mut self.op_table);
            ManuallyDrop::drop(&mut self.buffers);
            ManuallyDrop::drop(&mut self.private);
        }
    }

    /// The number of operations in flight after all were cancelled.
    fn running(&self) -> usize {
        self.cancelling + usize::from(self.wake_armed)
    }
}

impl Drop for Uring {
    fn drop(&mut self) {
        if !self.waker.process().is_current() {
            return self.leave_to_parent();
        }
        let until = Instant::now() + WAIT_MAX;
        // A ring that was never enabled has no operations.
        let drained = !self.bound || self.drain(until);
        // Sockets that the ring accepted and that nobody took are closed.
        self.sync();
        while self.next().is_some() {}
        let ring: *const IoUring = self.ring;
        // SAFETY: `Uring::new` leaked this box. The queues refer to it, but none of their drop code
        // runs, and they are not used again; nor is `ring`.
        drop(unsafe { Box::from_raw(ring.cast_mut()) });
        // Before the wait, so that peers see their end as soon as the kernel, too, has let go of
        // the sockets.
        self.in_flight.close_all(&mut self.counts);
        // SAFETY: each is taken once, here, and not used afterwards.
        let (exit, op_table, buffers, private) = unsafe {
            (
                ManuallyDrop::take(&mut self.exit),
                ManuallyDrop::take(&mut self.op_table),
                ManuallyDrop::take(&mut self.buffers),
                ManuallyDrop::take(&mut self.private),
            )
        };
        let memory = KernelMemory {
            _op_table: op_table,
            _buffers: buffers,
            _private: private,
            _wake_count: std::mem::take(&mut self.wake_count),
        };
        if !drained && !exit.hangs_up(until) {
            memory.free_after(exit);
        }
    }
}
