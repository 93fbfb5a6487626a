//! Entering the ring: one system call a turn submits, waits and collects, and says to the kernel that a
//! sleep is no wait for a disk.

use std::os::fd::AsRawFd;
use std::time::Instant;

use io_uring::types::{Fd, SubmitArgs, Timespec};
use io_uring::{EnterFlags, opcode};

use super::{IGNORED, Uring, WOKEN};
use crate::Until;
use crate::error::Errno;

/// From this many cancellations on, a turn asks the kernel to run them all: it runs only some
/// twenty deferred completions a call otherwise, unless as many are asked for.
const MANY_CANCELS: usize = 16;

impl Uring {
    /// Submits and waits.
    pub(super) fn round(&mut self, until: Until) -> Result<(), Errno> {
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

    /// Shows the kernel what was queued and what was taken; looks at what it did.
    #[inline]
    pub(super) fn sync(&mut self) {
        self.submission.sync();
        self.completion.sync();
    }

    /// Lets a wake-up end the sleep in the ring. Nested, the sleep is elsewhere.
    pub(super) fn arm_wake(&mut self) {
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

    pub(super) fn disarm_wake(&mut self) {
        if self.wake_armed {
            let entry = opcode::AsyncCancel::new(WOKEN).build().user_data(IGNORED);
            // SAFETY: a cancellation names no memory.
            unsafe { self.push(entry) };
        }
    }

    /// The turn's one system call.
    pub(super) fn enter(&mut self, until: Until) -> Result<(), Errno> {
        self.sync();
        let sleeps = until != Until::Now && !self.has_ready();
        if !sleeps && !self.owes_work() {
            return Ok(());
        }
        self.counts.waits += 1;
        let most = self.ring.params().cq_entries() as usize;
        self.counts.overflows += u64::from(self.submission.cq_overflow());
        let result = if self.cancelling >= MANY_CANCELS {
            let all = self.completion.len() + self.cancelling;
            self.enter_for(Timespec::new(), all.min(most))
        } else if !sleeps && self.left_behind && !self.has_ready() {
            self.enter_for(Timespec::new(), most)
        } else if !sleeps {
            self.enter_ring(0, None)
        } else if let Until::Time(at) = until {
            let left = at.saturating_duration_since(Instant::now());
            self.enter_for(Timespec::from(left), 1)
        } else {
            self.enter_ring(1, None)
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

    pub(super) fn enter_for(&self, timeout: Timespec, want: usize) -> std::io::Result<usize> {
        self.enter_ring(want, Some(&SubmitArgs::new().timespec(&timeout)))
    }

    /// Submits what is queued, lets the kernel complete what it can, and waits for so many completions.
    pub(super) fn enter_ring(
        &self,
        want: usize,
        args: Option<&SubmitArgs<'_, '_>>,
    ) -> std::io::Result<usize> {
        // Deferred task work runs, and what overflowed comes in, only if events are asked for.
        let queue = &self.submission;
        let asks = want > 0 || queue.taskrun() || queue.cq_overflow();
        let mut flags = EnterFlags::empty();
        flags.set(EnterFlags::GETEVENTS, asks);
        flags.set(EnterFlags::EXT_ARG, args.is_some());
        flags.set(EnterFlags::NO_IOWAIT, self.features.no_iowait && want > 0);
        let queued = queue.len() as u32;
        let submitter = self.ring.submitter();
        // SAFETY: the memory that queued entries name was vouched for when they were pushed; the
        // arguments are borrowed for the call.
        unsafe { submitter.enter(queued, want as u32, flags.bits(), args) }
    }

    /// Completions that were not given out yet.
    #[inline]
    pub(super) fn has_ready(&self) -> bool {
        !self.completion.is_empty() || !self.immediate.is_empty() || self.misled.has_woken()
    }

    /// Whether the kernel would do something if it were entered.
    #[inline]
    pub(super) fn owes_work(&self) -> bool {
        let queue = &self.submission;
        !queue.is_empty() || queue.taskrun() || queue.cq_overflow()
    }
}
