//! Enters the ring: one system call a turn submits, waits and collects. It also tells the kernel
//! that the sleep is not a wait for a disk.

use std::os::fd::AsRawFd;
use std::time::Instant;

use io_uring::types::{Fd, SubmitArgs, Timespec};
use io_uring::{EnterFlags, opcode};

use super::{IGNORED, Uring, WOKEN};
use crate::Until;
use crate::error::Errno;

/// The number of cancellations from which on a turn asks the kernel to run them all. Otherwise the
/// kernel runs only some twenty deferred completions a call.
const MANY_CANCELS: usize = 16;

impl Uring {
    /// One round of a turn: submits, waits, and looks at the completions.
    pub(super) fn round(&mut self, until: Until) -> Result<(), Errno> {
        if !self.wake_armed || self.nest.is_some() {
            self.arm_wake();
        }
        if self.buffers.can_take() {
            self.buffers.refill(&self.pool);
        }
        let mut until = until;
        if !self.deferred.is_empty() {
            self.push_deferred();
            // No sleep before all entries are submitted: the completion of a deferred one may be all
            // that would end it.
            if !self.deferred.is_empty() {
                until = Until::Now;
            }
        }
        self.enter(until)?;
        if self.nest.is_some() {
            self.clear_nest();
        }
        Ok(())
    }

    /// Publishes the queued submissions and the taken completions to the kernel, and looks at its
    /// progress.
    #[inline]
    pub(super) fn sync(&mut self) {
        self.submission.sync();
        self.completion.sync();
    }

    /// Lets a wake-up end the sleep in the ring. A nested ring sleeps elsewhere.
    #[cold]
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
        // There is nothing to submit, to process or to wait for, so this takes no system call.
        if !sleeps && !self.owes_work() {
            return Ok(());
        }
        self.counts.waits += 1;
        let most = self.ring.params().cq_entries() as usize;
        self.counts.overflows += u64::from(self.submission.cq_overflow());
        let result = if self.cancelling >= MANY_CANCELS {
            // The kernel processes as many completions as it is asked for, and does not wait for
            // them.
            let all = self.completion.len() + self.cancelling;
            self.enter_for(Timespec::new(), all.min(most))
        } else if !sleeps && self.left_behind && !self.has_ready() {
            // For the same reason: a call that asks for none may leave some behind again.
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
            // Timed out, interrupted, or completions have to be taken first: all of that is in
            // order.
            Err(Errno(libc::ETIME | libc::EINTR | libc::EBUSY | libc::EAGAIN)) => Ok(()),
            Err(errno) => Err(errno),
        }
    }

    pub(super) fn enter_for(&self, timeout: Timespec, want: usize) -> std::io::Result<usize> {
        self.enter_ring(want, Some(&SubmitArgs::new().timespec(&timeout)))
    }

    /// Submits the queued entries, lets the kernel complete what it can, and waits for so many
    /// completions.
    pub(super) fn enter_ring(
        &self,
        want: usize,
        args: Option<&SubmitArgs<'_, '_>>,
    ) -> std::io::Result<usize> {
        // Only if events are asked for does deferred task work run, and do overflowed completions
        // come in.
        let queue = &self.submission;
        let asks = want > 0 || queue.taskrun() || queue.cq_overflow();
        let mut flags = EnterFlags::empty();
        flags.set(EnterFlags::GETEVENTS, asks);
        flags.set(EnterFlags::EXT_ARG, args.is_some());
        flags.set(EnterFlags::NO_IOWAIT, self.features.no_iowait && want > 0);
        let queued = queue.len() as u32;
        let submitter = self.ring.submitter();
        // SAFETY: the callers of `push` vouched for the memory that queued entries name; the
        // arguments are borrowed for the call.
        unsafe { submitter.enter(queued, want as u32, flags.bits(), args) }
    }

    /// Whether there are completions that were not handed out yet.
    #[inline]
    pub(super) fn has_ready(&self) -> bool {
        !self.completion.is_empty() || self.has_ended_here()
    }

    /// Whether the kernel has something to do when it is entered.
    #[inline]
    pub(super) fn owes_work(&self) -> bool {
        let queue = &self.submission;
        !queue.is_empty() || queue.taskrun() || queue.cq_overflow()
    }
}
