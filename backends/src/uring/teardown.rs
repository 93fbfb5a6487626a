//! Ending a ring without the kernel writing into memory that was freed.
//!
//! Closing a ring is asynchronous: the kernel was seen to write into buffers after `close(2)`
//! returned. So the ring's own thread cancels everything and collects it first: a thousand operations
//! take 5 ms. Many more take long on a small ring, since the kernel looks for each in a table as small
//! as the ring; and other threads are not let in at all. Then the kernel cancels everything when the
//! ring is closed, and a pipe that hangs up with the ring tells when that is done: after 20 to 60 ms, be
//! it one operation or 9,000. (Measured on 6.18.)

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
use crate::{Backend, LoadTable, Until, sys};

/// How many operations are cancelled one by one: for more, closing the ring is faster.
const DRAIN_MAX: usize = 2_000;
/// How long a drop may wait.
const WAIT_MAX: Duration = Duration::from_millis(100);
/// How long the memory of a ring is kept that does not end in time: a forked process may hold it.
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

    /// Whether the ring is gone, or is by then.
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

/// What the kernel may write to, or read from, until the ring is gone.
struct KernelMemory {
    _loads: LoadTable,
    _buffers: BufferRing,
    _private: PrivateReads,
    _wake_count: Box<u64>,
}

impl KernelMemory {
    /// Frees it when the ring is gone, on a thread that ends then. If there can be no thread, or the
    /// ring does not end, the memory stays allocated.
    fn free_after(self, exit: ExitPipe) {
        // Nor is it dropped with what a thread that cannot be started would have done.
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
    /// Cancels everything and collects it. False if it is too much, or this thread is not let in.
    fn drain(&mut self, until: Instant) -> bool {
        let running: Vec<_> = self.in_flight.all().collect();
        if running.len() > DRAIN_MAX {
            return false;
        }
        for place in running {
            self.cancel(place, false);
        }
        self.disarm_wake();
        while self.running() > 0 {
            self.push_deferred();
            self.sync();
            let queued = !self.deferred.is_empty();
            // As long as cancellations are queued there is more to submit, and nothing to wait for.
            // After that as much is asked for as still runs, so this ends as soon as that has ended.
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
        // Memory is freed if this says so: it is looked at, not counted.
        !self.wake_armed && self.in_flight.all().next().is_none()
    }

    /// In a forked child: only its copies go. The ring is the parent's, and its mapping was never
    /// here: somebody else's memory may lie there by now, so the box that would unmap it is kept.
    fn leave_to_parent(&mut self) {
        // SAFETY: the box is leaked, so that nobody else closes this. The kernel, which works for the
        // parent, uses the parent's memory. Each is dropped once, here, and not used afterwards.
        unsafe {
            drop(OwnedFd::from_raw_fd(self.ring.as_raw_fd()));
            ManuallyDrop::drop(&mut self.exit);
            ManuallyDrop::drop(&mut self.loads);
            ManuallyDrop::drop(&mut self.buffers);
            ManuallyDrop::drop(&mut self.private);
        }
    }

    /// How much is in flight after all was cancelled.
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
        let drained = !self.bound || self.drain(until);
        // What the ring accepted and nobody took is closed.
        self.sync();
        while self.next().is_some() {}
        let ring: *const IoUring = self.ring;
        // SAFETY: `Uring::new` leaked this box. The queues refer to it, but no drop code of theirs
        // runs and they are not used again; nor is `ring`.
        drop(unsafe { Box::from_raw(ring.cast_mut()) });
        // Before the wait: peers see their end as soon as the kernel has let go of the sockets, too.
        self.in_flight.close_all(&mut self.counts);
        // SAFETY: taken once, here, and not used afterwards.
        let (exit, loads, buffers, private) = unsafe {
            (
                ManuallyDrop::take(&mut self.exit),
                ManuallyDrop::take(&mut self.loads),
                ManuallyDrop::take(&mut self.buffers),
                ManuallyDrop::take(&mut self.private),
            )
        };
        let memory = KernelMemory {
            _loads: loads,
            _buffers: buffers,
            _private: private,
            _wake_count: std::mem::take(&mut self.wake_count),
        };
        if !drained && !exit.hangs_up(until) {
            memory.free_after(exit);
        }
    }
}
